"""The service at work on real learners: courses, enrolments, activity and answers in, certificates out.

Everything goes the way that other services' data go: through the queues and over HTTP. The counts at the end are read back from
the database, for the course versions of the data folder alone.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlsplit

import httpx
import psutil
import psycopg
from botocore.exceptions import BotoCoreError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from local import oulad
from local.pollers import client
from local.service import ServiceError, default_dir, running

SHIPPED_DATA = Path(__file__).parent / "data" / "oulad-aaa-2013j"

EVENTS_PER_MESSAGE = 1000
"""The most events that the service takes in one message."""

LESSONS_PER_REQUEST = 500
"""The most lessons that the service takes in one offline sync."""

MESSAGES_AHEAD = 20
"""So many messages may wait in a queue before more are sent: the worker is kept busy, and ten million rows never pile up."""

STALL_SECONDS = 240
"""The service has stopped when nothing at all moves for so long; a message that a worker lost comes back after 180 seconds."""

PAUSE_SECONDS = 0.1
"""Between two looks at what is being waited for, which take the machine's time away from what they wait for."""

LINES_SHOWN = 5
"""How many left-out rows, and how many refused events, are shown; all left-out rows are in a file."""

QUEUES = ("CATALOG", "ENROLLMENT", "PROGRESS", "QUIZ", "CERTIFICATE")


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def main(data: str | None = None, json_file: str | None = None, shuffle: int | None = None) -> int:
    """Take a data folder, by default the one that is shipped, through the service, show what happens, and return the exit code.

    The exit code is 0 when everything was taken in, else 1. `json_file` gets the counts as JSON. `shuffle` is a seed: with it,
    every progress and quiz event is sent twice and in random order, which must not change any result.
    """
    console = Console(highlight=False)
    try:
        counts_file = Path(json_file).absolute() if json_file else None
        if counts_file and not counts_file.parent.is_dir():
            raise DemoError(f"{counts_file} cannot be written, since there is no such folder")
        folder = Path(data) if data else SHIPPED_DATA
        left_out = LeftOut(state_folder() / "left-out.txt")
        console.print(f"Reading {escape(str(folder))}", soft_wrap=True)
        dataset = oulad.read(folder, left_out.add)
        console.print("Starting the service")
        with running() as service:
            return replay(console, dataset, left_out, service, counts_file, shuffle)
    except (DemoError, oulad.DataFolderError, ServiceError) as problem:
        reason = str(problem)
    except (httpx.TransportError, psycopg.OperationalError, BotoCoreError) as problem:
        reason = f"the service does not answer any more ({problem}); its logs are in {default_dir() / 'log'}"
    console.print(f"[bold red]The demo stopped:[/] {escape(reason)}", soft_wrap=True)
    return 1


def replay(
    console: Console,
    dataset: oulad.Dataset,
    left_out: "LeftOut",
    service: dict[str, str],
    counts_file: Path | None,
    shuffle: int | None,
) -> int:
    """Send everything to the running service, wait until it has been dealt with, and show the outcome."""
    with Traffic(service) as traffic, Display(console) as display:
        refused_before = traffic.dead_letters()
        cpu_before = cpu_seconds(service)
        started = time.monotonic()
        send_all(dataset, left_out, traffic, display, shuffle)
        seconds = time.monotonic() - started
        standins, everything = (after - before for after, before in zip(cpu_seconds(service), cpu_before, strict=True))
        dead = traffic.dead_letters() - refused_before
        refused = dead.total() + len(traffic.refused_items)
        reasons = traffic.refused_items[:LINES_SHOWN] + [line for queue in dead for line in traffic.reasons(queue)]
        counts = read_counts(service["DATABASE_URL"], dataset) | {
            "events_sent": traffic.sent,
            "events_refused": refused,
            "seconds": round(seconds, 1),
        }
        certificate = a_certificate(service, dataset)
    left_out.show(console)
    show_counts(console, counts, standins / everything if everything else 0.0)
    show_next(console, service, certificate)
    if counts_file:
        counts_file.write_text(json.dumps(counts, indent=1) + "\n")
    if refused:
        console.print(f"\n[bold red]Events refused: {refused:,}.[/] Some of the reasons:")
        for reason in reasons:
            console.print(f"  {escape(reason)}", soft_wrap=True)
    return 1 if refused else 0


