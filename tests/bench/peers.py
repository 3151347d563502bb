"""The service beside its peers: FastAPI with SQLAlchemy as most teams would write it, Kolibri's endpoint, Open edX's library."""

import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter, sleep
from typing import Any
from urllib.parse import urlsplit

import psycopg

from local import postgres, service, tokens
from tests.bench import report
from tests.bench.programs import workload
from tests.support.service import Service, course, event

PROJECT = Path(__file__).parents[2]
PEERS = PROJECT / ".tools" / "peers" / "bin"

ROUNDS = 9
CALLS = 300
BATCH_ROUNDS = 5
START_SECONDS = 120

TEXT = """\
`make bench-peers` measures the service beside what a team would otherwise write or take. All run on one PostgreSQL with its
defaults (256 MB of shared buffers, fsync on), each in processes of its own, on one computer, and take turns in each round.
1,000 learners are enrolled in a course version of 30 lessons and have begun 20 of them; reports are of random learners on those
lessons, from 1 to 99 percent, and each changes its row. The learner is told what is known afterwards.

**In process** no server stands on either side: what is timed is from the request (ASGI) or event (API Gateway's payload 2.0) to
the answer, both made before. None checks a token, which a gateway does; all compare its subject, which the event or a header
has, with the learner in the path, and validate path and body.

- *The service*: the handler `progress_api` with Powertools' resolver. It sends one statement, which calls a function in the
  database: that also looks whether the lesson is in the course, and whether the report is of before a reset or after a
  cancellation. The statement is not prepared, since RDS Proxy would pin the connection.
- *FastAPI, SQLAlchemy ORM*: loads the enrolment and checks its status, loads the lesson of the course, loads the progress in
  it for update, merges in Python, commits: 4 statements, BEGIN and COMMIT, 6 trips, prepared by psycopg after a few uses. The
  synchronous endpoint runs in FastAPI's thread; the asynchronous one on the event loop.
- *FastAPI, one statement*: the ORM's rules as one upsert, prepared, from a pool. It does least of all, and shows what the ORM
  costs.

**Over HTTP** one client sends requests on one connection that is kept, by Python's `http.client`, on both sides.

- *The service*: as `make run` starts it. Its gateway verifies an RS256 token, makes the event and calls the function in the
  same process; its pollers look after their queues beside it. Nothing is cached between requests.
- *Kolibri* 0.19.5: its own server, `PUT /api/logger/trackprogress/<session>/` as its player calls it every few seconds, for one
  learner who has signed in and watches one video. 8 statements (`SET`, session, BEGIN, 2 SELECT, 2 UPDATE, COMMIT) on a new
  connection each time, as Django's default is. It does more than we do in this: it looks the session up in its database, checks
  a CSRF token, keeps two logs (of the session and in summary) with the time spent, marks both for synchronisation, and its own
  jobs look for work beside it. On SQLite, which it uses unless told otherwise, there is no connection to make, and no server to
  wait for.

**Many at once**

- *The service*: the handler `progress_worker` with SQS messages of 1,000 CloudEvents each, from their text to the commit,
  validated, one transaction and one statement for all. New rows are those of lessons that nobody has begun. Ratios are of ten
  messages, which Lambda hands over together, to the peer's one batch; one message alone stands beside.
- *edx-completion* 5.0.0 on Django 6.1: `BlockCompletion.objects.submit_batch_completion` for one learner, one transaction. The
  keys of the blocks are parsed before; nothing is validated but the value, no back end of event tracking is configured. It
  sends 7 statements for each known row and 6 for each new one, and 2 more; it emits an event for each row, which goes nowhere
  here, and lets progress fall, which costs it nothing.
- *SQLAlchemy ORM*: the same messages, validated by pydantic. Each report in a transaction of its own as the endpoint does it,
  or all in one: a query for the enrolments, one for the progress, one flush.
"""


