"""Rosters for administrators and reporters; the service's health; and the answer to every unknown path."""

from typing import Annotated, Any
from uuid import UUID

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Query
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel

from shared import db, http
from shared.enrollment.models import EnrollmentPage, Status
from shared.errors import CourseVersionNotFound, Unavailable
from shared.observability import observed
from shared.report import store

app = http.resolver()


class Health(BaseModel):
    """The service can reach its database, whose schema is at this version."""

    status: str
    schema_version: str


@app.get(
    "/course-versions/<course_version_id>/enrollments",
    summary="The roster of a course version",
    tags=["reports"],
    security=http.REPORT_OR_ADMIN,
    responses={200: http.answer(EnrollmentPage)} | http.problems(403, 404, 422),
)
def roster(
    course_version_id: UUID,
    status: Annotated[Status | None, Query()] = None,
    limit: http.Limit = 50,
    cursor: http.Cursor = None,
) -> Response[str]:
    where = f"roster {course_version_id} {status}"
    (after,) = http.decode_cursor(cursor, where, UUID) or (None,)
    exists, enrollments = db.run(
        lambda conn: (
            store.course_version_exists(conn, course_version_id),
            store.roster(conn, course_version_id, status, after, limit + 1),
        )
    )
    if not exists.fetchone():
        raise CourseVersionNotFound
    rows = enrollments.fetchall()
    more = http.encode_cursor(where, rows[limit - 1].user_id) if len(rows) > limit else None
    return http.reply(EnrollmentPage(items=rows[:limit], next_cursor=more))


@app.get(
    "/health",
    summary="Whether the service works",
    tags=["health"],
    responses={200: http.answer(Health)} | http.problems(503),
)
def health() -> Response[str]:
    version = db.run(store.schema_version).fetchone()
    if version is None:
        raise Unavailable("The database has no schema yet.")
    return http.reply(Health(status="ok", schema_version=version[0]))


@observed(http=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return app.resolve(event, context)
