"""Twice the load that the database takes, and queues flooded: callers are told to come again, nothing is lost, and it passes.

RDS Proxy's part is played by PgBouncer, with few connections and the proxy's own patience (`ConnectionBorrowTimeout`). On two
cores the functions would be busy before the database is, so each write of progress keeps its connection for a while, as in a
database that is busy. Functions run in processes of their own: as many of the API as there are requests under way, as Lambda has
it, and of each worker as many as `MaximumConcurrency` lets be. `FAULTS=all` keeps it up for longer.
"""

import json
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import batched
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from local import pollers
from shared import settings
from shared.errors import Unavailable
from tests.conftest import as_role, database
from tests.faults.conftest import leading_to, note, say
from tests.support import load, pooler, whole
from tests.support.service import _STACK, Service, context, event

#: Connections of the proxy to the database, and seconds for which it lets others wait for one of them, as in the template.
CONNECTIONS, PATIENCE = 4, 5
#: Seconds for which a write of progress keeps its connection.
BUSY = 0.5
#: Seconds of twice the load, of a quarter of it thereafter, and how many thousand events are in queues at the beginning.
SECONDS, THEREAFTER, FLOOD = (40, 40, 20) if os.environ.get("FAULTS") == "all" else (10, 14, 3)
#: More than requests can be under way: what comes in while the proxy is patient, or an invocation twice.
ENVIRONMENTS = 200
#: Environments of each worker, as `MaximumConcurrency` in the template, and events in its queue, ten in a message.
WORKERS = {"enrollment": (5, FLOOD * 200), "progress": (10, FLOOD * 600), "quiz": (5, FLOOD * 200)}
#: Seconds after which a message that was not done comes again. In the template it is 180, which no test waits for.
VISIBILITY = 10
#: Seconds after which queues that are not empty never will be, and latencies as before neither.
RECOVERED_WITHIN = 60


def crawl(service: Service) -> None:
    """Let each write of progress take its time."""
    service.rows(
        """
        CREATE FUNCTION crawl() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN PERFORM pg_sleep(TG_ARGV[0]::float8); RETURN NULL; END $$
        """
    )
    service.rows(f"CREATE TRIGGER crawl BEFORE INSERT ON lesson_progress FOR EACH STATEMENT EXECUTE FUNCTION crawl('{BUSY}')")


class Flood:
    """Events for learners of their own, ten of one learner in a message: progress and attempts; others are to be enrolled."""

    def __init__(self, service: Service, version: dict[str, Any]) -> None:
        lessons = [lesson["lesson_id"] for lesson in version["lessons"]]
        quiz_id = version["quizzes"][0]["quiz_id"]

        def learners(queue: str, events_of_each: int = 10) -> list[dict[str, str]]:
            number = WORKERS[queue][1] // events_of_each
            return [{"user_id": str(uuid4()), "course_version_id": version["course_version_id"]} for _ in range(number)]

        newcomers, studying, trying = learners("enrollment", 1), learners("progress"), learners("quiz")
        for several in batched([*studying, *trying], 1_000, strict=False):
            service.send("enrollment", [event("enrollment.requested", one) for one in several])
        self.events = {
            "enrollment": [event("enrollment.requested", one) for one in newcomers],
            "progress": [
                event("lesson.progressed", one | {"lesson_id": lesson, "status": "completed"})
                for one in studying
                for lesson in lessons[:10]
            ],
            "quiz": [
                event("quiz.submitted", one | {"quiz_id": quiz_id, "attempt_id": str(uuid4()), "answers": {"q1": "b"}})
                for one in trying
                for _ in range(10)
            ],
        }

    def missing(self, service: Service) -> dict[str, int]:
        """How many events of each queue have left nothing in the database."""
        enrolled = {row["id"] for row in service.rows("SELECT user_id::text AS id FROM enrollments")}
        done = {
            (row["user_id"], row["lesson_id"])
            for row in service.rows("SELECT user_id::text, lesson_id::text FROM lesson_progress WHERE status = 'completed'")
        }
        graded = {row["id"] for row in service.rows("SELECT id::text FROM all_quiz_attempts WHERE completed_at IS NOT NULL")}
        data = {queue: [one["data"] for one in events] for queue, events in self.events.items()}
        return {
            "enrollment": sum(one["user_id"] not in enrolled for one in data["enrollment"]),
            "progress": sum((one["user_id"], one["lesson_id"]) not in done for one in data["progress"]),
            "quiz": sum(one["attempt_id"] not in graded for one in data["quiz"]),
        }


