"""The SQL of grading attempts again after their answer key was corrected.

A regrade is a row of `quiz_regrades` and goes through the learners in the order of their ids, some at a time. Each such step
is one transaction that also notes how far it got, so that a regrade whose process dies goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import class_row

from shared import trace
from shared.db import Connection, columns
from shared.quiz.attempts import Regrade, RegradeBody, RegradedLearner

#: Seconds for which whoever works on a regrade keeps others off; it is renewed with each step.
LEASE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Job:
    """A regrade under way: all learners up to `after_user_id`, in that enrolment, are done."""

    id: UUID
    course_version_id: UUID
    quiz_id: UUID
    dry_run: bool
    take_away: bool
    actor: str
    reason: str
    after_user_id: UUID | None
    after_course_version_id: UUID | None


def request(
    conn: Connection, regrade_id: UUID, course_version_id: UUID, quiz_id: UUID, body: RegradeBody, actor: str, reason: str
) -> Cursor[Job]:
    """Note down a regrade that the caller works on first, with its horizon as in `lease`; one of this id is there once.

    No row: there is no such quiz.
    """
    return conn.cursor(row_factory=class_row(Job)).execute(
        """
        INSERT INTO quiz_regrades (id, course_version_id, quiz_id, dry_run, take_away, actor, reason, leased_until, horizon)
        SELECT %b, course_version_id, quiz_id, %s, %s, %s, %s, now() + make_interval(secs => %s),
            pg_snapshot_xmax(pg_current_snapshot())
        FROM course_version_quizzes WHERE course_version_id = %b AND quiz_id = %b
        ON CONFLICT (id) DO UPDATE SET leased_until = excluded.leased_until
        RETURNING id, course_version_id, quiz_id, dry_run, take_away, actor, reason, after_user_id, after_course_version_id
        """,
        [regrade_id, body.dry_run, body.take_away, actor, reason, LEASE_SECONDS, course_version_id, quiz_id],
    )


def lease(conn: Connection) -> Cursor[Job]:
    """The unfinished regrade that nobody works on and that has waited longest, if there is one.

    This is the first look at it since its correction was committed. A transaction that began before may still store an
    attempt graded by the older key; all those have ended once the horizon that is noted down here is passed.
    """
    return conn.cursor(row_factory=class_row(Job)).execute(
        """
        UPDATE quiz_regrades
        SET leased_until = now() + make_interval(secs => %s), horizon = coalesce(horizon, pg_snapshot_xmax(pg_current_snapshot()))
        WHERE id = (
            SELECT id FROM quiz_regrades WHERE completed_at IS NULL AND leased_until <= now()
            ORDER BY leased_until, id LIMIT 1 FOR UPDATE SKIP LOCKED
        )
        RETURNING id, course_version_id, quiz_id, dry_run, take_away, actor, reason, after_user_id, after_course_version_id
        """,
        [LEASE_SECONDS],
    )


def unfinished(conn: Connection, regrade_id: UUID) -> Cursor[Job]:
    """A regrade as it stands, unless it is completed."""
    return conn.cursor(row_factory=class_row(Job)).execute(
        """
        SELECT id, course_version_id, quiz_id, dry_run, take_away, actor, reason, after_user_id, after_course_version_id
        FROM quiz_regrades WHERE id = %s AND completed_at IS NULL
        """,
        [regrade_id],
    )


@dataclass(frozen=True, slots=True)
class Graded:
    """A graded attempt that may come out otherwise now."""

    id: UUID
    user_id: UUID
    course_version_id: UUID
    key_version: int
    is_passed: bool
    pass_kept: bool
    pass_threshold_percentage: Decimal
    answers: str


def due(conn: Connection, job: Job, key_version: int, learners: int) -> Cursor[Graded]:
    """The attempts of the next learners that were graded by an older key than this one, in the order of the learners.

    Where passes are taken away, also those whose pass was only kept.
    """
    return conn.cursor(row_factory=class_row(Graded)).execute(
        """
        WITH learner AS (
            SELECT DISTINCT user_id, enrolled_course_version_id FROM quiz_attempts
            WHERE key_course_version_id = %(course_version_id)b AND quiz_id = %(quiz_id)b AND completed_at IS NOT NULL
                AND (
                    %(after_user_id)b::uuid IS NULL
                    OR (user_id, enrolled_course_version_id) > (%(after_user_id)b::uuid, %(after_course_version_id)b::uuid)
                )
                AND (key_version < %(key_version)s OR %(take_away)s AND pass_kept)
            ORDER BY user_id, enrolled_course_version_id LIMIT %(learners)s
        )
        SELECT a.id, a.user_id, a.enrolled_course_version_id AS course_version_id, a.key_version, a.is_passed, a.pass_kept,
            a.pass_threshold_percentage, a.answers_snapshot::text AS answers
        FROM learner l
        JOIN quiz_attempts a ON a.user_id = l.user_id AND a.enrolled_course_version_id = l.enrolled_course_version_id
        WHERE a.key_course_version_id = %(course_version_id)b AND a.quiz_id = %(quiz_id)b AND a.completed_at IS NOT NULL
            AND (a.key_version < %(key_version)s OR %(take_away)s AND a.pass_kept)
        ORDER BY a.user_id, a.enrolled_course_version_id, a.attempt_number
        """,
        {
            "course_version_id": job.course_version_id,
            "quiz_id": job.quiz_id,
            "after_user_id": job.after_user_id,
            "after_course_version_id": job.after_course_version_id,
            "key_version": key_version,
            "take_away": job.take_away,
            "learners": learners,
        },
    )


class Regraded(NamedTuple):
    """A graded attempt as it comes out now. `is_passed` is what the score says, whatever is kept."""

    attempt_id: UUID
    seen_key_version: int
    seen_pass_kept: bool
    score: float
    is_passed: bool
    question_results: str


def step(conn: Connection, job: Job, last: Graded, key_version: int, regraded: Sequence[Regraded]) -> Cursor[tuple[UUID]]:
    """Take one step: report whom it makes a difference to, and unless it is a dry run store the grades and publish them.

    `last` is the last learner of this step. A pass once given is kept unless the regrade takes passes away. The old grade of
    an attempt that comes out otherwise is kept beside it. No row: someone else took this step, or the key was corrected
    again. Lock the enrolments before.
    """
    return conn.execute(
        """
        WITH job AS (
            SELECT j.* FROM quiz_regrades j
            JOIN course_version_quizzes q
                ON q.course_version_id = j.course_version_id AND q.quiz_id = j.quiz_id AND q.key_version = %(key_version)s
            WHERE j.id = %(id)b AND j.completed_at IS NULL
                AND (j.after_user_id, j.after_course_version_id)
                    IS NOT DISTINCT FROM (%(after_user_id)b::uuid, %(after_course_version_id)b::uuid)
            FOR UPDATE OF j
        ), attempt AS (
            SELECT a.id, a.user_id, a.enrolled_course_version_id AS course_version_id, a.attempt_number, a.completed_at,
                a.score AS previous_score, a.is_passed AS was_passed, a.pass_kept AS was_kept,
                a.key_version AS previous_key_version, a.question_results <> r.question_results::jsonb AS has_other_results,
                r.score,
                r.is_passed OR (a.is_passed AND NOT j.take_away) AS is_passed,
                a.is_passed AND NOT r.is_passed AND NOT j.take_away AS pass_kept
            FROM unnest(
                %(ids)b::uuid[], %(seen_key_versions)b::int[], %(seen_pass_kept)b::bool[], %(scores)b::float8[],
                %(passed)b::bool[], %(results)b::text[]
            ) AS r (id, seen_key_version, seen_pass_kept, score, is_passed, question_results)
            JOIN quiz_attempts a ON a.id = r.id AND a.key_version = r.seen_key_version AND a.pass_kept = r.seen_pass_kept
            CROSS JOIN job j
        ), changed AS (
            SELECT * FROM attempt
            WHERE has_other_results OR (previous_score, was_passed, was_kept) <> (score, is_passed, pass_kept)
        ), learner AS (
            SELECT a.user_id, a.enrolled_course_version_id AS course_version_id,
                max(a.score) AS previous_score, max(coalesce(c.score, a.score)) AS score,
                bool_or(a.is_passed) AS was_passed, bool_or(coalesce(c.is_passed, a.is_passed)) AS is_passed,
                bool_or(a.is_passed AND NOT a.pass_kept) AS was_deserved,
                bool_or(coalesce(c.is_passed AND NOT c.pass_kept, a.is_passed AND NOT a.pass_kept)) AS is_deserved,
                min(a.completed_at) FILTER (WHERE coalesce(c.is_passed, a.is_passed)) AS passed_at
            FROM (SELECT DISTINCT user_id, course_version_id FROM changed) l
            JOIN quiz_attempts a ON a.user_id = l.user_id AND a.enrolled_course_version_id = l.course_version_id
                AND a.quiz_id = %(quiz_id)b AND a.completed_at IS NOT NULL
            LEFT JOIN changed c ON c.id = a.id
            GROUP BY a.user_id, a.enrolled_course_version_id
        ), affected AS (
            SELECT l.*, CASE
                WHEN l.is_passed AND NOT l.was_passed THEN 'gained'
                WHEN l.was_passed AND NOT l.is_passed THEN 'lost'
                WHEN l.is_passed AND l.was_deserved AND NOT l.is_deserved THEN 'kept'
            END AS pass
            FROM learner l
        ), told AS (
            SELECT l.*, CASE
                WHEN l.pass = 'gained' AND e.status IN ('active', 'cancelled_by_user') AND v.certificate_enabled
                    AND i.this_is_missing AND i.missing = 1
                    AND (c.id IS NULL OR is_renewed_by(c, greatest(i.others_at, l.passed_at))) THEN 'gained'
                WHEN l.pass = 'lost' AND e.completed_at IS NOT NULL AND i.this_counts AND c.id IS NOT NULL
                    AND c.revoked_at IS NULL THEN 'lost'
            END AS certificate
            FROM affected l
            JOIN enrollments e ON e.user_id = l.user_id AND e.course_version_id = l.course_version_id
            JOIN course_versions v ON v.course_version_id = l.course_version_id
            CROSS JOIN LATERAL (
                SELECT count(*) FILTER (WHERE fulfilled_at IS NULL) AS missing, max(fulfilled_at) AS others_at,
                    coalesce(bool_or(id = %(quiz_id)b AND fulfilled_at IS NULL), FALSE) AS this_is_missing,
                    coalesce(bool_or(id = %(quiz_id)b AND waived_at IS NULL), FALSE) AS this_counts
                FROM enrollment_items i
                WHERE i.user_id = l.user_id AND i.course_version_id = l.course_version_id AND i.required
            ) i
            LEFT JOIN certificates c ON c.user_id = l.user_id AND c.course_version_id = l.course_version_id
            WHERE l.pass IS NOT NULL
        ), reported AS (
            INSERT INTO quiz_regrade_learners AS r (
                regrade_id, user_id, course_version_id, previous_score, score, pass, certificate
            )
            SELECT j.id, t.user_id, t.course_version_id, t.previous_score, t.score, t.pass, t.certificate
            FROM told t CROSS JOIN job j
            ON CONFLICT (regrade_id, user_id, course_version_id) DO UPDATE
            SET score = excluded.score, pass = excluded.pass, certificate = coalesce(excluded.certificate, r.certificate)
        ), gradings AS (
            INSERT INTO quiz_attempt_gradings (
                attempt_id, user_id, regrade_id, key_version, score, is_passed, pass_kept, question_results
            )
            SELECT c.id, c.user_id, j.id, c.previous_key_version, c.previous_score, c.was_passed, c.was_kept,
                a.question_results
            FROM changed c JOIN quiz_attempts a ON a.id = c.id CROSS JOIN job j WHERE NOT j.dry_run
        ), stored AS (
            UPDATE quiz_attempts a
            SET key_version = %(key_version)s, score = n.score, is_passed = n.is_passed, pass_kept = n.pass_kept,
                question_results = r.question_results::jsonb
            FROM attempt n
            JOIN unnest(%(ids)b::uuid[], %(results)b::text[]) AS r (id, question_results) ON r.id = n.id
            CROSS JOIN job j
            WHERE a.id = n.id AND NOT j.dry_run
        ), numbered AS (
            SELECT c.id, c.user_id, c.course_version_id, c.attempt_number, c.previous_score, c.score, c.is_passed,
                row_number() OVER (PARTITION BY c.user_id, c.course_version_id ORDER BY c.attempt_number) AS k
            FROM changed c CROSS JOIN job j WHERE NOT j.dry_run
        ), counted AS (
            UPDATE enrollments e SET sequence = e.sequence + n.attempts
            FROM (SELECT user_id, course_version_id, count(*) AS attempts FROM numbered GROUP BY user_id, course_version_id) n
            WHERE e.user_id = n.user_id AND e.course_version_id = n.course_version_id
            RETURNING e.user_id, e.course_version_id, e.status, e.sequence - n.attempts AS sequence
        ), published AS (
            INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
            SELECT 'bus', 'quiz.regraded', now(), jsonb_build_object(
                'user_id', n.user_id, 'course_version_id', n.course_version_id, 'quiz_id', %(quiz_id)b::uuid, 'attempt_id', n.id,
                'attempt_number', n.attempt_number, 'previous_score', n.previous_score, 'score', n.score,
                'is_passed', n.is_passed, 'status', c.status, 'sequence', c.sequence + n.k
            ), %(traceparent)s::text
            FROM numbered n JOIN counted c ON c.user_id = n.user_id AND c.course_version_id = n.course_version_id
        )
        UPDATE quiz_regrades r
        SET after_user_id = %(last_user_id)b, after_course_version_id = %(last_course_version_id)b,
            attempts = r.attempts + (SELECT count(*) FROM attempt),
            attempts_changed = r.attempts_changed + (SELECT count(*) FROM changed),
            leased_until = now() + make_interval(secs => %(lease)s)
        FROM job j WHERE r.id = j.id
        RETURNING r.id
        """,
        {
            "id": job.id,
            "course_version_id": job.course_version_id,
            "quiz_id": job.quiz_id,
            "after_user_id": job.after_user_id,
            "after_course_version_id": job.after_course_version_id,
            "last_user_id": last.user_id,
            "last_course_version_id": last.course_version_id,
            "key_version": key_version,
            "lease": LEASE_SECONDS,
            "traceparent": trace.current(),
        }
        | dict(
            zip(
                ("ids", "seen_key_versions", "seen_pass_kept", "scores", "passed", "results"),
                columns(regraded, 6),
                strict=True,
            )
        ),
    )


def take_completion_back(
    conn: Connection, enrollments: Sequence[tuple[UUID, UUID]], quiz_id: UUID, actor: str, reason: str
) -> None:
    """Make enrolments active again, and revoke their certificates, where this quiz is required and no longer passed; publish it.

    One that was revoked merely forgets that it had been completed, and one that another attempt fulfils was completed when that
    one did. Lock the enrolments before.
    """
    conn.execute(
        """
        WITH completed AS (
            SELECT e.user_id, e.course_version_id, e.status, i.is_lost, i.fulfilled_at
            FROM unnest(%(user_ids)b::uuid[], %(course_version_ids)b::uuid[]) AS k (user_id, course_version_id)
            JOIN enrollments e ON e.user_id = k.user_id AND e.course_version_id = k.course_version_id
            CROSS JOIN LATERAL (
                SELECT bool_or(id = %(quiz_id)b AND fulfilled_at IS NULL) AS is_lost,
                    CASE WHEN bool_and(fulfilled_at IS NOT NULL) THEN max(fulfilled_at) END AS fulfilled_at
                FROM enrollment_items
                WHERE user_id = k.user_id AND course_version_id = k.course_version_id AND required
            ) i
            WHERE e.completed_at IS NOT NULL
        ), later AS (
            UPDATE enrollments e
            SET completed_at = k.fulfilled_at,
                status_changed_at = CASE e.status WHEN 'completed' THEN k.fulfilled_at ELSE e.status_changed_at END
            FROM completed k
            WHERE e.user_id = k.user_id AND e.course_version_id = k.course_version_id AND e.completed_at < k.fulfilled_at
        ), lost AS (
            SELECT e.user_id, e.course_version_id, e.status AS from_status, c.id AS certificate_id
            FROM completed e
            LEFT JOIN certificates c
                ON c.user_id = e.user_id AND c.course_version_id = e.course_version_id AND c.revoked_at IS NULL
            WHERE e.is_lost
        ), reopened AS (
            UPDATE enrollments e
            SET completed_at = NULL, status = CASE e.status WHEN 'completed' THEN 'active' ELSE e.status END,
                status_changed_at = CASE e.status WHEN 'completed' THEN now() ELSE e.status_changed_at END,
                status_actor = CASE e.status WHEN 'completed' THEN %(actor)s ELSE e.status_actor END,
                status_reason = CASE e.status WHEN 'completed' THEN %(reason)s ELSE e.status_reason END,
                sequence = e.sequence + (e.status = 'completed')::int + (l.certificate_id IS NOT NULL)::int
            FROM lost l WHERE e.user_id = l.user_id AND e.course_version_id = l.course_version_id
            RETURNING e.user_id, e.course_version_id, l.from_status, e.status, l.certificate_id, e.sequence
        ), history AS (
            INSERT INTO enrollment_history (
                user_id, course_version_id, type, from_status, to_status, occurred_at, actor, reason, sequence
            )
            SELECT user_id, course_version_id,
                CASE from_status WHEN 'completed' THEN 'reactivated' ELSE 'completion_withdrawn' END,
                from_status, status, now(), %(actor)s, %(reason)s,
                CASE from_status WHEN 'completed' THEN sequence - (certificate_id IS NOT NULL)::int END
            FROM reopened
        ), revoked AS (
            UPDATE certificates c
            SET revoked_at = now(), revocation_reason = %(reason)s, revoked_by = %(actor)s, completion_withdrawn = TRUE
            FROM reopened r WHERE c.id = r.certificate_id
            RETURNING c.user_id, c.course_version_id, c.certificate_uid, r.sequence
        )
        INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
        SELECT 'bus', 'enrollment.reactivated', now(), jsonb_build_object(
            'user_id', user_id, 'course_version_id', course_version_id, 'status', status, 'reason', %(reason)s::text,
            'sequence', sequence - (certificate_id IS NOT NULL)::int
        ), %(traceparent)s::text
        FROM reopened WHERE from_status = 'completed'
        UNION ALL
        SELECT 'bus', 'certificate.revoked', now(), jsonb_build_object(
            'user_id', user_id, 'course_version_id', course_version_id, 'certificate_uid', certificate_uid, 'status', 'revoked',
            'reason', %(reason)s::text, 'sequence', sequence
        ), %(traceparent)s::text
        FROM revoked
        """,
        {
            "quiz_id": quiz_id,
            "actor": actor,
            "reason": reason,
            "traceparent": trace.current(),
        }
        | dict(zip(("user_ids", "course_version_ids"), columns(enrollments, 2), strict=True)),
    )


def finish(conn: Connection, job: Job, key_version: int) -> Cursor[tuple[bool]]:
    """Complete a regrade that came to the end of the learners, unless attempts are left or may still appear.

    Some are left if they were carried over from another enrolment at the moment at which their learner's turn was, or if another
    regrade then kept a pass which this one takes away: it starts from the first learner again. Gives whether it does.
    """
    return conn.execute(
        """
        WITH state AS (
            SELECT r.id,
                r.dry_run OR pg_snapshot_xmin(pg_current_snapshot()) >= r.horizon AS is_past_horizon,
                CASE WHEN NOT r.dry_run AND pg_snapshot_xmin(pg_current_snapshot()) >= r.horizon THEN EXISTS (
                    SELECT FROM quiz_attempts a
                    WHERE a.key_course_version_id = r.course_version_id AND a.quiz_id = r.quiz_id AND a.completed_at IS NOT NULL
                        AND (a.key_version < %s OR r.take_away AND a.pass_kept)
                ) ELSE FALSE END AS has_some_left
            FROM quiz_regrades r WHERE r.id = %s
        )
        UPDATE quiz_regrades r
        SET after_user_id = NULL, after_course_version_id = NULL,
            completed_at = CASE WHEN s.is_past_horizon AND NOT s.has_some_left THEN now() END,
            leased_until = CASE WHEN s.has_some_left THEN r.leased_until ELSE now() + interval '1 second' END
        FROM state s
        WHERE r.id = s.id AND r.completed_at IS NULL
            AND (r.after_user_id, r.after_course_version_id) IS NOT DISTINCT FROM (%b::uuid, %b::uuid)
        RETURNING s.has_some_left
        """,
        [key_version, job.id, job.after_user_id, job.after_course_version_id],
    )


@dataclass(frozen=True, slots=True)
class _Report:
    """A row of `report`."""

    id: UUID
    course_version_id: UUID
    quiz_id: UUID
    dry_run: bool
    take_away: bool
    actor: str
    reason: str
    requested_at: datetime
    completed_at: datetime | None
    attempts: int
    attempts_changed: int
    passes_gained: int
    passes_lost: int
    passes_kept: int
    certificates_gained: int
    certificates_lost: int

    def model(self, learners: list[RegradedLearner], next_cursor: str | None) -> Regrade:
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return Regrade(
            status="completed" if self.completed_at else "running", learners=learners, next_cursor=next_cursor, **values
        )


def report(conn: Connection, course_version_id: UUID, quiz_id: UUID, regrade_id: UUID) -> Cursor[_Report]:
    """A regrade and how many learners it makes a difference to."""
    return conn.cursor(row_factory=class_row(_Report)).execute(
        """
        SELECT r.id, r.course_version_id, r.quiz_id, r.dry_run, r.take_away, r.actor, r.reason, r.requested_at, r.completed_at,
            r.attempts, r.attempts_changed, l.*
        FROM quiz_regrades r
        CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE pass = 'gained') AS passes_gained, count(*) FILTER (WHERE pass = 'lost') AS passes_lost,
                count(*) FILTER (WHERE pass = 'kept') AS passes_kept,
                count(*) FILTER (WHERE certificate = 'gained') AS certificates_gained,
                count(*) FILTER (WHERE certificate = 'lost') AS certificates_lost
            FROM quiz_regrade_learners WHERE regrade_id = r.id
        ) l
        WHERE r.id = %s AND r.course_version_id = %s AND r.quiz_id = %s
        """,
        [regrade_id, course_version_id, quiz_id],
    )


def learners(conn: Connection, regrade_id: UUID, after: tuple[UUID, UUID] | None, limit: int) -> Cursor[RegradedLearner]:
    """Whom a regrade makes a difference to, by user_id, from behind the key `after`."""
    return conn.cursor(row_factory=class_row(RegradedLearner)).execute(
        """
        SELECT user_id, course_version_id, previous_score, score, pass AS pass_change, certificate AS certificate_change
        FROM quiz_regrade_learners
        WHERE regrade_id = %(id)b
            AND (%(user)b::uuid IS NULL OR (user_id, course_version_id) > (%(user)b::uuid, %(course_version)b::uuid))
        ORDER BY user_id, course_version_id LIMIT %(limit)s
        """,
        {"id": regrade_id, "user": after and after[0], "course_version": after and after[1], "limit": limit},
    )
