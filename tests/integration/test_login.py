"""Logging in by IAM over verified TLS, and with no more rights than a function needs."""

import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from functions.migrate import app as migrate
from shared import db, settings
from tests.conftest import as_role
from tests.support.service import LEARNER, Service, context, course, event

#: How a client asks for TLS (https://www.postgresql.org/docs/current/protocol-message-formats.html).
SSL_REQUEST = bytes([0, 0, 0, 8, 4, 210, 22, 47])
APP, RELAY, REPORT = "learner_progress_app", "learner_progress_relay", "learner_progress_report"


def authority(name: str, folder: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself, with its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    path.with_suffix(".key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


@dataclass(frozen=True)
class Tls:
    """A database that speaks TLS: where it is, and who vouches for it."""

    url: str
    authority: Path


@pytest.fixture
def tls(service: Service, tmp_path: Path) -> Iterator[Tls]:
    """TLS before the real server, whose wheel comes without: asked for it as PostgreSQL's protocol has it (SSLRequest)."""
    path = authority("right", tmp_path)
    offered = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    offered.load_cert_chain(path, path.with_suffix(".key"))
    offered.set_alpn_protocols(["postgresql"])
    parts = urlsplit(service.database_url)
    server = (str(parts.hostname), int(parts.port or 5432))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            assert self.request.recv(8) == SSL_REQUEST
            self.request.sendall(b"S")
            # A client that doesn't trust the certificate hangs up.
            with (
                suppress(OSError),
                offered.wrap_socket(self.request, server_side=True) as client,
                socket.create_connection(server) as up,
            ):
                back = threading.Thread(target=pump, args=[up, client])
                back.start()
                pump(client, up)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        address = f"{APP}@127.0.0.1:{listening.server_address[1]}"
        yield Tls(urlunsplit(parts._replace(netloc=address)), path)
        db.close()
        listening.shutdown()


@pytest.fixture
def by_iam(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The service logs in by IAM."""
    caches = (settings.database_iam_auth, settings.database_authorities, settings.database_url)
    monkeypatch.setenv("DATABASE_IAM_AUTH", "1")
    for cached in caches:
        cached.cache_clear()
    db.close()
    yield monkeypatch
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()
    db.close()


def connect_to(tls: Tls, by_iam: pytest.MonkeyPatch) -> None:
    by_iam.setenv("DATABASE_URL", tls.url)
    by_iam.setenv("DATABASE_AUTHORITIES", str(tls.authority))
    settings.database_url.cache_clear()
    settings.database_authorities.cache_clear()


def test_by_iam_the_server_is_verified_and_a_token_is_the_password(service: Service, tls: Tls, by_iam: pytest.MonkeyPatch):
    connect_to(tls, by_iam)
    assert service.http("GET", "/health", sub=None).status == 200
    assert db.run(lambda conn: conn.execute("SELECT current_user")).fetchone() == (APP,)
    assert db._connection().pgconn.ssl_in_use
    login = db.login()
    assert (login["sslmode"], login["user"]) == ("verify-full", APP)
    address, _, query = login["password"].partition("/?")
    assert address == urlsplit(tls.url).netloc.rpartition("@")[2]
    assert parse_qs(query)["DBUser"] == [APP]


def test_another_authority_is_refused(service: Service, tls: Tls, by_iam: pytest.MonkeyPatch, tmp_path: Path):
    connect_to(tls, by_iam)
    by_iam.setenv("DATABASE_AUTHORITIES", str(authority("wrong", tmp_path)))
    settings.database_authorities.cache_clear()
    assert service.http("GET", "/health", sub=None).status == 503
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(**db.login())


def test_the_authorities_of_browsers_are_asked_where_none_are_named(service: Service, tls: Tls, by_iam: pytest.MonkeyPatch):
    connect_to(tls, by_iam)
    by_iam.delenv("DATABASE_AUTHORITIES")
    settings.database_authorities.cache_clear()
    assert Path(db.login()["sslrootcert"]).name == "cacert.pem"
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(**db.login())


def test_without_tls_nobody_is_logged_in(service: Service, by_iam: pytest.MonkeyPatch):
    with pytest.raises(psycopg.OperationalError, match="does not support SSL"):
        psycopg.connect(**db.login())


def test_migrating_logs_in_the_same_way(service: Service, tls: Tls, by_iam: pytest.MonkeyPatch):
    # As the owner of everything, and not as the functions that serve learners.
    owner = urlsplit(service.database_url).netloc.partition("@")[0]
    connect_to(Tls(tls.url.replace(f"//{APP}@", f"//{owner}@"), tls.authority), by_iam)
    assert migrate.handler({}, context("Migrate"))["applied"] == []
    settings.database_url.cache_clear()


def test_the_roots_of_rds_are_whole(root: Path):
    certificates = x509.load_pem_x509_certificates((root / "functions/migrate/rds-roots.pem").read_bytes())
    assert len(certificates) > 80
    for certificate in certificates:
        assert certificate.issuer == certificate.subject
        assert certificate.not_valid_after_utc > datetime(2035, 1, 1, tzinfo=UTC)
        certificate.verify_directly_issued_by(certificate)


# Rights


def refused(url: str, role: str, statement: str) -> bool:
    with psycopg.connect(as_role(url, role)) as conn:
        try:
            conn.execute(statement)  # pyright: ignore[reportArgumentType, reportCallIssue]
        except psycopg.errors.InsufficientPrivilege:
            return True
        finally:
            conn.rollback()
    return False


@pytest.mark.parametrize(
    ("role", "statement", "may"),
    [
        (APP, "UPDATE enrollments SET sequence = 1", True),
        (APP, "DROP TABLE outbox", False),
        (APP, "ALTER TABLE enrollments ADD COLUMN more int", False),
        (APP, "CREATE TABLE more ()", False),
        (APP, "TRUNCATE outbox", False),
        (RELAY, "UPDATE outbox SET sent_at = now()", True),
        (RELAY, "INSERT INTO outbox (destination) VALUES ('bus')", False),
        (RELAY, "SELECT FROM learners", False),
        (RELAY, "SELECT FROM certificates", False),
        (REPORT, "SELECT FROM enrollments", True),
        (REPORT, "UPDATE enrollments SET sequence = 1", False),
        (REPORT, "DELETE FROM outbox", False),
        (REPORT, "SELECT next_status_entry()", False),
    ],
)
def test_a_role_may_do_what_its_functions_do_and_no_more(service: Service, role: str, statement: str, may: bool):
    assert refused(service.database_url, role, statement) is not may


def test_what_a_later_migration_adds_can_be_used_too(service: Service):
    service.rows("CREATE TABLE later (id bigint GENERATED ALWAYS AS IDENTITY)")
    assert not refused(service.database_url, APP, "INSERT INTO later DEFAULT VALUES")
    assert not refused(service.database_url, REPORT, "SELECT FROM later")
    assert refused(service.database_url, RELAY, "SELECT FROM later")


@pytest.mark.parametrize(("role", "seconds"), [(APP, "25s"), (RELAY, "15s"), (REPORT, "9s")])
def test_what_hangs_is_ended_before_the_function_is(service: Service, role: str, seconds: str):
    with psycopg.connect(as_role(service.database_url, role)) as conn:
        for name, value in {
            "statement_timeout": seconds,
            "lock_timeout": "5s",
            "idle_in_transaction_session_timeout": "10s",
        }.items():
            assert conn.execute("SELECT current_setting(%s)", [name]).fetchone() == (value,)


def test_rosters_and_health_need_only_the_right_to_read(service: Service, monkeypatch: pytest.MonkeyPatch):
    version = course()
    service.send("catalog", event("course_version.published", version))
    service.send(
        "enrollment",
        event("enrollment.requested", {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}),
    )
    monkeypatch.setenv("DATABASE_URL", as_role(service.database_url, REPORT))
    settings.database_url.cache_clear()
    db.close()
    assert service.http("GET", "/health", sub=None).status == 200
    roster = service.admin("GET", f"/course-versions/{version['course_version_id']}/enrollments")
    assert [item["user_id"] for item in roster.json["items"]] == [str(LEARNER)]
