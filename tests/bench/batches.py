"""Lesson progress from the queue: an invocation of the worker with ten messages of a thousand events each.

Beside it its own statements, fed with arrays that are ready, and what the server alone takes for the rows.
"""

import importlib
import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg

from shared.progress import store
from tests.bench.report import Claim, Plot, Report, Spread, Table, database, interleaved, ratio
from tests.bench.statements import Statements, quietly
from tests.support.service import Service, context, course, event, record

ROUNDS = 9
MESSAGES = 10
EVENTS = 1000
#: A million lessons of learners, of which a fifth are begun before.
LEARNERS = 10_000
LESSONS = 100
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)

TEXT = """\
One invocation of `progress_worker` with ten messages of a thousand `lesson.progressed` each, from the SQS event to its answer:
parsing and validating, one transaction, and the metrics. All events are of different learners and lessons,
drawn at random from a million, of which 200,000 are in the table at the start and 700,000 at the end. PostgreSQL has its default
settings, but for 256 MB of buffers; every commit is flushed.

- *own statements*: what the worker sends, from psycopg in binary arrays that are ready. The rest is Python's part.
- *server alone*: `INSERT … SELECT` of as many pairs from a table in the server with the same `ON CONFLICT`, by the same keys. It
  judges nothing: neither whether the learner is enrolled nor whether there is such a lesson. That is the limit of any program.
- *mixed*: three of ten events come twice, half of all say nothing new.
- *completing*: each report completes its lesson, which is told to the bus, and asks whether its course is completed with it.
"""

_SERVER_ALONE = """
    INSERT INTO lesson_progress AS p (
        user_id, lesson_id, enrolled_course_version_id, status, progress_percentage, started_at, last_accessed_at
    )
    SELECT user_id, lesson_id, %b, 'in_progress', %b, %b, %b FROM drawn
    ON CONFLICT ON CONSTRAINT pk_lesson_progress DO UPDATE SET
        status = CASE WHEN 100 IN (p.progress_percentage, excluded.progress_percentage) THEN 'completed' ELSE 'in_progress' END,
        progress_percentage = greatest(p.progress_percentage, excluded.progress_percentage),
        started_at = least(p.started_at, excluded.started_at),
        last_accessed_at = greatest(p.last_accessed_at, excluded.last_accessed_at),
        completed_at = least(p.completed_at, excluded.completed_at)
"""

type Pair = tuple[str, str]


