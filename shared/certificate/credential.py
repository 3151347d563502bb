"""A certificate as Open Badges 3.0 credential, and the list that says which ones were revoked: built, signed, and who signs.

Sources: W3C Verifiable Credentials Data Model 2.0 (https://www.w3.org/TR/vc-data-model-2.0/), Open Badges 3.0
(https://www.imsglobal.org/spec/ob/v3p0), the cryptosuite eddsa-rdfc-2022 (https://www.w3.org/TR/vc-di-eddsa/), VC-JOSE-COSE
(https://www.w3.org/TR/vc-jose-cose/), Bitstring Status List 1.0 (https://www.w3.org/TR/vc-bitstring-status-list/) and the DID
method web (https://w3c-ccg.github.io/did-method-web/).
"""

import gzip
import hashlib
import json
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import UUID

from pyld import jsonld

from shared.certificate import texts
from shared.certificate.models import Algorithm, Certificate
from shared.certificate.rules import printable
from shared.certificate.signing import Key, base64url, jwk, kid, multibase58, multikey
from shared.parsing import utc_text

#: Entries of one status list: 16 KiB of bits, the least that the specification allows, so that one entry hides among many.
STATUS_LIST_ENTRIES = 131_072

type Document = dict[str, Any]

_CREDENTIALS = "https://www.w3.org/ns/credentials/v2"
_OPEN_BADGES = "https://purl.imsglobal.org/spec/ob/v3p0/context-3.0.3.json"
_FOLDER = Path(__file__).parent / "contexts"
# The caches of pyld are not made for several threads.
_canonicalising = Lock()
_CONTEXTS = {_CREDENTIALS: "credentials-v2.json", _OPEN_BADGES: "ob-v3p0-3.0.3.json"}


def did(base_url: str) -> str:
    """The issuer's DID: `did:web` of the domain, with a port's colon percent-encoded."""
    return f"did:web:{quote(urlsplit(base_url).netloc, safe='')}"


def build(
    certificate: Certificate, course_version_id: UUID, locale: str | None, status_entry: int, status_index: int, base_url: str
) -> Document:
    """The credential of a certificate, not signed yet.

    The learner is named, and identified by nothing that another certificate would share. Times are in whole seconds. Control
    characters are left out of texts: implementations don't agree on how canonical N-Quads escape them.
    """
    language = texts.choose(None, locale)
    words = texts.texts(language)["credential"]
    achievement_id = f"urn:uuid:{course_version_id}"
    title = printable(certificate.course_title)
    achievement: Document = {
        "id": achievement_id,
        "type": ["Achievement"],
        "achievementType": "Course",
        "name": title,
        "version": printable(certificate.version),
        "description": words["description"].format(title=title, version=printable(certificate.version)),
        "criteria": {"narrative": _narrative(certificate, words)},
        "inLanguage": language,
    }
    subject: Document = {
        "id": f"{certificate.url}#learner",
        "type": ["AchievementSubject"],
        "identifier": [
            {
                "type": "IdentityObject",
                "identityType": "name",
                "hashed": False,
                "identityHash": printable(certificate.learner_name),
            }
        ],
        "achievement": achievement,
    }
    if certificate.score is not None:
        score_id = f"{achievement_id}#score"
        achievement["resultDescription"] = [
            {
                "id": score_id,
                "type": ["ResultDescription"],
                "name": words["score"],
                "resultType": "Percent",
                "valueMin": "0",
                "valueMax": "100",
            }
        ]
        subject["result"] = [
            {"type": ["Result"], "resultDescription": score_id, "value": repr(certificate.score).removesuffix(".0")}
        ]
    status_list = f"{base_url}/status-lists/{status_entry // STATUS_LIST_ENTRIES}"
    return {
        "@context": [_CREDENTIALS, _OPEN_BADGES],
        "id": certificate.url,
        "type": ["VerifiableCredential", "OpenBadgeCredential"],
        "issuer": {"id": did(base_url), "type": ["Profile"], "name": printable(certificate.issuer_name), "url": base_url},
        "name": title,
        "awardedDate": _seconds(certificate.completed_at),
        "validFrom": _seconds(certificate.issued_at),
        **({"validUntil": _seconds(certificate.expires_at)} if certificate.expires_at else {}),
        "credentialSubject": subject,
        "credentialStatus": {
            "id": f"{status_list}#{status_index}",
            "type": "BitstringStatusListEntry",
            "statusPurpose": "revocation",
            "statusListIndex": str(status_index),
            "statusListCredential": status_list,
        },
    }


def _narrative(certificate: Certificate, words: dict[str, str]) -> str:
    counts = [(kind, sum(c.kind == kind for c in certificate.criteria)) for kind in ("lesson", "quiz")]
    return " ".join(words[kind].format(count=count) for kind, count in counts if count) or words["course"]


