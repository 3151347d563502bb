"""Reports on lessons, and what is known of them."""

from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from shared.enrollment.models import EnrollmentDetail, Progress, Status
from shared.parsing import Percentage, Time


class Report(BaseModel):
    """How far a learner got in a lesson. 100 and `completed` are the same thing; with neither field it is a mere visit."""

    progress_percentage: Percentage | None = None
    status: Literal["in_progress", "completed"] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.status == "completed" and self.progress_percentage not in (None, 100):
            raise PydanticCustomError("report", "expected progress_percentage 100 with status completed")
        return self

    @property
    def percentage(self) -> float:
        """What the report says in numbers, 0-100."""
        if self.progress_percentage is not None:
            return self.progress_percentage
        return 100.0 if self.status == "completed" else 0.0


class LessonProgressed(Report):
    """Data of `lesson.progressed`."""

    user_id: UUID
    course_version_id: UUID
    lesson_id: UUID


class TimedReport(Report):
    """A report over HTTP; without `occurred_at` it is of now."""

    model_config = ConfigDict(extra="forbid")

    occurred_at: Time | None = None


class ReportBody(TimedReport):
    """A report on one lesson, which says something."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {
                    "required": ["progress_percentage"],
                    "properties": {"progress_percentage": {"type": "number"}, "status": {"enum": ["in_progress", None]}},
                },
                {"required": ["status"], "properties": {"status": {"const": "in_progress"}}},
                {
                    "required": ["status"],
                    "properties": {"status": {"const": "completed"}, "progress_percentage": {"enum": [100, None]}},
                },
            ],
            "examples": [{"progress_percentage": 40, "occurred_at": "2026-01-31T09:30:00Z"}, {"status": "completed"}],
        }
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.progress_percentage is None and self.status is None:
            raise PydanticCustomError("report", "expected progress_percentage or status")
        return self


class SyncBody(BaseModel):
    """Up to 500 reports that an app gathered offline. Each is an object with `lesson_id` and the fields of a report."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"lessons": [{"lesson_id": "00000000-0000-4000-8000-000000000001", "progress_percentage": 40}]}]
        },
    )

    lessons: Annotated[list[object], Field(max_length=500)]


class LessonReference(BaseModel):
    """Which lesson something is about."""

    lesson_id: UUID


class SyncItem(TimedReport, LessonReference):
    """One report of several."""


class LessonProgress(BaseModel):
    """What is known of a learner's progress in one lesson. Times are of what happened, not of its arrival."""

    lesson_id: UUID
    status: Literal["not_started", "in_progress", "completed"]
    progress_percentage: float
    started_at: Time | None
    last_accessed_at: Time | None
    completed_at: Time | None


class LessonItem(LessonProgress):
    """A lesson of the course version with the learner's progress in it; what is waived counts as fulfilled."""

    title: str
    required: bool
    waived: bool


class QuizItem(BaseModel):
    """A quiz of the course version with the learner's best score, 0-100; null before the first graded attempt."""

    quiz_id: UUID
    title: str
    required: bool
    is_passed: bool
    best_score: float | None
    attempts: int
    waived: bool


class CourseProgress(Progress):
    """The course figures, every lesson and every quiz."""

    status: Status
    lessons: list[LessonItem]
    quizzes: list[QuizItem]


class SyncResult(BaseModel):
    """What became of one report: `index` is its place in the request."""

    index: int
    lesson_id: UUID | None
    result: Literal["applied", "unchanged", "refused"]
    detail: str | None = None


class SyncReply(BaseModel):
    """What became of each report, and the enrolment afterwards."""

    results: list[SyncResult]
    enrollment: EnrollmentDetail