class Bench:
    """A course version in which everyone is enrolled, a fifth of the lessons begun."""

    def __init__(self, url: str) -> None:
        self.service = Service(url)
        self.handler = importlib.import_module("functions.progress_worker.app").handler
        self.conn = psycopg.connect(url, autocommit=True, prepare_threshold=None)
        version = course(lessons=LESSONS)
        self.version = version["course_version_id"]
        lessons = [lesson["lesson_id"] for lesson in version["lessons"]]
        learners = [str(uuid4()) for _ in range(LEARNERS)]
        quietly(lambda: self.service.send("catalog", event("course_version.published", version)))
        ids = [{"user_id": learner, "course_version_id": self.version} for learner in learners]
        for n in range(0, LEARNERS, EVENTS):
            batch = [event("enrollment.requested", each, BEGAN.isoformat()) for each in ids[n : n + EVENTS]]
            quietly(lambda batch=batch: self.service.send("enrollment", batch))
        pairs = [(learner, lesson) for learner in learners for lesson in lessons]
        random.Random(7).shuffle(pairs)
        self.begun, self.new = pairs[: len(pairs) // 5], pairs[len(pairs) // 5 :]
        self.conn.execute("CREATE UNLOGGED TABLE drawn (user_id uuid, lesson_id uuid)")
        self._draw(self.begun)
        self.conn.execute(_SERVER_ALONE, [UUID(self.version), 1.0, BEGAN, BEGAN])
        self.conn.execute("VACUUM ANALYZE")
        self.minute = 0

    def _draw(self, pairs: Sequence[Pair]) -> None:
        self.conn.execute("TRUNCATE drawn")
        columns = [list(column) for column in zip(*pairs, strict=True)]
        self.conn.execute("INSERT INTO drawn SELECT * FROM unnest(%s::uuid[], %s::uuid[])", columns)
        self.conn.execute("VACUUM ANALYZE drawn")

    def some(self, *, new: bool) -> list[Pair]:
        """As many pairs as an invocation has events, and when they happened is later than ever before."""
        self.minute += 1
        drawn = random.sample(self.new if new else self.begun, MESSAGES * EVENTS)
        if new:
            chosen = set(drawn)
            self.new = [pair for pair in self.new if pair not in chosen]
            self.begun += drawn
        return drawn

    def at(self) -> datetime:
        return BEGAN + timedelta(minutes=self.minute)

    def percentage(self) -> float:
        return min(99.0, 1 + self.minute / 5)

    def event(self, pair: Pair, percentage: float) -> dict[str, Any]:
        ids = {"user_id": pair[0], "course_version_id": self.version, "lesson_id": pair[1]}
        return event("lesson.progressed", ids | {"progress_percentage": percentage}, self.at().isoformat())

    def invoke(self, events: Sequence[dict[str, Any]]) -> float:
        """Seconds of one invocation with these events."""
        records = [record(json.dumps(events[n : n + EVENTS])) for n in range(0, len(events), EVENTS)]
        began = time.perf_counter()
        answer = quietly(lambda: self.handler({"Records": records}, context("ProgressWorker")))
        seconds = time.perf_counter() - began
        assert answer == {"batchItemFailures": []}
        return seconds

    def worker(self, *, new: bool, percentage: float | None = None) -> float:
        pairs = self.some(new=new)
        return self.invoke([self.event(pair, percentage or self.percentage()) for pair in pairs])

    def statements(self, *, new: bool, percentage: float | None = None) -> float:
        ids = [(UUID(user), UUID(self.version), UUID(lesson)) for user, lesson in self.some(new=new)]
        noted = Statements()
        # The connection is all that these functions know of a database.
        store.record(noted, [store.Report(*key, percentage or self.percentage(), self.at()) for key in ids])  # pyright: ignore[reportArgumentType]
        began = time.perf_counter()
        with self.conn.pipeline():
            for query, parameters, binary in noted.executed:
                self.conn.cursor().execute(query, parameters, binary=binary)
        return time.perf_counter() - began

    def server(self, *, new: bool) -> float:
        self._draw(self.some(new=new))
        began = time.perf_counter()
        self.conn.execute(_SERVER_ALONE, [UUID(self.version), self.percentage(), self.at(), self.at()])
        return time.perf_counter() - began

    def mixed(self) -> float:
        pairs = self.some(new=False)
        fresh = [self.event(pair, self.percentage()) for pair in pairs[: len(pairs) // 5]]
        known = [self.event(pair, 0.5) | {"time": BEGAN.isoformat()} for pair in pairs[: len(pairs) // 2]]
        events = fresh + known + random.choices(fresh, k=len(pairs) - len(fresh) - len(known))
        random.shuffle(events)
        return self.invoke(events)

    def nothing_new(self) -> float:
        return self.invoke([self.event(pair, 0.5) | {"time": BEGAN.isoformat()} for pair in self.some(new=False)])

    def rate(self, work: Callable[[], float], logged: list[float]) -> float:
        """Events a second; `logged` gets the bytes of write-ahead log for each."""
        before = self.written()
        seconds = work()
        logged.append((self.written() - before) / (MESSAGES * EVENTS))
        return MESSAGES * EVENTS / seconds

    def written(self) -> int:
        return int(self.conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchall()[0][0])


def run() -> Report:
    with database() as url:
        bench = Bench(url)
        works: dict[str, Callable[[], float]] = {
            "new rows: worker": lambda: bench.worker(new=True),
            "new rows: own statements": lambda: bench.statements(new=True),
            "new rows: server alone": lambda: bench.server(new=True),
            "updates: worker": lambda: bench.worker(new=False),
            "updates: own statements": lambda: bench.statements(new=False),
            "updates: server alone": lambda: bench.server(new=False),
            "completing: worker": lambda: bench.worker(new=True, percentage=100.0),
            "completing: own statements": lambda: bench.statements(new=True, percentage=100.0),
            "mixed: worker": bench.mixed,
            "nothing new: worker": bench.nothing_new,
        }
        logged: dict[str, list[float]] = {name: [] for name in works}
        for work in works.values():
            work()
        rates = interleaved(
            {name: lambda n=name, w=work: bench.rate(w, logged[n]) for name, work in works.items()}, ROUNDS, "batches"
        )
        bench.conn.close()
    report = Report("batches", "Progress from the queue", TEXT)
    table = Table("Ten messages of a thousand events", ["", "events a second", "µs an event", "log, bytes an event"])
    for name, values in rates.items():
        spread = Spread.of(values)
        table.rows.append([name, spread, 1e6 / spread.median, Spread.of(logged[name])])
    report.tables.append(table)

    def claim(what: str, above: str, below: str, bound: float) -> None:
        report.claims.append(Claim(what, ratio(rates[above], rates[below]), bound, "at least"))

    claim("new rows, over own statements", "new rows: worker", "new rows: own statements", 0.6)
    claim("updates, over own statements", "updates: worker", "updates: own statements", 0.6)
    claim("new rows, over the server alone", "new rows: worker", "new rows: server alone", 0.35)
    claim("updates, over the server alone", "updates: worker", "updates: server alone", 0.6)
    claim("mixed, over updates", "mixed: worker", "updates: worker", 1.0)
    bars = [(name, Spread.of(values).median) for name, values in rates.items()]
    report.plots.append(Plot("Events a second", "bars", "", "events a second", {"": bars}))
    return report
