"""What `make build` packs works in the runtime that Lambda has: a learner's whole way through AWS's emulator."""

import json
import sysconfig
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
import yaml

from local import aws, keys, template
from local.child import aws_environment
from local.pollers import client
from local.service import parameters
from tests.conftest import as_role, created
from tests.integration.test_event_files import ATTEMPT, REGRADE, UID, WAY
from tests.support.emulator import PROJECT, Emulator, Place, stand_in
from tests.support.service import Service

#: These go on until 5 or 15 s of their time are left, so here they get little more. Starting counts too.
SECONDS = {"OutboxRelay": 8, "QuizMaintenance": 18}

#: What can be sent again and again: the way has been gone, and each is answered as one that is known.
WARM = [
    "catalog_worker/course_version_published",
    "certificate_api/verify_certificate",
    "certificate_worker/enrollment_completed",
    "enrollment_api/get_enrollment",
    "enrollment_worker/enrollment_requested",
    "migrate/deployment",
    "progress_api/report_lesson_progress",
    "progress_worker/lesson_progressed",
    "quiz_api/get_attempt",
    "quiz_worker/quiz_submitted",
    "report_api/health",
]


class Functions:
    """The built template's functions, each in an emulator of its own."""

    def __init__(self, service: Service, artifacts: Path, folder: Path, endpoint: str, stack: ExitStack) -> None:
        self.service = service
        self.folder = folder
        self.endpoint = endpoint
        keys.make(folder)
        built = artifacts / "template.yaml"
        document = yaml.safe_load(built.read_text())
        values = parameters("http://127.0.0.1:3000", as_role(service.database_url, "learner_progress_app"), folder)
        self.template = template.read(values, endpoint, built)
        aws.create(self.template, endpoint)
        place = Place(folder, artifacts)
        self.emulators: dict[str, Emulator] = {}
        for name, function in self.template.functions.items():
            assert document["Resources"][name]["Properties"]["CodeUri"] == name
            environment = function.environment | aws_environment(endpoint)
            if name == "Migrate":
                # As the database's owner, who makes the role of the others.
                environment["DATABASE_URL"] = service.database_url
            handler = document["Globals"]["Function"]["Handler"]
            timeout = SECONDS.get(name, function.timeout)
            self.emulators[name] = stack.enter_context(
                place.emulator(name, handler, function.layers, timeout, function.memory, environment)
            )

    def invoke(self, example: str, ids: dict[str, str]) -> Any:
        """Invoke a function with the example `<function>/<case>`, in which ids are replaced that the service draws."""
        text = (PROJECT / "events" / f"{example}.json").read_text()
        for old, new in ids.items():
            text = text.replace(old, new)
        return self.emulators[logical_id(example)].invoke(text)

    def certificate(self) -> dict[str, str]:
        """The uid of the one certificate, if there is one yet, by the uid that stands in the examples."""
        rows = self.service.rows("SELECT certificate_uid FROM certificates")
        return {UID: rows[0]["certificate_uid"]} if rows else {}


def logical_id(example: str) -> str:
    return example.split("/")[0].title().replace("_", "")


@pytest.fixture
def functions(server_url: str, artifacts: Path) -> Generator[Functions]:
    with ExitStack() as stack:
        # Without a table, so that the artifact with the migrations makes them.
        service = Service(stack.enter_context(created(server_url, f"test_{uuid4().hex[:12]}")))
        # Not pytest's folder, which is kept for the next two runs.
        folder = Path(stack.enter_context(TemporaryDirectory()))
        endpoint = stack.enter_context(stand_in(folder / "aws.log"))
        yield Functions(service, artifacts, folder, endpoint, stack)


def test_every_artifact_works_in_lambdas_runtime_on_a_learners_whole_way(functions: Functions) -> None:
    go_the_way(functions)
    do_what_the_clock_starts(functions)
    for example in WARM:
        answer = functions.invoke(example, functions.certificate())
        assert answer.get("statusCode") == 200 if "_api/" in example else "errorType" not in answer, (example, answer)
    for name, emulator in functions.emulators.items():
        told_of_each_invocation(emulator)
        used_nothing_but_its_own(name, emulator, functions.folder)


