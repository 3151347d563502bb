"""A stand-in for AWS KMS with the asymmetric keys that credentials are signed by, as strict as AWS.

It speaks the JSON protocol of KMS over HTTP, so that boto3 is used as in production. Names, limits and errors are those of the
API (https://docs.aws.amazon.com/kms/latest/APIReference/API_Sign.html, API_GetPublicKey.html) and of AWS's own answers. Keys of
Ed25519 sign by ED25519_SHA_512 only: Ed25519ph is not here.
"""

import json
import re
import threading
from base64 import b64decode, b64encode
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from uuid import uuid4

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

type PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
KeySpec = Literal["ECC_NIST_EDWARDS25519", "ECC_NIST_P256"]
#: What may be wrong with it: it hangs up, it has too much to do, or it fails.
Failure = Literal["down", "throttled", "broken"]

_ARN = "arn:aws:kms:eu-west-1:123456789012:key/"
_ALGORITHMS = ("ECDSA_SHA_256", "ECDSA_SHA_384", "ECDSA_SHA_512", "ED25519_PH_SHA_512", "ED25519_SHA_512", "ML_DSA_SHAKE_256")
_LONGEST_MESSAGE = 4096
_DIGEST = 32


@dataclass
class Refusal(Exception):
    """An error as AWS words it."""

    code: str
    message: str
    status: int = HTTPStatus.BAD_REQUEST


class Kms:
    """KMS at an address of its own, while it is open; used by `boto3.client("kms", endpoint_url=kms.url)`."""

    def __init__(self) -> None:
        #: What happens to every call from now on; None: it works.
        self.failure: Failure | None = None
        #: The calls that were taken in, failed ones too: the operation and its fields.
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._keys: dict[str, PrivateKey] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create_key(self, spec: KeySpec) -> str:
        """A new key's id."""
        key_id = str(uuid4())
        self._keys[key_id] = (
            ed25519.Ed25519PrivateKey.generate() if spec == "ECC_NIST_EDWARDS25519" else ec.generate_private_key(ec.SECP256R1())
        )
        return key_id

    def answer(self, operation: str, fields: dict[str, Any]) -> dict[str, Any]:
        """What an operation answers with; a refusal is raised."""
        self.calls.append((operation, fields))
        if self.failure == "throttled":
            raise Refusal("ThrottlingException", "Rate exceeded")
        if self.failure == "broken":
            raise Refusal("KMSInternalException", "Internal service error", HTTPStatus.INTERNAL_SERVER_ERROR)
        match operation:
            case "Sign":
                _check_fields(fields)
                return self._sign(**fields)
            case "GetPublicKey":
                return self._get_public_key(**fields)
            case _:
                raise Refusal("UnknownOperationException", "")

    def _sign(self, *, KeyId: str, Message: str, SigningAlgorithm: str, MessageType: str = "RAW") -> dict[str, Any]:  # noqa: N803
        key_id, key = self._key(KeyId)
        spec, algorithm = _properties(key)
        message = b64decode(Message, validate=True)
        if algorithm != SigningAlgorithm:
            raise Refusal("InvalidKeyUsageException", f"Algorithm {SigningAlgorithm} is incompatible with key spec {spec}.")
        if isinstance(key, ed25519.Ed25519PrivateKey):
            if MessageType != "RAW":
                raise Refusal("ValidationException", f"Message type {MessageType} is incompatible with algorithm {algorithm}.")
            signature = key.sign(message)
        elif MessageType == "RAW":
            signature = key.sign(message, ec.ECDSA(hashes.SHA256()))
        elif MessageType == "DIGEST":
            if len(message) != _DIGEST:
                raise Refusal("ValidationException", f"Digest is invalid length for algorithm {algorithm}.")
            signature = key.sign(message, ec.ECDSA(Prehashed(hashes.SHA256())))
        else:
            raise Refusal("ValidationException", f"Message type {MessageType} is incompatible with key spec {spec}.")
        return {"KeyId": _ARN + key_id, "Signature": b64encode(signature).decode(), "SigningAlgorithm": algorithm}

    def _get_public_key(self, *, KeyId: str) -> dict[str, Any]:  # noqa: N803
        key_id, key = self._key(KeyId)
        spec, algorithm = _properties(key)
        public_key = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return {
            "KeyId": _ARN + key_id,
            "PublicKey": b64encode(public_key).decode(),
            "KeySpec": spec,
            "KeyUsage": "SIGN_VERIFY",
            "SigningAlgorithms": [algorithm],
        }

    def _key(self, name: str) -> tuple[str, PrivateKey]:
        key_id = name.removeprefix(_ARN)
        if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", key_id):
            raise Refusal("NotFoundException", f"Invalid keyId '{name}'")
        if key_id not in self._keys:
            raise Refusal("NotFoundException", f"Key '{_ARN}{key_id}' does not exist")
        return key_id, self._keys[key_id]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        kms = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if kms.failure == "down":
                    return
                try:
                    if not self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256 "):
                        raise Refusal("MissingAuthenticationTokenException", "Missing Authentication Token")
                    service, _, operation = self.headers["X-Amz-Target"].partition(".")
                    if service != "TrentService":
                        raise Refusal("UnknownOperationException", "")
                    self.reply(HTTPStatus.OK, kms.answer(operation, json.loads(body)))
                except Refusal as refusal:
                    self.reply(refusal.status, {"__type": refusal.code, "message": refusal.message})

            def reply(self, status: int, answer: dict[str, Any]) -> None:
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-amz-json-1.1")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("x-amzn-RequestId", str(uuid4()))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _properties(key: PrivateKey) -> tuple[KeySpec, str]:
    """A key's spec, and the algorithm that it signs by."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ECC_NIST_EDWARDS25519", "ED25519_SHA_512"
    return "ECC_NIST_P256", "ECDSA_SHA_256"


def _check_fields(fields: dict[str, Any]) -> None:
    """What AWS checks before it looks at the key."""
    message = b64decode(fields.get("Message", ""))
    problems = [
        f"Value at '{name}' failed to satisfy constraint: {rule}"
        for name, is_wrong, rule in (
            ("message", len(message) > _LONGEST_MESSAGE, f"Member must have length less than or equal to {_LONGEST_MESSAGE}"),
            ("message", not message, "Member must have length greater than or equal to 1"),
            (
                "messageType",
                fields.get("MessageType", "RAW") not in ("RAW", "DIGEST", "EXTERNAL_MU"),
                "Member must satisfy enum value set: [RAW, DIGEST, EXTERNAL_MU]",
            ),
            (
                "signingAlgorithm",
                fields.get("SigningAlgorithm") not in _ALGORITHMS,
                f"Member must satisfy enum value set: [{', '.join(_ALGORITHMS)}]",
            ),
        )
        if is_wrong
    ]
    if problems:
        count = len(problems)
        raise Refusal("ValidationException", f"{count} validation error{'s' * (count > 1)} detected: {'; '.join(problems)}")
