"""Quiz questions with their answer keys, as a course version carries them.

One frozen model for each question kind; `Question` is their union, told apart by `kind`. A key that can't be
right is refused with the place named. Unknown fields are ignored, and a field that is `null` counts as absent,
because producers in typed languages write out every optional field.

Numbers are exact: JSON numbers become `Decimal`. Parse JSON with `parse_float=Decimal` to keep every digit;
a `float` is taken as the shortest decimal that denotes it.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from functools import cached_property, partial
from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StrictBool,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_NUMBER_DIGITS = 400
"""Numbers have at most this many digits and a magnitude of 1e-400 to 1e400: every double fits, and arithmetic stays cheap."""

# PostgreSQL's text and jsonb hold neither U+0000 nor half of a surrogate pair.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_EXACT = Context(prec=4 * MAX_NUMBER_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)


def refused(detail: str) -> PydanticCustomError:
    """The error a validator raises, so that `detail` is the whole message, without a "Value error, " before it."""
    # The message is a template, so text from outside goes in as a value.
    return PydanticCustomError("refused", "{detail}", {"detail": detail})


def unstorable_text(text: str) -> str | None:
    """What keeps PostgreSQL from storing `text`, or None."""
    found = _UNSTORABLE.search(text)
    return f"the character U+{ord(found[0]):04X} is not allowed" if found else None


def exact_number(value: object) -> Decimal:
    """The exact value of a JSON number (int, float or Decimal), equal numbers giving equal text.

    Raises PydanticCustomError (a ValueError) for anything else, a boolean included, for NaN and the infinities, and for
    numbers beyond `MAX_NUMBER_DIGITS`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise refused("expected a number")
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise refused("expected a finite number")
    if not number:
        return Decimal(0)
    too_large_or_small = not -MAX_NUMBER_DIGITS <= number.adjusted() < MAX_NUMBER_DIGITS
    if len(number.as_tuple().digits) > MAX_NUMBER_DIGITS or too_large_or_small:
        raise refused(
            f"expected a number of at most {MAX_NUMBER_DIGITS} digits, between 1e-{MAX_NUMBER_DIGITS} and 1e{MAX_NUMBER_DIGITS}"
        )
    number = _EXACT.normalize(number)
    return _EXACT.quantize(number, Decimal(1)) if number == number.to_integral_value(context=_EXACT) else number


def whole_number(value: object) -> int:
    """A JSON number that is whole, however it is written: 2, 2.0, 0.2e1; raises PydanticCustomError (a ValueError) if not."""
    number = exact_number(value)
    if number != int(number):
        raise refused("expected a whole number")
    return int(number)


MAX_ANSWER_DEPTH = 20
"""Answers nest less deep than this, which leaves every sensible one alone and keeps the snapshot storable."""
MAX_ANSWERS_CHARACTERS = 500_000
"""The characters of all answers of an attempt, ids included: enough for the longest quiz that a message carries."""


def storable_answers(answers: dict[str, object]) -> dict[str, object]:
    """The answers of an attempt, if they are short enough for an answer over HTTP to hold them in any script."""
    length, waiting = 0, list[object]([answers])
    while waiting:
        match waiting.pop():
            case str() as text:
                length += len(text)
            case dict() as value:
                waiting += [*value, *value.values()]
                length += 1
            case value:
                waiting += value if isinstance(value, list) else []
                length += 1
        if length > MAX_ANSWERS_CHARACTERS:
            raise refused(f"expected answers of at most {MAX_ANSWERS_CHARACTERS} characters")
    return answers