class Program:
    """A program of `tests.bench.programs` in a process of its own, which does calls when told to."""

    def __init__(self, python: str | Path, name: str, *arguments: str) -> None:
        self._popen = subprocess.Popen(
            [python, "-m", f"tests.bench.programs.{name}", *arguments],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "POWERTOOLS_LOG_LEVEL": "INFO"},
        )
        self._hear()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.communicate()

    def _hear(self) -> Any:
        assert self._popen.stdout
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._popen.args} ended with {self._popen.wait()}")
        return json.loads(line)

    def seconds(self, case: str, calls: int) -> list[float]:
        """Do so many calls and tell how long each took."""
        assert self._popen.stdin
        print(json.dumps([case, calls]), file=self._popen.stdin, flush=True)
        return self._hear()


class Client:
    """An HTTP connection that is kept, with the cookies that it is given. It is the lightest one: it counts for both sides."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address)
        self._cookies: dict[str, str] = {}

    def connect(self) -> None:
        """Connect anew, since a server closes a connection on which nothing has come for a while."""
        self._connection.close()
        self._connection.connect()

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """Return the JSON of a successful answer."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        if self._cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
            sent["X-CSRFToken"] = self._cookies["kolibri_csrftoken"]
        self._connection.request(method, path, json.dumps(body) if body is not None else None, sent)
        answer = self._connection.getresponse()
        text = answer.read()
        for cookie in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text!r}")
        return json.loads(text or b"null")


def run() -> report.Report:
    """Measure all; takes about five minutes."""
    found = report.Report("peers", "Peers", TEXT)
    with report.database() as url:
        _publish(url)
        with psycopg.connect(url, autocommit=True) as conn:
            for name in ("edx", "kolibri"):
                # A name of a database can't be a parameter; these are the ones above.
                conn.execute(f"CREATE DATABASE {name}")  # pyright: ignore[reportArgumentType, reportCallIssue]
        _in_process(found, url)
        _batches(found, url)
        _over_http(found, url)
    return found


def _publish(url: str) -> None:
    """One course version, the learners enrolled in it, and each one's progress in the lessons that they have begun."""
    lessons = [
        {"lesson_id": workload.lesson(n), "title": f"Lesson {n}", "required": True}
        for n in range(workload.BEGUN + workload.FRESH)
    ]
    ours = Service(url)
    # What the functions print is nobody's concern here.
    with redirect_stdout(StringIO()):
        version = course() | {"course_version_id": workload.COURSE_VERSION, "lessons": lessons}
        ours.send("catalog", event("course_version.published", version))
        learners = [
            {"user_id": workload.learner(n), "course_version_id": workload.COURSE_VERSION} for n in range(workload.LEARNERS)
        ]
        ours.send("enrollment", [event("enrollment.requested", learner) for learner in learners])
        ours.send("progress", *(workload.events(n) for n in range(workload.BEGUN)))
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE")


class Case:
    """Takes part in the rounds by the median of its calls, in ms, and keeps the slowest of a hundred of them, too."""

    def __init__(self, seconds: Callable[[int], list[float]]) -> None:
        self._seconds = seconds
        self.slow: list[float] = []

    def __call__(self) -> float:
        times = [second * 1000 for second in self._seconds(CALLS)]
        self.slow.append(statistics.quantiles(times, n=100)[98])
        return statistics.median(times)


def _rounds(cases: dict[str, Case], what: str) -> dict[str, list[float]]:
    """Let all cases take turns, after a round that warms them up."""
    for case in cases.values():
        case()
        case.slow.clear()
    return report.interleaved(cases, ROUNDS, what)


def _in_process(found: report.Report, url: str) -> None:
    with Program(sys.executable, "ours") as ours, Program(PEERS / "python", "fastapi_orm", url) as fastapi:
        peers = {
            "FastAPI, SQLAlchemy ORM": "ORM",
            "FastAPI, SQLAlchemy ORM, async": "ORM, async",
            "FastAPI, one statement": "one statement",
        }
        cases = {"the service": Case(lambda calls: ours.seconds("request", calls))}
        cases |= {name: Case(lambda calls, case=case: fastapi.seconds(case, calls)) for name, case in peers.items()}
        times = _rounds(cases, "in process")
    statements = {"the service": "1"} | dict.fromkeys(peers, "4, BEGIN and COMMIT") | {"FastAPI, one statement": "1"}
    found.tables.append(
        report.Table(
            "A report of a lesson, in process: request or event in, answer out",
            ["", "p50 ms", "p99 ms", "statements", "the service is faster by"],
            [
                [
                    name,
                    report.Spread.of(times[name]),
                    report.Spread.of(cases[name].slow),
                    statements[name],
                    "" if name == "the service" else report.ratio(times[name], times["the service"]),
                ]
                for name in times
            ],
        )
    )
    ratio = report.ratio(times["FastAPI, SQLAlchemy ORM"], times["the service"])
    found.claims.append(report.Claim("in process, FastAPI with SQLAlchemy's ORM over the service, p50", ratio, 5, "at least"))


