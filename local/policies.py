"""The table of rights in docs/policies.md, read from template.yaml: `python -m local.policies [--check]`."""

import argparse
import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from local import template

DOCUMENT = template.PROJECT / "docs" / "policies.md"

INTRODUCTION = """# Rights

Who may do what, as `template.yaml` says; written by `make policies`, never by hand. Names are logical ids of the template.
An asterisk has its reason beside it, which stands in the template as the comment above its statement."""

OUTSIDE = """## Made by SAM

Each alias may be invoked by the gateway, for the routes that lead to it, or by the rule of its schedule, and by nobody else.
`CodeDeployServiceRole` is taken by CodeDeploy, with AWS's own policy `AWSCodeDeployRoleForLambda`, to move aliases from one
version to the next. A worker's queue is read by Lambda in the worker's role."""


class PolicyError(Exception):
    """A statement is about everything and does not say why; the message says which."""


class _Loader(template._Loader):
    """Keeps the comment above each statement, as `Reason`."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if "Effect" in mapping:
            mapping["Reason"] = self._comment(node.start_mark.line)
        return mapping

    def _comment(self, line: int) -> str:
        lines: list[str] = []
        while (above := self.source[line - 1].strip()).startswith("#"):
            lines.insert(0, above.lstrip("# "))
            line -= 1
        return " ".join(lines)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.source = text.splitlines()


def document(text: str) -> str:
    """Write the document for the text of a template. Raises PolicyError."""
    resources: dict[str, Any] = _Loader(text).get_single_data()["Resources"]
    functions = {name: r["Properties"] for name, r in resources.items() if r["Type"] == "AWS::Serverless::Function"}
    roles = {name: r["Properties"] for name, r in resources.items() if r["Type"] == "AWS::IAM::Role"}
    shared = {name: r["Properties"] for name, r in resources.items() if r["Type"] == "AWS::IAM::ManagedPolicy"}
    parts = [INTRODUCTION]

    owners = {properties["Role"]["Fn::GetAtt"][0]: name for name, properties in functions.items()}
    rows = [["function", "policies", "may", "on"]]
    for role, name in owners.items():
        policies = ", ".join(arn["Ref"] for arn in roles[role]["ManagedPolicyArns"])
        own = [_row(name, s)[2:4] for policy in roles[role].get("Policies", []) for s in _statements(policy["PolicyDocument"])]
        rows += [[f"`{name}`", policies, *cells] for cells in own[:1] or [["nothing", ""]]]
        rows += [["", "", *cells] for cells in own[1:]]
    parts += ["## Functions\n\nEach has a role of its own, which Lambda alone may take. What it may do by itself:", _table(rows)]

    for name, properties in shared.items():
        has = [owner for role, owner in owners.items() if {"Ref": name} in roles[role]["ManagedPolicyArns"]]
        who = "every function has" if len(has) == len(functions) else f"{', '.join(f'`{one}`' for one in has)} have"
        statements = [_row(name, s) for s in _statements(properties["PolicyDocument"])]
        heading = f"## `{name}`\n\nWhat {who} besides:"
        parts += [heading, _table([["effect", "what", "on", "if", "because"], *([r[1], *r[2:]] for r in statements)])]

    rows = [["role", "taken by", "may", "on"]]
    for role in [name for name in roles if name not in owners]:
        (trust,) = _statements(roles[role]["AssumeRolePolicyDocument"])
        for policy in roles[role]["Policies"]:
            for statement in _statements(policy["PolicyDocument"]):
                rows.append([f"`{role}`", _principal(trust["Principal"]), *_row(role, statement)[2:4]])
    parts += ["## Other roles", _table(rows)]

    rows = [["of", "effect", "who", "what", "on", "if", "because"]]
    attached: set[str] = set()
    for name, resource in resources.items():
        properties = resource.get("Properties", {})
        policy = properties.get("KeyPolicy") or properties.get("PolicyDocument")
        if policy is None or name in shared:
            continue
        places = properties.get("Queues") or [properties.get("Bucket", {"Ref": name})]
        attached |= {place["Ref"] for place in places}
        for statement in _statements(policy):
            effect, *rest = _row(name, statement)[1:]
            rows.append([", ".join(f"`{place['Ref']}`" for place in places), effect, _principal(statement["Principal"]), *rest])
    bare = [name for name, r in resources.items() if r["Type"] in ("AWS::Events::EventBus", "AWS::SNS::Topic")]
    none = ", ".join(f"`{name}`" for name in bare if name not in attached)
    heading = "## What queues, documents, keys and endpoints let through\n\nIn addition to the role of whoever comes."
    parts += [f"{heading} Without a policy, and so for this account's roles alone: {none}.", _table(rows)]
    return "\n\n".join([*parts, OUTSIDE]) + "\n"


def _statements(policy: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a policy's statements; `Only` names the condition of the template that one is subject to."""
    for statement in policy["Statement"]:
        if "Fn::If" in statement:
            name, yes, _ = statement["Fn::If"]
            yield {**yes, "Only": name}
        else:
            yield statement