def send_all(dataset: oulad.Dataset, left_out: "LeftOut", traffic: "Traffic", display: "Display", shuffle: int | None) -> None:
    """Send the whole folder, each part when what it needs is there."""
    presentations, registrations = dataset.presentations.values(), list(dataset.registrations.values())

    with display.stage("Courses and learners", len(presentations) + len(dataset.students)) as stage:
        named = (oulad.learner_updated(student, presentation) for student, presentation in dataset.students.items())
        traffic.send("CATALOG", stage.track(chain(map(oulad.course_version_published, presentations), named)))
        traffic.wait_for_queue("CATALOG", stage)

    with display.stage("Enrolments", len(registrations)) as stage:
        traffic.send("ENROLLMENT", stage.track(map(oulad.enrollment_requested, registrations)))
        traffic.wait_for_queue("ENROLLMENT", stage)

    clicks = oulad.click_files(dataset.folder)
    reports = oulad.lesson_reports(dataset, left_out.add)
    expected = max(0, oulad.count_lines(clicks) - len(clicks))
    if shuffle is not None:
        reports, expected = twice_shuffled(reports, shuffle), 2 * expected
    with display.stage("Lesson progress", expected) as stage:
        send_progress(dataset, traffic, stage.track(reports))
        traffic.wait_for_queue("PROGRESS", stage)

    submissions = oulad.submissions(dataset, left_out.add)
    expected = max(0, oulad.count_lines([oulad.table_file(dataset.folder, "studentAssessment")]) - 1)
    if shuffle is not None:
        submissions, expected = twice_shuffled(submissions, shuffle), 2 * expected
    with display.stage("Quiz attempts", expected) as stage:
        traffic.send("QUIZ", stage.track(map(oulad.quiz_submitted, submissions)))
        traffic.wait_for_queue("QUIZ", stage)

    with display.stage("Completions, certificates") as stage:
        traffic.wait_for_everything(stage)

    cancelled = [event for event in map(oulad.enrollment_cancelled, registrations) if event is not None]
    with display.stage("Cancellations", len(cancelled)) as stage:
        traffic.send("ENROLLMENT", stage.track(cancelled))
        traffic.wait_for_everything(stage)


def send_progress(dataset: oulad.Dataset, traffic: "Traffic", reports: Iterable[oulad.LessonReport]) -> None:
    """Send lesson progress by the queue, but over HTTP for students with an even number in the smallest presentation.

    The smallest presentation is the one with the fewest registrations.
    """
    smallest = dataset.smallest_presentation()
    groups: dict[oulad.Registration, list[oulad.LessonReport]] = {}

    def by_queue() -> Iterator[str]:
        for report in reports:
            registration = report.registration
            if registration.presentation is not smallest or int(registration.student) % 2:
                yield oulad.lesson_progressed(report)
                continue
            # What goes over HTTP is collected by learner, so that the stream is read only once.
            group = groups.setdefault(registration, [])
            group.append(report)
            if len(group) == LESSONS_PER_REQUEST:
                traffic.sync(registration, groups.pop(registration))

    traffic.send("PROGRESS", by_queue())
    for registration, group in groups.items():
        traffic.sync(registration, group)


def twice_shuffled[Item](items: Iterable[Item], seed: int) -> Iterator[Item]:
    """Every item twice, in an order that depends on the seed alone."""
    doubled = list(items) * 2
    random.Random(seed).shuffle(doubled)  # noqa: S311 - The order has to be repeatable, not secret.
    return iter(doubled)


