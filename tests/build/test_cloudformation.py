"""The template as CloudFormation gets it from SAM, for each set of parameters: whole, in order, and made as far as moto can.

What moto makes is read back by boto3, as whoever deployed it would see it. What it does not know, or leaves out, is read from the
translated template with the conditions and parameters resolved.
"""

import io
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.cloudformation.parsing import get_model_map

from tests.conftest import create_bucket
from tests.support.stack import ACCOUNT, NAME, PARAMETERS, PROJECT, REGION, Resolver, references, translate

#: What moto's CloudFormation does not know at all.
UNKNOWN_TO_MOTO = {
    "AWS::ApiGatewayV2::Api",
    "AWS::ApiGatewayV2::ApiMapping",
    "AWS::ApiGatewayV2::DomainName",
    "AWS::ApiGatewayV2::Stage",
    "AWS::CloudWatch::Alarm",
    "AWS::CodeDeploy::Application",
    "AWS::CodeDeploy::DeploymentGroup",
    "AWS::Lambda::Alias",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Logs::MetricFilter",
    "AWS::RDS::DBCluster",
    "AWS::RDS::DBClusterParameterGroup",
    "AWS::RDS::DBProxy",
    "AWS::RDS::DBProxyTargetGroup",
    "AWS::S3::BucketPolicy",
    "AWS::SNS::Subscription",
    "AWS::SQS::QueuePolicy",
    "Custom::Migration",
}
#: What it knows and cannot make: an instance of Aurora belongs to a cluster, which it does not make.
BROKEN_IN_MOTO = {"AWS::RDS::DBInstance"}

#: Routes that ask for no token; tests/build/test_template.py says why there is no other.
WITHOUT_TOKEN = {
    "GET /certificates/{certificate_uid}",
    "GET /status-lists/{number}",
    "GET /.well-known/did.json",
    "GET /.well-known/jwks.json",
    "GET /health",
    "$default",
}

type Resources = dict[str, Any]


@dataclass(frozen=True)
class Stack:
    """What one set of parameters comes to: `resources` are made, `outputs` told; `aws` has what moto made of it."""

    name: str
    resources: Resources
    outputs: dict[str, Any]
    template: dict[str, Any]
    values: dict[str, Any]

    def of(self, kind: str) -> Resources:
        """Return the properties of all resources of a type."""
        return {name: r.get("Properties", {}) for name, r in self.resources.items() if r["Type"] == kind}


@pytest.fixture(scope="module", autouse=True)
def a_bucket_for_others() -> Iterator[None]:
    """Moto empties itself for these tests, and with it what other tests of this process have for S3, where that runs."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ENDPOINT_URL", raising=False)
        yield
    if endpoint:
        create_bucket(endpoint)


@pytest.fixture(scope="module", params=list(PARAMETERS))
def planned(request: pytest.FixtureRequest, translated: dict[str, dict[str, Any]]) -> Stack:
    template = translated[request.param]
    resolver = Resolver(template, PARAMETERS[request.param])
    outputs = {
        name: resolver(output["Value"])
        for name, output in template["Outputs"].items()
        if "Condition" not in output or resolver.condition(output["Condition"])
    }
    return Stack(request.param, resolver.resources(), outputs, template, resolver.values)


@dataclass(frozen=True)
class Made:
    """A stack that moto made: its outputs, and what each logical id is called."""

    stack: Stack
    outputs: dict[str, str]
    ids: dict[str, str]


@pytest.fixture(scope="module")
def made(planned: Stack) -> Iterator[Made]:
    """Create the stack in moto, from SAM's translation with its conditions and functions as they are."""
    unmade = {name: r for name, r in planned.template["Resources"].items() if r["Type"] in UNKNOWN_TO_MOTO | BROKEN_IN_MOTO}
    template = without(planned.template, unmade)
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": REGION}.items():
            patch.setenv(name, value)
        upload(template)
        parameters = PARAMETERS[planned.name] | existing(planned)
        cloudformation = boto3.client("cloudformation")
        cloudformation.create_stack(
            StackName=NAME,
            TemplateBody=json.dumps(template),
            Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in parameters.items()],
            Capabilities=["CAPABILITY_IAM"],
        )
        (stack,) = cloudformation.describe_stacks(StackName=NAME)["Stacks"]
        assert stack["StackStatus"] == "CREATE_COMPLETE"
        pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=NAME)
        summaries = [summary for page in pages for summary in page["StackResourceSummaries"]]
        # Moto adds one without a name, which is the stack's.
        ids = {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in summaries if r["LogicalResourceId"]}
        yield Made(planned, {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}, ids)


