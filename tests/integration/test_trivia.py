"""A thousand learners answer a quiz of 4,973 questions through the queue, and an independent count gives the same scores."""

import gzip
import json
import random
import re
from collections import Counter
from fractions import Fraction
from itertools import batched
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.convert import trivia
from tests.support.service import Service, at_once, course, event, quiz

CATEGORIES = {"geography": 842, "history": 1645, "science-technology": 2486}
LEARNERS = 1000
THRESHOLD = 60
#: How many attempts go into a message, and how many messages Lambda hands over at once: both near what their sizes allow.
EVENTS, MESSAGES = 4, 10
MESSAGE_BYTES = 1_048_576
PAYLOAD_BYTES = 6 * 1_048_576


def key(path: Path, category: str) -> dict[str, str]:
    """The letter of the right answer to each question, read line by line and not by the converter."""
    letters: dict[str, str] = {}
    n, right = 0, None
    for line in gzip.decompress(path.read_bytes()).splitlines():
        if line.startswith(b"#Q "):
            n += 1
        elif line.startswith(b"^ "):
            right = line[2:]
        elif line[2:] == right:
            letters[f"{category}-{n}"] = line[:1].decode().lower()
    return letters


def converted(root: Path) -> list[dict[str, Any]]:
    """All questions, as the converter makes them."""
    found: list[dict[str, Any]] = []
    for category, size in CATEGORIES.items():
        questions = trivia.questions(category, trivia.read(root / f"tests/data/opentriviaqa/{category}.txt.gz"))
        assert len(questions) == size
        found += questions
    return found


def answered(learner: int, right: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The answers of a learner, of whom each knows a little more than the one before, and the questions answered rightly."""
    known = learner / (LEARNERS - 1)
    guessed = (1 - known) / 3
    ways = random.Random(learner).choices(
        ("right", "wrong", "unknown", "missing"), (known, guessed, guessed, guessed), k=len(right)
    )
    answers: dict[str, str] = {}
    for (question, letter), way in zip(right.items(), ways, strict=True):
        if way != "missing":
            answers[question] = letter if way == "right" else "z" if way == "unknown" else "b" if letter == "a" else "a"
    return answers, [question for question, way in zip(right, ways, strict=True) if way == "right"]


def test_questions_that_are_written_oddly_come_through(root: Path):
    questions = {question["question_id"]: question for question in converted(root)}
    # A line of the question begins like a choice, or is blank.
    assert questions["history-1498"]["prompt"].endswith("\nYou know\nIs only at\nA beauty show?")
    assert any(question["prompt"].endswith("is 2: \n\n12 / 6 = 2.") for question in questions.values())
    texts = {name: [choice["text"] for choice in question["choices"]] for name, question in questions.items()}
    # Of the four questions that show an answer twice, it is a wrong one in each.
    assert sum(len(set(shown)) < len(shown) for shown in texts.values()) == 4
    assert {name for name, question in questions.items() if "\ufffd" in str(question)} == {
        "history-64",
        "history-253",
        "history-634",
        "science-technology-348",
    }
    assert Counter(len(shown) for shown in texts.values()) == {4: 4341, 2: 632}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("#Q Who?\n^ Ada\nA ada\nB Bob\n", "odd-1: 'Ada' is 0 of the choices"),
        ("#Q Who?\n^ Ada\nA Ada\nB Ada\n", "odd-1: 'Ada' is 2 of the choices"),
        ("#Q Who?\nA Ada\nB Bob\n\n#Q Who?\n^ Ada\nA Ada\n", "odd: of 2 questions only 1 can be made out"),
    ],
)
def test_a_question_without_one_right_choice_is_an_error(text: str, error: str):
    with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
        trivia.questions("odd", text)


def test_the_scores_of_a_thousand_learners_equal_an_independent_count(service: Service, root: Path):
    right: dict[str, str] = {}
    for category in CATEGORIES:
        right |= key(root / f"tests/data/opentriviaqa/{category}.txt.gz", category)
    assert len(right) == 4973
    asked = quiz(questions=converted(root), pass_threshold_percentage=THRESHOLD)
    version = course(lessons=0, quizzes=[asked])
    ids = {"course_version_id": version["course_version_id"]}
    users = [UUID(int=n) for n in range(1, LEARNERS + 1)]

    published = event("course_version.published", version)
    # In one piece the course version is more than SQS carries, however it is written; the worker itself takes it.
    assert len(json.dumps(published, ensure_ascii=False, separators=(",", ":")).encode()) > MESSAGE_BYTES
    service.send("catalog", published)
    service.send("enrollment", [event("enrollment.requested", ids | {"user_id": str(user)}) for user in users])

    points: dict[UUID, int] = {}

    def submit(learners: tuple[int, ...]) -> None:
        events: list[dict[str, Any]] = []
        for n in learners:
            answers, earned = answered(n, right)
            points[users[n]] = len(earned)
            attempt = {"attempt_id": str(UUID(int=n)), "user_id": str(users[n]), "quiz_id": asked["quiz_id"]}
            events.append(event("quiz.submitted", ids | attempt | {"answers": answers}))
        bodies = [json.dumps(message) for message in batched(events, EVENTS, strict=True)]
        assert max(map(len, bodies)) <= MESSAGE_BYTES
        assert sum(len(json.dumps(body)) for body in bodies) <= PAYLOAD_BYTES
        service.send("quiz", *bodies)

    def take(batches: list[tuple[int, ...]]) -> None:
        for learners in batches:
            submit(learners)

    # Two execution environments, so that one grades while the database stores what the other one graded.
    batches = list(batched(range(LEARNERS), EVENTS * MESSAGES, strict=True))
    at_once([lambda: take(batches[::2]), lambda: take(batches[1::2])])

    assert service.dead_letters() == []
    graded = service.rows("SELECT user_id, attempt_number, score, is_passed FROM quiz_attempts")
    assert Counter(attempt["attempt_number"] for attempt in graded) == {1: LEARNERS}
    exact = {user: Fraction(100 * earned, len(right)) for user, earned in points.items()}
    assert {attempt["user_id"]: attempt["score"] for attempt in graded} == {user: float(score) for user, score in exact.items()}
    passed = {user for user, score in exact.items() if score >= THRESHOLD}
    assert {attempt["user_id"] for attempt in graded if attempt["is_passed"]} == passed
    completed = service.rows("SELECT user_id FROM enrollments WHERE status = 'completed'")
    assert {enrollment["user_id"] for enrollment in completed} == passed
    # From none of the questions to all of them, and on either side of the threshold.
    assert (min(points.values()), max(points.values())) == (0, len(right))
    assert 300 < len(passed) < 500

    n = LEARNERS // 2
    (attempt,) = service.rows("SELECT answers_snapshot, question_results FROM quiz_attempts WHERE user_id = %s", users[n])
    answers, earned = answered(n, right)
    assert attempt["answers_snapshot"] == answers
    results = {result["question_id"]: result["points_earned"] for result in attempt["question_results"]}
    assert results == dict.fromkeys(right, "0") | dict.fromkeys(earned, "1")
