"""The languages in which strangers read a certificate: which one to take, and what it says.

Each language is one file of texts, `texts/<language>.toml`; all have the same keys.
"""

import tomllib
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from shared.parsing import weights

_FOLDER = Path(__file__).parent / "texts"
#: What there are texts in (BCP 47); the first one is taken where nothing else fits.
LANGUAGES = ("en", "de")


def choose(accept_language: str | None, locale: str | None) -> str:
    """Which language to write in: the reader's by the header Accept-Language (RFC 9110), else the learner's, else English.

    A language fits by its primary subtag: "de-AT" gets German.
    """
    asked = weights(accept_language)
    preferred = sorted((tag for tag, weight in asked.items() if weight > 0), key=lambda tag: -asked[tag])
    for tag in [*preferred, locale or ""]:
        language = tag.replace("_", "-").split("-")[0].lower()
        if language in LANGUAGES:
            return language
    return LANGUAGES[0]


@cache
def texts(language: str) -> dict[str, Any]:
    """The texts of a language, by their keys."""
    return tomllib.loads((_FOLDER / f"{language}.toml").read_text())


def date(language: str, moment: datetime) -> str:
    """The day of a moment in UTC, as the language writes it."""
    words = texts(language)["date"]
    return words["form"].format(day=moment.day, month=words["months"][moment.month - 1], year=moment.year)


def number(language: str, value: float) -> str:
    """A number with at most one decimal, rounded down, so that nobody is shown a threshold that was missed."""
    text = f"{int(value * 10) / 10:g}"
    return text.replace(".", texts(language)["decimal_mark"])
