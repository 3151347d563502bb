"""What a soak plays with: a few learners, three small course versions, and what may be answered, all drawn from one seed."""

import json
import random
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

#: Learner and course version.
type Key = tuple[str, str]


def now() -> int:
    """The wall clock in microseconds, which is the clock of the database too."""
    return time.time_ns() // 1000


def text(moment: int) -> str:
    """A moment in microseconds as RFC 3339."""
    whole, rest = divmod(moment, 1_000_000)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06}Z"


def read(value: "str | datetime | None") -> int | None:
    """A moment of the service's in microseconds."""
    if value is None:
        return None
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    whole = int(moment.replace(microsecond=0).timestamp())
    return whole * 1_000_000 + moment.microsecond


class Dice(random.Random):
    """Chance that can be repeated."""

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.getrandbits(128), version=4))


@dataclass(frozen=True)
class Version:
    """A course version as it is published."""

    id: str
    body: dict[str, Any]

    @property
    def lessons(self) -> list[str]:
        return [lesson["lesson_id"] for lesson in self.body["lessons"]]

    @property
    def quizzes(self) -> list[str]:
        return [quiz["quiz_id"] for quiz in self.body["quizzes"]]

    @property
    def required(self) -> list[str]:
        items = [*self.body["lessons"], *self.body["quizzes"]]
        return [item.get("lesson_id") or item["quiz_id"] for item in items if item["required"]]

    def quiz(self, quiz_id: str) -> dict[str, Any]:
        return next(quiz for quiz in self.body["quizzes"] if quiz["quiz_id"] == quiz_id)

    def threshold(self, quiz_id: str) -> Fraction:
        return Fraction(str(self.quiz(quiz_id)["pass_threshold_percentage"]))


def _choices(letters: str) -> list[dict[str, str]]:
    return [{"id": letter, "text": letter} for letter in letters]


#: Each kind of question at least once; points that make scores which no decimal number can tell.
MIXED: list[dict[str, Any]] = [
    {"question_id": "q1", "kind": "single_choice", "prompt": "?", "points": 1, "choices": _choices("abc"), "correct": "a"},
    {"question_id": "q2", "kind": "numeric", "prompt": "?", "points": 1.5, "correct": 0.1, "tolerance": 0.05},
    {
        "question_id": "q3",
        "kind": "multiple_choice",
        "prompt": "?",
        "points": 2,
        "choices": _choices("abcd"),
        "correct": ["a", "b"],
        "scoring": "right_minus_wrong",
    },
]
TIMED: list[dict[str, Any]] = [
    {"question_id": "q1", "kind": "matching", "prompt": "?", "points": 1, "correct": {"x": "1", "y": "2", "z": "3"}},
    {
        "question_id": "q2",
        "kind": "ordering",
        "prompt": "?",
        "points": 1,
        "choices": _choices("abc"),
        "correct": ["a", "b", "c"],
        "scoring": "per_position",
    },
    {
        "question_id": "q3",
        "kind": "mapped",
        "prompt": "?",
        "points": 2,
        "choices": _choices("abc"),
        "correct": {"a": 1.5, "b": 0.7},
        "lower_bound": 0,
        "upper_bound": 2,
        "default": -0.5,
    },
]
PLAIN: list[dict[str, Any]] = [
    {"question_id": "q1", "kind": "true_false", "prompt": "?", "points": 1, "correct": "true"},
    {"question_id": "q2", "kind": "text", "prompt": "?", "points": 1, "correct": ["north", "the north"]},
    {
        "question_id": "q3",
        "kind": "multiple_choice",
        "prompt": "?",
        "points": 5,
        "choices": _choices("abcde"),
        "correct": ["a", "b"],
        "scoring": "per_option",
    },
]
#: What is answered, the right answer by the first key ahead of the others.
ANSWERS: dict[str, dict[str, list[Any]]] = {
    "mixed": {
        "q1": ["a", "a", "b", "c"],
        "q2": [0.1, "0.1", 0.15, 0.2, "much"],
        "q3": [["a", "b"], ["b", "a"], ["a"], ["a", "c"], ["c"], []],
    },
    "timed": {
        "q1": [{"x": "1", "y": "2", "z": "3"}, {"x": "1", "y": "3", "z": "2"}, {"x": "1"}],
        "q2": [["a", "b", "c"], ["a", "c", "b"], ["b", "a"]],
        "q3": [["a", "b"], ["a"], ["a", "c"], ["c"], ["b", "b"]],
    },
    "plain": {"q1": ["true", "false"], "q2": ["north", "  The   NORTH", "south"], "q3": [["a", "b"], ["a"], ["a", "c"], []]},
}
#: What a correction may make of a question's key.
CORRECTIONS: dict[str, dict[str, list[Any]]] = {
    "mixed": {"q1": ["a", "a", "b"], "q2": [0.1, 0.2], "q3": [["a", "b"], ["a"], ["a", "c"]]},
    "plain": {"q1": ["true", "false"], "q3": [["a", "b"], ["a", "c"]]},
}


class World:
    """The same for every process that knows the seed."""

    def __init__(self, seed: int, learners: int = 4) -> None:
        dice = Dice(f"world {seed}")
        self.learners = [dice.uuid() for _ in range(learners)]
        first, second, third, common, lesson, other, more, free, quiz, timed, plain = (dice.uuid() for _ in range(11))
        #: The kind of each quiz.
        self.kinds = {quiz: "mixed", timed: "timed", plain: "plain"}

        def version(id_: str, lessons: dict[str, bool], quizzes: list[dict[str, Any]], **certificate: Any) -> Version:
            items = [{"lesson_id": one, "title": "Lesson", "required": required} for one, required in lessons.items()]
            body = {"course_version_id": id_, "course_id": common, "title": "Course", "version": "1", "issuer_name": "Issuer"}
            more = {"self_enrollment": True, "lessons": items, "quizzes": quizzes, "certificate": certificate}
            return Version(id_, body | more)

        def test(id_: str, questions: list[dict[str, Any]], required: bool, threshold: float, **limits: Any) -> dict[str, Any]:
            body = {"quiz_id": id_, "title": "Quiz", "required": required, "pass_threshold_percentage": threshold}
            none = {"max_attempts": None, "time_limit_seconds": None, "retry_delay_seconds": None, "reveal_answers": False}
            return body | none | limits | {"questions": questions}

        self.versions = {
            one.id: one
            for one in (
                version(
                    first,
                    {common: True, lesson: True, more: False},
                    [test(quiz, MIXED, True, 50, max_attempts=3), test(timed, TIMED, False, 66.67, time_limit_seconds=2)],
                    enabled=True,
                    valid_for_days=None,
                ),
                version(second, {common: True, other: False}, [test(quiz, MIXED, True, 66.67)], enabled=True, valid_for_days=365),
                # Nothing is required.
                version(third, {free: False}, [test(plain, PLAIN, False, 40, max_attempts=2)], enabled=True, valid_for_days=None),
            )
        }
        self.first, self.second, self.third = first, second, third

    @property
    def keys(self) -> list[Key]:
        return [(learner, version) for learner in self.learners for version in self.versions]


class Log:
    """What was done, one JSON object a line, written at once so that it survives whoever wrote it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def write(self, **entry: Any) -> None:
        self._file.write(json.dumps(entry) + "\n")


def entries(path: Path) -> list[dict[str, Any]]:
    """What was logged; a last line that is just being written is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]
