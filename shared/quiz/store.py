"""The SQL of quizzes and attempts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple
from uuid import UUID

import simplejson
from psycopg import Cursor
from psycopg.rows import class_row
from pydantic import TypeAdapter

from shared import db, trace
from shared.db import Connection, columns
from shared.errors import AttemptIdTaken, EnrollmentInactive, EnrollmentNotFound, ServiceError
from shared.quiz import rules
from shared.quiz.attempts import Allowance, AllowanceBody, Attempt, EarlierGrading, QuestionPoints
from shared.quiz.models import Question
from shared.quiz.rules import Answers, OpenAttempt, Standing

_QUESTIONS = TypeAdapter(tuple[Question, ...])

#: A quiz in a course version: course_version_id, quiz_id.
type QuizId = tuple[UUID, UUID]


@dataclass(frozen=True, slots=True)
class AnswerKey:
    """What attempts at a quiz are graded by at present."""

    key_version: int
    pass_threshold_percentage: Decimal
    questions: tuple[Question, ...]


# Course versions don't change, and whoever writes checks that a key is still the current one, so an execution
# environment reads each key once. The bound keeps a very long-lived environment small.
_keys: dict[QuizId, AnswerKey] = {}
_MOST_KEYS = 1000


def answer_keys(quizzes: Collection[QuizId], *, stale: Collection[QuizId] = ()) -> dict[QuizId, AnswerKey]:
    """The answer keys of these quizzes, from memory unless unknown or `stale`; a quiz that doesn't exist is left out."""
    for quiz in stale:
        _keys.pop(quiz, None)
    missing = [quiz for quiz in quizzes if quiz not in _keys]
    found = {quiz: _keys[quiz] for quiz in quizzes if quiz in _keys}
    if missing:
        if len(_keys) > _MOST_KEYS:
            _keys.clear()
        for course_version_id, quiz_id, version, threshold, questions in db.run(
            lambda conn: _read_keys(conn, missing)
        ).fetchall():
            key = AnswerKey(version, threshold, _QUESTIONS.validate_python(simplejson.loads(questions, use_decimal=True)))
            found[course_version_id, quiz_id] = _keys[course_version_id, quiz_id] = key
    return found


def answer_key(quiz: QuizId, key_version: int) -> AnswerKey:
    """The answer key of a quiz that has one, read again if what is in memory is not of this version."""
    key = answer_keys([quiz])[quiz]
    return key if key.key_version == key_version else answer_keys([quiz], stale=[quiz])[quiz]


def _read_keys(conn: Connection, quizzes: Sequence[QuizId]) -> Cursor[tuple[UUID, UUID, int, Decimal, str]]:
    return conn.execute(
        """
        SELECT q.course_version_id, q.quiz_id, q.key_version, q.pass_threshold_percentage, k.questions::text
        FROM unnest(%b::uuid[], %b::uuid[]) AS i (course_version_id, quiz_id)
        JOIN course_version_quizzes q ON q.course_version_id = i.course_version_id AND q.quiz_id = i.quiz_id
        JOIN quiz_answer_keys k
            ON k.course_version_id = q.course_version_id AND k.quiz_id = q.quiz_id AND k.key_version = q.key_version
        """,
        columns(quizzes, 2),
    )


def known_course_versions(conn: Connection, course_version_ids: Collection[UUID]) -> Cursor[tuple[UUID]]:
    """Those of these course versions that were published."""
    return conn.execute(
        "SELECT course_version_id FROM course_versions WHERE course_version_id = ANY(%b::uuid[])", [list(course_version_ids)]
    )


class Submission(NamedTuple):
    """A graded attempt of a producer, as it goes to the database. `question_results` and `answers` are JSON.

    `traceparent` is that of the event, if it has one.
    """

    attempt_id: UUID
    user_id: UUID
    course_version_id: UUID
    quiz_id: UUID
    answers: str
    started_at: datetime
    completed_at: datetime
    key_version: int
    pass_threshold_percentage: Decimal
    score: float
    is_passed: bool
    question_results: str
    traceparent: str | None