def _row(name: str, statement: dict[str, Any]) -> list[str]:
    """Return the name, effect, actions, resources, conditions and reason of a statement."""
    actions, given = _several(statement["Action"]), _several(statement["Resource"])
    places = [_resource(resource) for resource in given]
    # What comes after the name of something in the template is a part of it; anything else with an asterisk is everything.
    everything = [place for place, resource in zip(places, given, strict=True) if "*" in place and not _names(resource)]
    if everything and not statement["Reason"]:
        raise PolicyError(f"template.yaml: {name} has {', '.join(actions)} on {everything[0]} without a comment that says why")
    conditions = [
        f"{key} {operator} {_resource(value)}"
        for operator, pairs in statement.get("Condition", {}).items()
        for key, value in pairs.items()
    ]
    if "Only" in statement:
        conditions.append(f"the template's condition {statement['Only']}")
    cells = [", ".join(f"`{one}`" for one in column) for column in (actions, places, conditions)]
    return [name, statement["Effect"], *cells, statement["Reason"] if everything else ""]


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _names(value: Any) -> list[str]:
    """Return the resources of the template that a value refers to."""
    match value:
        case {"Ref": str(name)} if "::" not in name:
            return [name]
        case {"Fn::GetAtt": [str(name), *_]}:
            return [name]
        case {"Fn::Sub": [str(text), dict(own)]}:
            return _names({"Fn::Sub": text}) + _names(own) if own else []
        case {"Fn::Sub": str(text)}:
            return re.findall(r"\$\{(\w+)\.\w+\}", text)
        case dict():
            return [name for item in value.values() for name in _names(item)]
        case list():
            return [name for item in value for name in _names(item)]
        case _:
            return []


def _resource(value: Any) -> str:
    """Return what a resource is called in the template; of an ARN, what comes after the account."""
    match value:
        case {"Fn::Sub": given}:
            text, own = given if isinstance(given, list) else (given, {})
            text = re.sub(r"\$\{AWS::(\w+)\}", r"\1", re.sub(r"\$\{(\w+)\.\w+\}", r"\1", text))
            for name, one in own.items():
                text = text.replace(f"${{{name}}}", ", ".join(_names(one)) or f"<{name.lower()}>")
            return re.sub(r"^arn:Partition:[\w-]+:\w*:\w*:", "", text)
        case {"Ref": "AWS::AccountId"}:
            return "this account"
        case dict() | list():
            return ", ".join(_names(value))
        case bool():
            return str(value).lower()
        case _:
            return str(value)


def _principal(principal: Any) -> str:
    match principal:
        case "*":
            return "everybody"
        case {"Service": str(service)}:
            return f"`{service}`"
        case {"AWS": {"Fn::Sub": str(text)}} if text.endswith("${AWS::AccountId}:root"):
            return "roles of this account, by their policies"
        case {"AWS": {"Ref": str(name)}}:
            return f"the accounts in `{name}`"
        case _:
            raise PolicyError(f"template.yaml: who is {principal}?")


def _table(rows: list[list[str]]) -> str:
    # A column without a word in it is left out.
    used = [n for n in range(len(rows[0])) if any(row[n] for row in rows[1:])]
    kept = [[row[n] for n in used] for row in rows]
    lines = [kept[0], ["---"] * len(used), *kept[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write the document, or with --check fail if the committed one is another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare with docs/policies.md")
    try:
        text = document((template.PROJECT / "template.yaml").read_text())
    except PolicyError as error:
        sys.exit(str(error))
    if not parser.parse_args().check:
        DOCUMENT.write_text(text)
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != text:
        sys.exit("docs/policies.md differs from template.yaml: run `make policies` and commit it")


if __name__ == "__main__":
    main()
