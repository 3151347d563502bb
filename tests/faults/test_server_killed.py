"""PostgreSQL is killed, all its processes at once, while everything is going on; and a pooler that fails over beneath clients.

`FAULT_KILLS=20` kills it so often; without it, twice.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import psycopg
import pytest

from local import postgres
from tests.conftest import as_role, database
from tests.faults import clients
from tests.faults.conftest import leading_to, note
from tests.support import pooler, whole
from tests.support.aws import FailingAws
from tests.support.service import Service, context, course, event, quiz
from tests.support.wire import counted

KILLS = int(os.environ.get("FAULT_KILLS", "2"))
QUEUES = ["enrollment", "progress", "quiz", "certificate", "catalog"]
KINDS = ["learner", "learner", "queues", "clock", "correct"]
#: Seconds from the restart within which everyone must have had a success.
RECOVERY = 60


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingAws]:
    """What the relay sends to; it takes everything."""
    server = FailingAws()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("EVENT_BUS_NAME", "learner-progress")
    for name, value in {"REGION": "eu-west-1", "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for queue in QUEUES:
        monkeypatch.setenv(f"{queue.upper()}_QUEUE_URL", f"{server.endpoint}/123456789012/{queue}")
        monkeypatch.setenv(f"{queue.upper()}_DLQ_URL", f"{server.endpoint}/123456789012/{queue}-dlq")
    yield server
    server.shutdown()
    server.server_close()


def world(service: Service, folder: Path) -> None:
    """A course version and another edition of it, for all clients."""
    version = course(lessons=1, quizzes=[quiz()])
    edition = version | {"course_version_id": str(uuid4()), "version": "2014B"}
    service.send("catalog", event("course_version.published", version), event("course_version.published", edition))
    (folder / "world.json").write_text(json.dumps({"version": version, "edition": edition}))


@contextmanager
def killed(data: Path) -> Generator[str]:
    """A PostgreSQL that keeps what it has acknowledged, and in the end is killed like a machine that loses power but its disk."""
    with postgres.process(data, durable=True) as (url, guard):
        yield url
        everything = [process for process in psutil.Process(guard.pid).children(recursive=True) if process.name() == "postgres"]
        assert len(everything) > 5
        for process in sorted(everything, key=lambda process: process.pid):
            process.send_signal(signal.SIGKILL)


def await_successes(folder: Path, since: float, operations: set[str]) -> dict[str, float]:
    """How long it took until each of these operations was done for the first time again."""
    deadline = time.monotonic() + RECOVERY
    while True:
        first: dict[str, float] = {}
        for lines in clients.logs(folder).values():
            for line in lines:
                if line["status"] in (200, 201) and line["at"] > since:
                    first.setdefault(line["operation"], line["at"] - since)
        if operations <= first.keys():
            return first
        assert time.monotonic() < deadline, operations - first.keys()
        time.sleep(0.05)


def check(service: Service, folder: Path, fault: str, recovery: dict[str, float]) -> None:
    """Whatever was acknowledged is there, nothing is there twice, nothing by halves."""
    lines = [line for log in clients.logs(folder).values() for line in log]
    reasons = {
        row["reason"]: row["n"]
        for row in service.rows(
            """
            SELECT reason, count(*) / CASE type WHEN 'transferred' THEN 2 ELSE 1 END AS n
            FROM enrollment_history WHERE reason LIKE 'reason %%' AND type <> 'created' GROUP BY reason, type
            """
        )
    }
    enrolled = {row["id"] for row in service.rows("SELECT user_id::text AS id FROM enrollments")}
    moved = {
        row["id"]
        for row in service.rows(
            "SELECT user_id::text AS id FROM lesson_progress UNION SELECT user_id::text FROM lesson_progress_set_aside"
        )
    }
    graded = {
        row["id"]: row["score"]
        for row in service.rows("SELECT id::text, score FROM all_quiz_attempts WHERE completed_at IS NOT NULL")
    }
    named = {row["id"] for row in service.rows("SELECT user_id::text AS id FROM learners WHERE name IS NOT NULL")}
    certified = {row["id"] for row in service.rows("SELECT user_id::text AS id FROM certificates")}

    def is_there(line: dict[str, Any]) -> bool:
        match line["operation"]:
            case "enrol" | "start an attempt" | "save a draft" | "withdraw waiver":
                return line["user"] in enrolled
            case "progress" | "progress in a batch":
                return line["user"] in moved
            case "submit":
                return graded.get(line["attempt"]) == 75
            case "revoke" | "reinstate" | "reset" | "transfer" | "waive" | "cancel":
                return reasons.get(line["reason"]) == 1
            case "queue: catalog":
                return named.issuperset(line["users"])
            case "queue: enrollment":
                return enrolled.issuperset(line["users"])
            case "queue: progress":
                return moved.issuperset(line["users"])
            case "queue: quiz":
                return graded.keys() >= set(line["attempts"])
            case "queue: certificate":
                return certified.issuperset(line["users"])
            case _:
                return True

    acknowledged = [line for line in lines if line["status"] in (200, 201)]
    lost = [line for line in acknowledged if not is_there(line)]
    twice = {reason for reason, n in reasons.items() if n != 1}
    for operation in sorted({line["operation"] for line in lines}):
        note(
            fault,
            operation,
            cases=sum(line["operation"] == operation for line in acknowledged),
            lost=sum(line["operation"] == operation for line in lost),
            twice=sum(line["operation"] == operation and line.get("reason") in twice for line in lines),
            recovery=recovery.get(operation, 0),
        )
    assert lost == []
    assert twice == set()
    assert whole.broken(service) == {}
    assert max(line.get("seconds", 0) for line in lines) < 30
    unsent = "SELECT id::text FROM outbox WHERE destination = 'dead_letter_queue'"
    assert service.rows(unsent) == []


@pytest.mark.timeout(300 + 60 * KILLS)
def test_what_was_acknowledged_outlives_a_crash_of_the_database_and_happened_once(
    sent: FailingAws, s3: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3)
    longest: dict[str, float] = {}
    with TemporaryDirectory(prefix="learner-progress-") as place, ExitStack() as stack:
        folder, data = Path(place), Path(place, "postgres", "data")
        server = killed(data)
        url = server.__enter__()
        wire = stack.enter_context(counted(as_role(url, "learner_progress_app")))
        with leading_to(url):
            from functions.migrate.app import handler

            handler({}, context("Migrate"))
            world(Service(url), folder)
        stack.enter_context(leading_to(wire.url))
        with clients.running(folder, *KINDS):
            operations = {"enrol", "reset", "queue: progress", "queue: certificate", "queue: correct a key", "regrade", "relay"}
            await_successes(folder, 0, operations)
            for _ in range(KILLS):
                server.__exit__(None, None, None)
                time.sleep(0.5)
                server = killed(data)
                url = server.__enter__()
                restarted = time.time()
                wire.target = ("127.0.0.1", urlsplit(url).port or 0)
                for operation, seconds in await_successes(folder, restarted, operations).items():
                    longest[operation] = max(longest.get(operation, 0), seconds)
        service = Service(url)
        check(service, folder, "PostgreSQL killed", longest)
        # What the relay noted as sent was taken, at least once.
        marked = {row["id"] for row in service.rows("SELECT id::text FROM outbox WHERE sent_at IS NOT NULL")}
        taken = sent.sent()
        assert marked
        assert marked <= taken.keys()
        server.__exit__(None, None, None)


@contextmanager
def console(url: str) -> Generator[Any]:
    """PgBouncer's own console."""
    parts = urlsplit(url)
    with psycopg.connect(
        host=parts.hostname,
        port=parts.port,
        user="learner_progress",
        dbname="pgbouncer",
        autocommit=True,
        prepare_threshold=None,
    ) as conn:
        yield conn.execute


def test_a_pooler_that_fails_over_loses_nothing_that_was_acknowledged(
    server_url: str, service: Service, sent: FailingAws, s3: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3)
    name = service.database_url.rpartition("/")[2]
    longest: dict[str, float] = {}
    with TemporaryDirectory(prefix="learner-progress-") as place, ExitStack() as stack:
        folder = Path(place)
        world(service, folder)
        bouncer = folder / "pooler"
        bouncer.mkdir()
        pooled = stack.enter_context(pooler.pooled(server_url, bouncer))
        stack.enter_context(leading_to(as_role(database(pooled, name), "learner_progress_app")))
        command = stack.enter_context(console(pooled))
        operations = {"enrol", "reset", "queue: progress"}
        with clients.running(folder, "learner", "learner", "queues"):
            await_successes(folder, 0, operations)
            for commands in (["KILL {}", "RESUME {}"], ["PAUSE {}", "RESUME {}"], ["RECONNECT {}"]):
                for text in commands:
                    time.sleep(0.3)
                    command(text.format(name))
                for operation, seconds in await_successes(folder, time.time(), operations).items():
                    longest[operation] = max(longest.get(operation, 0), seconds)
        check(service, folder, "pooler KILL, PAUSE, RECONNECT", longest)
