"""Answer keys that are corrected after attempts were graded by them, and attempts that are graded again."""

import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import simplejson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from pydantic import TypeAdapter

from functions.quiz_api import app as quiz_api
from functions.quiz_maintenance import app as quiz_maintenance
from shared import db
from shared.quiz import regrades, rules
from shared.quiz import service as quiz_service
from shared.quiz.models import Question
from tests.integration.test_attempts import Environment
from tests.support.service import Context, Service, at_once, course, event, now, quiz

#: Random regrades; without the variable there are few, and always the same ones.
REGRADES = int(os.environ.get("REGRADES", "25"))

QUESTIONS: TypeAdapter[tuple[Question, ...]] = TypeAdapter(tuple[Question, ...])

#: Execution environments that work at once.
ENVIRONMENTS = 9

#: Answers by what they earn of four points before and after the first question's key is corrected from a to b.
FALLS, RISES, STAYS, FAILS = {"q1": "a"}, {"q1": "b"}, {"q2": 0.1}, {"q2": 7}
#: What the correction is.
TO_B = {"question_id": "q1", "correct": "b"}
EARLY, LATER = "2026-01-02T12:00:00Z", "2026-01-03T12:00:00Z"


# What everybody uses


@dataclass(frozen=True)
class Learner:
    """A learner in one course version."""

    service: Service
    version: dict[str, Any]
    user_id: UUID = field(default_factory=uuid4)

    @property
    def about(self) -> dict[str, str]:
        return {"user_id": str(self.user_id), "course_version_id": self.version["course_version_id"]}

    @property
    def path(self) -> str:
        return f"/users/{self.user_id}/enrollments/{self.version['course_version_id']}"

    def enrol(self) -> "Learner":
        self.service.send("catalog", event("learner.updated", {"user_id": str(self.user_id), "name": "Ada Lovelace"}))
        self.service.send("enrollment", event("enrollment.requested", self.about, "2026-01-01T12:00:00Z"))
        return self

    def learn(self, time: str = EARLY) -> None:
        """Complete all lessons."""
        lessons = [self.about | {"lesson_id": lesson["lesson_id"], "status": "completed"} for lesson in self.version["lessons"]]
        self.service.send("progress", [event("lesson.progressed", lesson, time) for lesson in lessons])

    def attempt(self, answers: dict[str, Any], time: str = EARLY, *, number: int = 0) -> dict[str, Any]:
        """The message that brings an attempt."""
        ids = {"attempt_id": str(uuid4()), "quiz_id": self.version["quizzes"][number]["quiz_id"]}
        return event("quiz.submitted", self.about | ids | {"answers": answers}, time)

    def sit(self, answers: dict[str, Any], time: str = EARLY, *, number: int = 0) -> str:
        """Submit an attempt by the queue; gives its id."""
        message = self.attempt(answers, time, number=number)
        self.service.send("quiz", message)
        return message["data"]["attempt_id"]

    def command(self, name: str, **fields: Any) -> None:
        answer = self.service.admin("POST", f"{self.path}/{name}", {"reason": "So it is."} | fields)
        assert answer.status in (200, 201), answer.text

    def waive(self, number: int = 0) -> None:
        requirement = self.version["quizzes"][number]["quiz_id"]
        answer = self.service.admin("PUT", f"{self.path}/requirements/{requirement}/waiver", {"reason": "So it is."})
        assert answer.status == 200, answer.text

    def enrollment(self) -> dict[str, Any]:
        query = "SELECT * FROM enrollments WHERE user_id = %s AND course_version_id = %s"
        return self.service.rows(query, self.user_id, self.version["course_version_id"])[0]

    def attempts(self) -> list[dict[str, Any]]:
        query = (
            "SELECT * FROM quiz_attempts WHERE user_id = %s AND enrolled_course_version_id = %s ORDER BY quiz_id, attempt_number"
        )
        return self.service.rows(query, self.user_id, self.version["course_version_id"])

    def grades(self) -> list[tuple[float, bool, bool, int]]:
        """Score, pass, whether that was only kept, and key version of each attempt."""
        return [(a["score"], a["is_passed"], a["pass_kept"], a["key_version"]) for a in self.attempts()]

    def certificate(self) -> dict[str, Any] | None:
        query = "SELECT * FROM certificates WHERE user_id = %s AND course_version_id = %s"
        found = self.service.rows(query, self.user_id, self.version["course_version_id"])
        return found[0] if found else None

    def certificate_status(self) -> str | None:
        certificate = self.certificate()
        if certificate is None:
            return None
        return self.service.http("GET", f"/certificates/{certificate['certificate_uid']}", sub=None).json["status"]

    def events(self, type_: str | None = None) -> list[dict[str, Any]]:
        """The data of what was published about the enrolment, in the order of its numbers."""
        about = self.about.items()
        return [e["data"] | {"type": e["type"]} for e in self.service.published(type_) if about <= e["data"].items()]


def small_quiz(**fields: Any) -> dict[str, Any]:
    """A quiz of four points, of which one is enough."""
    return quiz(pass_threshold_percentage=25, **fields)


def published(service: Service, **fields: Any) -> dict[str, Any]:
    """A course version with a required quiz and no lessons, unless said otherwise."""
    body: dict[str, Any] = {"lessons": 0, "quizzes": [small_quiz()]} | fields
    version = course(**body)
    service.send("catalog", event("course_version.published", version))
    return version


def correction(version: dict[str, Any], *changes: dict[str, Any], time: str | None = None, number: int = 0) -> dict[str, Any]:
    """The message that corrects questions: each as it was published, but for what changes."""
    questions = {question["question_id"]: question for question in version["quizzes"][number]["questions"]}
    ids = {"course_version_id": version["course_version_id"], "quiz_id": version["quizzes"][number]["quiz_id"]}
    corrected = [questions.get(change.get("question_id"), {}) | change for change in changes]
    return event("quiz.answer_key_corrected", ids | {"questions": corrected}, time)


def regrade_path(version: dict[str, Any], number: int = 0) -> str:
    return f"/course-versions/{version['course_version_id']}/quizzes/{version['quizzes'][number]['quiz_id']}/regrade"


def regrade(service: Service, version: dict[str, Any], *, dry_run: bool, **fields: Any) -> dict[str, Any]:
    """A regrade by an administrator, once it is completed."""
    answer = service.admin("POST", regrade_path(version), {"dry_run": dry_run} | fields)
    assert (answer.status, answer.json["status"]) == (200, "completed"), answer.text
    return answer.json


def keys(service: Service, version: dict[str, Any], number: int = 0) -> list[list[dict[str, Any]]]:
    """The questions of all keys of a quiz, the first one first."""
    query = "SELECT questions FROM quiz_answer_keys WHERE course_version_id = %s AND quiz_id = %s ORDER BY key_version"
    found = service.rows(query, version["course_version_id"], version["quizzes"][number]["quiz_id"])
    return [row["questions"] for row in found]


class Invocation(Context):
    """An invocation of the maintenance whose time is over once no regrade is left, or after so many looks."""

    def __init__(self, service: Service, looks: int) -> None:
        super().__init__("quiz_maintenance")
        self.service, self.looks = service, looks

    def get_remaining_time_in_millis(self) -> int:
        left = self.service.rows("SELECT id FROM quiz_regrades WHERE completed_at IS NULL")
        self.looks -= 1
        return 30_000 if left and self.looks >= 0 else 0


def maintain(service: Service, looks: int = 10_000, environment: Environment | None = None) -> int:
    """Let the maintenance work until no regrade is left; gives the number of its steps."""
    context: Any = Invocation(Service(service.database_url), looks)
    if environment:
        return environment.call("functions.quiz_maintenance.app", "handler", {}, context)["steps"]
    return quiz_maintenance.handler({}, context)["steps"]


def deliver(service: Service) -> None:
    """Hand everything over that waits for nothing."""
    while service.deliver():
        pass


def codes(service: Service) -> list[tuple[str, str]]:
    return [(letter["code"], letter["reason"]) for letter in service.dead_letters()]


def everything(service: Service) -> dict[str, list[Any]]:
    """All rows of all tables but those that regrades themselves are kept in."""
    with psycopg.connect(service.database_url) as conn:
        names = conn.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE 'quiz\\_regrade%'"
        ).fetchall()
        query = sql.SQL("SELECT t::text FROM {} t ORDER BY 1")
        return {name: conn.execute(query.format(sql.Identifier(name))).fetchall() for (name,) in names}


