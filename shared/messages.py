"""Messages in: CloudEvents 1.0 from SQS, alone or in arrays, bare or in EventBridge's envelope.

A worker parses every record of its invocation, takes all events in one transaction, and sets apart alone what could not
be taken: for another try if time may cure it, else for the dead-letter queue. So one bad event never holds back another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal

import psycopg
import simplejson
from pydantic import BaseModel, StringConstraints, ValidationError

from shared import db, outbox, settings
from shared.errors import Flaw, Invalid, Malformed, ServiceError, flaws
from shared.observability import count, logger
from shared.parsing import Text, Time, loads

#: The most events that one message may hold.
MAX_EVENTS = 1000


class Event[Data: BaseModel](BaseModel):
    """A CloudEvents 1.0 event in JSON. `time` is when it happened, whenever it arrives."""

    specversion: Literal["1.0"]
    id: Annotated[Text, StringConstraints(min_length=1)]
    source: Annotated[Text, StringConstraints(min_length=1)]
    type: str
    time: Time
    data: Data


class UnknownType(ServiceError):
    """This queue does not take events of this type."""


class DatabaseRefused(ServiceError):
    """The database holds a rule that this event breaks."""


@dataclass(frozen=True, slots=True)
class Incoming[Data: BaseModel]:
    """One event, its text as it came, how often it was set apart before, and since when it has been waiting."""

    event: Event[Data]
    body: str
    tries: int = 0
    waiting_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """One event, or a whole body, that could not even be parsed. `place` tells it from all others: message and position."""

    place: str
    body: str
    tries: int
    error: ServiceError


#: Takes the events of an invocation; for each one that could not be taken, by its position, the reason.
type Take = Callable[[list[Incoming[Any]]], dict[int, ServiceError]]


def work(
    queue: str,
    sqs_event: dict[str, Any],
    models: dict[str, type[BaseModel]],
    take: Take,
    *,
    exact_numbers: bool = False,
) -> dict[str, Any]:
    """Handle one SQS invocation and answer with its partial batch response.

    Parameters
    ----------
    queue
        The queue's name, as in `settings.queue_url`.
    models
        For each event type that the queue takes, the model of its `data`.
    take
        Takes all events in one transaction; raises only for what is no fault of a single event.
    exact_numbers
        Whether numbers with a fraction are parsed as Decimal rather than float.

    The answer lists no message, since what can't be taken is set apart event by event. Only a database that can't be
    reached fails messages: all of them, by an exception.
    """
    now = datetime.now(UTC)
    incoming: list[Incoming[Any]] = []
    apart: list[outbox.Message] = []
    for record in sqs_event["Records"]:
        for item in parse(record, models, exact_numbers=exact_numbers):
            match item:
                case Incoming():
                    incoming.append(item)
                case Rejected(place, body, tries, error):
                    apart.append(outbox.dead_letter(queue, place, body, tries, error))
    refused = _take(take, incoming) if incoming else {}
    for n, error in refused.items():
        item = incoming[n]
        place = f"{item.event.source}\n{item.event.id}\n{item.body}"
        if error.may_be_cured:
            apart.append(
                outbox.another_try(
                    queue, place, item.body, item.tries, error, item.waiting_since or now, now, settings.retry_patience_seconds()
                )
            )
        else:
            apart.append(outbox.dead_letter(queue, place, item.body, item.tries, error))
    if apart:
        # A transaction of its own is enough: should the process die before it, the message is not acknowledged and comes
        # again, what was taken then changes nothing, and what was not is set apart after all.
        db.run(lambda conn: outbox.set_apart(conn, apart))
        for message in apart:
            logger.warning(
                "event set apart", queue=queue, destination=message.destination, code=message.code, tries=message.tries
            )
    count("EventsTaken", len(incoming) - len(refused))
    count("EventsRefused", sum(message.destination == "dead_letter_queue" for message in apart))
    return {"batchItemFailures": []}


def _take(take: Take, incoming: list[Incoming[Any]]) -> dict[int, ServiceError]:
    """Halve what the database refuses for its data until the culprit stands alone."""
    try:
        return take(incoming)
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        if len(incoming) == 1:
            # PostgreSQL's message would repeat the data; the constraint's name or the SQLSTATE does not.
            return {0: DatabaseRefused(f"The database refused it: {error.diag.constraint_name or error.sqlstate}.")}
        half = len(incoming) // 2
        return _take(take, incoming[:half]) | {n + half: e for n, e in _take(take, incoming[half:]).items()}


def parse(
    record: dict[str, Any], models: dict[str, type[BaseModel]], *, exact_numbers: bool = False
) -> list[Incoming[Any] | Rejected]:
    """Parse an SQS record into its events; whatever can't be parsed stands for itself."""
    attributes = record.get("messageAttributes") or {}
    tries = int(attributes["tries"]["stringValue"]) if "tries" in attributes else 0
    waiting_since = datetime.fromisoformat(attributes["waiting_since"]["stringValue"]) if "waiting_since" in attributes else None
    message_id, body = record["messageId"], record["body"]
    try:
        content = loads(body, exact_numbers=exact_numbers)
    except Malformed as error:
        return [Rejected(message_id, body, tries, error)]
    if not isinstance(content, list):
        content, texts = [content], [body]
    elif len(content) > MAX_EVENTS:
        too_many = Invalid(Flaw("#", f"expected at most {MAX_EVENTS} events in one message, found {len(content)}"))
        return [Rejected(message_id, body, tries, too_many)]
    else:
        texts = None
    items: list[Incoming[Any] | Rejected] = []
    for n, element in enumerate(content):
        try:
            event = _event(element, models)
        except ServiceError as error:
            items.append(Rejected(f"{message_id}#{n}", texts[n] if texts else _text(element), tries, error))
        else:
            items.append(Incoming(event, texts[n] if texts else _text(element), tries, waiting_since))
    return items


def _event(element: Any, models: dict[str, type[BaseModel]]) -> Event[Any]:
    if isinstance(element, dict) and "detail-type" in element and "detail" in element:
        element = element["detail"]
    if not isinstance(element, dict):
        raise Invalid(Flaw("#", "expected a CloudEvents event: an object"))
    kind = element.get("type")
    if isinstance(kind, str) and kind not in models:
        raise UnknownType(f"This queue takes {', '.join(models)}.")
    try:
        return _event_model(models[kind] if isinstance(kind, str) else BaseModel).model_validate(element)
    except ValidationError as error:
        raise Invalid(*flaws(error)) from None


@cache
def _event_model(data: type[BaseModel]) -> type[Event[Any]]:
    return Event[data]


def _text(element: Any) -> str:
    """The JSON text of one event out of an array, its numbers as they came."""
    return simplejson.dumps(element, use_decimal=True, separators=(",", ":"))
