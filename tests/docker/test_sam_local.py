"""The built functions in the SAM CLI's containers, against the database and the stand-ins of the local service."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from local.child import snake
from local.run import COURSE_VERSION, COURSE_VERSION_ID
from local.service import LEARNER_ID
from tests.docker.sam import Sam, noted
from tests.integration.test_event_files import ATTEMPT, BY_THE_CLOCK, REGRADE, UID, WAY
from tests.support.service import event, record

pytestmark = pytest.mark.timeout(900)

#: A function, one of its examples, and what is in its answer.
ONE_EACH: list[tuple[str, str, dict[str, Any]]] = [
    ("CatalogWorker", "course_version_published", {"batchItemFailures": []}),
    ("CertificateApi", "get_did_document", {"statusCode": 200}),
    ("CertificateWorker", "every_minute", {}),
    ("EnrollmentApi", "enroll_by_administrator", {"statusCode": 201}),
    ("EnrollmentWorker", "enrollment_requested", {"batchItemFailures": []}),
    ("OutboxRelay", "every_minute", {"failed": 0}),
    ("ProgressApi", "get_progress", {"statusCode": 200}),
    ("ProgressWorker", "lesson_progressed", {"batchItemFailures": []}),
    ("QuizApi", "start_attempt", {"statusCode": 201}),
    ("QuizMaintenance", "every_minute", {"steps": 0}),
    ("QuizWorker", "quiz_submitted", {"batchItemFailures": []}),
    ("ReportApi", "list_course_version_enrollments", {"statusCode": 200}),
]


def test_one_invocation_of_each_function(cli: Sam, root: Path) -> None:
    migrated = cli.invoke("Migrate", root / "events" / "migrate" / "deployment.json")
    # The service has migrated already; the version is that of the last file.
    assert migrated == {"applied": [], "version": max(path.stem for path in (root / "migrations").glob("*.sql"))}
    for function, name, expected in ONE_EACH:
        answer = cli.invoke(function, root / "events" / snake(function) / f"{name}.json")
        assert (answer or {}) | expected == (answer or {}), (function, answer)


def test_every_example_through_start_lambda(cli: Sam, root: Path) -> None:
    answers: dict[str, Any] = {}
    with cli.start("start-lambda") as client, psycopg.connect(cli.environment["DATABASE_URL"], autocommit=True) as conn:
        for name, status in [*WAY, *((name, None) for name in sorted(BY_THE_CLOCK))]:
            text = (root / "events" / f"{name}.json").read_text()
            # Three ids are drawn by the service, so they cannot stand in a file.
            if "quiz_api/start_attempt" in answers:
                text = text.replace(ATTEMPT, json.loads(answers["quiz_api/start_attempt"]["body"])["id"])
            if "quiz_api/regrade_quiz" in answers:
                text = text.replace(REGRADE, json.loads(answers["quiz_api/regrade_quiz"]["body"])["id"])
            for (uid,) in conn.execute("SELECT certificate_uid FROM certificates"):
                text = text.replace(UID, uid)
            folder = name.split("/")[0]
            function = folder.title().replace("_", "")
            began = time.monotonic()
            answered = client.post(f"/2015-03-31/functions/{function}/invocations", content=text)
            noted("start-lambda", began)
            assert "X-Amz-Function-Error" not in answered.headers, (name, answered.text)
            answers[name] = answered.json()
            if status:
                # What the test before has made new is there by now.
                assert answers[name]["statusCode"] in {status, 200 if status == 201 else status}, (name, answers[name]["body"])
            elif folder.endswith("_worker"):
                assert answers[name] == ({} if name.endswith("every_minute") else {"batchItemFailures": []})
    assert "Fire safety in the office" in answers["certificate_api/verify_certificate_in_browser"]["body"]
    assert json.loads(answers["enrollment_api/reinstate_enrollment"]["body"])["status"] == "completed"


def test_a_learner_s_whole_way_through_start_api(cli: Sam) -> None:
    lessons = [lesson["lesson_id"] for lesson in COURSE_VERSION["lessons"]]
    (quiz,) = COURSE_VERSION["quizzes"]
    base = f"/users/me/enrollments/{COURSE_VERSION_ID}"
    with cli.start("start-lambda") as functions, cli.start("start-api") as api:

        def send(function: str, *events: dict[str, Any]) -> None:
            began = time.monotonic()
            payload = {"Records": [record(json.dumps(each)) for each in events]}
            answered = functions.post(f"/2015-03-31/functions/{function}/invocations", json=payload)
            noted("start-lambda", began)
            assert answered.json() == {"batchItemFailures": []}

        def call(method: str, path: str, body: Any = None, accept: str = "application/json") -> httpx.Response:
            began = time.monotonic()
            headers = {"Authorization": f"Bearer {cli.environment['LEARNER_TOKEN']}", "Accept": accept}
            answered = api.request(method, path, json=body, headers=headers)
            noted("start-api", began)
            return answered

        send("CatalogWorker", event("course_version.published", COURSE_VERSION))
        send("CatalogWorker", event("learner.updated", {"user_id": LEARNER_ID, "name": "Ada Lovelace"}))
        enrolled = call("PUT", base)
        assert enrolled.status_code == 201, enrolled.text
        assert call("PUT", f"{base}/lessons/{lessons[0]}/progress", {"status": "completed"}).json()["status"] == "completed"
        ids = {"user_id": LEARNER_ID, "course_version_id": COURSE_VERSION_ID}
        send("ProgressWorker", event("lesson.progressed", ids | {"lesson_id": lessons[1], "status": "completed"}))
        started = call("POST", f"{base}/quizzes/{quiz['quiz_id']}/attempts")
        assert started.status_code == 201, started.text
        attempt = f"/quiz-attempts/{started.json()['id']}"
        graded = call("POST", f"{attempt}/submit", {"answers": {"q1": "a", "q2": "2", "q3": " North "}})
        assert (graded.json()["score"], graded.json()["is_passed"]) == (100, True)
        assert call("GET", base).json()["status"] == "completed"
        send("CertificateWorker", event("enrollment.completed", ids | {"status": "completed", "sequence": 5}))
        certificate = call("GET", f"{base}/certificate").json()
        assert certificate["status"] == "valid"
        address = f"/certificates/{certificate['certificate_uid']}"
        assert "Ada Lovelace" in call("GET", address, accept="text/html").text
        assert call("GET", address, accept="application/vc").json()["proof"][0]["cryptosuite"] == "eddsa-rdfc-2022"
        document = call("GET", address, accept="application/pdf")
        if document.status_code == 302:
            document = httpx.get(document.headers["location"])
        assert document.content.startswith(b"%PDF-")
        assert api.get("/certificates/nothing").status_code == 404
