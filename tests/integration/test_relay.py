"""The outbox relay against a stand-in for AWS, and against one that fails in all ways that AWS can."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import boto3
import pytest
from moto.server import ThreadedMotoServer

from functions.outbox_relay import app as relay
from shared import db, outbox, settings
from tests.conftest import as_role
from tests.support.aws import Entry, FailingAws, Laps
from tests.support.service import LEARNER, Service, course, event, record

QUEUES = ["enrollment", "progress", "quiz", "certificate", "catalog"]
MIB = 1024 * 1024


def run(laps: int = 1) -> dict[str, Any]:
    context: Any = Laps(laps)
    return relay.handler({}, context)


def forget_aws() -> None:
    """Let the relay read its environment again."""
    relay._client.cache_clear()
    settings.event_bus_name.cache_clear()
    settings.queue_url.cache_clear()


@pytest.fixture
def at_aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Point the relay to an endpoint."""

    def point(endpoint: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("EVENT_BUS_NAME", "learner-progress")
        for queue in QUEUES:
            monkeypatch.setenv(f"{queue.upper()}_QUEUE_URL", f"{endpoint}/123456789012/{queue}")
            monkeypatch.setenv(f"{queue.upper()}_DLQ_URL", f"{endpoint}/123456789012/{queue}-dlq")
        forget_aws()

    for name, value in {"REGION": "eu-west-1", "DEFAULT_REGION": "eu-west-1", "MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    yield point
    forget_aws()


# --------------------------------------------------------------------------------------------------------- rows to send


def publish(service: Service, count: int, size: int = 10) -> list[UUID]:
    """Rows for the bus, as the service writes them."""
    rows = service.rows(
        """
        INSERT INTO outbox (destination, type, occurred_at, data)
        SELECT 'bus', 'lesson.completed', '2026-01-31T09:30:00Z',
            jsonb_build_object('user_id', %s::text, 'sequence', n, 'padding', repeat('x', %s))
        FROM generate_series(1, %s) AS n RETURNING id
        """,
        str(LEARNER),
        size,
        count,
    )
    return [row["id"] for row in rows]


def set_apart(service: Service, destination: str, queue: str, body: str, **columns: Any) -> UUID:
    """A row for a queue, as a worker sets it apart."""
    values = {"tries": 1, "waiting_since": None, "available_at": datetime.now(UTC), "message_key": uuid4().bytes} | columns
    (row,) = service.rows(
        """
        INSERT INTO outbox (destination, queue, body, code, reason, tries, waiting_since, available_at, message_key)
        VALUES (%s, %s, %s, 'invalid', '#/time: required', %s, %s, %s, %s) RETURNING id
        """,
        destination,
        queue,
        body,
        values["tries"],
        values["waiting_since"],
        values["available_at"],
        values["message_key"],
    )
    return row["id"]


def unsent(service: Service) -> dict[UUID, dict[str, Any]]:
    return {row["id"]: row for row in service.rows("SELECT *, now() AS now FROM outbox WHERE sent_at IS NULL")}


# -------------------------------------------------------------------------------------------------------- the right way


class Aws(NamedTuple):
    """moto with our queues, bus and rule."""

    endpoint: str
    sqs: Any

    def received(self, queue: str) -> list[dict[str, Any]]:
        """Whatever is in a queue now."""
        messages: list[dict[str, Any]] = []
        url = f"{self.endpoint}/123456789012/{queue}"
        while batch := self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]).get(
            "Messages"
        ):
            messages += batch
        return messages


