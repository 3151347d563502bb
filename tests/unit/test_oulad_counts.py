"""The independent count, on rows few enough to be counted by hand."""

from pathlib import Path

from tests.oulad_counts import expected, v5

TABLES = {
    "courses": "code_module,code_presentation\nAAA,2013J\nGGG,2013B\n",
    "assessments": "code_module,code_presentation,id_assessment,assessment_type,date,weight\n"
    "AAA,2013J,1,TMA,19,12.5\nAAA,2013J,2,CMA,20,0\nAAA,2013J,3,Exam,,100\nAAA,2013J,4,TMA,,0.5\nGGG,2013B,5,TMA,,0\n",
    "studentRegistration": "code_module,code_presentation,id_student,date_registration,date_unregistration\n"
    # Completed, though unregistered later; cancelled; cancelled on the day of registration; unregistered before it, which changes
    # nothing; stayed; nothing required, so never completed.
    "AAA,2013J,10,-5,30\nAAA,2013J,11,,-3\nAAA,2013J,12,4,4\nAAA,2013J,13,4,3\nAAA,2013J,14,,\nGGG,2013B,10,0,\n",
    "studentAssessment": "id_assessment,id_student,date_submitted,is_banked,score\n"
    "1,10,9,0,40\n4,10,7,0,100\n1,14,1,0,100\n2,14,1,0,39\n3,14,1,0,\n5,10,1,0,100\n",
    "studentVle": "code_module,code_presentation,id_student,id_site,date,sum_click\n"
    "AAA,2013J,10,7,3,4\nAAA,2013J,10,7,-1,6\nAAA,2013J,10,7,-2,90\nAAA,2013J,10,8,1,9\nAAA,2013J,11,7,1,9\n",
}


def test_counts_made_by_hand(tmp_path: Path):
    for name, text in TABLES.items():
        tmp_path.joinpath(f"{name}.csv").write_text(text)
    counts, rows = expected(tmp_path)
    assert counts == {
        "course_versions": 2,
        "enrollments": {"active": 3, "cancelled_by_user": 2, "completed": 1},
        "lesson_progress": {"completed": 1, "in_progress": 2},
        "quiz_attempts": {"passed": 4, "failed": 1},
        "score_sum": 379,
        "certificates": 1,
        "events_refused": 0,
    }
    learner, course_version = v5("oulad/student/10"), v5("oulad/AAA/2013J")
    # It was completed by the later of the two required quizzes.
    assert rows["enrollments"][f"{learner} {course_version}"] == {
        "status": "completed",
        "completed_at": "2013-10-10T12:00:00+00:00",
    }
    assert rows["enrollments"][f"{v5('oulad/student/13')} {course_version}"] == {"status": "active", "completed_at": None}
    assert rows["lesson_progress"][f"{learner} {course_version} {v5('oulad/site/7')}"] == {
        "progress_percentage": 100,
        "status": "completed",
        "started_at": "2013-09-29T12:00:00+00:00",
        "last_accessed_at": "2013-10-04T12:00:00+00:00",
        "completed_at": "2013-09-29T12:00:00+00:00",
    }
    assert rows["quiz_attempts"][v5("oulad/attempt/1/10")]["is_passed"]
