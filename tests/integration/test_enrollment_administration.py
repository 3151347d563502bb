"""What administrators do to an enrolment: start it over, waive, transfer; its history; and the certificate that is renewed."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from shared import db
from shared.enrollment import administration, rules, store
from tests.support.service import ADMIN, LEARNER, Service, at_once, course, event, quiz


@pytest.fixture
def version(service: Service) -> dict[str, Any]:
    """A course version of two required lessons and a required quiz, in which the learner is enrolled."""
    version = course(quizzes=[quiz()])
    service.send("catalog", event("course_version.published", version))
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada Lovelace"}))
    assert service.admin("PUT", base(version)).status == 201
    return version


def base(version: dict[str, Any]) -> str:
    return f"/users/{LEARNER}/enrollments/{version['course_version_id']}"


def lessons(version: dict[str, Any]) -> list[str]:
    return [lesson["lesson_id"] for lesson in version["lessons"]]


def quiz_id(version: dict[str, Any]) -> str:
    return version["quizzes"][0]["quiz_id"]


def submitted(version: dict[str, Any], answers: dict[str, Any], time: str | None = None, **data: Any) -> dict[str, Any]:
    """A `quiz.submitted` event; `{"q1": "a"}` passes."""
    return event(
        "quiz.submitted",
        {
            "attempt_id": str(uuid4()),
            "user_id": str(LEARNER),
            "course_version_id": version["course_version_id"],
            "quiz_id": quiz_id(version),
            "answers": answers,
        }
        | data,
        time,
    )


def progressed(version: dict[str, Any], lesson: str, percentage: int, time: str | None = None) -> dict[str, Any]:
    data = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"], "lesson_id": lesson}
    return event("lesson.progressed", data | {"progress_percentage": percentage}, time)


def complete(service: Service, version: dict[str, Any]) -> None:
    service.send("progress", [progressed(version, lesson, 100) for lesson in lessons(version)])
    service.send("quiz", submitted(version, {"q1": "a"}))


def publish(service: Service, **fields: Any) -> dict[str, Any]:
    version = course(**fields)
    service.send("catalog", event("course_version.published", version))
    return version


def before(moment: str, seconds: float = 1) -> str:
    return (datetime.fromisoformat(moment) - timedelta(seconds=seconds)).isoformat()


def history(service: Service, version: dict[str, Any]) -> list[dict[str, Any]]:
    return service.admin("GET", f"{base(version)}/history").json["items"]


# ------------------------------------------------------------------------------------------------------------------------ reset


def test_a_reset_sets_progress_and_attempts_aside_and_the_learner_starts_over(service: Service, version: dict[str, Any]):
    complete(service, version)
    service.deliver()
    uid = service.admin("GET", base(version)).json["certificate_uid"]

    answer = service.admin("POST", f"{base(version)}/reset", {"reason": "Asked for it"})

    assert answer.status == 200
    assert (answer.json["status"], answer.json["completed_at"]) == ("active", None)
    assert answer.json["progress"] == {
        "progress_percentage": 0.0,
        "lessons_completed": 0,
        "lessons_total": 2,
        "quizzes_passed": 0,
        "quizzes_total": 1,
    }
    assert (answer.json["certificate_uid"], answer.json["certificate_status"]) == (uid, "valid"), "the certificate stays"
    attempts = f"{base(version)}/quizzes/{quiz_id(version)}/attempts"
    assert service.admin("GET", attempts).json["items"] == []
    assert service.admin("POST", attempts).json["attempt_number"] == 1
    assert [event["data"]["status"] for event in service.published("enrollment.reset")] == ["active"]


def test_the_history_tells_every_change_and_what_a_reset_set_aside(service: Service, version: dict[str, Any]):
    complete(service, version)
    service.admin("POST", f"{base(version)}/reset", {"reason": "Asked for it"})

    created, completed, reset = history(service, version)

    assert [entry["type"] for entry in (created, completed, reset)] == ["created", "completed", "reset"]
    assert (created["from_status"], created["to_status"], created["actor"]) == (None, "active", str(ADMIN))
    assert (completed["from_status"], completed["to_status"], completed["actor"]) == ("active", "completed", "learner-progress")
    assert (reset["from_status"], reset["to_status"]) == ("completed", "active")
    assert (reset["actor"], reset["reason"]) == (str(ADMIN), "Asked for it")
    assert {lesson["lesson_id"] for lesson in reset["details"]["lessons"]} == set(lessons(version))
    [attempt] = reset["details"]["quiz_attempts"]
    assert (attempt["attempt_number"], attempt["score"], attempt["is_passed"]) == (1, 75.0, True)
    read = service.admin("GET", f"/quiz-attempts/{attempt['id']}").json
    assert read["set_aside_at"] == reset["recorded_at"]
    assert read["answers"] == {"q1": "a"}


def test_the_history_comes_in_pages(service: Service, version: dict[str, Any]):
    for n in range(5):
        service.admin("POST", f"{base(version)}/reset", {"reason": f"Reset {n}"})
    query: dict[str, str] = {"limit": "2"}
    reasons: list[str | None] = []
    while True:
        page = service.http("GET", f"{base(version)}/history", query=query).json
        reasons += [entry["reason"] for entry in page["items"]]
        if not page["next_cursor"]:
            break
        query["cursor"] = page["next_cursor"]
    assert reasons == [None, "Reset 0", "Reset 1", "Reset 2", "Reset 3", "Reset 4"]


def test_what_is_dated_before_a_reset_is_accepted_without_effect(service: Service, version: dict[str, Any]):
    taken = submitted(version, {"q1": "a"})
    service.send("quiz", taken)
    service.admin("POST", f"{base(version)}/reset", {"reason": "x"})
    reset_at = history(service, version)[-1]["occurred_at"]
    first, second = lessons(version)

    service.send("progress", [progressed(version, first, 100, before(reset_at)), progressed(version, second, 40)])
    # The attempt that was set aside comes again, dated later even; and one from before that never arrived.
    service.send("quiz", [taken | {"time": datetime.now(UTC).isoformat()}, submitted(version, {"q1": "a"}, before(reset_at))])
    cancelled = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    service.send("enrollment", event("enrollment.cancelled", cancelled, before(reset_at)))

    progress = service.admin("GET", f"{base(version)}/progress").json
    assert [lesson["progress_percentage"] for lesson in progress["lessons"]] == [0, 40]
    assert progress["quizzes"][0]["attempts"] == 0
    assert progress["status"] == "active"
    assert service.dead_letters() == []
    report = f"{base(version)}/lessons/{first}/progress"
    answer = service.http("PUT", report, {"status": "completed", "occurred_at": before(reset_at)})
    assert (answer.status, answer.json["status"], answer.json["progress_percentage"]) == (200, "not_started", 0)


def test_an_attempt_set_aside_keeps_its_id_to_itself(service: Service, version: dict[str, Any]):
    taken = submitted(version, {"q1": "a"})
    service.send("quiz", taken)
    service.admin("POST", f"{base(version)}/reset", {"reason": "x"})

    service.send("quiz", submitted(version, {"q1": "b"}, attempt_id=taken["data"]["attempt_id"]))

    assert [letter["code"] for letter in service.dead_letters()] == ["attempt_id_taken"]


@pytest.mark.parametrize(("command", "status"), [("cancel", "cancelled_by_user"), ("revoke", "revoked_by_admin")])
def test_a_reset_leaves_a_cancelled_or_revoked_enrolment_so(service: Service, version: dict[str, Any], command: str, status: str):
    service.admin("POST", f"{base(version)}/{command}", {"reason": "x"})

    assert service.admin("POST", f"{base(version)}/reset", {"reason": "y"}).json["status"] == status


def test_a_reset_of_a_revoked_completed_enrolment_lets_it_be_reinstated_as_active(service: Service, version: dict[str, Any]):
    complete(service, version)
    service.admin("POST", f"{base(version)}/revoke", {"reason": "x"})
    service.admin("POST", f"{base(version)}/reset", {"reason": "y"})

    assert service.admin("POST", f"{base(version)}/reinstate", {"reason": "z"}).json["status"] == "active"


def test_completing_again_publishes_it_again(service: Service, version: dict[str, Any]):
    complete(service, version)
    service.admin("POST", f"{base(version)}/reset", {"reason": "x"})
    complete(service, version)

    assert len(service.published("enrollment.completed")) == 2
    sequences = [event["data"]["sequence"] for event in service.published()]
    assert sequences == list(range(1, len(sequences) + 1))


def test_progress_that_is_being_written_does_not_slip_in_behind_a_reset(service: Service, version: dict[str, Any]):
    """Many rounds of a report from before, racing the reset that makes it void."""
    first = lessons(version)[0]
    for n in range(30):
        report = progressed(version, first, 10 + n, "2026-01-01T00:00:00Z")
        at_once(
            [
                lambda: service.send("progress", report),
                lambda: service.send("progress", progressed(version, lessons(version)[1], 100, "2026-01-01T00:00:00Z")),
                lambda: service.admin("POST", f"{base(version)}/reset", {"reason": "x"}),
            ]
        )
        assert service.rows("SELECT * FROM lesson_progress") == []
    assert service.dead_letters() == []


def test_a_report_over_http_that_waits_for_a_reset_is_void(service: Service, version: dict[str, Any]):
    first, path = lessons(version)[0], f"{base(version)}/lessons/{lessons(version)[0]}/progress"
    service.send("progress", progressed(version, first, 10, "2026-01-01T00:00:00Z"))

    def report() -> Any:
        try:
            return service.http("PUT", path, {"progress_percentage": 50, "occurred_at": "2026-01-01T00:00:00Z"})
        finally:
            db.close()

    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(service.database_url) as conn:
            conn.execute("SELECT FROM enrollments FOR UPDATE")
            conn.execute("UPDATE enrollments SET reset_at = now()")
            conn.execute("DELETE FROM lesson_progress")
            answer = pool.submit(report)
            deadline = time.monotonic() + 4
            while not service.rows("SELECT pid FROM pg_locks WHERE NOT granted"):
                assert time.monotonic() < deadline, "the report does not wait"
                time.sleep(0.01)
        known = answer.result()

    assert (known.status, known.json["status"], known.json["progress_percentage"]) == (200, "not_started", 0)
    assert service.rows("SELECT lesson_id FROM lesson_progress") == []


# ---------------------------------------------------------------------------------------------------------------------- waivers


def test_a_waiver_counts_as_fulfilled_and_completes(service: Service, version: dict[str, Any]):
    service.send("progress", [progressed(version, lesson, 100) for lesson in lessons(version)])
    waiver = f"{base(version)}/requirements/{quiz_id(version)}/waiver"

    answer = service.admin("PUT", waiver, {"reason": "Passed elsewhere"})

    assert (answer.status, answer.json["status"]) == (200, "completed")
    assert (answer.json["progress"]["progress_percentage"], answer.json["progress"]["quizzes_passed"]) == (100.0, 1)
    entries = history(service, version)
    assert [(entry["type"], entry["details"]) for entry in entries[1:]] == [
        ("waived", {"requirement_id": quiz_id(version)}),
        ("completed", None),
    ]
    assert (entries[1]["actor"], entries[1]["reason"]) == (str(ADMIN), "Passed elsewhere")
    assert answer.json["completed_at"] == entries[1]["occurred_at"]
    progress = service.admin("GET", f"{base(version)}/progress").json
    assert (progress["quizzes"][0]["waived"], progress["quizzes"][0]["is_passed"]) == (True, False)
    assert [lesson["waived"] for lesson in progress["lessons"]] == [False, False]


def test_a_waiver_given_twice_is_one_and_taken_back_it_is_none(service: Service, version: dict[str, Any]):
    waiver = f"{base(version)}/requirements/{lessons(version)[0]}/waiver"
    assert service.admin("PUT", waiver, {"reason": "x"}).json["progress"]["lessons_completed"] == 1
    assert service.admin("PUT", waiver, {"reason": "y"}).json["progress"]["lessons_completed"] == 1
    assert service.admin("DELETE", waiver).json["progress"]["lessons_completed"] == 0
    assert service.admin("DELETE", waiver).status == 200
    assert [entry["type"] for entry in history(service, version)] == ["created", "waived", "waiver_withdrawn"]


def test_taking_a_waiver_back_leaves_a_completed_enrolment_completed(service: Service, version: dict[str, Any]):
    service.send("progress", [progressed(version, lesson, 100) for lesson in lessons(version)])
    waiver = f"{base(version)}/requirements/{quiz_id(version)}/waiver"
    service.admin("PUT", waiver, {"reason": "x"})

    assert service.admin("DELETE", waiver).json["status"] == "completed"


def test_what_is_waived_stays_so_when_the_enrolment_starts_over(service: Service, version: dict[str, Any]):
    for item in [*lessons(version), quiz_id(version)]:
        service.admin("PUT", f"{base(version)}/requirements/{item}/waiver", {"reason": "x"})
    answer = service.admin("POST", f"{base(version)}/reset", {"reason": "y"})

    assert answer.json["status"] == "completed"
    [*_, reset, completed] = history(service, version)
    assert (reset["type"], completed["type"]) == ("reset", "completed")
    assert completed["occurred_at"] == reset["occurred_at"]


@pytest.mark.parametrize(("command", "status"), [("cancel", "completed"), ("revoke", "revoked_by_admin")])
def test_what_fulfils_a_cancelled_enrolment_completes_it_and_a_revoked_one_only_records(
    service: Service, version: dict[str, Any], command: str, status: str
):
    service.send("progress", [progressed(version, lesson, 100) for lesson in lessons(version)])
    service.admin("POST", f"{base(version)}/{command}", {"reason": "x"})
    waiver = f"{base(version)}/requirements/{quiz_id(version)}/waiver"

    assert service.admin("PUT", waiver, {"reason": "y"}).json["status"] == status
    if command == "revoke":
        assert service.admin("POST", f"{base(version)}/reinstate", {"reason": "z"}).json["status"] == "completed"


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_only_what_the_course_version_has_can_be_waived(service: Service, version: dict[str, Any], method: str):
    body = {"reason": "x"} if method == "PUT" else None
    answer = service.admin(method, f"{base(version)}/requirements/{uuid4()}/waiver", body)
    assert (answer.status, answer.json["type"].rsplit(":", 1)[1]) == (404, "requirement_not_found")
    unknown = f"/users/{uuid4()}/enrollments/{version['course_version_id']}/requirements/{quiz_id(version)}/waiver"
    answer = service.admin(method, unknown, body)
    assert (answer.status, answer.json["type"].rsplit(":", 1)[1]) == (404, "enrollment_not_found")


# --------------------------------------------------------------------------------------------------------------------- transfer


def edition(service: Service, version: dict[str, Any]) -> dict[str, Any]:
    """Another edition of the course: the same lessons and quiz, and a lesson of its own."""
    own = {"lesson_id": str(uuid4()), "title": "New", "required": True}
    edition = course(quizzes=version["quizzes"]) | {"lessons": [*version["lessons"], own]}
    service.send("catalog", event("course_version.published", edition))
    return edition


def test_a_transfer_enrols_and_carries_progress_and_passed_quizzes_over(service: Service, version: dict[str, Any]):
    first, second = lessons(version)
    service.send("progress", [progressed(version, first, 100), progressed(version, second, 40)])
    service.send("quiz", submitted(version, {"q1": "b"}))
    service.send("quiz", submitted(version, {"q1": "a", "q2": 0.1}))
    service.send("quiz", submitted(version, {"q1": "a"}))
    target = edition(service, version)

    answer = service.admin("POST", f"{base(version)}/transfer", {"to": target["course_version_id"], "reason": "New edition"})

    assert answer.status == 201
    assert (answer.json["course_version_id"], answer.json["status"]) == (target["course_version_id"], "active")
    assert (answer.json["progress"]["lessons_completed"], answer.json["progress"]["quizzes_passed"]) == (1, 1)
    there = service.admin("GET", f"{base(target)}/progress").json
    here = service.admin("GET", f"{base(version)}/progress").json
    assert there["lessons"][:2] == here["lessons"]
    attempts = service.admin("GET", f"{base(target)}/quizzes/{quiz_id(version)}/attempts").json["items"]
    assert [(attempt["attempt_number"], attempt["score"]) for attempt in attempts] == [(1, 100.0), (2, 75.0)]
    assert here["status"] == "active", "where the learner comes from stays as it is"
    assert [entry["type"] for entry in history(service, target)] == ["created", "transferred"]
    assert history(service, target)[1]["details"] == {"from": version["course_version_id"]}
    assert history(service, version)[-1]["details"] == {"to": target["course_version_id"]}
    assert history(service, version)[-1]["reason"] == "New edition"
    told = [event["type"] for event in service.published() if event["data"]["course_version_id"] == target["course_version_id"]]
    assert told == ["enrollment.created", "lesson.completed", "quiz.graded", "quiz.graded"]


def test_a_transfer_completes_what_it_fulfils_and_the_certificate_follows(service: Service, version: dict[str, Any]):
    complete(service, version)
    target = course(quizzes=version["quizzes"]) | {"lessons": version["lessons"][:1]}
    service.send("catalog", event("course_version.published", target))

    answer = service.admin("POST", f"{base(version)}/transfer", {"to": target["course_version_id"]})

    assert (answer.status, answer.json["status"]) == (201, "completed")
    service.deliver()
    assert service.admin("GET", f"{base(target)}/certificate").json["status"] == "valid"
    assert service.admin("GET", f"{base(version)}/certificate").json["status"] == "valid"


def test_a_transfer_repeated_and_back_again_carries_each_attempt_over_once(service: Service, version: dict[str, Any]):
    target = edition(service, version)
    service.send("quiz", submitted(version, {"q1": "a"}))
    there, back = f"{base(version)}/transfer", f"{base(target)}/transfer"

    assert service.admin("POST", there, {"to": target["course_version_id"]}).status == 201
    assert service.admin("POST", there, {"to": target["course_version_id"]}).status == 200
    assert service.admin("POST", back, {"to": version["course_version_id"]}).status == 200

    for each in (version, target):
        attempts = service.admin("GET", f"{base(each)}/quizzes/{quiz_id(version)}/attempts").json["items"]
        assert [attempt["attempt_number"] for attempt in attempts] == [1]


def test_a_transfer_never_takes_progress_away(service: Service, version: dict[str, Any]):
    target = edition(service, version)
    first, second = lessons(version)
    service.admin("PUT", base(target))
    service.send("progress", [progressed(target, first, 100), progressed(version, first, 30), progressed(version, second, 60)])

    service.admin("POST", f"{base(version)}/transfer", {"to": target["course_version_id"]})

    there = service.admin("GET", f"{base(target)}/progress").json["lessons"]
    assert [lesson["progress_percentage"] for lesson in there] == [100, 60, 0]


def test_a_transfer_reactivates_a_cancelled_enrolment_and_is_refused_by_a_revoked_one(service: Service, version: dict[str, Any]):
    target = edition(service, version)
    transfer = f"{base(version)}/transfer"
    service.admin("PUT", base(target))
    service.admin("POST", f"{base(target)}/cancel")
    answer = service.admin("POST", transfer, {"to": target["course_version_id"]})
    assert (answer.status, answer.json["status"]) == (200, "active")
    service.admin("POST", f"{base(target)}/revoke", {"reason": "x"})
    answer = service.admin("POST", transfer, {"to": target["course_version_id"]})
    assert (answer.status, answer.json["type"].rsplit(":", 1)[1]) == (409, "already_revoked")


@pytest.mark.parametrize(("command", "status"), [("cancelled", "cancelled_by_user"), ("revoked", "revoked_by_admin")])
def test_a_transfer_leaves_a_command_alone_that_is_dated_a_little_ahead(
    service: Service, version: dict[str, Any], command: str, status: str
):
    target = edition(service, version)
    service.admin("PUT", base(target))
    ahead = (datetime.now(UTC) + timedelta(minutes=3)).isoformat()
    about = {"user_id": str(LEARNER), "course_version_id": target["course_version_id"]}
    service.send("enrollment", event(f"enrollment.{command}", about, ahead))

    answer = service.admin("POST", f"{base(version)}/transfer", {"to": target["course_version_id"]})

    assert (answer.status, answer.json["status"]) == (200, status)


@pytest.mark.parametrize("command", ["cancel", "revoke"])
def test_a_cancelled_or_revoked_enrolment_is_not_transferred(service: Service, version: dict[str, Any], command: str):
    target = edition(service, version)
    service.admin("POST", f"{base(version)}/{command}", {"reason": "x"})

    assert service.admin("POST", f"{base(version)}/transfer", {"to": target["course_version_id"]}).status == 409
    assert service.admin("GET", base(target)).status == 404


def test_a_transfer_needs_two_course_versions_that_exist(service: Service, version: dict[str, Any]):
    transfer = f"{base(version)}/transfer"
    answer = service.admin("POST", transfer, {"to": version["course_version_id"]})
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "#/to")
    answer = service.admin("POST", transfer, {"to": str(uuid4())})
    assert (answer.status, answer.json["type"].rsplit(":", 1)[1]) == (404, "course_version_not_found")
    other = publish(service)
    answer = service.admin("POST", f"{base(other)}/transfer", {"to": version["course_version_id"]})
    assert (answer.status, answer.json["type"].rsplit(":", 1)[1]) == (404, "enrollment_not_found")


def test_two_transfers_at_once_carry_each_attempt_over_once(service: Service, version: dict[str, Any]):
    service.send("quiz", submitted(version, {"q1": "a"}))
    for _ in range(5):
        target = edition(service, version)
        work = [
            lambda to=target: service.admin("POST", f"{base(version)}/transfer", {"to": to["course_version_id"]})
            for _ in range(4)
        ]
        at_once(work)
        attempts = service.admin("GET", f"{base(target)}/quizzes/{quiz_id(version)}/attempts").json["items"]
        assert len(attempts) == 1


@pytest.mark.parametrize("path", ["reset", "transfer", "requirements/{item}/waiver"])
def test_learners_may_do_none_of_it(service: Service, version: dict[str, Any], path: str):
    method = "PUT" if "waiver" in path else "POST"
    answer = service.http(method, f"{base(version)}/{path.format(item=uuid4())}", {"reason": "x"})
    assert answer.status == 403


# ---------------------------------------------------------------------------------------------------------------------- renewal


def expire(service: Service) -> None:
    service.rows("UPDATE certificates SET issued_at = issued_at - interval '400 days', expires_at = now() - interval '1 day'")


def renewable(service: Service) -> tuple[dict[str, Any], str]:
    """A course version with a certificate that expires, completed by the learner; and the certificate's uid."""
    version = publish(service, quizzes=[quiz()], certificate={"enabled": True, "valid_for_days": 30})
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada Lovelace"}))
    service.admin("PUT", base(version))
    complete(service, version)
    service.deliver()
    return version, service.admin("GET", base(version)).json["certificate_uid"]