@pytest.fixture(scope="module")
def moto_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(moto_endpoint: str, at_aws: Callable[[str], None]) -> Iterator[Aws]:
    at_aws(moto_endpoint)
    sqs, events = boto3.client("sqs"), boto3.client("events")
    urls = [sqs.create_queue(QueueName=name)["QueueUrl"] for queue in QUEUES for name in (queue, f"{queue}-dlq")]
    events.create_event_bus(Name="learner-progress")
    pattern = {"source": ["learner-progress"], "detail-type": ["enrollment.completed"]}
    events.put_rule(Name="certificates", EventBusName="learner-progress", EventPattern=json.dumps(pattern))
    target = {"Id": "queue", "Arn": "arn:aws:sqs:eu-west-1:123456789012:certificate"}
    events.put_targets(Rule="certificates", EventBusName="learner-progress", Targets=[target])
    yield Aws(moto_endpoint, sqs)
    events.remove_targets(Rule="certificates", EventBusName="learner-progress", Ids=["queue"])
    events.delete_rule(Name="certificates", EventBusName="learner-progress")
    events.delete_event_bus(Name="learner-progress")
    for url in urls:
        sqs.delete_queue(QueueUrl=url)


def test_a_completion_reaches_the_certificate_queue_over_the_bus(service: Service, aws: Aws):
    version = course(lessons=1)
    ids = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    service.send(
        "catalog",
        event("course_version.published", version),
        event("learner.updated", {"user_id": str(LEARNER), "name": "Ada Lovelace"}),
    )
    service.send("enrollment", event("enrollment.requested", ids, "2026-01-31T09:00:00Z"))
    lesson = {"lesson_id": version["lessons"][0]["lesson_id"], "status": "completed"}
    service.send("progress", event("lesson.progressed", ids | lesson, "2026-01-31T10:30:00+01:00"))
    (completed,) = service.rows("SELECT id FROM outbox WHERE type = 'enrollment.completed'")

    assert run() == {"sent": 3, "failed": 0}
    assert unsent(service) == {}
    (message,) = aws.received("certificate")
    envelope = json.loads(message["Body"])
    assert (envelope["source"], envelope["detail-type"]) == ("learner-progress", "enrollment.completed")
    detail = envelope["detail"]
    assert detail.pop("data") | {"completed_at": ...} == ids | {"status": "completed", "completed_at": ..., "sequence": 3}
    assert detail == {
        "specversion": "1.0",
        "id": str(completed["id"]),
        "source": "learner-progress",
        "type": "enrollment.completed",
        "time": "2026-01-31T09:30:00Z",
        "datacontenttype": "application/json",
    }

    service.send("certificate", message["Body"])
    assert service.rows("SELECT user_id FROM certificates") == [{"user_id": LEARNER}]
    # Nothing is sent twice: only what the certificate's issuance added.
    assert run() == {"sent": 1, "failed": 0}


def test_a_request_is_followed_over_the_bus_to_the_certificate(service: Service, aws: Aws):
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    version = course(lessons=1)
    service.send(
        "catalog", event("course_version.published", version), event("learner.updated", {"user_id": str(LEARNER), "name": "Ada"})
    )
    base = f"/users/me/enrollments/{version['course_version_id']}"
    assert service.http("PUT", base).status == 201
    assert run() == {"sent": 1, "failed": 0}
    lesson = f"{base}/lessons/{version['lessons'][0]['lesson_id']}/progress"
    assert service.http("PUT", lesson, {"status": "completed"}, headers={"traceparent": traceparent}).status == 200
    assert run() == {"sent": 2, "failed": 0}
    (message,) = aws.received("certificate")
    assert json.loads(message["Body"])["detail"]["traceparent"] == traceparent
    service.send("certificate", message["Body"])
    told = service.rows("SELECT type, traceparent FROM outbox ORDER BY (data ->> 'sequence')::int")
    assert [(row["type"], row["traceparent"]) for row in told] == [
        ("enrollment.created", None),
        ("lesson.completed", traceparent),
        ("enrollment.completed", traceparent),
        ("certificate.issued", traceparent),
    ]


def test_dead_letters_reach_their_own_queue_with_reason_and_code(service: Service, aws: Aws):
    for queue in QUEUES:
        service.send(queue, "no json", event("lesson.viewed", {"text": "\u00e9 😀 \x07"}, id=queue))
    assert run() == {"sent": 10, "failed": 0}
    for queue in QUEUES:
        assert aws.received(queue) == []
        letters = {m["MessageAttributes"]["code"]["StringValue"]: m for m in aws.received(f"{queue}-dlq")}
        assert sorted(letters) == ["malformed", "unknown_type"]
        assert letters["malformed"]["Body"] == "no json"
        assert json.loads(letters["unknown_type"]["Body"])["id"] == queue
        assert letters["malformed"]["MessageAttributes"] == {
            "code": {"StringValue": "malformed", "DataType": "String"},
            "reason": {"StringValue": "The body is no JSON: Expecting value at line 1, column 1.", "DataType": "String"},
            "tries": {"StringValue": "1", "DataType": "String"},
        }


