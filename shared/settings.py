"""The environment, read here and nowhere else; each variable is parsed at its first use, and kept unless Lambda changes it."""

import os
from functools import cache


class MissingSetting(RuntimeError):
    """An environment variable that the function needs is not set."""


def _required(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise MissingSetting(f"The environment variable {name} is not set.")
    return value


@cache
def database_url() -> str:
    """libpq URL of the database, or of the proxy before it."""
    return _required("DATABASE_URL")


@cache
def database_iam_auth() -> bool:
    """Whether to log in by IAM, over TLS that is verified, instead of as the URL says."""
    return os.environ.get("DATABASE_IAM_AUTH") == "1"


@cache
def database_authorities() -> str | None:
    """A PEM file with the authorities whom the database's certificate is trusted by; None: those that browsers trust.

    RDS Proxy shows a certificate of Amazon Trust Services, which browsers trust, the cluster itself one of Amazon RDS.
    """
    return os.environ.get("DATABASE_AUTHORITIES")


@cache
def plain_transactions() -> bool:
    """Whether statements go in BEGIN … COMMIT, one trip each, instead of one pipelined trip: for a proxy that misbehaves."""
    return os.environ.get("DATABASE_PLAIN_TRANSACTIONS") == "1"


@cache
def public_base_url() -> str:
    """Where strangers reach the service, without a slash at the end: the base of a certificate's address."""
    return _required("PUBLIC_BASE_URL").rstrip("/")


@cache
def certificate_bucket() -> str:
    """The S3 bucket of certificates' documents."""
    return _required("CERTIFICATE_BUCKET")


@cache
def credential_key() -> str:
    """The Ed25519 key that credentials are signed by: the id of a key in KMS, or `file:` and the path of a PEM file."""
    return _required("CREDENTIAL_KEY")


@cache
def credential_jwt_key() -> str:
    """The P-256 key that credentials are signed by as JWT, named like `credential_key`."""
    return _required("CREDENTIAL_JWT_KEY")


@cache
def retry_patience_seconds() -> int:
    """For how many seconds an event is tried again whose enrolment or course version is not known yet."""
    return int(_required("RETRY_PATIENCE_SECONDS"))


@cache
def event_bus_name() -> str:
    """The EventBridge bus that our events are published on."""
    return _required("EVENT_BUS_NAME")


def xray_trace_header() -> str | None:
    """Lambda's own trace (`Root=…;Parent=…;Sampled=…`), which is another one for each invocation."""
    return os.environ.get("_X_AMZN_TRACE_ID")


@cache
def queue_url(queue: str, *, dead_letter: bool) -> str:
    """Address of a queue (enrollment, progress, quiz, certificate, catalog) or of its dead-letter queue."""
    return _required(f"{queue.upper()}_{'DLQ' if dead_letter else 'QUEUE'}_URL")
