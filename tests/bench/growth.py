"""How the service's operations fare while its tables grow, what wears them, and what partitions would bring."""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, LiteralString
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import psutil
import psycopg
from psycopg import sql
from rich.progress import track

from functions.outbox_relay import app as outbox_relay
from shared import db, http, settings
from tests.bench.report import Claim, Plot, Report, Spread, Table, console, database_in, interleaved, ratio
from tests.bench.statements import quietly
from tests.support import filling
from tests.support.filling import Filled
from tests.support.plans import Plan, explained
from tests.support.service import Service, event, record

#: Rows of `lesson_progress` in each database.
SIZES = {"1 M": 1_000_000, "5 M": 5_000_000, "20 M": 20_000_000}
SMALLEST, MIDDLE, LARGEST = SIZES
COURSE_VERSIONS = 100
#: All databases together are smaller.
SHARED_BUFFERS = "11GB"


def named(url: str, database: str) -> str:
    """The URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


def fill(data: Path) -> dict[str, Filled]:
    """Make a database for each size on a server of their own: one grows, and a copy of it is left at each size but the last."""
    filled: dict[str, Filled] = {}
    # Nothing of this is to survive a power failure.
    with (
        database_in(data, False, shared_buffers="8GB", full_page_writes="off", autovacuum="off", max_wal_size="8GB") as url,
        psycopg.connect(named(url, "postgres"), autocommit=True) as server,
    ):
        growing = quietly(lambda: filling.publish(Service(url), COURSE_VERSIONS))
        for size, rows in SIZES.items():
            began = time.monotonic()
            with psycopg.connect(url, autocommit=True) as conn:
                filling.grow(conn, growing, filling.learners_for(rows))
            filled[size] = Filled(growing.versions, growing.learners)
            db.close()
            if size != LARGEST:
                copied(server, urlsplit(url).path[1:], database_of(size))
            console.print(f"{size} rows after {time.monotonic() - began:.0f} s more")
    return filled


def database_of(size: str) -> str:
    return "learner_progress" if size == LARGEST else f"growth_{SIZES[size] // 1_000_000}"


def copied(server: psycopg.Connection[Any], template: str, name: str) -> None:
    """Copy a database that nobody is connected to."""
    names = sql.Identifier(name), sql.Identifier(template)
    server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(*names))


class Place:
    """One of the databases, with a connection of the service's own, as another execution environment has it."""

    def __init__(self, url: str, filled: Filled) -> None:
        self.filled = filled
        self.service = Service(url)
        self.random = random.Random(1)
        os.environ["DATABASE_URL"] = url
        settings.database_url.cache_clear()
        db._environment.connection = None
        db.run(lambda conn: conn.execute("SELECT 1"))
        self.conn = db._connection()

    def warm(self) -> None:
        """Read all there is into shared_buffers, and have the service's connection touch each page, as an old one has."""
        with psycopg.connect(self.service.database_url, autocommit=True) as conn:
            conn.execute("CREATE EXTENSION IF NOT EXISTS pg_prewarm")
            conn.execute("CREATE EXTENSION IF NOT EXISTS pgstattuple")
        self.conn.execute(
            """
            SELECT pg_prewarm(oid),
                CASE WHEN relkind = 'i' THEN pgstatindex(oid) IS NOT NULL ELSE pgstattuple(oid) IS NOT NULL END
            FROM pg_class WHERE relkind IN ('r', 'i', 't') AND relnamespace IN ('public'::regnamespace, 'pg_toast'::regnamespace)
            """
        )

    def learner(self) -> int:
        return self.random.randrange(self.filled.learners)

    def report(self, percentage: float) -> dict[str, Any]:
        """That any learner got so far in any lesson of the course version that it is in the midst of."""
        learner = self.learner()
        version = self.filled.second(learner)
        return {
            "user_id": str(filling.learner_id(learner)),
            "course_version_id": str(filling.version_id(version)),
            "lesson_id": str(filling.lesson_id(version, self.random.randrange(filling.LESSONS))),
            "progress_percentage": percentage,
        }

    def ask(self, learner: int, method: str, path: str, body: Any = None, **options: Any) -> tuple[float, Any]:
        """A learner's request: seconds, and what was answered."""
        began = time.perf_counter()
        answer = self.service.http(method, path, body, sub=filling.learner_id(learner), **options)
        seconds = time.perf_counter() - began
        assert answer.status in (200, 201), answer.text
        return seconds, answer.json

    def _enrollment(self, learner: int, version: int | None = None) -> str:
        return f"/users/me/enrollments/{filling.version_id(self.filled.second(learner) if version is None else version)}"

    # One request or one message of each kind; seconds.

    def put_progress(self, percentage: float = 30) -> float:
        report = self.report(percentage)
        path = f"/users/me/enrollments/{report['course_version_id']}/lessons/{report['lesson_id']}/progress"
        began = time.perf_counter()
        answer = self.service.http("PUT", path, {"progress_percentage": percentage}, sub=UUID(report["user_id"]))
        seconds = time.perf_counter() - began
        assert answer.status == 200, answer.text
        return seconds

    def complete_lesson(self) -> float:
        return self.put_progress(100)

    def get_enrollment(self) -> float:
        learner = self.learner()
        return self.ask(learner, "GET", self._enrollment(learner))[0]

    def get_progress(self) -> float:
        learner = self.learner()
        return self.ask(learner, "GET", f"{self._enrollment(learner)}/progress")[0]

    def list_enrollments(self) -> float:
        return self.ask(self.learner(), "GET", "/users/me/enrollments")[0]

    def list_certificates(self) -> float:
        return self.ask(self.learner(), "GET", "/users/me/certificates")[0]

    def enroll(self) -> float:
        learner = self.learner()
        return self.ask(learner, "PUT", self._enrollment(learner, self.filled.third(learner)))[0]

    def start_attempt(self) -> float:
        return self._started()[0]

    def submit_attempt(self) -> float:
        _, learner, attempt_id = self._started()
        return self.ask(learner, "POST", f"/quiz-attempts/{attempt_id}/submit", {"answers": filling.RIGHT})[0]

    def _started(self) -> tuple[float, int, str]:
        learner = self.learner()
        quiz_id = filling.quiz_id(self.filled.second(learner))
        seconds, attempt = self.ask(learner, "POST", f"{self._enrollment(learner)}/quizzes/{quiz_id}/attempts")
        return seconds, learner, attempt["id"]

    def read_roster(self) -> float:
        """A page of 50 learners, from anywhere in the roster."""
        version_id = filling.version_id(self.random.randrange(self.filled.versions))
        after = UUID(int=self.random.getrandbits(128))
        cursor = http.encode_cursor(f"roster {version_id} None", after)
        began = time.perf_counter()
        answer = self.service.admin("GET", f"/course-versions/{version_id}/enrollments", query={"cursor": cursor})
        seconds = time.perf_counter() - began
        assert answer.status == 200, answer.text
        return seconds

    def take_events(self, messages: int) -> float:
        """One invocation of progress_worker with so many messages of a thousand events; half are on lessons not begun."""
        bodies = [json.dumps([event("lesson.progressed", self.report(30)) for _ in range(1_000)]) for _ in range(messages)]
        payload = {"Records": [record(body) for body in bodies]}
        began = time.perf_counter()
        answer = self.service.invoke("progress_worker", payload)
        seconds = time.perf_counter() - began
        assert answer == {"batchItemFailures": []}
        return seconds


