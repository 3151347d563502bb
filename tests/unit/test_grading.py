"""Questions, their keys, and grading."""

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from shared.errors import Invalid
from shared.quiz.attempts import AnswersBody
from shared.quiz.models import Question, exact_number, fold_text, learner_view
from shared.quiz.rules import KINDS, check_answers, grade, read_number

QUESTION: TypeAdapter[Question] = TypeAdapter(Question)


def choices(ids: str) -> list[dict[str, str]]:
    return [{"id": choice, "text": f"Option {choice}"} for choice in ids]


def question(kind: str, **fields: Any) -> Question:
    return QUESTION.validate_python({"question_id": "q", "kind": kind, "prompt": "Why?", "points": 10} | fields)


def earned(asked: Question, answer: Any) -> Fraction:
    return grade([asked], {asked.question_id: answer}, Decimal(0)).points_earned


# One valid question of each kind, with an answer that earns everything.
SAMPLES: dict[str, tuple[dict[str, Any], Any]] = {
    "single_choice": ({"choices": choices("abc"), "correct": "b"}, "b"),
    "true_false": ({"correct": "true"}, "true"),
    "multiple_choice": ({"choices": choices("abcde"), "correct": ["a", "b"]}, ["b", "a"]),
    "numeric": ({"correct": 2.5, "tolerance": 0.1}, "2.6"),
    "text": ({"correct": ["Emmy Noether", "Noether"]}, " noether "),
    "matching": ({"correct": {"fr": "paris", "it": "rome"}}, {"it": "rome", "fr": "paris"}),
    "ordering": ({"correct": ["c", "a", "b"]}, ["c", "a", "b"]),
    "mapped": ({"points": 3, "correct": {"a": 1, "b": 2, "c": -1}, "lower_bound": 0}, ["a", "b"]),
}


def sample(kind: str, **changed: Any) -> Question:
    return question(kind, **(SAMPLES[kind][0] | changed))


def test_every_kind_has_a_sample():
    assert SAMPLES.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_right_answer_earns_all_points(kind: str):
    asked = sample(kind)
    result = grade([asked], {"q": SAMPLES[kind][1]}, Decimal(100))
    assert (result.score, result.is_passed, result.points_earned) == (100.0, True, asked.worth)


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("answer", [None, "", [], {}, True, 0.5, ["nothing"], {"no": "thing"}, "nothing", [1], {"a": 1}])
def test_no_answer_and_wrong_answers_earn_nothing(kind: str, answer: Any):
    assert earned(sample(kind), answer) == 0


@pytest.mark.parametrize("kind", SAMPLES)
def test_an_absent_answer_earns_nothing(kind: str):
    assert grade([sample(kind)], {}, Decimal(1)).points_earned == 0


@pytest.mark.parametrize(
    ("scoring", "points"),
    [("all_or_nothing", [10, 0, 0, 0, 0]), ("right_minus_wrong", [10, 5, 0, 5, 0]), ("per_option", [10, 6, 2, 6, 0])],
)
def test_the_three_scorings_of_multiple_choice(scoring: str, points: list[int]):
    asked = sample("multiple_choice", scoring=scoring)
    assert [earned(asked, list(chosen)) for chosen in ("ab", "a", "ac", "abc", "")] == points


@pytest.mark.parametrize("scoring", ["all_or_nothing", "right_minus_wrong", "per_option"])
def test_unknown_choices_count_as_wrong_and_repeated_ones_once(scoring: str):
    asked = sample("multiple_choice", scoring=scoring)
    assert earned(asked, ["a", "b", "unknown"]) == earned(asked, ["a", "b", "c"]) + (2 if scoring == "per_option" else 0)
    assert earned(asked, ["a", "b", "unknown"]) < 10
    assert earned(asked, ["a", "b", "a", "b"]) == 10
    assert earned(asked, ["a", "c", "c"]) == earned(asked, ["a", "c"])


