"""Keys in KMS: what they sign, what KMS refuses, and what becomes of credentials while it is away."""

import hashlib
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from shared.certificate import signing
from tests.support.kms import Failure
from tests.verifiers.conftest import Site
from tests.verifiers.openvc_verifier import check
from tests.verifiers.test_verifiers import certify

LONG = b"x" * 4096


def test_signatures_hold(site: Site):
    key = signing.key(site.kms.create_key("ECC_NIST_EDWARDS25519"), "Ed25519")
    public_key = load_der_public_key(key.public_key)
    assert isinstance(public_key, ed25519.Ed25519PublicKey)
    public_key.verify(key.sign(LONG), LONG)


def test_a_jwt_of_any_length_is_signed(site: Site):
    key = signing.key(site.kms.create_key("ECC_NIST_P256"), "ES256")
    public_key = load_der_public_key(key.public_key)
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    signature = key.sign(LONG * 10)
    assert len(signature) == 64
    der = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    public_key.verify(der, LONG * 10, ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize(
    ("spec", "fields", "code"),
    [
        ("ECC_NIST_EDWARDS25519", {"Message": LONG + b"x", "SigningAlgorithm": "ED25519_SHA_512"}, "ValidationException"),
        (
            "ECC_NIST_EDWARDS25519",
            {"Message": hashlib.sha512(LONG).digest(), "MessageType": "DIGEST", "SigningAlgorithm": "ED25519_SHA_512"},
            "ValidationException",
        ),
        ("ECC_NIST_EDWARDS25519", {"Message": LONG, "SigningAlgorithm": "ECDSA_SHA_256"}, "InvalidKeyUsageException"),
        ("ECC_NIST_P256", {"Message": LONG, "SigningAlgorithm": "ED25519_SHA_512"}, "InvalidKeyUsageException"),
        ("ECC_NIST_P256", {"Message": LONG, "SigningAlgorithm": "ES256"}, "ValidationException"),
        (
            "ECC_NIST_P256",
            {"Message": LONG, "MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"},
            "ValidationException",
        ),
        (
            "ECC_NIST_P256",
            {"Message": LONG, "SigningAlgorithm": "ECDSA_SHA_256", "KeyId": "00000000-0000-4000-8000-000000000000"},
            "NotFoundException",
        ),
    ],
)
def test_kms_is_as_strict_here_as_on_aws(site: Site, spec: Any, fields: dict[str, Any], code: str):
    with pytest.raises(ClientError) as refused:
        signing._kms().sign(**{"KeyId": site.kms.create_key(spec), **fields})
    assert refused.value.response["Error"]["Code"] == code
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


@pytest.mark.parametrize("failure", ["down", "throttled"])
def test_credentials_are_signed_when_kms_is_back(site: Site, failure: Failure):
    site.kms.failure = failure
    certified = certify(site)
    assert httpx.get(certified.url).json()["status"] == "valid"
    for media_type in ("application/vc", "application/vc+jwt"):
        answer = httpx.get(certified.url, headers={"Accept": media_type})
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
    site.kms.failure = None
    # A minute later.
    site.service.rows("UPDATE certificates SET due_at = now()")
    site.service.rows("UPDATE status_lists SET due_at = now()")
    site.service.invoke("certificate_worker", {})
    check(certified.credential())
    assert certified.jwt().count(".") == 2
