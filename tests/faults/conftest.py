"""What the tests of faults share: a database for many scenes behind a proxy that can fail, and the table of what was seen."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import pytest

from shared import db, settings
from tests.conftest import as_role, created
from tests.support.service import Service
from tests.support.wire import Wire, counted


@dataclass
class Seen:
    """A line of the table: a fault and an operation, and what came of it."""

    fault: str
    operation: str
    cases: int = 0
    lost: int = 0
    twice: int = 0
    stuck: int = 0
    recovery: float = 0.0


_table: dict[tuple[str, str], Seen] = {}


def note(
    fault: str, operation: str, *, cases: int = 1, lost: int = 0, twice: int = 0, stuck: int = 0, recovery: float = 0
) -> None:
    """Add to the table that stands at the end of the tests' output."""
    seen = _table.setdefault((fault, operation), Seen(fault, operation))
    seen.cases += cases
    seen.lost += lost
    seen.twice += twice
    seen.stuck += stuck
    seen.recovery = max(seen.recovery, recovery)


#: What tests have to say beside the table.
_said: list[str] = []


def say(*lines: str) -> None:
    """Add lines that stand below the table."""
    _said.extend(lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not _table:
        return
    terminalreporter.section("faults")
    line = "{:<34} {:<34} {:>6} {:>5} {:>6} {:>6} {:>9}"
    terminalreporter.write_line(line.format("fault", "operation", "cases", "lost", "twice", "stuck", "recovery"))
    for seen in _table.values():
        terminalreporter.write_line(
            line.format(seen.fault, seen.operation, seen.cases, seen.lost, seen.twice, seen.stuck, f"{seen.recovery:.1f} s")
        )
    for said in _said:
        terminalreporter.write_line(said)


@contextmanager
def leading_to(url: str) -> Generator[None]:
    """Let the service connect by this URL."""
    before = os.environ.get("DATABASE_URL")
    os.environ["DATABASE_URL"] = url
    settings.database_url.cache_clear()
    db.close()
    try:
        yield
    finally:
        db.close()
        os.environ.pop("DATABASE_URL")
        if before:
            os.environ["DATABASE_URL"] = before
        settings.database_url.cache_clear()


@pytest.fixture(scope="module")
def stage(server_url: str, template_database: str, s3: str) -> Generator[tuple[Service, Wire]]:
    """The service on a database for all scenes of a module, and the wire between them."""
    with (
        created(server_url, f"faults_{uuid4().hex[:12]}", template_database) as url,
        counted(as_role(url, "learner_progress_app")) as wire,
        leading_to(wire.url),
    ):
        yield Service(url), wire
