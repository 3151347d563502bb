"""Every route under wrong callers and wrong input: each is refused in the right words, and nothing ends in an exception."""

import base64
import gzip
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from shared import http
from shared.certificate.rules import ALPHABET, new_uid, read_uid
from tests.support.access import OTHER, ROUTES, World, a_world, unknown_ids
from tests.support.service import ADMIN, LEARNER, Answer, Service, course, event

#: What must never come back in an answer.
CANARY = "canary-5c1f"

SCOPED = [route for route in ROUTES if route.scopes]
WITH_BODY = [route for route in ROUTES if route.takes_body]
PAGED = [route for route in ROUTES if route.pages]


@pytest.fixture
def world(service: Service) -> World:
    return a_world(service)


def problem(answer: Answer, status: int, path: str) -> dict[str, Any]:
    """Check that an answer is a complete problem document of this status; gives it without its instance."""
    assert answer.status == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    is_public = "access-control-allow-origin" in answer.headers
    assert answer.headers["cache-control"] == ("public, max-age=60" if is_public else "no-store")
    if is_public:
        assert answer.json["type"].endswith(("certificate_not_found", "mistyped_certificate_uid", "status_list_not_found"))
    assert isinstance(answer.text, str)
    document = answer.json
    expected = {"type", "title", "status", "detail", "instance"} | ({"errors"} if status == 422 else set())
    assert set(document) == expected
    assert document["type"].startswith("urn:problem-type:learner-progress:")
    assert document["title"]
    assert document["detail"]
    assert document["status"] == status
    assert document.pop("instance") == quote(path, safe="/:@!$&'()*+,;=~")
    for error in document.get("errors", []):
        assert set(error) == {"pointer", "detail"}
        assert error["pointer"].startswith(("#", "query/", "path/"))
        assert error["detail"]
    if status == 422:
        assert document["errors"]
    assert CANARY not in answer.text
    return document


def pointers(document: dict[str, Any]) -> list[str]:
    return [error["pointer"] for error in document["errors"]]


# Who calls


def test_without_the_scope_it_is_403_before_anything_is_looked_at(world: World, subtests: pytest.Subtests):
    for route in SCOPED:
        with subtests.test(route=str(route)):
            before = world.state()
            paths = [
                world.path(route),
                world.path(route, **unknown_ids(route)),
                world.path(route, **dict.fromkeys(world.ids, "no-id")),
            ]
            bodies = [None, "", "{", "[]", '{"unknown": 1}', json.dumps({"reason": CANARY}), "[" * 100_000]
            scopes = ["", "learner-progress", "learner-progress:admins", "Learner-Progress:Admin", "openid profile"]
            if "learner-progress:report" not in (route.scopes or ()):
                scopes.append("learner-progress:report")
            documents: list[dict[str, Any]] = []
            for path in paths:
                for n, body in enumerate(bodies):
                    scope = scopes[n % len(scopes)]
                    documents.append(problem(world.service.http(route.method, path, raw=body, scope=scope), 403, path))
                for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
                    answer = world.service.http(route.method, path, raw="a=b", headers={"content-type": media_type})
                    documents.append(problem(answer, 403, path))
            assert all(document == documents[0] for document in documents)
            assert world.state() == before


def test_ids_are_taken_in_either_case_and_answered_in_lower_case(world: World):
    answer = world.service.http(
        "GET",
        world.path("/users/me/enrollments/{course_version_id}").upper().replace("/USERS/ME/ENROLLMENTS", "/users/me/enrollments"),
    )
    assert answer.status == 200, answer.text
    assert answer.json["course_version_id"] == world.ids["course_version_id"]
    assert answer.json["user_id"] == str(LEARNER)
    assert answer.json["enrolled_at"].endswith("Z")
    assert datetime.fromisoformat(answer.json["enrolled_at"]) <= datetime.now(UTC)


# Paths


def test_an_id_that_is_no_uuid_is_refused_by_name(world: World, subtests: pytest.Subtests):
    for route in ROUTES:
        with subtests.test(route=str(route)):
            names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
            for name in names:
                for wrong in (
                    CANARY,
                    "-1" if name == "number" else "0",
                    "00000000-0000-4000-8000-00000000000g",
                    "you",
                    "ME",
                    "null",
                    "a b",
                    "a%20b",
                    "é",
                ):
                    path = world.path(route, **{name: wrong})
                    answer = world.service.admin(route.method, path, world.body(route))
                    if name == "certificate_uid":
                        assert answer.status == 404, answer.text
                        assert "check character" in answer.json["detail"]
                    else:
                        assert answer.status == 422, answer.text
                        assert f"path/{name}" in pointers(answer.json)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"])
def test_unknown_paths_are_problem_documents_with_or_without_a_token(service: Service, method: str):
    for path in (
        "/",
        "/nothing",
        "/users",
        "/users/",
        "/health/",
        "/healthz",
        "/certificates",
        "/course-versions/x",
        "/a b",
        "/%zz",
        "/é",
        "/" + "a" * 5000,
    ):
        for sub in (LEARNER, None):
            answer = service.http(method, path, sub=sub, raw="{")
            document = problem(answer, 404, path)
            assert document["type"] == "urn:problem-type:learner-progress:path_not_found"


def test_a_known_path_with_a_method_it_does_not_have_is_404(world: World):
    for route in ROUTES:
        known = {other.method for other in ROUTES if other.path == route.path}
        for method in {"GET", "PUT", "POST", "PATCH", "DELETE"} - known:
            path = world.path(route)
            problem(world.service.admin(method, path), 404, path)


# Bodies

NO_JSON = [
    "{",
    "nonsense",
    "{'reason': 'x'}",
    '{"reason": "x"} x',
    '{"reason": NaN}',
    '{"reason": Infinity}',
    '{"reason": -Infinity}',
    '{"reason": "a\nb"}',
    '\ufeff{"reason": "x"}',
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"reason": ' + "9" * 5000 + "}",
    '{"reason": "x",}',
    "undefined",
]
NO_OBJECT = ["[]", '[{"reason": "x"}]', '"text"', "1", "true", "null", "[" * 500 + "]" * 500]


def test_a_body_that_is_no_json_object_is_refused(world: World, subtests: pytest.Subtests):
    for route in WITH_BODY:
        with subtests.test(route=str(route)):
            before = world.state()
            path = world.path(route)
            for raw in NO_JSON:
                document = problem(world.service.admin(route.method, path, raw=raw), 400, path)
                assert document["type"].endswith(":malformed"), raw
            for raw in NO_OBJECT:
                assert pointers(problem(world.service.admin(route.method, path, raw=raw), 422, path)) == ["#"], raw
            assert world.state() == before


