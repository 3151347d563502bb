"""Messages in: CloudEvents 1.0 from SQS, alone or in arrays, bare or in EventBridge's envelope.

A worker parses every record of its invocation, takes all events in one transaction, and sets apart alone what could not
be taken: for another try if time may cure it, else for the dead-letter queue. So one bad event never holds back another.
"""

import gc
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

import psycopg
from pydantic import BaseModel, Field, PlainValidator, StringConstraints, ValidationError

from shared import db, outbox, settings, trace
from shared.errors import BeyondLimits, Busy, Flaw, Invalid, Malformed, ServiceError, flaws
from shared.observability import count, logger
from shared.parsing import Text, Time, loads

#: The most events that one message may hold.
MAX_EVENTS = 1000
#: The most traces that the line at a worker's end names.
MAX_TRACES = 50


class Event[Data: BaseModel](BaseModel):
    """A CloudEvents 1.0 event in JSON. `time` is when it happened, whenever it arrives.

    `traceparent` is CloudEvents' extension for distributed tracing; an invalid one is none, and no reason to refuse the event.
    """

    specversion: Literal["1.0"]
    id: Annotated[Text, StringConstraints(min_length=1)]
    source: Annotated[Text, StringConstraints(min_length=1)]
    type: str
    time: Time
    traceparent: Annotated[str | None, PlainValidator(trace.parse)] = None
    data: Data


class UnknownType(ServiceError):
    """This queue does not take events of this type."""


class DatabaseRefused(ServiceError):
    """The database holds a rule that this event breaks."""


class Waiting(BaseModel):
    """The message attributes of an event that was set apart before: how often, and since when it has been waiting."""

    tries: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    waiting_since: Time | None = None


class Origin(NamedTuple):
    """Where an event comes from: an SQS message, its place in it if that holds an array, and what the relay wrote to it."""

    message_id: str
    body: str
    position: int | None
    waiting: "Waiting"

    @property
    def text(self) -> str:
        """The event as it came."""
        return self.body if self.position is None else (_texts(self.body) or [])[self.position]


class Incoming[Data: BaseModel](NamedTuple):
    """One event and where it comes from."""

    event: Event[Data]
    origin: Origin


class Rejected(NamedTuple):
    """One event, or a whole body, that could not even be parsed; `name` is its source and id where it says them."""

    name: str | None
    traceparent: str | None
    origin: Origin
    error: ServiceError


#: Takes the events of an invocation; for each one that could not be taken, by its position, the reason.
type Take = Callable[[list[Incoming[Any]]], dict[int, ServiceError]]


