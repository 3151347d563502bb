"""What each operation costs: statements, and round trips as a proxy before the database sees them."""

import os
from collections.abc import Generator
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared import db, settings
from tests.support.service import LEARNER, Service, course, event, quiz
from tests.support.wire import Wire, counted


@pytest.fixture
def wire(service: Service) -> Generator[Wire]:
    with counted(service.database_url) as wire:
        os.environ["DATABASE_URL"] = wire.url
        settings.database_url.cache_clear()
        db.close()
        yield wire
        db.close()


@pytest.fixture
def version(service: Service) -> dict[str, Any]:
    version = course(lessons=20, required_lessons=2, quizzes=[quiz(required=False)])
    service.send("catalog", event("course_version.published", version))
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada Lovelace"}))
    return version


def cost(wire: Wire) -> tuple[int, int]:
    """Trips and statements since the last look."""
    seen = wire.trips, wire.statements
    wire.reset()
    return seen


def test_no_request_takes_more_than_two_trips_and_reads_and_plain_progress_take_one(
    service: Service, version: dict[str, Any], wire: Wire
):
    base = f"/users/me/enrollments/{version['course_version_id']}"
    quiz_id = version["quizzes"][0]["quiz_id"]
    lessons = [lesson["lesson_id"] for lesson in version["lessons"]]
    service.http("GET", "/health")
    cost(wire)

    assert service.http("PUT", base).status == 201
    trips, statements = cost(wire)
    assert (trips, statements) == (2, 4)

    reads = [
        base,
        "/users/me/enrollments",
        f"{base}/progress",
        f"{base}/certificate",
        "/users/me/certificates",
        f"{base}/quizzes/{quiz_id}/attempts",
        f"{base}/history",
        "/health",
    ]
    for path in reads:
        assert service.http("GET", path).status == 200
        assert cost(wire)[0] == 1, path

    assert service.http("PUT", f"{base}/lessons/{lessons[0]}/progress", {"progress_percentage": 40}).status == 200
    assert cost(wire) == (1, 1)
    assert service.http("PUT", f"{base}/lessons/{lessons[0]}/progress", {"status": "completed"}).status == 200
    assert cost(wire) == (1, 4), "lock, merge, complete, and the row to answer with"
    items = [{"lesson_id": lesson, "status": "completed"} for lesson in lessons[1:]]
    assert service.http("POST", f"{base}/progress", {"lessons": items}).json["enrollment"]["status"] == "completed"
    assert cost(wire) == (1, 4)

    attempts = f"{base}/quizzes/{quiz_id}/attempts"
    cold = service.http("POST", attempts)
    assert cold.status == 201
    assert cost(wire)[0] == 3, "an environment that sees a quiz for the first time reads its key: once"
    submit = f"/quiz-attempts/{cold.json['id']}/submit"
    assert service.http("POST", attempts).status == 200
    assert cost(wire)[0] == 1
    assert service.http("PUT", f"/quiz-attempts/{cold.json['id']}/answers", {"answers": {"q1": "b"}}).status == 200
    assert cost(wire) == (2, 4)
    assert service.http("POST", submit, {"answers": {"q1": "a"}}).status == 200
    assert cost(wire) == (2, 6)
    assert service.http("POST", submit, {"answers": {"q1": "a"}}).status == 200
    assert cost(wire)[0] == 1
    assert service.http("POST", submit, {"answers": {"q1": "b"}}).status == 409
    assert cost(wire)[0] == 1
    assert service.http("GET", f"/quiz-attempts/{cold.json['id']}").status == 200
    assert cost(wire)[0] == 1
    assert service.http("POST", attempts).status == 201
    assert cost(wire) == (2, 3)

    service.deliver()
    cost(wire)
    uid = service.http("GET", f"{base}/certificate").json["certificate_uid"]
    cost(wire)
    assert service.http("GET", f"/certificates/{uid}", sub=None).status == 200
    assert cost(wire)[0] == 1
    for path, body in [
        (f"/certificates/{uid}/revoke", {"reason": "a"}),
        (f"/certificates/{uid}/reinstate", {"reason": "b"}),
        (f"/users/{LEARNER}/enrollments/{version['course_version_id']}/revoke", {"reason": "c", "revoke_certificate": True}),
        (f"/users/{LEARNER}/enrollments/{version['course_version_id']}/reinstate", {"reason": "d"}),
    ]:
        assert service.admin("POST", path, body).status == 200
        assert cost(wire)[0] <= 2, path
    roster = f"/course-versions/{version['course_version_id']}/enrollments"
    assert service.admin("GET", roster).status == 200
    assert cost(wire)[0] == 1
    of_learner = f"/users/{LEARNER}/enrollments/{version['course_version_id']}"
    for method, path, body in [
        ("PUT", f"{of_learner}/requirements/{lessons[0]}/waiver", {"reason": "e"}),
        ("DELETE", f"{of_learner}/requirements/{lessons[0]}/waiver", None),
        ("PUT", f"{of_learner}/quizzes/{quiz_id}/allowance", {"extra_attempts": 1}),
        ("POST", f"{of_learner}/reset", {"reason": "f"}),
    ]:
        assert service.admin(method, path, body).status == 200
        assert cost(wire)[0] == 1, path


