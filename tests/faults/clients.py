"""Clients in processes of their own, which do one thing after the other and take down what was acknowledged, until told to stop.

`python -m tests.faults.clients FOLDER KIND...` starts one process for each kind; `FOLDER/world.json` says what there is. They are
processes, since the handlers of the API, like Lambda, serve one request at a time in each.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.service import Service, event, record

PROJECT = Path(__file__).parents[2]
ATTEMPTS_IN_A_ROW = 400


class Client:
    """One client: its log has a line for each answer."""

    def __init__(self, folder: Path, name: str) -> None:
        self.world: dict[str, Any] = json.loads((folder / "world.json").read_text())
        self.stop = folder / "stop"
        self.log = (folder / f"{name}.log").open("a", buffering=1)
        self.service = Service("")
        self.version = self.world["version"]
        self.lesson = self.version["lessons"][0]["lesson_id"]
        self.quiz = self.version["quizzes"][0]["quiz_id"]

    def note(self, operation: str, **fields: Any) -> None:
        self.log.write(json.dumps({"operation": operation, "at": time.time()} | fields) + "\n")

    def until_done(self, operation: str, request: Callable[[str], Any], **fields: Any) -> Any:
        """Try it until it is done, each time with another reason; refused as done already may only be what was tried before."""
        for tries in range(ATTEMPTS_IN_A_ROW):
            reason = f"reason {uuid4()}"
            start = time.monotonic()
            answer = request(reason)
            self.note(operation, status=answer.status, reason=reason, seconds=time.monotonic() - start, **fields)
            if answer.status in (200, 201):
                return answer.json
            if answer.status == 503:
                assert answer.headers["retry-after"] == "5"
                time.sleep(0.05)
                continue
            assert answer.status == 409, answer.text
            assert tries > 0, answer.text
            return None
        raise AssertionError(f"{operation} is stuck")

    def learner(self) -> None:
        """A learner's whole life over HTTP, and what administrators do in it."""
        user, admin = str(uuid4()), self.service.admin
        base = f"/users/{user}/enrollments/{self.version['course_version_id']}"
        known: dict[str, Any] = {"user": user}
        self.until_done("enrol", lambda reason: admin("PUT", base), **known)
        self.until_done(
            "progress",
            lambda reason: admin("PUT", f"{base}/lessons/{self.lesson}/progress", {"progress_percentage": 50}),
            **known,
        )
        batch = {"lessons": [{"lesson_id": self.lesson, "progress_percentage": 60}]}
        self.until_done("progress in a batch", lambda reason: admin("POST", f"{base}/progress", batch), **known)
        attempt = self.until_done(
            "start an attempt", lambda reason: admin("POST", f"{base}/quizzes/{self.quiz}/attempts"), **known
        )["id"]
        answers = {"answers": {"q1": "a"}}
        self.until_done("save a draft", lambda reason: admin("PUT", f"/quiz-attempts/{attempt}/answers", answers), **known)
        self.until_done(
            "submit", lambda reason: admin("POST", f"/quiz-attempts/{attempt}/submit", answers), attempt=attempt, **known
        )
        for operation, method, path, body in (
            ("waive", "PUT", f"requirements/{self.lesson}/waiver", {}),
            ("revoke", "POST", "revoke", {}),
            ("reinstate", "POST", "reinstate", {}),
            ("reset", "POST", "reset", {}),
            ("transfer", "POST", "transfer", {"to": self.world["edition"]["course_version_id"]}),
        ):
            self.until_done(operation, lambda reason: admin(method, f"{base}/{path}", body | {"reason": reason}), **known)
        self.until_done("withdraw waiver", lambda reason: admin("DELETE", f"{base}/requirements/{self.lesson}/waiver"), **known)
        self.until_done("cancel", lambda reason: admin("POST", f"{base}/cancel", {"reason": reason}), **known)

    def again_and_again(self, operation: str, function: str, payload: dict[str, Any], **fields: Any) -> None:
        """Invoke it until it raises nothing, as SQS and the clock do."""
        for _ in range(ATTEMPTS_IN_A_ROW):
            try:
                self.service.invoke(function, payload)
            except Exception as error:
                self.note(operation, status=503, error=type(error).__name__)
                time.sleep(0.05)
                continue
            self.note(operation, status=200, **fields)
            return
        raise AssertionError(f"{operation} is stuck")

    def queues(self) -> None:
        """Batches of messages, for learners of their own, each until it is taken."""
        users = [str(uuid4()) for _ in range(5)]
        ids = [{"user_id": user, "course_version_id": self.version["course_version_id"]} for user in users]
        submissions = [one | {"quiz_id": self.quiz, "attempt_id": str(uuid4()), "answers": {"q1": "a"}} for one in ids]
        attempts = [one["attempt_id"] for one in submissions]
        for queue, events in (
            ("catalog", [event("learner.updated", {"user_id": user, "name": "Ada"}) for user in users]),
            ("enrollment", [event("enrollment.requested", one) for one in ids]),
            ("progress", [event("lesson.progressed", one | {"lesson_id": self.lesson, "status": "completed"}) for one in ids]),
            ("quiz", [event("quiz.submitted", one) for one in submissions]),
            ("certificate", [event("enrollment.completed", one | {"status": "completed", "sequence": 4}) for one in ids]),
        ):
            payload = {"Records": [record(json.dumps(events[0])), record(json.dumps(events[1:]))]}
            self.again_and_again(f"queue: {queue}", f"{queue}_worker", payload, users=users, attempts=attempts)

    def clock(self) -> None:
        """What is graded again and what is sent, a step at a time."""
        from functions.outbox_relay import app as relay
        from functions.quiz_maintenance.app import sweep
        from shared import db
        from shared.quiz import regrades, service
        from tests.support.aws import Laps

        def one_lap() -> Any:
            return Laps(1)

        def step() -> None:
            sweep()
            job = db.run(regrades.lease).fetchone()
            while job:
                job = service.regrade(job)

        for operation, work in (("regrade", step), ("relay", lambda: relay.handler({}, one_lap()))):
            try:
                work()
            except Exception as error:
                self.note(operation, status=503, error=type(error).__name__)
                time.sleep(0.05)
            else:
                self.note(operation, status=200)
        time.sleep(0.02)

    def correct(self) -> None:
        """Corrections of the answer key, one after the other, each of which asks for a regrade."""
        questions = [self.version["quizzes"][0]["questions"][1] | {"correct": time.time()}]
        ids = {"course_version_id": self.version["course_version_id"], "quiz_id": self.quiz}
        payload = {"Records": [record(json.dumps(event("quiz.answer_key_corrected", ids | {"questions": questions})))]}
        self.again_and_again("queue: correct a key", "catalog_worker", payload)
        time.sleep(0.2)


@contextmanager
def running(folder: Path, *kinds: str) -> Generator[None]:
    """Let clients of these kinds do their work; in the end each finishes what it is at."""
    with subprocess.Popen([sys.executable, "-m", "tests.faults.clients", str(folder), *kinds], cwd=PROJECT) as parent:
        try:
            yield
            (folder / "stop").touch()
            assert parent.wait(100) == 0, "a client failed"
        finally:
            (folder / "stop").touch()
            parent.terminate()


def logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What each client has taken down so far."""
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        for path in folder.glob("*.log")
    }


def _main(folder: Path, kinds: list[str]) -> int:
    # Once for all of them.
    for path in (PROJECT / "functions").glob("*/app.py"):
        if path.parent.name != "migrate":
            importlib.import_module(f"functions.{path.parent.name}.app")
    # What handlers print is not for the tests' output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    children: list[int] = []
    for n, kind in enumerate(kinds):
        pid = os.fork()
        if pid == 0:
            client = Client(folder, f"{kind}-{n}")
            try:
                while not client.stop.exists():
                    getattr(client, kind)()
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), sys.argv[2:]))
