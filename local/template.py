"""What the local service needs of `template.yaml`, with the intrinsic functions resolved to local values."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = "123456789012"
REGION = "eu-west-1"
STACK = "learner-progress"
PROJECT = Path(__file__).parent.parent


class TemplateError(Exception):
    """The template says something that the local service doesn't understand; the message says what."""


@dataclass(frozen=True)
class Function:
    """A Lambda function: `module` has its handler; timeout in seconds, memory in MB; layers by logical id."""

    name: str
    module: str
    timeout: int
    memory: int
    layers: list[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class Route:
    """A route of the HTTP API: method `ANY` matches all, path `$default` is taken when no other route matches."""

    method: str
    path: str
    function: str
    public: bool


@dataclass(frozen=True)
class Source:
    """An event source mapping: `function` gets the messages of `queue` in batches of at most `batch_size`."""

    queue: str
    function: str
    batch_size: int
    partial_responses: bool


@dataclass(frozen=True)
class Rule:
    """A rule of an EventBridge bus; `pattern` is JSON, `targets` as PutTargets takes them."""

    name: str
    bus: str
    pattern: str
    targets: list[dict[str, Any]]


@dataclass(frozen=True)
class Template:
    """The stack as it is on this computer; queues by logical id with the attributes that CreateQueue takes.

    `schedules` are the functions that are started by the clock.
    """

    functions: dict[str, Function]
    routes: list[Route]
    sources: list[Source]
    schedules: list[str]
    queues: dict[str, dict[str, str]]
    buckets: list[str]
    buses: list[str]
    rules: list[Rule]
    issuer: str
    audience: list[str]


def queue_url(endpoint: str, name: str) -> str:
    """Return the address of a queue on the stand-in for AWS."""
    return f"{endpoint}/{ACCOUNT}/{name}"


def bucket(name: str) -> str:
    """Return what a bucket is called on the stand-in, by its logical id."""
    return f"{STACK}-{name.lower()}"


def read(parameters: dict[str, str], endpoint: str, path: Path = PROJECT / "template.yaml") -> Template:
    """Read the template.

    parameters: values for the template's parameters; the others have their defaults. A resource may be given a value too, as
    the keys are that the stand-in for KMS can't sign with. `DatabaseUrl` is the address of this computer's database, which
    takes the place of what the template makes: every function logs in by it, and none by IAM.
    endpoint: address of the stand-in for AWS, which is part of every queue's address.
    Raises TemplateError.
    """
    document = yaml.load(path.read_text(), _Loader)  # noqa: S506 - it is a SafeLoader.
    resolve = _Resolver(document, parameters, endpoint)
    common = document.get("Globals", {}).get("Function", {})
    functions: dict[str, Function] = {}
    routes: list[Route] = []
    sources: list[Source] = []
    schedules: list[str] = []
    queues: dict[str, dict[str, str]] = {}
    buckets: list[str] = []
    buses: list[str] = []
    rules: list[Rule] = []
    issuer, audience = "", []
    for name, resource in document["Resources"].items():
        properties = resource.get("Properties", {})
        match resource["Type"]:
            case "AWS::Serverless::Function":
                functions[name] = _function(name, common, properties, resolve)
                for event in properties.get("Events", {}).values():
                    if event["Type"] == "HttpApi":
                        routes.append(_route(name, event["Properties"]))
                    elif event["Type"] == "SQS":
                        sources.append(_source(name, resolve(event["Properties"])))
                    elif event["Type"] == "Schedule":
                        schedules.append(name)
            case "AWS::Serverless::HttpApi":
                auth = properties["Auth"]
                jwt = resolve(auth["Authorizers"][auth["DefaultAuthorizer"]]["JwtConfiguration"])
                issuer, audience = jwt["issuer"], jwt["audience"]
            case "AWS::SQS::Queue":
                queues[name] = {key: _attribute(value) for key, value in resolve(properties).items()}
            case "AWS::S3::Bucket":
                buckets.append(bucket(name))
            case "AWS::Events::EventBus":
                buses.append(resolve(properties["Name"]))
            case "AWS::Events::Rule":
                values = resolve(properties)
                targets = [{"Id": target["Id"], "Arn": target["Arn"]} for target in values["Targets"]]
                rules.append(Rule(name, values["EventBusName"], json.dumps(values["EventPattern"]), targets))
            case _:
                # Layers, log groups and policies have no counterpart on this computer.
                pass
    return Template(functions, routes, sources, schedules, queues, buckets, buses, rules, issuer, audience)


def _function(name: str, common: dict[str, Any], properties: dict[str, Any], resolve: "_Resolver") -> Function:
    merged = common | properties
    variables = {**common.get("Environment", {}).get("Variables", {}), **properties.get("Environment", {}).get("Variables", {})}
    if "DATABASE_URL" in variables:
        on_aws_alone = ("DATABASE_IAM_AUTH", "DATABASE_AUTHORITIES")
        variables = {key: value for key, value in variables.items() if key not in on_aws_alone}
        variables["DATABASE_URL"] = {"Ref": "DatabaseUrl"}
    return Function(
        name=name,
        module=".".join([*Path(merged["CodeUri"]).parts, "app"]),
        timeout=merged["Timeout"],
        memory=merged["MemorySize"],
        layers=[layer["Ref"] for layer in common.get("Layers", []) + properties.get("Layers", [])],
        environment={key: str(resolve(value)) for key, value in variables.items()},
    )


def _route(function: str, properties: dict[str, Any]) -> Route:
    public = properties.get("Auth", {}).get("Authorizer") == "NONE"
    return Route(properties["Method"].upper(), properties["Path"], function, public)


def _source(function: str, properties: dict[str, Any]) -> Source:
    return Source(
        queue=properties["Queue"].rsplit(":", 1)[1],
        function=function,
        batch_size=properties.get("BatchSize", 10),
        partial_responses="ReportBatchItemFailures" in properties.get("FunctionResponseTypes", []),
    )


def _attribute(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class _Loader(yaml.SafeLoader):
    """Reads the short form of the intrinsic functions into their long form."""


def _get_att(loader: yaml.SafeLoader, node: yaml.Node) -> dict[str, list[str]]:
    return {"Fn::GetAtt": str(node.value).split(".", 1)}


def _long_form(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.SequenceNode):
        return {f"Fn::{name}": loader.construct_sequence(node, deep=True)}
    return {f"Fn::{name}": node.value}


_Loader.add_multi_constructor("!", _long_form)
_Loader.add_constructor("!Ref", lambda loader, node: {"Ref": node.value})
_Loader.add_constructor("!GetAtt", _get_att)
# A version such as 2012-10-17 is a text in a template, never a date.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Resolver:
    """Replaces `Ref` and `Fn::GetAtt` within a value; these are all that the template uses in what concerns this computer."""

    def __init__(self, document: dict[str, Any], parameters: dict[str, str], endpoint: str) -> None:
        self._resources: dict[str, Any] = document["Resources"]
        self._endpoint = endpoint
        defaults = {name: entry["Default"] for name, entry in document.get("Parameters", {}).items() if "Default" in entry}
        pseudo = {"AWS::Region": REGION, "AWS::AccountId": ACCOUNT, "AWS::StackName": STACK, "AWS::Partition": "aws"}
        self._values: dict[str, Any] = {**pseudo, **defaults, **parameters}

    def __call__(self, value: Any) -> Any:
        match value:
            case {"Ref": str(name), **rest} if not rest:
                return self._ref(name)
            case {"Fn::GetAtt": [str(name), "Arn"], **rest} if not rest and self._type(name) == "AWS::SQS::Queue":
                return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"
            case {"Fn::GetAtt": target}:
                raise TemplateError(f"template.yaml: the local service can't resolve !GetAtt {'.'.join(target)}")
            case dict():
                return {key: self(item) for key, item in value.items()}
            case list():
                return [self(item) for item in value]
            case _:
                return value

    def _type(self, name: str) -> str:
        return self._resources.get(name, {}).get("Type", "")

    def _ref(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        match self._type(name):
            case "AWS::SQS::Queue":
                return queue_url(self._endpoint, name)
            case "AWS::S3::Bucket":
                return bucket(name)
            case "AWS::Events::EventBus":
                return self(self._resources[name]["Properties"]["Name"])
            case _:
                raise TemplateError(f"template.yaml: the local service can't resolve !Ref {name}")