def without(template: dict[str, Any], unmade: Resources) -> dict[str, Any]:
    """Return the template without some resources. Whoever refers to one gets its name instead, or of an alias the function."""

    def replaced(value: Any) -> Any:
        match value:
            case {"Ref": "EventBus"}:
                # Moto gives the bus itself where its name should stand.
                return {"Ref": "AWS::StackName"}
            case {"Ref": str(name)} if name in unmade:
                alias = unmade[name]["Type"] == "AWS::Lambda::Alias"
                return {"Fn::GetAtt": [unmade[name]["Properties"]["FunctionName"]["Ref"], "Arn"]} if alias else name
            case {"Fn::GetAtt": [str(name), str(attribute)]} if name in unmade:
                return f"arn:aws:made:{REGION}:{ACCOUNT}:up:{name}.{attribute}"
            case {"Fn::Sub": given}:
                text, own = given if isinstance(given, list) else (given, {})
                text = re.sub(
                    r"\$\{(\w+)((?:\.\w+)*)\}", lambda m: m[1] + m[2] if m[1] in unmade and m[1] not in own else m[0], text
                )
                return {"Fn::Sub": [text, replaced(own)] if own else text}
            case dict():
                return {key: replaced(item) for key, item in value.items()}
            case list():
                return [replaced(item) for item in value]
            case _:
                return value

    kept = {name: r for name, r in template["Resources"].items() if name not in unmade}
    bare = {name: {key: item for key, item in r.items() if key not in ("DependsOn", "Metadata")} for name, r in kept.items()}
    return {**template, "Resources": replaced(bare), "Outputs": replaced(template["Outputs"])}


def upload(template: dict[str, Any]) -> None:
    """Put something in the place of each artifact."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="artifacts", CreateBucketConfiguration={"LocationConstraint": REGION})
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("app.py", "")
    for resource in template["Resources"].values():
        for place in ("Code", "Content"):
            if place in resource["Properties"]:
                s3.put_object(Bucket="artifacts", Key=resource["Properties"][place]["S3Key"], Body=content.getvalue())


def existing(stack: Stack) -> dict[str, str]:
    """Make what a stack does not make itself, and return the parameters that name it."""
    parameters: dict[str, str] = {}
    if stack.values["VpcId"]:
        ec2 = boto3.client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnets = [ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24")["Subnet"]["SubnetId"] for n in (0, 1)]
        group = ec2.create_security_group(GroupName="given", Description="given", VpcId=vpc)["GroupId"]
        parameters = {"VpcId": vpc, "SubnetIds": ",".join(subnets), "SecurityGroupId": group}
    if stack.values["HostedZoneId"]:
        zone = boto3.client("route53").create_hosted_zone(Name="example.org", CallerReference="1")["HostedZone"]["Id"]
        parameters["HostedZoneId"] = zone.rpartition("/")[2]
    return parameters


# ------------------------------------------------------------------------------------------------------------------------ whole


def test_everything_that_is_referred_to_is_made(planned: Stack) -> None:
    for name, resource in planned.resources.items():
        depends = resource.get("DependsOn", [])
        asked = {one for one, _ in references(resource)} | set([depends] if isinstance(depends, str) else depends)
        assert asked <= set(planned.resources), name
    for name, value in planned.outputs.items():
        assert {one for one, _ in references(value)} <= set(planned.resources), name


def test_there_is_an_order_in_which_to_make_and_to_delete_it(planned: Stack) -> None:
    needed: dict[str, set[str]] = {}
    for name, resource in planned.resources.items():
        depends = resource.get("DependsOn", [])
        needed[name] = {one for one, _ in references(resource)} | set([depends] if isinstance(depends, str) else depends)
    # It raises CycleError.
    order = list(TopologicalSorter(needed).static_order())
    assert len(order) == len(planned.resources)

    def all_of(name: str) -> set[str]:
        return needed[name].union(*(all_of(one) for one in needed[name]))

    # Deletion goes the other way. So what the migration needs to run and to answer is there before it and after it.
    migration = all_of("Migration")
    assert {"MigrateAliaslive", "MigrateEventInvokeConfig", "MigrateRole", "FunctionPolicy", "FunctionLogs"} <= migration
    assert {"DatabaseCluster", "DatabaseInstanceOne", "DatabaseProxyTargets", "DatabaseFromProxy", "DatabaseGroup"} <= migration
    if "Vpc" in planned.resources:
        assert {"S3Endpoint", "RouteTable", "SubnetOneRoutes", "SubnetTwoRoutes", "FunctionGroup", "MigrateGroup"} <= migration
    for name in planned.of("AWS::Lambda::Function"):
        assert (name == "Migrate") != ("Migration" in all_of(name)), name


def test_what_depends_on_a_parameter_is_there_with_it_alone(planned: Stack) -> None:
    own_network = not planned.values["VpcId"]
    expected = {
        "Vpc": own_network,
        "KmsEndpoint": own_network,
        "MigrateGroup": own_network,
        "DatabaseInstanceTwo": planned.values["Stage"] == "prod",
        "ApiDomain": bool(planned.values["DomainCertificateArn"]),
        "ApiDomainRecord": bool(planned.values["HostedZoneId"]),
        "AlarmSubscription": bool(planned.values["AlarmEmail"]),
    }
    assert {name: name in planned.resources for name in expected} == expected
    assert ("ApiDomainTarget" in planned.outputs) == expected["ApiDomain"]


def test_nobody_is_allowed_anything_as_anybody(planned: Stack) -> None:
    """An asterisk as principal denies, or it stands in an endpoint's policy, behind which the caller's own rights count too."""
    for name, resource in planned.resources.items():
        for statement in statements(resource):
            principal = statement.get("Principal")
            everybody = principal == "*" or (isinstance(principal, dict) and "*" in principal.values())
            endpoint = resource["Type"] == "AWS::EC2::VPCEndpoint" and "*" not in str(statement["Action"])
            assert not everybody or statement["Effect"] == "Deny" or statement.get("Condition") or endpoint, (name, statement)
    # An endpoint without a condition on the caller leads to buckets that are named whole.
    for statement in statements(planned.resources.get("S3Endpoint", {})):
        assert "*" not in str(statement["Resource"]).removesuffix("*'}").removesuffix("/*").removesuffix("/*']}")


def statements(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the statements of all policies within a value."""
    match value:
        case {"Effect": "Allow" | "Deny"}:
            yield value
        case dict():
            for item in value.values():
                yield from statements(item)
        case list():
            for item in value:
                yield from statements(item)
        case _:
            pass


