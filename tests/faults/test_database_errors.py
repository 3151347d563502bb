"""The database says no in every way that it can: callers get 503, queues their messages again, and it passes."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from shared import db
from shared.errors import Busy, Unavailable
from tests.conftest import as_role, created
from tests.faults.conftest import leading_to, note
from tests.faults.scenes import Scene
from tests.support.service import Service, event, record

APP = "learner_progress_app"

type Fault = Callable[[Service, Scene], AbstractContextManager[None]]


@pytest.fixture
def scene(service: Service) -> Scene:
    scene = Scene(service)
    scene.enrol()
    return scene


@contextmanager
def setting(service: Service, name: str, value: str) -> Generator[None]:
    """Give the service's role a setting in this database; it counts for connections made from now on."""
    with psycopg.connect(service.database_url, autocommit=True) as conn:
        where = sql.SQL("ALTER ROLE {} IN DATABASE {}").format(sql.Identifier(APP), sql.Identifier(conn.info.dbname))
        conn.execute(where + sql.SQL(" SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        try:
            yield
        finally:
            conn.execute(where + sql.SQL(" RESET ALL"))


@contextmanager
def refusing(service: Service, sqlstate: str) -> Generator[None]:
    """Let every write of progress or of an enrolment fail with this SQLSTATE, as if the server had run into it."""
    service.rows(
        f"""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'as the test asks' USING ERRCODE = '{sqlstate}'; END $$
        """
    )
    for table in ("lesson_progress", "enrollments"):
        service.rows(f"CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION fail()")
    try:
        yield
    finally:
        service.rows("DROP FUNCTION fail CASCADE")


@contextmanager
def locked(service: Service, scene: Scene) -> Generator[None]:
    """Hold the lock on an enrolment."""
    with psycopg.connect(service.database_url) as conn:
        conn.execute("SELECT FROM enrollments WHERE user_id = %s FOR UPDATE", [scene.user])
        yield


@contextmanager
def read_only(service: Service, scene: Scene) -> Generator[None]:
    with setting(service, "default_transaction_read_only", "on"):
        db.close()
        yield


@contextmanager
def waiting_for_locks(service: Service, scene: Scene) -> Generator[None]:
    with setting(service, "lock_timeout", "200ms"), locked(service, scene):
        db.close()
        yield


@contextmanager
def slow(service: Service, scene: Scene) -> Generator[None]:
    with setting(service, "statement_timeout", "200ms"), locked(service, scene):
        db.close()
        yield


@contextmanager
def no_connection_left(service: Service, scene: Scene) -> Generator[None]:
    service.rows(f"ALTER ROLE {APP} CONNECTION LIMIT 0")
    db.close()
    try:
        yield
    finally:
        service.rows(f"ALTER ROLE {APP} CONNECTION LIMIT -1")


@contextmanager
def not_let_in(service: Service, scene: Scene) -> Generator[None]:
    name = service.rows("SELECT current_database() AS name")[0]["name"]
    elsewhere = service.database_url.rpartition("/")[0] + "/postgres"
    with psycopg.connect(elsewhere, autocommit=True) as conn:
        conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        conn.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))


def raised(sqlstate: str) -> Fault:
    return lambda service, scene: refusing(service, sqlstate)


