"""What the template promises to callers, to the database and to whoever audits it."""

import json
import re
from importlib import import_module
from typing import Any

from aws_lambda_powertools.event_handler.openapi.models import HTTPBearer

from local.template import PROJECT, Template

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


def test_every_route_is_throttled(document: dict[str, Any], stack: Template) -> None:
    api = document["Resources"]["Api"]["Properties"]
    limits = [api["DefaultRouteSettings"], *api["RouteSettings"].values()]
    assert all(0 < limit["ThrottlingRateLimit"] <= limit["ThrottlingBurstLimit"] for limit in limits)
    # CloudFormation refuses settings of a route that there isn't.
    assert set(api["RouteSettings"]) <= {f"{r.method} {r.path}" if r.path != "$default" else r.path for r in stack.routes}


def statements(document: dict[str, Any], function: str) -> list[dict[str, Any]]:
    """What the role of a function allows and denies, what it shares with others included."""
    resource = document["Resources"][function]["Properties"]["Role"]["GetAtt"].removesuffix(".Arn")
    role = document["Resources"][resource]["Properties"]
    documents = [document["Resources"][policy["Ref"]]["Properties"]["PolicyDocument"] for policy in role["ManagedPolicyArns"]]
    documents += [policy["PolicyDocument"] for policy in role.get("Policies", [])]
    return [statement for document in documents for statement in document["Statement"]]


