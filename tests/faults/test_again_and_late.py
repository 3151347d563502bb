"""A learner's whole life, with every message twice or ten times, in any order, days late, and by clocks that are wrong."""

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from tests.faults.conftest import note
from tests.faults.scenes import Scene
from tests.support import whole
from tests.support.service import Service, course, event, quiz

START = datetime(2026, 1, 5, 9, tzinfo=UTC)


def life(scene: Scene, shift: timedelta) -> list[tuple[str, dict[str, Any]]]:
    """All messages of a life: two courses, a cancellation and a second start, quizzes, a correction, a revocation taken back."""
    at = iter((START + shift + timedelta(minutes=10 * n)).isoformat() for n in range(100))
    lessons = scene.version["lessons"]
    quizzes = {"quiz_id": scene.quiz_id}
    messages: list[tuple[str, dict[str, Any]]] = []

    def tell(queue: str, type_: str, **data: Any) -> None:
        messages.append((queue, event(type_, data, next(at))))

    tell("catalog", "course_version.published", **scene.version)
    tell("catalog", "learner.updated", user_id=scene.user, name="Ada")
    tell("enrollment", "enrollment.requested", **scene.ids)
    tell("progress", "lesson.progressed", **scene.ids, lesson_id=lessons[0]["lesson_id"], progress_percentage=30)
    tell("enrollment", "enrollment.cancelled", **scene.ids)
    tell("enrollment", "enrollment.requested", **scene.ids)
    tell("progress", "lesson.progressed", **scene.ids, lesson_id=lessons[0]["lesson_id"], progress_percentage=100)
    tell("quiz", "quiz.submitted", **scene.ids, **quizzes, attempt_id=str(uuid4()), answers={"q2": 1})
    tell("quiz", "quiz.submitted", **scene.ids, **quizzes, attempt_id=str(uuid4()), answers={"q1": "a"})
    tell("progress", "lesson.progressed", **scene.ids, lesson_id=lessons[1]["lesson_id"], status="completed")
    questions = [scene.version["quizzes"][0]["questions"][1] | {"correct": 1}]
    tell("catalog", "quiz.answer_key_corrected", **scene.ids, **quizzes, questions=questions)
    tell("catalog", "learner.updated", user_id=scene.user, name="Ada Lovelace")
    return messages


def settle(scene: Scene) -> None:
    """Everything that waits has its tries, and what the clock does is done."""
    for _ in range(8):
        scene.service.rows("UPDATE outbox SET available_at = now() WHERE sent_at IS NULL")
        if not scene.service.deliver():
            break
    scene.next_minute()


def end(scene: Scene) -> dict[str, Any]:
    """What is left in the end, but for the numbers of what was told, which follow the order of arrival."""
    settle(scene)
    left = scene.footprint()
    left["set apart"] = [row for row in left["set apart"] if row["code"] in ("invalid", "malformed", "unknown_type")]
    left["attempts"] = sorted((row["score"], row["is_passed"]) for row in left["attempts"])
    left["enrollments"] = [{name: row[name] for name in ("status", "completed")} for row in left["enrollments"]]
    for name in ("history", "published", "regrades"):
        del left[name]
    return left


def fresh(service: Service) -> Scene:
    return Scene(service, version=course(lessons=2, quizzes=[quiz()]), is_known=False)


def send(service: Service, messages: list[tuple[str, dict[str, Any]]]) -> None:
    """Each message alone, or some of a queue's together, as SQS would."""
    while messages:
        queue, first = messages.pop(0)
        batch = [first]
        while messages and messages[0][0] == queue and len(batch) < 10:
            batch.append(messages.pop(0)[1])
        service.send(queue, *[json.dumps(one) for one in batch])


@pytest.mark.parametrize("times", [1, 2, 10])
@pytest.mark.parametrize("clock", [timedelta(0), timedelta(hours=-1), timedelta(days=-30)], ids=["right", "behind", "late"])
def test_messages_again_and_in_any_order_end_as_once_in_theirs(service: Service, times: int, clock: timedelta):
    expected = fresh(service)
    send(service, life(expected, clock))
    in_order = end(expected)
    assert in_order["enrollments"] == [{"status": "completed", "completed": True}]
    assert len(in_order["certificates"]) == 1
    for seed in range(1 if times == 10 else 2):
        scene = fresh(service)
        messages = life(scene, clock) * times
        random.Random(seed).shuffle(messages)
        note(f"messages {times} times, shuffled", "a life over all queues", cases=len(messages))
        send(service, messages)
        assert end(scene) == in_order, seed
    assert whole.broken(service) == {}


def test_a_clock_an_hour_ahead_counts_as_now_and_holds_nobody_up(service: Service):
    scene = fresh(service)
    ahead = datetime.now(UTC) + timedelta(hours=1) - START
    send(service, life(scene, ahead))
    # Commands dated more than five minutes ahead are refused; the rest is taken as of now.
    settle(scene)
    refused = service.rows("SELECT code FROM outbox WHERE destination = 'dead_letter_queue'")
    assert {row["code"] for row in refused} >= {"future_command"}
    scene.enrol()
    for _, message in (message for message in life(scene, ahead) if message[0] in ("progress", "quiz")):
        queue = "progress" if message["type"] == "lesson.progressed" else "quiz"
        service.send(queue, message)
    settle(scene)
    (row,) = service.rows("SELECT completed_at <= now() AS is_past, status FROM enrollments WHERE user_id = %s", scene.user)
    assert row == {"is_past": True, "status": "completed"}
    assert whole.broken(service) == {}
    note("clock an hour ahead", "a life over all queues")
