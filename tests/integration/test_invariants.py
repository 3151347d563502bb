"""What must hold in a database: it does after a rich life, each rule finds what breaks it, and repair mends what it can."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from functions.quiz_maintenance.app import sweep
from local import repair, verify
from shared import db, settings
from tests.conftest import as_role, created, database
from tests.integration.test_regrades import (
    EARLY,
    FAILS,
    FALLS,
    RISES,
    STAYS,
    TO_B,
    Learner,
    correction,
    deliver,
    maintain,
    published,
    regrade,
    small_quiz,
)
from tests.support.service import Service, course, event, now, quiz


def broken(conn: verify.Connection) -> dict[str, int]:
    """How many rows break each rule that does not hold."""
    _, rules = verify.invariants()
    counts = {name: rule.broken(conn, 1)[0] for name, rule in rules.items()}
    return {name: count for name, count in counts.items() if count}


def found(database_url: str) -> dict[str, int]:
    """What `make verify` finds."""
    with verify.reading(database_url) as conn:
        return broken(conn)


def digests(service: Service) -> dict[str, str]:
    """A digest of all rows of each table."""
    with psycopg.connect(service.database_url) as conn:
        names = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        query = sql.SQL("SELECT t::text FROM {} t ORDER BY 1")
        return {
            name: hashlib.sha256(repr(conn.execute(query.format(sql.Identifier(name))).fetchall()).encode()).hexdigest()
            for (name,) in names
        }


def live(service: Service) -> None:
    """All that can happen to an enrolment, an attempt and a certificate, each to a learner or two."""
    certificate = {"enabled": True, "valid_for_days": 100}
    version = published(service, lessons=1, certificate=certificate)

    def someone(*answers: dict[str, Any]) -> Learner:
        learner = Learner(service, version).enrol()
        learner.learn()
        for one in answers:
            learner.sit(one)
        deliver(service)
        return learner

    def of_certificate(learner: Learner, act: str) -> None:
        uid = (learner.certificate() or {})["certificate_uid"]
        assert service.admin("POST", f"/certificates/{uid}/{act}", {"reason": "So it is."}).status == 200

    someone(FAILS, STAYS)
    someone(FALLS, FAILS, STAYS)
    rising, falling = someone(RISES), someone(FALLS)
    revoked, reissued = someone(STAYS), someone(STAYS)
    of_certificate(revoked, "revoke")
    of_certificate(reissued, "reissue")
    over_again = someone(STAYS)
    over_again.command("reset")
    over_again.learn(now())
    over_again.sit(STAYS, now())
    service.rows("UPDATE certificates SET expires_at = issued_at WHERE user_id = %s", over_again.user_id)
    over_again.command("reset")
    over_again.sit(FAILS, now())
    over_again.waive()
    over_again.learn(now())
    cancelled, sent_away, let_in_again = someone(), someone(STAYS), someone(STAYS)
    cancelled.command("cancel")
    sent_away.command("revoke", revoke_certificate=True)
    let_in_again.command("revoke")
    let_in_again.command("reinstate")
    waived, withdrawn = someone(FAILS), someone()
    for learner in (waived, withdrawn):
        learner.waive()
    requirement = version["quizzes"][0]["quiz_id"]
    assert service.admin("DELETE", f"{withdrawn.path}/requirements/{requirement}/waiver").status == 200
    withdrawn.sit(STAYS, now())

    # Grading again, once keeping passes and once taking them away.
    service.send("catalog", correction(version, TO_B))
    maintain(service)
    assert [grade[1:3] for grade in falling.grades()] == [(True, True)]
    assert rising.enrollment()["status"] == "completed"
    kept = someone(FALLS | {"q1": "b"})
    service.send("catalog", correction(version, TO_B | {"correct": "a"}, time=now()))
    maintain(service)
    regrade(service, version, dry_run=False, take_away=True)
    assert kept.enrollment()["status"] == "active"

    # A quiz with a time limit, another that nobody tries, and a transfer between two course versions that share lessons.
    limited = small_quiz(time_limit_seconds=60)
    first = course(lessons=2, required_lessons=1, quizzes=[small_quiz(), limited, quiz(title="Untouched", required=False)])
    second = course() | {"lessons": first["lessons"], "quizzes": [first["quizzes"][0]]}
    for one in (first, second):
        service.send("catalog", event("course_version.published", one))
    mover = Learner(service, first).enrol()
    mover.sit(STAYS)
    mover.learn()
    mover.command("transfer", to=second["course_version_id"])
    slow, open_ = Learner(service, first).enrol(), Learner(service, first).enrol()
    for learner in (slow, open_):
        attempts = f"{learner.path}/quizzes/{limited['quiz_id']}/attempts"
        assert service.admin("POST", attempts).status == 201
        if learner is slow:
            service.rows(
                "UPDATE quiz_attempts SET started_at = started_at - interval '1 h', expires_at = expires_at - interval '1 h'"
            )
            assert sweep() == 1

    # One who lacks a single lesson, and one who is half way through it.
    unfinished = published(service, lessons=2, quizzes=[])
    for percentage in (0.5, 50):
        learner = Learner(service, unfinished).enrol()
        done, other = (learner.about | {"lesson_id": lesson["lesson_id"]} for lesson in unfinished["lessons"])
        service.send("progress", event("lesson.progressed", done | {"status": "completed"}, EARLY))
        service.send("progress", event("lesson.progressed", other | {"progress_percentage": percentage}, EARLY))
    deliver(service)
    service.invoke("certificate_worker", {})
    service.rows("UPDATE outbox SET sent_at = now() - interval '2 hours'")


@pytest.fixture(scope="module")
def lived(server_url: str, template_database: str, s3: str) -> Generator[str]:
    """Name of a database after a rich life."""
    name = f"lived_{uuid4().hex[:12]}"
    with created(server_url, name, template_database) as url:
        live(Service(url))
        db.close()
        yield name


@pytest.fixture
def life(server_url: str, lived: str) -> Generator[Service]:
    """A copy of that database; the service works in it with the rights that it has in production."""
    with created(server_url, f"life_{uuid4().hex[:12]}", lived) as url:
        os.environ["DATABASE_URL"] = as_role(url, "learner_progress_app")
        settings.database_url.cache_clear()
        yield Service(url)


def test_all_hold_in_an_empty_database(server_url: str, template_database: str):
    assert found(database(server_url, template_database)) == {}


def test_all_hold_after_a_rich_life_that_has_what_each_looks_at(life: Service):
    for table in (
        "enrollment_history",
        "requirement_waivers",
        "lesson_progress_set_aside",
        "quiz_attempts_set_aside",
        "quiz_attempt_gradings",
        "quiz_regrade_learners",
        "certificate_snapshots",
        "status_lists",
        "outbox",
    ):
        assert life.rows(sql.SQL("SELECT 1 AS one FROM {} LIMIT 1").format(sql.Identifier(table))), table
    statuses = {row["status"] for row in life.rows("SELECT status FROM enrollments")}
    assert statuses == {"active", "completed", "cancelled_by_user", "revoked_by_admin"}
    assert found(life.database_url) == {}


# Each rule finds what breaks it, and no other one does


@dataclass(frozen=True)
class Corruption:
    """Statements that break one rule, past triggers and foreign keys."""

    rule: str
    statements: tuple[str, ...]


def one(table: str, change: str, where: str) -> str:
    """A statement that changes one row."""
    return f"UPDATE {table} SET {change} WHERE ctid = (SELECT min(ctid) FROM {table} WHERE {where})"


def told(type_: str, change: str) -> str:
    """A statement that changes one event."""
    return one("outbox", change, f"type = '{type_}' AND destination = 'bus'")


def data(name: str, value: str = "gen_random_uuid()") -> str:
    """Another value in an event's data."""
    return f"data = jsonb_set(data, '{{{name}}}', to_jsonb({value}))"


