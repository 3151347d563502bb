"""Certificates as they cross a boundary."""

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from shared.parsing import Reason, Time

CertificateStatus = Literal["valid", "expired", "revoked"]
#: What credentials are signed by: with a Data Integrity proof, or as JSON Web Token.
Algorithm = Literal["Ed25519", "ES256"]


class Criterion(BaseModel):
    """One thing that the course asked of everyone who has its certificate."""

    kind: Literal["lesson", "quiz"]
    title: str
    pass_threshold_percentage: float | None
    """Of a quiz: the least score, 0-100, with which it is passed."""


class Certificate(BaseModel):
    """A certificate as anyone may see it: what it says was frozen when it was issued."""

    certificate_uid: str
    status: CertificateStatus
    learner_name: str
    course_title: str
    version: str
    issuer_name: str
    criteria: list[Criterion]
    score: float | None
    """Mean of the best scores in the required quizzes, 0-100; null where none is required."""
    completed_at: Time
    issued_at: Time
    expires_at: Time | None
    revoked_at: Time | None
    revocation_reason: str | None
    url: str


class OwnCertificate(Certificate):
    """A certificate as its learner sees it."""

    user_id: UUID
    course_version_id: UUID


class CertificatePage(BaseModel):
    """A page of certificates; `next_cursor` leads to the next one."""

    items: list[OwnCertificate]
    next_cursor: str | None


class Requirement(BaseModel):
    """One thing that a certificate needs, and whether it is there."""

    kind: Literal["enrollment", "lesson", "quiz", "learner_name"]
    id: UUID | None
    title: str
    met: bool
    detail: str


class NotYet(BaseModel):
    """There is no certificate yet, and what it needs; where the course version gives none, nothing is missing."""

    status: Literal["not_yet"] = "not_yet"
    requirements: list[Requirement]


class ReasonBody(BaseModel):
    """Why an administrator does it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "Asked for by the learner."}]})

    reason: Reason


class EnrollmentCompleted(BaseModel):
    """Data of `enrollment.completed`, as this service publishes it."""

    user_id: UUID
    course_version_id: UUID


class CertificateEvent(BaseModel):
    """Data of `certificate.revoked`, `certificate.reinstated` and `certificate.reissued`, as this service publishes them."""

    certificate_uid: str
