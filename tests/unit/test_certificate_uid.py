"""The certificate uid: one slip is always noticed, and how it is typed does not matter."""

from random import Random

from hypothesis import assume, example, given
from hypothesis import strategies as st

from shared.certificate.rules import ALPHABET, read_uid

PLACES = st.integers(0, 23)


@st.composite
def uids(draw: st.DrawFn) -> str:
    """Any uid, without its hyphens."""
    data = draw(st.lists(st.sampled_from(ALPHABET), min_size=23, max_size=23).map("".join))
    fitting = [data + check for check in ALPHABET if read_uid(data + check)]
    assume(fitting)
    (uid,) = fitting
    return uid


@given(uids(), PLACES, st.sampled_from(ALPHABET))
def test_one_wrong_character_is_noticed_wherever_it_stands(uid: str, place: int, other: str):
    wrong = uid[:place] + other + uid[place + 1 :]
    assert (read_uid(wrong) is None) == (other != uid[place])


@given(uids(), st.integers(0, 22))
@example("0" * 24, 0)
def test_two_neighbours_that_changed_places_are_noticed(uid: str, place: int):
    swapped = uid[:place] + uid[place + 1] + uid[place] + uid[place + 2 :]
    assert (read_uid(swapped) is None) == (swapped != uid)


@given(uids(), PLACES, st.sampled_from(ALPHABET))
def test_one_character_too_few_or_too_many_is_noticed(uid: str, place: int, more: str):
    assert read_uid(uid[:place] + uid[place + 1 :]) is None
    assert read_uid(uid[:place] + more + uid[place:]) is None


@given(uids(), st.randoms(use_true_random=False))
def test_it_is_read_however_it_is_typed(uid: str, chance: Random):
    look_alikes = {"0": "0Oo", "1": "1IiLl"}
    typed = "".join(chance.choice(look_alikes.get(c, c + c.lower())) + chance.choice(["", "", "-", " "]) for c in uid)
    read = read_uid(typed)
    assert read is not None
    assert read.replace("-", "") == uid
