"""The migrated database against the schema that the service grew from, and what migrations promise."""

import ast
import json
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from functions.migrate.app import handler as migrate
from shared import settings
from shared.certificate.credential import encoded_list
from shared.certificate.rules import new_uid
from tests.conftest import created, database
from tests.support.service import Service, context

#: DBML's types as PostgreSQL names them. Times carry their zone here.
TYPES = {
    "boolean": "boolean",
    "float": "double precision",
    "int": "integer",
    "jsonb": "jsonb",
    "text": "text",
    "timestamp": "timestamp with time zone",
    "uuid": "uuid",
    "varchar": "character varying",
}
#: The server's own function needs no extension, and draws the same kind of UUID.
DEFAULTS = {"uuid_generate_v4()": "gen_random_uuid()"}
#: Columns that the schema's comments offer as optional, and that the service has.
OPTIONAL = ("source_of_enrollment", "pdf_url", "metadata")
#: Columns that the service requires although the schema leaves them open: each always has a value.
STRICTER = {
    ("enrollments", "status"),
    ("lesson_progress", "progress_percentage"),
    ("certificates", "issued_at"),
    ("certificates", "metadata"),
}


@pytest.fixture(scope="module")
def migrated(server_url: str, template_database: str) -> Service:
    """The migrated database that all others are copied from; it is only looked at."""
    return Service(database(server_url, template_database))


type Column = tuple[str, bool, str | None]
"""Type, NOT NULL, default."""


@pytest.fixture(scope="module")
def dbml(root: Path) -> str:
    """The schema with its optional columns."""
    text = (root / "tests/data/schema.dbml").read_text()
    for column in OPTIONAL:
        text, found = re.subn(rf"// ({column} )", r"\1", text)
        assert found == 1, column
    return text


def tables_of(dbml: str) -> list[Any]:
    """The tables of a schema in DBML."""
    with warnings.catch_warnings():
        # pydbml calls pyparsing by names that have been replaced since.
        warnings.simplefilter("ignore", DeprecationWarning)
        from pydbml import PyDBML

        schema: Any = PyDBML(dbml)
    return schema.tables


def columns_of(service: Service) -> dict[str, dict[str, Column]]:
    """Every table of the database with its columns."""
    tables: dict[str, dict[str, Column]] = {}
    for row in service.rows(
        """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull,
            pg_get_expr(d.adbin, d.adrelid) AS default_
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
        """
    ):
        default = row["default_"] and re.sub(r"::[a-z ]+$", "", row["default_"])
        tables.setdefault(row["relname"], {})[row["attname"]] = (row["type"], row["attnotnull"], default)
    return tables


def indexes_of(service: Service, table: str) -> list[dict[str, Any]]:
    """The indexes of a table that hold all its rows: name, columns in order, whether unique, whether the primary key."""
    return service.rows(
        """
        SELECT c.relname AS name, i.indisunique AS is_unique, i.indisprimary AS is_primary, ARRAY(
            SELECT pg_get_indexdef(i.indexrelid, k, TRUE) FROM generate_series(1, i.indnkeyatts) AS k ORDER BY k
        ) AS columns
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        WHERE i.indrelid = to_regclass(%s) AND i.indpred IS NULL
        """,
        table,
    )


def written(default: Any) -> str | None:
    """A default of the schema as PostgreSQL writes it."""
    match default:
        case None:
            return None
        case str():
            return f"'{default}'"
        case int() | float():
            return str(default)
        case _:
            return DEFAULTS.get(default.text, default.text)


def differences(dbml: str, service: Service) -> list[str]:
    """Where the database falls short of the schema, or differs from it."""
    tables = columns_of(service)
    found: list[str] = []
    for table in tables_of(dbml):
        columns, indexes = tables.get(table.name, {}), indexes_of(service, table.name)
        primary = {subject.name for index in table.indexes if index.pk for subject in index.subjects}
        for column in table.columns:
            place = f"{table.name}.{column.name}"
            if column.name not in columns:
                found.append(f"{place} is missing")
                continue
            type_, not_null, default = columns[column.name]
            if type_ != TYPES[column.type]:
                found.append(f"{place} is {type_}, not {TYPES[column.type]}")
            required = column.not_null or column.pk or column.name in primary or (table.name, column.name) in STRICTER
            if not_null != required:
                found.append(f"{place} is {'' if not_null else 'not '}required")
            if default != written(column.default):
                found.append(f"{place} has the default {default}, not {written(column.default)}")
            if column.pk and not any(i["is_primary"] and i["columns"] == [column.name] for i in indexes):
                found.append(f"{place} is not the primary key")
            if column.unique and not any(i["is_unique"] and i["columns"] == [column.name] for i in indexes):
                found.append(f"{place} is not unique")
        for index in table.indexes:
            names = [subject.name for subject in index.subjects]
            if not any(
                i["columns"] == names
                and (not index.name or i["name"] == index.name)
                and (not index.pk or i["is_primary"])
                and (not index.unique or i["is_unique"])
                for i in indexes
            ):
                found.append(f"{table.name} lacks the index {index.name or ''}{names}")
    return found


