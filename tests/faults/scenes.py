"""Operations of every kind, each with what must have happened before, and what they leave behind."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from functions.quiz_maintenance.app import sweep
from shared import db
from shared.quiz import regrades
from shared.quiz import service as quizzes
from tests.support.service import Service, course, event, quiz


@dataclass
class Scene:
    """A learner of their own in a course version of their own, with another edition of it."""

    service: Service
    user: str = field(default_factory=lambda: str(uuid4()))
    version: dict[str, Any] = field(default_factory=lambda: course(lessons=1, quizzes=[quiz(required=False)]))
    #: Whether the service hears of course versions and learner beforehand.
    is_known: bool = True
    #: What a preparation found, for the operation.
    found: str = ""

    def __post_init__(self) -> None:
        edition = {"course_version_id": str(uuid4()), "version": "2014B"}
        self.edition = self.version | edition
        if self.is_known:
            versions = [event("course_version.published", version) for version in (self.version, self.edition)]
            self.service.send("catalog", [*versions, event("learner.updated", {"user_id": self.user, "name": "Ada"})])

    @property
    def ids(self) -> dict[str, str]:
        return {"user_id": self.user, "course_version_id": self.version["course_version_id"]}

    @property
    def base(self) -> str:
        return f"/users/{self.user}/enrollments/{self.version['course_version_id']}"

    @property
    def lesson(self) -> str:
        return self.version["lessons"][0]["lesson_id"]

    @property
    def quiz_id(self) -> str:
        return self.version["quizzes"][0]["quiz_id"]

    def http(self, method: str, path: str, body: Any = None) -> Any:
        """A request by an administrator; a path that does not begin with a slash belongs to the enrolment."""
        answer = self.service.admin(method, path if path.startswith("/") else f"{self.base}/{path}".rstrip("/"), body)
        assert answer.status in (200, 201, 202), (answer.status, answer.text)
        return answer.json

    def send(self, queue: str, type_: str, **data: Any) -> None:
        self.service.send(queue, event(type_, self.ids | data))

    # Steps that come before

    def enrol(self) -> None:
        self.http("PUT", "")

    def progress(self, percentage: int = 50) -> None:
        self.send("progress", "lesson.progressed", lesson_id=self.lesson, progress_percentage=percentage)

    def start(self) -> None:
        self.enrol()
        self.found = self.http("POST", f"quizzes/{self.quiz_id}/attempts")["id"]

    def submitted(self) -> None:
        self.enrol()
        self.progress()
        self.send("quiz", "quiz.submitted", quiz_id=self.quiz_id, attempt_id=str(uuid4()), answers={"q1": "a"})

    def completed(self) -> None:
        self.submitted()
        self.progress(100)

    def certified(self) -> None:
        self.completed()
        self.send("certificate", "enrollment.completed", completed_at="2026-01-01T00:00:00Z", status="completed", sequence=1)
        (row,) = self.service.rows("SELECT certificate_uid FROM certificates WHERE user_id = %s", self.user)
        self.found = f"/certificates/{row['certificate_uid']}"

    def revoked(self) -> None:
        self.enrol()
        self.http("POST", "revoke", {"reason": "before"})

    def certificate_revoked(self) -> None:
        self.certified()
        self.http("POST", f"{self.found}/revoke", {"reason": "before"})

    def cancelled(self) -> None:
        self.enrol()
        self.http("POST", "cancel")

    def waived(self) -> None:
        self.enrol()
        self.http("PUT", f"requirements/{self.quiz_id}/waiver", {"reason": "before"})

    def ran_out(self) -> None:
        self.start()
        self.service.rows(
            "UPDATE quiz_attempts SET started_at = now() - interval '2 h', expires_at = now() - interval '1 h' WHERE id = %s",
            self.found,
        )

    def corrected(self) -> None:
        self.submitted()
        self.correct()

    def correct(self) -> None:
        questions = [self.version["quizzes"][0]["questions"][0] | {"correct": "b"}]
        self.send("catalog", "quiz.answer_key_corrected", quiz_id=self.quiz_id, questions=questions)

    def regrade(self) -> None:
        """As the maintenance does, until nothing is left of this quiz's regrades."""
        while job := db.run(regrades.lease).fetchone():
            while job:
                job = quizzes.regrade(job)

    def next_minute(self) -> None:
        """The clock starts maintenance and certificate worker, with all leases run out."""
        self.service.rows("UPDATE quiz_regrades SET leased_until = now() WHERE completed_at IS NULL")
        self.regrade()
        left = self.service.rows("UPDATE certificates SET due_at = now() WHERE due_at IS NOT NULL RETURNING id")
        left += self.service.rows("UPDATE status_lists SET due_at = now() WHERE due_at IS NOT NULL RETURNING number")
        if left:
            self.service.invoke("certificate_worker", {"detail-type": "Scheduled Event"})

    def submit_event(self) -> None:
        self.send("quiz", "quiz.submitted", quiz_id=self.quiz_id, attempt_id=str(uuid4()), answers={"q1": "a"})

    # What is left behind

    def footprint(self) -> dict[str, Any]:
        """Everything that the database holds of the learner, without ids and times."""
        known = {
            self.user: "the learner",
            self.version["course_version_id"]: "the version",
            self.edition["course_version_id"]: "the edition",
            self.quiz_id: "the quiz",
        }
        queries = {
            "enrollments": """
                SELECT course_version_id::text AS version, status, sequence, command, confirmed,
                    completed_at IS NOT NULL AS completed, reset_at IS NOT NULL AS reset, source_of_enrollment
                FROM enrollments WHERE user_id = %s ORDER BY sequence, 1
            """,
            "history": """
                SELECT course_version_id::text AS version, type, from_status, to_status, reason, sequence FROM enrollment_history
                WHERE user_id = %s ORDER BY position
            """,
            "published": """
                SELECT type, data ->> 'course_version_id' AS version, (data ->> 'sequence')::int AS sequence,
                    data ->> 'status' AS status
                FROM outbox WHERE data ->> 'user_id' = %s AND destination = 'bus' ORDER BY 2, 3, 1
            """,
            "set apart": "SELECT queue, code, tries FROM outbox WHERE body LIKE '%%' || %s || '%%' ORDER BY body",
            "progress": "SELECT progress_percentage, status FROM lesson_progress WHERE user_id = %s ORDER BY 1",
            "attempts": """
                SELECT attempt_number, score, is_passed, pass_kept, in_time, key_version, answers_snapshot::text
                FROM quiz_attempts WHERE user_id = %s ORDER BY enrolled_course_version_id = %s::uuid DESC, attempt_number
            """,
            "set aside": "SELECT attempt_number, score FROM quiz_attempts_set_aside WHERE user_id = %s",
            "certificates": """
                SELECT revision, revoked_at IS NOT NULL AS revoked, revocation_reason, pdf_url IS NOT NULL AS has_document,
                    credential IS NOT NULL AS has_credential
                FROM certificates WHERE user_id = %s
            """,
            "snapshots": """
                SELECT s.revision, s.reason FROM certificate_snapshots s JOIN certificates c ON c.id = s.certificate_id
                WHERE c.user_id = %s ORDER BY 1
            """,
            "waivers": "SELECT reason FROM requirement_waivers WHERE user_id = %s",
            "allowances": "SELECT extra_attempts, extra_time_percentage FROM quiz_allowances WHERE user_id = %s",
            "learner": "SELECT name FROM learners WHERE user_id = %s",
        }
        found: dict[str, Any] = {}
        for name, query in queries.items():
            parameters = [self.user, self.version["course_version_id"]][: query.count("%s")]
            found[name] = self.service.rows(query, *parameters)
        found["keys"] = self.service.rows(
            "SELECT key_version FROM quiz_answer_keys WHERE course_version_id = %s ORDER BY 1", self.version["course_version_id"]
        )
        found["regrades"] = self.service.rows(
            """
            SELECT dry_run, attempts, attempts_changed, completed_at IS NOT NULL AS completed FROM quiz_regrades
            WHERE course_version_id = %s ORDER BY requested_at
            """,
            self.version["course_version_id"],
        )
        text = json.dumps(found, default=str)
        for id_, name in known.items():
            text = text.replace(id_, name)
        # Ids are in no order that would be the same for two learners.
        return {name: sorted(rows, key=json.dumps) for name, rows in json.loads(text).items()}


