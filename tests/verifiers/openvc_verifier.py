"""Checks credentials by openvc-core, as a stranger would: proof, validity and status of what an address serves or a file holds.

`python -m tests.verifiers.openvc_verifier <file or address>...` prints one line of JSON for each.
"""

import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
from openvc import OpenvcError, VerificationPolicy, VerificationResult, verify_credential
from openvc.did.base import DidDocument, DidResolutionError, parse_did_document

CONTEXTS = Path(__file__).parent.parent / "data" / "openbadges" / "contexts"
#: openvc brings the context of the W3C along, and fetches none.
EXTRA_CONTEXTS = {
    "https://purl.imsglobal.org/spec/ob/v3p0/context-3.0.3.json": json.loads((CONTEXTS / "ob-v3p0-3.0.3.json").read_text()),
    "https://www.w3.org/ns/credentials/examples/v2": json.loads((CONTEXTS / "credentials-examples-v2.jsonld").read_text()),
}


def fetch(url: str, accept: str) -> Any:
    """The JSON that an address answers with."""
    return httpx.get(url, headers={"Accept": accept}).raise_for_status().json()


class LocalDidWeb:
    """did:web of a service on this computer: openvc's own resolver wants https and refuses numbers as a host."""

    def supports(self, did: str) -> bool:
        return did.startswith("did:web:")

    def resolve(self, did: str) -> DidDocument:
        host = unquote(did.removeprefix("did:web:"))
        try:
            document = parse_did_document(fetch(f"http://{host}/.well-known/did.json", "application/did+json"))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise DidResolutionError(f"{did}: {error}") from error
        if document.id != did:
            raise DidResolutionError(f"{did} answers with the document of {document.id}")
        return document


def proofs(credential: dict[str, Any]) -> list[dict[str, Any]]:
    """The credential once with each of its proofs: openvc takes no list, where 1EdTech's schema wants one."""
    found = credential["proof"]
    return [credential | {"proof": proof} for proof in (found if isinstance(found, list) else [found])]


def check(credential: dict[str, Any], *, with_status: bool = True) -> list[VerificationResult]:
    """Check each proof of a credential, and its status.

    Raises:
        OpenvcError: it does not hold, as `openvc.status.CredentialRevoked` if it was revoked.
    """

    def status_list(url: str) -> dict[str, Any]:
        found = fetch(url, "application/vc")
        check(found, with_status=False)
        return found

    return [
        verify_credential(
            one,
            policy=VerificationPolicy(require_status_issuer_binding=True),
            resolver=LocalDidWeb(),
            resolve_status_list=status_list if with_status else None,
            extra_contexts=EXTRA_CONTEXTS,
        )
        for one in proofs(credential)
    ]


def main(places: list[str]) -> None:
    for place in places:
        credential = fetch(place, "application/vc") if place.startswith("http") else json.loads(Path(place).read_text())
        try:
            check(credential)
        except OpenvcError as error:
            print(json.dumps({"verified": False, "error": f"{type(error).__name__}: {error}"}))
        else:
            print(json.dumps({"verified": True}))


if __name__ == "__main__":
    main(sys.argv[1:])