@pytest.mark.parametrize(
    ("key", "options", "right", "wrong"),
    [
        (
            0.3,
            {},
            ["0.3", 0.3, Decimal("0.30"), " 0.3 ", "+.3", "3e-1", "\N{FULLWIDTH DIGIT THREE}e-1"],
            ["0.30000000000000004", 0.1 + 0.2],
        ),
        (0.3, {"tolerance": 0.1}, ["0.2", 0.4], ["0.19999999999999999999", "0.40000000000000000001"]),
        (-200, {"tolerance": 0.01, "tolerance_kind": "relative"}, [-198, -202, "\N{MINUS SIGN}200", "-2E2"], [-197.99, 200]),
        (0, {"tolerance": 1, "tolerance_kind": "relative"}, [0, "-0", "0e999999999"], ["1e-300"]),
        (
            1000,
            {},
            ["1000", "1e3", "\u0661\u0660\u0660\u0660", "1000."],
            ["1,000", "1 000", "1_000", "10\N{SUPERSCRIPT TWO}0", "1000x", "NaN", "."],
        ),
        (12.5, {}, ["12.5", "12.50"], ["12,5", "12,50", "0x0c", "Infinity", "-inf", ""]),
        (
            Decimal("0.1234567890123456789012345678901234567890"),
            {},
            ["0.123456789012345678901234567890123456789"],
            [0.1234567890123456789],
        ),
    ],
)
def test_numbers_are_compared_exactly(key: Any, options: dict[str, Any], right: list[Any], wrong: list[Any]):
    asked = question("numeric", correct=key, **options)
    assert [earned(asked, answer) for answer in right] == [10] * len(right)
    assert [earned(asked, answer) for answer in wrong] == [0] * len(wrong)


@pytest.mark.parametrize(
    "huge",
    [
        "1e999999999",
        "-1e999999999",
        "1e-999999999",
        "1e99999999999999999999999",
        "9" * 401,
        "9" * 1_000_000,
        "9" * 1_000_000 + "x",
        Decimal("1e999999999"),
    ],
)
@pytest.mark.timeout(20)
def test_a_number_beyond_all_sense_does_not_hang_and_earns_nothing(huge: Any):
    assert earned(sample("numeric"), huge) == 0


def test_a_text_is_compared_after_folding():
    asked = question("text", correct=["Straße  nach\u00a0Süden"])
    assert earned(asked, "\u2003STRASSE nach\tsu\u0308den\n") == 10
    assert earned(asked, "Strassenach Süden") == 0
    strict = question("text", correct=["ﬁne Art"], case_sensitive=True)
    assert (earned(strict, "fine  Art"), earned(strict, "fine art")) == (10, 0)


@given(st.text())
def test_folding_a_text_twice_changes_nothing(text: str):
    folded = fold_text(text, case_sensitive=False)
    assert fold_text(folded, case_sensitive=False) == folded


def test_each_right_pair_earns_an_equal_share():
    asked = question("matching", correct={"a": "1", "b": "2", "c": "3"}, points=1)
    assert earned(asked, {"a": "1", "b": "2", "c": "1", "d": "3"}) == Fraction(2, 3)


def test_ordering_counts_all_or_each_position():
    asked = sample("ordering", points=1)
    assert earned(asked, ["c", "b", "a"]) == earned(asked, ["c", "a", "b", "c"]) == earned(asked, ["c", "a"]) == 0
    per_position = sample("ordering", points=1, scoring="per_position")
    assert (
        earned(per_position, ["c", "b", "a"])
        == earned(per_position, ["c"])
        == earned(per_position, ["c", "c", "c"])
        == Fraction(1, 3)
    )


# The sample of map_response in the QTI specification: two atoms of a water molecule right, one wrong, anything else a heavy loss.
MOLECULE: dict[str, Any] = {"points": 2, "correct": {"H": 1, "O": 1, "Cl": -1}, "lower_bound": 0, "upper_bound": 2, "default": -2}


@pytest.mark.parametrize(
    ("answer", "points"),
    [("H O", 2), ("H", 1), ("H O Cl", 1), ("H Cl", 0), ("H O He", 0), ("H H H", 1), ("O H O", 2), ("Cl", 0), ("", 0)],
)
def test_mapped_points_follow_qti(answer: str, points: int):
    assert earned(question("mapped", **MOLECULE), answer.split()) == points


def test_the_bounds_of_mapped_hold_for_the_sum_and_no_answer_is_below_them():
    asked = question("mapped", points=4, correct={"a": 5, "b": 2, "c": -9}, lower_bound=1, upper_bound=4)
    assert [earned(asked, list(answer)) for answer in ("a", "ab", "b", "c", "")] == [4, 4, 2, 1, 0]