def test_a_layer_that_changes_makes_new_versions_of_all_functions(translated: dict[str, dict[str, Any]]) -> None:
    """Aliases and migration follow the versions. A parameter alone changes none, so `make build` puts them into a layer."""
    text = (PROJECT / "template.yaml").read_text().replace("ContentUri: shared/", "ContentUri: elsewhere/")
    other = translate(text, {"layer": PARAMETERS["dev"]})["layer"]
    before, after = (
        {name for name, r in template["Resources"].items() if r["Type"] == "AWS::Lambda::Version"}
        for template in (translated["dev"], other)
    )
    assert len(before) == len(after) == 13
    assert not before & after


# -------------------------------------------------------------------------------------------------------------- what moto makes


def test_moto_knows_what_it_is_said_to_know(translated: dict[str, dict[str, Any]]) -> None:
    used = {r["Type"] for template in translated.values() for r in template["Resources"].values()}
    assert used - set(get_model_map()) == UNKNOWN_TO_MOTO
    assert used >= BROKEN_IN_MOTO


@pytest.mark.parametrize(
    ("resources", "error"),
    [
        ({"Instance": {"Type": "AWS::RDS::DBInstance", "Properties": {"Engine": "aurora-postgresql"}}}, KeyError),
        (
            {
                "Bus": {"Type": "AWS::Events::EventBus", "Properties": {"Name": "bus"}},
                "Rule": {
                    "Type": "AWS::Events::Rule",
                    "Properties": {"EventBusName": {"Ref": "Bus"}, "EventPattern": {"source": ["x"]}},
                },
            },
            AttributeError,
        ),
    ],
)
def test_moto_still_breaks_on_what_is_kept_from_it(resources: Resources, error: type[Exception]) -> None:
    body = json.dumps({"Resources": resources})
    credentials = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    with mock_aws(), pytest.raises(error):
        boto3.client("cloudformation", REGION, **credentials).create_stack(StackName="-".join(resources), TemplateBody=body)


