"""The connection to PostgreSQL, and the one way to run statements on it.

A Lambda execution environment serves one event at a time, so it keeps one connection, opened at first use. Nothing
here may pin a connection of RDS Proxy: no prepared statements, no SET, no cursor, no session lock.
"""

import threading
from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

import certifi
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from shared import iam, settings, trace
from shared.errors import Unavailable

type Connection = psycopg.Connection[TupleRow]

# One for each thread, so that tests can be several execution environments in one process.
_environment = threading.local()

#: PostgreSQL aborts one of two transactions that stand in each other's way; the loser's work is simply done again.
_TRIES = 5


def run[T](work: Callable[[Connection], T]) -> T:
    """Run all statements that `work` executes as one transaction, in one round trip.

    `work` gets the connection in pipeline mode: it executes statements and returns their cursors, but must not fetch
    from them; their rows are there when `run` returns. An error in any statement undoes all. Since the writes of this
    service may be repeated (at worst an administrator's act stands in the history twice), work whose fate is unknown
    because the connection broke is done once more.

    Raises
    ------
    Unavailable
        The database cannot be reached, or went away twice in a row.
    psycopg.Error
        Whatever else the database says, for instance a violated constraint.
    """
    broken = 0
    for attempt in range(1, _TRIES + 1):
        try:
            conn = _connection()
            if settings.plain_transactions():
                with conn.transaction():
                    return work(conn)
            # Under autocommit and without BEGIN, the statements up to the pipeline's single Sync are one implicit transaction.
            with conn.pipeline():
                return work(conn)
        except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
            if attempt == _TRIES:
                raise
        except psycopg.OperationalError as error:
            broken += 1
            close()
            if broken == 2:
                raise Unavailable from error
    raise AssertionError("unreachable: the last try returns or raises")


def close() -> None:
    """Close this thread's connection, if there is one; the next `run` opens another."""
    conn: Connection | None = getattr(_environment, "connection", None)
    _environment.connection = None
    if conn is not None:
        conn.close()


def _connection() -> Connection:
    conn: Connection | None = getattr(_environment, "connection", None)
    if conn is None or conn.closed:
        conn = psycopg.connect(**login(), autocommit=True, prepare_threshold=None, connect_timeout=5)
        _environment.connection = conn
    return conn


def login() -> dict[str, Any]:
    """How to connect to the database: the URL's parameters, and by IAM a token made this moment and TLS that is verified.

    The authorities are named, since the libpq of psycopg's wheels does not find those of the system.
    """
    parameters = conninfo_to_dict(settings.database_url())
    if settings.database_iam_auth():
        host, port, user = str(parameters["host"]), int(parameters.get("port") or 5432), str(parameters["user"])
        parameters["password"] = iam.token(host, port, user, iam.Credentials.of_this_function())
        parameters["sslmode"] = "verify-full"
        parameters["sslrootcert"] = settings.database_authorities() or certifi.where()
    return parameters


def columns(rows: Collection[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Turn rows into columns, which go to the database as arrays for `unnest`; `width` serves the case of no rows."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


def lock_enrollments(conn: Connection, keys: Collection[tuple[UUID, UUID]]) -> None:
    """Lock enrolments (user_id, course_version_id) until the transaction ends, in the one order in which everyone locks.

    What follows in the transaction then sees all that others did to them. Never FOR UPDATE: that deadlocks with the key
    share locks that foreign keys take.
    """
    conn.execute(
        """
        SELECT count(*) FROM (
            SELECT FROM enrollments e
            JOIN unnest(%b::uuid[], %b::uuid[]) AS k (user_id, course_version_id)
                ON e.user_id = k.user_id AND e.course_version_id = k.course_version_id
            ORDER BY e.user_id, e.course_version_id FOR NO KEY UPDATE OF e
        ) locked
        """,
        columns(list(keys), 2),
    )


def complete_enrollments(conn: Connection, keys: Collection[tuple[UUID, UUID]]) -> None:
    """Complete those of these enrolments whose required items are all fulfilled. They must have been locked before.

    Which traceparent each is handed is found out there, by the events that the transaction has written before.
    """
    conn.execute("SELECT complete_enrollments(%b::uuid[], %b::uuid[], %s::text)", [*columns(list(keys), 2), trace.current()])
