"""Progress: a join of maxima and minima, in any order, any number of times, by many at once."""

import itertools
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared import db, messages
from tests.support.service import LEARNER, Service, course, event

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def at(minutes: int) -> str:
    """A time, minutes from START."""
    return (START + timedelta(minutes=minutes)).isoformat()


@pytest.fixture
def version(service: Service) -> dict[str, Any]:
    version = course(lessons=3, required_lessons=2)
    service.send("catalog", event("course_version.published", version))
    service.send("catalog", event("learner.updated", {"user_id": str(LEARNER), "name": "Ada Lovelace"}))
    enroll(service, version)
    return version


def enroll(service: Service, version: dict[str, Any], *learners: UUID) -> None:
    """Enrol, long before anything else happens."""
    data = [{"user_id": str(learner), "course_version_id": version["course_version_id"]} for learner in learners or (LEARNER,)]
    service.send("enrollment", [event("enrollment.requested", d, at(-1000)) for d in data])


def progressed(version: dict[str, Any], lesson: int, percentage: float, minutes: int, learner: UUID = LEARNER) -> dict[str, Any]:
    """A report on a lesson of the version, by its number."""
    return event(
        "lesson.progressed",
        {
            "user_id": str(learner),
            "course_version_id": version["course_version_id"],
            "lesson_id": version["lessons"][lesson]["lesson_id"],
            "progress_percentage": percentage,
        },
        at(minutes),
    )


def everything(service: Service) -> tuple[Any, ...]:
    """All that depends on progress."""
    return (
        service.rows("SELECT * FROM lesson_progress ORDER BY user_id, lesson_id"),
        service.rows("SELECT user_id, status, completed_at FROM enrollments ORDER BY user_id"),
    )


def test_percentage_and_status_never_fall_and_times_keep_the_earliest_and_the_latest(service: Service, version: dict[str, Any]):
    service.send(
        "progress",
        progressed(version, 0, 100, 10),
        progressed(version, 0, 30, 20),
        progressed(version, 0, 100, 5),
        progressed(version, 0, 0, 1),
    )
    (row,) = service.rows("SELECT * FROM lesson_progress")
    assert (row["status"], row["progress_percentage"]) == ("completed", 100)
    assert [row[name].isoformat() for name in ("started_at", "completed_at", "last_accessed_at")] == [at(1), at(5), at(20)]


def test_any_report_makes_a_lesson_at_least_in_progress(service: Service, version: dict[str, Any]):
    service.send("progress", progressed(version, 0, 0, 1))
    assert [r["status"] for r in service.rows("SELECT status FROM lesson_progress")] == ["in_progress"]


REPORTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0, 20, 99.5, 100]), st.integers(0, 50)), min_size=1, max_size=12)


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REPORTS, st.data())
def test_every_order_and_repetition_of_reports_gives_the_same_rows(
    service: Service, version: dict[str, Any], reports: list[tuple[int, float, int]], data: st.DataObject
):
    def outcome(reports: list[tuple[int, float, int]], batches: int) -> tuple[Any, ...]:
        service.rows("DELETE FROM lesson_progress")
        service.rows("DELETE FROM enrollment_history")
        service.rows("DELETE FROM enrollments")
        enroll(service, version)
        size = -(-len(reports) // batches)
        for first in range(0, len(reports), size):
            service.send("progress", [progressed(version, *report) for report in reports[first : first + size]])
        return everything(service)

    shuffled = data.draw(st.permutations(reports + data.draw(st.lists(st.sampled_from(reports)))))
    assert outcome(reports, 1) == outcome(shuffled, data.draw(st.integers(1, len(shuffled))))


def test_what_brings_nothing_new_writes_nothing(service: Service, version: dict[str, Any]):
    service.send("progress", progressed(version, 0, 100, 10), progressed(version, 0, 30, 20))
    before = service.rows("SELECT xmin::text, * FROM lesson_progress")
    service.send("progress", progressed(version, 0, 100, 10), progressed(version, 0, 25, 15))
    assert service.rows("SELECT xmin::text, * FROM lesson_progress") == before


def test_completion_is_dated_by_the_item_that_was_fulfilled_last_in_whatever_order(service: Service, version: dict[str, Any]):
    for order in itertools.permutations([(0, 100, 10), (1, 100, 30), (1, 100, 20), (2, 100, 99)]):
        service.rows("DELETE FROM lesson_progress")
        service.rows("DELETE FROM enrollment_history")
        service.rows("DELETE FROM enrollments")
        enroll(service, version)
        for report in order:
            service.send("progress", progressed(version, *report))
        (enrollment,) = service.rows("SELECT status, completed_at FROM enrollments")
        assert (enrollment["status"], enrollment["completed_at"].isoformat()) == ("completed", at(20))


def test_with_nothing_required_it_never_completes_by_itself(service: Service):
    version = course(lessons=1, required_lessons=0)
    service.send("catalog", event("course_version.published", version))
    enroll(service, version)
    service.send("progress", progressed(version, 0, 100, 1))
    detail = service.http("GET", f"/users/me/enrollments/{version['course_version_id']}").json
    assert (detail["status"], detail["progress"]["progress_percentage"]) == ("active", None)


def test_a_report_from_the_future_counts_as_of_now(service: Service, version: dict[str, Any]):
    ahead = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    service.send("progress", progressed(version, 0, 100, 0) | {"time": ahead})
    (row,) = service.rows("SELECT completed_at, completed_at <= now() AS is_past FROM lesson_progress")
    assert row["is_past"]


PAIRS, ENROLLMENTS = 25, 400


def race(service: Service) -> None:
    """Complete 400 enrolments, 25 at a time, each by two connections at the same moment.

    Each of the two sends a last lesson of its own, once, and both send one that is common to them. A pause in the middle of
    the statement that merges makes sure that the two are at it together.
    """
    version = course(lessons=3)
    service.send("catalog", event("course_version.published", version))
    service.rows("CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.003); RETURN NULL; END'")
    service.rows("CREATE TRIGGER pause AFTER INSERT ON lesson_progress FOR EACH STATEMENT EXECUTE FUNCTION pause()")
    learners = [UUID(int=n + 1) for n in range(ENROLLMENTS)]
    service.send("catalog", [event("learner.updated", {"user_id": str(u), "name": "Ada Lovelace"}) for u in learners])
    enroll(service, version, *learners)
    errors: list[BaseException] = []
    # Threads share what Powertools counts in, and it is not made for that; execution environments don't.
    patch = pytest.MonkeyPatch()
    patch.setattr(messages, "count", lambda *counted: None)

    def pair(mine: list[UUID]) -> list[threading.Thread]:
        together = threading.Barrier(2)

        def side(lesson: int) -> None:
            try:
                db.run(lambda conn: conn.execute("SELECT 1"))
                for learner in mine:
                    together.wait()
                    service.send("progress", [progressed(version, n, 100, n, learner) for n in (lesson, 2)])
            except BaseException as error:
                errors.append(error)
                together.abort()
            finally:
                db.close()

        return [threading.Thread(target=side, args=(lesson,)) for lesson in (0, 1)]

    threads = [thread for n in range(PAIRS) for thread in pair(learners[n::PAIRS])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    patch.undo()
    assert not errors


def published_once(service: Service) -> bool:
    """Whether each lesson's and each enrolment's completion was published once, under numbers without a gap."""
    lessons = service.published("lesson.completed")
    events = [(e["data"]["user_id"], e["data"]["sequence"]) for e in service.published()]
    numbers = service.rows("SELECT user_id::text, generate_series(1, sequence)::int AS n FROM enrollments")
    return (
        len({(e["data"]["user_id"], e["data"]["lesson_id"]) for e in lessons}) == len(lessons) == 3 * ENROLLMENTS
        and len(service.published("enrollment.completed")) == ENROLLMENTS
        and sorted(events) == sorted((row["user_id"], row["n"]) for row in numbers)
    )


def test_each_of_400_enrolments_completes_once_when_its_last_two_lessons_come_at_the_same_moment(service: Service):
    race(service)
    assert service.rows("SELECT count(*) AS n FROM enrollments WHERE status = 'completed'")[0]["n"] == ENROLLMENTS
    assert published_once(service)
    service.deliver()
    assert service.rows("SELECT count(*) AS n FROM certificates")[0]["n"] == ENROLLMENTS
    assert len(service.published("certificate.issued")) == ENROLLMENTS
    assert not service.dead_letters()


def test_without_the_lock_completions_are_told_twice(service: Service, monkeypatch: pytest.MonkeyPatch):
    no_lock: Callable[..., None] = lambda conn, keys: None  # noqa: E731
    monkeypatch.setattr(db, "lock_enrollments", no_lock)
    race(service)
    assert not published_once(service), "the race must be one, or the test beside this one shows nothing"


def test_concurrent_batches_in_opposite_orders_neither_deadlock_nor_lose_anything(service: Service, version: dict[str, Any]):
    learners = [UUID(int=n + 1) for n in range(50)]
    enroll(service, version, *learners)
    reports = [progressed(version, lesson, 100, 1, u) for u in learners for lesson in (0, 1)]
    together = threading.Barrier(4)
    errors: list[BaseException] = []

    def batch(seed: int) -> None:
        try:
            mine = random.Random(seed).sample(reports, len(reports))
            together.wait()
            for first in range(0, len(mine), 20):
                service.send("progress", mine[first : first + 20])
        except BaseException as error:
            errors.append(error)
        finally:
            db.close()

    threads = [threading.Thread(target=batch, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert service.rows("SELECT count(*) AS n FROM enrollments WHERE status = 'completed'")[0]["n"] == len(learners)
    assert len(service.published("enrollment.completed")) == len(learners)


def test_an_app_with_nothing_to_hand_in_gets_the_enrolment(service: Service, version: dict[str, Any]):
    answer = service.http("POST", f"/users/me/enrollments/{version['course_version_id']}/progress", {"lessons": []})
    assert answer.status == 200, answer.text
    assert (answer.json["results"], answer.json["enrollment"]["status"]) == ([], "active")


def test_what_was_done_before_the_cancellation_counts_and_what_was_done_after_it_does_not_though_it_was_revoked_later(
    service: Service, version: dict[str, Any]
):
    key = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    service.send("enrollment", event("enrollment.cancelled", key, at(10)))
    service.send("enrollment", event("enrollment.revoked", key | {"reason": "fraud"}, at(30)))
    service.send("progress", progressed(version, 0, 40, 10), progressed(version, 1, 40, 20))
    assert [str(r["lesson_id"]) for r in service.rows("SELECT * FROM lesson_progress")] == [version["lessons"][0]["lesson_id"]]
    assert [row["code"] for row in service.dead_letters()] == ["enrollment_inactive"]