def test_an_expired_certificate_is_renewed_by_completing_again_and_the_old_snapshot_is_kept(service: Service):
    version, uid = renewable(service)
    expire(service)
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada King"}))
    service.admin("POST", f"{base(version)}/reset", {"reason": "Yearly"})
    complete(service, version)
    service.deliver()

    renewed = service.admin("GET", f"/certificates/{uid}").json
    assert (renewed["status"], renewed["learner_name"]) == ("valid", "Ada King")
    [kept] = service.rows("SELECT * FROM certificate_snapshots")
    assert kept["metadata"]["learner_name"] == "Ada Lovelace"
    assert kept["metadata"]["completed_at"] < renewed["completed_at"]
    assert len(service.rows("SELECT * FROM certificates")) == 1
    assert [event["type"] for event in service.published() if event["type"].startswith("certificate.")] == [
        "certificate.issued",
        "certificate.reissued",
    ]


def test_a_certificate_that_is_still_valid_stays_as_it_is(service: Service):
    version, uid = renewable(service)
    before_reset = service.admin("GET", f"/certificates/{uid}").json
    service.admin("POST", f"{base(version)}/reset", {"reason": "x"})
    complete(service, version)
    service.deliver()

    assert service.admin("GET", f"/certificates/{uid}").json == before_reset


