"""A database as it was at an earlier migration, with learners in it, is brought up to date: no data change their meaning."""

from collections.abc import Generator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from yoyo import get_backend, read_migrations

from functions.migrate import app
from shared import db
from tests.conftest import created
from tests.support.service import LEARNER, Service, context, course, event, quiz

PROJECT = Path(__file__).parent.parent.parent
#: Each migration but the last, from the one on with which learners could complete a course.
EARLIER = sorted(path.stem for path in PROJECT.glob("migrations/*.sql") if path.stem >= "0005")[:-1]

LEARNERS = {
    name: UUID(int=0xA0 + n) for n, name in enumerate(("new", "half", "open", "done", "cancelled", "revoked", "nameless"))
}


def live(service: Service, version: dict[str, Any]) -> None:
    """Learners come to where courses leave them: enrolled, half-way, in an attempt, certified, cancelled, revoked."""
    service.send("catalog", event("course_version.published", version))
    lessons = [lesson["lesson_id"] for lesson in version["lessons"]]
    for name, learner in LEARNERS.items():
        if name != "nameless":
            service.send("catalog", event("learner.updated", {"user_id": str(learner), "name": name}, "2026-01-01T12:00:00Z"))
        path = f"/users/{learner}/enrollments/{version['course_version_id']}"
        attempts = f"{path}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
        assert service.http("PUT", path, sub=learner).status == 201
        done = 2 if name in ("done", "revoked", "nameless") else 0 if name == "new" else 1
        for lesson in lessons[:done]:
            report = {"progress_percentage": 100}
            assert service.http("PUT", f"{path}/lessons/{lesson}/progress", report, sub=learner).status == 200
        if name == "half":
            report = {"progress_percentage": 33.3}
            assert service.http("PUT", f"{path}/lessons/{lessons[1]}/progress", report, sub=learner).status == 200
        if name not in ("new", "cancelled"):
            # The first attempt falls short, the second passes; the last one stays open.
            for answers in ({"q1": "b"}, {"q1": "a", "q2": 0.1}):
                attempt = service.http("POST", attempts, sub=learner).json["id"]
                if (name, answers) == ("open", {"q1": "a", "q2": 0.1}):
                    saved = service.http("PUT", f"/quiz-attempts/{attempt}/answers", {"answers": answers}, sub=learner)
                    assert saved.status == 200
                else:
                    submit = f"/quiz-attempts/{attempt}/submit"
                    assert service.http("POST", submit, {"answers": answers}, sub=learner).status == 200
        while service.deliver():
            pass
        if name == "cancelled":
            assert service.http("POST", f"{path}/cancel", sub=learner).status == 200
        if name == "revoked":
            assert service.admin("POST", f"{path}/revoke", {"reason": "So it is."}).status == 200
            # The history has not always told of it.
            revoked = "revoked_at = now(), revocation_reason = 'So it is.', revoked_by = 'admin'"
            service.rows(f"UPDATE certificates SET {revoked} WHERE user_id = %s", learner)
    while service.deliver():
        pass


def seen(service: Service, version: dict[str, Any]) -> dict[str, Any]:
    """What learners, administrators, strangers and subscribers see."""
    found: dict[str, Any] = {}
    for learner in LEARNERS.values():
        path = f"/users/{learner}/enrollments/{version['course_version_id']}"
        attempts = f"{path}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts"
        for place in (path, f"{path}/progress", f"{path}/history", attempts, f"/users/{learner}/certificates"):
            found[place] = service.admin("GET", place).json
        for attempt in found[attempts]["items"]:
            place = f"/quiz-attempts/{attempt['id']}"
            found[place] = service.admin("GET", place).json
        for certificate in found[f"/users/{learner}/certificates"]["items"]:
            place = f"/certificates/{certificate['certificate_uid']}"
            found[place] = service.http("GET", place, sub=None, headers={"accept": "application/json"}).json
    found["roster"] = service.admin("GET", f"/course-versions/{version['course_version_id']}/enrollments").json
    found["published"] = service.published()
    return found


