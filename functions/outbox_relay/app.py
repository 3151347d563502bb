"""Sends the outbox: events to the bus, messages set apart to their queue again or to its dead-letter queue."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any
from uuid import UUID

import boto3
from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, outbox, settings, trace
from shared.observability import count, logger, measure_seconds, observed
from shared.outbox import Row
from shared.parsing import utc_text

#: Rows leased at a time, entries of one call (the limit of EventBridge and SQS), calls under way at once.
LEASED, ENTRIES, CALLS = 500, 10, 4
#: The most bytes in one call: SQS and EventBridge take 1 MiB, less some for what surrounds the bodies.
CALL_BYTES = 900_000
#: Seconds between two looks at an empty outbox.
POLL_SECONDS = 1.0
#: The loop ends this long before Lambda would end it.
MARGIN_MILLISECONDS = 5_000

type Failures = dict[UUID, str]


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Send what is due until the invocation's time is nearly over; the next one, a minute after this one's start, goes on."""
    sent = failed = 0
    published: Counter[str] = Counter()
    # Made before there are threads, since boto3's default session is for one at a time.
    for service in ("events", "sqs"):
        _client(service)
    with ThreadPoolExecutor(CALLS) as pool:
        while context.get_remaining_time_in_millis() > MARGIN_MILLISECONDS:
            rows = db.run(_next).fetchall()
            if not rows:
                time.sleep(POLL_SECONDS)
                continue
            failures: Failures = {}
            for result in pool.map(_send, _calls(rows)):
                failures |= result
            delivered = [row for row in rows if row.id not in failures]
            refused = [(row, failures[row.id]) for row in rows if row.id in failures]
            db.run(lambda conn: _mark(conn, delivered, refused))
            sent, failed = sent + len(delivered), failed + len(refused)
            published.update(row.type for row in delivered if row.destination == "bus" and row.type)
    count("OutboxSent", sent)
    count("OutboxFailed", failed)
    # What the service does in numbers, since everything it does is published: EnrollmentCompleted, CertificateIssued, …
    for kind, number in published.items():
        count("".join(word.capitalize() for word in kind.split(".")), number)
    (age,) = db.run(outbox.age_seconds).fetchall()[0]
    measure_seconds("OutboxAgeSeconds", age)
    return {"sent": sent, "failed": failed}


def _next(conn: db.Connection) -> Any:
    # Twice as many rows may go as come, so the table does not grow for ever however much is sent.
    outbox.prune(conn)
    return outbox.lease(conn, LEASED)


def _mark(conn: db.Connection, delivered: list[Row], failures: list[tuple[Row, str]]) -> None:
    if delivered:
        outbox.mark_sent(conn, delivered)
    if failures:
        outbox.mark_failed(conn, failures)


def _calls(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows of one destination each, as many as fit into one call."""
    by_destination: dict[tuple[str, str | None], list[Row]] = {}
    for row in rows:
        by_destination.setdefault((row.destination, row.queue), []).append(row)
    for group in by_destination.values():
        call: list[Row] = []
        size = 0
        for row in group:
            bytes_ = len(_body(row).encode()) + 2_000
            if call and (len(call) == ENTRIES or size + bytes_ > CALL_BYTES):
                yield call
                call, size = [], 0
            call.append(row)
            size += bytes_
        yield call


def _send(call: list[Row]) -> Failures:
    """Send rows of one destination; gives those that were not taken, and why."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        if call[0].destination == "bus":
            return _put_events(call)
        return _send_messages(call)
    except (BotoCoreError, ClientError) as error:
        # AWS is down, slow or refuses the whole call: every row comes up again later.
        logger.warning("call failed", destination=call[0].destination, queue=call[0].queue, error=type(error).__name__)
        return {row.id: str(error)[:500] for row in call}


def _put_events(call: list[Row]) -> Failures:
    entries = [
        {
            "EventBusName": settings.event_bus_name(),
            "Source": "learner-progress",
            "DetailType": row.type,
            "Detail": _body(row),
        }
        # By it, X-Ray joins the traces of those who get the event.
        | ({"TraceHeader": trace.xray_header(row.traceparent)} if row.traceparent else {})
        for row in call
    ]
    answers = _client("events").put_events(Entries=entries)["Entries"]
    return {
        row.id: f"{answer['ErrorCode']}: {answer.get('ErrorMessage', '')}"[:500]
        for row, answer in zip(call, answers, strict=True)
        if "ErrorCode" in answer
    }


def _send_messages(call: list[Row]) -> Failures:
    url = settings.queue_url(call[0].queue or "", dead_letter=call[0].destination == "dead_letter_queue")
    entries = [{"Id": str(n), "MessageBody": _body(row), "MessageAttributes": _attributes(row)} for n, row in enumerate(call)]
    answer = _client("sqs").send_message_batch(QueueUrl=url, Entries=entries)
    return {call[int(f["Id"])].id: f"{f['Code']}: {f.get('Message', '')}"[:500] for f in answer.get("Failed", [])}


def _body(row: Row) -> str:
    """The message as it came, or an event of our own as CloudEvents 1.0."""
    if row.body is not None:
        return row.body
    event = {
        "specversion": "1.0",
        "id": str(row.id),
        "source": "learner-progress",
        "type": row.type,
        "time": row.occurred_at and utc_text(row.occurred_at),
        "datacontenttype": "application/json",
        "data": row.data,
    }
    return json.dumps(event | ({"traceparent": row.traceparent} if row.traceparent else {}))


def _attributes(row: Row) -> dict[str, Any]:
    """The attributes of a message that was set apart, as far as SQS takes them beside its body: the reason may be cut short."""
    if row.body is None:
        return {}
    values = {"tries": str(row.tries)}
    if row.waiting_since:
        values["waiting_since"] = row.waiting_since.isoformat()
    if row.destination == "dead_letter_queue":
        values |= {"code": row.code or "", "reason": row.reason or ""}
    room = outbox.MESSAGE_BYTES - len(row.body.encode())
    attributes: dict[str, Any] = {}
    for name, value in values.items():
        room -= len(f"{name}String")
        fitting = value.encode()[: max(room, 0)].decode(errors="ignore")
        if fitting == value or (name == "reason" and fitting):
            attributes[name] = {"DataType": "String", "StringValue": fitting}
            room -= len(fitting.encode())
    return attributes


@cache
def _client(service: str) -> Any:
    return boto3.client(service)
