"""Real courses for the demo: a folder of the Open University Learning Analytics Dataset (OULAD), read and mapped to events.

The mapping is fixed: ids are UUIDv5 in the URL namespace of texts such as "oulad/AAA/2013J", a presentation starts on 1 February
(B) or 1 October (J) of its year, and dates are days from there, at 12:00 UTC. The small tables are held in memory; the click
stream, ten million rows in the full data set, is read row by row and leaves one byte per enrolment and site behind.

A malformed row is reported by file and line and left out. Malformed is what cannot be mapped: a wrong number of columns, a number
that is none or out of its range, a second row with the same key, a row about a presentation, assessment, site or registration
that the folder does not have. Columns that the mapping does not use are not looked at.

Source: Kuzilek, Hlosta, Zdrahal, "Open University Learning Analytics dataset", Scientific Data 4:170171 (2017),
doi:10.1038/sdata.2017.171.
"""

import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache, lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from uuid import NAMESPACE_URL, uuid5

SOURCE = "oulad"
"""The `source` of every event made here."""

QUESTION_POINTS = (50, 20, 10, 10, 5, 2, 2, 1)
"""The points of the eight questions of each quiz; taken greedily they make up every whole score from 0 to 100."""

PASS_THRESHOLD_PERCENTAGE = 40

FAR_DAY = 3650
"""The furthest day before or after the start of a presentation that is taken for a date, in days."""

type Report = Callable[[str, int, str], None]
"""Called for each malformed row with the file's name, the line (the header is line 1) and what is wrong."""


class DataFolderError(Exception):
    """The folder as a whole cannot be used: a file or a column is missing, or is there twice."""


