"""The stand-in for SQS, EventBridge and S3: moto's server with the queues, the bus, the rules and the bucket of the template.

It keeps messages in memory, so that what is still in a queue when the service stops is gone afterwards. What waits in the
table outbox is in the database and is sent after the next start. Documents are gone too, and made again when they are asked for.
"""

import logging
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from moto.server import ThreadedMotoServer
from moto.sqs.models import Message, SQSBackend

from local.child import Child
from local.pollers import client
from local.template import REGION, Template, queue_url

#: How soon a message is found whose delay or visibility timeout is over; moto wants whole seconds.
LOOK_AGAIN_SECONDS = 1

_lock = threading.RLock()


def serve(child: Child) -> None:
    """Serve until the parent ends."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    _make_queues_thread_safe()
    endpoint = child.settings.endpoint
    address = urlsplit(endpoint)
    ThreadedMotoServer(str(address.hostname), address.port or 80, verbose=False).start()
    create(child.settings.template(), endpoint)
    child.ready()
    threading.Event().wait()


def create(template: Template, endpoint: str) -> None:
    """Create the queues, buckets, buses, rules and targets of the template."""
    sqs, events = client("sqs", endpoint), client("events", endpoint)
    # Dead-letter queues have no redrive policy and must exist before the queues that name them.
    for name, attributes in sorted(template.queues.items(), key=lambda queue: "RedrivePolicy" in queue[1]):
        created = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        if created != queue_url(endpoint, name):
            raise RuntimeError(f"queue {name} has the address {created}")
    s3 = client("s3", endpoint)
    for bucket in template.buckets:
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    for bus in template.buses:
        events.create_event_bus(Name=bus)
    for rule in template.rules:
        events.put_rule(Name=rule.name, EventBusName=rule.bus, EventPattern=rule.pattern)
        events.put_targets(Rule=rule.name, EventBusName=rule.bus, Targets=rule.targets)


def _make_queues_thread_safe() -> None:
    """Let one thread at a time into moto's queues.

    Moto's server has a thread for each connection, but deleting a message replaces the queue's list of messages by a filtered
    copy, so that a message sent meanwhile would be lost. Waiting for a message happens outside the lock.
    """
    for name in ("send_message", "delete_message", "delete_message_batch", "change_message_visibility", "purge_queue"):
        setattr(SQSBackend, name, _locked(getattr(SQSBackend, name)))
    receive = _locked(SQSBackend.receive_message)

    def receive_message(
        self: SQSBackend,
        queue_name: str,
        count: int,
        wait_seconds_timeout: int,
        visibility_timeout: int,
        message_attribute_names: list[str] | None = None,
    ) -> list[Message]:
        deadline = time.monotonic() + wait_seconds_timeout
        while True:
            messages = receive(self, queue_name, count, 0, visibility_timeout, message_attribute_names)
            remaining = deadline - time.monotonic()
            if messages or remaining <= 0:
                return messages
            # Woken by a new message; a delayed one, which wakes nobody, is found by looking again.
            self.get_queue(queue_name).wait_for_messages(LOOK_AGAIN_SECONDS)

    SQSBackend.receive_message = receive_message


def _locked(method: Any) -> Any:
    def locked(*args: Any, **kwargs: Any) -> Any:
        with _lock:
            return method(*args, **kwargs)

    return locked
