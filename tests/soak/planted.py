"""Bugs planted by hand, to see that the soak can fail: each in a copy of the project, which then is used for a minute.

`python -m tests.soak.planted` plants them one after the other and says what gave each away; with names, only those.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from local.template import PROJECT

ENROLLMENTS, PROGRESS, QUIZZES = "shared/enrollment/store.py", "shared/progress/store.py", "shared/quiz/store.py"
ADMINISTRATION, CERTIFICATES = "shared/enrollment/administration.py", "shared/certificate/store.py"
ITEMS, COMPLETE, REPORT = (
    "migrations/0008_waived_items.sql",
    "migrations/0013_traceparent.sql",
    "migrations/0015_report_progress.sql",
)


#: A statement that writes an event once everything else is committed.
LATE = """
LATE = (
    "INSERT INTO outbox (destination, type, occurred_at, data) SELECT 'bus', %s, %s, jsonb_strip_nulls(jsonb_build_object("
    "'user_id', user_id, 'course_version_id', course_version_id, 'status', %s::text, 'reason', %s::text, 'sequence', sequence"
    ")) FROM enrollments WHERE user_id = %s AND course_version_id = %s"
)

"""


@dataclass(frozen=True)
class Bug:
    """What is replaced in which files; `fault` is the one that it needs to show, if it needs one."""

    name: str
    changes: tuple[tuple[str, str, str], ...]
    fault: str | None = None
    seconds: int = 60


def bug(name: str, file: str, old: str, new: str, fault: str | None = None, seconds: int = 60) -> Bug:
    return Bug(name, ((file, old, new),), fault, seconds)


BUGS = [
    bug("completed again and again", COMPLETE, " AND e.status IN ('active', 'cancelled_by_user')", ""),
    bug(
        "progress overwritten, by messages",
        PROGRESS,
        "progress_percentage = greatest(p.progress_percentage, excluded.progress_percentage)",
        "progress_percentage = CASE WHEN p.progress_percentage = 100 THEN 100 ELSE excluded.progress_percentage END",
    ),
    bug(
        "progress overwritten, over HTTP",
        REPORT,
        "progress_percentage = greatest(p.progress_percentage, excluded.progress_percentage)",
        "progress_percentage = CASE WHEN p.progress_percentage = 100 THEN 100 ELSE excluded.progress_percentage END",
    ),
    bug(
        "the latest start counts, by messages",
        PROGRESS,
        "started_at = least(p.started_at, excluded.started_at)",
        "started_at = excluded.started_at",
    ),
    bug(
        "the latest start counts, over HTTP",
        REPORT,
        "started_at = least(p.started_at, excluded.started_at)",
        "started_at = excluded.started_at",
    ),
    bug(
        "reports of known lessons lost",
        PROGRESS,
        "completed_at = least(p.completed_at, excluded.completed_at)\n        )",
        "completed_at = least(p.completed_at, excluded.completed_at)\n            WHERE p.progress_percentage > 90\n        )",
    ),
    bug(
        "progress taken after the end",
        REPORT,
        "WHEN occurred_at > inactive_since THEN 'enrollment_inactive'",
        "WHEN FALSE THEN 'enrollment_inactive'",
    ),
    bug(
        "one report too few told apart",
        "shared/messages.py",
        "    if apart:\n",
        "    if len(apart) > 1:\n",
    ),
    bug(
        "older commands win",
        "shared/enrollment/rules.py",
        "    this = (time, RANK[kind])\n",
        "    return False\n    this = (time, RANK[kind])\n",
    ),
    bug(
        "cancellation of what is completed accepted",
        "shared/enrollment/rules.py",
        '("completed", "cancelled"): AlreadyCompleted',
        '("completed", "cancelled"): ("completed", "")',
    ),
    bug(
        "a gap in the attempts' numbers",
        QUIZZES,
        "), 0) + row_number() OVER (PARTITION BY j.user_id, j.quiz_id",
        "), 1) + row_number() OVER (PARTITION BY j.user_id, j.quiz_id",
    ),
    bug(
        "scores rounded", "shared/quiz/rules.py", "float(percentage), percentage >=", "round(float(percentage), 6), percentage >="
    ),
    bug(
        "passed by the rounded score",
        "shared/quiz/rules.py",
        "percentage >= Fraction(pass_threshold_percentage)",
        "round(percentage, 1) >= round(Fraction(pass_threshold_percentage), 1)",
    ),
    bug("graded by an old key", QUIZZES, "WHEN q.key_version <> s.key_version THEN 'stale_key'", "WHEN FALSE THEN 'stale_key'"),
    bug(
        "a repeated submission counted twice",
        "functions/quiz_worker/app.py",
        "    return store.Submission(\n        data.attempt_id,",
        "    from uuid import uuid4\n\n    return store.Submission(\n        uuid4(),",
    ),
    bug(
        "no event for a cancellation",
        ENROLLMENTS,
        "            FROM told\n        )\n        SELECT",
        "            FROM told WHERE to_status <> 'cancelled_by_user'\n        )\n        SELECT",
    ),
    Bug(
        "events written after the transaction",
        (
            (
                ENROLLMENTS,
                "            FROM told\n        )\n        SELECT",
                "            FROM told WHERE FALSE\n        )\n        SELECT",
            ),
            ("functions/enrollment_api/app.py", "\n@app.put(\n    _ENROLLMENT,\n", LATE + "\n@app.put(\n    _ENROLLMENT,\n"),
            (
                "functions/enrollment_api/app.py",
                "        if not left.fetchall():\n",
                "        for change in plan.changes if plan else []:\n"
                "            said = [change.event, change.occurred_at, change.to_status, change.reason]\n"
                "            db.run(lambda conn: conn.execute(LATE, [*said, *key]))\n"
                "        if not left.fetchall():\n",
            ),
        ),
    ),
    bug(
        "answered before it is written",
        "functions/progress_api/app.py",
        "        (known,) = db.run_one(lambda conn: store.report(conn, sent)).fetchall()\n",
        "        import threading\n\n"
        "        (known,) = db.run_one(lambda conn: store.report(conn, sent._replace(percentage=100))).fetchall()\n"
        "        threading.Timer(1, lambda: db.run_one(lambda conn: store.report(conn, sent))).start()\n",
    ),
    bug(
        "answered before it is safe",
        "shared/db.py",
        "_Connection.connect(**login(), autocommit=True,",
        '_Connection.connect(**login(), options="-c synchronous_commit=off", autocommit=True,',
        fault="kill_database",
        seconds=120,
    ),
    bug(
        "a reset that leaves attempts",
        ADMINISTRATION,
        "WHERE a.user_id = r.user_id AND a.enrolled_course_version_id = r.course_version_id\n            RETURNING a.*",
        "WHERE a.user_id = r.user_id AND a.enrolled_course_version_id = r.course_version_id AND a.is_passed IS NOT TRUE\n"
        "            RETURNING a.*",
    ),
    bug("waivers not counted", ITEMS, "SELECT least(p.completed_at, w.waived_at) AS since", "SELECT p.completed_at AS since"),
    bug(
        "a transfer that leaves passed quizzes behind",
        ADMINISTRATION,
        "a.enrolled_course_version_id = w.from_id AND a.is_passed",
        "a.enrolled_course_version_id = w.from_id AND NOT a.is_passed",
    ),
    bug("a certificate issued again", CERTIFICATES, "WHERE c.id IS NULL OR is_renewed_by(c, e.completed_at)", "WHERE TRUE"),
    bug(
        "sent without sending",
        "functions/outbox_relay/app.py",
        "for result in pool.map(_send, _calls(rows)):",
        'for result in pool.map(_send, _calls([row for row in rows if row.type != "quiz.graded"])):',
    ),
    bug(
        "progress merged without the lock",
        PROGRESS,
        "    db.lock_enrollments(conn, completing)\n    outcomes = merge",
        "    outcomes = merge",
        fault="lock_rows",
        seconds=120,
    ),
    bug(
        "reinstated as active what was completed",
        "shared/enrollment/rules.py",
        '    if command.kind == "reinstated" and situation.is_completed:\n',
        '    if command.kind == "reinstated" and situation.is_completed and situation.command == "cancelled":\n',
    ),
]


def main() -> int:
    wanted = sys.argv[1:]
    console = Console()
    table = Table(title="planted bugs")
    for name in ("bug", "given away by", "seconds"):
        table.add_column(name)
    missed = 0
    for one in BUGS:
        if wanted and one.name not in wanted:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="soak-planted-") as folder:
            found, output = hunt(one, Path(folder) / "project")
        seconds = time.monotonic() - began
        missed += not found
        print(f"{one.name}: {found or 'NOT FOUND'} ({seconds:.0f} s)", flush=True)
        if not found:
            print(output[-3000:])
        table.add_row(one.name, found or "[red]not found[/red]", f"{seconds:.0f}")
    console.print(table)
    return 1 if missed else 0


def hunt(one: Bug, copy: Path) -> tuple[str, str]:
    """Plant a bug in a copy of the project and use that; gives the first anomaly, and all that was said."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, cwd=PROJECT, check=True
    ).stdout.splitlines()
    for name in names:
        if (PROJECT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, copy / name)
    for file, old, new in one.changes:
        text = (copy / file).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{one.name}: {file} has the text to be replaced {text.count(old)} times")
        (copy / file).write_text(text.replace(old, new))
    command = [sys.executable, "-m", "tests.soak", "--seed", "7", "--first-only", "--seconds", str(one.seconds)]
    command += ["--fault", one.fault] if one.fault else ["--faults", "0"]
    environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "LOCAL_DIR")}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    first = re.search(r"^([a-z ]+): (.*)\n  /.*anomaly-1\.txt$", output, re.MULTILINE)
    return (first[0].splitlines()[0][:160] if done.returncode == 1 and first else ""), output


if __name__ == "__main__":
    sys.exit(main())
