"""The SQL of what the Course and IAM services tell us."""

from collections.abc import Collection, Sequence
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

import simplejson
from psycopg import Cursor

from shared.catalog.models import CourseVersion, canonical
from shared.db import Connection, columns


def digest(version: CourseVersion) -> bytes:
    """What tells a course version from another one under the same id."""
    return sha256(canonical(version).encode()).digest()


def publish(conn: Connection, versions: Sequence[CourseVersion]) -> None:
    """Store course versions with their lessons, quizzes and first answer keys; one that is there already is left alone."""
    body = [simplejson.loads(canonical(version), use_decimal=True) for version in versions]
    lessons = [
        (v.course_version_id, lesson.lesson_id, lesson.title, lesson.required, position)
        for v in versions
        for position, lesson in enumerate(v.lessons)
    ]
    quizzes = [
        (
            v.course_version_id,
            quiz.quiz_id,
            quiz.title,
            quiz.required,
            position,
            quiz.pass_threshold_percentage,
            quiz.max_attempts,
            quiz.time_limit_seconds,
            quiz.retry_delay_seconds,
            quiz.reveal_answers,
            simplejson.dumps(raw["questions"], use_decimal=True),
        )
        for v, text in zip(versions, body, strict=True)
        for position, (quiz, raw) in enumerate(zip(v.quizzes, text["quizzes"], strict=True))
    ]
    conn.execute(
        """
        WITH published AS (
            INSERT INTO course_versions (
                course_version_id, course_id, title, version, issuer_name, self_enrollment, certificate_enabled,
                certificate_valid_for_days, digest
            )
            SELECT * FROM unnest(
                %b::uuid[], %b::uuid[], %b::text[], %b::text[], %b::text[], %b::bool[], %b::bool[], %b::int[], %b::bytea[]
            )
            ORDER BY 1
            ON CONFLICT DO NOTHING
            RETURNING course_version_id
        ), lessons AS (
            INSERT INTO course_version_lessons (course_version_id, lesson_id, title, required, position)
            SELECT i.* FROM unnest(%b::uuid[], %b::uuid[], %b::text[], %b::bool[], %b::int[])
                AS i (course_version_id, lesson_id, title, required, position)
            JOIN published USING (course_version_id)
        ), quizzes AS (
            SELECT i.* FROM unnest(
                %b::uuid[], %b::uuid[], %b::text[], %b::bool[], %b::int[], %b::numeric[], %b::int[], %b::int[], %b::int[],
                %b::bool[],
                %b::text[]
            ) AS i (
                course_version_id, quiz_id, title, required, position, pass_threshold_percentage, max_attempts,
                time_limit_seconds,
                retry_delay_seconds, reveal_answers, questions
            )
            JOIN published USING (course_version_id)
        ), stored AS (
            INSERT INTO course_version_quizzes (
                course_version_id, quiz_id, title, required, position, pass_threshold_percentage, max_attempts,
                time_limit_seconds,
                retry_delay_seconds, reveal_answers
            )
            SELECT course_version_id, quiz_id, title, required, position, pass_threshold_percentage, max_attempts,
            time_limit_seconds,
                retry_delay_seconds, reveal_answers
            FROM quizzes
        )
        INSERT INTO quiz_answer_keys (course_version_id, quiz_id, key_version, questions)
        SELECT course_version_id, quiz_id, 1, questions::jsonb FROM quizzes
        """,
        [
            *columns(
                [
                    (
                        v.course_version_id,
                        v.course_id,
                        v.title,
                        v.version,
                        v.issuer_name,
                        v.self_enrollment,
                        v.certificate.enabled,
                        v.certificate.valid_for_days,
                        digest(v),
                    )
                    for v in versions
                ],
                9,
            ),
            *columns(lessons, 5),
            *columns(quizzes, 11),
        ],
    )


def digests(conn: Connection, course_version_ids: Collection[UUID]) -> Cursor[tuple[UUID, bytes]]:
    """The digests of the course versions as they were published first."""
    return conn.execute(
        "SELECT course_version_id, digest FROM course_versions WHERE course_version_id = ANY(%b::uuid[])",
        [list(course_version_ids)],
    )


class LearnerUpdate(NamedTuple):
    """A learner's name and locale as of a time."""

    user_id: UUID
    name: str
    locale: str | None
    updated_at: datetime


def update_learners(conn: Connection, updates: Sequence[LearnerUpdate]) -> None:
    """Store the names of learners, each the latest by the message's own time."""
    conn.execute(
        """
        INSERT INTO learners AS l (user_id, name, locale, updated_at)
        SELECT DISTINCT ON (i.user_id) i.* FROM unnest(%b::uuid[], %b::text[], %b::text[], %b::timestamptz[])
            AS i (user_id, name, locale, updated_at)
        ORDER BY i.user_id, i.updated_at DESC, i.name DESC
        ON CONFLICT (user_id) DO UPDATE SET name = excluded.name, locale = excluded.locale, updated_at = excluded.updated_at
        WHERE l.updated_at IS NULL OR (excluded.updated_at, excluded.name) > (l.updated_at, l.name)
        """,
        columns(updates, 4),
    )