#: What is measured: how often it is done in each round, of which the median is taken.
OPERATIONS: dict[str, tuple[int, Callable[[Place], float]]] = {
    "PUT progress": (100, Place.put_progress),
    "PUT progress, 100 %": (50, Place.complete_lesson),
    "GET enrolment": (100, Place.get_enrollment),
    "GET progress": (100, Place.get_progress),
    "GET enrolments": (100, Place.list_enrollments),
    "GET certificates": (100, Place.list_certificates),
    "PUT enrolment": (50, Place.enroll),
    "POST attempt": (50, Place.start_attempt),
    "POST submit, 20 questions": (50, Place.submit_attempt),
    "GET roster": (50, Place.read_roster),
    "progress_worker, 1,000 events": (5, lambda place: place.take_events(1)),
    "progress_worker, 10 x 1,000 events": (1, lambda place: place.take_events(10)),
}


type Figures = dict[tuple[str, str], list[float]]
"""Milliseconds in each round, by operation and name of a place."""


def measure(places: dict[str, Place], rounds: int, operations: Sequence[str]) -> tuple[Figures, Figures]:
    """The median time of each operation in each place, and the processor time that the database takes for one."""
    processor: Figures = {(operation, name): [] for operation in operations for name in places}

    def case(name: str, operation: str) -> float:
        place = places[name]
        count, work = OPERATIONS[operation]
        db._environment.connection = place.conn
        backend = psutil.Process(place.conn.info.backend_pid)
        before = backend.cpu_times()
        seconds = quietly(lambda: statistics.median(work(place) for _ in range(count)))
        after = backend.cpu_times()
        processor[operation, name].append(1000 * (after.user + after.system - before.user - before.system) / count)
        # Otherwise it was lost, and the next one leads to another database.
        assert db._environment.connection is place.conn
        return seconds * 1000

    cases = {f"{operation}: {name}": partial(case, name, operation) for operation, name in processor}
    found = interleaved(cases, rounds)
    return {(operation, name): found[f"{operation}: {name}"] for operation, name in processor}, processor


