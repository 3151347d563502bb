"""Under load: what many clients get, over HTTP from the service on this computer and from the handlers through PgBouncer."""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psycopg

from local import pollers, service, tokens
from tests.bench.report import Claim, Plot, Report, Spread, Table, console, interleaved
from tests.conftest import as_role
from tests.support import load, pooler

CONNECTIONS = (1, 8, 32)
LEARNERS = 1_000
ROUNDS = 3
CLOSED_SECONDS = 5
OPEN_SECONDS = 60
STEP_SECONDS = 10
#: Offered, as a share of the capacity.
STEPS = (0.1, 0.25, 0.5, 0.75, 0.9)
WAYS = ("over HTTP", "handlers through PgBouncer")

TEXT = f"""
`make run`'s service on a port and a folder of its own: a durable PostgreSQL, {service.GATEWAY_PROCESSES} processes of the
gateway, the pollers, the relay and the stand-in for AWS, all of them on the same cores as the clients. **Over HTTP** a request
is a learner's, with a token that the gateway verifies, and goes through HTTP, gateway, handler and database; events that come
of it are published meanwhile. **Through PgBouncer** requests go straight into the handlers, in as many processes as there are
connections, each with a connection of its own to PgBouncer (transaction mode) before the same database: what Lambda and RDS
Proxy do, without their ways there.

What {LEARNERS:,} learners in a course of {load.LESSONS} lessons ask for: of 100 requests {load.MIX["report"]} report progress
(each fifth of them completes a lesson), {load.MIX["read enrolment"]} read an enrolment, {load.MIX["read progress"]} read the
progress in all lessons, {load.MIX["attempt"]} begin or submit an attempt at a quiz. None completes the course, so that no
certificates are made.

*Closed loop*: each connection asks as soon as it is answered; the throughput of 32 connections is the capacity. *Open loop*:
requests come by themselves at a given rate, at random moments (Poisson); each one's latency counts from the moment at which it
was meant to be sent, whether or not one of the 32 connections was free then, so that a stall is felt by all who come meanwhile.
In the plainest queue (M/M/1) p99 is 6.6 times p50 at any load: so much is waiting for each other.

Each write waits for the disk at its commit, and everybody else's then do too: what the disk alone takes for `fdatasync` of a
page, tried ten times a second in the same minute, stands beside.

The clients over HTTP are one process with sockets of its own. The table says how much of a processor it takes for a request;
httpx would take {{httpx:.1f}} ms for one, which the service would lack on the same cores.
"""


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


class Figures(NamedTuple):
    """Of one run: requests a second, and seconds."""

    rate: float
    p50: float
    p99: float
    p999: float
    errors: int

    @classmethod
    def of(cls, seen: Sequence[load.Seen], seconds: float) -> "Figures":
        latencies = [one.latency for one in seen]
        p50, p99, p999 = (_percentile(latencies, share) for share in (0.5, 0.99, 0.999))
        return cls(len(seen) / seconds, p50, p99, p999, sum(one.status not in (200, 201) for one in seen))


def milliseconds(values: Sequence[float]) -> Spread:
    return Spread.of([value * 1000 for value in values])