@pytest.fixture(scope="module")
def lived(s3: str, server_url: str, template_database: str) -> Generator[tuple[dict[str, list[str]], dict[str, Any]]]:
    """All rows of a database of now in which learners have lived, and the course with what is seen of it."""
    version = course(lessons=2, quizzes=[quiz()])
    with created(server_url, f"lived_{uuid4().hex[:12]}", template_database) as url:
        service = Service(url)
        live(service, version)
        tables = service.rows(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname !~ '^_?yoyo'"
        )
        rows = {
            table: [row["row"] for row in service.rows(sql.SQL("SELECT to_json(t)::text AS row FROM {} t").format(name))]
            for table, name in ((row["relname"], sql.Identifier(row["relname"])) for row in tables)
        }
        told = {"version": version, "seen": seen(service, version)}
        statuses = sorted(row["status"] for row in told["seen"]["roster"]["items"])
        assert statuses == ["active"] * 3 + ["cancelled_by_user"] + ["completed"] * 2 + ["revoked_by_admin"]
        certificates = [answer["status"] for path, answer in told["seen"].items() if path.startswith("/certificates/")]
        assert sorted(certificates) == ["revoked", "valid"]
        db.close()
        yield rows, told


def fill(service: Service, rows: dict[str, list[str]], version_of_then: str) -> None:
    """Fill the tables that there are with these rows, by the columns that there are; neither triggers nor keys have a say."""
    with psycopg.connect(service.database_url) as conn:
        conn.execute("SET session_replication_role = replica")
        for table, objects in rows.items():
            columns = service.rows(
                "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped", table
            )
            if columns:
                name, names = sql.Identifier(table), sql.SQL(", ").join(sql.Identifier(row["attname"]) for row in columns)
                conn.execute(sql.SQL("DELETE FROM {}").format(name))
                conn.execute(
                    sql.SQL(
                        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM json_populate_recordset(NULL::{}, %s)"
                    ).format(name, names, names, name),
                    [f"[{','.join(objects)}]"],
                )
        if version_of_then < "0011":
            conn.execute("UPDATE certificates SET metadata = metadata - 'criteria'")
        # The numbers that were drawn are in the rows.
        for (sequence,) in conn.execute("SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S'").fetchall():
            conn.execute("SELECT setval(%s, 1000)", [sequence])


@pytest.mark.parametrize("version_of_then", EARLIER)
def test_from_each_earlier_version_everything_means_what_it_meant(
    server_url: str, lived: tuple[dict[str, list[str]], dict[str, Any]], version_of_then: str
):
    rows, told = lived
    with created(server_url, f"older_{uuid4().hex[:12]}") as url:
        here = Service(url)
        backend = get_backend(app._url())
        files = read_migrations(str(PROJECT / "migrations"))
        for migration in backend.to_apply(files.filter(lambda migration: migration.id <= version_of_then)):
            backend.apply_one(migration)
        backend.connection.close()
        fill(here, rows, version_of_then)
        later = [migration.id for migration in files if migration.id > version_of_then]
        assert app.handler({}, context("Migrate", 900))["applied"] == later
        # Documents and credentials are made as they are due, where there were none.
        here.invoke("certificate_worker", {"detail-type": "Scheduled Event"})
        assert seen(here, told["version"]) == told["seen"]
        # Whoever was half-way gets to the end, as does a new learner.
        for learner in (LEARNERS["open"], LEARNERS["new"], LEARNER):
            go_through(here, learner, told["version"])


def go_through(service: Service, learner: UUID, version: dict[str, Any]) -> None:
    """Do whatever is left, up to the certificate."""
    service.send("catalog", event("learner.updated", {"user_id": str(learner), "name": "Ada"}))
    path = f"/users/{learner}/enrollments/{version['course_version_id']}"
    assert service.http("PUT", path, sub=learner).status in (200, 201)
    for lesson in version["lessons"]:
        report = {"progress_percentage": 100}
        assert service.http("PUT", f"{path}/lessons/{lesson['lesson_id']}/progress", report, sub=learner).status == 200
    attempt = service.http("POST", f"{path}/quizzes/{version['quizzes'][0]['quiz_id']}/attempts", sub=learner).json["id"]
    answers = {"answers": {"q1": "a", "q2": 0.1}}
    assert service.http("POST", f"/quiz-attempts/{attempt}/submit", answers, sub=learner).status == 200
    while service.deliver():
        pass
    certificate = service.http("GET", f"{path}/certificate", sub=learner).json
    page = service.http(
        "GET", f"/certificates/{certificate['certificate_uid']}", sub=None, headers={"accept": "application/json"}
    )
    assert page.json["status"] == "valid"
