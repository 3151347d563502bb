"""The SQL of what administrators do to an enrolment beyond its status: starting over, waivers, transfer; and its history.

An `act` is the id of its entry in the history, drawn before: what is there already is not done again. So the same statement may
come twice when nobody knows what became of the first one.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import class_row

from shared import trace
from shared.db import Connection
from shared.enrollment.models import HistoryEntry


def lock_alone(conn: Connection, user_id: UUID, course_version_id: UUID) -> None:
    """Lock an enrolment also against progress that is just being written, which shares a key lock on it.

    What follows in the transaction then sees all progress that was taken before, and whatever is taken after it sees the
    enrolment as started over. It is the only lock that its transaction waits for, so it can't be part of a deadlock.
    """
    conn.execute("SELECT FROM enrollments WHERE user_id = %b AND course_version_id = %b FOR UPDATE", [user_id, course_version_id])


def start_over(conn: Connection, user_id: UUID, course_version_id: UUID, *, act: UUID, actor: str, reason: str) -> None:
    """Set progress and attempts aside, take `completed_at` back, make a completed enrolment active; publish it.

    Lock the enrolment alone before, and complete it after: what is waived stays so.
    """
    conn.execute(
        """
        WITH enrollment AS (
            -- Not now(), which is of before the lock was waited for.
            SELECT user_id, course_version_id, status, clock_timestamp() AS at FROM enrollments
            WHERE user_id = %(user_id)b AND course_version_id = %(course_version_id)b
                AND NOT EXISTS (SELECT FROM enrollment_history WHERE id = %(act)b)
        ), reset AS (
            UPDATE enrollments e
            SET reset_at = b.at, completed_at = NULL, sequence = e.sequence + 1,
                status = CASE e.status WHEN 'completed' THEN 'active' ELSE e.status END,
                status_changed_at = CASE e.status WHEN 'completed' THEN b.at ELSE e.status_changed_at END,
                status_actor = CASE e.status WHEN 'completed' THEN %(actor)s ELSE e.status_actor END,
                status_reason = CASE e.status WHEN 'completed' THEN %(reason)s ELSE e.status_reason END
            FROM enrollment b WHERE e.user_id = b.user_id AND e.course_version_id = b.course_version_id
            RETURNING e.user_id, e.course_version_id, b.status AS from_status, e.status, e.sequence, e.reset_at
        ), history AS (
            INSERT INTO enrollment_history (
                id, user_id, course_version_id, type, from_status, to_status, occurred_at, actor, reason, sequence
            )
            SELECT %(act)b, user_id, course_version_id, 'reset', from_status, status, reset_at, %(actor)s, %(reason)s, sequence
            FROM reset
            RETURNING id
        ), lesson AS (
            DELETE FROM lesson_progress p USING reset r
            WHERE p.user_id = r.user_id AND p.enrolled_course_version_id = r.course_version_id
            RETURNING p.*
        ), lessons AS (
            INSERT INTO lesson_progress_set_aside (
                reset_id, user_id, lesson_id, enrolled_course_version_id, status, progress_percentage, last_accessed_at,
                started_at, completed_at
            )
            SELECT h.id, l.user_id, l.lesson_id, l.enrolled_course_version_id, l.status, l.progress_percentage,
                l.last_accessed_at, l.started_at, l.completed_at
            FROM lesson l CROSS JOIN history h
        ), attempt AS (
            DELETE FROM quiz_attempts a USING reset r
            WHERE a.user_id = r.user_id AND a.enrolled_course_version_id = r.course_version_id
            RETURNING a.*
        ), attempts AS (
            INSERT INTO quiz_attempts_set_aside (
                id, reset_id, user_id, quiz_id, enrolled_course_version_id, attempt_number, score, is_passed, started_at,
                completed_at, answers_snapshot, expires_at, in_time, key_version, pass_threshold_percentage, question_results,
                key_course_version_id, transferred_from, pass_kept
            )
            SELECT a.id, h.id, a.user_id, a.quiz_id, a.enrolled_course_version_id, a.attempt_number, a.score, a.is_passed,
                a.started_at, a.completed_at, a.answers_snapshot, a.expires_at, a.in_time, a.key_version,
                a.pass_threshold_percentage, a.question_results, a.key_course_version_id, a.transferred_from, a.pass_kept
            FROM attempt a CROSS JOIN history h
        )
        INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
        SELECT 'bus', 'enrollment.reset', reset_at, jsonb_build_object(
            'user_id', user_id, 'course_version_id', course_version_id, 'status', status, 'reason', %(reason)s::text,
            'sequence', sequence
        ), %(traceparent)s::text
        FROM reset
        """,
        {
            "user_id": user_id,
            "course_version_id": course_version_id,
            "act": act,
            "actor": actor,
            "reason": reason,
            "traceparent": trace.current(),
        },
    )


def waive(
    conn: Connection, user_id: UUID, course_version_id: UUID, requirement_id: UUID, *, act: UUID, actor: str, reason: str
) -> Cursor[tuple[int]]:
    """Let a lesson or a quiz count as fulfilled from now on; one that is waived already stays so since then.

    No row: the course version has no such lesson or quiz, or there is no such enrolment. Lock the enrolment before, and
    complete it after.
    """
    return conn.execute(
        """
        WITH item AS (
            SELECT e.user_id, e.course_version_id, e.status, i.id
            FROM enrollments e
            JOIN enrollment_items i ON i.user_id = e.user_id AND i.course_version_id = e.course_version_id
            WHERE e.user_id = %(user_id)b AND e.course_version_id = %(course_version_id)b AND i.id = %(requirement_id)b
        ), waived AS (
            INSERT INTO requirement_waivers (user_id, course_version_id, requirement_id, actor, reason)
            SELECT user_id, course_version_id, id, %(actor)s, %(reason)s FROM item
            WHERE NOT EXISTS (SELECT FROM enrollment_history WHERE id = %(act)b)
            ON CONFLICT DO NOTHING
            RETURNING requirement_id
        ), history AS (
            INSERT INTO enrollment_history (
                id, user_id, course_version_id, type, from_status, to_status, occurred_at, actor, reason, details
            )
            SELECT %(act)b, i.user_id, i.course_version_id, 'waived', i.status, i.status, now(), %(actor)s, %(reason)s,
                jsonb_build_object('requirement_id', w.requirement_id)
            FROM item i CROSS JOIN waived w
        )
        SELECT 1 FROM item
        """,
        {
            "user_id": user_id,
            "course_version_id": course_version_id,
            "requirement_id": requirement_id,
            "act": act,
            "actor": actor,
            "reason": reason,
        },
    )


def withdraw_waiver(
    conn: Connection, user_id: UUID, course_version_id: UUID, requirement_id: UUID, *, act: UUID, actor: str
) -> Cursor[tuple[int]]:
    """Take a waiver back, if there is one; an enrolment that it completed stays completed.

    No row: the course version has no such lesson or quiz, or there is no such enrolment. Lock the enrolment before.
    """
    return conn.execute(
        """
        WITH item AS (
            SELECT e.user_id, e.course_version_id, e.status, i.id
            FROM enrollments e
            JOIN enrollment_items i ON i.user_id = e.user_id AND i.course_version_id = e.course_version_id
            WHERE e.user_id = %(user_id)b AND e.course_version_id = %(course_version_id)b AND i.id = %(requirement_id)b
        ), withdrawn AS (
            DELETE FROM requirement_waivers w USING item i
            WHERE w.user_id = i.user_id AND w.course_version_id = i.course_version_id AND w.requirement_id = i.id
                AND NOT EXISTS (SELECT FROM enrollment_history WHERE id = %(act)b)
            RETURNING w.requirement_id
        ), history AS (
            INSERT INTO enrollment_history (
                id, user_id, course_version_id, type, from_status, to_status, occurred_at, actor, details
            )
            SELECT %(act)b, i.user_id, i.course_version_id, 'waiver_withdrawn', i.status, i.status, now(), %(actor)s,
                jsonb_build_object('requirement_id', w.requirement_id)
            FROM item i CROSS JOIN withdrawn w
        )
        SELECT 1 FROM item
        """,
        {
            "user_id": user_id,
            "course_version_id": course_version_id,
            "requirement_id": requirement_id,
            "act": act,
            "actor": actor,
        },
    )


def carry_over(
    conn: Connection,
    user_id: UUID,
    course_version_id: UUID,
    to: UUID,
    *,
    act: UUID,
    at: datetime,
    actor: str,
    reason: str | None,
) -> Cursor[tuple[int]]:
    """Carry progress and passed attempts over to the learner's enrolment in another course version, where ids are equal.

    `at` is when. Lessons are merged as reports are. Attempts become copies, numbered after those that are there, which keep
    what they were graded by; each is carried over once, however often this is repeated. What newly counts there is published.
    Nothing is done unless both enrolments are active or completed: no row then, unless the act was done before. Lock both
    before, and complete the other one after.
    """
    return conn.execute(
        """
        WITH way AS (
            SELECT f.user_id, f.course_version_id AS from_id, f.status AS from_status, t.course_version_id AS to_id, t.status
            FROM enrollments f
            JOIN enrollments t ON t.user_id = f.user_id AND t.course_version_id = %(to)b
            WHERE f.user_id = %(user_id)b AND f.course_version_id = %(course_version_id)b
                AND f.status IN ('active', 'completed') AND t.status IN ('active', 'completed')
                AND NOT EXISTS (SELECT FROM enrollment_history WHERE id = %(act)b)
        ), history AS (
            INSERT INTO enrollment_history (
                id, user_id, course_version_id, type, from_status, to_status, occurred_at, actor, reason, details
            )
            SELECT %(act)b, user_id, from_id, 'transferred', from_status, from_status, %(at)b::timestamptz, %(actor)s, %(reason)s,
                jsonb_build_object('to', to_id)
            FROM way
            UNION ALL
            SELECT gen_random_uuid(), user_id, to_id, 'transferred', status, status, %(at)b::timestamptz, %(actor)s, %(reason)s,
                jsonb_build_object('from', from_id)
            FROM way
        ), lesson AS (
            SELECT w.user_id, w.to_id, w.status AS enrollment_status, p.lesson_id, p.status, p.progress_percentage, p.started_at,
                p.last_accessed_at, p.completed_at, coalesce(old.status = 'completed', FALSE) AS was_completed
            FROM way w
            JOIN lesson_progress p ON p.user_id = w.user_id AND p.enrolled_course_version_id = w.from_id
            JOIN course_version_lessons l ON l.course_version_id = w.to_id AND l.lesson_id = p.lesson_id
            LEFT JOIN lesson_progress old
                ON old.user_id = w.user_id AND old.enrolled_course_version_id = w.to_id AND old.lesson_id = p.lesson_id
        ), lessons AS (
            INSERT INTO lesson_progress AS p (
                user_id, lesson_id, enrolled_course_version_id, status, progress_percentage, started_at, last_accessed_at,
                completed_at
            )
            SELECT user_id, lesson_id, to_id, status, progress_percentage, started_at, last_accessed_at, completed_at
            FROM lesson ORDER BY lesson_id
            ON CONFLICT ON CONSTRAINT pk_lesson_progress DO UPDATE SET
                status = CASE WHEN 100 IN (p.progress_percentage, excluded.progress_percentage) THEN 'completed'
                    ELSE excluded.status END,
                progress_percentage = greatest(p.progress_percentage, excluded.progress_percentage),
                started_at = least(p.started_at, excluded.started_at),
                last_accessed_at = greatest(p.last_accessed_at, excluded.last_accessed_at),
                completed_at = least(p.completed_at, excluded.completed_at)
        ), attempt AS (
            SELECT a.*, w.to_id, w.status AS enrollment_status, gen_random_uuid() AS new_id,
                coalesce(a.transferred_from, a.id) AS original_id, coalesce((
                    SELECT max(n.attempt_number) FROM quiz_attempts n
                    WHERE n.user_id = w.user_id AND n.enrolled_course_version_id = w.to_id AND n.quiz_id = a.quiz_id
                ), 0) + row_number() OVER (PARTITION BY a.quiz_id ORDER BY a.attempt_number) AS number
            FROM way w
            JOIN quiz_attempts a ON a.user_id = w.user_id AND a.enrolled_course_version_id = w.from_id AND a.is_passed
            JOIN course_version_quizzes q ON q.course_version_id = w.to_id AND q.quiz_id = a.quiz_id
            WHERE NOT EXISTS (
                SELECT FROM quiz_attempts c
                WHERE c.user_id = w.user_id AND c.enrolled_course_version_id = w.to_id
                    AND coalesce(c.transferred_from, c.id) = coalesce(a.transferred_from, a.id)
            )
        ), attempts AS (
            INSERT INTO quiz_attempts (
                id, user_id, quiz_id, enrolled_course_version_id, attempt_number, score, is_passed, started_at, completed_at,
                answers_snapshot, expires_at, in_time, key_version, pass_threshold_percentage, question_results,
                key_course_version_id, transferred_from, pass_kept
            )
            SELECT new_id, user_id, quiz_id, to_id, number, score, is_passed, started_at, completed_at, answers_snapshot,
                expires_at, in_time, key_version, pass_threshold_percentage, question_results, key_course_version_id,
                original_id, pass_kept
            FROM attempt
        ), news AS (
            SELECT 'lesson.completed' AS type, completed_at, lesson_id AS id, jsonb_build_object(
                'lesson_id', lesson_id, 'status', enrollment_status, 'completed_at', rfc3339(completed_at)
            ) AS data
            FROM lesson WHERE completed_at IS NOT NULL AND NOT was_completed
            UNION ALL
            SELECT 'quiz.graded', completed_at, new_id, jsonb_build_object(
                'quiz_id', quiz_id, 'attempt_id', new_id, 'attempt_number', number, 'score', score, 'is_passed', is_passed,
                'status', enrollment_status
            )
            FROM attempt
        ), numbered AS (
            UPDATE enrollments e SET sequence = e.sequence + (SELECT count(*) FROM news)
            FROM way w WHERE e.user_id = w.user_id AND e.course_version_id = w.to_id
            RETURNING e.user_id, e.course_version_id, e.sequence - (SELECT count(*) FROM news) AS sequence
        ), told AS (
            INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
            SELECT 'bus', n.type, n.completed_at, n.data || jsonb_build_object(
                'user_id', s.user_id, 'course_version_id', s.course_version_id,
                'sequence', s.sequence + row_number() OVER (ORDER BY n.completed_at, n.type, n.id)
            ), %(traceparent)s::text
            FROM news n CROSS JOIN numbered s
        )
        SELECT 1 FROM way
        UNION ALL
        SELECT 1 FROM enrollment_history WHERE id = %(act)b
        """,
        {
            "user_id": user_id,
            "course_version_id": course_version_id,
            "to": to,
            "act": act,
            "at": at,
            "actor": actor,
            "reason": reason,
            "traceparent": trace.current(),
        },
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row of `history`."""

    position: int
    type: Any
    from_status: Any
    to_status: Any
    occurred_at: datetime
    recorded_at: datetime
    actor: str | None
    reason: str | None
    details: dict[str, Any] | None

    def model(self) -> HistoryEntry:
        return HistoryEntry(**{name: getattr(self, name) for name in HistoryEntry.model_fields})


