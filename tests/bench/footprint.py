"""What each thing that learners do leaves in the database and in its log."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
from rich.progress import track

from tests.bench.report import Report, Table, console, database
from tests.bench.statements import quietly
from tests.support.service import Service, course, event, quiz

#: As many as a message may hold events, so that each message holds one of each learner.
LEARNERS = 1_000
LESSONS = 50

TEXT = """\
Real events go through the real handlers into a PostgreSQL of its own, on which nothing else happens. Bytes of write-ahead log are
taken without images of whole pages, which Aurora's storage does without. Between the steps the tables are vacuumed, as autovacuum
does. [scaling.md](scaling.md) reckons with these figures.
"""


class Bench:
    """A service on a database of its own, with one course version and `LEARNERS` learners."""

    def __init__(self, service: Service, conn: psycopg.Connection[Any]) -> None:
        self.service = service
        self.conn = conn
        self.course = course(lessons=LESSONS, quizzes=[quiz(questions=[question(n) for n in range(20)])])
        self.learners = [str(uuid4()) for _ in range(LEARNERS)]
        self.began = datetime.now(UTC) - timedelta(days=1)
        self.rows: list[tuple[str, int, int]] = []

    def measure(self, what: str, count: int, work: Callable[[], object]) -> None:
        """Note the log that `count` of something take."""
        before = self._written()
        work()
        self.rows.append((what, count, self._written() - before))

    def _written(self) -> int:
        return int(self.conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchall()[0][0])

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


def use(bench: Bench) -> None:
    service, learners = bench.service, bench.learners
    quietly(lambda: service.send("catalog", event("course_version.published", bench.course)))
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
    for what, count, work in track(steps, "footprint", console=console, disable=not console.is_terminal):
        quietly(lambda what=what, count=count, work=work: bench.measure(what, count, work))
        bench.conn.execute("VACUUM ANALYZE")


def kept(bench: Bench) -> Table:
    """Rows as they lie, with their indexes."""
    # Packed: what updates leave behind is used again, so that it says nothing of a row.
    bench.conn.execute("VACUUM FULL")
    table = Table("Kept, packed", ["table", "rows", "bytes a row", "of them indexes"])
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
        table.rows.append([name, rows, round(total / rows), round(indexes / rows)])
    return table


def run() -> Report:
    # Aurora's storage takes no images of whole pages, and nothing else may write meanwhile.
    with (
        database(full_page_writes="off", autovacuum="off", max_wal_size="8GB") as url,
        psycopg.connect(url, autocommit=True) as conn,
    ):
        bench = Bench(Service(url), conn)
        use(bench)
        table = Table(f"Left by each of {LEARNERS:,} learners' doings", ["what", "number", "log, bytes each"])
        table.rows = [[what, count, round(written / count)] for what, count, written in bench.rows]
        return Report("footprint", "What is left behind", TEXT, [table, kept(bench)])