def arrays(events: Iterable[str], most_bytes: int) -> Iterator[tuple[str, int]]:
    """Pack events, which are ASCII, into JSON arrays as large as one message may be, each with its number of events."""
    batch: list[str] = []
    size = 1
    for event in events:
        # Each event is followed by a comma or the closing bracket.
        if batch and (len(batch) == EVENTS_PER_MESSAGE or size + len(event) + 1 > most_bytes):
            yield f"[{','.join(batch)}]", len(batch)
            batch, size = [], 1
        batch.append(event)
        size += len(event) + 1
    if batch:
        yield f"[{','.join(batch)}]", len(batch)


class Traffic:
    """The ways into the running service, and what can be seen of it from outside."""

    def __init__(self, service: dict[str, str]) -> None:
        """Connect to the addresses in `service`, which has the names of `.local/env`."""
        self.service = service
        self.sqs = client("sqs", service["AWS_ENDPOINT_URL"])
        self.http = httpx.Client(
            base_url=service["API_URL"], headers={"Authorization": f"Bearer {service['ADMIN_TOKEN']}"}, timeout=STALL_SECONDS
        )
        self.database = psycopg.connect(service["DATABASE_URL"], autocommit=True)
        self.sent = 0
        self.refused_items: list[str] = []

    def __enter__(self) -> "Traffic":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.sqs.close()
        self.database.close()

    def send(self, queue: str, events: Iterable[str]) -> None:
        """Send events to a queue in arrays, never far ahead of its worker."""
        url = self.service[f"{queue}_QUEUE_URL"]
        size = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["MaximumMessageSize"])
        for body, count in arrays(events, int(size["Attributes"]["MaximumMessageSize"])):
            self.wait_until(lambda: self.messages(url) < MESSAGES_AHEAD)
            self.sqs.send_message(QueueUrl=url, MessageBody=body)
            self.sent += count

    def sync(self, registration: oulad.Registration, reports: list[oulad.LessonReport]) -> None:
        """Send one learner's lesson progress over HTTP, and keep the reasons of what was refused."""
        path = f"/users/{registration.user_id}/enrollments/{registration.presentation.course_version_id}/progress"
        answer = self.http.post(path, json={"lessons": [oulad.lesson_item(report) for report in reports]})
        if answer.status_code != 200:
            raise DemoError(f"POST {path} answered {answer.status_code}: {answer.text[:500]}")
        self.sent += len(reports)
        for result in answer.json()["results"]:
            if result["result"] == "refused":
                self.refused_items.append(f"POST {path}: lesson {result['lesson_id']}: {result['detail']}")

    def messages(self, url: str) -> int:
        """How many messages a queue holds: waiting, delayed, or being worked on."""
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed")
        attributes = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(attributes[name]) for name in names)

    def dead_letters(self) -> Counter[str]:
        """How many dead letters each queue has."""
        return Counter({queue: self.messages(self.service[f"{queue}_DLQ_URL"]) for queue in QUEUES})

    def reasons(self, queue: str) -> list[str]:
        """Some of the reasons why a queue has dead letters, which stay where they are."""
        answer = self.sqs.receive_message(
            QueueUrl=self.service[f"{queue}_DLQ_URL"],
            MaxNumberOfMessages=LINES_SHOWN,
            VisibilityTimeout=0,
            MessageAttributeNames=["reason", "code"],
        )
        lines: list[str] = []
        for message in answer.get("Messages", []):
            texts = {name: value["StringValue"] for name, value in message.get("MessageAttributes", {}).items()}
            lines.append(f"{queue.lower()}: {texts.get('code')}: {texts.get('reason')} {message['Body'][:300]}")
        return lines

    def wait_for_queue(self, queue: str, stage: "Stage") -> None:
        """Wait until the worker of a queue has dealt with all messages."""
        url = self.service[f"{queue}_QUEUE_URL"]

        def done() -> bool:
            left = self.messages(url)
            stage.say(f"{left} messages left" if left else "")
            return not left

        self.wait_until(done)

    def wait_for_everything(self, stage: "Stage") -> None:
        """Wait until all queues are empty and the outbox is sent.

        Sending an event may put a message into a queue, and working on a message may put an event into the outbox. It is over
        when all queues are empty between two looks at an outbox to which nothing has been added and in which nothing is unsent.
        """

        def done() -> bool:
            # Asked first, because an index answers it, while the outbox as a whole is large and the stand-ins are busy.
            ((unsent,),) = self.database.execute("SELECT count(*) FROM outbox WHERE sent_at IS NULL").fetchall()
            if unsent:
                stage.say(f"{unsent:,} events to send out")
                return False
            before, left = self.state()
            stage.say(f"{sum(left)} messages left" if any(left) else "")
            return not any(left) and before[0] == 0 and self.outbox() == before

        self.wait_until(done)

    def outbox(self) -> tuple[int, int]:
        """How many events and messages of the service are not sent yet, and how many it has written at all."""
        ((unsent, total),) = self.database.execute(
            "SELECT count(*) FILTER (WHERE sent_at IS NULL), count(*) FROM outbox"
        ).fetchall()
        return unsent, total

    def state(self) -> tuple[tuple[int, int], list[int]]:
        """Whatever changes as long as the service works: the outbox, and then how many messages each queue holds."""
        return self.outbox(), [self.messages(self.service[f"{queue}_QUEUE_URL"]) for queue in QUEUES]

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Look again and again until `done()` is true. Raises DemoError when nothing has moved for STALL_SECONDS."""
        before: tuple[tuple[int, int], list[int]] | None = None
        moved = looked = time.monotonic()
        while not done():
            if time.monotonic() - looked > 5:
                looked = time.monotonic()
                if (now := self.state()) != before:
                    before, moved = now, looked
                elif looked - moved > STALL_SECONDS:
                    (unsent, _), left = now
                    waiting = ", ".join(f"{name.lower()} {count}" for name, count in zip(QUEUES, left, strict=True) if count)
                    raise DemoError(
                        f"nothing has moved for {STALL_SECONDS} s; messages in the queues: {waiting or 'none'}, "
                        f"events not sent: {unsent}. The functions' logs are in {default_dir() / 'log'}"
                    )
            time.sleep(PAUSE_SECONDS)


# ------------------------------------------------------------------------------------------------------------------- on screen


class LeftOut:
    """The malformed rows: all of them in a text file, the first few and their number on screen."""

    def __init__(self, path: Path) -> None:
        """Start anew; the file is written with the first row."""
        self.path = path
        self.path.unlink(missing_ok=True)
        self.first: list[str] = []
        self.files: Counter[str] = Counter()

    def add(self, file: str, line: int, reason: str) -> None:
        """Take note of a row."""
        # A row may hold anything, and of any length, but a terminal obeys some characters.
        text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in reason[:300])
        text = f"{file}:{line}: {text}"
        if len(self.first) < LINES_SHOWN:
            self.first.append(text)
        self.files[file] += 1
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(text + "\n")

    def show(self, console: Console) -> None:
        """Say what was left out, if anything was."""
        if not self.files:
            return
        by_file = ", ".join(f"{count:,} in {file}" for file, count in self.files.items())
        console.print(f"[bold yellow]{self.files.total():,} malformed rows were left out[/]: {escape(by_file)}", soft_wrap=True)
        for text in self.first:
            console.print(f"  {escape(text)}", soft_wrap=True)
        if self.files.total() > len(self.first):
            console.print(f"  … all of them are in {escape(str(self.path))}", soft_wrap=True)


class Display:
    """How far the demo is: a bar for each stage on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        """Draw nothing yet."""
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(10),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
        )

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    @contextmanager
    def stage(self, title: str, total: int | None = None) -> Generator["Stage"]:
        """Show a stage with about `total` events; None where there is nothing to send, only to wait for."""
        stage = Stage(self, title, total)
        yield stage
        stage.end()