PLAIN_CERTIFICATE = (
    "revoked_at IS NULL AND NOT EXISTS (SELECT FROM certificate_snapshots s WHERE s.certificate_id = certificates.id)"
)
CORRUPTIONS = [
    Corruption("schema_is_whole", ("ALTER TABLE certificates DISABLE TRIGGER certificates_status_changed",)),
    Corruption("schema_is_whole", ("ALTER TABLE learners ADD CONSTRAINT named CHECK (name <> '') NOT VALID",)),
    Corruption("schema_is_whole", ("UPDATE pg_index SET indisvalid = FALSE WHERE indexrelid = 'outbox_sent_idx'::regclass",)),
    Corruption(
        "rows_belong_to_enrolments",
        (
            "INSERT INTO quiz_allowances SELECT gen_random_uuid(), course_version_id, quiz_id, 1, 0"
            " FROM course_version_quizzes LIMIT 1",
        ),
    ),
    Corruption(
        "items_have_ids_of_their_own",
        (
            "INSERT INTO course_version_lessons SELECT course_version_id, quiz_id, 'x', FALSE, 9"
            " FROM course_version_quizzes LIMIT 1",
        ),
    ),
    Corruption("present_keys_are_the_latest", (one("course_version_quizzes", "key_version = 2", "title = 'Untouched'"),)),
    Corruption("completed_enrolments_are_fulfilled", ("DELETE FROM requirement_waivers",)),
    Corruption(
        "completions_date_from_the_last_item",
        (
            one(
                "enrollments",
                "completed_at = completed_at + interval '1 hour'",
                "status = 'completed' AND completed_at < '2026-02-01'",
            ),
        ),
    ),
    Corruption(
        "completions_date_from_the_last_item",
        (
            one(
                "enrollments",
                "completed_at = completed_at - interval '1 hour'",
                "status = 'completed' AND completed_at < '2026-02-01'",
            ),
        ),
    ),
    Corruption(
        "completions_date_from_the_last_item",
        (one("enrollments", "completed_at = completed_at - interval '1 hour'", "status = 'revoked_by_admin'"),),
    ),
    Corruption(
        "fulfilled_enrolments_are_completed",
        (
            "UPDATE course_version_lessons l SET required = FALSE FROM lesson_progress p"
            " WHERE p.lesson_id = l.lesson_id AND p.progress_percentage = 0.5",
        ),
    ),
    Corruption(
        "status_is_what_the_history_says",
        (one("enrollments", "status = 'active', inactive_since = NULL", "status = 'cancelled_by_user'"),),
    ),
    Corruption("history_is_a_chain", (one("enrollment_history", "from_status = 'cancelled_by_user'", "type = 'completed'"),)),
    Corruption("history_is_a_chain", (one("enrollment_history", "type = 'reinstated'", "type = 'transferred'"),)),
    Corruption(
        "inactive_since_is_when_it_was_left",
        (one("enrollments", "inactive_since = inactive_since + interval '1 s'", "inactive_since IS NOT NULL"),),
    ),
    Corruption(
        "starting_over_is_dated_by_the_history",
        (one("enrollments", "reset_at = reset_at - interval '1 s'", "reset_at IS NOT NULL"),),
    ),
    Corruption("starting_over_is_dated_by_the_history", (one("enrollments", "reset_at = '2026-01-01'", "reset_at IS NULL"),)),
    Corruption(
        "waivers_name_requirements",
        (
            "INSERT INTO requirement_waivers SELECT user_id, course_version_id, gen_random_uuid(), now(), 'x', 'x'"
            " FROM enrollments WHERE status = 'active' LIMIT 1",
        ),
    ),
    Corruption(
        "lessons_are_of_the_course_version",
        (one("lesson_progress", "lesson_id = gen_random_uuid()", "status = 'in_progress'"),),
    ),
    Corruption(
        "lesson_times_are_in_order",
        (one("lesson_progress", "started_at = last_accessed_at + interval '1 h'", "status = 'in_progress'"),),
    ),
    Corruption("lesson_times_are_in_order", (one("lesson_progress", "started_at = NULL", "status = 'completed'"),)),
    Corruption(
        "lesson_times_are_in_order",
        (
            one(
                "lesson_progress",
                "last_accessed_at = completed_at - interval '1 s', started_at = '2025-01-01'",
                "status = 'completed'",
            ),
        ),
    ),
    Corruption("attempt_numbers_have_no_gaps", (one("quiz_attempts", "attempt_number = 7", "completed_at IS NOT NULL"),)),
    Corruption("attempt_numbers_have_no_gaps", ("UPDATE quiz_attempts_set_aside SET attempt_number = 0",)),
    Corruption("attempt_times_are_in_order", (one("quiz_attempts", "started_at = completed_at + interval '1 s'", "in_time"),)),
    Corruption(
        "attempt_times_are_in_order", (one("quiz_attempts", "completed_at = completed_at + interval '1 s'", "NOT in_time"),)
    ),
    Corruption(
        "attempts_that_ran_out_are_closed",
        (
            one(
                "quiz_attempts",
                "started_at = now() - interval '2 h', expires_at = now() - interval '1 h'",
                "completed_at IS NULL",
            ),
        ),
    ),
    Corruption("scores_equal_their_evidence", (one("quiz_attempts", "score = score + 1e-6", "score BETWEEN 1 AND 99"),)),
    Corruption(
        "scores_equal_their_evidence",
        (one("quiz_attempts", "is_passed = TRUE", "NOT is_passed AND attempt_number = 2"),),
    ),
    Corruption("scores_equal_their_evidence", (one("quiz_attempts", "pass_kept = TRUE", "is_passed"),)),
    Corruption(
        "scores_equal_their_evidence",
        (one("quiz_attempts", "question_results = jsonb_set(question_results, '{1,points_earned}', '\"1/3\"')", "score = 75"),),
    ),
    Corruption("scores_equal_their_evidence", (one("quiz_attempt_gradings", "score = 12", "TRUE"),)),
    Corruption("scores_equal_their_evidence", (one("quiz_attempts_set_aside", "score = 12", "TRUE"),)),
    Corruption(
        "evidence_is_of_the_answer_key",
        (one("quiz_attempts", "question_results = jsonb_set(question_results, '{0,question_id}', '\"q9\"')", "in_time"),),
    ),
    Corruption("evidence_is_of_the_answer_key", (one("quiz_attempts_set_aside", "key_version = 9", "in_time"),)),
    Corruption("grades_are_by_the_present_key", (one("quiz_attempts", "key_version = 1", "key_version > 1"),)),
    Corruption("regrades_go_on", (one("quiz_regrades", "completed_at = NULL, leased_until = 'infinity'", "TRUE"),)),
    Corruption("regrades_go_on", (one("quiz_regrades", "completed_at = NULL, leased_until = '2026-01-01'", "TRUE"),)),
    Corruption(
        "regrades_go_on",
        (one("quiz_regrades", "completed_at = NULL, leased_until = now(), requested_at = '2026-01-01'", "TRUE"),),
    ),
    Corruption(
        "copies_are_of_the_same_learner",
        (one("quiz_attempts", "transferred_from = gen_random_uuid()", "transferred_from IS NOT NULL"),),
    ),
    Corruption(
        "what_was_set_aside_is_of_a_reset",
        (
            one(
                "lesson_progress_set_aside",
                "reset_id = (SELECT id FROM enrollment_history WHERE type = 'created' LIMIT 1)",
                "TRUE",
            ),
        ),
    ),
    Corruption("certificates_attest_a_completion", ("UPDATE course_versions SET certificate_enabled = FALSE",)),
    Corruption(
        "certificates_attest_a_completion",
        (
            "INSERT INTO certificates (user_id, course_version_id, certificate_uid, metadata, issued_at) SELECT e.user_id,"
            " e.course_version_id, '0000-0000-0000-0000-0000-0000', c.metadata, '2026-01-01' FROM enrollments e CROSS JOIN"
            " (SELECT metadata FROM certificates LIMIT 1) c JOIN course_versions v ON v.course_version_id = e.course_version_id"
            " WHERE e.status = 'active' AND v.certificate_valid_for_days IS NULL AND e.completed_at IS NULL LIMIT 1",
        ),
    ),
    Corruption(
        "withdrawn_completions_are_not_attested",
        (
            "UPDATE certificates SET revoked_at = NULL, revocation_reason = NULL, revoked_by = NULL, completion_withdrawn = FALSE"
            " WHERE completion_withdrawn",
        ),
    ),
    Corruption(
        "withdrawn_completions_are_not_attested",
        (
            one("certificates", "completion_withdrawn = TRUE, expires_at = 'infinity'", "revoked_at IS NULL"),
            "UPDATE outbox SET sent_at = now() WHERE type = 'enrollment.completed'",
        ),
    ),
    Corruption(
        "certificate_uids_have_their_check_character",
        (
            one(
                "certificates",
                "certificate_uid = (CASE left(certificate_uid, 1) WHEN '7' THEN '8' ELSE '7' END) || substr(certificate_uid, 2),"
                " issued_at = '2026-01-01'",
                PLAIN_CERTIFICATE,
            ),
        ),
    ),
    Corruption(
        "certificate_uids_have_their_check_character",
        (
            one(
                "certificates",
                "certificate_uid = lower(certificate_uid), issued_at = '2026-01-01'",
                PLAIN_CERTIFICATE + " AND certificate_uid ~ '[A-Z]'",
            ),
        ),
    ),
    Corruption("certificates_say_what_they_attest", (one("certificates", "metadata = metadata - 'issuer_name'", "TRUE"),)),
    Corruption("certificates_say_what_they_attest", (one("certificates", "expires_at = NULL", "expires_at > now()"),)),
    Corruption("certificates_are_issued", (f"DELETE FROM certificates WHERE {PLAIN_CERTIFICATE}",)),
    Corruption("certificates_get_their_parts", (one("certificates", "credential = NULL", "TRUE"),)),
    Corruption("certificates_get_their_parts", (one("certificates", "pdf_url = NULL, due_at = now() - interval '1 h'", "TRUE"),)),
    Corruption("certificates_get_their_parts", (one("certificates", "pdf_url = NULL, due_at = now(), tries = 20", "TRUE"),)),
    Corruption("snapshots_are_kept", ("DELETE FROM certificate_snapshots",)),
    Corruption("snapshots_are_kept", ("UPDATE certificate_snapshots SET revision = 7",)),
    Corruption(
        "status_entries_are_of_one_snapshot",
        ("UPDATE certificate_snapshots s SET status_entry = c.status_entry FROM certificates c WHERE c.id = s.certificate_id",),
    ),
    Corruption("status_entries_are_of_one_snapshot", (one("certificates", "status_entry = 131071", "TRUE"),)),
    Corruption("revocations_reach_the_status_lists", ("UPDATE status_lists SET changes = changes + 1",)),
    Corruption("revocations_reach_the_status_lists", ("UPDATE status_lists SET due_at = now() - interval '1 h'",)),
    Corruption("revocations_reach_the_status_lists", ("DELETE FROM status_lists",)),
    Corruption("sequence_is_not_behind", (one("enrollments", "sequence = sequence - 1", "status = 'completed'"),)),
    Corruption("sequence_numbers_count_up", (one("enrollments", "sequence = sequence + 1", "TRUE"),)),
    Corruption(
        "sequence_numbers_count_up",
        (
            "DELETE FROM outbox o WHERE type = 'certificate.reissued'"
            " AND NOT EXISTS (SELECT FROM certificates c WHERE c.issued_at = o.occurred_at)",
        ),
    ),
    Corruption("sequence_numbers_count_up", (told("quiz.regraded", data("sequence", "1")),)),
    Corruption("acts_are_published", (told("enrollment.cancelled", "type = 'enrollment.revoked'"),)),
    Corruption("completed_lessons_are_published", (told("lesson.completed", data("lesson_id")),)),
    Corruption("graded_attempts_are_published", (told("quiz.graded", data("attempt_id")),)),
    Corruption("replaced_grades_are_published", (told("quiz.regraded", data("attempt_id")),)),
    Corruption("certificates_are_published", (told("certificate.issued", "occurred_at = '2026-01-01'"),)),
    Corruption(
        "certificates_are_published", (one("certificates", "revoked_at = revoked_at + interval '1 s'", "revoked_at IS NOT NULL"),)
    ),
    Corruption("outbox_is_sent", (told("lesson.completed", "sent_at = NULL, available_at = now() - interval '6 minutes'"),)),
    Corruption("outbox_gets_through", (told("lesson.completed", "sent_at = NULL, available_at = now(), deliveries = 20"),)),
    Corruption("outbox_comes_up", (told("lesson.completed", "sent_at = NULL, available_at = 'infinity'"),)),
    Corruption(
        "outbox_comes_up",
        (
            "INSERT INTO outbox (destination, queue, body, tries, waiting_since)"
            " VALUES ('queue', 'progress', '{}', 40, now() - interval '2 days')",
        ),
    ),
    Corruption("outbox_is_pruned", (told("lesson.completed", "sent_at = now() - interval '33 days'"),)),
    Corruption("nothing_is_dated_ahead", (one("enrollments", "commanded_at = now() + interval '1 h'", "TRUE"),)),
    Corruption("nothing_is_dated_ahead", (one("lesson_progress", "last_accessed_at = now() + interval '1 h'", "TRUE"),)),
    Corruption(
        "nothing_is_dated_ahead",
        (one("quiz_attempts", "started_at = now() + interval '1 h', expires_at = NULL", "completed_at IS NULL"),),
    ),
    Corruption(
        "nothing_is_dated_ahead",
        (
            "INSERT INTO requirement_waivers SELECT e.user_id, e.course_version_id, l.lesson_id, now() + interval '1 h', 'x', 'x'"
            " FROM enrollments e JOIN course_version_lessons l ON l.course_version_id = e.course_version_id AND NOT l.required"
            " WHERE e.status = 'active' LIMIT 1",
        ),
    ),
    Corruption(
        "nothing_is_dated_ahead", (one("enrollment_history", "occurred_at = now() + interval '1 h'", "type = 'created'"),)
    ),
]


