"""The whole life of enrolments, lived at random, against a plain model of the rules.

Learners enrol in two course versions that have lessons and quizzes in common, leave, learn, take quizzes and start over;
administrators revoke, reinstate, reset, waive and transfer. It happens over HTTP and by queue, in any order, dated in any
order, and again. The model shares no code with the service: it is the rules that callers are told, written down once more
in the plainest way, and can be read as such. After each step the service must show what the model says.

`LIVES=2000` lives as many lives, each time others; without it there are fewer, and always the same ones.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from psycopg.rows import dict_row

from tests.integration.test_invariants import found
from tests.support.service import Answer, Service, course, event, quiz, record

LIVES = int(os.environ.get("LIVES", "60"))

# The model


class Refused(Exception):
    """The service does not take it; `code` says why, in the words of the problem documents and dead letters."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


#: What is answered over HTTP to what is refused.
HTTP_STATUS = {
    "enrollment_not_found": 404,
    "course_version_not_found": 404,
    "lesson_not_found": 404,
    "quiz_not_found": 404,
    "requirement_not_found": 404,
    "attempt_not_found": 404,
    "already_completed": 409,
    "already_revoked": 409,
    "not_revoked": 409,
    "enrollment_inactive": 409,
    "no_attempts_left": 409,
    "attempt_closed": 409,
    "attempt_set_aside": 409,
    "invalid": 422,
}
#: What waiting may cure is tried again; everything else that a queue brings and that is refused is a dead letter.
WAITS = ("enrollment_not_found", "not_revoked")

INACTIVE = ("cancelled_by_user", "revoked_by_admin")

#: Commands at the same moment count in this order, so the last one wins.
COMMANDS = ("requested", "cancelled", "reinstated", "revoked")

#: What each command makes of each status, or why it is refused.
TABLE: dict[str | None, dict[str, str]] = {
    None: {
        "requested": "active",
        "cancelled": "enrollment_not_found",
        "revoked": "enrollment_not_found",
        "reinstated": "enrollment_not_found",
    },
    "active": {
        "requested": "active",
        "cancelled": "cancelled_by_user",
        "revoked": "revoked_by_admin",
        "reinstated": "not_revoked",
    },
    "cancelled_by_user": {
        "requested": "active",
        "cancelled": "cancelled_by_user",
        "revoked": "revoked_by_admin",
        "reinstated": "not_revoked",
    },
    "completed": {
        "requested": "completed",
        "cancelled": "already_completed",
        "revoked": "revoked_by_admin",
        "reinstated": "not_revoked",
    },
    "revoked_by_admin": {
        "requested": "already_revoked",
        "cancelled": "already_revoked",
        "revoked": "revoked_by_admin",
        "reinstated": "active",  # or completed, if it had been
    },
}

SCORES = {"right": 100.0, "half": 75.0, "wrong": 0.0}
ANSWERS: dict[str, dict[str, Any]] = {"right": {"q1": "a", "q2": 0.1}, "half": {"q1": "a"}, "wrong": {"q1": "b"}}


@dataclass(frozen=True)
class Quiz:
    """What of a quiz decides anything here."""

    threshold: float
    max_attempts: int | None


@dataclass(frozen=True)
class Course:
    """A course version."""

    id: str
    lessons: tuple[str, ...]
    quizzes: dict[str, Quiz]
    required: frozenset[str]


@dataclass(frozen=True)
class Lesson:
    """What is known of a learner's progress in a lesson. It only moves forward."""

    percentage: float
    started_at: datetime
    last_accessed_at: datetime
    completed_at: datetime | None

    def joined(self, other: "Lesson | None") -> "Lesson":
        """Percentages keep the highest, times the earliest; only the last access keeps the latest."""
        if other is None:
            return self
        return Lesson(
            max(self.percentage, other.percentage),
            min(self.started_at, other.started_at),
            max(self.last_accessed_at, other.last_accessed_at),
            earliest(self.completed_at, other.completed_at),
        )


@dataclass(frozen=True)
class Attempt:
    """An attempt at a quiz; it is open until `completed_at`. A copy has an id of its own, and knows its `origin`."""

    id: str
    origin: str
    quiz_id: str
    number: int
    started_at: datetime
    completed_at: datetime | None = None
    answers: str | None = None
    score: float | None = None
    is_passed: bool | None = None


def earliest(*times: datetime | None) -> datetime | None:
    return min((time for time in times if time), default=None)


