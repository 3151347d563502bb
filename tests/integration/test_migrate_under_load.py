"""A new migration while learners are at work: nobody gets an error, and nobody waits for long.

It prints how many requests there were and how long they took. `MIGRATION_SECONDS=60` works for longer before and after;
`MIGRATION_LOCK_TIMEOUT=4s` shows what another patience of the migration would mean for the learners.
"""

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import quantiles

import psycopg
import pytest

import migrations
from functions.migrate import app
from shared import settings
from tests.support.learners import at_work
from tests.support.service import Service, context, course, event, quiz

CLIENTS = 10
SECONDS = float(os.environ.get("MIGRATION_SECONDS", "2"))
LOCK_TIMEOUT = os.environ.get("MIGRATION_LOCK_TIMEOUT", app.SESSION["lock_timeout"])
#: For how long the reader is in the way.
READING = 4.0

#: Two tables that all are at work on, a function that they call, and an index.
ADDED = {
    "9990_both_tables": """
        ALTER TABLE enrollments ADD COLUMN cohort text;
        ALTER TABLE enrollments ADD CONSTRAINT enrollments_cohort_short CHECK (length(cohort) <= 100) NOT VALID;
        ALTER TABLE lesson_progress ADD COLUMN seconds_spent integer;
        ALTER TABLE lesson_progress ADD CONSTRAINT lesson_progress_seconds CHECK (seconds_spent >= 0) NOT VALID;
        """,
    "9991_validated": """
        SET LOCAL statement_timeout = '5min';
        ALTER TABLE enrollments VALIDATE CONSTRAINT enrollments_cohort_short;
        ALTER TABLE lesson_progress VALIDATE CONSTRAINT lesson_progress_seconds;
        """,
    "9992_index": """
        -- transactional: false
        SET lock_timeout = 0;
        SET statement_timeout = 0;
        CREATE INDEX CONCURRENTLY IF NOT EXISTS enrollments_cohort_idx ON enrollments (cohort);
        """,
}


@pytest.fixture
def added(service: Service, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of this test's migrations, which are beside all others; the last replaces a function that all call."""
    copy = Path(shutil.copytree(root / "migrations", tmp_path / "migrations"))
    (row,) = service.rows("SELECT pg_get_functiondef('complete_enrollments(uuid[],uuid[],text)'::regprocedure) AS text")
    added = ADDED | {"9993_function": f"{row['text']};"}
    for name, text in added.items():
        (copy / f"{name}.sql").write_text(text)
    monkeypatch.setattr(migrations, "__path__", [str(copy)])
    monkeypatch.setitem(app.SESSION, "lock_timeout", LOCK_TIMEOUT)
    return list(added)


@contextmanager
def reading(service: Service) -> Generator[None]:
    """For some seconds, hold what a dump holds: a share of every table, against all who would change it."""

    def read() -> None:
        with psycopg.connect(service.database_url) as reader:
            reader.execute("SELECT FROM enrollments, lesson_progress WHERE FALSE")
            begun.set()
            time.sleep(READING)

    begun = threading.Event()
    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(timeout=10)
    try:
        yield
    finally:
        thread.join()


@pytest.mark.timeout(300 + 10 * SECONDS)
@pytest.mark.parametrize("with_reader", [False, True], ids=["alone", "reader in the way"])
def test_learners_notice_a_migration_by_a_short_wait_at_most(
    service: Service, added: list[str], monkeypatch: pytest.MonkeyPatch, with_reader: bool
):
    version = course(lessons=2, quizzes=[quiz()])
    service.send("catalog", event("course_version.published", version))
    with at_work(os.environ["DATABASE_URL"], version, CLIENTS) as learners:
        # The learners have been given the URL of their role; whoever migrates is the owner.
        monkeypatch.setenv("DATABASE_URL", service.database_url)
        settings.database_url.cache_clear()
        time.sleep(SECONDS)
        with reading(service) if with_reader else nullcontext():
            begun = time.monotonic()
            assert app.handler({}, context("Migrate", 900))["applied"] == added
            done = time.monotonic()
        time.sleep(SECONDS)
    requests = learners.requests
    times = sorted(took for _, took, _ in requests)
    before = [took for began, took, _ in requests if began + took < begun]
    meanwhile = [took for began, took, _ in requests if began + took >= begun and began <= done]
    statuses = Counter(status for _, _, status in requests)
    percentiles = quantiles(times, n=100)
    print(
        f"\n{CLIENTS} clients, {len(requests):,} requests, {sum(statuses[s] for s in statuses if s >= 300)} errors, lock_timeout "
        f"{LOCK_TIMEOUT}, migrating took {done - begun:.1f} s; p50 {percentiles[49] * 1000:.0f} ms, p99 "
        f"{percentiles[98] * 1000:.0f} ms, longest before {max(before) * 1000:.0f} ms, meanwhile {max(meanwhile) * 1000:.0f} ms"
    )
    assert set(statuses) <= {200, 201}
    assert len(before) > 10 * CLIENTS
    assert len(meanwhile) > 10 * CLIENTS
    # A file that changes two tables holds the first while it waits for the second.
    assert max(meanwhile) < 2 * float(LOCK_TIMEOUT.removesuffix("s")) + 2
    (left,) = service.rows("SELECT count(*) AS n FROM enrollments WHERE status <> 'completed'")
    assert left["n"] <= CLIENTS