#: Learners that are at work at the same time while a database is worn.
AT_WORK = 12_000
#: Reports of each lesson: the first begins it, the last completes it.
REPORTS = 10


def wear(place: Place, batches: int) -> None:
    """Send messages of a thousand reports of different learners who are at work, and relay what they bring about."""
    db._environment.connection = place.conn
    filled = place.filled
    learners = place.random.sample(range(filled.learners), AT_WORK)
    said = {learner: filled.begun(learner) * REPORTS for learner in learners}
    for number in track(range(batches), "wearing", console=console, disable=not console.is_terminal):
        events: list[dict[str, Any]] = []
        for learner in place.random.sample(learners, 1_000):
            position, reports = divmod(said[learner], REPORTS)
            said[learner] += 1
            version = filled.second(learner)
            if position < filling.LESSONS:
                about = {
                    "user_id": str(filling.learner_id(learner)),
                    "course_version_id": str(filling.version_id(version)),
                    "lesson_id": str(filling.lesson_id(version, position)),
                    "progress_percentage": 100 * (reports + 1) / REPORTS,
                }
                events.append(event("lesson.progressed", about))
        quietly(lambda: place.service.send("progress", events))
        if number % 10 == 9:
            relay()


def relay() -> None:
    """Take all that is in the outbox for sent."""
    while rows := db.run(outbox_relay._next).fetchall():
        db.run(partial(outbox_relay._mark, delivered=rows, failures=[]))


#: Into how many parts `lesson_progress` is tried.
PARTITIONS = 32


def partition(url: str) -> None:
    """Have `lesson_progress` in partitions by a hash of `user_id`, with all that belongs to it."""
    with psycopg.connect(url, autocommit=True) as conn, conn.transaction():
        conn.execute("SET LOCAL maintenance_work_mem = '1GB'")
        ((view,),) = conn.execute("SELECT pg_get_viewdef('enrollment_items'::regclass)").fetchall()
        conn.execute("DROP VIEW enrollment_items")
        conn.execute("ALTER TABLE lesson_progress RENAME TO undivided")
        conn.execute("ALTER TABLE undivided RENAME CONSTRAINT pk_lesson_progress TO pk_undivided")
        conn.execute("ALTER INDEX idx_lesson_progress_course_status RENAME TO idx_undivided")
        conn.execute(
            "CREATE TABLE lesson_progress (LIKE undivided INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY HASH (user_id)"
        )
        for n in range(PARTITIONS):
            name = sql.Identifier(f"lesson_progress_{n}")
            modulus, remainder = sql.Literal(PARTITIONS), sql.Literal(n)
            conn.execute(
                sql.SQL("CREATE TABLE {} PARTITION OF lesson_progress FOR VALUES WITH (MODULUS {}, REMAINDER {})").format(
                    name, modulus, remainder
                )
            )
        conn.execute("INSERT INTO lesson_progress SELECT * FROM undivided")
        conn.execute(
            """
            ALTER TABLE lesson_progress
            ADD CONSTRAINT pk_lesson_progress PRIMARY KEY (user_id, lesson_id, enrolled_course_version_id)
            """
        )
        conn.execute(
            "CREATE INDEX idx_lesson_progress_course_status ON lesson_progress (user_id, enrolled_course_version_id, status)"
        )
        conn.execute("ALTER TABLE lesson_progress ADD FOREIGN KEY (user_id, enrolled_course_version_id) REFERENCES enrollments")
        conn.execute("DROP TABLE undivided")
        # What the database itself wrote of the view that has been there.
        conn.execute(f"CREATE VIEW enrollment_items AS {view}")  # pyright: ignore[reportArgumentType, reportCallIssue]
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE lesson_progress")


