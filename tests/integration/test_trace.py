"""What a request or an event causes carries its traceparent, through every function and however it is batched."""

import io
import json
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.observability import logger, observed
from shared.trace import trace_id
from tests.support.service import LEARNER, Context, Service, course, event, now, quiz

type Rows = list[dict[str, Any]]


def traceparent(n: int = 1) -> str:
    """A traceparent of trace `n`."""
    return f"00-{n:032x}-{'b' * 16}-01"


def learner(n: int) -> UUID:
    return UUID(int=1000 + n)


@pytest.fixture
def version(service: Service) -> dict[str, Any]:
    """A course version of two required lessons, an optional one and an optional quiz."""
    version = course(lessons=3, required_lessons=2, quizzes=[quiz(required=False)])
    service.send("catalog", event("course_version.published", version))
    return version


def enrolled(service: Service, version: dict[str, Any], *learners: UUID) -> None:
    """Enrol learners and forget that they were."""
    ids = {"course_version_id": version["course_version_id"]}
    service.send("enrollment", [event("enrollment.requested", ids | {"user_id": str(user_id)}) for user_id in learners])
    service.rows("DELETE FROM outbox")


def report(version: dict[str, Any], user_id: UUID, lesson: int, time: str | None = None, **fields: Any) -> dict[str, Any]:
    """An event that says 100."""
    data = {"user_id": str(user_id), "lesson_id": version["lessons"][lesson]["lesson_id"], "progress_percentage": 100}
    return event("lesson.progressed", data | {"course_version_id": version["course_version_id"]}, time, **fields)


def caused(service: Service) -> set[tuple[str, UUID, int | None]]:
    """What is in the outbox: type, learner and number of the trace."""
    rows = service.rows("SELECT type, data ->> 'user_id' AS user_id, traceparent FROM outbox WHERE body IS NULL")
    assert all(row["traceparent"] in (None, traceparent(int(trace_id(row["traceparent"]) or "0", 16))) for row in rows)
    return {
        (row["type"], UUID(row["user_id"]), int(trace_id(row["traceparent"]) or "", 16) if row["traceparent"] else None)
        for row in rows
    }


def complete_lessons(service: Service, user_id: UUID) -> None:
    """All lessons as completed as a report makes them, and nothing else."""
    service.rows(
        """
        INSERT INTO lesson_progress (
            user_id, lesson_id, enrolled_course_version_id, status, progress_percentage, completed_at
        )
        SELECT %s, lesson_id, course_version_id, 'completed', 100, '2026-01-01' FROM course_version_lessons
        """,
        user_id,
    )


