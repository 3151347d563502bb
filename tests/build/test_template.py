"""What the template promises to callers, to the database and to whoever audits it."""

import json
from importlib import import_module
from typing import Any

from aws_lambda_powertools.event_handler.openapi.models import HTTPBearer

from local.template import Template

PUBLIC_ROUTES = {
    ("GET", "/certificates/{certificate_uid}"),
    ("GET", "/status-lists/{number}"),
    ("GET", "/.well-known/did.json"),
    ("GET", "/.well-known/jwks.json"),
    ("GET", "/health"),
    ("ANY", "$default"),
}


def resources(document: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: resource for name, resource in document["Resources"].items() if resource["Type"] == kind}


def test_every_route_but_the_public_ones_asks_for_a_token(stack: Template) -> None:
    assert {(route.method, route.path) for route in stack.routes if route.public} == PUBLIC_ROUTES
    assert len({(route.method, route.path) for route in stack.routes}) == len(stack.routes)


def test_every_function_answers_the_routes_that_reach_it_and_no_others(stack: Template) -> None:
    for name, function in stack.functions.items():
        if not name.endswith("Api"):
            continue
        resolver = import_module(function.module).app
        paths = json.loads(resolver.get_openapi_json_schema(security_schemes={"jwt": HTTPBearer()}))["paths"]
        declared = {
            (method.upper(), path, not operation.get("security"))
            for path, operations in paths.items()
            for method, operation in operations.items()
        }
        # What no route matches is answered by the resolver, without a route of its own.
        routed = {(r.method, r.path, r.public) for r in stack.routes if r.function == name and r.path != "$default"}
        assert declared == routed, name


def test_every_layer_is_built_for_the_architecture_of_the_functions(document: dict[str, Any]) -> None:
    layers = resources(document, "AWS::Serverless::LayerVersion")
    assert layers
    for name, layer in layers.items():
        # Fonts are for every machine.
        if name != "FontsLayer":
            assert layer["Metadata"]["BuildArchitecture"] == {"Ref": "Architecture"}
        assert layer["Properties"]["CompatibleArchitectures"] == [{"Ref": "Architecture"}]
    assert document["Globals"]["Function"]["Architectures"] == [{"Ref": "Architecture"}]


def test_every_queue_has_a_worker_and_a_dead_letter_queue_and_time_enough(stack: Template) -> None:
    sources = {source.queue: source for source in stack.sources}
    assert len(sources) == len(stack.sources)
    assert {name for name in stack.queues if not name.endswith("DeadLetterQueue")} == set(sources)
    for name, source in sources.items():
        redrive = json.loads(stack.queues[name]["RedrivePolicy"])
        assert redrive["deadLetterTargetArn"].endswith(f":{name.removesuffix('Queue')}DeadLetterQueue")
        # AWS's advice for queues that feed Lambda: six times the function's timeout, and five tries at least.
        assert int(stack.queues[name]["VisibilityTimeout"]) >= 6 * stack.functions[source.function].timeout
        assert redrive["maxReceiveCount"] >= 5
        assert source.partial_responses
    assert all(queue["SqsManagedSseEnabled"] == "true" for queue in stack.queues.values())


def test_a_public_route_is_throttled_unless_it_only_says_that_all_is_well(document: dict[str, Any]) -> None:
    throttled = document["Resources"]["Api"]["Properties"]["RouteSettings"]
    assert {tuple(route.split(" ")) for route in throttled} == PUBLIC_ROUTES - {("GET", "/health"), ("ANY", "$default")}


def test_each_function_may_call_of_aws_what_it_needs_and_most_may_call_nothing(document: dict[str, Any], stack: Template) -> None:
    functions = resources(document, "AWS::Serverless::Function")
    allowed = {
        name: [(s["Action"], s["Resource"]) for policy in function["Properties"]["Policies"] for s in policy["Statement"]]
        for name, function in functions.items()
        if "Policies" in function["Properties"]
    }
    documents = {"Sub": "${CertificateBucket.Arn}/certificates/*"}
    keys = [{"GetAtt": "CredentialKey.Arn"}, {"GetAtt": "CredentialJwtKey.Arn"}]
    assert set(allowed) == {"OutboxRelay", "CertificateApi", "CertificateWorker"}
    assert allowed["CertificateApi"] == [("s3:GetObject", documents), ("s3:ListBucket", {"GetAtt": "CertificateBucket.Arn"})]
    assert allowed["CertificateWorker"] == [("s3:PutObject", documents), (["kms:Sign", "kms:GetPublicKey"], keys)]


def test_the_relay_reaches_every_queue(document: dict[str, Any], stack: Template) -> None:
    functions = resources(document, "AWS::Serverless::Function")
    publish, send = functions["OutboxRelay"]["Properties"]["Policies"][0]["Statement"]
    assert (publish["Action"], publish["Resource"]) == ("events:PutEvents", {"GetAtt": "EventBus.Arn"})
    assert send["Action"] == "sqs:SendMessage"
    assert {resource["GetAtt"] for resource in send["Resource"]} == {f"{queue}.Arn" for queue in stack.queues}
    addresses = {value for name, value in stack.functions["OutboxRelay"].environment.items() if name.endswith("_URL")}
    assert {address.rpartition("/")[2] for address in addresses if address.startswith("https://sqs.")} == set(stack.queues)


def test_two_relays_overlap_and_a_third_is_never_needed(document: dict[str, Any]) -> None:
    relay = document["Resources"]["OutboxRelay"]["Properties"]
    assert relay["Events"]["EveryMinute"]["Properties"]["Schedule"] == "rate(1 minute)"
    assert 60 < relay["Timeout"] < 120
    assert relay["ReservedConcurrentExecutions"] == 2