@contextmanager
def copy_of(url: str, size: str, name: str) -> Generator[str]:
    """A copy of a database, for as long as it is needed."""
    db.close()
    with psycopg.connect(named(url, "postgres"), autocommit=True) as server:
        copied(server, database_of(size), name)
        yield named(url, name)
        db.close()
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


#: How a database is set before it is worn.
SETTINGS: dict[str, list[LiteralString]] = {
    "PostgreSQL's defaults": [
        "ALTER TABLE lesson_progress RESET (autovacuum_vacuum_scale_factor)",
        "ALTER TABLE outbox RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, vacuum_index_cleanup)",
    ],
    "as migrated": [],
    "… and fillfactor 90": [
        "ALTER TABLE lesson_progress SET (fillfactor = 90)",
        "ALTER TABLE enrollments SET (fillfactor = 90)",
    ],
    "… and fillfactor 80": [
        "ALTER TABLE lesson_progress SET (fillfactor = 80)",
        "ALTER TABLE enrollments SET (fillfactor = 80)",
    ],
}
BATCHES = 600


def worn(url: str, filled: Filled) -> Table:
    """Wear copies of the smallest database, each set in another way."""
    table = Table(
        f"After {BATCHES * 1_000:,} events of {AT_WORK:,} learners at work, on {SMALLEST} rows",
        ["settings", "table", "updates", "of them in place (HOT), %", "onto another page, %", "dead rows left", "vacuums",
         "table grew, %", "indexes grew, %"],
    )  # fmt: skip
    for name, statements in SETTINGS.items():
        with copy_of(url, SMALLEST, "worn") as copy, psycopg.connect(copy, autocommit=True) as conn:
            for statement in statements:
                conn.execute(statement)
            before = {row[0]: row for row in _wear_of(conn)}
            place = Place(copy, filled)
            wear(place, BATCHES)
            place.conn.close()
            # What a backend counted is there once it has ended.
            deadline = time.monotonic() + 60
            while conn.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = 'worn'").fetchall() != [(1,)]:
                assert time.monotonic() < deadline, "a connection stays"
                time.sleep(0.1)
            for row in _wear_of(conn):
                relation, updates, hot, elsewhere, dead, vacuums, size, indexes = row
                _, _, _, _, _, _, old_size, old_indexes = before[relation]
                table.rows.append(
                    [name, f"`{relation}`", updates, 100 * hot / updates, 100 * elsewhere / updates, dead, vacuums,
                     100 * (size / old_size - 1), 100 * (indexes / old_indexes - 1)]
                )  # fmt: skip
    return table


