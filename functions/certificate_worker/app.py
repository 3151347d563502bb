"""Issues certificates, and makes their documents and credentials: the one place where that happens.

Started by messages, and every minute for what could not be made when its message came.
"""

from typing import Any
from uuid import UUID

from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, messages
from shared.certificate import rules, service, store
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

    The events on certificates themselves ask for nothing here: what is to be done for them is in their rows.
    """
    completed = {n: item.event for n, item in enumerate(incoming) if isinstance(item.event.data, EnrollmentCompleted)}
    # Of several events that ask for one certificate, the first one's traceparent is handed on.
    keys: dict[tuple[UUID, UUID], str | None] = {}
    for event in completed.values():
        keys.setdefault((event.data.user_id, event.data.course_version_id), event.traceparent)

    def write(conn: db.Connection) -> Any:
        store.lock_learners(conn, {user_id for user_id, _ in keys})
        db.lock_enrollments(conn, keys)
        return store.issue(conn, [(*key, rules.new_uid(), traceparent) for key, traceparent in keys.items()])

    if not keys:
        return {}
    rows: list[tuple[UUID, UUID, bool]] = db.run(write).fetchall()
    count("CertificatesIssued", sum(is_issued for *_, is_issued in rows))
    unknown = {(user_id, course_version_id) for user_id, course_version_id, is_issued in rows if not is_issued}
    return {
        n: EnrollmentNotFound() for n, event in completed.items() if (event.data.user_id, event.data.course_version_id) in unknown
    }


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    answer = messages.work("certificate", event, MODELS, take) if "Records" in event else {}
    service.finish(context.get_remaining_time_in_millis)
    return answer