def test_a_waiting_event_reaches_its_queue_again_only_when_it_is_due(service: Service, aws: Aws):
    since = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    now = datetime.now(UTC)
    set_apart(service, "queue", "progress", "due", tries=3, waiting_since=since, available_at=now - timedelta(seconds=1))
    later = set_apart(service, "queue", "progress", "later", tries=3, waiting_since=since, available_at=now + timedelta(hours=1))
    assert run() == {"sent": 1, "failed": 0}
    (message,) = aws.received("progress")
    assert message["Body"] == "due"
    assert message["MessageAttributes"] == {
        "tries": {"StringValue": "3", "DataType": "String"},
        "waiting_since": {"StringValue": since.isoformat(), "DataType": "String"},
    }
    assert list(unsent(service)) == [later]
    service.rows("UPDATE outbox SET available_at = now() WHERE id = %s", later)
    assert run() == {"sent": 1, "failed": 0}
    assert [message["Body"] for message in aws.received("progress")][-1:] == ["later"]


def test_an_early_event_goes_round_by_the_queue_and_is_taken(service: Service, aws: Aws):
    version = course(lessons=1)
    ids = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    lesson = {"lesson_id": version["lessons"][0]["lesson_id"], "progress_percentage": 40}
    service.send("progress", event("lesson.progressed", ids | lesson))
    service.rows("UPDATE outbox SET available_at = now()")
    assert run() == {"sent": 1, "failed": 0}
    (message,) = aws.received("progress")
    service.send("catalog", event("course_version.published", version))
    service.send("enrollment", event("enrollment.requested", ids))
    attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    service.invoke("progress_worker", {"Records": [record(message["Body"], attributes)]})
    assert service.rows("SELECT progress_percentage AS p FROM lesson_progress") == [{"p": 40}]


# ------------------------------------------------------------------------------------------------- AWS as it may behave


@pytest.fixture
def failing(at_aws: Callable[[str], None]) -> Iterator[FailingAws]:
    with FailingAws() as server:
        at_aws(server.endpoint)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_event_carries_its_traceparent_and_x_ray_is_told_the_same(service: Service, failing: FailingAws):
    traced, untraced = publish(service, 2)
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    service.rows("UPDATE outbox SET traceparent = %s WHERE id = %s", traceparent, traced)
    run()
    sent = {
        entry.id: (json.loads(entry.body).get("traceparent", "absent"), entry.trace) for call in failing.calls for entry in call
    }
    assert sent == {
        str(traced): (traceparent, "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1"),
        str(untraced): ("absent", None),
    }


def test_a_call_takes_ten_entries_of_one_destination(service: Service, failing: FailingAws):
    publish(service, 25)
    for n in range(12):
        set_apart(service, "dead_letter_queue", "quiz", f"letter {n}")
        set_apart(service, "queue", "quiz", f"again {n}")
        set_apart(service, "queue", "progress", f"progress {n}")
    assert run() == {"sent": 61, "failed": 0}
    calls = Counter((entries[0].destination, len(entries)) for entries in failing.calls)
    assert calls == {("learner-progress", 10): 2, ("learner-progress", 5): 1} | {
        (queue, size): 1 for queue in ("quiz", "quiz-dlq", "progress") for size in (10, 2)
    }
    assert all(len({entry.destination for entry in entries}) == 1 for entries in failing.calls)
    assert set(failing.sent().values()) == {1}