#: Why a submission was not taken.
REFUSED: dict[str, type[ServiceError]] = {
    "enrollment_not_found": EnrollmentNotFound,
    "enrollment_inactive": EnrollmentInactive,
    "attempt_id_taken": AttemptIdTaken,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a submission that was not simply taken; `n` is its position, from 0."""

    n: int
    outcome: Literal["unchanged", "stale_key", "enrollment_not_found", "enrollment_inactive", "attempt_id_taken"]


def record(conn: Connection, submissions: Sequence[Submission]) -> Cursor[Outcome]:
    """Take graded attempts, completing the enrolments that they complete: three statements for any number of attempts."""
    keys = {(s.user_id, s.course_version_id) for s in submissions}
    db.lock_enrollments(conn, keys)
    outcomes = _take(conn, submissions)
    db.complete_enrollments(conn, {(s.user_id, s.course_version_id) for s in submissions if s.is_passed})
    return outcomes


def _take(conn: Connection, submissions: Sequence[Submission]) -> Cursor[Outcome]:
    return conn.cursor(row_factory=class_row(Outcome)).execute(
        """
        WITH submission AS (
            SELECT * FROM unnest(
                %b::uuid[], %b::uuid[], %b::uuid[], %b::uuid[], %b::text[], %b::timestamptz[], %b::timestamptz[], %b::int[],
                %b::numeric[], %b::float8[], %b::bool[], %b::text[], %b::text[]
            ) WITH ORDINALITY AS s (
                id, user_id, course_version_id, quiz_id, answers, started_at, completed_at, key_version,
                pass_threshold_percentage, score, is_passed, question_results, traceparent, n
            )
        ), judged AS (
            -- Without the two large columns, which would be carried through every step that follows.
            SELECT s.n, s.id, s.user_id, s.course_version_id, s.quiz_id, s.completed_at, s.score, s.is_passed, s.traceparent,
                e.status,
                CASE
                    WHEN a.id IS NOT NULL THEN
                        CASE WHEN a.user_id = s.user_id AND a.enrolled_course_version_id = s.course_version_id
                            AND a.quiz_id = s.quiz_id AND a.completed_at IS NOT NULL AND a.answers_snapshot = s.answers::jsonb
                            THEN 'unchanged' ELSE 'attempt_id_taken' END
                    WHEN e.user_id IS NULL THEN 'enrollment_not_found'
                    WHEN s.completed_at < e.reset_at THEN 'unchanged'
                    WHEN s.completed_at > e.inactive_since THEN 'enrollment_inactive'
                    WHEN q.key_version <> s.key_version THEN 'stale_key'
                END AS outcome
            FROM submission s
            JOIN course_version_quizzes q ON q.course_version_id = s.course_version_id AND q.quiz_id = s.quiz_id
            LEFT JOIN enrollments e ON e.user_id = s.user_id AND e.course_version_id = s.course_version_id
            -- Each by its id: joined as a whole, the view would be put together for all attempts that were ever set aside.
            LEFT JOIN LATERAL (SELECT * FROM all_quiz_attempts WHERE id = s.id LIMIT 1) a ON TRUE
        ), numbered AS (
            SELECT j.*, coalesce((
                    SELECT max(a.attempt_number) FROM quiz_attempts a
                    WHERE a.user_id = j.user_id AND a.quiz_id = j.quiz_id AND a.enrolled_course_version_id = j.course_version_id
                ), 0) + row_number() OVER (PARTITION BY j.user_id, j.quiz_id, j.course_version_id ORDER BY j.n) AS attempt_number
            FROM judged j WHERE j.outcome IS NULL
        ), inserted AS (
            INSERT INTO quiz_attempts (
                id, user_id, quiz_id, enrolled_course_version_id, attempt_number, score, is_passed, started_at, completed_at,
                answers_snapshot, in_time, key_version, key_course_version_id, pass_threshold_percentage, question_results
            )
            SELECT s.id, s.user_id, s.quiz_id, s.course_version_id, n.attempt_number, s.score, s.is_passed, s.started_at,
                s.completed_at, s.answers::jsonb, TRUE, s.key_version, s.course_version_id, s.pass_threshold_percentage,
                s.question_results::jsonb
            FROM numbered n JOIN submission s ON s.n = n.n
        ), counted AS (
            UPDATE enrollments e SET sequence = e.sequence + cardinality(c.graded)
            -- Gathered in arrays, since what was gathered in rows has no index by which it could be joined.
            FROM (
                SELECT user_id, course_version_id, array_agg(completed_at ORDER BY n) AS completed_at,
                    array_agg(traceparent ORDER BY n) AS traceparents,
                    array_agg(jsonb_build_object(
                        'user_id', user_id, 'course_version_id', course_version_id, 'quiz_id', quiz_id, 'attempt_id', id,
                        'attempt_number', attempt_number, 'score', score, 'is_passed', is_passed, 'status', status
                    ) ORDER BY n) AS graded
                FROM numbered
                GROUP BY user_id, course_version_id
            ) c
            WHERE e.user_id = c.user_id AND e.course_version_id = c.course_version_id
            RETURNING c.*, e.sequence - cardinality(c.graded) AS sequence
        ), told AS (
            INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
            SELECT 'bus', 'quiz.graded', a.completed_at, a.graded || jsonb_build_object('sequence', c.sequence + a.k),
                coalesce(a.traceparent, %s::text)
            FROM counted c
            CROSS JOIN unnest(c.completed_at, c.traceparents, c.graded)
                WITH ORDINALITY AS a (completed_at, traceparent, graded, k)
        )
        SELECT n - 1 AS n, outcome FROM judged WHERE outcome IS NOT NULL
        """,
        [*columns(submissions, 13), trace.current()],
        binary=True,
    )


@dataclass(frozen=True, slots=True)
class _Standing:
    """A row of `standing`, flat as the database gives it; `open_*` is of the open attempt."""

    status: str
    quiz_is_known: bool
    key_version: int
    max_attempts: int | None
    retry_delay_seconds: int | None
    attempts: int
    last_number: int
    last_completed_at: datetime | None
    now: datetime
    open_id: UUID | None
    open_number: int
    open_started_at: datetime
    open_expires_at: datetime | None
    open_answers: str | None

    def model(self) -> Standing:
        attempt = self.open_id and OpenAttempt(
            self.open_id, self.open_number, self.open_started_at, self.open_expires_at, loads_answers(self.open_answers)
        )
        values = {name: getattr(self, name) for name in Standing.__slots__ if name != "open"}
        return Standing(open=attempt, **values)


def standing(conn: Connection, user_id: UUID, course_version_id: UUID, quiz_id: UUID) -> Cursor[_Standing]:
    """What decides whether an attempt may be started: no row if there is no such enrolment."""
    return conn.cursor(row_factory=class_row(_Standing)).execute(
        """
        SELECT e.status, q.quiz_id IS NOT NULL AS quiz_is_known, q.key_version,
            q.max_attempts::bigint + coalesce(w.extra_attempts, 0) AS max_attempts,
            q.retry_delay_seconds, a.attempts, a.last_number,
            a.last_completed_at, clock_timestamp() AS now, o.id AS open_id, o.attempt_number AS open_number,
            o.started_at AS open_started_at, o.expires_at AS open_expires_at, o.answers_snapshot::text AS open_answers
        FROM enrollments e
        LEFT JOIN course_version_quizzes q ON q.course_version_id = e.course_version_id AND q.quiz_id = %(quiz_id)b
        LEFT JOIN quiz_allowances w
            ON w.user_id = e.user_id AND w.course_version_id = e.course_version_id AND w.quiz_id = %(quiz_id)b
        CROSS JOIN LATERAL (
            SELECT count(*) AS attempts, coalesce(max(attempt_number), 0) AS last_number, max(completed_at) AS last_completed_at
            FROM quiz_attempts
            WHERE user_id = e.user_id AND quiz_id = %(quiz_id)b AND enrolled_course_version_id = e.course_version_id
        ) a
        LEFT JOIN quiz_attempts o ON o.user_id = e.user_id AND o.quiz_id = %(quiz_id)b
            AND o.enrolled_course_version_id = e.course_version_id AND o.completed_at IS NULL
        WHERE e.user_id = %(user_id)b AND e.course_version_id = %(course_version_id)b
        """,
        {"user_id": user_id, "course_version_id": course_version_id, "quiz_id": quiz_id},
    )


def loads_answers(text: str | None) -> dict[str, Any]:
    """Saved answers with their numbers exact; nothing saved is no answers."""
    return simplejson.loads(text, use_decimal=True) if text else {}


def start(conn: Connection, user_id: UUID, course_version_id: UUID, quiz_id: UUID, number: int) -> Cursor[OpenAttempt]:
    """Start attempt `number`, by the database's clock, if it is the next one, allowed, and none is open: no row if not.

    Lock the enrolment before.
    """
    return conn.cursor(row_factory=class_row(OpenAttempt)).execute(
        """
        INSERT INTO quiz_attempts (user_id, quiz_id, enrolled_course_version_id, attempt_number, started_at, expires_at)
        SELECT e.user_id, q.quiz_id, e.course_version_id, %(number)s, now(),
            now() + make_interval(secs => q.time_limit_seconds * (1 + coalesce(w.extra_time_percentage, 0) / 100.0::float8))
        FROM enrollments e
        JOIN course_version_quizzes q ON q.course_version_id = e.course_version_id AND q.quiz_id = %(quiz_id)b
        LEFT JOIN quiz_allowances w
            ON w.user_id = e.user_id AND w.course_version_id = e.course_version_id AND w.quiz_id = q.quiz_id
        WHERE e.user_id = %(user_id)b AND e.course_version_id = %(course_version_id)b AND e.status IN ('active', 'completed')
            AND (
                SELECT coalesce(max(a.attempt_number), 0) = %(number)s - 1 AND count(*) = count(a.completed_at)
                    AND (q.max_attempts IS NULL OR count(*) < q.max_attempts::bigint + coalesce(w.extra_attempts, 0))
                FROM quiz_attempts a
                WHERE a.user_id = e.user_id AND a.quiz_id = q.quiz_id AND a.enrolled_course_version_id = e.course_version_id
            )
        RETURNING id, attempt_number, started_at, expires_at, '{}'::jsonb AS answers
        """,
        {"user_id": user_id, "course_version_id": course_version_id, "quiz_id": quiz_id, "number": number},
    )


class Closing(NamedTuple):
    """An open attempt with the answers that count and their grade, as it goes to the database."""

    attempt_id: UUID
    answers: str
    score: float
    is_passed: bool
    in_time: bool
    key_version: int
    question_results: str


def closing(attempt_id: UUID, answers: Answers, key: AnswerKey, *, in_time: bool) -> Closing:
    """Grade the answers of an open attempt."""
    grade = rules.grade(key.questions, answers, key.pass_threshold_percentage)
    return Closing(
        attempt_id,
        simplejson.dumps(answers, use_decimal=True),
        grade.score,
        grade.is_passed,
        in_time,
        key.key_version,
        simplejson.dumps(grade.question_results),
    )


def close(conn: Connection, closings: Sequence[Closing]) -> Cursor[tuple[UUID]]:
    """Close open attempts with their grades, and publish these. Gives those that were closed.

    Left out is what is closed already, what was graded by a key that is no longer the present one, and what ends after the
    enrolment was cancelled or revoked; also, if the answers are what had been saved, what was saved anew or got more time
    meanwhile. An attempt that is not in time ended when its time did. Lock the enrolments before.
    """
    return conn.execute(
        """
        WITH i AS (
            SELECT * FROM unnest(%b::uuid[], %b::text[], %b::float8[], %b::bool[], %b::bool[], %b::int[], %b::text[])
                AS i (id, answers, score, is_passed, in_time, key_version, question_results)
        ), attempt AS (
            SELECT i.*, a.enrolled_course_version_id AS course_version_id, a.quiz_id, e.inactive_since,
                CASE WHEN i.in_time THEN now() ELSE least(now(), a.expires_at) END AS completed_at
            FROM i
            JOIN quiz_attempts a ON a.id = i.id
            JOIN enrollments e ON e.user_id = a.user_id AND e.course_version_id = a.enrolled_course_version_id
        ), closed AS (
            UPDATE quiz_attempts a
            SET answers_snapshot = i.answers::jsonb, score = i.score, is_passed = i.is_passed, in_time = i.in_time,
                completed_at = i.completed_at, key_version = q.key_version, key_course_version_id = q.course_version_id,
                pass_threshold_percentage = q.pass_threshold_percentage, question_results = i.question_results::jsonb
            FROM attempt i
            JOIN course_version_quizzes q
                ON q.course_version_id = i.course_version_id AND q.quiz_id = i.quiz_id AND q.key_version = i.key_version
            WHERE a.id = i.id AND a.completed_at IS NULL AND (i.inactive_since IS NULL OR i.completed_at <= i.inactive_since)
                AND (
                    i.in_time
                    OR coalesce(a.answers_snapshot, '{}') = i.answers::jsonb AND now() > a.expires_at + %b::interval
                )
            RETURNING a.id, a.user_id, a.enrolled_course_version_id, a.quiz_id, a.attempt_number, a.score, a.is_passed,
                a.completed_at
        ), numbered AS (
            SELECT c.*, row_number() OVER (PARTITION BY user_id, enrolled_course_version_id ORDER BY completed_at, id) AS k
            FROM closed c
        ), counted AS (
            UPDATE enrollments e SET sequence = e.sequence + c.attempts
            FROM (
                SELECT user_id, enrolled_course_version_id, count(*) AS attempts FROM closed
                GROUP BY user_id, enrolled_course_version_id
            ) c
            WHERE e.user_id = c.user_id AND e.course_version_id = c.enrolled_course_version_id
            RETURNING e.user_id, e.course_version_id, e.status, e.sequence - c.attempts AS sequence
        ), told AS (
            INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
            SELECT 'bus', 'quiz.graded', n.completed_at, jsonb_build_object(
                'user_id', n.user_id, 'course_version_id', n.enrolled_course_version_id, 'quiz_id', n.quiz_id, 'attempt_id', n.id,
                'attempt_number', n.attempt_number, 'score', n.score, 'is_passed', n.is_passed, 'status', c.status,
                'sequence', c.sequence + n.k
            ), %s::text
            FROM numbered n JOIN counted c ON c.user_id = n.user_id AND c.course_version_id = n.enrolled_course_version_id
        )
        SELECT id FROM closed
        """,
        [*columns(closings, 7), rules.GRACE, trace.current()],
        binary=True,
    )


def save(conn: Connection, attempt_id: UUID, answers: Answers) -> Cursor[tuple[UUID]]:
    """Keep the answers of an open attempt as a draft. No row: it was closed meanwhile, or its time is over."""
    return conn.execute(
        """
        UPDATE quiz_attempts SET answers_snapshot = %s::jsonb
        WHERE id = %b AND completed_at IS NULL AND (expires_at IS NULL OR now() <= expires_at + %b::interval)
        RETURNING id
        """,
        [simplejson.dumps(answers, use_decimal=True), attempt_id, rules.GRACE],
    )


@dataclass(frozen=True, slots=True)
class RunOut:
    """An open attempt whose time is over."""

    id: UUID
    user_id: UUID
    course_version_id: UUID
    quiz_id: UUID
    saved_answers: str | None


def run_out(conn: Connection, limit: int) -> Cursor[RunOut]:
    """Open attempts whose time and grace are over, those first that ran out first.

    For a cancelled or revoked enrolment only what ran out before is taken, like everything else that is dated later.
    """
    return conn.cursor(row_factory=class_row(RunOut)).execute(
        """
        SELECT a.id, a.user_id, a.enrolled_course_version_id AS course_version_id, a.quiz_id,
            a.answers_snapshot::text AS saved_answers
        FROM quiz_attempts a
        JOIN enrollments e ON e.user_id = a.user_id AND e.course_version_id = a.enrolled_course_version_id
        WHERE a.completed_at IS NULL AND a.expires_at < now() - %b::interval
            AND (e.inactive_since IS NULL OR a.expires_at <= e.inactive_since)
        ORDER BY a.expires_at LIMIT %s
        """,
        [rules.GRACE, limit],
    )


def grant(
    conn: Connection, user_id: UUID, course_version_id: UUID, quiz_id: UUID, body: AllowanceBody, *, act: UUID, actor: str
) -> Cursor[Allowance]:
    """Grant a learner more attempts and more time at a quiz, instead of what was granted before; an open attempt gets it too.

    No row: the enrolled course version has no such quiz. Lock the enrolment before. `act` is the id in the history: what is there
    already is not done again.
    """
    return conn.cursor(row_factory=class_row(Allowance)).execute(
        """
        WITH quiz AS (
            SELECT e.user_id, e.status, q.course_version_id, q.quiz_id, q.max_attempts, q.time_limit_seconds,
                q.time_limit_seconds * (1 + %(extra_time_percentage)s / 100.0::float8) AS seconds
            FROM enrollments e
            JOIN course_version_quizzes q ON q.course_version_id = e.course_version_id
            WHERE e.user_id = %(user_id)b AND e.course_version_id = %(course_version_id)b AND q.quiz_id = %(quiz_id)b
        ), granted AS (
            INSERT INTO quiz_allowances AS w (user_id, course_version_id, quiz_id, extra_attempts, extra_time_percentage)
            SELECT user_id, course_version_id, quiz_id, %(extra_attempts)s, %(extra_time_percentage)s FROM quiz
            WHERE NOT EXISTS (SELECT FROM enrollment_history WHERE id = %(act)b)
            ON CONFLICT (user_id, course_version_id, quiz_id) DO UPDATE
            SET extra_attempts = excluded.extra_attempts, extra_time_percentage = excluded.extra_time_percentage
            WHERE (w.extra_attempts, w.extra_time_percentage) <> (excluded.extra_attempts, excluded.extra_time_percentage)
            RETURNING quiz_id
        ), history AS (
            INSERT INTO enrollment_history (
                id, user_id, course_version_id, type, from_status, to_status, occurred_at, actor, reason, details
            )
            SELECT %(act)b, q.user_id, q.course_version_id, 'allowance_changed', q.status, q.status, now(), %(actor)s, %(reason)s,
                jsonb_build_object(
                    'quiz_id', q.quiz_id, 'extra_attempts', %(extra_attempts)s::int,
                    'extra_time_percentage', %(extra_time_percentage)s::int
                )
            FROM quiz q JOIN granted g ON g.quiz_id = q.quiz_id
        ), extended AS (
            UPDATE quiz_attempts a SET expires_at = a.started_at + make_interval(secs => q.seconds)
            FROM quiz q
            WHERE a.user_id = q.user_id AND a.enrolled_course_version_id = q.course_version_id AND a.quiz_id = q.quiz_id
                AND a.completed_at IS NULL AND a.expires_at IS NOT NULL
                AND NOT EXISTS (SELECT FROM enrollment_history WHERE id = %(act)b)
        )
        SELECT quiz_id, %(extra_attempts)s::int AS extra_attempts, %(extra_time_percentage)s::int AS extra_time_percentage,
            max_attempts::bigint + %(extra_attempts)s AS max_attempts, seconds AS time_limit_seconds
        FROM quiz
        """,
        {"user_id": user_id, "course_version_id": course_version_id, "quiz_id": quiz_id, "act": act, "actor": actor}
        | body.model_dump(),
    )


@dataclass(frozen=True, slots=True)
class Sitting:
    """What is decided on when answers come for an attempt. `same_answers`: whether they are those that it was graded by."""

    user_id: UUID
    course_version_id: UUID
    quiz_id: UUID
    completed_at: datetime | None
    in_time: bool | None
    expires_at: datetime | None
    set_aside_at: datetime | None
    saved_answers: str | None
    same_answers: bool | None
    key_version: int
    enrollment_status: str
    #: The database's clock.
    now: datetime

    @property
    def quiz(self) -> QuizId:
        return self.course_version_id, self.quiz_id


def sitting(conn: Connection, attempt_id: UUID, user_id: UUID | None, answers: Answers) -> Cursor[Sitting]:
    """An attempt for which answers have come; of `user_id` alone, unless that is None."""
    return conn.cursor(row_factory=class_row(Sitting)).execute(
        """
        SELECT a.user_id, a.enrolled_course_version_id AS course_version_id, a.quiz_id, a.completed_at, a.in_time, a.expires_at,
            a.set_aside_at, a.answers_snapshot::text AS saved_answers, a.answers_snapshot = %(answers)s::jsonb AS same_answers,
            q.key_version, e.status AS enrollment_status, clock_timestamp() AS now
        FROM all_quiz_attempts a
        JOIN course_version_quizzes q ON q.course_version_id = a.enrolled_course_version_id AND q.quiz_id = a.quiz_id
        JOIN enrollments e ON e.user_id = a.user_id AND e.course_version_id = a.enrolled_course_version_id
        WHERE a.id = %(id)b AND (%(user_id)b::uuid IS NULL OR a.user_id = %(user_id)b)
        """,
        {"id": attempt_id, "user_id": user_id, "answers": simplejson.dumps(answers, use_decimal=True)},
    )


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A row of `attempt` and `attempts`; `keys` are the questions with their keys where the quiz reveals them."""

    id: UUID
    user_id: UUID
    course_version_id: UUID
    quiz_id: UUID
    attempt_number: int
    started_at: datetime
    expires_at: datetime | None
    completed_at: datetime | None
    score: float | None
    is_passed: bool | None
    pass_kept: bool
    pass_threshold_percentage: float | None
    key_version: int | None
    in_time: bool | None
    set_aside_at: datetime | None
    saved_answers: str | None
    question_results: list[dict[str, str]] | None
    keys: list[dict[str, Any]] | None
    earlier_gradings: list[dict[str, Any]]

    def model(self) -> Attempt:
        correct = {key["question_id"]: key["correct"] for key in self.keys or []}
        questions = None
        if self.question_results is not None:
            questions = [
                QuestionPoints(
                    question_id=r["question_id"],
                    points_earned=float(Fraction(r["points_earned"])),
                    points_possible=float(Fraction(r["points_possible"])),
                    rule=r["rule"],
                    correct=correct.get(r["question_id"]),
                )
                for r in self.question_results
            ]
        gradings = [EarlierGrading.model_validate(grading) for grading in self.earlier_gradings]
        answers = None if self.saved_answers is None else loads_answers(self.saved_answers)
        others = ("questions", "earlier_gradings", "answers")
        values = {name: getattr(self, name) for name in Attempt.model_fields if name not in others}
        return Attempt(questions=questions, earlier_gradings=gradings, answers=answers, **values)


def attempt(conn: Connection, attempt_id: UUID, user_id: UUID | None) -> Cursor[_Attempt]:
    """One attempt, also one that was set aside; of `user_id` alone, unless that is None."""
    return conn.cursor(row_factory=class_row(_Attempt)).execute(
        """
        SELECT a.id, a.user_id, a.enrolled_course_version_id AS course_version_id, a.quiz_id, a.attempt_number, a.started_at,
            a.expires_at, a.completed_at, a.score, a.is_passed, a.pass_kept, a.pass_threshold_percentage::float8, a.key_version,
            a.in_time, a.set_aside_at, a.answers_snapshot::text AS saved_answers, a.question_results,
            k.questions AS keys, (
                SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'key_version', g.key_version, 'score', g.score, 'is_passed', g.is_passed,
                    'replaced_at', rfc3339(g.replaced_at)
                ) ORDER BY g.id), '[]')
                FROM quiz_attempt_gradings g WHERE g.attempt_id = a.id
            ) AS earlier_gradings
        FROM all_quiz_attempts a
        JOIN course_version_quizzes q ON q.course_version_id = a.enrolled_course_version_id AND q.quiz_id = a.quiz_id
        LEFT JOIN quiz_answer_keys k ON q.reveal_answers AND k.course_version_id = a.key_course_version_id
            AND k.quiz_id = a.quiz_id AND k.key_version = a.key_version
        WHERE a.id = %(id)b AND (%(user_id)b::uuid IS NULL OR a.user_id = %(user_id)b)
        """,
        {"id": attempt_id, "user_id": user_id},
    )


def attempts(conn: Connection, user_id: UUID, course_version_id: UUID, quiz_id: UUID, after: int, limit: int) -> Cursor[_Attempt]:
    """A learner's attempts at one quiz in the order of their numbers, from behind the number `after`."""
    return conn.cursor(row_factory=class_row(_Attempt)).execute(
        """
        SELECT a.id, a.user_id, a.enrolled_course_version_id AS course_version_id, a.quiz_id, a.attempt_number, a.started_at,
            a.expires_at, a.completed_at, a.score, a.is_passed, a.pass_kept, a.pass_threshold_percentage::float8, a.key_version,
            a.in_time, NULL::timestamptz AS set_aside_at, a.answers_snapshot::text AS saved_answers, a.question_results,
            k.questions AS keys, (
                SELECT coalesce(jsonb_agg(jsonb_build_object(
                    'key_version', g.key_version, 'score', g.score, 'is_passed', g.is_passed,
                    'replaced_at', rfc3339(g.replaced_at)
                ) ORDER BY g.id), '[]')
                FROM quiz_attempt_gradings g WHERE g.attempt_id = a.id
            ) AS earlier_gradings
        FROM quiz_attempts a
        JOIN course_version_quizzes q ON q.course_version_id = a.enrolled_course_version_id AND q.quiz_id = a.quiz_id
        LEFT JOIN quiz_answer_keys k ON q.reveal_answers AND k.course_version_id = a.key_course_version_id
            AND k.quiz_id = a.quiz_id AND k.key_version = a.key_version
        WHERE a.user_id = %s AND a.enrolled_course_version_id = %s AND a.quiz_id = %s AND a.attempt_number > %s
        ORDER BY a.attempt_number LIMIT %s
        """,
        [user_id, course_version_id, quiz_id, after, limit],
    )


def quiz_exists(conn: Connection, user_id: UUID, course_version_id: UUID, quiz_id: UUID) -> Cursor[tuple[bool]]:
    """Whether the enrolled course version has the quiz; no row if there is no such enrolment."""
    return conn.execute(
        """
        SELECT EXISTS (SELECT FROM course_version_quizzes q WHERE q.course_version_id = e.course_version_id AND q.quiz_id = %s)
        FROM enrollments e WHERE e.user_id = %s AND e.course_version_id = %s
        """,
        [quiz_id, user_id, course_version_id],
    )