class MalformedRowError(Exception):
    """One row cannot be mapped; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """One assessment, which becomes a quiz."""

    id: str
    kind: str
    required: bool
    quiz_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Presentation:
    """One module presentation, which becomes a course version. `sites` are by their ids, in file order."""

    module: str
    name: str
    start: datetime
    course_version_id: str
    sites: dict[str, "Site"] = field(default_factory=dict)
    assessments: list[Assessment] = field(default_factory=list)

    def __str__(self) -> str:
        """As people write it: `AAA 2013J`."""
        return f"{self.module} {self.name}"


class Site(NamedTuple):
    """One VLE site, which becomes a lesson. `place` counts from 0 within the presentation."""

    place: int
    kind: str
    lesson_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """One student on one presentation, which becomes an enrolment. Days count from the start of the presentation."""

    presentation: Presentation
    student: str
    user_id: str
    registered_on: int
    unregistered_on: int | None


@dataclass(frozen=True, slots=True)
class Dataset:
    """The tables of a folder that are small enough to be held, without their malformed rows."""

    folder: Path
    presentations: dict[tuple[str, str], Presentation]
    assessments: dict[str, tuple[Presentation, Assessment]]
    registrations: dict[tuple[str, str, str], Registration]
    students: dict[str, Presentation]
    """Every student of studentInfo and studentRegistration, with the presentation that named the student first."""

    def smallest_presentation(self) -> Presentation | None:
        """The presentation with the fewest registrations, at least one; of equal ones the first by name."""
        sizes = Counter(registration.presentation for registration in self.registrations.values())
        return min(
            sizes,
            key=lambda presentation: (sizes[presentation], str(presentation)),
            default=None,
        )


class LessonReport(NamedTuple):
    """How far a learner had come on a site after one VLE row. `number` counts the rows of this registration from 1."""

    registration: Registration
    lesson_id: str
    time: str
    progress_percentage: int
    number: int


class Submission(NamedTuple):
    """One submission with a score from 0 to 100."""

    registration: Registration
    assessment: Assessment
    time: str
    score: int


# ---------------------------------------------------------------------------------------------------------------------- reading


def read(folder: Path, report: Report) -> Dataset:
    """Read every table of the folder but the submissions and the click stream.

    Malformed rows go to `report`. Raises DataFolderError where the folder cannot be used at all.
    """
    if not folder.is_dir():
        raise DataFolderError(f"{folder} is not a folder")
    presentations: dict[tuple[str, str], Presentation] = {}
    assessments: dict[str, tuple[Presentation, Assessment]] = {}
    registrations: dict[tuple[str, str, str], Registration] = {}
    students: dict[str, Presentation] = {}

    def presentation_of(module: str, name: str) -> Presentation:
        try:
            return presentations[module, name]
        except KeyError:
            raise MalformedRowError(f"there is no presentation {module} {name} in courses") from None

    def course(module: str, name: str) -> None:
        if (module, name) in presentations:
            raise MalformedRowError(f"presentation {module} {name} is there already")
        presentations[module, name] = Presentation(module, name, start_of(module, name), uuid(f"oulad/{module}/{name}"))

    def assessment(module: str, name: str, id_assessment: str, kind: str, weight: str) -> None:
        presentation = presentation_of(module, name)
        number_of("id_assessment", id_assessment)
        if kind not in ("TMA", "CMA", "Exam"):
            raise MalformedRowError(f"assessment_type is {kind!r}, expected TMA, CMA or Exam")
        if id_assessment in assessments:
            raise MalformedRowError(f"assessment {id_assessment} is there already")
        required = weight_of(weight) > 0 and kind != "Exam"
        found = Assessment(id_assessment, kind, required, uuid(f"oulad/assessment/{id_assessment}"))
        assessments[id_assessment] = presentation, found
        presentation.assessments.append(found)

    def site(id_site: str, module: str, name: str, activity_type: str) -> None:
        sites = presentation_of(module, name).sites
        number_of("id_site", id_site)
        if id_site in sites:
            raise MalformedRowError(f"site {id_site} of {module} {name} is there already")
        sites[id_site] = Site(len(sites), activity_type, uuid(f"oulad/site/{id_site}"))

    def student_info(module: str, name: str, student: str) -> None:
        presentation = presentation_of(module, name)
        number_of("id_student", student)
        students.setdefault(student, presentation)

    def registration(module: str, name: str, student: str, registered: str, unregistered: str) -> None:
        presentation = presentation_of(module, name)
        number_of("id_student", student)
        key = module, name, student
        if key in registrations:
            raise MalformedRowError(f"student {student} is registered on {module} {name} already")
        unregistered_on = day_of("date_unregistration", unregistered) if unregistered else None
        registered_on = day_of("date_registration", registered) if registered else min(0, unregistered_on or 0)
        registrations[key] = Registration(
            presentation,
            student,
            uuid(f"oulad/student/{student}"),
            registered_on,
            unregistered_on,
        )
        students.setdefault(student, presentation)

    presentation_columns = ("code_module", "code_presentation")
    tables: list[tuple[str, tuple[str, ...], Callable[..., None]]] = [
        ("courses", presentation_columns, course),
        (
            "assessments",
            (*presentation_columns, "id_assessment", "assessment_type", "weight"),
            assessment,
        ),
        ("vle", ("id_site", *presentation_columns, "activity_type"), site),
        ("studentInfo", (*presentation_columns, "id_student"), student_info),
        (
            "studentRegistration",
            (
                *presentation_columns,
                "id_student",
                "date_registration",
                "date_unregistration",
            ),
            registration,
        ),
    ]
    # Every file is looked for before the first is read, so that a missing one is known at once.
    paths = [table_file(folder, name) for name, _, _ in tables]
    table_file(folder, "studentAssessment")
    for path, (_, columns, take) in zip(paths, tables, strict=True):
        for line, values in rows(path, columns, report):
            try:
                take(*values)
            except MalformedRowError as problem:
                report(path.name, line, str(problem))
    return Dataset(folder, presentations, assessments, registrations, students)


def submissions(dataset: Dataset, report: Report) -> Iterator[Submission]:
    """Every submission with a score, in file order. Submissions without one are no error and are passed over."""
    path = table_file(dataset.folder, "studentAssessment")
    seen: set[tuple[str, str]] = set()
    for line, (id_assessment, student, submitted, score) in rows(
        path, ("id_assessment", "id_student", "date_submitted", "score"), report
    ):
        try:
            if id_assessment not in dataset.assessments:
                raise MalformedRowError(f"there is no assessment {id_assessment} in assessments")
            presentation, assessment = dataset.assessments[id_assessment]
            registration = registration_of(dataset, presentation.module, presentation.name, student)
            day = day_of("date_submitted", submitted)
            points = integer("score", score, 0, 100) if score else None
            if (id_assessment, student) in seen:
                raise MalformedRowError(f"student {student} has a submission for assessment {id_assessment} already")
        except MalformedRowError as problem:
            report(path.name, line, str(problem))
            continue
        seen.add((id_assessment, student))
        if points is not None:
            yield Submission(registration, assessment, moment(presentation.start, day), points)


def lesson_reports(dataset: Dataset, report: Report) -> Iterator[LessonReport]:
    """One report for each row of the click stream, in file order, its files by name. There may be no such file."""
    # Ten clicks complete a lesson, so a count of clicks never needs to go beyond ten and fits into a byte.
    clicks_so_far: dict[Registration, bytearray] = {}
    numbers: Counter[Registration] = Counter()
    columns = (
        "code_module",
        "code_presentation",
        "id_student",
        "id_site",
        "date",
        "sum_click",
    )
    for path in click_files(dataset.folder):
        for line, (module, name, student, id_site, date, sum_click) in rows(path, columns, report):
            try:
                registration = registration_of(dataset, module, name, student)
                site = registration.presentation.sites.get(id_site)
                if site is None:
                    raise MalformedRowError(f"there is no site {id_site} of {module} {name} in vle")
                day = day_of("date", date)
                clicks = integer("sum_click", sum_click, 0, 10**9)
            except MalformedRowError as problem:
                report(path.name, line, str(problem))
                continue
            counts = clicks_so_far.get(registration)
            if counts is None:
                counts = clicks_so_far[registration] = bytearray(len(registration.presentation.sites))
            counts[site.place] = total = min(10, counts[site.place] + clicks)
            numbers[registration] = number = numbers[registration] + 1
            yield LessonReport(
                registration,
                site.lesson_id,
                moment(registration.presentation.start, day),
                10 * total,
                number,
            )


def click_files(folder: Path) -> list[Path]:
    """The files of the click stream, in the order of their names; there may be none."""
    found = sorted(path for path in folder.glob("studentVle*") if re.fullmatch(r"studentVle.*\.(tsv|csv)(\.gz)?", path.name))
    tables = Counter(re.sub(r"\.(tsv|csv)(\.gz)?$", "", path.name) for path in found)
    for table, times in tables.items():
        if times > 1:
            raise DataFolderError(f"{folder} holds {table} {times} times in different formats; keep one of them")
    return found


def count_lines(paths: list[Path]) -> int:
    """How many lines the files have, which is a quick estimate of their rows."""
    total = 0
    for path in paths:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            try:
                while block := stream.read1(1 << 20):
                    total += block.count(b"\n")
            except (EOFError, gzip.BadGzipFile, zlib.error):
                # The reader of the rows reports the damage by file and line; an estimate may fall short.
                continue
    return total


def table_file(folder: Path, table: str) -> Path:
    """The one file of a table, `.csv.gz` or `.csv`. Raises DataFolderError where there is none or both."""
    found = [path for path in (folder / f"{table}.csv.gz", folder / f"{table}.csv") if path.is_file()]
    if not found:
        raise DataFolderError(f"{folder} has no {table}.csv.gz or {table}.csv")
    if len(found) > 1:
        raise DataFolderError(f"{folder} holds both {table}.csv.gz and {table}.csv; keep one of them")
    return found[0]


def rows(path: Path, columns: tuple[str, ...], report: Report) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The line number and the wanted columns of each row. Empty lines are passed over.

    Every line is a row of its own: the format has no line breaks inside quotation marks, and so a stray mark spoils a single row.
    Raises DataFolderError where a wanted column is missing. What follows a damaged place in a compressed file is reported once
    and left out.
    """
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    number = 1
    with open_text(path) as stream:
        try:
            header = fields(stream.readline(), delimiter)
            for column in columns:
                if header.count(column) != 1:
                    raise DataFolderError(f"{path}: the first line has no column {column}, or has it twice")
            pick = itemgetter(*(header.index(column) for column in columns))
            for number, line in enumerate(stream, start=2):
                if line == "\n":
                    continue
                if "\0" in line:
                    # No text of the service can hold it.
                    report(path.name, number, "a character U+0000, which no text may hold")
                    continue
                try:
                    values = fields(line, delimiter)
                except csv.Error as problem:
                    report(
                        path.name,
                        number,
                        f"the quotation marks do not match ({problem})",
                    )
                    continue
                if len(values) != len(header):
                    report(
                        path.name,
                        number,
                        f"{len(values)} columns, expected {len(header)}",
                    )
                    continue
                yield number, pick(values)
        except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
            report(
                path.name,
                number + 1,
                f"the file is damaged, everything from here on is left out ({problem})",
            )


