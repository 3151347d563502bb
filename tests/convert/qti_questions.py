"""A QTI 2.x item as questions of ours, if there are such.

An item fits if its questions give its SCORE for every response there is. So its processing is carried out for all responses that
it can tell apart, and what comes out is compared with what each kind of question gives according to docs/api.md; the service
itself is not asked. Beyond that:

- what a learner gives becomes an answer without a look at the key, and back again;
- the best response earns all points, since a quiz that nobody can finish with 100 would be of no use;
- a text or a number with several levels of points becomes one question for each level, all of them given the same answer;
- for pairs that are not simply matched, each pair is a choice; and where several responses only count together, each choice of
  each response is one;
- a SCORE below 0 counts as 0, which is why a case that expects one doesn't fit.
"""

import itertools
import math
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any
from xml.etree.ElementTree import Element

from tests.convert.qti_processing import Declaration, Given, Item, Unreadable, folded, number

TRIED = 50_000
"""Items are given up if it takes more than so many responses to know how they score."""

SPELLINGS = 1024
"""A text is not listed in more spellings than this, with letters in lower and upper case."""

LARGEST = {"integer": Fraction(2**31 - 1), "float": Fraction(sys.float_info.max)}
"""QTI's numbers are those of 32 bits, and doubles; so a range without an end has one."""

type Givens = Mapping[str, Given]
type Answers = dict[str, Any]


class Unfit(Exception):
    """Why an item or a case can't be one of ours, for people to read."""


@dataclass(frozen=True)
class Part:
    """Questions for responses whose points don't depend on those of other parts."""

    responses: tuple[str, ...]
    questions: list[dict[str, Any]]
    #: What is earned according to docs/api.md.
    earns: Callable[[Givens], Fraction]
    answers: Callable[[Givens], Answers]
    givens: Callable[[Answers], Givens]


@dataclass(frozen=True)
class Quiz:
    """An item as questions."""

    item: Item
    parts: list[Part]

    @property
    def questions(self) -> list[dict[str, Any]]:
        return [question for part in self.parts for question in part.questions]

    def answers(self, givens: Givens) -> Answers:
        return {name: answer for part in self.parts for name, answer in part.answers(givens).items()}

    def givens(self, answers: Answers) -> Givens:
        """The responses that the answers were made of, but for the order where it doesn't count."""
        return {name: given for part in self.parts for name, given in part.givens(answers).items()}

    def given(self, responses: Mapping[str, object]) -> Givens:
        """A case's responses. One that is missing was left as it was: at its default value, if it has one.

        Raises
        ------
        Unfit
        """
        names = [name for part in self.parts for name in part.responses]
        try:
            return {
                name: self.item.responses[name].given(responses[name])
                if name in responses
                else _default(self.item.responses[name])
                for name in names
            }
        except Unreadable as reason:
            raise Unfit(str(reason)) from None

    def check(self, givens: Givens) -> None:
        """Raises Unfit if the questions don't give the SCORE for these responses."""
        try:
            score = self.item.score(givens)
        except Unreadable as reason:
            raise Unfit(str(reason)) from None
        if score < 0:
            raise Unfit(f"SCORE is {_figure(score)}, and no question earns less than 0")
        if score == sum(part.earns(givens) for part in self.parts):
            return
        for name, given in givens.items():
            declaration = self.item.responses[name]
            if len(set(given)) < len(given):
                raise Unfit(f"{name} has the same value twice, which here is not the same as once")
            if declaration.base_type == "string" and any(_spaced(str(text)) != text for text in given):
                raise Unfit(f"{name} counts white space or looks at how a letter is encoded, which text questions don't")
        for part in self.parts:
            alone = self.item.score({name: given if name in part.responses else () for name, given in givens.items()})
            if alone < 0:
                raise Unfit(f"{part.responses[0]} takes {_figure(-alone)} off the others, and no question earns less than 0")
        raise Unfit("a response is none that the interaction can give")


def _default(declaration: Declaration) -> Given:
    holder = declaration.element.find("defaultValue")
    return declaration.given(["".join(value.itertext()) for value in holder.findall("value")] if holder is not None else [])