class Bench:
    """The service, and both ways into it."""

    def __init__(self, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="learner-progress-bench-")))
        self.environment = stack.enter_context(service.started(0, folder / "service"))
        self.folder = folder
        (folder / "pooler").mkdir()
        pooled = stack.enter_context(pooler.pooled(self.environment["DATABASE_URL"], folder / "pooler"))
        self.pooled = as_role(pooled, "learner_progress_app")
        self.place = load.Place.of(LEARNERS)
        key = tokens.signing_key(folder / "service")
        self.tokens = {learner: tokens.issue(key, learner) for learner in self.place.learners}
        self.seeds = iter(range(1_000))
        #: Seconds of a processor that a request cost its client over HTTP.
        self.cost: list[float] = []
        self.seen: list[load.Seen] = []
        self._enrol()

    def _enrol(self) -> None:
        sqs = pollers.client("sqs", self.environment["AWS_ENDPOINT_URL"])
        for queue, events in self.place.events().items():
            for first in range(0, len(events), 100):
                body = json.dumps(events[first : first + 100])
                sqs.send_message(QueueUrl=self.environment[f"{queue.upper()}_QUEUE_URL"], MessageBody=body)
        deadline = time.monotonic() + 60
        with psycopg.connect(self.environment["DATABASE_URL"], autocommit=True) as conn:
            while conn.execute("SELECT count(*) FROM enrollments").fetchone() != (LEARNERS,):
                assert time.monotonic() < deadline, "the learners are not enrolled"
                time.sleep(0.1)

    def go(self, way: str, connections: int, seconds: float, rate: float | None = None) -> Figures:
        plan = load.Plan(seconds, rate, next(self.seeds))
        if way == WAYS[0]:
            self.seen, processor_seconds = load.over_http(self.environment["API_URL"], self.place, self.tokens, connections, plan)
            self.cost.append(processor_seconds / len(self.seen))
        else:
            self.seen = load.into_handlers(self.pooled, self.place, connections, plan)
        found = Figures.of(self.seen, seconds)
        console.print(
            f"{way}, {connections} connections, {f'{rate:.0f} offered' if rate else 'closed loop'}: {found.rate:.0f}/s, "
            f"p50 {found.p50 * 1000:.1f} ms, p99 {found.p99 * 1000:.1f} ms, {found.errors} errors"
        )
        return found


def run() -> Report:
    with ExitStack() as stack:
        bench = Bench(stack)
        report = Report("load", "Under load", "")
        capacity = _closed(bench, report)
        _half(bench, report, capacity[WAYS[0]] / 2)
        _steps(bench, report, capacity)
        report.text = TEXT.format(httpx=_httpx(bench) * 1000)
        cost = Spread.of([seconds * 1000 for seconds in bench.cost])
        report.tables.append(Table("", ["the clients over HTTP", "ms of a processor for a request"], [["a process", cost]]))
    return report


def _closed(bench: Bench, report: Report) -> dict[str, float]:
    """What it can do at most; gives each way's capacity."""
    found: dict[tuple[str, int], list[Figures]] = {}

    def case(way: str, connections: int) -> Callable[[], float]:
        def measure() -> float:
            figures = bench.go(way, connections, CLOSED_SECONDS)
            found.setdefault((way, connections), []).append(figures)
            return figures.rate

        return measure

    rates = interleaved({f"{way} {n}": case(way, n) for way in WAYS for n in CONNECTIONS}, ROUNDS)
    table = Table(f"Closed loop, {ROUNDS} rounds of {CLOSED_SECONDS} s", ["", "connections", "requests/s", *_TIMES])
    for (way, n), all_of_them in sorted(found.items(), key=lambda entry: (WAYS.index(entry[0][0]), entry[0][1])):
        table.rows.append([way, n, Spread.of(rates[f"{way} {n}"]), *_times(all_of_them)])
    report.tables.append(table)
    medians = {way: [(str(n), Spread.of(rates[f"{way} {n}"]).median) for n in CONNECTIONS] for way in WAYS}
    report.plots.append(Plot("Throughput by connections, closed loop", "bars", "connections", "requests a second", medians))
    return {way: points[-1][1] for way, points in medians.items()}


_TIMES = ["p50, ms", "p99, ms", "p99.9, ms"]


def _times(found: Sequence[Figures]) -> list[Spread]:
    return [milliseconds([getattr(one, name) for one in found]) for name in ("p50", "p99", "p999")]