def test_each_function_has_a_role_of_its_own_that_lambda_alone_may_take(document: dict[str, Any]) -> None:
    functions = resources(document, "AWS::Serverless::Function")
    for name, function in functions.items():
        assert function["Properties"]["Role"] == {"GetAtt": f"{name}Role.Arn"}
        # SAM would make policies of these, and add its own, only without a role.
        assert "Policies" not in function["Properties"]
        (trust,) = document["Resources"][f"{name}Role"]["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        assert trust["Principal"] == {"Service": "lambda.amazonaws.com"}


def test_each_function_may_do_what_it_needs_and_nothing_else(document: dict[str, Any], stack: Template) -> None:
    everyone = {"logs", "xray", "ec2", "rds-db"}
    documents = {"Sub": "${CertificateBucket.Arn}/certificates/*"}
    keys = [{"GetAtt": "CredentialKey.Arn"}, {"GetAtt": "CredentialJwtKey.Arn"}]
    special = {
        "CertificateApi": [("s3:GetObject", documents), ("s3:ListBucket", {"GetAtt": "CertificateBucket.Arn"})],
        "CertificateWorker": [("s3:PutObject", documents), (["kms:Sign", "kms:GetPublicKey"], keys)],
        "OutboxRelay": [
            ("events:PutEvents", {"GetAtt": "EventBus.Arn"}),
            ("sqs:SendMessage", [{"GetAtt": f"{queue}.Arn"} for queue in stack.queues]),
        ],
    }
    sources = {source.function: source.queue for source in stack.sources}
    for name in stack.functions:
        expected = special.get(name, [])
        if name in sources:
            receive = ["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"]
            expected = [(receive, {"GetAtt": f"{sources[name]}.Arn"}), *expected]
        own = [s for s in statements(document, name) if not {action.partition(":")[0] for action in actions(s)} <= everyone]
        assert [(s["Action"], s["Resource"]) for s in own] == expected, name


def actions(statement: dict[str, Any]) -> list[str]:
    given = statement["Action"]
    return [given] if isinstance(given, str) else given


def test_only_what_knows_no_resources_is_allowed_on_all_of_them(document: dict[str, Any], stack: Template) -> None:
    allowed = [
        s for name in stack.functions for s in statements(document, name) if s["Effect"] == "Allow" and s["Resource"] == "*"
    ]
    assert {action for s in allowed for action in actions(s)} == {
        "xray:PutTraceSegments",
        "xray:PutTelemetryRecords",
        "ec2:CreateNetworkInterface",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSubnets",
        "ec2:DeleteNetworkInterface",
        "ec2:AssignPrivateIpAddresses",
        "ec2:UnassignPrivateIpAddresses",
    }


def test_each_function_logs_in_as_the_role_that_it_may_log_in_as(document: dict[str, Any], stack: Template) -> None:
    common = document["Globals"]["Function"]["Environment"]["Variables"]
    roles: dict[str, str] = {}
    for name in stack.functions:
        own = document["Resources"][name]["Properties"].get("Environment", {}).get("Variables", {})
        url = re.fullmatch(r"postgresql://(\w+)@\$\{([\w.]+)\}:5432/learner_progress", (common | own)["DATABASE_URL"]["Sub"])
        assert url
        (connect,) = [s for s in statements(document, name) if s["Action"] == "rds-db:connect"]
        text, values = connect["Resource"]["Sub"]
        assert text.endswith(f"/{url[1]}")
        assert list(values) == ["Cluster" if url[2] == "DatabaseCluster.Endpoint.Address" else "Proxy"]
        roles[name] = url[1]
    assert {name: role for name, role in roles.items() if role != "learner_progress_app"} == {
        "OutboxRelay": "learner_progress_relay",
        "ReportApi": "learner_progress_report",
        "Migrate": "migrator",
    }
    # The proxy lets through whoever comes to it, and nobody else.
    (proxy,) = document["Resources"]["DatabaseProxyRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
    through = {resource["Sub"][0].rpartition("/")[2] for resource in proxy["Resource"]}
    assert through == set(roles.values()) - {"migrator"}


def test_the_relay_knows_every_queue(stack: Template) -> None:
    addresses = {value for name, value in stack.functions["OutboxRelay"].environment.items() if name.endswith("_URL")}
    assert {address.rpartition("/")[2] for address in addresses if address.startswith("https://sqs.")} == set(stack.queues)


def test_no_queue_takes_or_gives_anything_without_tls(document: dict[str, Any], stack: Template) -> None:
    guarded: list[str] = []
    for policy in resources(document, "AWS::SQS::QueuePolicy").values():
        denial = policy["Properties"]["PolicyDocument"]["Statement"][0]
        assert denial["Condition"] == {"Bool": {"aws:SecureTransport": False}}
        assert (denial["Effect"], denial["Principal"], denial["Action"], denial["Resource"]) == ("Deny", "*", "sqs:*", "*")
        guarded += [queue["Ref"] for queue in policy["Properties"]["Queues"]]
    # One policy each: a second one would replace the first.
    assert sorted(guarded) == sorted(stack.queues)


def test_nothing_is_reached_from_outside_and_nothing_outside_is_reached(document: dict[str, Any]) -> None:
    kinds = {resource["Type"] for resource in document["Resources"].values()}
    assert not kinds & {"AWS::EC2::InternetGateway", "AWS::EC2::NatGateway", "AWS::EC2::EIP", "AWS::EC2::Route"}
    for group in resources(document, "AWS::EC2::SecurityGroup").values():
        rules = group["Properties"]
        assert all("SourceSecurityGroupId" in rule for rule in rules.get("SecurityGroupIngress", []))
        # Without a rule of its own a group may call everybody.
        assert rules["SecurityGroupEgress"]
        for rule in rules["SecurityGroupEgress"]:
            assert rule.get("CidrIp") != "0.0.0.0/0" or rule["FromPort"] == rule["ToPort"] == 443
    assert all(e["Properties"]["PolicyDocument"]["Statement"] for e in resources(document, "AWS::EC2::VPCEndpoint").values())


def test_new_code_waits_for_its_schema(document: dict[str, Any]) -> None:
    functions = resources(document, "AWS::Serverless::Function")
    assert {name for name, function in functions.items() if function.get("DependsOn") != "Migration"} == {"Migrate"}
    migration = document["Resources"]["Migration"]["Properties"]
    assert (migration["ServiceToken"], migration["Version"]) == ({"Ref": "Migrate.Alias"}, {"Ref": "Migrate.Version"})
    # It must have had the chance to answer before CloudFormation gives up on it.
    assert functions["Migrate"]["Properties"]["Timeout"] < migration["ServiceTimeout"] <= 3600


def test_a_new_layer_makes_a_new_version_of_the_functions_above_it(document: dict[str, Any]) -> None:
    functions = resources(document, "AWS::Serverless::Function")
    assert all(function["Properties"]["AutoPublishAliasAllProperties"] for function in functions.values())
    layers = resources(document, "AWS::Serverless::LayerVersion")
    assert all(layer["Properties"]["PublishLambdaVersion"] for layer in layers.values())


def test_every_alarm_tells_somebody_and_every_queue_has_two(document: dict[str, Any], stack: Template) -> None:
    alarms = resources(document, "AWS::CloudWatch::Alarm")
    assert all(alarm["Properties"]["AlarmActions"] == [{"Ref": "AlarmTopic"}] for alarm in alarms.values())
    watched = {
        (alarm["Properties"]["MetricName"], alarm["Properties"]["Dimensions"][0]["Value"]["GetAtt"].partition(".")[0])
        for alarm in alarms.values()
        if alarm["Properties"].get("Namespace") == "AWS/SQS"
    }
    assert watched == {
        ("ApproximateNumberOfMessagesVisible" if queue.endswith("DeadLetterQueue") else "ApproximateAgeOfOldestMessage", queue)
        for queue in stack.queues
    }


def test_every_parameter_and_every_alarm_is_documented(document: dict[str, Any]) -> None:
    deployment, operations = ((PROJECT / "docs" / name).read_text() for name in ("deployment.md", "operations.md"))
    assert not [name for name in document["Parameters"] if f"`{name}`" not in deployment]
    alarms = {name.removesuffix("Alarm") for name in resources(document, "AWS::CloudWatch::Alarm")}
    named = {re.sub(r"^[A-Z][a-z]+(DeadLetters|QueueAge)$", r"*Queue*\1", name) for name in alarms}
    assert named == set(re.findall(r"^\| ([A-Z*][\w*]+) \|", operations, re.MULTILINE))


def test_the_dashboard_and_the_alarms_know_the_metrics_that_the_code_writes(document: dict[str, Any]) -> None:
    code = "".join(path.read_text() for folder in ("functions", "shared") for path in (PROJECT / folder).rglob("*.py"))
    written = set(re.findall(r"""\b(?:count|measure_seconds)\("(\w+)\"""", code))
    # The relay counts the events that it publishes, under their types' names.
    types = re.findall(r"""["'](enrollment|lesson|quiz|certificate|learner)\.([a-z]+)["']""", code)
    published = {subject.capitalize() + verb.capitalize() for subject, verb in types}
    dashboard = json.loads(document["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Sub"])
    lines = [metric for widget in dashboard["widgets"] for metric in widget["properties"]["metrics"]]
    shown = {line[1] for line in lines if line[0] == "LearnerProgress"}
    alarms = [alarm["Properties"] for alarm in resources(document, "AWS::CloudWatch::Alarm").values()]
    used = shown | {alarm["MetricName"] for alarm in alarms if alarm.get("Namespace") == "LearnerProgress"}
    assert written <= used <= written | published


def test_the_access_log_leads_from_a_request_to_its_invocation_and_names_no_learner(document: dict[str, Any]) -> None:
    (stage,) = resources(document, "AWS::Serverless::HttpApi").values()
    logged = json.loads(stage["Properties"]["AccessLogSettings"]["Format"])
    assert (logged["requestId"], logged["lambdaRequestId"]) == ("$context.requestId", "$context.integration.requestId")
    assert not [value for value in logged.values() if re.search(r"path|claims|identity|authorizer\.(?!error)", value)]


def test_two_relays_overlap_and_a_third_is_never_needed(document: dict[str, Any]) -> None:
    relay = document["Resources"]["OutboxRelay"]["Properties"]
    assert relay["Events"]["EveryMinute"]["Properties"]["Schedule"] == "rate(1 minute)"
    assert 60 < relay["Timeout"] < 120
    assert relay["ReservedConcurrentExecutions"] == 2
