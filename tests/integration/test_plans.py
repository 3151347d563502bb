"""No statement of the service reads a table that grows with its learners from end to end, once it has grown.

The planner is told of 5 million rows of `lesson_progress` where there are 200,000. With `PLAN_DATABASE`, a database of the
server of TEST_DATABASE_URL, a copy of that is looked at, and the planner told of nothing but what is there.
"""

import ast
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from functions.outbox_relay import app as outbox_relay
from functions.quiz_maintenance import app as quiz_maintenance
from shared import db, outbox, settings
from shared.certificate import store as certificates
from shared.quiz import regrades
from shared.quiz import service as quiz_service
from tests.conftest import as_role, created
from tests.support import filling
from tests.support.filling import Filled
from tests.support.plans import Plan, explained
from tests.support.service import Service, event

GIVEN = os.environ.get("PLAN_DATABASE")
ROWS, BELIEVED = 200_000, 5_000_000

#: The tables that grow with the learners; `learners` itself among them.
GROWING = {
    "certificate_snapshots", "certificates", "enrollment_history", "enrollments", "learners", "lesson_progress",
    "lesson_progress_set_aside", "outbox", "quiz_allowances", "quiz_attempt_gradings", "quiz_attempts", "quiz_attempts_set_aside",
    "quiz_regrade_learners", "requirement_waivers",
}  # fmt: skip
#: Indexes of what is unsent, open or due alone, of which there is little however much there was before.
OPEN = {"certificates_due_idx", "outbox_unsent_idx", "quiz_attempts_one_open", "quiz_attempts_running_idx"}


def everything(service: Service, filled: Filled, turn: int) -> None:
    """Have each statement of the service executed, those for many learners with as many as a message may hold.

    Each turn, counted from 0, is about other learners.
    """
    read_and_learn(service, filled, 10 + 50 * turn)
    for learners in (range(20 + 50 * turn, 21 + 50 * turn), range(100 + 1000 * turn, 1100 + 1000 * turn)):
        take_messages(service, filled, learners)
    administer(service, filled, 30 + 50 * turn)
    regrade(service, filled, turn)
    certify(service, 40 + 50 * turn)
    send(service)


def enrollment(filled: Filled, learner: int) -> str:
    """The path of the enrolment that a learner is in the midst of."""
    return f"/users/{filling.learner_id(learner)}/enrollments/{filling.version_id(filled.second(learner))}"


def read_and_learn(service: Service, filled: Filled, learner: int) -> None:
    """What a learner does over HTTP, up to the end of a course."""

    def ask(method: str, path: str, body: Any = None, **options: Any) -> Any:
        answer = service.admin(method, path, body, **options)
        assert answer.status in (200, 201), answer.text
        return answer.json

    user, version = f"/users/{filling.learner_id(learner)}", filled.second(learner)
    base, quiz_id = enrollment(filled, learner), filling.quiz_id(version)
    lessons = [filling.lesson_id(version, n) for n in range(filling.LESSONS)]
    for path in (
        base,
        f"{base}/progress",
        f"{base}/history",
        f"{base}/certificate",
        f"{base}/quizzes/{quiz_id}/attempts",
        f"{user}/enrollments",
        f"{user}/certificates",
        f"/course-versions/{filling.version_id(version)}/enrollments",
    ):
        page = ask("GET", path)
        if page.get("items"):
            ask("GET", path, query={"limit": "1"})
            cursor = ask("GET", path, query={"limit": "1"})["next_cursor"]
            if cursor:
                ask("GET", path, query={"cursor": cursor})
    for status in ("active", "completed", "cancelled_by_user"):
        ask("GET", f"{user}/enrollments", query={"status": status})
        ask("GET", f"/course-versions/{filling.version_id(version)}/enrollments", query={"status": status})
    ask("PUT", f"{base}/lessons/{lessons[-1]}/progress", {"progress_percentage": 40})
    ask("PUT", f"{base}/lessons/{lessons[-1]}/progress", {"progress_percentage": 100})
    ask("POST", f"{base}/progress", {"lessons": [{"lesson_id": str(lesson), "status": "completed"} for lesson in lessons]})
    ask("PUT", f"{base}/quizzes/{quiz_id}/allowance", {"extra_attempts": 1, "extra_time_percentage": 50})
    attempt = ask("POST", f"{base}/quizzes/{quiz_id}/attempts")["id"]
    ask("PUT", f"/quiz-attempts/{attempt}/answers", {"answers": {"q1": "a"}})
    ask("POST", f"/quiz-attempts/{attempt}/submit", {"answers": filling.RIGHT})
    ask("GET", f"/quiz-attempts/{attempt}")
    assert ask("GET", base)["status"] == "completed"
    third = f"{user}/enrollments/{filling.version_id(filled.third(learner))}"
    ask("PUT", third)
    ask("POST", f"{third}/cancel")


