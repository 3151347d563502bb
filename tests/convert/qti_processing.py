"""What SCORE a QTI 2.x item gives to responses: its processing, read and carried out.

The rules are those of QTI 2.1 (Assessment Test, Section and Item Information Model, sections 8, 14 and 15). Understood beyond
them, because players offer them and their meaning is plain: `outcomeProcessing` within an item, `isNotNull`, `setResponseValue`,
`setDefaultValue` without a value, and `lookupTable` with a table of its own. QTI 2.1 leaves open whether case counts in a mapping
that doesn't say so; here it does, as elsewhere in QTI.

Numbers and texts that a learner types may be anything, so all of them can't be tried. They may be compared with what is fixed,
and `Item.compared` gathers with what: numbers between two neighbours of it score the same, and so do all texts outside it. All
else that is done with them makes the SCORE unreadable, and so does anything that isn't understood, each with its reason; but only
if the SCORE depends on it.
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from xml.etree.ElementTree import Element, ParseError, fromstring

type Given = tuple[str | int | Decimal | Fraction, ...]
"""A response as it was given, value by value; empty when there is none. Identifiers and pairs are texts in one spelling."""


@dataclass(frozen=True, slots=True)
class Typed:
    """A number or a text that a learner typed into a response."""

    response: str
    value: Fraction | str


type Atom = bool | Fraction | str | Typed


@dataclass(frozen=True, slots=True)
class Several:
    """A container that isn't empty."""

    items: tuple[Atom, ...]
    in_order: bool


type Value = Atom | Several | None
"""A value of QTI; None is its NULL, which an empty container and an empty text are too."""


class Unreadable(Exception):
    """What stands in the way of knowing a value, for people to read."""


class _Exit(Exception):
    pass


_TEMPLATES = {
    "match_correct": """
        <responseProcessing><responseCondition>
            <responseIf><match><variable identifier="RESPONSE"/><correct identifier="RESPONSE"/></match>
                <setOutcomeValue identifier="SCORE"><baseValue baseType="float">1</baseValue></setOutcomeValue></responseIf>
            <responseElse>
                <setOutcomeValue identifier="SCORE"><baseValue baseType="float">0</baseValue></setOutcomeValue></responseElse>
        </responseCondition></responseProcessing>""",
    "map_response": """
        <responseProcessing><responseCondition>
            <responseIf><isNull><variable identifier="RESPONSE"/></isNull>
                <setOutcomeValue identifier="SCORE"><baseValue baseType="float">0</baseValue></setOutcomeValue></responseIf>
            <responseElse>
                <setOutcomeValue identifier="SCORE"><mapResponse identifier="RESPONSE"/></setOutcomeValue></responseElse>
        </responseCondition></responseProcessing>""",
    "map_response_point": """
        <responseProcessing>
            <setOutcomeValue identifier="SCORE"><mapResponsePoint identifier="RESPONSE"/></setOutcomeValue>
        </responseProcessing>""",
}

_WHERE = "the points depend on where a point lies"
_DRAWN = "is drawn anew for each attempt"
_TEST = "is about the items of a test, not about a response"
_REASONS = {
    "mapResponsePoint": _WHERE,
    "inside": _WHERE,
    "customOperator": "customOperator means what its maker says, not what QTI says",
    "randomInteger": f"a number (randomInteger) {_DRAWN}",
    "randomFloat": f"a number (randomFloat) {_DRAWN}",
    "random": f"a value (random) {_DRAWN}",
    "include": "a part of the processing (include) stands in another file",
} | {
    tag: f"{tag} {_TEST}"
    for tag in (
        "outcomeMaximum",
        "outcomeMinimum",
        "testVariables",
        "numberCorrect",
        "numberIncorrect",
        "numberPresented",
        "numberResponded",
        "numberSelected",
    )
}

#: A pattern without anything but letters to be taken as they are.
_PLAIN = re.compile(r"(?:[^\\.?*+{}()\[\]|^$]|\\[^A-Za-z0-9])*")

