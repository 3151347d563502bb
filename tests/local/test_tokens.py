"""The tokens that the gateway accepts, and those that it refuses."""

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from local import tokens

SUBJECT = "00000000-0000-4000-8000-000000000001"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> RSAKey:
    return tokens.signing_key(tmp_path_factory.mktemp("local"))


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    all_claims = {"iss": tokens.ISSUER, "aud": tokens.AUDIENCE, "sub": SUBJECT, "iat": now, "exp": now + 60} | changes
    return {name: value for name, value in all_claims.items() if value is not None}


def verified(token: str, key: RSAKey) -> dict[str, Any]:
    return tokens.verify(token, key, tokens.ISSUER, [tokens.AUDIENCE])


def test_an_issued_token_is_accepted(key: RSAKey) -> None:
    found = verified(tokens.issue(key, SUBJECT, "learner-progress:admin learner-progress:report"), key)
    assert found["sub"] == SUBJECT
    assert found["scope"] == "learner-progress:admin learner-progress:report"
    assert found["exp"] - found["iat"] == 12 * 3600


def test_without_a_scope_there_is_no_such_claim(key: RSAKey) -> None:
    assert "scope" not in verified(tokens.issue(key, SUBJECT), key)


@pytest.mark.parametrize(
    "wrong",
    [
        {"exp": int(time.time()) - 10},
        {"exp": None},
        {"nbf": int(time.time()) + 86_400},
        {"iss": "https://iam.example.org"},
        {"iss": None},
        {"aud": "another-service"},
        {"aud": None},
    ],
    ids=str,
)
def test_wrong_claims_are_refused(key: RSAKey, wrong: dict[str, Any]) -> None:
    token = jwt.encode({"alg": "RS256"}, claims(**wrong), key)
    with pytest.raises(tokens.InvalidTokenError):
        verified(token, key)


def test_one_of_several_audiences_is_enough(key: RSAKey) -> None:
    token = jwt.encode({"alg": "RS256"}, claims(aud=["another-service", tokens.AUDIENCE]), key)
    assert verified(token, key)["sub"] == SUBJECT


def test_another_key_is_refused(key: RSAKey) -> None:
    with pytest.raises(tokens.InvalidTokenError):
        verified(tokens.issue(RSAKey.generate_key(2048), SUBJECT), key)


def test_algorithm_none_is_refused(key: RSAKey) -> None:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    with pytest.raises(tokens.InvalidTokenError):
        verified(f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims())}.", key)


def test_a_mac_keyed_with_the_public_key_is_refused(key: RSAKey) -> None:
    public = OctKey.import_key(base64.b64encode(key.as_pem(private=False)).decode())
    with pytest.raises(tokens.InvalidTokenError):
        verified(jwt.encode({"alg": "HS256"}, claims(), public), key)


@pytest.mark.parametrize("text", ["", "abc", "a.b.c", "....", "é.é.é"])
def test_what_is_no_token_is_refused(key: RSAKey, text: str) -> None:
    with pytest.raises(tokens.InvalidTokenError):
        verified(text, key)


def test_changed_claims_are_refused(key: RSAKey) -> None:
    header, _, signature = tokens.issue(key, SUBJECT).split(".")
    _, other, _ = tokens.issue(key, SUBJECT, "learner-progress:admin").split(".")
    with pytest.raises(tokens.InvalidTokenError):
        verified(f"{header}.{other}.{signature}", key)


def test_the_key_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    first = tokens.signing_key(tmp_path / "new")
    assert tokens.signing_key(tmp_path / "new").thumbprint() == first.thumbprint()
    assert os.listdir(tmp_path / "new") == ["signing-key.pem"]
    assert (tmp_path / "new" / "signing-key.pem").stat().st_mode & 0o777 == 0o600
