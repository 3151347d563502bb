"""Enrolments over HTTP."""

from typing import Annotated, Any
from uuid import UUID, uuid4

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Body, Query
from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, http
from shared.certificate import store as certificates
from shared.enrollment import administration, rules, store
from shared.enrollment.models import (
    CancelBody,
    EnrollBody,
    EnrollmentDetail,
    EnrollmentPage,
    HistoryPage,
    ReasonBody,
    RevokeBody,
    Status,
    TransferBody,
)
from shared.errors import (
    EnrollmentInactive,
    EnrollmentNotFound,
    Flaw,
    Forbidden,
    Invalid,
    NotFound,
    RequirementNotFound,
    Unavailable,
)
from shared.observability import observed
from shared.parsing import Time

app = http.resolver()

_ENROLLMENT = "/users/<user_id>/enrollments/<course_version_id>"
_DETAIL = {200: http.answer(EnrollmentDetail)}


@app.put(
    _ENROLLMENT,
    summary="Enrol, or enrol again",
    tags=["enrollments"],
    security=http.LEARNER,
    responses=_DETAIL | {201: http.answer(EnrollmentDetail, "Newly enrolled")} | http.problems(403, 404, 409, 422),
)
def enroll(user_id: http.UserId, course_version_id: UUID, body: Annotated[EnrollBody | None, Body()] = None) -> Response[str]:
    who = http.caller(app)
    learner = http.learner(app, user_id, EnrollmentNotFound)
    source = body.source_of_enrollment if body else None
    if source and not who.is_admin:
        raise Forbidden("Only an administrator may set source_of_enrollment.")
    command = rules.Command("requested", str(who.user_id), source_of_enrollment=source)
    return _carry_out(learner, course_version_id, command, by_learner=not who.is_admin)


@app.post(
    _ENROLLMENT + "/cancel",
    summary="Leave a course version",
    tags=["enrollments"],
    security=http.LEARNER,
    responses=_DETAIL | http.problems(404, 409, 422),
)
def cancel(user_id: http.UserId, course_version_id: UUID, body: Annotated[CancelBody | None, Body()] = None) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    command = rules.Command("cancelled", str(http.caller(app).user_id), reason=body.reason if body else None)
    return _carry_out(learner, course_version_id, command)


@app.post(
    _ENROLLMENT + "/revoke",
    summary="Take an enrolment away",
    tags=["enrollments"],
    security=http.ADMIN_ONLY,
    responses=_DETAIL | http.problems(403, 404, 422),
)
def revoke(user_id: http.UserId, course_version_id: UUID, body: Annotated[RevokeBody, Body()]) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    actor = str(http.caller(app).user_id)
    command = rules.Command("revoked", actor, reason=body.reason, revoke_certificate=body.revoke_certificate)
    return _carry_out(learner, course_version_id, command)


@app.post(
    _ENROLLMENT + "/reinstate",
    summary="Give a revoked enrolment back",
    tags=["enrollments"],
    security=http.ADMIN_ONLY,
    responses=_DETAIL | http.problems(403, 404, 409, 422),
)
def reinstate(user_id: http.UserId, course_version_id: UUID, body: Annotated[ReasonBody, Body()]) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    return _carry_out(learner, course_version_id, rules.Command("reinstated", str(http.caller(app).user_id), reason=body.reason))


def _carry_out(learner: UUID, course_version_id: UUID, command: rules.Command, *, by_learner: bool = False) -> Response[str]:
    """Decide on the situation as read, and write if it is still so; each further round means that another one got through."""
    key = (learner, course_version_id)
    act, act_on_certificate = uuid4(), uuid4()

    def write(conn: db.Connection) -> tuple[Any, Any]:
        db.lock_enrollments(conn, [key])
        left = store.write(conn, [plan] if plan else [], act=act)
        if plan and plan.revoke_certificate:
            reason = command.reason or ""
            certificates.revoke(conn, act=act_on_certificate, reason=reason, actor=command.actor, of_revoked=key)
        if plan and plan.is_active_again:
            db.complete_enrollments(conn, [key])
        return left, store.detail(conn, *key)

    for _ in range(10):
        situation = db.run(lambda conn: store.situations(conn, [key])).fetchall()[0]
        if by_learner and situation.course_version_is_known and not situation.self_enrollment:
            raise Forbidden("Learners cannot enrol themselves in this course version.")
        plan, refused = rules.plan(situation, [(0, command)])
        if refused:
            raise refused[0]
        left, detail = db.run(write)
        if not left.fetchall():
            return _detail(detail, 201 if situation.status is None else 200)
    raise Unavailable