def test_a_missing_or_empty_body_where_one_is_needed_is_refused(world: World, subtests: pytest.Subtests):
    for route in [route for route in WITH_BODY if route.needs_body]:
        with subtests.test(route=str(route)):
            before = world.state()
            path = world.path(route)
            for raw in (None, "", "{}"):
                document = problem(world.service.admin(route.method, path, raw=raw), 422, path)
                assert all(pointer.startswith("#") for pointer in pointers(document))
            assert world.state() == before


def test_a_body_is_optional_where_none_is_needed(world: World, subtests: pytest.Subtests):
    without = [route for route in ROUTES if route.method in ("PUT", "POST") and not route.needs_body]
    # Nothing can be started in a cancelled enrolment.
    for route in sorted(without, key=lambda route: route.path.endswith("/cancel")):
        with subtests.test(route=str(route)):
            for raw in (None, "", "{}"):
                assert world.service.http(route.method, world.path(route), raw=raw).status in (200, 201)


def test_a_field_that_is_not_known_is_refused_by_name(world: World, subtests: pytest.Subtests):
    for route in WITH_BODY:
        with subtests.test(route=str(route)):
            before = world.state()
            path = world.path(route)
            body = world.body(route) or {}
            for name, pointer in {
                "status_": "#/status_",
                "a/b~c": "#/a~1b~0c",
                "": "#/",
                "é": "#/é",
                "\u0000": "#/\u0000",
            }.items():
                document = problem(world.service.admin(route.method, path, body | {name: CANARY}), 422, path)
                assert pointers(document) == [pointer]
                assert document["errors"][0]["detail"] == "unknown field"
            assert world.state() == before


def test_a_body_of_another_media_type_is_415(world: World, subtests: pytest.Subtests):
    for route in WITH_BODY:
        with subtests.test(route=str(route)):
            before = world.state()
            path = world.path(route)
            for media_type in (
                "text/plain",
                "application/x-www-form-urlencoded",
                "application/x-www-form-urlencoded; charset=utf-8",
                "multipart/form-data",
                "multipart/form-data; boundary=x",
                "application/xml",
                "application/jsonlines",
                "text/json",
                "*/*",
                "é",
            ):
                for raw in ('{"reason": "x"}', "reason=x", "--x--", "a=b&c"):
                    answer = world.service.admin(route.method, path, raw=raw, headers={"content-type": media_type})
                    problem(answer, 415, path)
            assert world.state() == before


def test_json_is_taken_however_its_media_type_is_written(world: World):
    for media_type in [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        " application/json",
        "application/json;charset=UTF-8",
        "",
    ]:
        path = world.path("/users/me/enrollments/{course_version_id}/cancel")
        answer = world.service.http("POST", path, {"reason": "no time"}, headers={"content-type": media_type})
        assert answer.status == 200, answer.text
        assert answer.json["status_reason"] == "no time"


def in_base64(world: World, method: str, path: str, body: bytes) -> Answer:
    """A request as API Gateway hands it over when it takes the body for binary."""
    sent: dict[str, Any] = {}
    invoke = world.service.invoke

    def invoke_in_base64(function: str, payload: dict[str, Any]) -> dict[str, Any]:
        sent.update(payload, body=base64.b64encode(body).decode(), isBase64Encoded=True)
        return invoke(function, sent)

    recoded = Service(world.service.database_url)
    recoded.invoke = invoke_in_base64
    return recoded.http(method, path)


def test_a_body_in_base64_is_the_same_body(world: World):
    path = world.path("/users/me/enrollments/{course_version_id}/cancel")
    answer = in_base64(world, "POST", path, '{"reason": "Zeit für \U0001f634"}'.encode())
    assert answer.status == 200, answer.text
    assert answer.json["status_reason"] == "Zeit für \U0001f634"


def test_a_body_in_base64_that_is_no_utf8_or_no_json_is_400(world: World, subtests: pytest.Subtests):
    for route in WITH_BODY:
        with subtests.test(route=str(route)):
            before = world.state()
            path = world.path(route)
            for body in (b"\xff", b'{"reason": "\xe9"}', b'{"reason": "\xed\xa0\x80"}', "{}".encode("utf-16"), b"{"):
                own = path.replace(str(LEARNER), "me")
                if route.scopes:
                    problem(in_base64(world, route.method, own, body), 403, own)
                else:
                    problem(in_base64(world, route.method, own, body), 400, own)
            assert world.state() == before


LESSON = ("PUT", "/users/{user_id}/enrollments/{course_version_id}/lessons/{lesson_id}/progress")
SYNC = ("POST", "/users/{user_id}/enrollments/{course_version_id}/progress")
ENROLL = ("PUT", "/users/{user_id}/enrollments/{course_version_id}")
CANCEL = ("POST", "/users/{user_id}/enrollments/{course_version_id}/cancel")
REVOKE = ("POST", "/users/{user_id}/enrollments/{course_version_id}/revoke")
REINSTATE = ("POST", "/users/{user_id}/enrollments/{course_version_id}/reinstate")
SUBMIT = ("POST", "/quiz-attempts/{attempt_id}/submit")
REVOKE_CERTIFICATE = ("POST", "/certificates/{certificate_uid}/revoke")
REINSTATE_CERTIFICATE = ("POST", "/certificates/{certificate_uid}/reinstate")

TOO_DEEP = json.loads(f'{{"{CANARY}":' * 100 + "{}" + "}" * 100)

WRONG_NUMBERS = [101, 100.0000001, -1, -0.0001, "50", CANARY, True, [], [50], {}, 10**400, -(10**400)]
WRONG_TIMES = [
    CANARY,
    "",
    "2026-01-31",
    "2026-01-31T09:30:00",
    "2026-02-30T09:30:00Z",
    "2026-01-31T25:00:00Z",
    "10000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "1700000000",
    "2026-01-31T09:30:00Z\u0000",
    1_700_000_000,
    1.5,
    True,
    [],
    {},
]
WRONG_TEXTS = [5, True, [CANARY], {}, "", "a\u0000b", "a\ud800b", CANARY * 200, TOO_DEEP]
WRONG_ANSWERS: list[Any] = [5, [CANARY], ["a"], {"a": "b"}, True, "a\u0000", "\ud800", TOO_DEEP, 10**500]

