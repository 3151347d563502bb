"""Migrating as a deployment does it: told to CloudFormation, patient with locks, killed, and nothing half done."""

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

import migrations
from functions.migrate import app
from shared import db, settings
from shared.observability import Unexpected
from tests.conftest import as_role
from tests.support.learners import Learners, at_work
from tests.support.migrating import applied, running
from tests.support.service import Service, context, course, event, quiz


@pytest.fixture
def owner(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The service with the rights of whoever migrates."""
    monkeypatch.setenv("DATABASE_URL", service.database_url)
    settings.database_url.cache_clear()
    db.close()
    yield service
    settings.database_url.cache_clear()


@pytest.fixture
def folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all migrations, to which a test adds others."""
    copy = Path(shutil.copytree(root / "migrations", tmp_path / "migrations"))
    monkeypatch.setattr(migrations, "__path__", [str(copy)])
    return copy


class CloudFormation:
    """Where CloudFormation waits for an answer, the answers it got, and how it takes the next ones instead of with 200."""

    url: str

    def __init__(self) -> None:
        self.answers: list[dict[str, Any]] = []
        self.trouble: list[str] = []

    @property
    def statuses(self) -> list[str]:
        return [answer["Status"] for answer in self.answers]


@pytest.fixture
def cloudformation() -> Iterator[CloudFormation]:
    waiting = CloudFormation()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            # A presigned address of S3 holds for no content type but an empty one.
            assert self.headers["content-type"] == ""
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            trouble = waiting.trouble.pop(0) if waiting.trouble else None
            if trouble == "hangs up":
                return
            if trouble == "503":
                self.send_error(503)
                return
            waiting.answers.append(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        waiting.url = f"http://127.0.0.1:{server.server_address[1]}/answer?X-Amz-Signature=x"
        yield waiting
        server.shutdown()


VERSION = "arn:aws:lambda:eu-west-1:123456789012:function:Migrate:$LATEST"


def custom_resource(kind: str, url: str, version: str = VERSION) -> dict[str, Any]:
    return {
        "RequestType": kind,
        "ResponseURL": url,
        "StackId": "stack",
        "RequestId": "request",
        "LogicalResourceId": "Migrated",
        "ResourceType": "Custom::Migration",
        "ResourceProperties": {"ServiceToken": "arn:live", "Version": version},
    }


@pytest.mark.parametrize("kind", ["Create", "Update"])
def test_cloudformation_is_told_that_it_succeeded(owner: Service, folder: Path, cloudformation: CloudFormation, kind: str):
    (folder / "9999_more.sql").write_text("CREATE TABLE more ();")
    assert app.handler(custom_resource(kind, cloudformation.url), context("Migrate"))["applied"] == ["9999_more"]
    told = {"StackId": "stack", "RequestId": "request", "LogicalResourceId": "Migrated", "PhysicalResourceId": "migrations"}
    # Asked once more, it says the same.
    assert app.handler(custom_resource(kind, cloudformation.url), context("Migrate"))["applied"] == []
    assert [answer.pop("Reason") for answer in cloudformation.answers] == ["see the function's log"] * 2
    assert cloudformation.answers == [told | {"Status": "SUCCESS"}] * 2


def test_deleting_the_stack_migrates_nothing(owner: Service, folder: Path, cloudformation: CloudFormation):
    (folder / "9999_more.sql").write_text("CREATE TABLE more ();")
    assert app.handler(custom_resource("Delete", cloudformation.url), context("Migrate")) == {}
    assert cloudformation.statuses == ["SUCCESS"]
    assert owner.rows("SELECT to_regclass('more') AS more") == [{"more": None}]


def test_rolled_back_to_the_version_before_it_migrates_nothing(owner: Service, folder: Path, cloudformation: CloudFormation):
    (folder / "9999_more.sql").write_text("this fails once more;")
    older = custom_resource("Update", cloudformation.url, VERSION.replace("$LATEST", "6"))
    assert app.handler(older, context("Migrate")) == {}
    assert cloudformation.statuses == ["SUCCESS"]


@pytest.mark.parametrize("trouble", ["503", "hangs up"])
def test_an_answer_that_is_not_taken_is_given_again(owner: Service, folder: Path, cloudformation: CloudFormation, trouble: str):
    cloudformation.trouble = [trouble]
    assert app.handler(custom_resource("Update", cloudformation.url), context("Migrate"))["applied"] == []
    (folder / "9999_more.sql").write_text("this fails;")
    cloudformation.trouble = [trouble]
    app.handler(custom_resource("Update", cloudformation.url), context("Migrate"))
    assert cloudformation.statuses == ["SUCCESS", "FAILED"]


def test_an_answer_that_is_never_taken_is_left_to_lambda_which_hands_the_event_over_again(
    owner: Service, folder: Path, cloudformation: CloudFormation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app, "ANSWER_TRIES", 2)
    (folder / "9999_more.sql").write_text("CREATE TABLE more ();")
    cloudformation.trouble = ["503", "503"]
    with pytest.raises(Unexpected, match="HTTPError"):
        app.handler(custom_resource("Update", cloudformation.url), context("Migrate"))
    assert app.handler(custom_resource("Update", cloudformation.url), context("Migrate"))["applied"] == []
    assert cloudformation.statuses == ["SUCCESS"]


def test_cloudformation_is_told_when_there_is_no_database(
    owner: Service, cloudformation: CloudFormation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres@127.0.0.1:1/nothing")
    settings.database_url.cache_clear()
    assert app.handler(custom_resource("Create", cloudformation.url), context("Migrate")) == {}
    assert cloudformation.statuses == ["FAILED"]
    assert "onnection" in cloudformation.answers[0]["Reason"]


def test_cloudformation_is_told_when_yoyo_cannot_read_a_file(owner: Service, folder: Path, cloudformation: CloudFormation):
    (folder / "9999_more.py").write_text("import nothing_of_that_name")
    assert app.handler(custom_resource("Update", cloudformation.url), context("Migrate")) == {}
    assert cloudformation.statuses == ["FAILED"]
    assert "9999_more" in cloudformation.answers[0]["Reason"]


def test_before_its_time_is_up_a_migration_is_cancelled_and_that_is_told(
    owner: Service, folder: Path, cloudformation: CloudFormation
):
    (folder / "9999_more.sql").write_text(
        "CREATE TABLE more (); SET LOCAL statement_timeout = 0; SELECT pg_sleep(60); CREATE TABLE even_more ();"
    )
    began = time.monotonic()
    app.handler(custom_resource("Update", cloudformation.url), context("Migrate", app.TELLING + 1))
    assert 1 <= time.monotonic() - began < 10
    assert cloudformation.statuses == ["FAILED"]
    assert "9999_more: QueryCanceled" in cloudformation.answers[0]["Reason"]
    assert "time is up" in cloudformation.answers[0]["Reason"]
    assert owner.rows("SELECT to_regclass('more') AS more") == [{"more": None}]


def test_what_is_told_of_a_failure_quotes_no_row(owner: Service, folder: Path, cloudformation: CloudFormation):
    owner.rows("INSERT INTO learners (user_id, name) VALUES (gen_random_uuid(), 'Ada')")
    (folder / "9999_more.sql").write_text("UPDATE learners SET user_id = NULL;")
    app.handler(custom_resource("Update", cloudformation.url), context("Migrate"))
    assert "9999_more: NotNullViolation: null value in column" in cloudformation.answers[0]["Reason"]
    assert "Ada" not in cloudformation.answers[0]["Reason"]


@contextmanager
def served(service: Service) -> Generator[Learners]:
    """Learners at work as long as this lasts, who all have to get through."""
    version = course(lessons=2, quizzes=[quiz()])
    service.send("catalog", event("course_version.published", version))
    with at_work(as_role(service.database_url, "learner_progress_app"), version, 2) as learners:
        yield learners
    assert {status for _, _, status in learners.requests} == {200, 201}


def until(condition: Callable[[], object]) -> None:
    """Wait for something that is bound to come."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def noted(service: Service) -> tuple[list[str], list[str]]:
    """The added migrations that are noted as applied, and those that yoyo's log tells of."""
    query = "WHERE migration_id > '9' ORDER BY migration_id"
    applied = service.rows(f"SELECT migration_id FROM _yoyo_migration {query}")
    logged = service.rows(f"SELECT migration_id FROM _yoyo_log {query}")
    return [row["migration_id"] for row in applied], [row["migration_id"] for row in logged]


def test_one_that_fails_half_way_leaves_the_schema_and_the_service_as_they_were(
    owner: Service, folder: Path, cloudformation: CloudFormation
):
    (folder / "9997_before.sql").write_text("ALTER TABLE enrollments ADD COLUMN before text; CREATE TABLE before ();")
    bad = folder / "9998_bad.sql"
    bad.write_text("ALTER TABLE lesson_progress ADD COLUMN bad text; ALTER TABLE enrollments DROP COLUMN nothing;")
    (folder / "9999_after.sql").write_text("CREATE TABLE after ();")
    with served(owner) as learners:
        learners.await_more()
        assert app.handler(custom_resource("Update", cloudformation.url), context("Migrate", 120)) == {}
        learners.await_more()
        assert cloudformation.statuses == ["FAILED"]
        assert "nothing" in cloudformation.answers[0]["Reason"]
        # The file before stays applied, of this one there is nothing, and the one after has not been begun.
        assert noted(owner) == (["9997_before"], ["9997_before"])
        assert owner.rows("SELECT to_regclass('before') IS NOT NULL AS before, to_regclass('after') AS after") == [
            {"before": True, "after": None}
        ]
        with pytest.raises(psycopg.errors.UndefinedColumn):
            owner.rows("SELECT bad FROM lesson_progress")
        # Mended, it goes on where it stopped.
        bad.write_text("ALTER TABLE lesson_progress ADD COLUMN bad text;")
        names = ["9998_bad", "9999_after"]
        assert app.handler(custom_resource("Update", cloudformation.url), context("Migrate", 120))["applied"] == names
        learners.await_more()
    assert cloudformation.statuses == ["FAILED", "SUCCESS"]
    assert noted(owner) == (["9997_before", *names], ["9997_before", *names])
    assert app.handler({}, context("Migrate", 120))["applied"] == []


def test_what_is_applied_is_noted_or_neither(owner: Service, folder: Path):
    (folder / "9999_more.sql").write_text("CREATE TABLE more ();")
    owner.rows("ALTER TABLE _yoyo_migration ADD CONSTRAINT nothing_more CHECK (migration_id < '9') NOT VALID")
    with pytest.raises(app.MigrationFailed, match="9999_more: CheckViolation"):
        app.handler({}, context("Migrate"))
    assert owner.rows("SELECT to_regclass('more') AS more") == [{"more": None}]
    assert noted(owner) == ([], [])


def test_a_lock_that_others_hold_is_waited_for_in_between_their_work(
    owner: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "9999_more.sql").write_text("SET LOCAL lock_timeout = '100ms'; ALTER TABLE enrollments ADD COLUMN more int;")
    monkeypatch.setattr(app, "LOCK_PAUSE", 0.05)
    monkeypatch.setattr(app, "LOCK_TRIES", 10)
    with psycopg.connect(owner.database_url) as holder:
        holder.execute("LOCK TABLE enrollments IN ACCESS SHARE MODE")
        with pytest.raises(app.MigrationFailed, match="9999_more: LockNotAvailable"):
            app.handler({}, context("Migrate"))
        freed = threading.Timer(0.5, holder.rollback)
        freed.start()
        assert app.handler({}, context("Migrate"))["applied"] == ["9999_more"]
        freed.join()
    assert owner.rows("SELECT more FROM enrollments") == []


def test_a_deadlock_is_resolved_and_the_migration_tried_again(owner: Service, folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "9999_more.sql").write_text(
        "SET LOCAL lock_timeout = '10s'; ALTER TABLE enrollments ADD COLUMN more int; "
        "SELECT pg_sleep(0.5); ALTER TABLE outbox ADD COLUMN more int;"
    )
    monkeypatch.setattr(app, "LOCK_PAUSE", 0.05)
    with psycopg.connect(owner.database_url) as other:
        # Whose wait began first notices first, and that is not this one.
        other.execute("SET deadlock_timeout = '10s'")
        other.execute("LOCK TABLE outbox IN ACCESS SHARE MODE")

        def meet() -> None:
            until(
                lambda: owner.rows(
                    """
                    SELECT pid FROM pg_locks
                    WHERE relation = 'enrollments'::regclass AND mode = 'AccessExclusiveLock' AND granted
                    """
                )
            )
            other.execute("LOCK TABLE enrollments IN ACCESS SHARE MODE")
            other.rollback()

        meeting = threading.Thread(target=meet)
        meeting.start()
        assert app.handler({}, context("Migrate"))["applied"] == ["9999_more"]
        meeting.join()
    assert noted(owner) == (["9999_more"], ["9999_more"])


def working(service: Service, statement: str) -> list[int]:
    """The sessions whose present or last statement begins like this."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE %s || '%%'"
    return [row["pid"] for row in service.rows(query, statement)]


def test_a_run_that_is_killed_leaves_nothing_and_the_next_one_needs_no_hand(owner: Service, folder: Path):
    (folder / "9998_before.sql").write_text("CREATE TABLE before ();")
    killed = folder / "9999_killed.sql"
    killed.write_text("ALTER TABLE enrollments ADD COLUMN more int; SET LOCAL statement_timeout = 0; SELECT pg_sleep(60);")
    # Such a row is left by a run that is killed while yoyo makes its own tables.
    owner.rows("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, now(), 1)")
    with served(owner) as learners:
        with running(owner, folder) as process:
            until(lambda: working(owner, "SELECT pg_sleep"))
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        # The table stays locked until PostgreSQL has noticed, and no longer.
        learners.await_more()
        assert noted(owner) == (["9998_before"], ["9998_before"])
        killed.write_text("ALTER TABLE enrollments ADD COLUMN more int;")
        assert app.handler({}, context("Migrate"))["applied"] == ["9999_killed"]
    assert noted(owner) == (["9998_before", "9999_killed"],) * 2
    assert owner.rows("SELECT * FROM yoyo_lock") == []
    assert max(took for _, took, _ in learners.requests) < 4


def test_a_run_does_not_wait_for_another_one_beyond_its_time(owner: Service, folder: Path, cloudformation: CloudFormation):
    with psycopg.connect(owner.database_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(hashtext('migrations'))")
        app.handler(custom_resource("Update", cloudformation.url), context("Migrate", app.TELLING + 0.5))
    assert cloudformation.statuses == ["FAILED"]
    assert "another run" in cloudformation.answers[0]["Reason"]


#: How docs/deployment.md says that an index is made.
INDEX = """
-- transactional: false

DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('enrollments_date_idx') AND NOT indisvalid) THEN
        DROP INDEX enrollments_date_idx;
    END IF;
END $$;
SET lock_timeout = 0;
SET statement_timeout = 0;
CREATE INDEX CONCURRENTLY IF NOT EXISTS enrollments_date_idx ON enrollments (enrolled_at);
"""


def index(service: Service) -> dict[str, Any] | None:
    """The index that `INDEX` makes."""
    query = "SELECT indexrelid AS oid, indisvalid AS valid FROM pg_index WHERE indexrelid = to_regclass('enrollments_date_idx')"
    return next(iter(service.rows(query)), None)


def test_of_two_runs_at_once_one_waits_and_finds_nothing_to_do(owner: Service, folder: Path):
    (folder / "9998_index.sql").write_text(INDEX)
    # What the file sets holds for no other.
    (folder / "9999_after.sql").write_text("CREATE TABLE after AS SELECT current_setting('lock_timeout') AS lock_timeout;")
    with psycopg.connect(owner.database_url) as writer:
        # The build waits for this transaction, and must not wait for the other run.
        writer.execute("LOCK TABLE enrollments IN ROW EXCLUSIVE MODE")
        with running(owner, folder) as one, running(owner, folder) as other:
            until(lambda: working(owner, "CREATE INDEX") and working(owner, "SELECT pg_try_advisory_lock"))
            writer.rollback()
            assert sorted([applied(one), applied(other)]) == [[], ["9998_index", "9999_after"]]
    found = index(owner)
    assert found
    assert found["valid"]
    assert owner.rows("SELECT * FROM after") == [{"lock_timeout": "1s"}]
    assert noted(owner) == (["9998_index", "9999_after"],) * 2


def test_an_index_that_a_killed_run_left_invalid_is_built_anew(owner: Service, folder: Path):
    (folder / "9998_index.sql").write_text(INDEX)
    with psycopg.connect(owner.database_url) as writer:
        writer.execute("LOCK TABLE enrollments IN ROW EXCLUSIVE MODE")
        with running(owner, folder) as process:
            until(lambda: index(owner))
            process.send_signal(signal.SIGKILL)
            process.wait()
        until(lambda: not working(owner, "CREATE INDEX"))
        invalid = index(owner)
        assert invalid
        assert not invalid["valid"]
        assert noted(owner) == ([], [])
    assert app.handler({}, context("Migrate"))["applied"] == ["9998_index"]
    valid = index(owner)
    assert valid
    assert valid["valid"]
    assert valid["oid"] != invalid["oid"]
    # One that a killed run built to its end and did not note is taken as it is.
    owner.rows("DELETE FROM _yoyo_migration WHERE migration_id = '9998_index'")
    assert app.handler({}, context("Migrate"))["applied"] == ["9998_index"]
    assert index(owner) == valid