def in_order(published: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Events of one enrolment so that they can be compared: changes of status in their order, everything else sorted."""
    return sorted(published, key=lambda one: ("",) if one[0].startswith("enrollment.") else one)


@dataclass
class Enrollment:
    """A learner's enrolment in a course version; without a status, there is none yet."""

    course: Course
    status: str | None = None
    completed_at: datetime | None = None
    inactive_since: datetime | None = None
    reset_at: datetime | None = None
    lessons: dict[str, Lesson] = field(default_factory=dict[str, Lesson])
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    set_aside: list[Attempt] = field(default_factory=list[Attempt])
    waived: dict[str, datetime] = field(default_factory=dict[str, datetime])
    #: The latest command that took effect, and for each side the latest that found what it asks for.
    took_effect: tuple[datetime, int] | None = None
    confirmed: dict[str, tuple[datetime, int]] = field(default_factory=dict[str, tuple[datetime, int]])
    #: What changed: how, from which status to which, when. Transfers are without a time: they are recorded a moment after.
    history: list[tuple[str, str | None, str | None, datetime | None]] = field(
        default_factory=list[tuple[str, str | None, str | None, datetime | None]]
    )
    published: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def change(self, how: str, status: str, time: datetime) -> None:
        """Come to a status. What is dated up to `inactive_since`, the first of cancellation and revocation, still counts."""
        if status not in INACTIVE:
            self.inactive_since = None
        elif self.status not in INACTIVE:
            self.inactive_since = time
        self.history.append((how, self.status, status, time))
        self.published.append((f"enrollment.{how}", status))
        self.status = status

    def is_over(self, time: datetime) -> bool:
        """Whether the enrolment was cancelled or revoked before."""
        return self.inactive_since is not None and time > self.inactive_since

    def is_of_before(self, time: datetime) -> bool:
        """Whether a reset made it past."""
        return self.reset_at is not None and time < self.reset_at

    # What is fulfilled

    def passed(self, quiz_id: str) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.quiz_id == quiz_id and attempt.is_passed]

    def fulfilled_at(self, item: str) -> datetime | None:
        """Since when a lesson or quiz counts as fulfilled, which is never since before a reset."""
        lesson = self.lessons.get(item)
        passes = [attempt.completed_at for attempt in self.passed(item)]
        since = earliest(self.waived.get(item), lesson and lesson.completed_at, *passes)
        return max(since, self.reset_at) if since and self.reset_at else since

    def complete(self) -> None:
        """Complete what is fulfilled, as of its last item; a revoked enrolment only records.

        That something was fulfilled earlier than was known moves the time back.
        """
        times = [self.fulfilled_at(item) for item in self.course.required]
        done = [time for time in times if time]
        if self.status in (None, "revoked_by_admin") or not times or len(done) < len(times):
            return
        at = max(done)
        if self.status != "completed":
            self.completed_at = at
            self.change("completed", "completed", at)
        elif self.completed_at and at < self.completed_at:
            self.completed_at = at

    # What can be done to it

    def command(self, kind: str, time: datetime) -> int:
        """Enrol, cancel, revoke or reinstate. What is older than what counts already changes nothing."""
        place, side = (time, COMMANDS.index(kind)), "learner" if kind in ("requested", "cancelled") else "administrator"
        latest = [taken for taken in (self.took_effect, self.confirmed.get(side)) if taken]
        if self.is_of_before(time) or any(place <= taken for taken in latest):
            return 200
        status = TABLE[self.status][kind]
        if status not in TABLE:
            raise Refused(status)
        if kind == "reinstated" and self.completed_at:
            status = "completed"
        if status == self.status:
            self.confirmed[side] = place
            return 200
        is_new = self.status is None
        self.took_effect = place
        self.change(("created" if is_new else "reactivated") if kind == "requested" else kind, status, time)
        self.complete()
        return 201 if is_new else 200

    def reset(self, now: datetime) -> None:
        """Start over: what was learned is set aside, what was waived stays."""
        self.reset_at = now
        self.lessons.clear()
        self.set_aside += self.attempts
        self.attempts.clear()
        self.completed_at = None
        self.change("reset", "active" if self.status == "completed" else str(self.status), now)
        self.complete()

    def waive(self, item: str, now: datetime) -> None:
        """Count an item as fulfilled from now on; once more changes nothing."""
        if item not in self.course.lessons and item not in self.course.quizzes:
            raise Refused("requirement_not_found")
        if item not in self.waived:
            self.waived[item] = now
            self.history.append(("waived", self.status, self.status, now))
        self.complete()

    def take_waiver_back(self, item: str, now: datetime) -> None:
        """Count an item as it is; what it had completed stays completed."""
        if item not in self.course.lessons and item not in self.course.quizzes:
            raise Refused("requirement_not_found")
        if self.waived.pop(item, None):
            self.history.append(("waiver_withdrawn", self.status, self.status, now))

    def report(self, reports: list[tuple[str, float, datetime]]) -> list[str]:
        """Take what one call reports on lessons, and say what became of each: applied, unchanged, or why it is refused.

        They are judged by what was there before the call. What changes nothing is accepted in any status.
        """
        before = dict(self.lessons)

        def take(lesson_id: str, percentage: float, time: datetime) -> str:
            if lesson_id not in self.course.lessons:
                return "lesson_not_found"
            if self.status is None:
                return "enrollment_not_found"
            new = Lesson(percentage, time, time, time if percentage == 100 else None)
            if self.is_of_before(time) or new.joined(before.get(lesson_id)) == before.get(lesson_id):
                return "unchanged"
            if self.is_over(time):
                return "enrollment_inactive"
            self.learn(lesson_id, new)
            return "applied"

        results = [take(*report) for report in reports]
        self.complete()
        return results

    def learn(self, lesson_id: str, new: Lesson) -> None:
        old = self.lessons.get(lesson_id)
        if new.completed_at and not (old and old.completed_at):
            self.published.append(("lesson.completed", lesson_id))
        self.lessons[lesson_id] = new.joined(old)

    def next_number(self, quiz_id: str) -> int:
        return 1 + sum(attempt.quiz_id == quiz_id for attempt in self.attempts)

    def open_attempt(self, quiz_id: str) -> Attempt | None:
        return next((a for a in self.attempts if a.quiz_id == quiz_id and not a.completed_at), None)

    def let_go_on(self) -> None:
        """Over HTTP, attempts go on as long as the enrolment is not cancelled or revoked, be that dated a little ahead."""
        if self.status in INACTIVE:
            raise Refused("enrollment_inactive")

    def start(self, attempt_id: str, quiz_id: str, now: datetime) -> int:
        """Start an attempt, or go on with the open one."""
        if quiz_id not in self.course.quizzes:
            raise Refused("quiz_not_found")
        self.let_go_on()
        if self.open_attempt(quiz_id):
            return 200
        limit, number = self.course.quizzes[quiz_id].max_attempts, self.next_number(quiz_id)
        if limit and number > limit:
            raise Refused("no_attempts_left")
        self.attempts.append(Attempt(attempt_id, attempt_id, quiz_id, number, now))
        return 201

    def graded(self, attempt: Attempt, answers: str, time: datetime) -> Attempt:
        self.published.append(("quiz.graded", attempt.quiz_id))
        is_passed = SCORES[answers] >= self.course.quizzes[attempt.quiz_id].threshold
        return replace(attempt, completed_at=time, answers=answers, score=SCORES[answers], is_passed=is_passed)

    def submit(self, attempt: Attempt, answers: str, now: datetime) -> None:
        """Have an attempt graded. A graded one stays as it is, also when it was set aside; an open one is closed by that."""
        if attempt.completed_at and attempt.answers != answers:
            raise Refused("attempt_closed")
        if attempt.completed_at:
            return
        if attempt in self.set_aside:
            raise Refused("attempt_set_aside")
        self.let_go_on()
        self.attempts[self.attempts.index(attempt)] = self.graded(attempt, answers, now)
        self.complete()

    def administered(self, attempt_id: str, quiz_id: str, answers: str, started_at: datetime, time: datetime) -> None:
        """Take an attempt that a producer administered: limits do not bind it, and its number is that of its arrival."""
        if self.is_of_before(time):
            return
        if self.is_over(time):
            raise Refused("enrollment_inactive")
        attempt = Attempt(attempt_id, attempt_id, quiz_id, self.next_number(quiz_id), started_at)
        self.attempts.append(self.graded(attempt, answers, time))
        self.complete()

    def carry_over(self, source: "Enrollment", now: datetime) -> int:
        """Enrol, and take over what was learned in another course version; the waivers stay there."""
        answer = self.command("requested", now)
        if self.status in INACTIVE:
            return answer
        for lesson_id, lesson in source.lessons.items():
            if lesson_id in self.course.lessons:
                self.learn(lesson_id, lesson)
        known = {attempt.origin for attempt in self.attempts}
        for attempt in source.attempts:
            if attempt.is_passed and attempt.quiz_id in self.course.quizzes and attempt.origin not in known:
                self.attempts.append(replace(attempt, id="", number=self.next_number(attempt.quiz_id)))
                self.published.append(("quiz.graded", attempt.quiz_id))
        for enrollment in (source, self):
            enrollment.history.append(("transferred", enrollment.status, enrollment.status, None))
        self.complete()
        return answer

    # What it looks like

    def lesson(self, lesson_id: str) -> list[Any]:
        row = self.lessons.get(lesson_id)
        if row is None:
            return ["not_started", 0, None, None, None]
        status = "completed" if row.completed_at else "in_progress"
        return [status, row.percentage, row.started_at, row.last_accessed_at, row.completed_at]

    def figures(self) -> dict[str, Any]:
        """How far the learner is: counts of all items, and the share of the required ones."""
        fulfilled = {item for item in (*self.course.lessons, *self.course.quizzes) if self.fulfilled_at(item)}
        required = self.course.required
        return {
            "progress_percentage": pytest.approx(100 * len(required & fulfilled) / len(required)) if required else None,
            "lessons_completed": sum(lesson in fulfilled for lesson in self.course.lessons),
            "lessons_total": len(self.course.lessons),
            "quizzes_passed": sum(quiz in fulfilled for quiz in self.course.quizzes),
            "quizzes_total": len(self.course.quizzes),
        }

    def view(self) -> dict[str, Any] | None:
        if self.status is None:
            return None
        return {
            "status": self.status,
            "completed_at": self.completed_at,
            "progress": self.figures(),
            "lessons": {lesson: self.lesson(lesson) for lesson in self.course.lessons},
            "attempts": {
                quiz: [[a.number, a.score, a.is_passed, a.started_at, a.completed_at] for a in self.attempts if a.quiz_id == quiz]
                for quiz in self.course.quizzes
            },
            "history": self.history,
            "published": in_order(self.published),
        }


