"""The examples under events/ do through the real handlers what their names say, in the order of a learner's way."""

import json
from pathlib import Path
from typing import Any

from tests.support.service import Service

#: Each example in the order of a learner's way, and the HTTP status it is answered with (None: not over HTTP).
WAY: list[tuple[str, int | None]] = [
    ("migrate/deployment", None),
    ("report_api/health", 200),
    ("report_api/unknown_path", 404),
    ("catalog_worker/course_version_published", None),
    ("catalog_worker/learner_updated", None),
    ("enrollment_api/enroll", 201),
    ("enrollment_api/enroll_by_administrator", 200),
    ("enrollment_worker/enrollment_requested", None),
    ("enrollment_api/get_enrollment", 200),
    ("enrollment_api/list_enrollments", 200),
    ("progress_api/report_lesson_progress", 200),
    ("progress_api/complete_lesson", 200),
    ("progress_api/sync_progress", 200),
    ("progress_worker/lesson_progressed", None),
    ("progress_api/get_progress", 200),
    ("quiz_api/start_attempt", 201),
    ("quiz_api/save_answers", 200),
    ("quiz_api/submit_attempt", 200),
    ("quiz_worker/quiz_submitted", None),
    ("quiz_api/list_attempts", 200),
    ("quiz_api/get_attempt", 200),
    ("certificate_worker/enrollment_completed", None),
    ("certificate_worker/enrollment_completed_bare", None),
    ("certificate_worker/certificate_revoked", None),
    ("certificate_api/get_enrollment_certificate", 200),
    ("certificate_api/list_certificates", 200),
    ("certificate_api/verify_certificate", 200),
    ("certificate_api/verify_certificate_in_browser", 200),
    ("certificate_api/get_credential", 200),
    ("certificate_api/get_credential_as_jwt", 200),
    ("certificate_api/get_document", 302),
    ("certificate_api/get_status_list", 200),
    ("certificate_api/get_did_document", 200),
    ("certificate_api/get_jwk_set", 200),
    ("certificate_api/revoke_certificate", 200),
    ("certificate_api/reinstate_certificate", 200),
    ("certificate_api/reissue_certificate", 200),
    ("certificate_worker/every_minute", None),
    ("enrollment_api/cancel_enrollment", 409),
    ("enrollment_api/revoke_enrollment", 200),
    ("enrollment_api/reinstate_enrollment", 200),
    ("enrollment_worker/enrollment_cancelled", None),
    ("enrollment_worker/enrollment_revoked", None),
    ("enrollment_worker/enrollment_reinstated", None),
    ("enrollment_worker/bad_among_good", None),
    ("report_api/list_course_version_enrollments", 200),
    ("quiz_api/grant_allowance", 200),
    ("catalog_worker/answer_key_corrected", None),
    ("quiz_api/regrade_quiz", 200),
    ("quiz_api/get_regrade", 200),
    ("enrollment_api/waive_requirement", 200),
    ("enrollment_api/withdraw_waiver", 200),
    ("catalog_worker/new_edition_published", None),
    ("enrollment_api/transfer_enrollment", 201),
    ("enrollment_api/reset_enrollment", 200),
    ("enrollment_api/get_enrollment_history", 200),
]


#: The relay needs AWS, maintenance goes on for as long as it may, and both have tests of their own.
BY_THE_CLOCK = {"outbox_relay/every_minute", "quiz_maintenance/every_minute"}
ATTEMPT = "d9e8f7a6-b5c4-4d3e-8f2a-1b0c9d8e7f66"
REGRADE = "3e2d1c0b-9a8f-4e7d-b6c5-a4f3e2d1c0b9"
UID = "YYHJ-9TCJ-5YM8-KHC5-37NY-A6S2"


def test_every_example_works_in_the_order_of_a_learners_way(service: Service, root: Path):
    files = {f"{path.parent.name}/{path.stem}" for path in (root / "events").glob("*/*.json")}
    assert files == {name for name, _ in WAY} | BY_THE_CLOCK
    answers: dict[str, Any] = {}
    for name, status in WAY:
        text = (root / "events" / f"{name}.json").read_text()
        # Three ids are drawn by the service, so they cannot stand in a file.
        if name in ("quiz_api/save_answers", "quiz_api/submit_attempt"):
            text = text.replace(ATTEMPT, json.loads(answers["quiz_api/start_attempt"]["body"])["id"])
        if name == "quiz_api/get_regrade":
            text = text.replace(REGRADE, json.loads(answers["quiz_api/regrade_quiz"]["body"])["id"])
        for row in service.rows("SELECT certificate_uid FROM certificates"):
            text = text.replace(UID, row["certificate_uid"])
        answers[name] = service.invoke(name.split("/")[0], json.loads(text))
        if status:
            assert answers[name]["statusCode"] == status, (name, answers[name]["body"])
        elif name.split("/")[0].endswith("_worker"):
            assert answers[name] == ({} if name.endswith("every_minute") else {"batchItemFailures": []})
    assert "Fire safety in the office" in answers["certificate_api/verify_certificate_in_browser"]["body"]
    assert json.loads(answers["enrollment_api/reinstate_enrollment"]["body"])["status"] == "completed"
    assert sorted(row["code"] for row in service.dead_letters()) == ["invalid", "malformed", "unknown_type"]
