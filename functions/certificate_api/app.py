"""Certificates over HTTP: for their learners, for administrators, and for strangers who verify one."""

from typing import Annotated, Any
from uuid import UUID, uuid4

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.openapi.params import Body, Path
from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, http, settings
from shared.certificate import page, store, texts
from shared.certificate.models import Certificate, CertificatePage, NotYet, OwnCertificate, ReasonBody, Requirement
from shared.certificate.rules import read_uid
from shared.errors import (
    CertificateNotFound,
    EnrollmentNotFound,
    MistypedCertificateUid,
    NotFound,
    NotSignedYet,
    StatusListNotFound,
)
from shared.observability import logger, observed
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


#: What a certificate is shown as, by media type and by the ending of its address; the first one where nothing else is asked for.
FORMS = {
    "application/json": ".json",
    "text/html": ".html",
    "application/vc": ".vc",
    "application/vc+ld+json": ".vc",
    "application/vc+jwt": ".jwt",
    "application/pdf": ".pdf",
    "image/png": ".png",
}
ENDINGS = {ending: media_type for media_type, ending in reversed(FORMS.items())}


@app.get(
    "/certificates/<certificate_uid>",
    summary="Verify a certificate",
    description=(
        "For anyone. By the Accept header: JSON, the verification page (text/html), the Open Badges 3.0 credential "
        "(application/vc, application/vc+ld+json) or the same as JWT (application/vc+jwt), the document (application/pdf; "
        "mostly a redirect to it) or a picture (image/png). An ending of the path, such as .pdf, says the same to whoever can "
        "set no header: .json, .html, .vc, .jwt, .pdf, .png."
    ),
    tags=["certificates"],
    responses={200: http.answer(Certificate, also=list(FORMS)), 302: http.answer(None, "Where the document is, for five minutes")}
    | http.problems(404, 503),
)
def verify(certificate_uid: str):
    # No type of return: Powertools would take the bytes of a document for text.
    headers = app.current_event.headers
    text, dot, ending = certificate_uid.partition(".")
    accepted = http.preferred(headers.get("accept"), list(FORMS))
    form = ENDINGS.get(dot + ending.lower()) if dot else accepted
    uid = read_uid(text) if form else None
    row = db.run(lambda conn: store.by_uid(conn, uid)).fetchone() if uid else None
    if row is None:
        return _no_certificate(mistyped=uid is None, as_page=(form or accepted) == "text/html")
    match form:
        case "text/html":
            language = texts.choose(headers.get("accept-language"), row.locale)
            return _page(page.of_certificate(row.public(), language), language)
        case "image/png":
            from shared.certificate import document

            language = texts.choose(headers.get("accept-language"), row.locale)
            return _public(document.picture(row.public(), language), "image/png", headers={"Content-Language": language})
        case "application/pdf":
            return _document(row)
        case "application/vc" | "application/vc+ld+json":
            return _credential(row.credential, form)
        case "application/vc+jwt":
            return _credential(row.credential_jwt, form)
        case _:
            return _public(row.public().model_dump_json())


def _public(body: str | bytes, content_type: str = "application/json", **options: Any) -> Response[Any]:
    varying = {"Vary": "Accept, Accept-Language"} | options.pop("headers", {})
    return http.public_reply(app, body, content_type, headers=varying, **options)


def _page(body: str, language: str, status: int = 200) -> Response[Any]:
    headers = {"Content-Language": language, "Content-Security-Policy": page.CONTENT_SECURITY_POLICY}
    return _public(body, "text/html; charset=utf-8", status=status, headers=headers)


def _no_certificate(*, mistyped: bool, as_page: bool) -> Response[Any]:
    if as_page:
        language = texts.choose(app.current_event.headers.get("accept-language"), None)
        return _page(page.of_unknown("mistyped" if mistyped else "unknown", language), language, 404)
    raise MistypedCertificateUid if mistyped else CertificateNotFound


def _credential(signed: str | None, media_type: str) -> Response[Any]:
    """The signed credential as it is kept; a revoked or expired one too, since it says itself where its state is to be had."""
    if signed is None:
        raise NotSignedYet
    return _public(signed, media_type)


def _document(row: store.Shown) -> Response[Any]:
    """A link to the document that is kept, or the document itself: where it is not there, and where it must say more.

    The one that is kept says nothing of a revocation.
    """
    from shared.certificate import document

    certificate = row.public()
    if certificate.revoked_at is None and row.pdf_url:
        link = _link(row, row.pdf_url)
        if link:
            return Response(302, headers={"Location": link})
    return _public(document.pdf(certificate, row.locale), "application/pdf", max_age=0)