@app.post(
    _ENROLLMENT + "/reset",
    summary="Start an enrolment over: its progress and attempts are set aside",
    tags=["enrollments"],
    security=http.ADMIN_ONLY,
    responses=_DETAIL | http.problems(403, 404, 422),
)
def reset(user_id: http.UserId, course_version_id: UUID, body: Annotated[ReasonBody, Body()]) -> Response[str]:
    key = (http.learner(app, user_id, EnrollmentNotFound), course_version_id)
    act, actor = uuid4(), str(http.caller(app).user_id)

    def write(conn: db.Connection) -> Any:
        administration.lock_alone(conn, *key)
        administration.start_over(conn, *key, act=act, actor=actor, reason=body.reason)
        db.complete_enrollments(conn, [key])
        return store.detail(conn, *key)

    return _detail(db.run(write))


@app.put(
    _ENROLLMENT + "/requirements/<requirement_id>/waiver",
    summary="Let a lesson or a quiz count as fulfilled",
    tags=["enrollments"],
    security=http.ADMIN_ONLY,
    responses=_DETAIL | http.problems(403, 404, 422),
)
def waive(
    user_id: http.UserId, course_version_id: UUID, requirement_id: UUID, body: Annotated[ReasonBody, Body()]
) -> Response[str]:
    key = (http.learner(app, user_id, EnrollmentNotFound), course_version_id)
    act, actor = uuid4(), str(http.caller(app).user_id)

    def write(conn: db.Connection) -> tuple[Any, Any]:
        db.lock_enrollments(conn, [key])
        item = administration.waive(conn, *key, requirement_id, act=act, actor=actor, reason=body.reason)
        db.complete_enrollments(conn, [key])
        return item, store.detail(conn, *key)

    return _with_item(*db.run(write))


@app.delete(
    _ENROLLMENT + "/requirements/<requirement_id>/waiver",
    summary="Take a waiver back",
    tags=["enrollments"],
    security=http.ADMIN_ONLY,
    responses=_DETAIL | http.problems(403, 404, 422),
)
def withdraw_waiver(user_id: http.UserId, course_version_id: UUID, requirement_id: UUID) -> Response[str]:
    key = (http.learner(app, user_id, EnrollmentNotFound), course_version_id)
    act, actor = uuid4(), str(http.caller(app).user_id)

    def write(conn: db.Connection) -> tuple[Any, Any]:
        db.lock_enrollments(conn, [key])
        item = administration.withdraw_waiver(conn, *key, requirement_id, act=act, actor=actor)
        return item, store.detail(conn, *key)

    return _with_item(*db.run(write))