def _figure(value: Fraction) -> str:
    return str(int(value)) if value.denominator == 1 else str(float(value))


def _decimal(value: Fraction) -> int | Decimal:
    """The number in JSON; raises Unfit if it has no end when written out."""
    if value.denominator == 1:
        return int(value)
    places = next((places for places in range(1, 400) if 10**places % value.denominator == 0), None)
    if places is None:
        raise Unfit(f"{value} can't be written as a decimal number")
    return Decimal(f"{value.numerator * 10**places // value.denominator}e-{places}")


# What an interaction offers


@dataclass(frozen=True)
class Offer:
    """What a learner may choose: ids with their texts. `once`: which end of a pair can occur only once in a response, 0 or 1."""

    choices: dict[str, str] = field(default_factory=dict[str, str])
    once: int | None = None


_CHOICES = ("simpleChoice", "inlineChoice", "hottext", "hotspotChoice", "simpleAssociableChoice", "associableHotspot")
_SOURCES = ("gapText", "gapImg")


def _text(element: Element) -> str:
    """The text within an element, with a line for each interaction in it."""

    def parts(inner: Element) -> Iterable[str]:
        yield inner.text or ""
        for child in inner:
            if "responseIdentifier" in child.attrib:
                yield " ____ "
            elif child.tag != "prompt":
                yield from parts(child)
            yield child.tail or ""

    return " ".join("".join(parts(element)).split())


def _ids(element: Element, tags: Collection[str]) -> dict[str, Element]:
    found = {inner.get("identifier", "").strip(): inner for inner in element.iter() if inner.tag in tags}
    if "" in found:
        raise Unfit("a choice has no identifier")
    return found


def _single(elements: Iterable[Element]) -> bool:
    return all(element.get("matchMax", "1") == "1" for element in elements)


def _offer(declaration: Declaration, interaction: Element | None) -> Offer:
    if interaction is None:
        return Offer()
    if declaration.base_type not in ("pair", "directedPair"):
        return Offer({name: _text(element) or name for name, element in _ids(interaction, _CHOICES).items()})
    sets = interaction.findall("simpleMatchSet")
    if interaction.tag == "gapMatchInteraction":
        left, right = _ids(interaction, _SOURCES), _ids(interaction, ["gap"])
        once = 1
    elif interaction.tag == "matchInteraction" and len(sets) == 2:
        left, right = (_ids(one, _CHOICES) for one in sets)
        once = 0 if _single(left.values()) else 1 if _single(right.values()) else None
    elif interaction.tag == "graphicGapMatchInteraction":
        left, right = _ids(interaction, _SOURCES), _ids(interaction, _CHOICES)
        once = 1 if _single(right.values()) else 0 if _single(left.values()) else None
    else:
        left = right = _ids(interaction, _CHOICES)
        once = None
    pairs = {
        " ".join(sorted((a, b)) if declaration.base_type == "pair" else (a, b)): f"{_text(x) or a} - {_text(y) or b}"
        for (a, x), (b, y) in itertools.product(left.items(), right.items())
        if left is not right or a != b
    }
    return Offer(pairs, once)


# All responses that an item can tell apart


def _mentioned(item: Item, declaration: Declaration) -> list[str]:
    """The identifiers or pairs that the item names, one of which a response may be."""
    named = ["".join(value.itertext()) for value in declaration.element.iterfind("correctResponse/value")]
    named += [entry.get("mapKey", "") for entry in declaration.element.iter("mapEntry")]
    for section in item.sections:
        for value in section.iter("baseValue"):
            if value.get("baseType") == declaration.base_type:
                named.append("".join(value.itertext()))
    found: dict[str, None] = {}
    for text in named:
        try:
            found.update(dict.fromkeys(str(value) for value in declaration.given([text])))
        except Unreadable:
            # Whoever reads it will say so.
            continue
    return [*found]


def _spellings(text: str) -> Iterable[str]:
    """The text with its letters in lower and upper case, in all ways."""
    return map("".join, itertools.product(*(dict.fromkeys([letter, letter.lower(), letter.upper()]) for letter in text)))


