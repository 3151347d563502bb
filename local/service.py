"""Starts, watches and stops everything that makes up the service on one computer.

One parent, and child processes that never outlive it: PostgreSQL, the stand-in for AWS, the gateway, and one poller for each
queue and for the outbox. A child that runs functions is started again when it dies, as Lambda replaces an execution
environment; without PostgreSQL or the stand-in the service stops.
"""

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psycopg

from local import containers, keys, postgres, template, tokens
from local.child import Settings, aws_environment, clean_environment, log_path, snake
from local.template import PROJECT, queue_url

DEFAULT_PORT = 3000
#: Each serves one request at a time, and while one waits for the disk at its commit, the others go on.
GATEWAY_PROCESSES = 4
START_SECONDS = 60
STOP_SECONDS = 6

#: On AWS it is 15 minutes.
RETRY_PATIENCE_SECONDS = 20

LEARNER_ID = "5d0e7c1a-3b52-4f0e-9c41-6a1f0b7d2e10"
ADMIN_ID = "a3f1c9d2-7e64-4b8a-8d05-1c2b3a4d5e6f"
REPORTER_ID = "c7b2e4f6-1a3d-4c5e-9f80-2d4b6a8c0e1f"


class ServiceError(Exception):
    """The service can't run; the message says why and what to do."""


class AlreadyRunningError(ServiceError):
    """A service is already running on these data."""


def default_dir() -> Path:
    """Return where the service keeps its data: `.local`, or what the environment variable LOCAL_DIR says."""
    return Path(os.environ.get("LOCAL_DIR") or PROJECT / ".local").absolute()


def parameters(base_url: str, database_url: str, local_dir: Path) -> dict[str, str]:
    """Return the template's parameters for this computer, and the keys that the stand-in for KMS can't sign with."""
    return {
        "CredentialKey": f"file:{keys.path(local_dir, 'credential-key')}",
        "CredentialJwtKey": f"file:{keys.path(local_dir, 'credential-jwt-key')}",
        "DatabaseUrl": database_url,
        "JwtIssuer": tokens.ISSUER,
        "JwtAudience": tokens.AUDIENCE,
        "PublicBaseUrl": base_url,
        "RetryPatienceSeconds": str(RETRY_PATIENCE_SECONDS),
    }


@contextmanager
def running(port: int | None = None, local_dir: Path | None = None) -> Generator[dict[str, str]]:
    """Use the service, starting it unless it is running on these data already, and yield what `.local/env` says.

    port: of the HTTP API if it is to be started; without it 3000, or any free port when that is taken.
    What the processes would tell on a screen goes to `<local_dir>/log/console.log`.
    Raises ServiceError.
    """
    local_dir = local_dir or default_dir()
    with ExitStack() as stack:
        try:
            environment = stack.enter_context(started(port, local_dir))
        except AlreadyRunningError:
            environment = environment_of_running(local_dir)
        yield environment


@contextmanager
def started(
    port: int | None, local_dir: Path, console: int | None = None, step: Callable[[str], None] = lambda text: None
) -> Generator[dict[str, str]]:
    """Start the service, yield what `.local/env` says, and stop it.

    port: as for `running`.
    console: a file descriptor for one line per request and batch; without it they go to `<local_dir>/log/console.log`.
    step: is told what is being waited for.
    Raises AlreadyRunningError, or another ServiceError.
    """
    with ExitStack() as stack:
        _lock(stack, local_dir)
        # A parent that was killed has left its own.
        (local_dir / "env").unlink(missing_ok=True)
        listeners = _listen(stack, port)
        logs = local_dir / "log"
        logs.mkdir(exist_ok=True)
        for old in logs.glob("*.log"):
            old.unlink()
        if console is None:
            console = stack.enter_context((logs / "console.log").open("ab")).fileno()
        api_url = f"http://127.0.0.1:{listeners[0].getsockname()[1]}"
        endpoint = f"http://127.0.0.1:{postgres.free_port()}"
        step("starting PostgreSQL")
        database_url, guard = _database(stack, local_dir)
        settings = Settings(
            local_dir=str(local_dir),
            endpoint=endpoint,
            parameters=parameters(api_url, database_url, local_dir),
            console=console,
            ready=-1,
        )
        functions = settings.template()
        # The keys are made before several children would.
        key = tokens.signing_key(local_dir)
        keys.make(local_dir)
        children = Children(settings)
        stack.callback(children.stop)
        aws = children.start("aws", "aws")
        migration = children.start("migrate", "migrate")
        for number, listener in enumerate(listeners, 1):
            children.start(f"gateway-{number}", "gateway", listener=listener.fileno())
        step("migrating the database")
        children.await_ready(migration)
        children.finished(migration)
        step("creating the queues")
        children.await_ready(aws)
        step("starting the functions")
        for source in functions.sources:
            children.start(snake(source.function), "poll", source.function)
        for function in functions.schedules:
            children.start(f"{snake(function)}_scheduled", "schedule", function)
        children.await_all_ready()
        environment = {
            "API_URL": api_url,
            "DATABASE_URL": database_url,
            **aws_environment(endpoint),
            "LEARNER_TOKEN": tokens.issue(key, LEARNER_ID),
            "ADMIN_TOKEN": tokens.issue(key, ADMIN_ID, "learner-progress:admin"),
            "REPORT_TOKEN": tokens.issue(key, REPORTER_ID, "learner-progress:report"),
        }
        for name in functions.queues:
            suffix = "DLQ_URL" if name.endswith("DeadLetterQueue") else "QUEUE_URL"
            domain = name.removesuffix("Queue").removesuffix("DeadLetter").upper()
            environment[f"{domain}_{suffix}"] = queue_url(endpoint, name)
        _let_containers_in(stack, local_dir, environment)
        _write_environment(stack, local_dir, environment)
        children.watch({"PostgreSQL": guard, "The stand-in for AWS": aws.popen})
        try:
            yield environment
        finally:
            if children.failure:
                raise ServiceError(children.failure)