#: What happens to the service, for as long as the context lasts.
FAULTS: dict[str, Fault] = {
    "read-only (25006)": read_only,
    "lock held (55P03)": waiting_for_locks,
    "statement too slow (57014)": slow,
    "no connection left (53300)": no_connection_left,
    "connections refused": not_let_in,
    "disk full (53100)": raised("53100"),
    "out of memory (53200)": raised("53200"),
    "server starting (57P03)": raised("57P03"),
    "server going (57P01)": raised("57P01"),
    "server crashed (57P02)": raised("57P02"),
    "input/output error (58030)": raised("58030"),
    "deadlocks without end (40P01)": raised("40P01"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_database_cannot_do_now_is_503_for_callers_and_comes_again_on_queues(
    service: Service, scene: Scene, fault: str, caplog: pytest.LogCaptureFixture
):
    path = f"{scene.base}/lessons/{scene.lesson}/progress"
    report = event("lesson.progressed", scene.ids | {"lesson_id": scene.lesson, "progress_percentage": 100})
    before = scene.footprint()
    with FAULTS[fault](service, scene):
        start = time.monotonic()
        answer = service.admin("PUT", path, {"status": "completed"})
        assert time.monotonic() - start < 3
        assert (answer.status, answer.headers["retry-after"]) == (503, "5"), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["type"].rpartition(":")[2] == ("busy" if "55P03" in fault else "unavailable")
        if "55P03" in fault:
            service.send("progress", report)
        else:
            with pytest.raises(Unavailable):
                service.send("progress", report)
    start = time.monotonic()
    assert scene.footprint() | {"set apart": []} == before
    if "55P03" not in fault:
        # The kept connection is another one by now, or as good as before.
        assert service.admin("GET", scene.base).status == 200
    else:
        (apart,) = scene.footprint()["set apart"]
        assert apart == {"queue": "progress", "code": "busy", "tries": 1}
    if fault in ("read-only (25006)", "lock held (55P03)", "statement too slow (57014)"):
        # What the test made for connections of its own is over with them.
        db.close()
    assert service.admin("PUT", path, {"status": "completed"}).status == 200
    service.send("progress", report)
    assert scene.footprint()["progress"] == [{"progress_percentage": 100, "status": "completed"}]
    for operation in ("HTTP write", "message"):
        note(fault, operation, recovery=time.monotonic() - start)


def test_a_connection_to_the_old_writer_is_left_for_the_new_one(service: Service, scene: Scene):
    """After a failover the proxy's connection may still lead to the server that only reads by now."""
    with setting(service, "default_transaction_read_only", "on"):
        db.close()
        assert service.admin("GET", scene.base).status == 200
    # The kept connection reads only, a new one writes.
    assert service.admin("POST", f"{scene.base}/cancel").status == 200


def test_one_locked_enrolment_holds_up_no_other_in_its_batch(service: Service, scene: Scene):
    others = [Scene(service, version=scene.version, user=str(uuid4())) for _ in range(5)]
    for other in others:
        other.enrol()
    everyone = [*others[:2], scene, *others[2:]]
    reports = [event("lesson.progressed", one.ids | {"lesson_id": one.lesson, "progress_percentage": 100}) for one in everyone]
    attempts = [
        event("quiz.submitted", one.ids | {"quiz_id": one.quiz_id, "attempt_id": str(uuid4()), "answers": {"q1": "a"}})
        for one in everyone
    ]
    commands = [event("enrollment.revoked", one.ids | {"reason": "so it is"}) for one in everyone]
    with waiting_for_locks(service, scene):
        for queue, events in (("progress", reports), ("quiz", attempts), ("enrollment", commands)):
            # Some of them one by one, the others as one message.
            bodies = [json.dumps(events[0]), json.dumps(events[1:])]
            assert service.invoke(f"{queue}_worker", {"Records": [record(body) for body in bodies]}) == {"batchItemFailures": []}
    db.close()
    status = {row["user_id"]: row["status"] for row in service.rows("SELECT user_id::text, status FROM enrollments")}
    assert status == {other.user: "revoked_by_admin" for other in others} | {scene.user: "active"}
    assert [row["code"] for row in service.rows("SELECT code FROM outbox WHERE body IS NOT NULL")] == ["busy"] * 3
    assert {row["n"] for row in service.rows("SELECT count(*) AS n FROM quiz_attempts GROUP BY user_id")} == {1}
    service.rows("UPDATE outbox SET available_at = now()")
    service.deliver()
    assert {row["status"] for row in service.rows("SELECT status FROM enrollments")} == {"revoked_by_admin"}
    assert len(service.rows("SELECT 1 FROM quiz_attempts")) == 6
    note("one enrolment locked", "batches of three queues", cases=3)


@pytest.fixture(scope="module")
def small(server_url: str, template_database: str) -> Iterator[str]:
    """A database on a file system of 40 MB. Needs the right to mount."""
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="learner-progress-"))
        mount = ["mount", "-t", "tmpfs", "-o", "size=40m,mode=0777", "tmpfs", folder]
        if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("mounting a file system is not allowed here")
        stack.callback(subprocess.run, ["umount", "--lazy", folder], check=True)
        for parent in Path(folder).parents:
            parent.chmod(parent.stat().st_mode | 0o001)
        name = f"small_{uuid4().hex[:12]}"
        conn = stack.enter_context(psycopg.connect(server_url, autocommit=True))
        place = Path(folder, "space")
        place.mkdir(mode=0o700)
        (data,) = conn.execute("SELECT current_setting('data_directory')").fetchall()[0]
        owner = Path(data).stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        space = sql.Identifier(name)
        conn.execute(sql.SQL("CREATE TABLESPACE {} LOCATION {}").format(space, sql.Literal(str(place))))
        stack.callback(conn.execute, sql.SQL("DROP TABLESPACE {}").format(space))
        url = stack.enter_context(created(server_url, name, template_database))
        with psycopg.connect(server_url, autocommit=True) as other:
            other.execute(sql.SQL("ALTER DATABASE {} SET TABLESPACE {}").format(space, space))
        yield url


