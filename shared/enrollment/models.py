"""Enrolments as they cross a boundary."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, StrictBool, StringConstraints

from shared.parsing import Reason, Text, Time

Status = Literal["active", "completed", "cancelled_by_user", "revoked_by_admin"]
Source = Annotated[Text, StringConstraints(min_length=1, max_length=100)]


class Progress(BaseModel):
    """How far a learner is in a course version. `lessons_*` and `quizzes_*` count all items, required or not."""

    progress_percentage: float | None
    """Required items fulfilled, of all required items, 0-100, unrounded; null when nothing is required."""
    lessons_completed: int
    lessons_total: int
    quizzes_passed: int
    quizzes_total: int


class Enrollment(BaseModel):
    """A learner's enrolment in one course version."""

    user_id: UUID
    course_version_id: UUID
    status: Status
    enrolled_at: Time
    completed_at: Time | None
    source_of_enrollment: str | None
    status_changed_at: Time
    status_reason: str | None


class EnrollmentDetail(Enrollment):
    """An enrolment with its progress and its certificate."""

    progress: Progress
    certificate_uid: str | None
    certificate_status: Literal["valid", "expired", "revoked"] | None


class EnrollmentPage(BaseModel):
    """A page of enrolments; `next_cursor` leads to the next one."""

    items: list[Enrollment]
    next_cursor: str | None


class HistoryEntry(BaseModel):
    """One thing that happened to an enrolment, or was done to it: from which status to which, when, by whom and why.

    `actor` is a user's id over HTTP, the source of the event on a queue, `learner-progress` for the service itself.
    `details` of a reset hold what was set aside, `lessons` and `quiz_attempts`; of a waiver its `requirement_id`; of a transfer
    the course version it went `to` or came `from`; of an allowance what was granted; of a certificate its `certificate_uid`.
    """

    type: Literal[
        "created",
        "reactivated",
        "cancelled",
        "revoked",
        "reinstated",
        "completed",
        "completion_withdrawn",
        "reset",
        "waived",
        "waiver_withdrawn",
        "transferred",
        "allowance_changed",
        "certificate_revoked",
        "certificate_reinstated",
        "certificate_reissued",
    ]
    from_status: Status | None
    to_status: Status
    occurred_at: Time
    recorded_at: Time
    actor: str | None
    reason: str | None
    details: dict[str, Any] | None


class HistoryPage(BaseModel):
    """A page of an enrolment's history, in the order in which it was recorded."""

    items: list[HistoryEntry]
    next_cursor: str | None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EnrollBody(_Body):
    """What an administrator may say about an enrolment."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"source_of_enrollment": "company_assignment"}]})

    source_of_enrollment: Source | None = None


class CancelBody(_Body):
    """Why the learner leaves, if they say."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "No time this year."}]})

    reason: Reason | None = None


class ReasonBody(_Body):
    """Why an administrator does it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "Asked for by the learner."}]})

    reason: Reason


class RevokeBody(ReasonBody):
    """Why an administrator revokes the enrolment, and whether its certificate goes with it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "Not paid.", "revoke_certificate": True}]})

    revoke_certificate: StrictBool = False


class TransferBody(_Body):
    """The course version to which the learner is transferred, and why."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"to": "00000000-0000-4000-8000-000000000001"}]})

    to: UUID
    reason: Reason | None = None


class EnrollmentRequested(BaseModel):
    """Data of `enrollment.requested`."""

    user_id: UUID
    course_version_id: UUID
    source_of_enrollment: Source | None = None


class EnrollmentCommand(BaseModel):
    """Data of `enrollment.cancelled`, `enrollment.revoked` and `enrollment.reinstated`."""

    user_id: UUID
    course_version_id: UUID
    reason: Reason | None = None
