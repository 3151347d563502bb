"""A real PostgreSQL for all tests, migrated once by the code that migrates production."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

os.environ.update(
    POWERTOOLS_SERVICE_NAME="test",
    POWERTOOLS_METRICS_NAMESPACE="LearnerProgress",
    PUBLIC_BASE_URL="http://127.0.0.1:3000",
    RETRY_PATIENCE_SECONDS="20",
)

from shared import settings
from tests.support.service import Service


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a PostgreSQL server: TEST_DATABASE_URL, or one from a wheel."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    from local import postgres

    with postgres.server(tmp_path_factory.mktemp("postgres") / "data", durable=False) as url:
        yield url


def database(server: str, name: str) -> str:
    return urlunsplit(urlsplit(server)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def template_database(server_url: str) -> str:
    """Name of a migrated database without rows."""
    name = f"template_{uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    os.environ["DATABASE_URL"] = database(server_url, name)
    settings.database_url.cache_clear()
    from functions.migrate.app import handler
    from tests.support.service import context

    handler({}, context("Migrate"))
    return name


@pytest.fixture
def database_url(server_url: str, template_database: str) -> Iterator[str]:
    """URL of a fresh migrated database, which the service under test uses."""
    name = f"test_{uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template_database)))
    os.environ["DATABASE_URL"] = database(server_url, name)
    settings.database_url.cache_clear()
    from shared import db
    from shared.quiz import store

    store._keys.clear()
    yield os.environ["DATABASE_URL"]
    db.close()
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def service(database_url: str) -> Service:
    """The service's handlers on a fresh database."""
    return Service(database_url)


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parent.parent
