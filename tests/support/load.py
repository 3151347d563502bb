"""Load: many clients at once, whose requests come whether or not the service keeps up.

In an open loop each request has its moment beforehand, by arrivals that know nothing of each other (Poisson). Its latency counts
from that moment, also if no client was free to send it then: a service that stalls is not spared what comes meanwhile, as it
would be by clients that wait for their answers (coordinated omission). In a closed loop each client sends its next request when
it has an answer, which tells what the service can do at most.

Clients are processes of their own. Over HTTP one process has all connections; straight into the handlers there is one process for
each client, as Lambda has one execution environment for each request at a time.
"""

import asyncio
import json
import multiprocessing
import os
import selectors
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, takewhile
from multiprocessing.context import ForkServerContext
from random import Random
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from shared import db, settings
from tests.support.service import Service, course, event, quiz

#: What learners do, in parts of a hundred. An attempt is begun by one of its requests and submitted by the next one.
MIX = {"report": 60, "read enrolment": 20, "read progress": 16, "attempt": 4}
#: What a report adds to the percentage of its lesson, so that each fifth completes one.
STEP = 20
#: What an invocation of the API may take, as in the template.
INVOCATION_SECONDS = 10
LESSONS = 50


class Plan(NamedTuple):
    """How long, and how many requests a second; no rate: each as soon as the one before it is answered."""

    seconds: float
    rate: float | None = None
    seed: int = 0
    #: What follows it, of an open loop.
    then: "Plan | None" = None

    def moments(self) -> Iterator[float]:
        """When each request is meant to be sent, in seconds from the beginning."""
        assert self.rate
        dice = Random(self.seed)
        gaps = (dice.expovariate(self.rate) for _ in iter(int, 1))
        yield from takewhile(lambda moment: moment < self.seconds, accumulate(gaps))
        if self.then:
            yield from (self.seconds + moment for moment in self.then.moments())


class Seen(NamedTuple):
    """One request; moments are those of the monotonic clock."""

    kind: str
    intended: float
    sent: float
    ended: float
    status: int
    #: What was acknowledged, by the ids in the database: a report's learner, lesson and percentage; an attempt's id.
    effect: tuple[Any, ...] | None = None
    #: Headers and body, if it is no success.
    refusal: tuple[dict[str, str], str] | None = None

    @property
    def latency(self) -> float:
        """Seconds from when it was meant to be sent to its answer."""
        return self.ended - self.intended


@dataclass
class Place:
    """A course version and those who are enrolled in it."""

    learners: list[str]
    version: dict[str, Any] = field(default_factory=lambda: course(lessons=LESSONS, quizzes=[quiz()]))

    @classmethod
    def of(cls, learners: int) -> "Place":
        return cls([str(uuid4()) for _ in range(learners)])

    def events(self) -> dict[str, list[dict[str, Any]]]:
        """What makes it, by queue."""
        id_ = self.version["course_version_id"]
        enrolments = [event("enrollment.requested", {"user_id": one, "course_version_id": id_}) for one in self.learners]
        return {"catalog": [event("course_version.published", self.version)], "enrollment": enrolments}


class Request(NamedTuple):
    kind: str
    learner: str
    method: str
    path: str
    body: dict[str, Any] | None = None


