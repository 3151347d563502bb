"""What a command does to an enrolment: the table of states, and the order of commands by their own time."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from shared.errors import (
    AlreadyCompleted,
    AlreadyRevoked,
    Conflict,
    CourseVersionNotFound,
    EnrollmentNotFound,
    Flaw,
    FutureCommand,
    NotRevoked,
    ServiceError,
)
from shared.parsing import CLOCK_SKEW

Status = Literal["active", "completed", "cancelled_by_user", "revoked_by_admin"]
CommandKind = Literal["requested", "cancelled", "reinstated", "revoked"]

#: Whose command it is.
SIDE: dict[str, str] = {
    "requested": "learner",
    "cancelled": "learner",
    "reinstated": "administrator",
    "revoked": "administrator",
}

#: Commands of one enrolment that carry the same time count in this order, the last one wins.
RANK: dict[str, int] = {"requested": 0, "cancelled": 1, "reinstated": 2, "revoked": 3}


@dataclass(frozen=True, slots=True)
class Command:
    """What someone wants of an enrolment. `actor` is who: the caller's id over HTTP, the event's source on a queue.

    `traceparent` is that of the event, if it has one.
    """

    kind: CommandKind
    actor: str
    #: When it was given; None: now, by the database's clock.
    time: datetime | None = None
    reason: str | None = None
    source_of_enrollment: str | None = None
    revoke_certificate: bool = False
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """What a command is decided on. Where there is no enrolment, its fields are None."""

    user_id: UUID
    course_version_id: UUID
    course_version_is_known: bool
    self_enrollment: bool
    status: Status | None
    is_completed: bool
    #: The time and the kind of the latest command that took effect, and of the learner's latest that found what it asked for.
    commanded_at: datetime | None
    command: CommandKind | None
    confirmed_at: datetime | None
    confirmed: CommandKind | None
    #: The time of the latest revocation that found the enrolment revoked: the one thing that administrators can confirm.
    revocation_confirmed_at: datetime | None
    #: When it was started over last; what is dated before has no effect.
    reset_at: datetime | None
    #: The database's clock.
    now: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """A change of status, and the type of the event that tells of it."""

    event: str
    from_status: Status | None
    to_status: Status
    occurred_at: datetime
    actor: str
    reason: str | None
    traceparent: str | None


@dataclass(slots=True)
class Plan:
    """What is to be written for one enrolment: from which situation to which, by which changes."""

    before: Situation
    after: Situation
    changes: list[Change] = field(default_factory=list[Change])
    source_of_enrollment: str | None = None
    revoke_certificate: bool = False

    @property
    def key(self) -> tuple[UUID, UUID]:
        """The enrolment's key: user_id, course_version_id."""
        return self.before.user_id, self.before.course_version_id

    @property
    def left_at(self) -> datetime | None:
        """When the enrolment was left, by cancellation or revocation; None if it is active, or had been left before."""
        inactive = ("cancelled_by_user", "revoked_by_admin")
        if self.after.status not in inactive:
            return None
        left = [c.occurred_at for c in self.changes if c.to_status in inactive and c.from_status not in inactive]
        return left[-1] if left else None

    @property
    def is_active_again(self) -> bool:
        """Whether progress taken in the meantime may fulfil it, or show that it was fulfilled earlier."""
        return self.before.status is not None and bool(self.changes) and self.after.status in ("active", "completed")


