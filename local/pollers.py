"""Invokes the functions that no HTTP request invokes: workers with the messages of their queues, others by the clock."""

import base64
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import boto3

from local.child import Child, Context, aws_environment, context, load, snake
from local.template import ACCOUNT, REGION, Source, queue_url

type Handler = Callable[[Any, Context], Any]

#: After a failed invocation by the clock, as on AWS, the next one comes by its schedule; here that is this soon.
SCHEDULE_RETRY_SECONDS = 1.0
#: Every schedule of the template is this one: rate(1 minute).
SCHEDULE_SECONDS = 60.0


def client(service: str, endpoint: str) -> Any:
    """Return a boto3 client of the stand-in."""
    variables = aws_environment(endpoint)
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )


def poll(child: Child, function_name: str) -> None:
    """Serve the queue of a worker until the parent ends: one batch after the other, without a pause while there are messages."""
    settings, template = child.settings, child.settings.template()
    function = template.functions[function_name]
    (source,) = (source for source in template.sources if source.function == function_name)
    handler = load(function, settings.endpoint)
    sqs, url = (client("sqs", settings.endpoint), queue_url(settings.endpoint, source.queue))
    child.ready()
    while not child.ending.is_set():
        messages = receive(sqs, url, source.batch_size)
        if not messages:
            continue
        with child.busy:
            started = time.monotonic()
            done = invoke(handler, messages, source, context(function, child.ending))
            delete(sqs, url, done)
        milliseconds = (time.monotonic() - started) * 1000
        kept = len(messages) - len(done)
        child.say(
            f"{snake(function_name):<18} {len(messages):>3} messages {milliseconds:>6.0f} ms{f', {kept} kept' if kept else ''}"
        )


def schedule(child: Child, function_name: str) -> None:
    """Invoke a function again and again until the parent ends.

    One that works for as long as its schedule's minute, or longer, is invoked again at once: a pause would only leave gaps.
    """
    function = child.settings.template().functions[function_name]
    handler = load(function, child.settings.endpoint)
    event = {"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}, "region": REGION}
    child.ready()
    while not child.ending.is_set():
        started = time.monotonic()
        with child.busy:
            try:
                handler(event, context(function, child.ending))
            except Exception:  # Lambda survives whatever a function raises, and so does this.
                traceback.print_exc()
                child.say(f"{snake(function_name):<18} failed; see its log")
                child.ending.wait(SCHEDULE_RETRY_SECONDS)
                continue
        child.ending.wait(started + SCHEDULE_SECONDS - time.monotonic())


def receive(sqs: Any, url: str, batch_size: int) -> list[dict[str, Any]]:
    """Return up to `batch_size` messages, waiting a second for the first."""
    answer = sqs.receive_message(
        QueueUrl=url,
        MaxNumberOfMessages=min(batch_size, 10),
        WaitTimeSeconds=1,
        MessageSystemAttributeNames=["All"],
        MessageAttributeNames=["All"],
    )
    return answer.get("Messages", [])


def invoke(handler: Handler, messages: list[dict[str, Any]], source: Source, invocation: Context) -> list[dict[str, Any]]:
    """Call a worker with messages as ReceiveMessage gave them, and return those that it is done with.

    As Lambda has it: those named in `batchItemFailures` are not done; none is when the handler raises, or names a message that
    it wasn't given.
    """
    event = {"Records": [record(message, source.queue) for message in messages]}
    try:
        answer = handler(event, invocation)
    except Exception:  # Whatever it is, the messages come back after their visibility timeout.
        traceback.print_exc()
        return []
    if not source.partial_responses:
        return messages
    failed = {failure.get("itemIdentifier") for failure in (answer or {}).get("batchItemFailures") or []}
    if failed - {message["MessageId"] for message in messages}:
        return []
    return [message for message in messages if message["MessageId"] not in failed]


def delete(sqs: Any, url: str, messages: list[dict[str, Any]]) -> None:
    """Delete messages from their queue."""
    if messages:
        entries = [{"Id": str(index), "ReceiptHandle": message["ReceiptHandle"]} for index, message in enumerate(messages)]
        failed = sqs.delete_message_batch(QueueUrl=url, Entries=entries).get("Failed")
        if failed:
            # They come again, and the workers take that.
            print(f"not deleted: {failed}", file=sys.stderr)


def record(message: dict[str, Any], queue: str) -> dict[str, Any]:
    """Return a message of ReceiveMessage as a record of Lambda's SQS event."""
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message["Attributes"],
        "messageAttributes": {name: _attribute(value) for name, value in message.get("MessageAttributes", {}).items()},
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}",
        "awsRegion": REGION,
    }


def _attribute(value: dict[str, Any]) -> dict[str, Any]:
    spelt = {name[0].lower() + name[1:]: part for name, part in value.items()}
    if "binaryValue" in spelt:
        spelt["binaryValue"] = base64.b64encode(spelt["binaryValue"]).decode()
    return {"stringListValues": [], "binaryListValues": [], **spelt}