_BUILT_IN = ("numAttempts", "duration", "completionStatus", "completion_status", "numSkips")


def number(text: object) -> Fraction | None:
    """The number that a text or a JSON number denotes, or None."""
    if isinstance(text, Fraction):
        return text
    try:
        decimal = Decimal(str(text).strip())
    except InvalidOperation:
        return None
    # Beyond what any double or integer of QTI reaches, an exact fraction would only take time.
    return Fraction(decimal) if decimal.is_finite() and abs(decimal.adjusted()) < 400 else None


def token(text: str, base_type: str) -> str:
    """An identifier, a pair or the like in the one spelling by which it is compared.

    Raises
    ------
    Unreadable
    """
    if base_type not in ("pair", "directedPair"):
        return text.strip()
    ends = text.split()
    if len(ends) != 2:
        raise Unreadable(f"{text.strip()!r} is no pair")
    return " ".join(sorted(ends) if base_type == "pair" else ends)


def _atom(text: str, base_type: str) -> Atom | None:
    match base_type:
        case "identifier" | "pair" | "directedPair":
            return token(text, base_type)
        case "boolean":
            return text.strip() in ("true", "1")
        case "integer" | "float":
            value = number(text)
            if value is None:
                raise Unreadable(f"{text.strip()!r} is no number")
            return value
        case "string":
            return text or None
        case "point":
            raise Unreadable(_WHERE)
        case _:
            raise Unreadable(f"a value of the type {base_type or 'none'} is compared, of which no question is")


@dataclass(frozen=True)
class Declaration:
    """The declaration of a variable: a response, an outcome or a template variable."""

    element: Element

    @property
    def name(self) -> str:
        return self.element.get("identifier", "")

    @property
    def base_type(self) -> str:
        return self.element.get("baseType", "")

    @property
    def cardinality(self) -> str:
        return self.element.get("cardinality", "single")

    def values(self, tag: str) -> Value:
        """What stands in `correctResponse` or `defaultValue`."""
        holder = self.element.find(tag)
        if holder is None:
            # Not in QTI, but written by some as an attribute.
            texts = [self.element.attrib[tag]] if tag in self.element.attrib else []
        else:
            texts = ["".join(value.itertext()) for value in holder.findall("value")]
        if self.cardinality == "record":
            raise Unreadable("a record of several values is used, of which no question is")
        atoms = [atom for text in texts if (atom := _atom(text, self.base_type)) is not None]
        return self.contain(atoms)

    def contain(self, atoms: Sequence[Atom]) -> Value:
        """The value of this variable that consists of these atoms."""
        if not atoms:
            return None
        if self.cardinality == "single":
            if len(atoms) > 1:
                raise Unreadable(f"{self.name} has several values where it may have one")
            return atoms[0]
        return Several(tuple(atoms), self.cardinality == "ordered")

    def given(self, response: object) -> Given:
        """A response as JSON has it: a value, a list of them or null.

        Raises
        ------
        Unreadable
            It has not the shape that is declared.
        """
        items: list[object] = [*response] if isinstance(response, list) else [response]
        texts: list[str | int | Decimal] = []
        for item in items:
            if item is None or item == "":
                continue
            if not isinstance(item, str | int | Decimal):
                raise Unreadable(f"the response {self.name} is neither a text nor a number")
            if self.base_type == "boolean":
                texts.append("true" if str(item).strip().lower() in ("true", "1") else "false")
            elif self.base_type in ("integer", "float"):
                texts.append(item)
            else:
                texts.append(str(item) if self.base_type == "string" else token(str(item), self.base_type))
        if self.cardinality == "single" and len(texts) > 1:
            raise Unreadable(f"the response {self.name} has {len(texts)} values where it may have one")
        return tuple(texts)

    def value(self, given: Given) -> Value:
        """What QTI makes of a response."""
        if given and self.cardinality != "single" and self.base_type in ("string", "integer", "float"):
            raise Unreadable("several texts or numbers are typed into one response")
        match self.base_type:
            case "string":
                return self.contain([Typed(self.name, str(text)) for text in given])
            case "integer" | "float":
                return self.contain([Typed(self.name, found) for text in given if (found := number(text)) is not None])
            case base_type:
                return self.contain([atom for text in given if (atom := _atom(str(text), base_type)) is not None])


