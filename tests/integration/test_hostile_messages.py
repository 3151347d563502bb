"""Messages made to do harm: each is taken, or becomes a dead letter that says why, in bounded time, and holds nobody back."""

import json
import re
import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from functions.outbox_relay import app as relay
from shared.outbox import MESSAGE_BYTES, Row
from tests.support.service import LEARNER, Service, course, event, quiz, record

#: What SQS takes in a body or an attribute, by its API reference (SendMessage).
SQS_TEXT = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")

#: Stands in a structure for a number that Python would write otherwise.
RAW = re.compile(r'"@(.*?)@"')


def text_of(content: Any) -> str:
    return RAW.sub(r"\1", json.dumps(content))


def letters(service: Service) -> list[dict[str, Any]]:
    """The dead letters so far, each of which SQS would take."""
    found = service.rows("SELECT * FROM outbox WHERE destination = 'dead_letter_queue' ORDER BY created_at")
    names = Row.__dataclass_fields__
    for letter in found:
        attributes = relay._attributes(Row(**{name: letter[name] for name in names}))
        assert {"tries", "code"} <= set(attributes)
        sizes = [len(f"{name}String{value['StringValue']}".encode()) for name, value in attributes.items()]
        assert len(letter["body"].encode()) + sum(sizes) <= MESSAGE_BYTES
        assert all(SQS_TEXT.fullmatch(value["StringValue"]) for value in attributes.values())
    return found


def full_course() -> dict[str, Any]:
    """A course version with a question of each kind, and every field that there is."""
    choices = [{"id": "a", "text": "A"}, {"id": "b", "text": "B"}, {"id": "c", "text": "C"}]
    common = {"prompt": "?", "points": 3}
    questions: list[dict[str, Any]] = [
        common | {"kind": "single_choice", "choices": choices, "correct": "a"},
        common | {"kind": "true_false", "correct": "true"},
        common | {"kind": "multiple_choice", "choices": choices, "correct": ["a", "b"], "scoring": "per_option"},
        common | {"kind": "numeric", "correct": 2.5, "tolerance": 0.1, "tolerance_kind": "relative"},
        common | {"kind": "text", "correct": ["north", "the north"], "case_sensitive": False},
        common | {"kind": "matching", "choices": choices, "correct": {"x": "a", "y": "b"}},
        common | {"kind": "ordering", "choices": choices, "correct": ["c", "a", "b"], "scoring": "per_position"},
        common
        | {
            "kind": "mapped",
            "choices": choices,
            "correct": {"a": 1, "b": 2.5},
            "lower_bound": 0,
            "upper_bound": 4,
            "default": -1,
        },
    ]
    for n, question in enumerate(questions):
        question["question_id"] = f"q{n}"
    limits = {"max_attempts": 3, "time_limit_seconds": 600, "retry_delay_seconds": 5, "reveal_answers": True}
    certificate = {"enabled": True, "valid_for_days": 30}
    quizzes = [quiz(questions=deepcopy(questions), **limits)]
    return course(lessons=2, required_lessons=1, quizzes=quizzes, certificate=certificate, self_enrollment=True)


