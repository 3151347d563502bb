"""Reading a data folder and mapping its rows to events."""

import gzip
import json
from pathlib import Path

import pytest

from local import oulad

TABLES = {
    "courses.csv": [
        '"code_module","code_presentation","module_presentation_length"',
        '"AAA","2013J","268"',
        '"BBB","2014B","240"',
    ],
    "assessments.csv": [
        '"code_module","code_presentation","id_assessment","assessment_type","date","weight"',
        '"AAA","2013J","1752","TMA","19","12.5"',
        '"AAA","2013J","1753","CMA","54","0"',
        '"AAA","2013J","1757","Exam","","100"',
        '"BBB","2014B","15000","TMA","10","100"',
    ],
    "vle.csv": [
        '"id_site","code_module","code_presentation","activity_type","week_from","week_to"',
        '"546652","AAA","2013J","forumng","",""',
        '"546943","AAA","2013J","resource","",""',
    ],
    "studentInfo.csv": [
        '"code_module","code_presentation","id_student","gender"',
        '"AAA","2013J","11391","M"',
        '"AAA","2013J","28400","F"',
    ],
    "studentRegistration.csv": [
        '"code_module","code_presentation","id_student","date_registration","date_unregistration"',
        '"AAA","2013J","11391","-159",""',
        '"AAA","2013J","28400","-53","12"',
        '"BBB","2014B","28400","",""',
        '"BBB","2014B","30001","","-7"',
        '"BBB","2014B","30002","","7"',
    ],
    "studentAssessment.csv": [
        "id_assessment,id_student,date_submitted,is_banked,score",
        "1752,11391,18,0,78",
        "1752,28400,22,0,",
        "15000,28400,-1,1,39",
    ],
    "studentVle_part.tsv": [
        "code_module\tcode_presentation\tid_student\tid_site\tdate\tsum_click",
        "AAA\t2013J\t28400\t546652\t-10\t4",
        "AAA\t2013J\t28400\t546652\t-10\t1",
        "AAA\t2013J\t11391\t546652\t-9\t3",
        "AAA\t2013J\t28400\t546943\t0\t30",
        "AAA\t2013J\t28400\t546652\t31\t9",
    ],
}


def folder_of(tmp_path: Path, changes: dict[str, list[str]] | None = None) -> Path:
    """A small data folder, with more lines at the end of some tables."""
    for name, lines in TABLES.items():
        text = "\r\n".join(lines + (changes or {}).get(name, [])) + "\r\n"
        tmp_path.joinpath(name).write_bytes(text.encode())
    return tmp_path


class Reports(list[str]):
    def __call__(self, file: str, line: int, reason: str) -> None:
        self.append(f"{file}:{line}: {reason}")


def nothing_wrong(file: str, line: int, reason: str) -> None:
    raise AssertionError(f"{file}:{line}: {reason}")


def test_ids_are_uuid5_of_the_texts_in_the_url_namespace():
    # Computed by PostgreSQL: uuid_generate_v5(uuid_ns_url(), 'oulad/student/11391').
    assert oulad.uuid("oulad/student/11391") == "737b7c50-9aae-5f2e-8f28-eed7a9fe87f9"


@pytest.mark.parametrize(
    ("presentation", "day", "time"),
    [
        ("2013J", 0, "2013-10-01T12:00:00Z"),
        ("2013J", -159, "2013-04-25T12:00:00Z"),
        ("2014B", 0, "2014-02-01T12:00:00Z"),
        ("2014B", 28, "2014-03-01T12:00:00Z"),
    ],
)
def test_days_count_from_the_start_of_the_presentation(presentation: str, day: int, time: str):
    assert oulad.moment(oulad.start_of("AAA", presentation), day) == time


def test_a_presentation_becomes_a_course_version(tmp_path: Path):
    dataset = oulad.read(folder_of(tmp_path), nothing_wrong)
    event = json.loads(oulad.course_version_published(dataset.presentations["AAA", "2013J"]))
    assert event["type"] == "course_version.published"
    data = event["data"]
    assert data["course_version_id"] == oulad.uuid("oulad/AAA/2013J")
    assert data["course_id"] == oulad.uuid("oulad/AAA")
    assert data["lessons"] == [
        {"lesson_id": oulad.uuid("oulad/site/546652"), "title": "forumng 546652", "required": False},
        {"lesson_id": oulad.uuid("oulad/site/546943"), "title": "resource 546943", "required": False},
    ]
    assert [(quiz["quiz_id"], quiz["required"]) for quiz in data["quizzes"]] == [
        (oulad.uuid("oulad/assessment/1752"), True),
        (oulad.uuid("oulad/assessment/1753"), False),
        (oulad.uuid("oulad/assessment/1757"), False),
    ]
    assert {quiz["pass_threshold_percentage"] for quiz in data["quizzes"]} == {40}
    assert [question["points"] for question in data["quizzes"][0]["questions"]] == [50, 20, 10, 10, 5, 2, 2, 1]


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("-7", -7), ("78.0", 78), ("-159.", -159)])
def test_whole_numbers_in_their_spellings(text: str, number: int):
    assert oulad.integer("score", text, -200, 200) == number