def test_it_is_made(made: Made) -> None:
    expected = {n for n, r in made.stack.resources.items() if r["Type"] not in UNKNOWN_TO_MOTO | BROKEN_IN_MOTO}
    assert set(made.ids) == expected


def test_outputs_tell_what_was_made(made: Made) -> None:
    outputs = dict(made.outputs)
    assert set(outputs) == set(made.stack.outputs)
    for name in [name for name in outputs if name.endswith("QueueUrl")]:
        assert outputs.pop(name).rpartition("/")[2].startswith(f"{NAME}-{name.removesuffix('Url')}-")
    assert outputs["EventBusName"] == NAME
    assert outputs["MigrateFunctionName"] == made.ids["Migrate"]
    assert outputs["CertificateBucketName"] == made.ids["CertificateBucket"]
    assert outputs["FunctionLogGroup"] == made.ids["FunctionLogs"]
    assert outputs["AlarmTopicArn"].startswith(f"arn:aws:sns:{REGION}:{ACCOUNT}:")
    assert (
        outputs["DashboardUrl"]
        == f"https://{REGION}.console.aws.amazon.com/cloudwatch/home?region={REGION}#dashboards/dashboard/{NAME}"
    )


def test_queues(made: Made) -> None:
    sqs = boto3.client("sqs")
    functions = timeouts(made)
    mapped = {
        m["EventSourceArn"]: m["FunctionArn"] for m in boto3.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    }
    for name in ("Enrollment", "Progress", "Quiz", "Certificate", "Catalog"):
        queue, dead = (
            sqs.get_queue_attributes(QueueUrl=made.outputs[f"{name}{kind}Url"], AttributeNames=["All"])["Attributes"]
            for kind in ("Queue", "DeadLetterQueue")
        )
        assert json.loads(queue["RedrivePolicy"]) == {"deadLetterTargetArn": dead["QueueArn"], "maxReceiveCount": 10}
        assert int(queue["VisibilityTimeout"]) >= 6 * functions[mapped[queue["QueueArn"]]]
        # What is sent on to the dead-letter queue gets attributes, for which there must be room.
        assert int(queue["MaximumMessageSize"]) < int(dead["MaximumMessageSize"]) == 1024 * 1024
        assert (queue["MessageRetentionPeriod"], dead["MessageRetentionPeriod"]) == (str(4 * 86400), str(14 * 86400))
        assert queue["SqsManagedSseEnabled"] == dead["SqsManagedSseEnabled"] == "true"
        assert "RedrivePolicy" not in dead


def timeouts(made: Made) -> dict[str, int]:
    return {f["FunctionArn"]: f["Timeout"] for f in boto3.client("lambda").list_functions()["Functions"]}


def test_workers_get_batches_and_no_more_at_once_than_they_may(made: Made) -> None:
    mappings = boto3.client("lambda").list_event_source_mappings()["EventSourceMappings"]
    told = {m["FunctionArn"].rpartition(":")[2].split("-")[2]: m for m in mappings}
    assert {name: m["ScalingConfig"]["MaximumConcurrency"] for name, m in told.items()} == {
        "EnrollmentWorker": 5,
        "ProgressWorker": 10,
        "QuizWorker": 5,
        "CertificateWorker": 5,
        "CatalogWorker": 2,
    }
    for name, mapping in told.items():
        assert (mapping["BatchSize"], mapping["FunctionResponseTypes"]) == (10, ["ReportBatchItemFailures"])
        assert f"-{name.removesuffix('Worker')}Queue-" in mapping["EventSourceArn"]


