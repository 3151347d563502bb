"""The course version as it is published."""

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import simplejson
from pydantic import ValidationError

from shared.catalog.models import CourseVersion, Quiz, canonical

LESSON = "00000000-0000-4000-8000-00000000000a"
QUIZ = "00000000-0000-4000-8000-00000000000b"


def quiz(**fields: Any) -> dict[str, Any]:
    question = {"question_id": "q1", "kind": "true_false", "prompt": "Is it?", "points": 1, "correct": "true"}
    return {"quiz_id": QUIZ, "title": "Quiz", "pass_threshold_percentage": 40, "questions": [question]} | fields


def body(**fields: Any) -> dict[str, Any]:
    return {
        "course_version_id": "00000000-0000-4000-8000-000000000001",
        "course_id": "00000000-0000-4000-8000-000000000002",
        "title": "Social science",
        "version": "2013J",
        "issuer_name": "The Open University",
        "lessons": [{"lesson_id": LESSON, "title": "Lesson"}],
        "quizzes": [quiz()],
    } | fields


def test_optional_fields_have_their_defaults():
    version = CourseVersion.model_validate(body())
    assert version.self_enrollment
    assert version.lessons[0].required
    assert (version.certificate.enabled, version.certificate.valid_for_days) == (True, None)
    only = version.quizzes[0]
    assert (only.required, only.reveal_answers, only.max_attempts, only.time_limit_seconds, only.retry_delay_seconds) == (
        True,
        False,
        None,
        None,
        None,
    )
    bare = CourseVersion.model_validate({name: value for name, value in body().items() if name not in ("lessons", "quizzes")})
    assert (bare.lessons, bare.quizzes) == ((), ())


def test_limits_are_read():
    limited = Quiz.model_validate(
        quiz(
            max_attempts=3, time_limit_seconds=Decimal("600.0"), retry_delay_seconds=0, pass_threshold_percentage=Decimal("66.67")
        )
    )
    assert (limited.max_attempts, limited.time_limit_seconds, limited.retry_delay_seconds) == (3, 600, 0)
    assert limited.pass_threshold_percentage == Decimal("66.67")


BAD_LESSON = [{"lesson_id": LESSON, "title": "Lesson"}]


