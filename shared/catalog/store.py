"""The SQL of what the Course and IAM services tell us."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import simplejson
from psycopg import Cursor
from psycopg.rows import class_row
from pydantic import TypeAdapter

from shared.catalog.models import CourseVersion, canonical
from shared.catalog.rules import Key, digest
from shared.db import Connection, columns
from shared.quiz.models import Question

_QUESTIONS: TypeAdapter[tuple[Question, ...]] = TypeAdapter(tuple[Question, ...])


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


class StoredKey(NamedTuple):
    """An answer key of a quiz; `course_version_is_known` alone: the course version has no such quiz."""

    course_version_id: UUID
    quiz_id: UUID
    course_version_is_known: bool
    key_version: int | None
    questions: str | None
    corrected: dict[str, str] | None

    def key(self) -> Key:
        """The key, parsed."""
        return Key(_QUESTIONS.validate_python(simplejson.loads(self.questions or "", use_decimal=True)), self.corrected or {})


def present_keys(conn: Connection, quizzes: Sequence[tuple[UUID, UUID]]) -> Cursor[StoredKey]:
    """The present answer keys of these quizzes (course_version_id, quiz_id): a row for each."""
    return conn.cursor(row_factory=class_row(StoredKey)).execute(
        """
        SELECT i.course_version_id, i.quiz_id, v.course_version_id IS NOT NULL AS course_version_is_known, k.key_version,
            k.questions::text, k.corrected
        FROM unnest(%b::uuid[], %b::uuid[]) AS i (course_version_id, quiz_id)
        LEFT JOIN course_versions v ON v.course_version_id = i.course_version_id
        LEFT JOIN course_version_quizzes q ON q.course_version_id = i.course_version_id AND q.quiz_id = i.quiz_id
        LEFT JOIN quiz_answer_keys k
            ON k.course_version_id = q.course_version_id AND k.quiz_id = q.quiz_id AND k.key_version = q.key_version
        """,
        columns(quizzes, 2),
    )


def all_keys(conn: Connection, course_version_ids: Collection[UUID]) -> Cursor[StoredKey]:
    """All answer keys that the quizzes of these course versions ever had, each quiz's first one first."""
    return conn.cursor(row_factory=class_row(StoredKey)).execute(
        """
        SELECT course_version_id, quiz_id, TRUE AS course_version_is_known, key_version, questions::text, corrected
        FROM quiz_answer_keys WHERE course_version_id = ANY(%b::uuid[])
        ORDER BY course_version_id, quiz_id, key_version
        """,
        [list(course_version_ids)],
    )


def lock_quizzes(conn: Connection, quizzes: Sequence[tuple[UUID, UUID]]) -> None:
    """Let one correction of a quiz come after the other."""
    conn.execute(
        """
        SELECT count(*) FROM (
            SELECT FROM course_version_quizzes q
            JOIN unnest(%b::uuid[], %b::uuid[]) AS i (course_version_id, quiz_id)
                ON i.course_version_id = q.course_version_id AND i.quiz_id = q.quiz_id
            ORDER BY q.course_version_id, q.quiz_id FOR NO KEY UPDATE OF q
        ) locked
        """,
        columns(quizzes, 2),
    )


class Correction(NamedTuple):
    """A corrected answer key as it goes to the database; `seen_key_version` is the version that it corrects."""

    course_version_id: UUID
    quiz_id: UUID
    seen_key_version: int
    questions: str
    corrected: str
    actor: str


def corrections(conn: Connection, found: Sequence[Correction]) -> Cursor[tuple[UUID, UUID]]:
    """Make corrected keys the present ones, and have all attempts graded again by them; passes once given are kept.

    A key whose questions stay the same only notes when they were confirmed. Gives the quizzes whose key someone else had
    corrected meanwhile. Lock the quizzes before.
    """
    return conn.execute(
        """
        WITH i AS (
            SELECT i.course_version_id, i.quiz_id, i.seen_key_version, i.questions::jsonb, i.corrected::jsonb, i.actor
            FROM unnest(%b::uuid[], %b::uuid[], %b::int[], %b::text[], %b::text[], %b::text[])
                AS i (course_version_id, quiz_id, seen_key_version, questions, corrected, actor)
        ), present AS (
            SELECT i.*, k.questions <> i.questions AS is_new
            FROM i
            JOIN course_version_quizzes q
                ON q.course_version_id = i.course_version_id AND q.quiz_id = i.quiz_id AND q.key_version = i.seen_key_version
            JOIN quiz_answer_keys k
                ON k.course_version_id = i.course_version_id AND k.quiz_id = i.quiz_id AND k.key_version = i.seen_key_version
        ), confirmed AS (
            UPDATE quiz_answer_keys k SET corrected = p.corrected FROM present p
            WHERE k.course_version_id = p.course_version_id AND k.quiz_id = p.quiz_id AND k.key_version = p.seen_key_version
                AND NOT p.is_new
        ), added AS (
            INSERT INTO quiz_answer_keys (course_version_id, quiz_id, key_version, questions, corrected)
            SELECT course_version_id, quiz_id, seen_key_version + 1, questions, corrected FROM present WHERE is_new
            ORDER BY course_version_id, quiz_id
        ), moved AS (
            UPDATE course_version_quizzes q SET key_version = p.seen_key_version + 1 FROM present p
            WHERE q.course_version_id = p.course_version_id AND q.quiz_id = p.quiz_id AND p.is_new
        ), regrades AS (
            INSERT INTO quiz_regrades (course_version_id, quiz_id, dry_run, take_away, actor, reason)
            SELECT course_version_id, quiz_id, FALSE, FALSE, actor, 'The answer key of a quiz was corrected.'
            FROM present WHERE is_new
        )
        SELECT course_version_id, quiz_id FROM i EXCEPT SELECT course_version_id, quiz_id FROM present
        """,
        columns(found, 6),
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
