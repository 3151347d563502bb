"""Traceparents as the W3C has them, and as Lambda and X-Ray write the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import trace

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{PARENT}-01"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
)


@pytest.mark.parametrize(
    ("text", "handed_on"),
    [
        (VALID, VALID),
        (f"00-{TRACE}-{PARENT}-00", f"00-{TRACE}-{PARENT}-00"),
        (f"00-{TRACE}-{PARENT}-03", f"00-{TRACE}-{PARENT}-03"),
        # Flags that version 00 does not know must not be set by whoever hands it on.
        (f"00-{TRACE}-{PARENT}-ff", f"00-{TRACE}-{PARENT}-03"),
        # A later version is taken for what this one knows of it.
        (f"01-{TRACE}-{PARENT}-01", VALID),
        (f"cc-{TRACE}-{PARENT}-ff", VALID),
        (f"01-{TRACE}-{PARENT}-01-what-the-future-will-be-like", VALID),
        (f"01-{TRACE}-{PARENT}-01-", VALID),
        (f"01-{TRACE}-{PARENT}-01.what", None),
        (f"01-{TRACE}-{PARENT}-0", None),
        (f"{VALID}-more", None),
        (f"{VALID}-", None),
        (f"{VALID},{VALID}", None),
        (f"01-{TRACE}-{PARENT}-01-,{VALID}", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"0F-{TRACE}-{PARENT}-01", None),
        (VALID.upper(), None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE[:-1]}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}0-01", None),
        (f" {VALID}", None),
        (f"{VALID}\n", None),
        (VALID.replace("4", "٤"), None),
        ("", None),
        (None, None),
        (0, None),
        ([VALID], None),
    ],
)
def test_what_is_handed_on(text: object, handed_on: str | None):
    assert trace.parse(text) == handed_on


@given(JSON | st.from_regex(r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?\Z"))
def test_whatever_comes_nothing_invalid_goes_on(text: object):
    once = trace.parse(text)
    assert once is None or (trace.parse(once) == once and len(once) == 55)


@pytest.mark.parametrize(
    ("header", "traceparent"),
    [
        (f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={PARENT};Sampled=1", VALID),
        (f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={PARENT};Sampled=1;Lineage=1:a87bd80c:1", VALID),
        (f"Sampled=0;Parent={PARENT};Root=1-{TRACE[:8]}-{TRACE[8:]}", f"00-{TRACE}-{PARENT}-00"),
        (f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={PARENT}", f"00-{TRACE}-{PARENT}-00"),
        (f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={PARENT};Sampled=?", f"00-{TRACE}-{PARENT}-00"),
        (f"Root=1-{'0' * 8}-{'0' * 24};Parent={PARENT};Sampled=1", None),
        (f"Root=2-{TRACE[:8]}-{TRACE[8:]};Parent={PARENT};Sampled=1", None),
        ("Root=;Parent;=;", None),
        ("nonsense", None),
        ("", None),
    ],
)
def test_without_one_it_is_that_of_lambda(monkeypatch: pytest.MonkeyPatch, header: str, traceparent: str | None):
    monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    for nothing in (None, "", "nonsense", f"{VALID},{VALID}"):
        trace.begin(nothing)
        assert trace.current() == traceparent
    other = f"00-{'a' * 32}-{'b' * 16}-00"
    trace.begin(other)
    assert trace.current() == other


@pytest.mark.parametrize("parent", ["", ";Parent=", ";Parent=0000000000000000", ";Parent=53995C3F42CD8AD8"])
def test_lambdas_trace_without_a_parent_still_is_one(monkeypatch: pytest.MonkeyPatch, parent: str):
    monkeypatch.setenv("_X_AMZN_TRACE_ID", f"Root=1-{TRACE[:8]}-{TRACE[8:]}{parent};Sampled=1")
    trace.begin(None)
    current = trace.current()
    assert trace.parse(current) == current
    assert trace.trace_id(current) == TRACE


def test_each_invocation_has_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_X_AMZN_TRACE_ID", f"Root=1-{TRACE[:8]}-{TRACE[8:]};Parent={PARENT};Sampled=1")
    trace.begin(None)
    assert trace.current() == VALID
    monkeypatch.delenv("_X_AMZN_TRACE_ID")
    trace.begin(None)
    assert trace.current() is None


def test_x_ray_reads_what_is_handed_on(monkeypatch: pytest.MonkeyPatch):
    header = trace.xray_header(VALID)
    assert header == "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1"
    monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    trace.begin(None)
    assert trace.current() == VALID
    assert trace.xray_header(f"00-{TRACE}-{PARENT}-02").endswith(";Sampled=0")