def stop(local_dir: Path) -> bool:
    """Stop the service that runs on these data, and return whether there was one.

    Raises ServiceError if it doesn't stop.
    """
    if not local_dir.exists():
        return False
    deadline = time.monotonic() + START_SECONDS
    signalled = None
    while time.monotonic() < deadline:
        with ExitStack() as stack:
            try:
                _lock(stack, local_dir)
            except AlreadyRunningError:
                # A parent that has only just taken the lock has not yet written its number.
                pid = int((local_dir / "lock").read_text() or 0)
                if pid and pid != signalled:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                    signalled = pid
            else:
                return signalled is not None
        time.sleep(0.05)
    raise ServiceError(f"the service on {local_dir} (process {signalled}) did not stop within {START_SECONDS} s")


@dataclass
class ChildProcess:
    """A child process, which ends when `life` is closed; on `ready` it says that it can work, and then that becomes -1."""

    name: str
    arguments: tuple[str, ...]
    listener: int
    popen: "subprocess.Popen[bytes]"
    life: int
    ready: int


class Children:
    """The child processes of one service."""

    def __init__(self, settings: Settings) -> None:
        """Begin with none."""
        self._settings = settings
        self._children: list[ChildProcess] = []
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        #: Why the service can't go on.
        self.failure = ""

    def start(self, name: str, *arguments: str, listener: int = -1) -> ChildProcess:
        """Start `python -m local child …`, with its output in the log of that name; `listener` is the socket that it serves."""
        ready, told = os.pipe()
        given, life = os.pipe()
        settings = replace(self._settings, ready=told, listener=listener)
        with log_path(settings.local_dir, name).open("ab") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", "local", "child", *arguments],
                stdin=given,
                stdout=log,
                stderr=log,
                cwd=PROJECT,
                env=clean_environment(),
                pass_fds=[told, settings.console, *([listener] if listener >= 0 else [])],
                # The terminal's Ctrl-C is for the parent, which stops its children in order.
                start_new_session=True,
            )
        os.close(told)
        os.close(given)
        child = ChildProcess(name, arguments, listener, popen, life, ready)
        self._children.append(child)
        # A child that is dead already is noticed where its readiness is awaited.
        with suppress(BrokenPipeError):
            os.write(life, settings.line())
        return child

    def await_ready(self, child: ChildProcess) -> None:
        """Wait until a child can do its work; raise ServiceError if it dies instead."""
        answer = os.read(child.ready, 1)
        os.close(child.ready)
        child.ready = -1
        if not answer:
            code = child.popen.wait()
            log = log_path(self._settings.local_dir, child.name)
            tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
            raise ServiceError(f"{child.name} stopped while starting (exit code {code}); the end of {log}:\n{tail}")

    def await_all_ready(self) -> None:
        """Wait until all can do their work; raise ServiceError if one dies instead."""
        for child in self._children:
            if child.ready >= 0:
                self.await_ready(child)

    def finished(self, child: ChildProcess) -> None:
        """Wait for the end of a child that has done its work."""
        os.close(child.life)
        child.popen.wait()
        self._children.remove(child)

    def watch(self, essential: "dict[str, subprocess.Popen[Any] | None]") -> None:
        """From now on, start again what dies, and end the service when something essential does."""
        self._watcher = threading.Thread(target=self._watch, args=[essential], daemon=True)
        self._watcher.start()

    def _watch(self, essential: "dict[str, subprocess.Popen[Any] | None]") -> None:
        while not self._stopping.wait(0.2) and not self.failure:
            for what, process in essential.items():
                if process and process.poll() is not None:
                    self._fail(f"{what} has stopped unexpectedly; see the logs in {self._settings.local_dir}")
                    return
            for child in [child for child in self._children if child.popen.poll() is not None]:
                self._children.remove(child)
                os.close(child.life)
                self._say(f"{child.name} has died (exit code {child.popen.returncode}) and is started again")
                again = self.start(child.name, *child.arguments, listener=child.listener)
                try:
                    self.await_ready(again)
                except ServiceError as error:
                    if again.popen.returncode >= 0:
                        self._fail(str(error))
                        return
                    # A signal from outside, as before: the next look starts it once more.

    def _say(self, text: str) -> None:
        # The terminal may be gone; then nobody reads it.
        with suppress(OSError):
            os.write(self._settings.console, f"{text}\n".encode())

    def _fail(self, reason: str) -> None:
        if self._stopping.is_set():
            return
        self.failure = reason
        # Wakes up the main thread, if it has made SIGTERM an exception; else it learns of the failure when it stops the service.
        if callable(signal.getsignal(signal.SIGTERM)):
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(self) -> None:
        """End all children: those that use the stand-in for AWS first."""
        self._stopping.set()
        if self._watcher:
            self._watcher.join()
        aws = [child for child in self._children if child.name == "aws"]
        for group in ([child for child in self._children if child not in aws], aws):
            for child in group:
                os.close(child.life)
            deadline = time.monotonic() + STOP_SECONDS
            for child in group:
                try:
                    child.popen.wait(max(0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.popen.kill()
                    child.popen.wait()
                if child.ready >= 0:
                    os.close(child.ready)


def _lock(stack: ExitStack, local_dir: Path) -> None:
    """Become the one parent on these data; the lock ends with the process."""
    local_dir.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context((local_dir / "lock").open("a+"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyRunningError(
            f"the service is already running on {local_dir} (process {(local_dir / 'lock').read_text()}): "
            "use it, its addresses are in the file env there, or stop it with Ctrl-C in its terminal"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()


def _listen(stack: ExitStack, port: int | None) -> list[socket.socket]:
    """One socket for each process of the gateway, all on the same port, over which the kernel spreads connections.

    From one socket for all, the process that comes first takes whatever waits, and may end with every connection that is kept.
    """
    listeners = [stack.enter_context(socket.socket()) for _ in range(GATEWAY_PROCESSES)]
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listeners[0].bind(("127.0.0.1", DEFAULT_PORT if port is None else port))
    except OSError as error:
        if port is not None:
            raise ServiceError(
                f"can't listen on port {port} ({error.strerror}): stop what uses it, or choose another, as in PORT={port + 1}"
            ) from error
        listeners[0].bind(("127.0.0.1", 0))
    # Only now that the port is ours is it shared: two services would share it, too.
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for listener in listeners[1:]:
        listener.bind(listeners[0].getsockname())
    for listener in listeners:
        listener.listen(1024)
    return listeners


def _database(stack: ExitStack, local_dir: Path) -> "tuple[str, subprocess.Popen[Any] | None]":
    """Return the URL of the database, and the process to watch if it is our own."""
    given = os.environ.get("DATABASE_URL")
    try:
        if not given:
            return stack.enter_context(postgres.process(local_dir / "postgres"))
        psycopg.connect(given, connect_timeout=5).close()
    except postgres.PostgresError as error:
        raise ServiceError(str(error)) from error
    except psycopg.Error as error:
        raise ServiceError(f"can't connect to the database that DATABASE_URL names: {error}") from error
    return given, None


def _let_containers_in(stack: ExitStack, local_dir: Path, environment: dict[str, str]) -> None:
    """Make the service usable by `sam local`."""
    database_url, endpoint = environment["DATABASE_URL"], environment["AWS_ENDPOINT_URL"]
    values = parameters(environment["API_URL"], containers.seen(database_url), containers.KEYS)
    containers.write_template(template.read(values, containers.seen(endpoint)), containers.seen(endpoint), local_dir)
    stack.enter_context(containers.door(database_url, endpoint))


def _write_environment(stack: ExitStack, local_dir: Path, environment: dict[str, str]) -> None:
    path = local_dir / "env"
    lines = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    # Programs that are started from the shell need the values too.
    lines.append(f"export {' '.join(environment)}")
    fresh = path.with_name("env.new")
    fresh.touch(mode=0o600)
    fresh.write_text("\n".join(lines) + "\n")
    fresh.rename(path)
    stack.callback(path.unlink, missing_ok=True)


def environment_of_running(local_dir: Path) -> dict[str, str]:
    """Read the file env of the service that holds the lock, which may be just starting."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            words = shlex.split((local_dir / "env").read_text())
            environment = dict(word.split("=", 1) for word in words if "=" in word)
            httpx.get(f"{environment['API_URL']}/health", timeout=5).raise_for_status()
            return environment
        except (FileNotFoundError, httpx.HTTPError) as error:
            if time.monotonic() > deadline:
                raise ServiceError(f"the service that is running on {local_dir} does not answer: {error}") from error
            time.sleep(0.1)