def open_text(path: Path) -> TextIO:
    """Open a plain or compressed table, with any of the usual line ends. Bytes that are no UTF-8 become U+FFFD."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace")
    return path.open(encoding="utf-8-sig", errors="replace")


def fields(line: str, delimiter: str) -> list[str]:
    """The fields of one line. Raises csv.Error where quotation marks do not match."""
    line = line.rstrip("\n")
    # Most rows have no quotation mark, and splitting is several times as fast as the general reader.
    return next(csv.reader([line], delimiter=delimiter, strict=True)) if '"' in line else line.split(delimiter)


@lru_cache(maxsize=4096)
def integer(column: str, text: str, lowest: int, highest: int) -> int:
    """The whole number in `text`, also spelled `12.0`, as tools write it that hold a column with empty fields as floating point.

    Raises MalformedRowError where it is none or out of range.
    """
    spelled = re.fullmatch(r"(-?[0-9]{1,18})(\.0*)?", text)
    if spelled is None or not lowest <= int(spelled[1]) <= highest:
        raise MalformedRowError(f"{column} is {text!r}, expected a whole number from {lowest} to {highest}")
    return int(spelled[1])


def day_of(column: str, text: str) -> int:
    """A day, counted from the start of a presentation."""
    return integer(column, text, -FAR_DAY, FAR_DAY)


def number_of(column: str, text: str) -> None:
    """Raise MalformedRowError unless `text` is the number of a student, site or assessment: digits alone, used as written."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise MalformedRowError(f"{column} is {text!r}, expected digits")