def _texts_apart(item: Item, name: str) -> list[str]:
    """The texts compared; a spelling of each that is compared regardless of case, other than those; and a text like none."""
    exact, fold = {str(text) for text in item.compared[name]}, item.compared_folded[name]
    others = [other for text in sorted(fold) if (other := _other_spelling(text, exact)) is not None]
    return [*dict.fromkeys([*sorted(exact | fold), *others, "like none of these"])]


def _other_spelling(text: str, taken: Collection[str]) -> str | None:
    return next((spelling for spelling in _spellings(text) if spelling not in taken), None)


_COMPARISONS = ("match", "equal", "member", "contains", "delete", "stringMatch")


def _values(item: Item, declaration: Declaration, offer: Offer, *, wide: bool) -> list[str]:
    """The values of which a response consists. Those that the item doesn't name are alike to it, so a few stand for all.

    `wide`: enough of them to tell whether a rule that treats them unlike gives the same points.
    """
    if declaration.base_type == "boolean":
        return ["true", "false"]
    several = declaration.cardinality != "single"
    named = _mentioned(item, declaration)
    known = [value for value in named if value in offer.choices] if offer.choices else named
    pairs = declaration.base_type in ("pair", "directedPair")
    rest = [value for value in offer.choices if value not in known]
    if not offer.choices:
        rest = ["other-1 other-2", "other-3 other-4"] if pairs else ["other-1", "other-2"]
    rules = [element for section in item.sections for element in section.iter()]
    crossed = any(
        len({inner.get("identifier") for inner in rule.iter("variable")} & item.responses.keys()) > 1
        for rule in rules
        if rule.tag in _COMPARISONS
    )
    # Only their number, or whether the same is chosen elsewhere, can make a difference between them.
    if crossed or any(rule.tag == "containerSize" for rule in rules) or (wide and not several):
        return known + rest
    return known + rest[: (max(2, 10 - len(known)) if wide else 2) if several else 1]


def _domain(item: Item, declaration: Declaration, offer: Offer, *, wide: bool) -> list[Given]:
    """All responses of one variable that may make a difference, no response first."""
    compared = item.compared[declaration.name]
    match declaration.base_type, declaration.cardinality:
        case "string", "single":
            return [(), *((text,) for text in _texts_apart(item, declaration.name) if text)]
        case ("integer" | "float") as base_type, "single":
            return [(), *((figure,) for figure in _figures(base_type, [x for x in compared if isinstance(x, Fraction)]))]
        case (("identifier" | "boolean" | "pair" | "directedPair"), cardinality):
            values = _values(item, declaration, offer, wide=wide)
            if cardinality == "single":
                # A radio button that is set from the start can't be unset.
                empty = [()] if declaration.element.find("defaultValue/value") is None else []
                return [*empty, *((value,) for value in values)]
            choose = itertools.permutations if cardinality == "ordered" else itertools.combinations
            count = sum((math.perm if cardinality == "ordered" else math.comb)(len(values), n) for n in range(len(values) + 1))
            if count > TRIED:
                raise Unfit(f"{declaration.name} can be answered in more than {TRIED} ways")
            sets = [chosen for n in range(len(values) + 1) for chosen in choose(values, n)]
            return [chosen for chosen in sets if offer.once is None or _functional(chosen, offer.once)]
        case _:
            # It can't be enumerated. Should the SCORE depend on it, reading it says why.
            return [(), ("?",)]


def _functional(pairs: Sequence[str], once: int) -> bool:
    ends = [pair.split()[once] for pair in pairs]
    return len(set(ends)) == len(ends)


def _figures(base_type: str, compared: Collection[Fraction]) -> list[Fraction]:
    """Each number compared, and one between each two and at either end."""
    last = LARGEST[base_type]
    if base_type == "integer":
        near = {whole + n for x in compared for whole in (math.floor(x), math.ceil(x)) for n in (-1, 0, 1)}
        return sorted({Fraction(x) for x in near} | {-last - 1, last, Fraction(0)})
    ends = sorted({*compared, -last, last})
    return sorted({*ends, *((a + b) / 2 for a, b in itertools.pairwise(ends))})