def storable_answer(answer: object) -> object:
    """The answer, if PostgreSQL's jsonb can hold it; raises PydanticCustomError (a ValueError) if not."""
    waiting = [(answer, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_ANSWER_DEPTH:
            raise refused(f"expected an answer nested at most {MAX_ANSWER_DEPTH} deep")
        match value:
            case str():
                _storable(value)
            case dict():
                waiting += [(item, depth + 1) for pair in value.items() for item in pair]
            case list():
                waiting += [(item, depth + 1) for item in value]
            case bool() | None:
                pass
            case _:
                # A zero is kept as it was written, and PostgreSQL doesn't hold it with any number of zeros.
                if not exact_number(value) and abs(Decimal(str(value)).adjusted()) > MAX_NUMBER_DIGITS:
                    raise refused(f"expected a number of at most {MAX_NUMBER_DIGITS} digits")
    return answer


def _storable(text: str) -> str:
    if detail := unstorable_text(text):
        raise refused(detail)
    return text


def _not_empty(text: str) -> str:
    if not text:
        raise refused("expected a text that is not empty")
    return text


def _listed(value: object) -> object:
    if not isinstance(value, list | tuple):
        raise refused("expected a list")
    return value


def repeated(items: Iterable[str]) -> list[str]:
    """The items that occur more than once, each named once, in order of appearance."""
    return [item for item, times in Counter(items).items() if times > 1]


Number = Annotated[Decimal, BeforeValidator(exact_number)]
Text = Annotated[str, Strict(), AfterValidator(_storable)]
Id = Annotated[Text, AfterValidator(_not_empty)]
Listed = BeforeValidator(_listed)


class Frozen(BaseModel):
    """Base of every model here: immutable, unknown fields ignored, `null` the same as absent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class Choice(Frozen):
    """Something a learner may choose, put in order or match."""

    id: Id
    text: Text


def _distinct_choices(choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    if twice := repeated(choice.id for choice in choices):
        raise refused(f"the choice {twice[0]!r} is listed more than once")
    return choices


Choices = Annotated[tuple[Choice, ...], Listed, AfterValidator(_distinct_choices)]
"""Choices with distinct ids. Where a kind may go without, the empty tuple says that none were given."""


def _some_choices(choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    if not choices:
        raise refused("expected at least one choice")
    return choices


def _check_known(ids: Iterable[str], info: ValidationInfo) -> None:
    """Refuse a key with an id that is not among the choices, provided there are valid choices to compare with."""
    choices = info.data.get("choices")
    if choices and (unknown := sorted(set(ids) - {choice.id for choice in choices})):
        raise refused(f"the key names {unknown[0]!r}, which is none of the choices")


def _key_is_a_choice(correct: str, info: ValidationInfo) -> str:
    _check_known([correct], info)
    return correct


def _key_lists_choices(correct: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    if not correct:
        raise refused("expected at least one choice id")
    if twice := repeated(correct):
        raise refused(f"the key lists {twice[0]!r} more than once")
    _check_known(correct, info)
    return correct


SomeChoices = Annotated[Choices, AfterValidator(_some_choices)]
# The two keys look at the model's `choices`, so that field has to stand before theirs.
KeyId = Annotated[Id, AfterValidator(_key_is_a_choice)]
KeyIds = Annotated[tuple[Id, ...], Listed, AfterValidator(_key_lists_choices)]


class _Question(Frozen):
    question_id: Id
    prompt: Text
    points: Annotated[Number, Field(ge=0, le=Decimal("1e300"))]
    """The most that the question can earn; 0 makes it a question that doesn't count."""

    @cached_property
    def worth(self) -> Fraction:
        """`points` as a fraction."""
        return Fraction(self.points)


class SingleChoiceQuestion(_Question):
    """One of the choices is right."""

    kind: Literal["single_choice"]
    choices: SomeChoices
    correct: KeyId


class TrueFalseQuestion(_Question):
    """A statement to judge. Without `choices` they are "true" and "false"; ids are texts, never JSON booleans."""

    kind: Literal["true_false"]
    choices: SomeChoices = (Choice(id="true", text="True"), Choice(id="false", text="False"))
    correct: KeyId


class MultipleChoiceQuestion(_Question):
    """Any number of the choices, but at least one, is right."""

    kind: Literal["multiple_choice"]
    choices: SomeChoices
    correct: KeyIds
    scoring: Literal["all_or_nothing", "right_minus_wrong", "per_option"] = "all_or_nothing"

    @cached_property
    def key(self) -> frozenset[str]:
        """The right choices."""
        return frozenset(self.correct)

    @cached_property
    def options(self) -> frozenset[str]:
        """The ids of all choices."""
        return frozenset(choice.id for choice in self.choices)


class NumericQuestion(_Question):
    """A number, right within `tolerance`: a distance (`absolute`) or a share of the key's magnitude (`relative`)."""

    kind: Literal["numeric"]
    correct: Number
    tolerance: Annotated[Number, Field(ge=0)] = Decimal(0)
    tolerance_kind: Literal["absolute", "relative"] = "absolute"

    @cached_property
    def bounds(self) -> tuple[Fraction, Fraction]:
        """The least and the greatest right answer."""
        key, distance = Fraction(self.correct), Fraction(self.tolerance)
        if self.tolerance_kind == "relative":
            distance *= abs(key)
        return key - distance, key + distance


def _nfkc(text: str) -> str:
    """`text` normalised to NFKC, in a time that grows with its length alone.

    Python puts marks in their canonical order by insertion, which for a long text of nothing but marks takes minutes. One that
    is in order already, it passes once.
    """
    if len(text) > 100 and not text.isascii():
        parts = {ord(c): unicodedata.normalize("NFKD", c) for c in set(text)}
        marks = "".join({c for part in parts.values() for c in part if unicodedata.combining(c)})
        if marks:
            ordered = partial(sorted, key=unicodedata.combining)
            text = re.sub(f"[{marks}]{{2,}}", lambda run: "".join(ordered(run[0])), text.translate(parts))
    return unicodedata.normalize("NFKC", text)


def fold_text(text: str, *, case_sensitive: bool) -> str:
    """`text` in the form in which text answers are compared: NFKC, white space at the ends dropped and elsewhere one space.

    Unless `case_sensitive`, the case is folded too, and the result normalised once more, since folding can undo it
    (Unicode 16, section 3.13.5, compatibility caseless matching).
    """
    folded = _nfkc(text)
    if not case_sensitive:
        folded = _nfkc(folded.casefold())
    return " ".join(folded.split())


class TextQuestion(_Question):
    """A short text, right if it equals one of the accepted ones after `fold_text`."""

    kind: Literal["text"]
    case_sensitive: StrictBool = False
    correct: Annotated[tuple[Text, ...], Listed]

    @field_validator("correct")
    @classmethod
    def _something_accepted(cls, correct: tuple[str, ...]) -> tuple[str, ...]:
        if not correct:
            raise refused("expected at least one accepted text")
        if any(not fold_text(text, case_sensitive=True) for text in correct):
            raise refused("an accepted text has nothing in it but white space, which counts as no answer")
        return correct

    @cached_property
    def accepted(self) -> frozenset[str]:
        """The accepted texts, folded."""
        return frozenset(fold_text(text, case_sensitive=self.case_sensitive) for text in self.correct)

    @cached_property
    def longest(self) -> int:
        """Of how many characters, beside white space, an answer may be that is right: normalising makes one of four at most."""
        return 4 * max(map(len, self.accepted))


class MatchingQuestion(_Question):
    """Pairs of a left and a right item.

    `choices` may be absent, and the ids are then what the learner sees. Where given, they hold every right item of the key,
    perhaps with others that match nothing, and either every left item too or none of them.
    """

    kind: Literal["matching"]
    choices: Choices = ()
    correct: dict[Id, Id]

    @field_validator("correct")
    @classmethod
    def _key_of_choices(cls, correct: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if not correct:
            raise refused("expected at least one pair")
        _check_known(correct.values(), info)
        if not {choice.id for choice in info.data.get("choices", ())}.isdisjoint(correct):
            _check_known(correct, info)
        return correct


class OrderingQuestion(_Question):
    """Items to be put in order. `choices` may be absent, and the ids are then what the learner sees."""

    kind: Literal["ordering"]
    choices: Choices = ()
    correct: KeyIds
    scoring: Literal["all_or_nothing", "per_position"] = "all_or_nothing"


_MAPPED_OPTIONS = ("lower_bound", "upper_bound", "default")


class MappedQuestion(_Question):
    """Choices that each add or take points: QTI's map_response.

    `correct` maps choice ids to points of any sign, `default` goes for choices that it doesn't map, and the bounds hold for the
    sum. The three may stand beside `correct` or inside it. `points` has to be within reach: more than the best answer earns is
    refused, and where the best answer would earn more, `points` caps it.
    """

    kind: Literal["mapped"]
    choices: Choices = ()
    correct: Annotated[dict[Id, Number], Field(min_length=1)]
    lower_bound: Number | None = None
    upper_bound: Number | None = None
    default: Number = Decimal(0)

    @model_validator(mode="before")
    @classmethod
    def _options_out_of_the_key(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(correct := data.get("correct"), dict):
            return data
        choices = data.get("choices")
        declared = (
            [choice.get("id") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list | tuple) else []
        )
        inside = {name: correct[name] for name in _MAPPED_OPTIONS if name in correct and name not in declared}
        if both := [name for name in inside if name in data]:
            raise refused(f"{both[0]} stands both in correct and beside it")
        return data | inside | {"correct": {name: value for name, value in correct.items() if name not in inside}}

    @field_validator("correct")
    @classmethod
    def _key_of_choices(cls, correct: dict[str, Decimal], info: ValidationInfo) -> dict[str, Decimal]:
        _check_known(correct, info)
        return correct

    @model_validator(mode="after")
    def _points_within_reach(self) -> "MappedQuestion":
        if self.lower_bound is not None and self.upper_bound is not None and self.lower_bound > self.upper_bound:
            raise refused("lower_bound is greater than upper_bound")
        if self.default > 0 and not self.choices:
            # An invented id is unmapped as well, so without a list of choices anything would earn the default.
            raise refused("default is greater than 0, so choices must list what may be chosen")
        values = [self.value_of(choice) for choice in {*self.correct, *self.choice_ids}]
        best = self.bounded(sum((value for value in values if value > 0), Fraction(0)) or max(values))
        if self.worth > max(best, 0):
            raise refused(f"points is {self.points}, but the most that the key lets an answer earn is {max(best, Fraction(0))}")
        return self

    @cached_property
    def choice_ids(self) -> frozenset[str]:
        """The ids of all choices given."""
        return frozenset(choice.id for choice in self.choices)

    @cached_property
    def values(self) -> dict[str, Fraction]:
        """The points that the key gives to each choice it maps."""
        return {choice: Fraction(points) for choice, points in self.correct.items()}

    def value_of(self, choice: str) -> Fraction:
        """What one choice adds to the sum; an id that is none of the choices never adds more than 0."""
        if choice in self.values:
            return self.values[choice]
        default = Fraction(self.default)
        return default if choice in self.choice_ids else min(default, Fraction(0))

    def bounded(self, total: Fraction) -> Fraction:
        """`total` moved within the bounds."""
        if self.lower_bound is not None:
            total = max(total, Fraction(self.lower_bound))
        return total if self.upper_bound is None else min(total, Fraction(self.upper_bound))


Question = Annotated[
    SingleChoiceQuestion
    | TrueFalseQuestion
    | MultipleChoiceQuestion
    | NumericQuestion
    | TextQuestion
    | MatchingQuestion
    | OrderingQuestion
    | MappedQuestion,
    Field(discriminator="kind"),
]


def learner_view(question: Question) -> dict[str, Any]:
    """The question as a learner may see it, in plain JSON types: without its key and whatever would give it away.

    Where the order of items is the key or hints at it (`ordering`, `matching`), they come in an order that is shuffled, but the
    same each time for the same question. Ids stand for missing texts. `matching` has its columns' ids in `left` and `right`.
    """

    def shuffled(ids: Iterable[str]) -> list[str]:
        return sorted(ids, key=lambda item: sha256(f"{question.question_id}\0{item}".encode()).digest())

    def shown(ids: Iterable[str], choices: tuple[Choice, ...]) -> list[dict[str, str]]:
        texts = {choice.id: choice.text for choice in choices}
        return [{"id": item, "text": texts.get(item, item)} for item in ids]

    points = int(question.points) if question.points == int(question.points) else float(question.points)
    view: dict[str, Any] = {
        "question_id": question.question_id,
        "kind": question.kind,
        "prompt": question.prompt,
        "points": points,
    }
    match question:
        case SingleChoiceQuestion() | TrueFalseQuestion():
            view["choices"] = shown((choice.id for choice in question.choices), question.choices)
        case MultipleChoiceQuestion():
            view["choices"] = shown((choice.id for choice in question.choices), question.choices)
            view["scoring"] = question.scoring
        case NumericQuestion() | TextQuestion():
            pass
        case MatchingQuestion():
            given = [choice.id for choice in question.choices]
            # A JSON object has no order, so the left column takes the order of the choices, else that of the ids.
            left = [item for item in given if item in question.correct] or sorted(question.correct)
            right = shuffled({*question.correct.values(), *(item for item in given if item not in question.correct)})
            view |= {"left": left, "right": right}
            if given:
                view["choices"] = shown(shuffled(given), question.choices)
        case OrderingQuestion():
            view["choices"] = shown(shuffled({*question.correct, *(choice.id for choice in question.choices)}), question.choices)
            view["scoring"] = question.scoring
        case MappedQuestion():
            view["choices"] = shown([choice.id for choice in question.choices] or sorted(question.correct), question.choices)
    return view
