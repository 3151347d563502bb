"""Quizzes over HTTP: attempts from start to grade; for administrators allowances and grading again."""

import time
from typing import Annotated, Any
from uuid import UUID, uuid4

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Body
from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, http
from shared.errors import (
    AttemptClosed,
    AttemptExpired,
    AttemptNotFound,
    AttemptSetAside,
    EnrollmentNotFound,
    QuizNotFound,
    RegradeNotFound,
    Unavailable,
)
from shared.observability import count, observed
from shared.quiz import regrades, rules, service, store
from shared.quiz.attempts import (
    Allowance,
    AllowanceBody,
    AnswersBody,
    Attempt,
    AttemptPage,
    Regrade,
    RegradeBody,
    StartBody,
    StartedAttempt,
    exact_json,
)
from shared.quiz.models import learner_view

app = http.resolver(exact_numbers=True)

_QUIZ = "/users/<user_id>/enrollments/<course_version_id>/quizzes/<quiz_id>"
_ATTEMPTS = _QUIZ + "/attempts"
_REGRADE = "/course-versions/<course_version_id>/quizzes/<quiz_id>/regrade"

#: For so long an administrator's request grades again itself; the rest is done in the background.
REGRADE_SECONDS = 5.0


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
    # A standing that another request changed between reading and writing is read and judged again.
    for _ in range(10):
        row = db.run(lambda conn: store.standing(conn, learner, *quiz)).fetchone()
        if row is None:
            raise EnrollmentNotFound
        standing = row.model()
        if not standing.quiz_is_known:
            raise QuizNotFound
        rules.check_active(standing.status)
        key = store.answer_key(quiz, standing.key_version)
        if standing.open and not rules.is_late(standing.open.expires_at, standing.now):
            return _started(standing.open, key, 200)
        number = rules.next_attempt(standing)
        # An open attempt that ran out is closed first, with the answers saved before.
        ran_out = standing.open and [store.closing(standing.open.id, standing.open.answers, key, in_time=False)]

        def write(conn: db.Connection) -> Any:
            db.lock_enrollments(conn, [(learner, course_version_id)])
            if ran_out:
                store.close(conn, ran_out)
            started = store.start(conn, learner, *quiz, number)
            if ran_out:
                db.complete_enrollments(conn, [(learner, course_version_id)])
            return started

        started = db.run(write).fetchone()
        if started:
            return _started(started, key, 201)
    raise Unavailable


def _started(attempt: rules.OpenAttempt, key: store.AnswerKey, status: int) -> Response[str]:
    started = StartedAttempt(
        id=attempt.id,
        attempt_number=attempt.attempt_number,
        started_at=attempt.started_at,
        expires_at=attempt.expires_at,
        questions=[learner_view(question) for question in key.questions],
        answers=dict(attempt.answers),
    )
    return http.reply(exact_json(started), status)


@app.post(
    "/quiz-attempts/<attempt_id>/submit",
    summary="Submit the answers of an attempt and have it graded",
    tags=["quizzes"],
    security=http.LEARNER,
    responses={200: http.answer(Attempt)} | http.problems(404, 409, 422),
)
def submit(attempt_id: UUID, body: Annotated[AnswersBody, Body()]) -> Response[str]:
    owner = _owner()
    for _ in range(10):
        sitting, attempt = _sitting(attempt_id, owner, body)
        if sitting.completed_at:
            if sitting.in_time and not sitting.same_answers:
                raise AttemptClosed
            return _reply(attempt)
        key = _check_open(sitting, body)
        in_time = not rules.is_late(sitting.expires_at, sitting.now)
        answers = body.answers if in_time else store.loads_answers(sitting.saved_answers)
        closing = store.closing(attempt_id, answers, key, in_time=in_time)
        enrollment = [(sitting.user_id, sitting.course_version_id)]

        def write(conn: db.Connection) -> Any:
            db.lock_enrollments(conn, enrollment)
            closed = store.close(conn, [closing])
            db.complete_enrollments(conn, enrollment)
            return closed, store.attempt(conn, attempt_id, owner)

        closed, attempt = db.run(write)
        if closed.fetchall():
            count("QuizzesGraded")
            return _reply(attempt)
        # Someone else closed it meanwhile, or its answer key was corrected.
    raise Unavailable


@app.put(
    "/quiz-attempts/<attempt_id>/answers",
    summary="Keep a draft of the answers of an open attempt",
    tags=["quizzes"],
    security=http.LEARNER,
    responses={200: http.answer(Attempt)} | http.problems(404, 409, 422),
)
def save(attempt_id: UUID, body: Annotated[AnswersBody, Body()]) -> Response[str]:
    owner = _owner()
    for _ in range(10):
        sitting, _attempt = _sitting(attempt_id, owner, body)
        if sitting.completed_at:
            raise AttemptClosed("The attempt is graded already.")
        _check_open(sitting, body)
        if rules.is_late(sitting.expires_at, sitting.now):
            raise AttemptExpired
        saved, attempt = db.run(lambda conn: (store.save(conn, attempt_id, body.answers), store.attempt(conn, attempt_id, owner)))
        if saved.fetchall():
            return _reply(attempt)
    raise Unavailable