def take_messages(service: Service, filled: Filled, learners: range) -> None:
    """One message of each kind, with an event about each of these learners."""
    users = [{"user_id": str(filling.learner_id(n))} for n in learners]
    about = [
        user | {"course_version_id": str(filling.version_id(filled.second(n)))} for n, user in zip(learners, users, strict=True)
    ]
    lessons = [{"lesson_id": str(filling.lesson_id(filled.second(n), filled.begun(n)))} for n in learners]
    for percentage in (30, 100):
        service.send(
            "progress",
            [
                event("lesson.progressed", ids | lesson | {"progress_percentage": percentage})
                for ids, lesson in zip(about, lessons, strict=True)
            ],
        )
    quizzes = [{"quiz_id": str(filling.quiz_id(filled.second(n))), "answers": filling.RIGHT} for n in learners]
    service.send(
        "quiz",
        [event("quiz.submitted", ids | quiz | {"attempt_id": str(uuid4())}) for ids, quiz in zip(about, quizzes, strict=True)],
    )
    thirds = [
        user | {"course_version_id": str(filling.version_id(filled.third(n)))} for n, user in zip(learners, users, strict=True)
    ]
    service.send("enrollment", [event("enrollment.requested", ids) for ids in thirds])
    service.send("catalog", [event("learner.updated", user | {"name": "Ada"}) for user in users])
    service.send("certificate", [event("enrollment.completed", ids) for ids in about])
    # An event that waits for its enrolment, and a look at which enrolments are locked.
    service.send(
        "progress", event("lesson.progressed", about[0] | lessons[0] | {"user_id": str(uuid4()), "progress_percentage": 1})
    )
    db.run(lambda conn: db.locked_enrollments(conn, [(UUID(i["user_id"]), UUID(i["course_version_id"])) for i in about]))


def administer(service: Service, filled: Filled, learner: int) -> None:
    """What administrators do to an enrolment beyond its status."""
    base = enrollment(filled, learner)
    completed = f"/users/{filling.learner_id(learner)}/enrollments/{filling.version_id(filled.first(learner))}"
    lesson, other = (filling.lesson_id(filled.second(learner), position) for position in (0, 1))
    for method, path, body in (
        ("PUT", f"{base}/requirements/{other}/waiver", {"reason": "-"}),
        ("PUT", f"{base}/requirements/{lesson}/waiver", {"reason": "-"}),
        ("DELETE", f"{base}/requirements/{lesson}/waiver", None),
        ("POST", f"{base}/transfer", {"to": str(filling.version_id(filled.third(learner))), "reason": "-"}),
        ("POST", f"{completed}/reset", {"reason": "-"}),
        ("GET", f"{completed}/history", None),
        ("POST", f"{base}/revoke", {"reason": "-", "revoke_certificate": True}),
        ("POST", f"{base}/reinstate", {"reason": "-"}),
    ):
        answer = service.admin(method, path, body)
        assert answer.status in (200, 201), answer.text


