"""What every child process of the local service shares: its settings, its end, and how it runs a Lambda function."""

import importlib
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from local.template import ACCOUNT, REGION, Function, Template, read

#: How long a child may take to finish what it is doing when the service stops.
FINISH_SECONDS = 3.0


@dataclass(frozen=True)
class Settings:
    """What a child is told, as one line of JSON on its standard input; the last three are file descriptors."""

    local_dir: str
    endpoint: str
    parameters: dict[str, str]
    console: int
    ready: int
    listener: int = -1

    def line(self) -> bytes:
        """Return the settings as the parent sends them."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def template(self) -> Template:
        """Return the stack that all children see alike."""
        return read(self.parameters, self.endpoint)


class Child:
    """This process as its parent's child: it ends when the parent closes the pipe or dies, however that comes about."""

    def __init__(self) -> None:
        """Read the settings from standard input."""
        self.settings = Settings(**json.loads(sys.stdin.buffer.readline()))
        #: Held while something must not be cut short.
        self.busy = threading.Lock()
        self.ending = threading.Event()
        threading.Thread(target=self._await_end, daemon=True).start()

    def ready(self) -> None:
        """Tell the parent that this child can do its work."""
        os.write(self.settings.ready, b"1")
        os.close(self.settings.ready)

    def say(self, text: str) -> None:
        """Write a line for the person before the screen, unless the service is just ending."""
        if not self.ending.is_set():
            os.write(self.settings.console, f"{text}\n".encode())

    def _await_end(self) -> None:
        # The parent sends nothing more, so that this returns at the end of file.
        os.read(sys.stdin.fileno(), 1)
        self.ending.set()
        self.busy.acquire(timeout=FINISH_SECONDS)
        os._exit(0)


@dataclass(frozen=True)
class Context:
    """The context object of an invocation, as far as the functions and Powertools look at it."""

    function_name: str
    memory_limit_in_mb: int
    invoked_function_arn: str
    deadline: float
    ending: threading.Event
    function_version: str = "$LATEST"
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until the timeout, or 0 when the service is ending, so that a loop ends early too."""
        return 0 if self.ending.is_set() else max(0, int((self.deadline - time.monotonic()) * 1000))


def context(function: Function, ending: threading.Event) -> Context:
    """Return the context of one invocation, which begins now."""
    return Context(
        function_name=function.name,
        memory_limit_in_mb=function.memory,
        invoked_function_arn=f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function.name}",
        deadline=time.monotonic() + function.timeout,
        ending=ending,
    )


def aws_environment(endpoint: str) -> dict[str, str]:
    """Return the variables that make boto3 talk to the stand-in; its credentials open nothing."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
    }


def clean_environment() -> dict[str, str]:
    """Return this process's environment without what would lead boto3 or libpq astray."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "POWERTOOLS_", "LAMBDA_"))}
    if not os.environ.get("DATABASE_URL"):
        inherited = {name: value for name, value in inherited.items() if not name.startswith("PG")}
    return {
        **inherited,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        # Logs are read while the service runs.
        "PYTHONUNBUFFERED": "1",
    }


def load(function: Function, endpoint: str) -> Callable[[Any, Context], Any]:
    """Import a function's module in its environment, which stays this process's, and return its handler."""
    os.environ.update(aws_environment(endpoint) | function.environment)
    return importlib.import_module(function.module).handler


def snake(name: str) -> str:
    """Return a logical id as its folder is named: EnrollmentApi, enrollment_api."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def log_path(local_dir: str | Path, name: str) -> Path:
    """Return where the output of a function, or of another child, goes."""
    return Path(local_dir, "log", f"{name}.log")


def migrate(child: Child) -> None:
    """Apply the migrations, with the function that does it on AWS, and ask for certificates that were under way.

    What lay in the stand-in's queues when it stopped is lost; on AWS a queue keeps it.
    """
    function = child.settings.template().functions["Migrate"]
    with child.busy:
        load(function, child.settings.endpoint)({}, context(function, child.ending))
        from shared import db
        from shared.certificate import store

        db.run(lambda conn: store.request_missing(conn, None))