def test_the_bounds_of_mapped_may_stand_inside_the_key():
    inside: dict[str, Any] = {name: MOLECULE[name] for name in ("lower_bound", "upper_bound", "default")}
    assert question("mapped", points=2, correct=MOLECULE["correct"] | inside) == question("mapped", **MOLECULE)
    named_so = question(
        "mapped", points=3, choices=[*choices("a"), {"id": "default", "text": "The default"}], correct={"a": 1, "default": 2}
    )
    assert earned(named_so, ["a", "default"]) == 3


def test_mapped_never_pays_for_invented_choices_nor_more_than_its_points():
    asked = question("mapped", points=2, choices=choices("abc"), correct={"a": 1}, default=1)
    assert [earned(asked, answer) for answer in (["x", "y", "z"], ["b"], ["a", "b"], ["a", "b", "c"])] == [0, 1, 2, 2]


def test_the_exact_score_meets_the_threshold_and_not_a_rounded_one():
    thirds = [sample("true_false", question_id=name, points=1) for name in "abc"]
    answers = {"a": "true", "b": "true"}
    passed = [grade(thirds, answers, Decimal(threshold)).is_passed for threshold in ("66.66", "66.67", "66.66666666666666666666")]
    assert passed == [True, False, True]
    # The double nearest to 200/3 is a little more than 200/3, so comparing doubles would pass this one.
    assert not grade(thirds, answers, Decimal(200 / 3)).is_passed
    assert grade(thirds, answers, Decimal(0)).score == 200 / 3
    tenths = [sample("true_false", question_id=str(n), points=0.1) for n in range(10)]
    assert grade(tenths, {str(n): "true" for n in range(7)}, Decimal(70)).is_passed


def test_a_threshold_of_0_is_passed_by_no_answer():
    assert grade([sample("numeric")], {}, Decimal(0)).is_passed


def test_questions_without_points_have_no_score():
    with pytest.raises(ValueError, match="no points"):
        grade([sample("numeric", points=0)], {}, Decimal(0))


def test_the_result_of_each_question_is_exact_json():
    asked = [
        sample("matching", question_id="m", points=1),
        sample("multiple_choice", question_id="c", scoring="per_option", points=2.5),
    ]
    result = grade(asked, {"m": {"fr": "paris"}, "c": ["a"], "other": "x"}, Decimal(50))
    assert json.loads(json.dumps(result.question_results)) == [
        {"question_id": "m", "points_earned": "1/2", "points_possible": "1", "rule": "matching"},
        {"question_id": "c", "points_earned": "3/2", "points_possible": "5/2", "rule": "multiple_choice/per_option"},
    ]
    assert sum(Fraction(part["points_earned"]) for part in result.question_results) == result.points_earned == 2
    assert [part["rule"] for part in grade([sample("numeric"), sample("ordering")], {}, Decimal(0)).question_results] == [
        "numeric/absolute",
        "ordering/all_or_nothing",
    ]


