"""What a certificate consists of beyond its row: document, signed credential, status list. Each made once, each alone."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from cryptography.exceptions import InvalidSignature

from local import keys
from local.pollers import client
from shared import db, settings
from shared.certificate import outstanding, signing, storage
from tests.support.kms import Kms
from tests.support.service import ADMIN, Answer, Service, at_once, course, event

MINUTE = {"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}


def a_version(service: Service, **fields: Any) -> dict[str, Any]:
    version = course(lessons=1, **fields)
    service.send("catalog", event("course_version.published", version))
    return version


def complete(service: Service, version: dict[str, Any], *names: str) -> list[str]:
    """Learners of these names complete a course version; what asks for their certificates waits in the outbox."""
    users = [str(uuid4()) for _ in names]
    about = [{"user_id": user, "course_version_id": version["course_version_id"]} for user in users]
    service.send("catalog", [event("learner.updated", {"user_id": u, "name": n}) for u, n in zip(users, names, strict=True)])
    service.send("enrollment", [event("enrollment.requested", one) for one in about])
    lesson = {"lesson_id": version["lessons"][0]["lesson_id"], "status": "completed"}
    service.send("progress", [event("lesson.progressed", one | lesson) for one in about])
    return users


def asked_for(service: Service) -> list[dict[str, Any]]:
    """The messages that ask for certificates, which still wait in the outbox."""
    rows = service.rows("SELECT data FROM outbox WHERE type = 'enrollment.completed'")
    return [event("enrollment.completed", row["data"]) for row in rows]


def the_row(service: Service) -> dict[str, Any]:
    (row,) = service.rows("SELECT * FROM certificates")
    return row


@pytest.fixture
def path(service: Service) -> str:
    """The address of a certificate with all that belongs to it."""
    complete(service, a_version(service), "Ada Lovelace")
    service.deliver()
    return f"/certificates/{the_row(service)['certificate_uid']}"


def get(service: Service, path: str, accept: str | None = None, **headers: str) -> Answer:
    return service.http("GET", path, sub=None, headers=({"accept": accept} if accept else {}) | headers)


def every_minute(service: Service) -> None:
    """The clock starts the worker, with all leases run out."""
    service.rows("UPDATE certificates SET due_at = now() WHERE due_at IS NOT NULL")
    service.rows("UPDATE status_lists SET due_at = now() WHERE due_at IS NOT NULL")
    service.invoke("certificate_worker", MINUTE)


def objects() -> list[str]:
    listed = client("s3", os.environ["AWS_ENDPOINT_URL"]).list_objects_v2(Bucket=os.environ["CERTIFICATE_BUCKET"])
    return [item["Key"] for item in listed.get("Contents", [])]


@pytest.fixture
def silence() -> Iterator[str]:
    """An address where whoever calls is heard and never answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def s3_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """S3 is where nobody listens, until the function that this yields is called."""
    with monkeypatch.context() as patch:
        storage._s3.cache_clear()
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")

        def back() -> None:
            patch.undo()
            storage._s3.cache_clear()

        yield back
    storage._s3.cache_clear()


# The document


def test_the_document_is_kept_and_a_link_to_it_is_given(service: Service, path: str):
    row = the_row(service)
    uid = row["certificate_uid"]
    assert row["pdf_url"] == f"s3://certificates/certificates/{uid}/1.pdf"
    for answer in (get(service, path, "application/pdf"), get(service, f"{path}.pdf"), get(service, f"{path}.PDF")):
        assert (answer.status, answer.headers["cache-control"]) == (302, "no-store")
        document = httpx.get(answer.headers["location"])
        assert document.status_code == 200
        assert document.headers["content-type"] == "application/pdf"
        assert document.headers["content-disposition"] == f'inline; filename="certificate-{uid}.pdf"'
        assert document.content.startswith(b"%PDF-")
    # Without the link's signature there is none: the bucket is not public, and the link is good for minutes only.
    assert "X-Amz-Expires=300" in answer.headers["location"]


