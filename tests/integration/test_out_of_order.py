"""What arrives late, early or again ends as if it had come in its order."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.support.service import LEARNER, Service, at_once, course, event, quiz

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def at(minutes: int) -> str:
    """A time, minutes from START."""
    return (START + timedelta(minutes=minutes)).isoformat()


def published(service: Service, **fields: Any) -> dict[str, Any]:
    """A course version that the service knows."""
    version = course(lessons=1, **fields)
    service.send("catalog", event("course_version.published", version))
    return version


def settle(service: Service) -> None:
    """Let everything that waits have its next tries, whenever they are due."""
    for _ in range(6):
        service.rows("UPDATE outbox SET available_at = now() WHERE sent_at IS NULL")
        service.deliver()


@pytest.mark.parametrize(
    ("kinds", "status"),
    [
        (("requested", "cancelled", "requested"), "active"),
        (("requested", "requested", "cancelled"), "cancelled_by_user"),
        (("requested", "cancelled", "cancelled"), "cancelled_by_user"),
        (("requested", "revoked", "reinstated"), "active"),
        (("requested", "revoked", "revoked"), "revoked_by_admin"),
        (("requested", "cancelled", "revoked"), "revoked_by_admin"),
    ],
)
def test_commands_end_the_same_in_every_order_of_arrival(service: Service, kinds: tuple[str, ...], status: str):
    for order in itertools.permutations(range(len(kinds))):
        version = published(service)
        key = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
        for n in order:
            service.send("enrollment", event(f"enrollment.{kinds[n]}", key, at(n)))
        settle(service)
        rows = service.rows("SELECT status FROM enrollments WHERE course_version_id = %s", version["course_version_id"])
        assert [row["status"] for row in rows] == [status], order
        assert not service.dead_letters()


def test_a_learner_who_enrols_again_does_not_get_round_a_revocation_on_its_way(service: Service):
    version = published(service)
    key = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    service.send("enrollment", event("enrollment.requested", key, at(0)), event("enrollment.requested", key, at(2)))
    service.send("enrollment", event("enrollment.revoked", key, at(1)))
    assert service.rows("SELECT status FROM enrollments") == [{"status": "revoked_by_admin"}]


def test_what_became_a_dead_letter_is_a_new_complaint_when_it_is_sent_again_and_is_taken_once_it_can_be(service: Service):
    version = published(service)
    report = event(
        "lesson.progressed",
        {
            "user_id": str(LEARNER),
            "course_version_id": version["course_version_id"],
            "lesson_id": version["lessons"][0]["lesson_id"],
            "progress_percentage": 10,
        },
    )
    service.send("progress", report)
    service.rows("UPDATE outbox SET destination = 'dead_letter_queue', sent_at = now()")
    service.send("progress", report)
    waiting = service.rows("SELECT destination, sent_at FROM outbox WHERE body IS NOT NULL")
    assert waiting == [{"destination": "queue", "sent_at": None}]
    service.http("PUT", f"/users/me/enrollments/{version['course_version_id']}")
    settle(service)
    assert [r["progress_percentage"] for r in service.rows("SELECT progress_percentage FROM lesson_progress")] == [10]

    unknown = event("lesson.viewed", {})
    for _ in range(2):
        service.send("progress", unknown)
        assert len(service.rows("SELECT 1 FROM outbox WHERE code = 'unknown_type' AND sent_at IS NULL")) == 1
        service.rows("UPDATE outbox SET sent_at = now()")


def test_a_name_dated_in_the_far_future_counts_as_of_now_and_does_not_stay_for_ever(service: Service):
    about = {"user_id": str(LEARNER)}
    service.send("catalog", event("learner.updated", about | {"name": "Future"}, "2099-01-01T00:00:00Z"))
    service.send("catalog", event("learner.updated", about | {"name": "Later"}))
    assert service.rows("SELECT name FROM learners") == [{"name": "Later"}]


def test_an_earlier_completion_that_shows_up_while_revoked_counts_after_the_reinstatement(service: Service):
    version = published(service)
    key = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    lesson = key | {"lesson_id": version["lessons"][0]["lesson_id"], "status": "completed"}
    service.send("enrollment", event("enrollment.requested", key, at(0)))
    service.send("progress", event("lesson.progressed", lesson, at(20)))
    service.send("enrollment", event("enrollment.revoked", key, at(30)))
    service.send("progress", event("lesson.progressed", lesson, at(10)))
    service.send("enrollment", event("enrollment.reinstated", key, at(40)))
    (row,) = service.rows("SELECT status, completed_at FROM enrollments")
    assert (row["status"], row["completed_at"].isoformat()) == ("completed", at(10))


def test_an_open_attempt_is_closed_to_a_learner_whose_enrolment_ended(service: Service):
    version = published(service, quizzes=[quiz()])
    base = f"/users/me/enrollments/{version['course_version_id']}"
    attempts = f"{base}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
    service.http("PUT", base)
    attempt = service.http("POST", attempts).json["id"]
    service.http("POST", f"{base}/cancel")
    for answer in (
        service.http("POST", attempts),
        service.http("POST", f"/quiz-attempts/{attempt}/submit", {"answers": {}}),
    ):
        assert answer.status == 409
        assert answer.json["type"].endswith("enrollment_inactive")
    assert service.http("POST", attempts, {"x": 1}).status == 422


def test_time_that_ran_out_closes_the_attempt_and_the_next_one_starts(service: Service):
    version = published(service, quizzes=[quiz(time_limit_seconds=60, max_attempts=2)])
    base = f"/users/me/enrollments/{version['course_version_id']}"
    attempts = f"{base}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
    service.http("PUT", base)
    first = service.http("POST", attempts).json["id"]
    back = "UPDATE quiz_attempts SET started_at = started_at - interval '%s s', expires_at = expires_at - interval '%s s'"
    service.rows(back.replace("%s", "80"))
    late_but_on_its_way = service.http("POST", f"/quiz-attempts/{first}/submit", {"answers": {"q1": "a"}})
    assert (late_but_on_its_way.json["in_time"], late_but_on_its_way.json["score"]) == (True, 75)

    second = service.http("POST", attempts).json["id"]
    service.rows(back.replace("%s", "100") + " WHERE completed_at IS NULL")
    for _ in range(2):
        late = service.http("POST", f"/quiz-attempts/{second}/submit", {"answers": {"q1": "a"}})
        assert (late.status, late.json["in_time"], late.json["score"], late.json["answers"]) == (200, False, 0, {})
    none_left = service.http("POST", attempts)
    assert (none_left.status, none_left.json["type"].rsplit(":", 1)[1]) == (409, "no_attempts_left")


def test_an_attempt_that_ran_out_unsubmitted_is_closed_when_the_next_one_starts(service: Service):
    version = published(service, quizzes=[quiz(time_limit_seconds=60, retry_delay_seconds=1000)])
    base = f"/users/me/enrollments/{version['course_version_id']}"
    attempts = f"{base}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
    service.http("PUT", base)
    first = service.http("POST", attempts).json["id"]
    service.rows("UPDATE quiz_attempts SET started_at = now() - interval '900 s', expires_at = now() - interval '840 s'")
    assert service.http("POST", attempts).json["type"].endswith("retry_too_soon")
    service.rows("UPDATE quiz_attempts SET started_at = now() - interval '1100 s', expires_at = now() - interval '1040 s'")
    second = service.http("POST", attempts)
    assert (second.status, second.json["attempt_number"]) == (201, 2)
    closed = service.http("GET", f"/quiz-attempts/{first}").json
    assert (closed["in_time"], closed["score"], closed["completed_at"]) == (False, 0, closed["expires_at"])


def test_of_attempts_started_at_once_one_is_open_and_of_submissions_at_once_one_is_graded(service: Service):
    version = published(service, quizzes=[quiz()])
    data = {
        "user_id": str(LEARNER),
        "course_version_id": version["course_version_id"],
        "quiz_id": version["quizzes"][0]["quiz_id"],
    }
    service.http("PUT", f"/users/me/enrollments/{version['course_version_id']}")
    submissions = [event("quiz.submitted", data | {"attempt_id": str(uuid4()), "answers": {"q1": "a"}}) for _ in range(8)]
    at_once([lambda s=s: service.send("quiz", s) for s in submissions + submissions])
    rows = service.rows("SELECT attempt_number FROM quiz_attempts ORDER BY 1")
    assert [row["attempt_number"] for row in rows] == list(range(1, 9))
    assert len(service.published("quiz.graded")) == 8
    assert not service.dead_letters()
