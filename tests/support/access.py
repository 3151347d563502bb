"""Who may do what: an entry for each route of docs/openapi.json, and learners' things to try it on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

from shared.certificate.rules import new_uid
from tests.support.service import LEARNER, Service, course, event, quiz

OPENAPI = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
OTHER = UUID("00000000-0000-4000-8000-0000000000ff")

type Kind = Literal["public", "learner", "report", "admin"]


@dataclass(frozen=True)
class Entry:
    """For whom a route is, and a request that it takes.

    missing: what it answers, to whom it is for, about ids that belong to nothing; None: it has none, or finds nothing wrong.
    before: the end of the path of another request to the same thing that must have taken effect.
    """

    kind: Kind
    body: Any = None
    missing: int | None = 404
    before: str | None = None


WHY = {"reason": "a reason"}
ANSWERS = {"answers": {"q1": "a"}}
#: In a body, `{…}` stands for an id of the world.
ENTRIES: dict[str, Entry] = {
    "GET /.well-known/did.json": Entry("public", missing=None),
    "GET /.well-known/jwks.json": Entry("public", missing=None),
    "GET /health": Entry("public", missing=None),
    "GET /certificates/{certificate_uid}": Entry("public"),
    "GET /status-lists/{number}": Entry("public"),
    "POST /certificates/{certificate_uid}/revoke": Entry("admin", WHY),
    "POST /certificates/{certificate_uid}/reinstate": Entry("admin", WHY, before="/revoke"),
    "POST /certificates/{certificate_uid}/reissue": Entry("admin", WHY),
    "GET /course-versions/{course_version_id}/enrollments": Entry("report"),
    "POST /course-versions/{course_version_id}/quizzes/{quiz_id}/regrade": Entry("admin", {"dry_run": False}),
    "GET /course-versions/{course_version_id}/quizzes/{quiz_id}/regrades/{regrade_id}": Entry("admin"),
    "GET /quiz-attempts/{attempt_id}": Entry("learner"),
    "PUT /quiz-attempts/{attempt_id}/answers": Entry("learner", ANSWERS),
    "POST /quiz-attempts/{attempt_id}/submit": Entry("learner", ANSWERS),
    "GET /users/{user_id}/certificates": Entry("learner", missing=None),
    "GET /users/{user_id}/enrollments": Entry("learner", missing=None),
    "GET /users/{user_id}/enrollments/{course_version_id}": Entry("learner"),
    "PUT /users/{user_id}/enrollments/{course_version_id}": Entry("learner"),
    "POST /users/{user_id}/enrollments/{course_version_id}/cancel": Entry("learner"),
    "POST /users/{user_id}/enrollments/{course_version_id}/revoke": Entry("admin", WHY),
    "POST /users/{user_id}/enrollments/{course_version_id}/reinstate": Entry("admin", WHY, before="/revoke"),
    "POST /users/{user_id}/enrollments/{course_version_id}/reset": Entry("admin", WHY),
    "POST /users/{user_id}/enrollments/{course_version_id}/transfer": Entry("admin", {"to": "{other_course_version_id}"}),
    "GET /users/{user_id}/enrollments/{course_version_id}/history": Entry("learner"),
    "GET /users/{user_id}/enrollments/{course_version_id}/certificate": Entry("learner"),
    "PUT /users/{user_id}/enrollments/{course_version_id}/requirements/{requirement_id}/waiver": Entry("admin", WHY),
    "DELETE /users/{user_id}/enrollments/{course_version_id}/requirements/{requirement_id}/waiver": Entry("admin"),
    "GET /users/{user_id}/enrollments/{course_version_id}/progress": Entry("learner"),
    "POST /users/{user_id}/enrollments/{course_version_id}/progress": Entry(
        "learner", {"lessons": [{"lesson_id": "{lesson_id}", "status": "completed"}]}
    ),
    "PUT /users/{user_id}/enrollments/{course_version_id}/lessons/{lesson_id}/progress": Entry(
        "learner", {"progress_percentage": 50}
    ),
    "GET /users/{user_id}/enrollments/{course_version_id}/quizzes/{quiz_id}/attempts": Entry("learner"),
    "POST /users/{user_id}/enrollments/{course_version_id}/quizzes/{quiz_id}/attempts": Entry("learner"),
    "PUT /users/{user_id}/enrollments/{course_version_id}/quizzes/{quiz_id}/allowance": Entry("admin", {"extra_attempts": 1}),
}


@dataclass(frozen=True)
class Route:
    """An operation of docs/openapi.json. `scopes`: any one of them lets in; None: the route is public."""

    method: str
    path: str
    scopes: frozenset[str] | None
    takes_body: bool
    needs_body: bool
    pages: bool

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def entry(self) -> Entry:
        assert str(self) in ENTRIES, f"tests/support/access.py does not say for whom {self} is"
        return ENTRIES[str(self)]


ROUTES = [
    Route(
        method.upper(),
        path,
        frozenset(s for need in operation["security"] for s in need["jwt"]) if operation.get("security") else None,
        "requestBody" in operation,
        operation.get("requestBody", {}).get("required", False),
        any(parameter["name"] == "cursor" for parameter in operation.get("parameters", [])),
    )
    for path, operations in OPENAPI["paths"].items()
    for method, operation in operations.items()
]


@dataclass(frozen=True)
class World:
    """A learner with an enrolment under way and another one completed, and the ids of all that belongs to them."""

    service: Service
    ids: dict[str, str]

    def path(self, route: Route | str, **ids: str) -> str:
        return (route if isinstance(route, str) else route.path).format_map({"user_id": str(LEARNER)} | self.ids | ids)

    def body(self, route: Route) -> Any:
        """A body that the route takes; None if it takes one or none."""
        text = json.dumps(route.entry.body)
        for name, value in self.ids.items():
            text = text.replace(f"{{{name}}}", value)
        return json.loads(text)

    def state(self) -> list[dict[str, Any]]:
        """Everything that a request might change."""
        return self.service.rows(
            """
            SELECT 'enrollment' AS kind, to_jsonb(e) AS row FROM enrollments e
            UNION ALL SELECT 'lesson', to_jsonb(p) FROM lesson_progress p
            UNION ALL SELECT 'attempt', to_jsonb(a) FROM quiz_attempts a
            UNION ALL SELECT 'certificate', to_jsonb(c) FROM certificates c
            UNION ALL SELECT 'outbox', to_jsonb(o) FROM outbox o
            UNION ALL SELECT 'history', to_jsonb(h) FROM enrollment_history h
            ORDER BY 1, 2
            """
        )


def a_world(service: Service) -> World:
    """Have a learner do everything that leaves something behind."""
    version = course(lessons=2, quizzes=[quiz()])
    done = course(lessons=1)
    service.send(
        "catalog",
        [
            event("course_version.published", version),
            event("course_version.published", done),
            event("learner.updated", {"user_id": str(LEARNER), "name": "Ada Lovelace"}),
        ],
    )
    ids = {
        "number": "0",
        "course_version_id": version["course_version_id"],
        "lesson_id": version["lessons"][0]["lesson_id"],
        "quiz_id": version["quizzes"][0]["quiz_id"],
    }
    assert service.http("PUT", f"/users/me/enrollments/{ids['course_version_id']}").status == 201
    started = service.http("POST", f"/users/me/enrollments/{ids['course_version_id']}/quizzes/{ids['quiz_id']}/attempts")
    ids["attempt_id"] = started.json["id"]
    assert service.http("PUT", f"/users/me/enrollments/{done['course_version_id']}").status == 201
    lesson = done["lessons"][0]["lesson_id"]
    path = f"/users/me/enrollments/{done['course_version_id']}/lessons/{lesson}/progress"
    assert service.http("PUT", path, {"status": "completed"}).status == 200
    service.deliver()
    ids["certificate_uid"] = service.rows("SELECT certificate_uid FROM certificates")[0]["certificate_uid"]
    ids["requirement_id"] = ids["lesson_id"]
    regrade = f"/course-versions/{ids['course_version_id']}/quizzes/{ids['quiz_id']}/regrade"
    ids["regrade_id"] = service.admin("POST", regrade, {"dry_run": True}).json["id"]
    ids["other_course_version_id"] = done["course_version_id"]
    return World(service, ids)


def unknown_ids(route: Route | str) -> dict[str, str]:
    """Ids for all of a path's parameters but the learner that belong to nothing."""
    path = route if isinstance(route, str) else route.path
    names = [part[1:-1] for part in path.split("/") if part.startswith("{") and part != "{user_id}"]
    known = {"certificate_uid": new_uid(), "number": "999999999"}
    return {name: known.get(name, str(uuid4())) for name in names}


#: Who calls: what stands in docs/security.md, and whether routes of each kind are theirs. `own` is the learner in question.
CALLERS: dict[str, Mapping[Kind, bool]] = {
    "nobody": {"public": True, "learner": False, "report": False, "admin": False},
    "own": {"public": True, "learner": True, "report": False, "admin": False},
    "another learner": {"public": True, "learner": False, "report": False, "admin": False},
    "report": {"public": True, "learner": False, "report": True, "admin": False},
    "admin": {"public": True, "learner": True, "report": True, "admin": True},
}


def table() -> str:
    """The table of docs/security.md."""
    head = "| route | nobody | the learner | another learner | `learner-progress:report` | `learner-progress:admin` |"
    lines = [head, "| --- | --- | --- | --- | --- | --- |"]
    for route in sorted(ROUTES, key=lambda route: (list(CALLERS["own"]).index(route.entry.kind), route.path, route.method)):
        refused = {"learner": "404", "report": "403", "admin": "403"}.get(route.entry.kind, "")
        cells = ["yes" if may[route.entry.kind] else "401" if caller == "nobody" else refused for caller, may in CALLERS.items()]
        lines.append(f"| `{route}` | {' | '.join(cells)} |")
    return "\n".join(lines)
