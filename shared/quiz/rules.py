"""Grading: pure and exact.

Points are fractions and never rounded, so the order in which they are added doesn't matter, and 2/3 is below 66.67 %.
No question earns less than 0, and no answer (absent, null, or an empty text, list or object) earns 0.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

from shared.errors import EnrollmentInactive, Flaw, Invalid, NoAttemptsLeft, RetryTooSoon, pointer
from shared.quiz.models import (
    MAX_NUMBER_DIGITS,
    MappedQuestion,
    MatchingQuestion,
    MultipleChoiceQuestion,
    NumericQuestion,
    OrderingQuestion,
    Question,
    SingleChoiceQuestion,
    TextQuestion,
    TrueFalseQuestion,
    exact_number,
    fold_text,
)

type Answer = str | int | float | Decimal | list[str] | dict[str, str] | None
type Answers = Mapping[str, Answer]
"""The answers object of an attempt, as submitted: question id to answer."""

ZERO = Fraction(0)
# Each text fits in one way at most, so the time to match stays proportional to its length.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,9})?")


class QuestionResult(TypedDict):
    """What one question earned and by which rule, in JSON types; `Fraction(text)` reads the points back exactly."""

    question_id: str
    points_earned: str
    points_possible: str
    rule: str


@dataclass(frozen=True, slots=True)
class Grade:
    """The outcome of one attempt.

    `score` is 0 to 100, the double nearest to the exact percentage; `is_passed` compares the exact one.
    """

    points_earned: Fraction
    points_possible: Fraction
    score: float
    is_passed: bool
    question_results: list[QuestionResult]


def read_number(text: str) -> Decimal | None:
    """The number that a learner wrote, or None.

    White space around it, an exponent, the digits of any script and the typographic minus sign are understood. A comma is never
    guessed to be a decimal point or a separator of thousands, and beyond `MAX_NUMBER_DIGITS` there is no number.
    """
    written = text.strip().replace("\N{MINUS SIGN}", "-")
    if not _NUMBER.fullmatch(written):
        return None
    try:
        return exact_number(Decimal(written))
    except ValueError:
        return None


def _choice(question: SingleChoiceQuestion | TrueFalseQuestion, answer: str) -> Fraction:
    return question.worth if answer == question.correct else ZERO


def _choices(question: MultipleChoiceQuestion, answer: list[str]) -> Fraction:
    chosen, key = frozenset(answer), question.key
    if not chosen:
        return ZERO
    if question.scoring == "all_or_nothing":
        return question.worth if chosen == key else ZERO
    if question.scoring == "right_minus_wrong":
        share = Fraction(len(chosen & key) - len(chosen - key), len(key))
    else:
        # An unknown choice is handled wrongly as well, though it is not one of the options that can be handled rightly.
        handled_wrongly = chosen ^ key
        share = Fraction(len(question.options - handled_wrongly) - len(handled_wrongly), len(question.options))
    return question.worth * share if share > 0 else ZERO


def _number(question: NumericQuestion, answer: str | int | float | Decimal) -> Fraction:
    number = read_number(answer) if isinstance(answer, str) else exact_number(answer)
    lowest, highest = question.bounds
    return question.worth if number is not None and lowest <= Fraction(number) <= highest else ZERO


def _text(question: TextQuestion, answer: str) -> Fraction:
    answer = " ".join(answer.split())
    # What is far longer than any accepted text need not be normalised, which can make it 18 times as long.
    if len(answer) > question.longest or fold_text(answer, case_sensitive=question.case_sensitive) not in question.accepted:
        return ZERO
    return question.worth


def _pairs(question: MatchingQuestion, answer: dict[str, str]) -> Fraction:
    right = sum(answer.get(left) == right for left, right in question.correct.items())
    return question.worth * Fraction(right, len(question.correct))


def _order(question: OrderingQuestion, answer: list[str]) -> Fraction:
    if question.scoring == "all_or_nothing":
        return question.worth if tuple(answer) == question.correct else ZERO
    right = sum(given == item for given, item in zip(answer, question.correct, strict=False))
    return question.worth * Fraction(right, len(question.correct))


def _mapped(question: MappedQuestion, answer: list[str]) -> Fraction:
    if not answer:
        return ZERO
    earned = question.bounded(sum((question.value_of(choice) for choice in set(answer)), ZERO))
    return min(max(earned, ZERO), question.worth)


def _is_text(answer: object) -> bool:
    return isinstance(answer, str)


def _is_list(answer: object) -> bool:
    return isinstance(answer, list) and all(isinstance(item, str) for item in answer)


def _is_object(answer: object) -> bool:
    return isinstance(answer, dict) and all(isinstance(item, str) for item in answer.values())


def _is_number(answer: object) -> bool:
    if isinstance(answer, str):
        return True
    try:
        exact_number(answer)
    except ValueError:
        return False
    return True


class Kind(NamedTuple):
    """How one kind of question is graded: an answer's shape, the same in words, and the points for an answer of that shape."""

    fits: Callable[[object], bool]
    expected: str
    points: Callable[[Any, Any], Fraction]


