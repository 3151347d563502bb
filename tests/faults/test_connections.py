"""Connections that are cut, that lead to nobody, or on which nobody answers; and clients that are gone."""

import json
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from shared import db
from shared.errors import Unavailable
from tests.faults.conftest import note
from tests.faults.scenes import Scene
from tests.support import whole
from tests.support.processes import processes
from tests.support.service import Context, Service, event, record
from tests.support.wire import Fault, Wire

#: Seconds that an invocation has in these tests; a function of the API has ten.
SECONDS = 2.5


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "get_remaining_time_in_millis", lambda self: int(SECONDS * 1000))
    monkeypatch.setattr(db, "_PATIENCE", SECONDS)


def in_time(work: Callable[[], Any]) -> Any:
    """What it gives, within the time of its invocation."""
    start = time.monotonic()
    found = work()
    assert time.monotonic() - start < SECONDS
    return found


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_whoever_is_let_in_and_never_spoken_to_gives_up_in_time(stage: tuple[Service, Wire], method: str):
    service, wire = stage
    scene = Scene(service)
    db.close()
    wire.is_deaf = True
    try:
        answer = in_time(lambda: service.admin(method, scene.base))
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        note("proxy takes in and never answers", f"HTTP {method}")
    finally:
        wire.is_deaf = False
    start = time.monotonic()
    scene.enrol()
    note("proxy takes in and never answers", f"HTTP {method}", cases=0, recovery=time.monotonic() - start)


@pytest.mark.parametrize("fault", ["silent before", "silent after"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_caller_whose_statement_is_never_answered_is_told_in_time(stage: tuple[Service, Wire], fault: Fault, after: int):
    service, wire = stage
    scene = Scene(service)
    service.admin("GET", scene.base)
    wire.fail(fault, after)
    answer = in_time(lambda: service.admin("PUT", scene.base))
    assert (answer.status, answer.headers["retry-after"], wire.has_failed) == (503, "5", True)
    assert whole.broken(service) == {}
    start = time.monotonic()
    scene.enrol()
    note(fault, "HTTP write", recovery=time.monotonic() - start)
    assert [entry["type"] for entry in scene.footprint()["history"]] == ["created"]


@pytest.mark.parametrize("fault", ["silent before", "silent after"])
def test_a_worker_whose_statement_is_never_answered_gives_its_messages_back(stage: tuple[Service, Wire], fault: Fault):
    service, wire = stage
    scene = Scene(service)
    scene.enrol()
    report = event("lesson.progressed", scene.ids | {"lesson_id": scene.lesson, "progress_percentage": 100})
    wire.fail(fault)
    start = time.monotonic()
    with pytest.raises(Unavailable):
        service.send("progress", report)
    assert time.monotonic() - start < SECONDS + 1
    service.send("progress", report)
    assert [row["type"] for row in scene.footprint()["published"]] == [
        "enrollment.completed",
        "enrollment.created",
        "lesson.completed",
    ]
    assert whole.broken(service) == {}
    note(fault, "message")


def test_the_statement_of_a_function_that_was_ended_ends_soon(service: Service, monkeypatch: pytest.MonkeyPatch):
    """Lambda ends a function whose time is over in the middle of whatever it does."""
    db.close()
    scene = Scene(service)
    scene.enrol()
    db.close()
    sessions = "SELECT pid FROM pg_stat_activity WHERE usename = 'learner_progress_app' AND datname = current_database()"
    dbname = service.database_url.rpartition("/")[2]
    # Not the lock's own timeout, which would hide the other one.
    service.rows(f"ALTER ROLE learner_progress_app IN DATABASE {dbname} SET lock_timeout = 0")
    report = event("lesson.progressed", scene.ids | {"lesson_id": scene.lesson, "progress_percentage": 100})
    with processes() as parent, psycopg.connect(service.database_url) as holder:
        holder.execute("SELECT FROM enrollments WHERE user_id = %s FOR UPDATE", [scene.user])
        invocation = parent.start("progress_worker", {"Records": [record(json.dumps(report))]})
        while not service.rows(sessions + " AND wait_event_type = 'Lock'"):
            time.sleep(0.02)
        invocation.kill()
        start = time.monotonic()
        while service.rows(sessions):
            assert time.monotonic() - start < 6
            time.sleep(0.05)
        seconds = time.monotonic() - start
        holder.rollback()
    note("function ended in mid-transaction", "lock waited for", recovery=seconds)
    service.send("progress", report)
    assert scene.footprint()["progress"] == [{"progress_percentage": 100, "status": "completed"}]
