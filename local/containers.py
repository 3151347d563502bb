"""The functions in containers of the SAM CLI, against the service on this computer: a template for them, and a way to it.

The SAM CLI puts its containers on Docker's bridge, whatever network it is told, and hands on only those variables that its
template names. So a template is written that has the same artifacts, layers, routes and environment, but the addresses of the
service that runs here, and one layer more with its signing keys.
"""

import asyncio
import errno
import json
import platform
import shutil
import socket
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil

from local import keys
from local.child import aws_environment
from local.template import PROJECT, Template

BUILD = PROJECT / ".aws-sam" / "build"

#: The folder of a container that a layer's content is put into, the signing keys among it.
KEYS = Path("/opt")

#: What containers can't reach: their own selves are meant by it there.
LOOPBACK = ("127.0.0.1", "localhost", "::1")

#: The port of a database URL that names none.
POSTGRESQL = 5432

#: Seconds for functions that work until their time is nearly over, so that whoever invokes one by hand sees it end. They stop
#: up to 15 s before.
BY_THE_CLOCK_SECONDS = 20


def host() -> str:
    """Address of this computer as containers see it: on Docker's bridge, or a name where Docker runs in a machine of its own."""
    bridge = psutil.net_if_addrs().get("docker0", [])
    return next((address.address for address in bridge if address.family == socket.AF_INET), "host.docker.internal")


def seen(url: str) -> str:
    """The URL of something on this computer, as containers have to write it; that of anything else as it is."""
    parts = urlsplit(url)
    if parts.hostname not in LOOPBACK:
        return url
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host()}:{parts.port or POSTGRESQL}"))


def write_template(stack: Template, endpoint: str, local_dir: Path) -> None:
    """Write the template for the SAM CLI and the variables that go with it, which `samconfig.toml` names.

    stack: with addresses and paths as containers see them; the keys are in `KEYS`.
    endpoint: of the stand-in for AWS, as containers see it.
    """
    folder = local_dir / "sam"
    layer = folder / "layer"
    (layer / "python").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("claims.py"), layer / "python")
    for name in keys.KEYS:
        shutil.copy(keys.path(local_dir, name), layer)
        # A function has no root's rights in Lambda, and its layers are readable to it.
        (layer / f"{name}.pem").chmod(0o644)
    variables = {name: function.environment | aws_environment(endpoint) for name, function in stack.functions.items()}
    layers = {name for function in stack.functions.values() for name in function.layers}
    resources: dict[str, Any] = {
        "Api": {"Type": "AWS::Serverless::HttpApi"},
        "LocalLayer": _resource("LayerVersion", ContentUri=str(layer)),
        **{name: _resource("LayerVersion", ContentUri=str(BUILD / name)) for name in sorted(layers)},
    }
    for name, function in stack.functions.items():
        routes = [route for route in stack.routes if route.function == name]
        by_the_clock_alone = name in stack.schedules and name not in {source.function for source in stack.sources}
        resources[name] = _resource(
            "Function",
            Runtime="python3.13",
            Architectures=["arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"],
            Handler="claims.handler" if routes else "shared.entrypoint.handler",
            CodeUri=str(BUILD / name),
            MemorySize=function.memory,
            Timeout=BY_THE_CLOCK_SECONDS if by_the_clock_alone else function.timeout,
            Layers=[{"Ref": each} for each in [*function.layers, "LocalLayer"]],
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
    written = {"AWSTemplateFormatVersion": "2010-09-09", "Transform": "AWS::Serverless-2016-10-31", "Resources": resources}
    (folder / "template.yaml").write_text(json.dumps(written, indent=2))
    # Again, since a variable of the shell that sourced `.local/env` would count for more than the template's.
    (folder / "environment.json").write_text(json.dumps(variables, indent=2))


def _resource(kind: str, **properties: Any) -> dict[str, Any]:
    return {"Type": f"AWS::Serverless::{kind}", "Properties": properties}


@contextmanager
def door(*urls: str) -> Generator[None]:
    """Let containers in: hand connections to Docker's bridge on to the same ports of 127.0.0.1, where the service listens.

    Where Docker runs in a machine of its own, it does that itself.
    """
    here = host()
    ports = [parts.port or POSTGRESQL for parts in map(urlsplit, urls) if parts.hostname in LOOPBACK]
    if here == "host.docker.internal":
        yield
        return
    with ExitStack() as stack:
        listeners: list[socket.socket] = []
        for port in ports:
            try:
                listeners.append(stack.enter_context(socket.create_server((here, port))))
            except OSError as error:
                # A server that listens on every address is reached without help.
                if error.errno != errno.EADDRINUSE:
                    raise
        loop = asyncio.new_event_loop()
        end = asyncio.Event()
        thread = threading.Thread(target=lambda: asyncio.run(_serve(listeners, end), loop_factory=lambda: loop))
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(end.set)
            thread.join()


async def _serve(listeners: list[socket.socket], end: asyncio.Event) -> None:
    servers: list[asyncio.Server] = []
    for listener in listeners:
        port: int = listener.getsockname()[1]

        async def hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = port) -> None:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

        servers.append(await asyncio.start_server(hand_on, sock=listener))
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
