"""A database as it is after many learners have learnt for long: any number of them, and always the same ones.

Each learner has completed one course version of 50 lessons and a quiz, the quiz at the second attempt, and has its certificate;
and is in the midst of a second one, of which 0 to 49 lessons are begun, all but the last of them completed. That makes 74.5 rows
of `lesson_progress` for each learner. They lie in the order in which they came about, those of all learners mixed.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from shared.certificate.rules import new_uid
from shared.quiz import rules, store
from tests.support.service import Service, event

LESSONS = 50
QUESTIONS = 20
ROWS_PER_LEARNER = 74.5

RIGHT, WRONG = ({f"q{n}": choice for n in range(QUESTIONS)} for choice in "ab")


def identifier(text: str) -> UUID:
    """The same text has the same id, here as in the database."""
    return UUID(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())


def version_id(number: int) -> UUID:
    return identifier(f"version {number}")


def lesson_id(version: int, position: int) -> UUID:
    return identifier(f"lesson {version} {position}")


def quiz_id(version: int) -> UUID:
    return identifier(f"quiz {version}")


@dataclass(slots=True)
class Filled:
    """A database with so many course versions and learners, each counted from 0."""

    versions: int
    learners: int = 0

    def first(self, learner: int) -> int:
        """The course version that a learner has completed."""
        return learner % self.versions

    def second(self, learner: int) -> int:
        """The course version that a learner is in the midst of."""
        return (learner % self.versions + 1 + learner // self.versions % (self.versions - 1)) % self.versions

    def third(self, learner: int) -> int:
        """A course version in which a learner is not enrolled."""
        return next(n for n in range(self.versions) if n not in (self.first(learner), self.second(learner)))

    def begun(self, learner: int) -> int:
        """How many lessons of the second one a learner has begun."""
        return learner * 37 % LESSONS


def learner_id(number: int) -> UUID:
    return identifier(f"learner {number}")


def learners_for(rows: int) -> int:
    """So many learners have about so many rows of `lesson_progress`."""
    return round(rows / ROWS_PER_LEARNER)


def publish(service: Service, versions: int) -> Filled:
    """Publish so many course versions; nobody is enrolled in any."""
    filled = Filled(versions)
    choices = [{"id": letter, "text": letter} for letter in "abcd"]
    for number in range(versions):
        questions = [
            {"question_id": name, "kind": "single_choice", "prompt": "?", "points": 1, "choices": choices, "correct": "a"}
            for name in RIGHT
        ]
        lessons = [
            {"lesson_id": str(lesson_id(number, position)), "title": f"Lesson {position}", "required": True}
            for position in range(LESSONS)
        ]
        a_quiz = {"quiz_id": str(quiz_id(number)), "title": "Quiz", "required": True, "pass_threshold_percentage": 50}
        version = {
            "course_version_id": str(version_id(number)),
            "course_id": str(identifier(f"course {number}")),
            "title": f"Course {number}",
            "version": "1",
            "issuer_name": "Open College",
            "lessons": lessons,
            "quizzes": [a_quiz | {"questions": questions}],
        }
        service.send("catalog", event("course_version.published", version))
    return filled


def grow(conn: psycopg.Connection[Any], filled: Filled, learners: int) -> None:
    """Add learners until there are so many. `conn` is a superuser's, under autocommit, to a database that the service uses now.

    All of it was more than 29 days ago, so that no rule asks for what was published about it. Of the events on completed lessons
    a twentieth is there, about to be removed.
    """
    a_quiz = version_id(0), quiz_id(0)
    key = store.answer_keys([a_quiz])[a_quiz]
    wrong, right = (rules.grade(key.questions, answers, key.pass_threshold_percentage) for answers in (WRONG, RIGHT))
    with conn.transaction():
        conn.execute("SET LOCAL work_mem = '1GB'")
        conn.execute(
            """
            CREATE TEMP TABLE newcomer ON COMMIT DROP AS
            SELECT n, md5('learner ' || n)::uuid AS user_id, md5('version ' || first)::uuid AS first,
                md5('version ' || second)::uuid AS second, md5('quiz ' || first)::uuid AS quiz, n * 37 %% %(lessons)s AS begun,
                began, began + interval '25 days' AS failed_at, began + interval '26 days' AS passed_at,
                began + interval '30 days' AS went_on
            FROM (
                SELECT n, timestamptz '2025-01-01Z' + n * interval '100 seconds' AS began, n %% %(versions)s AS first,
                    (n %% %(versions)s + 1 + n / %(versions)s %% (%(versions)s - 1)) %% %(versions)s AS second
                FROM generate_series(%(from)s::int, %(to)s::int - 1) AS n
            ) numbers
            """,
            {"lessons": LESSONS, "versions": filled.versions, "from": filled.learners, "to": learners},
        )
        conn.execute(
            "INSERT INTO learners (user_id, name, updated_at) SELECT user_id, 'Learner ' || n, began FROM newcomer ORDER BY n"
        )
        conn.execute(
            """
            INSERT INTO enrollments (
                user_id, course_version_id, enrolled_at, status, completed_at, status_changed_at, commanded_at, command, sequence
            )
            SELECT * FROM (
                SELECT user_id, first, began AS enrolled_at, 'completed', passed_at, passed_at, began, 'requested',
                    %(lessons)s + 5
                FROM newcomer
                UNION ALL
                SELECT user_id, second, went_on, 'active', NULL, went_on, went_on, 'requested', greatest(begun, 1) FROM newcomer
            ) enrolled
            ORDER BY enrolled_at
            """,
            {"lessons": LESSONS},
        )
        conn.execute(
            """
            INSERT INTO enrollment_history (
                user_id, course_version_id, type, from_status, to_status, occurred_at, recorded_at, actor, sequence
            )
            SELECT user_id, course_version_id, type, from_status, to_status, at, at, actor, sequence FROM (
                SELECT user_id, first AS course_version_id, 'created' AS type, NULL AS from_status, 'active' AS to_status,
                    began AS at, user_id::text AS actor, 1 AS sequence
                FROM newcomer
                UNION ALL
                SELECT user_id, first, 'completed', 'active', 'completed', passed_at, 'learner-progress', %(lessons)s + 4
                FROM newcomer
                UNION ALL
                SELECT user_id, second, 'created', NULL, 'active', went_on, user_id::text, 1 FROM newcomer
            ) happened
            ORDER BY at
            """,
            {"lessons": LESSONS},
        )
        # Without looking up the enrolment of each row, which was inserted just now.
        conn.execute("SET LOCAL session_replication_role = 'replica'")
        conn.execute(
            """
            INSERT INTO lesson_progress (
                user_id, lesson_id, enrolled_course_version_id, status, progress_percentage, started_at, last_accessed_at,
                completed_at
            )
            SELECT user_id, lesson_id, course_version_id, CASE WHEN done THEN 'completed' ELSE 'in_progress' END,
                CASE WHEN done THEN 100 ELSE 50 END, started_at, started_at + interval '20 minutes',
                CASE WHEN done THEN started_at + interval '20 minutes' END
            FROM (
                SELECT n.user_id, l.lesson_id, l.course_version_id, TRUE AS done,
                    n.began + l.position * interval '12 hours' AS started_at
                FROM newcomer n JOIN course_version_lessons l ON l.course_version_id = n.first
                UNION ALL
                SELECT n.user_id, l.lesson_id, l.course_version_id, l.position < n.begun - 1,
                    n.went_on + l.position * interval '12 hours'
                FROM newcomer n JOIN course_version_lessons l ON l.course_version_id = n.second AND l.position < n.begun
            ) taken
            ORDER BY started_at
            """
        )
        conn.execute("SET LOCAL session_replication_role = 'origin'")
        conn.execute(
            """
            INSERT INTO quiz_attempts (
                user_id, quiz_id, enrolled_course_version_id, attempt_number, score, is_passed, started_at, completed_at,
                answers_snapshot, in_time, key_version, key_course_version_id, pass_threshold_percentage, question_results
            )
            SELECT n.user_id, n.quiz, n.first, a.number, a.score, a.is_passed, a.at - interval '10 minutes', a.at,
                a.answers::jsonb, TRUE, 1, n.first, 50, a.results::jsonb
            FROM newcomer n
            CROSS JOIN LATERAL (
                VALUES (1, n.failed_at, %b::float8, FALSE, %s, %s), (2, n.passed_at, %b, TRUE, %s, %s)
            ) AS a (number, at, score, is_passed, answers, results)
            ORDER BY a.at
            """,
            [
                value
                for grade, answers in ((wrong, WRONG), (right, RIGHT))
                for value in (grade.score, json.dumps(answers), json.dumps(grade.question_results))
            ],
        )
        conn.execute("CREATE TEMP TABLE uid (n integer, certificate_uid text) ON COMMIT DROP")
        with conn.cursor().copy("COPY uid FROM STDIN") as copy:
            for number in range(filled.learners, learners):
                copy.write_row((number, new_uid()))
        # What a certificate says is put together once for each course version.
        conn.execute(
            """
            INSERT INTO certificates (
                user_id, course_version_id, issued_at, certificate_uid, pdf_url, metadata, credential, credential_jwt, due_at
            )
            SELECT n.user_id, n.first, n.passed_at, u.certificate_uid, '', m.metadata || jsonb_build_object(
                'learner_name', 'Learner ' || n.n, 'completed_at', rfc3339(n.passed_at)
            ), '', '', NULL
            FROM newcomer n
            JOIN uid u ON u.n = n.n
            JOIN (
                SELECT DISTINCT ON (f.first) f.first, certificate_metadata(e) AS metadata
                FROM newcomer f JOIN enrollments e ON e.user_id = f.user_id AND e.course_version_id = f.first
            ) m ON m.first = n.first
            ORDER BY n.passed_at
            """
        )
        conn.execute("UPDATE status_lists SET credential = '', signed_changes = changes, due_at = NULL")
        conn.execute(
            """
            INSERT INTO outbox (created_at, destination, type, occurred_at, data, available_at, sent_at)
            SELECT sent_at, 'bus', 'lesson.completed', p.completed_at, jsonb_build_object(
                'user_id', p.user_id, 'course_version_id', p.enrolled_course_version_id, 'lesson_id', p.lesson_id,
                'status', 'active', 'completed_at', rfc3339(p.completed_at), 'sequence', l.position + 2
            ), sent_at, sent_at
            FROM newcomer n
            JOIN lesson_progress p ON p.user_id = n.user_id AND p.completed_at IS NOT NULL
            JOIN course_version_lessons l
                ON l.course_version_id = p.enrolled_course_version_id AND l.lesson_id = p.lesson_id AND l.position %% 20 = 0
            CROSS JOIN LATERAL (SELECT now() - interval '29 days 23 hours' + n.n * interval '10 milliseconds' AS sent_at) s
            ORDER BY sent_at
            """,
            [],
        )
    filled.learners = learners
    conn.execute("VACUUM ANALYZE")