def test_the_database_has_everything_of_the_schema_under_its_name(dbml: str, migrated: Service):
    assert [table.name for table in tables_of(dbml)] == ["enrollments", "lesson_progress", "quiz_attempts", "certificates"]
    assert differences(dbml, migrated) == []


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("  pdf_url text", "  pdf_uri text", "certificates.pdf_uri is missing"),
        ("Table certificates {", "Table diplomas {", "diplomas.id is missing"),
        ("  score float [note: 'Actual", "  score int [note: 'Actual", "quiz_attempts.score is double precision, not integer"),
        ("completed_at timestamp\n", "completed_at timestamp [not null]\n", "enrollments.completed_at is not required"),
        (
            "lesson_id uuid [not null,",
            "lesson_id uuid [default: `now()`,",
            "lesson_progress.lesson_id has the default None, not now()",
        ),
        ("[default: 'active',", "[default: 'open',", "enrollments.status has the default 'active', not 'open'"),
        (
            "attempt_number int [not null, default: 1]",
            "attempt_number int [not null]",
            "quiz_attempts.attempt_number has the default 1, not None",
        ),
        ("is_passed boolean [", "is_passed boolean [unique, ", "quiz_attempts.is_passed is not unique"),
        ("quiz_id uuid [not null,", "quiz_id uuid [pk,", "quiz_attempts.quiz_id is not the primary key"),
        ("name: 'pk_lesson_progress'", "name: 'lesson_progress_pkey'", "lesson_progress lacks the index lesson_progress_pkey"),
        (
            "(user_id, lesson_id, enrolled_course_version_id) [pk",
            "(lesson_id, user_id, enrolled_course_version_id) [pk",
            "lesson_progress lacks the index pk_lesson_progress['lesson_id', 'user_id'",
        ),
        ("name: 'uq_quiz_attempt'", "name: 'uq_attempt'", "quiz_attempts lacks the index uq_attempt"),
        (
            "(user_id, enrolled_course_version_id) [name:",
            "(user_id, enrolled_course_version_id) [unique, name:",
            "quiz_attempts lacks the index idx_quiz_attempt_course_perf",
        ),
        ("    (status)", "    (status, user_id)", "enrollments lacks the index ['status', 'user_id']"),
    ],
)
def test_every_kind_of_difference_is_noticed(dbml: str, migrated: Service, old: str, new: str, difference: str):
    assert old in dbml
    found = differences(dbml.replace(old, new, 1), migrated)
    assert any(line.startswith(difference) for line in found), found


def test_the_service_has_the_tables_it_needs_beside_the_schema(migrated: Service):
    ours = {
        "course_versions", "course_version_lessons", "course_version_quizzes", "quiz_answer_keys", "learners",
        "enrollment_history", "outbox",
    }  # fmt: skip
    assert ours <= set(columns_of(migrated))


def test_whatever_belongs_to_an_enrolment_refers_to_it_by_its_whole_key(migrated: Service):
    keys = migrated.rows(
        """
        SELECT k.conrelid::regclass::text AS table_name,
            ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u (n, i)
                JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.n ORDER BY i) AS columns,
            ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u (n, i)
                JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.n ORDER BY i) AS referred
        FROM pg_constraint k WHERE k.contype = 'f' AND k.confrelid = 'enrollments'::regclass
        """
    )
    assert {key["table_name"]: key["columns"] for key in keys} == {
        "lesson_progress": ["user_id", "enrolled_course_version_id"],
        "quiz_attempts": ["user_id", "enrolled_course_version_id"],
        "certificates": ["user_id", "course_version_id"],
        "enrollment_history": ["user_id", "course_version_id"],
        "requirement_waivers": ["user_id", "course_version_id"],
        "quiz_allowances": ["user_id", "course_version_id"],
    }
    assert {tuple(key["referred"]) for key in keys} == {("user_id", "course_version_id")}