def test_a_document_that_is_gone_is_given_all_the_same_and_made_again(service: Service, path: str):
    kept = httpx.get(get(service, path, "application/pdf").headers["location"]).content
    key = the_row(service)["pdf_url"].removeprefix("s3://certificates/")
    client("s3", os.environ["AWS_ENDPOINT_URL"]).delete_object(Bucket="certificates", Key=key)
    answer = get(service, path, "application/pdf")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/pdf")
    # Made from the snapshot, equal to the last byte.
    assert answer.content == kept
    assert the_row(service)["pdf_url"] is None
    every_minute(service)
    assert httpx.get(get(service, path, "application/pdf").headers["location"]).content == kept
    assert the_row(service)["due_at"] is None


def test_the_document_of_a_revoked_certificate_says_so(service: Service, path: str):
    kept = httpx.get(get(service, path, "application/pdf").headers["location"]).content
    service.admin("POST", f"{path}/revoke", {"reason": "fraud"})
    answer = get(service, path, "application/pdf")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/pdf")
    assert answer.content != kept
    service.admin("POST", f"{path}/reinstate", {"reason": "was not"})
    assert get(service, path, "application/pdf").status == 302


def test_s3_away_holds_up_neither_signature_nor_event_nor_anyone(service: Service, s3_away: Callable[[], None]):
    complete(service, a_version(service), "Ada Lovelace")
    service.deliver()
    row = the_row(service)
    assert (row["pdf_url"], row["credential"] is None, row["credential_jwt"] is None) == (None, False, False)
    assert row["due_at"] is not None
    path = f"/certificates/{row['certificate_uid']}"
    assert get(service, path).json["status"] == "valid"
    assert get(service, path, "application/pdf").content.startswith(b"%PDF-")
    assert [e["type"] for e in service.published() if "certificate" in e["type"]] == ["certificate.issued"]
    s3_away()
    every_minute(service)
    made = the_row(service)
    assert made["pdf_url"]
    assert made["due_at"] is None
    # What was there was not made anew.
    assert (made["credential"], made["credential_jwt"]) == (row["credential"], row["credential_jwt"])


def test_while_s3_is_away_for_reading_the_document_is_made_on_the_spot(service: Service, path: str, s3_away: Callable[[], None]):
    answer = get(service, path, "application/pdf")
    assert (answer.status, answer.content[:5]) == (200, b"%PDF-")
    assert the_row(service)["pdf_url"]


def test_a_store_that_never_answers_holds_up_no_signature(service: Service, silence: str, monkeypatch: pytest.MonkeyPatch):
    complete(service, a_version(service), *(f"Learner {n}" for n in range(20)))
    with monkeypatch.context() as patch:
        storage._s3.cache_clear()
        patch.setenv("AWS_ENDPOINT_URL_S3", silence)
        service.send("certificate", asked_for(service))
        rows = service.rows("SELECT pdf_url, credential, credential_jwt, due_at FROM certificates")
        assert [(r["pdf_url"], r["credential"] is None, r["credential_jwt"] is None) for r in rows] == [(None, False, False)] * 20
        # Those that were just being stored waited for it, and nobody after them.
        (row,) = service.rows("SELECT extract(epoch FROM min(due_at) - now())::float AS left FROM certificates")
        assert row["left"] > 40, row
    storage._s3.cache_clear()
    every_minute(service)
    assert service.rows("SELECT 1 FROM certificates WHERE due_at IS NOT NULL") == []


# The forms of a certificate


@pytest.mark.parametrize(
    ("accept", "ending", "content_type"),
    [
        (None, "", "application/json"),
        ("*/*", "", "application/json"),
        ("application/xml", "", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "", "text/html; charset=utf-8"),
        ("application/vc", "", "application/vc"),
        ("application/vc+ld+json", "", "application/vc+ld+json"),
        ("application/vc+jwt", "", "application/vc+jwt"),
        ("application/vc+jwt;q=0.5, application/vc;q=0.9", "", "application/vc"),
        # As a wallet lists what it takes, best first.
        ("application/vc+ld+json, application/ld+json, application/json", "", "application/vc+ld+json"),
        ("application/json, application/vc", "", "application/json"),
        ("image/png", "", "image/png"),
        ("text/html", ".json", "application/json"),
        (None, ".html", "text/html; charset=utf-8"),
        (None, ".vc", "application/vc"),
        (None, ".jwt", "application/vc+jwt"),
        (None, ".png", "image/png"),
    ],
)
def test_it_is_shown_in_the_form_that_is_asked_for(service: Service, path: str, accept: str, ending: str, content_type: str):
    answer = get(service, path + ending, accept)
    assert (answer.status, answer.headers["content-type"]) == (200, content_type)
    assert answer.headers["vary"] == "Accept, Accept-Language"
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = get(service, path + ending, accept, **{"if-none-match": f'"other", W/{answer.headers["etag"]}'})
    assert (again.status, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])


