"""Everything that leaves the service: rows written in the transaction that they tell of, sent by outbox_relay.

A row is either an event of our own, for the bus or straight for one of our queues, or a message that a worker set apart,
for its queue again or for its dead-letter queue.
"""

import hashlib
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import class_row

from shared.db import Connection, columns
from shared.errors import ServiceError

#: Seconds for which a leased row is left alone; a relay that was killed in between holds it back no longer.
LEASE_SECONDS = 60
#: What SQS takes as one message, its attributes included: 1 MiB.
MESSAGE_BYTES = 1024 * 1024
#: Days for which sent rows are kept: the feed of changes.
KEPT_DAYS = 30


@dataclass(frozen=True, slots=True)
class Message:
    """A message that could not be taken, as it is set apart. `message_id` is of the SQS message that it came in."""

    destination: Literal["queue", "dead_letter_queue"]
    queue: str
    message_key: bytes
    message_id: str
    body: str
    traceparent: str | None
    code: str
    reason: str
    tries: int
    waiting_since: datetime | None
    available_at: datetime


def apart(
    queue: str,
    place: str,
    body: str,
    traceparent: str | None,
    message_id: str,
    tries: int,
    error: ServiceError,
    waiting_since: datetime,
    now: datetime,
    patience_seconds: int,
) -> Message:
    """What becomes of an event that could not be taken, after `tries` tries, having waited since `waiting_since`.

    What time may cure goes to its own queue again after 1, 2, 4, 8, … seconds, for `patience_seconds`; everything else, and
    what has waited as long as that, is a dead letter. `place` tells the event from all others.
    """
    left = waiting_since + timedelta(seconds=patience_seconds) - now
    # Without room for the attributes that say how long it has been waiting, it would wait for ever.
    fits = len(body.encode("utf-8", "replace")) + 200 <= MESSAGE_BYTES
    waits = error.may_be_cured and left > timedelta(0) and fits
    return Message(
        "queue" if waits else "dead_letter_queue",
        queue,
        _key(queue, place),
        message_id,
        _storable(body),
        traceparent,
        error.code(),
        _reason(error),
        tries + 1,
        waiting_since if waits else None,
        now + min(timedelta(seconds=2 ** min(tries, 10)), left) if waits else now,
    )


def _key(queue: str, place: str) -> bytes:
    return hashlib.sha256(f"{queue}\n{place}".encode("utf-8", "surrogatepass")).digest()


def _storable(body: str) -> str:
    """PostgreSQL holds neither U+0000 nor unpaired surrogates; in what is no JSON anyway, an escape stands for them."""
    return body.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\u0000")


def _reason(error: ServiceError) -> str:
    """What SQS takes as an attribute: at most 1,000 characters, none of them a control character from someone's field name."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in error.detail[:1000])


def set_apart(conn: Connection, messages: list[Message]) -> None:
    """Store messages that could not be taken; one that is set apart already, and still under way, is there once.

    One that comes in another message after it had become a dead letter is a new complaint.
    """
    # A repetition of the first delivery may be in one batch with a later try: the later try counts, else the first one.
    latest: dict[bytes, Message] = {}
    for message in messages:
        known = latest.setdefault(message.message_key, message)
        if known.tries < message.tries:
            latest[message.message_key] = message
    conn.execute(
        """
        INSERT INTO outbox (
            destination, queue, message_key, message_id, body, traceparent, code, reason, tries, waiting_since, available_at
        )
        SELECT * FROM unnest(
            %b::text[], %b::text[], %b::bytea[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::int[],
            %b::timestamptz[], %b::timestamptz[]
        ) AS m (
            destination, queue, message_key, message_id, body, traceparent, code, reason, tries, waiting_since, available_at
        )
        ORDER BY m.message_key
        ON CONFLICT (message_key) DO UPDATE SET
            destination = excluded.destination, message_id = excluded.message_id, traceparent = excluded.traceparent,
            code = excluded.code, reason = excluded.reason, tries = excluded.tries, waiting_since = excluded.waiting_since,
            available_at = excluded.available_at,
            sent_at = NULL, deliveries = 0, error = NULL
        WHERE outbox.tries < excluded.tries OR (
            outbox.destination = 'dead_letter_queue' AND outbox.sent_at IS NOT NULL AND outbox.message_id <> excluded.message_id
        )
        """,
        columns([astuple(m) for m in latest.values()], 11),
    )


@dataclass(frozen=True, slots=True)
class Row:
    """A row that is due, leased to the caller."""

    id: UUID
    destination: Literal["bus", "queue", "dead_letter_queue"]
    queue: str | None
    type: str | None
    occurred_at: datetime | None
    data: dict[str, Any] | None
    traceparent: str | None
    body: str | None
    code: str | None
    reason: str | None
    tries: int
    waiting_since: datetime | None
    deliveries: int


def lease(conn: Connection, limit: int) -> Cursor[Row]:
    """Take up to `limit` rows that are due, for `LEASE_SECONDS`; two relays never get the same one."""
    return conn.cursor(row_factory=class_row(Row)).execute(
        """
        WITH due AS MATERIALIZED (
            SELECT id FROM outbox WHERE sent_at IS NULL AND available_at <= now()
            ORDER BY available_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        )
        UPDATE outbox o
        SET available_at = now() + make_interval(secs => %(lease)s), deliveries = o.deliveries + 1
        FROM due
        WHERE o.id = due.id
        RETURNING o.id, o.destination, o.queue, o.type, o.occurred_at, o.data, o.traceparent, o.body, o.code, o.reason, o.tries,
            o.waiting_since, o.deliveries
        """,
        {"lease": LEASE_SECONDS, "limit": limit},
    )


def mark_sent(conn: Connection, rows: list[Row]) -> None:
    """Note that these rows were taken by whom they were for.

    A worker may be quicker and have set the message apart for its next try already; that one is still to be sent.
    """
    conn.execute(
        """
        UPDATE outbox o SET sent_at = now(), error = NULL
        FROM unnest(%b::uuid[], %b::int[]) AS s (id, tries) WHERE o.id = s.id AND o.tries = s.tries
        """,
        columns([(row.id, row.tries) for row in rows], 2),
    )


def mark_failed(conn: Connection, failures: list[tuple[Row, str]]) -> None:
    """Note why rows could not be sent; each comes up again after 2, 4, 8, … seconds, at most every five minutes."""
    conn.execute(
        """
        UPDATE outbox o SET error = f.error, available_at = now() + make_interval(secs => least(300, 2 ^ least(o.deliveries, 9)))
        FROM unnest(%b::uuid[], %b::int[], %b::text[]) AS f (id, tries, error) WHERE o.id = f.id AND o.tries = f.tries
        """,
        columns([(row.id, row.tries, error) for row, error in failures], 3),
    )


def age_seconds(conn: Connection) -> Cursor[tuple[float]]:
    """How long the oldest row has been waiting to be sent, in seconds; what waits for its next try on purpose is left out."""
    return conn.execute(
        """
        SELECT coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
        FROM outbox WHERE sent_at IS NULL AND waiting_since IS NULL
        """
    )


def prune(conn: Connection) -> None:
    """Remove a thousand of the rows that were sent more than `KEPT_DAYS` days ago."""
    conn.execute(
        """
        DELETE FROM outbox WHERE id IN (
            SELECT id FROM outbox WHERE sent_at < now() - make_interval(days => %s)
            ORDER BY sent_at LIMIT 1000 FOR UPDATE SKIP LOCKED
        )
        """,
        [KEPT_DAYS],
    )