def regrade(service: Service, filled: Filled, version: int) -> None:
    """All attempts at a quiz are graded again, and those who passed have not any more."""
    version_id, quiz_id = str(filling.version_id(version)), str(filling.quiz_id(version))
    choices = [{"id": letter, "text": letter} for letter in "abcd"]
    questions = [
        {"question_id": name, "kind": "single_choice", "prompt": "?", "points": 1, "choices": choices, "correct": "c"}
        for name in filling.RIGHT
    ]
    corrected = {"course_version_id": version_id, "quiz_id": quiz_id, "questions": questions}
    path = f"/course-versions/{version_id}/quizzes/{quiz_id}/regrade"
    service.send("catalog", event("quiz.answer_key_corrected", corrected))
    asked = service.admin("POST", path, {"dry_run": False, "take_away": True, "reason": "-"})
    assert asked.status in (200, 202), asked.text
    while job := db.run(regrades.lease).fetchone():
        while job := quiz_service.regrade(job):
            pass
    found = service.admin("GET", f"{path}s/{asked.json['id']}").json
    assert found["passes_lost"] > 0
    db.run(lambda conn: regrades.learners(conn, UUID(asked.json["id"]), (UUID(int=0), UUID(int=0)), 50))
    db.run(lambda conn: regrades.unfinished(conn, UUID(asked.json["id"])))
    # An attempt whose time is over.
    service.rows(
        """
        INSERT INTO quiz_attempts (user_id, quiz_id, enrolled_course_version_id, attempt_number, expires_at)
        VALUES (%s, %s, %s, 3, now() - interval '1 hour')
        """,
        filling.learner_id(version),
        filling.quiz_id(version),
        filling.version_id(version),
    )
    assert quiz_maintenance.sweep() == 1


def certify(service: Service, learner: int) -> None:
    """Certificates: read, administered, and made."""
    (row,) = service.rows(
        "SELECT id, certificate_uid, pdf_url FROM certificates WHERE user_id = %s ORDER BY issued_at LIMIT 1",
        filling.learner_id(learner),
    )
    path = f"/certificates/{row['certificate_uid']}"
    assert service.http("GET", path, sub=None).status == 200
    for act in ("revoke", "reinstate", "reissue"):
        answer = service.admin("POST", f"{path}/{act}", {"reason": "-"})
        assert answer.status == 200, answer.text
    db.run(lambda conn: certificates.document_is_gone(conn, row["id"], row["pdf_url"]))
    service.invoke("certificate_worker", {"detail-type": "Scheduled Event"})


def send(service: Service) -> None:
    """A round of the relay, without anybody to whom it sends."""
    rows = db.run(outbox_relay._next).fetchall()
    assert len(rows) == outbox_relay.LEASED
    db.run(lambda conn: outbox_relay._mark(conn, rows[1:], [(rows[0], "-")]))
    db.run(outbox.age_seconds)


def pretend(conn: psycopg.Connection[Any]) -> None:
    """Have the planner believe in BELIEVED rows of `lesson_progress`; the others in proportion, none with less than 100,000.

    It reckons with the pages that there are and with so many rows on each, so that rows are what has to be told.
    """
    # Found out by a sample, the numbers of learners and of regrades would be taken for some that do not grow.
    conn.execute(
        sql.SQL("ALTER TABLE lesson_progress ALTER COLUMN user_id SET (n_distinct = {})").format(-1 / filling.ROWS_PER_LEARNER)
    )
    conn.execute("ALTER TABLE quiz_regrade_learners ALTER COLUMN regrade_id SET (n_distinct = -0.01)")
    conn.execute("VACUUM ANALYZE")
    for (relid,) in conn.execute(
        """
        SELECT pg_restore_relation_stats(
            'schemaname', 'public', 'relname', relname::text, 'relpages', (pg_relation_size(oid) / 8192)::int,
            'reltuples', greatest(reltuples * %s, 100000)::real
        )
        FROM pg_class WHERE relname = ANY(%s) AND relnamespace = 'public'::regnamespace
        """,
        [1 if GIVEN else BELIEVED / ROWS, sorted(GROWING)],
    ):
        assert relid


