"""Very many attempts are graded again by a process that is killed half-way, and it ends as if nothing had happened.

`REGRADED_ATTEMPTS=100000` takes so many attempts of a fifth as many learners; without it there are fewer.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import simplejson
from pydantic import TypeAdapter

from functions.quiz_api import app as quiz_api
from shared import db
from shared.quiz import rules
from shared.quiz.models import Question
from tests.conftest import created
from tests.support.service import Service, course, event, quiz

ATTEMPTS = int(os.environ.get("REGRADED_ATTEMPTS", "10000"))
QUESTIONS: TypeAdapter[tuple[Question, ...]] = TypeAdapter(tuple[Question, ...])
#: Attempts of those learners of whom all others are copies.
MODELS_ATTEMPTS = 50

#: What the process does that is killed: it lets the maintenance work until no regrade is left. Where there are few attempts,
#: the steps are small, so that the process has as many of them to be killed in.
WORK = f"""
from functions.quiz_maintenance.app import handler
from shared import db
from shared.quiz import service

service._LEARNERS = {min(500, ATTEMPTS // 200)}

class Context:
    function_name = invoked_function_arn = aws_request_id = "killed"
    memory_limit_in_mb = 512

    def get_remaining_time_in_millis(self):
        left = db.run(lambda conn: conn.execute("SELECT id FROM quiz_regrades WHERE completed_at IS NULL"))
        return 30_000 if left.fetchone() else 0

handler(None, Context())
"""

CHOICES = [{"id": choice, "text": f"This is choice {choice}."} for choice in "abcd"]


def questions() -> list[dict[str, Any]]:
    """Ten questions of one point."""
    common = {"prompt": "Which of these is it, and why is it none of the others?", "points": 1, "choices": CHOICES}
    return [
        *(common | {"question_id": f"q{n}", "kind": "single_choice", "correct": "a"} for n in range(5)),
        *(
            common | {"question_id": f"q{n}", "kind": "multiple_choice", "correct": ["a", "b"], "scoring": "per_option"}
            for n in (5, 6)
        ),
        *({"question_id": f"q{n}", "kind": "numeric", "prompt": "How many?", "points": 1, "correct": 7} for n in (7, 8)),
        {"question_id": "q9", "kind": "text", "prompt": "Who?", "points": 1, "correct": ["Ada"]},
    ]


def corrected() -> list[dict[str, Any]]:
    """What the correction changes: two questions have other right answers, and one is worth more."""
    first, second, *_, last = questions()
    return [first | {"correct": "b"}, second | {"correct": "b"}, last | {"points": 2}]


def answers(learner: int, attempt: int) -> dict[str, Any]:
    """Answers of which a correction makes more in some attempts, less in others, and the same in some."""
    given: dict[str, Any] = {f"q{n}": "ab"[(learner + n // 2) % 2] for n in range(5)}
    given |= {"q5": ["a", "b"] if learner % 3 else ["c"], "q6": ["a"], "q7": 7 if attempt % 2 else "8", "q8": learner}
    return given | {"q9": "ada" if (learner + attempt) % 3 else "Bob"}


@contextmanager
def working(root: Path) -> Generator["subprocess.Popen[bytes]"]:
    """A process that does `WORK`."""
    with subprocess.Popen([sys.executable, "-c", WORK], cwd=root, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def copy(service: Service, copies: int) -> None:
    """Give each learner so many copies, with all that is known of them."""
    for table in ("learners", "enrollments", "lesson_progress", "requirement_waivers", "quiz_attempts", "certificates"):
        changed = "'user_id', md5(t.user_id::text || n)::uuid"
        if table in ("quiz_attempts", "certificates"):
            changed += ", 'id', md5(t.id::text || n)::uuid"
        if table == "certificates":
            changed += ", 'certificate_uid', t.certificate_uid || n, 'status_entry', nextval('status_list_entries')"
        service.rows(
            f"""
            INSERT INTO {table} SELECT c.* FROM {table} t CROSS JOIN generate_series(1, %s) n
            CROSS JOIN LATERAL jsonb_populate_record(t, jsonb_build_object({changed})) c
            """,
            copies,
        )
    service.rows("VACUUM ANALYZE")


@pytest.fixture(scope="module")
def filled(server_url: str, template_database: str) -> Generator[tuple[str, str]]:
    """Name of a database with all the attempts and a key that was corrected after them; path of the quiz's regrade."""
    version = course(lessons=1, quizzes=[quiz(questions=questions(), pass_threshold_percentage=55)])
    quiz_id = version["quizzes"][0]["quiz_id"]
    name = f"filled_{uuid4().hex[:12]}"
    with created(server_url, name, template_database) as url:
        service = Service(url)
        service.send("catalog", event("course_version.published", version))
        for learner in range(MODELS_ATTEMPTS // 5):
            about = {"user_id": str(uuid4()), "course_version_id": version["course_version_id"]}
            path = f"/users/{about['user_id']}/enrollments/{about['course_version_id']}"
            service.send("catalog", event("learner.updated", {"user_id": about["user_id"], "name": "Ada Lovelace"}))
            service.send("enrollment", event("enrollment.requested", about, "2026-01-01T12:00:00Z"))
            if learner != 3:
                lesson = about | {"lesson_id": version["lessons"][0]["lesson_id"], "status": "completed"}
                service.send("progress", event("lesson.progressed", lesson, "2026-01-02T12:00:00Z"))
            for n in range(4 + 2 * (learner % 2)):
                attempt = about | {"quiz_id": quiz_id, "attempt_id": str(uuid4()), "answers": answers(learner, n)}
                service.send("quiz", event("quiz.submitted", attempt, f"2026-01-0{n + 3}T12:00:00Z"))
            if learner in (4, 5):
                waiver = f"{path}/requirements/{quiz_id}/waiver"
                assert service.admin("PUT", waiver, {"reason": "So it is."}).status == 200
            if learner in (6, 7):
                assert service.admin("POST", f"{path}/revoke", {"reason": "So it is."}).status == 200
        while service.deliver():
            pass
        copy(service, ATTEMPTS // MODELS_ATTEMPTS - 1)
        service.rows("UPDATE outbox SET sent_at = now() WHERE sent_at IS NULL")
        ids = {"course_version_id": version["course_version_id"], "quiz_id": quiz_id}
        service.send("catalog", event("quiz.answer_key_corrected", ids | {"questions": corrected()}))
        db.close()
        yield name, f"/course-versions/{ids['course_version_id']}/quizzes/{quiz_id}/regrade"


#: What is compared of each table, in an order that tells rows apart; not times of the database's clock and what they number.
COMPARED = {
    "quiz_attempts": "SELECT * FROM quiz_attempts ORDER BY id",
    "quiz_attempt_gradings": """
        SELECT attempt_id, user_id, regrade_id, key_version, score, is_passed, pass_kept, question_results
        FROM quiz_attempt_gradings ORDER BY attempt_id, key_version
        """,
    "quiz_regrades": """
        SELECT id, dry_run, take_away, attempts, attempts_changed, completed_at IS NOT NULL AS is_completed
        FROM quiz_regrades ORDER BY id
        """,
    "quiz_regrade_learners": "SELECT * FROM quiz_regrade_learners ORDER BY regrade_id, user_id",
    "enrollments": """
        SELECT user_id, course_version_id, status, completed_at, inactive_since, status_actor, status_reason, sequence
        FROM enrollments ORDER BY user_id, course_version_id
        """,
    "certificates": "SELECT id, revoked_at IS NULL, revocation_reason, completion_withdrawn FROM certificates ORDER BY id",
    "enrollment_history": """
        SELECT user_id, type, from_status, to_status, actor, reason, sequence FROM enrollment_history
        ORDER BY user_id, sequence, type
        """,
    "outbox": "SELECT type, data FROM outbox WHERE sent_at IS NULL ORDER BY data ->> 'user_id', (data ->> 'sequence')::int, type",
}


def state(service: Service) -> dict[str, tuple[int, str]]:
    """Of all that a regrade may change, the number of rows and a digest."""
    query = "SELECT count(*) AS n, coalesce(md5(string_agg(md5(r::text), '' ORDER BY n)), '') AS digest FROM"
    found = {
        table: service.rows(f"{query} (SELECT row_number() OVER () AS n, s::text AS r FROM ({rows}) s) r")[0]
        for table, rows in COMPARED.items()
    }
    return {table: (row["n"], row["digest"]) for table, row in found.items()}


def progress(service: Service) -> tuple[int, bool]:
    """How many attempts the regrade has looked at, and whether it is completed."""
    (row,) = service.rows("SELECT attempts, completed_at IS NOT NULL AS done FROM quiz_regrades WHERE NOT dry_run")
    return row["attempts"], row["done"]


def kill_half_way(service: Service, root: Path, share: float) -> None:
    """Begin the work, and kill it with SIGKILL once this share of the attempts is done."""
    with working(root) as process:
        while progress(service)[0] < share * ATTEMPTS:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    # What the database was told last it still does; and a minute passes.
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    while service.rows(others):
        time.sleep(0.01)
    attempts, done = progress(service)
    assert share * ATTEMPTS <= attempts < ATTEMPTS
    assert not done
    service.rows("UPDATE quiz_regrades SET leased_until = now()")


def finish(service: Service, root: Path) -> None:
    """Do the work to its end."""
    with working(root) as process:
        assert process.wait() == 0
    assert progress(service) == (ATTEMPTS, True)


@pytest.mark.timeout(300 + ATTEMPTS // 50)
@pytest.mark.parametrize("take_away", [False, True])
def test_a_regrade_that_is_killed_half_way_ends_as_if_it_had_not_been(
    server_url: str, filled: tuple[str, str], root: Path, monkeypatch: pytest.MonkeyPatch, take_away: bool
):
    source, path = filled
    prepared, undisturbed, killed = (f"{name}_{uuid4().hex[:12]}" for name in ("prepared", "undisturbed", "killed"))
    with created(server_url, prepared, source) as url:
        service = Service(url)
        monkeypatch.setattr(quiz_api, "REGRADE_SECONDS", 3600)
        dry = service.admin("POST", path, {"dry_run": True, "take_away": take_away}).json
        assert (dry["status"], dry["attempts"]) == ("completed", ATTEMPTS)
        if take_away:
            # Instead of the regrade that the correction asked for, an administrator's.
            service.rows("DELETE FROM quiz_regrades WHERE NOT dry_run")
            monkeypatch.setattr(quiz_api, "REGRADE_SECONDS", 0)
            assert service.admin("POST", path, {"dry_run": False, "take_away": True}).status == 202
            service.rows("UPDATE quiz_regrades SET leased_until = now()")
        before = state(service)
        db.close()

        with created(server_url, undisturbed, prepared) as url:
            service = Service(url)
            finish(service, root)
            expected = state(service)
        with created(server_url, killed, prepared) as url:
            service = Service(url)
            for share in (1 / 3, 2 / 3):
                kill_half_way(service, root, share)
            finish(service, root)
            assert state(service) == expected
            assert expected["quiz_attempts"][0] == before["quiz_attempts"][0]
            check(service, dry)


def check(service: Service, dry: dict[str, Any]) -> None:
    """The regrade did what the dry run said, told of it in numbers without a gap, and left no older grade."""
    counts = ("attempts", "attempts_changed")
    (real,) = service.rows("SELECT * FROM quiz_regrades WHERE NOT dry_run")
    assert [real[name] for name in counts] == [dry[name] for name in counts]
    differing = service.rows(
        """
        SELECT user_id, course_version_id, previous_score, score, pass, certificate FROM quiz_regrade_learners
        GROUP BY user_id, course_version_id, previous_score, score, pass, certificate HAVING count(*) <> 2
        """
    )
    assert differing == []
    changes = service.rows(
        "SELECT pass, certificate, count(*) AS n FROM quiz_regrade_learners WHERE regrade_id = %s GROUP BY pass, certificate",
        real["id"],
    )
    kinds = {(row["pass"], row["certificate"]) for row in changes}
    lost = {("lost", "lost"), ("lost", None)} if real["take_away"] else {("kept", None)}
    assert kinds == lost | {("gained", "gained"), ("gained", None)}
    told = service.rows(
        """
        SELECT e.sequence, min((o.data ->> 'sequence')::int) AS first, max((o.data ->> 'sequence')::int) AS last,
            count(*) AS events, count(DISTINCT o.data ->> 'sequence') AS numbers
        FROM enrollments e JOIN outbox o ON (o.data ->> 'user_id')::uuid = e.user_id AND o.sent_at IS NULL
        GROUP BY e.user_id, e.sequence
        """
    )
    assert all(
        row["last"] == row["sequence"] and row["last"] - row["first"] + 1 == row["events"] == row["numbers"] for row in told
    )
    (regraded,) = service.rows("SELECT count(*) AS n FROM outbox WHERE type = 'quiz.regraded'")
    (replaced,) = service.rows("SELECT count(*) AS n FROM quiz_attempt_gradings")
    assert regraded["n"] == real["attempts_changed"] == replaced["n"]
    # The copies of an attempt came out alike, and each as its answers are worth by the corrected key.
    keys = service.rows("SELECT questions::text AS questions FROM quiz_answer_keys ORDER BY key_version")
    key = QUESTIONS.validate_python(simplejson.loads(keys[-1]["questions"], use_decimal=True))
    graded = service.rows(
        """
        SELECT DISTINCT answers_snapshot::text AS answers, pass_threshold_percentage, key_version, score, is_passed, pass_kept,
            question_results
        FROM quiz_attempts
        """
    )
    assert len(graded) <= MODELS_ATTEMPTS
    for row in graded:
        grade = rules.grade(key, simplejson.loads(row["answers"], use_decimal=True), row["pass_threshold_percentage"])
        assert (row["score"], row["question_results"], row["key_version"]) == (grade.score, grade.question_results, 2)
        assert row["is_passed"] == (grade.is_passed or row["pass_kept"])
        assert not (row["pass_kept"] and (grade.is_passed or real["take_away"]))
