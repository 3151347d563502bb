"""The pattern that finds what pins a connection of RDS Proxy."""

import re
from pathlib import Path

import pytest

from tests.support.pooler import PINS


@pytest.mark.parametrize(
    "statement",
    [
        "SET statement_timeout = '5s'",
        "\n        set local lock_timeout = '4s'",
        "RESET ALL",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "DECLARE c CURSOR FOR SELECT 1",
        "LISTEN news",
        "LOAD 'auto_explain'",
        "CREATE TEMP TABLE t (a int)",
        "CREATE TEMPORARY VIEW v AS SELECT 1",
        "CREATE LOCAL TEMP TABLE t (a int)",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_try_advisory_lock(1)",
        "SELECT pg_advisory_lock_shared(1)",
        "SELECT set_config('lock_timeout', '4s', false)",
        "SELECT set_config('lock_timeout', '4s', true)",
        "INSERT INTO t SELECT NEXTVAL ('s')",
        "WITH i AS (SELECT 1)\nSELECT nextval('s') FROM i",
        "SELECT setval('s', 1)",
        "SELECT currval('s')",
        "SELECT lastval()",
    ],
)
def test_what_pins_is_found(statement: str):
    assert PINS.search(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1",
        "BEGIN",
        "COMMIT",
        "UPDATE outbox o SET sent_at = now()",
        "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2",
        "SELECT setting FROM settings",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT next_status_entry()",
        "SELECT current_setting('lock_timeout')",
        "SELECT my_nextval('s')",
        "CREATE TABLE temporary_things (a int)",
        "SELECT complete_enrollments($1::uuid[], $2::uuid[], $3::text)",
    ],
)
def test_nothing_else_is_found(statement: str):
    assert not PINS.search(statement)


def test_no_statement_of_the_functions_calls_what_pins(root: Path):
    sources = [
        path for folder in ("shared", "functions") for path in (root / folder).rglob("*.py") if "migrate" not in path.parts
    ]
    texts = [text for path in sources for text in re.findall(r'"""\n(.*?)"""', path.read_text(), re.DOTALL)]
    assert len(texts) > 100
    assert [text for text in texts if PINS.search(text)] == []