def _half(bench: Bench, report: Report, rate: float) -> None:
    """What is promised: half of the capacity for a minute, three times."""
    table = Table(
        f"Open loop over HTTP, 32 connections, half of the capacity for {OPEN_SECONDS} s",
        ["round", "offered, requests/s", "answered", "errors", *_TIMES, "p99 / p50", "disk: p50, ms", "p99, ms"],
    )
    kinds: dict[str, list[float]] = {}
    ratios: list[float] = []
    errors: list[float] = []
    for number in range(1, ROUNDS + 1):
        with _disk(bench.folder) as syncs:
            figures = bench.go(WAYS[0], CONNECTIONS[-1], OPEN_SECONDS, rate)
        disk = [_percentile(syncs, share) * 1000 for share in (0.5, 0.99)]
        ratios.append(figures.p99 / figures.p50)
        errors.append(figures.errors)
        times = [value * 1000 for value in (figures.p50, figures.p99, figures.p999)]
        table.rows.append([number, rate, len(bench.seen), figures.errors, *times, ratios[-1], *disk])
        for one in bench.seen:
            kinds.setdefault(one.kind, []).append(one.latency * 1000)
    report.tables.append(table)
    by_kind = Table("The same by what was asked for, all rounds", ["", "requests", *_TIMES[:2]])
    for kind, latencies in sorted(kinds.items(), key=lambda entry: -len(entry[1])):
        by_kind.rows.append([kind, len(latencies), *(_percentile(latencies, share) for share in (0.5, 0.99))])
    report.tables.append(by_kind)
    at = f"half of the capacity over HTTP, 32 connections, {OPEN_SECONDS} s"
    best = Spread(min(ratios), min(ratios), max(ratios))
    report.claims += [
        Claim(f"p99 / p50 at {at}, best of {ROUNDS}", best, 8, "at most"),
        Claim(f"requests of a round that were not answered as they should, at {at}", Spread.of(errors), 0, "at most"),
    ]


@contextmanager
def _disk(folder: Path) -> Generator[list[float]]:
    """How many seconds the disk takes to keep a page, tried again and again meanwhile."""
    ended, found = threading.Event(), list[float]()

    def probe() -> None:
        with (folder / "page").open("wb", buffering=0) as file:
            while not ended.wait(0.1):
                file.seek(0)
                file.write(bytes(8192))
                began = time.monotonic()
                os.fdatasync(file.fileno())
                found.append(time.monotonic() - began)

    prober = threading.Thread(target=probe)
    prober.start()
    try:
        yield found
    finally:
        ended.set()
        prober.join()


def _steps(bench: Bench, report: Report, capacity: dict[str, float]) -> None:
    """How latencies rise with what is offered."""
    series: dict[str, list[tuple[float, float]]] = {}
    table = Table(
        f"Open loop, 32 connections, {STEP_SECONDS} s each",
        ["", "offered, of the capacity", "offered, requests/s", *_TIMES, "errors"],
    )
    for way in WAYS:
        for step in STEPS:
            offered = capacity[way] * step
            figures = bench.go(way, CONNECTIONS[-1], STEP_SECONDS, offered)
            times = [value * 1000 for value in (figures.p50, figures.p99, figures.p999)]
            table.rows.append([way, f"{step:.0%}", offered, *times, figures.errors])
            for name, value in zip(("p50", "p99"), times, strict=False):
                series.setdefault(f"{way}, {name}", []).append((round(offered), value))
    report.tables.append(table)
    report.plots.append(
        Plot("Latency by what is offered, open loop", "lines", "requests a second", "milliseconds", series, log_y=True)
    )


def _httpx(bench: Bench) -> float:
    """Seconds of a processor that a request costs with httpx."""
    import httpx

    learner = bench.place.learners[0]
    path = f"/users/{learner}/enrollments/{bench.place.version['course_version_id']}"
    headers = {"authorization": f"Bearer {bench.tokens[learner]}"}
    with httpx.Client(base_url=bench.environment["API_URL"], headers=headers) as client:
        client.get(path).raise_for_status()
        began = time.process_time()
        for _ in range(300):
            client.get(path)
        return (time.process_time() - began) / 300