def _table(
    item: Item, offers: Mapping[str, Offer], others: Givens, *, wide: bool
) -> tuple[list[list[Given]], dict[tuple[Given, ...], Fraction]]:
    """The SCORE for all responses that may make a difference, in the order of the offers, while the others are as given.

    What a typed response is compared with shows while scoring, so this goes on until nothing new does.
    """
    while True:
        before = _seen(item, offers)
        domains = [_domain(item, item.responses[name], offer, wide=wide) for name, offer in offers.items()]
        if math.prod(map(len, domains)) > TRIED:
            raise Unfit(f"{', '.join(offers)} can be answered in more than {TRIED} ways")
        scores = {
            givens: item.score({**others, **dict(zip(offers, givens, strict=True))}) for givens in itertools.product(*domains)
        }
        if before == _seen(item, offers):
            return domains, scores


def _seen(item: Item, names: Iterable[str]) -> list[int]:
    return [len(item.compared[name]) + len(item.compared_folded[name]) for name in names]


# From scores to questions


def convert(xml: str | bytes) -> Quiz:
    """An item as a quiz.

    Raises
    ------
    Unfit
        With what no kind of question can express.
    """
    try:
        return _convert(Item(xml))
    except Unreadable as reason:
        raise Unfit(str(reason)) from None


def _convert(item: Item) -> Quiz:
    if "SCORE" not in item.outcomes:
        others = ", ".join(item.outcomes) if len(item.outcomes) < 4 else f"{len(item.outcomes)} other outcomes"
        raise Unfit(f"it has no SCORE, only {others}" if others else "it has no SCORE")
    used = {element.get("identifier") for section in item.sections for element in section.iter()}
    names = [name for name in item.responses if name in used]
    interactions = {element.get("responseIdentifier"): element for element in item.root.iter()}
    offers = {name: _offer(item.responses[name], interactions.get(name)) for name in names}
    domains, scores = _table(item, offers, {}, wide=False)
    if len(set(scores.values())) == 1:
        (score,) = set(scores.values())
        raise Unfit(f"SCORE is {_figure(score)} whatever the response is")

    base = _base(domains, scores)
    if scores[base]:
        raise Unfit(f"giving no answer earns {_figure(scores[base])}")
    others = dict(zip(names, base, strict=True))
    parts: list[Part] = []
    for group in _groups(domains, scores, base):
        chosen = {names[i]: offers[names[i]] for i in group}
        _, alone = _table(item, chosen, others, wide=True)
        if any(alone.values()):
            parts.append(_part(item, chosen, interactions, alone))
    return Quiz(item, parts)


def _base(domains: Sequence[Sequence[Given]], scores: Mapping[tuple[Given, ...], Fraction]) -> tuple[Given, ...]:
    """No response to anything; or the worst one, where there always is one."""
    base = [domain[0] for domain in domains]
    for i, domain in enumerate(domains):
        if domain[0]:
            base[i] = min(domain, key=lambda given: scores[*base[:i], given, *base[i + 1 :]])
    return tuple(base)


def _groups(
    domains: Sequence[Sequence[Given]], scores: Mapping[tuple[Given, ...], Fraction], base: tuple[Given, ...]
) -> list[list[int]]:
    """Which responses count together: the SCORE is the sum over the groups."""
    groups = {i: {i} for i in range(len(domains))}
    for i, j in itertools.combinations(groups, 2):
        if groups[i] is not groups[j] and any(
            score + scores[_with(_with(given, i, base), j, base)] != scores[_with(given, i, base)] + scores[_with(given, j, base)]
            for given, score in scores.items()
        ):
            groups[i] |= groups[j]
            groups.update(dict.fromkeys(groups[j], groups[i]))
    return [sorted(group) for group in {id(group): group for group in groups.values()}.values()]


def _with(given: tuple[Given, ...], i: int, base: tuple[Given, ...]) -> tuple[Given, ...]:
    return (*given[:i], base[i], *given[i + 1 :])


