"""The keys that credentials are signed by on this computer: on AWS they are in KMS, whose stand-in knows no Ed25519."""

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

KEYS: dict[str, Callable[[], ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey]] = {
    "credential-key": ed25519.Ed25519PrivateKey.generate,
    "credential-jwt-key": lambda: ec.generate_private_key(ec.SECP256R1()),
}


def path(local_dir: Path, name: str) -> Path:
    """Return where a key is kept."""
    return local_dir / f"{name}.pem"


def make(local_dir: Path) -> None:
    """Make the keys that are not there yet, each for its owner only. Nobody else does it at the same moment."""
    local_dir.mkdir(parents=True, exist_ok=True)
    for name, generate in KEYS.items():
        kept = path(local_dir, name)
        if not kept.exists():
            pem = generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            fresh = kept.with_suffix(".new")
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(pem)
            fresh.rename(kept)
