"""Quiz attempts that a producer administered, as `quiz.submitted` brings them."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared import db
from tests.support.service import LEARNER, Service, course, event, quiz, record

RIGHT, HALF, WRONG = {"q1": "a", "q2": 0.1}, {"q1": "a"}, {"q1": "b", "q2": 5}


@pytest.fixture
def version(service: Service) -> dict[str, Any]:
    """A course version of two quizzes, of which the first is required, with the learner enrolled."""
    version = course(lessons=0, quizzes=[quiz(max_attempts=1, retry_delay_seconds=3600), quiz(required=False)])
    service.send("catalog", event("course_version.published", version))
    enroll(service, version)
    return version


def enroll(service: Service, version: dict[str, Any], user_id: UUID = LEARNER) -> None:
    ids = {"user_id": str(user_id), "course_version_id": version["course_version_id"]}
    service.send("enrollment", event("enrollment.requested", ids, "2026-01-01T00:00:00Z"))


def submitted(version: dict[str, Any], answers: Any, *, quiz: int = 0, time: str | None = None, **data: Any) -> dict[str, Any]:
    """An attempt, by the learner unless said otherwise, with an id of its own unless given."""
    ids = {
        "attempt_id": str(uuid4()),
        "user_id": str(LEARNER),
        "course_version_id": version["course_version_id"],
        "quiz_id": version["quizzes"][quiz]["quiz_id"],
    }
    return event("quiz.submitted", ids | {"answers": answers} | data, time)


def attempts(service: Service) -> list[dict[str, Any]]:
    """The attempts with the text of their answers, in the order of their numbers."""
    return service.rows("SELECT *, answers_snapshot::text AS answers FROM quiz_attempts ORDER BY quiz_id, attempt_number")


def status(service: Service) -> str:
    return service.rows("SELECT status FROM enrollments WHERE user_id = %s", LEARNER)[0]["status"]


def codes(service: Service) -> list[str]:
    return [letter["code"] for letter in service.dead_letters()]


def test_an_attempt_is_graded_once_however_often_it_comes(service: Service, version: dict[str, Any]):
    first = submitted(version, HALF)
    again = first | {"id": str(uuid4()), "source": "replay"}
    service.send("quiz", [first, again], first)
    service.send("quiz", again)
    (attempt,) = attempts(service)
    assert (attempt["score"], attempt["is_passed"], attempt["attempt_number"]) == (75.0, True, 1)
    assert str(attempt["id"]) == first["data"]["attempt_id"]
    assert len(service.published("quiz.graded")) == 1
    assert codes(service) == []


@pytest.mark.parametrize("repetition_first", [False, True])
def test_a_try_is_not_lost_that_comes_together_with_a_repetition(
    service: Service, version: dict[str, Any], repetition_first: bool
):
    early = submitted(version, HALF, user_id=str(uuid4()))
    service.send("quiz", early)
    body = json.dumps(early)
    both = [record(body, {"tries": "1"}), record(body)]
    service.invoke("quiz_worker", {"Records": both[::-1] if repetition_first else both})
    (waiting,) = service.rows("SELECT destination, tries FROM outbox WHERE body IS NOT NULL")
    assert (waiting["destination"], waiting["tries"]) == ("queue", 2)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "difference", [{"answers": WRONG}, {"answers": HALF | {"q3": True}}, {"user_id": "other"}, {"quiz": 1}], ids=str
)
def test_the_id_of_an_attempt_stands_for_one_learners_answers_to_one_quiz(
    service: Service, version: dict[str, Any], difference: dict[str, Any], together: bool
):
    other = uuid4()
    enroll(service, version, other)
    first = submitted(version, HALF)
    data: dict[str, Any] = {"answers": HALF, "attempt_id": first["data"]["attempt_id"]} | difference
    if "user_id" in difference:
        data["user_id"] = str(other)
    second = submitted(version, **data)
    if together:
        service.send("quiz", [first, second, submitted(version, RIGHT)])
    else:
        service.send("quiz", first)
        service.send("quiz", second, submitted(version, RIGHT))
    assert [(letter["code"], json.loads(letter["body"])) for letter in service.dead_letters()] == [("attempt_id_taken", second)]
    assert [(attempt["user_id"], attempt["score"]) for attempt in attempts(service)] == [(LEARNER, 75.0), (LEARNER, 100.0)]


def test_answers_that_cannot_be_taken_do_not_use_up_the_id_of_their_attempt(service: Service, version: dict[str, Any]):
    wrong = submitted(version, {"q1": ["a"]})
    right = submitted(version, RIGHT, attempt_id=wrong["data"]["attempt_id"])
    service.send("quiz", [wrong, right])
    assert [(letter["code"], letter["reason"]) for letter in service.dead_letters()] == [
        ("invalid", "#/data/answers/q1: expected a choice id (text)")
    ]
    assert [attempt["score"] for attempt in attempts(service)] == [100.0]


def test_attempts_are_numbered_as_they_arrive_and_none_is_too_many_or_too_soon(service: Service, version: dict[str, Any]):
    late, early = "2026-03-01T00:00:00Z", "2026-02-01T00:00:00Z"
    # Neither ids nor times follow the order of arrival.
    first, second, third = (str(UUID(int=n)) for n in (3, 2, 1))
    service.send(
        "quiz",
        [submitted(version, WRONG, attempt_id=first, time=late), submitted(version, HALF, attempt_id=second, time=early)],
        submitted(version, RIGHT, attempt_id=third),
    )
    service.send("quiz", submitted(version, WRONG), submitted(version, RIGHT, quiz=1))
    numbers = {str(quiz["quiz_id"]): [] for quiz in version["quizzes"]}
    for attempt in attempts(service):
        numbers[str(attempt["quiz_id"])].append((attempt["attempt_number"], attempt["score"]))
    assert list(numbers.values()) == [[(1, 0.0), (2, 75.0), (3, 100.0), (4, 0.0)], [(1, 100.0)]]
    graded = [e["data"] for e in service.published("quiz.graded")]
    assert len({(e["quiz_id"], e["attempt_number"]) for e in graded}) == 5
    assert len({e["sequence"] for e in service.published() for e in [e["data"]]}) == len(service.published())


def test_an_open_attempt_stays_open_beside_one_that_arrives(service: Service, version: dict[str, Any]):
    path = f"/users/me/enrollments/{version['course_version_id']}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
    started = service.http("POST", path)
    assert started.status == 201, started.text
    service.send("quiz", submitted(version, WRONG))
    assert [(a["attempt_number"], a["completed_at"] is None) for a in attempts(service)] == [(1, True), (2, False)]
    done = service.http("POST", f"/quiz-attempts/{started.json['id']}/submit", {"answers": RIGHT})
    assert (done.status, done.json["score"]) == (200, 100.0)
    # What was started over HTTP may not come by the queue as well, with other answers.
    service.send("quiz", submitted(version, WRONG, attempt_id=started.json["id"]))
    assert codes(service) == ["attempt_id_taken"]


def test_the_best_attempt_counts_and_a_later_failure_undoes_nothing(service: Service, version: dict[str, Any]):
    for answers in (WRONG, RIGHT, HALF, WRONG):
        service.send("quiz", submitted(version, answers))
    assert status(service) == "completed"
    progress = service.http("GET", f"/users/me/enrollments/{version['course_version_id']}/progress").json
    assert [(q["best_score"], q["is_passed"], q["attempts"]) for q in progress["quizzes"]] == [(100.0, True, 4), (None, False, 0)]
    assert len(service.published("enrollment.completed")) == 1


def test_a_key_that_was_corrected_meanwhile_grades_also_where_the_old_one_is_in_memory(service: Service, version: dict[str, Any]):
    service.send("quiz", submitted(version, WRONG))
    quiz_id = version["quizzes"][0]["quiz_id"]
    service.rows(
        """
        INSERT INTO quiz_answer_keys (course_version_id, quiz_id, key_version, questions)
        SELECT course_version_id, quiz_id, 2, jsonb_set(questions, '{0,correct}', '"b"') FROM quiz_answer_keys WHERE quiz_id = %s
        """,
        quiz_id,
    )
    service.rows("UPDATE course_version_quizzes SET key_version = 2 WHERE quiz_id = %s", quiz_id)
    service.send("quiz", [submitted(version, WRONG), submitted(version, RIGHT, quiz=1)], submitted(version, RIGHT))
    graded = {(a["key_version"], a["attempt_number"], a["score"]) for a in attempts(service) if str(a["quiz_id"]) == quiz_id}
    assert graded == {(1, 1, 0.0), (2, 2, 75.0), (2, 3, 25.0)}
    assert [a["key_version"] for a in attempts(service) if str(a["quiz_id"]) != quiz_id] == [1]
    assert codes(service) == []


def test_an_enrolment_completes_once_by_many_passes_at_once(service: Service, version: dict[str, Any]):
    together = threading.Barrier(4)

    def submit(_: int) -> None:
        together.wait(timeout=30)
        service.send("quiz", [submitted(version, RIGHT), submitted(version, HALF)])
        db.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(submit, range(4)))
    assert [attempt["attempt_number"] for attempt in attempts(service)] == list(range(1, 9))
    assert len(service.published("enrollment.completed")) == 1
    assert sorted(e["data"]["sequence"] for e in service.published()) == list(range(1, 11))
    assert codes(service) == []


@pytest.mark.parametrize(("command", "becomes"), [("cancelled", "completed"), ("revoked", "revoked_by_admin")])
def test_what_ended_before_the_cancellation_is_taken_and_what_came_later_is_not(
    service: Service, version: dict[str, Any], command: str, becomes: str
):
    ids = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    known = submitted(version, WRONG, time="2026-01-10T00:00:00Z")
    service.send("quiz", known)
    service.send("enrollment", event(f"enrollment.{command}", ids, "2026-02-01T00:00:00Z"))
    later = submitted(version, RIGHT, time="2026-02-01T00:00:01Z")
    service.send("quiz", later, known)
    assert [(letter["code"], json.loads(letter["body"])) for letter in service.dead_letters()] == [("enrollment_inactive", later)]

    # It ended in time, though it was sent later.
    in_time = submitted(version, RIGHT, time="2026-02-03T00:00:00Z", completed_at="2026-02-01T00:00:00Z")
    service.send("quiz", in_time)
    assert len(attempts(service)) == 2
    assert status(service) == becomes
    completed_at = service.rows("SELECT completed_at FROM enrollments")[0]["completed_at"]
    assert completed_at == (datetime(2026, 2, 1, tzinfo=UTC) if command == "cancelled" else None)
    assert len(codes(service)) == 1


@pytest.mark.parametrize(
    ("threshold", "is_passed"),
    [
        ("66.66", True),
        ("66.67", False),
        ("66.66666666666666", True),
        ("66.66666666666667", False),
        ("66.6666666666666666666667", False),
    ],
)
def test_a_score_of_two_thirds_is_compared_exactly(service: Service, threshold: str, is_passed: bool):
    question = {"kind": "numeric", "prompt": "?", "points": 1, "correct": 1}
    version = course(lessons=0, quizzes=[quiz(questions=[question | {"question_id": f"q{n}"} for n in range(3)])])
    text = json.dumps(event("course_version.published", version))
    assert '"pass_threshold_percentage": 50' in text
    service.send("catalog", text.replace('"pass_threshold_percentage": 50', f'"pass_threshold_percentage": {threshold}'))
    enroll(service, version)
    service.send("quiz", submitted(version, {"q0": 1, "q1": "1.0", "q2": 2}))
    (attempt,) = attempts(service)
    assert (attempt["score"], attempt["is_passed"]) == (200 / 3, is_passed)
    assert str(attempt["pass_threshold_percentage"]) == threshold
    assert [r["points_earned"] for r in attempt["question_results"]] == ["1", "1", "0"]


def test_the_answers_are_kept_as_submitted_to_the_last_digit(service: Service, version: dict[str, Any]):
    answers = '{"q2": 1.0, "q1": "a", "note": {"n": [12345678901234567890.5, 1.10, 0.1000000000000000000001], "é": null}}'
    text = json.dumps(submitted(version, "ANSWERS")).replace('"ANSWERS"', answers)
    service.send("quiz", text)
    (attempt,) = attempts(service)
    numbers = "[12345678901234567890.5, 1.10, 0.1000000000000000000001]"
    assert attempt["answers"] == f'{{"q1": "a", "q2": 1.0, "note": {{"n": {numbers}, "é": null}}}}'
    # The same value written otherwise is the same answer, another value is not.
    service.send("quiz", text.replace('"q2": 1.0', '"q2": 1'))
    assert codes(service) == []
    service.send("quiz", text.replace("12345678901234567890.5", "12345678901234567890.6"))
    assert codes(service) == ["attempt_id_taken"]
    assert [a["answers"] for a in attempts(service)] == [attempt["answers"]]


@pytest.mark.parametrize(("answer", "score"), [("0.1", 25.0), ("0.10", 25.0), ("0.1000000000000000000001", 0.0)])
def test_a_number_is_graded_by_its_decimal_value(service: Service, version: dict[str, Any], answer: str, score: float):
    service.send("quiz", json.dumps(submitted(version, {"q2": "N"})).replace('"N"', answer))
    assert [attempt["score"] for attempt in attempts(service)] == [score]


@pytest.mark.parametrize(
    ("answers", "place"),
    [
        ({"q1": 5}, "#/data/answers/q1: expected a choice id (text)"),
        ({"q2": ["0.1"]}, "#/data/answers/q2: expected a number"),
        ({"q1": "a\x00"}, "#/data/answers/q1: the character U+0000"),
        ([], "#/data/answers: expected an object"),
        (None, "#/data/answers: expected an object"),
    ],
)
def test_an_answer_of_the_wrong_shape_is_refused_with_its_place(
    service: Service, version: dict[str, Any], answers: Any, place: str
):
    service.send("quiz", [submitted(version, answers), submitted(version, RIGHT)])
    (letter,) = service.dead_letters()
    assert letter["code"] == "invalid"
    assert letter["reason"].startswith(place)
    assert [attempt["score"] for attempt in attempts(service)] == [100.0]


def test_the_times_of_an_attempt_are_the_producers_and_never_in_the_future(service: Service, version: dict[str, Any]):
    at, begun = "2026-02-01T10:00:00Z", "2026-02-01T09:00:00Z"
    future = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    service.send("quiz", submitted(version, WRONG, time=at))
    service.send("quiz", submitted(version, WRONG, completed_at=at, started_at=begun))
    service.send("quiz", submitted(version, WRONG, completed_at=begun, started_at=at))
    service.send("quiz", submitted(version, WRONG, time=future))
    moments = {text: datetime.fromisoformat(text) for text in (at, begun)}
    *past, last = [(a["started_at"], a["completed_at"]) for a in attempts(service)]
    assert past == [(moments[at], moments[at]), (moments[begun], moments[at]), (moments[begun], moments[begun])]
    assert last[1] <= datetime.now(UTC)
