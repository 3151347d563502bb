"""GIFT files of a published grammar are parsed as it says, and what fits our kinds is graded by Moodle's weights."""

import json
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from shared.quiz.models import Question
from shared.quiz.rules import grade
from tests.convert import gift

FILES = sorted((Path(__file__).parent.parent / "data/gift").glob("*.gift"))
QUESTION: TypeAdapter[Question] = TypeAdapter(Question)

# What the parser reads over, and whether words follow the answers, which the blank in the stem shows.
UNUSED = {"id", "tags", "feedback", "globalFeedback", "trueFeedback", "falseFeedback", "hasEmbeddedAnswers"}


def used(value: Any) -> Any:
    """The expected parse without what is unused."""
    if isinstance(value, list):
        return [used(item) for item in value]
    return {name: used(item) for name, item in value.items() if name not in UNUSED} if isinstance(value, dict) else value


def expected(path: Path) -> list[dict[str, Any]]:
    return used(json.loads(path.with_suffix(".json").read_text("utf-8"), parse_float=Decimal))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_parsed_as_the_grammar_says(path: Path):
    assert gift.parse(path.read_text("utf-8")) == expected(path)


def test_feedback_alone_makes_no_answers():
    (question,) = gift.parse("Who's buried in Grant's tomb? {####Nobody knows\\: = and ~ are only letters here.}")
    assert question["type"] == "Essay"


def test_a_category_needs_no_blank_line_and_braces_have_to_close():
    category, question = gift.parse("$CATEGORY: Tombs\nIs it Grant's?{F}")
    assert (category["title"], question["stem"]["text"], question["isTrue"]) == ("Tombs", "Is it Grant's?", False)
    with pytest.raises(ValueError, match="don't close: Is it"):
        gift.parse("Is it Grant's?{F")


def weight(choice: dict[str, Any]) -> Fraction:
    written = choice["weight"]
    return Fraction(written if written is not None else 100 if choice["isCorrect"] else 0)


def limits(number: dict[str, Any]) -> tuple[Decimal, Decimal]:
    if number["type"] == "high-low":
        return Decimal(number["numberLow"]), Decimal(number["numberHigh"])
    return number["number"] - Decimal(number.get("range", 0)), number["number"] + Decimal(number.get("range", 0))


def answers(parsed: dict[str, Any], ids: dict[str, str]) -> Iterator[tuple[Any, Fraction]]:
    """Answers to a question with the percentage that Moodle gives for them; `ids` are the choices' by their texts."""
    whole = Fraction(100)
    match parsed["type"]:
        case "TF":
            yield from (("true", whole * parsed["isTrue"]), ("false", whole * (not parsed["isTrue"])))
        case "Short":
            for choice in parsed["choices"]:
                yield choice["text"]["text"], weight(choice)
                yield f"  {choice['text']['text'].upper()} ", weight(choice)
            yield "something else", Fraction(0)
        case "Numerical" if isinstance(parsed["choices"], dict):
            low, high = limits(parsed["choices"])
            yield from ((str(number), whole) for number in (low, (low + high) / 2, high))
            yield from ((str(number), Fraction(0)) for number in (low - Decimal("0.0001"), high + Decimal("0.0001")))
        case "Numerical":
            yield from ((str(limit), weight(choice)) for choice in parsed["choices"] for limit in limits(choice["text"]))
        case "Matching":
            pairs = {ids[pair["subquestion"]["text"]]: ids[pair["subanswer"]] for pair in parsed["matchPairs"][:-1]}
            (misleading,) = [ids[pair["subanswer"]] for pair in parsed["matchPairs"] if not pair["subquestion"]["text"]]
            for n in range(len(pairs) + 1):
                right = dict(list(pairs.items())[:n])
                yield right, whole * n / len(pairs)
                yield dict.fromkeys(pairs, misleading) | right, whole * n / len(pairs)
        case _ if any(choice["isCorrect"] for choice in parsed["choices"]):
            yield from ((ids[choice["text"]["text"]], weight(choice)) for choice in parsed["choices"])
        case _:
            for size in range(len(parsed["choices"]) + 1):
                for chosen in combinations(parsed["choices"], size):
                    yield (
                        [ids[choice["text"]["text"]] for choice in chosen],
                        max(sum(map(weight, chosen), Fraction(0)), Fraction(0)),
                    )


def converted() -> Iterator[tuple[dict[str, Any], Question]]:
    """The questions that fit, as the grammar says and as ours."""
    for path in FILES:
        for parsed in expected(path):
            try:
                yield parsed, QUESTION.validate_python(gift.convert(parsed, "q"))
            except gift.Unfit:
                continue


def test_an_answer_earns_what_its_weight_says():
    graded: Counter[str] = Counter()
    for parsed, question in converted():
        ids = {choice.text: choice.id for choice in getattr(question, "choices", ())}
        given = list(answers(parsed, ids))
        for answer, percentage in given:
            earned = grade([question], {"q": answer}, Decimal(50)).points_earned
            assert earned == percentage, (question, answer)
        # Nothing less than everything is to be had, and the best answer has it, thirds that make 99.99999 % included.
        assert max(percentage for _, percentage in given) == question.worth
        assert round(question.worth) == gift.WHOLE
        graded[question.kind] += len(given)
    assert graded == {"single_choice": 26, "mapped": 48, "true_false": 16, "numeric": 46, "text": 21, "matching": 10}


def test_how_many_questions_fit_and_why_the_others_do_not():
    kinds: Counter[str] = Counter()
    reasons: dict[str, list[str]] = {}
    for path in FILES:
        for n, parsed in enumerate(gift.parse(path.read_text("utf-8")), 1):
            try:
                kinds[gift.convert(parsed, "q")["kind"]] += 1
            except gift.Unfit as unfit:
                reasons.setdefault(str(unfit), []).append(f"{path.stem} {n}")
    assert len(FILES) == 26
    assert kinds == {"single_choice": 8, "mapped": 2, "true_false": 8, "numeric": 9, "text": 5, "matching": 1}
    assert reasons == {
        "a category asks nothing, it says where questions belong": ["categorySpecialCharacter 1"],
        "a description asks nothing": [
            "descriptionTitleEscapedColon 1",
            "markdown 1",
            "markdown 2",
            "markdown 3",
            "markdown 4",
        ],
        "an essay is marked by a person": ["tag_id_and_two_tags 1", "totara_moodle_backslash 1", "totara_moodle_pre_content 1"],
        "some answers earn a part of the points": ["numerical1 9", "totara_moodle_shortanswer_general_feedback 1"],
    }


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("Who? {=Grant ~%50%Lee ~Jefferson}", "one choice is to be made, and more than one earns or takes points"),
        ("Who? {=Grant ~%-50%Lee}", "one choice is to be made, and more than one earns or takes points"),
        ("Who? {=Grant =Lee ~Jefferson}", "one choice is to be made, and more than one earns or takes points"),
        ("Which? {~%50%Africa ~%20%Asia ~China}", "the right choices add up to 70 %"),
        ("When? {# =1822 =1885}", "2 numbers are right"),
        ("Who? {=Grant =%50%Lee}", "some answers earn a part of the points"),
        ("Who? {=*Grant*}", "an asterisk stands for any text"),
    ],
)
def test_what_our_kinds_do_not_do_is_not_bent_to_fit(question: str, reason: str):
    (parsed,) = gift.parse(question)
    with pytest.raises(gift.Unfit) as unfit:
        gift.convert(parsed, "q")
    assert str(unfit.value) == reason