@pytest.mark.parametrize("text", ["", "-", "+1", " 1", "1 ", "1_0", "1.5", "1e2", "\u0661", "nan", "201", "-201", "9" * 5000])
def test_anything_else_is_no_whole_number(text: str):
    with pytest.raises(oulad.MalformedRowError, match="expected a whole number from -200 to 200"):
        oulad.integer("score", text, -200, 200)


@pytest.mark.parametrize("score", range(101))
def test_answers_are_worth_the_score(score: int):
    points = {question["question_id"]: question["points"] for question in oulad.questions()}
    answers = oulad.answers(score)
    assert set(answers) == set(points)
    assert sum(points[question] for question, choice in answers.items() if choice == "a") == score


def test_answers_are_taken_greedily_from_the_largest_question():
    assert "".join(oulad.answers(78).values()) == "aabbaaba"


def test_enrolments_and_cancellations(tmp_path: Path):
    registrations = oulad.read(folder_of(tmp_path), nothing_wrong).registrations.values()
    requested = [json.loads(oulad.enrollment_requested(registration)) for registration in registrations]
    assert requested[0]["data"] == {
        "user_id": oulad.uuid("oulad/student/11391"),
        "course_version_id": oulad.uuid("oulad/AAA/2013J"),
    }
    # Without a date of registration it is day 0, or the day of the unregistration if that is earlier.
    days = ["2013-04-25", "2013-08-09", "2014-02-01", "2014-01-25", "2014-02-01"]
    assert [event["time"] for event in requested] == [f"{day}T12:00:00Z" for day in days]
    cancelled = [json.loads(event) for event in map(oulad.enrollment_cancelled, registrations) if event is not None]
    assert [event["time"] for event in cancelled] == [f"{day}T12:00:00Z" for day in ("2013-10-13", "2014-01-25", "2014-02-08")]
    assert {event["type"] for event in cancelled} == {"enrollment.cancelled"}


def test_every_student_of_either_table_is_named(tmp_path: Path):
    dataset = oulad.read(folder_of(tmp_path), nothing_wrong)
    events = [json.loads(oulad.learner_updated(*student)) for student in dataset.students.items()]
    assert [event["data"]["name"] for event in events] == [f"Student {number}" for number in (11391, 28400, 30001, 30002)]


def test_clicks_add_up_to_progress_in_file_order(tmp_path: Path):
    dataset = oulad.read(folder_of(tmp_path), nothing_wrong)
    reports = list(oulad.lesson_reports(dataset, nothing_wrong))
    assert [report.progress_percentage for report in reports] == [40, 50, 30, 100, 100]
    assert [report.number for report in reports] == [1, 2, 1, 3, 4]
    event = json.loads(oulad.lesson_progressed(reports[4]))
    assert event == {
        "specversion": "1.0",
        "id": "vle/AAA/2013J/28400/4",
        "source": "oulad",
        "type": "lesson.progressed",
        "time": "2013-11-01T12:00:00Z",
        "data": {
            "user_id": oulad.uuid("oulad/student/28400"),
            "course_version_id": oulad.uuid("oulad/AAA/2013J"),
            "lesson_id": oulad.uuid("oulad/site/546652"),
            "progress_percentage": 100,
        },
    }
    assert oulad.lesson_item(reports[2]) == {
        "lesson_id": oulad.uuid("oulad/site/546652"),
        "progress_percentage": 30,
        "occurred_at": "2013-09-22T12:00:00Z",
    }


def test_clicks_continue_from_one_file_to_the_next(tmp_path: Path):
    folder = folder_of(tmp_path)
    # By name, studentVle_0 comes before studentVle_part, and either kind of file may be packed.
    more = (
        '"code_module","code_presentation","id_student","id_site","date","sum_click"\n"AAA","2013J","28400","546652","-12","2"\n'
    )
    folder.joinpath("studentVle_0.csv.gz").write_bytes(gzip.compress(more.encode()))
    reports = oulad.lesson_reports(oulad.read(folder, nothing_wrong), nothing_wrong)
    assert [report.progress_percentage for report in reports] == [20, 60, 70, 30, 100, 100]


def test_without_a_click_stream_there_is_no_progress(tmp_path: Path):
    folder = folder_of(tmp_path)
    folder.joinpath("studentVle_part.tsv").unlink()
    assert list(oulad.lesson_reports(oulad.read(folder, nothing_wrong), nothing_wrong)) == []