def check(service: Service) -> None:
    """What holds whenever nothing is under way, whatever happened before."""
    graded_by = {
        (row["course_version_id"], row["quiz_id"], row["key_version"]): QUESTIONS.validate_python(
            simplejson.loads(row["questions"], use_decimal=True)
        )
        for row in service.rows("SELECT *, questions::text AS questions FROM quiz_answer_keys")
    }
    gradings = service.rows(
        """
        SELECT id, quiz_id, key_course_version_id, key_version, pass_threshold_percentage, answers_snapshot::text AS answers,
            score, is_passed, pass_kept, question_results
        FROM quiz_attempts WHERE completed_at IS NOT NULL
        UNION ALL
        SELECT a.id, a.quiz_id, a.key_course_version_id, g.key_version, a.pass_threshold_percentage, a.answers_snapshot::text,
            g.score, g.is_passed, g.pass_kept, g.question_results
        FROM quiz_attempt_gradings g JOIN all_quiz_attempts a ON a.id = g.attempt_id
        """
    )
    for grading in gradings:
        # What an attempt was graded, now and before, is what its answers are worth by the key that it names.
        key = graded_by[grading["key_course_version_id"], grading["quiz_id"], grading["key_version"]]
        answers = simplejson.loads(grading["answers"], use_decimal=True)
        grade = rules.grade(key, answers, grading["pass_threshold_percentage"])
        assert (grading["score"], grading["question_results"]) == (grade.score, grade.question_results)
        assert (grading["is_passed"], grading["pass_kept"]) == (
            grade.is_passed or grading["pass_kept"],
            grading["pass_kept"] and not grade.is_passed,
        )
    # Each grade that was replaced was told of, once.
    told = Counter(e["data"]["attempt_id"] for e in service.published("quiz.regraded"))
    replaced = Counter(str(row["attempt_id"]) for row in service.rows("SELECT attempt_id FROM quiz_attempt_gradings"))
    assert told == replaced
    # The events of an enrolment are numbered without a gap.
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for e in service.published():
        numbers[e["data"]["user_id"], e["data"]["course_version_id"]].append(e["data"]["sequence"])
    for row in service.rows("SELECT * FROM enrollments"):
        sequence = numbers[str(row["user_id"]), str(row["course_version_id"])]
        assert sequence == list(range(1, row["sequence"] + 1))
    # No grade is of an older key than its quiz, unless that is still to be done.
    stale = service.rows(
        """
        SELECT a.id, a.key_version, q.key_version AS present FROM quiz_attempts a
        JOIN course_version_quizzes q ON q.course_version_id = a.key_course_version_id AND q.quiz_id = a.quiz_id
        WHERE a.key_version <> q.key_version AND NOT EXISTS (
            SELECT FROM quiz_regrades r WHERE r.course_version_id = q.course_version_id AND r.quiz_id = q.quiz_id
                AND NOT r.dry_run AND r.completed_at IS NULL
        )
        """
    )
    assert stale == []


@pytest.fixture(autouse=True)
def checked(service: Service) -> Generator[None]:
    """After each test, what always holds."""
    yield
    check(service)


@pytest.fixture(scope="module")
def started() -> Generator[list[Environment]]:
    environments: list[Environment] = []
    yield environments
    for environment in environments:
        environment.end()


@pytest.fixture
def environments(service: Service, started: list[Environment]) -> list[Environment]:
    """Execution environments in processes of their own, which take small steps when they grade again."""
    while len(started) < ENVIRONMENTS:
        started.append(Environment())
    for environment in started:
        environment.database_url = service.database_url
        environment.call(__name__, "take_small_steps")
    return started


def take_small_steps() -> None:
    """Grade three learners again at a time."""
    quiz_service._LEARNERS = 3


@contextmanager
def blocked(service: Service, table: str) -> Generator[Callable[[Callable[[], Any]], None]]:
    """Hold locks on a table's rows, and have works begin that wait for them, each behind the one before; then let all go."""
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []

    def run(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            db.close()

    def begin(work: Callable[[], Any]) -> None:
        threads.append(threading.Thread(target=run, args=[work]))
        threads[-1].start()
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        while len(service.rows(query)) < len(threads):
            assert threads[-1].is_alive(), errors
            time.sleep(0.01)

    with psycopg.connect(service.database_url) as conn:
        conn.execute(sql.SQL("SELECT FROM {} FOR UPDATE").format(sql.Identifier(table)))
        yield begin
    for thread in threads:
        thread.join()
    assert errors == []


# Corrections by queue


def test_a_correction_grades_again_keeps_passes_and_completes_what_is_due(service: Service):
    version = published(service, quizzes=[small_quiz(), small_quiz(required=False)])
    falls, rises, stays, other = (Learner(service, version).enrol() for _ in range(4))
    kept, gained = falls.sit(FALLS), rises.sit(RISES, LATER)
    stays.sit(STAYS)
    other.sit(RISES, number=1)
    deliver(service)
    assert [learner.enrollment()["status"] for learner in (falls, rises, stays, other)] == [
        "completed",
        "active",
        "completed",
        "active",
    ]
    before = everything(service)

    service.send("catalog", correction(version, TO_B))
    first, second = keys(service, version)
    assert second == [first[0] | {"correct": "b"}, first[1]]
    assert len(keys(service, version, 1)) == 1
    # Nothing else happens at that moment.
    assert everything(service)["quiz_attempts"] == before["quiz_attempts"]

    maintain(service)
    assert falls.grades() == [(0.0, True, True, 2)]
    assert rises.grades() == [(75.0, True, False, 2)]
    assert stays.grades() == [(25.0, True, False, 2)]
    # The other quiz has the same questions, and its key was not corrected.
    assert other.grades() == [(0.0, False, False, 1)]
    assert rises.enrollment()["completed_at"].isoformat() == LATER.replace("Z", "+00:00")
    deliver(service)
    assert [learner.certificate_status() for learner in (falls, rises, stays, other)] == ["valid", "valid", "valid", None]

    seen = service.http("GET", f"/quiz-attempts/{kept}", sub=falls.user_id).json
    assert (seen["score"], seen["is_passed"], seen["pass_kept"], seen["key_version"]) == (0.0, True, True, 2)
    assert [(g["key_version"], g["score"], g["is_passed"]) for g in seen["earlier_gradings"]] == [(1, 75.0, True)]
    assert [q["points_earned"] for q in seen["questions"]] == [0.0, 0.0]
    seen = service.http("GET", f"/quiz-attempts/{gained}", sub=rises.user_id).json
    assert [(g["key_version"], g["score"], g["is_passed"]) for g in seen["earlier_gradings"]] == [(1, 0.0, False)]

    assert [e["type"] for e in rises.events()] == [
        "enrollment.created",
        "quiz.graded",
        "quiz.regraded",
        "enrollment.completed",
        "certificate.issued",
    ]
    (told,) = rises.events("quiz.regraded")
    assert told | {"status": "active", "previous_score": 0.0, "score": 75.0, "is_passed": True, "attempt_id": gained} == told
    (told,) = falls.events("quiz.regraded")
    assert told | {"status": "completed", "previous_score": 75.0, "score": 0.0, "is_passed": True} == told
    assert stays.events("quiz.regraded") == []
    (done,) = service.rows("SELECT * FROM quiz_regrades")
    assert (done["attempts"], done["attempts_changed"], done["dry_run"], done["take_away"]) == (3, 2, False, False)
    assert done["actor"] == "tests"


def test_a_correction_that_comes_again_changes_nothing(service: Service):
    version = published(service)
    learner = Learner(service, version).enrol()
    learner.sit(FALLS)
    message = correction(version, TO_B)
    service.send("catalog", [message, message], message)
    service.send("catalog", message)
    maintain(service)
    before = everything(service)
    service.send("catalog", message, message | {"id": str(uuid4())})
    # Said once more later, it is confirmed, which makes no new key.
    service.send("catalog", correction(version, TO_B))
    assert maintain(service) == 0
    changed = {table for table, rows in everything(service).items() if rows != before[table]}
    assert changed == {"quiz_answer_keys"}
    assert len(keys(service, version)) == 2
    assert len(learner.events("quiz.regraded")) == 1
    assert codes(service) == []


def test_a_pass_that_was_kept_is_deserved_again_once_the_key_is_corrected_back(service: Service):
    version = published(service)
    learner = Learner(service, version).enrol()
    attempt = learner.sit(FALLS)
    for n, (correct, grade) in enumerate([("b", (0.0, True, True)), ("a", (75.0, True, False)), ("b", (0.0, True, True))]):
        service.send("catalog", correction(version, {"question_id": "q1", "correct": correct}))
        maintain(service)
        assert learner.grades() == [(*grade, n + 2)]
    gradings = service.http("GET", f"/quiz-attempts/{attempt}", sub=learner.user_id).json["earlier_gradings"]
    assert [(g["key_version"], g["score"], g["is_passed"]) for g in gradings] == [
        (1, 75.0, True),
        (2, 0.0, True),
        (3, 75.0, True),
    ]
    assert len(learner.events("enrollment.completed")) == 1


TIMES = ["2026-01-05T12:00:00Z", "2026-01-05T12:00:00.000001Z", "2026-01-05T14:00:00+01:00"]


def in_every_order(service: Service, changes: list[tuple[dict[str, Any], str]], *, together: bool) -> set[str]:
    """The keys that corrections end with, in each order of their arrival, with grades to match."""
    ends: set[str] = set()
    for order in permutations(changes):
        version = published(service)
        learner = Learner(service, version).enrol()
        learner.sit(FALLS | STAYS)
        messages = [correction(version, change, time=time) for change, time in order]
        if together:
            service.send("catalog", messages)
        else:
            for message in messages:
                service.send("catalog", message)
                maintain(service)
        maintain(service)
        ends.add(json.dumps([keys(service, version)[-1], learner.attempts()[0]["score"]], sort_keys=True))
        assert len(keys(service, version)) <= len(changes) + 1
    assert codes(service) == []
    return ends


@pytest.mark.parametrize("together", [False, True])
def test_of_two_corrections_of_a_question_the_later_one_counts_in_whatever_order_they_come(service: Service, together: bool):
    # Alphabetically the last one is not the latest one.
    changes = [({"question_id": "q1", "prompt": prompt}, time) for prompt, time in zip("yxw", TIMES, strict=True)]
    (end,) = in_every_order(service, changes, together=together)
    assert [question["prompt"] for question in json.loads(end)[0]] == ["w", "?"]


@pytest.mark.parametrize("together", [False, True])
def test_corrections_of_different_questions_add_up_in_whatever_order_they_come(service: Service, together: bool):
    changes = [(TO_B, TIMES[2]), ({"question_id": "q2", "points": 9}, TIMES[0]), ({"question_id": "q2", "points": 2}, TIMES[1])]
    (end,) = in_every_order(service, changes, together=together)
    questions, score = json.loads(end)
    assert [(q["correct"], q["points"]) for q in questions] == [("b", 3), (0.1, 2)]
    assert score == 40.0


@pytest.mark.parametrize("together", [False, True])
def test_corrections_of_the_same_moment_end_the_same_in_whatever_order_they_come(service: Service, together: bool):
    changes = [({"question_id": "q1", "prompt": prompt, "correct": correct}, TIMES[0]) for prompt, correct in ("xb", "ya", "xa")]
    assert len(in_every_order(service, changes, together=together)) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"question_id": "q3", "kind": "numeric", "prompt": "?", "points": 1, "correct": 1},
            "/1/question_id: the quiz has no such question",
        ),
        ({"question_id": "q1", "correct": "c"}, "/1/correct: the key names "),
        ({"question_id": "q1", "points": -1}, "/1/points: "),
        ({"question_id": "q1", "choices": [{"id": "a", "text": "A"}] * 2}, "/1/choices: the choice "),
        ({"question_id": "q1", "kind": "guess"}, "/1"),
        ({"question_id": "q1", "kind": "multiple_choice", "correct": []}, "/1/correct: expected at least one choice id"),
        ({"question_id": "q2", "prompt": "!"}, ": the question "),
        ({"question_id": "q1", "points": 0}, ": the questions have no points"),
        (
            {"question_id": "q1", "kind": "mapped", "points": 1, "correct": {"a": 1}, "lower_bound": 2, "upper_bound": 1},
            "/1: lower_bound is greater than upper_bound",
        ),
    ],
)
def test_a_key_that_cannot_be_right_is_refused_with_its_place(service: Service, change: dict[str, Any], reason: str):
    version = published(service)
    learner = Learner(service, version).enrol()
    learner.sit(RISES)
    # One sound question beside it is not corrected either: a correction is taken as a whole.
    wrong = correction(version, {"question_id": "q2", "points": 0}, change)
    service.send("catalog", [wrong, correction(version, TO_B)])
    letters = service.dead_letters()
    assert [(letter["code"], json.loads(letter["body"])) for letter in letters] == [("invalid", wrong)]
    assert letters[0]["reason"].startswith(f"#/data/questions{reason}")
    assert [(q["correct"], q["points"]) for q in keys(service, version)[-1]] == [("b", 3), (0.1, 1)]
    maintain(service)
    assert learner.grades() == [(75.0, True, False, 2)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"questions": []}, "#/data/questions: "),
        ({"questions": None}, "#/data/questions: "),
        ({"quiz_id": "q"}, "#/data/quiz_id: "),
    ],
)
def test_a_correction_of_the_wrong_form_is_refused_with_its_place(service: Service, data: dict[str, Any], reason: str):
    version = published(service)
    message = correction(version, TO_B)
    service.send("catalog", message | {"data": message["data"] | data})
    ((code, detail),) = codes(service)
    assert (code, detail[: len(reason)]) == ("invalid", reason)


