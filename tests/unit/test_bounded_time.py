"""What strangers may send takes a time that grows with its length alone. What grew with its square would take minutes here."""

import random
import time
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from shared import http, messages, parsing
from shared.certificate import rules, texts
from shared.errors import Flaw, Invalid, Malformed, ServiceError, pointer
from shared.outbox import _reason, _storable
from shared.quiz import models
from shared.quiz.rules import read_number

MANY = 200_000

ATTACKS: dict[str, Callable[[], Any]] = {
    "marks in the wrong order": lambda: models.fold_text("a" + "\u0315\u0300" * MANY, case_sensitive=False),
    "marks that decompose": lambda: models.fold_text("a" + "\u0f73\u0345\u0316" * MANY, case_sensitive=False),
    "one run of marks after another": lambda: models.fold_text("a" + "\u0345" * MANY + "\u0316" * MANY, case_sensitive=True),
    "U+FDFA": lambda: models.fold_text("\ufdfa" * MANY, case_sensitive=False),
    "jamo": lambda: models.fold_text("\u1100\u1161\u11a8" * MANY, case_sensitive=False),
    "white space": lambda: models.fold_text(" \u3000" * MANY + "x", case_sensitive=False),
    "digits and no number": lambda: read_number("1" * MANY + "x"),
    "digits and points": lambda: read_number("1." * MANY),
    "an endless number": lambda: read_number("0." + "0" * MANY + "1"),
    "signs": lambda: read_number("\u2212" * MANY),
    "an exponent": lambda: read_number("1e999999999"),
    "media types": lambda: http.preferred(",".join(f"a/{n};q=0.5" for n in range(MANY)), ["application/json", "text/html"]),
    "parameters": lambda: http.preferred("text/html" + ";q=1" * MANY, ["application/json", "text/html"]),
    "commas": lambda: http.preferred("," * MANY, ["application/json", "text/html"]),
    "languages": lambda: texts.choose(",".join(f"a{n};q=0.{n}" for n in range(MANY)), "x" * MANY),
    "a uid": lambda: rules.read_uid("- " * MANY),
    "unseen characters": lambda: rules.printable("\u202e \u200b" * MANY),
    "a text that is never closed": lambda: messages._texts('["' + '\\"' * MANY),
    "brackets that are never closed": lambda: messages._texts("[" * MANY),
    "names": lambda: parsing.loads("{" + ",".join(f'"{n}":0' for n in range(MANY)) + "}", names_are_unique=True),
    "a text with an emoji": lambda: parsing.storable("\U0001f393" * MANY),
    "a reason": lambda: _reason(ServiceError("\x00" * MANY)),
    "a body": lambda: _storable("\x00\ud800" * MANY),
    "pointers": lambda: Invalid(*(Flaw(pointer(("a" * 100, n)), "wrong") for n in range(MANY))),
    "deep answers": lambda: models.storable_answers({"q": _deep(MANY)}),
}


def _deep(depth: int) -> Any:
    nested: Any = 1
    for _ in range(depth):
        nested = [nested]
    return nested


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_it_takes_seconds_at_most(attack: str):
    begun = time.process_time()
    ATTACKS[attack]()
    assert time.process_time() - begun < 15


def test_numbers_beyond_measure_are_refused_without_being_written_out():
    begun = time.process_time()
    for text in ("1e999999999", "-1e999999999", "1e-999999999", "1" * MANY, "0." + "1" * MANY, "NaN", "sNaN", "-Infinity"):
        with pytest.raises(ValueError, match="expected a"):
            models.exact_number(Decimal(text))
    assert models.exact_number(Decimal("0e999999999")) == 0
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("depth", [1_000, 10_000, 100_000, 1_000_000])
@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":', '{"a":['])
def test_depth_is_no_danger(depth: int, opening: str):
    closing = "".join({"[": "]", "{": "}"}[c] for c in reversed(opening) if c in "[{")
    try:
        content = parsing.loads(opening * depth + "1" + closing * depth)
    except Malformed:
        return
    # What is read can also be looked at.
    with pytest.raises(ValueError, match="nested"):
        models.storable_answer(content)


def test_long_texts_are_folded_exactly_as_short_ones():
    chance = random.Random(20260131)
    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    pool = [c for c in every if unicodedata.combining(c) or unicodedata.decomposition(c)] + list("abcé \u1100\u1161\u11a8\uac00")
    for _ in range(500):
        text = "".join(chance.choices(pool, k=chance.choice([101, 150, 300])))
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        assert models.fold_text(text, case_sensitive=False) == " ".join(folded.split())


def test_no_answer_is_right_that_is_more_than_four_times_as_long_as_the_key():
    # Else what is never normalised, being that long, might have been right.
    for c in map(chr, range(0x110000)):
        if 0xD800 <= ord(c) <= 0xDFFF or (c == c.casefold() and unicodedata.is_normalized("NFKD", c)):
            continue
        written = " ".join(unicodedata.normalize("NFKD", c).split())
        for text in {c, written, unicodedata.normalize("NFD", c)}:
            for case_sensitive in (True, False):
                folded = models.fold_text(text, case_sensitive=case_sensitive)
                assert len(" ".join(text.split())) <= 4 * len(folded) or not folded