def test_a_disk_that_is_full_stops_writing_alone_and_writing_goes_on_when_there_is_space(small: str):
    with leading_to(as_role(small, APP)):
        service = Service(small)
        scene = Scene(service)
        scene.enrol()
        service.rows("CREATE TABLE filler (x text)")
        for rows in (4000, 8):
            with contextlib.suppress(psycopg.errors.DiskFull):
                while True:
                    service.rows("INSERT INTO filler SELECT repeat('x', 900) FROM generate_series(1, %s)", rows)
        # What fits into pages that are there already is still written; sooner or later one is full.
        taken: list[str] = []
        while True:
            learner = str(uuid4())
            answer = service.admin("PUT", f"/users/{learner}/enrollments/{scene.version['course_version_id']}")
            if answer.status != 201:
                break
            taken.append(learner)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert service.admin("GET", scene.base).status == 200
        there = {row["user_id"] for row in service.rows("SELECT user_id::text FROM enrollments")}
        assert there == {*taken, scene.user}
        service.rows("DROP TABLE filler")
        start = time.monotonic()
        while service.admin("PUT", f"/users/{learner}/enrollments/{scene.version['course_version_id']}").status != 201:
            assert time.monotonic() - start < 10
        note("disk really full", "HTTP write", recovery=time.monotonic() - start)


def test_a_transaction_that_stands_in_anothers_way_is_done_again(service: Service, scene: Scene):
    other = Scene(service, version=scene.version)
    other.enrol()
    first, second = sorted([scene, other], key=lambda one: one.user)

    def turn(first: Scene, second: Scene, barrier: threading.Barrier) -> None:
        def work(conn: db.Connection) -> None:
            conn.execute("UPDATE enrollments SET source_of_enrollment = 'x' WHERE user_id = %s", [first.user])
            conn.execute("SELECT pg_sleep(0.2)")
            conn.execute("UPDATE enrollments SET source_of_enrollment = 'x' WHERE user_id = %s", [second.user])

        try:
            barrier.wait()
            db.run(work)
        finally:
            db.close()

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=turn, args=[*pair, barrier]) for pair in ((first, second), (second, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(service.rows("SELECT 1 FROM enrollments WHERE source_of_enrollment = 'x'")) == 2


def test_errors_that_nothing_helps_against_are_raised():
    for name in ("UndefinedColumn", "InsufficientPrivilege", "CheckViolation", "InvalidTextRepresentation", "InternalError_"):
        assert db.remedy(getattr(psycopg.errors, name)()) == "raise"
    assert Busy.may_be_cured
    assert not Unavailable.may_be_cured
