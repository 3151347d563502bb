"""A real PostgreSQL for all tests, migrated once by the code that migrates production."""

import logging
import os
from collections import Counter
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import psycopg
import pytest
from moto.server import ThreadedMotoServer
from psycopg import sql

os.environ.update(
    POWERTOOLS_SERVICE_NAME="test",
    POWERTOOLS_METRICS_NAMESPACE="LearnerProgress",
    PUBLIC_BASE_URL="http://127.0.0.1:3000",
    RETRY_PATIENCE_SECONDS="20",
)

from local import keys
from local.child import aws_environment
from local.pollers import client
from local.template import REGION
from shared import db, settings
from shared.quiz import store
from tests.support import pooler
from tests.support.logs import LOG
from tests.support.service import Service, context


@pytest.fixture(scope="session")
def server_url() -> Generator[str]:
    """URL of a PostgreSQL server: TEST_DATABASE_URL, or one from a wheel."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    from local import postgres

    # Not under pytest's folder, which another run of pytest closes to the user that PostgreSQL runs as.
    with TemporaryDirectory(prefix="learner-progress-") as folder, postgres.server(Path(folder, "data"), durable=False) as url:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET log_statement = 'all'")
            conn.execute("ALTER SYSTEM SET log_line_prefix = '@@%u@@'")
            conn.execute("SELECT pg_reload_conf()")
        yield url
        log = Path(folder, "data.log").read_text(errors="replace")
        # Each entry is `@@role@@text`. What the tests say themselves, as the owner, is their own business.
        ours = {text for role, text in pairwise(log.split("@@")) if role.startswith("learner_progress_")}
        LOG.write("PostgreSQL", "\n".join(ours))
        pin_nothing(log)


def pin_nothing(log: str) -> None:
    """Look through all statements that the service sent to the database for one that would pin a connection of RDS Proxy."""
    ours = Counter(text for role, text in pooler.statements(log) if role in pooler.ROLES[1:])
    assert [text[:200] for text in ours if pooler.PINS.search(text)] == []
    longest = max((len(text.encode()) for text in ours), default=0)
    assert longest < pooler.LONGEST
    SEEN.append(f"{ours.total():,} statements of the service, none that pins; the longest has {longest:,} bytes")


#: What the end of the run says of the statements.
SEEN: list[str] = []


def database(server: str, name: str) -> str:
    """URL of a database on the server."""
    return urlunsplit(urlsplit(server)._replace(path=f"/{name}"))


@contextmanager
def created(server: str, name: str, template: str = "template1") -> Generator[str]:
    """Create a database for the service under test, yield its URL, and drop it again."""
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
    url = database(server, name)
    before = os.environ.get("DATABASE_URL")
    os.environ["DATABASE_URL"] = url
    settings.database_url.cache_clear()
    yield url
    db.close()
    os.environ.pop("DATABASE_URL", None)
    if before:
        os.environ["DATABASE_URL"] = before
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def template_database(server_url: str) -> Generator[str]:
    """Name of a migrated database without rows."""
    name = f"template_{uuid4().hex[:12]}"
    with ExitStack() as stack:
        with created(server_url, f"{name}_draft"):
            from functions.migrate.app import handler

            handler({}, context("Migrate", 900))
            stack.enter_context(created(server_url, name, f"{name}_draft"))
        yield name


@pytest.fixture(scope="session")
def way_in(server_url: str) -> Generator[str]:
    """Where the service reaches the server: as it is, or with POOLED=1 through PgBouncer, which is stricter."""
    if os.environ.get("POOLED") != "1":
        yield server_url
        return
    with TemporaryDirectory(prefix="learner-progress-") as folder, pooler.pooled(server_url, Path(folder)) as url:
        yield url


@pytest.fixture
def database_url(server_url: str, way_in: str, template_database: str) -> Generator[str]:
    """URL of a fresh migrated database, which the service under test uses."""
    store._keys.clear()
    name = f"test_{uuid4().hex[:12]}"
    with created(server_url, name, template_database) as url:
        # The service has the rights that it has in production, and no more; the tests look into the database as its owner.
        os.environ["DATABASE_URL"] = as_role(database(way_in, name), "learner_progress_app")
        settings.database_url.cache_clear()
        yield url
        LOG.know(database(server_url, name))


def as_role(url: str, role: str) -> str:
    """The URL of a database for another role, which needs no password here."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """Address of a stand-in for S3 with the bucket of the documents; the keys that sign are in files."""
    folder = tmp_path_factory.mktemp("keys")
    keys.make(folder)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    os.environ.update(
        aws_environment(endpoint),
        CERTIFICATE_BUCKET="certificates",
        CREDENTIAL_KEY=f"file:{keys.path(folder, 'credential-key')}",
        CREDENTIAL_JWT_KEY=f"file:{keys.path(folder, 'credential-jwt-key')}",
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    create_bucket(endpoint)
    yield endpoint
    server.stop()


def create_bucket(endpoint: str) -> None:
    """Create the bucket that the service keeps documents in."""
    bucket = os.environ["CERTIFICATE_BUCKET"]
    client("s3", endpoint).create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})


@pytest.fixture
def service(database_url: str, s3: str) -> Service:
    """The service's handlers on a fresh database."""
    return Service(database_url)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what was written during a test; the report of its end has all of it."""
    if report.when == "teardown":
        for what, text in report.sections:
            LOG.write(f"{report.nodeid}, {what}", text)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run in which a log speaks of somebody, or lets somebody in, has failed."""
    # pytest has no public word for the folder of a whole run outside of a fixture.
    LOG.read(session.config._tmp_path_factory.getbasetemp())  # pyright: ignore[reportAttributeAccessIssue]
    if LOG.findings():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was found in logs and statements, and how much was read."""
    for line in SEEN:
        terminalreporter.line(line)
    findings = LOG.findings()
    if findings:
        terminalreporter.section("what must stand in no log", red=True)
    for finding in findings[:50]:
        terminalreporter.line(finding)
    people, words = len(LOG.user_ids), sum(len(words) for words in LOG.words.values())
    terminalreporter.line(
        f"{len(LOG.lines):,} different log lines, {people:,} user ids, {words:,} names and answers: {len(findings)} findings"
    )


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parent.parent