@pytest.mark.parametrize(
    ("changed", "place", "message"),
    [
        ({"course_version_id": "1"}, "course_version_id", "valid UUID"),
        ({"course_id": None}, "course_id", "Field required"),
        ({"title": " "}, "title", "not empty"),
        ({"title": "a\0b"}, "title", "U\\+0000"),
        ({"version": 2013}, "version", "valid string"),
        ({"issuer_name": "\udfff"}, "issuer_name", "U\\+DFFF"),
        ({"self_enrollment": "yes"}, "self_enrollment", "valid boolean"),
        ({"self_enrollment": 1}, "self_enrollment", "valid boolean"),
        ({"lessons": {}}, "lessons", "expected a list"),
        ({"lessons": BAD_LESSON * 2}, "lessons", f"{LESSON} is listed more than once"),
        ({"lessons": [{"lesson_id": LESSON}]}, "lessons.0.title", "Field required"),
        ({"lessons": [{"lesson_id": LESSON, "title": "a", "required": 0}]}, "lessons.0.required", "valid boolean"),
        ({"quizzes": [quiz(), quiz(quiz_id=QUIZ.upper())]}, "quizzes", f"{QUIZ} is listed more than once"),
        ({"quizzes": [quiz(quiz_id=LESSON)]}, "quizzes", f"{LESSON} belongs to a lesson"),
        (
            {"quizzes": [quiz(pass_threshold_percentage=100.01)]},
            "quizzes.0.pass_threshold_percentage",
            "less than or equal to 100",
        ),
        ({"quizzes": [quiz(pass_threshold_percentage=-1)]}, "quizzes.0.pass_threshold_percentage", "greater than or equal to 0"),
        ({"quizzes": [quiz() | {"pass_threshold_percentage": "40"}]}, "quizzes.0.pass_threshold_percentage", "expected a number"),
        ({"quizzes": [quiz(pass_threshold_percentage=None)]}, "quizzes.0.pass_threshold_percentage", "Field required"),
        ({"quizzes": [quiz(max_attempts=0)]}, "quizzes.0.max_attempts", "greater than or equal to 1"),
        ({"quizzes": [quiz(max_attempts=True)]}, "quizzes.0.max_attempts", "expected a number"),
        ({"quizzes": [quiz(max_attempts=1.5)]}, "quizzes.0.max_attempts", "whole number"),
        ({"quizzes": [quiz(time_limit_seconds=0)]}, "quizzes.0.time_limit_seconds", "greater than or equal to 1"),
        ({"quizzes": [quiz(time_limit_seconds=2**31)]}, "quizzes.0.time_limit_seconds", "less than or equal to"),
        ({"quizzes": [quiz(retry_delay_seconds=-1)]}, "quizzes.0.retry_delay_seconds", "greater than or equal to 0"),
        ({"quizzes": [quiz(questions=[])]}, "quizzes.0.questions", "at least one question"),
        ({"quizzes": [quiz(questions=[quiz()["questions"][0] | {"points": 0}])]}, "quizzes.0.questions", "no points"),
        ({"quizzes": [quiz(questions=quiz()["questions"] * 2)]}, "quizzes.0.questions", "'q1' is listed more than once"),
        (
            {"quizzes": [quiz(questions=[quiz()["questions"][0] | {"correct": "maybe"}])]},
            "quizzes.0.questions.0.true_false.correct",
            "'maybe', which is none of the choices",
        ),
        ({"certificate": {"valid_for_days": 0}}, "certificate.valid_for_days", "greater than or equal to 1"),
        ({"certificate": {"enabled": "true"}}, "certificate.enabled", "valid boolean"),
    ],
)
def test_what_can_not_work_is_refused_with_its_place(changed: dict[str, Any], place: str, message: str):
    with pytest.raises(ValidationError, match=message) as caught:
        CourseVersion.model_validate(body(**changed))
    (error,) = caught.value.errors()
    assert ".".join(map(str, error["loc"])) == place


def test_a_course_version_can_not_be_changed():
    version = CourseVersion.model_validate(body())
    with pytest.raises(ValidationError, match="frozen"):
        version.title = "Another"  # pyright: ignore[reportAttributeAccessIssue]


def test_bodies_that_mean_the_same_have_one_canonical_form():
    plain = canonical(CourseVersion.model_validate(body()))
    spelt_out = body(
        self_enrollment=True,
        unknown="ignored",
        course_id=UUID(body()["course_id"]),
        lessons=[{"title": "Lesson", "lesson_id": LESSON.upper(), "required": True}],
        quizzes=[quiz(pass_threshold_percentage=40.0, max_attempts=None, time_limit_seconds=None)],
        certificate={"enabled": True, "valid_for_days": None},
    )
    assert canonical(CourseVersion.model_validate(spelt_out)) == plain
    assert '"pass_threshold_percentage":40,' in plain
    for other in (
        body(title="Other"),
        body(quizzes=[quiz(pass_threshold_percentage=40.5)]),
        body(quizzes=[quiz(required=False)]),
    ):
        assert canonical(CourseVersion.model_validate(other)) != plain


def test_the_canonical_form_reads_back_exactly():
    questions = [
        quiz()["questions"][0] | {"points": Decimal("0.1000000000000000000000000001")},
        {
            "question_id": "q2",
            "kind": "mapped",
            "prompt": "?",
            "points": 100,
            "correct": {"a": 1e2, "b": -1e-7},
            "upper_bound": 1000,
        },
        {
            "question_id": "q3",
            "kind": "numeric",
            "prompt": "\N{PILE OF POO}",
            "points": 0,
            "correct": Decimal("1e300"),
            "tolerance": Decimal("1e-300"),
        },
    ]
    version = CourseVersion.model_validate(body(quizzes=[quiz(questions=questions)]))
    again = CourseVersion.model_validate(simplejson.loads(canonical(version), use_decimal=True))
    assert again == version
    assert canonical(again) == canonical(version)
    assert CourseVersion.model_validate(version.model_dump()) == version
