"""The SQL of lesson progress."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import class_row

from shared import db, trace
from shared.db import Connection, columns
from shared.errors import EnrollmentInactive, EnrollmentNotFound, LessonNotFound, ServiceError
from shared.progress.models import LessonItem, QuizItem


class Report(NamedTuple):
    """How far a learner got in a lesson by then, 0-100. `occurred_at` None: now, by the database's clock.

    `traceparent` is the report's own, if it has one.
    """

    user_id: UUID
    course_version_id: UUID
    lesson_id: UUID
    percentage: float
    occurred_at: datetime | None
    traceparent: str | None = None


#: Why a report was not taken.
REFUSED: dict[str, type[ServiceError]] = {
    "enrollment_not_found": EnrollmentNotFound,
    "lesson_not_found": LessonNotFound,
    "enrollment_inactive": EnrollmentInactive,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a report that was not simply applied; `n` is its position, from 0."""

    n: int
    outcome: Literal["unchanged", "enrollment_not_found", "lesson_not_found", "enrollment_inactive"]


class Reported(NamedTuple):
    """What became of one report, None if it was taken, and what is known of the lesson then; None of what is not known."""

    outcome: Literal["unchanged", "enrollment_not_found", "lesson_not_found", "enrollment_inactive"] | None
    lesson_id: UUID | None
    status: str
    progress_percentage: float
    started_at: datetime | None
    last_accessed_at: datetime | None
    completed_at: datetime | None


def report(conn: Connection, report: Report) -> Cursor[Reported]:
    """Take one report that says less than 100; of one that says 100, only give what is known of its lesson.

    Such a report changes one row and completes nothing, so that a function does, whose plans the server keeps. That takes
    less than a third of the time of `merge`.
    """
    return conn.cursor(row_factory=class_row(Reported)).execute(
        "SELECT * FROM report_progress(%b, %b, %b, %b, %b)", report[:5], binary=True
    )


def record(conn: Connection, reports: Sequence[Report]) -> Cursor[Outcome]:
    """Take reports, completing what they complete: one statement if no report says 100, else three, for any number of reports.

    Gives what became of those that were not simply applied.
    """
    completing = {(r.user_id, r.course_version_id) for r in reports if r.percentage == 100}
    if not completing:
        return merge(conn, reports)
    # Three, since the parts of one statement share a snapshot and don't see each other's effects.
    db.lock_enrollments(conn, completing)
    outcomes = merge(conn, reports)
    db.complete_enrollments(conn, completing)
    return outcomes


