"""A course version with its lessons, quizzes and certificate policy, as `course_version.published` carries it.

Whatever can't work is refused with the place named. Numbers and nulls are read as in `shared.quiz.models`.
"""

from typing import Annotated
from uuid import UUID

import simplejson
from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, ValidationInfo, field_validator

from shared.quiz.models import Frozen, Listed, Number, Question, Text, refused, repeated, whole_number


def _not_blank(text: str) -> str:
    if not text.strip():
        raise refused("expected a text that is not empty")
    return text


def _can_be_graded(questions: tuple[Question, ...]) -> tuple[Question, ...]:
    if not any(question.points for question in questions):
        raise refused("the questions have no points, so the quiz can't be graded")
    return questions


def _distinct_questions(questions: tuple[Question, ...]) -> tuple[Question, ...]:
    if not questions:
        raise refused("expected at least one question")
    if twice := repeated(question.question_id for question in questions):
        raise refused(f"the question {twice[0]!r} is listed more than once")
    return questions


SomeQuestions = Annotated[tuple[Question, ...], Listed, AfterValidator(_distinct_questions)]
Questions = Annotated[SomeQuestions, AfterValidator(_can_be_graded)]
"""All questions of a quiz."""

Title = Annotated[Text, AfterValidator(_not_blank)]
# The upper bounds are those of PostgreSQL's integer.
WholeNumber = Annotated[int, BeforeValidator(whole_number), Field(ge=0, le=2**31 - 1)]
PositiveNumber = Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=2**31 - 1)]


class Lesson(Frozen):
    """A lesson; only required ones count towards completion."""

    lesson_id: UUID
    title: Title
    required: StrictBool = True


class Quiz(Frozen):
    """A quiz with its questions and keys. A limit or delay that is None doesn't exist; times are in seconds."""

    quiz_id: UUID
    title: Title
    required: StrictBool = True
    pass_threshold_percentage: Annotated[Number, Field(ge=0, le=100)]
    max_attempts: PositiveNumber | None = None
    time_limit_seconds: PositiveNumber | None = None
    retry_delay_seconds: WholeNumber | None = None
    reveal_answers: StrictBool = False
    questions: Questions


class CertificatePolicy(Frozen):
    """Whether completing earns a certificate, and for how many days it is valid (None: for ever)."""

    enabled: StrictBool = True
    # A million days keep the date of expiry within the years that PostgreSQL and Python share.
    valid_for_days: Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=1_000_000)] | None = None


class CourseVersion(Frozen):
    """One version of a course, immutable once published. Lessons and quizzes have distinct ids, also between the two."""

    course_version_id: UUID
    course_id: UUID
    title: Title
    version: Title
    issuer_name: Title
    self_enrollment: StrictBool = True
    lessons: Annotated[tuple[Lesson, ...], Listed] = ()
    quizzes: Annotated[tuple[Quiz, ...], Listed] = ()
    certificate: CertificatePolicy = CertificatePolicy()

    @field_validator("lessons")
    @classmethod
    def _distinct_lessons(cls, lessons: tuple[Lesson, ...]) -> tuple[Lesson, ...]:
        if twice := repeated(str(lesson.lesson_id) for lesson in lessons):
            raise refused(f"the lesson {twice[0]} is listed more than once")
        return lessons

    @field_validator("quizzes")
    @classmethod
    def _distinct_quizzes(cls, quizzes: tuple[Quiz, ...], info: ValidationInfo) -> tuple[Quiz, ...]:
        if twice := repeated(str(quiz.quiz_id) for quiz in quizzes):
            raise refused(f"the quiz {twice[0]} is listed more than once")
        lesson_ids = {lesson.lesson_id for lesson in info.data.get("lessons", ())}
        if shared := [quiz.quiz_id for quiz in quizzes if quiz.quiz_id in lesson_ids]:
            # A requirement is addressed by its id alone, so the id has to say which one is meant.
            raise refused(f"the id {shared[0]} belongs to a lesson already")
        return quizzes


class AnswerKeyCorrected(Frozen):
    """Data of `quiz.answer_key_corrected`: the questions that were corrected, each in full; the others stay as they are."""

    course_version_id: UUID
    quiz_id: UUID
    questions: SomeQuestions


def canonical(course_version: CourseVersion) -> str:
    """The course version as canonical JSON: equal for bodies that mean the same, with defaults filled in and 1.0 written as 1.

    `CourseVersion.model_validate(simplejson.loads(text, use_decimal=True))` reads it back.
    """
    return simplejson.dumps(
        course_version.model_dump(), default=str, use_decimal=True, sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