@dataclass(frozen=True)
class Operation:
    """What is done, and what was done before it."""

    name: str
    before: Callable[[Scene], object]
    act: Callable[[Scene], object]
    #: What goes on by itself a minute later, when the leases that somebody took with him have run out.
    later: Callable[[Scene], object] = lambda scene: None

    def __str__(self) -> str:
        return self.name


def _nothing(scene: Scene) -> None:
    pass


def _reason(scene: Scene) -> dict[str, str]:
    return {"reason": "so it is"}


HTTP = [
    Operation("enrol", _nothing, lambda s: s.http("PUT", "")),
    Operation("enrol again", Scene.cancelled, lambda s: s.http("PUT", "")),
    Operation("cancel", Scene.enrol, lambda s: s.http("POST", "cancel")),
    Operation("revoke", Scene.enrol, lambda s: s.http("POST", "revoke", _reason(s))),
    Operation(
        "revoke with certificate", Scene.certified, lambda s: s.http("POST", "revoke", _reason(s) | {"revoke_certificate": True})
    ),
    Operation("reinstate", Scene.revoked, lambda s: s.http("POST", "reinstate", _reason(s))),
    Operation("reset", Scene.completed, lambda s: s.http("POST", "reset", _reason(s))),
    Operation(
        "transfer",
        Scene.completed,
        lambda s: s.http("POST", "transfer", _reason(s) | {"to": s.edition["course_version_id"]}),
    ),
    Operation("waive", Scene.enrol, lambda s: s.http("PUT", f"requirements/{s.lesson}/waiver", _reason(s))),
    Operation("withdraw waiver", Scene.waived, lambda s: s.http("DELETE", f"requirements/{s.quiz_id}/waiver")),
    Operation("progress", Scene.enrol, lambda s: s.http("PUT", f"lessons/{s.lesson}/progress", {"status": "completed"})),
    Operation(
        "progress in a batch",
        Scene.enrol,
        lambda s: s.http("POST", "progress", {"lessons": [{"lesson_id": s.lesson, "status": "completed"}]}),
    ),
    Operation("start an attempt", Scene.enrol, lambda s: s.http("POST", f"quizzes/{s.quiz_id}/attempts")),
    Operation(
        "save a draft", Scene.start, lambda s: s.http("PUT", f"/quiz-attempts/{s.found}/answers", {"answers": {"q1": "b"}})
    ),
    Operation("submit", Scene.start, lambda s: s.http("POST", f"/quiz-attempts/{s.found}/submit", {"answers": {"q1": "a"}})),
    Operation("grant", Scene.start, lambda s: s.http("PUT", f"quizzes/{s.quiz_id}/allowance", {"extra_attempts": 2})),
    Operation("revoke a certificate", Scene.certified, lambda s: s.http("POST", f"{s.found}/revoke", _reason(s))),
    Operation("reinstate a certificate", Scene.certificate_revoked, lambda s: s.http("POST", f"{s.found}/reinstate", _reason(s))),
    Operation("reissue a certificate", Scene.certified, lambda s: s.http("POST", f"{s.found}/reissue", _reason(s))),
    Operation(
        "grade again",
        Scene.corrected,
        lambda s: s.http(
            "POST",
            f"/course-versions/{s.version['course_version_id']}/quizzes/{s.quiz_id}/regrade",
            {"dry_run": True, "reason": "so it is"},
        ),
    ),
]

QUEUES = [
    Operation("message: enrol", _nothing, lambda s: s.send("enrollment", "enrollment.requested")),
    Operation("message: cancel", Scene.enrol, lambda s: s.send("enrollment", "enrollment.cancelled")),
    Operation("message: revoke", Scene.enrol, lambda s: s.send("enrollment", "enrollment.revoked", reason="so it is")),
    Operation("message: reinstate", Scene.revoked, lambda s: s.send("enrollment", "enrollment.reinstated", reason="so it is")),
    Operation("message: progress", Scene.enrol, lambda s: s.progress(100)),
    Operation("message: attempt", Scene.enrol, Scene.submit_event),
    Operation("message: correct a key", Scene.submitted, Scene.correct),
    Operation(
        "message: issue a certificate",
        Scene.completed,
        lambda s: s.send(
            "certificate", "enrollment.completed", completed_at="2026-01-01T00:00:00Z", status="completed", sequence=1
        ),
        Scene.next_minute,
    ),
    Operation("message: too early", _nothing, lambda s: s.progress(50)),
]

CLOCK = [
    Operation("close what ran out", Scene.ran_out, lambda s: sweep()),
    Operation("regrade", Scene.corrected, Scene.regrade, Scene.next_minute),
]