def go_the_way(functions: Functions) -> None:
    answers: dict[str, Any] = {}
    for example, status in WAY:
        # Before the first example there is no table to look into.
        ids = functions.certificate() if "migrate/deployment" in answers else {}
        if example in ("quiz_api/save_answers", "quiz_api/submit_attempt"):
            ids[ATTEMPT] = json.loads(answers["quiz_api/start_attempt"]["body"])["id"]
        if example == "quiz_api/get_regrade":
            ids[REGRADE] = json.loads(answers["quiz_api/regrade_quiz"]["body"])["id"]
        answer = answers[example] = functions.invoke(example, ids)
        if status:
            assert answer.get("statusCode") == status, (example, answer)
        elif example.split("/")[0].endswith("_worker"):
            assert answer == ({} if example.endswith("every_minute") else {"batchItemFailures": []}), example
    assert answers["migrate/deployment"]["applied"] == [path.stem for path in sorted(PROJECT.glob("migrations/*.sql"))]
    assert "Fire safety in the office" in answers["certificate_api/verify_certificate_in_browser"]["body"]
    assert json.loads(answers["enrollment_api/reinstate_enrollment"]["body"])["status"] == "completed"
    # The worker made a document, with the fonts in their layer, and a new one when the certificate was issued anew.
    stored = client("s3", functions.endpoint).list_objects_v2(Bucket=functions.template.buckets[0])["Contents"]
    assert [document["Key"].rpartition("/")[2] for document in stored] == ["1.pdf", "2.pdf"]


def do_what_the_clock_starts(functions: Functions) -> None:
    unfinished = "SELECT id FROM quiz_regrades WHERE completed_at IS NULL"
    assert functions.service.rows(unfinished)
    until_done(functions, "quiz_maintenance/every_minute", unfinished)
    waiting = functions.service.rows("SELECT destination FROM outbox WHERE sent_at IS NULL")
    answers = until_done(functions, "outbox_relay/every_minute", "SELECT id FROM outbox WHERE sent_at IS NULL")
    assert sum(answer["sent"] for answer in answers) == len(waiting)
    assert sum(answer["failed"] for answer in answers) == 0
    dead = 0
    for name in functions.template.queues:
        if name.endswith("DeadLetterQueue"):
            url = template.queue_url(functions.endpoint, name)
            names = ["ApproximateNumberOfMessages"]
            attributes = client("sqs", functions.endpoint).get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
            dead += int(attributes["ApproximateNumberOfMessages"])
    assert dead == sum(row["destination"] == "dead_letter_queue" for row in waiting) == 3


def until_done(functions: Functions, example: str, undone: str) -> list[dict[str, Any]]:
    """Invoke a function until a statement finds nothing left to do; on a busy machine its start alone may take all its time."""
    answers = [functions.invoke(example, {})]
    while functions.service.rows(undone) and len(answers) < 5:
        answers.append(functions.invoke(example, {}))
    assert functions.service.rows(undone) == [], answers
    return answers


def told_of_each_invocation(emulator: Emulator) -> None:
    log = emulator.log
    for line in ("START RequestId: ", "END RequestId: ", "REPORT RequestId: "):
        assert log.count(line) == emulator.invocations, log
    assert len(emulator.invoke_milliseconds) == emulator.invocations, log
    assert "Traceback" not in log, log


def used_nothing_but_its_own(name: str, emulator: Emulator, folder: Path) -> None:
    opened = emulator.opened()
    # That nothing else was noted means something, since these were.
    assert any(path.is_relative_to(emulator.task) and path.stem.startswith("app") for path in opened), name
    assert any(path.is_relative_to(folder) and "shared" in path.parts for path in opened), name
    # Python itself may have been fetched into a folder of the project.
    library = Path(sysconfig.get_path("stdlib")).resolve()
    for path in opened:
        of_python = path.is_relative_to(library) and "site-packages" not in path.parts
        assert of_python or not path.is_relative_to(PROJECT), (name, path)
        if path.suffix in (".py", ".pyc", ".so"):
            assert of_python or path.is_relative_to(folder), (name, path)
