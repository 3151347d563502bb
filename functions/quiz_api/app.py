"""Quiz attempts over HTTP: start, submit, look up."""

from typing import Annotated, Any
from uuid import UUID

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Body
from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, http
from shared.errors import AttemptClosed, AttemptNotFound, EnrollmentNotFound, QuizNotFound, Unavailable
from shared.observability import count, observed
from shared.quiz import rules, store
from shared.quiz.attempts import Attempt, AttemptPage, StartBody, StartedAttempt, SubmitBody
from shared.quiz.models import learner_view

app = http.resolver(exact_numbers=True)

_ATTEMPTS = "/users/<user_id>/enrollments/<course_version_id>/quizzes/<quiz_id>/attempts"


@app.post(
    _ATTEMPTS,
    summary="Start an attempt, or go on with the open one",
    tags=["quizzes"],
    security=http.LEARNER,
    responses={200: http.answer(StartedAttempt, "Still open"), 201: http.answer(StartedAttempt, "Started")}
    | http.problems(404, 409, 422),
)
def start(
    user_id: http.UserId, course_version_id: UUID, quiz_id: UUID, body: Annotated[StartBody | None, Body()] = None
) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    quiz = (course_version_id, quiz_id)
    stale: list[store.QuizId] = []
    # A standing that another request changed between reading and writing is read and judged again.
    for _ in range(10):
        row = db.run(lambda conn: store.standing(conn, learner, *quiz)).fetchone()
        if row is None:
            raise EnrollmentNotFound
        standing = row.model()
        if not standing.quiz_is_known:
            raise QuizNotFound
        rules.check_active(standing.status)
        key = store.answer_keys([quiz], stale=stale)[quiz]
        if standing.open and not rules.is_late(standing.open.expires_at, standing.now):
            return _started(standing.open, key, 200)
        number = rules.next_attempt(standing)
        # An open attempt that ran out is closed first, with the answers saved before.
        ran_out = standing.open and (
            standing.open,
            rules.grade(key.questions, standing.open.answers, key.pass_threshold_percentage),
        )

        def write(conn: db.Connection) -> Any:
            db.lock_enrollments(conn, [(learner, course_version_id)])
            if ran_out:
                store.close(conn, ran_out[0].id, ran_out[0].answers, ran_out[1], key, in_time=False)
            started = store.start(conn, learner, *quiz, number)
            if ran_out:
                db.complete_enrollments(conn, [(learner, course_version_id)])
            return started

        started = db.run(write).fetchone()
        if started:
            return _started(started, key, 201)
        stale = [quiz]
    raise Unavailable


def _started(attempt: rules.OpenAttempt, key: store.AnswerKey, status: int) -> Response[str]:
    return http.reply(
        StartedAttempt(
            id=attempt.id,
            attempt_number=attempt.attempt_number,
            started_at=attempt.started_at,
            expires_at=attempt.expires_at,
            questions=[learner_view(question) for question in key.questions],
        ),
        status,
    )


@app.post(
    "/quiz-attempts/<attempt_id>/submit",
    summary="Submit the answers of an attempt and have it graded",
    tags=["quizzes"],
    security=http.LEARNER,
    responses={200: http.answer(Attempt)} | http.problems(404, 409, 422),
)
def submit(attempt_id: UUID, body: Annotated[SubmitBody, Body()]) -> Response[str]:
    owner = _owner()
    stale: list[store.QuizId] = []
    for _ in range(10):
        found, attempt = db.run(
            lambda conn: (store.sitting(conn, attempt_id, owner, body.answers), store.attempt(conn, attempt_id, owner))
        )
        sitting = found.fetchone()
        if sitting is None:
            raise AttemptNotFound
        if sitting.completed_at:
            if sitting.in_time and not sitting.same_answers:
                raise AttemptClosed
            return _reply(attempt)
        rules.check_active(sitting.enrollment_status)
        key = store.answer_keys([sitting.quiz], stale=stale)[sitting.quiz]
        in_time = not rules.is_late(sitting.expires_at, sitting.now)
        given = rules.check_answers(key.questions, body.answers, unknown_questions="refuse")
        answers = given if in_time else store.loads_answers(sitting.saved_answers)
        grade = rules.grade(key.questions, answers, key.pass_threshold_percentage)
        enrollment = [(sitting.user_id, sitting.course_version_id)]

        def write(conn: db.Connection) -> Any:
            db.lock_enrollments(conn, enrollment)
            closed = store.close(conn, attempt_id, answers, grade, key, in_time=in_time)
            db.complete_enrollments(conn, enrollment)
            return closed, store.attempt(conn, attempt_id, owner)

        closed, attempt = db.run(write)
        if closed.fetchall():
            count("QuizzesGraded")
            return _reply(attempt)
        # Someone else closed it meanwhile, or its answer key was corrected.
        stale = [sitting.quiz]
    raise Unavailable


@app.get(
    "/quiz-attempts/<attempt_id>",
    summary="One attempt",
    tags=["quizzes"],
    security=http.LEARNER,
    responses={200: http.answer(Attempt)} | http.problems(404, 422),
)
def read(attempt_id: UUID) -> Response[str]:
    return _reply(db.run(lambda conn: store.attempt(conn, attempt_id, _owner())))


@app.get(
    _ATTEMPTS,
    summary="A learner's attempts at a quiz",
    tags=["quizzes"],
    security=http.LEARNER,
    responses={200: http.answer(AttemptPage)} | http.problems(404, 422),
)
def list_attempts(
    user_id: http.UserId, course_version_id: UUID, quiz_id: UUID, limit: http.Limit = 50, cursor: http.Cursor = None
) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    where = f"attempts {learner} {course_version_id} {quiz_id}"
    (after,) = http.decode_cursor(cursor, where, int) or (0,)
    exists, attempts = db.run(
        lambda conn: (
            store.quiz_exists(conn, learner, course_version_id, quiz_id),
            store.attempts(conn, learner, course_version_id, quiz_id, after, limit + 1),
        )
    )
    found = exists.fetchone()
    if found is None:
        raise EnrollmentNotFound
    if not found[0]:
        raise QuizNotFound
    rows = attempts.fetchall()
    more = http.encode_cursor(where, rows[limit - 1].attempt_number) if len(rows) > limit else None
    return http.reply(AttemptPage(items=[row.model() for row in rows[:limit]], next_cursor=more))


def _owner() -> UUID | None:
    """Whose attempts the caller reaches; None: everyone's."""
    who = http.caller(app)
    return None if who.is_admin else who.user_id


def _reply(cursor: Any) -> Response[str]:
    row = cursor.fetchone()
    if row is None:
        raise AttemptNotFound
    return http.reply(row.model())


@observed("requestContext.requestId")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return app.resolve(event, context)
