"""Batches from the stand-in's queues to a handler and back, with real SQS calls."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest

from local import pollers, postgres
from local.child import Context, Settings, context, log_path
from local.service import Children, parameters
from local.template import ACCOUNT, REGION, Source, Template, queue_url

SOURCE = Source("CatalogQueue", "CatalogWorker", 10, partial_responses=True)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Run the stand-in for AWS."""
    local_dir = tmp_path_factory.mktemp("local")
    log_path(local_dir, "aws").parent.mkdir()
    endpoint = f"http://127.0.0.1:{postgres.free_port()}"
    settings = Settings(
        str(local_dir), endpoint, parameters("http://127.0.0.1:3000", "postgresql://somewhere/db", local_dir), console=2, ready=-1
    )
    children = Children(settings)
    try:
        children.await_ready(children.start("aws", "aws"))
        yield settings
    finally:
        children.stop()


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Template:
    return settings.template()


@pytest.fixture(scope="module")
def sqs(settings: Settings) -> Any:
    return pollers.client("sqs", settings.endpoint)


@pytest.fixture
def queue(sqs: Any, stack: Template) -> str:
    """Create a queue like CatalogQueue for one test."""
    return sqs.create_queue(QueueName=f"test-{uuid.uuid4()}", Attributes=stack.queues["CatalogQueue"])["QueueUrl"]


@pytest.fixture
def invocation(stack: Template) -> Context:
    return context(stack.functions["CatalogWorker"], Event())


