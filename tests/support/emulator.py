"""Built functions in AWS's Runtime Interface Emulator, as `sam local` runs them, but without a container.

The emulator comes with the SAM CLI. It starts the function with the first event, and hands over events as Lambda does.
"""

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from local.postgres import free_port

PROJECT = Path(__file__).parents[2]

#: What Lambda's runtime brings along: its client, and boto3 with all that it needs.
RUNTIME = [
    *["awslambdaric", "runtime_client.*so", "simplejson", "snapshot_restore_py.py"],
    *["boto3", "botocore", "dateutil", "jmespath", "s3transfer", "six.py", "urllib3"],
]

#: `python -m awslambdaric`, which notes each file that it opens and each library that it loads.
WATCHED = """
import os, runpy, sys
notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(event, args):
    name = args[0] if event == "open" else args[1] if event == "import" else None
    if isinstance(name, str):
        os.write(notes, f"{name}\\n".encode())

sys.addaudithook(note)
runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)
"""

INIT = re.compile(r"INIT REPORT\(durationMs: ([\d.]+)\)")
INVOKE = re.compile(r"INVOKE RTDONE\(status: success, .*duration: ([\d.]+)ms\)")


@dataclass
class Emulator:
    """A function in the emulator: `task` is its folder, and `notes` is the file that names what it opened, if it is watched."""

    pid: int
    port: int
    task: Path
    log_file: Path
    notes: Path
    timeout: int
    invocations: int = 0

    def invoke(self, event: str) -> Any:
        """Invoke the function with an event in JSON; gives what it returns, or Lambda's description of its error."""
        self.invocations += 1
        url = f"http://127.0.0.1:{self.port}/2015-03-31/functions/function/invocations"
        # The first invocation starts the function too.
        return httpx.post(url, content=event, timeout=self.timeout + 30, trust_env=False).json()

    @property
    def log(self) -> str:
        """What the emulator and the function wrote."""
        return self.log_file.read_text()

    @property
    def init_milliseconds(self) -> float:
        """How long the one start took: Python's own, and the imports."""
        (milliseconds,) = INIT.findall(self.log)
        return float(milliseconds)

    @property
    def invoke_milliseconds(self) -> list[float]:
        """How long the function took for each event, as the emulator measured it."""
        return [float(milliseconds) for milliseconds in INVOKE.findall(self.log)]

    def opened(self) -> set[Path]:
        """The files that the function opened or loaded, or tried to."""
        return {self.task / name for name in self.notes.read_text().splitlines()}


class Place:
    """A folder with copies of what Lambda has: the artifacts, their layers and the runtime."""

    def __init__(self, folder: Path, artifacts: Path) -> None:
        """Copy the runtime to the folder."""
        self.folder = folder
        self.artifacts = artifacts
        self.runtime = folder / "runtime"
        self.runtime.mkdir()
        packages = Path(sysconfig.get_path("purelib"))
        for pattern in RUNTIME:
            (source,) = packages.glob(pattern)
            copy(source, self.runtime / source.name)
        (self.runtime / "watched.py").write_text(WATCHED)

    def layers(self, names: Iterable[str]) -> Path:
        """Return a folder like Lambda's `/opt`, into which the layers are unpacked one over the other."""
        opt = self.folder / "-".join(names)
        if not opt.exists():
            for name in names:
                copy(self.artifacts / name, opt)
        return opt

    @contextmanager
    def emulator(
        self,
        name: str,
        handler: str,
        layers: list[str],
        timeout: int,
        memory: int,
        environment: dict[str, str],
        *,
        watched: bool = True,
    ) -> Generator[Emulator]:
        """Run the emulator for a function; timeout in seconds, memory in MB. To be watched takes its time."""
        home = self.folder / name
        task = home / "task"
        copy(self.artifacts / name, task)
        port, log_file, notes = free_port(), home / "log", home / "notes"
        variables = {
            "PATH": os.defpath,
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "LAMBDA_TASK_ROOT": str(task),
            "LAMBDA_RUNTIME_DIR": str(self.runtime),
            "PYTHONPATH": f"{self.layers(layers)}/python:{self.runtime}",
            "AWS_LAMBDA_FUNCTION_NAME": name,
            "AWS_LAMBDA_FUNCTION_TIMEOUT": str(timeout),
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(memory),
            "AWS_LAMBDA_LOG_FORMAT": "JSON",
            "NOTES": str(notes),
            **environment,
        }
        addresses = [f"--runtime-interface-emulator-address=127.0.0.1:{port}"]
        addresses += [f"--runtime-api-address=127.0.0.1:{free_port()}"]
        # Without the packages of an environment or a user; the folder it starts in comes first on the path, as in Lambda.
        python = [str(Path(sys.executable).resolve()), "-S", "-s", "-m", "watched" if watched else "awslambdaric", handler]
        with log_file.open("wb") as log:
            process = subprocess.Popen([program(), *addresses, *python], cwd=task, env=variables, stdout=log, stderr=log)
        try:
            await_port(port, process)
            yield Emulator(process.pid, port, task, log_file, notes, timeout)
        finally:
            process.terminate()
            process.wait(10)


@contextmanager
def stand_in(log: Path) -> Generator[str]:
    """A stand-in for AWS in a process of its own, so that no other test's queues and buckets are there; yields its address."""
    port = free_port()
    with ExitStack() as stack:
        file = stack.enter_context(log.open("wb"))
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=file, stderr=file)
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        await_port(port, process)
        yield f"http://127.0.0.1:{port}"


def program() -> str:
    """Return the path of the emulator for this machine."""
    machine = "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"
    (path,) = PROJECT.glob(f".tools/sam/lib/python*/site-packages/samcli/local/rapid/aws-lambda-rie-{machine}")
    return str(path)


def await_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a process listens."""
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None, f"{process.args} ended"
            assert time.monotonic() < deadline, f"{process.args} does not listen"
            time.sleep(0.02)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder into another one."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
