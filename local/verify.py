"""`make verify`: looks whether everything that must hold in a database does, and changes nothing.

The rules are in invariants.sql.

Exit codes: 0 all hold, 1 some do not, 2 some could not be looked at.
"""

import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from local.service import ServiceError, default_dir, environment_of_running

SOURCE = Path(__file__).with_name("invariants.sql")
#: So many of the rows that break a rule are shown.
EXAMPLES = 3

type Connection = psycopg.Connection[dict[str, Any]]


@dataclass(frozen=True)
class Invariant:
    """A rule: its name, what must hold and why, and the query for the rows that break it."""

    name: str
    meaning: str
    query: LiteralString

    def broken(self, conn: Connection, limit: int | None) -> tuple[int, list[dict[str, Any]]]:
        """How many rows break the rule, and up to `limit` of them; None: all."""
        query = sql.SQL("SELECT count(*) OVER () AS how_many, f.* FROM ({}) AS f LIMIT {}")
        rows = conn.execute(query.format(sql.SQL(self.query), sql.Literal(limit))).fetchall()
        count = next((row["how_many"] for row in rows), 0)
        return count, [{name: value for name, value in row.items() if name != "how_many"} for row in rows]


def invariants() -> tuple[LiteralString, dict[str, Invariant]]:
    """What invariants.sql begins with, and its rules by name; psql writes each name before what the query gives."""
    # What the file holds is as literal as what this module holds.
    beginning, *parts = cast("LiteralString", SOURCE.read_text()).split("\n\\echo ")
    found: dict[str, Invariant] = {}
    for part in parts:
        name, _, text = part.partition("\n")
        lines = text.splitlines()
        comment = next(n for n, line in enumerate(lines) if not line.startswith("-- "))
        query, _, _ = "\n".join(lines[comment:]).partition(";")
        found[name] = Invariant(name, " ".join(line.removeprefix("-- ") for line in lines[:comment]), query)
    return beginning, found


@contextmanager
def reading(database_url: str) -> Generator[Connection]:
    """A transaction that can't write, and sees the database as it is at its beginning."""
    options = f"{conninfo_to_dict(database_url).get('options') or ''} -c default_transaction_read_only=on"
    with psycopg.Connection[dict[str, Any]].connect(
        database_url, options=options, autocommit=True, row_factory=dict_row, connect_timeout=10, prepare_threshold=None
    ) as conn:
        conn.execute(invariants()[0])
        yield conn
        conn.execute("ROLLBACK")


def database() -> str:
    """The database that is meant: DATABASE_URL, or that of the service that is running on this computer.

    Raises ServiceError if there is neither.
    """
    given = os.environ.get("DATABASE_URL")
    if given:
        return given
    if not (default_dir() / "env").exists():
        raise ServiceError("no service is running here: say which database by DATABASE_URL=postgresql://…")
    print("No DATABASE_URL is given, so this is the database of the service that is running here.")
    return environment_of_running(default_dir())["DATABASE_URL"]


def main() -> int:
    """Look at each rule, tell what was found, and return the exit code."""
    try:
        with reading(database()) as conn:
            return _verify(conn)
    except (ServiceError, psycopg.Error) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def _verify(conn: Connection) -> int:
    info = conn.info
    print(f"Looking at {info.dbname} on {info.host}:{info.port} as {info.user}; reading only.", flush=True)
    _, rules = invariants()
    begun, broken, failed = time.monotonic(), 0, 0
    for rule in rules.values():
        print(f"  {rule.name} … ", end="", flush=True)
        started = time.monotonic()
        try:
            # A transaction in the transaction, so that one that fails leaves the others their snapshot.
            with conn.transaction():
                count, examples = rule.broken(conn, EXAMPLES)
        except psycopg.Error as error:
            if conn.closed:
                raise
            failed += 1
            print(f"COULD NOT BE LOOKED AT: {str(error).splitlines()[0]}", flush=True)
            continue
        seconds = f"{time.monotonic() - started:.1f} s"
        print(f"ok, {seconds}" if count == 0 else f"BROKEN BY {count:,}, {seconds}", flush=True)
        if count:
            broken += 1
            print(f"      {rule.meaning}")
            for row in examples:
                print("      " + " ".join(f"{name}={value}" for name, value in row.items()))
            if count > len(examples):
                print("      …")
    held = len(rules) - broken - failed
    print(f"{held} of {len(rules)} invariants hold, after {time.monotonic() - begun:.1f} s.")
    if broken:
        print('What to do about the others is in docs/operations.md, "Is everything right?".')
    return 2 if failed else 1 if broken else 0