def _wear_of(conn: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return conn.execute(
        """
        SELECT relname, n_tup_upd, n_tup_hot_upd, n_tup_newpage_upd, n_dead_tup, autovacuum_count, pg_relation_size(relid),
            pg_indexes_size(relid)
        FROM pg_stat_user_tables WHERE relname IN ('lesson_progress', 'enrollments', 'outbox') ORDER BY relname
        """
    ).fetchall()


#: Events that are relayed between two looks at how long the relay takes.
RELAYED, LOOKS = 100_000, 5


def passed_over(url: str, filled: Filled) -> Table:
    """How long the relay takes for what is unsent, by how much it has sent since the last vacuum."""
    table = Table(
        "The relay's look into the outbox, by what it has sent since the last vacuum",
        ["sent", "lease of 20 rows, ms", "age of the oldest, ms", "index of what is unsent, MB"],
    )
    with copy_of(url, SMALLEST, "passed_over") as copy, psycopg.connect(copy, autocommit=True) as conn:
        conn.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
        place = Place(copy, filled)

        def look(name: str) -> None:
            times: dict[str, list[float]] = {"lease": [], "age": []}
            for _ in range(15):
                insert(20)
                for what, work in (
                    ("lease", partial(outbox_relay.outbox.lease, limit=500)),
                    ("age", outbox_relay.outbox.age_seconds),
                ):
                    began = time.perf_counter()
                    db.run(work)
                    times[what].append((time.perf_counter() - began) * 1000)
            ((size,),) = conn.execute("SELECT pg_relation_size('outbox_unsent_idx') / 2^20").fetchall()
            table.rows.append([name, Spread.of(times["lease"]), Spread.of(times["age"]), size])

        def insert(count: int) -> None:
            # Each at a moment of its own, as single requests do.
            conn.execute(
                """
                INSERT INTO outbox (destination, type, occurred_at, data, available_at)
                SELECT 'bus', 'lesson.completed', now(), '{}', clock_timestamp() FROM generate_series(1, %s)
                """,
                [count],
            )

        db._environment.connection = place.conn
        conn.execute("VACUUM ANALYZE outbox")
        for number in range(LOOKS + 1):
            look(f"{number * RELAYED:,}")
            if number < LOOKS:
                insert(RELAYED)
                relay()
        conn.execute("VACUUM (INDEX_CLEANUP ON) outbox")
        look("vacuumed")
    return table


def divided(url: str, filled: Filled, rounds: int) -> tuple[Table, Table]:
    """The same with `lesson_progress` as it is and in partitions."""
    operations = ["PUT progress", "GET enrolment", "GET progress", "progress_worker, 1,000 events"]
    with copy_of(url, MIDDLE, "undivided") as whole, copy_of(url, MIDDLE, "divided") as parts:
        partition(parts)
        with psycopg.connect(whole, autocommit=True) as conn:
            conn.execute("SET maintenance_work_mem = '1GB'")
            conn.execute("VACUUM (FULL, ANALYZE) lesson_progress")
        places = {"one table": Place(whole, filled), f"{PARTITIONS} partitions": Place(parts, filled)}
        for place in places.values():
            place.warm()
        (one, many), (times, _) = places, measure(places, rounds, operations)
        table = Table(
            f"`lesson_progress` of {MIDDLE} rows in one table and in {PARTITIONS} partitions by `user_id`, ms",
            ["operation", one, many, "ratio"],
        )
        table.rows = [
            [name, Spread.of(times[name, one]), Spread.of(times[name, many]), ratio(times[name, many], times[name, one])]
            for name in operations
        ]
        shape = Table("What partitions change of its indexes and its vacuum", ["", one, many])
        found: list[list[Any]] = []
        for url_ in (whole, parts):
            with psycopg.connect(url_, autocommit=True) as conn:
                levels, size = conn.execute(
                    """
                    SELECT max((pgstatindex(c.oid)).tree_level), sum(pg_relation_size(c.oid)) / 2^20
                    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                    WHERE i.indisprimary AND c.relkind = 'i' AND (
                        i.indrelid = 'lesson_progress'::regclass
                        OR i.indrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'lesson_progress'::regclass)
                    )
                    """
                ).fetchall()[0]
                conn.execute(
                    "UPDATE lesson_progress SET last_accessed_at = last_accessed_at + interval '1 s' WHERE user_id < %s",
                    [UUID(int=1 << 123)],
                )
                began = time.perf_counter()
                conn.execute("VACUUM lesson_progress")
                found.append([levels + 1, float(size), time.perf_counter() - began])
        labels = ["pages from the root of the primary key to a leaf", "primary key, MB", "vacuum after 3 % were updated, s"]
        shape.rows = [[label, *values] for label, values in zip(labels, zip(*found, strict=True), strict=True)]
    return table, shape


#: What is read most, and by which statement of several.
READS = ["GET enrolment", "GET progress", "GET enrolments", "GET certificates", "GET roster"]


def ways(url: str, filled: Filled) -> Table:
    """By which indexes the reads find what they read."""
    table = Table(
        f"How reads find their rows, of {MIDDLE}",
        ["operation", "statements in one trip", "by an index alone", "by an index and the table", "pages"],
    )
    address = named(url, database_of(MIDDLE))
    for name in READS:
        with explained(address) as plans:
            place = Place(address, filled)
            quietly(lambda: OPERATIONS[name][1](place))
            plans.clear()
            quietly(lambda: OPERATIONS[name][1](place))
            table.rows.append(
                [
                    name,
                    len(plans),
                    _indexes(plans, "Index Only Scan"),
                    _indexes(plans, "Index Scan", "Bitmap Index Scan"),
                    _pages(plans),
                ]
            )
    return table


def _indexes(plans: list[Plan], *kinds: str) -> str:
    names = {
        f"`{node['Index Name']}`"
        for plan in plans
        for node in plan.nodes()
        if node["Node Type"] in kinds and node["Actual Loops"]
    }
    return ", ".join(sorted(names))


def _pages(plans: list[Plan]) -> int:
    return sum(plan.root["Shared Hit Blocks"] + plan.root["Shared Read Blocks"] for plan in plans)


def check_plans(url: str) -> None:
    """Have the test of all plans look at a copy of the middle database; whatever it finds ends this run."""
    db.close()
    environment = os.environ | {"TEST_DATABASE_URL": url, "PLAN_DATABASE": database_of(MIDDLE)}
    command = [sys.executable, "-m", "pytest", "-q", "tests/integration/test_plans.py"]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], stdout=sys.stderr, check=True)


