"""The keys that credentials are signed by: in AWS KMS, or in a file on a computer whose stand-in for KMS can't do it.

Both kinds of key have the same: `algorithm`; `public_key`, SubjectPublicKeyInfo in DER (RFC 5280); and `sign`, which gives 64
bytes, by Ed25519 as in RFC 8032, by ES256 r and s as in RFC 7518, section 3.4.
"""

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import base58
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from shared.certificate.models import Algorithm

#: Multicodec prefix of an Ed25519 public key (https://www.w3.org/TR/cid-1.0/#Multikey).
_ED25519_PUB = bytes([0xED, 0x01])


@dataclass(frozen=True)
class KmsKey:
    """A key that never leaves AWS KMS; `key_id` as the API takes it. Its methods raise what boto3 raises."""

    key_id: str
    algorithm: Algorithm

    @cached_property
    def public_key(self) -> bytes:
        public_key = _kms().get_public_key(KeyId=self.key_id)["PublicKey"]
        if jwk(public_key)["crv"] != _CURVES[self.algorithm]:
            raise ValueError(f"{self.key_id} is no key for {self.algorithm}")
        return public_key

    def sign(self, message: bytes) -> bytes:
        signature = self._sign(message)
        # What an alias stands for may have changed since the public key was read.
        verify(self.public_key, message, signature)
        return signature

    def _sign(self, message: bytes) -> bytes:
        if self.algorithm == "Ed25519":
            # KMS takes at most 4,096 bytes of it; what is signed here are two digests.
            answer = _kms().sign(KeyId=self.key_id, Message=message, MessageType="RAW", SigningAlgorithm="ED25519_SHA_512")
            return answer["Signature"]
        digest = hashlib.sha256(message).digest()
        answer = _kms().sign(KeyId=self.key_id, Message=digest, MessageType="DIGEST", SigningAlgorithm="ECDSA_SHA_256")
        return _r_and_s(answer["Signature"])


@dataclass(frozen=True)
class FileKey:
    """A private key in a PEM file without a password."""

    path: Path
    algorithm: Algorithm

    @cached_property
    def _private_key(self) -> ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(self.path.read_bytes(), None)
        if not isinstance(key, ed25519.Ed25519PrivateKey if self.algorithm == "Ed25519" else ec.EllipticCurvePrivateKey):
            raise ValueError(f"{self.path} holds no key for {self.algorithm}")
        return key

    @cached_property
    def public_key(self) -> bytes:
        return self._private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, message: bytes) -> bytes:
        key = self._private_key
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(message)
        return _r_and_s(key.sign(message, ec.ECDSA(hashes.SHA256())))


type Key = KmsKey | FileKey

_CURVES: dict[Algorithm, str] = {"Ed25519": "Ed25519", "ES256": "P-256"}


@cache
def key(setting: str, algorithm: Algorithm) -> Key:
    """The key that a setting names: `file:` and a path, else a key of KMS."""
    if setting.startswith("file:"):
        return FileKey(Path(setting.removeprefix("file:")), algorithm)
    return KmsKey(setting, algorithm)


def kid(public_key: bytes) -> str:
    """What a key is called in credentials: its Multikey for Ed25519, else the thumbprint of its JWK (RFC 7638)."""
    members = jwk(public_key)
    if members["kty"] == "OKP":
        return multikey(public_key)
    text = json.dumps(members, sort_keys=True, separators=(",", ":"))
    return base64url(hashlib.sha256(text.encode()).digest())


def multikey(public_key: bytes) -> str:
    """An Ed25519 public key as `publicKeyMultibase` (https://www.w3.org/TR/cid-1.0/#Multikey): z6Mk…"""
    return multibase58(_ED25519_PUB + urlsafe_b64decode(jwk(public_key)["x"] + "="))


def jwk(public_key: bytes) -> dict[str, str]:
    """A public key as JWK (RFC 7517), with the members that its thumbprint is made of and no others."""
    match serialization.load_der_public_key(public_key):
        case ed25519.Ed25519PublicKey() as loaded:
            return {"kty": "OKP", "crv": "Ed25519", "x": base64url(loaded.public_bytes_raw())}
        case ec.EllipticCurvePublicKey() as loaded if isinstance(loaded.curve, ec.SECP256R1):
            point = loaded.public_numbers()
            return {"kty": "EC", "crv": "P-256", "x": base64url(point.x.to_bytes(32)), "y": base64url(point.y.to_bytes(32))}
        case other:
            raise ValueError(f"expected a key for Ed25519 or P-256, found {type(other).__name__}")


def verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Check a signature, in the form in which `sign` gives it.

    Raises
    ------
    cryptography.exceptions.InvalidSignature
        It is not of this key, or not of this message.
    """
    match serialization.load_der_public_key(public_key):
        case ed25519.Ed25519PublicKey() as loaded:
            loaded.verify(signature, message)
        case ec.EllipticCurvePublicKey() as loaded:
            r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
            loaded.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        case other:
            raise ValueError(f"expected a key for Ed25519 or P-256, found {type(other).__name__}")


def base64url(content: bytes) -> str:
    """Base64url without padding (RFC 7515)."""
    return urlsafe_b64encode(content).decode().rstrip("=")


def multibase58(content: bytes) -> str:
    """Multibase in base58btc: `z` and base 58."""
    return "z" + base58.b58encode(content).decode()


def _r_and_s(der: bytes) -> bytes:
    r, s = decode_dss_signature(der)
    return r.to_bytes(32) + s.to_bytes(32)


@cache
def _kms() -> Any:
    import boto3
    from botocore.config import Config

    # What does not answer at once is tried again later, so that documents that need no key are not held up. Once more at once,
    # since a connection that was kept may have been closed meanwhile.
    retries = {"mode": "standard", "total_max_attempts": 2}
    return boto3.client("kms", config=Config(connect_timeout=1, read_timeout=2, retries=retries, max_pool_connections=20))