@pytest.fixture
def lambdas_trace(monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of the trace that Lambda itself has begun."""
    monkeypatch.setenv("_X_AMZN_TRACE_ID", f"Root=1-00000000-{99:024x};Parent={'b' * 16};Sampled=1")
    return 99


# ------------------------------------------------------------------------------------------------------------------- HTTP


def test_all_that_requests_cause_carries_their_traceparent(service: Service):
    version, other = (course(lessons=1, quizzes=[quiz()]) for _ in range(2))
    other["lessons"], other["quizzes"] = version["lessons"], version["quizzes"]
    service.send("catalog", event("course_version.published", version), event("course_version.published", other))
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada"}))
    base = f"/users/{LEARNER}/enrollments/{version['course_version_id']}"
    headers = {"traceparent": traceparent()}

    def call(method: str, path: str, body: Any = None) -> Any:
        answer = service.admin(method, path, body, headers=headers)
        assert answer.status < 300, answer.text
        return answer

    call("PUT", base)
    call("POST", f"{base}/cancel")
    call("PUT", base)
    call("PUT", f"{base}/lessons/{version['lessons'][0]['lesson_id']}/progress", {"status": "completed"})
    attempt = call("POST", f"{base}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts").json["id"]
    call("POST", f"/quiz-attempts/{attempt}/submit", {"answers": {"q1": "a"}})
    while service.deliver():
        pass
    uid = call("GET", f"{base}/certificate").json["certificate_uid"]
    for act in ("revoke", "reinstate", "reissue"):
        call("POST", f"/certificates/{uid}/{act}", {"reason": "x"})
    call("POST", f"{base}/revoke", {"reason": "x", "revoke_certificate": True})
    call("POST", f"{base}/reinstate", {"reason": "x"})
    call("POST", f"{base}/transfer", {"to": other["course_version_id"], "reason": "x"})
    call("POST", f"{base}/reset", {"reason": "x"})
    for item in (version["lessons"][0]["lesson_id"], version["quizzes"][0]["quiz_id"]):
        call("PUT", f"{base}/requirements/{item}/waiver", {"reason": "x"})

    rows = caused(service)
    assert {of for _, _, of in rows} == {1}
    assert {kind for kind, _, _ in rows} == {
        *(
            f"enrollment.{what}"
            for what in ("created", "cancelled", "reactivated", "completed", "revoked", "reinstated", "reset")
        ),
        *(f"certificate.{what}" for what in ("issued", "revoked", "reinstated", "reissued")),
        "lesson.completed",
        "quiz.graded",
    }


def test_a_regrade_that_takes_away_carries_that_of_its_request(service: Service):
    version = course(lessons=0, quizzes=[quiz()])
    (asked,) = version["quizzes"]
    ids = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    service.send("catalog", event("course_version.published", version))
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada"}))
    service.send("enrollment", event("enrollment.requested", ids))
    answers = {"attempt_id": str(uuid4()), "quiz_id": asked["quiz_id"], "answers": {"q1": "a"}}
    service.send("quiz", event("quiz.submitted", ids | answers))
    service.deliver()
    questions = [asked["questions"][0] | {"correct": "b"}]
    correction = {"quiz_id": asked["quiz_id"], "questions": questions, "course_version_id": version["course_version_id"]}
    service.send("catalog", event("quiz.answer_key_corrected", correction))
    service.rows("DELETE FROM outbox")
    path = f"/course-versions/{version['course_version_id']}/quizzes/{asked['quiz_id']}/regrade"
    answer = service.admin("POST", path, {"dry_run": False, "take_away": True}, headers={"traceparent": traceparent()})
    assert answer.json["passes_lost"] == 1
    assert caused(service) == {(kind, LEARNER, 1) for kind in ("quiz.regraded", "enrollment.reactivated", "certificate.revoked")}


def test_without_a_valid_one_it_is_that_of_lambdas_trace(service: Service, version: dict[str, Any], lambdas_trace: int):
    enrolled(service, version, LEARNER)
    path = f"/users/me/enrollments/{version['course_version_id']}/lessons/{{}}/progress"
    twice = f"{traceparent()},{traceparent(2)}"
    for lesson, headers in zip(version["lessons"], ({}, {"traceparent": twice}, {"traceparent": traceparent()}), strict=True):
        answer = service.http("PUT", path.format(lesson["lesson_id"]), {"status": "completed"}, headers=headers)
        assert answer.status == 200
    assert caused(service) == {
        ("lesson.completed", LEARNER, 99),
        ("enrollment.completed", LEARNER, 99),
        ("lesson.completed", LEARNER, 1),
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.from_regex(r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"))
def test_no_header_makes_a_difference_to_the_answer(service: Service, text: str):
    plain = service.http("GET", "/health")
    traced = service.http("GET", "/health", headers={"traceparent": text})
    assert (plain.status, plain.json) == (traced.status, traced.json)


# ---------------------------------------------------------------------------------------------------------------- batches


def test_each_report_of_a_batch_hands_on_its_own(service: Service, version: dict[str, Any], lambdas_trace: int):
    people = [learner(n) for n in range(5)]
    enrolled(service, version, *people)
    service.send(
        "progress",
        [
            report(version, people[0], 0, traceparent=traceparent(1)),
            report(version, people[1], 0, traceparent=traceparent(2)),
            report(version, people[0], 1, traceparent=traceparent(3)),
            report(version, people[2], 0, traceparent="nonsense"),
            report(version, people[3], 0),
        ],
        report(version, people[1], 1, traceparent=traceparent(4)),
        report(version, people[4], 0, traceparent=traceparent(5)),
    )
    assert caused(service) == {
        ("lesson.completed", people[0], 1),
        ("lesson.completed", people[0], 3),
        ("enrollment.completed", people[0], 3),
        ("lesson.completed", people[1], 2),
        ("lesson.completed", people[1], 4),
        ("enrollment.completed", people[1], 4),
        ("lesson.completed", people[2], lambdas_trace),
        ("lesson.completed", people[3], lambdas_trace),
        ("lesson.completed", people[4], 5),
    }


def test_a_completion_is_handed_that_of_the_report_that_fulfilled_the_last_item(service: Service, version: dict[str, Any]):
    enrolled(service, version, LEARNER, learner(1), learner(2))
    service.send("progress", report(version, learner(1), 0, "2026-01-05T00:00:00Z", traceparent=traceparent(50)))
    service.rows("DELETE FROM outbox")
    unknown = report(version, LEARNER, 0, "2026-01-09T00:00:00Z", traceparent=traceparent(9))
    unknown["data"]["lesson_id"] = str(uuid4())
    service.send(
        "progress",
        [
            # Not the one that comes first, nor last, nor is dated last: the second lesson was completed by its earliest report.
            report(version, LEARNER, 1, "2026-01-07T00:00:00Z", traceparent=traceparent(7)),
            report(version, LEARNER, 1, "2026-01-05T00:00:00Z", traceparent=traceparent(5)),
            report(version, LEARNER, 0, "2026-01-03T00:00:00Z", traceparent=traceparent(3)),
            # Neither an optional lesson, nor one that is not there, nor one that had been completed has a part in it.
            report(version, LEARNER, 2, "2026-01-08T00:00:00Z", traceparent=traceparent(8)),
            unknown,
            report(version, learner(1), 0, "2026-01-06T00:00:00Z", traceparent=traceparent(6)),
            report(version, learner(1), 1, "2026-01-01T00:00:00Z", traceparent=traceparent(1)),
            # The earliest one has none, so it is the invocation's, of which there is none here.
            report(version, learner(2), 0, "2026-01-01T00:00:00Z", traceparent=traceparent(10)),
            report(version, learner(2), 1, "2026-01-02T00:00:00Z"),
            report(version, learner(2), 1, "2026-01-03T00:00:00Z", traceparent=traceparent(11)),
        ],
    )
    assert caused(service) == {
        ("lesson.completed", LEARNER, 3),
        ("lesson.completed", LEARNER, 5),
        ("lesson.completed", LEARNER, 8),
        ("enrollment.completed", LEARNER, 5),
        ("lesson.completed", learner(1), 1),
        ("enrollment.completed", learner(1), 1),
        ("lesson.completed", learner(2), 10),
        ("lesson.completed", learner(2), None),
        ("enrollment.completed", learner(2), None),
    }


def test_each_attempt_of_a_batch_hands_on_its_own(service: Service, lambdas_trace: int):
    version = course(lessons=0, quizzes=[quiz(), quiz(required=False)])
    required, optional = (q["quiz_id"] for q in version["quizzes"])
    service.send("catalog", event("course_version.published", version))
    people = [learner(n) for n in range(3)]
    enrolled(service, version, *people)

    def submitted(user_id: UUID, quiz_id: str, answer: str, **fields: Any) -> dict[str, Any]:
        data = {"attempt_id": str(uuid4()), "user_id": str(user_id), "quiz_id": quiz_id, "answers": {"q1": answer}}
        return event("quiz.submitted", data | {"course_version_id": version["course_version_id"]}, **fields)

    service.send(
        "quiz",
        [
            submitted(people[0], required, "a", traceparent=traceparent(1)),
            submitted(people[1], required, "a", traceparent=traceparent(2)),
            submitted(people[1], required, "b", traceparent=traceparent(3)),
            submitted(people[1], optional, "a", traceparent=traceparent(4)),
            submitted(people[2], required, "a"),
        ],
    )
    assert caused(service) == {
        ("quiz.graded", people[0], 1),
        ("enrollment.completed", people[0], 1),
        ("quiz.graded", people[1], 2),
        ("quiz.graded", people[1], 3),
        ("quiz.graded", people[1], 4),
        ("enrollment.completed", people[1], 2),
        ("quiz.graded", people[2], lambdas_trace),
        ("enrollment.completed", people[2], lambdas_trace),
    }


def test_each_command_of_a_batch_hands_on_its_own(service: Service, version: dict[str, Any], lambdas_trace: int):
    ids = {"course_version_id": version["course_version_id"]}
    # This one has all that is required, but left before anyone noticed, so that enrolling again completes.
    ids3 = ids | {"user_id": str(learner(3))}
    service.send("enrollment", event("enrollment.requested", ids3, "2026-01-01T00:00:00Z"))
    service.send("enrollment", event("enrollment.cancelled", ids3, "2026-01-02T00:00:00Z"))
    complete_lessons(service, learner(3))
    service.rows("DELETE FROM outbox")

    def command(kind: str, n: int, time: str, **fields: Any) -> dict[str, Any]:
        data = ids | {"user_id": str(learner(n))} | ({"reason": "x"} if kind == "revoked" else {})
        return event(f"enrollment.{kind}", data, time, **fields)

    service.send(
        "enrollment",
        [
            command("revoked", 1, "2026-01-03T00:00:00Z", traceparent=traceparent(2)),
            command("requested", 1, "2026-01-02T00:00:00Z", traceparent=traceparent(1)),
            command("requested", 2, "2026-01-02T00:00:00Z"),
            command("requested", 3, "2026-01-03T00:00:00Z", traceparent=traceparent(3)),
        ],
    )
    assert caused(service) == {
        ("enrollment.created", learner(1), 1),
        ("enrollment.revoked", learner(1), 2),
        ("enrollment.created", learner(2), lambdas_trace),
        ("enrollment.reactivated", learner(3), 3),
        ("enrollment.completed", learner(3), 3),
    }


def test_each_certificate_of_a_batch_is_told_of_with_its_own(service: Service, version: dict[str, Any], lambdas_trace: int):
    people = [learner(n) for n in range(4)]
    enrolled(service, version, *people)
    service.send("progress", [report(version, user_id, lesson) for user_id in people for lesson in (0, 1)])
    service.rows("DELETE FROM outbox")
    names = [
        event("learner.updated", {"user_id": str(user_id), "name": "Ada"}, traceparent=traceparent(n) if n else None)
        for n, user_id in enumerate(people)
    ]
    service.send("catalog", [*names, names[3] | {"traceparent": traceparent(9)}])
    asked = {("enrollment.completed", user_id, n or lambdas_trace) for n, user_id in enumerate(people)}
    assert caused(service) == asked
    completed = [
        event(
            "enrollment.completed",
            {"user_id": str(user_id), "course_version_id": version["course_version_id"]},
            traceparent=traceparent(20 + n) if n else None,
        )
        for n, user_id in enumerate(people)
    ]
    service.send("certificate", [*completed, completed[3] | {"traceparent": traceparent(9)}])
    issued = {("certificate.issued", user_id, 20 + n if n else lambdas_trace) for n, user_id in enumerate(people)}
    assert caused(service) == asked | issued


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON, min_size=1, max_size=20))
def test_no_attribute_is_a_reason_to_refuse_an_event(service: Service, values: list[Any]):
    version = course(lessons=1, required_lessons=0)
    people = [uuid4() for _ in values]
    service.send("catalog", event("course_version.published", version))
    enrolled(service, version, *people)
    pairs = list(zip(people, values, strict=True))
    service.send(
        "progress",
        [report(version, user_id, 0, traceparent=value) for user_id, value in pairs],
        *({"detail-type": "x", "detail": report(version, user_id, 0, now(), traceparent=value)} for user_id, value in pairs),
    )
    assert caused(service) == {("lesson.completed", user_id, None) for user_id in people}
    assert service.rows("SELECT 1 FROM outbox WHERE body IS NOT NULL") == []


# ------------------------------------------------------------------------------------------- while a deployment is under way


def test_the_function_that_the_code_of_before_calls_still_works(service: Service, version: dict[str, Any]):
    enrolled(service, version, LEARNER)
    complete_lessons(service, LEARNER)
    with psycopg.connect(service.database_url) as conn:
        conn.execute("SELECT complete_enrollments(%b::uuid[], %b::uuid[])", [[LEARNER], [UUID(version["course_version_id"])]])
    assert caused(service) == {("enrollment.completed", LEARNER, None)}


# ------------------------------------------------------------------------------------------------------------------- logs


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the logger writes."""
    stream = io.StringIO()
    monkeypatch.setattr(logger.registered_handler, "stream", stream)
    return stream


def lines(log: io.StringIO) -> Rows:
    """The lines since the last look."""
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    log.seek(0)
    log.truncate()
    return found


def test_a_worker_says_once_what_it_handled(service: Service, version: dict[str, Any], lambdas_trace: int, log: io.StringIO):
    enrolled(service, version, LEARNER)
    early = report(version, uuid4(), 0, traceparent=traceparent(2))
    bad = report(version, LEARNER, 0, traceparent=traceparent(3)) | {"time": "yesterday"}
    lines(log)
    service.send(
        "progress",
        [report(version, LEARNER, 0, traceparent=traceparent(1)), report(version, LEARNER, 1, traceparent=traceparent(1)), early],
        {"detail-type": "x", "detail": bad},
        report(version, LEARNER, 2),
        "no json",
    )
    *apart, handled = lines(log)
    assert [(line["message"], line["code"], line["trace_id"]) for line in apart] == [
        ("event set apart", "invalid", f"{3:032x}"),
        ("event set apart", "malformed", f"{lambdas_trace:032x}"),
        ("event set apart", "enrollment_not_found", f"{2:032x}"),
    ]
    assert handled["level"] == "INFO"
    assert {name: handled[name] for name in ("message", "queue", "events", "taken", "set_apart", "trace_id")} == {
        "message": "events handled",
        "queue": "progress",
        "events": 6,
        "taken": 3,
        "set_apart": 3,
        "trace_id": f"{lambdas_trace:032x}",
    }
    assert handled["trace_ids"] == [f"{n:032x}" for n in (1, 2, lambdas_trace, 3)]
    apart_rows = service.rows("SELECT code, traceparent FROM outbox WHERE body IS NOT NULL ORDER BY code")
    assert apart_rows == [
        {"code": "enrollment_not_found", "traceparent": traceparent(2)},
        {"code": "invalid", "traceparent": traceparent(3)},
        {"code": "malformed", "traceparent": traceparent(lambdas_trace)},
    ]


def test_a_worker_names_fifty_traces_at_most(service: Service, version: dict[str, Any], log: io.StringIO):
    enrolled(service, version, LEARNER)
    lines(log)
    service.send("progress", [report(version, LEARNER, 0, traceparent=traceparent(1 + n)) for n in range(60)])
    (line,) = lines(log)
    assert (line["events"], len(line["trace_ids"])) == (60, 50)


def test_lines_of_a_request_carry_its_id_and_its_trace(log: io.StringIO):
    def speak(_event: Any, _context: Any) -> dict[str, Any]:
        logger.info("spoken")
        return {}

    handler = observed(http=True)(speak)
    context: Any = Context("ReportApi")
    handler({"headers": {"traceparent": traceparent()}, "requestContext": {"requestId": "of-the-gateway"}}, context)
    handler({"headers": {}, "requestContext": {"requestId": "of-the-next-one"}}, context)
    first, second = lines(log)
    assert (first["correlation_id"], first["trace_id"]) == ("of-the-gateway", f"{1:032x}")
    assert second["correlation_id"] == "of-the-next-one"
    assert "trace_id" not in second, "nothing is left of the request before"
