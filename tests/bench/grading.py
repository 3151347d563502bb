"""Grading: attempts of 20 questions from the queue, by the worker, from the SQS event to its answer."""

import importlib
import json
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg

from shared.quiz import rules
from shared.quiz.store import answer_keys
from tests.bench.report import Claim, Plot, Report, Spread, Table, database, interleaved
from tests.bench.statements import quietly
from tests.support.service import Service, context, course, event, quiz, record

ROUNDS = 9
ATTEMPTS = 1000
LEARNERS = 5000
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)

TEXT = """\
One invocation of `quiz_worker` with a message of a thousand `quiz.submitted`, each an attempt of another learner with 20
questions: one choice and several, numbers with a tolerance, and texts. It includes parsing, grading by fractions, one
transaction with the numbers of the attempts, the evidence for each question and an event to the bus for each attempt, flushed.
Processor time is that of the worker alone and of all of it, the database's with it.

- *grading alone*: `rules.check_answers` and `rules.grade` for answers that are parsed.
"""


def questions() -> list[dict[str, Any]]:
    """20 questions of the kinds that quizzes are made of."""
    choices = [{"id": letter, "text": f"Choice {letter}"} for letter in "abcde"]
    made: list[dict[str, Any]] = []
    for n in range(20):
        base = {"question_id": f"q{n}", "prompt": f"Question {n}?", "points": 1 + n % 3}
        match n % 5:
            case 0 | 1:
                made.append(base | {"kind": "single_choice", "choices": choices, "correct": "abcde"[n % 5]})
            case 2:
                made.append(base | {"kind": "multiple_choice", "choices": choices, "correct": ["a", "c"]})
            case 3:
                made.append(base | {"kind": "numeric", "correct": 2.5, "tolerance": 0.25})
            case _:
                made.append(base | {"kind": "text", "correct": ["Lovelace", "Ada Lovelace"]})
    return made


def answers(rng: random.Random) -> dict[str, Any]:
    """Answers of which most are right."""
    given: dict[str, Any] = {}
    for n in range(20):
        right = rng.random() < 0.8
        match n % 5:
            case 0 | 1:
                given[f"q{n}"] = "abcde"[n % 5] if right else "e"
            case 2:
                given[f"q{n}"] = ["c", "a"] if right else ["b"]
            case 3:
                given[f"q{n}"] = 2.6 if right else 9
            case _:
                given[f"q{n}"] = "lovelace" if right else "Babbage"
    return given


class Bench:
    """Learners in a course version with one quiz."""

    def __init__(self, url: str) -> None:
        self.service = Service(url)
        self.handler = importlib.import_module("functions.quiz_worker.app").handler
        self.conn = psycopg.connect(url, autocommit=True)
        self.course = course(lessons=1, quizzes=[quiz(questions=questions(), max_attempts=None)])
        self.quiz_id = self.course["quizzes"][0]["quiz_id"]
        self.learners = [str(uuid4()) for _ in range(LEARNERS)]
        self.rng = random.Random(7)
        self.minute = 0
        quietly(lambda: self.service.send("catalog", event("course_version.published", self.course)))
        for n in range(0, LEARNERS, 1000):
            batch = [
                event("enrollment.requested", self.ids(learner), BEGAN.isoformat()) for learner in self.learners[n : n + 1000]
            ]
            quietly(lambda batch=batch: self.service.send("enrollment", batch))
        self.conn.execute("VACUUM ANALYZE")

    def ids(self, learner: str) -> dict[str, str]:
        return {"user_id": learner, "course_version_id": self.course["course_version_id"]}

    def work(self) -> tuple[float, float]:
        """Seconds of an invocation by the clock and of the worker's processor."""
        self.minute += 1
        at = (BEGAN + timedelta(minutes=self.minute)).isoformat()
        events = [
            event(
                "quiz.submitted",
                self.ids(learner) | {"attempt_id": str(uuid4()), "quiz_id": self.quiz_id, "answers": answers(self.rng)},
                at,
            )
            for learner in self.rng.sample(self.learners, ATTEMPTS)
        ]
        sent = {"Records": [record(json.dumps(events))]}
        began, used = time.perf_counter(), time.process_time()
        answer = quietly(lambda: self.handler(sent, context("QuizWorker")))
        seconds, processor = time.perf_counter() - began, time.process_time() - used
        assert answer == {"batchItemFailures": []}
        return seconds, processor

    def grading(self) -> float:
        version = self.course["course_version_id"]
        from uuid import UUID

        key = answer_keys({(UUID(version), UUID(self.quiz_id))}, stale=set())[UUID(version), UUID(self.quiz_id)]
        given = [json.loads(json.dumps(answers(self.rng))) for _ in range(ATTEMPTS)]
        began = time.perf_counter()
        for one in given:
            checked = rules.check_answers(key.questions, one, unknown_questions="ignore", place="#")
            rules.grade(key.questions, checked, key.pass_threshold_percentage)
        return ATTEMPTS / (time.perf_counter() - began)


def run() -> Report:
    with database() as url:
        bench = Bench(url)
        used: list[float] = []

        def worker() -> float:
            seconds, processor = bench.work()
            used.append(ATTEMPTS / processor)
            return ATTEMPTS / seconds

        cases: dict[str, Callable[[], float]] = {"worker": worker, "grading alone": bench.grading}
        for case in cases.values():
            case()
        used.clear()
        found = interleaved(cases, ROUNDS, "grading")
        taken = bench.conn.execute("SELECT count(*) FROM quiz_attempts WHERE completed_at IS NOT NULL").fetchall()[0][0]
        assert taken == (ROUNDS + 1) * ATTEMPTS
        bench.conn.close()
    rates = {
        "worker, by the clock": found["worker"],
        "worker, by its own processor time": used,
        "grading alone": found["grading alone"],
    }
    report = Report("grading", "Grading", TEXT)
    table = Table("A thousand attempts of 20 questions", ["", "attempts a second", "µs an attempt"])
    table.rows = [[name, Spread.of(values), 1e6 / Spread.of(values).median] for name, values in rates.items()]
    report.tables.append(table)
    per_core = Spread.of(rates["worker, by the clock"])
    report.claims.append(Claim("attempts a second, over 3,000", scaled(per_core, 3000), 1, "at least"))
    report.plots.append(
        Plot("Attempts a second", "bars", "", "attempts a second", {"": [(n, Spread.of(v).median) for n, v in rates.items()]})
    )
    return report


def scaled(spread: Spread, by: float) -> Spread:
    return Spread(spread.median / by, spread.least / by, spread.greatest / by)
