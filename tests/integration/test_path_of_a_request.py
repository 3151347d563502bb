"""How many of our files a request crosses: an engineer who follows one should not get lost."""

import importlib
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from tests.support.service import LEARNER, Service, course, event, quiz

#: Read once and known everywhere: the connection, the edge, the errors; and what only carries values or watches.
EVERYWHERE = {
    "shared/db.py",
    "shared/http.py",
    "shared/errors.py",
    "shared/observability.py",
    "shared/parsing.py",
    "shared/settings.py",
    "shared/trace.py",
}


def crossed(root: Path, call: Any) -> set[str]:
    """The project's files of which a function runs during the call, but for those that every request touches and for models."""
    files: set[str] = set()

    def watch(frame: FrameType, what: str, _argument: Any) -> None:
        if what == "call":
            files.add(frame.f_code.co_filename)

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    ours = {str(Path(f).relative_to(root)) for f in files if f.startswith((f"{root}/shared/", f"{root}/functions/"))}
    return {f for f in ours - EVERYWHERE if not f.endswith(("models.py", "attempts.py"))}


def test_a_request_crosses_at_most_three_files(service: Service, root: Path):
    version = course(lessons=1, quizzes=[quiz()])
    service.send("catalog", event("course_version.published", version))
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada Lovelace"}))
    base = f"/users/{LEARNER}/enrollments/{version['course_version_id']}"
    attempts = f"{base}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
    seen: dict[str, set[str]] = {}
    # What is imported runs too, once.
    for folder in (root / "functions").glob("*_api"):
        importlib.import_module(f"functions.{folder.name}.app")

    def call(method: str, path: str, body: Any = None) -> Any:
        answers: list[Any] = []
        name = f"{method} {path.replace(base, '…')}"
        seen[name] = crossed(root, lambda: answers.append(service.admin(method, path, body)))
        assert answers[0].status < 300, (name, answers[0].text)
        return answers[0]

    call("PUT", base)
    call("GET", base)
    call("POST", f"{base}/cancel")
    call("PUT", base)
    call("GET", f"/users/{LEARNER}/enrollments")
    call("PUT", f"{base}/lessons/{version['lessons'][0]['lesson_id']}/progress", {"status": "completed"})
    call("POST", f"{base}/progress", {"lessons": [{"lesson_id": version["lessons"][0]["lesson_id"], "status": "completed"}]})
    call("GET", f"{base}/progress")
    attempt = call("POST", attempts).json["id"]
    call("GET", attempts)
    call("PUT", f"/quiz-attempts/{attempt}/answers", {"answers": {"q1": "b"}})
    call("POST", f"/quiz-attempts/{attempt}/submit", {"answers": {"q1": "a"}})
    call("GET", f"/quiz-attempts/{attempt}")
    service.deliver()
    uid = call("GET", f"{base}/certificate").json["certificate_uid"]
    call("GET", f"/users/{LEARNER}/certificates")
    call("GET", f"/certificates/{uid}")
    call("POST", f"/certificates/{uid}/revoke", {"reason": "x"})
    call("POST", f"/certificates/{uid}/reinstate", {"reason": "x"})
    call("POST", f"{base}/revoke", {"reason": "x"})
    call("POST", f"{base}/reinstate", {"reason": "x"})
    call("GET", f"/course-versions/{version['course_version_id']}/enrollments")
    call("PUT", attempts.replace("attempts", "allowance"), {"extra_attempts": 1})
    call("PUT", f"{base}/requirements/{version['lessons'][0]['lesson_id']}/waiver", {"reason": "x"})
    call("DELETE", f"{base}/requirements/{version['lessons'][0]['lesson_id']}/waiver")
    call("POST", f"{base}/reset", {"reason": "x"})
    call("GET", f"{base}/history")
    call("GET", "/health")

    longer = {name: files for name, files in seen.items() if len(files) > 3}
    assert not longer
    assert seen["POST …/reset"] == {
        "functions/enrollment_api/app.py",
        "shared/enrollment/administration.py",
        "shared/enrollment/store.py",
    }
