"""The cases of QTI items through the real quiz worker: does each earn the SCORE that it should?

    .venv/bin/python -m tests.convert.qti FOLDER

FOLDER/items/<name>/ holds an item.xml and its cases.json, as tests/data/qti/README.md describes them. It needs nothing but the
project's own environment; PostgreSQL runs as long as it does. The exit status is 1 if a case that fits differs.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import simplejson

from local import postgres
from tests.conftest import created
from tests.convert.qti_questions import Quiz, Unfit, convert
from tests.support.service import LEARNER, Service, course, event, quiz

#: Expectations that are not true, by item and case, with what is. So are those that their source marks as xfail.
UNTRUE = {
    ("mapResponse_bounds_default_duplicates", "duplicate responses are counted (and then clamped)"): (
        "QTI counts a value that is given several times once"
    ),
    ("mapResponse_bounds_default_duplicates", "empty selection clamps to lowerBound"): (
        "no response earns nothing, as in QTI's own template map_response"
    ),
}


@dataclass(frozen=True)
class Result:
    """What became of a case.

    `earned` is None for one that doesn't fit, which has a `reason`. `untrue` says why the expectation is not the truth, and
    `kept` whether the answers as stored are still what the learner gave.
    """

    item: str
    case: str
    kinds: str = ""
    expected: Fraction = Fraction(0)
    earned: Fraction | None = None
    reason: str = ""
    untrue: str = ""
    kept: bool = True

    @property
    def fits(self) -> bool:
        return self.earned is not None

    @property
    def agrees(self) -> bool:
        return self.earned == self.expected

    @property
    def at_fault(self) -> bool:
        """Whether it fits, and the service does something else than it should."""
        return self.fits and (not self.kept or not (self.agrees or self.untrue))


def run(service: Service, folder: Path) -> list[Result]:
    """Publish every item of the folder that fits, send its cases to the quiz worker, and read what they earned."""
    results: list[Result] = []
    for path in sorted((folder / "items").glob("*/item.xml")):
        cases = simplejson.loads((path.parent / "cases.json").read_text(), use_decimal=True)["cases"]
        try:
            results += _graded(service, path.parent.name, convert(path.read_bytes()), cases)
        except Unfit as reason:
            results += [Result(path.parent.name, case.get("name", ""), reason=str(reason)) for case in cases]
    return results


def _graded(service: Service, name: str, converted: Quiz, cases: Sequence[dict[str, Any]]) -> list[Result]:
    version = course(title=name, lessons=0, quizzes=[quiz(title=name, questions=converted.questions)])
    ids = {"user_id": str(LEARNER), "course_version_id": version["course_version_id"]}
    _send(service, "catalog", event("course_version.published", version))
    _send(service, "enrollment", event("enrollment.requested", ids))
    kinds = _kinds(converted)
    results: list[Result] = []
    for case in cases:
        try:
            expected, givens = _expected(case), converted.given(_responses(case))
            converted.check(givens)
            data = ids | {
                "quiz_id": version["quizzes"][0]["quiz_id"],
                "attempt_id": str(uuid4()),
                "answers": converted.answers(givens),
            }
            _send(service, "quiz", event("quiz.submitted", data))
            (row,) = service.rows(
                "SELECT question_results, answers_snapshot::text AS answers FROM quiz_attempts WHERE id = %s", data["attempt_id"]
            )
        except Unfit as reason:
            results.append(Result(name, case.get("name", ""), kinds, reason=str(reason)))
            continue
        earned = sum((Fraction(result["points_earned"]) for result in row["question_results"]), Fraction(0))
        back = converted.givens(simplejson.loads(row["answers"], use_decimal=True))
        untrue = (
            str(case.get("xfailReason", "marked as xfail")) if case.get("xfail") else UNTRUE.get((name, case.get("name", "")), "")
        )
        kept = all({*map(str, back[response])} == {*map(str, given)} for response, given in givens.items())
        results.append(Result(name, case.get("name", ""), kinds, expected, earned, untrue=untrue, kept=kept))
    return results


def _send(service: Service, queue: str, sent: dict[str, Any]) -> None:
    """Send an event; raises Unfit if it is refused."""
    before = len(service.dead_letters())
    service.send(queue, simplejson.dumps(sent, use_decimal=True))
    if letters := service.dead_letters()[before:]:
        raise Unfit(f"the service refuses it: {letters[0]['reason']}")


def _responses(case: Mapping[str, Any]) -> Mapping[str, object]:
    responses = case.get("responses") or {}
    if not isinstance(responses, dict):
        raise Unfit("the case is not of one set of responses")
    return cast("dict[str, object]", responses)


def _expected(case: Mapping[str, Any]) -> Fraction:
    """The SCORE that a case expects; raises Unfit if it expects none that can be earned."""
    expect = case.get("expect") or {}
    outcomes = expect.get("outcomes") or {}
    score = outcomes["SCORE"] if "SCORE" in outcomes else expect.get("score")
    if isinstance(score, bool) or not isinstance(score, int | Decimal):
        raise Unfit("the case expects no SCORE")
    if score < 0:
        raise Unfit(f"SCORE is {score}, and no question earns less than 0")
    return Fraction(score)


def _kinds(converted: Quiz) -> str:
    """The kinds of question; "in 2 steps" where the points of one response are shared out to two questions."""
    kinds = [
        part.questions[0]["kind"] + (f" in {len(part.questions)} steps" if len(part.questions) > 1 else "")
        for part in converted.parts
    ]
    return ", ".join(f"{kinds.count(kind)} {kind}" if kinds.count(kind) > 1 else kind for kind in dict.fromkeys(kinds))


def report(results: Sequence[Result]) -> str:
    """A line for each item, those that fit first; below it, what there is to say about single cases."""
    lines: list[str] = []
    items = [(name, list(group)) for name, group in groupby(results, lambda result: result.item)]
    width = max(len(name) for name, _ in items)
    for title, of_interest in (("fit", True), ("don't fit", False)):
        chosen = [(name, cases) for name, cases in items if any(case.fits for case in cases) == of_interest]
        many = sum(len(cases) for _, cases in chosen)
        lines += ["", f"Items that {title}: {len(chosen)}, with {many} cases", ""]
        header = "cases  agree  differ  questions" if of_interest else "cases  reason"
        lines.append(f"  {'item':{width}}  {header}")
        for name, cases in chosen:
            agree, fit = sum(case.agrees for case in cases), sum(case.fits for case in cases)
            counts = (
                f"{len(cases):5}  {agree:5}  {fit - agree:6}  {cases[0].kinds}"
                if of_interest
                else f"{len(cases):5}  {cases[0].reason}"
            )
            lines.append(f"  {name:{width}}  {counts}")
            lines += [f"    {text}" for case in cases if of_interest and (text := _remark(case))]
    fit, agree = sum(result.fits for result in results), sum(result.agrees for result in results)
    lines += ["", f"{len(results)} cases: {fit} fit, {agree} agree, {fit - agree} differ, {len(results) - fit} don't fit"]
    if untrue := sum(result.fits and not result.agrees and bool(result.untrue) for result in results):
        lines.append(f"{untrue} of those that differ expect what is not true, for the reason beside each.")
    return "\n".join(lines[1:])


def _remark(case: Result) -> str:
    if not case.fits:
        return f"{case.case!r} doesn't fit: {case.reason}"
    kept = "" if case.kept else "; what is stored is not what was answered"
    if case.agrees:
        return f"{case.case!r}{kept}" if kept else ""
    return f"{case.case!r} expects {case.expected}, and earned {case.earned}{kept}" + (f": {case.untrue}" if case.untrue else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. The exit status is 1 if a case that fits differs, untrue expectations aside, and 2 if there are no items."""
    parser = argparse.ArgumentParser(prog="python -m tests.convert.qti", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="has items/<name>/item.xml and cases.json")
    folder = parser.parse_args(arguments).folder
    if not any((folder / "items").glob("*/item.xml")):
        print(f"There is no {folder}/items/<name>/item.xml.", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory() as state,
        postgres.server(Path(state) / "postgres", durable=False) as server,
        created(server, "qti") as url,
        # The service's log is not what is asked for.
        contextlib.redirect_stdout(io.StringIO()),
    ):
        service = Service(url)
        service.invoke("migrate", {})
        results = run(service, folder)
    print(report(results))
    return 1 if any(result.at_fault for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
