"""No log line speaks of anybody.

What the whole suite writes is read at its end (tests/support/logs.py). Here is that the reader finds what it looks for, and what
an ordinary run never brings about.
"""

import ast
import json
import logging
import os
import re
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from pydantic import BaseModel

from shared import db
from shared.observability import Unexpected, logger, observed
from tests import conftest
from tests.support.logs import Log
from tests.support.service import LEARNER, Service, context

NAME, ANSWER = "Zora Königsgräber", "the bicameral canary"


@pytest.fixture
def log() -> Log:
    log = Log()
    log.meet("user", str(LEARNER))
    log.meet("name", NAME)
    log.meet("answer", ANSWER)
    log.hear('{"data": {"user_id": "5D0E7C1A-3b52-4f0e-9c41-6a1f0b7d2e10"}}')
    return log


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (f"hello {NAME}!", "a learner's name"),
        (json.dumps({"message": NAME}), "a learner's name"),
        (f'{{"answers": {{"q1": "{ANSWER}"}}}}', "a learner's answer"),
        (f"GET /users/{LEARNER}/enrollments", "a user's id"),
        (f"GET /users/{str(LEARNER).upper()}/enrollments", "a user's id"),
        ("Key (user_id)=(5d0e7c1a-3b52-4f0e-9c41-6a1f0b7d2e10) already exists.", "a user's id"),
        ("authorization: Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.x", "a token"),
        ("/?Action=connect&X-Amz-Signature=0123abcd", "a signature of AWS"),
        ("postgresql://app:secret@db.example.org/x", "a password"),
        ("password='secret'", "a password"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("sent to ada.lovelace+x@example.org", "an e-mail address"),
    ],
)
def test_the_reader_finds_what_is_planted(log: Log, line: str, what: str):
    log.write("here", f"before\n{line}\nafter")
    assert log.findings() == [f"here: {what}: {line}"]


def test_the_reader_lets_pass_what_speaks_of_nobody(log: Log):
    log.write("here", f'{{"correlation_id":"{uuid4()}","message":"event set apart","tries":1}}\npostgresql://app@db:5432/x')
    log.write("there", "log in: Zora; password: \nKönigsgräber the canary")
    assert log.findings() == []


def test_the_reader_reads_the_files_of_other_processes(log: Log, tmp_path: Path):
    for n, name in enumerate(("a/log/enrollment_api.log", "b/output", "c/log", "d/notes")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"{n} {NAME}\n")
    assert [finding.partition(":")[0] for finding in log.findings()] == []
    log.read(tmp_path)
    assert [finding.partition(":")[0] for finding in log.findings()] == ["a/log/enrollment_api.log", "b/output", "c/log"]


class Person(BaseModel):
    age: int


@pytest.mark.parametrize("what", ["row", "value", "model", "key"])
def test_what_nobody_expected_is_raised_without_what_it_is_about(service: Service, what: str):
    """Lambda logs the message of what a handler raises, and a driver's or a library's repeats the row or the input."""

    @observed()
    def handler(event: dict[str, str], _context: object) -> dict[str, str]:
        match what:
            case "row":
                insert = "INSERT INTO learners (user_id, name) SELECT %s, %s FROM generate_series(1, 2)"
                db.run(lambda conn: conn.execute(insert, [LEARNER, NAME]))
            case "value":
                db.run(lambda conn: conn.execute("SELECT %s::text::int", [NAME]))
            case "model":
                Person.model_validate({"age": NAME})
            case _:
                return {"name": event[NAME]}
        return {}

    with pytest.raises(Unexpected) as raised:
        handler({}, context("Test"))
    expected = {
        "row": 'psycopg.errors.UniqueViolation 23505: duplicate key value violates unique constraint "learners_pkey"',
        "value": "psycopg.errors.InvalidTextRepresentation 22P02",
        "model": "pydantic_core._pydantic_core.ValidationError",
        "key": "KeyError",
    }
    assert str(raised.value) == expected[what]
    # Where it happened is told all the same.
    text = "".join(traceback.format_exception(raised.value))
    assert "in handler" in text
    assert NAME not in text
    assert str(LEARNER) not in text


#: What our own log lines may say beside a fixed text.
FIELDS = {
    *("queue", "destination", "code", "tries", "error", "part", "of", "where", "reason"),
    *("applied", "migration", "attempt", "certificate_uid"),
    *("events", "taken", "set_apart", "correlation_id", "trace_id", "trace_ids", "sqlstate", "remedy"),
}


def test_our_own_log_lines_say_a_fixed_text_and_fields_that_speak_of_nobody(root: Path):
    lines = 0
    for path in [*root.glob("shared/**/*.py"), *root.glob("functions/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            where = f"{path.relative_to(root)}:{node.lineno}"
            name = ast.unparse(node.func)
            assert name not in ("print", "sys.stdout.write", "sys.stderr.write", "logging.getLogger"), where
            if name == "logger.append_keys":
                assert {keyword.arg for keyword in node.keywords} <= FIELDS, where
            elif name.startswith("logger.") and name != "logger.inject_lambda_context":
                lines += 1
                assert name in ("logger.info", "logger.warning", "logger.error"), where
                assert [type(argument) for argument in node.args] == [ast.Constant], where
                assert {keyword.arg for keyword in node.keywords} <= FIELDS, where
    assert lines >= 8


def test_events_and_answers_are_never_logged_whole(root: Path):
    """What Powertools would log of each event and answer if it were told to, by the environment or in the code."""
    everything = (root / "template.yaml").read_text() + "".join(
        path.read_text() for path in [*root.glob("shared/**/*.py"), *root.glob("functions/**/*.py")]
    )
    assert "POWERTOOLS_LOG_LEVEL: INFO" in everything
    for switch in ("log_event", "LOGGER_LOG_EVENT", "POWERTOOLS_DEV", "POWERTOOLS_DEBUG", "debug=True", "LOG_LEVEL: DEBUG"):
        assert switch not in everything
    assert logger.log_level == logging.INFO
    assert "POWERTOOLS_DEV" not in os.environ


@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="another server has settings of its own")
def test_postgresql_tells_its_log_here_no_more_than_on_aws(server_url: str, root: Path):
    template = (root / "template.yaml").read_text()
    with psycopg.connect(server_url) as conn:
        for name, value in (("log_parameter_max_length", "0"), ("log_error_verbosity", "terse")):
            assert re.search(rf'^ +{name}: "?{value}"?$', template, re.MULTILINE)
            assert conn.execute("SELECT current_setting(%s)", [name]).fetchone() == (value,)


def test_a_run_whose_log_speaks_of_somebody_fails(log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(conftest, "LOG", log)
    factory = SimpleNamespace(getbasetemp=lambda: tmp_path)
    session: Any = SimpleNamespace(config=SimpleNamespace(_tmp_path_factory=factory), exitstatus=pytest.ExitCode.OK)
    for planted, status in (("nothing", pytest.ExitCode.OK), (NAME, pytest.ExitCode.TESTS_FAILED)):
        sections = [("Captured stdout call", planted)]
        report = pytest.TestReport("a test", ("", 0, ""), {}, "passed", None, "teardown", sections)
        conftest.pytest_runtest_logreport(report)
        conftest.pytest_sessionfinish(session)
        assert session.exitstatus == status
    assert log.findings() == [f"a test, Captured stdout call: a learner's name: {NAME}"]
