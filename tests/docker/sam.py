"""The running service as the containers of `sam local` reach it: a template with its addresses, and a way to them.

The SAM CLI puts its containers on Docker's bridge, whatever network it is told, and hands on only those variables which the
template names. So the template is written anew: the same artifacts, layers, routes and environment, with the addresses of the
service that runs on this computer, and a layer more, which holds its signing keys.
"""

import asyncio
import json
import os
import platform
import shutil
import subprocess
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from local import keys, postgres, template
from local.child import aws_environment
from local.service import default_dir, parameters, running

BUILD = template.PROJECT / ".aws-sam" / "build"
IMAGE = "public.ecr.aws/lambda/python:3.13"


def host_address() -> str:
    """Address of this computer as containers see it."""
    found = subprocess.run(
        ["docker", "run", "--rm", "--add-host", "host:host-gateway", "--entrypoint", "/bin/cat", IMAGE, "/etc/hosts"],
        capture_output=True,
        text=True,
        check=True,
    )
    return next(line.split()[0] for line in found.stdout.splitlines() if line.split()[1:] == ["host"])


def write_template(environment: dict[str, str], local_dir: Path, host: str) -> Path:
    """Write the template for the service whose `.local/env` says `environment`, and return where it is."""
    folder = local_dir / "sam"
    layer = folder / "layer"
    (layer / "python").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("claims.py"), layer / "python")
    for name in keys.KEYS:
        shutil.copy(keys.path(local_dir, name), layer)
        # A function has no root's rights in Lambda, and its layers are readable to it.
        (layer / f"{name}.pem").chmod(0o644)
    endpoint = environment["AWS_ENDPOINT_URL"].replace("127.0.0.1", host)
    database = environment["DATABASE_URL"].replace("127.0.0.1", host)
    stack = template.read(parameters(environment["API_URL"], database, Path("/opt")), endpoint)
    variables = {name: function.environment | aws_environment(endpoint) for name, function in stack.functions.items()}
    resources: dict[str, Any] = {
        "Api": {"Type": "AWS::Serverless::HttpApi"},
        "LocalLayer": _resource("LayerVersion", ContentUri=str(layer)),
    }
    document = _document()
    common: list[dict[str, str]] = document["Globals"]["Function"]["Layers"]
    for name, function in stack.functions.items():
        layers: list[dict[str, str]] = common + document["Resources"][name]["Properties"].get("Layers", [])
        for each in layers:
            resources[each["Ref"]] = _resource("LayerVersion", ContentUri=str(BUILD / each["Ref"]))
        routes = [route for route in stack.routes if route.function == name]
        resources[name] = _resource(
            "Function",
            Runtime="python3.13",
            Architectures=["arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"],
            Handler="claims.handler" if routes else "app.handler",
            CodeUri=str(BUILD / name),
            MemorySize=function.memory,
            Timeout=function.timeout,
            Layers=[*layers, {"Ref": "LocalLayer"}],
            Environment={"Variables": variables[name]},
            Events={
                f"Route{number}": {
                    "Type": "HttpApi",
                    "Properties": {"ApiId": {"Ref": "Api"}, "Method": route.method, "Path": route.path},
                }
                for number, route in enumerate(routes)
                if route.path != "$default"
            },
        )
    path = folder / "template.yaml"
    written = {"AWSTemplateFormatVersion": "2010-09-09", "Transform": "AWS::Serverless-2016-10-31", "Resources": resources}
    path.write_text(json.dumps(written, indent=2))
    # Again, since a variable of the shell that sourced `.local/env` would count for more than the template's.
    (folder / "environment.json").write_text(json.dumps(variables, indent=2))
    return path


def _resource(kind: str, **properties: Any) -> dict[str, Any]:
    return {"Type": f"AWS::Serverless::{kind}", "Properties": properties}


def _document() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, name, node: {name: getattr(node, "value", None)})
    return yaml.load((template.PROJECT / "template.yaml").read_text(), Loader)  # noqa: S506 - the loader is a SafeLoader.


@contextmanager
def door(host: str, *urls: str) -> Generator[None]:
    """Let containers in: hand connections to `host` on to the same ports of 127.0.0.1, where the service listens.

    Docker Desktop does that itself, and `host` is no address of this computer there.
    """
    ports = [urlsplit(url).port for url in urls]
    loop = asyncio.new_event_loop()
    end = asyncio.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(host, ports, end), loop_factory=lambda: loop))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()


async def _serve(host: str, ports: list[int | None], end: asyncio.Event) -> None:
    servers: list[asyncio.Server] = []
    for port in ports:

        async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int | None = port) -> None:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

        servers.append(await asyncio.start_server(hand_on, host, port))
    await end.wait()
    for server in servers:
        server.close()
        server.close_clients()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    # A container may be ended in the middle of it.
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


SAM = template.PROJECT / ".tools" / "sam" / "bin" / "sam"
START_SECONDS = 120

#: What was invoked how often, and the seconds that it took altogether.
FIGURES: dict[str, list[float]] = {}


def noted(way: str, began: float) -> None:
    """Remember one invocation for the table at the end."""
    FIGURES.setdefault(way, []).append(time.monotonic() - began)


@dataclass
class Sam:
    """The SAM CLI in a folder with `samconfig.toml`, and the service that runs there as `.local/env` tells of it."""

    folder: Path
    environment: dict[str, str]

    def shell(self) -> dict[str, str]:
        """The environment of a developer who has sourced `.local/env`."""
        return os.environ | self.environment

    def invoke(self, function: str, event: Path) -> Any:
        """Invoke a function in a container of its own and return its answer."""
        began = time.monotonic()
        ran = subprocess.run(
            [SAM, "local", "invoke", function, "--event", event],
            cwd=self.folder,
            env=self.shell(),
            capture_output=True,
            text=True,
            check=False,
        )
        noted("invoke", began)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    @contextmanager
    def start(self, what: str) -> Generator[httpx.Client]:
        """Run `sam local start-…` with warm containers, and yield a client of what it starts."""
        port = postgres.free_port()
        log = self.folder / f"{what}.log"
        command = [SAM, "local", what, "--port", str(port)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=self.folder, env=self.shell(), stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + START_SECONDS
            while b"Running on" not in log.read_bytes():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_SECONDS) as client:
                yield client
        finally:
            # As Ctrl-C does: it removes its containers.
            process.terminate()
            process.wait(START_SECONDS)


def main() -> None:
    """Let `sam local` in to the service of `make run`, which is started if it does not run, until Ctrl-C."""
    host = host_address()
    with running(None, default_dir()) as environment, door(host, environment["AWS_ENDPOINT_URL"], environment["DATABASE_URL"]):
        print(f"sam local may be used now, with {write_template(environment, default_dir(), host)}; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
