"""Handlers in processes of their own, which can be killed at any moment as Lambda or its machine would.

A parent process has everything imported and forks for each invocation, since starting Python anew takes a second.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]


@dataclass
class Invocation:
    """One that was started; `pid` is its process."""

    pid: int
    parent: "subprocess.Popen[str]"

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        os.kill(self.pid, signal.SIGKILL)

    def outcome(self) -> dict[str, Any]:
        """What the handler returned (`result`), or which error it raised (`error`); `signal` if it was killed."""
        assert self.parent.stdout
        return json.loads(self.parent.stdout.readline())


class Processes:
    """Invokes handlers, one after the other, each in a process of its own."""

    def __init__(self, parent: "subprocess.Popen[str]") -> None:
        self._parent = parent

    def start(self, function: str, event: dict[str, Any], **environment: str) -> Invocation:
        """Begin an invocation with these variables in the environment, and a minute's time."""
        assert self._parent.stdin
        assert self._parent.stdout
        self._parent.stdin.write(json.dumps([function, event, environment]) + "\n")
        self._parent.stdin.flush()
        return Invocation(json.loads(self._parent.stdout.readline()), self._parent)


@contextmanager
def processes() -> Generator[Processes]:
    """Start the parent process, with the environment as it is now."""
    command = [sys.executable, "-m", "tests.support.processes"]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        try:
            yield Processes(parent)
        finally:
            parent.kill()


def _serve() -> None:
    """Take in invocations from standard input, a line each, and tell of each its process and its outcome."""
    import importlib

    names = [path.parent.name for path in (PROJECT / "functions").glob("*/app.py") if path.parent.name != "migrate"]
    handlers = {name: importlib.import_module(f"functions.{name}.app").handler for name in names}
    # What handlers print is not for whoever reads here.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        function, event, environment = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment)
            os.write(write, json.dumps(_outcome(handlers[function], function, event)).encode())
            os._exit(0)
        os.close(write)
        print(pid, file=answers, flush=True)
        with os.fdopen(read) as pipe:
            outcome = pipe.read()
        _, status = os.waitpid(pid, 0)
        print(outcome or json.dumps({"signal": os.WTERMSIG(status)}), file=answers, flush=True)


def _outcome(handler: Any, function: str, event: dict[str, Any]) -> dict[str, Any]:
    from tests.support.service import context

    try:
        return {"result": handler(event, context(function))}
    except Exception as error:
        return {"error": type(error).__name__}


if __name__ == "__main__":
    _serve()
