"""AWS answers 500, refuses, has too much to do, or hangs up: what was to be sent or made is so later, and nobody waits.

Where the relay's entries are refused one by one, or AWS is silent, see tests/integration/test_relay.py and
tests/integration/test_certificate_documents.py.
"""

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from functions.outbox_relay import app as relay
from shared import settings
from shared.certificate import signing, storage
from tests.faults.conftest import note
from tests.faults.scenes import Scene
from tests.support import whole
from tests.support.aws import FailingAws, Laps
from tests.support.kms import Failure, Kms
from tests.support.service import Service, event

FAILURES = {"500": "InternalError", "503": "SlowDown", "400": "ThrottlingException", "403": "AccessDenied", "hangs up": ""}


@pytest.fixture
def sick() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of an S3 that fails; how is said by `how` in what comes with it."""
    state = {"how": "500"}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if state["how"] == "hangs up":
                return
            self.send_response(int(state["how"]))
            body = b"" if self.command == "HEAD" else f"<Error><Code>{FAILURES[state['how']]}</Code></Error>".encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_HEAD = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", state
    server.shutdown()
    server.server_close()


@contextmanager
def s3_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        storage._s3.cache_clear()
        yield
    storage._s3.cache_clear()


def issue(scene: Scene) -> None:
    scene.send("certificate", "enrollment.completed", completed_at="2026-01-01T00:00:00Z", status="completed", sequence=1)


def test_however_s3_fails_certificates_are_issued_signed_and_shown_and_documents_follow(
    service: Service, sick: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
):
    endpoint, state = sick
    for how in FAILURES:
        state["how"] = how
        scene = Scene(service)
        scene.completed()
        with s3_at(endpoint, monkeypatch):
            issue(scene)
            (certificate,) = scene.footprint()["certificates"]
            assert (certificate["has_document"], certificate["has_credential"]) == (False, True), how
        start = time.monotonic()
        scene.next_minute()
        (certificate,) = scene.footprint()["certificates"]
        assert certificate["has_document"], how
        note(f"S3 {how}", "PutObject, HeadObject", recovery=time.monotonic() - start)
        (row,) = service.rows("SELECT certificate_uid FROM certificates WHERE user_id = %s", scene.user)
        with s3_at(endpoint, monkeypatch):
            answer = service.http("GET", f"/certificates/{row['certificate_uid']}.pdf", sub=None)
        assert (answer.status, answer.content[:5]) == (200, b"%PDF-"), how
        # It was not there to be seen, which does not mean that it is gone.
        assert scene.footprint()["certificates"] == [certificate]
    assert whole.broken(service) == {}


@pytest.mark.parametrize("failure", ["down", "throttled", "broken"])
def test_however_kms_fails_documents_are_made_and_signatures_follow(
    service: Service, monkeypatch: pytest.MonkeyPatch, failure: Failure
):
    with Kms() as kms, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_KMS", kms.url)
        patch.setenv("CREDENTIAL_KEY", kms.create_key("ECC_NIST_EDWARDS25519"))
        patch.setenv("CREDENTIAL_JWT_KEY", kms.create_key("ECC_NIST_P256"))
        caches = (settings.credential_key, settings.credential_jwt_key, signing._kms)
        for cache in caches:
            cache.cache_clear()
        try:
            scene = Scene(service)
            scene.completed()
            kms.failure = failure
            issue(scene)
            (certificate,) = scene.footprint()["certificates"]
            assert (certificate["has_document"], certificate["has_credential"]) == (True, False)
            kms.failure = None
            start = time.monotonic()
            scene.next_minute()
            (certificate,) = scene.footprint()["certificates"]
            assert certificate["has_credential"]
            note(f"KMS {failure}", "Sign, GetPublicKey", recovery=time.monotonic() - start)
        finally:
            patch.undo()
            for cache in caches:
                cache.cache_clear()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingAws]:
    """EventBridge and SQS that fail as they are told."""
    server = FailingAws()
    # It hangs up by an exception, which is not to be read about.
    monkeypatch.setattr(server, "handle_error", lambda *args: None)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    for name, value in {"ENDPOINT_URL": server.endpoint, "MAX_ATTEMPTS": "1", "REGION": "eu-west-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("EVENT_BUS_NAME", "learner-progress")
    monkeypatch.setenv("PROGRESS_QUEUE_URL", f"{server.endpoint}/123456789012/progress")
    monkeypatch.setenv("PROGRESS_DLQ_URL", f"{server.endpoint}/123456789012/progress-dlq")
    caches = (relay._client, settings.event_bus_name, settings.queue_url)
    for cache in caches:
        cache.cache_clear()
    yield server
    for cache in caches:
        cache.cache_clear()
    server.shutdown()
    server.server_close()


def relayed() -> dict[str, Any]:
    """One lap of the relay."""
    lap: Any = Laps(1)
    return relay.handler({}, lap)


@pytest.mark.parametrize("how", ["500", "503", "400", "hangs up"])
def test_however_a_call_of_the_relay_fails_its_rows_come_up_again_and_are_sent(service: Service, failing: FailingAws, how: str):
    scene = Scene(service)
    scene.enrol()
    scene.service.send("progress", "no json")
    scene.service.send("progress", event("lesson.progressed", scene.ids | {"user_id": "00000000-0000-4000-8000-0000000000cc"}))
    due = {str(row["id"]) for row in service.rows("SELECT id FROM outbox")}
    assert len(due) == 3

    def hang_up(entries: object) -> None:
        raise ConnectionAbortedError

    if how == "hangs up":
        failing.on_call = hang_up
    else:
        failing.status = int(how)
    service.rows("UPDATE outbox SET available_at = now()")
    assert relayed() == {"sent": 0, "failed": 3}
    rows = service.rows("SELECT sent_at, error, available_at - now() AS pause FROM outbox")
    assert all(row["sent_at"] is None and row["error"] and 0 < row["pause"].total_seconds() <= 2 for row in rows)
    failing.status, failing.on_call = 200, lambda entries: None
    service.rows("UPDATE outbox SET available_at = now()")
    start = time.monotonic()
    assert relayed() == {"sent": 3, "failed": 0}
    note(f"AWS {how}", "PutEvents, SendMessageBatch", recovery=time.monotonic() - start)
    # Twice, as what hangs up may have taken it: delivery is at least once.
    assert sorted(failing.sent().values()) == [2, 2, 2]
