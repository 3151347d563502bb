"""Commands on enrolments: the whole table of states, their order by time, and what they leave behind."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import db
from tests.support.service import ADMIN, Service, at_once, course, event, quiz

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def at(minute: float) -> str:
    """A time in the past, in minutes from `START`."""
    return (START + timedelta(minutes=minute)).isoformat().replace("+00:00", "Z")


def moment(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


@dataclass(frozen=True)
class Learner:
    """A learner and a course version, with all that can happen between the two."""

    service: Service
    user_id: str
    course_version_id: str
    lesson_ids: tuple[str, ...]

    @property
    def about(self) -> dict[str, str]:
        return {"user_id": self.user_id, "course_version_id": self.course_version_id}

    def command(self, kind: str, time: str | None = None, **data: Any) -> dict[str, Any]:
        return event(f"enrollment.{kind}", self.about | data, time)

    def learned(self, time: str, percentage: float = 100, lesson: int = 0) -> dict[str, Any]:
        data = self.about | {"lesson_id": self.lesson_ids[lesson], "progress_percentage": percentage}
        return event("lesson.progressed", data, time)

    def path(self, action: str = "") -> str:
        return f"/users/{self.user_id}/enrollments/{self.course_version_id}{action}"

    def row(self) -> dict[str, Any] | None:
        rows = self.service.rows(
            "SELECT * FROM enrollments WHERE user_id = %s AND course_version_id = %s", self.user_id, self.course_version_id
        )
        return rows[0] if rows else None

    def status(self) -> str | None:
        row = self.row()
        return row["status"] if row else None

    def history(self) -> list[tuple[str | None, str]]:
        """From which status to which, in order; checks on the way that history, events and numbering agree."""
        rows = self.service.rows(
            """
            SELECT * FROM enrollment_history WHERE user_id = %s AND course_version_id = %s AND sequence IS NOT NULL
            ORDER BY sequence
            """,
            self.user_id,
            self.course_version_id,
        )
        published = [e for e in self.service.published() if e["data"]["user_id"] == self.user_id]
        published = [e for e in published if e["data"]["course_version_id"] == self.course_version_id]
        row = self.row()
        assert [e["data"]["sequence"] for e in published] == list(range(1, (row["sequence"] if row else 0) + 1))
        changes = {e["data"]["sequence"]: e for e in published if e["type"].startswith("enrollment.")}
        assert list(changes) == [r["sequence"] for r in rows]
        for before, after in itertools.pairwise([None, *rows]):
            assert after is not None
            assert after["from_status"] == (before["to_status"] if before else None)
            told = changes[after["sequence"]]
            assert told["data"]["status"] == after["to_status"]
            assert told["data"].get("reason") == after["reason"]
        assert (rows[-1]["to_status"] if rows else None) == (row["status"] if row else None)
        return [(r["from_status"], r["to_status"]) for r in rows]

    def events(self) -> list[str]:
        return [e["type"] for e in self.service.published() if e["data"]["user_id"] == self.user_id]

    def apart(self) -> dict[str, tuple[str, str]]:
        """Where messages that were not taken went and why, by their ids."""
        rows = self.service.rows("SELECT body, destination, code FROM outbox WHERE body IS NOT NULL")
        return {json.loads(r["body"])["id"]: (r["destination"], r["code"]) for r in rows if self.user_id in r["body"]}


@pytest.fixture
def learner(service: Service) -> Learner:
    return a_learner(service, published(service))


def published(service: Service, **fields: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"lessons": 1} | fields
    version = course(**options)
    service.send("catalog", event("course_version.published", version))
    return version


def a_learner(service: Service, version: dict[str, Any]) -> Learner:
    return Learner(service, str(uuid4()), version["course_version_id"], tuple(x["lesson_id"] for x in version["lessons"]))


# The table of states

#: How an enrolment comes to a state, in minutes 1 to 4.
WAYS: dict[str, list[tuple[str, str]]] = {
    "none": [],
    "active": [("enrollment", "requested")],
    "cancelled_by_user": [("enrollment", "requested"), ("enrollment", "cancelled")],
    "completed": [("enrollment", "requested"), ("progress", "learned")],
    "revoked_by_admin": [("enrollment", "requested"), ("enrollment", "revoked")],
    "revoked_by_admin after cancelled_by_user": [
        ("enrollment", "requested"),
        ("enrollment", "cancelled"),
        ("enrollment", "revoked"),
    ],
    "revoked_by_admin after completed": [("enrollment", "requested"), ("progress", "learned"), ("enrollment", "revoked")],
}
ACTIONS = {"cancelled": "/cancel", "revoked": "/revoke", "reinstated": "/reinstate", "requested": ""}

#: from → command → HTTP status, what becomes of the message (taken, waits, or a dead letter), and the status afterwards.
#: Straight from the contract's table.
TABLE: dict[str, dict[str, tuple[int, str, str | None]]] = {
    "none": {
        "cancelled": (404, "waits", None),
        "revoked": (404, "waits", None),
        "reinstated": (404, "waits", None),
        "requested": (201, "taken", "active"),
    },
    "active": {
        "cancelled": (200, "taken", "cancelled_by_user"),
        "revoked": (200, "taken", "revoked_by_admin"),
        "reinstated": (409, "waits", "active"),
        "requested": (200, "taken", "active"),
    },
    "cancelled_by_user": {
        "cancelled": (200, "taken", "cancelled_by_user"),
        "revoked": (200, "taken", "revoked_by_admin"),
        "reinstated": (409, "waits", "cancelled_by_user"),
        "requested": (200, "taken", "active"),
    },
    "completed": {
        "cancelled": (409, "taken", "completed"),
        "revoked": (200, "taken", "revoked_by_admin"),
        "reinstated": (409, "waits", "completed"),
        "requested": (200, "taken", "completed"),
    },
    **{
        f"revoked_by_admin{after}": {
            "cancelled": (409, "taken", "revoked_by_admin"),
            "revoked": (200, "taken", "revoked_by_admin"),
            "reinstated": (200, "taken", "completed" if after == " after completed" else "active"),
            "requested": (409, "dead letter", "revoked_by_admin"),
        }
        for after in ("", " after cancelled_by_user", " after completed")
    },
}
EVENTS = {
    (None, "active"): "enrollment.created",
    ("cancelled_by_user", "active"): "enrollment.reactivated",
    ("revoked_by_admin", "active"): "enrollment.reinstated",
    ("revoked_by_admin", "completed"): "enrollment.reinstated",
    ("active", "cancelled_by_user"): "enrollment.cancelled",
}


def bring_to(learner: Learner, state: str) -> None:
    for minute, (queue, kind) in enumerate(WAYS[state], 1):
        message = learner.learned(at(minute)) if kind == "learned" else learner.command(kind, at(minute))
        learner.service.send(queue, message)
    assert (learner.status() or "none") == state.split(" ")[0]


@pytest.mark.parametrize("state", TABLE)
def test_each_command_does_to_each_state_what_the_table_says(service: Service, state: str, subtests: pytest.Subtests):
    version = published(service)
    for kind, (http_status, fate, after) in TABLE[state].items():
        for via in ("http", "queue"):
            with subtests.test(command=kind, via=via):
                learner = a_learner(service, version)
                bring_to(learner, state)
                before, history_before = learner.row(), learner.history()
                if via == "http":
                    body = {"reason": "because"} if kind in ("revoked", "reinstated") else None
                    method = "PUT" if kind == "requested" else "POST"
                    answer = service.admin(method, learner.path(ACTIONS[kind]), body)
                    assert answer.status == http_status, answer.text
                    if http_status < 400:
                        assert answer.json["status"] == after
                    else:
                        assert answer.headers["content-type"] == "application/problem+json"
                    assert learner.apart() == {}
                else:
                    message = learner.command(kind, at(9), **({"reason": "because"} if kind != "requested" else {}))
                    service.send("enrollment", message)
                    apart = learner.apart().get(message["id"])
                    expected = {"taken": None, "waits": "queue", "dead letter": "dead_letter_queue"}[fate]
                    assert (apart and apart[0]) == expected
                    if apart:
                        code = "not_revoked" if kind == "reinstated" else "already_revoked"
                        assert apart[1] == ("enrollment_not_found" if state == "none" else code)
                row, history = learner.row(), learner.history()
                assert (row and row["status"]) == after
                if after == (before and before["status"]):
                    # What changes nothing leaves no trace in history or events.
                    assert history == history_before
                    assert (row and row["status_changed_at"]) == (before and before["status_changed_at"])
                else:
                    was = before["status"] if before else None
                    assert history == [*history_before, (was, after)]
                    assert learner.events()[-1] == EVENTS.get((was, after or ""), "enrollment.revoked")
                if before and row:
                    # A revoked enrolment keeps the time of its completion, and gets it back.
                    assert row["completed_at"] == before["completed_at"]
                    assert row["enrolled_at"] == before["enrolled_at"]


def test_progress_is_kept_over_cancellation_and_enrolling_again(service: Service):
    learner = a_learner(service, published(service, lessons=2))
    service.send("enrollment", learner.command("requested", at(1)))
    service.send("progress", learner.learned(at(2)), learner.learned(at(2), 30, lesson=1))
    assert service.admin("POST", learner.path("/cancel")).json["status"] == "cancelled_by_user"
    again = service.admin("PUT", learner.path())
    assert again.status == 200
    assert again.json["progress"]["lessons_completed"] == 1
    assert again.json["progress"]["progress_percentage"] == 50.0
    assert again.json["enrolled_at"] == at(1)


# What a command says and leaves behind


def test_history_and_events_tell_who_when_and_why(learner: Learner):
    service = learner.service
    service.send("enrollment", learner.command("requested", at(1), source_of_enrollment="hr-system"))
    service.http("POST", learner.path("/cancel"), {"reason": "no time"}, sub=UUID(learner.user_id))
    service.admin("POST", learner.path("/revoke"), {"reason": "  fraud\n"})
    service.admin("POST", learner.path("/reinstate"), {"reason": "was not"})
    service.send("enrollment", learner.command("cancelled", datetime.now(UTC).isoformat(), reason="left"))
    rows = service.rows("SELECT * FROM enrollment_history ORDER BY sequence")
    assert [(r["from_status"], r["to_status"], r["actor"], r["reason"], r["sequence"]) for r in rows] == [
        (None, "active", "tests", None, 1),
        ("active", "cancelled_by_user", learner.user_id, "no time", 2),
        ("cancelled_by_user", "revoked_by_admin", str(ADMIN), "fraud", 3),
        ("revoked_by_admin", "active", str(ADMIN), "was not", 4),
        ("active", "cancelled_by_user", "tests", "left", 5),
    ]
    assert rows[0]["occurred_at"] == moment(1)
    assert [r["occurred_at"] for r in rows] == sorted(r["occurred_at"] for r in rows)
    assert all(r["recorded_at"] > moment(0) for r in rows)
    published_events = service.published()
    assert [(e["type"], e["data"]) for e in published_events] == [
        (f"enrollment.{name}", learner.about | {"status": status, "sequence": n} | ({"reason": reason} if reason else {}))
        for n, (name, status, reason) in enumerate(
            [
                ("created", "active", None),
                ("cancelled", "cancelled_by_user", "no time"),
                ("revoked", "revoked_by_admin", "fraud"),
                ("reinstated", "active", "was not"),
                ("cancelled", "cancelled_by_user", "left"),
            ],
            1,
        )
    ]
    answer = service.admin("GET", learner.path()).json
    assert (answer["status"], answer["status_reason"], answer["source_of_enrollment"]) == (
        "cancelled_by_user",
        "left",
        "hr-system",
    )


def test_the_reason_of_a_former_status_is_gone_with_it(learner: Learner):
    service = learner.service
    service.send("enrollment", learner.command("requested", at(1)))
    assert service.admin("POST", learner.path("/cancel"), {"reason": "no time"}).json["status_reason"] == "no time"
    assert service.admin("PUT", learner.path()).json["status_reason"] is None


def test_only_an_administrator_says_where_an_enrolment_comes_from(service: Service):
    version = published(service)
    learner = a_learner(service, version)
    body = {"source_of_enrollment": "company_assignment"}
    refused = service.http("PUT", learner.path(), body, sub=UUID(learner.user_id))
    assert refused.status == 403, refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert learner.row() is None
    assert service.http("PUT", learner.path(), {"source_of_enrollment": None}, sub=UUID(learner.user_id)).status == 201
    other = a_learner(service, version)
    enrolled = service.admin("PUT", other.path(), body)
    assert (enrolled.status, enrolled.json["source_of_enrollment"]) == (201, "company_assignment")
    # As it was, also when said otherwise; a new source comes with enrolling again.
    assert (
        service.admin("PUT", other.path(), {"source_of_enrollment": "own"}).json["source_of_enrollment"] == "company_assignment"
    )
    service.admin("POST", other.path("/cancel"))
    assert service.admin("PUT", other.path(), {"source_of_enrollment": "own"}).json["source_of_enrollment"] == "own"
    service.admin("POST", other.path("/cancel"))
    assert service.admin("PUT", other.path()).json["source_of_enrollment"] == "own"


def test_where_learners_may_not_enrol_themselves_administrators_and_messages_do(service: Service):
    version = published(service, self_enrollment=False)
    learner, other = a_learner(service, version), a_learner(service, version)
    refused = service.http("PUT", learner.path(), sub=UUID(learner.user_id))
    assert refused.status == 403, refused.text
    assert learner.row() is None
    assert service.admin("PUT", learner.path()).status == 201
    service.send("enrollment", other.command("requested"))
    assert other.status() == "active"
    # They may leave, and are not let in again.
    assert service.http("POST", learner.path("/cancel"), sub=UUID(learner.user_id)).status == 200
    assert service.http("PUT", learner.path(), sub=UUID(learner.user_id)).status == 403
    assert learner.status() == "cancelled_by_user"


def test_an_unknown_course_version_is_404_over_http_and_waits_on_the_queue(service: Service):
    version = course(lessons=1)
    learner = a_learner(service, version)
    for answer in (service.admin("PUT", learner.path()), service.http("PUT", learner.path(), sub=UUID(learner.user_id))):
        assert answer.status == 404
        assert answer.json["type"].endswith(":course_version_not_found")
    message = learner.command("requested", at(1))
    service.send("enrollment", message)
    assert learner.apart() == {message["id"]: ("queue", "course_version_not_found")}
    service.send("catalog", event("course_version.published", version))
    service.deliver()
    assert learner.status() == "active"


def test_a_command_that_waits_takes_effect_once_there_is_an_enrolment(learner: Learner):
    learner.service.send("enrollment", learner.command("cancelled", at(2)), learner.command("revoked", at(3)))
    assert {destination for destination, _ in learner.apart().values()} == {"queue"}
    learner.service.send("enrollment", learner.command("requested", at(1)))
    learner.service.deliver()
    assert learner.status() == "revoked_by_admin"
    assert learner.service.dead_letters() == []


# Order by time


def test_an_older_command_changes_nothing(learner: Learner):
    service = learner.service
    service.send("enrollment", learner.command("requested", at(5)))
    for kind in ("cancelled", "revoked", "reinstated", "requested"):
        service.send("enrollment", learner.command(kind, at(4)))
        assert learner.status() == "active"
    assert learner.apart() == {}
    assert learner.history() == [(None, "active")]


def test_what_leads_to_the_same_state_counts_as_taken_too(learner: Learner):
    learner.service.send("enrollment", learner.command("requested", at(1)))
    learner.service.send("enrollment", learner.command("requested", at(5)))
    learner.service.send("enrollment", learner.command("cancelled", at(3)))
    assert learner.status() == "active"


def test_what_an_administrator_confirms_leaves_alone_what_the_learner_had_confirmed(learner: Learner):
    service = learner.service
    for kind, hour in [("requested", 1), ("requested", 9), ("revoked", 2), ("revoked", 3), ("cancelled", 4), ("reinstated", 5)]:
        service.send("enrollment", learner.command(kind, at(hour)))
    # Older than what the learner confirmed at nine, in whatever order the administrator's commands came.
    service.send("enrollment", learner.command("cancelled", at(6)))
    assert learner.status() == "active"


def test_what_was_refused_does_not_count_as_taken(learner: Learner):
    service = learner.service
    service.send("enrollment", learner.command("requested", at(1)))
    service.send("enrollment", learner.command("reinstated", at(5)))
    service.send("enrollment", learner.command("cancelled", at(3)))
    assert learner.status() == "cancelled_by_user"


@pytest.mark.parametrize("one_batch", [True, False], ids=["in one batch", "one after the other"])
def test_at_equal_times_the_last_of_requested_cancelled_reinstated_revoked_wins(service: Service, one_batch: bool):
    version = published(service)
    kinds = ["requested", "cancelled", "reinstated", "revoked"]
    # A reinstatement has an effect on a revoked enrolment only, and one at the same moment is older than that.
    for first, second in itertools.permutations(["requested", "cancelled", "revoked"], 2):
        learner = a_learner(service, version)
        service.send("enrollment", learner.command("requested", at(0)))
        messages = [learner.command(first, at(5)), learner.command(second, at(5))]
        if one_batch:
            service.send("enrollment", messages)
        else:
            service.send("enrollment", messages[0])
            service.send("enrollment", messages[1])
        winner = max(first, second, key=kinds.index)
        assert learner.status() == {"cancelled": "cancelled_by_user", "revoked": "revoked_by_admin"}[winner]
        assert learner.apart() == {}
    learner = a_learner(service, version)
    service.send("enrollment", learner.command("requested", at(0)), learner.command("revoked", at(1)))
    service.send("enrollment", learner.command("reinstated", at(5)))
    service.send("enrollment", learner.command("cancelled", at(5)), learner.command("requested", at(5)))
    assert learner.status() == "active"
    service.send("enrollment", learner.command("revoked", at(5)))
    assert learner.status() == "revoked_by_admin"
    service.send("enrollment", learner.command("reinstated", at(5)))
    assert learner.status() == "revoked_by_admin"


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])), ids=str)
@pytest.mark.parametrize("one_batch", [True, False], ids=["in one batch", "one after the other"])
def test_requested_cancelled_requested_ends_active_in_whatever_order_they_arrive(
    learner: Learner, order: tuple[int, ...], one_batch: bool
):
    messages = {
        1: learner.command("requested", at(1)),
        2: learner.command("cancelled", at(2)),
        3: learner.command("requested", at(3)),
    }
    in_order = [messages[n] for n in order]
    if one_batch:
        learner.service.send("enrollment", in_order)
    else:
        for message in in_order:
            learner.service.send("enrollment", message)
    # What waited for the enrolment comes again, and so does everything else.
    learner.service.deliver()
    learner.service.send("enrollment", in_order[::-1])
    learner.service.deliver()
    assert learner.status() == "active"
    assert learner.service.dead_letters() == []
    assert learner.history()[0] == (None, "active")


@pytest.mark.parametrize("kind", ["requested", "cancelled", "revoked", "reinstated"])
def test_a_command_that_arrives_twice_takes_effect_once(learner: Learner, kind: str):
    service = learner.service
    service.send("enrollment", [learner.command("requested", at(1)), learner.command("revoked", at(2))])
    if kind != "reinstated":
        service.send("enrollment", learner.command("reinstated", at(3)))
    if kind == "requested":
        service.send("enrollment", learner.command("cancelled", at(4)))
    message = learner.command(kind, at(5))
    service.send("enrollment", message)
    status, history = learner.status(), learner.history()
    service.send("enrollment", message)
    service.send("enrollment", [message, message], message)
    assert learner.status() == status
    assert learner.history() == history
    assert learner.apart() == {}


def test_commands_dated_more_than_five_minutes_ahead_are_refused(learner: Learner):
    service = learner.service
    ahead = learner.command("requested", (datetime.now(UTC) + timedelta(minutes=5, seconds=30)).isoformat())
    service.send("enrollment", ahead)
    assert learner.apart() == {ahead["id"]: ("dead_letter_queue", "future_command")}
    assert "time" in service.dead_letters()[0]["reason"]
    assert learner.row() is None
    service.send("enrollment", learner.command("requested", (datetime.now(UTC) + timedelta(minutes=4)).isoformat()))
    assert learner.status() == "active"
    late = learner.command("cancelled", (datetime.now(UTC) + timedelta(days=9000)).isoformat())
    service.send("enrollment", late)
    assert learner.apart()[late["id"]] == ("dead_letter_queue", "future_command")
    assert learner.status() == "active"


def test_a_refused_command_does_not_hold_back_its_neighbours(service: Service):
    version = published(service)
    learners = [a_learner(service, version) for _ in range(6)]
    good = [learner.command("requested", at(1)) for learner in learners]
    bad = [
        learners[0].command("requested", "2999-01-01T00:00:00Z"),
        learners[1].command("reinstated", at(2)),
        a_learner(service, version).command("cancelled", at(2)),
    ]
    service.send("enrollment", [good[0], bad[0], good[1]], bad[1], [good[2], bad[2], *good[3:]])
    assert [learner.status() for learner in learners] == ["active"] * 6
    codes = {r["code"] for r in service.rows("SELECT code FROM outbox WHERE body IS NOT NULL")}
    assert codes == {"future_command", "not_revoked", "enrollment_not_found"}


def test_a_thousand_commands_of_one_enrolment_in_one_message_are_all_heeded(learner: Learner):
    kinds = ["requested", "cancelled"] * 500
    messages = [learner.command(kind, at(n)) for n, kind in enumerate(kinds)]
    learner.service.send("enrollment", messages[::-1])
    assert learner.status() == "cancelled_by_user"
    assert learner.history() == [
        (None, "active"),
        *[("active", "cancelled_by_user"), ("cancelled_by_user", "active")] * 499,
        ("active", "cancelled_by_user"),
    ]


# A small plain model, and any list of commands against it


@dataclass
class Model:
    """The rules of the contract, one message at a time."""

    status: str | None = None
    completed_at: int | None = None
    changed_at: int = -1
    left_at: int = -1
    took_effect: tuple[int, int] = (-1, -1)
    confirmed: dict[bool, tuple[int, int]] = field(default_factory=dict[bool, tuple[int, int]])
    first: int | None = None
    last: int | None = None
    fulfilled_at: int | None = None
    changes: int = 0

    def become(self, status: str, time: int) -> None:
        inactive = ("cancelled_by_user", "revoked_by_admin")
        if status in inactive and self.status not in inactive:
            self.left_at = time
        self.status, self.changed_at, self.changes = status, time, self.changes + 1

    def complete(self) -> None:
        """Whatever is fulfilled completes, unless it is revoked; an earlier fulfilment that shows up late moves the time."""
        if self.fulfilled_at is None or self.status in (None, "revoked_by_admin"):
            return
        if self.status != "completed":
            self.become("completed", self.fulfilled_at)
            self.completed_at = self.fulfilled_at
        elif self.completed_at is None or self.fulfilled_at < self.completed_at:
            self.completed_at = self.changed_at = self.fulfilled_at

    def take(self, kind: str, time: int) -> str:
        return self.learn(time) if kind == "learned" else self.command(kind, time)

    def learn(self, time: int) -> str:
        """A report of 100 %: taken, waits, or a dead letter."""
        if self.status is None:
            return "waits"
        new = self.first is None or self.last is None or time < self.first or time > self.last
        if new and self.status in ("cancelled_by_user", "revoked_by_admin") and time > self.left_at:
            return "dead letter"
        self.first = time if self.first is None else min(self.first, time)
        self.last = time if self.last is None else max(self.last, time)
        self.fulfilled_at = self.first
        self.complete()
        return "taken"

    def command(self, kind: str, time: int) -> str:
        place = (time, ["requested", "cancelled", "reinstated", "revoked"].index(kind))
        is_learners = kind in ("requested", "cancelled")
        if self.status is not None and place <= max(self.took_effect, self.confirmed.get(is_learners, (-1, -1))):
            return "taken"
        _, fate, after = TABLE[self.status or "none"][kind]
        if fate != "taken" or (kind == "cancelled" and self.status in ("completed", "revoked_by_admin")):
            return fate
        if kind == "reinstated" and self.completed_at is not None:
            after = "completed"
        if after and after != self.status:
            self.took_effect = place
            self.become(after, time)
            self.complete()
        else:
            self.confirmed[is_learners] = place
        return "taken"


#: The course version of each database, since all examples of a test share one.
PUBLISHED: dict[str, dict[str, Any]] = {}
STEPS = st.lists(
    st.tuples(st.sampled_from(["requested", "cancelled", "revoked", "reinstated", "requested", "learned"]), st.integers(0, 6)),
    min_size=1,
    max_size=10,
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_any_list_of_commands_and_completions_does_what_the_rules_say(database_url: str, steps: list[tuple[str, int]]):
    service = Service(database_url)
    version = PUBLISHED.get(database_url) or published(service)
    PUBLISHED[database_url] = version
    learner = a_learner(service, version)
    model = Model()
    fates: dict[str, str] = {}
    for kind, minute in steps:
        message = learner.learned(at(minute)) if kind == "learned" else learner.command(kind, at(minute))
        service.send("progress" if kind == "learned" else "enrollment", message)
        fates[message["id"]] = model.take(kind, minute)
    names = {"queue": "waits", "dead_letter_queue": "dead letter"}
    apart = {id_: names[destination] for id_, (destination, _) in learner.apart().items()}
    assert apart == {id_: fate for id_, fate in fates.items() if fate != "taken"}
    row = learner.row()
    assert (row and row["status"]) == model.status
    assert len(learner.history()) == model.changes
    if row:
        assert row["completed_at"] == (None if model.completed_at is None else moment(model.completed_at))
        assert row["status_changed_at"] == moment(model.changed_at)
        assert row["commanded_at"] == moment(model.took_effect[0])


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["requested", "cancelled", "revoked", "reinstated"]), st.integers(0, 5)), min_size=2, max_size=8
    ),
    cut=st.integers(0, 8),
)
def test_a_batch_does_what_its_commands_do_one_after_the_other_in_the_order_of_their_times(
    database_url: str, steps: list[tuple[str, int]], cut: int
):
    service = Service(database_url)
    version = PUBLISHED.get(database_url) or published(service)
    PUBLISHED[database_url] = version
    learner = a_learner(service, version)
    messages = [learner.command(kind, at(minute)) for kind, minute in steps]
    # As one message and as several of one invocation.
    service.send("enrollment", *[part for part in (messages[:cut], messages[cut:]) if part])
    model = Model()
    ordered = sorted(steps, key=lambda s: (s[1], ["requested", "cancelled", "reinstated", "revoked"].index(s[0])))
    fates = sorted(fate for fate in (model.take(kind, minute) for kind, minute in ordered) if fate != "taken")
    assert learner.status() == model.status
    assert len(learner.history()) == model.changes
    names = {"queue": "waits", "dead_letter_queue": "dead letter"}
    assert sorted(names[destination] for destination, _ in learner.apart().values()) == fates


# Completion and what cancelling and revoking have to do with it


def test_progress_up_to_the_cancellation_is_taken_afterwards_and_completes(service: Service):
    learner = a_learner(service, published(service, lessons=2))
    service.send("enrollment", [learner.command("requested", at(1)), learner.command("cancelled", at(5))])
    service.send("progress", learner.learned(at(3)))
    assert learner.status() == "cancelled_by_user"
    service.send("progress", learner.learned(at(5), lesson=1))
    assert learner.status() == "completed"
    assert learner.history() == [(None, "active"), ("active", "cancelled_by_user"), ("cancelled_by_user", "completed")]
    assert learner.events()[-1] == "enrollment.completed"
    row = learner.row()
    assert row is not None
    assert row["completed_at"] == moment(5)
    # The cancellation once more: it comes after completion now, and has no effect.
    service.send("enrollment", learner.command("cancelled", at(5)))
    assert learner.status() == "completed"
    assert service.dead_letters() == []


@pytest.mark.parametrize("kind", ["cancelled", "revoked"])
def test_progress_after_the_end_is_refused_but_for_what_changes_nothing(learner: Learner, kind: str):
    service = learner.service
    service.send("enrollment", learner.command("requested", at(1)))
    service.send("progress", learner.learned(at(2), 60), learner.learned(at(4), 60))
    service.send("enrollment", learner.command(kind, at(3)))
    late = learner.learned(at(6), 70)
    service.send("progress", late)
    assert learner.apart() == {late["id"]: ("dead_letter_queue", "enrollment_inactive")}
    path = learner.path(f"/lessons/{learner.lesson_ids[0]}/progress")
    refused = service.admin("PUT", path, {"progress_percentage": 70})
    assert refused.status == 409, refused.text
    assert refused.json["type"].endswith(":enrollment_inactive")
    # Dated after the end too, yet it brings nothing new.
    service.send("progress", learner.learned(at(3.5), 60))
    assert service.admin("PUT", path, {"progress_percentage": 10, "occurred_at": at(3.5)}).status == 200
    synced = service.admin(
        "POST",
        learner.path("/progress"),
        {
            "lessons": [
                {"lesson_id": learner.lesson_ids[0], "progress_percentage": p, "occurred_at": at(t)}
                for p, t in ((60, 4), (61, 5), (62, 3))
            ]
        },
    )
    assert [r["result"] for r in synced.json["results"]] == ["unchanged", "refused", "applied"]
    assert len(learner.apart()) == 1


def test_a_revoked_enrolment_records_but_completes_only_when_it_is_reinstated(learner: Learner):
    service = learner.service
    service.send("enrollment", learner.command("requested", at(1)), learner.command("revoked", at(5)))
    service.send("progress", learner.learned(at(4)))
    row = learner.row()
    assert row is not None
    assert (row["status"], row["completed_at"]) == ("revoked_by_admin", None)
    assert learner.history() == [(None, "active"), ("active", "revoked_by_admin")]
    answer = service.admin("POST", learner.path("/reinstate"), {"reason": "was not"})
    assert answer.json["status"] == "completed"
    assert answer.json["completed_at"] == at(4)
    assert learner.events() == [
        "enrollment.created",
        "enrollment.revoked",
        "lesson.completed",
        "enrollment.reinstated",
        "enrollment.completed",
    ]
    learner.history()


@pytest.mark.parametrize("via", ["http", "queue"])
def test_whatever_makes_an_enrolment_active_again_checks_completion_again(service: Service, via: str):
    """Progress recorded while revoked counts as soon as the enrolment is active again, also after a cancellation before it."""
    learner = a_learner(service, published(service))
    service.send("enrollment", [learner.command(k, at(n)) for n, k in enumerate(["requested", "cancelled", "revoked"], 1)])
    service.send("progress", learner.learned(at(2)))
    assert learner.status() == "revoked_by_admin"
    if via == "http":
        assert service.admin("POST", learner.path("/reinstate"), {"reason": "r"}).json["status"] == "completed"
    else:
        service.send("enrollment", learner.command("reinstated", at(4)))
    assert learner.status() == "completed"
    assert learner.events().count("enrollment.completed") == 1
    learner.history()


def test_reinstating_what_had_been_completed_publishes_no_second_completion(learner: Learner):
    service = learner.service
    bring_to(learner, "revoked_by_admin after completed")
    answer = service.admin("POST", learner.path("/reinstate"), {"reason": "was not"})
    assert (answer.json["status"], answer.json["completed_at"]) == ("completed", at(2))
    assert learner.events() == [
        "enrollment.created",
        "lesson.completed",
        "enrollment.completed",
        "enrollment.revoked",
        "enrollment.reinstated",
    ]
    assert learner.history()[-1] == ("revoked_by_admin", "completed")


def test_with_nothing_required_an_enrolment_never_completes_by_itself(service: Service):
    learner = a_learner(service, published(service, lessons=2, required_lessons=0))
    service.send("enrollment", learner.command("requested", at(1)))
    service.send("progress", learner.learned(at(2)), learner.learned(at(2), lesson=1))
    assert learner.status() == "active"
    assert service.admin("GET", learner.path()).json["progress"]["progress_percentage"] is None


def test_completed_at_is_the_time_of_what_was_fulfilled_last_in_time_in_any_order_of_arrival(service: Service):
    version = published(service, lessons=2, quizzes=[quiz()])
    for order in itertools.permutations([0, 1, 2]):
        learner = a_learner(service, version)
        service.send("enrollment", learner.command("requested", at(0)))
        attempt = {"attempt_id": str(uuid4()), "quiz_id": version["quizzes"][0]["quiz_id"], "answers": {"q1": "a"}}
        messages = [
            ("progress", learner.learned(at(7))),
            ("progress", learner.learned(at(3), lesson=1)),
            ("quiz", event("quiz.submitted", learner.about | attempt, at(5))),
        ]
        for n in order:
            service.send(*messages[n])
        row = learner.row()
        assert row is not None
        assert (row["status"], row["completed_at"]) == ("completed", moment(7))


# Certificates that go with it


@pytest.mark.parametrize("with_certificate", [True, False])
def test_revoking_takes_the_certificate_along_only_if_asked_to(learner: Learner, with_certificate: bool):
    service = learner.service
    service.send("catalog", event("learner.updated", {"user_id": learner.user_id, "name": "Ada Lovelace"}))
    bring_to(learner, "completed")
    service.deliver()
    answer = service.admin("POST", learner.path("/revoke"), {"reason": "fraud", "revoke_certificate": with_certificate})
    assert answer.json["certificate_status"] == ("revoked" if with_certificate else "valid")
    certificate = service.admin("GET", learner.path("/certificate")).json
    assert certificate["revocation_reason"] == ("fraud" if with_certificate else None)
    if not with_certificate:
        # The enrolment is revoked already; the certificate can still follow.
        answer = service.admin("POST", learner.path("/revoke"), {"reason": "fraud after all", "revoke_certificate": True})
        assert (answer.status, answer.json["certificate_status"]) == (200, "revoked")
    assert learner.events()[-2:] == ["enrollment.revoked", "certificate.revoked"]
    learner.history()
    service.admin("POST", learner.path("/reinstate"), {"reason": "was not"})
    # Reinstating the enrolment leaves the certificate to its own command.
    assert service.admin("GET", learner.path()).json["certificate_status"] == "revoked"


def test_revoke_certificate_where_there_is_none_is_accepted(learner: Learner):
    learner.service.send("enrollment", learner.command("requested", at(1)))
    answer = learner.service.admin("POST", learner.path("/revoke"), {"reason": "r", "revoke_certificate": True})
    assert (answer.status, answer.json["status"], answer.json["certificate_status"]) == (200, "revoked_by_admin", None)


# Several at once


def test_an_enrolment_requested_many_times_at_once_is_created_once(service: Service):
    version = published(service)
    learners = [a_learner(service, version) for _ in range(5)]

    def request() -> None:
        for learner in learners:
            service.send("enrollment", learner.command("requested", at(1)))

    at_once([request] * 8)
    for learner in learners:
        assert learner.history() == [(None, "active")]
    assert service.dead_letters() == []


def test_commands_racing_on_one_enrolment_leave_one_unbroken_history_and_the_latest_wins(service: Service):
    version = published(service)
    learners = [a_learner(service, version) for _ in range(4)]
    for learner in learners:
        service.send("enrollment", learner.command("requested", at(0)))

    def commands(offset: int) -> Callable[[], None]:
        def send() -> None:
            for n in range(6):
                kind = "requested" if (offset + n) % 2 else "cancelled"
                service.send("enrollment", [learner.command(kind, at(1 + 6 * offset + n)) for learner in learners])

        return send

    at_once(
        [commands(offset) for offset in range(6)]
        + [lambda: service.send("enrollment", [learner.command("requested", at(99)) for learner in learners])]
    )
    for learner in learners:
        assert learner.status() == "active"
        row = learner.row()
        assert row is not None
        assert max(row["commanded_at"], row["confirmed_at"] or row["commanded_at"]) == moment(99)
        learner.history()
    assert service.rows("SELECT 1 FROM outbox WHERE body IS NOT NULL") == []


def test_completing_and_revoking_at_once_give_one_of_the_two_orders(service: Service):
    version = published(service, lessons=2)
    learners = [a_learner(service, version) for _ in range(10)]
    service.send("enrollment", [learner.command("requested", at(0)) for learner in learners])
    service.send("progress", [learner.learned(at(1)) for learner in learners])

    def each(queue: str, message: Callable[[Learner], dict[str, Any]], who: list[Learner]) -> Callable[[], None]:
        def send() -> None:
            for learner in who:
                service.send(queue, message(learner))

        return send

    at_once(
        [
            each("progress", lambda learner: learner.learned(at(2), lesson=1), learners),
            each("enrollment", lambda learner: learner.command("revoked", at(3)), learners[::-1]),
            each("progress", lambda learner: learner.learned(at(2), lesson=1), learners[::-1]),
        ]
    )
    for learner in learners:
        assert learner.status() == "revoked_by_admin"
        completed = [] if learner.events().count("enrollment.completed") == 0 else [("active", "completed")]
        last = "completed" if completed else "active"
        assert learner.history() == [(None, "active"), *completed, (last, "revoked_by_admin")]
        row = learner.row()
        assert row is not None
        assert (row["completed_at"] is not None) == bool(completed)
        answer = service.admin("POST", learner.path("/reinstate"), {"reason": "r"})
        assert (answer.json["status"], answer.json["completed_at"]) == ("completed", at(2))
        assert learner.events().count("enrollment.completed") == 1


def test_two_enrolments_locked_in_opposite_orders_do_not_stand_in_each_others_way(service: Service):
    version = published(service)
    learners = [a_learner(service, version) for _ in range(20)]
    service.send("enrollment", [learner.command("requested", at(0)) for learner in learners])

    def send(kind: str, minute: int, *, backwards: bool) -> Callable[[], None]:
        messages = [learner.command(kind, at(minute)) for learner in (learners[::-1] if backwards else learners)]
        return lambda: service.send("enrollment", messages)

    at_once([send("cancelled" if n % 2 else "requested", n, backwards=bool(n % 3)) for n in range(1, 8)])
    assert [learner.status() for learner in learners] == ["cancelled_by_user"] * 20


def test_a_command_whose_connection_broke_after_it_was_carried_out_is_answered_as_done(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
):
    run = db.run

    def run_twice(work: Callable[[db.Connection], Any]) -> Any:
        # As `run` itself does where the connection breaks when all is committed and only the answer is missing.
        run(work)
        return run(work)

    monkeypatch.setattr(db, "run", run_twice)
    answers = [
        learner.service.admin("PUT", learner.path()),
        learner.service.admin("POST", learner.path("/cancel")),
        learner.service.admin("PUT", learner.path()),
        learner.service.admin("POST", learner.path("/revoke"), {"reason": "r"}),
        learner.service.admin("POST", learner.path("/reinstate"), {"reason": "r"}),
    ]
    statuses = ["active", "cancelled_by_user", "active", "revoked_by_admin", "active"]
    assert [(answer.status, answer.json["status"]) for answer in answers] == list(
        zip([201, 200, 200, 200, 200], statuses, strict=True)
    )
    assert learner.history() == list(zip([None, *statuses[:-1]], statuses, strict=True))