@pytest.fixture
def empty_database(server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database without a schema, which the migrations under test find."""
    name = sql.Identifier(f"empty_{uuid4().hex[:12]}")
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(name))
    url = database(server_url, name.as_string().strip('"'))
    monkeypatch.setenv("DATABASE_URL", url)
    settings.database_url.cache_clear()
    yield url
    settings.database_url.cache_clear()
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def migrations(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / "migrations").glob("*.sql"))


def test_an_empty_database_is_brought_up_to_date_once(root: Path, dbml: str, empty_database: str):
    service = Service(empty_database)
    assert migrate({}, context("Migrate")) == {"applied": migrations(root), "version": migrations(root)[-1]}
    assert differences(dbml, service) == []
    before = columns_of(service), service.rows("SELECT * FROM _yoyo_migration ORDER BY migration_id")
    assert migrate({}, context("Migrate")) == {"applied": [], "version": migrations(root)[-1]}
    assert (columns_of(service), service.rows("SELECT * FROM _yoyo_migration ORDER BY migration_id")) == before


def test_two_migrations_at_once_apply_each_file_once(root: Path, empty_database: str):
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: migrate({}, context("Migrate")), range(2)))
    assert sorted((answer["applied"] for answer in answers), key=len) == [[], migrations(root)]


def test_no_statement_is_so_long_that_the_proxy_would_pin_its_connection(root: Path):
    # RDS Proxy pins a session to one connection for a statement text of more than 16 KB.
    statements = [
        (f"{path.relative_to(root)}:{call.lineno}", call.args[0])
        for folder in ("shared", "functions")
        for path in (root / folder).rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "execute"
    ]
    assert len(statements) > 25
    for place, text in statements:
        assert isinstance(text, ast.Constant), f"{place}: a statement has to be a literal"
        assert isinstance(text.value, str), place
        assert len(text.value.encode()) < 16 * 1024, place


def test_certificates_from_before_they_had_documents_get_all_that_belongs_to_them(s3: str, server_url: str, root: Path):
    migrations = sorted((root / "migrations").glob("*.sql"))
    later = [path for path in migrations if path.stem >= "0011"]
    with created(server_url, f"older_{uuid4().hex[:12]}") as url:
        with psycopg.connect(url) as conn:
            for path in migrations:
                if path in later:
                    break
                conn.execute(path.read_text())  # pyright: ignore[reportArgumentType, reportCallIssue]
                conn.commit()
            conn.execute(
                """
                INSERT INTO course_versions (
                    course_version_id, course_id, title, version, issuer_name, self_enrollment, certificate_enabled, digest
                ) VALUES (%(id)s, %(id)s, 'Maps', '1', 'Open College', TRUE, TRUE, '');
                """,
                {"id": UUID(int=1)},
            )
            conn.execute(
                "INSERT INTO course_version_lessons VALUES (%s, %s, 'Contour lines', TRUE, 0)", [UUID(int=1), UUID(int=2)]
            )
            for n, revoked in ((3, False), (4, True)):
                conn.execute("INSERT INTO learners (user_id, name) VALUES (%s, 'Ada')", [UUID(int=n)])
                conn.execute(
                    """
                    INSERT INTO enrollments (user_id, course_version_id, status, completed_at, commanded_at, command)
                    VALUES (%s, %s, 'completed', now(), now(), 'requested')
                    """,
                    [UUID(int=n), UUID(int=1)],
                )
                conn.execute(
                    """
                    INSERT INTO certificates (
                        user_id, course_version_id, certificate_uid, metadata, revoked_at, revocation_reason, revoked_by
                    ) VALUES (%s, %s, %s, %s, %s, %s, %s)
                    """,
                    [
                        UUID(int=n),
                        UUID(int=1),
                        new_uid(),
                        Jsonb(
                            {
                                "learner_name": "Ada",
                                "locale": None,
                                "course_title": "Maps",
                                "version": "1",
                                "issuer_name": "Open College",
                                "completed_at": "2026-01-02T12:00:00Z",
                                "score": None,
                            }
                        ),
                        *((datetime(2026, 2, 3, tzinfo=UTC), "fraud", "admin") if revoked else (None, None, None)),
                    ],
                )
            conn.commit()
            for path in later:
                conn.execute(path.read_text())  # pyright: ignore[reportArgumentType, reportCallIssue]
                conn.commit()
        here = Service(url)
        here.invoke("certificate_worker", {"detail-type": "Scheduled Event"})
        rows = here.rows("SELECT * FROM certificates ORDER BY user_id")
        assert [row["due_at"] for row in rows] == [None, None]
        valid, revoked = (
            here.http("GET", f"/certificates/{row['certificate_uid']}", sub=None, headers={"accept": "application/json"}).json
            for row in rows
        )
        assert (valid["status"], revoked["status"]) == ("valid", "revoked")
        assert valid["criteria"] == [{"kind": "lesson", "title": "Contour lines", "pass_threshold_percentage": None}]
        index = json.loads(rows[1]["credential"])["credentialStatus"]["statusListIndex"]
        (listed,) = here.rows("SELECT credential FROM status_lists")
        encoded = json.loads(listed["credential"])["credentialSubject"]["encodedList"]
        assert encoded == encoded_list([int(index)])