def _batches(found: report.Report, url: str) -> None:
    edx_url = urlsplit(url)._replace(path="/edx").geturl()
    with (
        Program(sys.executable, "ours") as ours,
        Program(PEERS / "python", "fastapi_orm", url) as orm,
        Program(PEERS / "python", "edx_completion", edx_url) as edx,
    ):

        def rate(program: Program, case: str, calls: int, rows: int) -> Callable[[], float]:
            return lambda: rows / program.seconds(case, calls)[0]

        cases = {
            "the service, 10 messages of 1,000, known rows": rate(ours, "existing", 10, 10_000),
            "the service, 10 messages of 1,000, new rows": rate(ours, "new", 10, 10_000),
            "the service, 1 message of 1,000, known rows": rate(ours, "existing", 1, 1_000),
            "the service, 1 message of 1,000, new rows": rate(ours, "new", 1, 1_000),
            "edx-completion, a batch of 1,000, known rows": rate(edx, "existing", 1_000, 1_000),
            "edx-completion, a batch of 1,000, new rows": rate(edx, "new", 1_000, 1_000),
            "SQLAlchemy ORM, 1,000 in one transaction, known rows": rate(orm, "batch, one commit", 1_000, 1_000),
            "SQLAlchemy ORM, 200 of a transaction each, known rows": rate(orm, "batch, commit each", 200, 200),
        }
        for case in cases.values():
            case()
        rates = report.interleaved(cases, BATCH_ROUNDS, "batches")
    compared = {name: "the service, 10 messages of 1,000, " + name.rpartition(", ")[2] for name in cases}
    found.tables.append(
        report.Table(
            "Many reports at once",
            ["", "rows/s", "10 messages to the service, over it"],
            [
                [
                    name,
                    report.Spread.of(rates[name]),
                    "" if "service" in name else report.ratio(rates[compared[name]], rates[name]),
                ]
                for name in rates
            ],
        )
    )
    for name in ("known", "new"):
        edx_name = f"edx-completion, a batch of 1,000, {name} rows"
        ratio = report.ratio(rates[compared[edx_name]], rates[edx_name])
        found.claims.append(report.Claim(f"rows/s of the worker over edx-completion's batch, {name} rows", ratio, 60, "at least"))
    found.plots.append(
        report.Plot(
            "Many reports at once",
            "bars",
            "",
            "rows/s",
            {"rows/s": [(name, statistics.median(values)) for name, values in rates.items()]},
            log_y=True,
        )
    )


def _over_http(found: report.Report, url: str) -> None:
    at = urlsplit(url)
    postgresql = {
        "ENGINE": "postgres",
        "NAME": "kolibri",
        "USER": str(at.username),
        "PASSWORD": "",
        "HOST": str(at.hostname),
        "PORT": str(at.port),
    }
    with ExitStack() as stack:
        cases = {
            "the service": Case(_timed(*stack.enter_context(_service()))),
            "Kolibri, PostgreSQL": Case(_timed(*stack.enter_context(_kolibri(postgresql)))),
            "Kolibri, SQLite": Case(_timed(*stack.enter_context(_kolibri({"ENGINE": "sqlite"})))),
        }
        times = _rounds(cases, "over HTTP")
    found.tables.append(
        report.Table(
            "A report of a lesson, over HTTP on one connection that is kept",
            ["", "p50 ms", "p99 ms", "the service is faster by"],
            [
                [
                    name,
                    report.Spread.of(times[name]),
                    report.Spread.of(cases[name].slow),
                    "" if name == "the service" else report.ratio(times[name], times["the service"]),
                ]
                for name in times
            ],
        )
    )
    ratio = report.ratio(times["Kolibri, PostgreSQL"], times["the service"])
    found.claims.append(report.Claim("over HTTP, Kolibri on PostgreSQL over the service, p50", ratio, 7, "at least"))