def _sitting(attempt_id: UUID, owner: UUID | None, body: AnswersBody) -> tuple[store.Sitting, Any]:
    """What answers that came for an attempt are judged by, and the attempt itself as it would be answered with."""
    found, attempt = db.run(
        lambda conn: (store.sitting(conn, attempt_id, owner, body.answers), store.attempt(conn, attempt_id, owner))
    )
    sitting = found.fetchone()
    if sitting is None:
        raise AttemptNotFound
    return sitting, attempt


def _check_open(sitting: store.Sitting, body: AnswersBody) -> store.AnswerKey:
    """Let answers pass that fit the questions of an attempt that is open; gives its answer key."""
    if sitting.set_aside_at:
        raise AttemptSetAside
    rules.check_active(sitting.enrollment_status)
    key = store.answer_key(sitting.quiz, sitting.key_version)
    rules.check_answers(key.questions, body.answers, unknown_questions="refuse")
    return key


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
    return http.reply(exact_json(AttemptPage(items=[row.model() for row in rows[:limit]], next_cursor=more)))


@app.put(
    _QUIZ + "/allowance",
    summary="Grant a learner more attempts and more time at a quiz",
    tags=["quizzes"],
    security=http.ADMIN_ONLY,
    responses={200: http.answer(Allowance)} | http.problems(403, 404, 422),
)
def grant(user_id: http.UserId, course_version_id: UUID, quiz_id: UUID, body: Annotated[AllowanceBody, Body()]) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    act, actor = uuid4(), str(http.caller(app).user_id)

    def write(conn: db.Connection) -> Any:
        db.lock_enrollments(conn, [(learner, course_version_id)])
        granted = store.grant(conn, learner, course_version_id, quiz_id, body, act=act, actor=actor)
        return granted, store.quiz_exists(conn, learner, course_version_id, quiz_id)

    granted, exists = db.run(write)
    if not exists.fetchone():
        raise EnrollmentNotFound
    allowance = granted.fetchone()
    if allowance is None:
        raise QuizNotFound
    return http.reply(allowance)


@app.post(
    _REGRADE,
    summary="Grade all attempts at a quiz again by its present answer key, or see what that would change",
    description="202 if there is too much to do at once: it goes on in the background, and `Location` says where to look.",
    tags=["quizzes"],
    security=http.ADMIN_ONLY,
    responses={200: http.answer(Regrade), 202: http.answer(Regrade, "Under way")} | http.problems(403, 404, 422),
)
def regrade(course_version_id: UUID, quiz_id: UUID, body: Annotated[RegradeBody, Body()]) -> Response[str]:
    regrade_id, actor = uuid4(), str(http.caller(app).user_id)
    reason = body.reason or "The answer key of a quiz was corrected."
    until = time.monotonic() + REGRADE_SECONDS
    job = requested = db.run(
        lambda conn: regrades.request(conn, regrade_id, course_version_id, quiz_id, body, actor, reason)
    ).fetchone()
    if requested is None:
        raise QuizNotFound
    while job and time.monotonic() < until:
        job = service.regrade(job)
        if job is None:
            # Either it is done, or transactions that began before it have to end first.
            job = db.run(lambda conn: regrades.unfinished(conn, requested.id)).fetchone()
            time.sleep(0.05 if job else 0)
    answer = _regrade(course_version_id, quiz_id, requested.id, 100, None)
    answer.headers["Location"] = f"/course-versions/{course_version_id}/quizzes/{quiz_id}/regrades/{requested.id}"
    return answer


@app.get(
    _REGRADE + "s/<regrade_id>",
    summary="A regrade, and the learners whom it makes a difference to",
    tags=["quizzes"],
    security=http.ADMIN_ONLY,
    responses={200: http.answer(Regrade)} | http.problems(403, 404, 422),
)
def read_regrade(
    course_version_id: UUID, quiz_id: UUID, regrade_id: UUID, limit: http.Limit = 50, cursor: http.Cursor = None
) -> Response[str]:
    answer = _regrade(course_version_id, quiz_id, regrade_id, limit, cursor)
    answer.status_code = 200
    return answer


def _regrade(course_version_id: UUID, quiz_id: UUID, regrade_id: UUID, limit: int, cursor: str | None) -> Response[str]:
    where = f"regrade {regrade_id}"
    after = http.decode_cursor(cursor, where, UUID, UUID)
    found, learners = db.run(
        lambda conn: (
            regrades.report(conn, course_version_id, quiz_id, regrade_id),
            regrades.learners(conn, regrade_id, after, limit + 1),
        )
    )
    report = found.fetchone()
    if report is None:
        raise RegradeNotFound
    rows = learners.fetchall()
    last = rows[limit - 1] if len(rows) > limit else None
    more = http.encode_cursor(where, last.user_id, last.course_version_id) if last else None
    return http.reply(report.model(rows[:limit], more), 200 if report.completed_at else 202)


def _owner() -> UUID | None:
    """Whose attempts the caller reaches; None: everyone's."""
    who = http.caller(app)
    return None if who.is_admin else who.user_id


def _reply(cursor: Any) -> Response[str]:
    row = cursor.fetchone()
    if row is None:
        raise AttemptNotFound
    return http.reply(exact_json(row.model()))


@observed(http=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return app.resolve(event, context)
