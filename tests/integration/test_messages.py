"""What becomes of messages that are wrong, early, repeated or hostile, and of their neighbours."""

import json
import os
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from shared import db, settings
from shared.errors import Unavailable
from tests.conftest import database
from tests.support.service import LEARNER, Service, course, event, quiz, record

QUEUES = ["enrollment", "progress", "quiz", "certificate", "catalog"]


class Known(NamedTuple):
    """A course version of three lessons and one quiz, in which the learner is enrolled."""

    service: Service
    version: dict[str, Any]
    learner: UUID = LEARNER

    def data(self, lesson: int = 0, percentage: float | None = 50, **fields: Any) -> dict[str, Any]:
        """Data of `lesson.progressed`."""
        return {
            "user_id": str(self.learner),
            "course_version_id": self.version["course_version_id"],
            "lesson_id": self.version["lessons"][lesson]["lesson_id"],
            "progress_percentage": percentage,
        } | fields

    def progressed(self, lesson: int = 0, percentage: float = 50, **fields: Any) -> dict[str, Any]:
        """An event that can be taken."""
        return event("lesson.progressed", self.data(lesson, percentage)) | fields

    def progress(self) -> list[float | None]:
        """How far the learner is in each lesson; None: nothing is known."""
        known = self.service.rows("SELECT lesson_id, progress_percentage FROM lesson_progress WHERE user_id = %s", self.learner)
        rows = {str(row["lesson_id"]): row["progress_percentage"] for row in known}
        return [rows.get(lesson["lesson_id"]) for lesson in self.version["lessons"]]


@pytest.fixture
def known(service: Service) -> Known:
    version = course(lessons=3, quizzes=[quiz()])
    service.send("catalog", event("course_version.published", version))
    service.send("enrollment", enroll(version))
    return Known(service, version)


@pytest.fixture(scope="module")
def shared_service(server_url: str, template_database: str) -> Iterator[Service]:
    """A database for the many tests that leave nothing behind that another one could stumble over."""
    name = f"messages_{uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template_database)))
    yield Service(database(server_url, name))
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def newcomer(shared_service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Known]:
    """Another learner in a course version of their own, and an empty outbox."""
    monkeypatch.setenv("DATABASE_URL", shared_service.database_url)
    settings.database_url.cache_clear()
    known = Known(shared_service, course(lessons=3), uuid4())
    known.service.send("catalog", event("course_version.published", known.version))
    known.service.send("enrollment", enroll(known.version, known.learner))
    known.service.rows("DELETE FROM outbox")
    yield known
    db.close()


def enroll(version: dict[str, Any], user_id: UUID = LEARNER, **fields: Any) -> dict[str, Any]:
    ids = {"user_id": str(user_id), "course_version_id": version["course_version_id"]}
    return event("enrollment.requested", ids | fields)


def work(service: Service, queue: str, *records: dict[str, Any]) -> None:
    """One invocation of a queue's worker; it acknowledges everything."""
    assert service.invoke(f"{queue}_worker", {"Records": list(records)}) == {"batchItemFailures": []}


def apart(service: Service) -> list[dict[str, Any]]:
    """What was set apart, for its queue again or for the dead-letter queue."""
    return service.rows("SELECT * FROM outbox WHERE body IS NOT NULL ORDER BY created_at, id")


def as_sent(row: dict[str, Any]) -> dict[str, Any]:
    """The record that the queue gives once the relay has sent a row to it."""
    attributes = {"tries": str(row["tries"])}
    if row["waiting_since"]:
        attributes["waiting_since"] = row["waiting_since"].isoformat()
    if row["destination"] == "dead_letter_queue":
        attributes |= {"code": row["code"], "reason": row["reason"]}
    return record(row["body"], attributes)