def test_a_quiz_that_the_course_version_does_not_have_is_no_quiz_to_correct(service: Service):
    version, other = published(service), published(service)
    lost = correction(version, TO_B)
    lost["data"]["quiz_id"] = other["quizzes"][0]["quiz_id"]
    service.send("catalog", [lost, correction(other, TO_B)])
    assert [(letter["code"], json.loads(letter["body"])) for letter in service.dead_letters()] == [("quiz_not_found", lost)]
    assert (len(keys(service, version)), len(keys(service, other))) == (1, 2)


def test_a_correction_waits_for_its_course_version(service: Service):
    version = course(lessons=0, quizzes=[small_quiz()])
    early = correction(version, TO_B)
    service.send("catalog", early)
    (waiting,) = service.rows("SELECT * FROM outbox")
    assert (waiting["destination"], waiting["code"], json.loads(waiting["body"])) == ("queue", "course_version_not_found", early)
    service.send("catalog", event("course_version.published", version))
    assert service.deliver() == 1
    assert [q["correct"] for q in keys(service, version)[-1]] == ["b", 0.1]
    assert codes(service) == []


@pytest.mark.parametrize("first", ["version", "correction"])
def test_a_correction_may_come_in_one_batch_with_its_course_version(service: Service, first: str):
    version = course(lessons=0, quizzes=[small_quiz()])
    batch = [event("course_version.published", version), correction(version, TO_B)]
    service.send("catalog", batch if first == "version" else batch[::-1])
    assert [question["correct"] for question in keys(service, version)[-1]] == ["b", 0.1]
    assert service.rows("SELECT id FROM outbox") == []


def test_a_course_version_may_be_published_again_with_its_first_or_its_corrected_keys_alone(service: Service):
    version = published(service, quizzes=[small_quiz(), small_quiz()])
    service.send("catalog", correction(version, TO_B))
    service.send("catalog", correction(version, {"question_id": "q2", "correct": 0.2}, number=1))

    def body(first: dict[str, Any], second: dict[str, Any], **fields: Any) -> dict[str, Any]:
        questions = [dict(question) for question in version["quizzes"][0]["questions"]]
        quizzes = [
            version["quizzes"][0] | {"questions": [questions[0] | first, questions[1]]},
            version["quizzes"][1] | {"questions": [questions[0], questions[1] | second]},
        ]
        return event("course_version.published", version | {"quizzes": quizzes} | fields)

    before = everything(service)
    service.send("catalog", body({}, {}), body({"correct": "b"}, {"correct": 0.2}), body({"correct": "b"}, {}))
    service.send("catalog", [body({}, {"correct": 0.20}), body({"correct": "b"}, {"correct": 0.2}, title="Social science")])
    assert everything(service) == before

    others = [
        body({"correct": "b"}, {"correct": 0.2}, title="Other"),
        body({"correct": "b", "points": 4}, {}),
        body({}, {"correct": 0.3}),
        body({"prompt": "!"}, {}),
    ]
    service.send("catalog", others)
    assert sorted(letter["body"] for letter in service.dead_letters()) == sorted(json.dumps(other) for other in others)
    assert {code for code, _ in codes(service)} == {"course_version_changed"}
    assert [len(keys(service, version, number)) for number in (0, 1)] == [2, 2]


def test_a_correction_may_change_what_kind_of_question_it_is(service: Service):
    version = published(service)
    before, after = Learner(service, version).enrol(), Learner(service, version).enrol()
    before.sit(FALLS)
    changed = {"question_id": "q1", "kind": "multiple_choice", "correct": ["a", "b"], "prompt": "Which ones?"}
    service.send("catalog", correction(version, changed))
    # The environment that takes this has the former key in memory.
    after.sit({"q1": ["b", "a"]})
    assert codes(service) == []
    assert after.grades() == [(75.0, True, False, 2)]
    maintain(service)
    assert before.grades() == [(0.0, True, True, 2)]


def test_whoever_has_the_former_key_in_memory_grades_by_the_corrected_one(service: Service, environments: list[Environment]):
    version = published(service)
    learner = Learner(service, version).enrol()
    path = f"{learner.path}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
    worker, api = environments[:2]
    worker.send("quiz", learner.attempt(FALLS))
    attempt = api.http("POST", path, sub=learner.user_id).json["id"]
    service.send("catalog", correction(version, TO_B))
    # There is no regrade any more that would mend it.
    maintain(service)
    worker.send("quiz", learner.attempt(RISES))
    done = api.http("POST", f"/quiz-attempts/{attempt}/submit", {"answers": RISES}, sub=learner.user_id)
    assert (done.status, done.json["score"], done.json["key_version"]) == (200, 75.0, 2)
    assert learner.grades() == [(0.0, True, True, 2), (75.0, True, False, 2), (75.0, True, False, 2)]


