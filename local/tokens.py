"""Bearer tokens of the local service: RS256 JWTs signed with a key of its own, as the IAM service signs them on AWS."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey

ISSUER = "https://iam.localhost"
AUDIENCE = "learner-progress"
LIFETIME_SECONDS = 12 * 3600
KEY_BITS = 2048


class InvalidTokenError(Exception):
    """A token that the gateway refuses; the message says why."""


def signing_key(local_dir: Path) -> RSAKey:
    """Return the key of this service, made on first use: `<local_dir>/signing-key.pem`, for its owner only."""
    path = local_dir / "signing-key.pem"
    try:
        return RSAKey.import_key(path.read_bytes())
    except FileNotFoundError:
        key = RSAKey.generate_key(KEY_BITS)
        local_dir.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"signing-key.{os.getpid()}.new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.as_pem(private=True))
        try:
            # Unlike a renaming, a link never replaces a key that somebody else has just made.
            os.link(fresh, path)
        except FileExistsError:
            return RSAKey.import_key(path.read_bytes())
        finally:
            fresh.unlink()
        return key


def issue(key: RSAKey, subject: str, scope: str = "") -> str:
    """Return a signed token, valid for twelve hours; scopes are separated by spaces."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + LIFETIME_SECONDS}
    if scope:
        claims["scope"] = scope
    return jwt.encode({"alg": "RS256", "kid": key.thumbprint()}, claims, key)


def verify(token: str, key: RSAKey, issuer: str, audience: Sequence[str]) -> dict[str, Any]:
    """Return the claims of a token, checked as the JWT authorizer of an HTTP API does: RSA signature, iss, aud, exp, nbf, iat.

    Raises InvalidTokenError.
    """
    registry = jwt.JWTClaimsRegistry(
        iss={"essential": True, "value": issuer}, aud={"essential": True, "values": list(audience)}, exp={"essential": True}
    )
    try:
        # Only the one algorithm: neither "none" nor a MAC keyed with the public key can pass.
        decoded = jwt.decode(token, key, algorithms=["RS256"])
        registry.validate(decoded.claims)
        if decoded.header.get("kid", key.thumbprint()) != key.thumbprint():
            raise ValueError("the token names a key that is not known")
    except (JoseError, ValueError) as error:
        raise InvalidTokenError(str(error)) from error
    return decoded.claims