BROKEN: dict[str, list[tuple[dict[str, Any], str, str]]] = {
    "single_choice": [
        ({"correct": "z"}, "correct", "'z', which is none of the choices"),
        ({"correct": None}, "correct", "Field required"),
        ({"correct": ["a"]}, "correct", "valid string"),
        ({"choices": []}, "choices", "at least one choice"),
        ({"choices": "abc"}, "choices", "expected a list"),
        ({"choices": choices("aba")}, "choices", "'a' is listed more than once"),
        ({"choices": [{"id": "", "text": "x"}]}, "id", "not empty"),
        ({"choices": [{"id": "b\0", "text": "x"}]}, "id", "U\\+0000"),
        ({"points": -1}, "points", "greater than or equal to 0"),
        ({"points": "1"}, "points", "expected a number"),
        ({"points": True}, "points", "expected a number"),
        ({"points": float("nan")}, "points", "finite"),
        ({"points": Decimal("1e401")}, "points", "at most 400 digits"),
        ({"prompt": "\ud800"}, "prompt", "U\\+D800"),
        ({"question_id": ""}, "question_id", "not empty"),
    ],
    "true_false": [
        ({"correct": "maybe"}, "correct", "'maybe'"),
        ({"correct": True}, "correct", "valid string"),
        ({"choices": []}, "choices", "one"),
    ],
    "multiple_choice": [
        ({"correct": []}, "correct", "at least one choice id"),
        ({"correct": "a"}, "correct", "expected a list"),
        ({"correct": ["a", "z"]}, "correct", "'z'"),
        ({"correct": ["a", "a"]}, "correct", "'a' more than once"),
        ({"scoring": "generous"}, "scoring", "all_or_nothing"),
    ],
    "numeric": [
        ({"correct": "2.5"}, "correct", "expected a number"),
        ({"correct": float("inf")}, "correct", "finite"),
        ({"correct": Decimal("1e999999999")}, "correct", "at most 400 digits"),
        ({"tolerance": -0.1}, "tolerance", "greater than or equal to 0"),
        ({"tolerance_kind": "vague"}, "tolerance_kind", "relative"),
    ],
    "text": [
        ({"correct": []}, "correct", "at least one accepted text"),
        ({"correct": ["a", " \u3000\n"]}, "correct", "nothing in it but white space"),
        ({"correct": "a"}, "correct", "expected a list"),
        ({"case_sensitive": "no"}, "case_sensitive", "valid boolean"),
    ],
    "matching": [
        ({"correct": {}}, "correct", "at least one pair"),
        ({"correct": ["a"]}, "correct", "valid dictionary"),
        ({"choices": [*choices("ab"), {"id": "fr", "text": "France"}]}, "correct", "'paris'"),
        ({"correct": {"a": "c", "z": "d"}, "choices": choices("abcd")}, "correct", "'z'"),
    ],
    "ordering": [
        ({"correct": []}, "correct", "at least one choice id"),
        ({"correct": ["a", "a"]}, "correct", "'a' more than once"),
        ({"choices": choices("ab")}, "correct", "'c'"),
        ({"scoring": "per_option"}, "scoring", "per_position"),
    ],
    "mapped": [
        ({"correct": {}}, "correct", "at least 1 item"),
        ({"correct": {"a": "1"}}, "a", "expected a number"),
        ({"choices": choices("ab")}, "correct", "'c'"),
        ({"lower_bound": 2, "upper_bound": 1}, "mapped", "lower_bound is greater than upper_bound"),
        ({"points": 4}, "mapped", "points is 4, but the most .* is 3"),
        ({"upper_bound": 2}, "mapped", "the most .* is 2"),
        ({"correct": {"a": -1}, "lower_bound": None}, "mapped", "the most .* is 0"),
        ({"default": 1}, "mapped", "choices must list"),
        ({"correct": {"a": 3, "lower_bound": 0}}, "mapped", "lower_bound stands both"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "changed", "place", "message"), [(kind, *case) for kind, cases in BROKEN.items() for case in cases]
)
def test_a_broken_key_is_refused_with_its_place(kind: str, changed: dict[str, Any], place: str, message: str):
    with pytest.raises(ValidationError, match=message) as caught:
        sample(kind, **changed)
    (error,) = caught.value.errors()
    assert error["loc"][-1] == place


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValidationError, match=r"'essay' found using 'kind'.*'single_choice'"):
        question("essay")


def test_nulls_and_unknown_fields_are_ignored():
    assert sample("numeric", tolerance=None, tolerance_kind=None, units="kg") == sample("numeric", tolerance=0)
    assert sample("true_false", choices=None) == sample("true_false")


def test_a_learner_sees_no_key():
    secrets = {"correct", "tolerance", "tolerance_kind", "case_sensitive", "lower_bound", "upper_bound", "default"}
    for kind in SAMPLES:
        view = learner_view(sample(kind))
        assert not view.keys() & secrets
        assert json.loads(json.dumps(view)) == view
        assert view["points"] == sample(kind).points
    assert learner_view(sample("numeric", points=2.5)) == {"question_id": "q", "kind": "numeric", "prompt": "Why?", "points": 2.5}
    assert learner_view(sample("text")).keys() == {"question_id", "kind", "prompt", "points"}
    assert learner_view(sample("single_choice"))["choices"] == choices("abc")
    assert learner_view(sample("multiple_choice"))["scoring"] == "all_or_nothing"
    assert [choice["id"] for choice in learner_view(sample("true_false"))["choices"]] == ["true", "false"]
    assert learner_view(sample("mapped"))["choices"] == [{"id": choice, "text": choice} for choice in "abc"]


