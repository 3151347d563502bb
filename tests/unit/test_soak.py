"""The soak's checker and its grader, on small histories made by hand."""

from fractions import Fraction
from typing import Any

import pytest

from tests.soak.checker import check
from tests.soak.grading import points
from tests.soak.world import Key, World, text

WORLD = World(1)
KEY: Key = (WORLD.learners[0], WORLD.third)
LESSON = WORLD.versions[WORLD.third].lessons[0]
SECOND = 1_000_000
ENROL, CANCEL, REPORT = "enrol", "cancel", "report"


@pytest.mark.parametrize(
    ("scoring", "earned"),
    [
        ("all_or_nothing", [10, 0, 0, 0, 0]),
        ("right_minus_wrong", [10, 5, 0, 5, 0]),
        ("per_option", [10, 6, 2, 6, 0]),
    ],
)
def test_the_grader_gives_what_the_rules_promise_for_several_choices(scoring: str, earned: list[int]):
    question = {
        "kind": "multiple_choice",
        "points": 10,
        "correct": ["a", "b"],
        "scoring": scoring,
        "choices": [{"id": letter} for letter in "abcde"],
    }
    assert [points(question, list(answer)) for answer in ("ab", "a", "ac", "abc", "")] == earned


def test_the_grader_is_exact():
    question = {"kind": "numeric", "points": 1, "correct": 0.1, "tolerance": 0.05}
    assert [points(question, answer) for answer in (0.15, "0.15", 0.1500001, "much")] == [1, 1, 0, 0]
    assert points({"kind": "matching", "points": 1, "correct": {"x": "1", "y": "2", "z": "3"}}, {"x": "1"}) == Fraction(1, 3)


class Past:
    """An enrolment, a report of 40 on its lesson, and a cancellation, a second after the other and each done at once."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        names = ("enrollments", "history", "outbox", "lessons", "lessons_aside", "attempts", "attempts_aside", "waivers")
        more = ("allowances", "quizzes", "keys", "gradings", "certificates", "learners")
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in (*names, *more)}
        for version in WORLD.versions.values():
            for quiz in version.body["quizzes"]:
                about = {"course_version_id": version.id, "quiz_id": quiz["quiz_id"], "key_version": 1}
                self.tables["quizzes"].append(about)
                self.tables["keys"].append(about | {"questions": quiz["questions"]})
        self.did(ENROL, 1, 201)
        self.did(REPORT, 2, 200, kind="progress", reports=[{"lesson": LESSON, "percentage": 40, "time": None}])
        self.did(CANCEL, 3, 200)
        self.changed(1, "created", None, "active", ENROL)
        self.changed(3, "cancelled", "active", "cancelled_by_user", CANCEL)
        self.tables["enrollments"].append(self.of({"status": "cancelled_by_user", "sequence": 2, "completed_at": None}))
        row = {"lesson_id": LESSON, "progress_percentage": 40, "completed_at": None, "enrolled_course_version_id": KEY[1]}
        times = {"started_at": 2 * SECOND, "last_accessed_at": 2 * SECOND}
        self.tables["lessons"].append({"user_id": KEY[0]} | row | times)

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"user_id": KEY[0], "course_version_id": KEY[1]} | row

    def did(self, id_: str, second: int, status: int, kind: str = "", **said: Any) -> None:
        at = second * SECOND
        who = {"learner": KEY[0], "version": KEY[1], "kind": kind or id_, "via": "http"}
        self.log.append({"op": id_, "at": at - 1000} | who | said)
        self.log.append({"op": id_, "end": at + 1000, "status": status, "body": {"type": ""}})

    def changed(self, second: int, how: str, before: str | None, after: str, actor: str) -> None:
        at, number = second * SECOND, len(self.tables["history"]) + 1
        entry = {"type": how, "from_status": before, "to_status": after, "actor": actor, "sequence": number, "position": number}
        times = {"occurred_at": at, "recorded_at": at, "committed_at": at, "details": None}
        self.tables["history"].append(self.of(entry | times))
        data = {"user_id": KEY[0], "course_version_id": KEY[1], "status": after, "sequence": number}
        event = {"id": str(number), "destination": "bus", "type": f"enrollment.{how}", "body": None}
        self.tables["outbox"].append(event | {"occurred_at": at, "created_at": at, "data": data})

    def anomalies(self) -> list[str]:
        feed = {row["id"]: {"type": row["type"], "data": row["data"]} for row in self.tables["outbox"]}
        found = check(WORLD, self.log, [], self.tables, feed, [], [9 * SECOND], {}, at_rest=True)
        return sorted({one.kind for one in found})


def test_what_happened_as_it_was_asked_for_is_explained():
    assert Past().anomalies() == []


def test_a_report_that_is_gone_is_noticed():
    past = Past()
    past.tables["lessons"].clear()
    assert past.anomalies() == ["lost"]


def test_progress_that_nobody_reported_is_noticed():
    past = Past()
    past.tables["lessons"][0]["progress_percentage"] = 41
    assert past.anomalies() == ["progress"]


def test_a_change_that_nobody_asked_for_is_noticed():
    past = Past()
    past.tables["history"][1]["actor"] = "someone"
    assert past.anomalies() == ["nobody asked for it"]


def test_what_was_refused_and_done_is_noticed():
    past = Past()
    past.log[5] |= {"status": 409, "body": {"type": "already_completed"}}
    assert past.anomalies() == ["refused", "refused and done"]


def test_an_event_that_is_missing_is_noticed():
    past = Past()
    del past.tables["outbox"][1]
    assert past.anomalies() == ["events"]


def test_a_status_without_a_history_is_noticed():
    past = Past()
    past.tables["enrollments"][0]["status"] = "active"
    assert past.anomalies() == ["status"]


def test_a_change_twice_is_noticed():
    past = Past()
    past.changed(3, "cancelled", "active", "cancelled_by_user", CANCEL)
    past.tables["enrollments"][0]["sequence"] = 3
    assert past.anomalies() == ["done twice", "order of commands", "status"]


def test_an_error_and_an_answer_without_a_fault_are_noticed():
    past = Past()
    past.did("other", 5, 500, kind="read")
    past.did("another", 6, 503, kind="read")
    assert past.anomalies() == ["error", "unavailable"]


def test_a_moment_is_written_to_the_microsecond():
    assert text(1_500_001) == "1970-01-01T00:00:01.500001Z"
