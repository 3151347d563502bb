"""Quiz attempts as they cross a boundary."""

from typing import Annotated, Any, Literal, Self
from uuid import UUID

import simplejson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from shared.parsing import Reason, Text, Time
from shared.quiz.models import storable_answer, storable_answers, whole_number

_TEXT = {"type": "string", "pattern": r"^[^\u0000]*$"}
_FORMS: list[dict[str, Any]] = [
    _TEXT,
    {"type": "number"},
    {"type": "array", "items": _TEXT},
    {"type": "object", "additionalProperties": _TEXT, "propertyNames": _TEXT},
    {"type": "null"},
]

Answers = Annotated[
    dict[Text, Annotated[Any, AfterValidator(storable_answer), WithJsonSchema({"anyOf": _FORMS})]],
    AfterValidator(storable_answers),
    Field(
        description="question_id → answer, in the form that the question's kind asks for",
        json_schema_extra={"additionalProperties": False},
    ),
]


class StartBody(BaseModel):
    """Nothing needs to be said to start an attempt."""

    model_config = ConfigDict(extra="forbid")


class AnswersBody(BaseModel):
    """The answers of an attempt: submitted, or kept as a draft in place of the draft before."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"answers": {"q1": "a", "q2": ["a", "c"], "q3": 4.5, "q4": {"a": "b"}}}]}
    )

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


class EarlierGrading(BaseModel):
    """How an attempt had been graded before it was graded again by a corrected answer key."""

    key_version: int
    score: float
    is_passed: bool
    replaced_at: Time


class Attempt(BaseModel):
    """An attempt at a quiz. It is open until `completed_at`, its `answers` being the draft; score 0-100, unrounded.

    `pass_kept`: graded again it would have failed, and the pass once given was kept. `set_aside_at`: when the enrolment was
    started over, so that the attempt no longer counts.
    """

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
    pass_kept: bool
    pass_threshold_percentage: float | None
    key_version: int | None
    in_time: bool | None
    set_aside_at: Time | None
    answers: dict[str, Any] | None
    questions: list[QuestionPoints] | None
    earlier_gradings: list[EarlierGrading]


def exact_json(shown: "Attempt | StartedAttempt | AttemptPage") -> str:
    """What a caller gets to see, with the numbers in answers as they were given: pydantic would write them as texts."""

    def exact(one: Attempt | StartedAttempt) -> dict[str, Any]:
        return one.model_dump(mode="json", exclude={"answers"}) | {"answers": one.answers}

    if isinstance(shown, AttemptPage):
        content = {"items": [exact(item) for item in shown.items], "next_cursor": shown.next_cursor}
    else:
        content = exact(shown)
    # As pydantic writes it: escapes would make texts of other scripts up to three times as long.
    return simplejson.dumps(content, use_decimal=True, ensure_ascii=False)


class AttemptPage(BaseModel):
    """A page of attempts at one quiz, in the order of their numbers."""

    items: list[Attempt]
    next_cursor: str | None


class StartedAttempt(BaseModel):
    """An open attempt with the questions to answer, without their keys, and the draft of the answers."""

    id: UUID
    attempt_number: int
    started_at: Time
    expires_at: Time | None
    questions: list[dict[str, Any]]
    answers: dict[str, Any]


# Far beyond every sensible use, and small enough for the arithmetic of times.
_Extra = Annotated[int, Field(ge=0, le=10_000), BeforeValidator(whole_number)]


class AllowanceBody(BaseModel):
    """What one learner gets beyond a quiz's limits, in place of what was granted before; what is not named is nothing."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "anyOf": [{"required": ["extra_attempts"]}, {"required": ["extra_time_percentage"]}],
            "examples": [{"extra_attempts": 1, "extra_time_percentage": 25, "reason": "A certified need for more time."}],
        },
    )

    extra_attempts: _Extra = 0
    extra_time_percentage: _Extra = 0
    reason: Reason | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set & {"extra_attempts", "extra_time_percentage"}:
            raise PydanticCustomError("allowance", "expected extra_attempts or extra_time_percentage")
        return self


class Allowance(BaseModel):
    """What one learner was granted at a quiz, and the limits that follow; a limit that is null does not exist."""

    quiz_id: UUID
    extra_attempts: int
    extra_time_percentage: int
    max_attempts: int | None
    time_limit_seconds: float | None


class RegradeBody(BaseModel):
    """Whether attempts are graded again or only looked at, and whether those who no longer pass lose their pass."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"dry_run": True}]})

    dry_run: StrictBool
    take_away: StrictBool = False
    reason: Reason | None = None


class RegradedLearner(BaseModel):
    """Whom grading again makes a difference to. Scores are the learner's best before and after, 0-100.

    `pass_change` `kept`: the learner would no longer pass, and keeps the pass.
    """

    user_id: UUID
    course_version_id: UUID
    previous_score: float
    score: float
    pass_change: Literal["gained", "lost", "kept"] | None
    certificate_change: Literal["gained", "lost"] | None


class Regrade(BaseModel):
    """Grading all attempts at a quiz again by its present answer key, with a page of those whom it makes a difference to.

    `attempts` were looked at, `attempts_changed` came out otherwise; the other numbers count learners.
    """

    id: UUID
    course_version_id: UUID
    quiz_id: UUID
    status: Literal["running", "completed"]
    dry_run: bool
    take_away: bool
    actor: str
    reason: str
    requested_at: Time
    completed_at: Time | None
    attempts: int
    attempts_changed: int
    passes_gained: int
    passes_lost: int
    passes_kept: int
    certificates_gained: int
    certificates_lost: int
    learners: list[RegradedLearner]
    next_cursor: str | None
