"""The grades that callers are told to expect, computed once more and exactly, sharing no code with the service."""

import unicodedata
from fractions import Fraction
from typing import Any

NOTHING = Fraction(0)


def exact(number: Any) -> Fraction:
    """A JSON number as the decimal that was written."""
    return Fraction(str(number))


def percentage(questions: list[dict[str, Any]], answers: dict[str, Any]) -> Fraction:
    """What share of the points an attempt earned, 0-100."""
    earned = sum((points(question, answers.get(question["question_id"])) for question in questions), NOTHING)
    return 100 * earned / sum((exact(question["points"]) for question in questions), NOTHING)


def points(question: dict[str, Any], answer: Any) -> Fraction:
    """What one answer earns: never less than nothing, and no answer earns nothing."""
    if answer in (None, "", [], {}):
        return NOTHING
    worth, correct, scoring = exact(question["points"]), question["correct"], question.get("scoring") or "all_or_nothing"
    share = NOTHING
    match question["kind"]:
        case "single_choice" | "true_false":
            share = Fraction(answer == correct)
        case "numeric":
            share = Fraction(_is_near(answer, exact(correct), exact(question.get("tolerance") or 0)))
        case "text":
            share = Fraction(_folded(answer) in {_folded(one) for one in correct})
        case "matching":
            share = Fraction(sum(answer.get(left) == right for left, right in correct.items()), len(correct))
        case "ordering" if scoring == "per_position":
            share = Fraction(sum(a == b for a, b in zip(answer, correct, strict=False)), len(correct))
        case "ordering":
            share = Fraction(answer == correct)
        case "multiple_choice":
            share = _of_choices(set(answer), set(correct), {choice["id"] for choice in question["choices"]}, scoring)
        case "mapped":
            value = sum((exact(correct.get(one, question.get("default") or 0)) for one in set(answer)), NOTHING)
            lower, upper = question.get("lower_bound"), question.get("upper_bound")
            value = value if lower is None else max(value, exact(lower))
            value = value if upper is None else min(value, exact(upper))
            return max(value, NOTHING)
        case kind:
            raise ValueError(kind)
    return worth * max(share, NOTHING)


def _of_choices(chosen: set[str], right: set[str], options: set[str], scoring: str) -> Fraction:
    if scoring == "all_or_nothing":
        return Fraction(chosen == right)
    if scoring == "right_minus_wrong":
        return Fraction(len(chosen & right) - len(chosen - right), len(right))
    handled_rightly = sum((option in chosen) == (option in right) for option in options)
    return Fraction(2 * handled_rightly - len(options), len(options))


def _is_near(answer: Any, correct: Fraction, tolerance: Fraction) -> bool:
    try:
        return abs(exact(answer) - correct) <= tolerance
    except ValueError:
        return False


def _folded(answer: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