def test_answers_over_http_are_judged_by_the_corrected_question(service: Service):
    version = published(service)
    learner = Learner(service, version).enrol()
    attempts = f"{learner.path}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
    started = service.http("POST", attempts, sub=learner.user_id).json
    changed = {"question_id": "q1", "kind": "multiple_choice", "correct": ["a", "b"], "prompt": "Which ones?"}
    service.send("catalog", correction(version, changed))
    answers = {"answers": {"q1": ["b", "a"]}}
    draft = service.http("PUT", f"/quiz-attempts/{started['id']}/answers", answers, sub=learner.user_id)
    assert draft.status == 200, draft.text
    done = service.http("POST", f"/quiz-attempts/{started['id']}/submit", answers, sub=learner.user_id)
    assert (done.status, done.json["score"], done.json["key_version"]) == (200, 75.0, 2), done.text


@pytest.mark.parametrize("number", ["9.99e399", "-1e399", "1e-400", "-1.5e-400", "1" + "0" * 399, "0." + "0" * 399 + "1"])
def test_the_greatest_and_the_least_numbers_come_back_as_they_were(service: Service, number: str):
    version = course(lessons=0, quizzes=[small_quiz()])

    def send(queue: str, message: dict[str, Any]) -> None:
        service.send(queue, json.dumps(message).replace('"N"', number))

    version["quizzes"][0]["questions"][1]["correct"] = "N"
    send("catalog", event("course_version.published", version))
    learner = Learner(service, version).enrol()
    send("quiz", learner.attempt({"q2": "N"}))
    send("catalog", correction(version, {"question_id": "q1", "points": 1}))
    maintain(service)
    assert codes(service) == []
    assert learner.grades() == [(50.0, True, False, 2)]
    assert [e["previous_score"] for e in learner.events("quiz.regraded")] == [25.0]


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1e-401", "1" + "0" * 400])
def test_a_key_beyond_all_measure_is_refused(service: Service, number: str):
    version = published(service)
    message = json.dumps(correction(version, {"question_id": "q2", "correct": "N"})).replace('"N"', number)
    service.send("catalog", message)
    ((code, reason),) = codes(service)
    assert (code, reason.partition(": ")[0]) == ("invalid", "#/data/questions/0/correct")


def test_an_attempt_that_is_started_after_a_correction_shows_the_corrected_question(service: Service):
    version = published(service)
    first, second = Learner(service, version).enrol(), Learner(service, version).enrol()
    quiz_id = version["quizzes"][0]["quiz_id"]
    # The environment has the former key in memory.
    service.http("POST", f"{first.path}/quizzes/{quiz_id}/attempts", sub=first.user_id)
    service.send("catalog", correction(version, {"question_id": "q1", "prompt": "Which one?"}))
    for learner in (first, second):
        started = service.http("POST", f"{learner.path}/quizzes/{quiz_id}/attempts", sub=learner.user_id)
        assert [question["prompt"] for question in started.json["questions"]] == ["Which one?", "?"]


def test_a_correction_that_is_taken_in_the_end_is_no_dead_letter(service: Service, environments: list[Environment]):
    version = published(service)
    service.send("catalog", correction(version, {"question_id": "q1", "points": 0}, time=TIMES[0]))
    # By the key as it is, this would leave no points; by the one that is being stored at this moment it does not.
    late = correction(version, {"question_id": "q2", "points": 0}, time=TIMES[1])
    with blocked(service, "course_version_quizzes") as begin:
        saving = correction(version, {"question_id": "q1", "points": 3}, time=TIMES[1])
        begin(lambda: environments[0].send("catalog", saving))
        begin(
            lambda: environments[1].send("catalog", [late, correction(version, {"question_id": "q2", "prompt": "!"}, time=EARLY)])
        )
    assert [q["points"] for q in keys(service, version)[-1]] == [3, 0]
    assert codes(service) == []


# In the background


def test_a_regrade_goes_on_where_an_invocation_left_it(service: Service, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quiz_service, "_LEARNERS", 2)
    version = published(service)
    learners = [Learner(service, version).enrol() for _ in range(7)]
    for learner in learners:
        learner.sit(FALLS)
        learner.sit(RISES)
    service.send("catalog", correction(version, TO_B))
    assert maintain(service, looks=2) == 2
    (job,) = service.rows("SELECT * FROM quiz_regrades")
    assert (job["attempts"], job["attempts_changed"], job["completed_at"]) == (8, 8, None)
    assert sorted(v for learner in learners for *_, v in learner.grades()) == [1] * 6 + [2] * 8
    # Another one keeps off as long as this one may still be at work.
    assert db.run(regrades.lease).fetchall() == []
    service.rows("UPDATE quiz_regrades SET leased_until = now()")
    assert maintain(service) == 3
    assert [learner.grades() for learner in learners] == [[(0.0, True, True, 2), (75.0, True, False, 2)]] * 7
    (job,) = service.rows("SELECT * FROM quiz_regrades")
    assert (job["attempts"], job["attempts_changed"], job["completed_at"] is not None) == (14, 14, True)


def test_two_invocations_do_not_take_a_step_twice(service: Service, environments: list[Environment]):
    version = published(service)
    learners = [Learner(service, version).enrol() for _ in range(10)]
    for learner in learners:
        learner.sit(FALLS)
    service.send("catalog", correction(version, TO_B))
    job = db.run(regrades.lease).fetchone()

    def work(environment: Environment) -> None:
        # As if the lease of the other one had run out while it was still at work.
        left = job
        while left:
            left = environment.call("shared.quiz.service", "regrade", left)

    at_once([partial(work, environment) for environment in environments[:3]])
    assert [learner.grades() for learner in learners] == [[(0.0, True, True, 2)]] * 10
    (done,) = service.rows("SELECT * FROM quiz_regrades")
    assert (done["attempts"], done["attempts_changed"], done["completed_at"] is not None) == (10, 10, True)
    assert len(service.published("quiz.regraded")) == 10


def test_a_key_that_is_corrected_while_attempts_are_graded_again_counts_for_all_of_them(
    service: Service, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quiz_service, "_LEARNERS", 1)
    version = published(service)
    learners = [Learner(service, version).enrol() for _ in range(4)]
    for learner in learners:
        learner.sit(FALLS)
    service.send("catalog", correction(version, TO_B))
    assert maintain(service, looks=2) == 2
    service.send("catalog", correction(version, {"question_id": "q1", "points": 1}))
    service.rows("UPDATE quiz_regrades SET leased_until = now()")
    maintain(service)
    assert [learner.grades() for learner in learners] == [[(50.0, True, False, 3)]] * 4


def test_a_correction_between_reading_and_writing_a_step_is_noticed(service: Service, environments: list[Environment]):
    version = published(service)
    learner = Learner(service, version).enrol()
    learner.sit(FALLS)
    service.send("catalog", correction(version, TO_B))
    with blocked(service, "enrollments") as begin:
        begin(lambda: maintain(service, environment=environments[0]))
        service.send("catalog", correction(version, {"question_id": "q1", "points": 1}))
    assert learner.grades() == [(50.0, True, False, 3)]
    # It was never graded by the key in between.
    assert service.rows("SELECT key_version FROM quiz_attempt_gradings") == [{"key_version": 1}]


# While attempts are being submitted


def submit_over_http(environment: Environment, learner: Learner, times: int) -> None:
    """Start and submit attempts, none of which is refused."""
    path = f"{learner.path}/quizzes/{learner.version['quizzes'][0]['quiz_id']}/attempts"
    for n in range(times):
        started = environment.http("POST", path, sub=learner.user_id)
        assert started.status == 201, started.text
        answers = {"answers": (FALLS, RISES, STAYS, FAILS)[n % 4]}
        done = environment.http("POST", f"/quiz-attempts/{started.json['id']}/submit", answers, sub=learner.user_id)
        assert (done.status, done.json["attempt_number"]) == (200, n + 1), done.text


def submit_by_queue(environment: Environment, learners: list[Learner], times: int) -> None:
    """Bring an attempt of each learner, so many times."""
    for n in range(times):
        messages = [learner.attempt((FALLS, RISES, STAYS, FAILS)[(n + k) % 4], now()) for k, learner in enumerate(learners)]
        environment.send("quiz", messages)


def correct_again_and_again(
    environment: Environment, version: dict[str, Any], change: Callable[[int], dict[str, Any]], times: int
) -> None:
    for n in range(times):
        environment.send("catalog", correction(version, change(n)))


