"""What a request takes from the event to the answer, beside the same statements by bare psycopg."""

import importlib
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from local import gateway, tokens
from shared.progress import store
from tests.bench.report import Claim, Plot, Report, Spread, Table, database, interleaved, ratio
from tests.bench.statements import Statements, quietly
from tests.support.service import _STACK, Service, _key, context, course, event, quiz

ROUNDS = 11
CALLS = 200
LEARNERS = 200
LESSONS = 50

TEXT = """\
In one process: the event of API Gateway goes into the handler and its answer comes out. That includes the route, who calls and
whether they may, validation, the statements, and the answer as JSON; what is logged is left out. PostgreSQL is on the
same computer, each commit is flushed, and nothing is prepared, as through RDS Proxy.

- *bare psycopg*: the same statements with the same parameters, and nothing else.
- *one guarded upsert*: the least that could be asked of a database: `INSERT … SELECT … FROM enrollments … ON CONFLICT`, not
  prepared. It can't tell why nothing was written, and lets a report in that starting over should have kept out.
- *SELECT 1*: the trip alone.

A heartbeat is a report that says nothing new. Each case is the median of 200 calls, for one learner after the other.
"""


class Bench:
    """200 learners in one course version of 50 lessons and a quiz."""

    def __init__(self, url: str) -> None:
        self.service = Service(url)
        self.conn = psycopg.connect(url, autocommit=True, prepare_threshold=None)
        self.course = course(lessons=LESSONS, quizzes=[quiz(max_attempts=None)])
        self.version = UUID(self.course["course_version_id"])
        self.lessons = [UUID(lesson["lesson_id"]) for lesson in self.course["lessons"]]
        self.learners = [uuid4() for _ in range(LEARNERS)]
        self.clock = itertools.count(1)
        self.routes = gateway.Routes(_STACK.routes)
        quietly(lambda: self.service.send("catalog", event("course_version.published", self.course)))
        ids = {"course_version_id": str(self.version)}
        enroll = [event("enrollment.requested", ids | {"user_id": str(learner)}, at(0)) for learner in self.learners]
        quietly(lambda: self.service.send("enrollment", enroll))
        for number, lesson in enumerate(self.lessons[: LESSONS // 2]):
            reports = [
                event(
                    "lesson.progressed",
                    ids | {"user_id": str(learner), "lesson_id": str(lesson), "progress_percentage": 100 if number % 5 else 1},
                    at(0),
                )
                for learner in self.learners
            ]
            quietly(lambda reports=reports: self.service.send("progress", reports))
        self.conn.execute("VACUUM ANALYZE")

    def enrollment(self, learner: UUID) -> str:
        return f"/users/{learner}/enrollments/{self.version}"

    def event(self, learner: UUID, method: str, path: str, body: Any = None) -> tuple[str, dict[str, Any]]:
        """The function that a request goes to, and the event as the gateway makes it."""
        found: list[tuple[str, dict[str, Any]]] = []

        def invoke(function: str, payload: dict[str, Any]) -> dict[str, Any]:
            found.append((function.removesuffix("Api").lower() + "_api", json.loads(json.dumps(payload))))
            return {"statusCode": 204, "headers": {}, "body": ""}

        headers = [("authorization", f"Bearer {tokens.issue(_key(), str(learner), '')}"), ("content-type", "application/json")]
        target, _, query = path.partition("?")
        content = b"" if body is None else json.dumps(body).encode()
        gateway.respond(gateway.Request(method, target, query, headers, content), self.routes, _STACK, _key(), invoke)
        return found[0]

    def calls(self, method: str, path: Callable[[UUID], str], body: Callable[[], Any] = lambda: None) -> float:
        """Median time of a call in ms."""
        learners = random.sample(self.learners, CALLS)
        events = [self.event(learner, method, path(learner), body()) for learner in learners]
        handler = importlib.import_module(f"functions.{events[0][0]}.app").handler
        return median(lambda sent: handler(sent[1], context("Api")), events)

    def report(self) -> dict[str, Any]:
        """A body that says more than any before it."""
        second = next(self.clock)
        return {"progress_percentage": 1 + second / 1e6, "occurred_at": at(second)}

    def reports(self) -> Iterator[store.Report]:
        for learner in random.sample(self.learners, CALLS):
            body = self.report()
            time_ = datetime.fromisoformat(body["occurred_at"])
            yield store.Report(learner, self.version, self.lessons[0], body["progress_percentage"], time_)

    def bare(self) -> float:
        noted: list[Any] = []
        for report in self.reports():
            statements = Statements()
            # The connection is all that the function knows of a database.
            store.report(statements, report)  # pyright: ignore[reportArgumentType]
            noted.append(statements.executed)
        return median(lambda executed: [self.conn.execute(q, p, binary=b).fetchall() for q, p, b in executed], noted)

    def upsert(self) -> float:
        statement = """
            INSERT INTO lesson_progress AS p (
                user_id, lesson_id, enrolled_course_version_id, status, progress_percentage, started_at, last_accessed_at
            )
            SELECT e.user_id, l.lesson_id, l.course_version_id, 'in_progress', %b, %b, %b
            FROM enrollments e
            JOIN course_version_lessons l ON l.course_version_id = e.course_version_id AND l.lesson_id = %b
            WHERE e.user_id = %b AND e.course_version_id = %b AND e.status = 'active'
            ON CONFLICT ON CONSTRAINT pk_lesson_progress DO UPDATE SET
                progress_percentage = greatest(p.progress_percentage, excluded.progress_percentage),
                last_accessed_at = greatest(p.last_accessed_at, excluded.last_accessed_at)
            RETURNING p.status, p.progress_percentage
        """
        rows = [(r.percentage, r.occurred_at, r.occurred_at, r.lesson_id, r.user_id, self.version) for r in self.reports()]
        return median(lambda row: self.conn.execute(statement, row, binary=True).fetchall(), rows)

    def trip(self) -> float:
        return median(lambda _: self.conn.execute(sql.SQL("SELECT 1")).fetchall(), range(CALLS))

    def put(self) -> float:
        return self.calls("PUT", lambda who: f"{self.enrollment(who)}/lessons/{self.lessons[0]}/progress", self.report)

    def heartbeat(self) -> float:
        body = {"progress_percentage": 0.5, "occurred_at": at(0)}
        return self.calls("PUT", lambda who: f"{self.enrollment(who)}/lessons/{self.lessons[0]}/progress", lambda: body)


def at(second: int) -> str:
    return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second)).isoformat()


