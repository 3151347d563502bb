"""Verifiers that we did not write check the service's credentials as it serves them."""

import json
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from openvc import OpenvcError
from openvc.status import CredentialRevoked

from local import keys
from shared.certificate import credential
from shared.certificate.models import Certificate
from shared.certificate.signing import FileKey, base64url, kid
from tests.support.service import course, event, quiz
from tests.verifiers.conftest import Site
from tests.verifiers.openvc_verifier import check

DATA = Path(__file__).parent.parent / "data"

type Verifier = Callable[..., list[Any]]

HOLDS = {"proof": {"verified": True}, "status": {"verified": True, "revoked": False}, "schema": {"valid": True}}
IS_REVOKED = HOLDS | {"status": {"verified": True, "revoked": True}}
JWT_HOLDS = {"jwks": {"verified": True}, "did": {"verified": True}, "schema": {"valid": True}}


@dataclass(frozen=True)
class Certified:
    """A certificate, as a stranger and as an administrator deal with it."""

    site: Site
    user_id: str
    uid: str

    @property
    def url(self) -> str:
        return f"{self.site.url}/certificates/{self.uid}"

    def credential(self) -> dict[str, Any]:
        return self._get("application/vc").json()

    def jwt(self) -> str:
        return self._get("application/vc+jwt").text

    def _get(self, media_type: str) -> httpx.Response:
        answer = httpx.get(self.url, headers={"Accept": media_type})
        assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
        return answer

    def post(self, what: str) -> None:
        """Revoke, reinstate or reissue it, and let the workers work."""
        answer = self.site.service.admin("POST", f"/certificates/{self.uid}/{what}", {"reason": "An error came to light."})
        assert answer.status == 200, answer.text
        self.site.service.deliver()


def certify(site: Site, name: str = "Zoë Ångström", **certificate: Any) -> Certified:
    """A learner completes a course with a lesson and a quiz, and the workers work."""
    service = site.service
    version = course(lessons=1, quizzes=[quiz()], certificate={"enabled": True} | certificate)
    about = {"user_id": str(uuid4()), "course_version_id": version["course_version_id"]}
    lesson = about | {"lesson_id": version["lessons"][0]["lesson_id"], "status": "completed"}
    attempt = about | {
        "attempt_id": str(uuid4()),
        "quiz_id": version["quizzes"][0]["quiz_id"],
        "answers": {"q1": "a", "q2": 0.2},
    }
    service.send("catalog", event("course_version.published", version))
    service.send("catalog", event("learner.updated", {"user_id": about["user_id"], "name": name}))
    service.send("enrollment", event("enrollment.requested", about, "2026-01-01T12:00:00Z"))
    service.send("progress", event("lesson.progressed", lesson, "2026-01-02T12:00:00Z"))
    service.send("quiz", event("quiz.submitted", attempt, "2026-01-02T12:00:00Z"))
    service.deliver()
    (row,) = service.rows("SELECT certificate_uid FROM certificates WHERE user_id = %s", about["user_id"])
    return Certified(site, about["user_id"], row["certificate_uid"])


@pytest.fixture
def certified(site: Site) -> Certified:
    return certify(site)


def saved(folder: Path, *contents: Any) -> list[Path]:
    """Credentials (as JSON) and JWTs in a file each."""
    paths = [folder / f"{uuid4()}.json" for _ in contents]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return paths