def test_an_old_completion_told_again_renews_nothing(service: Service):
    version, uid = renewable(service)
    expire(service)
    again = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    service.send("certificate", event("enrollment.completed", again))

    assert service.admin("GET", f"/certificates/{uid}").json["status"] == "expired"


def test_a_revoked_certificate_is_not_made_valid_by_completing_again(service: Service):
    version, uid = renewable(service)
    service.admin("POST", f"/certificates/{uid}/revoke", {"reason": "Cheated"})
    expire(service)
    service.admin("POST", f"{base(version)}/reset", {"reason": "x"})
    complete(service, version)
    service.deliver()

    assert service.admin("GET", f"/certificates/{uid}").json["status"] == "revoked"


def test_a_certificate_that_was_valid_at_the_second_completion_is_not_renewed_when_it_expires(service: Service):
    version, uid = renewable(service)
    service.admin("POST", f"{base(version)}/reset", {"reason": "x"})
    complete(service, version)
    service.deliver()
    service.rows("UPDATE certificates SET expires_at = now() + interval '1 ms'")
    service.rows("SELECT pg_sleep(0.01)")
    again = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    service.send("certificate", event("enrollment.completed", again))
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada King"}))
    service.deliver()

    assert service.admin("GET", f"/certificates/{uid}").json["status"] == "expired"