def test_calls_stay_below_a_mebibyte(service: Service, failing: FailingAws):
    published = publish(service, 8, 300_000)
    letters = [f"{n}" + "é" * 150_000 for n in range(5)]
    for letter in letters:
        set_apart(service, "dead_letter_queue", "quiz", letter)
    largest = "x" * 1_040_000
    set_apart(service, "dead_letter_queue", "catalog", largest)
    assert run() == {"sent": 14, "failed": 0}
    assert set(failing.sent()) == {*map(str, published), *letters, largest}
    for entries in failing.calls:
        assert sum(len(entry.body.encode()) for entry in entries) + 1_000 * len(entries) < MIB
    assert max(len(entries) for entries in failing.calls) == 2


def test_only_refused_entries_come_up_again_each_time_later(service: Service, failing: FailingAws):
    published = publish(service, 15)
    unlucky = str(published[3])
    for n in range(12):
        set_apart(service, "dead_letter_queue", "quiz", f"letter {n}")
    failing.refuse = lambda entry: entry.id in (unlucky, "letter 11")
    assert run() == {"sent": 25, "failed": 2}
    rows = {row["body"] or str(row["id"]): row for row in unsent(service).values()}
    assert {name: row["error"] for name, row in rows.items()} == {
        unlucky: "ThrottlingException: slow down",
        "letter 11": "InternalError: try later",
    }

    for tries, seconds in enumerate((2, 4, 8, 16), 1):
        for row in unsent(service).values():
            assert row["deliveries"] == tries
            assert timedelta(seconds=seconds - 2) < row["available_at"] - row["now"] <= timedelta(seconds=seconds)
        service.rows("UPDATE outbox SET available_at = now() WHERE sent_at IS NULL")
        if tries == 4:
            failing.refuse = lambda entry: False
        failing.calls.clear()
        run()
        assert failing.sent() == {unlucky: 1, "letter 11": 1}
    assert unsent(service) == {}
    assert service.rows("SELECT count(*)::int AS n FROM outbox WHERE error IS NOT NULL") == [{"n": 0}]


def test_a_row_that_is_never_taken_comes_up_every_five_minutes(service: Service, failing: FailingAws):
    (row,) = publish(service, 1)
    service.rows("UPDATE outbox SET deliveries = 40")
    failing.refuse = lambda entry: True
    run()
    wait = unsent(service)[row]["available_at"] - unsent(service)[row]["now"]
    assert timedelta(seconds=290) < wait <= timedelta(seconds=300)


@pytest.mark.parametrize("how", ["answers 500", "does not answer"])
def test_while_aws_is_down_rows_stay(service: Service, failing: FailingAws, at_aws: Callable[[str], None], how: str):
    published = publish(service, 12)
    set_apart(service, "dead_letter_queue", "quiz", "letter")
    failing.status = 500
    if how == "does not answer":
        # Port 9 is discard, on which nothing listens.
        at_aws("http://127.0.0.1:9")
    assert run() == {"sent": 0, "failed": 13}
    assert len(unsent(service)) == 13
    assert all(row["error"] for row in unsent(service).values())

    failing.status = 200
    failing.calls.clear()
    at_aws(failing.endpoint)
    service.rows("UPDATE outbox SET available_at = now()")
    assert run() == {"sent": 13, "failed": 0}
    assert failing.sent() == Counter([*map(str, published), "letter"])


def test_two_relays_at_once_send_everything_and_nothing_twice(service: Service, failing: FailingAws):
    published = publish(service, 1_100)
    first, second = (Laps(3) for _ in range(2))
    at_work, most = 0, 0
    both = threading.Event()

    def count(entries: list[Entry]) -> None:
        nonlocal at_work, most
        with failing.lock:
            at_work += 1
            most = max(most, at_work)
            # A relay makes four calls at a time, so more than that are calls of both.
            if at_work > relay.CALLS:
                both.set()
        both.wait(timeout=20)
        with failing.lock:
            at_work -= 1

    failing.on_call = count

    def work(context: Any) -> int:
        try:
            return relay.handler({}, context)["sent"]
        finally:
            db.close()

    with ThreadPoolExecutor(2) as pool:
        sent = list(pool.map(work, (first, second)))
    assert sum(sent) == 1_100
    assert most > relay.CALLS
    assert failing.sent() == dict.fromkeys(map(str, published), 1)