#: What is promised of the largest database over the smallest.
PROMISED = {
    "PUT progress": 1.3,
    "GET enrolment": 1.3,
    "GET progress": 1.3,
    "progress_worker, 1,000 events": 1.5,
    "progress_worker, 10 x 1,000 events": 1.5,
}
ROUNDS = 11

TEXT = f"""\
Three databases of one server hold 1, 5 and 20 million rows of `lesson_progress`, with all that belongs to them: {COURSE_VERSIONS}
course versions of {filling.LESSONS} lessons and a quiz; learners who have completed one of them, with two attempts, history and
certificate, and are in the midst of another; and a twentieth of the events of that as what was sent and is not removed yet. The
largest has 268,456 learners. Rows lie in the order in which they came about, those of all learners mixed.

All of it is in `shared_buffers` ({SHARED_BUFFERS}), and each connection has looked at all pages before, as RDS Proxy's have that
live for hours. No images of whole pages are written to the log: Aurora has none. Commits wait for the disk. Each request is of
any learner and on any lesson, so that nothing is near what was touched before; an operation is all from the event that Lambda
hands over to the answer, with Python's part. A page of the roster begins anywhere in it. Half of the events of a batch are about
lessons that were not begun; in a batch of 10 messages 10,000 are one transaction.

A batch takes longer where there is more because each of its rows lies on other pages: what it takes is the processor's time, of
which more goes into waiting for memory. No other operation touches enough rows for that to be seen.

`tests/integration/test_plans.py` has every statement of the service about learners' data executed and looks at its plan; here it
has looked at the database of {MIDDLE} rows. None reads a table that grows with the learners from end to end, nor a whole index,
but those of what is unsent or open. Two things were mended by these figures. One lesson's row was looked up by learner and course
version, on some thirty pages instead of five, because the planner takes the two for independent of each other. And a batch of
attempts put together all attempts that were ever set aside.

**Index-only reads.** There are none among these: all of them answer with columns that change. In an index, a lesson's percentage
and its times would end what is told of next. So no index was widened.

**Updates in place (HOT).** A report that goes on with a lesson changes no indexed column: PostgreSQL can write the new row beside
the old one and leave all indexes alone. Completing a lesson does change one, `status` in
`idx_lesson_progress_course_status`, which the schema asks for. Of ten reports here one begins a lesson, eight go on, and one
completes it: eight of nine updates can be in place, 88.9 %. Room left by `fillfactor` brings one or two of the rest, and would be
left for good on all the pages of lessons that nobody comes back to, so there is none. Rows of the outbox are never updated in
place: each update moves them on in an index.

**Vacuum** waits, by default, for a share of a table that is longer in coming the larger the table is. For `lesson_progress` it is
2 % now, and 1 % for the outbox, whose indexes are cleaned each time: what the relay has sent since then makes its look longer.

**Partitions** were tried on `lesson_progress`, by a hash of `user_id`. They spare one page of four on the way to a row. But a
statement that is planned anew each time, since the proxy keeps no prepared ones, has all of them to look at. So there are none.
`quiz_attempts` and `enrollment_history` are not removed, and what is removed, from `outbox`, goes a thousand rows at a time by an
index: partitions by time become worth their while for whoever removes years of attempts
([scaling.md](scaling.md#where-one-writer-ends)).
"""