def test_a_submission_with_a_score_becomes_an_attempt(tmp_path: Path):
    dataset = oulad.read(folder_of(tmp_path), nothing_wrong)
    first, second = map(oulad.quiz_submitted, oulad.submissions(dataset, nothing_wrong))
    event = json.loads(first)
    assert event["type"] == "quiz.submitted"
    assert event["time"] == "2013-10-19T12:00:00Z"
    assert event["data"]["attempt_id"] == oulad.uuid("oulad/attempt/1752/11391")
    assert event["data"]["quiz_id"] == oulad.uuid("oulad/assessment/1752")
    assert json.loads(second)["data"]["course_version_id"] == oulad.uuid("oulad/BBB/2014B")


def test_the_smallest_presentation_has_the_fewest_registrations(tmp_path: Path):
    assert str(oulad.read(folder_of(tmp_path), nothing_wrong).smallest_presentation()) == "AAA 2013J"


@pytest.mark.parametrize(
    ("table", "row", "reason"),
    [
        ("courses.csv", '"AAA","2013J","268"', "presentation AAA 2013J is there already"),
        ("courses.csv", '"CCC","2013X","268"', "code_presentation is '2013X', expected a year and B or J"),
        ("courses.csv", '"","2013J","268"', "code_module is empty"),
        ("courses.csv", '"CCC","2013J"', "2 columns, expected 3"),
        ("courses.csv", '"CCC","2013J,"268"', "the quotation marks do not match"),
        ("courses.csv", '"CC\0","2013J","268"', "a character U+0000"),
        ("assessments.csv", '"CCC","2013J","1","TMA","","10"', "there is no presentation CCC 2013J in courses"),
        ("assessments.csv", '"AAA","2013J","1752","TMA","","10"', "assessment 1752 is there already"),
        ("assessments.csv", '"AAA","2013J","x","TMA","","10"', "id_assessment is 'x', expected digits"),
        ("assessments.csv", '"AAA","2013J","1","Essay","","10"', "assessment_type is 'Essay', expected TMA, CMA or Exam"),
        ("assessments.csv", '"AAA","2013J","1","TMA","","much"', "weight is 'much', expected a number from 0 to 100"),
        ("assessments.csv", '"AAA","2013J","1","TMA","","101"', "weight is '101', expected a number from 0 to 100"),
        ("vle.csv", '"546652","AAA","2013J","url","",""', "site 546652 of AAA 2013J is there already"),
        ("vle.csv", '"","AAA","2013J","url","",""', "id_site is '', expected digits"),
        ("studentInfo.csv", '"CCC","2013J","1","M"', "there is no presentation CCC 2013J in courses"),
        ("studentInfo.csv", '"AAA","2013J","1e3","M"', "id_student is '1e3', expected digits"),
        ("studentRegistration.csv", '"AAA","2013J","11391","",""', "student 11391 is registered on AAA 2013J already"),
        ("studentRegistration.csv", '"AAA","2013J","1","soon",""', "date_registration is 'soon', expected a whole number"),
        ("studentRegistration.csv", '"AAA","2013J","1","","1.5"', "date_unregistration is '1.5', expected a whole number"),
        (
            "studentRegistration.csv",
            '"AAA","2013J","1","999999999",""',
            "date_registration is '999999999', expected a whole number",
        ),
        ("studentAssessment.csv", "9,11391,18,0,78", "there is no assessment 9 in assessments"),
        ("studentAssessment.csv", "1753,7,18,0,78", "student 7 is not registered on AAA 2013J"),
        ("studentAssessment.csv", "1753,11391,18,0,101", "score is '101', expected a whole number from 0 to 100"),
        ("studentAssessment.csv", "1753,11391,18,0,-1", "score is '-1', expected a whole number from 0 to 100"),
        ("studentAssessment.csv", "1753,11391,18,0,55.5", "score is '55.5', expected a whole number from 0 to 100"),
        ("studentAssessment.csv", "1753,11391,,0,55", "date_submitted is '', expected a whole number"),
        ("studentAssessment.csv", "1752,11391,18,0,78", "student 11391 has a submission for assessment 1752 already"),
        ("studentVle_part.tsv", "AAA\t2013J\t11391\t9\t0\t1", "there is no site 9 of AAA 2013J in vle"),
        ("studentVle_part.tsv", "BBB\t2014B\t28400\t546652\t0\t1", "there is no site 546652 of BBB 2014B in vle"),
        ("studentVle_part.tsv", "CCC\t2014B\t28400\t546652\t0\t1", "there is no presentation CCC 2014B in courses"),
        ("studentVle_part.tsv", "AAA\t2013J\t11391\t546652\t0\t-1", "sum_click is '-1', expected a whole number"),
        ("studentVle_part.tsv", "AAA\t2013J\t11391\t546652\t\u0660\t1", "date is '\u0660', expected a whole number"),
        ("studentVle_part.tsv", "AAA,2013J,11391,546652,0,1", "1 columns, expected 6"),
    ],
)
def test_a_malformed_row_is_reported_by_file_and_line_and_left_out(tmp_path: Path, table: str, row: str, reason: str):
    # The rows around the malformed one show that only that one is left out.
    clean = everything(folder_of(tmp_path), nothing_wrong)
    reports = Reports()
    assert everything(folder_of(tmp_path, {table: [row]}), reports) == clean
    assert len(reports) == 1
    assert reports[0].startswith(f"{table}:{len(TABLES[table]) + 1}: {reason}")


