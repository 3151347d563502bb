"""Issues certificates: the one place where that happens."""

from typing import Any
from uuid import UUID

from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, messages
from shared.certificate import rules, store
from shared.certificate.models import CertificateEvent, EnrollmentCompleted
from shared.errors import EnrollmentNotFound, ServiceError
from shared.observability import count, observed

MODELS = {
    "enrollment.completed": EnrollmentCompleted,
    # A completed enrolment that was revoked before its certificate was issued gets it when it is reinstated.
    "enrollment.reinstated": EnrollmentCompleted,
    "certificate.revoked": CertificateEvent,
    "certificate.reinstated": CertificateEvent,
    "certificate.reissued": CertificateEvent,
}


def take(incoming: list[messages.Incoming[Any]]) -> dict[int, ServiceError]:
    """Issue the certificates of completed enrolments, once each; one whose learner has no name yet waits for `learner.updated`.

    The events on certificates themselves ask for nothing: a certificate's state is in its row.
    """
    completed = {n: item.event.data for n, item in enumerate(incoming) if isinstance(item.event.data, EnrollmentCompleted)}
    keys = {(data.user_id, data.course_version_id) for data in completed.values()}

    def write(conn: db.Connection) -> Any:
        store.lock_learners(conn, {user_id for user_id, _ in keys})
        db.lock_enrollments(conn, keys)
        return store.issue(conn, [(*key, rules.new_uid()) for key in keys])

    if not keys:
        return {}
    rows: list[tuple[UUID, UUID, bool]] = db.run(write).fetchall()
    count("CertificatesIssued", sum(is_issued for *_, is_issued in rows))
    unknown = {(user_id, course_version_id) for user_id, course_version_id, is_issued in rows if not is_issued}
    return {n: EnrollmentNotFound() for n, data in completed.items() if (data.user_id, data.course_version_id) in unknown}


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return messages.work("certificate", event, MODELS, take)
