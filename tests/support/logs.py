"""Reads what everything wrote while the tests ran, and finds what must stand in no log: whom it was about, and what opens doors.

What a test's handlers and libraries write is what pytest captured of it. Other processes write files, which are read at the end:
the functions of the local service, the emulators, PostgreSQL.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg

UUID = re.compile(r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b")

#: What is nobody's business whoever it belongs to.
SECRETS = {
    "a token": re.compile(r"\beyJ[\w-]{10,}"),
    "a signature of AWS": re.compile(r"X-Amz-Signature=\w+"),
    "a password": re.compile(r"(?i)\bpassword\b['\"]?\s*[=:]\s*['\"]?[^\s'\"]|://[^/@\s:]+:[^/@\s]+@"),
    "a private key": re.compile(r"PRIVATE KEY"),
    "an e-mail address": re.compile(r"(?<![\w.+:/-])[\w.+-]+@[\w-]+(\.[\w-]+)*\.[a-z]{2,}\b"),
}
#: What differs from one line to the other, and tells nothing.
VARYING = re.compile(r'"Timestamp":\d+,|"timestamp":"[^"]*",?|"xray_trace_id":"[^"]*",?')

PERSONAL = """
    SELECT 'user', user_id::text FROM learners
    UNION SELECT 'user', user_id::text FROM enrollments
    UNION SELECT 'name', name FROM learners
    UNION SELECT 'name', metadata ->> 'learner_name' FROM certificates
    UNION SELECT 'answer', text #>> '{}' FROM quiz_attempts, jsonb_path_query(answers_snapshot, 'strict $.**') AS text
        WHERE jsonb_typeof(text) = 'string'
"""


#: By so many of its first characters a word is looked up; a shorter one could be part of anything.
LENGTH = 8


class Log:
    """All lines of a run of the tests, each once, and the people they must not speak of."""

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}
        self.user_ids: set[str] = set()
        self.words: dict[str, dict[str, str]] = {}

    def write(self, where: str, text: str) -> None:
        """Take up what was written somewhere."""
        for line in text.splitlines():
            self.lines.setdefault(VARYING.sub("", line), where)

    def read(self, folder: Path) -> None:
        """Take up the logs in a folder: of the local service and its PostgreSQL, of emulators, and what went to a screen."""
        for path in sorted(folder.rglob("*")):
            if (path.suffix == ".log" or path.name in ("log", "output")) and path.is_file():
                # What `make run` greets with holds the tokens to try it with, which is for the one who reads along.
                text = path.read_text(errors="replace").rpartition("Ctrl-C stops it")[2]
                self.write(str(path.relative_to(folder)), text)

    def know(self, database_url: str) -> None:
        """Remember the people that a database holds, and what they answered."""
        with psycopg.connect(database_url) as conn:
            for kind, value in conn.execute(PERSONAL):
                self.meet(kind, value)

    def meet(self, kind: str, value: str | None) -> None:
        """Remember somebody's id, name or answer."""
        if kind == "user":
            self.user_ids.add(str(value).lower())
        elif value and len(value) >= LENGTH:
            # As it is, and as a log line in JSON has it.
            for word in (value, json.dumps(value)[1:-1]):
                self.words.setdefault(word[:LENGTH], {})[word] = kind

    def hear(self, message: str) -> None:
        """Remember the people that a message speaks of, whether the service takes it or not."""
        for uuid in re.findall(r'"user_id": ?"([0-9a-fA-F-]{36})"', message):
            self.meet("user", uuid)

    def findings(self) -> list[str]:
        """What stands where it must not, and where."""
        return [f"{where}: {what}: {line[:300]}" for line, where in self.lines.items() for what in self.found(line)]

    def found(self, line: str) -> Iterator[str]:
        """What a line holds that it must not hold."""
        yield from (what for what, pattern in SECRETS.items() if pattern.search(line))
        if not self.user_ids.isdisjoint(uuid.lower() for uuid in UUID.findall(line)):
            yield "a user's id"
        for n in range(len(line) - LENGTH + 1):
            for word, kind in self.words.get(line[n : n + LENGTH], {}).items():
                if line.startswith(word, n):
                    yield f"a learner's {kind}"


#: Of this run.
LOG = Log()
