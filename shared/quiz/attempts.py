"""Quiz attempts as they cross a boundary."""

from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.parsing import Text, Time
from shared.quiz.models import storable_answer

Answers = Annotated[
    dict[Text, Annotated[Any, AfterValidator(storable_answer)]],
    Field(description="question_id → answer, in the form that the question's kind asks for"),
]


class StartBody(BaseModel):
    """Nothing needs to be said to start an attempt."""

    model_config = ConfigDict(extra="forbid")


class SubmitBody(BaseModel):
    """The answers of an attempt."""

    model_config = ConfigDict(extra="forbid")

    answers: Answers


class QuizSubmitted(BaseModel):
    """Data of `quiz.submitted`: an attempt that the producer administered. Without `completed_at` it ended when sent."""

    attempt_id: UUID
    user_id: UUID
    course_version_id: UUID
    quiz_id: UUID
    answers: Answers
    started_at: Time | None = None
    completed_at: Time | None = None


class QuestionPoints(BaseModel):
    """What a question earned, by which rule, and its right answer where the quiz reveals it."""

    question_id: str
    points_earned: float
    points_possible: float
    rule: str
    correct: Any = None


class Attempt(BaseModel):
    """An attempt at a quiz. It is open until `completed_at`; score 0-100, unrounded."""

    id: UUID
    user_id: UUID
    course_version_id: UUID
    quiz_id: UUID
    attempt_number: int
    started_at: Time
    expires_at: Time | None
    completed_at: Time | None
    score: float | None
    is_passed: bool | None
    pass_threshold_percentage: float | None
    in_time: bool | None
    answers: dict[str, Any] | None
    questions: list[QuestionPoints] | None


class AttemptPage(BaseModel):
    """A page of attempts at one quiz, in the order of their numbers."""

    items: list[Attempt]
    next_cursor: str | None


class StartedAttempt(BaseModel):
    """An open attempt with the questions to answer, without their keys."""

    id: UUID
    attempt_number: int
    started_at: Time
    expires_at: Time | None
    questions: list[dict[str, Any]]