def run() -> Report:
    os.environ.setdefault("PUBLIC_BASE_URL", "https://learning.example")
    with TemporaryDirectory(prefix="learner-progress-growth-") as folder:
        data = Path(folder) / "data"
        filled = fill(data)
        with database_in(
            data, shared_buffers=SHARED_BUFFERS, full_page_writes="off", max_wal_size="8GB", autovacuum_naptime="5s"
        ) as url:
            return found(url, filled)


def found(url: str, filled: dict[str, Filled]) -> Report:
    """All that is measured on a server with these databases."""
    places = {size: Place(named(url, database_of(size)), filled[size]) for size in SIZES}
    for place in places.values():
        place.warm()
    times, processor = measure(places, ROUNDS, list(OPERATIONS))
    sizes = Table("What the databases hold", ["", *(f"{size} rows" for size in SIZES)], list(_sizes(places)))
    for place in places.values():
        place.conn.close()
    check_plans(url)
    operations = Table(
        "One operation, ms",
        ["operation", *(f"{size} rows" for size in SIZES), f"{MIDDLE} over {SMALLEST}", f"{LARGEST} over {SMALLEST}"],
        [
            [
                name,
                *(Spread.of(times[name, size]) for size in SIZES),
                ratio(times[name, MIDDLE], times[name, SMALLEST]),
                ratio(times[name, LARGEST], times[name, SMALLEST]),
            ]
            for name in OPERATIONS
        ],
        note="HTTP: medians of 50 or 100 requests in each round.",
    )
    costs = Table(
        "Processor time that the database takes for one, ms",
        ["operation", *(f"{size} rows" for size in SIZES)],
        [[name, *(statistics.mean(processor[name, size]) for size in SIZES)] for name in OPERATIONS],
        note="Of the connection's own process, over all rounds; what the log's writer and vacuum take comes on top.",
    )
    return Report(
        "growth",
        "Growth",
        TEXT,
        [
            sizes,
            operations,
            costs,
            ways(url, filled[MIDDLE]),
            worn(url, filled[SMALLEST]),
            passed_over(url, filled[SMALLEST]),
            *divided(url, filled[MIDDLE], 7),
        ],
        [
            Claim(
                f"{name}, {LARGEST} rows over {SMALLEST}",
                ratio(times[name, LARGEST], times[name, SMALLEST]),
                bound,
                "at most",
            )
            for name, bound in PROMISED.items()
        ],
        [
            Plot(
                "One operation by rows of lesson_progress",
                "lines",
                "rows of lesson_progress",
                "ms, median",
                {name: [(SIZES[size], statistics.median(times[name, size])) for size in SIZES] for name in OPERATIONS},
                log_x=True,
                log_y=True,
            )
        ],
    )


def _sizes(places: dict[str, Place]) -> Generator[list[Any]]:
    for table in ("lesson_progress", "enrollments", "enrollment_history", "quiz_attempts", "certificates", "outbox"):
        row: list[Any] = [f"`{table}`, rows; bytes a row, of them indexes"]
        for place in places.values():
            rows, total, indexes = place.conn.execute(
                """
                SELECT reltuples::bigint, pg_total_relation_size(oid)::float8, pg_indexes_size(oid)::float8
                FROM pg_class WHERE oid = %s::regclass
                """,
                [table],
            ).fetchall()[0]
            row.append(f"{rows:,}; {total / rows:,.0f}, {indexes / rows:,.0f}")
        yield row
    sizes = [
        place.conn.execute("SELECT pg_database_size(current_database()) / 2^30").fetchall()[0][0] for place in places.values()
    ]
    yield ["all, GB", *sizes]