def test_functions(made: Made) -> None:
    functions = {f["FunctionName"].split("-")[2]: f for f in boto3.client("lambda").list_functions()["Functions"]}
    expected = {
        "EnrollmentApi": (1024, 10),
        "ProgressApi": (1024, 10),
        "QuizApi": (1024, 10),
        "CertificateApi": (1024, 10),
        "ReportApi": (1024, 10),
        "EnrollmentWorker": (1024, 30),
        "ProgressWorker": (1024, 30),
        "QuizWorker": (1024, 30),
        "CertificateWorker": (1769, 60),
        "CatalogWorker": (1024, 30),
        "QuizMaintenance": (512, 115),
        "OutboxRelay": (512, 115),
        "Migrate": (1024, 900),
    }
    assert {name: (f["MemorySize"], f["Timeout"]) for name, f in functions.items()} == expected
    roles = [f["Role"] for f in functions.values()]
    assert len(set(roles)) == len(roles)
    for name, function in functions.items():
        assert (function["Runtime"], function["Handler"]) == ("python3.13", "shared.entrypoint.handler")
        assert f":role/{NAME}-{name}Role-" in function["Role"]
        variables = function["Environment"]["Variables"]
        assert variables["DATABASE_IAM_AUTH"] == "1"
        assert variables["POWERTOOLS_SERVICE_NAME"] == NAME
        assert not [value for value in variables.values() if "${" in str(value)]
        assert len(function["VpcConfig"]["SubnetIds"]) == 2
    relay = functions["OutboxRelay"]["Environment"]["Variables"]
    addresses = {value for name, value in relay.items() if name.endswith("_URL") and name != "DATABASE_URL"}
    assert addresses == {value for name, value in made.outputs.items() if name.endswith("QueueUrl")}
    assert relay["EVENT_BUS_NAME"] == NAME
    worker = functions["CertificateWorker"]["Environment"]["Variables"]
    assert worker["CERTIFICATE_BUCKET"] == made.outputs["CertificateBucketName"]


def test_concurrency_that_is_reserved(made: Made) -> None:
    client = boto3.client("lambda")
    names = [f["FunctionName"] for f in client.list_functions()["Functions"]]
    reserved = {
        name.split("-")[2]: client.get_function_concurrency(FunctionName=name).get("ReservedConcurrentExecutions")
        for name in names
    }
    assert {name: n for name, n in reserved.items() if n is not None} == {"OutboxRelay": 2, "QuizMaintenance": 2, "Migrate": 1}


def test_events(made: Made) -> None:
    events = boto3.client("events")
    (archive,) = events.list_archives()["Archives"]
    assert (archive["EventSourceArn"].rpartition("/")[2], archive["RetentionDays"]) == (NAME, 30)
    (rule,) = [r for r in events.list_rules(EventBusName=NAME)["Rules"] if "ManagedBy" not in r]
    pattern = json.loads(rule["EventPattern"])
    assert pattern["source"] == ["learner-progress"]
    (target,) = events.list_targets_by_rule(Rule=rule["Name"], EventBusName=NAME)["Targets"]
    assert f":{NAME}-CertificateQueue-" in target["Arn"]
    assert f":{NAME}-CertificateDeadLetterQueue-" in target["DeadLetterConfig"]["Arn"]


def test_clock(made: Made) -> None:
    events = boto3.client("events")
    started: dict[str, str] = {}
    for rule in events.list_rules()["Rules"]:
        (target,) = events.list_targets_by_rule(Rule=rule["Name"])["Targets"]
        started[target["Arn"].rpartition(":")[2].split("-")[2]] = rule["ScheduleExpression"]
    assert started == dict.fromkeys(("CertificateWorker", "OutboxRelay", "QuizMaintenance"), "rate(1 minute)")


def test_logs_are_kept_as_long_as_said(made: Made) -> None:
    groups = boto3.client("logs").describe_log_groups()["logGroups"]
    days = int(made.stack.values["LogRetentionDays"])
    assert {g["logGroupName"]: g["retentionInDays"] for g in groups} == {
        made.ids["FunctionLogs"]: days,
        made.ids["ApiAccessLogs"]: days,
    }