def _link(row: store.Shown, pdf_url: str) -> str | None:
    """A link to the document that is kept; None if it can't be had now. One that is gone is made again."""
    from botocore.exceptions import BotoCoreError, ClientError

    from shared.certificate import storage

    try:
        if storage.exists(pdf_url):
            return storage.link(pdf_url)
    except (BotoCoreError, ClientError) as error:
        logger.warning("the store of documents does not answer", reason=str(error))
        return None
    db.run(lambda conn: store.document_is_gone(conn, row.id, pdf_url))
    return None


@app.get(
    "/status-lists/<number>",
    summary="Which credentials of a status list are revoked",
    description="For anyone: a signed BitstringStatusListCredential. It tells of a revocation within a minute.",
    tags=["verification"],
    responses={200: http.answer(also=["application/vc"])} | http.problems(404, 422),
)
def status_list(number: Annotated[str, Path(pattern=r"^(0|[1-9][0-9]{0,8})$")]) -> Response[Any]:
    row = db.run(lambda conn: store.status_list(conn, int(number))).fetchone()
    if row is None:
        raise StatusListNotFound
    return http.public_reply(app, row[0], "application/vc", max_age=15)


@app.get(
    "/.well-known/did.json",
    summary="The issuer's DID document",
    description="For anyone: the keys that credentials were ever signed by, as did:web (https://w3c-ccg.github.io/did-method-web/).",
    tags=["verification"],
    responses={200: http.answer(also=["application/did+json"])},
)
def did_document() -> Response[Any]:
    from shared.certificate import credential

    keys = db.run(store.signing_keys).fetchall()
    document = credential.did_document(settings.public_base_url(), keys)
    return http.public_reply(app, credential.text(document), "application/did+json")


@app.get(
    "/.well-known/jwks.json",
    summary="The issuer's keys as a JWK Set",
    description="For anyone: the same keys as in the DID document (RFC 7517).",
    tags=["verification"],
    responses={200: http.answer(also=["application/jwk-set+json"])},
)
def jwk_set() -> Response[Any]:
    from shared.certificate import credential

    keys = db.run(store.signing_keys).fetchall()
    return http.public_reply(
        app, credential.text(credential.jwk_set(settings.public_base_url(), keys)), "application/jwk-set+json"
    )


@app.post(
    "/certificates/<certificate_uid>/revoke",
    summary="Revoke a certificate",
    tags=["certificates"],
    security=http.ADMIN_ONLY,
    responses={200: http.answer(OwnCertificate)} | http.problems(403, 404, 422),
)
def revoke(certificate_uid: str, body: Annotated[ReasonBody, Body()]) -> Response[str]:
    return _change(certificate_uid, store.revoke, body.reason)


@app.post(
    "/certificates/<certificate_uid>/reinstate",
    summary="Make a revoked certificate valid again",
    tags=["certificates"],
    security=http.ADMIN_ONLY,
    responses={200: http.answer(OwnCertificate)} | http.problems(403, 404, 422),
)
def reinstate(certificate_uid: str, body: Annotated[ReasonBody, Body()]) -> Response[str]:
    return _change(certificate_uid, store.reinstate, body.reason)


@app.post(
    "/certificates/<certificate_uid>/reissue",
    summary="Issue a certificate anew under its uid, with the learner's name as it is now",
    tags=["certificates"],
    security=http.ADMIN_ONLY,
    responses={200: http.answer(OwnCertificate)} | http.problems(403, 404, 422),
)
def reissue(certificate_uid: str, body: Annotated[ReasonBody, Body()]) -> Response[str]:
    return _change(certificate_uid, store.reissue, body.reason)


def _change(certificate_uid: str, change: Any, reason: str) -> Response[str]:
    """Do it, and answer with the certificate as it is then."""
    uid = read_uid(certificate_uid)
    act, actor = uuid4(), str(http.caller(app).user_id)
    if uid is None:
        raise MistypedCertificateUid

    def write(conn: db.Connection) -> Any:
        store.lock_enrollment(conn, uid)
        change(conn, uid, act=act, reason=reason, actor=actor)
        return store.by_uid(conn, uid)

    row = db.run(write).fetchone()
    if row is None:
        raise CertificateNotFound
    return http.reply(row.own())


@observed(http=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return app.resolve(event, context)