@pytest.mark.parametrize("ending", [".exe", ".pdf.pdf", "."])
def test_another_ending_is_no_form_of_it(service: Service, path: str, ending: str):
    assert get(service, path + ending).status == 404


@pytest.mark.parametrize(
    ("headers", "language"),
    [
        ({}, "en"),
        ({"accept-language": "de-AT, en;q=0.5"}, "de"),
        ({"accept-language": "fr, en;q=0.1, de;q=0.2"}, "de"),
        ({"accept-language": "fr"}, "en"),
    ],
)
def test_the_page_is_in_the_readers_language(service: Service, path: str, headers: dict[str, str], language: str):
    answer = get(service, path, "text/html", **headers)
    assert answer.headers["content-language"] == language
    assert f'<html lang="{language}">' in answer.text


def test_the_page_is_in_the_learners_language_where_the_reader_has_none_of_ours(service: Service):
    version = a_version(service)
    user = str(uuid4())
    service.send("catalog", event("learner.updated", {"user_id": user, "name": "Ada Lovelace", "locale": "de-CH"}))
    about = {"user_id": user, "course_version_id": version["course_version_id"]}
    service.send("enrollment", event("enrollment.requested", about))
    lesson = {"lesson_id": version["lessons"][0]["lesson_id"], "status": "completed"}
    service.send("progress", event("lesson.progressed", about | lesson))
    service.deliver()
    path = f"/certificates/{the_row(service)['certificate_uid']}"
    for asked, language in ((None, "de"), ("fr, *;q=0.5", "de"), ("en", "en")):
        answer = get(service, path, "text/html", **({"accept-language": asked} if asked else {}))
        assert answer.headers["content-language"] == language


def test_whose_credential_is_still_being_signed_is_told_so(service: Service, path: str):
    service.rows("UPDATE certificates SET credential = NULL, credential_jwt = NULL, due_at = now()")
    for accept in ("application/vc", "application/vc+jwt"):
        answer = get(service, path, accept)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert answer.json["type"].endswith(":not_signed_yet")
    every_minute(service)
    assert get(service, path, "application/vc").status == 200


# The issuer's keys


def test_the_keys_are_published_before_anything_is_signed(service: Service):
    assert get(service, "/.well-known/did.json").json["verificationMethod"] == []
    service.invoke("certificate_worker", MINUTE)
    document = get(service, "/.well-known/did.json")
    assert document.headers["content-type"] == "application/did+json"
    assert document.headers["access-control-allow-origin"] == "*"
    assert document.json["id"] == "did:web:127.0.0.1%3A3000"
    assert sorted(method["type"] for method in document.json["verificationMethod"]) == ["JsonWebKey", "Multikey"]
    assert document.json["assertionMethod"] == [method["id"] for method in document.json["verificationMethod"]]
    jwks = get(service, "/.well-known/jwks.json").json["keys"]
    assert {key["kid"] for key in jwks} == set(document.json["assertionMethod"])
    assert {key["alg"] for key in jwks} == {"EdDSA", "ES256"}
    assert not any("d" in key for key in jwks)


