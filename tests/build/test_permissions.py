"""Who may call a function on AWS: what SAM makes of the template, since the template itself says nothing about it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from local.template import Template

PROJECT = Path(__file__).parents[2]

#: By the SAM CLI's own Python: its translator, with the local folders of code and layers put in place of addresses in S3.
TRANSLATE = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from samcli.lib.translate.sam_template_validator import SamTemplateValidator
from samcli.yamlhelper import yaml_parse
template = yaml_parse(Path("template.yaml").read_text())
given = {"JwtIssuer": "https://iam.example.org", "PublicBaseUrl": "https://certificates.example.org"}
validator = SamTemplateValidator(template, SimpleNamespace(load=dict), region="eu-west-1", parameter_overrides=given)
print(json.dumps(yaml_parse(validator.get_translated_template_if_valid())))
"""


@pytest.fixture(scope="module")
def translated(artifacts: Path) -> dict[str, Any]:
    """The resources that CloudFormation gets."""
    python = PROJECT / ".tools" / "sam" / "bin" / "python"
    done = subprocess.run([python, "-c", TRANSLATE], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["Resources"]


def test_only_the_gateway_may_call_a_function_of_the_api_and_only_for_its_own_routes(
    translated: dict[str, Any], stack: Template
) -> None:
    """So `requestContext`, from which callers are read, is the gateway's word: nobody else in the world can hand in an event."""
    permissions = [r["Properties"] for r in translated.values() if r["Type"] == "AWS::Lambda::Permission"]
    seen: set[tuple[str, str]] = set()
    for permission in permissions:
        assert permission["Action"] == "lambda:InvokeFunction"
        assert permission["Principal"] in ("apigateway.amazonaws.com", "events.amazonaws.com")
        if permission["Principal"] == "events.amazonaws.com":
            assert permission["SourceArn"]["Fn::GetAtt"][1] == "Arn"
            continue
        arn, values = permission["SourceArn"]["Fn::Sub"]
        assert values["__ApiId__"] == {"Ref": "Api"}
        # Any stage of this API, and one route of it.
        place = "arn:${AWS::Partition}:execute-api:${AWS::Region}:${AWS::AccountId}:${__ApiId__}/${__Stage__}/"
        assert arn.startswith(place)
        seen.add((permission["FunctionName"]["Ref"], arn.removeprefix(place)))
    expected = {
        (f"{route.function}Aliaslive", "*" if route.path == "$default" else f"{route.method}{starred(route.path)}")
        for route in stack.routes
    }
    assert seen == expected
    # No function has an address of its own, by which it could be called past the gateway.
    assert not [name for name, resource in translated.items() if resource["Type"] == "AWS::Lambda::Url"]


def starred(path: str) -> str:
    return "/".join("*" if part.startswith("{") else part for part in path.split("/"))


def test_every_route_but_the_public_ones_has_the_authorizer_in_what_the_gateway_gets(
    translated: dict[str, Any], stack: Template
) -> None:
    paths = translated["Api"]["Properties"]["Body"]["paths"]
    for route in stack.routes:
        if route.path != "$default":
            operation = paths[route.path][route.method.lower()]
            assert operation.get("security", [{"NONE": []}]) == ([{"NONE": []}] if route.public else [{"Jwt": []}]), route