class Client:
    """One client after the other's requests: its learners go on in their lessons, and try the quiz without passing it."""

    def __init__(self, place: Place, number: int, clients: int, seed: int) -> None:
        # Learners of its own, so that nobody else submits their attempts.
        self._learners = place.learners[number::clients]
        self._version = place.version
        self._dice = Random(f"{seed} {number}")
        self._reported: dict[str, int] = {}
        self._attempt: tuple[str, str] | None = None

    def request(self) -> Request:
        """What it asks for next."""
        (kind,) = self._dice.choices(list(MIX), list(MIX.values()))
        learner = self._dice.choice(self._learners)
        enrolment = f"/users/{learner}/enrollments/{self._version['course_version_id']}"
        match kind:
            case "report":
                before = self._reported.get(learner, 0)
                self._reported[learner] = before + STEP
                lesson = self._version["lessons"][before // 100 % LESSONS]["lesson_id"]
                body = {"progress_percentage": before % 100 + STEP}
                return Request(kind, learner, "PUT", f"{enrolment}/lessons/{lesson}/progress", body)
            case "read enrolment":
                return Request(kind, learner, "GET", enrolment)
            case "read progress":
                return Request(kind, learner, "GET", f"{enrolment}/progress")
            case _ if self._attempt:
                learner, attempt = self._attempt
                answers = {"answers": {"q1": "b", "q2": 0.3}}
                return Request("submit", learner, "POST", f"/quiz-attempts/{attempt}/submit", answers)
            case _:
                return Request("start", learner, "POST", f"{enrolment}/quizzes/{self._version['quizzes'][0]['quiz_id']}/attempts")

    def answered(
        self, request: Request, moments: tuple[float, float, float], status: int, content: bytes, headers: dict[str, str]
    ) -> Seen:
        """Take note of an answer; the moments: when the request was meant to be sent, when it was sent, and answered."""
        if status not in (200, 201):
            return Seen(request.kind, *moments, status, refusal=(headers, content.decode()))
        effect: tuple[Any, ...] | None = None
        match request.kind:
            case "report":
                effect = (request.learner, request.path.split("/")[-2], (request.body or {})["progress_percentage"])
            case "start":
                self._attempt = (request.learner, json.loads(content)["id"])
                effect = (self._attempt[1],)
            case "submit":
                effect = (json.loads(content)["id"],)
                self._attempt = None
            case _:
                pass
        return Seen(request.kind, *moments, status, effect)


class _Start(NamedTuple):
    """What the processes of one run have in common."""

    #: Lets nobody begin before all can.
    barrier: Any
    #: The moment at which they all begin.
    begin: Any
    #: How many requests have been taken from the plan.
    taken: Any


_start: _Start


def _join(start: _Start) -> None:
    global _start
    _start = start


def _now(begin: Any) -> None:
    begin.value = time.monotonic() + 0.1


class _Moments:
    """The moments of a plan, each for whoever is free first."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._moments = list(plan.moments()) if plan.rate else []
        _start.barrier.wait(120)
        self._begin = _start.begin.value

    def next(self) -> float | None:
        """When the next request is meant to be sent; None when there is no more."""
        if self._plan.rate is None:
            now = max(self._begin, time.monotonic())
            return now if now < self._begin + self._plan.seconds else None
        with _start.taken.get_lock():
            number = _start.taken.value
            _start.taken.value += 1
        return self._begin + self._moments[number] if number < len(self._moments) else None


def processes() -> ForkServerContext:
    """Processes that have imported everything when they start."""
    context = multiprocessing.get_context("forkserver")
    functions = [f"functions.{name}_{kind}.app" for name in ("enrollment", "progress", "quiz") for kind in ("api", "worker")]
    context.set_forkserver_preload([__name__, "local.pollers", *functions])
    return context


def _run(work: Any, tasks: Sequence[tuple[Any, ...]], meanwhile: Callable[[float], None] = lambda begin: None) -> list[Any]:
    """Do each task in a process of its own, all beginning at the same moment; gives what each returns."""
    context = processes()
    begin = context.Value("d")
    start = _Start(context.Barrier(len(tasks) + 1, partial(_now, begin)), begin, context.Value("q"))
    with ProcessPoolExecutor(len(tasks), context, _join, (start,)) as executor:
        futures = [executor.submit(work, *task) for task in tasks]
        start.barrier.wait(120)
        meanwhile(begin.value)
        return [future.result() for future in futures]


def into_handlers(
    database_url: str,
    place: Place,
    clients: int,
    plan: Plan,
    *,
    is_warm: bool = True,
    meanwhile: Callable[[float], None] = lambda begin: None,
) -> list[Seen]:
    """Let so many execution environments serve a plan's requests.

    is_warm: whether each has its connection beforehand.
    meanwhile: what is done here from the beginning on, at that moment of the monotonic clock.
    """
    tasks = [(database_url, place, number, clients, plan, is_warm) for number in range(clients)]
    return [seen for found in _run(_environment, tasks, meanwhile) for seen in found]


def _environment(database_url: str, place: Place, number: int, clients: int, plan: Plan, is_warm: bool) -> list[Seen]:
    os.environ["DATABASE_URL"] = database_url
    settings.database_url.cache_clear()
    # What handlers print is not for whoever reads here.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    service, client = Service(database_url, INVOCATION_SECONDS), Client(place, number, clients, plan.seed)
    if is_warm:
        learner = place.learners[0]
        service.http("GET", f"/users/{learner}/enrollments/{place.version['course_version_id']}", sub=UUID(learner))
    moments, found = _Moments(plan), []
    while (intended := moments.next()) is not None:
        time.sleep(max(0.0, intended - time.monotonic()))
        request, sent = client.request(), time.monotonic()
        answer = service.http(request.method, request.path, request.body, sub=UUID(request.learner))
        ended = time.monotonic()
        found.append(client.answered(request, (intended, sent, ended), answer.status, answer.content, answer.headers))
    db.close()
    return found


class Cost(NamedTuple):
    """What the clients took themselves: seconds of a processor."""

    seen: list[Seen]
    processor_seconds: float


def over_http(url: str, place: Place, tokens: Mapping[str, str], connections: int, plan: Plan) -> Cost:
    """Send a plan's requests over so many connections that are kept."""
    (found,) = _run(_connections, [(url, place, tokens, connections, plan)])
    return found


def _connections(url: str, place: Place, tokens: Mapping[str, str], connections: int, plan: Plan) -> Cost:
    async def all_of_them() -> list[Seen]:
        streams = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(connections)]
        moments = _Moments(plan)
        clients = [Client(place, number, connections, plan.seed) for number in range(connections)]
        work = [_connection(*stream, client, moments, tokens) for stream, client in zip(streams, clients, strict=True)]
        return [seen for found in await asyncio.gather(*work) for seen in found]

    parts, began = urlsplit(url), time.process_time()
    # Unlike epoll, select waits to the microsecond.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        seen = runner.run(all_of_them())
    return Cost(seen, time.process_time() - began)


async def _connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: Client, moments: _Moments, tokens: Mapping[str, str]
) -> list[Seen]:
    found: list[Seen] = []
    while (intended := moments.next()) is not None:
        await asyncio.sleep(intended - time.monotonic())
        request, sent = client.request(), time.monotonic()
        body = json.dumps(request.body).encode() if request.body else b""
        lines = (
            f"{request.method} {request.path} HTTP/1.1",
            "host: 127.0.0.1",
            f"authorization: Bearer {tokens[request.learner]}",
            "content-type: application/json",
            f"content-length: {len(body)}",
        )
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = dict(line.lower().split(": ", 1) for line in fields)
        content = await reader.readexactly(int(headers["content-length"]))
        ended = time.monotonic()
        found.append(client.answered(request, (intended, sent, ended), int(status.split()[1]), content, headers))
    writer.close()
    return found