def test_shuffled_items_come_in_the_same_order_each_time():
    shown = learner_view(question("ordering", correct=list("abcdef")))["choices"]
    assert "".join(choice["id"] for choice in shown) == "acebfd"
    shown = learner_view(question("matching", correct=dict(zip("abcdef", "uvwxyz", strict=True))))["right"]
    assert "".join(shown) == "wuxvyz"


@given(st.permutations("abcdef"), st.booleans())
def test_the_order_shown_says_nothing_of_the_right_order(right_order: list[str], with_choices: bool):
    given_choices = choices("".join(right_order)) if with_choices else None
    shown = learner_view(question("ordering", correct=right_order, choices=given_choices))["choices"]
    reference = learner_view(question("ordering", correct=list("abcdef"), choices=choices("abcdef") if with_choices else None))[
        "choices"
    ]
    assert shown == reference


@given(st.permutations("uvwxyz"))
def test_the_columns_shown_say_nothing_of_the_right_pairs(rights: list[str]):
    shown = learner_view(question("matching", correct=dict(zip("abcdef", rights, strict=True)), choices=choices("abcdefuvwxyz?")))
    reference = learner_view(
        question("matching", correct=dict(zip("abcdef", "uvwxyz", strict=True)), choices=choices("abcdefuvwxyz?"))
    )
    assert shown == reference
    assert shown["left"] == list("abcdef")
    assert sorted(shown["right"]) == sorted("uvwxyz?")
    assert {choice["id"]: choice["text"] for choice in shown["choices"]}["?"] == "Option ?"


def test_answers_of_the_right_shape_are_taken_as_they_are():
    asked = [sample(kind, question_id=kind) for kind in SAMPLES]
    answers: dict[str, Any] = {kind: right for kind, (_, right) in SAMPLES.items()} | {
        "single_choice": "no such choice",
        "numeric": "many",
        "text": None,
    }
    assert check_answers(asked, answers, unknown_questions="refuse") is answers
    assert check_answers(asked, {}, unknown_questions="refuse") == {}
    other: Any = {"other": [1, {"a": True}]}
    assert check_answers(asked, other, unknown_questions="ignore") is other


@pytest.mark.parametrize(
    ("answers", "errors"),
    [
        (
            {"single_choice": ["b"], "true_false": True, "text": 3},
            [
                ("/answers/single_choice", "expected a choice id (text)"),
                ("/answers/true_false", "expected a choice id (text)"),
                ("/answers/text", "expected a text"),
            ],
        ),
        ({"multiple_choice": "a"}, [("/answers/multiple_choice", "expected a list of choice ids (texts)")]),
        ({"ordering": [1, 2]}, [("/answers/ordering", "expected a list of choice ids (texts)")]),
        ({"mapped": {"a": 1}}, [("/answers/mapped", "expected a list of choice ids (texts)")]),
        ({"matching": {"fr": 1}}, [("/answers/matching", "expected an object of texts, left to right")]),
        ({"numeric": True}, [("/answers/numeric", "expected a number of at most 400 digits, or its text")]),
        ({"numeric": Decimal("1e999999999")}, [("/answers/numeric", "expected a number of at most 400 digits, or its text")]),
        ({"no/such~one": "a"}, [("/answers/no~1such~0one", "the quiz has no such question")]),
    ],
)
def test_answers_of_the_wrong_shape_are_refused_with_their_places(answers: Any, errors: list[tuple[str, str]]):
    asked = [sample(kind, question_id=kind) for kind in SAMPLES]
    with pytest.raises(Invalid) as caught:
        check_answers(asked, answers, unknown_questions="refuse")
    assert [("/" + flaw.pointer.removeprefix("#/"), flaw.detail) for flaw in caught.value.flaws] == errors


@pytest.mark.parametrize(
    "value", [["\0"], {"a": {"\ud8ff": 1}}, float("nan"), Decimal("1e5000"), json.loads("[" * 2000 + "]" * 2000)]
)
def test_what_can_not_be_stored_is_refused_even_where_unknown_questions_are_ignored(value: Any):
    with pytest.raises(ValidationError, match=r"answers\.other"):
        AnswersBody(answers={"other": value})