def weight_of(text: str) -> Decimal:
    """The weight of an assessment in percent."""
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", text) or Decimal(text) > 100:
        raise MalformedRowError(f"weight is {text!r}, expected a number from 0 to 100")
    return Decimal(text)


def start_of(module: str, name: str) -> datetime:
    """The first day of a presentation, 12:00 UTC: `2013B` starts on 1 February 2013, `2013J` on 1 October."""
    if not module:
        raise MalformedRowError("code_module is empty")
    if not re.fullmatch("(19|20)[0-9]{2}[BJ]", name):
        raise MalformedRowError(f"code_presentation is {name!r}, expected a year and B or J")
    return datetime(int(name[:4]), 2 if name[4] == "B" else 10, 1, 12, tzinfo=UTC)


def registration_of(dataset: Dataset, module: str, name: str, student: str) -> Registration:
    """The registration with this key. Raises MalformedRowError where there is none."""
    registration = dataset.registrations.get((module, name, student))
    if registration is None:
        if (module, name) not in dataset.presentations:
            raise MalformedRowError(f"there is no presentation {module} {name} in courses")
        raise MalformedRowError(f"student {student} is not registered on {module} {name}")
    return registration


def uuid(text: str) -> str:
    """The UUIDv5 of a text in the URL namespace (RFC 9562, section 5.5)."""
    return str(uuid5(NAMESPACE_URL, text))


@lru_cache(maxsize=65536)
def moment(start: datetime, day: int) -> str:
    """A day of a presentation as an RFC 3339 time in UTC."""
    return (start + timedelta(days=day)).strftime("%Y-%m-%dT%H:%M:%SZ")


# ----------------------------------------------------------------------------------------------------------------------- events


def event(event_id: str, event_type: str, time: str, data: dict[str, Any]) -> str:
    """A CloudEvents 1.0 event as JSON text in ASCII. The same row always gives the same `id`, so that a repeat is recognised."""
    return json.dumps(
        {
            "specversion": "1.0",
            "id": event_id,
            "source": SOURCE,
            "type": event_type,
            "time": time,
            "data": data,
        },
        separators=(",", ":"),
    )


def course_version_published(presentation: Presentation) -> str:
    """The event that publishes a presentation as a course version: its sites as lessons, its assessments as quizzes."""
    module, name = presentation.module, presentation.name
    data = {
        "course_version_id": presentation.course_version_id,
        "course_id": uuid(f"oulad/{module}"),
        "title": f"Module {module}",
        "version": name,
        "issuer_name": "Demonstration on Open University data",
        "self_enrollment": True,
        "lessons": [
            {
                "lesson_id": site.lesson_id,
                "title": f"{site.kind} {id_site}".strip(),
                "required": False,
            }
            for id_site, site in presentation.sites.items()
        ],
        "quizzes": [
            {
                "quiz_id": assessment.quiz_id,
                "title": f"{assessment.kind} {assessment.id}",
                "required": assessment.required,
                "pass_threshold_percentage": PASS_THRESHOLD_PERCENTAGE,
                "max_attempts": None,
                "time_limit_seconds": None,
                "retry_delay_seconds": None,
                "reveal_answers": False,
                "questions": questions(),
            }
            for assessment in presentation.assessments
        ],
        "certificate": {"enabled": True, "valid_for_days": None},
    }
    return event(
        f"course/{module}/{name}",
        "course_version.published",
        moment(presentation.start, 0),
        data,
    )


