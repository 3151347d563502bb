"""Moodle's GIFT questions: their text parsed, and what was parsed as questions of a quiz.

The format is told in https://docs.moodle.org/en/GIFT_format. Feedback, ids and tags are read over: nothing here is made of them.
"""

import re
from decimal import Decimal
from typing import Any

WHOLE = 100
"""What every converted question is worth, so that Moodle's weights, which are percentages of a question, stand as they are."""


class Unfit(ValueError):
    """None of our kinds asks or grades what the question does; the message says why."""


# While a text is taken apart, an escaped character stands as a noncharacter of Unicode, so that it is no sign of the format.
_ESCAPED = {r"\\": "\\", r"\~": "~", r"\=": "=", r"\#": "#", r"\{": "{", r"\}": "}", r"\:": ":", r"\n": "\n"}
_SHIELDS = {escape: chr(0xFDD0 + n) for n, escape in enumerate(_ESCAPED)}
_RESTORE = {ord(shield): _ESCAPED[escape] for escape, shield in _SHIELDS.items()}

_COMMENT = re.compile(r"^[ \t]*//.*\n?", re.MULTILINE)
_CATEGORY = re.compile(r"^\$CATEGORY:(.*)$", re.MULTILINE)
_TITLE = re.compile(r"\s*::(.*?)::", re.DOTALL)
_FORMAT = re.compile(r"\s*\[(html|markdown|moodle|plain)\]")
_TRUE_FALSE = re.compile(r"\s*(?:(T|TRUE)|F|FALSE)\s*(?:#.*)?", re.DOTALL)
_ANSWER = re.compile(r"(?P<sign>[=~])\s*(?:%(?P<weight>-?[\d.]+)%)?(?P<text>[^=~#]*)(?:#[^=~]*)?")


def parse(source: str) -> list[dict[str, Any]]:
    """The questions of a GIFT file, each with `type`, `title`, `stem` and, as its type asks, `isTrue`, `choices` or `matchPairs`.

    The form is that of GIFT-grammar-PEG.js, so files with an expected parse can check it. `weight` is None where none is written.
    Numbers are `Decimal`. Where words follow the answers, a blank in the stem shows their place.

    Raises
    ------
    ValueError
        The braces of a question don't close.
    """
    shielded = re.sub(r"\\[\\~=#{}:n]", lambda found: _SHIELDS[found[0]], source)
    chunks = re.split(r"\n\s*\n", _CATEGORY.sub(r"\g<0>\n", _COMMENT.sub("", shielded)))
    return [_parsed(chunk.strip()) for chunk in chunks if chunk.strip()]


def _parsed(chunk: str) -> dict[str, Any]:
    if category := _CATEGORY.match(chunk):
        return {"type": "Category", "title": _restored(category[1])}
    title = _TITLE.match(chunk)
    rest = chunk[title.end() :] if title else chunk
    before, opening, rest = rest.partition("{")
    inner, closing, after = rest.rpartition("}")
    if opening and not closing:
        raise ValueError(f"the braces don't close: {_restored(chunk)}")
    stem = _text(f"{before} _____ {after.strip()}" if after.strip() else before, "moodle")
    asked = {"title": _restored(title[1]) if title else None, "stem": stem}
    return asked | (_answers(inner, stem["format"]) if opening else {"type": "Description"})


def _answers(inner: str, form: str) -> dict[str, Any]:
    inner = inner.partition("####")[0].strip()
    if not inner:
        return {"type": "Essay"}
    if judged := _TRUE_FALSE.fullmatch(inner):
        return {"type": "TF", "isTrue": bool(judged[1])}
    answers = list(_ANSWER.finditer(inner))
    if inner.startswith("#"):
        found = [_choice(answer, _number(answer["text"])) for answer in answers]
        return {"type": "Numerical", "choices": found or _number(inner.removeprefix("#").partition("#")[0])}
    if any(answer["sign"] == "~" for answer in answers):
        return {"type": "MC", "choices": [_choice(answer, _text(answer["text"], form)) for answer in answers]}
    if all("->" in answer["text"] for answer in answers):
        return {"type": "Matching", "matchPairs": [_pair(answer["text"], form) for answer in answers]}
    return {"type": "Short", "choices": [_choice(answer, _text(answer["text"], form)) for answer in answers]}


def _choice(answer: re.Match[str], text: dict[str, Any]) -> dict[str, Any]:
    weight = Decimal(answer["weight"]) if answer["weight"] else None
    return {"isCorrect": answer["sign"] == "=", "weight": weight, "text": text}


def _pair(text: str, form: str) -> dict[str, Any]:
    left, _, right = text.partition("->")
    return {"subquestion": _text(left, form), "subanswer": _restored(right)}


