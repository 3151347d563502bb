"""The verifiers that run on Node, and the service that they visit.

A test that asks for a verifier is skipped where it is not installed.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Generator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from shared import settings
from shared.certificate import signing
from tests.support.kms import Kms
from tests.support.service import Service
from tests.verifiers.site import served

FOLDER = Path(__file__).parent

type Verifier = Callable[..., list[Any]]


def _script(name: str) -> Verifier:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed; it runs @digitalbazaar/vc, ajv and jose.")
    if not (FOLDER / "node_modules").exists():
        pytest.skip("The verifiers for Node are not installed: npm ci --prefix tests/verifiers")

    def run(*arguments: str | Path) -> list[Any]:
        answer = subprocess.run([node, FOLDER / name, *arguments], check=False, capture_output=True, text=True, timeout=120)
        assert answer.returncode == 0, answer.stderr
        return [json.loads(line) for line in answer.stdout.splitlines()]

    return run


@pytest.fixture(scope="session")
def vc() -> Verifier:
    """@digitalbazaar/vc and ajv on credentials in files or at addresses: what `verify.mjs` says of each."""
    return _script("verify.mjs")


@pytest.fixture(scope="session")
def jose() -> Verifier:
    """jose on JWTs in files or at addresses, after the issuer's base address: what `verify-jwt.mjs` says of each."""
    return _script("verify-jwt.mjs")


@dataclass(frozen=True)
class Site:
    """The service as strangers reach it, with its keys in KMS."""

    service: Service
    url: str
    kms: Kms
    monkeypatch: pytest.MonkeyPatch

    def sign_with(self, credential_key: str, credential_jwt_key: str) -> None:
        """From now on, credentials are signed by these keys of KMS."""
        self.monkeypatch.setenv("CREDENTIAL_KEY", credential_key)
        self.monkeypatch.setenv("CREDENTIAL_JWT_KEY", credential_jwt_key)
        forget()


def forget() -> None:
    """Let the service read its environment again."""
    for cached in (settings.public_base_url, settings.credential_key, settings.credential_jwt_key, signing.key, signing._kms):
        cached.cache_clear()


@pytest.fixture
def site(service: Service, monkeypatch: pytest.MonkeyPatch) -> Generator[Site]:
    """The service at a free port of this computer."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server, Kms() as kms:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("PUBLIC_BASE_URL", url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", kms.url)
        site = Site(service, url, kms, monkeypatch)
        site.sign_with(kms.create_key("ECC_NIST_EDWARDS25519"), kms.create_key("ECC_NIST_P256"))
        with served(service, server):
            yield site
    forget()
