"""`make run`: starts the service, publishes one small course, and tells what to try first."""

import json
import shlex
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.status import Status

from local.pollers import client
from local.service import LEARNER_ID, START_SECONDS, ServiceError, started

COURSE_VERSION_ID = "0b9f6e2d-4c1a-4e7b-8a35-9d2c7f1e6b04"
PUBLISHED_AT = "2026-01-01T00:00:00Z"

COURSE_VERSION: dict[str, Any] = {
    "course_version_id": COURSE_VERSION_ID,
    "course_id": "6f3a1d8c-92b7-4d05-b1e4-7c5a0e9f2d38",
    "title": "Reading maps",
    "version": "2026",
    "issuer_name": "Open Learning on this computer",
    "self_enrollment": True,
    "lessons": [
        {"lesson_id": "1c7e4a90-5d2b-4f83-a6c1-0e8b3d9f7a21", "title": "Scale and distance", "required": True},
        {"lesson_id": "2d8f5ba1-6e3c-4094-b7d2-1f9c4ea08b32", "title": "Contour lines", "required": True},
        {"lesson_id": "3e906cb2-7f4d-41a5-88e3-20ad5fb19c43", "title": "Maps in literature", "required": False},
    ],
    "quizzes": [
        {
            "quiz_id": "4fa17dc3-805e-42b6-99f4-31be60c2ad54",
            "title": "Finding your way",
            "required": True,
            "pass_threshold_percentage": 60,
            "max_attempts": 3,
            "time_limit_seconds": None,
            "retry_delay_seconds": None,
            "reveal_answers": False,
            "questions": [
                {
                    "question_id": "q1",
                    "kind": "single_choice",
                    "prompt": "Contour lines that are close together mean …",
                    "points": 1,
                    "choices": [
                        {"id": "a", "text": "a steep slope"},
                        {"id": "b", "text": "a river"},
                        {"id": "c", "text": "a plain"},
                    ],
                    "correct": "a",
                },
                {
                    "question_id": "q2",
                    "kind": "numeric",
                    "prompt": "How many kilometres are 4 cm on a map of 1:50,000?",
                    "points": 2,
                    "correct": 2,
                },
                {
                    "question_id": "q3",
                    "kind": "text",
                    "prompt": "Which direction is at the top of most maps?",
                    "points": 2,
                    "correct": ["north", "the north"],
                },
            ],
        }
    ],
    "certificate": {"enabled": True, "valid_for_days": None},
}


def run(port: int, local_dir: Path) -> None:
    """Run the service until a signal's exception or a ServiceError ends it."""
    console = Console(highlight=False, soft_wrap=True)
    begun = time.monotonic()
    with ExitStack() as stack:
        with Status("starting", console=console) as status:
            service = started(port, local_dir, console=sys.stdout.fileno(), step=status.update)
            environment = stack.enter_context(service)
            status.update("publishing the course")
            seed(environment)
        console.print(_welcome(environment, local_dir, time.monotonic() - begun))
        threading.Event().wait()


def seed(environment: dict[str, str]) -> None:
    """Publish the course version and the learner's name through the queue, as their owners do, and wait until they are in.

    The events are the same each time, so that a database which has them already stays as it is.
    Raises ServiceError if they don't get in.
    """
    sqs, url = (client("sqs", environment["AWS_ENDPOINT_URL"]), environment["CATALOG_QUEUE_URL"])
    learner = {"user_id": LEARNER_ID, "name": "Ada Lovelace", "locale": "en"}
    events = [_event("course_version.published", COURSE_VERSION), _event("learner.updated", learner)]
    sqs.send_message(QueueUrl=url, MessageBody=json.dumps(events))
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    roster = f"{environment['API_URL']}/course-versions/{COURSE_VERSION_ID}/enrollments"
    headers = {"Authorization": f"Bearer {environment['REPORT_TOKEN']}"}
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        if not any(int(count) for count in counts.values()):
            answer = httpx.get(roster, headers=headers, timeout=START_SECONDS)
            if not answer.is_success:
                raise ServiceError(f"the course was not taken in: {answer.status_code} {answer.text}")
            return
        time.sleep(0.05)
    raise ServiceError(f"the course was not taken in within {START_SECONDS} s; see the log of catalog_worker")


def _event(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    source = "local/run"
    return {"specversion": "1.0", "id": f"{source}/{kind}", "source": source, "type": kind, "time": PUBLISHED_AT, "data": data}


def _welcome(environment: dict[str, str], local_dir: Path, seconds: float) -> str:
    folder = str(local_dir.relative_to(Path.cwd())) if local_dir.is_relative_to(Path.cwd()) else str(local_dir)
    api = environment["API_URL"]
    return f"""
[bold green]Learner progress and certification is running[/] (started in {seconds:.0f} s)

  HTTP API       [bold]{api}[/]
  Documentation  [bold]{api}/docs[/]
  Database       {environment["DATABASE_URL"]}
  SQS, bus, S3   {environment["AWS_ENDPOINT_URL"]}
  Logs           {folder}/log/

[bold]Learner's token[/] (Ada Lovelace)
{environment["LEARNER_TOKEN"]}

[bold]Administrator's token[/]
{environment["ADMIN_TOKEN"]}

[bold]Try it[/] in another terminal, in this folder: enrol Ada in the course "{COURSE_VERSION["title"]}"

  . {shlex.quote(f"{folder}/env")}
  curl -X PUT -H "Authorization: Bearer $LEARNER_TOKEN" "$API_URL/users/me/enrollments/{COURSE_VERSION_ID}"

Ctrl-C stops it. The database stays in {folder}/, messages still in a queue do not.
"""
