"""The SAM CLI beside the service on this computer, as a developer uses it."""

import json
import os
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from local import postgres
from local.template import PROJECT

SAM = PROJECT / ".tools" / "sam" / "bin" / "sam"
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