def plant(conn: verify.Connection, corruption: Corruption) -> None:
    """Break a rule, past all that would keep it."""
    conn.execute("SET LOCAL session_replication_role = replica")
    conn.execute("SET LOCAL allow_system_table_mods = on")
    for statement in corruption.statements:
        assert conn.execute(cast("LiteralString", statement)).rowcount, statement


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.rule)
def test_what_breaks_a_rule_is_found_by_that_rule(server_url: str, lived: str, corruption: Corruption):
    with psycopg.Connection[dict[str, Any]].connect(database(server_url, lived), row_factory=dict_row) as conn:
        plant(conn, corruption)
        assert set(broken(conn)) == {corruption.rule}
        conn.rollback()


def test_every_rule_is_broken_once():
    assert {corruption.rule for corruption in CORRUPTIONS} == set(verify.invariants()[1])


# What can be mended


#: What of the above can be mended. Of what is only found again because a function does not run, nothing is.
MENDED = [
    corruption
    for corruption in CORRUPTIONS
    if corruption.rule in repair.REPAIRS
    and not re.search(r"due_at = now\(\) - |requested_at|waiting_since", corruption.statements[0])
]


@pytest.mark.parametrize("corruption", MENDED, ids=lambda corruption: corruption.rule)
def test_what_can_be_mended_is_and_only_when_asked_and_once(
    life: Service, corruption: Corruption, capsys: pytest.CaptureFixture[str]
):
    with psycopg.Connection[dict[str, Any]].connect(life.database_url, row_factory=dict_row) as conn:
        plant(conn, corruption)
    before = digests(life)
    assert repair.main(apply=False) == 0
    assert "make repair APPLY=1 does it" in capsys.readouterr().out
    assert digests(life) == before

    assert repair.main(apply=True) == 0
    assert re.search(rf"{corruption.rule}: \d+ broken; now", capsys.readouterr().out)
    after = digests(life)
    assert after != before
    assert found(life.database_url) == {}
    assert repair.main(apply=True) == 0
    assert "broken" not in capsys.readouterr().out
    assert digests(life) == after