def _timed(client: Client, method: str, requests: Iterator[tuple[str, Any, dict[str, str]]]) -> Callable[[int], list[float]]:
    """Send so many requests and tell how long each took."""

    def seconds(calls: int) -> list[float]:
        client.connect()
        taken: list[float] = []
        for path, body, headers in itertools.islice(requests, calls):
            began = perf_counter()
            client.call(method, path, body, headers)
            taken.append(perf_counter() - began)
        return taken

    return seconds


@contextmanager
def _service() -> Generator[tuple[Client, str, Iterator[tuple[str, Any, dict[str, str]]]]]:
    """The local service as `make run` starts it, on the database that is there."""
    with TemporaryDirectory() as folder, service.started(0, Path(folder)) as environment:
        key = tokens.signing_key(Path(folder))
        issued = {workload.learner(n): tokens.issue(key, workload.learner(n)) for n in range(workload.LEARNERS)}

        def requests() -> Iterator[tuple[str, Any, dict[str, str]]]:
            for one in workload.reports(3):
                path = f"/users/me/enrollments/{workload.COURSE_VERSION}/lessons/{one.lesson_id}/progress"
                yield path, {"progress_percentage": one.percentage}, {"Authorization": f"Bearer {issued[one.user_id]}"}

        yield Client(environment["API_URL"].removeprefix("http://")), "PUT", requests()


@contextmanager
def _kolibri(database: dict[str, str]) -> Generator[tuple[Client, str, Iterator[tuple[str, Any, dict[str, str]]]]]:
    """Kolibri's own server with a learner who has signed in and begun to watch a video."""
    with TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            **{f"KOLIBRI_DATABASE_{name}": value for name, value in database.items()},
            "KOLIBRI_HOME": folder,
            "KOLIBRI_LISTEN_ADDRESS": "127.0.0.1",
            "KOLIBRI_ZIP_CONTENT_PORT": "0",
        }
        facility = ["--facility", "Bench", "--preset", "formal", "--language_id", "en"]
        superuser = ["--superusername", "admin", "--superuserpassword", "admin"]
        provision = ["manage", "provisiondevice", *facility, *superuser, "--noinput"]
        subprocess.run([PEERS / "kolibri", *provision], env=environment, capture_output=True, check=True)
        port = postgres.free_port()
        serve = [PEERS / "kolibri", "start", "--foreground", "--port", str(port)]
        with (
            Path(folder, "console.log").open("wb") as log,
            subprocess.Popen(serve, env=environment, stdout=log, stderr=log) as server,
        ):
            try:
                client = _learner(f"127.0.0.1:{port}", server)
                video = {name: uuid.uuid4().hex for name in ("node_id", "content_id", "channel_id")} | {"kind": "video"}
                session = client.call("POST", "/api/logger/trackprogress/", video)["session_id"]
                # As the player does it every few seconds; so little each time that the video never ends.
                more: tuple[str, Any, dict[str, str]] = (
                    f"/api/logger/trackprogress/{session}/",
                    {"progress_delta": 0.0001, "time_spent_delta": 5},
                    {},
                )
                yield client, "PUT", itertools.repeat(more)
            finally:
                server.terminate()


def _learner(address: str, server: subprocess.Popen[bytes]) -> Client:
    """A new learner of the one facility, signed in."""
    deadline = monotonic() + START_SECONDS
    while True:
        client = Client(address)
        try:
            facility = client.call("GET", "/api/public/v1/facility/")[0]["id"]
            break
        except ConnectionRefusedError:
            if server.poll() is not None or monotonic() > deadline:
                raise
            sleep(0.2)
    sign_in = "/api/auth/session/"
    client.call("POST", sign_in, {"username": "admin", "password": "admin", "facility": facility})
    learner = {"username": "learner", "password": "learner-1", "facility": facility}
    client.call("POST", "/api/auth/facilityuser/", {**learner, "full_name": "Learner"})
    client = Client(address)
    client.call("POST", sign_in, learner)
    return client
