"""Quiz attempts from the queue: administered by exam engines and apps, graded here."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import simplejson
from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, messages
from shared.errors import AttemptIdTaken, CourseVersionNotFound, QuizNotFound, ServiceError, Unavailable
from shared.observability import count, observed
from shared.parsing import taken_as
from shared.quiz import rules, store
from shared.quiz.attempts import QuizSubmitted

MODELS = {"quiz.submitted": QuizSubmitted}


def take(incoming: list[messages.Incoming[QuizSubmitted]]) -> dict[int, ServiceError]:
    """Grade all attempts and take them in one transaction; those whose key was corrected meanwhile are graded again."""
    now = datetime.now(UTC)
    refused: dict[int, ServiceError] = {}
    pending = {n: item.event for n, item in enumerate(incoming)}
    first: dict[UUID, int] = {}
    repeated: dict[int, int] = {}
    stale: set[store.QuizId] = set()
    for _ in range(10):
        submissions: dict[int, store.Submission] = {}
        again: dict[int, messages.Event[QuizSubmitted]] = {}
        keys = store.answer_keys({_quiz(event.data) for event in pending.values()}, stale=stale)
        read_anew, stale = stale, set()
        refused |= _unknown({n: event for n, event in pending.items() if _quiz(event.data) not in keys})
        for n, event in pending.items():
            if n in refused:
                continue
            try:
                submission = _graded(event, keys[_quiz(event.data)], now)
            except ServiceError as error:
                if _quiz(event.data) in read_anew:
                    refused[n] = error
                else:
                    # The key that is in memory may have been corrected since.
                    again[n] = event
                    stale.add(_quiz(event.data))
                continue
            # The same attempt twice in one batch: the first one counts, as if they had come one after the other.
            earlier = first.setdefault(event.data.attempt_id, n)
            if earlier == n:
                submissions[n] = submission
            elif _identity(incoming[earlier].event.data) != _identity(event.data):
                refused[n] = AttemptIdTaken()
            else:
                repeated[n] = earlier
        numbers = list(submissions)
        outcomes = db.run(lambda conn: store.record(conn, list(submissions.values()))).fetchall() if submissions else []
        for outcome in outcomes:
            n = numbers[outcome.n]
            if outcome.outcome == "stale_key":
                again[n] = pending[n]
                stale.add(_quiz(pending[n].data))
            elif outcome.outcome != "unchanged":
                refused[n] = store.REFUSED[outcome.outcome]()
        count("QuizzesGraded", len(submissions) - len(outcomes))
        if not again:
            # Each is set apart that could not be taken: one of them may be the try that others are only repetitions of.
            return refused | {n: refused[earlier] for n, earlier in repeated.items() if earlier in refused}
        # Attempts are numbered as they arrived, and outcomes come in any order.
        pending = dict(sorted(again.items()))
    raise Unavailable


def _graded(event: messages.Event[QuizSubmitted], key: store.AnswerKey, now: datetime) -> store.Submission:
    data = event.data
    answers = rules.check_answers(key.questions, data.answers, unknown_questions="ignore", place="#/data")
    grade = rules.grade(key.questions, answers, key.pass_threshold_percentage)
    completed_at = taken_as(data.completed_at or event.time, now)
    return store.Submission(
        data.attempt_id,
        data.user_id,
        data.course_version_id,
        data.quiz_id,
        simplejson.dumps(answers, use_decimal=True),
        min(data.started_at or completed_at, completed_at),
        completed_at,
        key.key_version,
        key.pass_threshold_percentage,
        grade.score,
        grade.is_passed,
        simplejson.dumps(grade.question_results),
        event.traceparent,
    )


def _unknown(events: dict[int, messages.Event[QuizSubmitted]]) -> dict[int, ServiceError]:
    """Why these quizzes are not there: the course version is not known yet, or it has no such quiz."""
    if not events:
        return {}
    asked = {event.data.course_version_id for event in events.values()}
    known = {row[0] for row in db.run(lambda conn: store.known_course_versions(conn, asked)).fetchall()}
    return {
        n: QuizNotFound() if event.data.course_version_id in known else CourseVersionNotFound() for n, event in events.items()
    }


def _quiz(data: QuizSubmitted) -> store.QuizId:
    return data.course_version_id, data.quiz_id


def _identity(data: QuizSubmitted) -> tuple[Any, ...]:
    return data.user_id, data.course_version_id, data.quiz_id, data.answers


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return messages.work("quiz", event, MODELS, take, exact_numbers=True)