def test_the_bucket_is_encrypted(made: Made) -> None:
    told = boto3.client("s3").get_bucket_encryption(Bucket=made.outputs["CertificateBucketName"])
    (rule,) = told["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}


def test_endpoints(made: Made) -> None:
    endpoints = boto3.client("ec2").describe_vpc_endpoints()["VpcEndpoints"]
    zones = 2 if made.stack.values["Stage"] == "prod" else 1
    expected = {"s3": ("Gateway", 0), **dict.fromkeys(("events", "sqs", "kms"), ("Interface", zones))}
    told = {e["ServiceName"].rpartition(".")[2]: (e["VpcEndpointType"], len(e.get("SubnetIds", []))) for e in endpoints}
    assert told == ({} if made.stack.values["VpcId"] else expected)
    # By the names that boto3 calls, without which it would call addresses on the internet.
    assert all(e["PrivateDnsEnabled"] for e in endpoints if e["VpcEndpointType"] == "Interface")


def test_the_domain_is_entered(made: Made) -> None:
    route53 = boto3.client("route53")
    records = [
        record
        for zone in route53.list_hosted_zones()["HostedZones"]
        for record in route53.list_resource_record_sets(HostedZoneId=zone["Id"])["ResourceRecordSets"]
        if record["Type"] == "A"
    ]
    assert len(records) == bool(made.stack.values["HostedZoneId"])
    assert all("RegionalDomainName" in record["AliasTarget"]["DNSName"] for record in records)


# ---------------------------------------------------------------------------------------- what is only in the resolved template


def test_functions_have_what_moto_leaves_out(planned: Stack) -> None:
    documents = ["DocumentsLayer", "FontsLayer"]
    own = {"Migrate": ["MigrationsLayer"], "CertificateApi": documents, "CertificateWorker": documents}
    for name, function in planned.of("AWS::Lambda::Function").items():
        assert function["Architectures"] == [planned.values["Architecture"]]
        layers = [re.sub("[0-9a-f]{10}$", "", layer["Ref"]) for layer in function["Layers"]]
        assert layers == ["DependenciesLayer", "SharedLayer", *own.get(name, [])]
        assert function["TracingConfig"] == {"Mode": "Active"}
        assert function["LoggingConfig"] == {"LogGroup": {"Ref": "FunctionLogs"}, "LogFormat": "JSON"}
    for layer in planned.of("AWS::Lambda::LayerVersion").values():
        assert layer["CompatibleArchitectures"] == [planned.values["Architecture"]]


def test_everything_calls_the_alias(planned: Stack) -> None:
    aliases = planned.of("AWS::Lambda::Alias")
    assert {alias["FunctionName"]["Ref"] for alias in aliases.values()} == set(planned.of("AWS::Lambda::Function"))
    assert all(alias["Name"] == "live" for alias in aliases.values())
    permissions = planned.of("AWS::Lambda::Permission").values()
    assert all(p["FunctionName"]["Ref"] in aliases and p["SourceArn"] for p in permissions)
    schedules = {n: r for n, r in planned.of("AWS::Events::Rule").items() if "ScheduleExpression" in r}
    for name, rule in schedules.items():
        (target,) = rule["Targets"]
        (permission,) = [p for p in permissions if p["SourceArn"] == {"Fn::GetAtt": [name, "Arn"]}]
        assert permission["FunctionName"] == target["Arn"]
        assert permission["Principal"] == "events.amazonaws.com"
    assert all(m["FunctionName"]["Ref"] in aliases for m in planned.of("AWS::Lambda::EventSourceMapping").values())
    # Whom the clock calls is not called again by Lambda, and the setting is the alias's.
    configured = {c["FunctionName"]["Ref"]: c for c in planned.of("AWS::Lambda::EventInvokeConfig").values()}
    assert set(configured) == {"CertificateWorker", "Migrate", "OutboxRelay", "QuizMaintenance"}
    tries = {name: (c["Qualifier"], c["MaximumRetryAttempts"]) for name, c in configured.items()}
    assert tries == {name: ("live", 2 if name == "Migrate" else 0) for name in configured}


def test_traffic_moves_step_by_step_in_prod_and_back_on_an_alarm(planned: Stack) -> None:
    groups = planned.of("AWS::CodeDeploy::DeploymentGroup")
    moved = {name.removesuffix("DeploymentGroup") for name in groups}
    assert moved == set(planned.of("AWS::Lambda::Function")) - {"Migrate", "OutboxRelay", "QuizMaintenance"}
    role = planned.resources["CodeDeployServiceRole"]["Properties"]
    assert role["ManagedPolicyArns"] == ["arn:aws:iam::aws:policy/service-role/AWSCodeDeployRoleForLambda"]
    how = "Canary10Percent5Minutes" if planned.values["Stage"] == "prod" else "AllAtOnce"
    alarms = ["ApiFunctionErrorsAlarm", "WorkerErrorsAlarm", "ApiServerErrorsAlarm"]
    for name, group in groups.items():
        assert group["DeploymentConfigName"] == f"CodeDeployDefault.Lambda{how}"
        assert group["AlarmConfiguration"] == {"Enabled": True, "Alarms": [{"Name": {"Ref": alarm}} for alarm in alarms]}
        assert "DEPLOYMENT_STOP_ON_ALARM" in group["AutoRollbackConfiguration"]["Events"]
        assert group["ServiceRoleArn"] == {"Fn::GetAtt": ["CodeDeployServiceRole", "Arn"]}
        alias = planned.resources[f"{name.removesuffix('DeploymentGroup')}Aliaslive"]
        assert alias["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"]["DeploymentGroupName"] == {"Ref": name}


def test_every_route_but_the_public_ones_has_the_authorizer(planned: Stack) -> None:
    body = planned.resources["Api"]["Properties"]["Body"]
    (scheme,) = body["components"]["securitySchemes"].items()
    assert scheme[0] == "Jwt"
    authorizer = scheme[1]["x-amazon-apigateway-authorizer"]
    assert authorizer["type"] == "jwt"
    assert authorizer["jwtConfiguration"] == {
        "issuer": planned.values["JwtIssuer"],
        "audience": [planned.values["JwtAudience"]],
    }
    assert authorizer["identitySource"] == "$request.header.Authorization"
    guarded: dict[str, list[str]] = {}
    for path, operations in body["paths"].items():
        for method, operation in operations.items():
            route = "$default" if path == "/$default" else f"{method.upper()} {path}"
            guarded[route] = [name for one in operation["security"] for name in one]
            assert operation["x-amazon-apigateway-integration"]["payloadFormatVersion"] == "2.0"
    assert {route for route, by in guarded.items() if by != ["Jwt"]} == WITHOUT_TOKEN
    assert body["paths"]["/$default"]["x-amazon-apigateway-any-method"]["isDefaultRoute"] is True


def test_stage_and_origins(planned: Stack) -> None:
    (stage,) = planned.of("AWS::ApiGatewayV2::Stage").values()
    assert (stage["StageName"], stage["AutoDeploy"]) == ("$default", True)
    assert stage["AccessLogSettings"]["DestinationArn"] == {"Fn::GetAtt": ["ApiAccessLogs", "Arn"]}
    cors = planned.resources["Api"]["Properties"]["Body"]["x-amazon-apigateway-cors"]
    assert cors["allowOrigins"] == planned.values["CorsOrigins"].split(",")
    assert cors["allowMethods"] == ["GET", "PUT", "POST", "DELETE"]
    assert "authorization" in cors["allowHeaders"]
    assert cors["maxAge"] == 3600


def test_database(planned: Stack) -> None:
    (cluster,) = planned.of("AWS::RDS::DBCluster").values()
    production, serverless = planned.values["Stage"] == "prod", planned.values["DatabaseInstanceClass"] == "db.serverless"
    assert cluster["StorageEncrypted"] is True
    assert cluster["EnableIAMDatabaseAuthentication"] is True
    assert (cluster["DeletionProtection"], cluster["BackupRetentionPeriod"]) == (production, 14 if production else 1)
    assert ("ServerlessV2ScalingConfiguration" in cluster) == serverless
    # There is no password: the master logs in by IAM, and what comes of a snapshot has its master already.
    assert not {"MasterUserPassword", "ManageMasterUserPassword"} & set(cluster)
    fresh = {"MasterUsername": "migrator", "MasterUserAuthenticationType": "iam-db-auth"}
    given = {"SnapshotIdentifier": planned.values["DatabaseSnapshot"]}
    known = {name: value for name, value in cluster.items() if name in {*fresh, *given}}
    assert known == (given if planned.values["DatabaseSnapshot"] else fresh)
    assert {r["DeletionPolicy"] for r in planned.resources.values() if r["Type"] == "AWS::RDS::DBCluster"} == {"Snapshot"}
    instances = planned.of("AWS::RDS::DBInstance")
    assert len(instances) == (2 if production else 1)
    for instance in instances.values():
        assert instance["DBInstanceClass"] == planned.values["DatabaseInstanceClass"]
        assert (instance["PubliclyAccessible"], instance["EnablePerformanceInsights"]) == (False, True)
    if not planned.values["VpcId"] and production:
        assert instances["DatabaseInstanceOne"]["AvailabilityZone"] != instances["DatabaseInstanceTwo"]["AvailabilityZone"]
    (group,) = planned.of("AWS::RDS::DBClusterParameterGroup").values()
    assert group["Family"] == f"aurora-postgresql{cluster['EngineVersion'].partition('.')[0]}"
    assert group["Parameters"]["rds.force_ssl"] == "1"


def test_proxy(planned: Stack) -> None:
    (proxy,) = planned.of("AWS::RDS::DBProxy").values()
    # With a list of secrets it would not log in by IAM on both sides.
    assert (proxy["DefaultAuthScheme"], proxy["RequireTLS"], "Auth" in proxy) == ("IAM_AUTH", True, False)
    (targets,) = planned.of("AWS::RDS::DBProxyTargetGroup").values()
    pool = targets["ConnectionPoolConfigurationInfo"]
    slowest = min(f["Timeout"] for f in planned.of("AWS::Lambda::Function").values())
    assert pool["ConnectionBorrowTimeout"] == 5 < slowest
    # The seventh part of arn:aws:rds:region:account:db-proxy:prx-… is what rds-db:connect names.
    text, own = planned.resources["AppDatabasePolicy"]["Properties"]["PolicyDocument"]["Statement"][0]["Resource"]["Fn::Sub"]
    assert text == f"arn:aws:rds-db:{REGION}:{ACCOUNT}:dbuser:${{Proxy}}/learner_progress_app"
    assert own == {"Proxy": {"Fn::Select": [6, {"Fn::Split": [":", {"Fn::GetAtt": ["DatabaseProxy", "DBProxyArn"]}]}]}}


def test_queues_take_messages_from_whom_they_may(planned: Stack) -> None:
    allowed: dict[str, list[Any]] = {}
    for policy in planned.of("AWS::SQS::QueuePolicy").values():
        for queue in policy["Queues"]:
            allowed[queue["Ref"]] = [s for s in policy["PolicyDocument"]["Statement"] if s["Effect"] == "Allow"]
    accounts = planned.values["ProducerAccounts"]
    for name, queue in allowed.items():
        if name.startswith("Certificate"):
            (rule,) = queue
            assert rule["Principal"] == {"Service": "events.amazonaws.com"}
            assert rule["Condition"] == {"ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": ["CertificateRule", "Arn"]}}}
        elif name.endswith("DeadLetterQueue") or accounts == [""]:
            assert not queue, name
        else:
            (producers,) = queue
            assert (producers["Principal"], producers["Action"]) == ({"AWS": accounts}, "sqs:SendMessage")