WRONG_VALUES: list[tuple[tuple[str, str], Any, str]] = [
    *((LESSON, {"progress_percentage": value}, "#/progress_percentage") for value in WRONG_NUMBERS),
    *((LESSON, {"progress_percentage": 5, "occurred_at": value}, "#/occurred_at") for value in WRONG_TIMES),
    *((LESSON, {"status": value}, "#/status") for value in ("done", "not_started", "COMPLETED", "", 1, True, [], {})),
    (LESSON, {"progress_percentage": 99.9, "status": "completed"}, "#"),
    (LESSON, {"progress_percentage": 0, "status": "completed"}, "#"),
    (LESSON, {"progress_percentage": None}, "#"),
    (LESSON, {"occurred_at": "2026-01-31T09:30:00Z"}, "#"),
    *((SYNC, {"lessons": value}, "#/lessons") for value in (None, {}, CANARY, 5, [{}] * 501)),
    *(
        (command, {"reason": value}, "#/reason")
        for command in (CANCEL, REVOKE, REINSTATE, REVOKE_CERTIFICATE, REINSTATE_CERTIFICATE)
        for value in [*WRONG_TEXTS, "  \n"]
    ),
    *((command, {"reason": None}, "#/reason") for command in (REVOKE, REINSTATE, REVOKE_CERTIFICATE, REINSTATE_CERTIFICATE)),
    *(
        (REVOKE, {"reason": "r", "revoke_certificate": value}, "#/revoke_certificate")
        for value in ("true", "yes", 1, 0, [], None, CANARY)
    ),
    *((ENROLL, {"source_of_enrollment": value}, "#/source_of_enrollment") for value in WRONG_TEXTS),
    *((SUBMIT, {"answers": value}, "#/answers") for value in (None, [], CANARY, 5)),
    *((SUBMIT, {"answers": {"q1": value}}, "#/answers/q1") for value in WRONG_ANSWERS),
    *((SUBMIT, {"answers": {"q2": value}}, "#/answers/q2") for value in ([1], {"a": 1}, True, TOO_DEEP)),
    (SUBMIT, {"answers": {"q1": "a", "q3": "a"}}, "#/answers/q3"),
]


def test_a_wrong_value_is_refused_with_its_place_named_and_not_repeated(world: World):
    before = world.state()
    for (method, template), body, pointer in WRONG_VALUES:
        path = world.path(template)
        answer = world.service.admin(method, path, body)
        assert answer.status == 422, (method, template, str(body)[:100], answer.text)
        assert pointers(problem(answer, 422, path)) == [pointer], (method, template, str(body)[:100], answer.text)
    assert world.state() == before


def test_every_wrong_field_is_named_at_once(world: World):
    path = world.path(LESSON[1])
    answer = world.service.http("PUT", path, {"progress_percentage": "x", "status": 5, "occurred_at": "never", "more": 1})
    assert pointers(problem(answer, 422, path)) == ["#/progress_percentage", "#/status", "#/occurred_at", "#/more"]


def test_numbers_out_of_a_double_are_refused(world: World):
    path = world.path(LESSON[1])
    for raw in ('{"progress_percentage": 1e999}', '{"progress_percentage": -1e999}'):
        assert pointers(problem(world.service.http("PUT", path, raw=raw), 422, path)) == ["#/progress_percentage"]
    path = world.path(SUBMIT[1])
    for raw in ('{"answers": {"q2": 1e999999999999999999999}}', '{"answers": {"q2": 1e999}}'):
        assert world.service.http("POST", path, raw=raw).status in (400, 422)


@pytest.mark.parametrize("percentage", [0, -0.0, 1e-300, 5e-324, 33.333333333333336, 99.99999999999999, 100, 100.0])
def test_any_percentage_from_0_to_100_is_kept_as_it_came(world: World, percentage: float):
    answer = world.service.http("PUT", world.path(LESSON[1]), {"progress_percentage": percentage})
    assert answer.status == 200, answer.text
    assert answer.json["progress_percentage"] == percentage
    assert answer.json["status"] == ("completed" if percentage == 100 else "in_progress")