def _part(
    item: Item,
    offers: Mapping[str, Offer],
    interactions: Mapping[str | None, Element],
    scores: Mapping[tuple[Given, ...], Fraction],
) -> Part:
    names = [*offers]
    top = max(scores.values())
    if top <= 0:
        raise Unfit(f"{' and '.join(names)} can only lose points")
    prompts = [prompt for name in names if (prompt := _prompt(item, interactions.get(name)))]
    about = _About(names, item, offers, " / ".join(dict.fromkeys(prompts)), top)
    typed = [name for name in names if item.responses[name].base_type in ("string", "integer", "float")]
    if typed and len(names) > 1:
        raise Unfit(f"the points depend on {' and '.join(names)} together")
    if not typed:
        return _choices(about, scores)
    single = {given[0]: points for (given,), points in scores.items() if given}
    if item.responses[names[0]].base_type == "string":
        return _texts(about, {str(text): points for text, points in single.items()})
    return _numbers(about, {figure: points for figure, points in single.items() if isinstance(figure, Fraction)})


def _prompt(item: Item, interaction: Element | None) -> str:
    prompt = interaction.find("prompt") if interaction is not None else None
    body = prompt if prompt is not None else item.root.find("itemBody")
    return _text(body) if body is not None else ""


@dataclass(frozen=True)
class _About:
    """What a part is made of: its responses with what is offered for them, and the most that they can earn."""

    names: Sequence[str]
    item: Item
    offers: Mapping[str, Offer]
    prompt: str
    top: Fraction

    def question(self, kind: str, points: Fraction, level: int = 0, **fields: Any) -> dict[str, Any]:
        name = "+".join(self.names) + (f".{level}" if level else "")
        return {"question_id": name, "kind": kind, "prompt": self.prompt, "points": _decimal(points), **fields}


# Texts and numbers: a question for each level of points


def _levels(points: Iterable[Fraction]) -> list[tuple[Fraction, Fraction]]:
    """Each number of points above 0, with what it has more than the one below."""
    levels = sorted({points for points in points if points > 0})
    return [(level, level - below) for below, level in itertools.pairwise([Fraction(0), *levels])]


def _same_answer(about: _About, questions: list[dict[str, Any]], earns: Callable[[Any], Fraction]) -> Part:
    (name,) = about.names
    ids = [question["question_id"] for question in questions]
    return Part(
        (name,),
        questions,
        lambda givens: earns(givens[name][0]) if givens[name] else Fraction(0),
        lambda givens: dict.fromkeys(ids, givens[name][0]) if givens[name] else {},
        lambda answers: {name: (answers[ids[0]],) if ids[0] in answers else ()},
    )