def nodes(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a structure."""
    yield path
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield from nodes(content[key], (*path, key))


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def right_answer(question: dict[str, Any]) -> Any:
    correct = question["correct"]
    match question["kind"]:
        case "text":
            return correct[0]
        case "mapped":
            default = question.get("default")
            values = {choice["id"]: default for choice in question.get("choices") or []} | correct
            return [choice for choice, points in values.items() if isinstance(points, int | float) and points > 0]
        case _:
            return correct


def complete(service: Service, version: dict[str, Any]) -> str:
    """Let the learner do all of a course version as one who knows everything, and give the status of the enrolment."""
    own = f"/users/me/enrollments/{version['course_version_id']}"
    assert service.admin("PUT", own.replace("/me/", f"/{LEARNER}/")).status in (200, 201)
    for lesson in version.get("lessons") or []:
        assert service.http("PUT", f"{own}/lessons/{lesson['lesson_id']}/progress", {"status": "completed"}).status == 200
    for one in version.get("quizzes") or []:
        started = service.http("POST", f"{own}/quizzes/{one['quiz_id']}/attempts")
        assert started.status == 201, started.text
        answers = {question["question_id"]: right_answer(question) for question in one["questions"]}
        graded = service.http("POST", f"/quiz-attempts/{started.json['id']}/submit", raw=text_of({"answers": answers}))
        assert graded.status == 200, graded.text
    return service.http("GET", own).json["status"]


HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2.5, 100, 101, 2**31, 2**63, "@1e400@", "@1e-400@", "@-1e999999@", "@1e999999@", "@1e-999999@",
    "@0e999999@", "@1E+9999999999999999999999@", f"@{'9' * 400}@", f"@{'9' * 5000}@", f"@0.{'1' * 500}@", "@1e300@", "@3.0@",
    "", " ", "a", "a\0b", "\ud800", "x" * 100_000, "\u202e", "\ufdfa" * 1000, "a" + "\u0315\u0300" * 20_000, "true", "1", "null",
    [], {}, [None], [[]], ["a"], ["a", "a"], {"a": 1}, {"": ""}, {"a": "a"}, [{"id": "a", "text": "A"}] * 2, str(uuid4()),
]  # fmt: skip

version_paths = [path for path in nodes(full_course()) if path]


#: Which node is changed, how, what takes its place, and which other node may.
mutations = st.tuples(
    st.integers(0, len(version_paths) - 1),
    st.sampled_from(["replace"] * 5 + ["leave out", "double", "exchange", "rename"]),
    st.integers(0, len(HOSTILE) - 1),
    st.integers(0, len(version_paths) - 1),
)


def mutated(node: int, how: str, hostile: int, other: int) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """A valid course version with one node changed, and the node's path."""
    version, path = full_course(), version_paths[node]
    parent, key = at(version, path[:-1]), path[-1]
    match how:
        case "replace":
            parent[key] = HOSTILE[hostile]
        case "leave out":
            del parent[key]
        case "exchange":
            parent[key] = deepcopy(at(version, version_paths[other]))
        case "double" if isinstance(parent, list):
            parent.append(deepcopy(parent[key]))
        case _ if isinstance(parent, dict):
            parent[f"{key} "] = parent.pop(key)
        case _:
            parent.append(HOSTILE[hostile])
    return version, path


def test_a_course_version_with_one_wrong_node_is_refused_with_the_place_or_can_be_completed(
    service: Service, capsys: pytest.CaptureFixture[str]
):
    outcomes = {"refused": 0, "completed": 0, "active": 0}

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(mutations)
    def attack(mutation: tuple[int, str, int, int]) -> None:
        version, path = mutated(*mutation)
        body = text_of(event("course_version.published", version))
        service.send("catalog", body)
        found = letters(service)
        service.rows("DELETE FROM outbox")
        if found:
            (letter,) = found
            assert letter["body"] == body
            assert letter["code"] in ("invalid", "malformed"), letter["reason"]
            assert letter["code"] == "malformed" or letter["reason"].startswith("#/data"), letter["reason"]
            assert path[0] in letter["reason"] or letter["code"] == "malformed", (path, letter["reason"][:300])
            outcomes["refused"] += 1
            return
        version = json.loads(body)["data"]
        items = [*(version.get("lessons") or []), *(version.get("quizzes") or [])]
        status = complete(service, version)
        # Of what is not required nothing completes.
        is_required = any(item.get("required") in (True, None) for item in items)
        assert status == ("completed" if is_required else "active"), path
        outcomes[status] += 1
        assert letters(service) == []

    attack()
    assert outcomes["refused"] > 100
    assert outcomes["completed"] > 30
    with capsys.disabled():
        print(f"\nmutated course versions: {outcomes}")


def test_hostile_numbers_wherever_a_course_version_has_one(service: Service):
    numbers = [value for value in HOSTILE if isinstance(value, str) and RAW.fullmatch(f'"{value}"')]
    bodies: list[str] = []
    for path in version_paths:
        if isinstance(at(full_course(), path), int | float) and not isinstance(at(full_course(), path), bool):
            for number in numbers:
                version = full_course()
                at(version, path[:-1])[path[-1]] = number
                bodies.append(text_of(event("course_version.published", version)))
    begun = time.process_time()
    # All in one array: what can't even be read holds back none of its neighbours.
    service.send("catalog", f"[{', '.join(bodies)}]")
    assert time.process_time() - begun < 60
    refused = {letter["body"]: letter for letter in letters(service)}
    assert set(refused) <= set(bodies)
    assert {letter["code"] for letter in refused.values()} == {"malformed", "invalid"}
    known = {str(row["course_version_id"]) for row in service.rows("SELECT course_version_id FROM course_versions")}
    assert len(known) == len(bodies) - len(refused) > 20


def test_a_question_for_every_byte_and_an_answer_to_each(service: Service):
    questions = [
        {"question_id": f"q{n}", "kind": "numeric", "prompt": "", "points": n % 7 + 1, "correct": n, "tolerance": 0.5}
        for n in range(5_000)
    ]
    version = course(lessons=0, quizzes=[quiz(questions=questions)])
    begun = time.process_time()
    service.send("catalog", event("course_version.published", version))
    assert letters(service) == []
    assert complete(service, version) == "completed"
    ids = {
        "user_id": str(LEARNER),
        "course_version_id": version["course_version_id"],
        "quiz_id": version["quizzes"][0]["quiz_id"],
    }
    huge: list[Any] = [
        {f"unknown{n}": n for n in range(30_000)},
        {"q0": "9" * 400_000},
        {"q0": "x" * 499_000},
        {"q0": "0." + "0" * 400_000 + "1"},
        {"none": ["a"] * 200_000},
        {"none": {f"{n}": "" for n in range(60_000)}},
    ]
    service.send("quiz", *(event("quiz.submitted", ids | {"attempt_id": str(uuid4()), "answers": answers}) for answers in huge))
    assert letters(service) == []
    service.send("quiz", event("quiz.submitted", ids | {"attempt_id": str(uuid4()), "answers": {"q0": "x" * 500_000}}))
    assert [letter["reason"] for letter in letters(service)] == ["#/data/answers: expected answers of at most 500000 characters"]
    assert time.process_time() - begun < 60


def test_in_an_array_what_is_beyond_the_limits_goes_alone(service: Service):
    version = course(lessons=1)
    service.send("catalog", event("course_version.published", version))
    about = {"course_version_id": version["course_version_id"]}
    good = [json.dumps(event("enrollment.requested", about | {"user_id": str(uuid4())})) for _ in range(4)]
    beyond = [
        '{"type": "x", "n": ' + "9" * 5000 + "}",
        '{"type": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"text": "\\" ] [ } {, \\\\", "n": ' + "1" * 4301 + "}",
    ]
    service.send("enrollment", f" [{good[0]},{beyond[0]} , {good[1]}\n,{beyond[1]},{beyond[2]},{good[2]} ] ")
    assert sorted(letter["body"] for letter in letters(service)) == sorted(beyond)
    assert {letter["code"] for letter in letters(service)} == {"malformed"}
    assert len(service.rows("SELECT user_id FROM enrollments")) == 3
    service.rows("DELETE FROM outbox")
    # What is no JSON besides is no array, so nothing of it counts.
    for end in ("", "}", "] x", ",]", ", NaN]", ", {]"):
        body = f"[{good[3]},{beyond[0]}{end}"
        service.send("enrollment", body)
        assert [letter["body"] for letter in letters(service)] == [body], end
        service.rows("DELETE FROM outbox")
    many = f"[{beyond[0]}{',{}' * 1000}]"
    service.send("enrollment", many)
    assert [(letter["body"], letter["code"]) for letter in letters(service)] == [(many, "invalid")]
    assert len(service.rows("SELECT user_id FROM enrollments")) == 3


@pytest.mark.parametrize("queue", ["enrollment", "progress", "quiz", "certificate", "catalog"])
def test_the_largest_message_is_a_dead_letter_that_its_queue_takes(service: Service, queue: str):
    wrong = json.dumps({"type": "unknown", "text": ""})
    for size in (MESSAGE_BYTES - 100, MESSAGE_BYTES - 1000, MESSAGE_BYTES - 5000):
        service.send(queue, wrong[:-2] + "é" * ((size - len(wrong)) // 2) + wrong[-2:])
    found = letters(service)
    assert [letter["code"] for letter in found] == ["unknown_type"] * 3
    names = Row.__dataclass_fields__
    reasons = [relay._attributes(Row(**{name: letter[name] for name in names}))["reason"]["StringValue"] for letter in found]
    assert all(letter["reason"].startswith(reason) for letter, reason in zip(found, reasons, strict=True))
    assert reasons[2] == found[2]["reason"]


def test_what_waits_without_room_for_its_attributes_does_not_wait_for_ever(service: Service):
    early = json.dumps(event("enrollment.requested", {"user_id": str(LEARNER), "course_version_id": str(uuid4())}) | {"x": ""})
    service.send("enrollment", early[:-2] + "x" * (MESSAGE_BYTES - len(early) - 10) + early[-2:], early)
    rows = service.rows("SELECT destination, code FROM outbox ORDER BY length(body)")
    assert rows == [
        {"destination": "queue", "code": "course_version_not_found"},
        {"destination": "dead_letter_queue", "code": "course_version_not_found"},
    ]


BROKEN_ENVELOPES: list[Any] = [
    {},
    {"detail-type": "enrollment.completed"},
    {"detail": {}},
    {"detail-type": None, "detail": None},
    {"detail-type": "x", "detail": []},
    {"detail-type": "x", "detail": "{}"},
    {"detail-type": "x", "detail": {"detail-type": "x", "detail": {}}},
    {"detail-type": "x", "detail": {"type": "enrollment.completed"}},
    {"detail-type": [], "detail": {"specversion": "1.0", "id": 1, "source": {}, "type": [], "time": {}, "data": 0}},
    {"detail-type": "x", "detail": {"type": {"enrollment.completed": 1}}},
]


@pytest.mark.parametrize("queue", ["enrollment", "progress", "quiz", "certificate", "catalog"])
def test_broken_envelopes_and_events_are_dead_letters_to_the_letter(service: Service, queue: str):
    whole = event(
        {"enrollment": "enrollment.requested", "progress": "lesson.progressed", "quiz": "quiz.submitted"}.get(queue)
        or ("enrollment.completed" if queue == "certificate" else "learner.updated"),
        {"user_id": str(LEARNER)},
    )
    bodies: list[str] = [json.dumps(body) for body in BROKEN_ENVELOPES]
    for name in whole:
        for n, value in enumerate([*HOSTILE, ...]):
            broken = {**whole, name: value, "n": n} if value is not ... else {k: v for k, v in whole.items() if k != name}
            bodies.append(text_of(broken))
    service.send(queue, *bodies[:10], f"[{','.join(bodies[10:200])}]", f"[{','.join(bodies[200:])}]")
    found = letters(service)
    assert all(letter["reason"] for letter in found)
    # U+0000 and half a pair are escaped in JSON, so that they stand in the letter as they came.
    left = [letter["body"] for letter in found]
    assert set(left) <= set(bodies)
    # The same id again is the same event; the others are all there but for those whose envelope was fine.
    assert len(left) >= len(bodies) * 0.5


HOSTILE_ATTRIBUTES = [
    {"tries": {"stringValue": value, "dataType": "Number"}}
    for value in ("-1", "1e30", str(10**30), "9" * 5000, "NaN", "Infinity", "0x10", "", " 1", "1_0", "\u0661", "true", "1000001")
] + [
    {"waiting_since": {"stringValue": value, "dataType": "String"}}
    for value in ("", "now", "0000-00-00T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1e9")
] + [{"tries": {}}, {"tries": {"stringValue": None}}, {"": {"stringValue": "x"}}, {"code": {"stringValue": "\0"}}]  # fmt: skip


def test_hostile_message_attributes_neither_stop_a_batch_nor_make_an_event_wait_for_ever(service: Service):
    version = course(lessons=1)
    service.send("catalog", event("course_version.published", version))
    records: list[dict[str, Any]] = []
    for attributes in HOSTILE_ATTRIBUTES:
        about = {"user_id": str(uuid4()), "course_version_id": str(uuid4())}
        one = record(json.dumps(event("enrollment.requested", about)))
        one["messageAttributes"] = attributes
        records.append(one)
    known = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    bare = record(json.dumps(event("enrollment.requested", known)))
    del bare["messageAttributes"]
    service.invoke("enrollment_worker", {"Records": [*records, bare, bare | {"messageAttributes": None}]})
    assert len(service.rows("SELECT user_id FROM enrollments")) == 1
    rows = service.rows(
        "SELECT destination, tries, available_at - now() AS ahead, waiting_since FROM outbox WHERE body IS NOT NULL"
    )
    assert len(rows) == len(records)
    assert all(1 <= row["tries"] <= 11 and row["ahead"].total_seconds() <= 1024 for row in rows)


#: Whether a time is taken; None: that is left open, but nothing else is said than that it is no time.
TIMES = {
    "0001-01-01T00:00:00Z": True,
    "0001-01-01T00:00:00+00:01": False,
    "0000-01-01T00:00:00Z": False,
    "9999-12-31T23:59:59.999999Z": True,
    "9999-12-31T23:59:59.9999999Z": True,
    "9999-12-31T23:59:59-00:01": False,
    "10000-01-01T00:00:00Z": False,
    "-2026-01-31T09:30:00Z": False,
    "2016-12-31T23:59:60Z": False,
    "2026-01-31T24:00:00Z": False,
    "2026-01-31T09:30:00+23:59": True,
    "2026-01-31T09:30:00-23:59": True,
    "2026-01-31T09:30:00+24:00": False,
    "2026-01-31T09:30:00-24:00": False,
    "2026-01-31T09:30:00+99:99": False,
    "2026-01-31t09:30:00z": True,
    "2026-01-31 09:30:00Z": True,
    "2026-01-31T09:30Z": True,
    "2026-02-29T00:00:00Z": False,
    "2024-02-29T00:00:00Z": True,
    "2026-01-31T09:30:00." + "1" * 100 + "Z": None,
    "2026-01-31T09:30:00Z" + " " * 10_000: None,
    "\u0662\u0660\u0662\u0666-01-31T09:30:00Z": False,
}


def test_times_at_the_edges_of_the_calendar(service: Service):
    version = course(lessons=1)
    service.send("catalog", event("course_version.published", version))
    about = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    service.send("enrollment", event("enrollment.requested", about, "0001-01-01T00:00:00Z"))
    lesson = about | {"lesson_id": version["lessons"][0]["lesson_id"], "progress_percentage": 1}
    for time_, is_taken in TIMES.items():
        service.send("progress", event("lesson.progressed", lesson, time_))
        found = letters(service)
        service.rows("DELETE FROM outbox")
        if is_taken is not None:
            assert (found == []) == is_taken, (time_, found)
        assert all(letter["code"] == "invalid" and letter["reason"].startswith("#/time") for letter in found)


def test_an_id_of_a_hundred_thousand_characters_is_an_id(service: Service):
    long = "i" * 100_000
    version = course(lessons=1, quizzes=[quiz()])
    version["quizzes"][0]["questions"][0] |= {"question_id": long, "correct": long, "choices": [{"id": long, "text": long}]}
    service.send("catalog", event("course_version.published", version, id=long, source=long))
    assert complete(service, version) == "completed"
    service.send("enrollment", event("enrollment.requested", {"user_id": long}, id=long, source=long))
    assert [letter["code"] for letter in letters(service)] == ["invalid"]
