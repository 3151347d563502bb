"""The demo on real rows, against the whole running service, compared row by row with an independent count."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pypdfium2
import pytest

from local import demo
from local.service import running
from tests.integration.test_invariants import found
from tests.oulad_counts import expected

COURSE = "AAA", "2013J"


def cut(target: Path, part: int, presentation: str) -> Path:
    """Every eighth student of the shipped data, on a presentation of another name, so that two parts share nothing but sites."""
    target.mkdir()
    for path in demo.SHIPPED_DATA.glob("*.gz"):
        header, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        delimiter = "\t" if ".tsv" in path.name else ","
        names = header.replace('"', "").split(delimiter)
        kept = [header]
        for line in lines:
            row = dict(zip(names, line.replace('"', "").split(delimiter), strict=True))
            if "id_student" not in row or int(row["id_student"]) // 2 % 8 == part:
                kept.append(line.replace(COURSE[1], presentation))
        target.joinpath(path.name).write_bytes(gzip.compress("\n".join(kept).encode()))
    return target


def rows(database_url: str, statement: LiteralString) -> dict[str, dict[str, Any]]:
    """Rows by the text in their first column, times as text."""
    with psycopg.connect(database_url, autocommit=True, options="-c timezone=UTC") as database:
        cursor = database.execute(statement)
        names = [column.name for column in cursor.description or []][1:]
        return {
            key: {
                name: value.isoformat() if hasattr(value, "isoformat") else value
                for name, value in zip(names, values, strict=True)
            }
            for key, *values in cursor
        }


def everything(database_url: str) -> dict[str, dict[str, dict[str, Any]]]:
    """What the service holds on each learner."""
    return {
        "enrollments": rows(
            database_url,
            "SELECT user_id || ' ' || course_version_id, status, completed_at FROM enrollments",
        ),
        "lesson_progress": rows(
            database_url,
            "SELECT concat_ws(' ', user_id, enrolled_course_version_id, lesson_id), status, progress_percentage, started_at,"
            " last_accessed_at, completed_at FROM lesson_progress",
        ),
        "quiz_attempts": rows(
            database_url,
            "SELECT id::text, user_id::text, enrolled_course_version_id::text, quiz_id::text, score, is_passed, completed_at"
            " FROM quiz_attempts",
        ),
    }


def certificates(database_url: str) -> dict[str, dict[str, Any]]:
    """Every certificate by learner and course version."""
    return rows(database_url, "SELECT user_id || ' ' || course_version_id, certificate_uid, issued_at FROM certificates")


def run(folder: Path, json_file: Path, shuffle: int | None = None) -> dict[str, Any]:
    """Run the demo and return its counts without those that the csv files say nothing about."""
    assert demo.main(str(folder), str(json_file), shuffle) == 0
    counts = json.loads(json_file.read_text())
    assert counts.pop("seconds") > 0
    return counts


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_DIR", str(tmp_path_factory.mktemp("demo") / "local"))
        with running() as environment:
            yield environment


@pytest.mark.timeout(300)
def test_real_learners_end_as_an_independent_count_says(
    service: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    url = service["DATABASE_URL"]
    first = cut(tmp_path / "first", 1, "2013J")
    first_counts, first_rows = expected(first)
    # The comparison is worth something only where everything occurs.
    assert first_counts["enrollments"].keys() == {"active", "cancelled_by_user", "completed"}
    counts = run(first, tmp_path / "first.json")
    sent = counts.pop("events_sent")
    assert counts == first_counts
    assert everything(url) == first_rows
    issued = certificates(url)
    assert issued.keys() == {key for key, row in first_rows["enrollments"].items() if row["status"] == "completed"}

    # A second run over the same database is taken and changes nothing.
    assert run(first, tmp_path / "second.json") == first_counts | {"events_sent": sent}
    assert everything(url) == first_rows
    assert certificates(url) == issued

    # Other learners, every progress and quiz event twice and in any order, malformed rows in between.
    other = cut(tmp_path / "other", 2, "2014B")
    other_counts, other_rows = expected(other)
    clicks = other / "studentVle_part.tsv.gz"
    clicks.write_bytes(clicks.read_bytes() + gzip.compress(b"\nAAA\t2014B\t1\t546652\t0\t1\nAAA\t2014B\n"))
    capsys.readouterr()
    counts = run(other, tmp_path / "other.json", shuffle=5)
    assert counts.pop("events_sent") > sum(other_counts["lesson_progress"].values())
    assert counts == other_counts
    assert everything(url) == {table: first_rows[table] | other_rows[table] for table in first_rows}

    assert found(url) == {}
    shown = capsys.readouterr().out
    assert "2 malformed rows were left out" in shown
    assert "studentVle_part.tsv.gz:" in shown
    assert "student 1 is not registered on AAA 2014B" in shown
    # What is no terminal gets no control characters.
    assert not [character for character in shown if ord(character) < 32 and character != "\n"]
    (path,) = (line.split()[-1] for line in shown.splitlines() if line.startswith("  document"))
    with pypdfium2.PdfDocument(path) as document:
        assert "Student" in document[0].get_textpage().get_text_range()


@pytest.mark.timeout(120)
def test_what_the_service_refuses_is_counted_and_explained(
    service: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # A course version is immutable, and this one had more lessons when it was published for the first time.
    folder = cut(tmp_path / "folder", 3, "2013B")
    for table in ("studentRegistration.csv.gz", "studentAssessment.csv.gz", "studentVle_part.tsv.gz"):
        header = gzip.decompress(folder.joinpath(table).read_bytes()).splitlines()[0]
        folder.joinpath(table).write_bytes(gzip.compress(header))
    assert demo.main(str(folder)) == 0
    sites = gzip.decompress(folder.joinpath("vle.csv.gz").read_bytes()).splitlines()
    folder.joinpath("vle.csv.gz").write_bytes(gzip.compress(b"\n".join(sites[:-1])))
    capsys.readouterr()
    assert demo.main(str(folder), str(tmp_path / "counts.json")) == 1
    assert json.loads((tmp_path / "counts.json").read_text())["events_refused"] == 1
    shown = capsys.readouterr().out
    assert "Events refused: 1." in shown
    assert "catalog: course_version_changed:" in shown


def test_a_folder_that_cannot_be_used_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert demo.main(str(tmp_path / "nowhere")) == 1
    assert "nowhere is not a folder" in capsys.readouterr().out
