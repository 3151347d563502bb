"""One learner's way from the published course version to the verified certificate."""

import pytest

from shared import settings
from tests.integration.test_invariants import found
from tests.support.service import LEARNER, Service, course, event, quiz


@pytest.mark.parametrize("plain", ["0", "1"], ids=["in one trip", "in plain transactions"])
def test_a_learner_enrols_learns_passes_and_can_prove_it(service: Service, monkeypatch: pytest.MonkeyPatch, plain: str):
    monkeypatch.setenv("DATABASE_PLAIN_TRANSACTIONS", plain)
    monkeypatch.setattr(settings, "plain_transactions", settings.plain_transactions.__wrapped__)
    version = course(lessons=2, quizzes=[quiz()])
    service.send("catalog", event("course_version.published", version))
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada Lovelace"}))
    base = f"/users/me/enrollments/{version['course_version_id']}"

    enrolled = service.http("PUT", base)
    assert enrolled.status == 201, enrolled.text
    assert enrolled.json["status"] == "active"
    assert enrolled.json["progress"] == {
        "progress_percentage": 0.0,
        "lessons_completed": 0,
        "lessons_total": 2,
        "quizzes_passed": 0,
        "quizzes_total": 1,
    }
    assert service.http("PUT", base).status == 200

    first, second = (lesson["lesson_id"] for lesson in version["lessons"])
    half = service.http("PUT", f"{base}/lessons/{first}/progress", {"progress_percentage": 50})
    assert half.status == 200, half.text
    assert half.json["status"] == "in_progress"
    assert service.http("PUT", f"{base}/lessons/{first}/progress", {"status": "completed"}).json["progress_percentage"] == 100
    synced = service.http(
        "POST", f"{base}/progress", {"lessons": [{"lesson_id": second, "status": "completed"}, {"lesson_id": "x"}]}
    )
    assert [r["result"] for r in synced.json["results"]] == ["applied", "refused"]

    needs = service.http("GET", f"{base}/certificate").json
    assert needs["status"] == "not_yet"
    assert [(r["kind"], r["met"]) for r in needs["requirements"]] == [
        ("lesson", True),
        ("lesson", True),
        ("quiz", False),
        ("learner_name", True),
    ]

    attempts = f"{base}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
    started = service.http("POST", attempts)
    assert started.status == 201, started.text
    assert "correct" not in started.text
    assert service.http("POST", attempts).json["id"] == started.json["id"]
    graded = service.http("POST", f"/quiz-attempts/{started.json['id']}/submit", {"answers": {"q1": "a", "q2": "1e-1"}})
    assert graded.status == 200, graded.text
    assert (graded.json["score"], graded.json["is_passed"]) == (100.0, True)

    assert service.http("GET", base).json["status"] == "completed"
    assert service.deliver() == 1
    certificate = service.http("GET", f"{base}/certificate").json
    assert certificate["status"] == "valid"
    page = service.http("GET", f"/certificates/{certificate['certificate_uid']}", sub=None, headers={"accept": "text/html"})
    assert page.status == 200
    assert "Ada Lovelace" in page.text
    sequence = [(e["type"], e["data"]["sequence"]) for e in service.published()]
    assert sequence == [
        ("enrollment.created", 1),
        ("lesson.completed", 2),
        ("lesson.completed", 3),
        ("quiz.graded", 4),
        ("enrollment.completed", 5),
        ("certificate.issued", 6),
    ]
    assert found(service.database_url) == {}
