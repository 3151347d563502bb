"""Use the service from several processes while faults strike, and check whether all that can be seen of it has an explanation.

`make soak` runs this; docs/soak.md tells how it works and how to read what it finds.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from collections import Counter
from typing import Any

import httpx
import psycopg
from rich.console import Console
from rich.live import Live
from rich.table import Table

from local import postgres, service, verify
from local.pollers import client
from local.template import PROJECT
from tests.soak import checker, generator, nemesis
from tests.soak.world import Key, World, entries, now, text

#: How long it goes on between two looks at everything.
WINDOW_SECONDS = 20
#: Longest that everything may take to come to rest once nothing strikes any more; a killed relay's rows are leased for a minute.
REST_SECONDS = 150
#: A batch whose process died comes again after so many seconds; on AWS it takes minutes.
VISIBILITY_SECONDS = 10
#: What waits for something is tried again for so long.
PATIENCE_SECONDS = 4
QUEUES = ("ENROLLMENT", "PROGRESS", "QUIZ", "CERTIFICATE", "CATALOG")


class Soak:
    """One run."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.seed: int = given.seed
        self.seconds: float = given.seconds
        self.processes: int = given.processes
        self.only_fault: str | None = given.fault
        self.faults = bool(given.faults)
        self.first_only: bool = given.first_only
        self.folder = PROJECT / ".local" / "soak" / str(self.seed)
        self.world = World(self.seed)
        self.spawn = multiprocessing.get_context("spawn")
        self.anomalies: list[checker.Anomaly] = []
        #: Moments at which everything sent before had been dealt with.
        self.rests: list[int] = []
        self.longest_recovery = 0.0
        self.feed: dict[str, dict[str, Any]] = {}
        self.dead: list[dict[str, Any]] = []
        self.snapshot: dict[str, Any] = {}
        self.doing = "starting"
        self.began = self.deadline = time.monotonic()

    def run(self) -> None:
        """Start everything, let it go on, and look at it again and again."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        mine, theirs = self.spawn.Pipe()
        arguments = (self.seed, self.folder, os.getpid(), self.only_fault, theirs)
        storm = self.spawn.Process(target=nemesis.run, args=arguments, daemon=True)
        storm.start()
        theirs.close()
        try:
            self.database_url = mine.recv()
            os.environ["DATABASE_URL"] = self.database_url
            service.RETRY_PATIENCE_SECONDS = PATIENCE_SECONDS
            with service.started(postgres.free_port(), self.folder / "service") as self.environment:
                self.prepare()
                self.go_on(mine)
        finally:
            mine.close()
            storm.join(30)

    def prepare(self) -> None:
        """Publish the course versions, and subscribe to what the service publishes."""
        endpoint = self.environment["AWS_ENDPOINT_URL"]
        self.sqs, events = client("sqs", endpoint), client("events", endpoint)
        for name in QUEUES:
            attributes = {"VisibilityTimeout": str(VISIBILITY_SECONDS)}
            self.sqs.set_queue_attributes(QueueUrl=self.environment[f"{name}_QUEUE_URL"], Attributes=attributes)
        self.feed_url = self.sqs.create_queue(QueueName="SoakFeed")["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=self.feed_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        (bus,) = {one["Name"] for one in events.list_event_buses()["EventBuses"]} - {"default"}
        events.put_rule(Name="SoakFeed", EventBusName=bus, EventPattern=json.dumps({"source": ["learner-progress"]}))
        events.put_targets(Rule="SoakFeed", EventBusName=bus, Targets=[{"Id": "SoakFeed", "Arn": arn}])
        for version in self.world.versions.values():
            published = {"specversion": "1.0", "id": version.id, "source": "soak", "type": "course_version.published"}
            body = published | {"time": text(now()), "data": version.body}
            self.sqs.send_message(QueueUrl=self.environment["CATALOG_QUEUE_URL"], MessageBody=json.dumps(body))
        if self.await_rest() is None:
            raise RuntimeError("the course versions are not taken")

    def go_on(self, storm: Any) -> None:
        pause, stop = self.spawn.Event(), self.spawn.Event()
        idle = [self.spawn.Event() for _ in range(self.processes)]
        threading.Thread(target=self.listen, daemon=True).start()
        workers = [
            self.spawn.Process(
                target=generator.run, args=(n, self.seed, self.folder, self.environment, pause, idle[n], stop), daemon=True
            )
            for n in range(self.processes)
        ]
        for worker in workers:
            worker.start()
        self.began = time.monotonic()
        self.deadline = self.began + self.seconds
        while not (self.first_only and self.anomalies):
            if self.faults:
                self.order(storm, "strike")
            until = time.monotonic() + WINDOW_SECONDS
            while time.monotonic() < min(until, self.deadline):
                self.doing = f"{int(self.deadline - time.monotonic())} s to go"
                time.sleep(0.25)
                if not all(worker.is_alive() for worker in workers):
                    raise RuntimeError("a generator died")
            is_last = time.monotonic() >= self.deadline
            if self.faults:
                self.order(storm, "rest")
            healed = time.monotonic()
            self.doing = "coming to rest"
            if is_last:
                # Before the pause, since what is to be sent late is sent now.
                stop.set()
            pause.set()
            for one in idle:
                if not one.wait(2 * generator.TIMEOUT_SECONDS):
                    self.anomalies.append(checker.Anomaly("hang", "a generator is still waiting for an answer", None, []))
            # What a killed relay had leased may take a minute; until the end it need not be waited for each time.
            rested = self.await_rest(REST_SECONDS if is_last else 15)
            if rested:
                self.longest_recovery = max(self.longest_recovery, rested - healed)
            elif is_last:
                self.anomalies.append(checker.Anomaly("stuck", f"{self.unfinished()} after {REST_SECONDS} s", None, []))
            self.look(at_rest=rested is not None)
            if is_last:
                break
            pause.clear()
        stop.set()
        for worker in workers:
            worker.join(60)
        self.doing = "ended"

    def order(self, storm: Any, what: str) -> None:
        storm.send(what)
        # A fault that is under way ends first.
        if not storm.poll(60):
            raise RuntimeError("the nemesis does not answer")
        storm.recv()

    def unfinished(self) -> dict[str, int]:
        """What is still under way: messages in queues, rows to be sent, regrades."""
        left: dict[str, int] = {}
        names = [f"ApproximateNumberOfMessages{suffix}" for suffix in ("", "NotVisible", "Delayed")]
        for name in QUEUES:
            url = self.environment[f"{name}_QUEUE_URL"]
            values = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
            left[f"messages in {name}"] = sum(int(values[one]) for one in names)
        with psycopg.connect(self.database_url, autocommit=True, connect_timeout=5) as conn:
            row = conn.execute(
                """
                SELECT (SELECT count(*) FROM outbox WHERE sent_at IS NULL),
                    (SELECT count(*) FROM quiz_regrades WHERE completed_at IS NULL)
                """
            ).fetchone()
            assert row
            left["rows of the outbox"], left["regrades"] = row
        return {what: number for what, number in left.items() if number}

    def await_rest(self, seconds: float = REST_SECONDS) -> float | None:
        """Wait until nothing is under way any more, seen twice; gives when that was, None if it takes too long."""
        deadline = time.monotonic() + seconds
        quiet: tuple[float, int] | None = None
        while time.monotonic() < deadline:
            try:
                is_busy = bool(self.unfinished())
            except psycopg.OperationalError:
                # It may still be recovering.
                is_busy = True
            if is_busy:
                quiet = None
                time.sleep(0.2)
            elif quiet is None:
                quiet = (time.monotonic(), now())
                time.sleep(0.3)
            else:
                self.rests.append(now())
                return quiet[0]
        return None

    def listen(self) -> None:
        """Be a subscriber of the bus and the reader of the dead-letter queues."""
        sqs = client("sqs", self.environment["AWS_ENDPOINT_URL"])
        urls = [self.feed_url, *(self.environment[f"{name}_DLQ_URL"] for name in QUEUES)]
        while self.doing != "ended":
            for url in urls:
                try:
                    messages = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"])
                except Exception:
                    if self.doing == "ended":
                        return
                    raise
                for message in messages.get("Messages", []):
                    if url == self.feed_url:
                        event = json.loads(message["Body"])["detail"]
                        self.feed[event["id"]] = event
                    else:
                        attributes = {name: one["StringValue"] for name, one in message.get("MessageAttributes", {}).items()}
                        self.dead.append({"body": message["Body"], **attributes})
                    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            time.sleep(0.01 if messages_left(sqs, self.feed_url) else 0.2)

    def look(self, *, at_rest: bool) -> None:
        """Check everything that happened so far."""
        self.doing = "checking"
        if at_rest:
            # What was marked as sent has to come.
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and messages_left(self.sqs, self.feed_url):
                time.sleep(0.1)
            time.sleep(0.5)
        self.snapshot = checker.snapshot(self.database_url)
        log = [entry for n in range(self.processes) for entry in entries(self.folder / f"operations-{n}.jsonl")]
        faults = entries(self.folder / "faults.jsonl")
        seen = (dict(self.feed), list(self.dead), self.rests, self.shown() if at_rest else {})
        found = checker.check(self.world, log, faults, self.snapshot, *seen, at_rest=at_rest)
        if at_rest:
            found += self.broken_rules()
        known = {(one.kind, one.text) for one in self.anomalies}
        self.anomalies += [one for one in found if (one.kind, one.text) not in known]

    def broken_rules(self) -> list[checker.Anomaly]:
        """What `make verify` finds."""
        found: list[checker.Anomaly] = []
        with verify.reading(self.database_url) as conn:
            for rule in verify.invariants()[1].values():
                count, rows = rule.broken(conn, verify.EXAMPLES)
                if count:
                    found.append(checker.Anomaly("broken rule", f"{rule.name}: {count}, such as {rows}", None, []))
        return found

    def shown(self) -> dict[Key, dict[str, Any]]:
        """What the API shows of each learner's progress."""
        headers = {"authorization": f"Bearer {self.environment['ADMIN_TOKEN']}"}
        with httpx.Client(base_url=self.environment["API_URL"], headers=headers, timeout=60) as http:
            answers = {key: http.get(f"/users/{key[0]}/enrollments/{key[1]}/progress") for key in self.world.keys}
        return {key: answer.json() for key, answer in answers.items() if answer.status_code == 200}

    # What the person before the screen sees

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        log = [entry for n in range(self.processes) for entry in entries(self.folder / f"operations-{n}.jsonl")]
        done = Counter("over HTTP" if entry["via"] == "http" else "by queue" for entry in log if "kind" in entry)
        done.update("unanswered" for entry in log if entry.get("status") in (0, 503))
        done.update("messages" for entry in log if "sent" in entry)
        faults = Counter(entry["fault"] for entry in entries(self.folder / "faults.jsonl") if "until" in entry)
        return done, faults

    def table(self) -> Table:
        done, faults = self.counts()
        table = Table(title=f"soak, seed {self.seed}: {self.doing}")
        for name in ("", "number"):
            table.add_column(name, justify="right" if name else "left")
        table.add_row("operations over HTTP", str(done["over HTTP"]))
        table.add_row("  without an answer, or 503", str(done["unanswered"]))
        table.add_row("events by queue", str(done["by queue"]))
        table.add_row("  in messages, repetitions too", str(done["messages"]))
        table.add_row("events published", str(len(self.feed)))
        for name, number in sorted(faults.items()):
            table.add_row(f"fault: {name.replace('_', ' ')}", str(number))
        table.add_row("looks at everything", str(len(self.rests)))
        table.add_row("longest recovery", f"{self.longest_recovery:.1f} s")
        kinds = Counter(one.kind for one in self.anomalies)
        table.add_row("[bold]anomalies[/bold]", f"[bold]{len(self.anomalies)}[/bold]")
        for kind, number in kinds.most_common():
            table.add_row(f"  {kind}", str(number))
        return table

    def tell(self) -> None:
        """Write the story of each anomaly: all that is known of the enrolment."""
        log = [entry for n in range(self.processes) for entry in entries(self.folder / f"operations-{n}.jsonl")]
        faults = entries(self.folder / "faults.jsonl")
        for number, anomaly in enumerate(self.anomalies, 1):
            path = self.folder / f"anomaly-{number}.txt"
            path.write_text(checker.story(anomaly, log, faults, self.snapshot))
            print(f"{anomaly.kind}: {anomaly.text}\n  {path}")
            if number == 20 and len(self.anomalies) > 20:
                print(f"… and {len(self.anomalies) - 20} more")
                break


def messages_left(sqs: Any, url: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    return sum(int(value) for value in sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"].values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--faults", type=int, choices=(0, 1), default=1)
    parser.add_argument("--fault", help="this fault alone, by the name of its method")
    parser.add_argument("--first-only", action="store_true", help="stop at the first look that finds something")
    given = parser.parse_args()
    soak = Soak(given)
    console = Console()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            soak.run()
        except BaseException as error:
            failure.append(error)

    worker = threading.Thread(target=run)
    with Live(console=console, refresh_per_second=1, transient=True) as live:
        worker.start()
        last = ""
        while worker.is_alive():
            try:
                worker.join(1)
            except KeyboardInterrupt:
                # It comes to its end now, and is checked as always.
                soak.deadline = time.monotonic()
            if console.is_terminal:
                live.update(soak.table())
            elif soak.doing != last and "to go" not in soak.doing:
                last = soak.doing
                print(f"{time.monotonic() - soak.began:6.1f} s  {last}; anomalies: {len(soak.anomalies)}", flush=True)
    console.print(soak.table())
    soak.tell()
    if failure:
        raise failure[0]
    return 1 if soak.anomalies else 0


if __name__ == "__main__":
    sys.exit(main())