KINDS = {
    "single_choice": Kind(_is_text, "a choice id (text)", _choice),
    "true_false": Kind(_is_text, "a choice id (text)", _choice),
    "multiple_choice": Kind(_is_list, "a list of choice ids (texts)", _choices),
    "numeric": Kind(_is_number, f"a number of at most {MAX_NUMBER_DIGITS} digits, or its text", _number),
    "text": Kind(_is_text, "a text", _text),
    "matching": Kind(_is_object, "an object of texts, left to right", _pairs),
    "ordering": Kind(_is_list, "a list of choice ids (texts)", _order),
    "mapped": Kind(_is_list, "a list of choice ids (texts)", _mapped),
}


def rule_name(question: Question) -> str:
    """The rule that grades the question: its kind, with the variant where the kind has some, as `multiple_choice/per_option`."""
    match question:
        case MultipleChoiceQuestion() | OrderingQuestion():
            return f"{question.kind}/{question.scoring}"
        case NumericQuestion():
            return f"{question.kind}/{question.tolerance_kind}"
        case _:
            return question.kind


@lru_cache(maxsize=4096)
def _exact_text(points: Fraction) -> str:
    return str(points)


def grade(questions: Sequence[Question], answers: Answers, pass_threshold_percentage: Decimal) -> Grade:
    """Grade the answers of one attempt.

    Answers to other questions don't count, and one of the wrong shape earns 0: after a correction that changed a question's kind,
    an answer that was well-formed once is merely wrong now.

    Raises ValueError if the questions have no points at all.
    """
    earned_in_all = possible_in_all = ZERO
    results: list[QuestionResult] = []
    for question in questions:
        answer, kind = answers.get(question.question_id), KINDS[question.kind]
        earned = kind.points(question, answer) if answer is not None and kind.fits(answer) else ZERO
        # Adding nothing to a fraction costs as much as adding something, and in a long quiz most answers may be wrong.
        if earned:
            earned_in_all += earned
        possible_in_all += question.worth
        results.append(
            {
                "question_id": question.question_id,
                "points_earned": _exact_text(earned),
                "points_possible": _exact_text(question.worth),
                "rule": rule_name(question),
            }
        )
    if not possible_in_all:
        raise ValueError("the questions have no points, so there is no score")
    percentage = 100 * earned_in_all / possible_in_all
    return Grade(earned_in_all, possible_in_all, float(percentage), percentage >= Fraction(pass_threshold_percentage), results)


def check_answers(
    questions: Sequence[Question], answers: Answers, *, unknown_questions: Literal["refuse", "ignore"], place: str = "#"
) -> Answers:
    """The answers object, once each answer has the shape that its question's kind asks for.

    An answer of the right shape that can't be right, such as an unknown choice or a text that is no number, is no error: it
    earns 0. Answers to questions that the quiz doesn't have are an error only with `refuse`.

    Raises
    ------
    Invalid
        With the place of each answer that can't be taken; `place` is where the object with the answers stands.
    """
    kinds = {question.question_id: KINDS[question.kind] for question in questions}
    flaws: list[Flaw] = []
    for question_id, answer in answers.items():
        kind = kinds.get(question_id)
        if kind is None and unknown_questions == "refuse":
            flaws.append(Flaw(place + pointer(("answers", question_id))[1:], "the quiz has no such question"))
        elif kind is not None and answer is not None and not kind.fits(answer):
            flaws.append(Flaw(place + pointer(("answers", question_id))[1:], f"expected {kind.expected}"))
    if flaws:
        raise Invalid(*flaws)
    return answers


#: How long after the time limit answers are still taken, since they were on their way.
GRACE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """An attempt that is not submitted yet, with the answers saved so far. `expires_at` None: there is no time limit."""

    id: UUID
    attempt_number: int
    started_at: datetime
    expires_at: datetime | None
    answers: Answers


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides whether a learner may start an attempt at a quiz. Limits that are None do not exist."""

    status: str
    quiz_is_known: bool
    key_version: int
    max_attempts: int | None
    retry_delay_seconds: int | None
    attempts: int
    last_number: int
    last_completed_at: datetime | None
    open: OpenAttempt | None
    #: The database's clock.
    now: datetime


def is_late(expires_at: datetime | None, now: datetime) -> bool:
    """Whether answers that come `now` are too late for an attempt that runs until `expires_at`."""
    return expires_at is not None and now > expires_at + GRACE


def check_active(status: str) -> None:
    """Let go on whoever is enrolled at present; raises EnrollmentInactive."""
    if status not in ("active", "completed"):
        raise EnrollmentInactive("The enrolment is cancelled or revoked.")


def next_attempt(standing: Standing) -> int:
    """The number of the attempt that the learner may start, once an open one is closed.

    Raises
    ------
    NoAttemptsLeft, RetryTooSoon
    """
    if standing.max_attempts is not None and standing.attempts >= standing.max_attempts:
        raise NoAttemptsLeft(f"All {standing.max_attempts} attempts at this quiz are used.")
    # An open attempt that ran out ended when its time did.
    ends = [standing.last_completed_at, standing.open and standing.open.expires_at]
    last = max((end for end in ends if end), default=None)
    if standing.retry_delay_seconds and last and standing.now < last + timedelta(seconds=standing.retry_delay_seconds):
        again = last + timedelta(seconds=standing.retry_delay_seconds)
        raise RetryTooSoon(f"The next attempt may start at {again.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}.")
    return standing.last_number + 1