def build_status_list(number: int, revoked: Collection[int], base_url: str, now: datetime) -> Document:
    """The credential that tells which entries of a status list are revoked, not signed yet."""
    url = f"{base_url}/status-lists/{number}"
    return {
        "@context": [_CREDENTIALS],
        "id": url,
        "type": ["VerifiableCredential", "BitstringStatusListCredential"],
        "issuer": did(base_url),
        "validFrom": _seconds(now),
        "credentialSubject": {
            "id": f"{url}#list",
            "type": "BitstringStatusList",
            "statusPurpose": "revocation",
            "encodedList": encoded_list(revoked),
        },
    }


def encoded_list(revoked: Collection[int]) -> str:
    """A status list with these entries set, 0 to 131,071, as `encodedList`: bits from the left, gzip, multibase base64url."""
    bits = bytearray(STATUS_LIST_ENTRIES // 8)
    for index in revoked:
        bits[index // 8] |= 0x80 >> index % 8
    return "u" + base64url(gzip.compress(bytes(bits), mtime=0))


def sign(document: Document, key: Key, controller: str, created: datetime) -> Document:
    """The document with a Data Integrity proof by eddsa-rdfc-2022, in an array: the schema of Open Badges demands one.

    `controller` is the issuer's DID, whose document names the key. Raises what the key raises.
    """
    proof = {
        "type": "DataIntegrityProof",
        "cryptosuite": "eddsa-rdfc-2022",
        "created": _seconds(created),
        "verificationMethod": f"{controller}#{kid(key.public_key)}",
        "proofPurpose": "assertionMethod",
    }
    signature = key.sign(signing_input(document, proof))
    return document | {"proof": [proof | {"proofValue": multibase58(signature)}]}


def signing_input(document: Document, proof: Document) -> bytes:
    """What eddsa-rdfc-2022 signs: the digests of the proof's options and of the document, each canonical."""
    options = proof | {"@context": document["@context"]}
    return b"".join(hashlib.sha256(canonical(part).encode()).digest() for part in (options, document))


def canonical(document: Document) -> str:
    """A JSON-LD document as canonical N-Quads (RDF Dataset Canonicalization)."""
    options = {"algorithm": "URDNA2015", "format": "application/n-quads", "documentLoader": _load}
    with _canonicalising:
        return str(jsonld.normalize(document, options))  # pyright: ignore[reportArgumentType]


def text(document: Document) -> str:
    """A document as it is stored and served."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def jwt(document: Document, key: Key, controller: str) -> str:
    """The document as VC-JWT: the credential is the payload, with the registered claims beside it. Raises what the key raises."""
    header = {"alg": "ES256", "typ": "vc+jwt", "cty": "vc", "kid": f"{controller}#{kid(key.public_key)}"}
    claims: Document = {
        "iss": controller,
        "jti": document["id"],
        "sub": document["credentialSubject"]["id"],
        "nbf": _timestamp(document["validFrom"]),
    }
    if "validUntil" in document:
        claims["exp"] = _timestamp(document["validUntil"])
    signed = ".".join(base64url(json.dumps(part, ensure_ascii=False).encode()) for part in (header, document | claims))
    return f"{signed}.{base64url(key.sign(signed.encode()))}"


def did_document(base_url: str, keys: Sequence[tuple[Algorithm, bytes]]) -> Document:
    """The issuer's DID document with all public keys that it ever signed by, since old credentials name old keys."""
    controller = did(base_url)
    methods: list[Document] = []
    for algorithm, public_key in keys:
        method = {"id": f"{controller}#{kid(public_key)}", "controller": controller}
        if algorithm == "Ed25519":
            methods.append(method | {"type": "Multikey", "publicKeyMultibase": multikey(public_key)})
        else:
            methods.append(method | {"type": "JsonWebKey", "publicKeyJwk": _published_jwk(algorithm, public_key)})
    return {
        "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1", "https://w3id.org/security/jwk/v1"],
        "id": controller,
        "verificationMethod": methods,
        "assertionMethod": [method["id"] for method in methods],
    }


def jwk_set(base_url: str, keys: Sequence[tuple[Algorithm, bytes]]) -> Document:
    """All public keys as a JWK Set (RFC 7517), called by their DID URLs as in the credentials."""
    controller = did(base_url)
    return {
        "keys": [
            _published_jwk(algorithm, public_key) | {"kid": f"{controller}#{kid(public_key)}"} for algorithm, public_key in keys
        ]
    }


def _published_jwk(algorithm: Algorithm, public_key: bytes) -> dict[str, str]:
    return jwk(public_key) | {"use": "sig", "alg": "EdDSA" if algorithm == "Ed25519" else algorithm}


def _seconds(moment: datetime) -> str:
    return utc_text(moment.replace(microsecond=0))


def _timestamp(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


@cache
def _context(url: str) -> Any:
    return json.loads((_FOLDER / _CONTEXTS[url]).read_text())


def _load(url: str, _options: Any) -> Document:
    """The shipped contexts, and nothing from the network."""
    return {"contextUrl": None, "documentUrl": url, "document": _context(url), "contentType": "application/ld+json"}