def test_written_numbers_are_read_exactly():
    assert read_number(" 12.50\n") == Decimal("12.5")
    assert str(read_number("1e-3")) == "0.001"
    assert read_number("one") is None


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=12)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
)
def test_numbers_keep_their_value_and_equal_ones_have_one_text(number: Decimal | int | float):
    exact = exact_number(number)
    assert exact == (Decimal(repr(number)) if isinstance(number, float) else number)
    assert str(exact_number(Decimal(f"{exact:f}"))) == str(exact)


# Random quizzes over every kind: what holds for each answer to each of them.
POINTS = st.decimals(min_value=0, max_value=50, places=2)
ANY_TEXT = st.text(max_size=3)
SOME_IDS = st.lists(st.sampled_from("abcdexyz"), max_size=9)


@st.composite
def asked_and_answers(draw: st.DrawFn) -> tuple[Question, Any]:
    kind = draw(st.sampled_from(sorted(SAMPLES)))
    key, right = SAMPLES[kind]
    changes: dict[str, Any] = {} if kind == "mapped" else {"points": draw(POINTS)}
    if kind == "multiple_choice":
        changes |= {
            "correct": draw(st.lists(st.sampled_from("abcde"), min_size=1, unique=True)),
            "scoring": draw(st.sampled_from(["all_or_nothing", "right_minus_wrong", "per_option"])),
        }
    if kind == "ordering":
        changes["scoring"] = draw(st.sampled_from(["all_or_nothing", "per_position"]))
    answer = draw(
        st.one_of(
            st.just(right),
            st.none(),
            ANY_TEXT,
            SOME_IDS,
            st.integers(),
            st.floats(),
            st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=3),
        )
    )
    return question(kind, **(key | changes)), answer


def numbered(drawn: list[tuple[Question, Any]]) -> tuple[list[Question], dict[str, Any]]:
    asked = [one.model_copy(update={"question_id": str(n)}) for n, (one, _) in enumerate(drawn)]
    certain = sample("true_false", question_id="certain", points=1)
    return [*asked, certain], {str(n): answer for n, (_, answer) in enumerate(drawn)}


@given(st.lists(asked_and_answers(), max_size=8), st.randoms(use_true_random=False))
def test_the_score_is_a_percentage_and_the_order_of_questions_does_not_matter(drawn: list[tuple[Question, Any]], random: Any):
    asked, answers = numbered(drawn)
    result = grade(asked, answers, Decimal(50))
    assert 0 <= result.score <= 100
    assert all(0 <= Fraction(part["points_earned"]) <= Fraction(part["points_possible"]) for part in result.question_results)
    shuffled = random.sample(asked, len(asked))
    again = grade(shuffled, answers, Decimal(50))
    assert (again.points_earned, again.score, again.is_passed) == (result.points_earned, result.score, result.is_passed)


@given(st.lists(asked_and_answers(), max_size=8))
def test_mending_an_answer_never_lowers_the_score(drawn: list[tuple[Question, Any]]):
    asked, answers = numbered(drawn)
    scores = [grade(asked, answers, Decimal(50)).points_earned]
    for one in asked:
        right = list(one.correct) if one.kind == "multiple_choice" else SAMPLES[one.kind][1]
        answers[one.question_id] = right
        scores.append(grade(asked, answers, Decimal(50)).points_earned)
    assert scores == sorted(scores)
    assert grade(asked, answers, Decimal(100)).is_passed


KEYS = st.lists(st.sampled_from("abcde"), min_size=1, unique=True)
SCORINGS = st.sampled_from(["all_or_nothing", "right_minus_wrong", "per_option"])


@given(KEYS, SCORINGS, st.lists(st.sampled_from("abcdexy"), max_size=9), st.data())
def test_choosing_one_more_right_option_never_lowers_the_points(
    key: list[str], scoring: str, chosen: list[str], data: st.DataObject
):
    asked = sample("multiple_choice", correct=key, scoring=scoring)
    assert earned(asked, [*chosen, data.draw(st.sampled_from(key))]) >= earned(asked, chosen)
    assert earned(asked, data.draw(st.permutations(chosen))) == earned(asked, chosen)


@given(st.lists(st.sampled_from(["H", "O", "Cl", "He"]), max_size=6), st.data())
def test_mapped_choices_may_come_in_any_order(chosen: list[str], data: st.DataObject):
    asked = question("mapped", **MOLECULE)
    assert earned(asked, data.draw(st.permutations(chosen))) == earned(asked, chosen)
    assert earned(asked, [*chosen, "H"]) >= earned(asked, chosen)
