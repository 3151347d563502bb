"""The plans by which PostgreSQL carries out what the service's handlers ask for."""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from shared import db

#: auto_explain tells the client: each statement with its plan, and those within functions and behind foreign keys.
SETTINGS: dict[LiteralString, str] = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A statement and the tree of its plan, with what each node found."""

    statement: str
    root: dict[str, Any]

    def nodes(self) -> Iterator[dict[str, Any]]:
        """All nodes of the tree; those that never ran, too."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.get("Plans", [])


@contextmanager
def explained(database_url: str) -> Generator[list[Plan]]:
    """Gather the plans of all that the service does in this database. `database_url` is a superuser's."""
    found: list[Plan] = []

    def heard(notice: psycopg.errors.Diagnostic) -> None:
        text = notice.message_primary or ""
        if text.startswith("duration: "):
            entry = json.loads(text[text.index("{") :])
            found.append(Plan(entry["Query Text"], entry["Plan"]))

    class Explained(db._Connection):
        """A connection that says how."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.add_notice_handler(heard)

    name = sql.Identifier(str(conninfo_to_dict(database_url)["dbname"]))
    with psycopg.connect(database_url, autocommit=True) as conn, pytest.MonkeyPatch.context() as patch:
        for setting, value in SETTINGS.items():
            conn.execute(sql.SQL("ALTER DATABASE {} SET {} = {}").format(name, sql.SQL(setting), sql.Literal(value)))
        patch.setattr(db, "_Connection", Explained)
        db.close()
        try:
            yield found
        finally:
            db.close()
            for setting in SETTINGS:
                conn.execute(sql.SQL("ALTER DATABASE {} RESET {}").format(name, sql.SQL(setting)))
