"""Migrating as a deployment does it: told to CloudFormation, patient with locks, and nothing half done."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

import migrations
from functions.migrate import app
from shared import db, settings
from tests.support.service import LEARNER, Service, context, course, event


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
    """A folder with all migrations, to which a test adds another."""
    copy = tmp_path / "migrations"
    shutil.copytree(root / "migrations", copy)
    monkeypatch.setattr(migrations, "__path__", [str(copy)])
    return copy


@pytest.fixture
def cloudformation() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Where CloudFormation waits for an answer, and the answers it got."""
    answers: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            # A presigned address of S3 holds for no content type but an empty one.
            assert self.headers["content-type"] == ""
            answers.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/answer?X-Amz-Signature=x", answers
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
def test_cloudformation_is_told_that_it_succeeded(
    owner: Service, folder: Path, cloudformation: tuple[str, list[dict[str, Any]]], kind: str
):
    (folder / "9999_more.sql").write_text("CREATE TABLE more ();")
    url, answers = cloudformation
    assert app.handler(custom_resource(kind, url), context("Migrate"))["applied"] == ["9999_more"]
    told = {"StackId": "stack", "RequestId": "request", "LogicalResourceId": "Migrated", "PhysicalResourceId": "migrations"}
    assert [answer.pop("Reason") for answer in answers] == ["see the function's log"]
    assert answers == [told | {"Status": "SUCCESS"}]


def test_deleting_the_stack_migrates_nothing(owner: Service, folder: Path, cloudformation: tuple[str, list[dict[str, Any]]]):
    (folder / "9999_more.sql").write_text("CREATE TABLE more ();")
    url, answers = cloudformation
    assert app.handler(custom_resource("Delete", url), context("Migrate")) == {}
    assert [answer["Status"] for answer in answers] == ["SUCCESS"]
    assert owner.rows("SELECT to_regclass('more') AS more") == [{"more": None}]


def test_rolled_back_to_the_version_before_it_migrates_nothing(
    owner: Service, folder: Path, cloudformation: tuple[str, list[dict[str, Any]]]
):
    (folder / "9999_more.sql").write_text("this fails once more;")
    url, answers = cloudformation
    assert app.handler(custom_resource("Update", url, VERSION.replace("$LATEST", "6")), context("Migrate")) == {}
    assert [answer["Status"] for answer in answers] == ["SUCCESS"]


def test_one_that_fails_half_way_leaves_the_schema_and_the_service_as_they_were(
    owner: Service, folder: Path, cloudformation: tuple[str, list[dict[str, Any]]]
):
    bad = folder / "9999_more.sql"
    bad.write_text("CREATE TABLE more (); ALTER TABLE enrollments DROP COLUMN nothing;")
    url, answers = cloudformation
    with pytest.raises(psycopg.errors.UndefinedColumn):
        app.handler(custom_resource("Update", url), context("Migrate"))
    assert [answer["Status"] for answer in answers] == ["FAILED"]
    assert "nothing" in answers[0]["Reason"]
    assert owner.rows("SELECT to_regclass('more') AS more") == [{"more": None}]
    version = course()
    owner.send("catalog", event("course_version.published", version))
    assert owner.http("PUT", f"/users/{LEARNER}/enrollments/{version['course_version_id']}").status == 201
    # Mended, it is applied once.
    bad.write_text("CREATE TABLE more ();")
    assert app.migrate()["applied"] == ["9999_more"]
    assert app.migrate()["applied"] == []


def test_a_lock_that_others_hold_is_waited_for_in_between_their_work(
    owner: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "9999_more.sql").write_text("SET LOCAL lock_timeout = '100ms'; ALTER TABLE enrollments ADD COLUMN more int;")
    monkeypatch.setattr(app, "LOCK_PAUSE", 0.05)
    with psycopg.connect(owner.database_url) as holder:
        holder.execute("LOCK TABLE enrollments IN ACCESS SHARE MODE")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            app.migrate()
        freed = threading.Timer(0.5, holder.rollback)
        freed.start()
        assert app.migrate()["applied"] == ["9999_more"]
        freed.join()
    assert owner.rows("SELECT more FROM enrollments") == []