class Item:
    """An assessment item.

    Raises
    ------
    Unreadable
        It is no assessment item, or nothing can be said about how it is scored.
    """

    def __init__(self, xml: str | bytes) -> None:
        try:
            # An entity outside the document is never fetched, and libexpat stops those that grow without end.
            root = fromstring(xml)  # noqa: S314
        except (ParseError, ValueError, LookupError) as error:
            raise Unreadable(f"it is no XML: {error}") from None
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        if root.tag != "assessmentItem":
            raise Unreadable(f"it is no assessment item, but <{root.tag}>")
        if root.get("adaptive") == "true":
            raise Unreadable("it is adaptive: a learner tries several times within one attempt")
        self.root = root
        self.responses = self._declared("responseDeclaration")
        self.outcomes = self._declared("outcomeDeclaration")
        self.variables = self.responses | self.outcomes | self._declared("templateDeclaration")
        self.sections = [
            self._processing(section)
            for tag in ("templateProcessing", "responseProcessing", "outcomeProcessing")
            for section in root.findall(tag)
        ]
        #: What each typed response was compared with so far, fixed texts and numbers.
        self.compared: defaultdict[str, set[Fraction | str]] = defaultdict(set)
        #: The same for texts that it was compared with regardless of case.
        self.compared_folded: defaultdict[str, set[str]] = defaultdict(set)
        self._now: dict[str, Value | Unreadable] = {}
        self._set: dict[tuple[str, str], Value] = {}

    def _declared(self, tag: str) -> dict[str, Declaration]:
        found = [Declaration(element) for element in self.root.findall(tag)]
        return {declaration.name: declaration for declaration in found}

    @staticmethod
    def _processing(section: Element) -> Element:
        url = section.get("template")
        if section.tag != "responseProcessing" or url is None or len(section):
            return section
        name = url.rstrip("/").rpartition("/")[2].removesuffix(".xml")
        if name not in _TEMPLATES:
            raise Unreadable(f"the response processing template {name!r} is none of QTI's")
        return fromstring(_TEMPLATES[name])  # noqa: S314 - It is our own text.

    def score(self, responses: Mapping[str, Given]) -> Fraction:
        """The SCORE for these responses, of which those that are missing have their default value; 0 where there is none.

        Raises
        ------
        Unreadable
        """
        self._now, self._set = {}, {}
        for name, declaration in self.variables.items():
            try:
                self._now[name] = declaration.value(responses[name]) if name in responses else self._initial(declaration)
            except Unreadable as reason:
                self._now[name] = reason
        for section in self.sections:
            try:
                self._run(section)
            except _Exit:
                continue
        value = self._variable("SCORE")
        if value is None:
            return Fraction(0)
        if not isinstance(value, Fraction):
            raise Unreadable("SCORE is not a number" if not isinstance(value, Typed) else "SCORE is what the learner typed")
        return value

    def _initial(self, declaration: Declaration) -> Value:
        default = declaration.values("defaultValue")
        is_number = declaration.name in self.outcomes and declaration.base_type in ("integer", "float")
        return Fraction(0) if default is None and is_number and declaration.cardinality == "single" else default

    # Rules

    def _run(self, rules: Element | Sequence[Element]) -> None:
        for rule in rules:
            match rule.tag:
                case "setOutcomeValue" | "setTemplateValue" | "setResponseValue" | "lookupOutcomeValue":
                    self._assign(rule)
                case "setCorrectResponse" | "setDefaultValue":
                    self._declare(rule)
                case "responseCondition" | "outcomeCondition" | "templateCondition":
                    self._branch(rule)
                case "responseProcessingFragment" | "outcomeProcessingFragment":
                    self._run(rule)
                case "exitResponse" | "exitTemplate" | "exitTest":
                    raise _Exit
                case "templateConstraint":
                    self._constrain(rule)
                case _:
                    raise Unreadable(_REASONS.get(rule.tag, f"the rule <{rule.tag}> is not understood"))

    def _assign(self, rule: Element) -> None:
        name = rule.get("identifier", "")
        try:
            (value,) = self._operands(rule, 1)
            if rule.tag == "lookupOutcomeValue":
                value = self._looked_up(self._declaration(name).element, value)
            self._now[name] = value
        except Unreadable as reason:
            self._now[name] = reason

    def _declare(self, rule: Element) -> None:
        name = rule.get("identifier", "")
        kind = "correctResponse" if rule.tag == "setCorrectResponse" else "defaultValue"
        try:
            if len(rule):
                (self._set[name, kind],) = self._operands(rule, 1)
            elif kind == "defaultValue":
                self._now[name] = self._declaration(name).values(kind)
        except Unreadable as reason:
            self._now[name] = reason

    def _branch(self, rule: Element) -> None:
        for part in rule:
            rules = list(part)
            if not part.tag.endswith("Else"):
                if not rules:
                    raise Unreadable(f"<{part.tag}> has no condition")
                try:
                    if not self._holds(rules[0]):
                        continue
                except Unreadable as reason:
                    self._spoil(rule, reason)
                    return
                rules = rules[1:]
            self._run(rules)
            return

    def _spoil(self, rule: Element, reason: Unreadable) -> None:
        """Nobody knows which branch is taken, so nobody knows what any of them sets."""
        names = {inner.get("identifier", "") for inner in rule.iter() if inner.tag.startswith(("set", "lookupOutcome"))}
        if any(inner.tag.startswith("exit") for inner in rule.iter()):
            names |= self.variables.keys()
        self._now.update(dict.fromkeys(names, reason))

    def _constrain(self, rule: Element) -> None:
        try:
            holds = len(rule) == 1 and self._holds(rule[0])
        except Unreadable:
            # What is drawn is unreadable by itself already.
            return
        if not holds:
            raise Unreadable("its template constraint can't be met")

    # Expressions

    def _declaration(self, name: str) -> Declaration:
        if name not in self.variables:
            if name in _BUILT_IN:
                raise Unreadable(f"it depends on {name}, which answers don't tell")
            raise Unreadable(f"the variable {name} is not declared")
        return self.variables[name]

    def _variable(self, name: str) -> Value:
        if name not in self._now:
            self._declaration(name)
        value = self._now[name]
        if isinstance(value, Unreadable):
            raise value
        return value

    def _fixed(self, name: str, kind: str) -> Value:
        if (name, kind) in self._set:
            return self._set[name, kind]
        return self._declaration(name).values(kind)

    def _holds(self, expression: Element) -> bool:
        return self._truth(self._value(expression), expression) is True

    @staticmethod
    def _truth(value: Value, expression: Element) -> bool | None:
        if value is not None and not isinstance(value, bool):
            raise Unreadable(f"<{expression.tag}> is neither true nor false")
        return value

    def _operands(self, expression: Element, count: int | None = None) -> list[Value]:
        if count is not None and len(expression) != count:
            raise Unreadable(f"<{expression.tag}> has {len(expression)} operands")
        return [self._value(operand) for operand in expression]

    def _value(self, expression: Element) -> Value:
        tag, name = expression.tag, expression.get("identifier", "")
        match tag:
            case "baseValue":
                return _atom("".join(expression.itertext()), expression.get("baseType", ""))
            case "null":
                return None
            case "variable":
                return self._variable(name)
            case "correct":
                return self._fixed(name, "correctResponse")
            case "default":
                return self._fixed(name, "defaultValue")
            case "mapResponse":
                return self._mapped(self._declaration(name))
            case "lookupTable":
                return self._looked_up(expression, self._value(expression[0]) if len(expression) else None)
            case "isNull" | "isNotNull":
                (value,) = self._operands(expression, 1)
                return (value is None) == (tag == "isNull")
            case "not" | "and" | "or" | "anyN":
                truths = [self._truth(self._value(operand), operand) for operand in expression]
                return self._combined(expression, truths)
            case "match" | "equal" | "stringMatch" | "patternMatch" | "equalRounded":
                left, right = self._operands(expression, 2)
                return None if left is None or right is None else self._equal(expression, left, right)
            case "gt" | "lt" | "gte" | "lte":
                left, right = self._operands(expression, 2)
                return None if left is None or right is None else self._compared(tag, left, right)
            case "member" | "contains" | "delete":
                left, right = self._operands(expression, 2)
                return self._contained(tag, left, right)
            case "multiple" | "ordered":
                return self._container(self._operands(expression), in_order=tag == "ordered")
            case "containerSize":
                (value,) = self._operands(expression, 1)
                return Fraction(len(self._items(value)))
            case "index":
                (value,) = self._operands(expression, 1)
                place = number(expression.get("n"))
                items = self._items(value)
                return items[int(place) - 1] if place is not None and 1 <= place <= len(items) else None
            case _ if tag in _ARITHMETIC:
                return self._calculated(expression)
            case _:
                raise Unreadable(_REASONS.get(tag, f"the expression <{tag}> is not understood"))

    @staticmethod
    def _combined(expression: Element, truths: list[bool | None]) -> bool | None:
        """QTI's three-valued logic: NULL where the known operands don't decide."""
        known, unknown = [truth for truth in truths if truth is not None], truths.count(None)
        match expression.tag:
            case "not":
                return None if unknown or not known else not known[0]
            case "and":
                return False if not all(known) else None if unknown else True
            case "or":
                return True if any(known) else None if unknown else False
            case _:
                least, most = (number(expression.get(bound, default)) for bound, default in (("min", "0"), ("max", len(truths))))
                if least is None or most is None:
                    raise Unreadable("the bounds of anyN are no numbers")
                right = sum(known)
                if right > most or right + unknown < least:
                    return False
                return True if least <= right and right + unknown <= most else None

    @staticmethod
    def _items(value: Value) -> tuple[Atom, ...]:
        return value.items if isinstance(value, Several) else () if value is None else (value,)

    def _container(self, values: Sequence[Value], *, in_order: bool) -> Value:
        items = tuple(item for value in values for item in self._items(value))
        return Several(items, in_order) if items else None

    def _same(self, left: Atom, right: Atom, *, fold: bool = False) -> bool:
        """Whether two atoms are equal; what is typed is remembered to have been compared."""
        if isinstance(right, Typed):
            left, right = right, left
        if isinstance(right, Typed):
            raise Unreadable("two typed responses are compared with one another")
        if isinstance(left, Typed):
            other = number(right) if isinstance(left.value, Fraction) else str(right)
            if other is None or isinstance(right, bool):
                return False
            if fold and isinstance(other, str):
                self.compared_folded[left.response].add(other)
            else:
                self.compared[left.response].add(other)
            left, right = left.value, other
        if isinstance(left, str) and isinstance(right, str):
            return folded(left) == folded(right) if fold else left == right
        if isinstance(left, bool) != isinstance(right, bool):
            return str(left).lower() == str(right).lower()
        return left == right

    def _equal(self, expression: Element, left: Value, right: Value) -> bool | None:
        if isinstance(left, Several) or isinstance(right, Several):
            return self._same_items(self._items(left), self._items(right), in_order=self._in_order(left) or self._in_order(right))
        if left is None or right is None:
            return None
        match expression.tag:
            case "stringMatch":
                if expression.get("substring") == "true":
                    raise Unreadable("a part of the text is enough")
                return self._same(left, right, fold=expression.get("caseSensitive", "true") == "false")
            case "patternMatch":
                pattern = expression.get("pattern", right)
                return self._same(left, _plain(pattern), fold=expression.get("caseSensitive", "true") == "false")
            case "equal" if expression.get("toleranceMode", "exact") != "exact":
                return self._near(expression, left, right)
            case "equalRounded":
                raise Unreadable("numbers are compared after rounding them (equalRounded)")
            case _:
                return self._same(left, right)

    @staticmethod
    def _in_order(value: Value) -> bool:
        return isinstance(value, Several) and value.in_order

    def _same_items(self, left: tuple[Atom, ...], right: tuple[Atom, ...], *, in_order: bool) -> bool:
        if len(left) != len(right):
            return False
        if in_order:
            return all(self._same(*pair) for pair in zip(left, right, strict=True))
        rest = [*right]
        for item in left:
            found = next((other for other in rest if self._same(item, other)), None)
            if found is None:
                return False
            rest.remove(found)
        return True

    def _near(self, expression: Element, left: Atom, right: Atom) -> bool:
        """Whether the second number lies around the first, as far as the tolerance goes."""
        given = [number(text) for text in expression.get("tolerance", "").split()]
        known = [distance for distance in given if distance is not None]
        if not known or len(known) != len(given) or len(known) > 2:
            raise Unreadable("the tolerance is no number")
        below, above = known[0], known[-1]
        relative = expression.get("toleranceMode") == "relative"
        low, high = (1 - below / 100, 1 + above / 100) if relative else (-below, above)

        def around(centre: Fraction) -> list[Fraction]:
            return sorted([centre * low, centre * high] if relative else [centre + low, centre + high])

        centre, other = _figure(left, "equal"), _figure(right, "equal")
        if isinstance(left, Typed) and isinstance(right, Typed):
            raise Unreadable("two typed responses are compared with one another")
        if isinstance(right, Typed):
            self.compared[right.response].update(around(centre))
        elif isinstance(left, Typed):
            ends = [other / factor for factor in (low, high) if factor] if relative else [other - low, other - high]
            self.compared[left.response].update([*ends, Fraction(0)])
        least, most = around(centre)
        includes = [expression.get(f"include{bound}Bound", "true") == "true" for bound in ("Lower", "Upper")]
        return (least < other or (includes[0] and least == other)) and (other < most or (includes[1] and other == most))

    def _compared(self, tag: str, left: Value, right: Value) -> bool:
        if isinstance(left, Typed) and isinstance(right, Typed):
            raise Unreadable("two typed responses are compared with one another")
        first, second = _figure(left, tag), _figure(right, tag)
        for one, other in ((left, second), (right, first)):
            if isinstance(one, Typed):
                self.compared[one.response].add(other)
        return {"gt": first > second, "lt": first < second, "gte": first >= second, "lte": first <= second}[tag]

    def _contained(self, tag: str, left: Value, right: Value) -> Value:
        if left is None or right is None:
            return None
        if tag == "member":
            if isinstance(left, Several):
                raise Unreadable("<member> asks for several values at once")
            return any(self._same(left, item) for item in self._items(right))
        if tag == "delete":
            container, values = left, right
            # QTI writes the value first, and some write the container first.
            if isinstance(right, Several) and not isinstance(left, Several):
                container, values = right, left
            dropped = self._items(values)
            kept = [item for item in self._items(container) if not any(self._same(item, other) for other in dropped)]
            return self._container(kept, in_order=self._in_order(container))
        outer, inner = self._items(left), self._items(right)
        if self._in_order(left):
            ends = range(len(inner), len(outer) + 1)
            return any(self._same_items(outer[end - len(inner) : end], inner, in_order=True) for end in ends)
        rest = [*outer]
        for item in inner:
            found = next((other for other in rest if self._same(item, other)), None)
            if found is None:
                return False
            rest.remove(found)
        return True

    def _mapped(self, declaration: Declaration) -> Fraction:
        """The sum of what each distinct value maps to, within the bounds; 0 when there is no response."""
        if declaration.base_type == "point":
            raise Unreadable("mapResponse is used for points, for which QTI doesn't define it")
        mapping = declaration.element.find("mapping")
        if mapping is None:
            raise Unreadable(f"mapResponse is used for {declaration.name}, which has no mapping")
        default, lowest, highest = (number(mapping.get(name)) for name in ("defaultValue", "lowerBound", "upperBound"))
        entries = [
            (_atom(entry.get("mapKey", ""), declaration.base_type), number(entry.get("mappedValue")), entry.get("caseSensitive"))
            for entry in mapping.findall("mapEntry")
        ]
        items = dict.fromkeys(self._items(self._variable(declaration.name)))
        if not items:
            return Fraction(0)
        total = Fraction(0)
        for item in items:
            points = default or Fraction(0)
            # All entries are looked at, also behind the right one, so that all are known to have been compared.
            for key, mapped, case_sensitive in reversed(entries):
                fold = (case_sensitive or mapping.get("caseSensitive", "true")) == "false"
                if key is None or mapped is None:
                    raise Unreadable("an entry of the mapping has no key or no number")
                if self._same(item, key, fold=fold and declaration.base_type == "string"):
                    points = mapped
            total += points
        if lowest is not None:
            total = max(total, lowest)
        return total if highest is None else min(total, highest)

    def _looked_up(self, holder: Element, source: Value) -> Value:
        table = holder.find("matchTable")
        steps = holder.find("interpolationTable")
        if isinstance(source, Several) or (table is None and steps is None):
            raise Unreadable("a value is looked up without a table")
        default = number((table if table is not None else steps if steps is not None else holder).get("defaultValue"))
        if source is None:
            return default
        for entry in table.findall("matchTableEntry") if table is not None else ():
            key, target = number(entry.get("sourceValue")), number(entry.get("targetValue"))
            if key is None or target is None:
                raise Unreadable("an entry of a table is no number")
            if self._same(source, key):
                return target
        for entry in steps.findall("interpolationTableEntry") if steps is not None else ():
            key, target = number(entry.get("sourceValue")), number(entry.get("targetValue"))
            if key is None or target is None:
                raise Unreadable("an entry of a table is no number")
            if self._compared("gte" if entry.get("includeBoundary", "true") == "true" else "gt", source, key):
                return target
        return default

    def _calculated(self, expression: Element) -> Value:
        figures: list[Fraction] = []
        for operand in self._operands(expression):
            if operand is None:
                return None
            for item in self._items(operand):
                if isinstance(item, Typed):
                    raise Unreadable(f"the points are calculated from the {_kind(item)} given ({expression.tag})")
                figures.append(_figure(item, expression.tag))
        try:
            return Fraction(_ARITHMETIC[expression.tag](*figures))
        except (TypeError, ZeroDivisionError, ValueError):
            # QTI: a result that doesn't exist, such as a division by 0, is NULL.
            return None