#: (status, command) → the status it leads to and the event that tells of it, or the error. Where a command leads to the
#: status that it finds, it only confirms it.
TABLE: dict[tuple[Status | None, CommandKind], tuple[Status, str] | type[ServiceError]] = {
    (None, "requested"): ("active", "enrollment.created"),
    (None, "cancelled"): EnrollmentNotFound,
    (None, "revoked"): EnrollmentNotFound,
    (None, "reinstated"): EnrollmentNotFound,
    ("active", "requested"): ("active", ""),
    ("active", "cancelled"): ("cancelled_by_user", "enrollment.cancelled"),
    ("active", "revoked"): ("revoked_by_admin", "enrollment.revoked"),
    ("active", "reinstated"): NotRevoked,
    ("cancelled_by_user", "requested"): ("active", "enrollment.reactivated"),
    ("cancelled_by_user", "cancelled"): ("cancelled_by_user", ""),
    ("cancelled_by_user", "revoked"): ("revoked_by_admin", "enrollment.revoked"),
    ("cancelled_by_user", "reinstated"): NotRevoked,
    ("completed", "requested"): ("completed", ""),
    ("completed", "cancelled"): AlreadyCompleted,
    ("completed", "revoked"): ("revoked_by_admin", "enrollment.revoked"),
    ("completed", "reinstated"): NotRevoked,
    ("revoked_by_admin", "requested"): AlreadyRevoked,
    ("revoked_by_admin", "cancelled"): AlreadyRevoked,
    ("revoked_by_admin", "revoked"): ("revoked_by_admin", ""),
    # Completed instead, if it had been completed before.
    ("revoked_by_admin", "reinstated"): ("active", "enrollment.reinstated"),
}


def decide(situation: Situation, command: Command) -> tuple[Situation, Change | None]:
    """What becomes of an enrolment by a command, and the change to be told of, if there is one.

    Raises
    ------
    CourseVersionNotFound, EnrollmentNotFound, AlreadyCompleted, AlreadyRevoked, NotRevoked
        The table does not allow the command in this status.
    FutureCommand
        The command is dated more than five minutes ahead.
    """
    time = command.time or situation.now
    if time > situation.now + CLOCK_SKEW:
        raise FutureCommand(Flaw("#/time", "expected a time that is at most five minutes ahead"))
    if _is_outdated(situation, time, command.kind):
        return situation, None
    if situation.status is None and command.kind == "requested" and not situation.course_version_is_known:
        raise CourseVersionNotFound
    outcome = TABLE[situation.status, command.kind]
    if isinstance(outcome, type):
        raise outcome
    status, event = outcome
    if status == situation.status:
        if command.kind == "revoked":
            return replace(situation, revocation_confirmed_at=time), None
        return replace(situation, confirmed_at=time, confirmed=command.kind), None
    if command.kind == "reinstated" and situation.is_completed:
        status = "completed"
    taken = replace(situation, status=status, commanded_at=time, command=command.kind)
    return taken, Change(event, situation.status, status, time, command.actor, command.reason, command.traceparent)


def _is_outdated(situation: Situation, time: datetime, kind: CommandKind) -> bool:
    """Whether a later command has taken effect already, or has confirmed what is, or the enrolment was started over since.

    The same command once more is outdated too.

    A confirmation holds against older commands of its own side only: a learner who enrols again and again must not get
    round a revocation that is still on its way.
    """
    if situation.reset_at and time < situation.reset_at:
        return True
    this = (time, RANK[kind])
    if situation.commanded_at and situation.command and this <= (situation.commanded_at, RANK[situation.command]):
        return True
    if SIDE[kind] == "administrator":
        confirmed_at, confirmed = situation.revocation_confirmed_at, "revoked"
    else:
        confirmed_at, confirmed = situation.confirmed_at, situation.confirmed
    return bool(confirmed_at and confirmed and this <= (confirmed_at, RANK[confirmed]))


def plan(situation: Situation, commands: list[tuple[int, Command]]) -> tuple[Plan | None, dict[int, ServiceError]]:
    """Fold numbered commands on one enrolment in the order of their times: what is to be written, and what is refused."""
    refused: dict[int, ServiceError] = {}
    plan = Plan(situation, situation)
    for n, command in sorted(commands, key=lambda c: (c[1].time or situation.now, RANK[c[1].kind])):
        try:
            after, change = decide(plan.after, command)
        except ServiceError as error:
            refused[n] = error
            continue
        if after is plan.after:
            continue
        plan.after = after
        plan.revoke_certificate |= command.revoke_certificate
        if change:
            plan.changes.append(change)
            plan.source_of_enrollment = command.source_of_enrollment or plan.source_of_enrollment
    return (plan if plan.after is not situation else None), refused


def is_harmless_on_a_queue(command: Command, error: ServiceError) -> bool:
    """Whether a refusal that a caller must hear of is no reason for a dead letter.

    A learner's cancellation that arrives after completion or revocation is simply without effect.
    """
    return command.kind == "cancelled" and isinstance(error, Conflict)