class Stage:
    """One stage on the display. Its rate is that of the whole stage, the time of taking everything in included."""

    SECONDS_BETWEEN_LINES = 10

    def __init__(self, display: Display, title: str, total: int | None) -> None:
        """Begin the stage now."""
        self.display, self.title, self.total = display, title, total
        self.task = display.bars.add_task(title, total=total, text="")
        self.sent = 0
        self.note = ""
        self.started = self.told = time.monotonic()

    def track[Item](self, items: Iterable[Item]) -> Iterator[Item]:
        """Count items as they go by."""
        for item in items:
            yield item
            self.sent += 1
            # A look at the clock for every event would cost as much as making the event.
            if self.sent % 500 == 0:
                self.refresh()
        # Left-out rows have made the estimated total too large.
        self.total = self.sent
        self.refresh()

    def say(self, note: str) -> None:
        """Say what is still being waited for; an empty text where it is nothing."""
        self.note = note
        self.refresh()

    def refresh(self) -> None:
        """Bring the display up to date."""
        self.display.bars.update(self.task, completed=self.sent, total=self.total, text=self.note or self.figures())
        if not self.display.console.is_terminal and time.monotonic() - self.told >= self.SECONDS_BETWEEN_LINES:
            self.told = time.monotonic()
            self.line("")

    def end(self) -> None:
        """Finish the stage."""
        self.note = ""
        self.display.bars.update(self.task, completed=1, total=1, text=self.figures())
        self.display.bars.stop_task(self.task)
        if not self.display.console.is_terminal:
            self.line(f"done in {time.monotonic() - self.started:.1f} s")

    def figures(self) -> str:
        """How many events were sent, and how many each second."""
        if not self.sent:
            return ""
        return f"{self.sent:,}/{self.total:,} {self.sent / max(time.monotonic() - self.started, 0.001):,.0f}/s"

    def line(self, ending: str) -> None:
        """Print a line about the stage."""
        text = ", ".join(part for part in (self.figures(), self.note, ending) if part)
        self.display.console.print(f"{self.title}: {text}", soft_wrap=True)