def test_what_a_killed_relay_had_sent_is_sent_again_when_its_lease_is_over(service: Service, failing: FailingAws, root: Path):
    published = {str(id_) for id_ in publish(service, 7)}
    program = (
        "from functions.outbox_relay.app import handler\n"
        "from tests.support.service import context\n"
        "handler({}, context('OutboxRelay'))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    # It has sent, and dies before it can note so.
    failing.on_call = lambda entries: process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert failing.sent() == dict.fromkeys(published, 1)
    failing.on_call = lambda entries: None

    rows = unsent(service)
    assert {str(id_) for id_ in rows} == published
    lease = timedelta(seconds=outbox.LEASE_SECONDS)
    assert all(row["now"] < row["available_at"] <= row["now"] + lease for row in rows.values())
    assert db.run(lambda conn: outbox.lease(conn, 100)).fetchall() == []
    service.rows("UPDATE outbox SET available_at = available_at - %s", lease)
    assert run() == {"sent": 7, "failed": 0}
    assert failing.sent() == dict.fromkeys(published, 2)


@pytest.mark.parametrize("refused", [False, True])
def test_a_worker_that_is_quicker_than_the_relays_note_loses_nothing(service: Service, failing: FailingAws, refused: bool):
    version = course(lessons=1)
    service.send("catalog", event("course_version.published", version))
    ids = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    lesson = {"lesson_id": version["lessons"][0]["lesson_id"], "progress_percentage": 40}
    service.send("progress", event("lesson.progressed", ids | lesson))
    service.rows("UPDATE outbox SET available_at = now()")
    since = service.rows("SELECT waiting_since FROM outbox")[0]["waiting_since"].isoformat()

    def take(entries: list[Entry]) -> None:
        service.invoke("progress_worker", {"Records": [record(entries[0].body, {"tries": "1", "waiting_since": since})]})
        db.close()

    # The message reaches the worker, which sets it apart once more, before the relay knows that it was sent.
    failing.on_call = take
    failing.refuse = lambda entry: refused
    run()
    (row,) = unsent(service).values()
    assert (row["tries"], row["deliveries"], row["error"]) == (2, 0, None)
    assert row["available_at"] - row["now"] < timedelta(seconds=2)


def test_rows_sent_more_than_thirty_days_ago_are_removed(service: Service, failing: FailingAws):
    ages = dict(zip(publish(service, 4), (0, 29, 31, 400), strict=True))
    for id_, days in ages.items():
        service.rows("UPDATE outbox SET sent_at = now() - make_interval(days => %s) WHERE id = %s", days, id_)
    (waiting,) = publish(service, 1)
    service.rows("UPDATE outbox SET created_at = now() - interval '400 days' WHERE id = %s", waiting)
    run()
    left = {row["id"] for row in service.rows("SELECT id FROM outbox")}
    assert left == {id_ for id_, days in ages.items() if days <= 30} | {waiting}


def test_the_relay_needs_only_the_outbox_and_tells_in_numbers_what_the_service_does(
    service: Service, failing: FailingAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    publish(service, 3)
    service.rows("UPDATE outbox SET created_at = now() - interval '100 seconds'")
    monkeypatch.setenv("DATABASE_URL", as_role(service.database_url, "learner_progress_relay"))
    settings.database_url.cache_clear()
    db.close()
    capsys.readouterr()
    assert run() == {"sent": 3, "failed": 0}
    # An event that waits for its enrolment waits on purpose.
    set_apart(
        service, "queue", "quiz", "{}", waiting_since=datetime.now(UTC), available_at=datetime.now(UTC) + timedelta(hours=1)
    )
    publish(service, 2)
    service.rows("UPDATE outbox SET created_at = now() - interval '100 seconds'")
    failing.status = 500
    assert run() == {"sent": 0, "failed": 2}
    numbers = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"_aws"')]
    assert [n.get("LessonCompleted") for n in numbers] == [[3.0], None]
    assert [n["OutboxAgeSeconds"][0] // 10 for n in numbers] == [0, 10]
