"""Attempts at quizzes over HTTP: started, saved, submitted, run out and started over, by one learner in many places at once.

What happens at once happens in several processes, each of them an execution environment of its own as on Lambda: the functions
hold one request at a time in memory, so threads of one process could not play that part.
"""

import json
import multiprocessing
import os
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import simplejson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from functions.quiz_maintenance.app import handler as maintain
from functions.quiz_maintenance.app import sweep
from shared import db
from shared import settings as service_settings
from shared.quiz.models import Question
from shared.quiz.rules import KINDS, grade
from tests.support.service import ADMIN, LEARNER, Answer, Context, Service, at_once, context, course, event, quiz
from tests.unit.test_grading import asked_and_answers, numbered

RIGHT, HALF, WRONG = {"q1": "a", "q2": 0.1}, {"q1": "a"}, {"q1": "b", "q2": 5}
OTHER = UUID("00000000-0000-4000-8000-00000000000b")
QUESTIONS: TypeAdapter[tuple[Question, ...]] = TypeAdapter(tuple[Question, ...])


# Several execution environments


class Environment(Service):
    """The service in a process of its own."""

    def __init__(self) -> None:
        super().__init__("")
        processes = multiprocessing.get_context("forkserver")
        # The first process imports everything, and the others are copies of it.
        processes.set_forkserver_preload(
            [__name__, *(f"functions.{name}.app" for name in ("quiz_api", "quiz_maintenance", "enrollment_api", "progress_api"))]
        )
        self._pipe, theirs = processes.Pipe()
        self._process = processes.Process(target=serve, args=[theirs], daemon=True)
        self._process.start()
        theirs.close()

    def invoke(self, function: str, payload: dict[str, Any]) -> dict[str, Any]:
        return self.call(f"functions.{function}.app", "handler", payload, context(function))

    def sweep(self) -> int:
        """Close attempts that ran out."""
        return self.call("functions.quiz_maintenance.app", "sweep")

    def call(self, module: str, function: str, *arguments: Any) -> Any:
        """Call a function there."""
        self._pipe.send((self.database_url, module, function, arguments))
        result, error = self._pipe.recv()
        assert error is None, error
        return result

    def end(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def serve(calls: "Connection[Any, Any]") -> None:
    """Answer the calls of an `Environment`, until it ends."""
    while True:
        try:
            database_url, module, function, arguments = calls.recv()
        except EOFError:
            return
        if os.environ.get("DATABASE_URL") != database_url:
            os.environ["DATABASE_URL"] = database_url
            service_settings.database_url.cache_clear()
            db.close()
        try:
            calls.send((getattr(import_module(module), function)(*arguments), None))
        except Exception:
            calls.send((None, traceback.format_exc()))


@pytest.fixture(scope="module")
def started_environments() -> Generator[list[Environment]]:
    environments: list[Environment] = []
    yield environments
    for environment in environments:
        environment.end()


@pytest.fixture
def environments(service: Service, started_environments: list[Environment]) -> Callable[[int], list[Environment]]:
    """So many environments, all on the test's database."""

    def several(number: int) -> list[Environment]:
        while len(started_environments) < number:
            started_environments.append(Environment())
        for environment in started_environments[:number]:
            environment.database_url = service.database_url
        return started_environments[:number]

    return several


def until(is_so: Callable[[], Any]) -> None:
    """Wait for something that is sure to come about soon."""
    for _ in range(20_000):
        if is_so():
            return
        time.sleep(0.001)
    raise AssertionError("It did not come about.")


def waiting(service: Service) -> int:
    """How many connections wait for a lock."""
    (row,) = service.rows(
        "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return row["n"]


@contextmanager
def held(service: Service, user_id: UUID = LEARNER) -> Generator[Callable[["Future[Any]", int], None]]:
    """Keep everyone from the learner's enrolments meanwhile; yields a function that waits until work stands in line as well."""
    with psycopg.connect(service.database_url) as conn:
        # What ought not to wait for this would wait for ever otherwise, as would the test.
        conn.execute("SET idle_in_transaction_session_timeout = '20 s'")
        conn.execute("SELECT FROM enrollments WHERE user_id = %s FOR UPDATE", [user_id])

        def await_line(work: "Future[Any]", length: int) -> None:
            until(lambda: waiting(service) >= length or work.done())
            assert not work.done(), work.result()

        yield await_line


def one_after_the_other(service: Service, *work: Callable[[], Any]) -> list[Any]:
    """What each gives, if all begin at once, and get hold of the learner's enrolment in this order."""
    futures: list[Future[Any]] = []
    with ThreadPoolExecutor(len(work)) as pool, held(service) as await_line:
        for one in work:
            futures.append(pool.submit(one))
            await_line(futures[-1], len(futures))
    return [future.result() for future in futures]


# Learners


@dataclass(frozen=True)
class Learner:
    """A learner in one course version, who may use any environment."""

    version: dict[str, Any]
    id: UUID = LEARNER

    @property
    def enrollment(self) -> str:
        return f"/users/{self.id}/enrollments/{self.version['course_version_id']}"

    def quiz(self, n: int = 0) -> str:
        return f"{self.enrollment}/quizzes/{self.version['quizzes'][n]['quiz_id']}"

    def start(self, service: Service, n: int = 0) -> Answer:
        return service.http("POST", f"{self.quiz(n)}/attempts", sub=self.id)

    def started(self, service: Service, n: int = 0) -> str:
        """The id of a new attempt."""
        answer = self.start(service, n)
        assert answer.status == 201, answer.text
        return answer.json["id"]

    def save(self, service: Service, attempt: str, answers: Any) -> Answer:
        return service.http("PUT", f"/quiz-attempts/{attempt}/answers", {"answers": answers}, sub=self.id)

    def submit(self, service: Service, attempt: str, answers: Any) -> Answer:
        return service.http("POST", f"/quiz-attempts/{attempt}/submit", {"answers": answers}, sub=self.id)

    def read(self, service: Service, attempt: str) -> dict[str, Any]:
        answer = service.http("GET", f"/quiz-attempts/{attempt}", sub=self.id)
        assert answer.status == 200, answer.text
        return answer.json

    def attempts(self, service: Service, n: int = 0) -> list[dict[str, Any]]:
        """The attempts that count, as they are listed."""
        return service.http("GET", f"{self.quiz(n)}/attempts", sub=self.id).json["items"]

    def learn(self, service: Service, **report: Any) -> Answer:
        lesson = f"{self.enrollment}/lessons/{self.version['lessons'][0]['lesson_id']}/progress"
        return service.http("PUT", lesson, report, sub=self.id)

    def status(self, service: Service) -> str:
        return service.http("GET", self.enrollment, sub=self.id).json["status"]

    def grant(self, service: Service, n: int = 0, **allowance: Any) -> Answer:
        return service.admin("PUT", f"{self.quiz(n)}/allowance", {"extra_attempts": 0} | allowance)

    def reset(self, service: Service) -> Answer:
        return service.admin("POST", f"{self.enrollment}/reset", {"reason": "Once more."})

    def submission(self, answers: Any, n: int = 0, **data: Any) -> dict[str, Any]:
        """The event of an attempt that a producer administered."""
        ids = {
            "attempt_id": str(uuid4()),
            "user_id": str(self.id),
            "course_version_id": self.version["course_version_id"],
            "quiz_id": self.version["quizzes"][n]["quiz_id"],
        }
        return event("quiz.submitted", ids | {"answers": answers} | data)


def enrolled(service: Service, *quizzes: dict[str, Any], lessons: int = 0) -> Learner:
    """A learner who is enrolled in a course version with these quizzes."""
    version = course(lessons=lessons, quizzes=list(quizzes))
    service.send("catalog", simplejson.dumps(event("course_version.published", version), use_decimal=True))
    learner = Learner(version)
    assert service.http("PUT", learner.enrollment).status == 201
    return learner


def code(answer: Answer) -> str:
    """The code of a problem document."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.json["type"].rsplit(":", 1)[1]


def pass_time(service: Service, seconds: float, attempt: str | None = None) -> None:
    """Let so much time pass for all attempts, or for one."""
    service.rows(
        """
        UPDATE quiz_attempts
        SET started_at = started_at - %(time)s, expires_at = expires_at - %(time)s, completed_at = completed_at - %(time)s
        WHERE %(attempt)s::uuid IS NULL OR id = %(attempt)s
        """.replace("%(time)s", f"interval '{seconds} s'").replace("%(attempt)s", f"'{attempt}'" if attempt else "NULL")
    )


def check_books(service: Service) -> None:
    """Whatever happened at once: numbers and sequences have no gap, and each grading was told of once."""
    numbers: dict[Any, list[int]] = defaultdict(list)
    for row in service.rows("SELECT * FROM quiz_attempts ORDER BY attempt_number"):
        numbers[row["user_id"], row["quiz_id"]].append(row["attempt_number"])
    for row in service.rows("SELECT * FROM quiz_attempts_set_aside ORDER BY attempt_number"):
        numbers[row["reset_id"], row["quiz_id"]].append(row["attempt_number"])
    assert all(given == list(range(1, len(given) + 1)) for given in numbers.values()), numbers
    sequences: dict[Any, list[int]] = defaultdict(list)
    for published in service.published():
        sequences[published["data"]["user_id"], published["data"]["course_version_id"]].append(published["data"]["sequence"])
    assert all(given == list(range(1, len(given) + 1)) for given in sequences.values()), sequences
    graded = service.rows("SELECT id FROM all_quiz_attempts WHERE completed_at IS NOT NULL")
    told = [published["data"]["attempt_id"] for published in service.published("quiz.graded")]
    assert sorted(told) == sorted(str(row["id"]) for row in graded)


# Many clients of one learner


@pytest.mark.parametrize("extra", [0, 2])
def test_forty_clients_of_one_learner_get_the_attempts_allowed_and_no_more(
    service: Service, environments: Callable[[int], list[Environment]], extra: int
):
    learner = enrolled(service, quiz(max_attempts=3, pass_threshold_percentage=100), quiz())
    starts: list[tuple[int, str]] = []
    submits: list[tuple[int, str, dict[str, Any], Answer]] = []

    def client(environment: Environment, n: int) -> Callable[[], None]:
        answers: dict[str, Any] = {"q1": "ab"[n % 2], "q2": n}

        def work() -> None:
            while (start := learner.start(environment)).status != 409:
                starts.append((start.status, start.json["id"]))
                submit = learner.submit(environment, start.json["id"], answers)
                submits.append((submit.status, start.json["id"], answers, submit))
                # Whoever has the second attempt graded is granted more before going on, so somebody will use that.
                if extra and submit.status == 200 and submit.json["attempt_number"] == 2:
                    assert learner.grant(environment, extra_attempts=extra).status == 200
            assert code(start) == "no_attempts_left"

        return work

    at_once([client(environment, n) for n, environment in enumerate(environments(40))])
    new = [attempt for status, attempt in starts if status == 201]
    assert {status for status, _ in starts} <= {200, 201}
    assert len(new) == len(set(new)) == 3 + extra
    taken = {attempt: (answers, submit.json) for status, attempt, answers, submit in submits if status == 200}
    assert [status for status, *_ in submits].count(200) == len(taken) == 3 + extra
    assert {code(submit) for status, *_, submit in submits if status != 200} <= {"attempt_closed"}
    attempts = learner.attempts(service)
    assert [attempt["attempt_number"] for attempt in attempts] == list(range(1, 4 + extra))
    assert {attempt["id"] for attempt in attempts} == set(new)
    for attempt in attempts:
        answers, answered = taken[attempt["id"]]
        assert attempt == answered
        assert (attempt["answers"], attempt["score"]) == (answers, 75.0 if answers["q1"] == "a" else 0.0)
    assert len(service.published("quiz.graded")) == 3 + extra
    check_books(service)


def test_two_tabs_that_start_at_once_share_one_attempt(service: Service, environments: Callable[[int], list[Environment]]):
    learner = enrolled(service, quiz())
    for number in range(1, 11):
        answers: list[Answer] = []
        at_once([lambda e=e: answers.append(learner.start(e)) for e in environments(4)])
        assert sorted(answer.status for answer in answers) == [200, 200, 200, 201]
        assert {(answer.json["id"], answer.json["attempt_number"]) for answer in answers} == {(answers[0].json["id"], number)}
        learner.submit(service, answers[0].json["id"], WRONG)
    check_books(service)


# Submitting twice


def test_the_same_answers_at_once_and_later_are_graded_once_and_answered_alike(
    service: Service, environments: Callable[[int], list[Environment]]
):
    learner = enrolled(service, quiz())
    for _ in range(15):
        attempt = learner.started(service)
        answers: list[Answer] = []
        at_once([lambda e=e: answers.append(learner.submit(e, attempt, HALF)) for e in environments(3)])
        answers.append(learner.submit(service, attempt, HALF))
        assert [(answer.status, answer.text) for answer in answers] == [(200, answers[0].text)] * 4
        assert (answers[0].json["score"], answers[0].json["in_time"]) == (75.0, True)
    assert len(service.published("quiz.graded")) == 15
    check_books(service)


def test_of_different_answers_at_once_those_of_the_one_who_was_told_so_are_graded(
    service: Service, environments: Callable[[int], list[Environment]]
):
    learner = enrolled(service, quiz())
    for _ in range(15):
        attempt = learner.started(service)
        answers: list[tuple[dict[str, Any], Answer]] = []
        at_once(
            [
                lambda e=e, a=a: answers.append((a, learner.submit(e, attempt, a)))
                for e, a in zip(environments(3), (RIGHT, HALF, WRONG), strict=True)
            ]
        )
        ((taken, answer),) = [(given, answer) for given, answer in answers if answer.status == 200]
        assert [code(answer) for _, answer in answers if answer.status != 200] == ["attempt_closed"] * 2
        assert learner.read(service, attempt) == answer.json
        assert answer.json["answers"] == taken
    check_books(service)


def test_a_submit_that_comes_a_second_time_just_behind_the_first(
    service: Service, environments: Callable[[int], list[Environment]]
):
    learner = enrolled(service, quiz())
    one, two = environments(2)
    for again in (HALF, {"q1": "a", "q2": None}, RIGHT, {}):
        attempt = learner.started(service)
        first, second = one_after_the_other(
            service, lambda: learner.submit(one, attempt, HALF), lambda a=again: learner.submit(two, attempt, a)
        )
        later = learner.submit(service, attempt, again)
        assert (first.status, first.json["answers"]) == (200, HALF)
        if again == HALF:
            assert (second.status, second.text) == (later.status, later.text) == (200, first.text)
        else:
            assert (second.status, later.status) == (409, 409)
            assert code(second) == code(later) == "attempt_closed"
        assert learner.read(service, attempt) == first.json
    check_books(service)


@pytest.mark.parametrize("draft", [None, {}, HALF])
def test_what_comes_after_the_grace_closes_the_attempt_with_what_was_saved(service: Service, draft: dict[str, Any] | None):
    learner = enrolled(service, quiz(time_limit_seconds=60))
    attempt = learner.started(service)
    if draft is not None:
        assert learner.save(service, attempt, draft).status == 200
    pass_time(service, 91)
    late = [learner.submit(service, attempt, answers) for answers in (RIGHT, RIGHT, WRONG)]
    assert [answer.status for answer in late] == [200] * 3
    assert late[0].text == late[1].text == late[2].text
    closed = late[0].json
    assert (closed["in_time"], closed["answers"], closed["score"]) == (False, draft or {}, 75.0 if draft else 0.0)
    assert closed["completed_at"] == closed["expires_at"]
    assert learner.status(service) == ("completed" if draft else "active")
    (told,) = service.published("quiz.graded")
    assert (told["data"]["score"], told["data"]["is_passed"]) == (closed["score"], closed["is_passed"])
    check_books(service)


def test_what_comes_within_the_grace_is_taken(service: Service):
    learner = enrolled(service, quiz(time_limit_seconds=60))
    attempt = learner.started(service)
    pass_time(service, 80)
    assert learner.save(service, attempt, WRONG).status == 200
    answer = learner.submit(service, attempt, RIGHT)
    assert (answer.status, answer.json["in_time"], answer.json["score"]) == (200, True, 100.0)
    assert answer.json["completed_at"] > answer.json["expires_at"]
    # In time is in time, also when the same answers come again much later.
    pass_time(service, 1000)
    assert learner.submit(service, attempt, RIGHT).json["in_time"] is True
    assert code(learner.submit(service, attempt, WRONG)) == "attempt_closed"


@pytest.mark.parametrize("submit_first", [True, False])
def test_a_late_submit_and_the_sweep_close_an_attempt_once(
    service: Service, environments: Callable[[int], list[Environment]], submit_first: bool
):
    learner = enrolled(service, quiz(time_limit_seconds=60))
    attempt = learner.started(service)
    learner.save(service, attempt, HALF)
    pass_time(service, 100)
    one, two = environments(2)
    work: list[Callable[[], Any]] = [lambda: learner.submit(one, attempt, RIGHT), two.sweep]
    outcome = one_after_the_other(service, *(work if submit_first else work[::-1]))
    answer, swept = outcome if submit_first else outcome[::-1]
    assert (answer.status, swept) == (200, 0 if submit_first else 1)
    assert (answer.json["in_time"], answer.json["answers"]) == (False, HALF)
    assert answer.json == learner.read(service, attempt)
    check_books(service)


@pytest.mark.parametrize("start_first", [True, False])
def test_the_next_start_and_the_sweep_close_an_attempt_once(
    service: Service, environments: Callable[[int], list[Environment]], start_first: bool
):
    learner = enrolled(service, quiz(time_limit_seconds=60, max_attempts=2))
    attempt = learner.started(service)
    learner.save(service, attempt, HALF)
    pass_time(service, 100)
    one, two = environments(2)
    work: list[Callable[[], Any]] = [lambda: learner.start(one), two.sweep]
    outcome = one_after_the_other(service, *(work if start_first else work[::-1]))
    answer, swept = outcome if start_first else outcome[::-1]
    assert (answer.status, answer.json["attempt_number"], swept) == (201, 2, 0 if start_first else 1)
    assert (learner.read(service, attempt)["in_time"], learner.read(service, attempt)["score"]) == (False, 75.0)
    check_books(service)


def test_a_draft_and_a_submit_at_once_leave_what_was_submitted(
    service: Service, environments: Callable[[int], list[Environment]]
):
    learner = enrolled(service, quiz())
    for n in range(25):
        attempt = learner.started(service)
        answers: dict[str, Answer] = {}
        one, two = environments(2)
        at_once(
            [
                lambda: answers.update(draft=learner.save(one, attempt, {"q2": n})),
                lambda: answers.update(submit=learner.submit(two, attempt, HALF)),
            ]
        )
        assert answers["submit"].status == 200
        if answers["draft"].status != 200:
            assert code(answers["draft"]) == "attempt_closed"
        assert learner.read(service, attempt) == answers["submit"].json
        assert answers["submit"].json["answers"] == HALF
    check_books(service)


@pytest.mark.parametrize("closed_by", ["sweep", "start", "submit"])
def test_a_draft_that_was_taken_is_what_an_attempt_is_closed_with(
    service: Service, environments: Callable[[int], list[Environment]], closed_by: str
):
    learner = enrolled(service, quiz(time_limit_seconds=60))
    one, two = environments(2)
    for _ in range(10):
        attempt = learner.started(service)
        taken: list[int] = []

        def save() -> None:
            n = 0
            while (answer := learner.save(one, attempt, {"q2": n})).status == 200:
                taken.append(n)
                n += 1
            assert code(answer) in ("attempt_expired", "attempt_closed")

        def close() -> None:
            if closed_by == "sweep":
                until(two.sweep)
            elif closed_by == "start":
                until(lambda: learner.start(two).status == 201)
            else:
                late = "SELECT 1 FROM quiz_attempts WHERE id = %s AND now() > expires_at + interval '30 s'"
                until(lambda: two.rows(late, attempt))
                assert learner.submit(two, attempt, RIGHT).json["in_time"] is False

        # A few requests fit in before the time is over, and the last one meets whatever closes the attempt.
        pass_time(service, 89.95, attempt)
        at_once([save, close])
        closed = learner.read(service, attempt)
        assert (closed["in_time"], closed["answers"]) == (False, {"q2": taken[-1]} if taken else {})
        pass_time(service, 1000)
    check_books(service)


@pytest.mark.parametrize("draft", [RIGHT, None])
def test_more_time_that_is_granted_while_the_sweep_is_under_way_keeps_the_attempt_open(
    service: Service, environments: Callable[[int], list[Environment]], draft: dict[str, Any] | None
):
    version = enrolled(service, quiz(time_limit_seconds=60)).version
    first, second = Learner(version, LEARNER), Learner(version, OTHER)
    service.http("PUT", second.enrollment, sub=OTHER)
    attempts = [learner.started(service) for learner in (first, second)]
    second.save(service, attempts[1], WRONG)
    pass_time(service, 100)
    (other,) = environments(1)
    with ThreadPoolExecutor(1) as pool:
        # The sweep has seen that both attempts ran out, and waits for the first learner's enrolment.
        with held(service, first.id) as await_line:
            swept = pool.submit(other.sweep)
            await_line(swept, 1)
            assert second.grant(service, extra_time_percentage=100).status == 200
            if draft:
                assert second.save(service, attempts[1], draft).status == 200
                pass_time(service, 60, attempts[1])
        assert swept.result() >= 1
    sweep()
    closed = [learner.read(service, attempt) for learner, attempt in zip((first, second), attempts, strict=True)]
    assert (closed[0]["in_time"], closed[0]["completed_at"]) == (False, closed[0]["expires_at"])
    if draft:
        # That time was over as well in the end; what was saved in it counts.
        assert (closed[1]["in_time"], closed[1]["answers"], closed[1]["score"]) == (False, draft, 100.0)
    else:
        assert (closed[1]["completed_at"], closed[1]["answers"]) == (None, WRONG)
        assert second.submit(service, attempts[1], RIGHT).json["score"] == 100.0
    check_books(service)


@pytest.mark.parametrize("submit_first", [True, False])
@pytest.mark.parametrize("command", ["cancel", "revoke"])
def test_a_submit_and_the_end_of_the_enrolment_at_once_give_one_of_the_two_orders(
    service: Service, environments: Callable[[int], list[Environment]], command: str, submit_first: bool
):
    learner = enrolled(service, quiz(), quiz())
    attempt = learner.started(service)
    one, two = environments(2)
    work: list[Callable[[], Any]] = [
        lambda: learner.submit(one, attempt, RIGHT),
        lambda: two.admin("POST", f"{learner.enrollment}/{command}", {"reason": "r"}),
    ]
    outcome = one_after_the_other(service, *(work if submit_first else work[::-1]))
    submit, ended = outcome if submit_first else outcome[::-1]
    assert ended.status == 200
    if submit_first:
        assert (submit.status, submit.json["score"]) == (200, 100.0)
        # What changes nothing is answered in any status.
        assert learner.submit(service, attempt, RIGHT).text == submit.text
    else:
        assert (submit.status, code(submit)) == (409, "enrollment_inactive")
        assert learner.read(service, attempt)["completed_at"] is None
    check_books(service)


# Drafts


def test_a_draft_is_kept_replaced_and_shown(service: Service):
    learner = enrolled(service, quiz(time_limit_seconds=60, max_attempts=1))
    started = learner.start(service)
    attempt = started.json["id"]
    assert started.json["answers"] == {}
    assert learner.read(service, attempt)["answers"] is None
    for draft in (HALF, {"q2": 0.1}, {"q1": "a", "q2": None}, {"q1": "none of the choices", "q2": "no number"}, {}, RIGHT):
        saved = learner.save(service, attempt, draft)
        assert (saved.status, saved.json["answers"], saved.json["completed_at"]) == (200, draft, None)
        assert learner.read(service, attempt) == saved.json == learner.attempts(service)[0]
        again = learner.start(service)
        assert (again.status, again.json) == (200, started.json | {"answers": draft})
    assert service.published("quiz.graded") == []
    assert learner.status(service) == "active"
    # A draft is no submission, and a submission needs no draft.
    assert learner.submit(service, attempt, HALF).json["answers"] == HALF


def test_a_draft_that_can_not_be_an_answer_is_refused_and_the_one_before_stays(service: Service):
    learner = enrolled(service, quiz())
    attempt = learner.started(service)
    learner.save(service, attempt, HALF)
    drafts: list[tuple[Any, str]] = [
        ({"q1": "a", "q3": "a"}, "#/answers/q3"),
        ({"q1": ["a"]}, "#/answers/q1"),
        ({"q2": True}, "#/answers/q2"),
        ({"q1": "\x00"}, "#/answers/q1"),
        (["a"], "#/answers"),
        (None, "#/answers"),
    ]
    for draft, pointer in drafts:
        refused = learner.save(service, attempt, draft)
        assert (refused.status, [error["pointer"] for error in refused.json["errors"]]) == (422, [pointer])
    assert learner.read(service, attempt)["answers"] == HALF


def test_a_draft_is_of_the_learner_alone(service: Service):
    learner = enrolled(service, quiz())
    attempt = learner.started(service)
    stranger = Learner(learner.version, OTHER)
    service.http("PUT", stranger.enrollment, sub=OTHER)
    for sub, scope in ((OTHER, ""), (ADMIN, "learner-progress:report")):
        for method, path in (("PUT", "/answers"), ("POST", "/submit"), ("GET", "")):
            answer = service.http(method, f"/quiz-attempts/{attempt}{path}", {"answers": HALF}, sub=sub, scope=scope)
            assert (answer.status, code(answer)) == (404, "attempt_not_found")
    assert code(learner.save(service, str(uuid4()), HALF)) == "attempt_not_found"
    assert service.admin("PUT", f"/quiz-attempts/{attempt}/answers", {"answers": HALF}).status == 200
    assert learner.read(service, attempt)["answers"] == HALF


@pytest.mark.parametrize("ended_by", ["submit", "time", "sweep", "reset", "cancel", "revoke"])
def test_an_attempt_that_is_over_takes_no_draft(service: Service, ended_by: str):
    learner = enrolled(service, quiz(time_limit_seconds=60), quiz())
    attempt = learner.started(service)
    assert learner.save(service, attempt, HALF).status == 200
    match ended_by:
        case "submit":
            learner.submit(service, attempt, HALF)
        case "time":
            pass_time(service, 91)
        case "sweep":
            pass_time(service, 91)
            assert sweep() == 1
        case _:
            assert service.admin("POST", f"{learner.enrollment}/{ended_by}", {"reason": "r"}).status == 200
    before = learner.read(service, attempt)
    # Not even one that says nothing new.
    for draft in (HALF, RIGHT):
        answer = learner.save(service, attempt, draft)
        assert answer.status == 409
        assert code(answer) == {
            "submit": "attempt_closed",
            "time": "attempt_expired",
            "sweep": "attempt_closed",
            "reset": "attempt_set_aside",
            "cancel": "enrollment_inactive",
            "revoke": "enrollment_inactive",
        }.get(ended_by)
    assert learner.read(service, attempt) == before
    assert before["answers"] == HALF


def test_a_draft_of_100_kilobytes(service: Service):
    question = {"question_id": "essay", "kind": "text", "prompt": "?", "points": 1, "correct": ["x"]}
    learner = enrolled(service, quiz(questions=[question], time_limit_seconds=60))
    attempt = learner.started(service)
    draft = {"essay": 'Ünïcödé "quoted" \\ and\nnew lines 🎓 ' * 2500}
    assert len(json.dumps(draft)) > 100_000
    assert learner.save(service, attempt, draft).status == 200
    assert learner.start(service).json["answers"] == draft
    pass_time(service, 100)
    assert sweep() == 1
    assert learner.read(service, attempt)["answers"] == draft


NUMBERS = ["0.1", "1e-3", "12345678901234567890", "0.12345678901234567890", "-1E+2", "9.99e399", "1e-400"]


@pytest.mark.parametrize("closed_by", ["sweep", "start", "submit"])
def test_numbers_of_a_draft_are_exact_to_the_last_digit(service: Service, closed_by: str):
    questions = [
        {"question_id": f"n{n}", "kind": "numeric", "prompt": "?", "points": 1, "correct": Decimal(number)}
        for n, number in enumerate(NUMBERS)
    ]
    # Off by the last digit, so only an exact comparison can tell.
    questions += [
        {"question_id": "x", "kind": "numeric", "prompt": "?", "points": 1, "correct": Decimal("0.12345678901234567891")}
    ]
    learner = enrolled(service, quiz(questions=questions, time_limit_seconds=60))
    attempt = learner.started(service)
    answers = ", ".join(f'"n{n}": {number}' for n, number in enumerate(NUMBERS))
    draft = f'{{{answers}, "x": 0.12345678901234567890}}'
    saved = service.http("PUT", f"/quiz-attempts/{attempt}/answers", raw=f'{{"answers": {draft}}}')
    assert saved.status == 200
    pass_time(service, 100)
    if closed_by == "sweep":
        assert sweep() == 1
    elif closed_by == "start":
        learner.started(service)
    else:
        learner.submit(service, attempt, {})
    closed = learner.read(service, attempt)
    assert [question["points_earned"] for question in closed["questions"]] == [1.0] * len(NUMBERS) + [0.0]
    (row,) = service.rows("SELECT answers_snapshot::text AS answers FROM quiz_attempts WHERE id = %s", attempt)
    kept = simplejson.loads(row["answers"], use_decimal=True)
    assert kept == simplejson.loads(draft, use_decimal=True)


def test_numbers_of_a_draft_are_shown_as_numbers_and_as_they_were_saved(service: Service):
    questions = [
        {"question_id": f"n{n}", "kind": "numeric", "prompt": "?", "points": 1, "correct": 0} for n, _ in enumerate(NUMBERS)
    ]
    learner = enrolled(service, quiz(questions=questions))
    attempt = learner.started(service)
    draft = "{" + ", ".join(f'"n{n}": {number}' for n, number in enumerate(NUMBERS)) + "}"
    exact = simplejson.loads(draft, use_decimal=True)
    shown = [
        service.http("PUT", f"/quiz-attempts/{attempt}/answers", raw=f'{{"answers": {draft}}}'),
        service.http("GET", f"/quiz-attempts/{attempt}"),
        learner.start(service),
        # Whoever goes on with what was shown submits what was saved.
        service.http("POST", f"/quiz-attempts/{attempt}/submit", raw=f'{{"answers": {draft}}}'),
    ]
    assert [simplejson.loads(answer.text, use_decimal=True)["answers"] for answer in shown] == [exact] * 4


def test_a_number_at_the_rim_is_refused_or_kept(service: Service):
    question = {"question_id": "n", "kind": "numeric", "prompt": "?", "points": 1, "correct": 0}
    learner = enrolled(service, quiz(questions=[question]))
    for number in ("1e400", "-9.99e400", "1e-400", "1." + "0" * 399, "0e99999999", "0e-20000", "0." + "0" * 20_000):
        attempt = learner.start(service).json["id"]
        body = f'{{"answers": {{"n": {number}}}}}'
        saved = service.http("PUT", f"/quiz-attempts/{attempt}/answers", raw=body)
        submitted = service.http("POST", f"/quiz-attempts/{attempt}/submit", raw=body)
        assert (saved.status, submitted.status) in {(200, 200), (422, 422)}
        if saved.status == 200:
            # What was kept is the same answer still.
            (row,) = service.rows("SELECT answers_snapshot::text AS answers FROM quiz_attempts WHERE id = %s", attempt)
            again = service.http("POST", f"/quiz-attempts/{attempt}/submit", raw=f'{{"answers": {row["answers"]}}}')
            assert again.text == submitted.text


def test_a_key_with_a_number_at_the_rim_is_refused_or_can_be_graded_by(service: Service):
    question = {"question_id": "n", "kind": "numeric", "prompt": "?", "points": 1, "correct": 0, "tolerance": 0}
    taken = 0
    for field in ("correct", "tolerance", "points"):
        for number in ("9.99e399", "1e400", "9.99e400", "1e-400", "0e-20000"):
            asked = question | {field: Decimal(number)}, question | {"question_id": "m"}
            version = course(lessons=0, quizzes=[quiz(questions=list(asked), time_limit_seconds=60)])
            service.send("catalog", simplejson.dumps(event("course_version.published", version), use_decimal=True))
            learner = Learner(version)
            if service.http("PUT", learner.enrollment).status == 201:
                learner.started(service)
                taken += 1
    pass_time(service, 100)
    # One key that can't be read would keep everybody's attempts from being closed.
    assert sweep() == taken >= 6


# Attempts that ran out


def test_the_sweep_closes_attempts_that_ran_out_and_no_others(service: Service):
    learner = enrolled(service, *(quiz(required=n == 0, time_limit_seconds=None if n == 4 else 60) for n in range(6)))
    ids = [learner.started(service, n) for n in range(6)]
    for attempt in (ids[0], ids[2], ids[3], ids[4]):
        learner.save(service, attempt, HALF)
    for attempt, seconds in zip(ids, (91, 5000, 89, 0, 5000, 91), strict=True):
        pass_time(service, seconds, attempt)
    in_time = learner.submit(service, ids[5], WRONG).json
    assert sweep() == 2
    assert sweep() == 0
    attempts = [learner.read(service, attempt) for attempt in ids]
    assert [attempt["completed_at"] is None for attempt in attempts] == [False, False, True, True, True, False]
    for attempt, answers, score in ((attempts[0], HALF, 75.0), (attempts[1], {}, 0.0)):
        assert (attempt["answers"], attempt["score"], attempt["in_time"]) == (answers, score, False)
        assert attempt["completed_at"] == attempt["expires_at"]
        assert attempt["pass_threshold_percentage"] == 50
    assert [attempt["answers"] for attempt in attempts[2:]] == [HALF, HALF, HALF, in_time["answers"]]
    # The draft passed, so the enrolment is completed, at the time at which the attempt was over.
    enrollment = service.http("GET", learner.enrollment).json
    assert (enrollment["status"], enrollment["completed_at"]) == ("completed", attempts[0]["expires_at"])
    assert [published["type"] for published in service.published()].count("enrollment.completed") == 1
    check_books(service)


class Ending(Context):
    """The context of an invocation whose time runs out after so many looks at the clock."""

    def __init__(self, looks: int) -> None:
        super().__init__("QuizMaintenance")
        self.looks = looks

    def get_remaining_time_in_millis(self) -> int:
        self.looks -= 1
        return 30_000 if self.looks >= 0 else 15_000


def ending(looks: int) -> Any:
    return Ending(looks)


def many_that_ran_out(service: Service, learners: int) -> list[Learner]:
    """Learners in two course versions whose attempts at all three quizzes ran out; every second one had saved right answers."""
    versions = [enrolled(service, *(quiz(time_limit_seconds=60) for _ in range(3))).version for _ in range(2)]
    everyone = [Learner(versions[n % 2], UUID(int=n + 1)) for n in range(learners)]
    ids = [{"user_id": str(one.id), "course_version_id": one.version["course_version_id"]} for one in everyone]
    service.send("enrollment", [event("enrollment.requested", data) for data in ids])
    for n, learner in enumerate(everyone):
        for m in range(3):
            attempt = learner.started(service, m)
            if n % 2 == 0:
                learner.save(service, attempt, RIGHT)
    pass_time(service, 100)
    return everyone


def test_many_that_ran_out_are_closed_in_one_invocation_that_has_time_left(service: Service):
    learners = many_that_ran_out(service, 100)
    assert maintain({}, ending(0)) == {"closed": 0, "steps": 0}
    assert maintain({}, ending(2)) == {"closed": 300, "steps": 0}
    rows = service.rows("SELECT DISTINCT user_id, in_time, is_passed, completed_at = expires_at AS at_its_end FROM quiz_attempts")
    assert {(row["user_id"], row["in_time"], row["is_passed"], row["at_its_end"]) for row in rows} == {
        (learner.id, False, n % 2 == 0, True) for n, learner in enumerate(learners)
    }
    statuses = {row["user_id"]: row["status"] for row in service.rows("SELECT user_id, status FROM enrollments")}
    assert [statuses[learner.id] for learner in learners] == ["completed", "active"] * 50
    check_books(service)


def test_sweeps_at_once_close_each_attempt_once(service: Service, environments: Callable[[int], list[Environment]]):
    many_that_ran_out(service, 40)
    swept: list[int] = []
    at_once([lambda e=e: swept.append(e.sweep()) for e in environments(4)])
    assert sum(swept) == 120
    assert service.rows("SELECT 1 FROM quiz_attempts WHERE completed_at IS NULL") == []
    assert len(service.published("enrollment.completed")) == 20
    check_books(service)


@pytest.mark.parametrize("command", ["cancel", "revoke"])
def test_of_an_enrolment_that_ended_only_what_ran_out_before_is_closed(service: Service, command: str):
    learner = enrolled(service, *(quiz(time_limit_seconds=60) for _ in range(2)))
    before, after = (learner.started(service, n) for n in range(2))
    for attempt in (before, after):
        learner.save(service, attempt, RIGHT)
    pass_time(service, 200, before)
    assert service.admin("POST", f"{learner.enrollment}/{command}", {"reason": "r"}).status == 200
    # The second one runs out ten seconds after the end of the enrolment, which was 50 seconds ago.
    back = "SET {0} = {0} - interval '50 s', {1} = {1} - interval '50 s'"
    service.rows("UPDATE enrollments " + back.format("inactive_since", "commanded_at"))
    service.rows("UPDATE quiz_attempts SET expires_at = now() - interval '40 s' WHERE id = %s", after)
    assert sweep() == 1
    assert sweep() == 0
    assert (learner.read(service, before)["score"], learner.read(service, after)["completed_at"]) == (100.0, None)
    assert code(learner.submit(service, after, RIGHT)) == "enrollment_inactive"
    assert learner.status(service) == ("cancelled_by_user" if command == "cancel" else "revoked_by_admin")
    # Enrolled again, the learner has the other one closed as well.
    if command == "cancel":
        assert service.http("PUT", learner.enrollment).status == 200
    else:
        assert service.admin("POST", f"{learner.enrollment}/reinstate", {"reason": "r"}).status == 200
    assert sweep() == 1
    closed = learner.read(service, after)
    assert (closed["score"], closed["in_time"], closed["completed_at"]) == (100.0, False, closed["expires_at"])
    assert learner.status(service) == "completed"
    check_books(service)


def test_a_draft_that_passed_before_the_cancellation_completes_a_cancelled_enrolment(service: Service):
    learner = enrolled(service, quiz(time_limit_seconds=60))
    learner.save(service, learner.started(service), RIGHT)
    pass_time(service, 100)
    assert service.http("POST", f"{learner.enrollment}/cancel").status == 200
    assert sweep() == 1
    assert learner.status(service) == "completed"
    check_books(service)


# Limits


@pytest.mark.parametrize("ended_by", ["submit", "late submit", "sweep", "nothing", "queue"])
def test_the_delay_before_the_next_attempt_counts_from_the_end_of_the_last_one(service: Service, ended_by: str):
    learner = enrolled(service, quiz(time_limit_seconds=60, retry_delay_seconds=1000))
    if ended_by == "queue":
        service.send("quiz", learner.submission(WRONG))
    else:
        attempt = learner.started(service)
        if ended_by == "submit":
            learner.submit(service, attempt, WRONG)
        else:
            # It is over since 40 seconds, whoever notices when.
            pass_time(service, 100)
        if ended_by == "late submit":
            learner.submit(service, attempt, WRONG)
        if ended_by == "sweep":
            assert sweep() == 1
    pass_time(service, 900)
    early = learner.start(service)
    assert (early.status, code(early)) == (409, "retry_too_soon")
    (ends,) = service.rows("SELECT coalesce(completed_at, expires_at) + interval '1000 s' AS at FROM quiz_attempts")
    assert ends["at"].astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") in early.json["detail"]
    pass_time(service, 101)
    assert learner.start(service).json["attempt_number"] == 2


@pytest.mark.parametrize("swept", [True, False])
def test_the_delay_counts_from_whichever_attempt_ended_last(service: Service, swept: bool):
    learner = enrolled(service, quiz(time_limit_seconds=60, retry_delay_seconds=1000))
    attempt = learner.started(service)
    service.send("quiz", learner.submission(WRONG))
    # The open one ran out long before the other one was taken.
    pass_time(service, 5000, attempt)
    if swept:
        assert sweep() == 1
    assert learner.start(service).status == 409
    pass_time(service, 1001)
    assert learner.start(service).status == 201


def test_attempts_of_every_kind_use_up_the_limit_and_an_allowance_raises_it(service: Service):
    learner = enrolled(service, quiz(time_limit_seconds=60, max_attempts=3))
    learner.submit(service, learner.started(service), WRONG)
    learner.started(service)
    pass_time(service, 100)
    service.send("quiz", learner.submission(WRONG))
    none_left = learner.start(service)
    assert (none_left.status, code(none_left)) == (409, "no_attempts_left")
    assert "3" in none_left.json["detail"]

    # It is absolute: granted again, it is no more than that, and taken back, what was used stays used.
    for extra, number in ((1, 4), (1, None), (3, 5), (3, 6), (2, None), (0, None), (4, 7)):
        granted = learner.grant(service, extra_attempts=extra)
        assert granted.json == {
            "quiz_id": learner.version["quizzes"][0]["quiz_id"],
            "extra_attempts": extra,
            "extra_time_percentage": 0,
            "max_attempts": 3 + extra,
            "time_limit_seconds": 60,
        }
        start = learner.start(service)
        if number is None:
            assert code(start) == "no_attempts_left"
        else:
            assert (start.status, start.json["attempt_number"]) == (201, number)
            learner.submit(service, start.json["id"], WRONG)
    assert [attempt["attempt_number"] for attempt in learner.attempts(service)] == list(range(1, 8))
    check_books(service)


def test_a_quiz_without_limits_has_none_with_an_allowance_either(service: Service):
    learner = enrolled(service, quiz())
    granted = learner.grant(service, extra_attempts=5, extra_time_percentage=50)
    assert (granted.json["max_attempts"], granted.json["time_limit_seconds"]) == (None, None)
    for number in range(1, 8):
        start = learner.start(service).json
        assert (start["attempt_number"], start["expires_at"]) == (number, None)
        learner.submit(service, start["id"], WRONG)


def seconds(attempt: dict[str, Any]) -> float:
    """How long an attempt may take."""
    return (datetime.fromisoformat(attempt["expires_at"]) - datetime.fromisoformat(attempt["started_at"])).total_seconds()


def test_more_time_goes_to_the_open_attempt_and_to_the_next_one(service: Service):
    limits = [(60, 0, 60), (60, 50, 90), (90, 33, 119.7), (1, 1, 1.01), (3600, 10_000, 363_600)]
    learner = enrolled(service, *(quiz(time_limit_seconds=limit) for limit, _, _ in limits))
    bystander = Learner(learner.version, OTHER)
    service.http("PUT", bystander.enrollment, sub=OTHER)
    for n, (limit, percentage, more) in enumerate(limits):
        attempts = [one.started(service, n) for one in (learner, bystander)]
        assert seconds(learner.read(service, attempts[0])) == limit
        granted = learner.grant(service, n, extra_time_percentage=percentage)
        assert granted.json["time_limit_seconds"] == pytest.approx(more)
        assert seconds(learner.read(service, attempts[0])) == pytest.approx(more)
        assert seconds(learner.start(service, n).json) == pytest.approx(more)
        assert seconds(bystander.read(service, attempts[1])) == limit
        closed = learner.submit(service, attempts[0], WRONG).json
        again = learner.start(service, n)
        assert (again.status, seconds(again.json)) == (201, pytest.approx(more))
        # Taken back, the open attempt has the quiz's own time again; the one that is over stays as it was.
        learner.grant(service, n, extra_time_percentage=0)
        assert seconds(learner.read(service, again.json["id"])) == limit
        assert learner.read(service, attempts[0]) == closed


def test_time_that_is_taken_back_may_be_over_already(service: Service):
    learner = enrolled(service, quiz(time_limit_seconds=60))
    learner.grant(service, extra_time_percentage=100)
    attempt = learner.started(service)
    learner.save(service, attempt, HALF)
    pass_time(service, 100)
    assert sweep() == 0
    learner.grant(service, extra_time_percentage=0)
    assert code(learner.save(service, attempt, RIGHT)) == "attempt_expired"
    assert sweep() == 1
    closed = learner.read(service, attempt)
    assert (closed["answers"], closed["completed_at"], seconds(closed)) == (HALF, closed["expires_at"], 60)


def test_an_allowance_is_two_sensible_numbers_and_a_reason(service: Service):
    learner = enrolled(service, quiz(max_attempts=1, time_limit_seconds=60))
    refused = {
        f'{{"{field}": {value}}}': [f"#/{field}"]
        for field in ("extra_attempts", "extra_time_percentage")
        for value in ("-1", '"2"', "10001", "1e30", "9" * 40, "1.5", "true", "null", "[1]", "{}")
    } | {
        '{"extra_attempts": 1, "extra": 1}': ["#/extra"],
        '{"extra_attempts": -1, "extra_time_percentage": "1"}': ["#/extra_attempts", "#/extra_time_percentage"],
        '{"extra_attempts": 1, "reason": " "}': ["#/reason"],
        '{"extra_attempts": 1, "reason": 5}': ["#/reason"],
        "[]": ["#"],
        "null": ["#"],
        "": ["#"],
    }
    for body, pointers in refused.items():
        answer = service.admin("PUT", f"{learner.quiz()}/allowance", raw=body)
        assert (answer.status, [error["pointer"] for error in answer.json["errors"]]) == (422, pointers), body
    assert service.rows("SELECT 1 FROM quiz_allowances") == []
    assert learner.grant(service, extra_attempts=10_000, extra_time_percentage=10_000).status == 200
    # A whole number is one however it is written.
    assert learner.grant(service, extra_attempts=2.0).json["extra_attempts"] == 2


def test_the_history_tells_of_an_allowance(service: Service):
    learner = enrolled(service, quiz(max_attempts=1))
    learner.grant(service, extra_attempts=2, reason=" She was ill. ")
    learner.grant(service, extra_attempts=2, extra_time_percentage=25)
    # Nothing new, nothing to tell.
    learner.grant(service, extra_attempts=2, extra_time_percentage=25)
    entries = service.http("GET", f"{learner.enrollment}/history").json["items"]
    assert [entry["type"] for entry in entries] == ["created", "allowance_changed", "allowance_changed"]
    assert [(entry["actor"], entry["reason"]) for entry in entries[1:]] == [(str(ADMIN), "She was ill."), (str(ADMIN), None)]
    quiz_id = learner.version["quizzes"][0]["quiz_id"]
    assert [entry["details"] for entry in entries[1:]] == [
        {"quiz_id": quiz_id, "extra_attempts": 2, "extra_time_percentage": more} for more in (0, 25)
    ]
    # Nobody else is told, so it has no place in the sequence.
    assert [published["type"] for published in service.published()] == ["enrollment.created"]


def test_only_an_administrator_grants_and_only_where_there_is_something_to_grant(service: Service):
    learner = enrolled(service, quiz(max_attempts=1))
    path = f"{learner.quiz()}/allowance"
    for sub, scope in ((LEARNER, ""), (OTHER, ""), (OTHER, "learner-progress:report")):
        for target in (path, path.replace(str(LEARNER), str(uuid4()))):
            refused = service.http("PUT", target, {"extra_attempts": 1}, sub=sub, scope=scope)
            assert (refused.status, code(refused)) == (403, "forbidden")
    unknown = {
        f"{learner.enrollment}/quizzes/{uuid4()}/allowance": "quiz_not_found",
        path.replace(str(LEARNER), str(OTHER)): "enrollment_not_found",
        path.replace(learner.version["course_version_id"], str(uuid4())): "enrollment_not_found",
    }
    for target, expected in unknown.items():
        refused = service.admin("PUT", target, {"extra_attempts": 1})
        assert (refused.status, code(refused)) == (404, expected)
    assert service.rows("SELECT 1 FROM quiz_allowances") == []


# Starting over


def test_an_attempt_that_was_open_when_the_enrolment_was_started_over_is_set_aside(service: Service):
    learner = enrolled(service, quiz(time_limit_seconds=60, max_attempts=2, retry_delay_seconds=1000))
    graded = learner.started(service)
    before = learner.submit(service, graded, WRONG).json
    pass_time(service, 2000)
    before = learner.read(service, graded)
    attempt = learner.started(service)
    learner.save(service, attempt, RIGHT)
    assert learner.reset(service).status == 200

    for answer in (learner.submit(service, attempt, RIGHT), learner.save(service, attempt, HALF)):
        assert (answer.status, code(answer)) == (409, "attempt_set_aside")
    (entry,) = [e for e in service.http("GET", f"{learner.enrollment}/history").json["items"] if e["type"] == "reset"]
    aside = learner.read(service, attempt)
    assert (aside["set_aside_at"], aside["answers"], aside["completed_at"]) == (entry["recorded_at"], RIGHT, None)
    assert [set_aside["id"] for set_aside in entry["details"]["quiz_attempts"]] == [graded, attempt]
    # What was graded before stays so, for whoever asks again.
    assert learner.submit(service, graded, WRONG).json == before | {"set_aside_at": entry["recorded_at"]}
    assert code(learner.submit(service, graded, RIGHT)) == "attempt_closed"
    assert learner.attempts(service) == []

    # Numbers and limits start over.
    for number in (1, 2):
        start = learner.start(service)
        assert (start.status, start.json["attempt_number"], start.json["answers"]) == (201, number, {})
        assert start.json["id"] not in (graded, attempt)
        learner.submit(service, start.json["id"], WRONG)
        assert learner.start(service).status == 409
        pass_time(service, 1001)
    assert code(learner.start(service)) == "no_attempts_left"
    assert learner.read(service, attempt) == aside
    check_books(service)


def test_the_sweep_leaves_alone_what_was_set_aside(service: Service):
    learner = enrolled(service, quiz(time_limit_seconds=60))
    attempt = learner.started(service)
    learner.save(service, attempt, RIGHT)
    pass_time(service, 100)
    learner.reset(service)
    assert sweep() == 0
    assert learner.read(service, attempt)["completed_at"] is None
    assert code(learner.submit(service, attempt, RIGHT)) == "attempt_set_aside"
    assert learner.status(service) == "active"


@pytest.mark.parametrize("reset_first", [True, False])
def test_a_submit_just_before_or_behind_a_reset(
    service: Service, environments: Callable[[int], list[Environment]], reset_first: bool
):
    learner = enrolled(service, quiz())
    attempt = learner.started(service)
    one, two = environments(2)
    work: list[Callable[[], Any]] = [lambda: learner.submit(one, attempt, RIGHT), lambda: learner.reset(two)]
    outcome = one_after_the_other(service, *(work[::-1] if reset_first else work))
    submit, reset = outcome[::-1] if reset_first else outcome
    assert (reset.status, reset.json["status"]) == (200, "active")
    if reset_first:
        assert (submit.status, code(submit)) == (409, "attempt_set_aside")
    else:
        assert (submit.status, submit.json["score"], submit.json["set_aside_at"]) == (200, 100.0, None)
    assert learner.read(service, attempt)["score"] == (None if reset_first else 100.0)
    assert learner.attempts(service) == []
    assert learner.status(service) == "active"
    check_books(service)


@pytest.mark.parametrize("earlier", [0, 1])
@pytest.mark.parametrize("reset_first", [True, False])
def test_a_start_just_before_or_behind_a_reset(
    service: Service, environments: Callable[[int], list[Environment]], reset_first: bool, earlier: int
):
    learner = enrolled(service, quiz(max_attempts=2))
    for _ in range(earlier):
        learner.submit(service, learner.started(service), WRONG)
    one, two = environments(2)
    work: list[Callable[[], Any]] = [lambda: learner.start(one), lambda: learner.reset(two)]
    outcome = one_after_the_other(service, *(work[::-1] if reset_first else work))
    start, reset = outcome[::-1] if reset_first else outcome
    assert (start.status, reset.status) == (201, 200)
    attempt = start.json["id"]
    assert start.json["attempt_number"] == (1 if reset_first else 1 + earlier)
    assert [a["id"] for a in learner.attempts(service)] == ([attempt] if reset_first else [])
    assert (learner.read(service, attempt)["set_aside_at"] is None) == reset_first
    assert learner.submit(service, attempt, RIGHT).status == (200 if reset_first else 409)
    check_books(service)


@pytest.mark.parametrize("percentage", [50, 100])
@pytest.mark.parametrize("order", ["progress first", "reset first", "reset first, dated before"])
def test_progress_just_before_or_behind_a_reset(
    service: Service, environments: Callable[[int], list[Environment]], percentage: int, order: str
):
    learner = enrolled(service, lessons=1)
    one, two = environments(2)
    dated = {"occurred_at": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()} if "dated" in order else {}
    work: list[Callable[[], Any]] = [
        lambda: learner.learn(one, progress_percentage=percentage, **dated),
        lambda: learner.reset(two),
    ]
    first = order == "progress first"
    outcome = one_after_the_other(service, *(work if first else work[::-1]))
    progress, reset = outcome if first else outcome[::-1]
    assert (progress.status, reset.status, reset.json["status"]) == (200, 200, "active")
    (lesson,) = service.http("GET", f"{learner.enrollment}/progress").json["lessons"]
    # Also what is of now was reported before the reset took effect, since it was waiting already when that came through.
    assert (lesson["progress_percentage"], lesson["status"]) == (0, "not_started")
    assert progress.json["progress_percentage"] == (percentage if first else 0)
    assert learner.status(service) == "active"
    check_books(service)


def test_resets_amid_starts_submits_drafts_and_progress(service: Service, environments: Callable[[int], list[Environment]]):
    learner = enrolled(service, quiz(max_attempts=3, time_limit_seconds=60), lessons=1)
    answered: list[tuple[str, Answer]] = []
    before_the_last_reset: set[str] = set()
    is_over = threading.Event()

    def note(what: str, answer: Answer) -> Answer:
        answered.append((what, answer))
        return answer

    def started() -> set[str]:
        return {answer.json["id"] for what, answer in list(answered) if (what, answer.status) == ("start", 201)}

    def sit(environment: Environment, answers: dict[str, Any]) -> None:
        while not is_over.is_set():
            start = note("start", learner.start(environment))
            if start.status in (200, 201):
                note("save", learner.save(environment, start.json["id"], answers))
                note("submit", learner.submit(environment, start.json["id"], answers))

    def learn(environment: Environment, *percentages: int) -> None:
        while not is_over.is_set():
            for percentage in percentages:
                note("learn", learner.learn(environment, progress_percentage=percentage))

    def reset(environment: Environment) -> None:
        try:
            for n in range(40):
                # At one time at once, at another when the others have come further.
                seen = len(answered)
                until(lambda: len(answered) >= seen + n % 20)
                before_the_last_reset.update(started())
                note("reset", learner.reset(environment))
        finally:
            is_over.set()

    one, two, three, four, five, six = environments(6)
    at_once(
        [
            lambda: sit(one, RIGHT),
            lambda: sit(two, HALF),
            lambda: sit(three, WRONG),
            lambda: learn(four, 10, 100),
            lambda: learn(five, 100, 50),
            lambda: reset(six),
        ]
    )
    outcomes = Counter((what, answer.status if answer.status < 400 else code(answer)) for what, answer in answered)
    assert outcomes.keys() <= {
        *(("start", outcome) for outcome in (200, 201, "no_attempts_left")),
        *((what, outcome) for what in ("save", "submit") for outcome in (200, "attempt_closed", "attempt_set_aside")),
        ("learn", 200),
        ("reset", 200),
    }, outcomes
    assert outcomes["reset", 200] == 40
    check_books(service)
    # Every attempt that was started is there, and none from before the last reset counts.
    assert {str(row["id"]) for row in service.rows("SELECT id FROM all_quiz_attempts")} == started()
    attempts = service.rows("SELECT * FROM quiz_attempts")
    assert before_the_last_reset
    assert before_the_last_reset.isdisjoint(str(row["id"]) for row in attempts)
    # The enrolment is completed by what counts, and by nothing else.
    lessons = service.rows("SELECT p.* FROM lesson_progress p, enrollments e WHERE p.started_at >= e.reset_at")
    assert len(lessons) == len(service.rows("SELECT 1 FROM lesson_progress"))
    is_fulfilled = any(row["is_passed"] for row in attempts) and any(row["status"] == "completed" for row in lessons)
    assert learner.status(service) == ("completed" if is_fulfilled else "active")

    assert learner.reset(service).status == 200
    assert (learner.attempts(service), learner.status(service)) == ([], "active")
    (lesson,) = service.http("GET", f"{learner.enrollment}/progress").json["lessons"]
    assert lesson["status"] == "not_started"


# Evidence


@st.composite
def quizzes_and_answers(draw: st.DrawFn) -> tuple[list[Question], list[dict[str, Any]], Decimal]:
    """Questions of all kinds, several attempts at them, and a threshold."""
    asked, _ = numbered(draw(st.lists(asked_and_answers(), min_size=1, max_size=5)))
    attempts: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        answers: dict[str, Any] = {}
        for question in asked:
            _, answer = draw(asked_and_answers())
            if KINDS[question.kind].fits(answer) and "\\u0000" not in json.dumps(answer) and draw(st.booleans()):
                answers[question.question_id] = answer
        attempts.append(answers)
    return asked, attempts, draw(st.decimals(0, 100, places=2))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(quizzes_and_answers())
def test_grading_the_snapshot_again_by_the_stored_key_gives_the_stored_grade(
    service: Service, drawn: tuple[list[Question], list[dict[str, Any]], Decimal]
):
    asked, attempts, threshold = drawn
    questions = [question.model_dump() for question in asked]
    learner = enrolled(service, quiz(questions=questions, pass_threshold_percentage=threshold, time_limit_seconds=60))
    batch = [learner.submission(answers) for answers in attempts]
    service.send("quiz", simplejson.dumps(batch, use_decimal=True))
    # The last ones go the other ways: submitted, and saved and left to the sweep.
    body = simplejson.dumps({"answers": attempts[-1]}, use_decimal=True)
    assert service.http("POST", f"/quiz-attempts/{learner.started(service)}/submit", raw=body).status == 200
    assert service.http("PUT", f"/quiz-attempts/{learner.started(service)}/answers", raw=body).status == 200
    pass_time(service, 100)
    assert sweep() == 1
    rows = service.rows(
        """
        SELECT a.score, a.is_passed, a.question_results, a.pass_threshold_percentage, a.answers_snapshot::text AS answers,
            k.questions::text AS questions
        FROM quiz_attempts a
        JOIN quiz_answer_keys k ON k.course_version_id = a.key_course_version_id AND k.quiz_id = a.quiz_id
            AND k.key_version = a.key_version
        WHERE a.enrolled_course_version_id = %s ORDER BY a.attempt_number
        """,
        learner.version["course_version_id"],
    )
    assert len(rows) == len(attempts) + 2
    for row, answers in zip(rows, [*attempts, attempts[-1], attempts[-1]], strict=True):
        stored = QUESTIONS.validate_python(simplejson.loads(row["questions"], use_decimal=True))
        snapshot = simplejson.loads(row["answers"], use_decimal=True)
        again = grade(stored, snapshot, row["pass_threshold_percentage"])
        kept = (row["score"], row["is_passed"], row["question_results"], row["pass_threshold_percentage"])
        assert kept == (again.score, again.is_passed, again.question_results, threshold)
        # Nor does it make a difference that it went through the database.
        assert kept[:3] == ((first := grade(asked, answers, threshold)).score, first.is_passed, first.question_results)