def mistyped(value: Any) -> Iterator[Any]:
    """All that a JSON value becomes by one wrong letter in one of its texts."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield from (value | {name: wrong} for wrong in mistyped(member))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from ([*value[:place], wrong, *value[place + 1 :]] for wrong in mistyped(item))
    elif isinstance(value, str):
        # The last letter but one, since that is where an index, a uid and a name differ from others like them.
        place = max(0, len(value) - 2)
        others = "ab" if value[place].isalpha() else "78"
        yield value[:place] + next(other for other in others if other != value[place]) + value[place + 1 :]


def whole_seconds(time: str) -> str:
    """A time of the API as it stands in credentials."""
    return datetime.fromisoformat(time).strftime("%Y-%m-%dT%H:%M:%SZ")


# The credential


def test_vc_and_ajv_accept_the_credential(certified: Certified, vc: Verifier):
    assert vc(certified.url) == [HOLDS]


def test_openvc_accepts_the_credential(certified: Certified):
    (result,) = check(certified.credential())
    assert result.issuer == f"did:web:127.0.0.1%3A{certified.site.url.rpartition(':')[2]}"
    assert result.status is not None
    assert result.status.revoked is False


def test_it_says_what_the_certificate_says(certified: Certified):
    certificate = httpx.get(certified.url).json()
    document = certified.credential()
    subject = document["credentialSubject"]
    assert document["id"] == certified.url == certificate["url"]
    assert document["issuer"]["name"] == certificate["issuer_name"]
    assert subject["identifier"][0]["identityHash"] == certificate["learner_name"] == "Zoë Ångström"
    assert subject["achievement"]["name"] == certificate["course_title"]
    assert subject["achievement"]["version"] == certificate["version"]
    assert subject["result"][0]["value"] == f"{certificate['score']:g}" == "75"
    assert datetime.fromisoformat(document["awardedDate"]) == datetime.fromisoformat(certificate["completed_at"])
    assert datetime.fromisoformat(document["validFrom"]) == datetime.fromisoformat(certificate["issued_at"]).replace(
        microsecond=0
    )
    assert "validUntil" not in document


def test_vc_refuses_the_credential_with_one_letter_changed(certified: Certified, vc: Verifier, tmp_path: Path):
    forged = list(mistyped(certified.credential()))
    assert len(forged) > 30
    assert [one["proof"]["verified"] for one in vc(*saved(tmp_path, *forged))] == [False] * len(forged)


def test_openvc_refuses_the_credential_with_one_letter_changed(certified: Certified):
    for forged in mistyped(certified.credential()):
        with pytest.raises(OpenvcError):
            check(forged)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(("credentialSubject", "identifier", 0, "identityHash"), id="name"),
        pytest.param(("validFrom",), id="date"),
        pytest.param(("id",), id="uid"),
        pytest.param(("credentialStatus", "statusListIndex"), id="status index"),
        pytest.param(("proof", 0, "proofValue"), id="signature"),
    ],
)
def test_one_letter_is_enough_for_an_invalid_signature(certified: Certified, place: tuple[str | int, ...]):
    document = certified.credential()
    holder: Any = document
    for step in place[:-1]:
        holder = holder[step]
    holder[place[-1]] = next(mistyped(holder[place[-1]]))
    with pytest.raises(OpenvcError, match="does not verify"):
        check(document)


def test_a_certificate_that_ends_says_so_in_both(site: Site, vc: Verifier, jose: Verifier):
    certified = certify(site, valid_for_days=30)
    ends = whole_seconds(httpx.get(certified.url).json()["expires_at"])
    assert certified.credential()["validUntil"] == ends
    assert claims(certified.jwt())["exp"] == datetime.fromisoformat(ends).timestamp()
    assert vc(certified.url) == [HOLDS]
    assert jose(site.url, certified.url) == [JWT_HOLDS]


def test_vc_reads_any_name_as_we_do(vc: Verifier, tmp_path: Path):
    """Where two implementations wrote a name differently in canonical form, the signature would not hold."""
    keys.make(tmp_path)
    key = FileKey(keys.path(tmp_path, "credential-key"), "Ed25519")
    controller = f"did:key:{kid(key.public_key)}"
    now = datetime.now(UTC)

    def signed(name: str) -> dict[str, Any]:
        certificate = Certificate(
            certificate_uid="uid",
            status="valid",
            learner_name=name,
            course_title=name,
            version=name,
            issuer_name=name,
            criteria=[],
            score=None,
            completed_at=now,
            issued_at=now,
            expires_at=None,
            revoked_at=None,
            revocation_reason=None,
            url="https://example.org/certificates/uid",
        )
        document = credential.build(certificate, uuid4(), None, 0, 0, "https://example.org")
        document["issuer"]["id"] = controller
        del document["credentialStatus"]
        return credential.sign(document, key, controller, now)

    names: list[str] = json.loads((DATA / "naughty-strings" / "blns-even.json").read_text())
    names += ["\x00\x1b\x7f\x85\u2028\u2029\ufeff", '"\\\t\r\n', "\ue000\ufdd0\uffff\U0010ffff", "\u202eadA\u202c", "e\u0301é"]
    answers = zip(names, vc(*saved(tmp_path, *map(signed, names))), strict=True)
    expected = {"proof": {"verified": True}, "status": None, "schema": {"valid": True}}
    assert [name for name, answer in answers if answer != expected] == []


# Its status


def test_status_follows_revoke_and_reinstate(certified: Certified, vc: Verifier):
    other = certify(certified.site, "Ada Lovelace")
    certified.post("revoke")
    assert vc(certified.url, other.url) == [IS_REVOKED, HOLDS]
    with pytest.raises(CredentialRevoked):
        check(certified.credential())
    check(other.credential())
    certified.post("reinstate")
    assert vc(certified.url, other.url) == [HOLDS, HOLDS]
    check(certified.credential())


def test_status_list_is_signed_and_no_letter_of_it_can_be_changed(certified: Certified, vc: Verifier, tmp_path: Path):
    answer = httpx.get(certified.credential()["credentialStatus"]["statusListCredential"])
    assert answer.headers["content-type"] == "application/vc"
    signed = answer.json()
    forged = list(mistyped(signed))
    genuine, *others = vc(*saved(tmp_path, signed, *forged))
    assert genuine["proof"] == {"verified": True}
    assert [one["proof"]["verified"] for one in others] == [False] * len(forged)
    check(signed, with_status=False)


def test_the_credential_before_a_reissue_counts_no_more(certified: Certified, vc: Verifier, tmp_path: Path):
    before = certified.credential()
    service = certified.site.service
    service.send("catalog", event("learner.updated", {"user_id": certified.user_id, "name": "Zoë Byron"}))
    certified.post("reissue")
    assert certified.credential()["credentialSubject"]["identifier"][0]["identityHash"] == "Zoë Byron"
    assert vc(certified.url, *saved(tmp_path, before)) == [HOLDS, IS_REVOKED]


def test_old_credentials_hold_after_the_keys_were_changed(certified: Certified, vc: Verifier, jose: Verifier):
    site = certified.site
    site.sign_with(site.kms.create_key("ECC_NIST_EDWARDS25519"), site.kms.create_key("ECC_NIST_P256"))
    later = certify(site, "Ada Lovelace")
    methods = [one.credential()["proof"][0]["verificationMethod"] for one in (certified, later)]
    assert methods[0] != methods[1]
    assert vc(certified.url, later.url) == [HOLDS, HOLDS]
    assert jose(site.url, certified.url, later.url) == [JWT_HOLDS, JWT_HOLDS]


# The same as JWT


def parts(token: str) -> list[Any]:
    """The header and the claims of a JWT, and its signature as it is."""
    *pieces, signature = token.split(".")
    return [*(json.loads(urlsafe_b64decode(piece + "=" * (-len(piece) % 4))) for piece in pieces), signature]


def claims(token: str) -> dict[str, Any]:
    return parts(token)[1]


def unsigned(header: dict[str, Any], payload: dict[str, Any]) -> str:
    return ".".join(base64url(json.dumps(part).encode()) for part in (header, payload))


def refused(answers: list[Any]) -> bool:
    """Whether jose refuses them all, with the key from either place."""
    return all(not one[source]["verified"] for one in answers for source in ("jwks", "did"))


def test_jose_accepts_the_jwt(certified: Certified, jose: Verifier):
    assert jose(certified.site.url, certified.url) == [JWT_HOLDS]


def test_the_jwt_is_the_same_credential(certified: Certified):
    document = certified.credential()
    del document["proof"]
    registered = {"iss": document["issuer"]["id"], "jti": document["id"], "sub": document["credentialSubject"]["id"]}
    started = int(datetime.fromisoformat(document["validFrom"]).timestamp())
    assert claims(certified.jwt()) == document | registered | {"nbf": started}


def test_jose_refuses_the_jwt_with_one_letter_changed(certified: Certified, jose: Verifier, tmp_path: Path):
    token = certified.jwt()
    header, payload, signature = parts(token)
    forged = [f"{unsigned(header, wrong)}.{signature}" for wrong in mistyped(payload)]
    forged += [f"{unsigned(wrong, payload)}.{signature}" for wrong in mistyped(header)]
    forged += [f"{token.rpartition('.')[0]}.{wrong}" for wrong in mistyped(signature)]
    assert len(forged) > 30
    assert refused(jose(certified.site.url, *saved(tmp_path, *forged)))


def test_jose_refuses_a_jwt_that_is_not_signed_by_our_key(certified: Certified, jose: Verifier, tmp_path: Path):
    header, payload, _ = parts(certified.jwt())
    body = unsigned(header, payload)
    stranger = ec.generate_private_key(ec.SECP256R1())
    r, s = decode_dss_signature(stranger.sign(body.encode(), ec.ECDSA(hashes.SHA256())))
    by_another = f"{body}.{base64url(r.to_bytes(32) + s.to_bytes(32))}"
    not_at_all = f"{unsigned(header | {'alg': 'none'}, payload)}."
    # The public key taken for a secret, as libraries were once talked into.
    body = unsigned(header | {"alg": "HS256"}, payload)
    mac = hmac.HMAC(httpx.get(f"{certified.site.url}/.well-known/jwks.json").content, hashes.SHA256())
    mac.update(body.encode())
    by_public_key = f"{body}.{base64url(mac.finalize())}"
    assert refused(jose(certified.site.url, *saved(tmp_path, by_another, not_at_all, by_public_key)))
