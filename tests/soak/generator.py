"""One of the processes that use the service: random operations over HTTP and by queue, and a log of what became of each.

Each operation is an identity of its own: over HTTP the caller's id, by queue the event's source. So the history of an enrolment
says which operation did what.
"""

import json
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx

from local.pollers import client
from local.tokens import issue, signing_key
from tests.soak.world import ANSWERS, CORRECTIONS, Dice, Key, Log, World, now, text

#: Longer than any fault; whoever waits longer hangs.
TIMEOUT_SECONDS = 30
#: Once in so many seconds all processes do the same, since that is where transactions meet.
TOGETHER_SECONDS = 2
#: Which queue takes an event.
QUEUES = {"enrollment": "ENROLLMENT", "lesson": "PROGRESS", "quiz": "QUIZ", "learner": "CATALOG"}

#: How often each operation is chosen, of those over HTTP and those by queue.
HTTP = {
    "enrol": 9,
    "cancel": 3,
    "revoke": 2,
    "reinstate": 5,
    "progress": 16,
    "sync": 8,
    "start": 8,
    "draft": 4,
    "submit": 10,
    "waive": 2,
    "withdraw": 2,
    "reset": 1,
    "transfer": 2,
    "allowance": 1,
    "regrade": 1,
    "certificate": 3,
    "read": 10,
    "read_progress": 10,
}
QUEUE = {
    "enrollment.requested": 7,
    "enrollment.cancelled": 2,
    "enrollment.revoked": 1,
    "enrollment.reinstated": 3,
    "lesson.progressed": 18,
    "quiz.submitted": 9,
    "quiz.answer_key_corrected": 1,
    "learner.updated": 1,
}