def history(conn: Connection, user_id: UUID, course_version_id: UUID, after: int, limit: int) -> Cursor[_Entry]:
    """What happened to an enrolment in the order in which it was recorded, from behind the position `after`.

    A reset has in its details what was set aside. No row on the first page: there is no such enrolment.
    """
    return conn.cursor(row_factory=class_row(_Entry)).execute(
        """
        SELECT h.position, h.type, h.from_status, h.to_status, h.occurred_at, h.recorded_at, h.actor, h.reason,
            CASE h.type WHEN 'reset' THEN jsonb_build_object('lessons', (
                SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'lesson_id', p.lesson_id, 'status', p.status, 'progress_percentage', p.progress_percentage,
                    'started_at', rfc3339(p.started_at), 'last_accessed_at', rfc3339(p.last_accessed_at),
                    'completed_at', rfc3339(p.completed_at)
                ) ORDER BY p.lesson_id), '[]')
                FROM lesson_progress_set_aside p WHERE p.reset_id = h.id
            ), 'quiz_attempts', (
                SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'id', a.id, 'quiz_id', a.quiz_id, 'attempt_number', a.attempt_number, 'score', a.score,
                    'is_passed', a.is_passed, 'started_at', rfc3339(a.started_at), 'completed_at', rfc3339(a.completed_at)
                ) ORDER BY a.quiz_id, a.attempt_number), '[]')
                FROM quiz_attempts_set_aside a WHERE a.reset_id = h.id
            )) ELSE h.details END AS details
        FROM enrollment_history h
        WHERE h.user_id = %b AND h.course_version_id = %b AND h.position > %s
        ORDER BY h.position LIMIT %s
        """,
        [user_id, course_version_id, after, limit],
    )