def test_any_time_of_the_calendar_is_taken_and_comes_back(world: World):
    first = world.service.http("PUT", world.path(LESSON[1]), {"progress_percentage": 5, "occurred_at": "0001-01-01T00:00:00Z"})
    assert first.status == 200, first.text
    assert first.json["started_at"] == "0001-01-01T00:00:00Z"
    far = world.service.http("PUT", world.path(LESSON[1]), {"progress_percentage": 5, "occurred_at": "9999-12-31T23:59:59Z"})
    assert far.status == 200, far.text
    # More than five minutes ahead of the clock is taken as now.
    assert abs(datetime.fromisoformat(far.json["last_accessed_at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    zoned = world.service.http(
        "PUT", world.path(LESSON[1]), {"progress_percentage": 6, "occurred_at": "2020-06-01T12:00:00.123456+05:30"}
    )
    assert zoned.status == 200, zoned.text
    assert world.service.rows("SELECT started_at FROM lesson_progress WHERE status = 'in_progress'")[0]["started_at"].year == 1


def test_in_a_sync_a_wrong_item_refuses_only_itself(world: World):
    good = {"lesson_id": world.ids["lesson_id"], "progress_percentage": 40}
    wrong: list[Any] = [
        {},
        {"lesson_id": None, "progress_percentage": 1},
        {"lesson_id": CANARY, "progress_percentage": 1},
        {"lesson_id": "\ud800", "progress_percentage": 1},
        {"lesson_id": "\u0000", "progress_percentage": 1},
        {"lesson_id": 5, "progress_percentage": 1},
        {"lesson_id": [], "status": "completed"},
        5,
        None,
        {"lesson_id": world.ids["lesson_id"], "progress_percentage": "50"},
        {"lesson_id": world.ids["lesson_id"], "progress_percentage": 101},
        {"lesson_id": world.ids["lesson_id"], "progress_percentage": 10**400},
        {"lesson_id": world.ids["lesson_id"], "progress_percentage": 10, "more": 1},
        {"lesson_id": world.ids["lesson_id"], "progress_percentage": 10, "status": "completed"},
        {"lesson_id": world.ids["lesson_id"], "progress_percentage": 10, "occurred_at": "0001-01-01T00:00:00+14:00"},
        {"lesson_id": world.ids["lesson_id"], "progress_percentage": 10, "occurred_at": 5},
        {"lesson_id": str(uuid4()), "progress_percentage": 10},
        {"lesson_id": world.ids["quiz_id"], "progress_percentage": 10},
    ]
    answer = world.service.http("POST", world.path(SYNC[1]), {"lessons": [*wrong, good]})
    assert answer.status == 200, answer.text
    results = answer.json["results"]
    assert [r["index"] for r in results] == list(range(len(wrong) + 1))
    assert [r["result"] for r in results] == ["refused"] * len(wrong) + ["applied"]
    assert all(r["detail"] for r in results[:-1])
    assert "#/progress_percentage" in results[9]["detail"]
    rows = world.service.rows(
        "SELECT progress_percentage FROM lesson_progress WHERE enrolled_course_version_id = %s", world.ids["course_version_id"]
    )
    assert rows == [{"progress_percentage": 40.0}]


def test_a_sync_takes_up_to_five_hundred_items(world: World):
    nothing = world.service.http("POST", world.path(SYNC[1]), {"lessons": []})
    assert (nothing.status, nothing.json["results"]) == (200, [])
    items = [{"lesson_id": world.ids["lesson_id"], "progress_percentage": n / 10} for n in range(500)]
    answer = world.service.http("POST", world.path(SYNC[1]), {"lessons": items})
    assert answer.status == 200, answer.text
    assert len(answer.json["results"]) == 500
    assert world.service.rows("SELECT progress_percentage FROM lesson_progress WHERE status = 'in_progress'") == [
        {"progress_percentage": 49.9}
    ]


def test_bodies_of_any_depth_are_answered(world: World):
    path = world.path(SUBMIT[1])
    for depth in (19, 21, 200, 900, 1100, 3000, 20_000):
        raw = '{"answers": {"q1": ' + "[" * depth + "]" * depth + "}}"
        assert world.service.http("POST", path, raw=raw).status in (400, 422), depth
        raw = '{"lessons": [' + '{"a":' * depth + "1" + "}" * depth + "]}"
        answer = world.service.http("POST", world.path(SYNC[1]), raw=raw)
        assert answer.status == 400 or answer.json["results"][0]["result"] == "refused", depth


# Requests as they come over the wire


JSON = {"content-type": "application/json"}
#: What Lambda hands over, and takes back, at most.
LARGEST = 6_000_000


def over_the_wire(
    world: World, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None, *, sub: UUID | None = ADMIN
) -> Answer:
    """One request by an administrator or by nobody, through the gateway's routes; `target` is percent-encoded."""
    return world.service.wire(method, target, body, JSON if headers is None else headers, sub=sub, scope=http.ADMIN)


def refused(answer: Answer, *statuses: int) -> dict[str, Any]:
    assert answer.status in statuses, (answer.status, answer.content[:500])
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 1_000_000
    return answer.json


HOSTILE_BODIES: dict[str, tuple[bytes, dict[str, str], tuple[int, ...]]] = {
    "5.9 MB of text": (b'{"reason": "' + b"x" * 5_900_000 + b'"}', JSON, (422,)),
    "5.9 MB of numbers": (b'{"answers": {"q": [' + b"1," * 2_900_000 + b"1]}}", JSON, (422,)),
    "half a million numbers": (b'{"answers": {"q": [' + b"1," * 499_000 + b"1]}}", JSON, (422,)),
    "300,000 unknown fields": (("{" + ",".join(f'"{n}":0' for n in range(300_000)) + "}").encode(), JSON, (422,)),
    "100,000 unknown fields": (("{" + ",".join(f'"{n}":0' for n in range(100_000)) + "}").encode(), JSON, (422,)),
    "a field whose name is 3 MB long": (b'{"' + "\u20ac".encode() * 1_000_000 + b'": 1}', JSON, (422,)),
    "arrays 10,000 deep": (b'{"reason": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", JSON, (400, 422)),
    "objects 10,000 deep": (b'{"reason":' * 10_000 + b"1" + b"}" * 10_000, JSON, (400, 422)),
    "a million brackets": (b"[" * 1_000_000, JSON, (400,)),
    "1e400": (b'{"reason": 1e400}', JSON, (422,)),
    "a number of 4,300 digits": (b'{"reason": ' + b"9" * 4300 + b"}", JSON, (422,)),
    "a number of 4,301 digits": (b'{"reason": ' + b"9" * 4301 + b"}", JSON, (400,)),
    "a number of a million digits": (b'{"reason": 0.' + b"9" * 1_000_000 + b"}", JSON, (422,)),
    "an exponent beyond all measure": (b'{"reason": 1e' + b"9" * 30 + b"}", JSON, (400, 422)),
    "a name that stands twice": (b'{"reason": "a", "reason": "a"}', JSON, (400,)),
    "a name that stands twice deep inside": (b'{"answers": {"q1": "a", "q1": "b"}}', JSON, (400,)),
    "an escaped surrogate alone": (b'{"reason": "\\ud800"}', JSON, (422,)),
    "a surrogate alone": (b'{"reason": "\xed\xa0\x80"}', JSON, (400,)),
    "U+0000": (b'{"reason": "a\\u0000b"}', JSON, (422,)),
    "a byte 0": (b'{"reason": "a\x00b"}', JSON, (400,)),
    "a byte order mark": (b'\xef\xbb\xbf{"reason": "x"}', JSON, (400,)),
    "UTF-16": ('{"reason": "x"}'.encode("utf-16"), JSON, (400,)),
    "UTF-32": ('{"reason": "x"}'.encode("utf-32-be"), JSON, (400,)),
    "Latin-1": ('{"reason": "\xe9"}'.encode("latin-1"), {"content-type": "application/json; charset=latin-1"}, (400,)),
    "overlong UTF-8": (b'{"reason": "\xc0\xaf"}', JSON, (400,)),
    "gzip": (gzip.compress(b'{"reason": "x"}'), JSON | {"content-encoding": "gzip"}, (400,)),
    "something after it": (b'{"reason": "x"}{"reason": "x"}', JSON, (400,)),
    "a comma too many": (b'{"reason": "x",}', JSON, (400,)),
    "a comment": (b'{"reason": "x" /* why */}', JSON, (400,)),
    "a form": (b"reason=x", {"content-type": "application/x-www-form-urlencoded"}, (415,)),
    "a multipart body": (b"--x\r\n\r\n{}\r\n--x--", {"content-type": "multipart/form-data; boundary=x"}, (415,)),
    "no media type": (b"reason=x", {}, (400,)),
    "an endless media type": (b"{}", {"content-type": "a" * 8000}, (415,)),
}


def test_a_hostile_body_is_refused_by_every_route_and_nothing_is_half_done(world: World, capsys: pytest.CaptureFixture[str]):
    before, slowest, requests = world.state(), (0.0, ""), 0
    for route in WITH_BODY:
        for name, (body, headers, statuses) in HOSTILE_BODIES.items():
            begun = time.process_time()
            answer = over_the_wire(world, route.method, quote(world.path(route)), body, headers)
            slowest = max(slowest, (time.process_time() - begun, f"{name}, {route}"))
            requests += 1
            refused(answer, *statuses)
        assert world.state() == before, str(route)
    with capsys.disabled():
        print(f"\n{requests:,} hostile bodies; the slowest took {slowest[0]:.2f} s of processor time: {slowest[1]}")
    assert slowest[0] < 15


def test_a_body_where_none_is_expected_is_not_read(world: World):
    for route in ROUTES:
        if not route.takes_body:
            path = quote(world.path(route))
            alone = over_the_wire(world, route.method, path)
            for body, headers, _ in (HOSTILE_BODIES["a million brackets"], HOSTILE_BODIES["gzip"], HOSTILE_BODIES["a form"]):
                assert over_the_wire(world, route.method, path, body, headers).status == alone.status, str(route)


def test_base64_that_is_none_is_400(world: World):
    path = world.path("/users/{user_id}/enrollments/{course_version_id}/cancel")
    event_ = {
        "rawPath": path,
        "headers": {"content-type": "application/json"},
        "body": "e",
        "isBase64Encoded": True,
        "requestContext": {
            "stage": "$default",
            "requestId": "1",
            "http": {"method": "POST", "path": path},
            "authorizer": {"jwt": {"claims": {"sub": str(LEARNER)}}},
        },
    }
    answer = world.service.invoke("enrollment_api", event_)
    assert (answer["statusCode"], json.loads(answer["body"])["type"]) == (400, "urn:problem-type:learner-progress:malformed")


def test_a_problem_document_is_short_however_much_is_wrong(world: World):
    path = world.path(SUBMIT[1])
    answer = world.service.http("POST", path, {"answers": {f"{'q' * 40}{n}": "a" for n in range(9_000)}})
    document = problem(answer, 422, path)
    assert len(document["errors"]) == 100
    answer = world.service.http("POST", path, {"answers": {"q" * 100_000: "a"}})
    (flaw,) = problem(answer, 422, path)["errors"]
    assert len(flaw["pointer"]) == 1000
    sync = world.service.http("POST", world.path(SYNC[1]), {"lessons": [{f"{n}": 0 for n in range(100)}] * 500})
    assert sync.status == 200
    assert len(sync.content) < 500_000


def test_answers_are_short_enough_to_be_answered_with(world: World):
    path = world.path("/quiz-attempts/{attempt_id}/answers")
    for answers in ({"q1": "\U0001f393" * 500_000}, {"q2": "1" * 500_001}, {"q1": ["a" * 16] * 35_000}):
        raw = json.dumps({"answers": answers}, ensure_ascii=False)
        assert pointers(problem(world.service.http("PUT", path, raw=raw), 422, path)) == ["#/answers"]
    raw = json.dumps({"answers": {"q1": "\U0001f393" * 499_997}}, ensure_ascii=False)
    kept = world.service.http("PUT", path, raw=raw)
    assert kept.status == 200
    assert len(kept.content) < LARGEST


def test_ids_in_paths_are_read_in_any_spelling_of_a_uuid_or_refused(world: World):
    spellings: list[Callable[[str], str]] = [
        str.upper,
        lambda i: f"urn:uuid:{i}",
        lambda i: f"{{{i}}}",
        lambda i: i.replace("-", ""),
        lambda i: i[:-1] + quote(i[-1]),
        lambda i: "%" + f"{ord(i[0]):02x}" + i[1:],
        # The expressions that Powertools finds routes by end with $, which lets a line break pass.
        lambda i: f"{i}%0A",
    ]
    wrong = [
        lambda i: f"{i}%00",
        lambda i: f"{i}%2F",
        lambda i: f"..%2F{i}",
        lambda i: f"{i};x=1",
        lambda i: f" {i}".replace(" ", "%20"),
        lambda i: i.replace("-", "%E2%80%90"),
        lambda i: i + "%ED%A0%80",
        lambda i: i + "%FF",
        lambda i: "0" * 5000,
        lambda i: "%",
        lambda i: "%2e%2e",
        lambda i: "..",
        lambda i: i.translate({ord("0") + n: chr(0x660 + n) for n in range(10)}),
    ]
    for route in [route for route in ROUTES if route.method == "GET" and route.scopes is not None]:
        names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
        expected = over_the_wire(world, "GET", world.path(route))
        for name in names:
            real = world.path(f"{{{name}}}")
            for spelling in spellings:
                answer = over_the_wire(world, "GET", world.path(route, **{name: spelling(real)}))
                if answer.status != 200 or answer.json != expected.json:
                    refused(answer, 404, 422)
            for spelling in wrong:
                target = quote(world.path(route, **{name: spelling(real)}), safe="/%:;=")
                refused(over_the_wire(world, "GET", target), 404, 422)


def test_a_path_that_is_another_one_once_decoded_lets_nobody_in(world: World):
    for route in ROUTES:
        path = world.path(route)
        for target in (
            path.replace("/", "%2F").replace("%2F", "/", 1),
            path[0] + path[1:].replace("/", "%2f", 1),
            path.replace("/", "//"),
            path + "/",
            path + "//",
            path + "%2F",
            path + "%00",
            "/." + path,
            "/%2e" + path,
            path.replace("s", "%73", 1) if "s" in path else path + "%20",
            path.swapcase(),
            path + ";",
        ):
            answer = over_the_wire(world, route.method, target, b"{" if route.takes_body else b"", sub=None)
            # Without a token: the gateway itself refuses, or it is no route; what is public is public by any spelling.
            if route.scopes is None and answer.status == 200:
                assert answer.content == over_the_wire(world, route.method, path, sub=None).content or "certificates" in path
                continue
            assert answer.status in (401, 404, 422), (target, answer.status, answer.text)


def test_queries_are_read_strictly_and_what_is_not_known_is_ignored(world: World):
    for route in PAGED:
        path = quote(world.path(route))
        for query in (
            "limit=0", "limit=101", "limit=1e2", "limit=+5", "limit=%2B5", "limit=%205", "limit=5%20", "limit=%D9%A5",
            "limit=5.0", "limit=1_0", "limit=05", "limit=0x5", "limit=5&limit=6", "limit=5&limit=5", "limit=", "limit",
            "limit=%00", "limit=5%00", "limit=%FF", "limit=-0", f"limit={'9' * 5000}", "limit=[5]", "limit=null",
        ):  # fmt: skip
            document = refused(over_the_wire(world, "GET", f"{path}?{query}"), 422)
            assert pointers(document) == ["query/limit"], query
        expected = over_the_wire(world, "GET", path)
        for query in (
            "x=1",
            "Limit=0",
            "limit%00=0",
            "limit[]=0",
            "&&&",
            "=",
            "%FF=%FF",
            "a=" + "b" * 8000,
            "x=1&x=2",
            "?limit=0",
        ):
            assert over_the_wire(world, "GET", f"{path}?{query}").json == expected.json, query


# Pages of lists


def test_limits_and_filters_that_are_none_are_refused_by_name(world: World):
    for route in PAGED:
        path = world.path(route)
        for limit in ("0", "101", "abc", "-1", "1.5", "", "1e2", "9" * 5000, "5,6", "٣x", "true", CANARY):
            answer = world.service.admin("GET", path, query={"limit": limit})
            assert pointers(problem(answer, 422, path)) == ["query/limit"], (path, limit)
        for limit in ("1", "100"):
            assert world.service.admin("GET", path, query={"limit": limit}).status == 200
    for template in ("/users/{user_id}/enrollments", "/course-versions/{course_version_id}/enrollments"):
        path = world.path(template)
        for status in ("", "ACTIVE", "none", "active,completed", CANARY):
            answer = world.service.admin("GET", path, query={"status": status})
            assert pointers(problem(answer, 422, path)) == ["query/status"], (path, status)


REGRADE = "/course-versions/{course_version_id}/quizzes/{quiz_id}/regrades/{regrade_id}"


def forged(*content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def test_a_cursor_that_this_list_did_not_give_is_refused(world: World):
    service, cv, learner = world.service, world.ids["course_version_id"], str(LEARNER)
    quiz_id, other = world.ids["quiz_id"], str(uuid4())
    service.send(
        "enrollment", [event("enrollment.requested", {"user_id": str(uuid4()), "course_version_id": cv}) for _ in range(3)]
    )
    real = service.admin("GET", f"/users/{LEARNER}/enrollments", query={"limit": "1"}).json["next_cursor"]
    roster = service.admin("GET", f"/course-versions/{cv}/enrollments", query={"limit": "1"}).json["next_cursor"]
    assert real
    assert roster
    where = {
        f"/users/{learner}/enrollments": f"enrollments {learner} None",
        f"/users/{learner}/certificates": f"certificates {learner}",
        f"/course-versions/{cv}/enrollments": f"roster {cv} None",
        f"/users/{learner}/enrollments/{cv}/quizzes/{quiz_id}/attempts": f"attempts {learner} {cv} {quiz_id}",
        f"/users/{learner}/enrollments/{cv}/history": f"history {learner} {cv}",
        world.path(REGRADE): f"regrade {world.ids['regrade_id']}",
    }
    assert set(where) == {world.path(route) for route in PAGED}
    for path, list_ in where.items():
        cursors = [
            "",
            "x",
            CANARY,
            "é",
            "=" * 10,
            "a" * 501,
            "[]",
            "null",
            real[:-2],
            real[2:],
            real[:-1] + ("A" if real[-1] != "A" else "B"),
            roster[::-1],
            forged(),
            forged(list_),
            forged(list_, "0001-01-01T00:00:00+14:00", other),
            forged(list_, "2020-01-01T00:00:00", other),
            forged(list_, "2020-01-01T00:00:00Z", "x"),
            forged(list_, None, None),
            forged(list_, {}, []),
            forged(list_, "x"),
            forged(list_, "x", "y", "z"),
            forged(list_, "9" * 300),
            forged([list_], other),
            forged("elsewhere", other),
            forged("elsewhere", "2020-01-01T00:00:00Z", other),
            base64.urlsafe_b64encode(b"\xff\xfe").decode(),
            base64.urlsafe_b64encode(b"[" * 300).decode(),
            base64.urlsafe_b64encode(b"{}").decode(),
        ]
        cursors += [cursor for cursor in (real, roster) if not path.endswith("/enrollments")]
        for cursor in cursors:
            answer = service.admin("GET", path, query={"cursor": cursor})
            assert pointers(problem(answer, 422, path)) == ["query/cursor"], (path, cursor)
    # Of the same list under another filter, and of the same kind of list of someone else.
    path = f"/users/{learner}/enrollments"
    for query in ({"cursor": real, "status": "active"}, {"cursor": roster}):
        problem(service.admin("GET", path, query=query), 422, path)
    path = f"/users/{OTHER}/enrollments"
    problem(service.admin("GET", path, query={"cursor": real}), 422, path)


def pages(service: Service, path: str, limit: int, between: Any, **query: str) -> list[dict[str, Any]]:
    """Page through a list, doing something between two pages."""
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        answer = service.admin("GET", path, query={"limit": str(limit)} | query | ({"cursor": cursor} if cursor else {}))
        assert answer.status == 200, answer.text
        items += answer.json["items"]
        cursor = answer.json["next_cursor"]
        assert len(answer.json["items"]) == limit or cursor is None
        if cursor is None:
            return items
        between()


def test_a_roster_of_120_is_read_whole_and_once_while_learners_are_being_added(world: World):
    service, cv = world.service, world.ids["course_version_id"]

    def enrol(count: int) -> list[str]:
        learners = [str(uuid4()) for _ in range(count)]
        service.send("enrollment", [event("enrollment.requested", {"user_id": u, "course_version_id": cv}) for u in learners])
        return learners

    first = {str(LEARNER), *enrol(119)}
    service.send(
        "enrollment", [event("enrollment.cancelled", {"user_id": u, "course_version_id": cv}) for u in sorted(first)[:60:2]]
    )
    path = f"/course-versions/{cv}/enrollments"
    listed = [item["user_id"] for item in pages(service, path, 7, lambda: enrol(5))]
    assert listed == sorted(set(listed))
    assert first <= set(listed)
    filtered = pages(service, path, 9, lambda: enrol(2), status="cancelled_by_user")
    assert [item["user_id"] for item in filtered] == sorted(first)[:60:2]
    # Without a limit a page has 50, and a list that ends with a full page says so.
    assert len(service.admin("GET", path).json["items"]) == 50
    assert service.admin("GET", path, query={"limit": "30", "status": "cancelled_by_user"}).json["next_cursor"] is None


def test_a_learners_120_enrolments_are_read_whole_and_once_while_others_are_being_added(service: Service):
    versions = [course(lessons=1) for _ in range(140)]
    service.send("catalog", [event("course_version.published", version) for version in versions])
    start = datetime(2024, 1, 1, tzinfo=UTC)
    waiting = iter(versions)

    def enrol(count: int, day: int) -> list[str]:
        ids = [next(waiting)["course_version_id"] for _ in range(count)]
        # Many have the very same time, so that a page ends between two equal ones.
        time = (start + timedelta(days=day)).isoformat()
        service.send(
            "enrollment", [event("enrollment.requested", {"user_id": str(LEARNER), "course_version_id": i}, time) for i in ids]
        )
        return ids

    days = [0, 0, 0, 1, 2, 2]
    first = [i for day in days for i in enrol(20, day)]
    # Some of what is added falls before what was read, some behind it.
    added = iter([0, 5, 1, 5, 2, 5])
    items = pages(service, f"/users/{LEARNER}/enrollments", 17, lambda: enrol(2, next(added, 6)))
    listed = [(item["enrolled_at"], item["course_version_id"]) for item in items]
    assert listed == sorted(set(listed))
    assert set(first) <= {course_version_id for _, course_version_id in listed}


def test_attempts_and_certificates_come_in_pages_too(world: World):
    service, ids = world.service, world.ids
    service.send(
        "quiz",
        [
            event(
                "quiz.submitted",
                {
                    "attempt_id": str(uuid4()),
                    "user_id": str(LEARNER),
                    "course_version_id": ids["course_version_id"],
                    "quiz_id": ids["quiz_id"],
                    "answers": {"q1": "b"},
                },
            )
            for _ in range(11)
        ],
    )
    listed = pages(
        service, world.path("/users/{user_id}/enrollments/{course_version_id}/quizzes/{quiz_id}/attempts"), 5, lambda: None
    )
    assert [attempt["attempt_number"] for attempt in listed] == list(range(1, 13))
    versions = [course(lessons=1) for _ in range(6)]
    service.send("catalog", [event("course_version.published", version) for version in versions])
    for version in versions:
        about = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
        service.send("enrollment", event("enrollment.requested", about))
        service.send(
            "progress",
            event("lesson.progressed", about | {"lesson_id": version["lessons"][0]["lesson_id"], "status": "completed"}),
        )
    # All in one transaction, so that all have the same time of issue.
    service.send(
        "certificate",
        [event("enrollment.completed", {"user_id": str(LEARNER), "course_version_id": v["course_version_id"]}) for v in versions],
    )
    certificates = pages(service, f"/users/{LEARNER}/certificates", 2, lambda: None)
    assert len({certificate["certificate_uid"] for certificate in certificates}) == len(certificates) == 7


def hostile_cursors(real: list[str], lists: list[str]) -> st.SearchStrategy[str]:
    """Cursors that were cut, bent, put together from others, or made by someone who knows how they are made."""
    texts = st.sampled_from(real)
    positions = st.integers(0, 400)
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(
        ["2020-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1e9", "9" * 40, -1, 2**31, 2**63,
         2**64, 10**300, str(uuid4()), "\x00", "\ud800", "' OR 1=1 --", f"urn:uuid:{uuid4()}"]
    )  # fmt: skip
    contents = st.lists(scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(), scalars, max_size=2), max_size=3)
    wheres = st.sampled_from(lists) | st.text(max_size=10) | scalars

    def encoded(where: Any, rest: list[Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps([where, *rest]).encode()).decode().rstrip("=")

    return st.one_of(
        texts,
        st.builds(lambda text, n: text[: n % len(text)], texts, positions),
        st.builds(lambda text, n: text[n % len(text) :], texts, positions),
        st.builds(lambda text, n, c: text[: n % len(text)] + c + text[n % len(text) + 1 :], texts, positions, st.characters()),
        st.builds(lambda text, n, bit: flipped(text, n, bit), texts, positions, st.integers(0, 7)),
        st.builds(lambda one, other, n: one[:n] + other[n:], texts, texts, positions),
        st.builds(encoded, wheres, contents),
        st.binary(max_size=400).map(lambda content: base64.urlsafe_b64encode(content).decode()),
        st.text(max_size=600),
        texts.map(lambda text: text + "=" * 400),
    )


def flipped(cursor: str, n: int, bit: int) -> str:
    """The cursor with one bit of what it holds turned round."""
    content = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    content[n % len(content)] ^= 1 << bit
    return base64.urlsafe_b64encode(bytes(content)).decode().rstrip("=")


def test_no_cursor_leads_to_what_its_list_does_not_hold(world: World, capsys: pytest.CaptureFixture[str]):
    service, ids = world.service, world.ids
    for learner in (LEARNER, OTHER):
        for cv in (ids["course_version_id"], ids["other_course_version_id"]):
            service.admin("PUT", f"/users/{learner}/enrollments/{cv}")
        service.send("catalog", event("learner.updated", {"user_id": str(learner), "name": f"Learner {learner}"}))
    quiz_path = "/users/{user_id}/enrollments/{course_version_id}/quizzes/{quiz_id}/attempts"
    for learner in (LEARNER, OTHER):
        service.send(
            "quiz",
            [
                event(
                    "quiz.submitted",
                    {"attempt_id": str(uuid4()), "user_id": str(learner), "answers": {}}
                    | {name: ids[name] for name in ("course_version_id", "quiz_id")},
                )
                for _ in range(3)
            ],
        )
    lists = [
        (world.path(path, user_id=str(learner)) + filter_, learner)
        for learner in (LEARNER, OTHER)
        for path in (
            "/users/{user_id}/enrollments",
            "/users/{user_id}/certificates",
            "/users/{user_id}/enrollments/{course_version_id}/history",
            quiz_path,
        )
        for filter_ in (("", "?status=active") if path.endswith("}/enrollments") else ("",))
    ]
    lists += [
        (world.path("/course-versions/{course_version_id}/enrollments") + filter_, None) for filter_ in ("", "?status=active")
    ]
    lists.append((world.path(REGRADE), None))

    def page(target: str, cursor: str | None, limit: int = 100) -> Answer:
        path, _, filter_ = target.partition("?")
        query = dict([filter_.split("=")]) if filter_ else {}
        return service.admin(
            "GET", path, query=query | {"limit": str(limit)} | ({"cursor": cursor} if cursor is not None else {})
        )

    whole = {target: page(target, None).json.get("items", []) for target, _ in lists}
    assert sum(map(bool, whole.values())) >= len(lists) - 2
    real = [answer.json["next_cursor"] for target, _ in lists for answer in [page(target, None, 1)] if answer.json["next_cursor"]]
    assert len(real) >= 5
    where = [json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))[0] for cursor in real]
    tried = {200: 0, 422: 0}

    @example_settings(max_examples=600, deadline=None, derandomize=True, database=None)
    @given(hostile_cursors(real, where), st.sampled_from(lists))
    def attack(cursor: str, target: tuple[str, UUID | None]) -> None:
        # Half of a surrogate pair has no encoding, so that none can come in a query.
        answer = page(target[0], cursor.encode("utf-8", "replace").decode())
        tried[answer.status] += 1
        if answer.status == 422:
            assert pointers(answer.json) == ["query/cursor"]
        else:
            assert all(item in whole[target[0]] for item in answer.json.get("items", []))

    attack()
    # The cursors that were given lead on where they were given, so that the attack is not refused for another reason.
    assert [target for target, _ in lists if any(page(target, cursor).status == 200 for cursor in real)]
    with capsys.disabled():
        print(f"\nhostile cursors: {tried[422]} refused, {tried[200]} led on within their list")


# Verification


ACCEPT: list[tuple[str | None, bool]] = [
    (None, False),
    ("", False),
    ("*/*", False),
    ("application/json", False),
    ("text/html", True),
    ("TEXT/HTML", True),
    ("text/html;charset=utf-8", True),
    ("text/*", True),
    ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
    (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
        True,
    ),
    ("application/json, text/html;q=0.5", False),
    ("application/json;q=0.4, text/html;q=0.5", True),
    ("text/html;q=0", False),
    ("text/html;q=0.000, */*", False),
    ("text/html;q=²", False),
    ("text/html;q=1.", True),
    ("text/html;q=٣", False),
    ("text/html;q=x, application/json", False),
    (";;;,,,;q=", False),
    ("image/gif", False),
    ("é" * 1000, False),
    ("," * 8000, False),
]


def test_verification_is_a_page_only_for_whom_prefers_one(world: World):
    for accept, html in ACCEPT:
        path = world.path("/certificates/{certificate_uid}")
        headers = {"accept": accept} if accept is not None else {}
        for uid, status in ((world.ids["certificate_uid"], 200), (new_uid(), 404), ("mistyped", 404)):
            answer = world.service.http(
                "GET",
                world.path(path, certificate_uid=uid) if status == 200 else f"/certificates/{uid}",
                sub=None,
                headers=headers,
            )
            assert answer.status == status
            if html:
                assert answer.headers["content-type"] == "text/html; charset=utf-8"
                assert answer.text.startswith("<!doctype html>")
            else:
                assert answer.headers["content-type"] == ("application/json" if status == 200 else "application/problem+json")
                assert isinstance(answer.json, dict)


def test_every_single_wrong_character_and_every_swap_of_neighbours_is_told_from_an_unknown_uid(world: World):
    uid = world.ids["certificate_uid"]
    characters = uid.replace("-", "")
    wrong = {characters[:n] + c + characters[n + 1 :] for n in range(24) for c in ALPHABET if c != characters[n]}
    swapped = {characters[:n] + characters[n + 1] + characters[n] + characters[n + 2 :] for n in range(23)} - {characters}
    assert len(wrong) == 24 * 31
    assert [text for text in wrong | swapped if read_uid(text)] == []
    for text in [*sorted(wrong)[::97], *sorted(swapped)[::5], characters[:-1], characters + "0", "", "-", "U" * 24]:
        if text:
            path = f"/certificates/{text}"
            answer = world.service.http("GET", path, sub=None)
            assert answer.json["type"].endswith(":mistyped_certificate_uid"), text
            assert "check character" in answer.json["detail"]
    unknown = new_uid()
    path = f"/certificates/{unknown}"
    document = problem(world.service.http("GET", path, sub=None), 404, path)
    assert document["type"].endswith(":certificate_not_found")
    assert "check character" not in document["detail"]


def test_a_uid_may_be_typed_in_any_case_with_or_without_hyphens_and_with_look_alikes(world: World):
    uid = world.ids["certificate_uid"]
    look_alike = uid.replace("0", "o").replace("1", "l")
    for text in (
        uid,
        uid.lower(),
        uid.replace("-", ""),
        look_alike,
        uid.replace("-", " "),
        f" {uid} ",
        "-".join(uid.replace("-", "")),
    ):
        answer = world.service.http("GET", f"/certificates/{text}", sub=None)
        assert answer.status == 200, (text, answer.text)
        assert answer.json["certificate_uid"] == uid


NASTY = (
    """<script>alert("x")</script> & 'O\u2019Brien' "><img src=x onerror=alert(1)> {{ 7 * 7 }} </style> Ωλ \U0001f393 \u202e"""
)


def test_whatever_a_name_holds_the_page_shows_it_as_text(service: Service):
    version = course(lessons=1, title=f"T {NASTY}", version=f"V {NASTY}", issuer_name=f"I {NASTY}")
    about = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    service.send("catalog", event("course_version.published", version))
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": f"N {NASTY}"}))
    service.send("enrollment", event("enrollment.requested", about))
    service.send(
        "progress", event("lesson.progressed", about | {"lesson_id": version["lessons"][0]["lesson_id"], "status": "completed"})
    )
    service.deliver()
    uid = service.rows("SELECT certificate_uid FROM certificates")[0]["certificate_uid"]
    service.admin("POST", f"/certificates/{uid}/revoke", {"reason": f"R {NASTY}"})
    answer = service.http("GET", f"/certificates/{uid}", sub=None, headers={"accept": "text/html"})
    assert answer.status == 200
    assert answer.text.count("<script") == answer.text.count("<img") == 0
    assert answer.text.count("</style>") == 1
    assert answer.text.count("&lt;script&gt;") >= 5
    assert "{{ 7 * 7 }}" in answer.text
    assert "Ωλ \U0001f393" in answer.text
    shown = service.http("GET", f"/certificates/{uid}", sub=None).json
    assert shown["learner_name"] == f"N {NASTY}"
    assert shown["revocation_reason"] == f"R {NASTY}"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_an_unknown_uid_is_not_repeated_on_its_page(service: Service):
    answer = service.http("GET", f"/certificates/{CANARY}<script>", sub=None, headers={"accept": "text/html"})
    assert answer.status == 404
    assert CANARY not in answer.text


# The edge itself


def test_without_a_database_the_answer_is_503_with_a_time_to_try_again(service: Service, monkeypatch: pytest.MonkeyPatch):
    from shared import db, settings

    db.close()
    settings.database_url.cache_clear()
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/nowhere")
    for path in ("/health", f"/users/me/enrollments/{uuid4()}"):
        answer = service.http("GET", path)
        problem(answer, 503, path)
        assert answer.headers["retry-after"] == "5"
    settings.database_url.cache_clear()


def test_health_names_the_last_migration(service: Service, root: Path):
    last = max(path.stem for path in (root / "migrations").glob("*.sql") if ".rollback" not in path.name)
    answer = service.http("GET", "/health", sub=None)
    assert (answer.status, answer.json) == (200, {"status": "ok", "schema_version": last})


def test_a_cursor_comes_back_as_the_key_that_it_was_made_of():
    key = (datetime(2026, 1, 31, 9, 30, 0, 123456, tzinfo=UTC), uuid4())
    assert http.decode_cursor(http.encode_cursor("list", *key), "list", datetime, UUID) == key
    assert http.decode_cursor(None, "list", datetime) is None


@pytest.mark.parametrize(
    "claims", [{"iss": "https://iam"}, {"sub": ""}, {"sub": "ada"}, {"sub": "ada", "scope": "learner-progress:admin"}]
)
def test_a_token_that_names_no_learner_is_refused(service: Service, claims: dict[str, str]):
    answer = service.http("GET", "/users/me/enrollments", claims=claims)
    assert (answer.status, answer.json["detail"]) == (403, "The token's subject is no user id: expected a UUID.")