@pytest.mark.parametrize("way", ["http", "queue"])
def test_an_attempt_that_is_just_being_stored_is_graded_again(
    service: Service, environments: list[Environment], monkeypatch: pytest.MonkeyPatch, way: str
):
    monkeypatch.setattr(quiz_api, "REGRADE_SECONDS", 0.2)
    version = published(service)
    learner, other = Learner(service, version).enrol(), Learner(service, version).enrol()
    other.sit(FALLS)
    if way == "http":
        path = f"{learner.path}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
        attempt = service.http("POST", path, sub=learner.user_id).json["id"]
        submit = partial(
            environments[0].http, "POST", f"/quiz-attempts/{attempt}/submit", {"answers": FALLS}, sub=learner.user_id
        )
    else:
        submit = partial(environments[0].send, "quiz", learner.attempt(FALLS))
    # Whoever stores a grade makes sure of its key last of all, when it has long been judged to be the present one.
    with blocked(service, "quiz_answer_keys") as begin:
        begin(submit)
        service.send("catalog", correction(version, TO_B))
        assert maintain(service, looks=3) > 0
        assert other.grades() == [(0.0, True, True, 2)]
        assert service.admin("POST", regrade_path(version), {"dry_run": False, "take_away": True}).status == 202
        # What was graded before is graded again, and it is not over before that attempt is stored, too.
        assert other.grades() == [(0.0, False, False, 2)]
        assert service.rows("SELECT id FROM quiz_regrades WHERE completed_at IS NOT NULL") == []
    assert learner.grades() == [(75.0, True, False, 1)]
    service.rows("UPDATE quiz_regrades SET leased_until = now()")
    maintain(service)
    assert learner.grades() == [(0.0, False, False, 2)]


@pytest.mark.parametrize("round_", range(3))
def test_a_key_that_is_corrected_while_attempts_are_submitted_leaves_none_behind(
    service: Service, environments: list[Environment], round_: int
):
    version = published(service)
    browsing = [Learner(service, version).enrol() for _ in range(3)]
    examined = [Learner(service, version).enrol() for _ in range(8)]

    def other_key(n: int) -> dict[str, Any]:
        return {"question_id": "q1", "correct": "ba"[n % 2]}

    def more_points(n: int) -> dict[str, Any]:
        return {"question_id": "q2", "points": n + 2}

    *busy, caretaker = environments
    at_once(
        [
            *(
                partial(submit_over_http, environment, learner, 12)
                for environment, learner in zip(busy[:3], browsing, strict=True)
            ),
            partial(submit_by_queue, busy[3], examined, 12),
            partial(submit_by_queue, busy[4], examined[::-1], 12),
            *(partial(correct_again_and_again, environment, version, other_key, 5) for environment in busy[5:7]),
            partial(correct_again_and_again, busy[7], version, more_points, 5),
            partial(maintain, service, 60, caretaker),
        ]
    )
    service.rows("UPDATE quiz_regrades SET leased_until = now()")
    maintain(service)
    assert [len(learner.attempts()) for learner in browsing] == [12] * 3
    assert [len(learner.attempts()) for learner in examined] == [24] * 8
    (present,) = service.rows("SELECT key_version FROM course_version_quizzes")
    assert {key_version for learner in browsing + examined for *_, key_version in learner.grades()} == {present["key_version"]}
    assert 1 < present["key_version"] == len(keys(service, version))
    assert codes(service) == []


# By an administrator


@dataclass(frozen=True)
class Case:
    """A learner whom the correction of a key finds in some situation, and what it makes of that, with passes kept and not.

    What it makes: change of pass, change of certificate, status of the enrolment afterwards, status of the certificate.
    """

    name: str
    prepare: Callable[[Learner], None]
    keep: tuple[str | None, str | None, str, str | None]
    take: tuple[str | None, str | None, str, str | None]


def _complete(learner: Learner) -> None:
    learner.learn()
    learner.sit(FALLS)
    deliver(learner.service)


def _rising(learner: Learner) -> None:
    learner.learn()
    learner.sit(RISES)


def _without_lesson(answers: dict[str, Any]) -> Callable[[Learner], None]:
    def prepare(learner: Learner) -> None:
        learner.sit(answers)

    return prepare


def _twice(answers: dict[str, Any]) -> Callable[[Learner], None]:
    def prepare(learner: Learner) -> None:
        _complete(learner)
        learner.sit(answers, LATER)

    return prepare


def _cancelled(learner: Learner) -> None:
    _rising(learner)
    learner.command("cancel")


def _rising_revoked(learner: Learner) -> None:
    _rising(learner)
    learner.command("revoke")


def _rising_waived(learner: Learner) -> None:
    _rising(learner)
    learner.waive()
    deliver(learner.service)


def _falling_waived(learner: Learner) -> None:
    _complete(learner)
    learner.waive()


def _certificate_revoked(learner: Learner) -> None:
    _complete(learner)
    certificate = learner.certificate()
    assert certificate
    path = f"/certificates/{certificate['certificate_uid']}/revoke"
    assert learner.service.admin("POST", path, {"reason": "A fraud."}).status == 200


def _revoked(learner: Learner) -> None:
    _complete(learner)
    learner.command("revoke")


def _over_again(learner: Learner) -> None:
    """Completed once, started over, and everything done again but for the quiz, which the new key passes."""
    _complete(learner)
    learner.command("reset")
    learner.learn(now())
    learner.sit(RISES, now())


def _over_again_expired(learner: Learner) -> None:
    _over_again(learner)
    learner.service.rows("UPDATE certificates SET expires_at = now() - interval '1 s' WHERE user_id = %s", learner.user_id)


CASES = [
    Case("rises", _rising, ("gained", "gained", "completed", "valid"), ("gained", "gained", "completed", "valid")),
    Case(
        "rises, a lesson is missing", _without_lesson(RISES), ("gained", None, "active", None), ("gained", None, "active", None)
    ),
    Case("rises, cancelled", _cancelled, ("gained", "gained", "completed", "valid"), ("gained", "gained", "completed", "valid")),
    Case(
        "rises, revoked", _rising_revoked, ("gained", None, "revoked_by_admin", None), ("gained", None, "revoked_by_admin", None)
    ),
    Case("rises, waived", _rising_waived, ("gained", None, "completed", "valid"), ("gained", None, "completed", "valid")),
    Case("rises, started over", _over_again, ("gained", None, "completed", "valid"), ("gained", None, "completed", "valid")),
    Case(
        "rises, renews",
        _over_again_expired,
        ("gained", "gained", "completed", "valid"),
        ("gained", "gained", "completed", "valid"),
    ),
    Case("falls", _complete, ("kept", None, "completed", "valid"), ("lost", "lost", "active", "revoked")),
    Case("falls, a lesson is missing", _without_lesson(FALLS), ("kept", None, "active", None), ("lost", None, "active", None)),
    Case("falls, waived", _falling_waived, ("kept", None, "completed", "valid"), ("lost", None, "completed", "valid")),
    Case(
        "falls, certificate revoked",
        _certificate_revoked,
        ("kept", None, "completed", "revoked"),
        ("lost", None, "active", "revoked"),
    ),
    Case(
        "falls, revoked", _revoked, ("kept", None, "revoked_by_admin", "valid"), ("lost", "lost", "revoked_by_admin", "revoked")
    ),
    Case("falls, another one stays", _twice(STAYS), (None, None, "completed", "valid"), (None, None, "completed", "valid")),
    Case("falls, another one rises", _twice(RISES), (None, None, "completed", "valid"), (None, None, "completed", "valid")),
    Case("falls, another one failed", _twice(FAILS), ("kept", None, "completed", "valid"), ("lost", "lost", "active", "revoked")),
    Case("stays", _without_lesson(STAYS), (None, None, "active", None), (None, None, "active", None)),
    Case("never tried", lambda learner: learner.learn(), (None, None, "active", None), (None, None, "active", None)),
]


