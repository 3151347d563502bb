"""What every edge parses alike: JSON, and the types that HTTP bodies and events share."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Annotated, Any, Never

from pydantic import AfterValidator, AwareDatetime, Field, StringConstraints, WrapValidator

from shared.errors import BeyondLimits, Malformed

#: How far ahead the clock of whoever sent an event may be before its time counts as wrong.
CLOCK_SKEW = timedelta(minutes=5)


class _NoJson(ValueError):
    """What json reads, and is none."""


def _no_constant(name: str) -> Never:
    raise _NoJson(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _NoJson("a name stands twice in one object")
    return content


_loads = partial(json.loads, parse_constant=_no_constant)
_loads_exact = partial(json.loads, parse_constant=_no_constant, parse_float=Decimal)


def loads(text: str, *, exact_numbers: bool = False, names_are_unique: bool = False) -> Any:
    """Parse JSON (RFC 8259, so without NaN and Infinity); numbers with a fraction become Decimal if `exact_numbers`.

    Of a name that stands twice in one object the last value counts, unless `names_are_unique`, as I-JSON (RFC 7493) has it.

    Raises
    ------
    BeyondLimits
        It holds a number of more digits or nests deeper than the interpreter follows.
    Malformed
        The text is no JSON.
    """
    try:
        return (_loads_exact if exact_numbers else _loads)(text, object_pairs_hook=_unique if names_are_unique else None)
    except json.JSONDecodeError as error:
        raise Malformed(f"The body is no JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except _NoJson as error:
        raise Malformed(f"The body is no JSON: {error}.") from None
    except ValueError:
        raise BeyondLimits("The body holds a whole number of more than 4300 digits.") from None
    except InvalidOperation:
        raise BeyondLimits("The body holds a number whose exponent is beyond all measure.") from None
    except RecursionError:
        raise BeyondLimits("The body is nested too deeply.") from None


def storable(value: Any) -> Any:
    """Let a JSON value pass whose texts PostgreSQL can hold: no U+0000, no half of a surrogate pair.

    Raises
    ------
    ValueError
        A text or a name of a field holds one.
    """
    match value:
        case str():
            if "\x00" in value or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)):
                raise ValueError("expected a text without U+0000 and without unpaired surrogates")
        case list():
            for item in value:
                storable(item)
        case dict():
            for name, item in value.items():
                storable(name)
                storable(item)
        case _:
            pass
    return value


def utc(moment: datetime) -> datetime:
    """The same moment in UTC, which is how times leave the service."""
    return moment.astimezone(UTC)


def utc_text(moment: datetime) -> str:
    """The moment as RFC 3339 in UTC, ending in Z."""
    return utc(moment).isoformat().replace("+00:00", "Z")


def taken_as(moment: datetime, now: datetime) -> datetime:
    """The time that an event counts for: its own, or `now` when it claims to be more than five minutes ahead of it."""
    return now if moment > now + CLOCK_SKEW else moment


def weights(header: str | None) -> dict[str, float]:
    """What a header such as Accept asks for, in lower case, each with its weight (RFC 9110, section 12.4.2)."""
    found: dict[str, float] = {}
    for part in (header or "").split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        found[name] = float(quality) if re.fullmatch(r"[01](\.[0-9]{0,9})?", quality) else 0
    return found


_DATE_AND_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ]")


def _in_utc(value: object, parse: Callable[[object], datetime]) -> datetime:
    # Pydantic would take a number for seconds since 1970.
    if not (isinstance(value, str) and _DATE_AND_TIME.match(value)) and not isinstance(value, datetime):
        raise ValueError("expected a time such as 2026-01-31T09:30:00Z")
    try:
        return parse(value).astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time that lies within the years 1 to 9999 in UTC") from None


#: A time with its offset, as an input or as an output.
Time = Annotated[AwareDatetime, WrapValidator(_in_utc)]
#: Any text that can be stored.
Text = Annotated[str, StringConstraints(pattern=r"^[^\u0000]*$")]
#: Why an administrator did something; it is kept and shown.
Reason = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=1000),
    AfterValidator(storable),
    Field(json_schema_extra={"pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"}),
]
#: 0-100, a JSON number.
Percentage = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, strict=True)]
