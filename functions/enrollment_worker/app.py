"""Enrolment commands from the queue."""

from collections import defaultdict
from typing import Any
from uuid import UUID

from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, messages
from shared.enrollment import rules, store
from shared.enrollment.models import EnrollmentCommand, EnrollmentRequested
from shared.errors import ServiceError, Unavailable
from shared.observability import observed

MODELS = {
    "enrollment.requested": EnrollmentRequested,
    "enrollment.cancelled": EnrollmentCommand,
    "enrollment.revoked": EnrollmentCommand,
    "enrollment.reinstated": EnrollmentCommand,
}
KINDS: dict[str, rules.CommandKind] = {
    "enrollment.requested": "requested",
    "enrollment.cancelled": "cancelled",
    "enrollment.revoked": "revoked",
    "enrollment.reinstated": "reinstated",
}


def take(incoming: list[messages.Incoming[Any]]) -> dict[int, ServiceError]:
    """Fold the commands on each enrolment in the order of their times, and write what comes of it."""
    commands: dict[tuple[UUID, UUID], list[tuple[int, rules.Command]]] = defaultdict(list)
    for n, item in enumerate(incoming):
        commands[item.event.data.user_id, item.event.data.course_version_id].append((n, _command(item.event)))
    refused: dict[int, ServiceError] = {}
    pending = set(commands)
    # A situation that another one changed between reading and writing is read and judged again.
    for _ in range(10):
        situations = db.run(lambda conn: store.situations(conn, sorted(pending))).fetchall()
        judged = {(s.user_id, s.course_version_id): rules.plan(s, commands[s.user_id, s.course_version_id]) for s in situations}
        plans = [plan for plan, _ in judged.values() if plan]
        pending = set(db.run(lambda conn: _write(conn, plans)).fetchall()) if plans else set()
        for key, (_, errors) in judged.items():
            if key not in pending:
                refused |= errors
        if not pending:
            by_number = {n: command for numbered in commands.values() for n, command in numbered}
            return {n: e for n, e in refused.items() if not rules.is_harmless_on_a_queue(by_number[n], e)}
    raise Unavailable


def _write(conn: db.Connection, plans: list[rules.Plan]) -> Any:
    db.lock_enrollments(conn, [plan.key for plan in plans])
    left = store.write(conn, plans)
    again = [plan.key for plan in plans if plan.is_active_again]
    if again:
        db.complete_enrollments(conn, again)
    return left


def _command(event: messages.Event[Any]) -> rules.Command:
    data = event.data
    kind = KINDS[event.type]
    if isinstance(data, EnrollmentRequested):
        return rules.Command(
            kind, event.source, event.time, source_of_enrollment=data.source_of_enrollment, traceparent=event.traceparent
        )
    return rules.Command(kind, event.source, event.time, reason=data.reason, traceparent=event.traceparent)


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return messages.work("enrollment", event, MODELS, take)
