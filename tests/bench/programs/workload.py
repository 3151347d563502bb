"""Whom all programs speak of: learners who are enrolled in one course version, and what they report."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

COURSE_VERSION = "0e4c1d52-7f0b-4b43-9a66-6d1c7c2f5b10"
LEARNERS = 1_000
#: What lessons the learners have begun already, and those in which they have done nothing yet.
BEGUN, FRESH = 20, 10


class Report(NamedTuple):
    """A learner's report of a lesson, 0 < percentage < 100."""

    user_id: str
    lesson_id: str
    percentage: int


def learner(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012x}"


def lesson(n: int) -> str:
    return f"00000000-0000-4000-9000-{n:012x}"


def reports(seed: int) -> Iterator[Report]:
    """Reports of random learners on lessons that they have begun, without end."""
    chance = random.Random(seed)
    while True:
        yield Report(learner(chance.randrange(LEARNERS)), lesson(chance.randrange(BEGUN)), chance.randrange(1, 100))


def events(n: int) -> list[dict[str, Any]]:
    """Events as they come by queue: a report of each learner on lesson `n`, of this moment, so that each brings something new."""
    time = datetime.now(UTC).isoformat()
    return [
        {
            "specversion": "1.0",
            "id": f"{n}/{who}/{time}",
            "source": "player",
            "type": "lesson.progressed",
            "time": time,
            "data": {
                "user_id": learner(who),
                "course_version_id": COURSE_VERSION,
                "lesson_id": lesson(n),
                "progress_percentage": random.randrange(1, 100),
            },
        }
        for who in range(LEARNERS)
    ]