def changed(original: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The event with the field at a path set, or left out if the value is `...`."""
    copy = deepcopy(original)
    *parents, name = path.split("/")
    at = copy
    for parent in parents:
        at = at[parent]
    if value is ...:
        del at[name]
    else:
        at[name] = value
    return copy


# --------------------------------------------------------------------------------------------------- bodies and events


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ("", "malformed", "line 1, column 1"),
        ("no json", "malformed", "line 1, column 1"),
        ('{"specversion": "1.0"', "malformed", "line 1"),
        ("{} {}", "malformed", "column 4"),
        ("\ufeff{}", "malformed", "BOM"),
        ('{"data": NaN}', "malformed", "NaN"),
        ("[Infinity]", "malformed", "Infinity"),
        ("[" * 100_000 + "]" * 100_000, "malformed", "too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "malformed", "too deeply"),
        ("1" * 5_000, "malformed", "more than 4300 digits"),
        (json.dumps([{}] * 1001), "invalid", "at most 1000 events in one message, found 1001"),
        ("[[]]", "invalid", "expected a CloudEvents event: an object"),
        ("[" * 5_000 + "]" * 5_000, "invalid", "expected a CloudEvents event: an object"),
        ("5", "invalid", "expected a CloudEvents event: an object"),
        ('"text"', "invalid", "expected a CloudEvents event: an object"),
        ("null", "invalid", "expected a CloudEvents event: an object"),
        ("true", "invalid", "expected a CloudEvents event: an object"),
        ("{}", "invalid", "#/specversion: required"),
    ],
    ids=lambda value: value[:25] or "empty",
)
def test_a_malformed_body_is_a_dead_letter_as_it_came_and_its_neighbours_take_effect(
    newcomer: Known, body: str, code: str, reason: str
):
    newcomer.service.send("progress", newcomer.progressed(0), body, newcomer.progressed(1))
    assert newcomer.progress() == [50, 50, None]
    (letter,) = newcomer.service.dead_letters()
    assert (letter["queue"], letter["code"], letter["tries"]) == ("progress", code, 1)
    assert reason in letter["reason"]
    # What is readable as an array is taken apart: its one element goes alone.
    assert letter["body"] == (body[1:-1] if body.startswith("[[") else body)


@pytest.mark.parametrize("queue", QUEUES)
def test_every_queue_sets_apart_what_it_cannot_read(service: Service, queue: str):
    stranger = event("lesson.viewed", {})
    service.send(queue, "no json", stranger, [stranger | {"id": "other"}])
    assert sorted((letter["queue"], letter["code"]) for letter in service.dead_letters()) == [
        (queue, "malformed"),
        (queue, "unknown_type"),
        (queue, "unknown_type"),
    ]
    assert {json.loads(letter["body"])["id"] for letter in service.dead_letters() if letter["code"] == "unknown_type"} == {
        stranger["id"],
        "other",
    }


def test_a_body_that_postgresql_cannot_hold_is_kept_with_escapes(service: Service):
    service.send("progress", "no \x00 json \ud800")
    assert [letter["body"] for letter in service.dead_letters()] == ["no \\u0000 json \\ud800"]


TIME = "expected a time such as 2026-01-31T09:30:00Z"


@pytest.mark.parametrize(
    ("path", "value", "code", "reason"),
    [
        ("specversion", ..., "invalid", "#/specversion: required"),
        ("specversion", "0.3", "invalid", "#/specversion: expected 1.0"),
        ("specversion", 1.0, "invalid", "#/specversion: expected 1.0"),
        ("id", ..., "invalid", "#/id: required"),
        ("id", "", "invalid", "#/id:"),
        ("id", 7, "invalid", "#/id: expected a text"),
        ("id", "a\x00b", "invalid", "#/id: expected a text without U+0000"),
        ("id", "a\ud800b", "invalid", "#/id: expected a"),
        ("source", ..., "invalid", "#/source: required"),
        ("source", "", "invalid", "#/source:"),
        ("source", None, "invalid", "#/source: expected a text"),
        ("type", ..., "invalid", "#/type: required"),
        ("type", ["lesson.progressed"], "invalid", "#/type: expected a text"),
        ("type", "lesson.viewed", "unknown_type", "lesson.progressed"),
        ("type", "LESSON.PROGRESSED", "unknown_type", "lesson.progressed"),
        ("type", "enrollment.requested", "unknown_type", "lesson.progressed"),
        ("time", ..., "invalid", "#/time: required"),
        ("time", None, "invalid", f"#/time: {TIME}"),
        ("time", "yesterday", "invalid", f"#/time: {TIME}"),
        ("time", 1_769_851_800, "invalid", f"#/time: {TIME}"),
        ("time", "1769851800", "invalid", f"#/time: {TIME}"),
        ("time", "2026-01-31", "invalid", f"#/time: {TIME}"),
        ("time", "2026-01-31T09:30:00", "invalid", "#/time: expected a time with its offset"),
        ("time", "2026-02-30T09:30:00Z", "invalid", "#/time:"),
        ("time", "0001-01-01T00:00:00+14:00", "invalid", "#/time: expected a time"),
        ("time", "9999-12-31T23:59:59-14:00", "invalid", "#/time: expected a time"),
        ("data", ..., "invalid", "#/data: required"),
        ("data", None, "invalid", "#/data: expected an object"),
        ("data", "text", "invalid", "#/data: expected an object"),
        ("data", [], "invalid", "#/data: expected an object"),
        ("data/user_id", ..., "invalid", "#/data/user_id: required"),
        ("data/user_id", "me", "invalid", "#/data/user_id: expected a UUID"),
        ("data/user_id", 1, "invalid", "#/data/user_id: expected a UUID"),
        ("data/course_version_id", {}, "invalid", "#/data/course_version_id: expected a UUID"),
        ("data/lesson_id", "", "invalid", "#/data/lesson_id: expected a UUID"),
        ("data/progress_percentage", "50", "invalid", "#/data/progress_percentage: expected a number"),
        ("data/progress_percentage", True, "invalid", "#/data/progress_percentage: expected a number"),
        ("data/progress_percentage", 100.5, "invalid", "#/data/progress_percentage: expected"),
        ("data/progress_percentage", -1, "invalid", "#/data/progress_percentage: expected"),
        ("data/progress_percentage", 10**400, "invalid", "#/data/progress_percentage: expected"),
        ("data/status", "completed", "invalid", "#/data: expected progress_percentage 100 with status completed"),
        ("data/status", "not_started", "invalid", "#/data/status: expected"),
        ("data/lesson_id", str(uuid4()), "lesson_not_found", "no such lesson"),
    ],
)
def test_a_wrong_event_goes_alone_with_its_reason_and_its_neighbours_take_effect(
    newcomer: Known, path: str, value: Any, code: str, reason: str
):
    known = newcomer
    alone = json.dumps(changed(known.progressed(), path, value))
    in_array = json.dumps(changed(known.progressed(), path, value), indent=1)
    array = f"[{json.dumps(known.progressed(1))}, {in_array}\n,\t{json.dumps(known.progressed(2))}]"
    known.service.send("progress", known.progressed(0, 10), alone, array)
    assert known.progress() == [10, 50, 50]
    letters = known.service.dead_letters()
    assert sorted(letter["body"] for letter in letters) == sorted([alone, in_array])
    for letter in letters:
        assert (letter["queue"], letter["code"], letter["tries"], letter["sent_at"]) == ("progress", code, 1, None)
        assert reason in letter["reason"]


def test_a_reason_never_repeats_what_may_be_personal(known: Known):
    wrong = changed(known.progressed(), "data/user_id", "ada.lovelace@example.org")
    known.service.send("progress", wrong, changed(known.progressed(), "time", "born 1815"))
    reasons = " ".join(letter["reason"] for letter in known.service.dead_letters())
    assert "#/data/user_id" in reasons
    assert "#/time" in reasons
    assert "lovelace" not in reasons
    assert "1815" not in reasons


def test_what_an_event_says_beyond_what_is_known_is_ignored(known: Known):
    deep = "[" * 5_000 + "]" * 5_000
    extended = json.dumps(known.progressed(0, 20))[:-1] + f', "extension": {deep}, "datacontenttype": "application/json"}}'
    known.service.send("progress", f"[{extended}]", known.progressed(1) | {"subject": None})
    assert known.progress() == [20, 50, None]
    assert apart(known.service) == []


@pytest.mark.parametrize("queue", ["progress", "quiz", "catalog"])
def test_a_dead_letter_out_of_an_array_is_that_event_to_the_letter(known: Known, queue: str):
    bodies = [
        '{"specversion":"1.0","type":"unknown","n":[1.10,12345678901234567890.5,1E400,-0.0,1e-7,100000000000000000000000]}',
        '{ "type" :\n"unknown", "text": "\\u00e9é \\ud83d\\ude00 😀 \\/ \\" ] , [ }" , "twice": 1, "twice": 2 }',
        '{"type":"unknown","a\\u0000b":"\\ud800"}',
    ]
    known.service.send(queue, " [ " + " , ".join(bodies) + "\n] ", "[]", "[ \n ]")
    assert sorted(letter["body"] for letter in known.service.dead_letters()) == sorted(bodies)


def test_a_thousand_events_are_one_message(known: Known):
    events = [known.progressed(n % 3, n % 90) for n in range(999)]
    known.service.send("progress", [*events[:500], {"type": "lesson.viewed"}, *events[500:]])
    assert known.progress() == [87, 88, 89]
    assert [json.loads(letter["body"]) for letter in known.service.dead_letters()] == [{"type": "lesson.viewed"}]


def test_control_characters_in_a_field_name_do_not_reach_the_attribute_that_holds_the_reason(known: Known):
    ids = known.data()
    answers = {"tab\t\x01": {"deep": ["\x00"]}, "nul\x00": "a", "half\ud800": "a"}
    data = {"attempt_id": str(uuid4()), "quiz_id": known.version["quizzes"][0]["quiz_id"], "answers": answers}
    known.service.send("quiz", event("quiz.submitted", ids | data))
    (letter,) = known.service.dead_letters()
    assert letter["code"] == "invalid"
    assert "#/data/answers/tab" in letter["reason"]
    assert letter["reason"].isprintable()


# -------------------------------------------------------------------------------------------------------- what may wait


def test_an_event_for_an_unknown_enrolment_waits_alone_until_the_enrolment_is_there(known: Known):
    stranger = uuid4()
    early = known.progressed(data=known.data(0, 70, user_id=str(stranger)))
    sent_at = datetime.now(UTC)
    known.service.send("progress", [known.progressed(0), early, known.progressed(1)])
    assert known.progress() == [50, 50, None]
    (waiting,) = apart(known.service)
    assert (waiting["destination"], waiting["queue"], waiting["code"], waiting["tries"]) == (
        "queue",
        "progress",
        "enrollment_not_found",
        1,
    )
    assert json.loads(waiting["body"]) == early
    assert sent_at <= waiting["waiting_since"] <= waiting["available_at"] - timedelta(seconds=1)

    work(known.service, "progress", as_sent(waiting))
    (again,) = apart(known.service)
    assert (again["destination"], again["tries"], again["waiting_since"]) == ("queue", 2, waiting["waiting_since"])
    assert timedelta(seconds=1) < again["available_at"] - datetime.now(UTC) <= timedelta(seconds=2)

    known.service.send("enrollment", enroll(known.version, stranger))
    work(known.service, "progress", as_sent(again))
    assert known.service.rows("SELECT progress_percentage AS p FROM lesson_progress WHERE user_id = %s", stranger) == [{"p": 70}]
    assert len(apart(known.service)) == 1


def test_waiting_ends_as_a_dead_letter_when_patience_is_over(known: Known):
    early = json.dumps(known.progressed(data=known.data(user_id=str(uuid4()))))
    almost = datetime.now(UTC) - timedelta(seconds=19)
    work(known.service, "progress", record(early, {"tries": "4", "waiting_since": almost.isoformat()}))
    (waiting,) = apart(known.service)
    assert (waiting["destination"], waiting["tries"], waiting["waiting_since"]) == ("queue", 5, almost)
    assert waiting["available_at"] == almost + timedelta(seconds=20)

    over = almost - timedelta(seconds=1)
    work(known.service, "progress", as_sent(waiting | {"waiting_since": over}))
    (letter,) = apart(known.service)
    assert (letter["destination"], letter["code"], letter["tries"]) == ("dead_letter_queue", "enrollment_not_found", 6)
    assert letter["body"] == early
    assert letter["available_at"] <= datetime.now(UTC)


@pytest.mark.parametrize("queue", ["enrollment", "progress", "quiz"])
def test_an_unknown_course_version_is_waited_for(known: Known, queue: str):
    later = course(lessons=1, quizzes=[quiz()])
    ids = {"user_id": str(LEARNER), "course_version_id": later["course_version_id"]}
    events = {
        "enrollment": event("enrollment.requested", ids),
        "progress": event("lesson.progressed", ids | {"lesson_id": later["lessons"][0]["lesson_id"], "status": "completed"}),
        "quiz": event(
            "quiz.submitted",
            ids | {"attempt_id": str(uuid4()), "quiz_id": later["quizzes"][0]["quiz_id"], "answers": {"q1": "a", "q2": 0.1}},
        ),
    }
    known.service.send(queue, events[queue])
    (waiting,) = apart(known.service)
    expected = "enrollment_not_found" if queue == "progress" else "course_version_not_found"
    assert (waiting["destination"], waiting["code"]) == ("queue", expected)

    known.service.send("catalog", event("course_version.published", later))
    if queue != "enrollment":
        known.service.send("enrollment", event("enrollment.requested", ids))
    work(known.service, queue, as_sent(waiting))
    taken = {
        "enrollment": "SELECT 1 FROM enrollments WHERE course_version_id = %s",
        "progress": "SELECT 1 FROM lesson_progress WHERE enrolled_course_version_id = %s",
        "quiz": "SELECT 1 FROM quiz_attempts WHERE enrolled_course_version_id = %s",
    }
    assert len(known.service.rows(taken[queue], later["course_version_id"])) == 1
    assert known.service.dead_letters() == []


@pytest.mark.parametrize("command", ["cancelled", "revoked", "reinstated"])
def test_a_command_on_an_unknown_enrolment_waits_among_others(known: Known, command: str):
    other = uuid4()
    ids = {"user_id": str(uuid4()), "course_version_id": known.version["course_version_id"]}
    known.service.send("enrollment", [event(f"enrollment.{command}", ids), enroll(known.version, other)])
    (waiting,) = apart(known.service)
    assert (waiting["destination"], waiting["code"]) == ("queue", "enrollment_not_found")
    assert len(known.service.rows("SELECT 1 FROM enrollments WHERE user_id = %s AND status = 'active'", other)) == 1


def test_an_unknown_lesson_or_quiz_of_a_known_version_is_not_waited_for(known: Known):
    # Even when the enrolment is unknown too, waiting for it would be in vain.
    ids = known.data() | {"user_id": str(uuid4())}
    lesson = event("lesson.progressed", ids | {"lesson_id": str(uuid4())})
    attempt = event("quiz.submitted", ids | {"attempt_id": str(uuid4()), "quiz_id": str(uuid4()), "answers": {}})
    known.service.send("progress", [known.progressed(0), lesson])
    known.service.send("quiz", attempt)
    assert known.progress() == [50, None, None]
    assert [(row["destination"], row["code"], json.loads(row["body"])) for row in apart(known.service)] == [
        ("dead_letter_queue", "lesson_not_found", lesson),
        ("dead_letter_queue", "quiz_not_found", attempt),
    ]


# ---------------------------------------------------------------------------------------------------------- repetitions


@pytest.mark.parametrize("kind", ["unreadable", "invalid", "unknown type", "refused", "waiting"])
def test_a_record_delivered_twice_is_set_apart_once(known: Known, kind: str):
    bad = {
        "unreadable": "no json",
        "invalid": json.dumps(changed(known.progressed(), "time", "yesterday")),
        "unknown type": json.dumps(known.progressed(type="lesson.viewed")),
        "refused": json.dumps(known.progressed(data=known.data(lesson_id=str(uuid4())))),
        "waiting": json.dumps(known.progressed(data=known.data(user_id=str(uuid4())))),
    }[kind]
    same = record(bad)
    array = record(f"[{json.dumps(known.progressed())},{bad}]") if kind != "unreadable" else record("[no json]")
    for _ in range(2):
        work(known.service, "progress", same, array)
    # The same event alone and in an array is one event; two unreadable bodies may be anything.
    assert len(apart(known.service)) == (2 if kind == "unreadable" else 1)
    known.service.rows("UPDATE outbox SET sent_at = now()")
    work(known.service, "progress", same)
    assert [row["sent_at"] for row in apart(known.service) if row["sent_at"] is None] == []


@pytest.mark.parametrize("path", ["time", "data/lesson_id", "type"])
def test_the_same_bad_event_in_a_second_message_is_set_apart_once(known: Known, path: str):
    bad = changed(known.progressed(), path, str(uuid4()))
    known.service.send("progress", bad)
    known.service.send("progress", bad, bad)
    assert len(known.service.dead_letters()) == 1
    known.service.send("progress", bad | {"id": str(uuid4())})
    assert len(known.service.dead_letters()) == 2


def test_the_same_id_with_another_body_is_another_dead_letter(known: Known):
    bad = known.progressed(data=known.data(lesson_id=str(uuid4())))
    known.service.send("progress", bad, bad | {"data": known.data(lesson_id=str(uuid4()))})
    assert len(known.service.dead_letters()) == 2


@pytest.mark.parametrize("first_comes_first", [True, False])
def test_a_later_try_counts_though_the_first_delivery_comes_again_beside_it(known: Known, first_comes_first: bool):
    early = json.dumps(known.progressed(data=known.data(user_id=str(uuid4()))))
    first = record(early)
    work(known.service, "progress", first)
    (waiting,) = apart(known.service)
    known.service.rows("UPDATE outbox SET sent_at = now() WHERE body IS NOT NULL")
    both = [first, as_sent(waiting)]
    work(known.service, "progress", *(both if first_comes_first else reversed(both)))
    (again,) = apart(known.service)
    assert (again["tries"], again["sent_at"]) == (2, None)


def test_the_first_delivery_that_comes_again_late_does_not_set_the_tries_back(known: Known):
    early = json.dumps(known.progressed(data=known.data(user_id=str(uuid4()))))
    first = record(early)
    work(known.service, "progress", first)
    (waiting,) = apart(known.service)
    work(known.service, "progress", as_sent(waiting))
    work(known.service, "progress", first)
    (again,) = apart(known.service)
    assert (again["tries"], again["waiting_since"]) == (2, waiting["waiting_since"])


def test_a_redriven_dead_letter_comes_up_again_while_it_is_bad_and_is_taken_once_it_can_be(known: Known):
    known.service.rows("ALTER TABLE lesson_progress ADD CONSTRAINT not_yet CHECK (progress_percentage <> 33)")
    bad = known.progressed(0, 33)
    known.service.send("progress", bad)
    (letter,) = known.service.dead_letters()
    known.service.rows("UPDATE outbox SET sent_at = now() WHERE id = %s", letter["id"])

    work(known.service, "progress", as_sent(letter))
    (again,) = known.service.dead_letters()
    assert (again["tries"], again["sent_at"], again["body"], again["code"]) == (2, None, letter["body"], "database_refused")

    known.service.rows("ALTER TABLE lesson_progress DROP CONSTRAINT not_yet")
    known.service.rows("UPDATE outbox SET sent_at = now() WHERE id = %s", letter["id"])
    work(known.service, "progress", as_sent(again))
    assert known.progress() == [33, None, None]
    assert [row["tries"] for row in known.service.dead_letters()] == [2]


def test_a_redriven_unreadable_body_comes_up_again(known: Known):
    known.service.send("progress", "no json")
    (letter,) = known.service.dead_letters()
    known.service.rows("UPDATE outbox SET sent_at = now()")
    work(known.service, "progress", as_sent(letter))
    unsent = [row for row in known.service.dead_letters() if row["sent_at"] is None]
    assert [(row["body"], row["tries"]) for row in unsent] == [("no json", 2)]


@pytest.mark.parametrize(
    "attributes",
    [
        {"tries": {"stringValue": "many", "dataType": "String"}},
        {"tries": {"stringValue": "-3", "dataType": "Number"}},
        {"tries": {"stringValue": "99999999999", "dataType": "Number"}},
        {"tries": {"binaryValue": "AA==", "dataType": "Binary"}},
        {"waiting_since": {"stringValue": "2026-01-31", "dataType": "String"}},
        {"waiting_since": {"stringValue": "2026-01-31T09:30:00", "dataType": "String"}},
        {"waiting_since": {"stringValue": "9999-12-31T00:00:00Z", "dataType": "String"}},
        {"traceparent": {"stringValue": "00-1-2-03", "dataType": "String"}},
    ],
    ids=str,
)
def test_attributes_that_the_relay_did_not_write_neither_stop_a_batch_nor_make_an_event_wait_longer(
    known: Known, attributes: dict[str, Any]
):
    early = record(json.dumps(known.progressed(data=known.data(user_id=str(uuid4())))))
    early["messageAttributes"] = attributes
    work(known.service, "progress", record(json.dumps(known.progressed())), early)
    assert known.progress() == [50, None, None]
    (waiting,) = apart(known.service)
    assert (waiting["destination"], waiting["tries"]) == ("queue", 1)
    assert waiting["waiting_since"] <= datetime.now(UTC)
    assert waiting["available_at"] <= datetime.now(UTC) + timedelta(seconds=1)


# ------------------------------------------------------------------------------------------------------------- envelope


def test_an_event_is_taken_bare_and_in_the_envelope_of_eventbridge(service: Service):
    version = course(lessons=1)
    service.send("catalog", event("course_version.published", version))
    learners = [uuid4() for _ in range(3)]
    for learner in learners:
        ids = {"user_id": str(learner), "course_version_id": version["course_version_id"]}
        service.send("catalog", event("learner.updated", {"user_id": str(learner), "name": "Ada Lovelace"}))
        service.send("enrollment", event("enrollment.requested", ids))
        lesson_id = version["lessons"][0]["lesson_id"]
        service.send("progress", event("lesson.progressed", ids | {"lesson_id": lesson_id, "status": "completed"}))
    details = [event("enrollment.completed", completed["data"]) for completed in service.published("enrollment.completed")]
    assert len(details) == 3

    def envelope(detail: Any) -> dict[str, Any]:
        about = {"version": "0", "id": str(uuid4()), "account": "123456789012", "region": "eu-west-1", "resources": []}
        return about | {"source": "learner-progress", "detail-type": "enrollment.completed", "detail": detail}

    wrong = [envelope("text"), envelope(None), envelope(changed(details[0], "data/user_id", "x"))]
    service.send("certificate", details[0], envelope(details[1]), *wrong, [envelope(details[2])])
    assert {row["user_id"] for row in service.rows("SELECT user_id FROM certificates")} == set(learners)
    assert sorted(letter["body"] for letter in service.dead_letters()) == sorted(json.dumps(body) for body in wrong)
    assert sorted(letter["reason"] for letter in service.dead_letters()) == [
        "#/data/user_id: expected a UUID",
        "#: expected a CloudEvents event: an object",
        "#: expected a CloudEvents event: an object",
    ]


# ------------------------------------------------------------------------------------------------------- the database


@contextmanager
def closed_database(server_url: str, database_url: str) -> Generator[None]:
    """Keep everyone out of the database, those who are connected too."""
    name = sql.Identifier(urlsplit(database_url).path.removeprefix("/"))
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        conn.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name.as_string()[1:-1]])
        yield
        conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
    # A pooler takes a moment to notice, and turns away who comes before.
    deadline = time.monotonic() + 10
    while True:
        try:
            with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
                conn.execute("SELECT 1")
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("unreadable_only", [False, True])
def test_nothing_is_acknowledged_while_the_database_is_down(
    known: Known, server_url: str, database_url: str, unreadable_only: bool
):
    records = [record("no json")] + [record(json.dumps(known.progressed(n))) for n in range(3) if not unreadable_only]
    with closed_database(server_url, database_url), pytest.raises(Unavailable):
        known.service.invoke("progress_worker", {"Records": records})
    assert known.progress() == [None] * 3
    assert known.service.dead_letters() == []

    work(known.service, "progress", *records)
    assert known.progress() == [None if unreadable_only else 50] * 3
    assert [letter["body"] for letter in known.service.dead_letters()] == ["no json"]


def test_a_connection_that_broke_between_two_invocations_is_replaced(known: Known, server_url: str, database_url: str):
    known.service.send("progress", known.progressed(0))
    with closed_database(server_url, database_url):
        pass
    known.service.send("progress", known.progressed(1), "no json")
    assert known.progress() == [50, 50, None]
    assert len(known.service.dead_letters()) == 1


def test_of_a_batch_that_the_database_refuses_only_the_culprits_go(known: Known):
    known.service.rows("ALTER TABLE lesson_progress ADD CONSTRAINT no_thirteen CHECK (progress_percentage <> 13)")
    learners = [uuid4() for _ in range(20)]
    known.service.send("enrollment", [enroll(known.version, learner) for learner in learners])
    events = [
        known.progressed(data=known.data(n % 3, 13 if n in (0, 7, 8) else 40, user_id=str(learner)))
        for n, learner in enumerate(learners)
    ]
    known.service.send("progress", events[:5], events[5], *events[6:9], events[9:])
    letters = known.service.dead_letters()
    assert sorted(letter["body"] for letter in letters) == sorted(json.dumps(events[n]) for n in (0, 7, 8))
    assert {(letter["code"], letter["reason"]) for letter in letters} == {
        ("database_refused", "The database refused it: no_thirteen.")
    }
    taken = known.service.rows("SELECT user_id FROM lesson_progress WHERE progress_percentage = 40")
    assert {row["user_id"] for row in taken} == {learner for n, learner in enumerate(learners) if n not in (0, 7, 8)}


@pytest.mark.parametrize("queue", ["enrollment", "quiz", "catalog", "certificate"])
def test_every_worker_singles_out_what_the_database_refuses(known: Known, queue: str):
    service, version = known.service, known.version
    learners = [uuid4() for _ in range(5)]
    unlucky = learners[3]
    ids = [{"user_id": str(learner), "course_version_id": version["course_version_id"]} for learner in learners]
    if queue != "enrollment":
        service.send("enrollment", [event("enrollment.requested", i) for i in ids])
    if queue == "certificate":
        service.send("catalog", [event("learner.updated", {"user_id": i["user_id"], "name": "Ada Lovelace"}) for i in ids])
        service.rows("UPDATE enrollments SET status = 'completed', completed_at = now()")
    table = {"enrollment": "enrollments", "quiz": "quiz_attempts", "catalog": "learners", "certificate": "certificates"}[queue]
    service.rows(
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT unlucky CHECK (user_id <> {})").format(sql.Identifier(table), str(unlucky))
    )
    quiz_id = version["quizzes"][0]["quiz_id"]
    events = {
        "enrollment": [event("enrollment.requested", i) for i in ids],
        "quiz": [event("quiz.submitted", i | {"attempt_id": str(uuid4()), "quiz_id": quiz_id, "answers": {}}) for i in ids],
        "catalog": [event("learner.updated", {"user_id": i["user_id"], "name": "Ada Lovelace"}) for i in ids],
        "certificate": [event("enrollment.completed", i) for i in ids],
    }[queue]
    service.send(queue, events[:4], events[4])
    assert [(letter["code"], letter["reason"], json.loads(letter["body"])) for letter in service.dead_letters()] == [
        ("database_refused", "The database refused it: unlucky.", events[3])
    ]
    rows = service.rows(sql.SQL("SELECT user_id FROM {} WHERE user_id <> %s").format(sql.Identifier(table)), LEARNER)
    assert {row["user_id"] for row in rows} == {*learners} - {unlucky}


# ------------------------------------------------------------------------------------------------------------ catalogue


def test_a_course_version_published_twice_is_fine_and_another_body_under_its_id_is_refused(service: Service):
    version = course(lessons=2, quizzes=[quiz()])
    other = version | {"title": "Antisocial science"}
    same = json.dumps(version, sort_keys=True).replace('"points": 3', '"points": 3.0')
    first, second, third = (event("course_version.published", body) for body in (version, json.loads(same), other))
    service.send("catalog", [first, second, third], event("course_version.published", course()))
    service.send("catalog", first, second, third | {"id": "again"})
    letters = service.dead_letters()
    assert [letter["code"] for letter in letters] == ["course_version_changed"] * 2
    assert [json.loads(letter["body"])["data"] for letter in letters] == [other, other]
    titles = service.rows("SELECT title FROM course_versions WHERE course_version_id = %s", version["course_version_id"])
    assert titles == [{"title": "Social science"}]
    assert service.rows("SELECT count(*)::int AS n FROM course_version_lessons GROUP BY course_version_id") == [{"n": 2}] * 2


@pytest.mark.parametrize("differs", [False, True])
def test_of_two_publications_at_once_one_counts(service: Service, differs: bool):
    versions = [course(lessons=3, quizzes=[quiz()]) for _ in range(8)]
    events = [
        [event("course_version.published", version | ({"title": f"By {n}"} if differs else {})) for version in versions]
        for n in range(2)
    ]
    together = threading.Barrier(2)

    def publish(mine: list[dict[str, Any]]) -> None:
        for one in mine:
            together.wait(timeout=30)
            service.send("catalog", one)
        db.close()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(publish, events))
    assert service.rows("SELECT count(*)::int AS n FROM course_versions") == [{"n": 8}]
    assert service.rows("SELECT count(*)::int AS n FROM course_version_lessons") == [{"n": 24}]
    assert service.rows("SELECT count(*)::int AS n FROM quiz_answer_keys") == [{"n": 8}]
    refused = {json.loads(letter["body"])["data"]["course_version_id"] for letter in service.dead_letters()}
    assert refused == ({version["course_version_id"] for version in versions} if differs else set())


def test_of_a_learners_names_the_latest_by_its_own_time_counts(service: Service):
    def updated(name: str, minute: int) -> dict[str, Any]:
        return event("learner.updated", {"user_id": str(LEARNER), "name": name}, f"2026-01-31T09:{minute:02}:00Z")

    service.send("catalog", [updated("Second", 2), updated("First", 1)])
    service.send("catalog", updated("Zeroth", 0))
    assert service.rows("SELECT name FROM learners") == [{"name": "Second"}]
    service.send("catalog", updated("Fourth", 4), updated("Third", 3))
    service.send("catalog", updated("Second", 2))
    assert service.rows("SELECT name FROM learners") == [{"name": "Fourth"}]
    assert apart(service) == []


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"user_id": str(LEARNER)}, "#/data/name: required"),
        ({"user_id": str(LEARNER), "name": "  "}, "#/data/name:"),
        ({"user_id": str(LEARNER), "name": "A\x00da"}, "#/data/name: expected a text without U+0000"),
        ({"user_id": str(LEARNER), "name": 5}, "#/data/name: expected a text"),
        ({"name": "Ada Lovelace"}, "#/data/user_id: required"),
    ],
)
def test_a_learner_without_a_proper_name_is_refused_with_the_place(service: Service, data: dict[str, Any], place: str):
    service.send("catalog", [event("learner.updated", data), event("learner.updated", {"user_id": str(uuid4()), "name": "Bo"})])
    (letter,) = service.dead_letters()
    assert letter["code"] == "invalid"
    assert place in letter["reason"]
    assert service.rows("SELECT name FROM learners") == [{"name": "Bo"}]


# ------------------------------------------------------------------------------------------------------------- commands


def test_a_request_after_a_revocation_is_a_dead_letter_and_a_late_cancellation_is_not(known: Known):
    ids = known.data()
    known.service.send("enrollment", event("enrollment.revoked", ids | {"reason": "Fraud"}))
    again, cancelled = event("enrollment.requested", ids), event("enrollment.cancelled", ids)
    other = uuid4()
    known.service.send("enrollment", [again, cancelled, enroll(known.version, other)])
    assert [(letter["code"], json.loads(letter["body"])) for letter in known.service.dead_letters()] == [
        ("already_revoked", again)
    ]
    statuses = {row["user_id"]: row["status"] for row in known.service.rows("SELECT user_id, status FROM enrollments")}
    assert statuses == {LEARNER: "revoked_by_admin", other: "active"}


def test_a_command_from_the_future_is_refused_and_progress_from_the_future_counts_as_of_now(known: Known):
    future = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    known.service.send("enrollment", event("enrollment.cancelled", known.data(), future))
    assert [letter["code"] for letter in known.service.dead_letters()] == ["future_command"]
    known.service.send("progress", known.progressed(0, 100, time=future))
    (row,) = known.service.rows("SELECT started_at, last_accessed_at, completed_at FROM lesson_progress")
    assert all(time <= datetime.now(UTC) for time in row.values())
