"""Lesson progress over HTTP."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Body
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import ValidationError

from shared import db, http
from shared.enrollment import store as enrollments
from shared.errors import EnrollmentNotFound, Invalid, flaws
from shared.observability import observed
from shared.parsing import taken_as
from shared.progress import store
from shared.progress.models import (
    CourseProgress,
    LessonProgress,
    LessonReference,
    ReportBody,
    SyncBody,
    SyncItem,
    SyncReply,
    SyncResult,
    TimedReport,
)

app = http.resolver()

_ENROLLMENT = "/users/<user_id>/enrollments/<course_version_id>"


@app.put(
    _ENROLLMENT + "/lessons/<lesson_id>/progress",
    summary="Report how far the learner got in a lesson",
    tags=["progress"],
    security=http.LEARNER,
    responses={200: http.answer(LessonProgress)} | http.problems(404, 409, 422),
)
def report(user_id: http.UserId, course_version_id: UUID, lesson_id: UUID, body: Annotated[ReportBody, Body()]) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    sent = store.Report(learner, course_version_id, lesson_id, body.percentage, _when(body))

    if body.percentage < 100:
        (known,) = db.run_one(lambda conn: store.report(conn, sent)).fetchall()
        outcome = known.outcome
    else:
        completed, reported = db.run(lambda conn: (store.record(conn, [sent]), store.report(conn, sent)))
        (known,) = reported.fetchall()
        outcome = next((refused.outcome for refused in completed.fetchall()), None)
    if outcome in store.REFUSED:
        raise store.REFUSED[outcome]
    return http.reply(LessonProgress.model_validate(known, from_attributes=True))


@app.post(
    _ENROLLMENT + "/progress",
    summary="Hand in reports gathered offline",
    tags=["progress"],
    security=http.LEARNER,
    responses={200: http.answer(SyncReply)} | http.problems(404, 422),
)
def sync(user_id: http.UserId, course_version_id: UUID, body: Annotated[SyncBody, Body()]) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    results: list[SyncResult] = []
    reports: list[store.Report] = []
    places: list[int] = []
    for index, raw in enumerate(body.lessons):
        result = SyncResult(index=index, lesson_id=None, result="applied")
        results.append(result)
        try:
            item = SyncItem.model_validate(raw)
        except ValidationError as error:
            result.lesson_id = _lesson_id(raw)
            result.result, result.detail = "refused", Invalid(*flaws(error)).detail
            continue
        result.lesson_id = item.lesson_id
        places.append(index)
        reports.append(store.Report(learner, course_version_id, item.lesson_id, item.percentage, _when(item)))

    def write(conn: db.Connection) -> tuple[Any, Any]:
        return store.record(conn, reports), enrollments.detail(conn, learner, course_version_id)

    outcomes, detail = db.run(write)
    enrollment = detail.fetchone()
    if enrollment is None:
        raise EnrollmentNotFound
    for outcome in outcomes.fetchall():
        result = results[places[outcome.n]]
        if outcome.outcome == "unchanged":
            result.result = "unchanged"
        else:
            result.result, result.detail = "refused", store.REFUSED[outcome.outcome]().detail
    return http.reply(SyncReply(results=results, enrollment=enrollment.model()))


def _when(report: TimedReport) -> datetime | None:
    """The time that a report counts for; None: now, by the database's clock, which the times of commands are of too."""
    return report.occurred_at and taken_as(report.occurred_at, datetime.now(UTC))


def _lesson_id(raw: object) -> UUID | None:
    """The lesson that an invalid report speaks of, if it says so."""
    try:
        return LessonReference.model_validate(raw).lesson_id
    except ValidationError:
        return None


@app.get(
    _ENROLLMENT + "/progress",
    summary="Course figures, every lesson, every quiz",
    tags=["progress"],
    security=http.LEARNER,
    responses={200: http.answer(CourseProgress)} | http.problems(404, 422),
)
def read(user_id: http.UserId, course_version_id: UUID) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    detail, lessons, quizzes = db.run(
        lambda conn: (
            enrollments.detail(conn, learner, course_version_id),
            store.lessons(conn, learner, course_version_id),
            store.quizzes(conn, learner, course_version_id),
        )
    )
    enrollment = detail.fetchone()
    if enrollment is None:
        raise EnrollmentNotFound
    figures = enrollment.model()
    return http.reply(
        CourseProgress(
            status=figures.status, lessons=lessons.fetchall(), quizzes=quizzes.fetchall(), **figures.progress.model_dump()
        )
    )


@observed(http=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return app.resolve(event, context)