def test_every_repair_is_tried():
    assert {corruption.rule for corruption in MENDED} == set(repair.REPAIRS)


def test_what_a_function_that_does_not_run_has_left_is_not_hidden(life: Service):
    life.rows("UPDATE certificates SET pdf_url = NULL, due_at = now() - interval '1 h', tries = 20")
    life.rows("UPDATE status_lists SET due_at = now() - interval '1 h'")
    before = digests(life)
    assert repair.main(apply=True) == 0
    assert digests(life) == before


def test_a_completion_that_is_mended_leads_to_a_certificate(life: Service):
    (corruption,) = (one for one in CORRUPTIONS if one.rule == "fulfilled_enrolments_are_completed")
    with psycopg.Connection[dict[str, Any]].connect(life.database_url, row_factory=dict_row) as conn:
        plant(conn, corruption)
    certificates = len(life.rows("SELECT id FROM certificates"))
    assert repair.main(apply=True) == 0
    deliver(life)
    assert len(life.rows("SELECT id FROM certificates")) > certificates
    assert found(life.database_url) == {}


# How it is told


def run(root: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "local", *arguments]
    return subprocess.run(command, cwd=root, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_it_is_told_and_exits_with_what_it_found(life: Service, root: Path):
    reader = as_role(life.database_url, "learner_progress_report")
    whole = run(root, "verify", DATABASE_URL=reader)
    assert whole.returncode == 0, whole.stderr
    number = len(verify.invariants()[1])
    assert f"{number} of {number} invariants hold" in whole.stdout
    life.rows("UPDATE outbox SET sent_at = NULL, available_at = 'infinity' WHERE type = 'lesson.completed'")
    events = len(life.rows("SELECT id FROM outbox WHERE type = 'lesson.completed'"))
    some = run(root, "verify", DATABASE_URL=reader)
    assert some.returncode == 1, some.stderr
    assert re.search(rf"outbox_comes_up … BROKEN BY {events}, \d+\.\d s\n +A row is put off .*\n( +id=.*\n){{3}} +…", some.stdout)
    assert "Ada" not in some.stdout
    # What cannot be looked at is no good news.
    life.rows("REVOKE SELECT ON status_lists FROM learner_progress_report")
    none = run(root, "verify", DATABASE_URL=reader)
    assert none.returncode == 2
    assert "revocations_reach_the_status_lists … COULD NOT BE LOOKED AT: permission denied" in none.stdout
    nowhere = run(root, "verify", DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    assert (nowhere.returncode, nowhere.stdout) == (2, "")


def test_without_an_address_it_is_the_running_service_or_none(root: Path, tmp_path: Path):
    for command in ("verify", "repair"):
        answer = run(root, command, DATABASE_URL="", LOCAL_DIR=str(tmp_path))
        assert answer.returncode == 2
        assert "no service is running here" in answer.stderr


def test_psql_can_run_the_file_as_well(life: Service):
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("there is no psql on this machine")
    answer = subprocess.run(
        [psql, "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-f", str(verify.SOURCE), life.database_url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("(0 rows)") == len(verify.invariants()[1])


def test_nothing_can_be_written_while_it_looks(life: Service):
    with verify.reading(life.database_url) as conn, pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        conn.execute("DELETE FROM outbox")