@app.post(
    _ENROLLMENT + "/transfer",
    summary="Enrol the learner in another course version, and carry progress and passed quizzes over",
    tags=["enrollments"],
    security=http.ADMIN_ONLY,
    responses={
        200: http.answer(EnrollmentDetail, "The enrolment there, which had been made before"),
        201: http.answer(EnrollmentDetail, "Newly enrolled there"),
    }
    | http.problems(403, 404, 409, 422),
)
def transfer(user_id: http.UserId, course_version_id: UUID, body: Annotated[TransferBody, Body()]) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    act, actor = uuid4(), str(http.caller(app).user_id)
    if body.to == course_version_id:
        raise Invalid(Flaw("#/to", "expected another course version"))
    keys = [(learner, course_version_id), (learner, body.to)]
    command = rules.Command("requested", actor, reason=body.reason, source_of_enrollment="transfer")

    def write(conn: db.Connection) -> tuple[Any, Any]:
        db.lock_enrollments(conn, keys)
        store.write(conn, [plan] if plan else [], transferred_from=keys[0])
        carried = administration.carry_over(conn, *keys[0], body.to, act=act, at=target.now, actor=actor, reason=body.reason)
        db.complete_enrollments(conn, keys[1:])
        return carried, store.detail(conn, *keys[1])

    # As in `_carry_out`: what someone else changed between reading and writing is read and decided again.
    for _ in range(10):
        source, target = db.run(lambda conn: store.situations(conn, keys)).fetchall()
        if source.status is None:
            raise EnrollmentNotFound
        if source.status not in ("active", "completed"):
            raise EnrollmentInactive("The enrolment is cancelled or revoked.")
        plan, refused = rules.plan(target, [(0, command)])
        if refused:
            raise refused[0]
        carried, detail = db.run(write)
        # A cancellation or revocation there that is dated a little ahead stands, and then nothing is carried over.
        stands = plan is None and target.status not in ("active", "completed")
        if carried.fetchone() or stands:
            return _detail(detail, 201 if target.status is None else 200)
    raise Unavailable


def _with_item(item: Any, detail: Any) -> Response[str]:
    """The enrolment, provided that it has the item that the path names."""
    answer = _detail(detail)
    if not item.fetchone():
        raise RequirementNotFound
    return answer


def _detail(cursor: Any, status: int = 200) -> Response[str]:
    row = cursor.fetchone()
    if row is None:
        raise EnrollmentNotFound
    return http.reply(row.model(), status)


@app.get(
    _ENROLLMENT + "/history",
    summary="Every change of an enrolment, oldest first",
    tags=["enrollments"],
    security=http.LEARNER,
    responses={200: http.answer(HistoryPage)} | http.problems(404, 422),
)
def history(user_id: http.UserId, course_version_id: UUID, limit: http.Limit = 50, cursor: http.Cursor = None) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    where = f"history {learner} {course_version_id}"
    (after,) = http.decode_cursor(cursor, where, int) or (0,)
    rows = db.run(lambda conn: administration.history(conn, learner, course_version_id, after, limit + 1)).fetchall()
    if not rows and not cursor:
        raise EnrollmentNotFound
    more = http.encode_cursor(where, rows[limit - 1].position) if len(rows) > limit else None
    return http.reply(HistoryPage(items=[row.model() for row in rows[:limit]], next_cursor=more))


@app.get(
    _ENROLLMENT,
    summary="One enrolment with its progress and certificate",
    tags=["enrollments"],
    security=http.LEARNER,
    responses=_DETAIL | http.problems(404, 422),
)
def read(user_id: http.UserId, course_version_id: UUID) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    return _detail(db.run(lambda conn: store.detail(conn, learner, course_version_id)))


@app.get(
    "/users/<user_id>/enrollments",
    summary="A learner's enrolments, oldest first",
    tags=["enrollments"],
    security=http.LEARNER,
    responses={200: http.answer(EnrollmentPage)} | http.problems(404, 422),
)
def list_of_learner(
    user_id: http.UserId,
    status: Annotated[Status | None, Query()] = None,
    limit: http.Limit = 50,
    cursor: http.Cursor = None,
) -> Response[str]:
    learner = http.learner(app, user_id, NotFound)
    where = f"enrollments {learner} {status}"
    after = http.decode_cursor(cursor, where, Time, UUID)
    rows = db.run(lambda conn: store.of_learner(conn, learner, status, after, limit + 1)).fetchall()
    more = (
        http.encode_cursor(where, rows[limit - 1].enrolled_at, rows[limit - 1].course_version_id) if len(rows) > limit else None
    )
    return http.reply(EnrollmentPage(items=rows[:limit], next_cursor=more))


@observed(http=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return app.resolve(event, context)