@pytest.mark.parametrize("in_the_background", [False, True])
@pytest.mark.parametrize("take_away", [False, True])
def test_what_a_dry_run_says_is_what_a_regrade_does(
    service: Service, monkeypatch: pytest.MonkeyPatch, take_away: bool, in_the_background: bool
):
    monkeypatch.setattr(quiz_service, "_LEARNERS", 4)
    version = published(service, lessons=1, certificate={"enabled": True, "valid_for_days": 100})
    cases = [(Learner(service, version).enrol(), case) for case in CASES]
    for learner, case in cases:
        case.prepare(learner)
    deliver(service)
    service.send("catalog", correction(version, TO_B))
    if in_the_background:
        # The regrade that the correction itself asks for is then left nothing to do.
        service.rows("UPDATE quiz_regrades SET leased_until = 'infinity'")

    before = everything(service)
    dry = regrade(service, version, dry_run=True, take_away=take_away)
    assert everything(service) == before
    if in_the_background:
        with monkeypatch.context() as hurried:
            hurried.setattr(quiz_api, "REGRADE_SECONDS", 0)
            answer = service.admin("POST", regrade_path(version), {"dry_run": False, "take_away": take_away})
        assert (answer.status, answer.json["status"], answer.json["learners"]) == (202, "running", []), answer.text
        assert everything(service) == before
        # The request keeps others off while it may be at work.
        service.rows("UPDATE quiz_regrades SET leased_until = now() WHERE leased_until < 'infinity'")
        service.rows("UPDATE quiz_regrades SET completed_at = now() WHERE leased_until = 'infinity'")
        maintain(service)
        real = service.admin("GET", answer.headers["location"], query={"limit": "100"}).json
    else:
        real = regrade(service, version, dry_run=False, take_away=take_away)
    counted = ("attempts", "attempts_changed", "passes_gained", "passes_lost", "passes_kept")
    for name in ("learners", "take_away", *counted, "certificates_gained", "certificates_lost"):
        assert real[name] == dry[name], name

    told = {entry["user_id"]: entry for entry in real["learners"]}
    assert list(told) == sorted(told)
    deliver(service)
    for learner, case in cases:
        pass_, certificate, status, certificate_status = case.take if take_away else case.keep
        entry = told.pop(str(learner.user_id), {"pass_change": None, "certificate_change": None})
        assert (case.name, entry["pass_change"], entry["certificate_change"]) == (case.name, pass_, certificate)
        assert (case.name, learner.enrollment()["status"]) == (case.name, status)
        assert (case.name, learner.certificate_status()) == (case.name, certificate_status)
        assert (learner.enrollment()["completed_at"] is not None) == (
            status == "completed" or (case.name, take_away) == ("falls, revoked", False)
        )
        if pass_:
            best = max(score for score, *_ in learner.grades())
            assert any(is_passed for _, is_passed, *_ in learner.grades()) == (pass_ != "lost")
            assert (entry["course_version_id"], entry["score"]) == (version["course_version_id"], best)
    assert told == {}
    revoked = next(learner for learner, case in cases if case.name == "falls, certificate revoked").certificate()
    assert revoked
    assert revoked["revocation_reason"] == "A fraud."

    # Once it is done, there is nothing left to do.
    maintain(service)
    before = everything(service)
    again = regrade(service, version, dry_run=False, take_away=take_away)
    assert (again["attempts_changed"], again["learners"]) == (0, [])
    assert everything(service) == before


def test_a_completion_that_was_taken_away_is_told_and_comes_back_with_the_same_certificate(service: Service):
    version = published(service)
    learner = Learner(service, version).enrol()
    learner.sit(FALLS)
    deliver(service)
    first = learner.certificate()
    assert first
    service.send("catalog", correction(version, TO_B))
    regrade(service, version, dry_run=False, take_away=True, reason="The key was wrong.")

    assert [e["type"] for e in learner.events()][-3:] == ["quiz.regraded", "enrollment.reactivated", "certificate.revoked"]
    _, reactivated, revoked = learner.events()[-3:]
    assert (reactivated["status"], reactivated["reason"]) == ("active", "The key was wrong.")
    assert (revoked["status"], revoked["reason"], revoked["certificate_uid"]) == (
        "revoked",
        "The key was wrong.",
        first["certificate_uid"],
    )
    history = service.http("GET", f"{learner.path}/history", sub=learner.user_id).json["items"][-1]
    assert (history["type"], history["from_status"], history["to_status"]) == ("reactivated", "completed", "active")
    assert (history["actor"], history["reason"]) == ("00000000-0000-4000-8000-0000000000ad", "The key was wrong.")
    seen = service.http("GET", f"/certificates/{first['certificate_uid']}", sub=None).json
    assert (seen["status"], seen["revocation_reason"]) == ("revoked", "The key was wrong.")
    assert learner.enrollment()["status_reason"] == "The key was wrong."

    # An old message that asks for the certificate comes once more, and nothing is due.
    service.send("certificate", event("enrollment.completed", learner.about | {"status": "completed", "sequence": 3}))
    assert learner.certificate_status() == "revoked"

    learner.sit(RISES, LATER)
    deliver(service)
    assert learner.enrollment()["status"] == "completed"
    assert [e["type"] for e in learner.events()][-3:] == ["quiz.graded", "enrollment.completed", "certificate.reissued"]
    second = learner.certificate()
    assert second
    assert (second["id"], second["certificate_uid"]) == (first["id"], first["certificate_uid"])
    assert second["metadata"]["completed_at"] > first["metadata"]["completed_at"]
    assert learner.certificate_status() == "valid"
    (snapshot,) = service.rows("SELECT * FROM certificate_snapshots")
    assert (snapshot["metadata"], snapshot["issued_at"]) == (first["metadata"], first["issued_at"])


def test_what_an_administrator_revoked_stays_so_when_the_course_is_completed_again(service: Service):
    version = published(service)
    before, after = (Learner(service, version).enrol() for _ in range(2))
    for learner in (before, after):
        learner.sit(FALLS)
    deliver(service)

    def revoke(learner: Learner) -> None:
        certificate = learner.certificate()
        assert certificate
        answer = service.admin("POST", f"/certificates/{certificate['certificate_uid']}/revoke", {"reason": "A fraud."})
        assert (answer.status, answer.json["status"]) == (200, "revoked")

    revoke(before)
    service.send("catalog", correction(version, TO_B))
    regrade(service, version, dry_run=False, take_away=True)
    # Here the certificate is revoked already, for a reason that may pass.
    revoke(after)
    for learner in (before, after):
        learner.sit(RISES, LATER)
    deliver(service)
    assert [learner.enrollment()["status"] for learner in (before, after)] == ["completed", "completed"]
    assert [learner.certificate_status() for learner in (before, after)] == ["revoked", "revoked"]


def test_a_revoked_enrolment_forgets_that_it_was_completed(service: Service):
    version = published(service)
    learner = Learner(service, version).enrol()
    learner.sit(FALLS)
    deliver(service)
    learner.command("revoke")
    service.send("catalog", correction(version, TO_B))
    regrade(service, version, dry_run=False, take_away=True)
    assert [e["type"] for e in learner.events()][-2:] == ["quiz.regraded", "certificate.revoked"]
    learner.command("reinstate")
    assert learner.enrollment()["status"] == "active"
    learner.sit(RISES, now())
    deliver(service)
    assert (learner.enrollment()["status"], learner.certificate_status()) == ("completed", "valid")


def test_passes_that_were_kept_can_be_taken_away_later(service: Service):
    version = published(service)
    learner = Learner(service, version).enrol()
    attempt = learner.sit(FALLS)
    deliver(service)
    service.send("catalog", correction(version, TO_B))
    maintain(service)
    assert learner.grades() == [(0.0, True, True, 2)]
    dry = regrade(service, version, dry_run=True, take_away=True)
    real = regrade(service, version, dry_run=False, take_away=True)
    assert (real["passes_lost"], real["certificates_lost"], real["learners"]) == (1, 1, dry["learners"])
    assert learner.grades() == [(0.0, False, False, 2)]
    gradings = service.http("GET", f"/quiz-attempts/{attempt}", sub=learner.user_id).json["earlier_gradings"]
    assert [(g["key_version"], g["score"], g["is_passed"]) for g in gradings] == [(1, 75.0, True), (2, 0.0, True)]


def test_a_pass_that_is_kept_once_more_makes_no_difference(service: Service):
    version = published(service)
    learner = Learner(service, version).enrol()
    learner.sit(FALLS)
    service.send("catalog", correction(version, TO_B))
    maintain(service)
    # The question is worth something else, and the answer to it as little as before.
    service.send("catalog", correction(version, TO_B | {"points": 2}))
    report = regrade(service, version, dry_run=False)
    assert (report["attempts_changed"], report["passes_kept"], report["learners"]) == (1, 0, [])
    assert learner.grades() == [(0.0, True, True, 3)]


def test_passes_are_taken_away_also_where_another_regrade_has_just_kept_them(service: Service, environments: list[Environment]):
    version = published(service)
    learners = [Learner(service, version).enrol() for _ in range(5)]
    for learner in learners:
        learner.sit(FALLS)
    deliver(service)
    # The regrade that the correction asks for is under way when an administrator asks for another one, which catches up.
    service.send("catalog", correction(version, TO_B))
    answers: list[dict[str, Any]] = []
    with blocked(service, "enrollments") as begin:
        begin(lambda: maintain(service, 1, environments[0]))
        begin(lambda: answers.append(regrade(environments[1], version, dry_run=False, take_away=True)))
    assert [learner.grades() for learner in learners] == [[(0.0, False, False, 2)]] * 5
    assert [learner.enrollment()["status"] for learner in learners] == ["active"] * 5
    assert (answers[0]["passes_lost"], answers[0]["certificates_lost"]) == (5, 5)


def test_losing_a_quiz_that_is_not_required_takes_no_completion_back(service: Service):
    version = published(service, lessons=1, quizzes=[small_quiz(required=False)])
    learner = Learner(service, version).enrol()
    learner.learn()
    learner.sit(FALLS)
    deliver(service)
    service.send("catalog", correction(version, TO_B))
    report = regrade(service, version, dry_run=False, take_away=True)
    assert (report["passes_lost"], report["certificates_lost"]) == (1, 0)
    assert (learner.enrollment()["status"], learner.certificate_status()) == ("completed", "valid")