def _number(text: str) -> dict[str, Any]:
    if ".." in text:
        low, high = text.split("..")
        return {"type": "high-low", "numberHigh": Decimal(high), "numberLow": Decimal(low)}
    number, colon, distance = text.partition(":")
    found = {"number": Decimal(number)}
    return {"type": "range"} | found | {"range": Decimal(distance)} if colon else {"type": "simple"} | found


def _text(text: str, form: str) -> dict[str, str]:
    """A text with its format; without one of its own it has that of the question."""
    if own := _FORMAT.match(text):
        form, text = own[1], text[own.end() :]
    # Moodle's own format has no line breaks but written ones.
    return {"format": form, "text": _restored(" ".join(text.split()) if form == "moodle" else text)}


def _restored(text: str) -> str:
    return text.strip().translate(_RESTORE)


def convert(question: dict[str, Any], question_id: str) -> dict[str, Any]:
    """What `parse` made of a question as one of our kinds, worth `WHOLE` points.

    A question with several right choices can be worth a hair less: three thirds are 99.99999 % in Moodle.

    Raises
    ------
    Unfit
        None of our kinds does what the question does.
    """
    kinds = {"MC": _choices, "TF": _true_false, "Numerical": _numeric, "Short": _short, "Matching": _matching}
    if question["type"] not in kinds:
        raise Unfit(_NOT_GRADED[question["type"]])
    asked = {"question_id": question_id, "prompt": question["stem"]["text"], "points": WHOLE}
    return asked | kinds[question["type"]](question)


_NOT_GRADED = {
    "Category": "a category asks nothing, it says where questions belong",
    "Description": "a description asks nothing",
    "Essay": "an essay is marked by a person",
}


def _weight(choice: dict[str, Any]) -> Decimal:
    return choice["weight"] if choice["weight"] is not None else Decimal(WHOLE if choice["isCorrect"] else 0)


def _choices(question: dict[str, Any]) -> dict[str, Any]:
    # As in Moodle, an answer with the sign of a right one makes it a question with one answer, else each choice may be ticked.
    choices = [{"id": f"c{n}", "text": choice["text"]["text"]} for n, choice in enumerate(question["choices"], 1)]
    weights = {choice["id"]: _weight(written) for choice, written in zip(choices, question["choices"], strict=True)}
    if any(choice["isCorrect"] for choice in question["choices"]):
        right = [choice for choice, weight in weights.items() if weight == WHOLE]
        if len(right) != 1 or any(weight not in (0, WHOLE) for weight in weights.values()):
            raise Unfit("one choice is to be made, and more than one earns or takes points")
        return {"kind": "single_choice", "choices": choices, "correct": right[0]}
    most = sum(weight for weight in weights.values() if weight > 0)
    # Moodle takes no question whose right choices don't make a whole, to two digits of a fraction.
    if round(most) != WHOLE:
        raise Unfit(f"the right choices add up to {most} %")
    best = min(most, Decimal(WHOLE))
    return {"kind": "mapped", "choices": choices, "correct": weights, "lower_bound": 0, "upper_bound": best, "points": best}


def _true_false(question: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "true_false", "correct": "true" if question["isTrue"] else "false"}


def _accepted(question: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers that earn everything. Those that earn nothing are there for their feedback: whatever isn't listed does too."""
    weights = {_weight(choice) for choice in question["choices"]}
    if weights - {0, WHOLE}:
        raise Unfit("some answers earn a part of the points")
    return [choice["text"] for choice in question["choices"] if _weight(choice)]


def _numeric(question: dict[str, Any]) -> dict[str, Any]:
    accepted = [question["choices"]] if isinstance(question["choices"], dict) else _accepted(question)
    if len(accepted) != 1:
        raise Unfit(f"{len(accepted)} numbers are right")
    (number,) = accepted
    if number["type"] == "high-low":
        low, high = number["numberLow"], number["numberHigh"]
        return {"kind": "numeric", "correct": (low + high) / 2, "tolerance": (high - low) / 2}
    return {"kind": "numeric", "correct": number["number"], "tolerance": number.get("range", 0)}


def _short(question: dict[str, Any]) -> dict[str, Any]:
    accepted = [text["text"] for text in _accepted(question)]
    if any("*" in text for text in accepted):
        raise Unfit("an asterisk stands for any text")
    return {"kind": "text", "correct": accepted}


def _matching(question: dict[str, Any]) -> dict[str, Any]:
    # The same right text is the same answer, and one beside nothing is there to mislead.
    texts = list(dict.fromkeys(pair["subanswer"] for pair in question["matchPairs"]))
    right = {text: f"r{n}" for n, text in enumerate(texts, 1)}
    left = {f"l{n}": pair for n, pair in enumerate(question["matchPairs"], 1) if pair["subquestion"]["text"]}
    choices = [{"id": item, "text": pair["subquestion"]["text"]} for item, pair in left.items()]
    return {
        "kind": "matching",
        "choices": choices + [{"id": item, "text": text} for text, item in right.items()],
        "correct": {item: right[pair["subanswer"]] for item, pair in left.items()},
    }
