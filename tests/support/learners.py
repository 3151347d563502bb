"""Learners at work, in processes of their own as Lambda's execution environments are, each with a connection of its own."""

import multiprocessing
import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any
from uuid import UUID, uuid4

from shared import settings
from tests.support.service import Service

type Request = tuple[float, float, int]
"""When it began (by the monotonic clock), how many seconds it took, and the status of its answer."""


class Learners:
    """What has been answered up to now, and once they have ended every request that there was."""

    def __init__(self, answered: Any) -> None:
        self._answered = answered
        self.requests: list[Request] = []

    def await_more(self) -> None:
        """Wait until some more requests have been answered that begin from now on."""
        # One that was under way is answered at most.
        enough = self._answered.value + 10
        deadline = time.monotonic() + 30
        while self._answered.value < enough:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@contextmanager
def at_work(database_url: str, version: dict[str, Any], clients: int) -> Generator[Learners]:
    """So many processes in which one learner after another goes through a course (two lessons and a quiz), until this ends.

    The handlers are those of this code, which knows nothing of the migrations that a test adds: old code on a newer schema.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        [__name__, *(f"functions.{name}.app" for name in ("enrollment_api", "progress_api", "quiz_api"))]
    )
    ended, answered = processes.Event(), processes.Value("i", 0)
    learners = Learners(answered)
    readers: list[threading.Thread] = []
    for _ in range(clients):
        ours, theirs = processes.Pipe(duplex=False)
        processes.Process(target=_learn, args=[database_url, version, ended, answered, theirs], daemon=True).start()
        theirs.close()
        reader = threading.Thread(target=lambda pipe=ours: learners.requests.extend(pipe.recv()))
        reader.start()
        readers.append(reader)
    try:
        learners.await_more()
        yield learners
    finally:
        ended.set()
        for reader in readers:
            reader.join()


def _learn(database_url: str, version: dict[str, Any], ended: Any, answered: Any, results: "Connection[Any, Any]") -> None:
    os.environ["DATABASE_URL"] = database_url
    settings.database_url.cache_clear()
    service = Service(database_url)
    requests: list[Request] = []

    def ask(learner: UUID, method: str, path: str, body: Any = None) -> Any:
        began = time.monotonic()
        try:
            answer = service.http(method, path, body, sub=learner)
        except Exception:
            # What API Gateway makes of it.
            requests.append((began, time.monotonic() - began, 500))
            raise
        requests.append((began, time.monotonic() - began, answer.status))
        with answered:
            answered.value += 1
        return answer.json

    try:
        first, second = (lesson["lesson_id"] for lesson in version["lessons"])
        while not ended.is_set():
            learner = uuid4()
            path = f"/users/{learner}/enrollments/{version['course_version_id']}"
            ask(learner, "PUT", path)
            ask(learner, "PUT", f"{path}/lessons/{first}/progress", {"progress_percentage": 50})
            ask(learner, "PUT", f"{path}/lessons/{first}/progress", {"progress_percentage": 100})
            attempt = ask(learner, "POST", f"{path}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts")
            ask(learner, "POST", f"/quiz-attempts/{attempt['id']}/submit", {"answers": {"q1": "a", "q2": 0.1}})
            ask(learner, "PUT", f"{path}/lessons/{second}/progress", {"progress_percentage": 100})
            ask(learner, "GET", path)
    finally:
        results.send(requests)
