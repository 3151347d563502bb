"""What a published course version is told by, and what a corrected answer key makes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from uuid import UUID

import simplejson
from pydantic import TypeAdapter, ValidationError

from shared.catalog.models import AnswerKeyCorrected, CourseVersion, Questions, Quiz, canonical
from shared.errors import Flaw, Invalid, explain
from shared.quiz.models import Question

_QUESTIONS: TypeAdapter[tuple[Question, ...]] = TypeAdapter(Questions)


def digest(version: CourseVersion) -> bytes:
    """What tells a course version from another one under the same id."""
    return sha256(canonical(version).encode()).digest()


def is_the_same(version: CourseVersion, first: bytes, keys: Mapping[UUID, Sequence[tuple[Question, ...]]]) -> bool:
    """Whether a course version is the one published before under its id, corrected answer keys aside.

    `first` is the digest of the body published first, `keys` all answer keys of each quiz, the first one first.
    """
    if digest(version) == first:
        return True
    if any(quiz.questions not in keys.get(quiz.quiz_id, ()) for quiz in version.quizzes):
        return False
    quizzes = tuple(Quiz.model_copy(quiz, update={"questions": keys[quiz.quiz_id][0]}) for quiz in version.quizzes)
    return digest(version.model_copy(update={"quizzes": quizzes})) == first


@dataclass(frozen=True, slots=True)
class Key:
    """The questions of a quiz, and when each of those that were corrected was corrected last (ISO 8601)."""

    questions: tuple[Question, ...]
    corrected: Mapping[str, str]


def corrected(key: Key, correction: AnswerKeyCorrected, time: datetime) -> Key:
    """The answer key after a correction: of two corrections of a question the later one counts, in whatever order they come.

    Raises
    ------
    Invalid
        The quiz has no such question, or could not be graded any more.
    """
    known = {question.question_id for question in key.questions}
    flaws = [
        Flaw(f"#/data/questions/{n}/question_id", "the quiz has no such question")
        for n, question in enumerate(correction.questions)
        if question.question_id not in known
    ]
    if flaws:
        raise Invalid(*flaws)
    present = {question.question_id: question for question in key.questions}
    # Of one length, so that these texts compare as the times do.
    when = time.astimezone(UTC).isoformat(timespec="microseconds")
    newer = {
        question.question_id: question
        for question in correction.questions
        if (when, _text(question)) > (key.corrected.get(question.question_id, ""), _text(present[question.question_id]))
    }
    questions = tuple(newer.get(question.question_id, question) for question in key.questions)
    try:
        _QUESTIONS.validate_python(questions)
    except ValidationError as error:
        raise Invalid(Flaw("#/data/questions", explain(error.errors()[0]))) from None
    return Key(questions, {**key.corrected, **dict.fromkeys(newer, when)})


def as_json(questions: Sequence[Question]) -> str:
    """Questions as they are stored, numbers exact."""
    return simplejson.dumps([question.model_dump() for question in questions], use_decimal=True)


def _text(question: Question) -> str:
    return simplejson.dumps(question.model_dump(), use_decimal=True, sort_keys=True)
