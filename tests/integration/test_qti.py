"""QTI items give the SCOREs through the quiz worker that their authors expect, as far as they fit our kinds of question."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import simplejson
from pydantic import TypeAdapter

from shared.quiz.models import Question
from shared.quiz.rules import grade
from tests.convert import qti
from tests.convert.qti_questions import Quiz, Unfit, convert
from tests.support.service import Service

FIT = {
    "choice_match_correct": "single_choice",
    "mapResponse_bounds_default_duplicates": "mapped",
    "mapResponse_mapEntry_caseSensitive_override": "text in 2 steps",
    "mapping_bounds_upperLower": "single_choice",
    "member_multiple": "mapped",
    "ordered_match": "ordering",
    "outcomeProcessing_outcomeCondition_equal": "single_choice",
    "outcome_numeric_default_zero_accumulating": "2 single_choice",
    "qti22_advanced_q10_hotspot": "single_choice",
    "qti22_advanced_q12_inline_choice": "2 single_choice",
    "qti22_advanced_q6_gap_match": "mapped",
    "qti22_basic_i9b_map_response": "mapped",
    "responseProcessing_lookupTable_matchTable": "numeric in 2 steps",
    "responseProcessing_mapResponse_directedPair_whitespace": "matching",
    "responseProcessing_patternMatch_caseSensitive": "text in 2 steps",
    "responseProcessing_setResponseValue_setDefaultValue": "mapped",
    "responseProcessing_template_map_response": "mapped",
    "responseProcessing_template_match_correct_two_responses": "single_choice",
}
WHERE = "the points depend on where a point lies"
UNFIT = {
    "baseTypes_all": "it has no SCORE, only 13 other outcomes",
    "isNull_isNotNull": "giving no answer earns 1",
    "outcomeProcessing_exitTest": "SCORE is 1 whatever the response is",
    "outcomeProcessing_outcomeMaximum": "outcomeMaximum is about the items of a test, not about a response",
    "outcomeProcessing_outcomeProcessingFragment": "SCORE is 1 whatever the response is",
    "positionObject_coordinateSystem_aspectRatio": WHERE,
    "positionObject_mapResponse_wrong": "mapResponse is used for points, for which QTI doesn't define it",
    "qti22_basic_q20": "it has no SCORE, only ECHO",
    "qti22_basic_q2_multiple": "it has no SCORE, only ECHO",
    "qti22_basic_q4_order_interaction": "it has no SCORE, only ECHO",
    "responseProcessing_anyN": "no kind of question has such points as 1 for A + B, 0 for A, 0 for A + B + C",
    "responseProcessing_arithmetic_nulls": "SCORE is 2 whatever the response is",
    "responseProcessing_boolean_compare_ops": (
        "the numbers that earn 2 are no single range: 11 is none of them, but numbers on both sides of it are"
    ),
    "responseProcessing_customOperator": "customOperator means what its maker says, not what QTI says",
    "responseProcessing_deleteValue_repeat": "it has no SCORE, only CLEAN_SIZE, REPEAT_SCALAR_SIZE, REPEAT_CONTAINER_SIZE",
    "responseProcessing_inside_duration_statsOperator": "it has no SCORE, only 10 other outcomes",
    "responseProcessing_mapResponsePoint_basic": WHERE,
    "responseProcessing_mathOperator_integerUtils": "SCORE is 0 whatever the response is",
    "responseProcessing_math_max_min_round_truncate": "the points are calculated from the number given (max)",
    "responseProcessing_preCondition": "it has no SCORE, only 4 other outcomes",
    "responseProcessing_record_fieldValue": "it has no SCORE, only OUT_X, OUT_Y",
    "responseProcessing_responseProcessingFragment": "SCORE is 1 whatever the response is",
    "responseProcessing_template_map_response_point": WHERE,
    "responseProcessing_template_match_nothing": "the response processing template 'match_nothing' is none of QTI's",
    "templateProcessing_exitTemplate": "SCORE is 1 whatever the response is",
    "templateProcessing_templateCondition_branching": "SCORE is 60 whatever the response is",
    "templateProcessing_templateConstraint": "a number (randomInteger) is drawn anew for each attempt",
    "template_randomInteger_printedVariable": "SCORE is 0 whatever the response is",
}


def test_every_case_that_fits_earns_its_score(service: Service, root: Path):
    results = qti.run(service, root / "tests/data/qti")
    fit = [result for result in results if result.fits]
    assert {result.item: result.kinds for result in fit} == FIT
    assert {result.item: result.reason for result in results if not result.fits} == UNFIT
    assert (len(results), len(fit), sum(result.agrees for result in fit)) == (134, 69, 67)
    # QTI counts a value given twice once, and gives nothing for no response.
    assert {(result.item, result.case): result.earned for result in fit if not result.agrees} == {
        ("mapResponse_bounds_default_duplicates", "empty selection clamps to lowerBound"): 0,
        ("mapResponse_bounds_default_duplicates", "duplicate responses are counted (and then clamped)"): 10,
    }
    assert [result for result in results if result.at_fault] == []


# Items of which tests/data/qti has none


def item(declarations: str, processing: str, body: str = "") -> str:
    return (
        '<assessmentItem xmlns="http://www.imsglobal.org/xsd/imsqti_v2p1" identifier="i" adaptive="false">'
        f'{declarations}<outcomeDeclaration identifier="SCORE" cardinality="single" baseType="float"/>'
        f"<itemBody>{body}</itemBody><responseProcessing>{processing}</responseProcessing></assessmentItem>"
    )


def response(name: str, base_type: str, *correct: str, cardinality: str = "single", mapping: str = "") -> str:
    values = "".join(f"<value>{value}</value>" for value in correct)
    return (
        f'<responseDeclaration identifier="{name}" cardinality="{cardinality}" baseType="{base_type}">'
        f"<correctResponse>{values}</correctResponse>{mapping}</responseDeclaration>"
    )


def scored(condition: str, points: str = "1", otherwise: str = "") -> str:
    def score(figure: str) -> str:
        return f'<setOutcomeValue identifier="SCORE"><baseValue baseType="float">{figure}</baseValue></setOutcomeValue>'

    last = f"<responseElse>{score(otherwise)}</responseElse>" if otherwise else ""
    return f"<responseCondition><responseIf>{condition}{score(points)}</responseIf>{last}</responseCondition>"


def added(condition: str, points: str) -> str:
    total = f'<sum><variable identifier="SCORE"/><baseValue baseType="float">{points}</baseValue></sum>'
    return (
        f'<responseCondition><responseIf>{condition}<setOutcomeValue identifier="SCORE">{total}</setOutcomeValue></responseIf>'
        "</responseCondition>"
    )


def variable(name: str = "R") -> str:
    return f'<variable identifier="{name}"/>'


def right(name: str = "R") -> str:
    return f'<match>{variable(name)}<correct identifier="{name}"/></match>'


def base(value: object, base_type: str = "identifier") -> str:
    return f'<baseValue baseType="{base_type}">{value}</baseValue>'


def choices(*names: str, tag: str = "choiceInteraction") -> str:
    inner = "".join(f'<simpleChoice identifier="{name}">{name}</simpleChoice>' for name in names)
    return f'<{tag} responseIdentifier="R">{inner}</{tag}>'


MAP = '<setOutcomeValue identifier="SCORE"><mapResponse identifier="R"/></setOutcomeValue>'


def mapping(entries: dict[str, object], attributes: str = 'defaultValue="0"') -> str:
    inner = "".join(f'<mapEntry mapKey="{key}" mappedValue="{value}"/>' for key, value in entries.items())
    return f"<mapping {attributes}>{inner}</mapping>"


CONVERTED: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "several right choices, all or nothing": (
        item(response("R", "identifier", "A", "C", cardinality="multiple"), scored(right()), choices("A", "B", "C")),
        [{"kind": "multiple_choice", "correct": ["A", "C"], "scoring": "all_or_nothing", "points": 1}],
    ),
    "right minus wrong, as a mapping": (
        item(
            response(
                "R", "identifier", cardinality="multiple", mapping=mapping({"A": 1, "C": 1}, 'defaultValue="-1" lowerBound="0"')
            ),
            MAP,
            choices("A", "B", "C"),
        ),
        [{"kind": "multiple_choice", "correct": ["A", "C"], "scoring": "right_minus_wrong", "points": 2}],
    ),
    "points written out choice by choice": (
        item(
            response("R", "identifier", cardinality="multiple"),
            "".join(
                added(f"<member>{base(name)}{variable()}</member>", points)
                for name, points in (("A", "2"), ("B", "0.5"), ("C", "-1"))
            ),
            choices("A", "B", "C", "D"),
        ),
        [{"kind": "mapped", "correct": {"A": 2, "B": Decimal("0.5"), "C": -1, "D": 0}, "points": Decimal("2.5")}],
    ),
    "either of two choices": (
        item(
            response("R", "identifier"),
            scored("<or>" + "".join(f"<match>{variable()}{base(name)}</match>" for name in "AB") + "</or>"),
        ),
        [{"kind": "mapped", "correct": {"A": 1, "B": 1}, "points": 1}],
    ),
    "true or false": (
        item(response("R", "boolean", "true"), scored(right(), "3")),
        [{"kind": "true_false", "correct": "true", "points": 3}],
    ),
    "an order, position by position": (
        item(
            response("R", "identifier", cardinality="ordered"),
            "".join(
                added(f'<match><index n="{n}">{variable()}</index>{base(name)}</match>', "1") for n, name in enumerate("BCA", 1)
            ),
            choices("A", "B", "C", tag="orderInteraction"),
        ),
        [{"kind": "ordering", "correct": ["B", "C", "A"], "scoring": "per_position", "points": 3}],
    ),
    "pairs of equal worth": (
        item(
            response("R", "directedPair", cardinality="multiple", mapping=mapping({"x  g1": 2, "y g2": 2})),
            MAP,
            '<gapMatchInteraction responseIdentifier="R"><gapText identifier="x"/><gapText identifier="y"/>'
            '<gap identifier="g1"/><gap identifier="g2"/></gapMatchInteraction>',
        ),
        [{"kind": "matching", "correct": {"g1": "x", "g2": "y"}, "points": 4}],
    ),
    "pairs that only count together": (
        item(
            response("R", "pair", "B A", cardinality="multiple"),
            scored(right()),
            '<associateInteraction responseIdentifier="R"><simpleAssociableChoice identifier="A"/>'
            '<simpleAssociableChoice identifier="B"/><simpleAssociableChoice identifier="C"/></associateInteraction>',
        ),
        [{"kind": "multiple_choice", "correct": ["A B"], "scoring": "all_or_nothing", "points": 1}],
    ),
    "two responses that only count together": (
        item(
            response("R", "identifier", "A") + response("Q", "identifier", "B"),
            scored(f"<and>{right()}{right('Q')}</and>", otherwise="0"),
            choices("A", "B"),
        ),
        [{"kind": "multiple_choice", "correct": ["R: A", "Q: B"], "scoring": "all_or_nothing", "points": 1}],
    ),
    "a text, an integer and a choice, added up": (
        item(
            response("R", "string", "York") + response("Q", "integer", "42") + response("P", "identifier", "A"),
            added(right(), "1") + added(right("Q"), "2") + added(right("P"), "0.5"),
        ),
        [
            {"kind": "text", "correct": ["York"], "case_sensitive": True, "points": 1},
            {"kind": "numeric", "correct": 42, "tolerance": 0, "points": 2},
            {"kind": "single_choice", "correct": "A", "points": Decimal("0.5")},
        ],
    ),
    "texts of different worth, in whatever case": (
        item(
            response("R", "string", mapping=mapping({"York": 2, "Lancaster": 1}, 'defaultValue="0" caseSensitive="false"')), MAP
        ),
        [{"kind": "text", "correct": ["York", "Lancaster"], "points": 1}, {"kind": "text", "correct": ["York"], "points": 1}],
    ),
    "a pattern that is one text": (
        item(
            response("R", "string"),
            scored(f'<patternMatch caseSensitive="false">{variable()}{base("3\\.5 m", "string")}</patternMatch>'),
        ),
        [{"kind": "text", "correct": ["3.5 m"], "points": 1}],
    ),
    "an absolute tolerance": (
        item(
            response("R", "float"),
            scored(f'<equal toleranceMode="absolute" tolerance="0.1 0.3">{variable()}{base("2", "float")}</equal>'),
        ),
        [{"kind": "numeric", "correct": Decimal("1.9"), "tolerance": Decimal("0.2"), "points": 1}],
    ),
    "a relative tolerance around the key": (
        item(
            response("R", "float", "-50"),
            scored(f'<equal toleranceMode="relative" tolerance="10">{base("-50", "float")}{variable()}</equal>'),
        ),
        [{"kind": "numeric", "correct": -50, "tolerance": 5, "points": 1}],
    ),
    "any choice but one": (
        item(
            response("R", "identifier"),
            scored(f"<and><isNotNull>{variable()}</isNotNull><not><match>{variable()}{base('B')}</match></not></and>"),
            choices("A", "B", "C", "D"),
        ),
        [{"kind": "mapped", "correct": {"A": 1, "B": 0, "C": 1, "D": 1}, "points": 1}],
    ),
    "two ranges, one within the other": (
        item(
            response("R", "integer"),
            added(f"<and><gt>{variable()}{base(10, 'integer')}</gt><lt>{variable()}{base(20, 'integer')}</lt></and>", "1")
            + added(f"<match>{variable()}{base(15, 'integer')}</match>", "2"),
        ),
        [
            {"kind": "numeric", "correct": 15, "tolerance": 4, "points": 1},
            {"kind": "numeric", "correct": 15, "tolerance": 0, "points": 2},
        ],
    ),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_processing_that_is_written_out_is_understood(name: str):
    xml, expected = CONVERTED[name]
    questions = convert(xml).questions
    assert [
        {field: question.get(field) for field in known} for question, known in zip(questions, expected, strict=True)
    ] == expected


REASONS = {
    "any text earns points": item(response("R", "string"), scored(f"<isNotNull>{variable()}</isNotNull>")),
    "a part of the text is enough": item(
        response("R", "string"),
        scored(f'<stringMatch caseSensitive="true" substring="true">{variable()}{base("ab", "string")}</stringMatch>'),
    ),
    "the right texts are those of a pattern ([0-9]+)": item(
        response("R", "string"), scored(f"<patternMatch>{variable()}{base('[0-9]+', 'string')}</patternMatch>")
    ),
    "'a b' differs from another text by white space or by how a letter is encoded, which text questions ignore": item(
        response("R", "string", "a  b"), scored(right()) + scored(f"<match>{variable()}{base('a b', 'string')}</match>", "0")
    ),
    "the range of right numbers leaves out its own bound, which a tolerance always includes": item(
        response("R", "float"), scored(f"<gt>{variable()}{base(10, 'float')}</gt>")
    ),
    "the points depend on R and Q together": item(
        response("R", "string", "a") + response("Q", "string", "b"), scored(f"<and>{right()}{right('Q')}</and>")
    ),
    "no kind of question has such points as 1 for A + B, 0 for A, 1 for A + B + C": item(
        response("R", "identifier", cardinality="multiple"),
        scored(f"<contains>{variable()}<multiple>{base('A')}{base('B')}</multiple></contains>"),
        choices("A", "B", "C"),
    ),
    "a choice that the item doesn't list earns points": item(
        response("R", "identifier"), scored(f"<not><match>{variable()}{base('B')}</match></not>")
    ),
    "no kind of question has such points of R and Q together as 1 for R: A + Q: A, 0 for Q: A": item(
        response("R", "identifier") + response("Q", "identifier"),
        scored(f"<match>{variable()}{variable('Q')}</match>"),
        choices("A", "B", "C") + choices("A", "B", "C").replace('"R"', '"Q"'),
    ),
    "two typed responses are compared with one another": item(
        response("R", "string") + response("Q", "string"), scored(f"<match>{variable()}{variable('Q')}</match>")
    ),
    "R can only lose points": item(response("R", "identifier", "A"), scored(right(), "-1")),
    "it depends on numAttempts, which answers don't tell": item(
        response("R", "identifier", "A"), scored(f"<lt>{variable('numAttempts')}{base(2, 'integer')}</lt>")
    ),
    "the rule <setColour> is not understood": item(response("R", "identifier", "A"), '<setColour identifier="R"/>'),
    "1/3 can't be written as a decimal number": item(
        response("R", "identifier", "A"),
        f'<responseCondition><responseIf>{right()}<setOutcomeValue identifier="SCORE"><divide>{base(1, "integer")}'
        f"{base(3, 'integer')}</divide></setOutcomeValue></responseIf></responseCondition>",
    ),
    "it is no assessment item, but <assessmentTest>": "<assessmentTest/>",
    "it is no XML: no element found: line 1, column 0": "",
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_does_not_fit_is_refused_with_its_reason(reason: str):
    with pytest.raises(Unfit) as refused:
        convert(REASONS[reason])
    assert str(refused.value) == reason


def test_a_case_that_goes_below_0_does_not_fit_and_the_others_do(service: Service, tmp_path: Path):
    xml = item(
        response("R", "identifier", mapping=mapping({"A": 1, "B": -1})) + response("Q", "identifier", "A"),
        MAP + added(right("Q"), "1"),
        choices("A", "B"),
    )
    cases = {("A", "A"): 2, ("B", "A"): 0, ("B", None): -1, (None, "A"): 1}
    folder = written(tmp_path, {"below": (xml, {f"{r}{q}": ({"R": r, "Q": q}, score) for (r, q), score in cases.items()})})
    results = {result.case: (result.earned, result.reason) for result in qti.run(service, folder)}
    assert results == {
        "AA": (2, ""),
        "BA": (None, "R takes 1 off the others, and no question earns less than 0"),
        "BNone": (None, "SCORE is -1, and no question earns less than 0"),
        "NoneA": (1, ""),
    }


def test_what_the_service_refuses_does_not_fit(service: Service, tmp_path: Path):
    nameless = item(response("", "identifier", "A"), scored(right("")))
    long = item(response("R", "integer", "1"), scored(right()))
    folder = written(
        tmp_path,
        {"long": (long, {"far": ({"R": 10**500}, 0), "near": ({"R": 1}, 1)}), "nameless": (nameless, {"any": ({"": "A"}, 1)})},
    )
    assert {result.case: (result.earned, result.reason) for result in qti.run(service, folder)} == {
        "far": (
            None,
            "the service refuses it: #/data/answers/R: expected a number of at most 400 digits, between 1e-400 and 1e400",
        ),
        "near": (1, ""),
        "any": (None, "the service refuses it: #/data/quizzes/0/questions/0/question_id: expected a text that is not empty"),
    }


def test_an_item_with_a_piece_missing_is_converted_or_refused_and_graded_as_it_says(root: Path):
    graded = 0
    for path in sorted((root / "tests/data/qti/items").glob("*/item.xml")):
        responses = [case["responses"] for case in cases_of(path)]
        for damaged in without_a_piece(ET.fromstring(path.read_bytes())):  # noqa: S314
            try:
                quiz = convert(ET.tostring(damaged))
            except Unfit:
                continue
            graded += sum(earns_its_score(quiz, given) for given in responses)
    # Many pieces make no difference, and without some of them an item means something else.
    assert graded > 1500


def without_a_piece(root: ET.Element) -> Iterator[ET.Element]:
    """The item without one of its elements or attributes, for each of them."""
    for n, element in enumerate(root.iter()):
        for attribute in element.attrib:
            copy = deepcopy(root)
            del list(copy.iter())[n].attrib[attribute]
            yield copy
        for child in range(len(element)):
            copy = deepcopy(root)
            del list(copy.iter())[n][child]
            yield copy


def cases_of(path: Path) -> list[dict[str, Any]]:
    return simplejson.loads(path.with_name("cases.json").read_text(), use_decimal=True)["cases"]


def earns_its_score(quiz: Quiz, responses: dict[str, Any]) -> bool:
    """Whether the responses fit; if so, they must earn what the item gives for them."""
    try:
        givens = quiz.given(responses)
        quiz.check(givens)
    except Unfit:
        return False
    questions = TypeAdapter(list[Question]).validate_python(quiz.questions)
    answers = quiz.answers(givens)
    assert grade(questions, answers, Decimal(50)).points_earned == quiz.item.score(givens), (quiz.questions, answers)
    return True


def written(folder: Path, items: dict[str, tuple[str, dict[str, tuple[dict[str, Any], int]]]]) -> Path:
    """A folder of items, each with its cases: responses and the SCORE expected."""
    for name, (xml, cases) in items.items():
        place = folder / "items" / name
        place.mkdir(parents=True)
        (place / "item.xml").write_text(xml)
        listed = [
            {"name": case, "responses": responses, "expect": {"outcomes": {"SCORE": score}}}
            for case, (responses, score) in cases.items()
        ]
        (place / "cases.json").write_text(json.dumps({"cases": listed}))
    return folder


def command(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "tests.convert.qti", folder], capture_output=True, text=True, check=False)


def test_the_command_tells_what_differs_and_fails(tmp_path: Path, root: Path):
    source = root / "tests/data/qti/items"
    for name in ("mapResponse_bounds_default_duplicates", "isNull_isNotNull"):
        shutil.copytree(source / name, tmp_path / "items" / name)
    xml = (source / "choice_match_correct/item.xml").read_text()
    written(tmp_path, {"choice": (xml, {"right": ({"RESPONSE": "A"}, 1), "wrong": ({"RESPONSE": "B"}, 1)})})
    done = command(tmp_path)
    assert "'wrong' expects 1, and earned 0\n" in done.stdout
    assert done.stdout.splitlines()[-2:] == [
        "8 cases: 6 fit, 3 agree, 3 differ, 2 don't fit",
        "2 of those that differ expect what is not true, for the reason beside each.",
    ]
    assert (done.returncode, done.stderr) == (1, "")
    shutil.rmtree(tmp_path / "items/choice")
    assert command(tmp_path).returncode == 0


def test_the_command_says_when_there_are_no_items(tmp_path: Path):
    done = command(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"There is no {tmp_path}/items/<name>/item.xml.\n")
