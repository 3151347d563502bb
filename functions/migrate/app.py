"""Brings the database's schema up to date; connects to the database itself, never through the proxy."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aws_lambda_powertools.utilities.typing import LambdaContext
from yoyo import get_backend, read_migrations

import migrations
from shared import settings
from shared.observability import logger, observed


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Apply what is missing of `migrations/`, each file in a transaction of its own; running again changes nothing."""
    parts = urlsplit(settings.database_url())
    backend = get_backend(urlunsplit(parts._replace(scheme="postgresql+psycopg")))
    try:
        available: Any = read_migrations(str(Path(migrations.__path__[0])))
        with backend.lock():
            pending = backend.to_apply(available)
            backend.apply_migrations(pending)
    finally:
        backend.connection.close()
    applied = [migration.id for migration in pending]
    logger.info("migrated", applied=applied)
    return {"applied": applied, "version": available[-1].id}