#: Learner and course version.
Key = tuple[str, str]

#: Clocks differ by minutes; what is dated further ahead is of now, and a command is refused.
AHEAD = timedelta(minutes=5)


class Model:
    """All enrolments, and what messages do to them."""

    def __init__(self, courses: list[Course], learners: list[str]) -> None:
        self.enrollments = {(learner, course.id): Enrollment(course) for learner in learners for course in courses}
        #: The events that wait for another try, by their ids, and for want of what.
        self.waiting: dict[str, tuple[dict[str, Any], str]] = {}

    def existing(self, key: Key) -> Enrollment:
        enrollment = self.enrollments[key]
        if enrollment.status is None:
            raise Refused("enrollment_not_found")
        return enrollment

    def transfer(self, learner: str, version: str, to: str, now: datetime) -> int:
        """Enrol in another course version with what was learned in this one, which stays as it is."""
        if to == version:
            raise Refused("invalid")
        source = self.existing((learner, version))
        if source.status in INACTIVE:
            raise Refused("enrollment_inactive")
        if (learner, to) not in self.enrollments:
            raise Refused("course_version_not_found")
        return self.enrollments[learner, to].carry_over(source, now)

    def find(self, attempt_id: str) -> tuple[Key, Attempt] | None:
        """Whose attempt it is."""
        for key, enrollment in self.enrollments.items():
            for attempt in enrollment.attempts + enrollment.set_aside:
                if attempt.id == attempt_id:
                    return key, attempt
        return None

    def take(self, events: list[dict[str, Any]], now: datetime, *, patient: bool = True) -> dict[str, str]:
        """Take the events of one message, all of one kind and enrolment, and say which are dead letters, and why.

        An event that waits already waits on, whatever becomes of its repetition.
        """
        dead: dict[str, str] = {}
        if events[0]["type"] == "lesson.progressed":
            reports = [(one["data"]["lesson_id"], percentage(one["data"]), dated(time_of(one), now)) for one in events]
            results = self.enrollments[key_of(events[0])].report(reports)
        else:
            results = [self.take_one(one, now) for one in events]
        for one, result in zip(events, results, strict=True):
            if result in ("applied", "unchanged") or one["id"] in self.waiting:
                continue
            if result in WAITS and patient:
                self.waiting[one["id"]] = (one, result)
            else:
                dead[one["id"]] = result
        return dead

    def take_one(self, one: dict[str, Any], now: datetime) -> str:
        key, time, kind = key_of(one), time_of(one), one["type"].split(".")[1]
        try:
            if kind == "submitted":
                self.submitted(key, one["data"], time, now)
            elif time > now + AHEAD:
                return "future_command"
            else:
                self.enrollments[key].command(kind, time)
        except Refused as refused:
            # A cancellation that comes too late is accepted without effect.
            return "unchanged" if kind == "cancelled" and refused.code != "enrollment_not_found" else refused.code
        return "applied"

    def submitted(self, key: Key, data: dict[str, Any], time: datetime, now: datetime) -> None:
        """An attempt that a producer administered; its id stands for one learner's answers to one quiz."""
        if data["quiz_id"] not in self.enrollments[key].course.quizzes:
            raise Refused("quiz_not_found")
        answers, known = next(name for name in ANSWERS if ANSWERS[name] == data["answers"]), self.find(data["attempt_id"])
        if known:
            owner, attempt = known
            if (owner, attempt.quiz_id, attempt.answers) != (key, data["quiz_id"], answers):
                raise Refused("attempt_id_taken")
            return
        ended = dated(datetime.fromisoformat(data["completed_at"]) if "completed_at" in data else time, now)
        started = datetime.fromisoformat(data["started_at"]) if "started_at" in data else ended
        self.existing(key).administered(data["attempt_id"], data["quiz_id"], answers, min(started, ended), ended)


