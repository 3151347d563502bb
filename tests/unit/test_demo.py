"""How the demo packs events into messages."""

import json
from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from local.demo import EVENTS_PER_MESSAGE, arrays, twice_shuffled


@given(st.lists(st.integers(0, 10**30).map(str), max_size=50), st.integers(40, 400))
def test_arrays_hold_all_events_in_order_and_fit_into_a_message(events: list[str], most_bytes: int):
    packed = list(arrays(events, most_bytes))
    assert [event for body, _ in packed for event in json.loads(body)] == [int(event) for event in events]
    for body, count in packed:
        assert len(body) <= most_bytes
        assert count == len(json.loads(body)) > 0
    # No array is closed before it is full.
    for (body, _), (following, _) in pairwise(packed):
        assert len(body) + 1 + len(str(json.loads(following)[0])) > most_bytes


def test_an_array_holds_no_more_events_than_the_service_takes():
    assert [count for _, count in arrays(["1"] * (2 * EVENTS_PER_MESSAGE + 3), 10**6)] == [
        EVENTS_PER_MESSAGE,
        EVENTS_PER_MESSAGE,
        3,
    ]


def test_shuffling_doubles_everything_and_depends_on_the_seed_alone():
    items = list(range(1000))
    shuffled = list(twice_shuffled(items, 7))
    assert Counter(shuffled) == dict.fromkeys(items, 2)
    assert shuffled != items * 2
    assert shuffled == list(twice_shuffled(items, 7)) != list(twice_shuffled(items, 8))
