"""Decides whether what can be seen of the service is explained by some order of the operations that were asked for.

It is a plain model of the rules that callers are told, and shares no code with the service. It does not search for an order: the
history of an enrolment is the order in which the service claims that things took effect, each entry naming the operation that
did it, and PostgreSQL tells when each was committed. So the history is replayed through the model, and every operation is held
against the states that the enrolment may have had between its being asked for and its being answered. What does not depend on
order (progress, attempts, grades, events, certificates) is compared as sets, from below and from above: all that was acknowledged
must be there, and nothing may be there that nobody could have caused.

Moments are microseconds of the one clock of this computer.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, LiteralString

import psycopg
from psycopg.rows import dict_row

from tests.soak.grading import percentage
from tests.soak.world import Key, World, read, text

SECOND = 1_000_000
#: Two readings of the clock that should agree differ by less.
CLOSE = 5_000
#: How long after its time of commitment a transaction may become visible, on a disk that is busy.
VISIBLE = 3 * SECOND
FOREVER = 2**62

INACTIVE = ("cancelled_by_user", "revoked_by_admin")
#: At equal times the last one wins.
RANK = {"requested": 0, "cancelled": 1, "reinstated": 2, "revoked": 3}
#: What an operation is as a command.
COMMANDS = {
    "enrol": "requested",
    "cancel": "cancelled",
    "revoke": "revoked",
    "reinstate": "reinstated",
    "transfer": "requested",
    "enrollment.requested": "requested",
    "enrollment.cancelled": "cancelled",
    "enrollment.revoked": "revoked",
    "enrollment.reinstated": "reinstated",
}
#: The statuses in which a command finds what it asks for, and those in which it is refused over HTTP.
FINDS = {
    "requested": ("active", "completed"),
    "cancelled": ("cancelled_by_user",),
    "revoked": ("revoked_by_admin",),
    "reinstated": (),
}
REFUSES = {
    "requested": ("revoked_by_admin",),
    "cancelled": ("completed", "revoked_by_admin"),
    "revoked": (),
    "reinstated": ("active", "completed", "cancelled_by_user"),
}
#: Which entry of a history an operation may cause.
ENTRIES: dict[str, tuple[str, ...]] = {
    "created": ("requested",),
    "reactivated": ("requested",),
    "cancelled": ("cancelled",),
    "revoked": ("revoked",),
    "reinstated": ("reinstated",),
}
ACTS = {
    "reset": "reset",
    "waived": "waive",
    "waiver_withdrawn": "withdraw",
    "transferred": "transfer",
    "allowance_changed": "allowance",
    "certificate_revoked": "certificate_revoke",
    "certificate_reinstated": "certificate_reinstate",
    "certificate_reissued": "certificate_reissue",
}
#: From which statuses to which each change leads.
CHANGES: dict[str, set[tuple[str | None, str]]] = {
    "created": {(None, "active")},
    "reactivated": {("cancelled_by_user", "active"), ("completed", "active")},
    "cancelled": {("active", "cancelled_by_user")},
    "revoked": {(one, "revoked_by_admin") for one in ("active", "cancelled_by_user", "completed")},
    "reinstated": {("revoked_by_admin", "active"), ("revoked_by_admin", "completed")},
    "completed": {("active", "completed"), ("cancelled_by_user", "completed")},
    "completion_withdrawn": {("revoked_by_admin", "revoked_by_admin")},
    "reset": {("completed", "active"), *((one, one) for one in ("active", *INACTIVE))},
}
#: Acts that may stand in a history twice if the connection broke while they were done.
REPEATABLE = ("reset", "transferred", "certificate_reissued")
#: Faults that take the database away, or hold it up.
DATABASE_FAULTS = (
    "kill_database",
    "kill_backend",
    "cut_connections",
    "lose_answers",
    "terminate_connections",
    "lock_rows",
    "lock_table",
)


@dataclass(frozen=True)
class Anomaly:
    """Something that has no explanation; `key` is the enrolment that it is about, `operations` those that are part of it."""

    kind: str
    text: str
    key: Key | None
    operations: list[str]


@dataclass
class Operation:
    """What was asked for, when, and what came of it. `end` is when it was over at the latest."""

    id: str
    kind: str
    via: str
    key: Key
    said: dict[str, Any]
    at: int
    end: int = FOREVER
    status: int | None = None
    body: Any = None
    error: str = ""
    #: By queue: until when copies may still have been taken.
    last: int = FOREVER
    #: Codes of the dead letters that it became.
    dead: set[str] = field(default_factory=set[str])

    @property
    def is_acknowledged(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_refused(self) -> bool:
        return self.status is not None and 400 <= self.status < 500

    @property
    def code(self) -> str:
        return str(self.body.get("type", "")).rsplit(":", 1)[-1] if isinstance(self.body, dict) else ""

    @property
    def command(self) -> str | None:
        return COMMANDS.get(self.kind)

    @cached_property
    def time(self) -> tuple[int, int]:
        """When it happened by its own account: a moment, or, over HTTP, any while it was under way."""
        time = self.said.get("time")
        return (time, time) if time else (self.at, self.end)


@dataclass(frozen=True)
class State:
    """What an enrolment was from `since` on, when it was committed, and visible to all by `seen` at the latest."""

    since: int
    seen: int
    status: str | None = None
    inactive_since: int | None = None
    reset_at: int = 0
    epoch: int = 0
    waived: frozenset[str] = frozenset()

    def takes(self, earliest: int, latest: int) -> bool:
        """Whether something of these moments may have counted."""
        if self.status is None or latest < self.reset_at:
            return False
        return self.inactive_since is None or earliest <= self.inactive_since


@dataclass(frozen=True)
class Report:
    """What was said about a lesson; `verdict` is what became of it as far as that is known."""

    operation: Operation
    lesson: str
    percentage: float
    earliest: int
    latest: int
    verdict: str


def snapshot(database_url: str) -> dict[str, Any]:
    """All that the database holds, at one moment."""
    queries: dict[str, LiteralString] = {
        "enrollments": "SELECT * FROM enrollments",
        "history": "SELECT *, pg_xact_commit_timestamp(xmin) AS committed_at FROM enrollment_history ORDER BY position",
        "outbox": "SELECT * FROM outbox",
        "lessons": "SELECT * FROM lesson_progress",
        "lessons_aside": "SELECT * FROM lesson_progress_set_aside",
        "attempts": "SELECT * FROM quiz_attempts",
        "attempts_aside": "SELECT * FROM quiz_attempts_set_aside",
        "waivers": "SELECT * FROM requirement_waivers",
        "allowances": "SELECT * FROM quiz_allowances",
        "quizzes": "SELECT course_version_id, quiz_id, key_version FROM course_version_quizzes",
        "keys": "SELECT * FROM quiz_answer_keys",
        "gradings": "SELECT * FROM quiz_attempt_gradings",
        "certificates": "SELECT * FROM certificates",
        "learners": "SELECT * FROM learners",
    }
    with psycopg.Connection[dict[str, Any]].connect(database_url, row_factory=dict_row, connect_timeout=5) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        tables: dict[str, Any] = {name: conn.execute(query).fetchall() for name, query in queries.items()}
    for rows in tables.values():
        for row in rows:
            for name, value in row.items():
                if hasattr(value, "tzinfo"):
                    row[name] = read(value)
                elif hasattr(value, "hex") and not isinstance(value, (bytes, float)):
                    row[name] = str(value)
    return tables


def operations(log: Iterable[dict[str, Any]], rests: Sequence[int]) -> dict[str, Operation]:
    """The operations that were logged; what went by queue is over once everything had come to rest."""
    found: dict[str, Operation] = {}
    for entry in log:
        if "kind" in entry:
            said = {name: value for name, value in entry.items() if name not in ("op", "kind", "via", "learner", "version", "at")}
            key = (entry["learner"], entry["version"])
            found[entry["op"]] = Operation(entry["op"], entry["kind"], entry["via"], key, said, entry["at"])
    sent: dict[str, list[int]] = defaultdict(list)
    for entry in log:
        if "op" in entry and "end" in entry:
            one = found[entry["op"]]
            one.end, one.status, one.body, one.error = entry["end"], entry["status"], entry.get("body"), entry.get("error", "")
        for id_ in entry.get("sent", []):
            sent[id_].append(entry["at"])
    for id_, moments in sent.items():
        one = found[id_]
        one.end = next((rest for rest in rests if rest > moments[0]), FOREVER)
        one.last = next((rest for rest in rests if rest > moments[-1]), FOREVER)
    return found


def check(
    world: World,
    log: list[dict[str, Any]],
    faults: list[dict[str, Any]],
    tables: dict[str, Any],
    feed: dict[str, dict[str, Any]],
    dead: list[dict[str, Any]],
    rests: Sequence[int],
    shown: dict[Key, dict[str, Any]],
    *,
    at_rest: bool,
) -> list[Anomaly]:
    """All that has no explanation; `at_rest` says that nothing is under way, and `shown` what the API then shows of progress."""
    checker = Checker(world, operations(log, rests), faults, tables, dead, at_rest=at_rest)
    checker.answers(log)
    checker.dead_letters(dead)
    checker.feed(feed)
    checker.answer_keys()
    for key in world.keys:
        checker.enrollment(key)
    for key, body in shown.items():
        checker.figures(key, body)
    return checker.anomalies


class Checker:
    """One look at everything."""

    def __init__(
        self,
        world: World,
        operations: dict[str, Operation],
        faults: list[dict[str, Any]],
        tables: dict[str, Any],
        dead: list[dict[str, Any]],
        *,
        at_rest: bool,
    ) -> None:
        self.world, self.operations, self.tables, self.at_rest = world, operations, tables, at_rest
        self.anomalies: list[Anomaly] = []
        self.faults = [one for one in faults if "until" in one]
        self.by_key: dict[Key, list[Operation]] = defaultdict(list)
        for one in operations.values():
            self.by_key[one.key].append(one)
        self.rows: dict[str, dict[Key, list[dict[str, Any]]]] = {}
        for name, rows in tables.items():
            by_key: dict[Key, list[dict[str, Any]]] = defaultdict(list)
            for row in rows:
                version = row.get("enrolled_course_version_id") or row.get("course_version_id") or ""
                by_key[row.get("user_id") or "", version].append(row)
            self.rows[name] = by_key
        events: dict[Key, list[dict[str, Any]]] = defaultdict(list)
        for row in tables["outbox"]:
            if row["destination"] == "bus":
                events[row["data"]["user_id"], row["data"]["course_version_id"]].append(row)
        self.events = {key: sorted(rows, key=lambda row: row["data"]["sequence"]) for key, rows in events.items()}
        #: What each version of an answer key asks.
        self.keys = {(row["course_version_id"], row["quiz_id"], row["key_version"]): row["questions"] for row in tables["keys"]}
        self.current = {(row["course_version_id"], row["quiz_id"]): row["key_version"] for row in tables["quizzes"]}
        self.all_attempts = {row["id"]: row for row in [*tables["attempts"], *tables["attempts_aside"]]}
        # Both, since what is not read from its queue yet is in the outbox, and a later complaint takes the place of an older one.
        for row in [*dead, *(row for row in tables["outbox"] if row["destination"] == "dead_letter_queue")]:
            if one := operations.get(name_of(row["body"])):
                one.dead.add(row.get("code", ""))
        #: The state that each enrolment was in from when to when, as its history has it.
        self.states: dict[Key, list[State]] = {}
        for key in world.keys:
            self.replay(key)

    def wrong(self, kind: str, what: str, key: Key | None, *operations: Operation | None) -> None:
        self.anomalies.append(Anomaly(kind, what, key, [one.id for one in operations if one]))

    def is_struck(self, operation: Operation, kinds: Sequence[str] | None = None, *, before: int = SECOND) -> bool:
        """Whether a fault was at work while an operation was under way, or shortly before."""
        return any(
            fault["at"] <= operation.end and fault["until"] + before >= operation.at
            for fault in self.faults
            if kinds is None or fault["fault"] in kinds
        )

    # The history, replayed

    def replay(self, key: Key) -> None:
        """Carry out what the history claims, entry by entry, and note which states that leads through."""
        states = [State(0, 0)]
        commanded: tuple[int, int] | None = None
        was_completed = False
        seen: Counter[tuple[str, str]] = Counter()
        for row in self.rows["history"][key]:
            state, how, actor = states[-1], row["type"], row["actor"]
            operation = self.operations.get(actor)
            place = f"history entry {row['position']} ({how})"
            self.attribute(key, row, operation, place)
            if operation:
                seen[operation.id, how] += 1
                if seen[operation.id, how] > 1 and not (how in REPEATABLE and self.is_struck(operation, DATABASE_FAULTS)):
                    self.wrong("done twice", f"{place}: {operation.kind} {operation.id} took effect twice", key, operation)
            if row["from_status"] != state.status:
                self.wrong("status", f"{place} starts from {row['from_status']}, not from {state.status}", key, operation)
            allowed = CHANGES.get(how)
            if (row["from_status"], row["to_status"]) not in allowed if allowed else row["from_status"] != row["to_status"]:
                self.wrong("status", f"{place} leads from {row['from_status']} to {row['to_status']}", key, operation)
            if how in ENTRIES and operation and operation.command:
                place_in_order = (row["occurred_at"], RANK[operation.command])
                if commanded and place_in_order <= commanded:
                    self.wrong("order of commands", f"{place} is of before what had taken effect already", key, operation)
                if row["occurred_at"] < state.reset_at:
                    self.wrong("order of commands", f"{place} is of before the reset", key, operation)
                commanded = place_in_order
            if how == "reinstated" and (row["to_status"] == "completed") != was_completed:
                self.wrong("status", f"{place} leads to {row['to_status']}", key, operation)
            if how == "completed":
                self.completion(key, row, state, place)
            if row["to_status"] == "completed":
                was_completed = True
            elif how in ("reset", "completion_withdrawn") or (how == "reactivated" and row["from_status"] == "completed"):
                was_completed = False
            item = str((row["details"] or {}).get("requirement_id"))
            inactive_since = state.inactive_since
            if row["to_status"] not in INACTIVE:
                inactive_since = None
            elif state.status not in INACTIVE:
                inactive_since = row["occurred_at"]
            since = row["committed_at"] or row["recorded_at"]
            answered = operation.end if operation and operation.via == "http" and operation.is_acknowledged else FOREVER
            states.append(
                State(
                    since,
                    min(since + VISIBLE, max(since, answered)),
                    row["to_status"],
                    inactive_since,
                    row["occurred_at"] if how == "reset" else state.reset_at,
                    state.epoch + (how == "reset"),
                    state.waived | {item}
                    if how == "waived"
                    else state.waived - {item}
                    if how == "waiver_withdrawn"
                    else state.waived,
                )
            )
        self.states[key] = states

    def attribute(self, key: Key, row: dict[str, Any], operation: Operation | None, place: str) -> None:
        """Hold an entry against the operation that it names."""
        how = row["type"]
        if how == "completed":
            if row["actor"] != "learner-progress":
                self.wrong("history", f"{place} has the actor {row['actor']}", key)
            return
        if operation is None:
            self.wrong("nobody asked for it", f"{place} has the actor {row['actor']}", key)
            return
        fits = {operation.command} & set(ENTRIES.get(how, ())) or operation.kind == ACTS.get(how)
        fits = fits or (how == "certificate_revoked" and operation.kind == "revoke" and operation.said["certificate_too"])
        withdraws = operation.kind == "regrade" and operation.said["take_away"] and not operation.said["dry_run"]
        if how in ("reactivated", "completion_withdrawn") and withdraws:
            return
        is_here = operation.key == key or (operation.kind == "transfer" and (operation.key[0], operation.said["to"]) == key)
        if not fits or not is_here:
            self.wrong("nobody asked for it", f"{place} is no result of {operation.kind} {operation.id}", key, operation)
        if operation.via == "http" and operation.is_refused:
            self.wrong("refused and done", f"{place}, though {operation.kind} was answered {operation.status}", key, operation)
        committed = row["committed_at"] or row["recorded_at"]
        if committed + CLOSE < operation.at or (operation.is_acknowledged and committed > operation.end + CLOSE):
            self.wrong("time", f"{place} was written {text(committed)}, not while {operation.kind} was under way", key, operation)
        if operation.via == "queue" and row["occurred_at"] != operation.said["time"]:
            self.wrong("time", f"{place} has the time {text(row['occurred_at'])}", key, operation)
        if operation.via == "http" and not operation.at - CLOSE <= row["occurred_at"] <= min(operation.end, committed) + CLOSE:
            self.wrong("time", f"{place} has the time {text(row['occurred_at'])}", key, operation)

    def between(self, key: Key, begin: int, end: int) -> list[State]:
        """The states that an enrolment may have been seen in at some moment from `begin` to `end`."""
        states = self.states[key]
        return [
            state
            for n, state in enumerate(states)
            if state.since - CLOSE <= end and (n + 1 == len(states) or states[n + 1].seen + CLOSE >= begin)
        ]

    def completion(self, key: Key, row: dict[str, Any], state: State, place: str) -> None:
        """What completes must have been fulfilled: each required item by something that counts in that epoch."""
        required = self.world.versions[key[1]].required
        if not required:
            self.wrong("completion", f"{place}, where nothing is required", key)
        moments: set[int] = {state.reset_at}
        for item in required:
            reasons = list(self.reasons(key, item, state))
            if not reasons:
                self.wrong("completion", f"{place}, though {item} was not fulfilled", key)
            moments |= set(reasons)
        at = row["occurred_at"]
        if not any(abs(at - moment) <= CLOSE for moment in moments) and not self.is_interval(key, at):
            self.wrong("completion", f"{place} at {text(at)}, when nothing was fulfilled", key)

    def reasons(self, key: Key, item: str, state: State) -> Iterable[int]:
        """The moments since when an item may have been fulfilled."""
        for place in self.sources(key):
            for report in self.reports(place, item):
                if report.percentage == 100 and report.verdict != "refused":
                    yield report.earliest
                    yield report.latest
            for attempt in self.rows["attempts"][place] + self.rows["attempts_aside"][place]:
                if attempt["quiz_id"] == item and attempt["completed_at"]:
                    yield attempt["completed_at"]
        if item in state.waived:
            for row in self.rows["history"][key]:
                if row["type"] == "waived" and row["details"]["requirement_id"] == item:
                    yield row["occurred_at"]

    def is_interval(self, key: Key, at: int) -> bool:
        """Whether a moment lies within an operation that reports something as of now."""
        return any(
            report.earliest - CLOSE <= at <= report.latest + CLOSE
            for place in self.sources(key)
            for lesson in self.world.versions[place[1]].lessons
            for report in self.reports(place, lesson)
            if report.earliest != report.latest and report.percentage == 100
        )

    def sources(self, key: Key) -> list[Key]:
        """An enrolment, and those that something was carried over from, be it by way of others."""
        found = [key]
        for one in found:
            found += [source for source in self.origins(one) if source not in found]
        return found

    def origins(self, key: Key, epoch: int | None = None) -> set[Key]:
        """The enrolments that something was carried over from, in an epoch or ever."""
        resets, found = 0, set[Key]()
        for row in self.rows["history"][key]:
            resets += row["type"] == "reset"
            if row["type"] == "transferred" and "from" in row["details"] and epoch in (None, resets):
                found.add((key[0], row["details"]["from"]))
        return found

    # What was answered

    def answers(self, log: list[dict[str, Any]]) -> None:
        """No error of the service's own, no waiting without end, no refusal without a reason."""
        hung = {entry["op"] for entry in log if entry.get("hang")}
        for one in self.operations.values():
            if one.via != "http" or one.status is None:
                continue
            if one.id in hung:
                self.wrong("hang", f"{one.kind} {one.id}: {one.error}", one.key, one)
            elif one.status == 0 and not self.is_struck(one):
                self.wrong("connection lost", f"{one.kind} {one.id}: {one.error}, without a fault", one.key, one)
            elif one.status == 503 and not self.is_struck(one, before=5 * SECOND):
                self.wrong("unavailable", f"{one.kind} {one.id} was answered 503 without a fault", one.key, one)
            elif (one.status >= 500 and one.status != 503) or one.status in (400, 401, 403, 405, 413, 415, 422, 429):
                self.wrong("error", f"{one.kind} {one.id} was answered {one.status}: {one.body}", one.key, one)
            elif one.is_refused:
                self.refusal(one)
            elif one.is_acknowledged:
                self.acknowledged(one)

    def refusal(self, one: Operation) -> None:
        """Whether a refusal holds in one of the states that the enrolment may have been in."""
        states = self.between(one.key, one.at, one.end) if one.key in self.states else []
        statuses = {state.status for state in states}
        match one.code:
            case "enrollment_not_found":
                fine = None in statuses
            case "already_completed":
                fine = "completed" in statuses
            case "already_revoked" if one.kind == "transfer":
                there = (one.key[0], one.said["to"])
                fine = "revoked_by_admin" in {state.status for state in self.between(there, one.at, one.end)}
            case "already_revoked":
                fine = "revoked_by_admin" in statuses
            case "not_revoked":
                fine = bool(statuses - {"revoked_by_admin", None})
            case "enrollment_inactive":
                fine = bool(statuses & set(INACTIVE))
            case "no_attempts_left":
                limit = self.world.versions[one.key[1]].quiz(one.said["quiz"])["max_attempts"]
                made = [
                    row
                    for row in self.all_attempts.values()
                    if self.key_of(row) == one.key and row["quiz_id"] == one.said["quiz"]
                ]
                fine = limit is not None and len(made) >= limit
            case "attempt_closed":
                row = self.all_attempts.get(one.said["attempt"])
                fine = bool(row and row["completed_at"] is not None)
            case "attempt_set_aside":
                fine = one.said["attempt"] in {row["id"] for row in self.tables["attempts_aside"]}
            case "attempt_expired":
                row = self.all_attempts.get(one.said["attempt"])
                fine = bool(row and row["expires_at"] and row["expires_at"] < one.end)
            case "attempt_not_found" | "certificate_not_found":
                fine = False
            case _:
                fine = False
        if not fine:
            self.wrong("refused", f"{one.kind} {one.id} was answered {one.status} {one.code}; it was {statuses}", one.key, one)

    def key_of(self, attempt: dict[str, Any]) -> Key:
        return attempt["user_id"], attempt["enrolled_course_version_id"]

    def acknowledged(self, one: Operation) -> None:
        """Whether what was answered as done is there."""
        if one.command and one.kind != "transfer":
            self.command_is_explained(one)
        match one.kind:
            case "reset" | "transfer":
                how = "reset" if one.kind == "reset" else "transferred"
                target = (one.key[0], one.said["to"]) if one.kind == "transfer" else one.key
                stands = {state.status for state in self.between(target, one.at, one.end)} & set(INACTIVE)
                for key in {one.key, target}:
                    if not any(row["actor"] == one.id and row["type"] == how for row in self.rows["history"][key]) and not (
                        one.kind == "transfer" and stands
                    ):
                        self.wrong("lost", f"{one.kind} {one.id} was answered {one.status} and is not in the history", key, one)
            case "waive" | "withdraw":
                wanted = one.kind == "waive"
                states = self.between(one.key, one.at, one.end)
                if not any((one.said["item"] in state.waived) == wanted for state in states):
                    self.wrong("lost", f"{one.kind} {one.id} of {one.said['item']} has no effect", one.key, one)
            case "start" | "draft" | "submit":
                self.sitting(one)
            case "read" | "read_progress":
                statuses = {state.status for state in self.between(one.key, one.at, one.end)}
                if one.body["status"] not in statuses:
                    self.wrong("read", f"{one.kind} {one.id} showed {one.body['status']}, it was {statuses}", one.key, one)
                if one.kind == "read_progress":
                    self.reading(one)
            case _:
                pass

    def command_is_explained(self, one: Operation) -> None:
        """A command that was taken either changed something, or found what it asked for, or came too late."""
        assert one.command
        own = [row for row in self.rows["history"][one.key] if row["actor"] == one.id]
        if own:
            if one.via == "http" and (own[0]["type"] == "created") != (one.status == 201):
                self.wrong("answer", f"{one.kind} {one.id} was answered {one.status}: {own[0]['type']}", one.key, one)
            return
        states = self.between(one.key, one.at, one.end)
        found = FINDS[one.command]
        if one.via == "queue" and one.command == "cancelled":
            found = (*found, "completed", "revoked_by_admin")
        if any(state.status in found for state in states):
            return
        earliest = (one.time[0], RANK[one.command])
        if any(one.time[0] <= state.reset_at for state in states):
            return
        side = ("requested", "cancelled") if one.command in ("requested", "cancelled") else ("reinstated", "revoked")
        effective = {row["actor"] for row in self.rows["history"][one.key]}
        for other in [
            *self.by_key[one.key],
            *(
                o
                for o in self.operations.values()
                if o.kind == "transfer" and o.said["to"] == one.key[1] and o.key[0] == one.key[0]
            ),
        ]:
            if other is one or not other.command or other.at > one.end:
                continue
            if (other.time[1], RANK[other.command]) >= earliest and (other.id in effective or other.command in side):
                return
        self.wrong("lost", f"{one.kind} {one.id} was taken and had no effect, though it was {statuses_of(states)}", one.key, one)

    # Progress

    @cached_property
    def _reports(self) -> dict[tuple[Key, str], list[Report]]:
        found: dict[tuple[Key, str], list[Report]] = defaultdict(list)
        for one in self.operations.values():
            for n, said in enumerate(one.said.get("reports", [])):
                verdict = "maybe"
                if one.is_refused:
                    verdict = "refused"
                elif one.kind == "sync" and one.is_acknowledged:
                    verdict = one.body["results"][n]["result"]
                elif one.is_acknowledged or (one.via == "queue" and one.end < FOREVER and not one.dead):
                    verdict = "taken"
                earliest, latest = (said["time"], said["time"]) if said["time"] else (one.at - CLOSE, min(one.end, FOREVER))
                found[one.key, said["lesson"]].append(Report(one, said["lesson"], said["percentage"], earliest, latest, verdict))
        return found

    def reports(self, key: Key, lesson: str) -> list[Report]:
        return self._reports.get((key, lesson), [])

    def lesson_rows(self, key: Key) -> dict[tuple[int, str], dict[str, Any]]:
        """What is known of each lesson in each epoch, an epoch being what lies between two resets."""
        resets = [row["id"] for row in self.rows["history"][key] if row["type"] == "reset"]
        found = {(len(resets), row["lesson_id"]): row for row in self.rows["lessons"][key]}
        for row in self.rows["lessons_aside"][key]:
            if row["reset_id"] in resets:
                found[resets.index(row["reset_id"]), row["lesson_id"]] = row
        return found

    def progress(self, key: Key) -> None:
        """All reports that were taken, and nothing else, joined."""
        rows = self.lesson_rows(key)
        for lesson in self.world.versions[key[1]].lessons:
            for report in self.reports(key, lesson):
                one = report.operation
                if report.verdict not in ("taken", "applied", "unchanged"):
                    continue
                states = [state for state in self.between(key, one.at, one.end) if state.status]
                if not any(report.latest < s.reset_at or covers(rows.get((s.epoch, lesson)), report) for s in states):
                    self.wrong("lost", f"report {report.percentage} on lesson {lesson} by {one.kind} {one.id} is gone", key, one)
        for (epoch, lesson), row in rows.items():
            possible = list(self.possible(key, epoch, lesson))
            where = f"lesson {lesson} (reset {epoch} times)"
            for name, values in {
                "progress_percentage": {report.percentage for report in possible},
                "completed_at": None,
                "started_at": None,
                "last_accessed_at": None,
            }.items():
                value = row[name]
                if values is not None:
                    fine = value in values
                elif name == "completed_at":
                    fine = (value is None) == (row["progress_percentage"] < 100) and (
                        value is None or any(report.percentage == 100 and says(report, value) for report in possible)
                    )
                else:
                    fine = any(says(report, value) for report in possible)
                if not fine:
                    self.wrong("progress", f"{where} has {name} {value}, which nobody reported", key)

    def possible(self, key: Key, epoch: int, lesson: str) -> Iterable[Report]:
        """The reports that may have counted in an epoch, those carried over from elsewhere too."""
        for report in self.reports(key, lesson):
            one = report.operation
            if report.verdict == "refused":
                continue
            end = one.last if one.via == "queue" else one.end
            if one.via == "http" and one.status in (None, 0, 503):
                # Whoever lost the answer does not know until when the service went on with it.
                end = one.end + 60 * SECOND
            for state in self.between(key, one.at, end):
                if state.epoch == epoch and state.takes(report.earliest, report.latest):
                    yield report
                    break
        if self.origins(key, epoch):
            # What had been carried over from here earlier may have come back, too.
            for source in self.sources(key):
                yield from (report for report in self.reports(source, lesson) if report.verdict != "refused")

    def reading(self, one: Operation) -> None:
        """Progress that was shown: nothing that was acknowledged before is missing, and it does not fall."""
        states = self.between(one.key, one.at, one.end)
        first = min(state.epoch for state in states)
        shown = {row["lesson_id"]: row["progress_percentage"] for row in one.body["lessons"]}
        for other in self.by_key[one.key]:
            if other.end >= one.at or not other.is_acknowledged:
                continue
            since = {state.epoch for state in self.between(one.key, other.at, one.end)}
            if len(since) != 1 or first not in since:
                continue
            known: dict[str, float] = {}
            if other.kind == "read_progress":
                known = {row["lesson_id"]: row["progress_percentage"] for row in other.body["lessons"]}
            elif other.kind == "progress":
                (said,) = other.said["reports"]
                reset_at = states[-1].reset_at
                if not said["time"] or said["time"] >= reset_at:
                    known = {said["lesson"]: said["percentage"]}
            for lesson, percentage_ in known.items():
                if shown[lesson] < percentage_:
                    what = f"{one.kind} {one.id} showed {shown[lesson]} of lesson {lesson}"
                    self.wrong("read", f"{what}, after {other.kind} {other.id} with {percentage_}", one.key, one, other)

    # Attempts

    def sitting(self, one: Operation) -> None:
        """An attempt that was started, saved or submitted over HTTP."""
        attempt = one.body["id"]
        row = self.all_attempts.get(attempt)
        if row is None:
            self.wrong("lost", f"attempt {attempt} of {one.kind} {one.id} is gone", one.key, one)
            return
        if one.kind != "submit":
            return
        if row["completed_at"] is None:
            self.wrong("lost", f"{one.kind} {one.id}: attempt {attempt} is open again", one.key, one)
        elif row["answers_snapshot"] != one.body["answers"]:
            self.wrong("answers", f"{one.kind} {one.id}: the answers of attempt {attempt} are others", one.key, one)
        elif one.body["in_time"] and one.body["answers"] != one.said["answers"]:
            self.wrong("answers", f"{one.kind} {one.id}: attempt {attempt} was graded by other answers", one.key, one)
        elif row["key_course_version_id"]:
            questions = self.keys[row["key_course_version_id"], row["quiz_id"], one.body["key_version"]]
            score = float(percentage(questions, one.body["answers"]))
            if score != one.body["score"]:
                self.wrong("score", f"{one.kind} {one.id} was answered {one.body['score']}, not {score}", one.key, one)

    def attempts(self, key: Key) -> None:
        """Every attempt is someone's, is graded right, and has the next number."""
        resets = [row["id"] for row in self.rows["history"][key] if row["type"] == "reset"]
        started = {one.body["id"] for one in self.by_key[key] if one.kind == "start" and one.is_acknowledged}
        submitted = {one.said["attempt"]: one for one in self.by_key[key] if one.kind == "quiz.submitted"}
        unanswered = sum(one.kind == "start" and one.status in (None, 0, 503) for one in self.by_key[key])
        numbers: dict[tuple[int, str], list[int]] = defaultdict(list)
        drafts: dict[str, list[Any]] = defaultdict(list)
        for one in self.by_key[key]:
            if one.kind in ("draft", "submit"):
                drafts[one.said["attempt"]].append(one.said["answers"])
        for row in self.rows["attempts"][key] + self.rows["attempts_aside"][key]:
            epoch = resets.index(row["reset_id"]) if "reset_id" in row else len(resets)
            numbers[epoch, row["quiz_id"]].append(row["attempt_number"])
            where = f"attempt {row['id']} at quiz {row['quiz_id']}"
            if row["transferred_from"]:
                original = self.all_attempts.get(row["transferred_from"])
                if original is None or original["user_id"] != key[0] or original["answers_snapshot"] != row["answers_snapshot"]:
                    self.wrong("attempt", f"{where} is a copy of no such attempt", key)
            elif row["id"] in submitted:
                one = submitted[row["id"]]
                if row["answers_snapshot"] != one.said["answers"] or row["completed_at"] != one.said["time"]:
                    self.wrong("answers", f"{where} is not what was submitted", key, one)
            elif row["id"] not in started:
                unanswered -= 1
                if unanswered < 0:
                    self.wrong("attempt", f"{where} was started by nobody", key)
            elif (
                row["completed_at"]
                and not (row["answers_snapshot"] == {} and row["in_time"] is False)
                and row["answers_snapshot"] not in drafts[row["id"]]
            ):
                self.wrong("answers", f"{where} has answers that nobody gave", key)
            state = next((s for s in self.states[key] if s.epoch == epoch), self.states[key][-1])
            if row["completed_at"] and not row["transferred_from"] and row["completed_at"] < state.reset_at - CLOSE:
                self.wrong("attempt", f"{where} is of before the reset", key)
            if row["completed_at"]:
                self.grade(key, row, where, is_current="reset_id" not in row)
        for (epoch, quiz), given in numbers.items():
            if sorted(given) != list(range(1, len(given) + 1)):
                self.wrong("attempt numbers", f"quiz {quiz} (reset {epoch} times) has the numbers {sorted(given)}", key)
        for one in submitted.values():
            self.submission(one)

    def submission(self, one: Operation) -> None:
        """A producer's attempt is there once it was taken."""
        if one.end == FOREVER or one.dead or one.said["attempt"] in self.all_attempts:
            return
        states = self.between(one.key, one.at, one.last)
        if not any(one.time[0] < state.reset_at for state in states):
            self.wrong("lost", f"quiz.submitted {one.id}: there is no attempt {one.said['attempt']}", one.key, one)

    def grade(self, key: Key, row: dict[str, Any], where: str, *, is_current: bool) -> None:
        """The score, to the last digit, and whether that is a pass."""
        version, quiz = row["key_course_version_id"], row["quiz_id"]
        exact = percentage(self.keys[version, quiz, row["key_version"]], row["answers_snapshot"])
        deserved = exact >= self.world.versions[version].threshold(quiz)
        if row["score"] != float(exact):
            self.wrong("score", f"{where} has the score {row['score']}, not {float(exact)}", key)
        if row["is_passed"] != (deserved or row["pass_kept"]) or (row["pass_kept"] and deserved):
            self.wrong("score", f"{where} of {float(exact)} has is_passed {row['is_passed']}, pass_kept {row['pass_kept']}", key)
        if self.at_rest and is_current and row["key_version"] != self.current[version, quiz]:
            self.wrong("regrade", f"{where} is still graded by key {row['key_version']}, not {self.current[version, quiz]}", key)

    def answer_keys(self) -> None:
        """Of the corrections of a question the latest one counts."""
        for version in self.world.versions.values():
            for quiz in version.body["quizzes"]:
                corrections = [
                    one
                    for one in self.operations.values()
                    if one.kind == "quiz.answer_key_corrected" and (one.key[1], one.said["quiz"]) == (version.id, quiz["quiz_id"])
                ]
                if any(one.end == FOREVER for one in corrections):
                    continue
                latest = self.keys[version.id, quiz["quiz_id"], self.current[version.id, quiz["quiz_id"]]]
                present = {question["question_id"]: question["correct"] for question in latest}
                expected = {question["question_id"]: question["correct"] for question in quiz["questions"]}
                for one in sorted(corrections, key=lambda one: one.time):
                    expected |= {question["question_id"]: question["correct"] for question in one.said["questions"]}
                if normal(present) != normal(expected):
                    self.wrong("answer key", f"quiz {quiz['quiz_id']} of {version.id}: {present}, not {expected}", None)

    def transfers(self, key: Key) -> None:
        """What had been passed when a learner was transferred is there."""
        for one in self.by_key[key]:
            if one.kind != "transfer" or not one.is_acknowledged:
                continue
            target = (key[0], one.said["to"])
            if not any(row["actor"] == one.id and row["type"] == "transferred" for row in self.rows["history"][target]):
                continue
            there = [*self.rows["attempts"][target], *self.rows["attempts_aside"][target]]
            known = {row["transferred_from"] or row["id"] for row in there}
            epochs = {state.epoch for state in self.between(key, one.at, one.end)}
            resets = [row["id"] for row in self.rows["history"][key] if row["type"] == "reset"]
            regraded = {row["attempt_id"] for row in self.tables["gradings"]}
            graded = {
                row["data"]["attempt_id"]: row["created_at"] for row in self.events.get(key, []) if row["type"] == "quiz.graded"
            }
            for row in [*self.rows["attempts"][key], *self.rows["attempts_aside"][key]]:
                epoch = resets.index(row["reset_id"]) if "reset_id" in row else len(resets)
                if epochs != {epoch} or not row["is_passed"] or row["id"] in regraded:
                    continue
                # What is being graded at the same moment may come too late for it.
                if (
                    graded.get(row["id"], FOREVER) + VISIBLE > one.at
                    or row["quiz_id"] not in self.world.versions[target[1]].quizzes
                ):
                    continue
                if (row["transferred_from"] or row["id"]) not in known:
                    self.wrong("transfer", f"{one.kind} {one.id} left attempt {row['id']} behind", key, one)
            rows, target_rows = self.lesson_rows(key), self.lesson_rows(target)
            for lesson in set(self.world.versions[key[1]].lessons) & set(self.world.versions[target[1]].lessons):
                for report in self.reports(key, lesson):
                    taken = report.operation
                    if report.verdict not in ("taken", "applied") or taken.end >= one.at or len(epochs) != 1:
                        continue
                    before = {state.epoch for state in self.between(key, taken.at, one.end)}
                    if before != epochs or not covers(rows.get((max(epochs), lesson)), report):
                        continue
                    if (
                        not any(
                            covers(target_rows.get((state.epoch, lesson)), report)
                            for state in self.between(target, one.at, one.end)
                            if state.status
                        )
                        and report.latest >= self.between(key, one.at, one.end)[-1].reset_at
                    ):
                        self.wrong("transfer", f"{one.kind} {one.id} left lesson {lesson} behind", key, one)

    # Events and dead letters

    def published(self, key: Key) -> None:
        """Numbered without a gap, one event for each thing that happened."""
        events, enrollment = self.events.get(key, []), self.rows["enrollments"][key]
        sequence = [row["data"]["sequence"] for row in events]
        last = enrollment[0]["sequence"] if enrollment else 0
        if sequence != list(range(1, last + 1)):
            gaps = sorted(set(range(1, last + 1)) - set(sequence))
            twice = [number for number, times in Counter(sequence).items() if times > 1]
            self.wrong("events", f"{last} events should be numbered; missing: {gaps}, twice: {twice}", key)
        numbered = {row["sequence"]: row for row in self.rows["history"][key] if row["sequence"]}
        changes = {row["data"]["sequence"]: row for row in events if row["type"].startswith("enrollment.")}
        for number in sorted(set(numbered) | set(changes)):
            entry, event = numbered.get(number), changes.get(number)
            if not entry or not event:
                self.wrong("events", f"number {number}: {event and event['type']} for {entry and entry['type']}", key)
            elif (event["type"], event["data"]["status"], event["occurred_at"]) != (
                f"enrollment.{entry['type']}",
                entry["to_status"],
                entry["occurred_at"],
            ):
                self.wrong("events", f"number {number}: {event['type']} at {text(event['occurred_at'])} for {entry['type']}", key)
        attempts = self.rows["attempts"][key] + self.rows["attempts_aside"][key]
        gradings = Counter(row["attempt_id"] for row in self.tables["gradings"])
        for type_, name, expected in (
            ("quiz.graded", "attempt_id", Counter(row["id"] for row in attempts if row["completed_at"])),
            ("quiz.regraded", "attempt_id", Counter({row["id"]: gradings[row["id"]] for row in attempts if gradings[row["id"]]})),
            (
                "lesson.completed",
                "lesson_id",
                Counter(lesson for (_, lesson), row in self.lesson_rows(key).items() if row["completed_at"]),
            ),
        ):
            told = Counter(row["data"][name] for row in events if row["type"] == type_)
            if told != expected:
                missing, more = expected - told, told - expected
                self.wrong("events", f"{type_}: missing {dict(missing)}, too many {dict(more)}", key)

    def feed(self, feed: dict[str, dict[str, Any]]) -> None:
        """What a subscriber received is what was written, and all of what was written is received."""
        written = {row["id"]: row for row in self.tables["outbox"] if row["destination"] == "bus"}
        for id_, row in written.items():
            key = (row["data"]["user_id"], row["data"]["course_version_id"])
            if id_ in feed:
                if feed[id_]["data"] != row["data"] or feed[id_]["type"] != row["type"]:
                    self.wrong("feed", f"event {id_} was received otherwise than it was written", key)
            elif self.at_rest:
                self.wrong("feed", f"event {id_} ({row['type']}) was never received", key)
        if self.at_rest:
            for id_ in set(feed) - set(written):
                data = feed[id_]["data"]
                what = f"event {id_} ({feed[id_]['type']}) was received and is not in the outbox"
                self.wrong("feed", what, (data["user_id"], data["course_version_id"]))

    def dead_letters(self, dead: list[dict[str, Any]]) -> None:
        """What was set apart was so for a reason that held."""
        letters = [(row["body"], row["code"]) for row in self.tables["outbox"] if row["destination"] == "dead_letter_queue"]
        letters += [(letter["body"], letter["code"]) for letter in dead if "code" in letter]
        for body, code in dict.fromkeys(letters):
            self.dead_letter(body, code)
        written = {row["body"] for row in self.tables["outbox"] if row["body"] is not None}
        for letter in dead:
            if "code" not in letter:
                self.wrong("dead letter", f"a batch was given up: {letter['body'][:200]}", None)
            elif self.at_rest and letter["body"] not in written:
                self.wrong("dead letter", f"{letter['code']}: not in the outbox: {letter['body'][:200]}", None)
        # By queue nobody answers, so what had come to rest without a complaint is taken.
        for one in self.operations.values():
            if one.via == "queue" and one.command and one.end < FOREVER and not one.dead:
                self.command_is_explained(one)

    def dead_letter(self, body: str, code: str) -> None:
        id_ = name_of(body)
        one = self.operations.get(id_)
        if one is None:
            self.wrong("dead letter", f"{code}: {body[:200]}", None)
            return
        states = self.between(one.key, one.at, one.last) if one.key in self.states else []
        statuses = {state.status for state in states}
        match code:
            case "enrollment_not_found":
                fine = None in statuses
            case "already_revoked":
                fine = "revoked_by_admin" in statuses
            case "not_revoked":
                fine = bool(statuses - {"revoked_by_admin", None})
            case "enrollment_inactive":
                fine = any(state.inactive_since is not None and one.time[0] > state.inactive_since for state in states)
            case _:
                fine = False
        if not fine:
            self.wrong("dead letter", f"{one.kind} {one.id} became a dead letter: {code}; it was {statuses}", one.key, one)

    # The state in the end

    def enrollment(self, key: Key) -> None:
        """All of one enrolment."""
        self.progress(key)
        self.attempts(key)
        self.transfers(key)
        self.published(key)
        self.certificate(key)
        self.as_it_stands(key)

    def as_it_stands(self, key: Key) -> None:
        """The row is what the history led to, and what is fulfilled is completed."""
        state = self.states[key][-1]
        rows = self.rows["enrollments"][key]
        if (rows[0]["status"] if rows else None) != state.status:
            self.wrong("status", f"it is {rows and rows[0]['status']}, by its history {state.status}", key)
        waived = {row["requirement_id"]: row["waived_at"] for row in self.rows["waivers"][key]}
        if frozenset(waived) != state.waived:
            self.wrong("waivers", f"{set(waived)} are waived, by the history {set(state.waived)}", key)
        if not rows:
            return
        fulfilled: dict[str, int] = {}
        for row in self.rows["lessons"][key]:
            if row["completed_at"] is not None:
                fulfilled[row["lesson_id"]] = row["completed_at"]
        for row in self.rows["attempts"][key]:
            if row["is_passed"]:
                known = fulfilled.get(row["quiz_id"], FOREVER)
                fulfilled[row["quiz_id"]] = min(known, row["completed_at"])
        for item, at in waived.items():
            fulfilled[item] = min(fulfilled.get(item, FOREVER), at)
        required = self.world.versions[key[1]].required
        if not required or not set(required) <= set(fulfilled):
            return
        at = max(max(fulfilled[item], state.reset_at) for item in required)
        if state.status in ("active", "cancelled_by_user"):
            self.wrong("completion", f"it is {state.status}, though everything is fulfilled", key)
        taken_back = any(row["type"] in ("waiver_withdrawn", "completion_withdrawn") for row in self.rows["history"][key])
        regraded = {row["attempt_id"] for row in self.tables["gradings"]} & {row["id"] for row in self.rows["attempts"][key]}
        if state.status == "completed" and not taken_back and not regraded and rows[0]["completed_at"] != at:
            self.wrong("completion", f"completed_at is {text(rows[0]['completed_at'])}, not {text(at)}", key)

    def figures(self, key: Key, body: dict[str, Any]) -> None:
        """What is shown at rest counts what is fulfilled, waivers too."""
        version = self.world.versions[key[1]]
        fulfilled = {row["lesson_id"] for row in self.rows["lessons"][key] if row["completed_at"] is not None}
        fulfilled |= {row["quiz_id"] for row in self.rows["attempts"][key] if row["is_passed"]}
        fulfilled |= {row["requirement_id"] for row in self.rows["waivers"][key]}
        required = set(version.required)
        share = 100 * len(required & fulfilled) / len(required) if required else None
        expected = (len(fulfilled & set(version.lessons)), len(fulfilled & set(version.quizzes)), share and round(share, 6))
        percentage_ = body["progress_percentage"]
        found = (body["lessons_completed"], body["quizzes_passed"], percentage_ and round(percentage_, 6))
        if found != expected:
            self.wrong("figures", f"lessons, quizzes and percentage are shown as {found}, not {expected}", key)

    def certificate(self, key: Key) -> None:
        """One for each learner and course version, issued while the enrolment is completed, with a uid that stays."""
        rows, history = self.rows["certificates"][key], self.rows["history"][key]
        version = self.world.versions[key[1]].body
        status: str | None = None
        enrollment: str | None = None
        uids: set[str] = {row["certificate_uid"] for row in rows}
        for event in self.events.get(key, []):
            type_, data = event["type"], event["data"]
            if type_.startswith("enrollment."):
                enrollment = data["status"]
            if not type_.startswith("certificate."):
                continue
            uids.add(data["certificate_uid"])
            if (type_ == "certificate.issued") != (status is None):
                self.wrong("certificate", f"number {data['sequence']}: {type_} of a certificate that is {status}", key)
            if type_ == "certificate.issued" and enrollment != "completed":
                self.wrong("certificate", f"number {data['sequence']}: issued for an enrolment that is {enrollment}", key)
            if type_ == "certificate.reissued":
                # What nobody asked to be reissued is renewed by a completion after one that was taken back.
                asked = any(
                    row["type"] == "certificate_reissued" and row["recorded_at"] == event["created_at"] for row in history
                )
                if not asked and status != "revoked":
                    self.wrong("certificate", f"number {data['sequence']}: reissued without a reason", key)
            if type_ == "certificate.reinstated" and status != "revoked":
                self.wrong("certificate", f"number {data['sequence']}: {type_} of a certificate that is {status}", key)
            status = data["status"]
        uids |= {
            one.body["certificate_uid"]
            for one in self.by_key[key]
            if one.kind in ("read",) and one.is_acknowledged and one.body["certificate_uid"]
        }
        present = ("revoked" if rows[0]["revoked_at"] is not None else "valid") if rows else None
        if status != present:
            self.wrong("certificate", f"it is {present}, by what was published {status}", key)
        if len(uids) > 1:
            self.wrong("certificate", f"it has more than one uid: {sorted(uids)}", key)
        named = {row["user_id"] for row in self.tables["learners"] if row["name"]}
        is_due = self.states[key][-1].status == "completed" and version["certificate"]["enabled"] and key[0] in named
        if self.at_rest and is_due and not rows:
            self.wrong("certificate", "it is due and there is none", key)


