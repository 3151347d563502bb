"""The stack as CloudFormation gets it: what SAM makes of the template, and what is left of that for given parameters."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
ACCOUNT = "123456789012"
REGION = "eu-west-1"
NAME = "learner-progress"
#: What `AWS::NoValue` stands for; whatever has it as its value is not there.
NOTHING = object()
PSEUDO: dict[str, Any] = {
    "AWS::NoValue": NOTHING,
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackName": NAME,
    "AWS::URLSuffix": "amazonaws.com",
}

JWT = {"JwtIssuer": "https://iam.example.org", "PublicBaseUrl": "https://certificates.example.org"}

#: As samconfig.toml has them, and with everything that may be given.
PARAMETERS = {
    "dev": {**JWT, "Stage": "dev", "LogRetentionDays": "7"},
    "prod": {**JWT, "Stage": "prod", "LogRetentionDays": "90", "AlarmEmail": "operations@example.org"},
    "everything": {
        **JWT,
        "Stage": "prod",
        "Architecture": "x86_64",
        "AlarmEmail": "operations@example.org",
        "VpcId": "vpc-1",
        "SubnetIds": "subnet-1,subnet-2",
        "SecurityGroupId": "sg-1",
        "DatabaseInstanceClass": "db.serverless",
        "DatabaseSnapshot": f"arn:aws:rds:{REGION}:{ACCOUNT}:cluster-snapshot:before",
        "DomainCertificateArn": f"arn:aws:acm:{REGION}:{ACCOUNT}:certificate/1",
        "HostedZoneId": "Z1",
        "ProducerAccounts": "210987654321,321098765432",
        "CorsOrigins": "https://one.example.org,https://two.example.org",
    },
}

# SAM's translator wants another pydantic than the functions have, so it runs where the SAM CLI is.
TRANSLATE = """
import json, sys
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

text, sets = json.load(sys.stdin)
translated = {}
for name, parameters in sets.items():
    template = yaml_parse(text)
    for resource in template["Resources"].values():
        for key in ("CodeUri", "ContentUri"):
            if key in resource.get("Properties", {}):
                resource["Properties"][key] = "s3://artifacts/" + resource["Properties"][key].strip("/")
    translated[name] = Translator(None, Parser()).translate(template, parameters)
json.dump(translated, sys.stdout)
"""


def translate(text: str, sets: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Return what SAM makes of a template for each set of parameters."""
    done = subprocess.run(
        [PROJECT / ".tools" / "sam" / "bin" / "python", "-c", TRANSLATE],
        input=json.dumps([text, sets]),
        env={"AWS_DEFAULT_REGION": REGION},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Resolver:
    """Replaces conditions, parameters and functions of text by what they mean for given parameters, as CloudFormation does.

    What only a resource that exists can tell, `Ref` and `Fn::GetAtt` of one, stays as it is, and a function with such a part too.
    """

    def __init__(self, template: dict[str, Any], parameters: dict[str, str]) -> None:
        self.values = dict(PSEUDO)
        for name, declared in template["Parameters"].items():
            value = parameters.get(name, declared.get("Default"))
            assert value is not None, f"{name} must be given"
            assert str(value) in [str(one) for one in declared.get("AllowedValues", [value])]
            assert re.search(declared.get("AllowedPattern", ""), str(value))
            self.values[name] = str(value).split(",") if declared["Type"] == "CommaDelimitedList" else str(value)
        self._conditions = template["Conditions"]
        self._resources = template["Resources"]

    def condition(self, name: str) -> bool:
        return self(self._conditions[name])

    def resources(self) -> dict[str, Any]:
        """Return what is made."""
        made = {n: r for n, r in self._resources.items() if "Condition" not in r or self.condition(r["Condition"])}
        return {name: self({key: value for key, value in r.items() if key != "Metadata"}) for name, r in made.items()}

    def __call__(self, value: Any) -> Any:
        match value:
            case {"Ref": name, **rest} if not rest and name in self.values:
                return self.values[name]
            case {"Condition": str(name), **rest} if not rest:
                return self.condition(name)
            case {"Fn::If": [name, yes, no]}:
                return self(yes if self.condition(name) else no)
            case {"Fn::Equals": [left, right]}:
                return self(left) == self(right)
            case {"Fn::Not": [one]}:
                return not self(one)
            case {"Fn::And": several}:
                return all(self(one) for one in several)
            case {"Fn::Sub": given}:
                return self._sub(*given) if isinstance(given, list) else self._sub(given, {})
            case {"Fn::Join": [separator, parts]}:
                parts = self(parts)
                literal = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
                return separator.join(parts) if literal else {"Fn::Join": [separator, parts]}
            case {"Fn::Split": [separator, text]}:
                text = self(text)
                return text.split(separator) if isinstance(text, str) else {"Fn::Split": [separator, text]}
            case {"Fn::Select": [index, several]}:
                several = self(several)
                return several[int(index)] if isinstance(several, list) else {"Fn::Select": [index, several]}
            case dict():
                return {key: item for key, given in value.items() if (item := self(given)) is not NOTHING}
            case list():
                return [item for given in value if (item := self(given)) is not NOTHING]
            case _:
                return value

    def _sub(self, text: str, own: dict[str, Any]) -> Any:
        values = self.values | self(own)
        replaced = re.sub(
            r"\$\{([\w:]+)\}", lambda found: values[found[1]] if isinstance(values.get(found[1]), str) else found[0], text
        )
        kept = {name: value for name, value in values.items() if name in own and not isinstance(value, str)}
        if "${" not in replaced:
            return replaced
        return {"Fn::Sub": [replaced, kept] if kept else replaced}


def references(value: Any) -> Iterator[tuple[str, str | None]]:
    """Yield the resources that a value refers to, with the attribute that it asks for."""
    match value:
        case {"Ref": str(name), **rest} if not rest:
            yield name, None
        case {"Fn::GetAtt": [str(name), str(attribute)]}:
            yield name, attribute
        case {"Fn::Sub": given}:
            text, own = given if isinstance(given, list) else (given, {})
            yield from references(list(own.values()))
            for name, attribute in re.findall(r"\$\{(\w+)(?:\.([\w.]+))?\}", text):
                if name not in own:
                    yield name, attribute or None
        case dict():
            for item in value.values():
                yield from references(item)
        case list():
            for item in value:
                yield from references(item)
        case _:
            pass
