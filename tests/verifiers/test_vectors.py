"""Vectors of the W3C and samples of 1EdTech: what we sign is what they sign, and the verifiers say of them what is known."""

import gzip
import json
from base64 import urlsafe_b64decode
from collections.abc import Callable, Generator
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from base58 import b58decode
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from openvc import OpenvcError
from openvc.proof.data_integrity import DataIntegrityProofSuite

from shared.certificate import credential
from shared.certificate.signing import FileKey
from tests.verifiers.openvc_verifier import EXTRA_CONTEXTS

DATA = Path(__file__).parent.parent / "data" / "openbadges"
VECTOR = DATA / "w3c-eddsa-vectors" / "eddsa-rdfc-2022"
SAMPLES = DATA / "1edtech-samples"

#: Contexts of theirs that our credentials don't use.
THEIR_CONTEXTS = {
    "https://www.w3.org/ns/credentials/examples/v2": "credentials-examples-v2.jsonld",
    "https://purl.imsglobal.org/spec/ob/v3p0/context.json": "ob-v3p0.json",
    "https://purl.imsglobal.org/spec/ob/v3p0/extensions.json": "ob-v3p0-extensions.json",
}

#: Samples by eddsa-rdfc-2022 whose signature holds; whether they are valid in all else is another question.
SIGNED = {
    "simple.json",
    "simple-context-alias.json",
    "simple-did-key-method.json",
    "simple-multiple-proofs.json",
    "simple-err-expired.json",
    "complete.json",
    "endorsement-valid.json",
    "bit-string-list/credential-status-revoked-blank-nodes.json",
    "bit-string-list/testlist",
}
NOT_SIGNED = {
    "simple-err-proof-value.json",
    "simple-err-proof-method-no-scheme.json",
    "simple-err-proof-method-unknown-scheme.json",
    "simple-err-issuer-type.json",
    "simple-err-issuer-otheridentifier-type.json",
    "simple-err-credential-subject-type.json",
    "simple-err-credential-subject-profile-type.json",
    "simple-err-credential-subject-achievement-result-description-type.json",
}
OTHER_PROOFS = {"simple-eddsa-2022.json", "credential-status-revoked.json"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def their_contexts(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Their contexts beside ours, for as long as a test runs."""
    for url, name in THEIR_CONTEXTS.items():
        monkeypatch.setitem(credential._CONTEXTS, url, str(DATA / "contexts" / name))
    yield
    credential._context.cache_clear()


@pytest.fixture
def vector_key(tmp_path: Path) -> FileKey:
    """The key pair of the W3C's vectors, in a file as ours would be."""
    # The first two bytes say that it is a private key of Ed25519.
    secret = b58decode(read(DATA / "w3c-eddsa-vectors" / "keyPair.json")["privateKeyMultibase"][1:])[2:]
    path = tmp_path / "key.pem"
    path.write_bytes(
        Ed25519PrivateKey.from_private_bytes(secret).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return FileKey(path, "Ed25519")


@pytest.mark.usefixtures("their_contexts")
def test_canonical_form_and_digests_are_those_of_the_vector():
    unsigned, options = read(VECTOR.parent / "unsigned.json"), read(VECTOR / "proofConfigDataInt.json")
    assert credential.canonical(unsigned) == (VECTOR / "canonDocDataInt.txt").read_text()
    assert credential.canonical(options) == (VECTOR / "proofCanonDataInt.txt").read_text()
    digests = [(VECTOR / name).read_text().strip() for name in ("proofHashDataInt.txt", "docHashDataInt.txt")]
    assert [sha256(credential.canonical(part).encode()).hexdigest() for part in (options, unsigned)] == digests
    assert credential.signing_input(unsigned, options).hex() == "".join(digests)
    assert credential.signing_input(unsigned, options).hex() == (VECTOR / "combinedHashDataInt.txt").read_text().strip()


@pytest.mark.usefixtures("their_contexts")
def test_signature_is_that_of_the_vector(vector_key: FileKey):
    signed = read(VECTOR / "signedDataInt.json")
    proof = signed["proof"]
    controller = proof["verificationMethod"].partition("#")[0]
    ours = credential.sign(
        read(VECTOR.parent / "unsigned.json"), vector_key, controller, datetime.fromisoformat(proof["created"])
    )
    assert ours == signed | {"proof": [proof]}
    assert b58decode(ours["proof"][0]["proofValue"][1:]).hex() == (VECTOR / "sigHexDataInt.txt").read_text().strip()


def test_openvc_verifies_the_vector_and_notices_a_letter():
    signed = read(VECTOR / "signedDataInt.json")
    suite = DataIntegrityProofSuite()
    assert suite.verify(signed, extra_contexts=EXTRA_CONTEXTS).issuer == "https://vc.example/issuers/5678"
    with pytest.raises(OpenvcError):
        suite.verify(signed | {"name": "Alumni credential"}, extra_contexts=EXTRA_CONTEXTS)


def test_vc_verifies_the_signature_of_the_vector_and_notices_a_letter(vc: Callable[..., Any], tmp_path: Path):
    changed = tmp_path / "changed.json"
    changed.write_text((VECTOR / "signedDataInt.json").read_text().replace("Alumni Credential", "Alumni credential"))
    genuine, forged = vc(VECTOR / "signedDataInt.json", changed)
    # The vector's issuer is not who signed it, which the library looks at once the signature holds.
    assert "issuer must match the verification method controller" in genuine["proof"]["error"]
    assert "Invalid signature" in forged["proof"]["error"]


def test_samples_are_all_told_of():
    names = {str(path.relative_to(SAMPLES)) for path in SAMPLES.rglob("*") if path.is_file()}
    assert names - {"LICENSE.txt"} == SIGNED | NOT_SIGNED | OTHER_PROOFS


@pytest.mark.usefixtures("their_contexts")
@pytest.mark.parametrize("name", sorted(SIGNED | NOT_SIGNED))
def test_we_sign_what_the_samples_sign(name: str):
    document = read(SAMPLES / name)
    proofs = document.pop("proof")
    [proof] = [p for p in (proofs if isinstance(proofs, list) else [proofs]) if p.get("cryptosuite") == "eddsa-rdfc-2022"]
    signature = b58decode(proof.pop("proofValue")[1:])
    # In these samples the key stands in the name of the method; its first two bytes say what kind it is.
    method = proof["verificationMethod"]
    key = Ed25519PublicKey.from_public_bytes(b58decode(method[method.index("z6Mk") + 1 :])[2:])
    message = credential.signing_input(document, proof)
    if name in SIGNED:
        key.verify(signature, message)
    else:
        with pytest.raises(InvalidSignature):
            key.verify(signature, message)


def test_vc_and_ajv_say_of_the_samples_what_is_known(vc: Callable[..., Any]):
    names = sorted(SIGNED | NOT_SIGNED | OTHER_PROOFS)
    answers = dict(zip(names, vc(*(SAMPLES / name for name in names)), strict=True))
    # A bare did:key is no verification method, and what is past its end is refused though its signature holds.
    assert {name for name, answer in answers.items() if answer["proof"]["verified"]} == SIGNED - {
        "simple-did-key-method.json",
        "simple-err-expired.json",
    }
    assert "is after" in answers["simple-err-expired.json"]["proof"]["error"]
    assert "Invalid signature" in answers["simple-err-proof-value.json"]["proof"]["error"]
    # An endorsement and a list are no achievements, and a proof has to stand in a list.
    assert {name for name, answer in answers.items() if answer["schema"]["valid"]} == {
        "simple.json",
        "simple-context-alias.json",
        "simple-did-key-method.json",
        "simple-multiple-proofs.json",
        "simple-err-expired.json",
        "simple-err-proof-value.json",
        "simple-err-proof-method-no-scheme.json",
        "simple-err-proof-method-unknown-scheme.json",
        "complete.json",
    }
    revoked = answers["bit-string-list/credential-status-revoked-blank-nodes.json"]
    assert revoked["status"] == {"verified": True, "revoked": True}


def test_status_list_of_the_samples_is_ours_with_entry_23():
    theirs: str = read(SAMPLES / "bit-string-list" / "testlist")["credentialSubject"]["encodedList"]
    assert bits(theirs) == bits(credential.encoded_list({23}))
    assert bits(theirs)[2] == 0b0000_0001


def bits(encoded: str) -> bytes:
    assert encoded[0] == "u"
    return gzip.decompress(urlsafe_b64decode(encoded[1:] + "=" * (-len(encoded[1:]) % 4)))
