"""What each thing that learners do leaves in the database and in its log: python -m tests.bench.footprint.

Real events go through the real handlers into a PostgreSQL of its own, on which nothing else happens. Bytes of write-ahead log are
taken without images of whole pages, which Aurora's storage does without. Between the steps the tables are vacuumed, as autovacuum
does. Times are of this computer, handler and database together, without fsync.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psycopg
from rich.console import Console
from rich.progress import track
from rich.table import Table

os.environ.update(
    POWERTOOLS_SERVICE_NAME="bench",
    POWERTOOLS_METRICS_NAMESPACE="LearnerProgress",
    POWERTOOLS_LOG_LEVEL="CRITICAL",
    RETRY_PATIENCE_SECONDS="20",
)

from local import postgres
from tests.support.service import Service, context, course, event, quiz

#: As many as a message may hold events, so that each message holds one of each learner.
LEARNERS = 1_000
LESSONS = 50


class Bench:
    """A service on a database of its own, with one course version and `LEARNERS` learners."""

    def __init__(self, service: Service, conn: psycopg.Connection[Any]) -> None:
        self.service = service
        self.conn = conn
        self.course = course(lessons=LESSONS, quizzes=[quiz(questions=[question(n) for n in range(20)])])
        self.learners = [str(uuid4()) for _ in range(LEARNERS)]
        self.began = datetime.now(UTC) - timedelta(days=1)
        self.rows: list[tuple[str, int, int, float]] = []

    def measure(self, what: str, count: int, work: Callable[[], object]) -> None:
        """Note the log and the time that `count` of something take."""
        before, began = self._written(), time.perf_counter()
        work()
        self.rows.append((what, count, self._written() - before, time.perf_counter() - began))

    def _written(self) -> int:
        return self.conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchall()[0][0]

    def at(self, minute: int) -> str:
        return (self.began + timedelta(minutes=minute)).isoformat()

    def event(self, kind: str, learner: str, minute: int, **data: Any) -> dict[str, Any]:
        ids = {"user_id": learner, "course_version_id": self.course["course_version_id"]}
        return event(kind, ids | data, self.at(minute))

    def progress(self, lesson: int, minute: int, percentage: float) -> None:
        """One message: each learner's report of a lesson."""
        lesson_id = self.course["lessons"][lesson]["lesson_id"]
        report = {"lesson_id": lesson_id, "progress_percentage": percentage}
        self.service.send("progress", [self.event("lesson.progressed", learner, minute, **report) for learner in self.learners])

    def put(self, learner: str, lesson: int, percentage: float) -> None:
        path = f"/users/{learner}/enrollments/{self.course['course_version_id']}"
        lesson_id = self.course["lessons"][lesson]["lesson_id"]
        answer = self.service.admin("PUT", f"{path}/lessons/{lesson_id}/progress", {"progress_percentage": percentage})
        assert answer.status == 200, answer.text

    def submissions(self, *, right: bool) -> None:
        """One message: each learner's attempt at the quiz."""
        answers = {f"q{n}": "a" if right else "b" for n in range(20)}
        quiz_id = self.course["quizzes"][0]["quiz_id"]
        self.service.send(
            "quiz",
            [
                self.event("quiz.submitted", learner, 90, attempt_id=str(uuid4()), quiz_id=quiz_id, answers=answers)
                for learner in self.learners
            ],
        )


def question(n: int) -> dict[str, Any]:
    choices = [{"id": letter, "text": letter} for letter in "abcd"]
    return {"question_id": f"q{n}", "kind": "single_choice", "prompt": "?", "points": 1, "choices": choices, "correct": "a"}


def run(bench: Bench) -> None:
    service, learners = bench.service, bench.learners
    service.send("catalog", event("course_version.published", bench.course))
    steps: list[tuple[str, int, Callable[[], object]]] = [
        (
            "an enrolment, by message",
            LEARNERS,
            lambda: service.send("enrollment", [bench.event("enrollment.requested", learner, 0) for learner in learners]),
        ),
        (
            "a lesson begun, by message",
            40 * LEARNERS,
            lambda: [bench.progress(lesson, 1, 10) for lesson in range(40)],
        ),
        (
            "a lesson going on, by message",
            40 * LEARNERS,
            lambda: [bench.progress(lesson, 2, 50) for lesson in range(40)],
        ),
        (
            "a report that says nothing new",
            40 * LEARNERS,
            lambda: [bench.progress(lesson, 2, 50) for lesson in range(40)],
        ),
        ("a lesson begun, over HTTP", LEARNERS, lambda: [bench.put(learner, 45, 10) for learner in learners]),
        ("a lesson going on, over HTTP", LEARNERS, lambda: [bench.put(learner, 45, 50) for learner in learners]),
        (
            "a lesson completed, by message",
            LESSONS * LEARNERS,
            lambda: [bench.progress(lesson, 3, 100) for lesson in range(LESSONS)],
        ),
        ("an attempt of 20 questions, failed", LEARNERS, lambda: bench.submissions(right=False)),
        ("an attempt that completes the course", LEARNERS, lambda: bench.submissions(right=True)),
    ]
    for what, count, work in track(steps, "measuring", console=Console(stderr=True)):
        # The metrics that the functions print are nobody's concern here.
        with redirect_stdout(StringIO()):
            bench.measure(what, count, work)
        bench.conn.execute("VACUUM ANALYZE")


def report(bench: Bench) -> None:
    console = Console()
    table = Table("what", "number", "WAL bytes each", "ms each", title=f"Left by each of {LEARNERS:,} learners' doings")
    for what, count, written, seconds in bench.rows:
        table.add_row(what, f"{count:,}", f"{written / count:,.0f}", f"{seconds * 1000 / count:.3f}")
    console.print(table)
    # Packed: what updates leave behind is used again, so that it says nothing of a row.
    bench.conn.execute("VACUUM FULL")
    table = Table("table", "rows", "bytes a row", "of them indexes", title="Kept, packed")
    sizes = bench.conn.execute(
        """
        SELECT relname, pg_total_relation_size(oid), pg_indexes_size(oid)
        FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
            AND relname IN ('enrollments', 'enrollment_history', 'lesson_progress', 'quiz_attempts', 'outbox')
        ORDER BY relname
        """
    )
    for name, total, indexes in sizes.fetchall():
        # A name of a table can't be a parameter; these are the ones above.
        rows = bench.conn.execute(f"SELECT count(*) FROM {name}").fetchall()[0][0]  # pyright: ignore[reportArgumentType, reportCallIssue]
        table.add_row(name, f"{rows:,}", f"{total / rows:,.0f}", f"{indexes / rows:,.0f}")
    console.print(table)


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="learner-progress-")))
        url = stack.enter_context(postgres.server(folder / "data", durable=False))
        os.environ["DATABASE_URL"] = url
        conn = stack.enter_context(psycopg.connect(url, autocommit=True))
        for setting in ("full_page_writes = off", "autovacuum = off", "max_wal_size = '8GB'"):
            # The texts of the line above, which take no parameters.
            conn.execute(f"ALTER SYSTEM SET {setting}")  # pyright: ignore[reportArgumentType, reportCallIssue]
        conn.execute("SELECT pg_reload_conf()")
        from functions.migrate.app import handler

        handler({}, context("Migrate"))
        bench = Bench(Service(url), conn)
        run(bench)
        report(bench)


if __name__ == "__main__":
    main()