def counts(sqs: Any, url: str) -> tuple[int, int]:
    """Return how many messages wait and how many are with a consumer."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return int(attributes[names[0]]), int(attributes[names[1]])


def test_a_record_has_lambdas_shape(sqs: Any, queue: str) -> None:
    sqs.send_message(
        QueueUrl=queue,
        MessageBody="Test message.",
        MessageAttributes={
            "reason": {"DataType": "String", "StringValue": "why"},
            "blob": {"DataType": "Binary", "BinaryValue": b"x"},
        },
    )
    (message,) = pollers.receive(sqs, queue, 10)
    record = pollers.record(message, "CatalogQueue")
    assert record.keys() == {
        *("messageId", "receiptHandle", "body", "attributes", "messageAttributes"),
        *("md5OfBody", "eventSource", "eventSourceARN", "awsRegion"),
    }
    assert record["body"] == "Test message."
    assert record["attributes"].keys() >= {
        *("ApproximateReceiveCount", "SentTimestamp", "SenderId", "ApproximateFirstReceiveTimestamp"),
    }
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert record["messageAttributes"] == {
        "reason": {"stringValue": "why", "dataType": "String", "stringListValues": [], "binaryListValues": []},
        "blob": {"binaryValue": "eA==", "dataType": "Binary", "stringListValues": [], "binaryListValues": []},
    }
    assert record["eventSource"] == "aws:sqs"
    assert record["eventSourceARN"] == f"arn:aws:sqs:{REGION}:{ACCOUNT}:CatalogQueue"
    json.dumps(record)


def test_a_partial_failure_keeps_the_failed_message_alone(sqs: Any, queue: str, invocation: Context) -> None:
    for body in ("good", "bad", "good"):
        sqs.send_message(QueueUrl=queue, MessageBody=body)
    messages = pollers.receive(sqs, queue, 10)

    def handler(event: Any, context: Context) -> Any:
        return {"batchItemFailures": [{"itemIdentifier": r["messageId"]} for r in event["Records"] if r["body"] == "bad"]}

    pollers.delete(sqs, queue, pollers.invoke(handler, messages, SOURCE, invocation))
    assert counts(sqs, queue) == (0, 1)
    (kept,) = [message for message in messages if message["Body"] == "bad"]
    sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=kept["ReceiptHandle"], VisibilityTimeout=0)
    (again,) = pollers.receive(sqs, queue, 10)
    assert (again["Body"], again["Attributes"]["ApproximateReceiveCount"]) == ("bad", "2")


@pytest.mark.parametrize("answer", [None, {}, {"batchItemFailures": []}, {"batchItemFailures": None}], ids=str)
def test_an_answer_without_failures_is_a_success(sqs: Any, queue: str, invocation: Context, answer: Any) -> None:
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    messages = pollers.receive(sqs, queue, 10)
    assert pollers.invoke(lambda event, context: answer, messages, SOURCE, invocation) == messages


@pytest.mark.parametrize("name", ["", None, "unheard-of"])
def test_a_failure_that_names_no_message_keeps_all(sqs: Any, queue: str, invocation: Context, name: str | None) -> None:
    sqs.send_message(QueueUrl=queue, MessageBody="x")
    messages = pollers.receive(sqs, queue, 10)
    answer = {"batchItemFailures": [{"itemIdentifier": name}]}
    assert pollers.invoke(lambda event, context: answer, messages, SOURCE, invocation) == []


def test_what_fails_again_and_again_becomes_a_dead_letter(
    sqs: Any, queue: str, invocation: Context, stack: Template, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    def handler(event: Any, context: Context) -> Any:
        raise RuntimeError("boom")

    sqs.send_message(QueueUrl=queue, MessageBody="hopeless")
    tries = json.loads(stack.queues["CatalogQueue"]["RedrivePolicy"])["maxReceiveCount"]
    for _ in range(tries):
        (message,) = messages = pollers.receive(sqs, queue, 10)
        assert pollers.invoke(handler, messages, SOURCE, invocation) == []
        sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0)
    assert pollers.receive(sqs, queue, 10) == []
    assert counts(sqs, queue) == (0, 0)
    (letter,) = pollers.receive(sqs, queue_url(settings.endpoint, "CatalogDeadLetterQueue"), 10)
    assert letter["Body"] == "hopeless"
    assert capfd.readouterr().err.count("RuntimeError: boom") == tries


def test_a_delayed_message_comes_later(sqs: Any, queue: str) -> None:
    sqs.send_message(QueueUrl=queue, MessageBody="later", DelaySeconds=1)
    assert sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=0).get("Messages", []) == []
    (message,) = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=10)["Messages"]
    assert message["Body"] == "later"


def test_the_largest_message_goes_through(sqs: Any, queue: str, stack: Template) -> None:
    body = "x" * int(stack.queues["CatalogQueue"]["MaximumMessageSize"])
    sqs.send_message(QueueUrl=queue, MessageBody=body)
    (message,) = pollers.receive(sqs, queue, 10)
    assert message["Body"] == body


def test_no_message_is_lost_while_others_are_deleted(settings: Settings, queue: str, invocation: Context) -> None:
    senders, each = 4, 60

    def send(sender: int) -> None:
        sqs = pollers.client("sqs", settings.endpoint)
        for number in range(each):
            sqs.send_message(QueueUrl=queue, MessageBody=f"{sender} {number}")

    def take(_: int) -> set[str]:
        sqs = pollers.client("sqs", settings.endpoint)
        taken: set[str] = set()
        while messages := pollers.receive(sqs, queue, 10):
            taken.update(message["Body"] for message in messages)
            pollers.delete(sqs, queue, messages)
        return taken

    with ThreadPoolExecutor() as pool:
        sent = [pool.submit(send, sender) for sender in range(senders)]
        taken = set().union(*pool.map(take, range(2)))
        for future in sent:
            future.result()
    assert taken == {f"{sender} {number}" for sender in range(senders) for number in range(each)}


def test_the_bus_delivers_to_the_certificate_queue(settings: Settings, sqs: Any, stack: Template) -> None:
    events = pollers.client("events", settings.endpoint)
    entry = {"EventBusName": stack.buses[0], "Source": "learner-progress", "Detail": '{"id": "1"}'}
    kinds = ["lesson.completed", "enrollment.completed"]
    assert events.put_events(Entries=[{**entry, "DetailType": kind} for kind in kinds])["FailedEntryCount"] == 0
    (message,) = pollers.receive(sqs, queue_url(settings.endpoint, "CertificateQueue"), 10)
    envelope = json.loads(message["Body"])
    assert (envelope["detail-type"], envelope["detail"]) == ("enrollment.completed", {"id": "1"})