def test_keys_and_documents_outlive_the_stack(planned: Stack) -> None:
    keys = {name: (key["KeySpec"], key["KeyUsage"]) for name, key in planned.of("AWS::KMS::Key").items()}
    assert keys == {
        "CredentialKey": ("ECC_NIST_EDWARDS25519", "SIGN_VERIFY"),
        "CredentialJwtKey": ("ECC_NIST_P256", "SIGN_VERIFY"),
    }
    (bucket,) = planned.of("AWS::S3::Bucket").values()
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert len(bucket["PublicAccessBlockConfiguration"]) == 4
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    kept = {name for name, r in planned.resources.items() if r.get("DeletionPolicy") == r.get("UpdateReplacePolicy") == "Retain"}
    assert {"CredentialKey", "CredentialJwtKey", "CertificateBucket"} <= kept


def test_alarms(planned: Stack) -> None:
    alarms = planned.of("AWS::CloudWatch::Alarm")
    assert Counter(alarm.get("Namespace") for alarm in alarms.values()) == {
        "AWS/SQS": 10,
        None: 4,
        "LearnerProgress": 2,
        "AWS/RDS": 2,
        "AWS/ApiGateway": 1,
        f"LearnerProgress/{NAME}": 1,
    }
    (metric,) = planned.of("AWS::Logs::MetricFilter").values()
    (written,) = metric["MetricTransformations"]
    watched = alarms["ApiServerErrorsAlarm"]
    assert (watched["Namespace"], watched["MetricName"]) == (written["MetricNamespace"], written["MetricName"])
    assert all(alarm["OKActions"] == alarm["AlarmActions"] for alarm in alarms.values())
    # CloudWatch adds up ten metrics in an alarm at most.
    assert all(len(alarm.get("Metrics", [])) <= 11 for alarm in alarms.values())
    (topic,) = planned.of("AWS::SNS::Topic")
    told = [s["Endpoint"] for s in planned.of("AWS::SNS::Subscription").values() if s["TopicArn"] == {"Ref": topic}]
    assert told == [one for one in [planned.values["AlarmEmail"]] if one]


def test_samconfig_gives_parameters_that_there_are() -> None:
    text = Path(PROJECT, "samconfig.toml").read_text()
    given = set(re.findall(r'^  "(\w+)=', text, re.MULTILINE))
    declared = set(re.findall(r"^  (\w+):\n    Type:", (PROJECT / "template.yaml").read_text(), re.MULTILINE))
    assert given
    assert given <= declared