def work(
    queue: str,
    sqs_event: dict[str, Any],
    models: Mapping[str, type[BaseModel]],
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
    # What is made of ten thousand events lives until the end. To look through all of it for garbage, again and again, would take
    # a third of the time.
    gc.disable()
    try:
        return _work(queue, sqs_event, models, take, exact_numbers=exact_numbers)
    finally:
        gc.enable()


def _work(
    queue: str, sqs_event: dict[str, Any], models: Mapping[str, type[BaseModel]], take: Take, *, exact_numbers: bool
) -> dict[str, Any]:
    now = datetime.now(UTC)
    incoming: list[Incoming[Any]] = []
    apart: list[outbox.Message] = []
    for record in sqs_event["Records"]:
        for item in parse(record, models, exact_numbers=exact_numbers):
            if isinstance(item, Incoming):
                incoming.append(item)
            else:
                apart.append(_set_apart(queue, item.name, item.traceparent, item.origin, item.error, now))
    unparsed = len(apart)
    refused = _take(take, incoming) if incoming else {}
    for n, error in sorted(refused.items()):
        event = incoming[n].event
        apart.append(_set_apart(queue, _name(event.source, event.id), event.traceparent, incoming[n].origin, error, now))
    if apart:
        # A transaction of its own is enough: should the process die before it, the message is not acknowledged and comes
        # again, what was taken then changes nothing, and what was not is set apart after all.
        db.run(lambda conn: outbox.set_apart(conn, apart))
        for message in apart:
            logger.warning(
                "event set apart",
                queue=queue,
                destination=message.destination,
                code=message.code,
                tries=message.tries,
                trace_id=trace.trace_id(message.traceparent),
            )
    traceparents = [item.event.traceparent or trace.current() for item in incoming]
    traceparents += [message.traceparent for message in apart]
    logger.info(
        "events handled",
        queue=queue,
        events=len(incoming) + unparsed,
        taken=len(incoming) - len(refused),
        set_apart=len(apart),
        trace_ids=list(islice(dict.fromkeys(trace.trace_id(t) for t in traceparents if t), MAX_TRACES)),
    )
    count("EventsTaken", len(incoming) - len(refused))
    count("EventsRefused", sum(message.destination == "dead_letter_queue" for message in apart))
    return {"batchItemFailures": []}


def _take(take: Take, incoming: list[Incoming[Any]], *, again: bool = True) -> dict[int, ServiceError]:
    """Halve what the database refuses for its data until the culprit stands alone; leave out whose enrolment is locked."""
    try:
        return take(incoming)
    except Busy as error:
        locked = _locked(incoming) if again else set()
        if not locked:
            # Something else is, or another one by now: the messages come again.
            raise
        free = [n for n in range(len(incoming)) if n not in locked]
        refused = _take(take, [incoming[n] for n in free], again=False) if free else {}
        return dict.fromkeys(locked, error) | {free[n]: e for n, e in refused.items()}
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        if len(incoming) == 1 and again:
            # Someone else may have taken the same id at the same moment; the second try sees it and says what is wrong.
            return _take(take, incoming, again=False)
        if len(incoming) == 1:
            # PostgreSQL's message would repeat the data; the constraint's name or the SQLSTATE does not.
            return {0: DatabaseRefused(f"The database refused it: {error.diag.constraint_name or error.sqlstate}.")}
        half = len(incoming) // 2
        return _take(take, incoming[:half]) | {n + half: e for n, e in _take(take, incoming[half:]).items()}


def _locked(incoming: list[Incoming[Any]]) -> set[int]:
    """Which events are about enrolments that someone else holds locked at this moment."""
    about = {
        n: (item.event.data.user_id, item.event.data.course_version_id)
        for n, item in enumerate(incoming)
        if hasattr(item.event.data, "user_id") and hasattr(item.event.data, "course_version_id")
    }
    locked = set(db.run(lambda conn: db.locked_enrollments(conn, set(about.values()))).fetchall())
    return {n for n, key in about.items() if key in locked}


def _set_apart(
    queue: str, name: str | None, traceparent: str | None, origin: Origin, error: ServiceError, now: datetime
) -> outbox.Message:
    """The event as it goes to the outbox; without a name, it is told from all others by its message and its place in it."""
    text = origin.text
    place = f"{name}\n{text}" if name else f"{origin.message_id}#{origin.position}"
    waiting_since = min(origin.waiting.waiting_since or now, now)
    return outbox.apart(
        queue,
        place,
        text,
        traceparent or trace.current(),
        origin.message_id,
        origin.waiting.tries,
        error,
        waiting_since,
        now,
        settings.retry_patience_seconds(),
    )


def parse(
    record: dict[str, Any], models: Mapping[str, type[BaseModel]], *, exact_numbers: bool = False
) -> list[Incoming[Any] | Rejected]:
    """Parse an SQS record into its events; whatever can't be parsed stands for itself."""
    whole = Origin(record["messageId"], record["body"], None, _waiting(record.get("messageAttributes") or {}))
    try:
        content = loads(whole.body, exact_numbers=exact_numbers)
    except BeyondLimits as error:
        return _one_by_one(whole, models, error, exact_numbers=exact_numbers)
    except Malformed as error:
        return [Rejected(None, None, whole, error)]
    if not isinstance(content, list):
        return [_parsed(content, models, whole)]
    if len(content) > MAX_EVENTS:
        return [Rejected(None, None, whole, _too_many(len(content)))]
    message_id, body, _, waiting = whole
    return [_parsed(element, models, Origin(message_id, body, n, waiting)) for n, element in enumerate(content)]


def _one_by_one(
    whole: Origin, models: Mapping[str, type[BaseModel]], error: BeyondLimits, *, exact_numbers: bool
) -> list[Incoming[Any] | Rejected]:
    """Parse each event of an array by itself, as one of them can't be read; if it is no array, `error` holds for all of it."""
    texts = _texts(whole.body)
    if texts is None:
        return [Rejected(None, None, whole, error)]
    if len(texts) > MAX_EVENTS:
        return [Rejected(None, None, whole, _too_many(len(texts)))]
    items: list[Incoming[Any] | Rejected] = []
    for n, text in enumerate(texts):
        origin = whole._replace(position=n)
        try:
            items.append(_parsed(loads(text, exact_numbers=exact_numbers), models, origin))
        except BeyondLimits as beyond:
            items.append(Rejected(None, None, origin, beyond))
        except Malformed as malformed:
            return [Rejected(None, None, whole, malformed)]
    return items


def _too_many(events: int) -> Invalid:
    return Invalid(Flaw("#", f"expected at most {MAX_EVENTS} events in one message, found {events}"))


def _parsed(element: Any, models: Mapping[str, type[BaseModel]], origin: Origin) -> Incoming[Any] | Rejected:
    try:
        return Incoming(_event(element, models), origin)
    except ServiceError as error:
        return Rejected(_name_of(element), _traceparent_of(element), origin, error)


def _waiting(attributes: Mapping[str, Mapping[str, Any]]) -> Waiting:
    try:
        return Waiting.model_validate({name: value.get("stringValue") for name, value in attributes.items()})
    except ValidationError:
        # Only what the relay wrote has a meaning; a producer may have attributes of the same names.
        return Waiting()


def _name(source: str, id_: str) -> str:
    return f"{source}\n{id_}"


def _name_of(element: Any) -> str | None:
    match element:
        case {"source": str(source), "id": str(id_)} | {"detail-type": _, "detail": {"source": str(source), "id": str(id_)}}:
            return _name(source, id_)
        case _:
            return None


def _traceparent_of(element: Any) -> str | None:
    match element:
        case {"detail-type": _, "detail": {"traceparent": text}} | {"traceparent": text}:
            return trace.parse(text)
        case _:
            return None


def _event(element: Any, models: Mapping[str, type[BaseModel]]) -> Event[Any]:
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


_WHITE_SPACE = " \t\n\r"
# A text that is never closed reaches to the end, so that its quotation marks are not tried one after the other.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{},]', re.DOTALL)


@lru_cache(maxsize=16)
def _texts(array: str) -> list[str] | None:
    """The text of each element of a JSON array, as it came; None if it is no array. The elements need not be JSON."""
    if not array.lstrip(_WHITE_SPACE).startswith("["):
        return None
    texts: list[str] = []
    depth = start = 0
    for token in _TOKEN.finditer(array):
        mark = token[0]
        if mark in "[{":
            depth += 1
            start = start or token.end()
        elif mark in "]}":
            depth -= 1
        if (mark == "," and depth == 1) or depth == 0:
            texts.append(array[start : token.start()].strip(_WHITE_SPACE))
            start = token.end()
        if depth == 0:
            is_closed = mark == "]" and not array[start:].strip(_WHITE_SPACE)
            return ([] if texts == [""] else texts) if is_closed else None
    return None
