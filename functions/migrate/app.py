"""Brings the database's schema up to date; connects to the database itself, never through the proxy.

A deployment invokes it as a custom resource of CloudFormation, which is told the outcome: if a migration fails, the deployment
does, and the functions stay as they were.
"""

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit
from urllib.request import Request, urlopen

import psycopg
from aws_lambda_powertools.utilities.typing import LambdaContext
from yoyo import get_backend, read_migrations

import migrations
from shared import db, settings
from shared.observability import logger, observed

#: How often a migration is tried whose lock others don't let it have, and seconds in between: they go on with their work then.
LOCK_TRIES = 15
LOCK_PAUSE = 4.0


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Apply what is missing of `migrations/`, each file in a transaction of its own; running again changes nothing."""
    if "ResponseURL" not in event:
        return migrate()
    try:
        outcome = migrate() if _is_due(event, context) else {}
    except Exception as error:
        answer(event, context, "FAILED", f"{type(error).__name__}: {error}")
        raise
    answer(event, context, "SUCCESS")
    return outcome


def _is_due(event: dict[str, Any], context: LambdaContext) -> bool:
    """Whether a deployment asks for the migrations of this very code.

    The schema stays when the stack goes. When a deployment is rolled back, CloudFormation asks again for the version before,
    which may reach the new code: nothing goes backwards, and a second failure would only leave the stack stuck.
    """
    asked: str = event["ResourceProperties"].get("Version", "")
    return event["RequestType"] != "Delete" and asked.rpartition(":")[2] in ("", context.function_version)


def migrate() -> dict[str, Any]:
    """Apply what is missing, and say what it was and which version the schema has now."""
    backend = get_backend(_url())
    try:
        available: Any = read_migrations(str(Path(migrations.__path__[0])))
        with backend.lock():
            pending = backend.to_apply(available)
            for migration in pending:
                _apply(backend, migration)
    finally:
        backend.connection.close()
    applied = [migration.id for migration in pending]
    logger.info("migrated", applied=applied)
    return {"applied": applied, "version": available[-1].id}


def _apply(backend: Any, migration: Any) -> None:
    """Apply one migration. Each waits for a lock for some seconds only, so that nobody has to queue behind it for long."""
    for attempt in range(1, LOCK_TRIES + 1):
        try:
            backend.apply_one(migration)
            return
        except psycopg.errors.LockNotAvailable:
            if attempt == LOCK_TRIES:
                raise
            logger.info("a lock was not to be had, will be tried again", migration=migration.id, attempt=attempt)
            time.sleep(LOCK_PAUSE)


def answer(event: dict[str, Any], context: LambdaContext, status: str, reason: str = "") -> None:
    """Tell CloudFormation the outcome, at the address in S3 that it gives."""
    body = {
        "Status": status,
        "Reason": reason[:1000] or "see the function's log",
        "PhysicalResourceId": "migrations",
        **{name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")},
    }
    request = Request(event["ResponseURL"], json.dumps(body).encode(), {"Content-Type": ""}, method="PUT")  # noqa: S310
    with urlopen(request, timeout=30):  # noqa: S310 - CloudFormation gives an https address.
        pass


def _url() -> str:
    """The database's URL as yoyo takes it."""
    parts = urlsplit(settings.database_url())
    if settings.database_iam_auth():
        login = db.login()
        address = parts.netloc.rpartition("@")[2]
        netloc = f"{quote(login['user'], safe='')}:{quote(login['password'], safe='')}@{address}"
        tls = urlencode({name: login[name] for name in ("sslmode", "sslrootcert")})
        parts = parts._replace(netloc=netloc, query=tls)
    return urlunsplit(parts._replace(scheme="postgresql+psycopg"))
