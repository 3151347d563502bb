"""What the local service reads of the template."""

from pathlib import Path

import pytest

from local import template
from local.service import parameters

ENDPOINT = "http://127.0.0.1:4000"


@pytest.fixture(scope="module")
def stack() -> template.Template:
    return template.read(parameters("http://127.0.0.1:3000", "postgresql://somewhere/db", Path("/nowhere")), ENDPOINT)


def test_every_worker_has_a_queue_with_its_dead_letter_queue(stack: template.Template) -> None:
    assert {source.queue: source.function for source in stack.sources} == {
        f"{domain}Queue": f"{domain}Worker" for domain in ("Enrollment", "Progress", "Quiz", "Certificate", "Catalog")
    }
    for source in stack.sources:
        dead_letters = source.queue.replace("Queue", "DeadLetterQueue")
        assert f":{template.ACCOUNT}:{dead_letters}" in stack.queues[source.queue]["RedrivePolicy"]
        assert source.batch_size == 10
        assert source.partial_responses


def test_environment_is_resolved_to_local_values(stack: template.Template) -> None:
    relay = stack.functions["OutboxRelay"].environment
    assert relay["QUIZ_DLQ_URL"] == f"{ENDPOINT}/{template.ACCOUNT}/QuizDeadLetterQueue"
    assert relay["EVENT_BUS_NAME"] == stack.buses[0] == stack.rules[0].bus
    worker = stack.functions["CertificateWorker"].environment
    assert worker["PUBLIC_BASE_URL"] == "http://127.0.0.1:3000"
    assert worker["RETRY_PATIENCE_SECONDS"] == "20"
    assert worker["DATABASE_URL"] == "postgresql://somewhere/db"


def test_globals_hold_unless_a_function_says_otherwise(stack: template.Template) -> None:
    assert stack.functions["EnrollmentApi"].module == "functions.enrollment_api.app"
    assert stack.functions["EnrollmentApi"].timeout == 10
    assert stack.functions["OutboxRelay"].timeout == 115


def test_the_rule_leads_to_the_certificate_queue(stack: template.Template) -> None:
    (rule,) = stack.rules
    assert "enrollment.completed" in rule.pattern
    arn = f"arn:aws:sqs:{template.REGION}:{template.ACCOUNT}:CertificateQueue"
    assert rule.targets == [{"Id": "CertificateQueue", "Arn": arn}]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("!Ref Unheard", "!Ref Unheard"),
        ("!GetAtt Table.Arn", "!GetAtt Table.Arn"),
        ("!GetAtt Queue.Name", "Queue.Name"),
    ],
)
def test_what_can_not_be_resolved_is_named(tmp_path: Path, value: str, named: str) -> None:
    path = tmp_path / "template.yaml"
    path.write_text(
        f"""
Resources:
  Queue: {{Type: AWS::SQS::Queue}}
  Table: {{Type: AWS::DynamoDB::Table}}
  Worker:
    Type: AWS::Serverless::Function
    Properties:
      Handler: app.handler
      CodeUri: functions/worker/
      Timeout: 1
      MemorySize: 128
      Environment: {{Variables: {{NAME: {value}}}}}
"""
    )
    with pytest.raises(template.TemplateError, match=named):
        template.read({}, ENDPOINT, path)