def key_of(one: dict[str, Any]) -> Key:
    return one["data"]["user_id"], one["data"]["course_version_id"]


def time_of(one: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(one["time"])


def percentage(report: dict[str, Any]) -> float:
    """How far a report says the learner is; one that says nothing of it is a mere visit."""
    return 100 if "status" in report else report.get("progress_percentage", 0)


def dated(time: datetime, now: datetime) -> datetime:
    """When something happened, by what is said about it."""
    return now if time > now + AHEAD else time


# What the steps are made of

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)

Time = tuple[str, int]

#: One of the enrolments that are there, or (8, 9) one that may not be.
WHOSE = st.integers(0, 9)
#: Commands; a number is one that leads on from where the enrolment is.
KINDS = st.sampled_from([0, 0, 0, 1, *COMMANDS])
LEADS_ON = {
    None: ("requested", "requested"),
    "active": ("cancelled", "revoked"),
    "cancelled_by_user": ("requested", "revoked"),
    "completed": ("revoked", "requested"),
    "revoked_by_admin": ("reinstated", "reinstated"),
}
#: A lesson or quiz by its number: both course versions have the first one, each has one of its own, the last is the other's.
ITEMS = st.sampled_from([0] * 6 + [1] * 3 + [2])
#: What a course version requires: the first lesson (0), the second (1), the first quiz (2), the second (3).
REQUIRED = st.sampled_from([[0], [2], [0], [2], [0, 2], [0, 1], [0, 1, 2, 3], []])
#: Minutes after START; now; as the latest acts, or a microsecond beside them; minutes ahead. Few, so that many are equal.
PLAUSIBLE: list[Time] = [
    *[("past", n) for n in range(4)],
    *[("now", 0)] * 4,
    *[("last act", n) for n in (-1, 0, 0, 0, 1)],
    *[("act before", n) for n in (-1, 0, 1)],
    *[("ahead", 3)] * 2,
]
TIMES = st.sampled_from([*PLAUSIBLE, ("ahead", 60)])
NOW_OR_NOT = st.just(("now", 0)) | TIMES
#: Over HTTP a time need not be said.
TIMES_IF_ANY = st.sampled_from([*[None] * 8, *PLAUSIBLE, ("ahead", 60)])
#: Two reports of one call are never both as of now by being too far ahead and by saying nothing.
PLAUSIBLE_TIMES_IF_ANY = st.sampled_from([*[None] * 8, *PLAUSIBLE])
REPORTS = st.sampled_from([{"progress_percentage": 100}, {"status": "completed"}] * 2 + [{"progress_percentage": 40}, {}])
#: One of the latest of what was there before, counted from the end.
NTH = st.integers(0, 6)