def everything(folder: Path, report: oulad.Report) -> list[str]:
    """All events of a folder."""
    dataset = oulad.read(folder, report)
    registrations = dataset.registrations.values()
    return [
        *map(oulad.course_version_published, dataset.presentations.values()),
        *(oulad.learner_updated(*student) for student in dataset.students.items()),
        *map(oulad.enrollment_requested, registrations),
        *map(oulad.lesson_progressed, oulad.lesson_reports(dataset, report)),
        *map(oulad.quiz_submitted, oulad.submissions(dataset, report)),
        *(event for event in map(oulad.enrollment_cancelled, registrations) if event is not None),
    ]


def test_packed_files_empty_lines_and_any_line_end_give_the_same_events(tmp_path: Path):
    plain, other = tmp_path / "plain", tmp_path / "other"
    plain.mkdir()
    other.mkdir()
    for name, lines in TABLES.items():
        # A byte order mark, empty lines, and no line end after the last row.
        text = "\ufeff" + "\n\n".join(lines)
        other.joinpath(name + ".gz").write_bytes(gzip.compress(text.encode()))
    assert everything(other, nothing_wrong) == everything(folder_of(plain), nothing_wrong)


def test_columns_may_stand_in_any_order(tmp_path: Path):
    folder = folder_of(tmp_path)
    before = everything(folder, nothing_wrong)
    lines = [line.split(",") for line in TABLES["studentAssessment.csv"]]
    folder.joinpath("studentAssessment.csv").write_text("\n".join(",".join(reversed(line)) for line in lines))
    assert everything(folder, nothing_wrong) == before


def test_what_follows_a_damaged_place_is_left_out_and_reported(tmp_path: Path):
    folder = folder_of(tmp_path)
    name = "studentVle_part.tsv"
    text = "\n".join(TABLES[name][:1] + TABLES[name][1:] * 5000).encode()
    folder.joinpath(name).unlink()
    folder.joinpath(name + ".gz").write_bytes(gzip.compress(text, compresslevel=0)[:100_000])
    reports = Reports()
    read = list(oulad.lesson_reports(oulad.read(folder, reports), reports))
    assert 1000 < len(read) < 25_000
    # The last row may have been cut in two, which is then reported for itself.
    assert reports[-1].startswith(f"{name}.gz:")
    assert "the file is damaged, everything from here on is left out" in reports[-1]
    assert oulad.count_lines(oulad.click_files(folder)) > 1000


@pytest.mark.parametrize("table", [name for name in TABLES if not name.startswith("studentVle")])
def test_a_missing_table_is_named(tmp_path: Path, table: str):
    folder = folder_of(tmp_path)
    folder.joinpath(table).unlink()
    with pytest.raises(oulad.DataFolderError, match=f"has no {table}.gz or {table}"):
        oulad.read(folder, nothing_wrong)


def test_a_missing_column_is_named(tmp_path: Path):
    folder = folder_of(tmp_path)
    folder.joinpath("courses.csv").write_text("code_module,presentation\nAAA,2013J\n")
    with pytest.raises(oulad.DataFolderError, match="no column code_presentation"):
        oulad.read(folder, nothing_wrong)


def test_the_same_table_twice_is_refused(tmp_path: Path):
    folder = folder_of(tmp_path)
    folder.joinpath("studentVle_part.csv").write_text("\t".join(TABLES["studentVle_part.tsv"][0]))
    with pytest.raises(oulad.DataFolderError, match="studentVle_part 2 times"):
        oulad.click_files(folder)
    folder.joinpath("vle.csv.gz").write_bytes(gzip.compress(b"id_site\n"))
    with pytest.raises(oulad.DataFolderError, match=r"both vle\.csv\.gz and vle\.csv"):
        oulad.read(folder, nothing_wrong)


def test_something_else_than_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(oulad.DataFolderError, match="is not a folder"):
        oulad.read(tmp_path / "nowhere", nothing_wrong)