def median(call: Callable[[Any], Any], sent: Iterable[Any]) -> float:
    """Median time in ms of a call for each of what is sent."""
    times: list[float] = []

    def all_of_them() -> None:
        for one in sent:
            began = time.perf_counter()
            call(one)
            times.append(time.perf_counter() - began)

    quietly(all_of_them)
    return statistics.median(times) * 1000


def run() -> Report:
    with database() as url:
        bench = Bench(url)
        cases: dict[str, Callable[[], float]] = {
            "SELECT 1": bench.trip,
            "one guarded upsert": bench.upsert,
            "PUT progress, bare psycopg": bench.bare,
            "PUT progress": bench.put,
            "PUT progress, a heartbeat": bench.heartbeat,
            "GET progress of 50 lessons": lambda: bench.calls("GET", lambda who: f"{bench.enrollment(who)}/progress"),
            "GET an enrolment": lambda: bench.calls("GET", bench.enrollment),
            "GET a learner's enrolments": lambda: bench.calls("GET", lambda who: f"/users/{who}/enrollments"),
        }
        for case in cases.values():
            case()
        found = interleaved(cases, ROUNDS, "requests")
        bench.conn.close()
    report = Report("requests", "A request", TEXT)
    table = Table("From the event to the answer", ["", "ms, median of 200 calls"])
    table.rows = [[name, Spread.of(values)] for name, values in found.items()]
    report.tables.append(table)
    over = ratio(found["PUT progress"], found["PUT progress, bare psycopg"])
    report.claims.append(Claim("PUT progress, over the same statements by bare psycopg", over, 1.6, "at most"))
    bars = [(name, Spread.of(values).median) for name, values in found.items()]
    report.plots.append(Plot("From the event to the answer", "bars", "", "ms", {"": bars}))
    return report