#: What can happen: the name of a method of `Life`, and its arguments.
STEPS: list[tuple[Any, ...]] = [
    ("another_try", st.sampled_from([True, True, False])),
    ("command_over_http", WHOSE, KINDS),
    ("command_by_queue", WHOSE, KINDS, TIMES),
    ("command_by_queue", WHOSE, KINDS, NOW_OR_NOT),
    ("reset", WHOSE),
    ("waive", WHOSE, st.booleans(), ITEMS),
    ("take_waiver_back", WHOSE, st.booleans(), ITEMS),
    ("transfer", WHOSE, st.sampled_from(["the other"] * 6 + ["the same", "unknown"])),
    ("report_over_http", WHOSE, ITEMS, REPORTS.filter(bool), TIMES_IF_ANY),
    ("sync", WHOSE, st.lists(st.tuples(ITEMS, REPORTS, PLAUSIBLE_TIMES_IF_ANY), min_size=1, max_size=3)),
    ("report_by_queue", WHOSE, st.lists(st.tuples(ITEMS, REPORTS, TIMES), min_size=1, max_size=3)),
    ("start", WHOSE, ITEMS),
    ("submit", NTH, st.sampled_from(list(ANSWERS))),
    (
        "submission_by_queue",
        WHOSE,
        st.sampled_from([None, None, None, 0, 1, 2]),
        ITEMS,
        st.sampled_from(list(ANSWERS)),
        TIMES,
        TIMES_IF_ANY,
        TIMES_IF_ANY,
    ),
    ("comes_again", NTH, st.booleans()),
]

ACTIONS = {"requested": "", "cancelled": "/cancel", "revoked": "/revoke", "reinstated": "/reinstate"}
QUEUES = {"enrollment": "enrollment", "lesson": "progress", "quiz": "quiz"}
WHY = {"reason": "because"}


def latest[T](things: list[T], nth: int) -> T:
    return things[-1 - nth % len(things)]


def path(key: Key, part: str = "") -> str:
    return f"/users/{key[0]}/enrollments/{key[1]}{part}"