def folded(text: str) -> str:
    """The text without regard to case."""
    return unicodedata.normalize("NFC", text.casefold())


def _kind(typed: Typed) -> str:
    return "number" if isinstance(typed.value, Fraction) else "text"


def _figure(value: Value, tag: str) -> Fraction:
    figure = value.value if isinstance(value, Typed) else value
    if not isinstance(figure, Fraction):
        raise Unreadable(f"<{tag}> has an operand that is no number")
    return figure


def _plain(pattern: Value) -> str:
    """The one text that a regular expression matches."""
    if not isinstance(pattern, str):
        raise Unreadable("a pattern is no text")
    if not _PLAIN.fullmatch(pattern):
        raise Unreadable(f"the right texts are those of a pattern ({pattern})")
    return re.sub(r"\\(.)", r"\1", pattern)


def _product(*figures: Fraction) -> Fraction:
    return math.prod(figures, start=Fraction(1))


_ARITHMETIC: dict[str, Callable[..., Fraction | int]] = {
    "sum": lambda *figures: sum(figures, Fraction(0)),
    "product": _product,
    "subtract": lambda left, right: left - right,
    "divide": lambda left, right: left / right,
    "integerDivide": lambda left, right: left // right,
    "integerModulus": lambda left, right: left % right,
    "integerToFloat": lambda figure: figure,
    "truncate": lambda figure: math.trunc(figure),
    # QTI rounds a half up, also below 0.
    "round": lambda figure: math.floor(figure + Fraction(1, 2)),
    "min": lambda *figures: min(figures),
    "max": lambda *figures: max(figures),
}
