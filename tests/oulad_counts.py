"""What the demo must arrive at, counted straight from the csv files, with the standard library alone.

It shares no code with the service or its demo, so that a mistake in one is not a mistake in both:

    python tests/oulad_counts.py local/data/oulad-aaa-2013j [--rows rows.json]

prints the counts that `make demo JSON=<file>` writes, but for `events_sent` and `seconds`, and on request writes what is expected
of each enrolment, lesson and attempt. It expects a folder without malformed rows and stops at one.
"""

import argparse
import csv
import gzip
import io
import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any


def table(path: Path) -> Iterable[dict[str, str]]:
    """The rows of a file, packed or not, separated by commas or tabs."""
    raw = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    return csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), delimiter="\t" if ".tsv" in path.name else ",")


def one(folder: Path, name: str) -> Iterable[dict[str, str]]:
    """The rows of a table that is one file."""
    plain = folder / (name + ".csv")
    return table(plain if plain.exists() else folder / (name + ".csv.gz"))


@cache
def v5(text: str) -> str:
    """The UUIDv5 in the URL namespace."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text))


@cache
def when(presentation: str, day: str) -> str:
    """A day of a presentation such as 2013J, as ISO 8601 text in UTC, at 12:00."""
    start = datetime.strptime(presentation[:4] + {"B": "-02-01", "J": "-10-01"}[presentation[4]] + "T12+0000", "%Y-%m-%dT%H%z")
    return (start + timedelta(days=int(day))).isoformat()


def expected(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The counts and the rows that every right implementation ends with."""
    courses = {(row["code_module"], row["code_presentation"]) for row in one(folder, "courses")}
    assessments = {row["id_assessment"]: row for row in one(folder, "assessments")}
    required: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for key, row in assessments.items():
        if float(row["weight"]) > 0 and row["assessment_type"] != "Exam":
            required[row["code_module"], row["code_presentation"]].add(key)

    attempts: dict[str, dict[str, Any]] = {}
    passed: defaultdict[tuple[tuple[str, str], str], dict[str, str]] = defaultdict(dict)
    for row in one(folder, "studentAssessment"):
        if row["score"] == "":
            continue
        about = assessments[row["id_assessment"]]
        course = about["code_module"], about["code_presentation"]
        student, score = row["id_student"], int(row["score"])
        at = when(course[1], row["date_submitted"])
        if score >= 40:
            passed[course, student][row["id_assessment"]] = at
        attempts[v5(f"oulad/attempt/{row['id_assessment']}/{student}")] = {
            "user_id": v5(f"oulad/student/{student}"),
            "enrolled_course_version_id": v5("oulad/" + "/".join(course)),
            "quiz_id": v5(f"oulad/assessment/{row['id_assessment']}"),
            "score": score,
            "is_passed": score >= 40,
            "completed_at": at,
        }

    enrollments: dict[str, dict[str, Any]] = {}
    for row in one(folder, "studentRegistration"):
        course, student = (row["code_module"], row["code_presentation"]), row["id_student"]
        left = None if row["date_unregistration"] == "" else int(row["date_unregistration"])
        joined = int(row["date_registration"]) if row["date_registration"] else min([0] + ([] if left is None else [left]))
        fulfilled = passed[course, student]
        done = bool(required[course]) and required[course] <= set(fulfilled)
        # A cancellation dated before the request it would end is older than what took effect, and changes nothing.
        status = "completed" if done else "cancelled_by_user" if left is not None and left >= joined else "active"
        key = v5(f"oulad/student/{student}") + " " + v5("oulad/" + "/".join(course))
        enrollments[key] = {
            "status": status,
            "completed_at": max(fulfilled[quiz] for quiz in required[course]) if done else None,
        }

    clicks: Counter[tuple[tuple[str, str], str, str]] = Counter()
    lessons: dict[tuple[tuple[str, str], str, str], dict[str, Any]] = {}
    files = sorted(path for path in folder.iterdir() if path.name.startswith("studentVle"))
    for path in files:
        for row in table(path):
            course, student, site = (row["code_module"], row["code_presentation"]), row["id_student"], row["id_site"]
            if course not in courses:
                raise SystemExit(f"{path}: there is no presentation {course}")
            key = (course, student, site)
            clicks[key] += int(row["sum_click"])
            percentage = min(100, 10 * clicks[key])
            at = when(course[1], row["date"])
            lesson = lessons.setdefault(
                key,
                {
                    "progress_percentage": 0,
                    "started_at": at,
                    "last_accessed_at": at,
                    "completed_at": None,
                    "status": "in_progress",
                },
            )
            lesson["progress_percentage"] = max(percentage, lesson["progress_percentage"])
            lesson["started_at"] = min(at, lesson["started_at"])
            lesson["last_accessed_at"] = max(at, lesson["last_accessed_at"])
            if percentage == 100:
                lesson["status"] = "completed"
                lesson["completed_at"] = min(at, lesson["completed_at"] or at)

    results = Counter(attempt["is_passed"] for attempt in attempts.values())
    counts = {
        "course_versions": len(courses),
        "enrollments": dict(sorted(Counter(row["status"] for row in enrollments.values()).items())),
        "lesson_progress": dict(sorted(Counter(row["status"] for row in lessons.values()).items())),
        "quiz_attempts": {"passed": results[True], "failed": results[False]},
        "score_sum": sum(attempt["score"] for attempt in attempts.values()),
        "certificates": sum(row["status"] == "completed" for row in enrollments.values()),
        "events_refused": 0,
    }
    rows = {
        "enrollments": enrollments,
        "lesson_progress": {
            " ".join((v5(f"oulad/student/{student}"), v5("oulad/" + "/".join(course)), v5(f"oulad/site/{site}"))): lesson
            for (course, student, site), lesson in lessons.items()
        },
        "quiz_attempts": attempts,
    }
    return counts, rows


def main() -> None:
    """Print the counts of the folder given on the command line."""
    parser = argparse.ArgumentParser(description="Counts that the demo must arrive at, straight from the csv files.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="also write what is expected of each enrolment, lesson and attempt"
    )
    arguments = parser.parse_args()
    counts, rows = expected(arguments.folder)
    if arguments.rows:
        arguments.rows.write_text(json.dumps(rows))
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