def read_counts(database_url: str, dataset: oulad.Dataset) -> dict[str, Any]:
    """What the database holds on the course versions of the data folder."""
    course_versions = [presentation.course_version_id for presentation in dataset.presentations.values()]
    with psycopg.connect(database_url, autocommit=True) as database:

        def rows(statement: LiteralString) -> list[tuple[Any, ...]]:
            return database.execute(statement, {"ids": course_versions}).fetchall()

        ((published,),) = rows("SELECT count(*) FROM course_versions WHERE course_version_id = ANY (%(ids)s::uuid[])")
        enrollments = rows(
            "SELECT status, count(*) FROM enrollments WHERE course_version_id = ANY (%(ids)s::uuid[])"
            " GROUP BY status ORDER BY status"
        )
        lessons = rows(
            "SELECT status, count(*) FROM lesson_progress WHERE enrolled_course_version_id = ANY (%(ids)s::uuid[])"
            " GROUP BY status ORDER BY status"
        )
        ((passed, failed, score_sum),) = rows(
            "SELECT count(*) FILTER (WHERE is_passed), count(*) FILTER (WHERE NOT is_passed), coalesce(sum(score), 0)"
            " FROM quiz_attempts WHERE enrolled_course_version_id = ANY (%(ids)s::uuid[])"
        )
        ((certificates,),) = rows("SELECT count(*) FROM certificates WHERE course_version_id = ANY (%(ids)s::uuid[])")
    return {
        "course_versions": published,
        "enrollments": dict(enrollments),
        "lesson_progress": dict(lessons),
        "quiz_attempts": {"passed": passed, "failed": failed},
        "score_sum": score_sum if score_sum % 1 else int(score_sum),
        "certificates": certificates,
    }