def _spaced(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _texts(about: _About, scores: Mapping[str, Fraction]) -> Part:
    (name,) = about.names
    exact, fold = {str(text) for text in about.item.compared[name]}, about.item.compared_folded[name]
    others = {other: text for text in sorted(fold) if (other := _other_spelling(text, exact)) is not None}
    if any(points > 0 and text not in exact | fold | others.keys() for text, points in scores.items()):
        raise Unfit("any text earns points")
    questions: list[dict[str, Any]] = []
    accepted: list[tuple[Fraction, bool, set[str]]] = []
    levels = _levels(scores.values())
    for n, (level, step) in enumerate(levels, 1):
        right = [text for text, points in scores.items() if points >= level]
        wrong = {folded(text) for text, points in scores.items() if points < level}
        whole = {folded(text) for text in fold} | {folded(text) for text in right if _other_spelling(text, [text]) is None}
        sensitive = any(folded(text) in wrong or folded(text) not in whole for text in right)
        if sensitive:
            texts = [text for text in right if text not in others]
            for text in (others[other] for other in right if other in others):
                spellings = [*itertools.islice(_spellings(text), SPELLINGS + 1)]
                if len(spellings) > SPELLINGS:
                    raise Unfit(
                        f"case counts for some texts, but not for {text!r}, of which there are too many spellings to list"
                    )
                texts += [spelling for spelling in spellings if scores.get(spelling, level) >= level]
            texts = [*dict.fromkeys(texts)]
        else:
            texts = [*{folded(text): text for text in reversed(right) if text in exact | fold}.values()]
        fields = {"correct": texts} | ({"case_sensitive": True} if sensitive else {})
        questions.append(about.question("text", step, n if len(levels) > 1 else 0, **fields))
        accepted.append((step, sensitive, {_spaced(text) if sensitive else folded(_spaced(text)) for text in texts}))

    def earns(text: object) -> Fraction:
        spaced = _spaced(str(text))
        return sum(
            (step for step, sensitive, texts in accepted if (spaced if sensitive else folded(spaced)) in texts), Fraction(0)
        )

    if wrong := next((text for text, points in scores.items() if earns(text) != max(points, Fraction(0))), None):
        raise Unfit(
            f"{wrong!r} differs from another text by white space or by how a letter is encoded, which text questions ignore"
        )
    return _same_answer(about, questions, earns)


def _numbers(about: _About, scores: Mapping[Fraction, Fraction]) -> Part:
    (name,) = about.names
    base_type = about.item.responses[name].base_type
    closed = {*about.item.compared[name], LARGEST[base_type], -LARGEST[base_type]}
    figures = sorted(scores)
    ranges: list[tuple[Fraction, Fraction, Fraction]] = []
    questions: list[dict[str, Any]] = []
    levels = _levels(scores.values())
    for n, (level, step) in enumerate(levels, 1):
        right = [figure for figure in figures if scores[figure] >= level]
        low, high = right[0], right[-1]
        if len(right) != figures.index(high) - figures.index(low) + 1:
            wrong = next(figure for figure in figures[figures.index(low) :] if figure not in right)
            raise Unfit(
                f"the numbers that earn {_figure(level)} are no single range: {_figure(wrong)} is none of them, "
                f"but numbers on both sides of it are"
            )
        if base_type == "float" and not {low, high} <= closed:
            raise Unfit("the range of right numbers leaves out its own bound, which a tolerance always includes")
        ranges.append((low, high, step))
        fields = {"correct": _decimal((low + high) / 2), "tolerance": _decimal((high - low) / 2)}
        questions.append(about.question("numeric", step, n if len(levels) > 1 else 0, **fields))

    def earns(given: object) -> Fraction:
        figure = number(given)
        return sum((step for low, high, step in ranges if figure is not None and low <= figure <= high), Fraction(0))

    return _same_answer(about, questions, earns)


# Choices, pairs and orders


@dataclass(frozen=True)
class _Rule:
    """A way of scoring choices: what a question says of it, and what it gives for the ones chosen."""

    kind: str
    fields: dict[str, Any]
    earns: Callable[[tuple[str, ...]], Fraction]
    answer: Callable[[tuple[str, ...]], Any] = list
    chosen: Callable[[Any], tuple[str, ...]] = tuple


def _choices(about: _About, scores: Mapping[tuple[Given, ...], Fraction]) -> Part:
    names = about.names
    flat = {_flat(names, givens): points for givens, points in scores.items()}
    goal = {chosen: max(points, Fraction(0)) for chosen, points in flat.items()}
    for rule in _rules(about, flat):
        if all(rule.earns(chosen) == points for chosen, points in goal.items()):
            question = about.question(rule.kind, about.top, **rule.fields)
            ids = question["question_id"]

            def answers(givens: Givens, rule: _Rule = rule) -> Answers:
                chosen = _flat(names, [givens[name] for name in names])
                return {ids: rule.answer(chosen)} if chosen else {}

            def givens(answers: Answers, rule: _Rule = rule) -> Givens:
                chosen = rule.chosen(answers[ids]) if ids in answers else ()
                if len(names) == 1:
                    return {names[0]: chosen}
                return {name: tuple(c.removeprefix(f"{name}: ") for c in chosen if c.startswith(f"{name}: ")) for name in names}

            return Part(
                tuple(names),
                [question],
                lambda givens, rule=rule: rule.earns(_flat(names, [givens[name] for name in names])),
                answers,
                givens,
            )
    together = f"of {' and '.join(names)} together " if len(names) > 1 else ""
    raise Unfit(f"no kind of question has such points {together}as {_example(flat, about.top)}")


def _called(names: Sequence[str], name: str, value: object) -> str:
    """A choice's id: with the response in front where there are several."""
    return str(value) if len(names) == 1 else f"{name}: {value}"


def _flat(names: Sequence[str], givens: Sequence[Given]) -> tuple[str, ...]:
    """What is chosen, in one list."""
    return tuple(_called(names, name, value) for name, given in zip(names, givens, strict=True) for value in given)


def _example(scores: Mapping[tuple[str, ...], Fraction], top: Fraction) -> str:
    """The best choice and what one more or one less of it would give."""
    best = min((chosen for chosen, points in scores.items() if points == top), key=len)
    near = [chosen for chosen in scores if len({*chosen} ^ {*best}) == 1]
    shown = [best, *sorted(near, key=len)[:1], *sorted(near, key=len, reverse=True)[:1]]
    return ", ".join(f"{_figure(scores[chosen])} for {' + '.join(chosen) or 'nothing'}" for chosen in dict.fromkeys(shown))


def _listed(about: _About, name: str) -> dict[str, str]:
    """All choices of a response with their texts: those offered, else those that the item names."""
    declaration = about.item.responses[name]
    named = ["true", "false"] if declaration.base_type == "boolean" else _mentioned(about.item, declaration)
    texts = about.offers[name].choices or dict(zip(named, named, strict=True))
    return {_called(about.names, name, value): text for value, text in texts.items()}


def _rules(about: _About, scores: Mapping[tuple[str, ...], Fraction]) -> Iterable[_Rule]:
    """The rules that may give these scores, plainest first."""
    top, zero = about.top, Fraction(0)
    listed = {value: text for name in about.names for value, text in _listed(about, name).items()}
    choices = {"choices": [{"id": value, "text": text} for value, text in listed.items()]}
    best = min((chosen for chosen, points in scores.items() if points == top), key=len)
    if not listed.keys() >= {*best}:
        raise Unfit("a choice that the item doesn't list earns points")
    key = frozenset(best)
    declaration = about.item.responses[about.names[0]]
    single = len(about.names) == 1 and declaration.cardinality == "single"
    pairs = len(about.names) == 1 and declaration.base_type == "directedPair"

    if single and not pairs:
        yield _Rule(
            "true_false" if declaration.base_type == "boolean" else "single_choice",
            {"correct": best[0]} | ({} if declaration.base_type == "boolean" else choices),
            lambda chosen: top if chosen == best else zero,
            lambda chosen: chosen[0],
            lambda answer: (answer,),
        )
    if pairs:
        yield from _matching(about, best, 0 if single else about.offers[about.names[0]].once)
    if not single and declaration.cardinality == "ordered":
        for scoring in ("all_or_nothing", "per_position"):

            def in_order(chosen: tuple[str, ...], scoring: str = scoring) -> Fraction:
                right = sum(a == b for a, b in zip(chosen, best, strict=False))
                return top * right / len(best) if scoring == "per_position" else top if chosen == best else zero

            yield _Rule("ordering", {"correct": list(best), "scoring": scoring} | choices, in_order)
    if not single or pairs:
        for scoring in ("all_or_nothing", "right_minus_wrong", "per_option"):

            def together(chosen: tuple[str, ...], scoring: str = scoring) -> Fraction:
                given = frozenset(chosen)
                if scoring == "all_or_nothing":
                    return top if given == key else zero
                right, wrong = len(given & key), len(given - key)
                if scoring == "right_minus_wrong":
                    return max(zero, top * (right - wrong) / len(key))
                amiss = given ^ key
                return max(zero, top * (len(listed.keys() - amiss) - len(amiss)) / len(listed)) if given else zero

            yield _Rule("multiple_choice", {"correct": list(best), "scoring": scoring} | choices, together)
    yield from _mappings(about, scores, best, listed)


def _matching(about: _About, best: tuple[str, ...], once: int | None) -> Iterable[_Rule]:
    """An equal share of the points for each right pair; on the left what can occur only once."""
    if once is None or not _functional(best, once):
        return

    def answer(chosen: tuple[str, ...]) -> dict[str, str]:
        if not _functional(chosen, once):
            raise Unfit("two things are put where the item has room for one")
        return {pair.split()[once]: pair.split()[1 - once] for pair in chosen}

    def chosen(answer: dict[str, str]) -> tuple[str, ...]:
        return tuple(f"{a} {b}" if once == 0 else f"{b} {a}" for a, b in answer.items())

    yield _Rule(
        "matching",
        {"correct": answer(best)},
        lambda chosen: about.top * len({*chosen} & {*best}) / len(best) if _functional(chosen, once) else Fraction(0),
        answer,
        chosen,
    )


def _mappings(
    about: _About, scores: Mapping[tuple[str, ...], Fraction], best: tuple[str, ...], listed: Mapping[str, str]
) -> Iterable[_Rule]:
    """The mapping that is declared; what each choice gives alone; and what each adds to the best or takes from it."""
    (first, *others) = about.names
    mapping = about.item.responses[first].element.find("mapping")
    if mapping is not None and not others:
        named = about.item.responses[first]
        values: dict[str, Fraction] = {}
        for entry in mapping.findall("mapEntry"):
            points = number(entry.get("mappedValue"))
            for key in named.given([entry.get("mapKey", "")]):
                if points is not None:
                    values.setdefault(str(key), points)
        bounds = [number(mapping.get(name)) for name in ("defaultValue", "lowerBound", "upperBound")]
        yield from _mapped(about, values, bounds, listed)

    def after(change: Callable[[frozenset[str]], frozenset[str]]) -> Fraction:
        wanted = change(frozenset(best))
        return next((points for chosen, points in scores.items() if frozenset(chosen) == wanted), Fraction(0))

    tried = dict.fromkeys(value for chosen in scores for value in chosen)
    alone = {value: after(lambda _, value=value: frozenset([value])) for value in tried}
    marginal = {
        value: about.top - after(lambda key, value=value: key - {value})
        if value in best
        else after(lambda key, value=value: key | {value}) - about.top
        for value in tried
    }
    for values in (alone, marginal):
        yield from _mapped(about, _filled(about, values), [None, None, None], listed)


def _filled(about: _About, values: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """The points of all choices. One that the item doesn't name has those of another one that it doesn't."""
    filled: dict[str, Fraction] = {}
    for name in about.names:
        named = _mentioned(about.item, about.item.responses[name])
        listed = _listed(about, name)
        known = {_called(about.names, name, choice) for choice in named}
        rest = next((points for value, points in values.items() if value in listed and value not in known), Fraction(0))
        filled |= {value: values.get(value, rest) for value in listed}
    return filled


def _mapped(
    about: _About, values: Mapping[str, Fraction], bounds: list[Fraction | None], listed: Mapping[str, str]
) -> Iterable[_Rule]:
    default, lowest, highest = bounds
    values = {value: points for value, points in values.items() if value in listed}
    if not values or (lowest is not None and highest is not None and lowest > highest):
        return

    def earns(chosen: tuple[str, ...]) -> Fraction:
        if not chosen:
            return Fraction(0)
        unmapped = default or Fraction(0)
        known = (values.get(value, unmapped if value in listed else min(unmapped, Fraction(0))) for value in {*chosen})
        total = sum(known, Fraction(0))
        total = total if lowest is None else max(total, lowest)
        total = total if highest is None else min(total, highest)
        return min(max(total, Fraction(0)), about.top)

    fields: dict[str, Any] = {
        name: _decimal(bound)
        for name, bound in zip(("default", "lower_bound", "upper_bound"), bounds, strict=True)
        if bound is not None
    }
    fields |= {
        "choices": [{"id": value, "text": text} for value, text in listed.items()],
        "correct": {value: _decimal(points) for value, points in values.items()},
    }
    yield _Rule("mapped", fields, earns)