class Queues:
    """The queues of the workers and their dead-letter queues."""

    def __init__(self, endpoint: str) -> None:
        self.sqs = pollers.client("sqs", endpoint)
        self.urls: dict[str, str] = {}
        self.dead: dict[str, str] = {}
        for queue in WORKERS:
            name = f"{queue}-{uuid4().hex[:8]}"
            self.dead[queue] = self.sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
            answer = self.sqs.get_queue_attributes(QueueUrl=self.dead[queue], AttributeNames=["QueueArn"])
            redrive = {"deadLetterTargetArn": answer["Attributes"]["QueueArn"], "maxReceiveCount": 10}
            attributes = {"VisibilityTimeout": str(VISIBILITY), "RedrivePolicy": json.dumps(redrive)}
            self.urls[queue] = self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]

    def send(self, queue: str, events: Sequence[dict[str, Any]]) -> None:
        """Ten events in a message, ten messages in a call."""
        bodies = [json.dumps(events[first : first + 10]) for first in range(0, len(events), 10)]
        for first in range(0, len(bodies), 10):
            entries = [{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies[first : first + 10])]
            assert not self.sqs.send_message_batch(QueueUrl=self.urls[queue], Entries=entries).get("Failed")

    def left(self, urls: dict[str, str]) -> int:
        """How many messages are in these queues, those under way among them."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answers = [self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names) for url in urls.values()]
        return sum(int(number) for answer in answers for number in answer["Attributes"].values())


def _work(database_url: str, endpoint: str, queue: str, url: str, ended: Any, outcomes: Any) -> None:
    """Be an environment of a worker, and tell in the end how its invocations ended."""
    os.environ["DATABASE_URL"] = database_url
    settings.database_url.cache_clear()
    for descriptor in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    function = f"{queue.capitalize()}Worker"
    (source,) = (one for one in _STACK.sources if one.function == function)
    service, sqs, seen = Service(database_url), pollers.client("sqs", endpoint), Counter[str]()

    def handler(payload: dict[str, Any], _context: Any) -> dict[str, Any]:
        outcome = "crashed"
        try:
            answer = service.invoke(f"{queue}_worker", payload)
            outcome = "done" if answer == {"batchItemFailures": []} else "partly done"
            return answer
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            seen[outcome] += 1

    while not ended.is_set():
        messages = pollers.receive(sqs, url, source.batch_size)
        if messages:
            pollers.delete(sqs, url, pollers.invoke(handler, messages, source, context(function)))
    outcomes.put((queue, seen))


@contextmanager
def at_work(database_url: str, endpoint: str, queues: Queues) -> Generator[dict[str, Counter[str]]]:
    """Let the workers serve their queues until this ends; then tells how many invocations of each ended how."""
    processes = load.processes()
    ended, outcomes = processes.Event(), processes.Queue()
    found: dict[str, Counter[str]] = {queue: Counter() for queue in WORKERS}
    workers = [
        processes.Process(target=_work, args=(database_url, endpoint, queue, queues.urls[queue], ended, outcomes), daemon=True)
        for queue, (number, _) in WORKERS.items()
        for _ in range(number)
    ]
    for worker in workers:
        worker.start()
    try:
        yield found
    finally:
        ended.set()
        for _ in workers:
            queue, seen = outcomes.get(timeout=60)
            found[queue] += seen
        for worker in workers:
            worker.join()


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


def recovery(seen: Sequence[load.Seen], stopped: float, usual: float) -> float:
    """How long after the load stopped five requests in a row had the latency of before again, within a factor of two."""
    later = sorted((one for one in seen if one.intended >= stopped), key=lambda one: one.intended)
    for first, five in enumerate(zip(*(later[n:] for n in range(5)), strict=False)):
        if statistics.median(one.latency for one in five) <= 2 * usual:
            return later[first].intended - stopped
    raise AssertionError("latencies have not come down again")


def lost(service: Service, seen: Sequence[load.Seen]) -> list[load.Seen]:
    """What was acknowledged and is not in the database."""
    progress = {
        (row["user_id"], row["lesson_id"]): row["progress_percentage"]
        for row in service.rows("SELECT user_id::text, lesson_id::text, progress_percentage FROM lesson_progress")
    }
    attempts = {
        row["id"]: row["is_done"]
        for row in service.rows("SELECT id::text, completed_at IS NOT NULL AS is_done FROM all_quiz_attempts")
    }

    def is_there(one: load.Seen) -> bool:
        match one.kind, one.effect:
            case "report", (learner, lesson, percentage):
                return progress.get((learner, lesson), 0) >= percentage
            case "start", (attempt,):
                return attempt in attempts
            case "submit", (attempt,):
                return attempts.get(attempt, False)
            case _:
                return True

    return [one for one in seen if not is_there(one)]


@pytest.mark.timeout(300)
def test_beyond_what_the_database_takes_callers_are_told_to_come_again_and_nothing_is_lost(
    server_url: str, service: Service, s3: str
):
    crawl(service)
    place = load.Place.of(600)
    for queue, events in place.events().items():
        service.send(queue, events)
    flood, queues, left = Flood(service, place.version), Queues(s3), list[tuple[float, int]]()

    def flood_and_watch(begin: float) -> None:
        for queue, events in flood.events.items():
            queues.send(queue, events)
        while not left or left[-1][1]:
            left.append((time.monotonic() - begin - SECONDS, queues.left(queues.urls)))
            assert left[-1][0] < RECOVERED_WITHIN
            time.sleep(0.2)

    with (
        TemporaryDirectory(prefix="learner-progress-") as folder,
        pooler.pooled(server_url, Path(folder), connections=CONNECTIONS, patience=PATIENCE) as pooled,
    ):
        url = as_role(database(pooled, service.database_url.rpartition("/")[2]), "learner_progress_app")
        alone = load.into_handlers(url, place, 1, load.Plan(3, seed=1))
        usual = statistics.median(one.latency for one in alone)
        capacity = len(load.into_handlers(url, place, 3 * CONNECTIONS, load.Plan(3, seed=2))) / 3
        plan = load.Plan(SECONDS, 2 * capacity, 3, load.Plan(THEREAFTER, capacity / 4, 4))
        with at_work(url, s3, queues) as outcomes:
            seen = load.into_handlers(url, place, ENVIRONMENTS, plan, is_warm=False, meanwhile=flood_and_watch)

    stopped = min(one.intended for one in seen) + SECONDS
    flooded = [one for one in seen if one.intended < stopped]
    done = [one.latency for one in flooded if one.refusal is None]
    refused = [one.latency for one in flooded if one.refusal]
    recovered = recovery(seen, stopped, usual)
    say(
        f"database {capacity:.1f} requests/s, p50 {usual:.2f} s alone; offered {len(flooded) / SECONDS:.1f}/s for {SECONDS} s, "
        f"with {sum(number for _, number in WORKERS.values()):,} events in queues",
        f"done {len(done)}: p50 {percentile(done, 0.5):.1f} s, p99 {percentile(done, 0.99):.1f} s; "
        f"refused {len(refused)}: p50 {percentile(refused, 0.5):.1f} s, p99 {percentile(refused, 0.99):.1f} s",
        f"workers' invocations: {', '.join(f'{queue} {dict(seen)}' for queue, seen in outcomes.items())}",
        f"after the load stopped, queues empty in {left[-1][0]:.1f} s, p50 as alone in {recovered:.1f} s",
    )
    # It was too much, and yet the database did not work for nobody.
    assert refused
    assert len(done) > capacity * SECONDS / 4
    assert {one.status for one in seen} <= {200, 201, 503}
    for one in seen:
        if one.refusal:
            headers, body = one.refusal
            assert (headers["content-type"], headers["retry-after"]) == ("application/problem+json", "5")
            assert json.loads(body)["status"] == 503
    # Lambda ends what takes longer, and the caller is told nothing then. Some seconds are the computer's, which is busy as well.
    assert max(one.ended - one.sent for one in seen) < load.INVOCATION_SECONDS + 5
    assert outcomes.keys() == WORKERS.keys()
    assert all(seen["done"] and not seen.keys() - {"done", "Unavailable"} for seen in outcomes.values()), outcomes
    assert queues.left(queues.dead) == 0
    missing, gone, broken = flood.missing(service), lost(service, seen), whole.broken(service)
    for operation, cases in sorted(Counter(one.kind for one in seen if one.effect).items()):
        gone_of_it = sum(one.kind == operation for one in gone)
        note("twice what the database takes", f"HTTP: {operation}", cases=cases, lost=gone_of_it, recovery=recovered)
    for queue, (_, number) in WORKERS.items():
        note("twice what the database takes", f"queue: {queue}", cases=number, lost=missing[queue], recovery=left[-1][0])
    assert gone == []
    assert missing == dict.fromkeys(WORKERS, 0)
    assert broken == {}
    # Nothing was set apart: neither for another try nor as a dead letter.
    assert service.rows("SELECT id FROM outbox WHERE destination <> 'bus'") == []


@pytest.mark.parametrize("function", ["enrollment_api", "enrollment_worker"])
def test_only_who_has_time_to_wait_as_long_again_queues_for_a_connection_a_second_time(
    server_url: str, service: Service, function: str
):
    with TemporaryDirectory(prefix="learner-progress-") as folder, ExitStack() as stack:
        pooled = stack.enter_context(pooler.pooled(server_url, Path(folder), connections=1, patience=1))
        url = as_role(database(pooled, service.database_url.rpartition("/")[2]), "learner_progress_app")
        holder = stack.enter_context(psycopg.connect(url, prepare_threshold=None))
        holder.execute("SELECT 1")
        stack.enter_context(leading_to(url))
        learner = {"user_id": str(uuid4()), "course_version_id": str(uuid4())}
        if function == "enrollment_api":
            # Of three seconds one is left for the answer, and the proxy's patience takes more than the half of the others.
            answer = Service(url, 3).admin("GET", f"/users/{learner['user_id']}/enrollments/{learner['course_version_id']}")
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        else:
            with pytest.raises(Unavailable):
                service.send("enrollment", event("enrollment.requested", learner))
        # The holder's own among them.
        logins = (Path(folder) / "pgbouncer.log").read_text().count("login attempt")
        assert logins == {"enrollment_api": 2, "enrollment_worker": 3}[function]