def show_counts(console: Console, counts: dict[str, Any], standins: float) -> None:
    """Print the table of what happened."""
    table = Table(title="What happened", show_header=False, min_width=60)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("Course versions", f"{counts['course_versions']:,}")
    for title, key in (("Enrolments", "enrollments"), ("Lesson progress", "lesson_progress"), ("Quiz attempts", "quiz_attempts")):
        table.add_section()
        for status, number in counts[key].items():
            table.add_row(f"{title}, {status}", f"{number:,}")
    table.add_row("Sum of scores", f"{counts['score_sum']:,.0f}")
    table.add_section()
    table.add_row("Certificates", f"{counts['certificates']:,}")
    table.add_section()
    table.add_row("Events sent", f"{counts['events_sent']:,}")
    table.add_row("Events refused", f"{counts['events_refused']:,}")
    table.add_row("Seconds until the outbox was empty", f"{counts['seconds']:,.1f}")
    table.add_row("Events per second", f"{counts['events_sent'] / max(counts['seconds'], 0.1):,.0f}")
    table.add_row("CPU time spent in the stand-ins for AWS", f"{standins:.0%}")
    console.print(table)


def a_certificate(service: dict[str, str], dataset: oulad.Dataset) -> tuple[str, str, Path] | None:
    """Fetch the document of the certificate that was issued first: its holder, its address, and the file it was saved in."""
    with psycopg.connect(service["DATABASE_URL"], autocommit=True) as database:
        row = database.execute(
            "SELECT certificate_uid, metadata ->> 'learner_name' FROM certificates"
            " WHERE course_version_id = ANY (%s::uuid[]) AND revoked_at IS NULL ORDER BY issued_at, certificate_uid LIMIT 1",
            [[presentation.course_version_id for presentation in dataset.presentations.values()]],
        ).fetchone()
    if row is None:
        return None
    uid, name = row
    address = f"{service['API_URL']}/certificates/{uid}"
    answer = httpx.get(address, headers={"Accept": "application/pdf"}, timeout=STALL_SECONDS, follow_redirects=True)
    if answer.status_code != 200:
        raise DemoError(f"GET {address} answered {answer.status_code}: {answer.text[:500]}")
    document = state_folder() / f"{uid}.pdf"
    document.write_bytes(answer.content)
    return name, address, document


def show_next(console: Console, service: dict[str, str], certificate: tuple[str, str, Path] | None) -> None:
    """Print where to find a certificate and what to try next."""
    if certificate is not None:
        name, address, document = certificate
        console.print(f"\nA certificate of {escape(name)}")
        console.print(f"  document  {escape(str(document))}", soft_wrap=True)
        console.print(f"  address   {address}  (while the service runs)", soft_wrap=True)
    console.print("\nNext")
    console.print("  make run                 the same service and data, to try by hand")
    console.print("  make demo DATA=<folder>  the same with other presentations of the data set")
    console.print("  make clean               removes the data again")


def cpu_seconds(service: dict[str, str]) -> tuple[float, float]:
    """The CPU seconds used so far by the stand-ins for SQS and EventBridge, and by the service and this demo altogether."""
    standin = listener(urlsplit(service["AWS_ENDPOINT_URL"]).port)
    parent = standin.parent()
    if parent is None:
        raise DemoError("the service has ended")
    everything = {parent, *parent.children(recursive=True), psutil.Process()}
    return used_by(standin), sum(used_by(process) for process in everything)


def listener(port: int | None) -> psutil.Process:
    """The process that listens on a TCP port of this computer."""
    for process in psutil.process_iter():
        # Other people's processes may not be looked into, and any process may end meanwhile.
        with suppress(psutil.AccessDenied, psutil.NoSuchProcess):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return process
    raise DemoError(f"nothing listens on port {port} any more")


def used_by(process: psutil.Process) -> float:
    """The CPU seconds of a process and of its children that have ended; 0 where it has just ended itself."""
    with suppress(psutil.NoSuchProcess):
        return sum(process.cpu_times()[:4])
    return 0.0


def state_folder() -> Path:
    """The folder for what the demo leaves behind, made on first use."""
    folder = default_dir() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
