"""What belongs together: the `traceparent` (W3C Trace Context) of a request or an event, handed on to whatever it causes.

No spans are recorded here, so a traceparent goes on as it came. What comes with none gets that of Lambda's own trace.
"""

import re
import secrets
from contextvars import ContextVar

from shared import settings

# A version to come may have more fields. A comma is none of them: it joins the values of a repeated header.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[^,]*)?")
_XRAY_ROOT = re.compile(r"1-([0-9a-f]{8})-([0-9a-f]{24})")
_XRAY_PARENT = re.compile(r"[0-9a-f]{16}")

_current: ContextVar[str | None] = ContextVar("traceparent", default=None)


def parse(text: object) -> str | None:
    """A traceparent as it is handed on, in version 00; None if it is none: then it is as if there had been nothing."""
    found = _TRACEPARENT.fullmatch(text) if isinstance(text, str) else None
    if not found:
        return None
    version, trace, parent, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None) or not trace.strip("0") or not parent.strip("0"):
        return None
    # Of other versions only the flag `sampled` is known; version 00 has `random-trace-id` as well. Others must not be set.
    return f"00-{trace}-{parent}-{int(flags, 16) & (0b11 if version == '00' else 0b01):02x}"


def begin(traceparent: object) -> None:
    """Begin an invocation: its traceparent is this one, if it is valid, else that of Lambda's trace, else none."""
    _current.set(parse(traceparent) or _of_lambda(settings.xray_trace_header() or ""))


def current() -> str | None:
    """The traceparent of this invocation."""
    return _current.get()


def trace_id(traceparent: str | None) -> str | None:
    """The part of a traceparent that all have in common that belong together."""
    return traceparent and traceparent.split("-")[1]


def xray_header(traceparent: str) -> str:
    """The same in the form that X-Ray knows (https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html)."""
    _, trace, parent, flags = traceparent.split("-")
    return f"Root=1-{trace[:8]}-{trace[8:]};Parent={parent};Sampled={int(flags, 16) & 1}"


def _of_lambda(header: str) -> str | None:
    fields = {name: value for name, _, value in (field.partition("=") for field in header.split(";"))}
    root = _XRAY_ROOT.fullmatch(fields.get("Root", ""))
    if not root:
        return None
    parent = fields.get("Parent", "")
    if not _XRAY_PARENT.fullmatch(parent) or not parent.strip("0"):
        # A traceparent needs one; that nobody knows it does no harm.
        parent = secrets.token_hex(8)
    return parse(f"00-{root[1]}{root[2]}-{parent}-{'01' if fields.get('Sampled') == '1' else '00'}")