def test_a_replaced_key_stays_published_and_old_credentials_name_it(
    service: Service, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def method_of(path: str) -> str:
        return get(service, path, "application/vc").json["proof"][0]["verificationMethod"]

    old = method_of(path)
    keys.make(tmp_path)
    monkeypatch.setenv("CREDENTIAL_KEY", f"file:{keys.path(tmp_path, 'credential-key')}")
    settings.credential_key.cache_clear()
    try:
        complete(service, a_version(service), "Grace Hopper")
        service.deliver()
        (uid,) = [r["certificate_uid"] for r in service.rows("SELECT * FROM certificates ORDER BY issued_at DESC LIMIT 1")]
        new = method_of(f"/certificates/{uid}")
        assert new != old
        assert method_of(path) == old
        assert {new, old} <= set(get(service, "/.well-known/did.json").json["assertionMethod"])
    finally:
        settings.credential_key.cache_clear()


def test_after_a_key_became_known_to_somebody_nothing_is_signed_by_it_any_more(
    service: Service, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As docs/certificates.md has it."""
    before = get(service, path, "application/vc").json
    known = before["proof"][0]["verificationMethod"]
    keys.make(tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("CREDENTIAL_KEY", f"file:{keys.path(tmp_path, 'credential-key')}")
        settings.credential_key.cache_clear()
        kid = known.partition("#")[2]
        service.rows("DELETE FROM signing_keys WHERE kid = %s", kid)
        service.rows("UPDATE status_lists SET due_at = now()")
        service.rows(
            "UPDATE certificates SET credential = NULL, due_at = now(), tries = 0 WHERE credential LIKE %s", f'%#{kid}"%'
        )
        service.invoke("certificate_worker", MINUTE)
    settings.credential_key.cache_clear()
    after, listed = get(service, path, "application/vc").json, get(service, "/status-lists/0").json
    (new,) = {document["proof"][0]["verificationMethod"] for document in (after, listed)}
    methods = get(service, "/.well-known/did.json").json["assertionMethod"]
    assert new in methods
    assert known not in methods
    assert {name: after[name] for name in after if name != "proof"} == {name: before[name] for name in before if name != "proof"}


# Status lists


def bits(service: Service, number: int = 0) -> set[int]:
    """Which entries of the status list are set, as a verifier reads it."""
    answer = get(service, f"/status-lists/{number}")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/vc")
    encoded = answer.json["credentialSubject"]["encodedList"]
    assert encoded[0] == "u"
    content = gzip.decompress(urlsafe_b64decode(encoded[1:] + "=" * (-len(encoded[1:]) % 4)))
    assert len(content) == 16_384
    return {8 * n + bit for n, byte in enumerate(content) if byte for bit in range(8) if byte & (0x80 >> bit)}


def entry(service: Service, path: str) -> int:
    return int(get(service, path, "application/vc").json["credentialStatus"]["statusListIndex"])


def test_revoking_and_reinstating_turn_the_bit(service: Service, path: str):
    index = entry(service, path)
    assert bits(service) == set()
    for _ in range(2):
        service.admin("POST", f"{path}/revoke", {"reason": "fraud"})
        service.deliver()
        assert bits(service) == {index}
        # The credential itself stays as it was signed.
        assert entry(service, path) == index
        service.admin("POST", f"{path}/reinstate", {"reason": "was not"})
        service.deliver()
        assert bits(service) == set()
    assert get(service, "/status-lists/0").headers["cache-control"] == "public, max-age=15"


@pytest.mark.parametrize(
    ("number", "status"), [("1", 404), ("0", 404), ("99999999999", 422), ("x", 422), ("-1", 422), ("+0", 422), ("00", 422)]
)
def test_a_status_list_that_is_none(service: Service, number: str, status: int):
    assert get(service, f"/status-lists/{number}").status == status


def test_each_entry_of_a_list_is_given_once_and_in_no_order(service: Service):
    (row,) = service.rows(
        """
        SELECT count(DISTINCT i) AS distinct, min(i), max(i), corr(n, i) AS correlation
        FROM (SELECT n, status_index(n, %s) AS i FROM generate_series(131072, 262143) n) scattered
        """,
        uuid4(),
    )
    assert (row["distinct"], row["min"], row["max"]) == (131_072, 0, 131_071)
    assert abs(row["correlation"]) < 0.02
    # Another list, and another secret, scatter otherwise.
    first, second = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
    firsts = [
        [r["i"] for r in service.rows("SELECT status_index(n, %s) AS i FROM generate_series(%s, %s + 9) n", secret, at, at)]
        for secret, at in ((first, 0), (first, 131_072), (second, 0))
    ]
    assert len({tuple(one) for one in firsts}) == 3


def test_certificates_issued_at_once_have_entries_of_their_own(service: Service):
    version = a_version(service)
    users = complete(service, version, *(f"Learner {n}" for n in range(24)))
    service.rows("SELECT setval('status_list_entries', 131071 - 12)")
    asked = [
        event("enrollment.completed", {"user_id": user, "course_version_id": version["course_version_id"]}) for user in users
    ]
    at_once([lambda n=n: service.send("certificate", asked[n:] + asked[:n]) for n in range(0, 24, 6)])
    every_minute(service)
    entries = [row["status_entry"] for row in service.rows("SELECT status_entry FROM certificates")]
    assert len(set(entries)) == 24
    # The first list was full on the way.
    assert {e // 131_072 for e in entries} == {0, 1}
    named = [
        get(service, f"/certificates/{row['certificate_uid']}", "application/vc").json["credentialStatus"]["id"]
        for row in service.rows("SELECT certificate_uid FROM certificates")
    ]
    assert len(set(named)) == 24
    assert bits(service, 0) == bits(service, 1) == set()


def test_a_list_that_changes_while_it_is_signed_is_signed_again(service: Service, path: str):
    index = entry(service, path)
    service.rows("UPDATE status_lists SET due_at = now()")
    ((number, changes),) = db.run(outstanding.lease_status_lists).fetchall()
    service.admin("POST", f"{path}/revoke", {"reason": "fraud"})
    db.run(lambda conn: outstanding.save_status_list(conn, number, changes, "what was signed before"))
    service.deliver()
    assert bits(service) == {index}
    # And one that was begun before and ends after is not kept.
    db.run(lambda conn: outstanding.save_status_list(conn, number, changes, "what was signed before"))
    assert bits(service) == {index}


def test_a_list_is_signed_again_when_it_is_asked_for_though_nothing_changed(service: Service, path: str):
    before = get(service, "/status-lists/0").json["proof"]
    # As after a key has become known to somebody.
    service.rows("UPDATE status_lists SET due_at = now(), credential = replace(credential, '\"proof\"', '\"spoof\"')")
    service.invoke("certificate_worker", MINUTE)
    assert get(service, "/status-lists/0").json["proof"][0]["verificationMethod"] == before[0]["verificationMethod"]
    assert service.rows("SELECT due_at FROM status_lists") == [{"due_at": None}]
    assert path


def test_nothing_is_signed_that_leads_to_no_list(service: Service):
    complete(service, a_version(service), "Ada Lovelace")
    # Another worker has taken the list, and dies over it.
    service.rows("INSERT INTO status_lists (number, due_at) VALUES (0, now() + interval '30 seconds')")
    service.deliver()
    row = the_row(service)
    assert (row["pdf_url"] is None, row["credential"], row["credential_jwt"]) == (False, None, None)
    assert row["due_at"] is not None
    every_minute(service)
    assert the_row(service)["due_at"] is None
    assert bits(service) == set()


def test_a_list_is_current_as_soon_as_the_key_is_back(service: Service, path: str, monkeypatch: pytest.MonkeyPatch):
    index = entry(service, path)
    with Kms() as kms, monkeypatch.context() as patch:
        patch.setenv("CREDENTIAL_KEY", kms.create_key("ECC_NIST_EDWARDS25519"))
        patch.setenv("AWS_ENDPOINT_URL_KMS", kms.url)
        for cached in (settings.credential_key, signing.key, signing._kms):
            cached.cache_clear()
        kms.failure = "down"
        service.admin("POST", f"{path}/revoke", {"reason": "fraud"})
        service.deliver()
        for _ in range(3):
            service.invoke("certificate_worker", MINUTE)
        assert bits(service) == set()
        kms.failure = None
        service.invoke("certificate_worker", MINUTE)
        assert bits(service) == {index}
    for cached in (settings.credential_key, signing.key, signing._kms):
        cached.cache_clear()


def test_issuing_waits_for_nobody_who_is_just_changing_a_list(service: Service, path: str):
    complete(service, a_version(service), "Grace Hopper")
    with psycopg.connect(service.database_url) as conn:
        conn.execute("UPDATE certificates SET revoked_at = now(), revocation_reason = 'r', revoked_by = 'a'")
        service.rows("ALTER ROLE CURRENT_USER SET statement_timeout = '5s'")
        try:
            db.close()
            service.deliver()
        finally:
            service.rows("ALTER ROLE CURRENT_USER RESET statement_timeout")
            db.close()
        assert service.rows("SELECT count(*) FROM certificates") == [{"count": 2}]
        conn.commit()
    every_minute(service)
    assert bits(service) == {entry(service, path)}


# Reissued


def test_reissued_it_bears_the_new_name_under_the_same_uid_and_the_old_one_is_kept(service: Service, path: str):
    before, old = get(service, path).json, the_row(service)
    service.send("catalog", event("learner.updated", {"user_id": str(old["user_id"]), "name": "Ada King"}))
    service.deliver()
    # A new name alone changes nothing.
    assert get(service, path).json == before
    answer = service.admin("POST", f"{path}/reissue", {"reason": "married"})
    assert (answer.status, answer.json["learner_name"]) == (200, "Ada King")
    assert get(service, path).json == before | {"learner_name": "Ada King"}
    # What was made for the old name is not shown any more.
    assert get(service, path, "application/vc").status == 503
    service.deliver()
    signed = get(service, path, "application/vc").json
    assert signed["credentialSubject"]["identifier"][0]["identityHash"] == "Ada King"
    (snapshot,) = service.rows("SELECT * FROM certificate_snapshots")
    kept = ("issued_at", "expires_at", "pdf_url", "metadata", "revision", "status_entry", "credential", "credential_jwt")
    assert {name: snapshot[name] for name in kept} == {name: old[name] for name in kept}
    assert (snapshot["actor"], snapshot["reason"]) == (str(ADMIN), "married")
    # The old credential does not pass for the current one; its document is still there.
    old_index = int(json.loads(old["credential"])["credentialStatus"]["statusListIndex"])
    assert old_index != entry(service, path)
    assert bits(service) == {old_index}
    uid = old["certificate_uid"]
    assert {f"certificates/{uid}/1.pdf", f"certificates/{uid}/2.pdf"} <= set(objects())
    assert [e["type"] for e in service.published()][-1] == "certificate.reissued"
    told = service.published("certificate.reissued")[0]["data"]
    assert (told["status"], told["reason"], told["certificate_uid"]) == ("valid", "married", uid)
    history = service.admin("GET", f"/users/{old['user_id']}/enrollments/{old['course_version_id']}/history").json["items"]
    assert (history[-1]["type"], history[-1]["actor"], history[-1]["reason"]) == ("certificate_reissued", str(ADMIN), "married")


def test_reissued_while_it_is_revoked_it_stays_revoked(service: Service, path: str):
    service.admin("POST", f"{path}/revoke", {"reason": "fraud"})
    assert service.admin("POST", f"{path}/reissue", {"reason": "wrong name"}).json["status"] == "revoked"
    service.deliver()
    assert entry(service, path) in bits(service)
    service.admin("POST", f"{path}/reinstate", {"reason": "was not"})
    service.deliver()
    assert len(bits(service)) == 1
    assert entry(service, path) not in bits(service)


def test_reissued_after_a_reset_it_keeps_what_was_achieved(service: Service, path: str):
    row, before = the_row(service), get(service, path).json
    enrollment = f"/users/{row['user_id']}/enrollments/{row['course_version_id']}"
    assert service.admin("POST", f"{enrollment}/reset", {"reason": "again"}).status == 200
    service.deliver()
    assert get(service, path).json == before
    assert service.admin("POST", f"{path}/reissue", {"reason": "lost"}).status == 200
    assert get(service, path).json == before


def test_reissued_before_a_renewal_came_through_it_is_still_renewed(service: Service):
    (user,) = complete(service, a_version(service, certificate={"enabled": True, "valid_for_days": 1}), "Ada Lovelace")
    service.deliver()
    row = the_row(service)
    path, enrollment = f"/certificates/{row['certificate_uid']}", f"/users/{user}/enrollments/{row['course_version_id']}"
    service.rows("UPDATE certificates SET issued_at = '2026-01-01', expires_at = '2026-01-02'")
    service.rows('UPDATE certificates SET metadata = metadata || \'{"completed_at": "2026-01-01T00:00:00Z"}\'')
    assert service.admin("POST", f"{enrollment}/reset", {"reason": "again"}).status == 200
    (lesson,) = service.rows("SELECT lesson_id FROM course_version_lessons")
    service.admin("PUT", f"{enrollment}/lessons/{lesson['lesson_id']}/progress", {"status": "completed"})
    assert service.admin("POST", f"{path}/reissue", {"reason": "name"}).json["status"] == "expired"
    service.deliver()
    assert get(service, path).json["status"] == "valid"
    assert the_row(service)["revision"] == 3


def test_what_was_begun_before_it_was_reissued_is_not_kept(service: Service, path: str):
    service.rows("UPDATE certificates SET pdf_url = NULL, credential = NULL, credential_jwt = NULL, due_at = now()")
    (leased,) = db.run(lambda conn: outstanding.lease(conn, 10)).fetchall()
    service.admin("POST", f"{path}/reissue", {"reason": "wrong name"})
    db.run(lambda conn: outstanding.save(conn, [outstanding.Made(leased.id, leased.revision, "old", "old", "old")]))
    row = the_row(service)
    assert (row["pdf_url"], row["credential"], row["credential_jwt"]) == (None, None, None)
    service.deliver()
    assert the_row(service)["due_at"] is None


def test_only_administrators_reissue(service: Service, path: str):
    row = the_row(service)
    assert service.http("POST", f"{path}/reissue", {"reason": "r"}, sub=row["user_id"]).status == 403
    assert service.admin("POST", f"{path}/reissue", {}).status == 422
    assert service.admin("POST", "/certificates/x/reissue", {"reason": "r"}).status == 404
    assert the_row(service) == row


# Whatever happens to one


def test_one_that_cannot_be_made_holds_up_no_other_and_its_name_is_not_logged(
    service: Service, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    users = complete(service, a_version(service), "Ada Lovelace", "Bad Secret", "Grace Hopper")
    asked = asked_for(service)
    # A snapshot that nothing can be made of, as it might come from an older version of the service.
    service.rows(
        """
        CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF new.metadata ->> 'learner_name' LIKE 'Bad%%' THEN new.metadata := new.metadata - 'course_title'; END IF;
            RETURN new;
        END $$
        """
    )
    service.rows("CREATE TRIGGER spoil BEFORE INSERT ON certificates FOR EACH ROW EXECUTE FUNCTION spoil()")
    service.send("certificate", asked)
    finished = {str(row["user_id"]) for row in service.rows("SELECT user_id FROM certificates WHERE due_at IS NULL")}
    assert finished == {users[0], users[2]}
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["not made"] * 3
    assert "Secret" not in caplog.text + "".join(capfd.readouterr())
    # It is tried again ever more seldom, every four minutes at most.
    for pause in (120, 240, 240):
        service.rows("UPDATE certificates SET due_at = now() WHERE due_at IS NOT NULL")
        service.invoke("certificate_worker", MINUTE)
        (row,) = service.rows("SELECT extract(epoch FROM due_at - now()) AS pause FROM certificates WHERE due_at IS NOT NULL")
        assert pause - 30 < row["pause"] <= pause


KILLED_AFTER = {
    "the row": "outstanding.lease",
    "the document": "document.pdf",
    "S3": "storage.put",
    "the signature": "credential.sign",
    "the token": "credential.jwt",
    "saving": "outstanding.save",
}


@pytest.mark.parametrize("step", KILLED_AFTER)
def test_killed_at_any_step_there_is_one_certificate_with_all_that_belongs_to_it(service: Service, tmp_path: Path, step: str):
    version = a_version(service)
    (user,) = complete(service, version, "Ada Lovelace")
    message = event("enrollment.completed", {"user_id": user, "course_version_id": version["course_version_id"]})
    (tmp_path / "event.json").write_text(json.dumps(message))
    module, function = KILLED_AFTER[step].split(".")
    script = f"""
import json, os, signal, sys
from shared.certificate import {module}
from tests.support.service import context, record
real = {module}.{function}
def killed(*arguments, **options):
    done = real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
{module}.{function} = killed
from functions.certificate_worker.app import handler
handler({{"Records": [record(open(sys.argv[1]).read())]}}, context("certificate_worker"))
"""
    process = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "event.json"],
        env=os.environ | {"DATABASE_URL": service.database_url},
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    first = service.rows("SELECT certificate_uid, status_entry FROM certificates")
    assert len(first) == 1
    # The message comes again, and the clock starts the worker.
    service.send("certificate", message)
    every_minute(service)
    service.deliver()
    row = the_row(service)
    assert {name: row[name] for name in first[0]} == first[0]
    assert row["due_at"] is None
    assert [key for key in objects() if row["certificate_uid"] in key] == [f"certificates/{row['certificate_uid']}/1.pdf"]
    path = f"/certificates/{row['certificate_uid']}"
    assert httpx.get(get(service, path, "application/pdf").headers["location"]).content.startswith(b"%PDF-")
    assert get(service, path, "application/vc").json["credentialSubject"]["identifier"][0]["identityHash"] == "Ada Lovelace"
    assert len(service.published("certificate.issued")) == 1


def test_workers_side_by_side_make_each_one_once(service: Service, path: str):
    assert path
    complete(service, a_version(service), *(f"Learner {n}" for n in range(60)))
    asked = asked_for(service)[1:]
    db.run(lambda conn: conn.execute("SELECT 1"))
    at_once([lambda n=n: service.send("certificate", asked[n::3]) for n in range(3)] * 2)
    rows = service.rows("SELECT tries, due_at FROM certificates")
    assert len(rows) == 61
    assert {(row["tries"], row["due_at"]) for row in rows} == {(1, None)}


def test_a_key_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys.make(tmp_path)
    with pytest.raises(ValueError, match="holds no key for ES256"):
        signing.FileKey(keys.path(tmp_path, "credential-key"), "ES256").sign(b"")
    with Kms() as kms:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", kms.url)
        signing._kms.cache_clear()
        one, other = kms.create_key("ECC_NIST_P256"), kms.create_key("ECC_NIST_P256")
        with pytest.raises(ValueError, match="is no key for Ed25519"):
            _ = signing.KmsKey(one, "Ed25519").public_key
        # What signs is another key than the one whose public half is known, as behind an alias that was moved.
        key = signing.KmsKey(one, "ES256")
        assert len(key.sign(b"message")) == 64
        key.__dict__["public_key"] = signing.KmsKey(other, "ES256").public_key
        with pytest.raises(InvalidSignature):
            key.sign(b"message")
    signing._kms.cache_clear()


def test_keys_in_each_others_place_are_not_published(service: Service, monkeypatch: pytest.MonkeyPatch):
    complete(service, a_version(service), "Ada Lovelace")
    swapped = {"CREDENTIAL_KEY": os.environ["CREDENTIAL_JWT_KEY"], "CREDENTIAL_JWT_KEY": os.environ["CREDENTIAL_KEY"]}
    with monkeypatch.context() as patch:
        for name, value in swapped.items():
            patch.setenv(name, value)
        settings.credential_key.cache_clear()
        settings.credential_jwt_key.cache_clear()
        service.deliver()
    settings.credential_key.cache_clear()
    settings.credential_jwt_key.cache_clear()
    row = the_row(service)
    assert (row["pdf_url"] is None, row["credential"], row["credential_jwt"]) == (False, None, None)
    assert get(service, "/.well-known/did.json").json["verificationMethod"] == []
    every_minute(service)
    assert the_row(service)["due_at"] is None