class Generator:
    """One process."""

    def __init__(self, number: int, seed: int, folder: Path, environment: dict[str, str]) -> None:
        self.world, self.seed, self.number, self.environment = World(seed), seed, number, environment
        #: The number of the moment at which all did the same last.
        self.moment = 0
        self.dice = Dice(f"generator {seed} {number}")
        self.log = Log(folder / f"operations-{number}.jsonl")
        self.key = signing_key(folder / "service")
        self.sqs = client("sqs", environment["AWS_ENDPOINT_URL"])
        # Each request on a connection of its own, so that it reaches any of the gateway's processes.
        self.http = httpx.Client(
            base_url=environment["API_URL"], timeout=TIMEOUT_SECONDS, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self.attempts: list[tuple[str, Key, str]] = []
        self.certificates: dict[str, Key] = {}
        #: Copies of messages, with the moment at which they are sent again.
        self.late: list[tuple[float, str, list[dict[str, Any]]]] = []

    def work(self, pause: Event, idle: Event, stop: Event) -> None:
        """Do one thing after the other; during a pause nothing is under way."""
        parent = os.getppid()
        while not stop.is_set() and os.getppid() == parent:
            if pause.is_set():
                if not stop.is_set():
                    idle.set()
                time.sleep(0.02)
                continue
            idle.clear()
            self.send_late()
            if int(time.time() / TOGETHER_SECONDS) != self.moment:
                self.moment = int(time.time() / TOGETHER_SECONDS)
                self.together()
            elif self.dice.random() < 0.65:
                self.over_http(self.drawn(HTTP))
            else:
                self.by_queue()
            time.sleep(self.dice.uniform(0, 0.03))
        self.send_late(everything=True)
        idle.set()

    def together(self) -> None:
        """Do the same as all other processes at the same moment: start an enrolment over, and complete what it consists of."""
        dice = Dice(f"{self.seed} {self.moment // 2}")
        key = (dice.choice(self.world.learners), dice.choice(list(self.world.versions)))
        lessons = self.world.versions[key[1]].lessons
        if self.moment % 2 == 0:
            self.enrol(key)
            if self.number == 0:
                self.reset(key)
            return
        moments = [now() + n for n in range(len(lessons))]
        reports = [{"lesson": one, "percentage": 100.0, "time": at} for one, at in zip(lessons, moments, strict=True)]
        if self.number % 2:
            body = [
                {"lesson_id": one, "status": "completed", "occurred_at": text(at)}
                for one, at in zip(lessons, moments, strict=True)
            ]
            self.call("sync", key, "POST", self.path(key, "/progress"), {"lessons": body}, reports=reports)
        else:
            said = [{"lesson": lessons[0], "percentage": 100.0, "time": None}]
            path = self.path(key, f"/lessons/{lessons[0]}/progress")
            self.call("progress", key, "PUT", path, {"status": "completed"}, reports=said)

    def drawn(self, weights: dict[str, int]) -> str:
        return self.dice.choices(list(weights), list(weights.values()))[0]

    def place(self) -> Key:
        """An enrolment; most of what happens, happens to few of them."""
        learner = self.dice.choices(self.world.learners, [8, 4, 2, 1])[0]
        version = self.dice.choices(list(self.world.versions), [6, 3, 1])[0]
        return learner, version

    # Over HTTP

    def over_http(self, kind: str) -> None:
        if kind in ("draft", "submit"):
            self.answer(kind)
        elif kind == "certificate":
            self.change_certificate()
        elif kind == "regrade":
            self.regrade()
        else:
            getattr(self, kind)(self.place())

    def call(self, kind: str, key: Key, method: str, path: str, body: Any = None, **said: Any) -> dict[str, Any] | None:
        """Send one request, with an administrator's token of its own unless the learner does it, and log what comes of it."""
        id_ = self.dice.uuid()
        by_learner = said.pop("by_learner", False)
        token = issue(self.key, key[0]) if by_learner else issue(self.key, id_, "learner-progress:admin")
        who = {"learner": key[0], "version": key[1], "kind": kind, "via": "http"}
        self.log.write(op=id_, **who, **said, at=now())
        headers = {"authorization": f"Bearer {token}"}
        try:
            answer = (
                self.http.request(method, path, json=body, headers=headers)
                if body is not None
                else self.http.request(method, path, headers=headers)
            )
        except httpx.TimeoutException as error:
            self.log.write(op=id_, end=now(), status=0, error=f"no answer within {TIMEOUT_SECONDS} s: {error!r}", hang=True)
            return None
        except httpx.HTTPError as error:
            self.log.write(op=id_, end=now(), status=0, error=repr(error))
            time.sleep(0.3)
            return None
        end = now()
        try:
            found = answer.json()
        except ValueError:
            found = {"text": answer.text[:300]}
        self.log.write(op=id_, end=end, status=answer.status_code, body=found)
        if answer.status_code == 503:
            # As a caller would, who is told to try again later.
            time.sleep(0.3)
        return found if answer.is_success else None

    def path(self, key: Key, rest: str = "") -> str:
        return f"/users/{key[0]}/enrollments/{key[1]}{rest}"

    def why(self) -> dict[str, str]:
        return {"reason": "because"}

    def enrol(self, key: Key) -> None:
        self.call("enrol", key, "PUT", self.path(key))

    def cancel(self, key: Key) -> None:
        self.call("cancel", key, "POST", self.path(key, "/cancel"))

    def revoke(self, key: Key) -> None:
        too = self.dice.random() < 0.3
        body = {"reason": "because", "revoke_certificate": too}
        self.call("revoke", key, "POST", self.path(key, "/revoke"), body, certificate_too=too)

    def reinstate(self, key: Key) -> None:
        self.call("reinstate", key, "POST", self.path(key, "/reinstate"), self.why())

    def reset(self, key: Key) -> None:
        self.call("reset", key, "POST", self.path(key, "/reset"), self.why())

    def waive(self, key: Key) -> None:
        version = self.world.versions[key[1]]
        item = self.dice.choice(version.lessons + version.quizzes)
        self.call("waive", key, "PUT", self.path(key, f"/requirements/{item}/waiver"), self.why(), item=item)

    def withdraw(self, key: Key) -> None:
        version = self.world.versions[key[1]]
        item = self.dice.choice(version.lessons + version.quizzes)
        self.call("withdraw", key, "DELETE", self.path(key, f"/requirements/{item}/waiver"), item=item)

    def transfer(self, key: Key) -> None:
        there = self.dice.choice([self.world.first, self.world.second])
        key = (key[0], self.world.second if there == self.world.first else self.world.first)
        self.call("transfer", key, "POST", self.path(key, "/transfer"), {"to": there}, to=there)

    def report(self) -> tuple[dict[str, Any], float]:
        if self.dice.random() < 0.4:
            return self.dice.choice([{"progress_percentage": 100}, {"status": "completed"}]), 100.0
        # Six digits, so that a value tells which report it comes from.
        percentage = round(self.dice.uniform(1, 99), 6)
        return {"progress_percentage": percentage}, percentage

    def when(self, ahead: float = 0.0) -> int:
        """A moment of the last seconds, by its microseconds unlike any other."""
        return now() + int(self.dice.uniform(-15, ahead) * 1_000_000)

    def progress(self, key: Key) -> None:
        lesson = self.dice.choice(self.world.versions[key[1]].lessons)
        body, percentage = self.report()
        time_ = self.when(1) if self.dice.random() < 0.5 else None
        reports = [{"lesson": lesson, "percentage": percentage, "time": time_}]
        body |= {"occurred_at": text(time_)} if time_ else {}
        by_learner = self.dice.random() < 0.5
        path = self.path(key, f"/lessons/{lesson}/progress")
        self.call("progress", key, "PUT", path, body, reports=reports, by_learner=by_learner)

    def sync(self, key: Key) -> None:
        lessons, reports = [], []
        for _ in range(self.dice.randint(1, 6)):
            lesson = self.dice.choice(self.world.versions[key[1]].lessons)
            body, percentage = self.report()
            time_ = self.when(1)
            lessons.append({"lesson_id": lesson, "occurred_at": text(time_)} | body)
            reports.append({"lesson": lesson, "percentage": percentage, "time": time_})
        self.call("sync", key, "POST", self.path(key, "/progress"), {"lessons": lessons}, reports=reports)

    def start(self, key: Key) -> None:
        quiz = self.dice.choice(self.world.versions[key[1]].quizzes)
        found = self.call("start", key, "POST", self.path(key, f"/quizzes/{quiz}/attempts"), quiz=quiz)
        if found:
            self.attempts = [*self.attempts[-5:], (found["id"], key, quiz)]

    def answers(self, quiz: str) -> dict[str, Any]:
        """Answers of which many are right; the first ones are so more often than the others."""
        given = ANSWERS[self.world.kinds[quiz]]
        return {
            question: choices[0] if self.dice.random() < 0.4 else self.dice.choice(choices)
            for question, choices in given.items()
            if self.dice.random() < 0.9
        }

    def answer(self, kind: str) -> None:
        if not self.attempts:
            return
        attempt, key, quiz = self.dice.choice(self.attempts)
        answers = self.answers(quiz)
        method, path = ("POST", "submit") if kind == "submit" else ("PUT", "answers")
        said = {"quiz": quiz, "attempt": attempt, "answers": answers}
        for _ in range(self.dice.choice([1, 1, 1, 2])):
            self.call(kind, key, method, f"/quiz-attempts/{attempt}/{path}", {"answers": answers}, **said)

    def allowance(self, key: Key) -> None:
        quiz = self.dice.choice(self.world.versions[key[1]].quizzes)
        extra = {"extra_attempts": self.dice.randint(1, 20), "extra_time_percentage": 0}
        self.call("allowance", key, "PUT", self.path(key, f"/quizzes/{quiz}/allowance"), extra, quiz=quiz, extra=extra)

    def regrade(self) -> None:
        version = self.dice.choice(list(self.world.versions.values()))
        quiz = self.dice.choice(version.quizzes)
        body = {"dry_run": self.dice.random() < 0.3, "take_away": self.dice.random() < 0.5}
        path = f"/course-versions/{version.id}/quizzes/{quiz}/regrade"
        self.call("regrade", ("", version.id), "POST", path, body, quiz=quiz, **body)

    def change_certificate(self) -> None:
        if not self.certificates:
            return
        uid = self.dice.choice(list(self.certificates))
        act = self.dice.choice(["revoke", "reinstate", "reinstate", "reissue"])
        path = f"/certificates/{uid}/{act}"
        self.call(f"certificate_{act}", self.certificates[uid], "POST", path, self.why(), uid=uid)

    def read(self, key: Key) -> None:
        found = self.call("read", key, "GET", self.path(key), by_learner=self.dice.random() < 0.5)
        if found and found["certificate_uid"]:
            self.certificates[found["certificate_uid"]] = key

    def read_progress(self, key: Key) -> None:
        self.call("read_progress", key, "GET", self.path(key, "/progress"), by_learner=self.dice.random() < 0.5)

    # By queue

    def by_queue(self) -> None:
        """A message with one event or several, which may come again, alone and in other company."""
        type_ = self.drawn(QUEUE)
        queue = "CATALOG" if type_ == "quiz.answer_key_corrected" else QUEUES[type_.split(".")[0]]
        of_this_queue = [one for one in QUEUE if one.split(".")[0] == type_.split(".")[0] and one != "quiz.answer_key_corrected"]
        types = [type_] + [self.dice.choice(of_this_queue) for _ in range(self.dice.choice([0, 0, 0, 1, 3]))] * (
            queue != "CATALOG"
        )
        events = [self.event(one) for one in types]
        self.send(queue, events)
        for _ in range(self.dice.choice([0, 0, 0, 1, 1, 4])):
            again = [self.dice.choice(events) for _ in range(self.dice.randint(1, len(events)))]
            self.late.append((time.monotonic() + self.dice.choice([0, 0.5, 3, 12]) * self.dice.random(), queue, again))
        if self.dice.random() < 0.2:
            self.dice.shuffle(self.late)

    def event(self, type_: str) -> dict[str, Any]:
        id_, key = self.dice.uuid(), self.place()
        data: dict[str, Any] = {"user_id": key[0], "course_version_id": key[1]}
        said: dict[str, Any] = {}
        version = self.world.versions[key[1]]
        time_ = now() + int(self.dice.uniform(-5, 0.5) * 1_000_000) if type_.startswith("enrollment.") else self.when(1)
        if type_ == "lesson.progressed":
            lesson = self.dice.choice(version.lessons)
            body, percentage = self.report()
            data |= {"lesson_id": lesson} | body
            said = {"reports": [{"lesson": lesson, "percentage": percentage, "time": time_}]}
        elif type_ == "quiz.submitted":
            quiz, attempt = self.dice.choice(version.quizzes), self.dice.uuid()
            said = {"quiz": quiz, "attempt": attempt, "answers": self.answers(quiz)}
            data |= {"quiz_id": quiz, "attempt_id": attempt, "answers": said["answers"], "completed_at": text(time_)}
        elif type_ == "quiz.answer_key_corrected":
            quiz = self.dice.choice([one for one in version.quizzes if self.world.kinds[one] in CORRECTIONS])
            known = {question["question_id"]: question for question in version.quiz(quiz)["questions"]}
            question, keys = self.dice.choice(list(CORRECTIONS[self.world.kinds[quiz]].items()))
            corrected = known[question] | {"correct": self.dice.choice(keys)}
            key, time_ = ("", key[1]), now()
            data = {"course_version_id": key[1], "quiz_id": quiz, "questions": [corrected]}
            said = {"quiz": quiz, "questions": [corrected]}
        elif type_ == "learner.updated":
            key, time_ = (key[0], ""), now()
            said = {"name": f"Learner {id_[:8]}"}
            data = {"user_id": key[0], **said}
        who = {"learner": key[0], "version": key[1], "kind": type_, "via": "queue"}
        self.log.write(op=id_, **who, **said, time=time_, at=now())
        return {"specversion": "1.0", "id": id_, "source": id_, "type": type_, "time": text(time_), "data": data}

    def send(self, queue: str, events: list[dict[str, Any]]) -> None:
        body = json.dumps(events[0] if len(events) == 1 and self.dice.random() < 0.5 else events)
        self.sqs.send_message(QueueUrl=self.environment[f"{queue}_QUEUE_URL"], MessageBody=body)
        self.log.write(sent=[event["id"] for event in events], at=now())

    def send_late(self, *, everything: bool = False) -> None:
        due = [one for one in self.late if everything or one[0] <= time.monotonic()]
        self.late = [one for one in self.late if one not in due]
        for _, queue, events in due:
            self.send(queue, events)


def run(number: int, seed: int, folder: Path, environment: dict[str, str], pause: Event, idle: Event, stop: Event) -> None:
    """Be generator `number` until it is stopped; the terminal's Ctrl-C is for the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Generator(number, seed, folder, environment).work(pause, idle, stop)
