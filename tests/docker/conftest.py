"""The service on this computer, and the SAM CLI running its functions in containers against it."""

import os
import shutil
from collections.abc import Generator
from typing import Any

import pytest

from local import postgres, service
from local.template import PROJECT
from tests.docker import sam

# `run.sh` provides what they need; they are no part of the tests that need no Docker.
collect_ignore_glob = [] if os.environ.get("DOCKER") == "1" else ["*"]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many invocations there were and how long they took."""
    for way, seconds in sam.FIGURES.items():
        terminalreporter.write_line(f"sam local {way}: {len(seconds)} invocations in {sum(seconds):.0f} s")


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Generator[sam.Sam]:
    """The SAM CLI beside a service with data of its own."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copy(PROJECT / "samconfig.toml", folder)
    with service.running(postgres.free_port(), folder / ".local") as environment:
        yield sam.Sam(folder, environment)
