"""Certificates: issued once and only when due, frozen, revoked and reinstated, and verified by anyone."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from shared.certificate.rules import new_uid, read_uid
from tests.support.service import ADMIN, Service, at_once, course, event, quiz


@dataclass(frozen=True)
class Learner:
    """A learner in one course version."""

    service: Service
    user_id: str
    version: dict[str, Any]

    @property
    def about(self) -> dict[str, str]:
        return {"user_id": self.user_id, "course_version_id": self.version["course_version_id"]}

    @property
    def path(self) -> str:
        return f"/users/{self.user_id}/enrollments/{self.version['course_version_id']}"

    def enrol(self) -> None:
        self.service.send("enrollment", event("enrollment.requested", self.about, "2026-01-01T12:00:00Z"))

    def learn(self, time: str = "2026-01-02T12:00:00Z") -> None:
        """Complete all lessons."""
        lessons = [self.about | {"lesson_id": lesson["lesson_id"], "status": "completed"} for lesson in self.version["lessons"]]
        self.service.send("progress", [event("lesson.progressed", lesson, time) for lesson in lessons])

    def sit(self, answers: dict[str, Any], number: int = 0) -> None:
        """Submit an attempt at a quiz."""
        attempt = {"attempt_id": str(uuid4()), "quiz_id": self.version["quizzes"][number]["quiz_id"], "answers": answers}
        self.service.send("quiz", event("quiz.submitted", self.about | attempt, "2026-01-02T12:00:00Z"))

    def complete(self) -> None:
        self.enrol()
        self.learn()

    def named(self, name: str = "Ada Lovelace", time: str | None = None, **fields: Any) -> dict[str, Any]:
        return event("learner.updated", {"user_id": self.user_id, "name": name} | fields, time)

    def completed(self) -> dict[str, Any]:
        """The message that asks for the certificate."""
        return event("enrollment.completed", self.about | {"status": "completed", "sequence": 9})

    def certificate(self) -> dict[str, Any]:
        answer = self.service.admin("GET", f"{self.path}/certificate")
        assert answer.status == 200, answer.text
        return answer.json

    def missing(self) -> list[str]:
        """What the certificate still waits for."""
        needed = self.certificate()
        assert needed["status"] == "not_yet"
        return [requirement["kind"] for requirement in needed["requirements"] if not requirement["met"]]

    def rows(self) -> list[dict[str, Any]]:
        return self.service.rows("SELECT * FROM certificates WHERE user_id = %s", self.user_id)

    def events(self) -> list[str]:
        mine = [e for e in self.service.published() if e["data"]["user_id"] == self.user_id]
        assert [e["data"]["sequence"] for e in mine] == list(range(1, len(mine) + 1))
        return [e["type"] for e in mine]


def published(service: Service, **fields: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"lessons": 1} | fields
    version = course(**options)
    service.send("catalog", event("course_version.published", version))
    assert service.dead_letters() == []
    return version


def a_learner(service: Service, version: dict[str, Any]) -> Learner:
    return Learner(service, str(uuid4()), version)


@pytest.fixture
def learner(service: Service) -> Learner:
    return a_learner(service, published(service))


@pytest.fixture
def certified(learner: Learner) -> Learner:
    """A learner who has a certificate."""
    learner.service.send("catalog", learner.named())
    learner.complete()
    learner.service.deliver()
    return learner


# Issued once


def test_it_is_issued_once_however_often_it_is_asked_for(certified: Learner):
    service = certified.service
    first = certified.certificate()
    message = certified.completed()
    service.send("certificate", message)
    service.send("certificate", [message, message, certified.completed()], message)
    service.send("catalog", certified.named("Ada King"))
    service.deliver()
    assert certified.certificate() == first
    assert len(certified.rows()) == 1
    assert certified.events() == ["enrollment.created", "lesson.completed", "enrollment.completed", "certificate.issued"]
    issued = service.published("certificate.issued")[0]["data"]
    assert issued == certified.about | {"certificate_uid": first["certificate_uid"], "status": "valid", "sequence": 4}


def test_it_is_issued_once_when_asked_for_by_several_at_once(service: Service):
    version = published(service)
    learners = [a_learner(service, version) for _ in range(8)]
    service.send("catalog", [learner.named() for learner in learners])
    for learner in learners:
        learner.complete()

    def ask(who: list[Learner]) -> Callable[[], None]:
        return lambda: service.send("certificate", [learner.completed() for learner in who])

    at_once([ask(learners[n:] + learners[:n]) for n in range(4)] + [ask(learners[::-1]) for _ in range(2)])
    for learner in learners:
        assert len(learner.rows()) == 1
        assert learner.events().count("certificate.issued") == 1
    assert len({learner.rows()[0]["certificate_uid"] for learner in learners}) == len(learners)
    assert service.dead_letters() == []


@pytest.mark.parametrize("in_envelope", [False, True])
def test_it_is_asked_for_bare_or_in_the_envelope_of_the_bus(learner: Learner, in_envelope: bool):
    service = learner.service
    service.send("catalog", learner.named())
    learner.complete()
    message = learner.completed()
    envelope = {
        "version": "0",
        "id": str(uuid4()),
        "source": "learner-progress",
        "detail-type": message["type"],
        "detail": message,
    }
    service.send("certificate", envelope if in_envelope else message)
    assert learner.certificate()["status"] == "valid"
    assert service.dead_letters() == []


def test_what_the_service_says_about_certificates_is_taken_without_effect(certified: Learner):
    service = certified.service
    before = certified.rows()
    uid = certified.certificate()["certificate_uid"]
    for kind in ("revoked", "reinstated", "reissued"):
        service.send("certificate", event(f"certificate.{kind}", certified.about | {"certificate_uid": uid, "status": "valid"}))
    assert certified.rows() == before
    assert service.dead_letters() == []


def test_it_says_what_was_achieved(service: Service):
    version = published(service, lessons=2, quizzes=[quiz(), quiz(title="Final"), quiz(required=False)])
    learner = a_learner(service, version)
    service.send("catalog", learner.named(locale="en-GB"))
    learner.complete()
    # 75, then 100 of the first; 75 of the second; the third is not required and does not count.
    learner.sit({"q1": "a"})
    learner.sit({"q1": "a", "q2": 0.1})
    learner.sit({"q1": "b"}, number=2)
    learner.sit({"q1": "a"}, number=1)
    before = datetime.now(UTC)
    service.deliver()
    own = learner.certificate()
    uid = own["certificate_uid"]
    assert own == {
        "certificate_uid": uid,
        "status": "valid",
        "learner_name": "Ada Lovelace",
        "course_title": "Social science",
        "version": "2013J",
        "issuer_name": "Open College",
        "criteria": [
            *({"kind": "lesson", "title": f"Lesson {n}", "pass_threshold_percentage": None} for n in range(2)),
            {"kind": "quiz", "title": "Quiz", "pass_threshold_percentage": 50},
            {"kind": "quiz", "title": "Final", "pass_threshold_percentage": 50},
        ],
        "score": 87.5,
        "completed_at": "2026-01-02T12:00:00Z",
        "issued_at": own["issued_at"],
        "expires_at": None,
        "revoked_at": None,
        "revocation_reason": None,
        "url": f"http://127.0.0.1:3000/certificates/{uid}",
        "user_id": learner.user_id,
        "course_version_id": version["course_version_id"],
    }
    assert before <= datetime.fromisoformat(own["issued_at"]) <= datetime.now(UTC)
    assert own["issued_at"].endswith("Z")
    # Strangers see all but whose and of which course version it is by id.
    shown = service.http("GET", f"/certificates/{uid}", sub=None).json
    assert shown == {name: value for name, value in own.items() if name not in ("user_id", "course_version_id")}
    assert service.admin("GET", f"/users/{learner.user_id}/certificates").json == {"items": [own], "next_cursor": None}
    assert service.http("GET", "/users/me/certificates", sub=UUID(learner.user_id)).json["items"] == [own]
    enrollment = service.admin("GET", learner.path).json
    assert (enrollment["certificate_uid"], enrollment["certificate_status"]) == (uid, "valid")


def test_without_a_required_quiz_it_has_no_score(certified: Learner):
    assert certified.certificate()["score"] is None
    page = certified.service.http(
        "GET", f"/certificates/{certified.certificate()['certificate_uid']}", sub=None, headers={"accept": "text/html"}
    )
    assert "Score" not in page.text


def test_what_it_says_is_frozen_when_it_is_issued(certified: Learner):
    before = certified.certificate()
    service = certified.service
    service.send("catalog", certified.named("Somebody Else", locale="de"))
    # An earlier report that arrives late moves the enrolment's completion, not what was certified.
    certified.learn("2026-01-01T13:00:00Z")
    service.deliver()
    assert service.admin("GET", certified.path).json["completed_at"] == "2026-01-01T13:00:00Z"
    assert certified.certificate() == before
    assert before["completed_at"] == "2026-01-02T12:00:00Z"


def test_each_course_version_gives_one_of_its_own(service: Service):
    versions = [published(service) for _ in range(3)]
    learners = [Learner(service, str(UUID(int=7)), version) for version in versions]
    service.send("catalog", learners[0].named())
    for learner in learners:
        learner.complete()
    service.deliver()
    items = service.admin("GET", f"/users/{UUID(int=7)}/certificates").json["items"]
    assert {item["course_version_id"] for item in items} == {version["course_version_id"] for version in versions}
    assert [item["issued_at"] for item in items] == sorted(item["issued_at"] for item in items)


# Not before it is due


def test_it_waits_for_the_learners_name(learner: Learner):
    service = learner.service
    learner.complete()
    service.deliver()
    assert learner.rows() == []
    assert learner.missing() == ["learner_name"]
    service.send("catalog", learner.named())
    service.deliver()
    assert learner.certificate()["learner_name"] == "Ada Lovelace"
    assert service.dead_letters() == []


def test_a_name_known_before_needs_no_waiting(learner: Learner):
    learner.service.send("catalog", learner.named())
    assert learner.service.deliver() == 0
    learner.complete()
    learner.service.deliver()
    assert learner.certificate()["status"] == "valid"


def test_the_name_is_the_latest_by_the_messages_own_times(learner: Learner):
    service = learner.service
    service.send("catalog", learner.named("New", "2026-02-02T00:00:00Z"))
    service.send("catalog", learner.named("Old", "2026-02-01T00:00:00Z"))
    learner.complete()
    service.deliver()
    assert learner.certificate()["learner_name"] == "New"


def test_one_name_sets_all_waiting_certificates_of_the_learner_going(service: Service):
    learners = [Learner(service, str(UUID(int=7)), published(service)) for _ in range(4)]
    for learner in learners:
        learner.complete()
    service.deliver()
    assert [learner.missing() for learner in learners] == [["learner_name"]] * 4
    service.send("catalog", learners[0].named())
    assert service.deliver() == 4
    assert [learner.certificate()["status"] for learner in learners] == ["valid"] * 4


def test_name_and_completion_at_the_same_moment_do_not_miss_each_other(service: Service):
    version = published(service)
    learners = [a_learner(service, version) for _ in range(12)]
    for learner in learners:
        learner.complete()

    def each(queue: str, message: Callable[[Learner], dict[str, Any]]) -> Callable[[], None]:
        def send() -> None:
            for learner in learners:
                service.send(queue, message(learner))

        return send

    service.rows("UPDATE outbox SET sent_at = now()")
    at_once([each("certificate", Learner.completed), each("catalog", Learner.named)])
    service.deliver()
    for learner in learners:
        assert learner.certificate()["status"] == "valid"
        assert learner.events().count("certificate.issued") == 1


def test_where_there_are_no_certificates_there_is_none_and_nothing_is_missing(service: Service):
    learner = a_learner(service, published(service, certificate={"enabled": False}))
    learner.complete()
    service.deliver()
    service.send("catalog", learner.named())
    service.send("certificate", learner.completed())
    service.deliver()
    needed = learner.certificate()
    assert needed["status"] == "not_yet"
    assert needed["requirements"] == []
    assert learner.rows() == []
    assert "certificate.issued" not in learner.events()
    enrollment = service.admin("GET", learner.path).json
    assert (enrollment["certificate_uid"], enrollment["certificate_status"]) == (None, None)


def test_the_requirements_are_listed_in_the_order_of_the_course_each_with_its_state(service: Service):
    version = published(service, lessons=4, required_lessons=3, quizzes=[quiz(title="One"), quiz(title="Two", required=False)])
    learner = a_learner(service, version)
    learner.enrol()
    first = learner.about | {"lesson_id": version["lessons"][1]["lesson_id"]}
    service.send("progress", event("lesson.progressed", first | {"status": "completed"}))
    service.send(
        "progress",
        event("lesson.progressed", first | {"lesson_id": version["lessons"][0]["lesson_id"], "progress_percentage": 99}),
    )
    learner.sit({"q1": "b"})
    needed = learner.certificate()
    assert set(needed) == {"status", "requirements"}
    assert [(r["kind"], r["id"], r["title"], r["met"]) for r in needed["requirements"]] == [
        *(("lesson", lesson["lesson_id"], lesson["title"], n == 1) for n, lesson in enumerate(version["lessons"][:3])),
        ("quiz", version["quizzes"][0]["quiz_id"], "One", False),
        ("learner_name", None, "Learner's name", False),
    ]
    assert all(r["detail"] for r in needed["requirements"])
    learner.sit({"q1": "a"})
    service.send("catalog", learner.named())
    learner.learn()
    # Completed, and not yet issued.
    assert learner.missing() == []
    service.deliver()
    assert learner.certificate()["status"] == "valid"


def test_there_is_nothing_to_list_without_an_enrolment(learner: Learner):
    answer = learner.service.admin("GET", f"{learner.path}/certificate")
    assert answer.status == 404
    assert answer.json["type"].endswith(":enrollment_not_found")


@pytest.mark.parametrize("kind", ["revoked", "cancelled", None])
def test_an_enrolment_that_is_not_completed_gets_none(learner: Learner, kind: str | None):
    service = learner.service
    service.send("catalog", learner.named())
    learner.enrol()
    if kind:
        service.send("enrollment", event(f"enrollment.{kind}", learner.about))
    service.send("certificate", learner.completed())
    service.deliver()
    assert learner.rows() == []
    assert learner.missing() == (["enrollment", "lesson"] if kind else ["lesson"])


def test_where_nothing_is_required_the_enrolment_itself_is_what_is_missing(service: Service):
    learner = a_learner(service, published(service, lessons=1, required_lessons=0))
    service.send("catalog", learner.named())
    learner.enrol()
    assert learner.missing() == ["enrollment"]


@pytest.mark.parametrize("via", ["http", "queue"])
def test_a_completed_enrolment_revoked_before_issue_gets_none_until_it_is_reinstated(learner: Learner, via: str):
    service = learner.service
    service.send("catalog", learner.named())
    learner.complete()
    service.send("enrollment", event("enrollment.revoked", learner.about))
    service.deliver()
    assert learner.rows() == []
    assert learner.missing() == ["enrollment"]
    if via == "http":
        assert service.admin("POST", f"{learner.path}/reinstate", {"reason": "was not"}).status == 200
    else:
        service.send("enrollment", event("enrollment.reinstated", learner.about))
    service.deliver()
    assert learner.certificate()["status"] == "valid"
    assert learner.events().count("certificate.issued") == 1


def test_revoking_and_reinstating_the_enrolment_leaves_an_issued_certificate_as_it_was(certified: Learner):
    service, before = certified.service, certified.certificate()
    service.admin("POST", f"{certified.path}/revoke", {"reason": "r"})
    assert certified.certificate() == before
    service.admin("POST", f"{certified.path}/reinstate", {"reason": "r"})
    service.deliver()
    assert certified.certificate() == before
    assert certified.events().count("certificate.issued") == 1


# Valid, expired, revoked


def test_it_expires_after_the_days_that_the_course_version_gives_it(service: Service):
    learner = a_learner(service, published(service, certificate={"enabled": True, "valid_for_days": 365}))
    service.send("catalog", learner.named())
    learner.complete()
    service.deliver()
    certificate = learner.certificate()
    issued, expires = (datetime.fromisoformat(certificate[name]) for name in ("issued_at", "expires_at"))
    assert expires - issued == timedelta(days=365)
    assert certificate["status"] == "valid"
    path = f"/certificates/{certificate['certificate_uid']}"
    service.rows("UPDATE certificates SET expires_at = now() + interval '1 minute'")
    assert service.http("GET", path, sub=None).json["status"] == "valid"
    service.rows("UPDATE certificates SET expires_at = '2026-02-03T00:00:00Z'")
    shown = service.http("GET", path, sub=None)
    assert (shown.status, shown.json["status"], shown.json["expires_at"]) == (200, "expired", "2026-02-03T00:00:00Z")
    assert learner.certificate()["status"] == "expired"
    assert service.admin("GET", learner.path).json["certificate_status"] == "expired"
    assert service.admin("GET", f"/users/{learner.user_id}/certificates").json["items"][0]["status"] == "expired"
    page = service.http("GET", path, sub=None, headers={"accept": "text/html"})
    assert "Expired" in page.text
    assert "3 February 2026" in page.text
    # What is revoked is revoked, expired or not.
    service.admin("POST", f"{path}/revoke", {"reason": "fraud"})
    assert service.http("GET", path, sub=None).json["status"] == "revoked"


def test_the_longest_validity_stays_within_the_calendar(service: Service):
    learner = a_learner(service, published(service, certificate={"valid_for_days": 1_000_000}))
    service.send("catalog", learner.named())
    learner.complete()
    service.deliver()
    assert learner.certificate()["expires_at"] > "4000"
    page = service.http(
        "GET", f"/certificates/{learner.certificate()['certificate_uid']}", sub=None, headers={"accept": "text/html"}
    )
    assert page.status == 200


def test_revoked_and_reinstated_it_keeps_its_uid_and_tells_of_each_change_once(certified: Learner):
    service, before = certified.service, certified.certificate()
    path = f"/certificates/{before['certificate_uid']}"
    revoked = service.admin("POST", f"{path}/revoke", {"reason": "fraud"})
    assert revoked.status == 200, revoked.text
    assert (revoked.json["status"], revoked.json["revocation_reason"]) == ("revoked", "fraud")
    assert revoked.json["user_id"] == certified.user_id
    # Once more, with another reason: the first one stands.
    assert service.admin("POST", f"{path}/revoke", {"reason": "other"}).json == revoked.json
    row = certified.rows()[0]
    assert (row["revocation_reason"], row["revoked_by"]) == ("fraud", str(ADMIN))
    assert service.admin("GET", certified.path).json["certificate_status"] == "revoked"
    shown = service.http("GET", path, sub=None)
    assert (shown.status, shown.json["status"], shown.json["revocation_reason"]) == (200, "revoked", "fraud")
    assert shown.json["revoked_at"] == revoked.json["revoked_at"]
    assert str(ADMIN) not in shown.text
    page = service.http("GET", path, sub=None, headers={"accept": "text/html"})
    assert page.status == 200
    assert "Revoked" in page.text
    assert "fraud" in page.text
    assert "This certificate is genuine and has not been revoked." not in page.text

    reinstated = service.admin("POST", f"{path}/reinstate", {"reason": "was not"})
    assert reinstated.json == before
    assert service.admin("POST", f"{path}/reinstate", {"reason": "was not"}).json == before
    assert service.http("GET", path, sub=None).json["status"] == "valid"
    assert (
        "This certificate is genuine and has not been revoked."
        in service.http("GET", path, sub=None, headers={"accept": "text/html"}).text
    )
    assert certified.events()[3:] == ["certificate.issued", "certificate.revoked", "certificate.reinstated"]
    told = {e["type"]: e["data"] for e in service.published()}
    uid = {"certificate_uid": before["certificate_uid"]}
    assert told["certificate.revoked"] == certified.about | uid | {"status": "revoked", "reason": "fraud", "sequence": 5}
    assert told["certificate.reinstated"] == certified.about | uid | {"status": "valid", "reason": "was not", "sequence": 6}
    # What the bus brings back to the service changes nothing.
    service.deliver()
    assert certified.certificate() == before
    acts = service.admin("GET", f"{certified.path}/history").json["items"][-2:]
    assert [(act["type"], act["actor"], act["reason"], act["details"]) for act in acts] == [
        ("certificate_revoked", str(ADMIN), "fraud", uid),
        ("certificate_reinstated", str(ADMIN), "was not", uid),
    ]


def test_a_reinstated_certificate_that_has_expired_meanwhile_is_expired(certified: Learner):
    service = certified.service
    path = f"/certificates/{certified.certificate()['certificate_uid']}"
    service.admin("POST", f"{path}/revoke", {"reason": "fraud"})
    service.rows("UPDATE certificates SET expires_at = now()")
    assert service.admin("POST", f"{path}/reinstate", {"reason": "was not"}).json["status"] == "expired"
    assert service.published("certificate.reinstated")[0]["data"]["status"] == "expired"


def test_commands_on_an_unknown_certificate_are_404_and_on_a_mistyped_one_say_so(certified: Learner):
    service = certified.service
    uid = certified.certificate()["certificate_uid"]
    mistyped = uid[:-1] + ("0" if uid[-1] != "0" else "1")
    before = certified.rows()
    for action in ("revoke", "reinstate"):
        for wrong, code in (
            (new_uid(), "certificate_not_found"),
            (mistyped, "mistyped_certificate_uid"),
            ("x", "mistyped_certificate_uid"),
        ):
            answer = service.admin("POST", f"/certificates/{wrong}/{action}", {"reason": "r"})
            assert answer.status == 404
            assert answer.json["type"].endswith(f":{code}")
    assert certified.rows() == before
    # Typed as people do, it is found.
    assert (
        service.admin("POST", f"/certificates/{uid.lower().replace('-', '')}/revoke", {"reason": "r"}).json["status"] == "revoked"
    )


def test_a_learner_cannot_revoke_or_reinstate_even_their_own(certified: Learner):
    path = f"/certificates/{certified.certificate()['certificate_uid']}"
    for action in ("revoke", "reinstate"):
        assert certified.service.http("POST", f"{path}/{action}", {"reason": "r"}, sub=UUID(certified.user_id)).status == 403
    assert certified.certificate()["status"] == "valid"


def test_the_page_of_an_unknown_certificate_says_which_it_is(service: Service):
    headers = {"accept": "text/html"}
    unknown = service.http("GET", f"/certificates/{new_uid()}", sub=None, headers=headers)
    mistyped = service.http("GET", "/certificates/0000-0000-0000-0000-0000-0001", sub=None, headers=headers)
    assert (unknown.status, mistyped.status) == (404, 404)
    assert "There is no certificate with this number." in unknown.text
    assert "There is a slip in the number" in mistyped.text
    assert "There is a slip in the number" not in unknown.text
    assert "genuine" not in unknown.text + mistyped.text


def test_the_page_may_be_cached_for_a_minute_and_runs_nothing(certified: Learner):
    path = f"/certificates/{certified.certificate()['certificate_uid']}"
    for accept in ("text/html", "application/json"):
        answer = certified.service.http("GET", path, sub=None, headers={"accept": accept})
        assert answer.headers["cache-control"] == "public, max-age=60"
        assert answer.headers["vary"] == "Accept, Accept-Language"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    own = certified.service.admin("GET", f"{certified.path}/certificate")
    assert own.headers["cache-control"] == "no-store"


def test_uids_are_distinct_well_formed_and_read_back():
    uids = [new_uid() for _ in range(2000)]
    assert len(set(uids)) == len(uids)
    assert all(read_uid(uid) == uid for uid in uids)
    assert {len(uid) for uid in uids} == {29}
    # Every one of the random characters takes every value: at 5 bits each, 23 of them are 115 random bits.
    plain = [uid.replace("-", "") for uid in uids]
    assert [len({uid[n] for uid in plain}) for n in range(23)] == [32] * 23


def test_completion_of_an_enrolment_that_nobody_knows_is_tried_again_alone(service: Service):
    version = published(service)
    known, unknown = a_learner(service, version), a_learner(service, version)
    service.send("catalog", [known.named(), unknown.named()])
    known.complete()
    service.send("certificate", [unknown.completed(), known.completed()])
    assert known.certificate()["status"] == "valid"
    apart = service.rows("SELECT destination, queue, code FROM outbox WHERE body IS NOT NULL")
    assert apart == [{"destination": "queue", "queue": "certificate", "code": "enrollment_not_found"}]


@pytest.mark.parametrize("order", list(itertools.permutations(["name", "enrolled", "learnt"])), ids="-".join)
def test_the_certificate_is_there_in_whatever_order_its_causes_arrive(service: Service, order: tuple[str, ...]):
    learner = a_learner(service, published(service))
    steps = {"name": lambda: service.send("catalog", learner.named()), "enrolled": learner.enrol, "learnt": learner.learn}
    for step in order:
        steps[step]()
    # What waits for the enrolment comes again first, then what it leads to.
    for _ in range(3):
        service.deliver()
    assert learner.certificate()["status"] == "valid"
    assert len(learner.rows()) == 1
    assert service.dead_letters() == []