def test_refusals_cost_no_more_than_what_is_allowed(service: Service, version: dict[str, Any], wire: Wire):
    base = f"/users/me/enrollments/{uuid4()}"
    service.http("GET", "/health")
    cost(wire)
    assert service.http("GET", base).status == 404
    assert cost(wire)[0] == 1
    assert service.http("PUT", f"{base}/lessons/{uuid4()}/progress", {"progress_percentage": 1}).status == 404
    assert cost(wire)[0] == 1
    assert service.http("POST", f"{base}/revoke", {"reason": "x"}).status == 403
    assert service.http("GET", f"/users/{uuid4()}/enrollments/{version['course_version_id']}").status == 404
    assert service.http("GET", "/certificates/ABCD", sub=None).status == 404
    assert cost(wire)[0] == 0, "refused without a look into the database"


@pytest.mark.parametrize("completing", [False, True])
def test_a_batch_of_a_thousand_events_takes_as_many_statements_as_one_of_ten(
    service: Service, version: dict[str, Any], wire: Wire, completing: bool
):
    learners = [str(UUID(int=n)) for n in range(1, 51)]
    key = {"course_version_id": version["course_version_id"]}
    service.send("enrollment", [event("enrollment.requested", {"user_id": u} | key) for u in learners])
    percentage = 100 if completing else 30
    costs: list[tuple[int, int]] = []
    for size in (10, 1000):
        events = [
            event(
                "lesson.progressed",
                {
                    "user_id": learners[n % 50],
                    "lesson_id": version["lessons"][n // 50]["lesson_id"],
                    "progress_percentage": percentage,
                }
                | key,
            )
            for n in range(size)
        ]
        cost(wire)
        service.send("progress", events)
        costs.append(cost(wire))
    assert costs == [(1, 3 if completing else 1)] * 2
    assert service.rows("SELECT count(*) AS n FROM lesson_progress")[0]["n"] == 1000


def test_attempts_enrolments_and_certificates_take_as_many_statements_for_many_as_for_few(
    service: Service, version: dict[str, Any], wire: Wire
):
    key = {"course_version_id": version["course_version_id"]}
    quiz_id = version["quizzes"][0]["quiz_id"]
    service.send(
        "quiz",
        event("quiz.submitted", {"attempt_id": str(uuid4()), "user_id": str(LEARNER), "quiz_id": quiz_id, "answers": {}} | key),
    )
    costs: dict[str, list[tuple[int, int]]] = {"enrollment": [], "quiz": [], "certificate": []}
    for first, size in ((1, 10), (1000, 1000)):
        learners = [str(UUID(int=first + n)) for n in range(size)]
        batches = {
            "enrollment": [event("enrollment.requested", {"user_id": u} | key) for u in learners],
            "quiz": [
                event(
                    "quiz.submitted", {"attempt_id": str(uuid4()), "user_id": u, "quiz_id": quiz_id, "answers": {"q1": "a"}} | key
                )
                for u in learners
            ],
            "certificate": [event("enrollment.completed", {"user_id": u} | key) for u in learners],
        }
        for queue, events in batches.items():
            cost(wire)
            service.send(queue, events)
            costs[queue].append(cost(wire))
    # The second trip of the certificates asks what is to be drawn and signed.
    assert costs == {"enrollment": [(2, 3)] * 2, "quiz": [(1, 3)] * 2, "certificate": [(2, 7)] * 2}
    assert service.rows("SELECT count(*) AS n FROM quiz_attempts")[0]["n"] == 1010
