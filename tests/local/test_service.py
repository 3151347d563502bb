"""The whole service as a person starts it, on a free port and with its data in a temporary folder."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from joserfc.jwk import RSAKey

from local import postgres, run, service, tokens
from local.pollers import client
from local.template import PROJECT

SECONDS = 60

WATCHING = """
import signal, threading
from local import __main__ as main
signal.signal(signal.SIGHUP, main._interrupt)
threading.Thread(target=main._watch_terminal, daemon=True).start()
print("watching", flush=True)
signal.pause()
"""


@dataclass
class Running:
    """A service started by `python -m local run`, and what it has written so far."""

    process: "subprocess.Popen[bytes]"
    local_dir: Path
    output: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return what a program started from a shell sees after the file env was sourced."""
        shell = f'. "{self.local_dir}/env" && "{sys.executable}" -c "import json, os; print(json.dumps(dict(os.environ)))"'
        printed = subprocess.run(["/bin/sh", "-c", shell], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True)
        return httpx.Response(200, content=printed.stdout).json()

    def everything(self) -> list[psutil.Process]:
        """Return the service's processes."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def end(self, number: signal.Signals | None) -> int:
        """Send a signal or give the command to stop, wait until no process is left, and return the exit code."""
        processes = self.everything()
        assert any(process.name() == "postgres" for process in processes)
        if number:
            self.process.send_signal(number)
        else:
            assert local("stop", local_dir=self.local_dir).returncode == 0
        code = self.process.wait(SECONDS)
        _, alive = psutil.wait_procs(processes, timeout=SECONDS)
        assert not alive
        return code


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until a condition holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def local(*arguments: str, local_dir: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the local service to its end."""
    return subprocess.run(
        [sys.executable, "-m", "local", *arguments],
        cwd=PROJECT,
        env=surroundings(local_dir) | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def surroundings(local_dir: Path) -> dict[str, str]:
    """Return an environment with what may lead others astray: a profile, a proxy, libpq's defaults."""
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    astray = {"AWS_PROFILE": "work", "HTTP_PROXY": "http://127.0.0.1:9", "PGSSLMODE": "require", "PGUSER": "nobody"}
    return inherited | astray | {"LOCAL_DIR": str(local_dir)}


@contextmanager
def started(local_dir: Path, port: int) -> Generator[Running]:
    """Start the service, wait until it says what to try, and leave none behind."""
    output = local_dir.with_name("output")
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "local", "run", "--port", str(port)],
            cwd=PROJECT,
            env=surroundings(local_dir),
            stdout=file,
            stderr=file,
        )
    wait_until(lambda: b"Ctrl-C stops it" in output.read_bytes() or process.poll() is not None)
    try:
        assert process.poll() is None, output.read_text()
        yield Running(process, local_dir, output)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run the service for the tests that leave it as it is."""
    with started(tmp_path_factory.mktemp("a b") / "state", postgres.free_port()) as running:
        yield running
        assert running.end(signal.SIGINT) == 0


@pytest.fixture(scope="module")
def environment(running: Running) -> dict[str, str]:
    return running.environment


@pytest.fixture(scope="module")
def api(environment: dict[str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=environment["API_URL"], trust_env=False) as api:
        yield api


def test_the_file_env_names_everything(running: Running, environment: dict[str, str]) -> None:
    domains = ("ENROLLMENT", "PROGRESS", "QUIZ", "CERTIFICATE", "CATALOG")
    names = {f"{domain}_{kind}" for domain in domains for kind in ("QUEUE_URL", "DLQ_URL")}
    names |= {"API_URL", "DATABASE_URL", "AWS_ENDPOINT_URL", "AWS_REGION", "LEARNER_TOKEN", "ADMIN_TOKEN", "REPORT_TOKEN"}
    assert names <= environment.keys()
    assert (running.local_dir / "env").stat().st_mode & 0o777 == 0o600
    with psycopg.connect(environment["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT count(*) FROM course_versions").fetchone() == (1,)


def test_the_first_curl_works_as_printed(running: Running) -> None:
    printed = running.output.read_text()
    commands = re.findall(r"^  (?:\. |curl ).*$", printed, re.M)
    assert len(commands) == 2
    shell = "\n".join(commands).replace("curl", "curl --silent --fail-with-body")
    done = subprocess.run(["/bin/sh", "-c", shell], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.COURSE_VERSION_ID in done.stdout


def test_tokens_of_the_command_line_are_accepted(running: Running, api: httpx.Client) -> None:
    subject = str(uuid.uuid4())
    printed = local("token", "--sub", subject.upper(), "--scope", "learner-progress:report", local_dir=running.local_dir)
    headers = {"Authorization": f"Bearer {printed.stdout.strip()}"}
    assert api.get("/users/me/enrollments", headers=headers).status_code == 200
    assert api.get(f"/course-versions/{run.COURSE_VERSION_ID}/enrollments", headers=headers).status_code == 200


def test_a_subject_must_be_a_uuid(running: Running) -> None:
    refused = local("token", "--sub", "me", local_dir=running.local_dir)
    assert refused.returncode == 2
    assert "SUB must be a UUID" in refused.stderr


@pytest.mark.parametrize("authorization", ["", "Bearer x", "Bearer {strange}", "Basic YTpi"])
def test_without_a_good_token_the_answer_is_401(api: httpx.Client, authorization: str) -> None:
    strange = tokens.issue(RSAKey.generate_key(2048), service.LEARNER_ID)
    headers = {"Authorization": authorization.format(strange=strange)} if authorization else {}
    answer = api.get("/users/me/enrollments", headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"message": "Unauthorized"})
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_body_of_more_than_10_megabytes_is_too_large(api: httpx.Client, environment: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {environment['LEARNER_TOKEN']}", "Content-Type": "application/json"}
    answer = api.post("/quiz-attempts/x/submit", headers=headers, content=b" " * (10 * 1024 * 1024 + 1))
    assert (answer.status_code, answer.json()) == (413, {"message": "Request Entity Too Large"})


def test_unknown_paths_are_problem_documents(api: httpx.Client) -> None:
    answer = api.get("/nowhere")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_documentation_is_served(api: httpx.Client) -> None:
    assert "swagger" in api.get("/docs").raise_for_status().text
    assert api.get("/openapi.json").raise_for_status().json()["openapi"].startswith("3.1")


def test_a_second_start_says_that_one_is_running(running: Running) -> None:
    second = local("run", "--port", str(postgres.free_port()), local_dir=running.local_dir)
    assert second.returncode == 1
    assert f"already running on {running.local_dir} (process {running.process.pid})" in second.stderr


def test_a_program_uses_the_one_that_is_running(running: Running, environment: dict[str, str]) -> None:
    with service.running(local_dir=running.local_dir) as found:
        assert found["API_URL"] == environment["API_URL"]
        assert found["LEARNER_TOKEN"] == environment["LEARNER_TOKEN"]
    assert running.process.poll() is None


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = local("run", "--port", str(port), local_dir=tmp_path)
    assert refused.returncode == 1
    assert f"can't listen on port {port}" in refused.stderr
    assert "PORT=" in refused.stderr


def test_an_unreachable_database_is_named(tmp_path: Path) -> None:
    url = f"postgresql://someone:secret@127.0.0.1:{postgres.free_port()}/db"
    refused = local("run", "--port", str(postgres.free_port()), local_dir=tmp_path, DATABASE_URL=url)
    assert refused.returncode == 1
    assert "can't connect to the database that DATABASE_URL names" in refused.stderr
    assert "secret" not in refused.stderr


def test_a_function_that_dies_is_started_again_also_where_it_was_only_just_starting(
    running: Running, environment: dict[str, str]
) -> None:
    def workers() -> list[psutil.Process]:
        return [process for process in running.everything() if _arguments(process)[-1:] == ["CatalogWorker"]]

    (first,) = workers()
    first.kill()
    wait_until(lambda: any(process != first for process in workers()))
    worker = next(process for process in workers() if process != first)
    worker.kill()
    # A dead consumer's last request may take a message with it, but lasts no longer than a second.
    wait_until(lambda: any(process not in (first, worker) and time.time() - process.create_time() > 2 for process in workers()))
    assert running.output.read_text().count("catalog_worker has died") == 2
    # Taking in the same course again changes nothing, but proves that there is somebody to take it in.
    run.seed(environment)


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def test_nothing_stays_behind_and_the_data_survive(tmp_path: Path) -> None:
    path = f"/users/{uuid.uuid4()}/enrollments/{run.COURSE_VERSION_ID}"
    port = postgres.free_port()
    for number, exit_code, answer_code in ((signal.SIGKILL, -9, 201), (signal.SIGHUP, 0, 200), (None, 0, 200)):
        with started(tmp_path / "state", port) as running:
            environment = running.environment
            headers = {"Authorization": f"Bearer {environment['ADMIN_TOKEN']}"}
            answer = httpx.put(environment["API_URL"] + path, headers=headers, trust_env=False)
            assert answer.status_code == answer_code
            assert running.end(number) == exit_code
            assert (tmp_path / "state" / "env").exists() == (number == signal.SIGKILL)
    assert local("stop", local_dir=running.local_dir).returncode == 0


def test_the_end_of_its_terminal_ends_it() -> None:
    terminal, inside = os.openpty()
    with subprocess.Popen([sys.executable, "-c", WATCHING], cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=inside) as process:
        os.close(inside)
        assert os.read(terminal, 8) == b"watching"
        os.close(terminal)
        assert process.wait(SECONDS) == 128 + signal.SIGHUP


def test_the_end_of_make_ends_it() -> None:
    make = subprocess.Popen(
        ["/bin/sh", "-c", '"$@" & wait', "sh", sys.executable, "-c", WATCHING],
        cwd=PROJECT,
        env=os.environ | {"MAKELEVEL": "1"},
        stdout=subprocess.PIPE,
    )
    with make:
        assert make.stdout is not None
        assert make.stdout.readline() == b"watching\n"
        (process,) = psutil.Process(make.pid).children()
        make.kill()
        process.wait(SECONDS)


def test_without_the_stand_in_the_service_stops_and_says_so(tmp_path: Path) -> None:
    with started(tmp_path / "state", postgres.free_port()) as running:
        (stand_in,) = [process for process in running.everything() if process.cmdline()[-2:] == ["child", "aws"]]
        stand_in.kill()
        assert running.process.wait(SECONDS) == 1
    assert "The stand-in for AWS has stopped unexpectedly" in running.output.read_text()


def test_messages_reach_their_worker(environment: dict[str, str]) -> None:
    sqs = client("sqs", environment["AWS_ENDPOINT_URL"])
    sqs.send_message(QueueUrl=environment["ENROLLMENT_QUEUE_URL"], MessageBody="no JSON")
    (letter,) = sqs.receive_message(
        QueueUrl=environment["ENROLLMENT_DLQ_URL"], WaitTimeSeconds=20, MessageAttributeNames=["All"]
    )["Messages"]
    assert letter["Body"] == "no JSON"
    assert letter["MessageAttributes"].keys() >= {"reason", "code"}