def test_a_completion_counts_from_the_pass_that_is_left(service: Service):
    version = published(service)
    learner = Learner(service, version).enrol()
    learner.sit(FALLS)
    learner.sit(STAYS, LATER)
    service.send("catalog", correction(version, TO_B))
    regrade(service, version, dry_run=False, take_away=True)
    # As it would be if the key had been right from the beginning.
    assert (learner.enrollment()["status"], learner.enrollment()["completed_at"].isoformat()) == (
        "completed",
        LATER.replace("Z", "+00:00"),
    )


def test_a_regrade_under_way_can_be_followed_page_by_page(service: Service, monkeypatch: pytest.MonkeyPatch):
    version = published(service)
    learners = sorted((Learner(service, version) for _ in range(103)), key=lambda learner: str(learner.user_id))
    service.send("enrollment", [event("enrollment.requested", learner.about, "2026-01-01T12:00:00Z") for learner in learners])
    service.send("quiz", [learner.attempt(RISES) for learner in learners])
    service.send("catalog", correction(version, TO_B))
    everyone = [str(learner.user_id) for learner in learners]

    dry = regrade(service, version, dry_run=True)
    assert [entry["user_id"] for entry in dry["learners"]] == everyone[:100]
    assert (dry["passes_gained"], dry["attempts"]) == (103, 103)
    path = f"{regrade_path(version)}s/{dry['id']}"
    rest = service.admin("GET", path, query={"cursor": dry["next_cursor"]}).json
    assert ([entry["user_id"] for entry in rest["learners"]], rest["next_cursor"]) == (everyone[100:], None)

    monkeypatch.setattr(quiz_service, "_LEARNERS", 40)
    monkeypatch.setattr(quiz_api, "REGRADE_SECONDS", 0)
    answer = service.admin("POST", regrade_path(version), {"dry_run": False, "reason": "  Someone noticed. "})
    assert (answer.status, answer.json["status"], answer.json["completed_at"]) == (202, "running", None)
    assert answer.headers["location"] == f"{regrade_path(version)}s/{answer.json['id']}"
    service.rows(
        "UPDATE quiz_regrades SET leased_until = now(), completed_at = CASE WHEN id <> %s THEN now() END", answer.json["id"]
    )
    assert maintain(service, looks=1) == 1

    def page(cursor: str | None) -> tuple[str, list[str], str | None]:
        query = {"limit": "30"} | ({"cursor": cursor} if cursor else {})
        answered = service.admin("GET", answer.headers["location"], query=query).json
        return answered["status"], [entry["user_id"] for entry in answered["learners"]], answered["next_cursor"]

    status, users, cursor = page(None)
    assert (status, users) == ("running", everyone[:30])
    assert page(cursor) == ("running", everyone[30:40], None)
    service.rows("UPDATE quiz_regrades SET leased_until = now()")
    maintain(service)
    # A page that was begun before goes on with what has come since.
    for begin in (30, 60, 90):
        status, users, cursor = page(cursor)
        assert (status, users) == ("completed", everyone[begin : begin + 30])
    assert cursor is None
    report = service.admin("GET", answer.headers["location"]).json
    assert (report["attempts"], report["attempts_changed"], report["passes_gained"]) == (103, 103, 103)
    assert (report["actor"], report["reason"]) == ("00000000-0000-4000-8000-0000000000ad", "Someone noticed.")


def test_what_regrades_refuse(service: Service):
    version, other = published(service), published(service)
    learner = Learner(service, version).enrol()
    path = regrade_path(version)
    done = regrade(service, version, dry_run=True)
    elsewhere = regrade(service, other, dry_run=True)
    unknown = [
        f"/course-versions/{uuid4()}/quizzes/{version['quizzes'][0]['quiz_id']}/regrade",
        f"/course-versions/{version['course_version_id']}/quizzes/{other['quizzes'][0]['quiz_id']}/regrade",
    ]

    def post(path: str = path, body: Any = None, **options: Any) -> tuple[int, Any]:
        answer = service.admin("POST", path, body, **options)
        return answer.status, answer.json.get("errors", answer.json.get("type", "").rpartition(":")[2])

    for scope in ("", "learner-progress:report"):
        for method, where, body in (
            ("POST", path, {"dry_run": True}),
            ("GET", f"{path}s/{done['id']}", None),
            ("POST", unknown[0], {}),
        ):
            answer = service.http(method, where, body, sub=learner.user_id, scope=scope)
            assert answer.status == 403, answer.text
    for where in unknown:
        assert post(where, {"dry_run": True}) == (404, "quiz_not_found")
    for regrade_id in (uuid4(), elsewhere["id"]):
        answer = service.admin("GET", f"{path}s/{regrade_id}")
        assert (answer.status, answer.json["type"].rpartition(":")[2]) == (404, "regrade_not_found")
    assert service.admin("GET", f"{path}s/1").status == 422

    def pointers(body: Any) -> list[str]:
        status, errors = post(body=body)
        assert status == 422, errors
        return [error["pointer"] for error in errors]

    assert pointers({}) == ["#/dry_run"]
    assert pointers({"dry_run": "true"}) == ["#/dry_run"]
    assert pointers({"dry_run": 1}) == ["#/dry_run"]
    assert pointers({"dry_run": None}) == ["#/dry_run"]
    assert pointers({"dry_run": True, "take_away": "no"}) == ["#/take_away"]
    assert pointers({"dry_run": True, "takeaway": True}) == ["#/takeaway"]
    assert pointers({"dry_run": True, "reason": " "}) == ["#/reason"]
    assert post(raw="{")[0] == 400
    assert service.admin("GET", f"{path}s/{done['id']}", query={"cursor": "x"}).status == 422
    assert len(service.rows("SELECT id FROM quiz_regrades")) == 2


# Copies made by transfers