def merge(conn: Connection, reports: Sequence[Report]) -> Cursor[Outcome]:
    """Merge reports into lesson progress, and tell of those that were not applied.

    The merge takes maxima and minima only, so neither order nor repetition of reports makes a difference; what brings
    nothing new is not written. A lesson's completion is published, once, which is why enrolments of completing reports
    must be locked by an earlier statement: only then does this one see the rows as they are.

    Of several reports that say 100, the earliest is the one that completes the lesson, and its traceparent is handed on.

    Whatever is written shares a key lock on its enrolment, which only starting over waits for. So a report from before
    that act can't slip in behind it.
    """
    return conn.cursor(row_factory=class_row(Outcome)).execute(
        """
        WITH report AS (
            SELECT user_id, course_version_id, lesson_id, percentage, coalesce(occurred_at, now()) AS occurred_at, traceparent, n
            FROM unnest(%b::uuid[], %b::uuid[], %b::uuid[], %b::float8[], %b::timestamptz[], %b::text[])
                WITH ORDINALITY AS r (user_id, course_version_id, lesson_id, percentage, occurred_at, traceparent, n)
            -- In the order of the keys, neighbours lie on the same pages.
            ORDER BY user_id, course_version_id, lesson_id
        ), judged AS (
            SELECT r.*, coalesce(p.status = 'completed', FALSE) AS was_completed, e.status,
                report_outcome(
                    e.user_id IS NOT NULL, l.lesson_id IS NOT NULL,
                    EXISTS (SELECT FROM course_versions v WHERE v.course_version_id = r.course_version_id), e.reset_at,
                    e.inactive_since, p.progress_percentage, p.started_at, p.last_accessed_at, p.completed_at, r.percentage,
                    r.occurred_at
                ) AS outcome
            FROM report r
            -- OFFSET 0: each row is looked up by its key. For many reports the planner would read all of the table.
            LEFT JOIN LATERAL (
                SELECT user_id, status, reset_at, inactive_since FROM enrollments
                WHERE user_id = r.user_id AND course_version_id = r.course_version_id
                OFFSET 0
            ) e ON TRUE
            LEFT JOIN course_version_lessons l ON l.course_version_id = r.course_version_id AND l.lesson_id = r.lesson_id
            -- IS TRUE: by the primary key. The planner takes learner and course version for independent of each other, expects
            -- one row of both, and would look through the learner's rows of all lessons by the other index.
            LEFT JOIN LATERAL (
                SELECT status, progress_percentage, started_at, last_accessed_at, completed_at FROM lesson_progress
                WHERE user_id = r.user_id AND lesson_id = r.lesson_id
                    AND (enrolled_course_version_id = r.course_version_id) IS TRUE
                OFFSET 0
            ) p ON TRUE
        ), folded AS (
            SELECT user_id, lesson_id, course_version_id, max(percentage) AS percentage, min(occurred_at) AS started_at,
                max(occurred_at) AS last_accessed_at, min(occurred_at) FILTER (WHERE percentage = 100) AS completed_at,
                -- A time of fixed width, then the traceparent: the least of them is the earliest report's.
                min(rfc3339(occurred_at) || coalesce(traceparent, '')) FILTER (WHERE percentage = 100) AS completed_by,
                bool_or(was_completed) AS was_completed, min(status) AS enrollment_status
            FROM (
                -- The table again rather than rows that were gathered before, since those have no index.
                SELECT j.*, e.reset_at
                FROM judged j JOIN enrollments e ON e.user_id = j.user_id AND e.course_version_id = j.course_version_id
                WHERE j.outcome IS NULL
                ORDER BY j.user_id, j.course_version_id, j.lesson_id FOR KEY SHARE OF e
            ) shared
            WHERE reset_at IS NULL OR occurred_at >= reset_at
            GROUP BY user_id, course_version_id, lesson_id
            ORDER BY user_id, course_version_id, lesson_id
        ), merged AS (
            INSERT INTO lesson_progress AS p (
                user_id, lesson_id, enrolled_course_version_id, status, progress_percentage, started_at, last_accessed_at,
                completed_at
            )
            SELECT user_id, lesson_id, course_version_id, CASE WHEN percentage = 100 THEN 'completed' ELSE 'in_progress' END,
                percentage, started_at, last_accessed_at, completed_at
            FROM folded
            ON CONFLICT ON CONSTRAINT pk_lesson_progress DO UPDATE SET
                status = CASE WHEN 100 IN (p.progress_percentage, excluded.progress_percentage) THEN 'completed'
                    ELSE 'in_progress' END,
                progress_percentage = greatest(p.progress_percentage, excluded.progress_percentage),
                started_at = least(p.started_at, excluded.started_at),
                last_accessed_at = greatest(p.last_accessed_at, excluded.last_accessed_at),
                completed_at = least(p.completed_at, excluded.completed_at)
        ), completed AS (
            UPDATE enrollments e SET sequence = e.sequence + cardinality(c.lesson_ids)
            FROM (
                SELECT user_id, course_version_id, min(enrollment_status) AS status,
                    array_agg(lesson_id ORDER BY completed_at, lesson_id) AS lesson_ids,
                    array_agg(completed_at ORDER BY completed_at, lesson_id) AS completed_at,
                    array_agg(substr(completed_by, 28) ORDER BY completed_at, lesson_id) AS traceparents
                FROM folded
                WHERE completed_at IS NOT NULL AND NOT was_completed
                GROUP BY user_id, course_version_id
            ) c
            WHERE e.user_id = c.user_id AND e.course_version_id = c.course_version_id
            RETURNING c.*, e.sequence - cardinality(c.lesson_ids) AS sequence
        ), told AS (
            INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
            SELECT 'bus', 'lesson.completed', l.completed_at, jsonb_build_object(
                'user_id', c.user_id, 'course_version_id', c.course_version_id, 'lesson_id', l.lesson_id,
                'status', c.status, 'completed_at', rfc3339(l.completed_at), 'sequence', c.sequence + l.k
            ), coalesce(nullif(l.traceparent, ''), %s::text)
            FROM completed c
            CROSS JOIN unnest(c.lesson_ids, c.completed_at, c.traceparents)
                WITH ORDINALITY AS l (lesson_id, completed_at, traceparent, k)
        )
        SELECT n - 1 AS n, outcome FROM judged WHERE outcome IS NOT NULL
        """,
        [*columns(reports, 6), trace.current()],
        binary=True,
    )


def lessons(conn: Connection, user_id: UUID, course_version_id: UUID) -> Cursor[LessonItem]:
    """Every lesson of a course version with a learner's progress in it, in the order of the course."""
    return conn.cursor(row_factory=class_row(LessonItem)).execute(
        """
        SELECT l.lesson_id, l.title, l.required, coalesce(p.status, 'not_started') AS status,
            coalesce(p.progress_percentage, 0) AS progress_percentage, p.started_at, p.last_accessed_at, p.completed_at,
            w.requirement_id IS NOT NULL AS waived
        FROM course_version_lessons l
        LEFT JOIN lesson_progress p
            ON p.user_id = %(user_id)b AND p.lesson_id = l.lesson_id AND p.enrolled_course_version_id = l.course_version_id
        LEFT JOIN requirement_waivers w
            ON w.user_id = %(user_id)b AND w.course_version_id = l.course_version_id AND w.requirement_id = l.lesson_id
        WHERE l.course_version_id = %(course_version_id)b
        ORDER BY l.position
        """,
        {"user_id": user_id, "course_version_id": course_version_id},
        binary=True,
    )


def quizzes(conn: Connection, user_id: UUID, course_version_id: UUID) -> Cursor[QuizItem]:
    """Every quiz of a course version with a learner's best score, in the order of the course."""
    return conn.cursor(row_factory=class_row(QuizItem)).execute(
        """
        SELECT q.quiz_id, q.title, q.required, a.best_score, coalesce(a.is_passed, FALSE) AS is_passed, a.attempts,
            w.requirement_id IS NOT NULL AS waived
        FROM course_version_quizzes q
        CROSS JOIN LATERAL (
            SELECT max(score) AS best_score, bool_or(is_passed) AS is_passed, count(*) AS attempts FROM quiz_attempts
            WHERE user_id = %(user_id)b AND quiz_id = q.quiz_id AND enrolled_course_version_id = q.course_version_id
        ) a
        LEFT JOIN requirement_waivers w
            ON w.user_id = %(user_id)b AND w.course_version_id = q.course_version_id AND w.requirement_id = q.quiz_id
        WHERE q.course_version_id = %(course_version_id)b
        ORDER BY q.position
        """,
        {"user_id": user_id, "course_version_id": course_version_id},
        binary=True,
    )
