"""The Big List of Naughty Strings in every text that the service takes: each comes back unchanged, or is refused by name."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest

from tests.support.service import LEARNER, Answer, Service, course, event, quiz

NAUGHTY: list[str] = json.loads((Path(__file__).parents[1] / "data/naughty-strings/blns-even.json").read_text())
#: What is dropped at the ends of names and reasons: Unicode's White_Space.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


@pytest.fixture
def counted(capsys: pytest.CaptureFixture[str]):
    """Counts the strings that each field was given, and prints it."""
    fields: Counter[str] = Counter()
    yield fields
    with capsys.disabled():
        print(f"\nnaughty strings: {len(fields)} fields, {fields.total():,} values")


def stripped(text: str) -> str:
    return text.strip(WHITE_SPACE)


def is_storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def letters(service: Service) -> dict[str, dict[str, Any]]:
    """The dead letters so far, by the ids of their events, each with a reason that says where."""
    found = {json.loads(letter["body"])["id"]: letter for letter in service.dead_letters()}
    assert all(letter["code"] == "invalid" and letter["reason"].startswith("#/") for letter in found.values())
    service.rows("DELETE FROM outbox")
    return found


def course_of(text: str) -> dict[str, Any]:
    """A course version that has the text wherever it may say what it likes, but in its titles."""
    common = {"prompt": text, "points": 1}
    choices = [{"id": text, "text": text}, {"id": f"{text}2", "text": text}]
    questions: list[dict[str, Any]] = [
        common | {"question_id": text, "kind": "single_choice", "choices": choices, "correct": text},
        common | {"question_id": f"{text}2", "kind": "multiple_choice", "choices": choices, "correct": [text]},
        common | {"question_id": f"{text}3", "kind": "text", "correct": [f"x{text}"], "case_sensitive": True},
        common | {"question_id": f"{text}4", "kind": "matching", "correct": {text: text}},
        common | {"question_id": f"{text}5", "kind": "ordering", "correct": [text, f"{text}2"]},
        common | {"question_id": f"{text}6", "kind": "mapped", "choices": choices, "correct": {text: 1}},
    ]
    return course(lessons=1, quizzes=[quiz(questions=questions)])


def test_course_versions(service: Service, counted: Counter[str]):
    titled: dict[str, tuple[str, dict[str, Any]]] = {}
    filled: dict[str, tuple[str, dict[str, Any]]] = {}
    for text in NAUGHTY:
        version = course(lessons=1, quizzes=[quiz(title=text)], title=text, version=text, issuer_name=text)
        version["lessons"][0]["title"] = text
        titled[str(uuid4())] = text, version
        filled[str(uuid4())] = text, course_of(text)
    for field in ("title", "version", "issuer_name", "lessons/title", "quizzes/title", "prompt", "question_id", "choices/id"):
        counted[field] += len(NAUGHTY)
    for field in ("choices/text", "single", "multiple", "text", "matching/left", "matching/right", "ordering", "mapped"):
        counted[f"correct of {field}"] += len(NAUGHTY)
    for versions in (titled, filled):
        service.send("catalog", [event("course_version.published", version, id=id_) for id_, (_, version) in versions.items()])
    refused = letters(service)
    service.send(
        "enrollment",
        [
            event("enrollment.requested", {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]})
            for id_, (_, version) in (titled | filled).items()
            if id_ not in refused
        ],
    )
    assert service.dead_letters() == []
    for id_, (text, version) in titled.items():
        assert (id_ in refused) == (not text.strip() or not is_storable(text)), repr(text)
        if id_ not in refused:
            path = f"/users/me/enrollments/{version['course_version_id']}/progress"
            shown = service.http("GET", path).json
            assert [shown["lessons"][0]["title"], shown["quizzes"][0]["title"]] == [text, text]
            query = "SELECT title, version, issuer_name FROM course_versions WHERE course_version_id = %s"
            assert set(service.rows(query, version["course_version_id"])[0].values()) == {text}
    for id_, (text, version) in filled.items():
        assert (id_ in refused) == (text == "" or not is_storable(text)), repr(text)
        if id_ not in refused:
            sent = version["quizzes"][0]["questions"]
            path = f"/users/me/enrollments/{version['course_version_id']}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
            started = service.http("POST", path).json
            assert [q["question_id"] for q in started["questions"]] == [q["question_id"] for q in sent]
            assert {q["prompt"] for q in started["questions"]} == {text}
            single, multiple, _, matching, ordering, mapped = started["questions"]
            assert single["choices"] == multiple["choices"] == mapped["choices"] == sent[0]["choices"]
            assert (matching["left"], matching["right"]) == ([text], [text])
            assert {choice["id"] for choice in ordering["choices"]} == {text, f"{text}2"}
            # The key itself, and the answers as they were given.
            answers = {q["question_id"]: q["correct"][0] if q["kind"] == "text" else q["correct"] for q in sent}
            answers[f"{text}6"] = [text]
            graded = service.http("POST", f"/quiz-attempts/{started['id']}/submit", {"answers": answers}).json
            assert (graded["score"], graded["answers"]) == (100, answers), repr(text)


def test_messages_about_learners(service: Service, counted: Counter[str]):
    version = course(lessons=1, quizzes=[quiz()])
    cv, quiz_id = version["course_version_id"], version["quizzes"][0]["quiz_id"]
    service.send("catalog", event("course_version.published", version))

    def each(queue: str, type_: str, field: str, **fixed: str) -> list[tuple[str, UUID, bool]]:
        """Send an event for each string, each of a learner of its own; whether it was refused."""
        counted[f"{type_} {field}"] += len(NAUGHTY)
        sent: list[tuple[str, str, UUID]] = []
        events: list[dict[str, Any]] = []
        for text in NAUGHTY:
            user, id_ = uuid4(), str(uuid4())
            sent.append((text, id_, user))
            events.append(event(type_, {"user_id": str(user), "course_version_id": cv, field: text} | fixed, id=id_))
        service.send(queue, events)
        refused = letters(service)
        return [(text, user, id_ in refused) for text, id_, user in sent]

    def stored(query: str, *parameters: Any) -> Any:
        rows = service.rows(query, *parameters)
        return next(iter(rows[0].values())) if rows else None

    for text, user, refused in each("catalog", "learner.updated", "name"):
        assert refused == (not is_storable(text) or not 1 <= len(stripped(text)) <= 500), repr(text)
        assert stored("SELECT name FROM learners WHERE user_id = %s", user) == (None if refused else stripped(text))
    for text, user, refused in each("catalog", "learner.updated", "locale", name="Ada"):
        assert refused == (not is_storable(text) or len(text) > 35), repr(text)
        assert stored("SELECT locale FROM learners WHERE user_id = %s", user) == (None if refused else text)
    for text, user, refused in each("enrollment", "enrollment.requested", "source_of_enrollment"):
        assert refused == (not is_storable(text) or not 1 <= len(text) <= 100), repr(text)
        query = "SELECT source_of_enrollment FROM enrollments WHERE user_id = %s"
        assert stored(query, user) == (None if refused else text)
    counted["cancelled reason"] += len(NAUGHTY)
    users = {str(uuid4()): text for text in NAUGHTY}
    ids = [{"user_id": user, "course_version_id": cv} for user in users]
    service.send("enrollment", [event("enrollment.requested", i, "2026-01-01T00:00:00Z") for i in ids])
    service.send("enrollment", [event("enrollment.cancelled", i | {"reason": users[i["user_id"]]}) for i in ids])
    rows = {str(row["user_id"]): row for row in service.rows("SELECT user_id, status, status_reason FROM enrollments")}
    for user, text in users.items():
        is_kept = is_storable(text) and 1 <= len(stripped(text)) <= 1000
        expected = ("cancelled_by_user", stripped(text)) if is_kept else ("active", None)
        assert (rows[user]["status"], rows[user]["status_reason"]) == expected, repr(text)
    assert len(letters(service)) == sum(not (is_storable(t) and 1 <= len(stripped(t)) <= 1000) for t in NAUGHTY)

    # What surrounds the data: id, source, and an extension, which nobody reads.
    for field in ("id", "source", "subject", "traceparent", "datacontenttype"):
        counted[field] += len(NAUGHTY)
        users = {str(uuid4()): text for text in NAUGHTY}
        events = [event("enrollment.requested", {"user_id": u, "course_version_id": cv}) | {field: t} for u, t in users.items()]
        service.send("enrollment", events)
        refused_users = {json.loads(letter["body"])["data"]["user_id"] for letter in service.dead_letters()}
        actors = {str(row["user_id"]): row["actor"] for row in service.rows("SELECT user_id, actor FROM enrollment_history")}
        for user, text in users.items():
            assert (user in refused_users) == (field in ("id", "source") and (text == "" or not is_storable(text))), repr(text)
            if user not in refused_users:
                assert actors[user] == (text if field == "source" else "tests")
        service.rows("DELETE FROM outbox")
    counted["type"] += len(NAUGHTY)
    service.send("enrollment", [event(text, {}) for text in NAUGHTY])
    assert {letter["code"] for letter in service.dead_letters()} == {"unknown_type"}
    service.rows("DELETE FROM outbox")

    # Answers to questions that there are, and that there are not.
    forms: dict[str, Callable[[str], Any]] = {
        "question_id": lambda text: {text: "a"},
        "text": lambda text: {"q1": text},
        "number": lambda text: {"q2": text},
        "list": lambda text: {"none": [text, text]},
        "object": lambda text: {"none": {text: text}},
    }
    for form, answers in forms.items():
        counted[f"answer {form}"] += len(NAUGHTY)
        attempts = {str(uuid4()): text for text in NAUGHTY}
        data = {"user_id": ids[0]["user_id"], "course_version_id": cv, "quiz_id": quiz_id, "completed_at": "2026-01-01T00:00:00Z"}
        service.send(
            "quiz",
            [event("quiz.submitted", data | {"attempt_id": i, "answers": answers(t)}, id=i) for i, t in attempts.items()],
        )
        refused_ids = letters(service)
        kept = {str(r["id"]): r["answers_snapshot"] for r in service.rows("SELECT id, answers_snapshot FROM quiz_attempts")}
        for attempt, text in attempts.items():
            assert (attempt in refused_ids) == (not is_storable(text))
            if attempt not in refused_ids:
                assert kept[attempt] == answers(text)


def test_bodies_over_http(service: Service, counted: Counter[str]):
    version = course(lessons=1, required_lessons=0, quizzes=[quiz(required=False)])
    other = course(lessons=1)
    service.send("catalog", *(event("course_version.published", one) for one in (version, other)))
    own = f"/users/{LEARNER}/enrollments/{version['course_version_id']}"
    quiz_path = f"{own}/quizzes/{version['quizzes'][0]['quiz_id']}"
    service.admin("PUT", own)
    regrade = f"/course-versions/{version['course_version_id']}/quizzes/{version['quizzes'][0]['quiz_id']}/regrade"
    waiver = f"{own}/requirements/{version['lessons'][0]['lesson_id']}/waiver"
    # By the type of the history's entry that keeps the reason.
    reasons: dict[str, Callable[[str, int], Answer]] = {
        "cancelled": lambda text, n: service.admin("POST", f"{own}/cancel", {"reason": text}),
        "revoked": lambda text, n: service.admin("POST", f"{own}/revoke", {"reason": text}),
        "reinstated": lambda text, n: service.admin("POST", f"{own}/reinstate", {"reason": text}),
        "reset": lambda text, n: service.admin("POST", f"{own}/reset", {"reason": text}),
        "waived": lambda text, n: service.admin("PUT", waiver, {"reason": text}),
        "allowance_changed": lambda text, n: service.admin(
            "PUT", f"{quiz_path}/allowance", {"extra_attempts": n, "reason": text}
        ),
        "transferred": lambda text, n: service.admin(
            "POST", f"{own}/transfer", {"to": other["course_version_id"], "reason": text}
        ),
    }
    kept = [text for text in NAUGHTY if is_storable(text) and 1 <= len(stripped(text)) <= 1000]
    for n, text in enumerate(NAUGHTY):
        service.admin("PUT", own)
        service.admin("DELETE", waiver)
        for name, send in reasons.items():
            counted[f"reason of {name}"] += 1
            if name == "transferred":
                service.admin("PUT", own)
            answer = send(text, n + 1)
            if text in kept:
                assert answer.status in (200, 201), (name, text, answer.text)
            else:
                assert [error["pointer"] for error in answer.json["errors"]] == ["#/reason"], (name, text)
        counted["source_of_enrollment"] += 1
        path = f"/users/{uuid4()}/enrollments/{version['course_version_id']}"
        answer = service.admin("PUT", path, {"source_of_enrollment": text})
        if is_storable(text) and 1 <= len(text) <= 100:
            assert service.admin("GET", path).json["source_of_enrollment"] == text
        else:
            assert [error["pointer"] for error in answer.json["errors"]] == ["#/source_of_enrollment"]
    said: dict[str, list[str]] = {}
    cursor = None
    while True:
        query = {"limit": "100"} | ({"cursor": cursor} if cursor else {})
        page = service.admin("GET", f"{own}/history", query=query).json
        for entry in page["items"]:
            said.setdefault(entry["type"], []).append(entry["reason"])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    for name in reasons:
        assert said[name] == [stripped(text) for text in kept], name
    counted["reason of regrade"] += len(NAUGHTY[::8])
    for text in NAUGHTY[::8]:
        answer = service.admin("POST", regrade, {"dry_run": True, "reason": text})
        if is_storable(text) and stripped(text):
            assert answer.json["reason"] == stripped(text)
        else:
            assert answer.json["errors"][0]["pointer"] == "#/reason"
    service.admin("PUT", f"{quiz_path}/allowance", {"extra_attempts": 0})
    attempt = service.admin("POST", f"{quiz_path}/attempts").json["id"]
    for text in NAUGHTY:
        counted["draft text"] += 1
        counted["draft question_id"] += 1
        answer = service.admin("PUT", f"/quiz-attempts/{attempt}/answers", {"answers": {"q1": text, "q2": text}})
        if is_storable(text):
            assert service.admin("GET", f"/quiz-attempts/{attempt}").json["answers"] == {"q1": text, "q2": text}
        else:
            assert [error["pointer"] for error in answer.json["errors"]] == ["#/answers/q1", "#/answers/q2"]
        answer = service.admin("PUT", f"/quiz-attempts/{attempt}/answers", {"answers": {text: "a"}})
        assert answer.json["errors"][0]["pointer"].startswith("#/answers")


def test_headers_queries_and_paths(service: Service, counted: Counter[str]):
    version = course(lessons=1)
    service.send("catalog", event("course_version.published", version))
    cv = version["course_version_id"]
    service.http("PUT", f"/users/me/enrollments/{cv}")
    service.admin("PUT", f"/users/me/enrollments/{cv}")
    service.http(
        "PUT", f"/users/me/enrollments/{cv}/lessons/{version['lessons'][0]['lesson_id']}/progress", {"status": "completed"}
    )
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada"}))
    service.deliver()
    uid = service.rows("SELECT certificate_uid FROM certificates")[0]["certificate_uid"]
    expected = service.http("GET", f"/certificates/{uid}", sub=None).content
    for text in NAUGHTY:
        # As an HTTP server hands bytes on.
        value = text.encode("utf-8", "surrogatepass").decode("latin-1").replace("\r", " ").replace("\n", " ")
        for header in (
            "accept",
            "accept-language",
            "if-none-match",
            "traceparent",
            "user-agent",
            "x-forwarded-for",
            "content-encoding",
        ):
            counted[header] += 1
            answer = service.http("GET", f"/certificates/{uid}", sub=None, headers={header: value})
            if header == "if-none-match" and "*" in value:
                assert answer.status in (200, 304)
            else:
                assert (answer.status, answer.content) == (200, expected), (header, text)
            for header_value in answer.headers.values():
                assert not set(str(header_value)) & {"\r", "\n"}
        counted["content-type"] += 1
        answer = service.http("POST", f"/users/me/enrollments/{cv}/cancel", {}, headers={"content-type": value})
        assert answer.status in ((409,) if not value.strip() else (415, 409)), (text, answer.text)
        counted["authorization"] += 1
        answer = service.wire("GET", "/users/me/enrollments", headers={"authorization": f"Bearer {value}"}, sub=None)
        assert (answer.status, answer.json) == (401, {"message": "Unauthorized"})
        for name in ("limit", "cursor", "status"):
            counted[f"query/{name}"] += 1
            answer = service.wire("GET", f"/users/me/enrollments?{name}={quote(text, errors='replace')}")
            if answer.status != 200:
                assert [error["pointer"] for error in answer.json["errors"]] == [f"query/{name}"]
            else:
                assert text in ("1", "100", "50"), (name, text)
        for path in (f"/users/{{}}/enrollments/{cv}", "/users/me/enrollments/{}", "/certificates/{}", "/quiz-attempts/{}", "/{}"):
            counted[f"path {path.replace(cv, '…')}"] += 1
            answer = service.wire("GET", path.format(quote(text, safe="", errors="replace")))
            if answer.status != 200:
                assert answer.status in (404, 422), (path, text, answer.text)
                assert answer.headers["content-type"] == "application/problem+json"
            else:
                assert text in ("", "me", "docs", "health"), (path, text)