def two_versions(service: Service, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two versions of a course with one quiz in common; the second one asks for more elsewhere as `fields` say."""
    first = published(service)
    second = course(lessons=0, quizzes=[dict(first["quizzes"][0]) | fields])
    service.send("catalog", event("course_version.published", second))
    return first, second


def test_a_copy_is_graded_again_by_the_key_that_graded_it(service: Service):
    first, second = two_versions(service)
    here = Learner(service, first).enrol()
    here.sit(FALLS)
    here.sit(RISES)
    here.command("transfer", to=second["course_version_id"])
    there = Learner(service, second, here.user_id)
    deliver(service)
    assert [there.grades(), there.enrollment()["status"], there.certificate_status()] == [
        [(75.0, True, False, 1)],
        "completed",
        "valid",
    ]

    # The key of the course version that the learner is in now has nothing to do with it.
    service.send("catalog", correction(second, {"question_id": "q1", "points": 9}))
    maintain(service)
    assert there.grades() == [(75.0, True, False, 1)]

    service.send("catalog", correction(first, TO_B))
    maintain(service)
    assert there.grades() == [(0.0, True, True, 2)]
    assert [e["previous_score"] for e in there.events("quiz.regraded")] == [75.0]

    report = regrade(service, first, dry_run=False, take_away=True)
    # Here another attempt passes by now, there none does.
    assert [(e["course_version_id"], e["pass_change"], e["certificate_change"]) for e in report["learners"]] == [
        (second["course_version_id"], "lost", "lost")
    ]
    assert here.grades() == [(0.0, False, False, 2), (75.0, True, False, 2)]
    assert there.grades() == [(0.0, False, False, 2)]
    assert [here.enrollment()["status"], there.enrollment()["status"]] == ["completed", "active"]
    assert [here.certificate_status(), there.certificate_status()] == ["valid", "revoked"]

    # Transferred once more, the pass that there is now comes along, and by the new key.
    here.command("transfer", to=second["course_version_id"])
    deliver(service)
    assert there.grades() == [(0.0, False, False, 2), (75.0, True, False, 2)]
    assert [there.enrollment()["status"], there.certificate_status()] == ["completed", "valid"]


@pytest.mark.parametrize("first_in_line", ["transfer", "regrade"])
@pytest.mark.parametrize("later_id", ["there", "here"])
def test_a_transfer_in_the_middle_of_a_step_leaves_no_copy_behind(
    service: Service, environments: list[Environment], first_in_line: str, later_id: str
):
    """Learners are taken in the order of their enrolments, and the copy may lie behind or ahead."""
    first, second = two_versions(service)
    if (first["course_version_id"] < second["course_version_id"]) != (later_id == "there"):
        first, second = second, first
    here = Learner(service, first).enrol()
    here.sit(FALLS)
    service.send("catalog", correction(first, TO_B))
    works = {
        "transfer": lambda: Learner(environments[0], first, here.user_id).command("transfer", to=second["course_version_id"]),
        "regrade": lambda: maintain(service, environment=environments[1]),
    }
    with blocked(service, "enrollments") as begin:
        begin(works.pop(first_in_line))
        begin(works.popitem()[1])
    there = Learner(service, second, here.user_id)
    assert [here.grades(), there.grades()] == [[(0.0, True, True, 2)]] * 2


def test_transfers_while_attempts_are_graded_again_leave_no_copy_behind(service: Service, environments: list[Environment]):
    first, second = two_versions(service)
    third = course(lessons=0, quizzes=[dict(first["quizzes"][0])])
    service.send("catalog", event("course_version.published", third))
    learners = [Learner(service, first).enrol() for _ in range(18)]
    for learner in learners:
        learner.sit(FALLS)
    service.send("catalog", correction(first, TO_B))

    def transfer(environment: Environment, mine: list[Learner]) -> None:
        for learner in mine:
            Learner(environment, first, learner.user_id).command("transfer", to=second["course_version_id"])
            Learner(environment, second, learner.user_id).command("transfer", to=third["course_version_id"])

    work = [partial(transfer, environments[n], learners[n::3]) for n in range(3)]
    at_once([*work, partial(maintain, service, 1000, environments[3])])
    maintain(service)
    for learner in learners:
        for version in (first, second, third):
            assert Learner(service, version, learner.user_id).grades() == [(0.0, True, True, 2)]


# At random


#: Few choices, so that a correction often turns right into wrong.
CHOICES = [{"id": choice, "text": choice.upper()} for choice in "ab"]
CHOSEN = st.lists(st.sampled_from("ab"), min_size=1, max_size=2, unique=True)
ORDERS = st.permutations("ab").map(list)
#: For each kind, what keys there are, how it may be scored, and what may be answered.
KINDS: dict[str, tuple[st.SearchStrategy[Any], list[dict[str, Any]], st.SearchStrategy[Any]]] = {
    "single_choice": (st.sampled_from("ab"), [{"choices": CHOICES}], st.sampled_from("ab")),
    "multiple_choice": (
        CHOSEN,
        [{"choices": CHOICES, "scoring": scoring} for scoring in ("all_or_nothing", "right_minus_wrong", "per_option")],
        CHOSEN,
    ),
    "numeric": (st.sampled_from([0, 0.1]), [{"tolerance": 0}, {"tolerance": 0.1}], st.sampled_from([0, 0.1, 0.2, "0.1", "0,1"])),
    "text": (CHOSEN, [{}, {"case_sensitive": True}], st.sampled_from(["a", " B "])),
    "ordering": (ORDERS, [{"scoring": "all_or_nothing"}, {"scoring": "per_position"}], ORDERS),
}


@st.composite
def question(draw: st.DrawFn, name: str, kinds: list[str]) -> dict[str, Any]:
    """A question of one of the kinds; the first question of a quiz is always worth something."""
    kind = draw(st.sampled_from(kinds))
    correct, ways, _ = KINDS[kind]
    points = draw(st.sampled_from([1, 2, 0.1, 3.3] if name == "q0" else [1, 0, 2, 0.1]))
    return {"question_id": name, "prompt": "?", "kind": kind, "points": points, "correct": draw(correct)} | draw(
        st.sampled_from(ways)
    )


@dataclass
class Story:
    """A quiz, who answers it how, and how its key is corrected after that."""

    quiz: dict[str, Any]
    lessons: int
    certificates: bool
    #: For each learner the answers of each attempt, and whether the lessons are completed.
    learners: list[tuple[list[dict[str, Any]], bool]]
    corrections: list[list[dict[str, Any]]]
    #: Which of the corrections are graded by before the administrator asks for a regrade.
    graded_between: list[bool]
    take_away: bool


@st.composite
def stories(draw: st.DrawFn) -> Story:
    names = [f"q{n}" for n in range(draw(st.integers(1, 3)))]
    asked = {name: draw(question(name, sorted(KINDS))) for name in names}
    answers = st.fixed_dictionaries(
        {"q0": KINDS[asked["q0"]["kind"]][2]}, optional={name: KINDS[asked[name]["kind"]][2] for name in names[1:]}
    )

    # Most of the time the kind stays what it was.
    def corrected(name: str) -> st.SearchStrategy[dict[str, Any]]:
        return question(name, [asked[name]["kind"]] * 8 + sorted(KINDS))

    some = st.lists(st.sampled_from(names), max_size=2, unique=True).map(lambda found: list(dict.fromkeys(["q0", *found])))
    corrections = draw(st.lists(some.flatmap(lambda found: st.tuples(*map(corrected, found)).map(list)), min_size=1, max_size=2))
    usually = st.sampled_from([True, True, True, False])
    return Story(
        quiz=quiz(
            questions=list(asked.values()),
            pass_threshold_percentage=draw(st.sampled_from([50, 30, 66.67, 100, 0])),
            required=draw(usually),
        ),
        lessons=draw(st.integers(0, 1)),
        certificates=draw(usually),
        learners=draw(st.lists(st.tuples(st.lists(answers, min_size=1, max_size=3), usually), min_size=2, max_size=4)),
        corrections=corrections,
        graded_between=[not draw(usually) for _ in corrections],
        take_away=draw(st.booleans()),
    )


def expected(learner: Learner, key: tuple[Question, ...], take_away: bool) -> dict[str, Any] | None:
    """What a regrade by this key makes of a learner, told from the attempts alone; None: it makes no difference."""
    attempts = learner.service.rows(
        "SELECT *, answers_snapshot::text AS answers FROM quiz_attempts WHERE user_id = %s AND enrolled_course_version_id = %s",
        learner.user_id,
        learner.version["course_version_id"],
    )
    grades = [
        rules.grade(key, simplejson.loads(a["answers"], use_decimal=True), a["pass_threshold_percentage"]) for a in attempts
    ]
    before = any(a["is_passed"] for a in attempts)
    deserved_before = any(a["is_passed"] and not a["pass_kept"] for a in attempts)
    deserved = any(grade.is_passed for grade in grades)
    after = deserved if take_away else deserved or before
    pass_ = "gained" if after > before else "lost" if before > after else "kept" if deserved_before > deserved else None
    scores = {"previous_score": max(a["score"] for a in attempts), "score": max(grade.score for grade in grades)}
    return learner.about | scores | {"pass_change": pass_} if pass_ else None


@settings(
    max_examples=REGRADES,
    derandomize="REGRADES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(story=stories())
def test_a_regrade_does_what_its_dry_run_says_and_a_second_one_nothing(service: Service, story: Story):
    version = published(
        service,
        lessons=story.lessons,
        quizzes=[story.quiz],
        certificate={"enabled": story.certificates},
    )
    learners: list[Learner] = []
    for attempts, learns in story.learners:
        learner = Learner(service, version).enrol()
        if learns and story.lessons:
            learner.learn()
        for answers in attempts:
            learner.sit(answers)
        learners.append(learner)
    for corrected, graded in zip(story.corrections, story.graded_between, strict=True):
        service.send("catalog", correction(version, *corrected))
        if graded:
            maintain(service)
    deliver(service)
    assert codes(service) == []
    service.rows("UPDATE quiz_regrades SET completed_at = now() WHERE completed_at IS NULL")

    (row,) = service.rows(
        """
        SELECT k.questions::text AS questions FROM quiz_answer_keys k
        JOIN course_version_quizzes q ON q.quiz_id = k.quiz_id AND q.key_version = k.key_version WHERE k.quiz_id = %s
        """,
        story.quiz["quiz_id"],
    )
    key = QUESTIONS.validate_python(simplejson.loads(row["questions"], use_decimal=True))
    foreseen = {entry["user_id"]: entry for learner in learners if (entry := expected(learner, key, story.take_away))}
    valid_before = {str(learner.user_id): learner.certificate_status() == "valid" for learner in learners}

    before = everything(service)
    dry = regrade(service, version, dry_run=True, take_away=story.take_away)
    assert everything(service) == before
    real = regrade(service, version, dry_run=False, take_away=story.take_away)
    same = dry.keys() - {"id", "dry_run", "requested_at", "completed_at"}
    assert {name: dry[name] for name in same} == {name: real[name] for name in same}
    assert [entry["user_id"] for entry in real["learners"]] == sorted(foreseen)

    deliver(service)
    valid = {str(learner.user_id): learner.certificate_status() == "valid" for learner in learners}
    for entry in real["learners"]:
        user_id = entry["user_id"]
        change = entry.pop("certificate_change")
        assert entry == foreseen[user_id]
        assert change == (
            "gained" if valid[user_id] > valid_before[user_id] else "lost" if valid[user_id] < valid_before[user_id] else None
        )
    assert all(valid[user_id] == valid_before[user_id] for user_id in valid.keys() - foreseen.keys())
    for learner in learners:
        status, required = learner.enrollment()["status"], story.quiz["required"]
        passed = any(is_passed for _, is_passed, *_ in learner.grades())
        learnt = not story.lessons or any(
            learns for other, (_, learns) in zip(learners, story.learners, strict=True) if other is learner
        )
        assert (status == "completed") == ((passed or not required) and learnt and bool(required or story.lessons))
        if story.take_away:
            assert not any(kept for _, _, kept, _ in learner.grades())

    # By the same key again, nothing changes.
    before = everything(service)
    for take_away in {story.take_away, False}:
        again = regrade(service, version, dry_run=False, take_away=take_away)
        assert (again["attempts_changed"], again["learners"]) == (0, [])
    assert everything(service) == before
