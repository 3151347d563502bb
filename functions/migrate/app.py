"""Brings the database's schema up to date; connects to the database itself, never through the proxy.

A deployment invokes it as a custom resource of CloudFormation, which is told the outcome: if a migration fails, the deployment
does, and the functions stay as they were. It may be killed at any moment: the next run needs nobody's help to go on.
"""

import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import psycopg
from aws_lambda_powertools.utilities.typing import LambdaContext
from yoyo import get_backend, read_migrations

import migrations
from shared import db, settings
from shared.observability import Unexpected, logger, observed

#: How often a migration is tried whose lock others don't let it have, and seconds in between: they go on with their work then.
LOCK_TRIES = 60
LOCK_PAUSE = 4.0

#: How often CloudFormation is told, and for how many seconds each try may last. Migrating ends early enough for all of them.
ANSWER_TRIES = 3
ANSWER_TIMEOUT = 5
TELLING = 20.0

#: How the session begins, and what a file has unless it sets something else. All who use a table queue behind whoever waits for
#: it, and a statement together with its wait stays below the five seconds for which the functions wait for a lock. When this
#: function dies, PostgreSQL notices within a second, or within a minute if its network dies too, and ends what was under way.
SESSION = {
    "lock_timeout": "1s",
    "statement_timeout": "4s",
    "client_connection_check_interval": "1s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}


class MigrationFailed(Unexpected):
    """Names the file and what PostgreSQL says of it, without the details that it adds, which can quote rows."""


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Apply what is missing of `migrations/`, each file in a transaction of its own; running again changes nothing."""
    seconds = context.get_remaining_time_in_millis() / 1000 - TELLING
    if "ResponseURL" not in event:
        return migrate(seconds)
    try:
        outcome = migrate(seconds) if _is_due(event, context) else {}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        logger.error("migrating failed", reason=reason)
        answer(event, context, "FAILED", reason)
        # It is not raised: Lambda would try again, when the deployment is on its way back already.
        return {}
    answer(event, context, "SUCCESS")
    return outcome


def _is_due(event: dict[str, Any], context: LambdaContext) -> bool:
    """Whether a deployment asks for the migrations of this very code.

    The schema stays when the stack goes. When a deployment is rolled back, CloudFormation asks again for the version before,
    which may reach the new code: nothing goes backwards, and a second failure would only leave the stack stuck.
    """
    asked: str = event["ResourceProperties"].get("Version", "")
    return event["RequestType"] != "Delete" and asked.rpartition(":")[2] in ("", context.function_version)


def migrate(seconds: float) -> dict[str, Any]:
    """Apply what is missing, within so many seconds, and say what it was and which version the schema has now."""
    deadline = time.monotonic() + seconds
    backend = get_backend(_url())
    try:
        with _cancelled_at(deadline, backend.connection):
            _lock(backend, deadline)
            available: Any = read_migrations(str(Path(migrations.__path__[0])))
            pending = backend.to_apply(available)
            for migration in pending:
                _apply(backend, migration, deadline)
    finally:
        backend.connection.close()
    applied = [migration.id for migration in pending]
    logger.info("migrated", applied=applied)
    return {"applied": applied, "version": available[-1].id}


@contextmanager
def _cancelled_at(deadline: float, conn: psycopg.Connection[Any]) -> Generator[None]:
    """Cancel what runs on the connection from this moment on, so that there is time left to tell of it."""
    done = threading.Event()

    def watch() -> None:
        done.wait(max(0.0, deadline - time.monotonic()))
        # Again and again, as it may have been between two statements.
        while not done.wait(0.2):
            with suppress(psycopg.Error):
                conn.cancel_safe(timeout=ANSWER_TIMEOUT)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _lock(backend: Any, deadline: float) -> None:
    """Wait until no other run is under way, and let none begin as long as this connection lasts.

    yoyo's own lock is a row, which outlives a run that is killed; this one ends with the connection that does the work. It is
    asked for again and again, since a statement that waited would have a snapshot, and `CREATE INDEX CONCURRENTLY` of the other
    run would wait for its end.
    """
    while not backend.execute("SELECT pg_try_advisory_lock(hashtext('migrations'))").fetchone()[0]:
        if time.monotonic() > deadline:
            raise TimeoutError("another run of the migrations has not ended")
        time.sleep(0.5)
    # yoyo locks when it makes its own tables. Whoever left that row is gone.
    backend.break_lock()


def _apply(backend: Any, migration: Any, deadline: float) -> None:
    """Apply one migration. Each waits for a lock for a moment only, so that nobody has to queue behind it for long.

    The transaction also notes that it was applied, where yoyo by itself would do so after it. A file that says `transactional:
    false` has none: it may be killed in between, and has to be written so that it can be run again.
    """
    logger.info("applying", migration=migration.id)
    migration.load()
    for attempt in range(1, LOCK_TRIES + 1):
        # What another file has SET outside of a transaction was for that file alone.
        backend.execute("RESET ALL")
        try:
            with backend.transaction() if migration.use_transactions else nullcontext():
                migration.process_steps(backend, "apply")
                with backend.transaction():
                    backend.log_migration(migration, "apply")
                    backend.mark_one(migration, log=False)
            return
        except psycopg.Error as error:
            retriable = isinstance(error, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected)
            late = time.monotonic() + LOCK_PAUSE > deadline
            if not retriable or late or attempt == LOCK_TRIES:
                text = f"{migration.id}: {type(error).__name__}: {error.diag.message_primary or 'the connection is lost'}"
                raise MigrationFailed(f"{text} (time is up)" if late else text) from None
            logger.info("a lock was not to be had, will be tried again", migration=migration.id, attempt=attempt)
            time.sleep(LOCK_PAUSE)


def answer(event: dict[str, Any], context: LambdaContext, status: str, reason: str = "") -> None:
    """Tell CloudFormation the outcome, at the address in S3 that it gives.

    If it can't be told, this raises: Lambda then hands the event over again, and the same is found out and told once more.
    """
    body = {
        "Status": status,
        "Reason": reason[:1000] or "see the function's log",
        "PhysicalResourceId": "migrations",
        **{name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")},
    }
    request = Request(event["ResponseURL"], json.dumps(body).encode(), {"Content-Type": ""}, method="PUT")  # noqa: S310
    for attempt in range(1, ANSWER_TRIES + 1):
        try:
            with urlopen(request, timeout=ANSWER_TIMEOUT):  # noqa: S310 - CloudFormation gives an https address.
                return
        except (OSError, HTTPException) as error:
            if attempt == ANSWER_TRIES:
                raise
            logger.warning("CloudFormation could not be told, will be tried again", error=type(error).__name__)
            # A second, then two, since a deployment waits for this.
            time.sleep(attempt)


def _url() -> str:
    """The database's URL as yoyo takes it, with the session's settings."""
    parts = urlsplit(settings.database_url())
    query = dict(parse_qsl(parts.query)) | {
        "connect_timeout": "10",
        "keepalives_idle": "30",
        "options": " ".join(f"-c {name}={value}" for name, value in SESSION.items()),
    }
    if settings.database_iam_auth():
        login = db.login()
        address = parts.netloc.rpartition("@")[2]
        parts = parts._replace(netloc=f"{quote(login['user'], safe='')}:{quote(login['password'], safe='')}@{address}")
        query |= {name: login[name] for name in ("sslmode", "sslrootcert")}
    return urlunsplit(parts._replace(scheme="postgresql+psycopg", query=urlencode(query)))
