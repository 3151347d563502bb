"""What the SAM CLI is given for its containers, and their way to the service, without Docker."""

import json
import socket
import socketserver
import threading
import tomllib
from collections.abc import Generator
from pathlib import Path

import pytest

from local import containers, keys, template
from local.service import parameters

BRIDGE = "127.0.0.2"


@pytest.fixture(autouse=True)
def bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another address of this computer in the place of Docker's bridge."""
    monkeypatch.setattr(containers, "host", lambda: BRIDGE)


class Upper(socketserver.StreamRequestHandler):
    """Answers a line by itself in capitals."""

    def handle(self) -> None:
        self.wfile.write(self.rfile.readline().upper())


@pytest.fixture
def port() -> Generator[int]:
    """Port of a server that listens on 127.0.0.1 alone, as the service does."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Upper) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def ask(port: int) -> bytes:
    with socket.create_connection((BRIDGE, port), timeout=10) as conn:
        conn.sendall(b"who is there\n")
        return conn.makefile("rb").readline()


def test_what_is_on_this_computer_gets_the_address_that_containers_see() -> None:
    assert containers.seen("http://127.0.0.1:4000") == f"http://{BRIDGE}:4000"
    assert containers.seen("postgresql://me@localhost:7000/db") == f"postgresql://me@{BRIDGE}:7000/db"
    assert containers.seen("postgresql://me:secret@localhost/db") == f"postgresql://me:secret@{BRIDGE}:5432/db"
    assert containers.seen("postgresql://db.example.org/db") == "postgresql://db.example.org/db"


def test_the_door_lets_in_who_comes_by_the_bridge_and_is_closed_afterwards(port: int) -> None:
    with containers.door(f"http://127.0.0.1:{port}", "postgresql://db.example.org:1/db"):
        assert ask(port) == b"WHO IS THERE\n"
        assert ask(port) == b"WHO IS THERE\n"
    with pytest.raises(ConnectionRefusedError):
        ask(port)


def test_no_door_is_made_where_there_is_one(port: int) -> None:
    with socket.create_server((BRIDGE, port)), containers.door(f"http://127.0.0.1:{port}"):
        pass


def test_no_door_is_made_where_docker_has_one(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "host", lambda: "host.docker.internal")
    with containers.door(f"http://127.0.0.1:{port}"), pytest.raises(ConnectionRefusedError):
        ask(port)


def test_the_sam_cli_is_given_every_function_with_its_layers_routes_and_environment(tmp_path: Path) -> None:
    keys.make(tmp_path)
    endpoint = containers.seen("http://127.0.0.1:4000")
    values = parameters("http://127.0.0.1:3000", containers.seen("postgresql://me@127.0.0.1:7000/db"), containers.KEYS)
    stack = template.read(values, endpoint)
    containers.write_template(stack, endpoint, tmp_path)
    config = tomllib.loads((template.PROJECT / "samconfig.toml").read_text())["default"]
    for command in ("local_invoke", "local_start_api", "local_start_lambda"):
        assert config[command]["parameters"]["template_file"] == ".local/sam/template.yaml"
        assert config[command]["parameters"]["env_vars"] == ".local/sam/environment.json"
    resources = json.loads((tmp_path / "sam" / "template.yaml").read_text())["Resources"]
    functions = {name: r["Properties"] for name, r in resources.items() if r["Type"] == "AWS::Serverless::Function"}
    variables = json.loads((tmp_path / "sam" / "environment.json").read_text())
    assert set(functions) == set(variables) == set(stack.functions)
    for name, function in stack.functions.items():
        assert functions[name]["Environment"]["Variables"] == variables[name]
        assert variables[name].items() >= function.environment.items()
        assert [layer["Ref"] for layer in functions[name]["Layers"]] == [*function.layers, "LocalLayer"]
        assert all(layer["Ref"] in resources for layer in functions[name]["Layers"])
    routes = {(e["Properties"]["Method"], e["Properties"]["Path"]) for f in functions.values() for e in f["Events"].values()}
    assert routes == {(route.method, route.path) for route in stack.routes} - {("ANY", "$default")}
    assert variables["EnrollmentApi"]["DATABASE_URL"] == f"postgresql://me@{BRIDGE}:7000/db"
    assert variables["OutboxRelay"]["AWS_ENDPOINT_URL"] == endpoint
    # What the environment names as a key is in the layer, readable to a function without root's rights.
    layer = Path(resources["LocalLayer"]["Properties"]["ContentUri"])
    for name in ("CREDENTIAL_KEY", "CREDENTIAL_JWT_KEY"):
        path = layer / Path(variables["CertificateWorker"][name].removeprefix("file:")).relative_to("/opt")
        assert path.stat().st_mode & 0o004
