"""The connection to PostgreSQL, and the one way to run statements on it.

A Lambda execution environment serves one event at a time, so it keeps one connection, opened at first use. Nothing
here may pin a connection of RDS Proxy: no prepared statements, no SET, no cursor, no session lock.
"""

import math
import threading
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Literal, override
from uuid import UUID

import certifi
import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from shared import iam, settings, trace
from shared.errors import Busy, Unavailable
from shared.observability import logger

type Connection = psycopg.Connection[TupleRow]

# One for each thread, so that tests can be several execution environments in one process.
_environment = threading.local()

#: PostgreSQL aborts one of two transactions that stand in each other's way; the loser's work is simply done again.
_TRIES = 5
#: Seconds for which an answer is waited for: a little longer than the server itself lets a statement run (`statement_timeout`).
_PATIENCE = 26.0
#: Seconds of an invocation that are left for saying that the database did not answer.
_MARGIN = 1.0


class _Connection(psycopg.Connection[TupleRow]):
    """A connection on which no wait is longer than `run` has time.

    TCP notices a peer that is gone, not one that takes everything in and never answers.
    """

    @override
    def wait[RV](self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        left = max(0.0, _time_left()) if timeout is None else timeout
        return super().wait(gen, interval, left)


def run[T](work: Callable[[Connection], T]) -> T:
    """Run all statements that `work` executes as one transaction, in one round trip.

    `work` gets the connection in pipeline mode: it executes statements and returns their cursors, but must not fetch
    from them; their rows are there when `run` returns. An error in any statement undoes all, and so does one of `work` itself.
    Work whose fate is unknown because the connection broke is done once more: whatever is written here does nothing the
    second time, by its own condition or by the id of an act, which is drawn before.

    Raises
    ------
    Unavailable
        The database cannot be reached, does not answer in time, or can't do it now; `Busy` if someone else holds a lock.
    psycopg.Error
        Whatever else the database says, for instance a violated constraint.
    """
    return _repeated(_transaction, work)


def run_one[T](work: Callable[[Connection], T]) -> T:
    """Like `run`, for work that executes one statement and no more, which is a transaction by itself.

    Without a pipeline it takes a tenth of a millisecond less.
    """
    return _repeated(lambda conn, work: work(conn), work)


def _repeated[T](how: Callable[[Connection, Callable[[Connection], T]], T], work: Callable[[Connection], T]) -> T:
    _environment.give_up_at = min(monotonic() + _PATIENCE, getattr(_environment, "ends_at", math.inf))
    lost = 0
    for attempt in range(1, _TRIES + 1):
        began = monotonic()
        try:
            return how(_connection(), work)
        except psycopg.Error as error:
            what = remedy(error)
            if what == "raise":
                raise
            logger.warning("the database did not do it", error=type(error).__name__, sqlstate=error.sqlstate, remedy=what)
            if what == "reconnect":
                close()
                lost += 1
            if what == "wait":
                raise (Busy if isinstance(error, psycopg.errors.LockNotAvailable) else Unavailable) from error
            # What has no time to take as long again is not tried again: a request that has waited for one of the proxy's
            # connections until the proxy lost patience would only queue up a second time.
            if lost == 2 or attempt == _TRIES or _time_left() < monotonic() - began:
                raise Unavailable from error
    raise AssertionError("unreachable: the last try returns or raises")


def _transaction[T](conn: Connection, work: Callable[[Connection], T]) -> T:
    if settings.plain_transactions():
        with conn.transaction():
            return work(conn)
    # Under autocommit and without BEGIN, the statements up to the pipeline's single Sync are one implicit transaction.
    with conn.pipeline():
        try:
            return work(conn)
        except psycopg.Error:
            raise
        except BaseException:
            # The Sync at the pipeline's end would commit what was sent before.
            conn.close()
            raise


def remedy(error: psycopg.Error) -> Literal["repeat", "reconnect", "wait", "raise"]:
    """What helps against an error of the database, by its SQLSTATE; a connection that breaks or can't be made has none.

    repeat
        The transaction stood in another one's way and was undone.
    reconnect
        The connection is gone, leads to a server that is going or coming, or to one that only reads, as after a failover.
    wait
        The connection is fine and the same would happen again: a lock, a statement that took too long, no space, no memory, no
        connection left. Whoever asked tries again later.
    raise
        The statement or its data are at fault.
    """
    match error.sqlstate:
        case "40001" | "40P01":
            return "repeat"
        case "55P03" | "57014":
            return "wait"
        case str(state) if state.startswith("53"):
            return "wait"
        case "25006" | "25P03":
            return "reconnect"
        case _:
            return "reconnect" if isinstance(error, psycopg.OperationalError) else "raise"


@contextmanager
def answering_within(milliseconds: int) -> Generator[None]:
    """Let no `run` take longer than the invocation has left, so that a caller is told before Lambda ends it."""
    _environment.ends_at = monotonic() + milliseconds / 1000 - _MARGIN
    try:
        yield
    finally:
        _environment.ends_at = math.inf


def _time_left() -> float:
    return getattr(_environment, "give_up_at", math.inf) - monotonic()


def close() -> None:
    """Close this thread's connection, if there is one; the next `run` opens another."""
    conn: Connection | None = getattr(_environment, "connection", None)
    _environment.connection = None
    if conn is not None:
        conn.close()


def _connection() -> Connection:
    conn: Connection | None = getattr(_environment, "connection", None)
    if conn is None or conn.closed:
        seconds = max(1, min(5, int(_time_left())))
        conn = _Connection.connect(**login(), autocommit=True, prepare_threshold=None, connect_timeout=seconds)
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


def locked_enrollments(conn: Connection, keys: Collection[tuple[UUID, UUID]]) -> psycopg.Cursor[tuple[UUID, UUID]]:
    """Those of these enrolments that someone else holds locked at this moment."""
    return conn.execute(
        """
        WITH asked AS (
            SELECT e.user_id, e.course_version_id FROM enrollments e
            JOIN unnest(%b::uuid[], %b::uuid[]) AS k (user_id, course_version_id)
                ON e.user_id = k.user_id AND e.course_version_id = k.course_version_id
        ), free AS (
            SELECT e.user_id, e.course_version_id FROM enrollments e
            JOIN asked a ON a.user_id = e.user_id AND a.course_version_id = e.course_version_id
            FOR NO KEY UPDATE OF e SKIP LOCKED
        )
        SELECT user_id, course_version_id FROM asked EXCEPT SELECT user_id, course_version_id FROM free
        """,
        columns(list(keys), 2),
    )


def complete_enrollments(conn: Connection, keys: Collection[tuple[UUID, UUID]]) -> None:
    """Complete those of these enrolments whose required items are all fulfilled. They must have been locked before.

    Which traceparent each is handed is found out there, by the events that the transaction has written before.
    """
    conn.execute("SELECT complete_enrollments(%b::uuid[], %b::uuid[], %s::text)", [*columns(list(keys), 2), trace.current()])
