"""Certificates over HTTP: for their learners, for administrators, and for strangers who verify one."""

from typing import Annotated, Any
from uuid import UUID

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Body
from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, http
from shared.certificate import page, store
from shared.certificate.models import Certificate, CertificatePage, NotYet, OwnCertificate, ReasonBody, Requirement
from shared.certificate.rules import read_uid
from shared.errors import CertificateNotFound, EnrollmentNotFound, MistypedCertificateUid, NotFound
from shared.observability import observed
from shared.parsing import Time

app = http.resolver()


@app.get(
    "/users/<user_id>/enrollments/<course_version_id>/certificate",
    summary="The certificate of an enrolment, or what it still needs",
    tags=["certificates"],
    security=http.LEARNER,
    responses={200: http.answer(OwnCertificate | NotYet)} | http.problems(404, 422),
)
def of_enrollment(user_id: http.UserId, course_version_id: UUID) -> Response[str]:
    learner = http.learner(app, user_id, EnrollmentNotFound)
    certificate, requirements = db.run(
        lambda conn: (
            store.of_enrollment(conn, learner, course_version_id),
            store.requirements(conn, learner, course_version_id),
        )
    )
    issued = certificate.fetchone()
    if issued:
        return http.reply(issued.own())
    needed = requirements.fetchall()
    if not needed:
        raise EnrollmentNotFound
    if needed[-1].kind == "disabled":
        return http.reply(NotYet(requirements=[]))
    enrollment, *others = needed
    if _stands_in_the_way(enrollment, others):
        others = needed
    return http.reply(NotYet(requirements=[_requirement(row) for row in others]))


def _stands_in_the_way(enrollment: store.Needed, others: list[store.Needed]) -> bool:
    """Whether the enrolment itself is what is missing: it ended, or it does not complete though all its items are fulfilled."""
    if enrollment.kind in ("active", "completed"):
        return enrollment.kind == "active" and all(row.fulfilled_at for row in others if row.kind in ("lesson", "quiz"))
    return True


def _requirement(row: store.Needed) -> Requirement:
    """A row of what a certificate needs, in words."""
    met = row.fulfilled_at is not None
    match row.kind:
        case "lesson" | "quiz" as kind if row.waived:
            return Requirement(kind=kind, id=row.id, title=row.title, met=met, detail=f"The {kind} is waived.")
        case "lesson":
            detail = "The lesson is completed." if met else "The lesson is not completed yet."
            return Requirement(kind="lesson", id=row.id, title=row.title, met=met, detail=detail)
        case "quiz":
            detail = "The quiz is passed." if met else "The quiz is not passed yet."
            return Requirement(kind="quiz", id=row.id, title=row.title, met=met, detail=detail)
        case "learner_name":
            detail = "The learner's name is known." if met else "The learner's name is not known yet."
            return Requirement(kind="learner_name", id=None, title="Learner's name", met=met, detail=detail)
        case status:
            detail = f"The enrolment is {status.replace('_', ' ')}, not completed."
            return Requirement(kind="enrollment", id=None, title=row.title, met=False, detail=detail)


@app.get(
    "/users/<user_id>/certificates",
    summary="A learner's certificates, oldest first",
    tags=["certificates"],
    security=http.LEARNER,
    responses={200: http.answer(CertificatePage)} | http.problems(404, 422),
)
def of_learner(user_id: http.UserId, limit: http.Limit = 50, cursor: http.Cursor = None) -> Response[str]:
    learner = http.learner(app, user_id, NotFound)
    where = f"certificates {learner}"
    after = http.decode_cursor(cursor, where, Time, UUID)
    rows = db.run(lambda conn: store.of_learner(conn, learner, after, limit + 1)).fetchall()
    more = http.encode_cursor(where, rows[limit - 1].issued_at, rows[limit - 1].id) if len(rows) > limit else None
    return http.reply(CertificatePage(items=[row.own() for row in rows[:limit]], next_cursor=more))


@app.get(
    "/certificates/<certificate_uid>",
    summary="Verify a certificate",
    description="For anyone. As a page if the Accept header prefers text/html, else as JSON.",
    tags=["certificates"],
    responses={200: http.answer(Certificate)} | http.problems(404),
)
def verify(certificate_uid: str) -> Response[str]:
    as_page = http.prefers_html(app.current_event.headers.get("accept"))
    uid = read_uid(certificate_uid)
    row = db.run(lambda conn: store.by_uid(conn, uid)).fetchone() if uid else None
    if row:
        certificate = row.public()
        body = page.of_certificate(certificate) if as_page else certificate.model_dump_json()
        return http.public_reply(body, html=as_page, policy=page.CONTENT_SECURITY_POLICY)
    error = CertificateNotFound() if uid else MistypedCertificateUid()
    if as_page:
        return http.public_reply(
            page.of_unknown(error.title, error.detail), html=True, status=404, policy=page.CONTENT_SECURITY_POLICY
        )
    raise error


@app.post(
    "/certificates/<certificate_uid>/revoke",
    summary="Revoke a certificate",
    tags=["certificates"],
    security=http.ADMIN_ONLY,
    responses={200: http.answer(OwnCertificate)} | http.problems(403, 404, 422),
)
def revoke(certificate_uid: str, body: Annotated[ReasonBody, Body()]) -> Response[str]:
    actor = str(http.caller(app).user_id)
    return _change(certificate_uid, lambda conn, uid: store.revoke(conn, certificate_uid=uid, reason=body.reason, actor=actor))


@app.post(
    "/certificates/<certificate_uid>/reinstate",
    summary="Make a revoked certificate valid again",
    tags=["certificates"],
    security=http.ADMIN_ONLY,
    responses={200: http.answer(OwnCertificate)} | http.problems(403, 404, 422),
)
def reinstate(certificate_uid: str, body: Annotated[ReasonBody, Body()]) -> Response[str]:
    return _change(certificate_uid, lambda conn, uid: store.reinstate(conn, uid, body.reason))


def _change(certificate_uid: str, change: Any) -> Response[str]:
    """Do it, and answer with the certificate as it is then."""
    uid = read_uid(certificate_uid)
    if uid is None:
        raise MistypedCertificateUid

    def write(conn: db.Connection) -> Any:
        store.lock_enrollment(conn, uid)
        change(conn, uid)
        return store.by_uid(conn, uid)

    row = db.run(write).fetchone()
    if row is None:
        raise CertificateNotFound
    return http.reply(row.own())


@observed("requestContext.requestId")
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return app.resolve(event, context)
