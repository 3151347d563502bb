"""The SQL of enrolments."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import class_row

from shared import trace
from shared.db import Connection, columns
from shared.enrollment.models import Enrollment, EnrollmentDetail, Progress, Status
from shared.enrollment.rules import Plan, Situation


def situations(conn: Connection, keys: Sequence[tuple[UUID, UUID]]) -> Cursor[Situation]:
    """What commands on these enrolments are decided on, in the order given."""
    return conn.cursor(row_factory=class_row(Situation)).execute(
        """
        SELECT k.user_id, k.course_version_id, v.course_version_id IS NOT NULL AS course_version_is_known,
            coalesce(v.self_enrollment, FALSE) AS self_enrollment, e.status, e.completed_at IS NOT NULL AS is_completed,
            e.commanded_at, e.command, e.confirmed_at, e.confirmed, e.revocation_confirmed_at, e.reset_at,
            clock_timestamp() AS now
        FROM unnest(%b::uuid[], %b::uuid[]) WITH ORDINALITY AS k (user_id, course_version_id, n)
        LEFT JOIN course_versions v ON v.course_version_id = k.course_version_id
        LEFT JOIN enrollments e ON e.user_id = k.user_id AND e.course_version_id = k.course_version_id
        ORDER BY k.n
        """,
        columns(keys, 2),
        binary=True,
    )


def write(
    conn: Connection, plans: Sequence[Plan], *, act: UUID | None = None, transferred_from: tuple[UUID, UUID] | None = None
) -> Cursor[tuple[UUID, UUID]]:
    """Carry out plans whose situation is still as it was read, with history and events; the rest is left to be read again.

    A plan that is part of a transfer is left, too, if the enrolment that the learner comes from has been cancelled or revoked.
    Gives the keys of those that are left; there are none unless someone else came in between. Lock the enrolments before.

    A single change may have an `act`, its id in the history: if that is there, the change was made before, and none is left.
    """
    source_user, source_version = transferred_from or (None, None)
    enrollments = [
        (
            p.before.user_id,
            p.before.course_version_id,
            p.before.status,
            p.before.commanded_at,
            p.before.command,
            p.before.confirmed_at,
            p.before.confirmed,
            p.before.revocation_confirmed_at,
            p.before.is_completed,
            p.before.reset_at,
            p.after.status,
            p.after.commanded_at,
            p.after.command,
            p.after.confirmed_at,
            p.after.confirmed,
            p.after.revocation_confirmed_at,
            p.changes[-1].occurred_at if p.changes else None,
            p.changes[-1].actor if p.changes else None,
            p.changes[-1].reason if p.changes else None,
            p.changes[0].occurred_at if p.changes else None,
            p.source_of_enrollment,
            p.left_at,
            len(p.changes),
        )
        for p in plans
    ]
    changes = [
        (
            p.before.user_id,
            p.before.course_version_id,
            n,
            c.event,
            c.from_status,
            c.to_status,
            c.occurred_at,
            c.actor,
            c.reason,
            c.traceparent,
        )
        for p in plans
        for n, c in enumerate(p.changes, 1)
    ]
    return conn.execute(
        """
        WITH i AS (
            SELECT * FROM unnest(
                %b::uuid[], %b::uuid[], %b::text[], %b::timestamptz[], %b::text[], %b::timestamptz[], %b::text[],
                %b::timestamptz[], %b::bool[], %b::timestamptz[], %b::text[], %b::timestamptz[], %b::text[], %b::timestamptz[],
                %b::text[], %b::timestamptz[], %b::timestamptz[], %b::text[], %b::text[], %b::timestamptz[], %b::text[],
                %b::timestamptz[], %b::int[]
            ) AS i (
                user_id, course_version_id, seen_status, seen_commanded_at, seen_command, seen_confirmed_at, seen_confirmed,
                seen_revocation_confirmed_at, seen_completed, seen_reset_at, status, commanded_at, command, confirmed_at,
                confirmed, revocation_confirmed_at, status_changed_at, actor, reason, enrolled_at, source_of_enrollment, left_at,
                changes
            )
            ORDER BY user_id, course_version_id
        ), source AS (
            SELECT %b::uuid IS NULL OR EXISTS (
                SELECT FROM enrollments
                WHERE user_id = %b::uuid AND course_version_id = %b::uuid AND status IN ('active', 'completed')
            ) AS is_open
        ), changed AS (
            UPDATE enrollments e
            SET status = i.status, commanded_at = i.commanded_at, command = i.command, confirmed_at = i.confirmed_at,
                confirmed = i.confirmed, revocation_confirmed_at = i.revocation_confirmed_at,
                status_changed_at = coalesce(i.status_changed_at, e.status_changed_at),
                status_actor = CASE WHEN i.changes > 0 THEN i.actor ELSE e.status_actor END,
                status_reason = CASE WHEN i.changes > 0 THEN i.reason ELSE e.status_reason END,
                source_of_enrollment = coalesce(i.source_of_enrollment, e.source_of_enrollment),
                inactive_since = CASE WHEN i.status IN ('cancelled_by_user', 'revoked_by_admin')
                    THEN coalesce(i.left_at, e.inactive_since) END,
                sequence = e.sequence + i.changes
            FROM i
            WHERE e.user_id = i.user_id AND e.course_version_id = i.course_version_id
                AND e.status = i.seen_status AND e.commanded_at = i.seen_commanded_at AND e.command = i.seen_command
                AND (e.confirmed_at, e.confirmed, e.revocation_confirmed_at)
                    IS NOT DISTINCT FROM (i.seen_confirmed_at, i.seen_confirmed, i.seen_revocation_confirmed_at)
                AND (e.completed_at IS NOT NULL) = i.seen_completed AND e.reset_at IS NOT DISTINCT FROM i.seen_reset_at
                AND (SELECT is_open FROM source)
            RETURNING e.user_id, e.course_version_id, e.sequence
        ), created AS (
            INSERT INTO enrollments (
                user_id, course_version_id, enrolled_at, status, source_of_enrollment, status_changed_at, status_actor,
                status_reason, inactive_since, commanded_at, command, confirmed_at, confirmed, revocation_confirmed_at, sequence
            )
            SELECT i.user_id, i.course_version_id, i.enrolled_at, i.status, i.source_of_enrollment, i.status_changed_at, i.actor,
                i.reason, i.left_at, i.commanded_at, i.command, i.confirmed_at, i.confirmed, i.revocation_confirmed_at, i.changes
            FROM i WHERE i.seen_status IS NULL AND (SELECT is_open FROM source)
            ORDER BY i.user_id, i.course_version_id
            ON CONFLICT DO NOTHING
            RETURNING user_id, course_version_id, sequence
        ), written AS (
            SELECT i.user_id, i.course_version_id, w.sequence - i.changes AS sequence
            FROM (SELECT * FROM changed UNION ALL SELECT * FROM created) w
            JOIN i ON i.user_id = w.user_id AND i.course_version_id = w.course_version_id
        ), told AS (
            SELECT c.*, w.sequence + c.n AS sequence
            FROM unnest(
                %b::uuid[], %b::uuid[], %b::int[], %b::text[], %b::text[], %b::text[], %b::timestamptz[], %b::text[], %b::text[],
                %b::text[]
            ) AS c (user_id, course_version_id, n, event, from_status, to_status, occurred_at, actor, reason, traceparent)
            JOIN written w ON w.user_id = c.user_id AND w.course_version_id = c.course_version_id
        ), history AS (
            INSERT INTO enrollment_history (
                id, user_id, course_version_id, type, from_status, to_status, occurred_at, actor, reason, sequence
            )
            SELECT coalesce(%b::uuid, gen_random_uuid()), user_id, course_version_id, split_part(event, '.', 2), from_status,
                to_status, occurred_at, actor, reason, sequence
            FROM told ORDER BY user_id, course_version_id, sequence
        ), events AS (
            INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
            SELECT 'bus', event, occurred_at, jsonb_strip_nulls(jsonb_build_object(
                'user_id', user_id, 'course_version_id', course_version_id, 'status', to_status, 'reason', reason, 'sequence',
                sequence
            )), coalesce(traceparent, %s::text)
            FROM told
        )
        SELECT user_id, course_version_id FROM i WHERE NOT EXISTS (SELECT FROM enrollment_history WHERE id = %b::uuid)
        EXCEPT
        SELECT user_id, course_version_id FROM written
        """,
        [
            *columns(enrollments, 23),
            source_user,
            source_user,
            source_version,
            *columns(changes, 10),
            act,
            trace.current(),
            act,
        ],
        binary=True,
    )


@dataclass(frozen=True, slots=True)
class _Detail:
    """A row of `detail`, flat as the database gives it."""

    user_id: UUID
    course_version_id: UUID
    status: Status
    enrolled_at: datetime
    completed_at: datetime | None
    source_of_enrollment: str | None
    status_changed_at: datetime
    status_reason: str | None
    progress_percentage: float | None
    lessons_completed: int
    lessons_total: int
    quizzes_passed: int
    quizzes_total: int
    certificate_uid: str | None
    certificate_status: Literal["valid", "expired", "revoked"] | None

    def model(self) -> EnrollmentDetail:
        values = {name: getattr(self, name) for name in self.__slots__}
        return EnrollmentDetail(progress=Progress(**{name: values.pop(name) for name in Progress.model_fields}), **values)


def detail(conn: Connection, user_id: UUID, course_version_id: UUID) -> Cursor[_Detail]:
    """An enrolment with its progress and its certificate, if there is such an enrolment."""
    return conn.cursor(row_factory=class_row(_Detail)).execute(
        """
        SELECT e.user_id, e.course_version_id, e.status, e.enrolled_at, e.completed_at, e.source_of_enrollment,
        e.status_changed_at,
            e.status_reason, i.progress_percentage, i.lessons_completed, i.lessons_total, i.quizzes_passed, i.quizzes_total,
            c.certificate_uid,
            CASE WHEN c.revoked_at IS NOT NULL THEN 'revoked' WHEN c.expires_at <= now() THEN 'expired'
                WHEN c.id IS NOT NULL THEN 'valid' END AS certificate_status
        FROM enrollments e
        CROSS JOIN LATERAL (
            SELECT 100.0::float8 * count(fulfilled_at) FILTER (WHERE required) / nullif(count(*) FILTER (WHERE required), 0)
                    AS progress_percentage,
                count(fulfilled_at) FILTER (WHERE kind = 'lesson') AS lessons_completed,
                count(*) FILTER (WHERE kind = 'lesson') AS lessons_total,
                count(fulfilled_at) FILTER (WHERE kind = 'quiz') AS quizzes_passed,
                count(*) FILTER (WHERE kind = 'quiz') AS quizzes_total
            FROM enrollment_items
            WHERE user_id = e.user_id AND course_version_id = e.course_version_id
        ) i
        LEFT JOIN certificates c ON c.user_id = e.user_id AND c.course_version_id = e.course_version_id
        WHERE e.user_id = %b AND e.course_version_id = %b
        """,
        [user_id, course_version_id],
        binary=True,
    )


def of_learner(
    conn: Connection, user_id: UUID, status: Status | None, after: tuple[datetime, UUID] | None, limit: int
) -> Cursor[Enrollment]:
    """A learner's enrolments in the order in which they were made, from behind the key `after`."""
    return conn.cursor(row_factory=class_row(Enrollment)).execute(
        """
        SELECT user_id, course_version_id, status, enrolled_at, completed_at, source_of_enrollment, status_changed_at,
        status_reason
        FROM enrollments
        WHERE user_id = %(user_id)b AND (%(status)s::text IS NULL OR status = %(status)s)
            AND (%(at)b::timestamptz IS NULL OR (enrolled_at, course_version_id) > (%(at)b::timestamptz, %(id)b::uuid))
        ORDER BY enrolled_at, course_version_id LIMIT %(limit)s
        """,
        {"user_id": user_id, "status": status, "at": after and after[0], "id": after and after[1], "limit": limit},
        binary=True,
    )