def name_of(body: str) -> str:
    """The id of an event that was set apart."""
    try:
        return str(json.loads(body)["id"])
    except (ValueError, TypeError, KeyError):
        return ""


def covers(row: dict[str, Any] | None, report: Report) -> bool:
    """Whether what is known of a lesson is at least what a report says."""
    return (
        row is not None
        and row["progress_percentage"] >= report.percentage
        and row["started_at"] <= report.latest
        and row["last_accessed_at"] >= report.earliest
        and (report.percentage < 100 or (row["completed_at"] is not None and row["completed_at"] <= report.latest))
    )


def says(report: Report, moment: int | None) -> bool:
    return moment is not None and report.earliest <= moment <= report.latest


def normal(answers: dict[str, Any]) -> dict[str, Any]:
    """Answer keys without what makes no difference."""
    return {name: sorted(value) if isinstance(value, list) else value for name, value in answers.items()}


def statuses_of(states: list[State]) -> str:
    return " or ".join(sorted({str(state.status) for state in states}))


def story(anomaly: Anomaly, log: list[dict[str, Any]], faults: list[dict[str, Any]], tables: dict[str, Any]) -> str:
    """All that is known of the enrolment that an anomaly is about, in the order of time."""
    lines: list[tuple[int, str]] = []
    key = anomaly.key
    ours: set[str] = set(anomaly.operations)
    for entry in log:
        if "kind" not in entry:
            continue
        learner, version = entry["learner"], entry["version"]
        related = key and learner in (key[0], "") and (version in (key[1], "") or entry.get("to") == key[1])
        if related:
            ours.add(entry["op"])
    for entry in log:
        mark = "*" if {entry.get("op"), *entry.get("sent", [])} & set(anomaly.operations) else " "
        if entry.get("op") in ours and "kind" in entry:
            said = {name: value for name, value in entry.items() if name not in ("at", "learner", "version", "via", "op", "kind")}
            lines.append((entry["at"], f"{mark} asked     {entry['kind']} {entry['op']} {json.dumps(said)}"))
        elif entry.get("op") in ours:
            lines.append(
                (
                    entry["end"],
                    f"{mark} answered  {entry['op']} {entry['status']} {json.dumps(entry.get('body', entry.get('error')))[:700]}",
                )
            )
        elif set(entry.get("sent", [])) & ours:
            lines.append((entry["at"], f"{mark} sent      {' '.join(one for one in entry['sent'] if one in ours)}"))
    for fault in faults:
        if "until" in fault:
            lines.append((fault["at"], f"  fault     {fault['fault']} until {text(fault['until'])}"))
    for name, rows in tables.items():
        for row in rows:
            data = row.get("data") or {}
            mine = (
                row.get("user_id") or data.get("user_id"),
                row.get("enrolled_course_version_id") or row.get("course_version_id") or data.get("course_version_id"),
            )
            if key and mine == key:
                at = next(
                    (row[n] for n in ("committed_at", "created_at", "completed_at", "started_at", "issued_at") if row.get(n)), 0
                )
                shown = {
                    n: value
                    for n, value in row.items()
                    if value is not None and n not in ("credential", "credential_jwt", "pdf_url")
                }
                lines.append((at, f"  {name:<9} {json.dumps(shown, default=str)[:900]}"))
    body = "\n".join(f"{text(at)} {line}" for at, line in sorted(lines, key=lambda line: line[0]))
    return f"{anomaly.kind}: {anomaly.text}\nenrolment: {key}\n\n{body}\n"