def text(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def read(value: str | None) -> datetime | None:
    return datetime.fromisoformat(value) if value else None


def published(version: Course) -> dict[str, Any]:
    """A course version as it is published."""
    return course(
        course_version_id=version.id,
        quizzes=[
            quiz(
                quiz_id=quiz_id,
                required=quiz_id in version.required,
                pass_threshold_percentage=one.threshold,
                max_attempts=one.max_attempts,
            )
            for quiz_id, one in version.quizzes.items()
        ],
    ) | {"lessons": [{"lesson_id": id_, "title": "Lesson", "required": id_ in version.required} for id_ in version.lessons]}


@dataclass(frozen=True)
class Place:
    """Where something happens: a learner's enrolment, and the ids that `ITEMS` number."""

    key: Key
    other_version: str
    lessons: tuple[str, str, str]
    quizzes: tuple[str, str, str]


class Life(RuleBasedStateMachine):
    """Does the same to the service and to the model, and compares them."""

    def __init__(self, service: Service, conn: psycopg.Connection[dict[str, Any]]) -> None:
        super().__init__()
        self.service, self.conn = service, conn
        self.begun = self.clock()
        self.acts = [START, START]
        self.sent: list[dict[str, Any]] = []
        self.attempt_ids: list[str] = []
        self.touched: dict[Key, dict[str, Any] | None] = {}
        self.dead: dict[str, str] = {}

    @initialize(required=st.tuples(REQUIRED, REQUIRED), enrolled=st.sampled_from([[0, 1], [0], [0], []]))
    def publish(self, required: tuple[list[int], list[int]], enrolled: list[int]) -> None:
        """Two course versions of two lessons and two quizzes each, of which the first ones are common."""
        common_lesson, common_quiz, lesson, other_lesson, quiz_, other_quiz, first, second = (str(uuid4()) for _ in range(8))
        items = [
            (first, second, (common_lesson, lesson, other_lesson), (common_quiz, quiz_, other_quiz)),
            (second, first, (common_lesson, other_lesson, lesson), (common_quiz, other_quiz, quiz_)),
        ]
        self.places = [
            Place((learner, version), other, lessons, quizzes)
            for learner in (str(uuid4()), str(uuid4()))
            for version, other, lessons, quizzes in items
        ]
        courses = [
            Course(
                version,
                lessons[:2],
                {quizzes[0]: Quiz(threshold, 2), quizzes[1]: Quiz(threshold, None)},
                frozenset((*lessons[:2], *quizzes[:2])[item] for item in numbers),
            )
            for (version, _, lessons, quizzes), threshold, numbers in zip(items, (50, 80), required, strict=True)
        ]
        for one in courses:
            self.service.send("catalog", event("course_version.published", published(one)))
        self.model = Model(courses, [self.places[0].key[0], self.places[2].key[0]])
        for n in enrolled:
            self.send(self.event("enrollment.requested", self.places[n], START))

    # One rule for all, since hypothesis switches some rules off in each life, and here it is their interplay that matters.
    @rule(step=st.sampled_from(STEPS).flatmap(lambda step: st.tuples(st.just(step[0]), *step[1:])))
    def live(self, step: tuple[Any, ...]) -> None:
        getattr(self, step[0])(*step[1:])

    # How a step is done

    def place(self, whose: int) -> Place:
        there = [place for place in self.places if self.model.enrollments[place.key].status]
        return there[whose % len(there)] if there and whose < 8 else self.places[whose % 4]

    def item(self, whose: int, is_quiz: bool, item: int) -> tuple[Key, str]:
        place = self.place(whose)
        return place.key, (place.quizzes if is_quiz else place.lessons)[item]

    def leading_on(self, key: Key, kind: str | int) -> str:
        return LEADS_ON[self.model.enrollments[key].status][kind] if isinstance(kind, int) else kind

    def clock(self) -> datetime:
        row = self.conn.execute("SELECT clock_timestamp() AS now").fetchone()
        assert row
        return row["now"]

    def time(self, drawn: tuple[str, int]) -> datetime:
        kind, n = drawn
        if kind == "past":
            return START + timedelta(minutes=n)
        if kind == "now":
            return self.clock()
        if kind == "ahead":
            return self.begun + timedelta(minutes=n)
        return self.acts[-1 if kind == "last act" else -2] + timedelta(microseconds=n)

    def act(self, do: Callable[[], Any], *keys: Key) -> tuple[Any, datetime]:
        """Do it, look at what it touches, and find out when it happened by the service's clock.

        An act that leaves no time behind changed nothing that has one; its place among the other acts is all that matters.
        """
        before = self.clock()
        answer = do()
        after = self.clock()
        shown = answer.text if isinstance(answer, Answer) else ""
        for key in keys:
            self.touched[key], text = self.look(key)
            shown += text
        times = {datetime.fromisoformat(time) for time in re.findall(r'_at": ?"([^"]+)"', shown.replace("recorded_at", ""))}
        now = min((time for time in times if before < time < after), default=None)
        self.acts += [now] if now else []
        return answer, now or before

    def look(self, key: Key) -> tuple[dict[str, Any] | None, str]:
        """What the service shows of an enrolment, in the model's form and as the texts of its answers."""
        quizzes = list(self.model.enrollments[key].course.quizzes)
        parts = ("", "/progress", "/history", *(f"/quizzes/{quiz_id}/attempts" for quiz_id in quizzes))
        answers = [self.service.admin("GET", path(key, part)) for part in parts]
        if answers[0].status == 404:
            assert {answer.status for answer in answers} == {404}
            return None, ""
        detail, progress, history, *attempts = (answer.json for answer in answers)
        published = self.conn.execute(
            """
            SELECT type, data FROM outbox
            WHERE destination = 'bus' AND data ->> 'user_id' = %s AND data ->> 'course_version_id' = %s
            ORDER BY (data ->> 'sequence')::int
            """,
            key,
        ).fetchall()
        assert [row["data"]["sequence"] for row in published] == list(range(1, len(published) + 1))
        view = {
            "status": detail["status"],
            "completed_at": read(detail["completed_at"]),
            "progress": detail["progress"],
            "lessons": {
                row["lesson_id"]: [
                    row["status"],
                    row["progress_percentage"],
                    *(read(row[name]) for name in ("started_at", "last_accessed_at", "completed_at")),
                ]
                for row in progress["lessons"]
            },
            "attempts": {
                quiz_id: [
                    [row["attempt_number"], row["score"], row["is_passed"], read(row["started_at"]), read(row["completed_at"])]
                    for row in page["items"]
                ]
                for quiz_id, page in zip(quizzes, attempts, strict=True)
            },
            "history": [
                (
                    *(row[name] for name in ("type", "from_status", "to_status")),
                    None if row["type"] == "transferred" else read(row["occurred_at"]),
                )
                for row in history["items"]
            ],
            "published": in_order(
                [
                    (row["type"], row["data"].get("lesson_id") or row["data"].get("quiz_id") or row["data"]["status"])
                    for row in published
                ]
            ),
        }
        return view, "".join(answer.text for answer in answers)

    def http(self, method: str, where: str, body: Any, *keys: Key) -> tuple[Answer, datetime]:
        return self.act(lambda: self.service.admin(method, where, body), *keys)

    def expect(self, answer: Answer, take: Callable[[], int | None]) -> None:
        """The model says the status, 200 unless otherwise, or refuses."""
        code = None
        try:
            status = take() or 200
        except Refused as refused:
            status, code = HTTP_STATUS[refused.code], refused.code
        assert answer.status == status, answer.text
        assert code is None or answer.json["type"].endswith(f":{code}"), answer.text

    def event(self, type_: str, place: Place, time: datetime, **data: Any) -> dict[str, Any]:
        user_id, course_version_id = place.key
        return event(type_, {"user_id": user_id, "course_version_id": course_version_id} | data, text(time))

    def send(self, *events: dict[str, Any], again: dict[str, Any] | None = None, patient: bool = True) -> None:
        """Send one message, or an event `again` with what its queue says about it. What is not taken is found in the outbox."""
        self.sent += events
        queue = QUEUES[events[0]["type"].split(".")[0]]
        one = again or record(json.dumps(events))
        keys = {key_of(one) for one in events}
        _, now = self.act(lambda: self.service.invoke(f"{queue}_worker", {"Records": [one]}), *keys)
        self.dead |= self.model.take(list(events), now, patient=patient)

    @invariant()
    def nothing_differs(self) -> None:
        for key, view in self.touched.items():
            assert view == self.model.enrollments[key].view()
        apart = self.conn.execute("SELECT destination, code, body FROM outbox WHERE body IS NOT NULL")
        waiting, dead = dict[str, str](), dict[str, str]()
        for row in apart:
            (waiting if row["destination"] == "queue" else dead)[json.loads(row["body"])["id"]] = row["code"]
        assert dead == self.dead
        assert waiting == {id_: code for id_, (_, code) in self.model.waiting.items()}
        self.conn.execute("DELETE FROM outbox WHERE destination = 'dead_letter_queue'")
        self.touched.clear()
        self.dead.clear()

    def teardown(self) -> None:
        try:
            assert found(self.service.database_url) == {}
        finally:
            # One life leaves nothing to the next.
            self.conn.execute("TRUNCATE outbox, enrollments, course_versions CASCADE")

    # What happens over HTTP

    def command_over_http(self, whose: int, kind: str | int) -> None:
        key = self.place(whose).key
        kind = self.leading_on(key, kind)
        body = WHY if kind in ("revoked", "reinstated") else None
        answer, now = self.http("PUT" if kind == "requested" else "POST", path(key, ACTIONS[kind]), body, key)
        self.expect(answer, lambda: self.model.enrollments[key].command(kind, now))

    def reset(self, whose: int) -> None:
        key = self.place(whose).key
        answer, now = self.http("POST", path(key, "/reset"), WHY, key)
        self.expect(answer, lambda: self.model.existing(key).reset(now))

    def waive(self, whose: int, is_quiz: bool, item: int) -> None:
        key, id_ = self.item(whose, is_quiz, item)
        answer, now = self.http("PUT", path(key, f"/requirements/{id_}/waiver"), WHY, key)
        self.expect(answer, lambda: self.model.existing(key).waive(id_, now))

    def take_waiver_back(self, whose: int, is_quiz: bool, item: int) -> None:
        key, id_ = self.item(whose, is_quiz, item)
        if item == 0:
            id_ = next(iter(self.model.enrollments[key].waived), id_)
        answer, now = self.http("DELETE", path(key, f"/requirements/{id_}/waiver"), None, key)
        self.expect(answer, lambda: self.model.existing(key).take_waiver_back(id_, now))

    def transfer(self, whose: int, to: str) -> None:
        place = self.place(whose)
        learner, version = place.key
        target = {"the other": place.other_version, "the same": version, "unknown": str(uuid4())}[to]
        there = (learner, place.other_version)
        answer, now = self.http("POST", path(place.key, "/transfer"), {"to": target}, place.key, there)
        self.expect(answer, lambda: self.model.transfer(learner, version, target, now))
        if answer.status < 300:
            shown = (answer.json["course_version_id"], answer.json["status"])
            assert shown == (target, self.model.enrollments[there].status)

    def report_over_http(self, whose: int, lesson: int, report: dict[str, Any], time: Time | None) -> None:
        key, lesson_id = self.item(whose, False, lesson)
        at = self.time(time) if time else None
        body = report | ({"occurred_at": text(at)} if at else {})
        answer, now = self.http("PUT", path(key, f"/lessons/{lesson_id}/progress"), body, key)
        (result,) = self.model.enrollments[key].report([(lesson_id, percentage(report), dated(at or now, now))])
        assert answer.status == HTTP_STATUS.get(result, 200), answer.text
        if answer.status == 200:
            row = self.model.enrollments[key].lesson(lesson_id)
            assert [answer.json["status"], answer.json["progress_percentage"]] == row[:2]

    def sync(self, whose: int, reports: list[tuple[int, dict[str, Any], Time | None]]) -> None:
        place = self.place(whose)
        gathered = [(place.lessons[n], report, self.time(time) if time else None) for n, report, time in reports]
        body = [{"lesson_id": id_} | report | ({"occurred_at": text(at)} if at else {}) for id_, report, at in gathered]
        answer, now = self.http("POST", path(place.key, "/progress"), {"lessons": body}, place.key)
        enrollment = self.model.enrollments[place.key]
        results = enrollment.report([(id_, percentage(report), dated(at or now, now)) for id_, report, at in gathered])
        if enrollment.status is None:
            assert answer.status == 404, answer.text
        else:
            assert answer.status == 200, answer.text
            accepted = [result if result in ("applied", "unchanged") else "refused" for result in results]
            assert [result["result"] for result in answer.json["results"]] == accepted
            assert answer.json["enrollment"]["status"] == enrollment.status

    def start(self, whose: int, item: int) -> None:
        key, quiz_id = self.item(whose, True, item)
        answer, now = self.http("POST", path(key, f"/quizzes/{quiz_id}/attempts"), None, key)
        attempt_id = answer.json.get("id", "")
        self.expect(answer, lambda: self.model.existing(key).start(attempt_id, quiz_id, now))
        if answer.status < 300:
            attempt = self.model.enrollments[key].open_attempt(quiz_id)
            assert attempt
            assert attempt.id == attempt_id
            self.attempt_ids.append(attempt_id)

    def submit(self, nth: int, answers: str) -> None:
        attempt_id = latest(self.attempt_ids, nth) if self.attempt_ids else str(uuid4())
        found = self.model.find(attempt_id)
        keys = [found[0]] if found else []
        answer, now = self.http("POST", f"/quiz-attempts/{attempt_id}/submit", {"answers": ANSWERS[answers]}, *keys)

        def take() -> None:
            if not found:
                raise Refused("attempt_not_found")
            key, attempt = found
            self.model.enrollments[key].submit(attempt, answers, now)

        self.expect(answer, take)
        if answer.status == 200:
            assert answer.json["score"] == SCORES[answers]

    # What comes by queue

    def command_by_queue(self, whose: int, kind: str | int, time: Time) -> None:
        place = self.place(whose)
        self.send(self.event(f"enrollment.{self.leading_on(place.key, kind)}", place, self.time(time)))

    def report_by_queue(self, whose: int, reports: list[tuple[int, dict[str, Any], Time]]) -> None:
        place = self.place(whose)
        events = [
            self.event("lesson.progressed", place, self.time(time), lesson_id=place.lessons[n], **said)
            for n, said, time in reports
        ]
        self.send(*events)

    def submission_by_queue(
        self, whose: int, known: int | None, item: int, answers: str, sent: Time, started: Time | None, ended: Time | None
    ) -> None:
        place = self.place(whose)
        if known is None or not self.attempt_ids:
            self.attempt_ids.append(str(uuid4()))
        times = {"started_at": started, "completed_at": ended}
        submission = self.event(
            "quiz.submitted",
            place,
            self.time(sent),
            attempt_id=latest(self.attempt_ids, known or 0),
            quiz_id=place.quizzes[item],
            answers=ANSWERS[answers],
            **{name: text(self.time(time)) for name, time in times.items() if time},
        )
        self.send(submission)

    def comes_again(self, nth: int, twice: bool) -> None:
        if self.sent:
            one = latest(self.sent, nth)
            self.send(*[one, one] if twice else [one])

    def another_try(self, patient: bool) -> None:
        """What waits is tried again, each event alone, as the relay and the queues do; patience ends after a while."""
        for id_, (one, _) in list(self.model.waiting.items()):
            row = self.conn.execute(
                "DELETE FROM outbox WHERE body IS NOT NULL AND body::jsonb ->> 'id' = %s RETURNING *", [id_]
            ).fetchone()
            assert row
            since = self.clock() - timedelta(hours=0 if patient else 1)
            again = record(row["body"], {"tries": str(row["tries"]), "waiting_since": text(since)})
            del self.model.waiting[id_]
            self.send(one, again=again, patient=patient)


@pytest.mark.timeout(300 + LIVES)
def test_whatever_happens_to_enrolments_is_what_the_rules_say(service: Service):
    with psycopg.Connection[dict[str, Any]].connect(service.database_url, autocommit=True, row_factory=dict_row) as conn:

        class Here(Life):
            def __init__(self) -> None:
                super().__init__(service, conn)

        run_state_machine_as_test(
            Here,
            settings=settings(
                max_examples=LIVES,
                stateful_step_count=30,
                deadline=None,
                derandomize="LIVES" not in os.environ,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            ),
        )