def questions() -> list[dict[str, Any]]:
    """Eight single-choice questions whose right answer is `a`."""
    return [
        {
            "question_id": f"q{number}",
            "kind": "single_choice",
            "prompt": f"Question {number}, {points} of 100 points",
            "points": points,
            "choices": [
                {"id": "a", "text": "The right answer"},
                {"id": "b", "text": "A wrong answer"},
            ],
            "correct": "a",
        }
        for number, points in enumerate(QUESTION_POINTS, start=1)
    ]


@cache
def answers(score: int) -> dict[str, str]:
    """Answers worth exactly `score` (0-100): right ones taken greedily from the largest question, wrong ones to the rest."""
    given: dict[str, str] = {}
    missing = score
    for number, points in enumerate(QUESTION_POINTS, start=1):
        right = points <= missing
        missing -= points if right else 0
        given[f"q{number}"] = "a" if right else "b"
    return given


def learner_updated(student: str, presentation: Presentation) -> str:
    """The event that names a student."""
    data = {"user_id": uuid(f"oulad/student/{student}"), "name": f"Student {student}"}
    return event(f"student/{student}", "learner.updated", moment(presentation.start, 0), data)


def enrollment_requested(registration: Registration) -> str:
    """The event that enrols a student."""
    return enrollment_command("requested", registration, registration.registered_on)


def enrollment_cancelled(registration: Registration) -> str | None:
    """The event that ends an enrolment at the date of the unregistration, None where the student stayed."""
    if registration.unregistered_on is None:
        return None
    return enrollment_command("cancelled", registration, registration.unregistered_on)


def enrollment_command(command: str, registration: Registration, day: int) -> str:
    """A command on an enrolment, dated at a day of its presentation."""
    presentation = registration.presentation
    data = {
        "user_id": registration.user_id,
        "course_version_id": presentation.course_version_id,
    }
    event_id = f"{command}/{presentation.module}/{presentation.name}/{registration.student}"
    return event(event_id, f"enrollment.{command}", moment(presentation.start, day), data)


@lru_cache(maxsize=65536)
def lesson_event_parts(registration: Registration) -> tuple[str, str]:
    """The JSON of a `lesson.progressed` event up to its number, and from there to its time: the same for a whole registration."""
    presentation = registration.presentation
    whole = event(
        f"vle/{presentation.module}/{presentation.name}/{registration.student}/",
        "lesson.progressed",
        "",
        {"user_id": registration.user_id},
    )
    before_number, after_number = whole.split(f'/{registration.student}/"', 1)
    before_time, _ = after_number.split('"time":""', 1)
    return f"{before_number}/{registration.student}/", f'"{before_time}"time":"'


def lesson_progressed(report: LessonReport) -> str:
    """The event of one VLE row. Put together from parts, since there are millions of them."""
    head, middle = lesson_event_parts(report.registration)
    return (
        f'{head}{report.number}{middle}{report.time}","data":{{"user_id":"{report.registration.user_id}",'
        f'"course_version_id":"{report.registration.presentation.course_version_id}","lesson_id":"{report.lesson_id}",'
        f'"progress_percentage":{report.progress_percentage}}}}}'
    )


def lesson_item(report: LessonReport) -> dict[str, Any]:
    """The same as an item of an offline sync by HTTP."""
    return {
        "lesson_id": report.lesson_id,
        "progress_percentage": report.progress_percentage,
        "occurred_at": report.time,
    }


def quiz_submitted(submission: Submission) -> str:
    """The event of one submission."""
    registration, assessment = submission.registration, submission.assessment
    data = {
        "attempt_id": uuid(f"oulad/attempt/{assessment.id}/{registration.student}"),
        "user_id": registration.user_id,
        "course_version_id": registration.presentation.course_version_id,
        "quiz_id": assessment.quiz_id,
        "answers": answers(submission.score),
        "completed_at": submission.time,
    }
    return event(
        f"attempt/{assessment.id}/{registration.student}",
        "quiz.submitted",
        submission.time,
        data,
    )