@pytest.fixture(scope="module")
def large(server_url: str, template_database: str, s3: str) -> Generator[tuple[str, Filled]]:
    """URL of a large database, which the service uses, and who is in it."""
    with created(server_url, f"plans_{uuid4().hex[:12]}", GIVEN or template_database) as url:
        service = Service(url)
        with psycopg.connect(url, autocommit=True) as conn:
            for table in GROWING:
                # Nothing but this test says what the planner is to believe.
                conn.execute(sql.SQL("ALTER TABLE {} SET (autovacuum_enabled = off)").format(sql.Identifier(table)))
            if GIVEN:
                ((versions, learners),) = conn.execute(
                    "SELECT (SELECT count(*) FROM course_versions), (SELECT count(*) FROM learners)"
                ).fetchall()
                filled = Filled(versions, learners)
            else:
                filled = filling.publish(service, 20)
                filling.grow(conn, filled, filling.learners_for(ROWS))
            os.environ["DATABASE_URL"] = as_role(url, "learner_progress_app")
            settings.database_url.cache_clear()
            # The first time leaves something in each table.
            everything(service, filled, 0)
            pretend(conn)
        yield url, filled


@pytest.fixture(scope="module")
def plans(large: tuple[str, Filled]) -> list[Plan]:
    """The plans of everything."""
    url, filled = large
    with explained(url) as found:
        everything(Service(url), filled, 1)
    return found


def plain(statement: str) -> str:
    """A statement without what psycopg makes of its placeholders."""
    return re.sub(r"\$\d+|%\(\w+\)[sbt]|%[sbt]", "?", statement).replace("%%", "%").strip()


def statements(root: Path) -> dict[str, str]:
    """Each statement of the service that speaks of a growing table, with its place."""
    about = re.compile(rf"\b({'|'.join([*GROWING, 'enrollment_items', 'all_quiz_attempts', 'complete_enrollments'])})\b")
    return {
        plain(call.args[0].value): f"{path.relative_to(root)}:{call.lineno}"
        for path in (root / "shared").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "execute"
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
        and about.search(call.args[0].value)
    }


def test_each_statement_about_growing_tables_was_looked_at(plans: list[Plan], root: Path):
    seen = {plain(plan.statement) for plan in plans}
    assert {place for text, place in statements(root).items() if text not in seen} == set()


def read_whole(plan: Plan) -> list[str]:
    """Which growing tables are read from end to end, or by a whole index, unless that holds nothing but what is still open."""
    return [
        f"{node['Node Type']} {node.get('Index Name')} of {node['Relation Name']}: {' '.join(plan.statement.split())[:200]}"
        for node in plan.nodes()
        if node.get("Relation Name") in GROWING
        and (
            node["Node Type"].endswith("Seq Scan")
            or (node["Node Type"].startswith("Index") and "Index Cond" not in node and node["Index Name"] not in OPEN)
        )
    ]


def test_no_statement_reads_a_growing_table_from_end_to_end(plans: list[Plan]):
    assert sorted({line for plan in plans for line in read_whole(plan)}) == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM lesson_progress",
        "SELECT user_id FROM lesson_progress WHERE lesson_id = gen_random_uuid()",
        "SELECT e.user_id FROM enrollments e JOIN enrollment_history h USING (user_id, course_version_id)",
        "SELECT id FROM quiz_attempts ORDER BY id",
    ],
)
def test_what_reads_a_whole_table_is_noticed(large: tuple[str, Filled], plans: list[Plan], statement: LiteralString):
    with explained(large[0]) as found:
        db.run(lambda conn: conn.execute(statement))
    assert any(read_whole(plan) for plan in found)