def test_what_is_carried_over_into_an_enrolment_that_started_over_counts_from_then(service: Service):
    version, uid = renewable(service)
    other = edition(service, version)
    service.admin("PUT", base(other))
    complete(service, other)
    expire(service)
    reset = service.admin("POST", f"{base(version)}/reset", {"reason": "x"})
    assert reset.json["status"] == "active"

    answer = service.admin("POST", f"{base(other)}/transfer", {"to": version["course_version_id"]})

    reset_at = next(entry["occurred_at"] for entry in history(service, version) if entry["type"] == "reset")
    assert (answer.json["status"], answer.json["completed_at"]) == ("completed", reset_at)
    service.deliver()
    assert service.admin("GET", f"/certificates/{uid}").json["status"] == "valid"


@pytest.mark.parametrize("meanwhile", ["reset", "reset of a completed one"])
def test_a_command_decided_before_a_reset_is_decided_again(service: Service, version: dict[str, Any], meanwhile: str):
    if meanwhile != "reset":
        complete(service, version)
    service.admin("POST", f"{base(version)}/revoke", {"reason": "x"})
    key = (LEARNER, UUID(version["course_version_id"]))
    [situation] = db.run(lambda conn: store.situations(conn, [key])).fetchall()
    plan, _ = rules.plan(situation, [(0, rules.Command("reinstated", "someone", reason="y"))])
    assert plan
    service.admin("POST", f"{base(version)}/reset", {"reason": "z"})

    assert db.run(lambda conn: store.write(conn, [plan])).fetchall() == [key]
    assert service.admin("GET", base(version)).json["status"] == "revoked_by_admin"


def test_a_transfer_does_nothing_once_the_enrolment_it_comes_from_is_revoked(service: Service, version: dict[str, Any]):
    target = edition(service, version)
    source, key = (LEARNER, UUID(version["course_version_id"])), (LEARNER, UUID(target["course_version_id"]))
    [situation] = db.run(lambda conn: store.situations(conn, [key])).fetchall()
    plan, _ = rules.plan(situation, [(0, rules.Command("requested", "someone"))])
    assert plan
    service.admin("POST", f"{base(version)}/revoke", {"reason": "x"})

    assert db.run(lambda conn: store.write(conn, [plan], transferred_from=source)).fetchall() == [key]
    carried = db.run(
        lambda conn: administration.carry_over(conn, *source, key[1], act=uuid4(), at=situation.now, actor="someone", reason=None)
    )
    assert carried.fetchall() == []
    assert service.admin("GET", base(target)).status == 404
