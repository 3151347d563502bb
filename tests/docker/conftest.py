"""The service on this computer, and the SAM CLI running its functions in containers against it."""

import json
import os
import shutil
from collections.abc import Generator
from contextlib import ExitStack
from typing import Any

import pytest

from local import postgres, service
from local.template import PROJECT
from tests.docker import sam

# `run.sh` provides what they need; they are no part of the tests that need no Docker.
collect_ignore_glob = [] if os.environ.get("DOCKER") == "1" else ["*"]

#: They go on until shortly before their time is up, which is two minutes.
BY_THE_CLOCK_SECONDS = {"OutboxRelay": 10, "QuizMaintenance": 20}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many invocations there were and how long they took."""
    for way, seconds in sam.FIGURES.items():
        terminalreporter.write_line(f"sam local {way}: {len(seconds)} invocations in {sum(seconds):.0f} s")


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Generator[sam.Sam]:
    """The SAM CLI beside a service with data of its own."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copy(PROJECT / "samconfig.toml", folder)
    local_dir = folder / ".local"
    host = sam.host_address()
    with ExitStack() as stack:
        environment = stack.enter_context(service.running(postgres.free_port(), local_dir))
        stack.enter_context(sam.door(host, environment["AWS_ENDPOINT_URL"], environment["DATABASE_URL"]))
        template = sam.write_template(environment, local_dir, host)
        document = json.loads(template.read_text())
        for name, seconds in BY_THE_CLOCK_SECONDS.items():
            document["Resources"][name]["Properties"]["Timeout"] = seconds
        template.write_text(json.dumps(document))
        yield sam.Sam(folder, environment)
