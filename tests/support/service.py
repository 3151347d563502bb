"""The service as its callers have it: real events into the real handlers."""

import base64
import importlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import psycopg
import pytest
from joserfc.jwk import RSAKey
from psycopg.rows import dict_row

from local import gateway, template, tokens
from local.service import parameters
from shared import db, settings
from tests.support.logs import LOG

LEARNER = UUID("00000000-0000-4000-8000-00000000000a")
ADMIN = UUID("00000000-0000-4000-8000-0000000000ad")

FUNCTIONS = {
    "enrollment": r"/users/[^/]+/enrollments(/[^/]+(/cancel|/revoke|/reinstate|/reset|/transfer|/history|/requirements/.+)?)?$",
    "progress": r"/users/[^/]+/enrollments/[^/]+/(lessons/[^/]+/)?progress$",
    "quiz": r"/users/[^/]+/enrollments/[^/]+/quizzes/[^/]+/(attempts|allowance)$|/quiz-attempts/|/course-versions/[^/]+/quizzes/",
    "certificate": r"/users/[^/]+/(enrollments/[^/]+/certificate|certificates)$|/certificates/|/status-lists/|/\.well-known/",
}


def check_headers(headers: dict[str, str]) -> None:
    """What every answer over HTTP must say, whatever test asked for it."""
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Strict-Transport-Security"] == "max-age=31536000"
    assert headers["X-Content-Type-Options"] == "nosniff"
    # Neither an answer nor the page may load, run or be framed by anything, but for the style that the page names by its digest.
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "frame-ancestors 'none'" in policy
    # What others may keep is what is for anyone, which web pages may read too.
    assert headers["Cache-Control"] == "no-store" or headers["Access-Control-Allow-Origin"] == "*"


#: The types that the rule on the bus hands to the certificate queue.
_STACK = template.read(
    parameters("http://127.0.0.1:3000", "postgresql://somewhere/db", Path("/nowhere")), "http://127.0.0.1:4000"
)
CERTIFICATE_RULE = json.loads(_STACK.rules[0].pattern)["detail-type"]


@cache
def _key() -> RSAKey:
    """The key that tokens are signed by."""
    return RSAKey.generate_key(2048)


class Context:
    """Lambda's context, as far as Powertools and the relay look at it."""

    function_version = "$LATEST"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:eu-west-1:123456789012:function:test"

    def __init__(self, function_name: str, seconds: float = 30) -> None:
        self.function_name = function_name
        self.aws_request_id = str(uuid4())
        self.milliseconds = int(seconds * 1000)

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


def context(function_name: str, seconds: float = 30) -> Any:
    """What Lambda hands to a function beside the event; it always has so many seconds left."""
    return Context(function_name, seconds)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def event(type_: str, data: dict[str, Any], time: str | None = None, **fields: Any) -> dict[str, Any]:
    """A CloudEvents event."""
    return {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": "tests",
        "type": type_,
        "time": time or now(),
        "data": data,
    } | fields


def record(body: str, attributes: dict[str, str] | None = None) -> dict[str, Any]:
    """An SQS record as Lambda hands it over."""
    LOG.hear(body)
    return {
        "messageId": str(uuid4()),
        "receiptHandle": "handle",
        "body": body,
        "attributes": {"ApproximateReceiveCount": "1"},
        "messageAttributes": {name: {"stringValue": value, "dataType": "String"} for name, value in (attributes or {}).items()},
        "md5OfBody": "",
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:queue",
        "awsRegion": "eu-west-1",
    }


class Service:
    """Calls handlers, and looks into the database."""

    def __init__(self, database_url: str, seconds: float = 30) -> None:
        """seconds: what each invocation has left, for as long as it goes on."""
        self.database_url = database_url
        self.seconds = seconds

    def http(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        sub: UUID | None = LEARNER,
        scope: str = "",
        headers: dict[str, str] | None = None,
        query: dict[str, str] | None = None,
        raw: str | None = None,
        claims: dict[str, str] | None = None,
    ) -> Answer:
        """One request, with a token of `sub` (None: without one)."""
        name = next((name for name, pattern in FUNCTIONS.items() if re.match(pattern, path)), "report")
        text = raw if raw is not None else json.dumps(body) if body is not None else None
        if sub:
            LOG.meet("user", str(sub))
        claims = claims or {"sub": str(sub), "scope": scope, "iss": "https://iam", "aud": "learner-progress"}
        payload = {
            "version": "2.0",
            "routeKey": f"{method} {path}",
            "rawPath": path,
            "rawQueryString": urlencode(query or {}),
            "headers": {"content-type": "application/json", "host": "localhost"} | (headers or {}),
            "queryStringParameters": query or {},
            "requestContext": {
                "accountId": "123456789012",
                "apiId": "api",
                "domainName": "localhost",
                "stage": "$default",
                "requestId": str(uuid4()),
                "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": "test"},
            }
            | ({"authorizer": {"jwt": {"claims": claims, "scopes": None}}} if sub else {}),
            "body": text,
            "isBase64Encoded": False,
        }
        answer = self.invoke(f"{name}_api", payload)
        body = answer.get("body") or ""
        content = base64.b64decode(body) if answer["isBase64Encoded"] else body.encode()
        return Answer(answer["statusCode"], {k.lower(): v for k, v in answer["headers"].items()}, content)

    def wire(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        sub: UUID | None = LEARNER,
        scope: str = "",
    ) -> Answer:
        """One request as it comes over the wire, through the gateway's routes; `target` is percent-encoded."""
        path, _, query = target.partition("?")
        token = {"authorization": f"Bearer {tokens.issue(_key(), str(sub), scope)}"} if sub else {}
        request = gateway.Request(method, path, query, [*((headers or {}) | token).items()], body)

        def invoke(function: str, payload: dict[str, Any]) -> dict[str, Any]:
            return self.invoke(function.removesuffix("Api").lower() + "_api", json.loads(json.dumps(payload)))

        response = gateway.respond(request, gateway.Routes(_STACK.routes), _STACK, _key(), invoke)
        return Answer(response.status, dict(response.headers), response.body)

    def admin(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """One request by an administrator."""
        return self.http(method, path, body, sub=ADMIN, scope="learner-progress:admin", **options)

    def invoke(self, function: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Invoke a function's handler; Migrate as the database's owner, like on AWS."""
        handler = importlib.import_module(f"functions.{function}.app").handler
        with pytest.MonkeyPatch.context() as patch:
            if function == "migrate":
                patch.setattr(settings, "database_url", lambda: self.database_url)
            answer = handler(payload, context(function, self.seconds))
        if function.endswith("_api"):
            check_headers(answer["headers"])
        return answer

    def send(self, queue: str, *bodies: Any) -> None:
        """One invocation of a queue's worker; a body that is no text is sent as JSON."""
        records = [record(body if isinstance(body, str) else json.dumps(body)) for body in bodies]
        answer = self.invoke(f"{queue}_worker", {"Records": records})
        assert answer == {"batchItemFailures": []}

    def deliver(self) -> int:
        """Hand what is in the outbox for our own queues over to their workers, as relay, bus and queues do."""
        handed = 0
        for row in self.rows("SELECT * FROM outbox WHERE sent_at IS NULL ORDER BY created_at"):
            queue = row["queue"]
            if row["destination"] == "bus":
                queue = "certificate" if row["type"] in CERTIFICATE_RULE else None
            if queue and row["destination"] != "dead_letter_queue":
                attributes = {"tries": str(row["tries"])} if row["body"] else {}
                if row["waiting_since"]:
                    attributes["waiting_since"] = row["waiting_since"].isoformat()
                traced = {"traceparent": row["traceparent"]} if row["traceparent"] else {}
                body = row["body"] or json.dumps(
                    event(row["type"], row["data"], row["occurred_at"].isoformat(), id=str(row["id"]), **traced)
                )
                self.rows("UPDATE outbox SET sent_at = now() WHERE id = %s", row["id"])
                self.invoke(f"{queue}_worker", {"Records": [record(body, attributes)]})
                handed += 1
            elif row["destination"] == "bus":
                self.rows("UPDATE outbox SET sent_at = now() WHERE id = %s", row["id"])
        return handed

    def rows(self, query: Any, *parameters: Any) -> list[dict[str, Any]]:
        """What a statement gives, each row as a dictionary."""
        with psycopg.connect(self.database_url, autocommit=True) as conn:
            cursor = conn.cursor(row_factory=dict_row).execute(query, parameters)
            # A result of rows without columns would look like none.
            assert bool(cursor.description) == (cursor.rownumber is not None), "SELECT something"
            return cursor.fetchall() if cursor.description else []

    def dead_letters(self) -> list[dict[str, Any]]:
        """What is bound for dead-letter queues."""
        return self.rows("SELECT * FROM outbox WHERE destination = 'dead_letter_queue' ORDER BY created_at")

    def published(self, type_: str | None = None) -> list[dict[str, Any]]:
        """The events published, in the order of their sequence."""
        return self.rows(
            """
            SELECT type, data FROM outbox WHERE destination = 'bus' AND (%s::text IS NULL OR type = %s)
            ORDER BY data ->> 'user_id', (data ->> 'sequence')::int
            """,
            type_,
            type_,
        )


def course(
    *, lessons: int = 2, required_lessons: int | None = None, quizzes: list[dict[str, Any]] | None = None, **fields: Any
) -> dict[str, Any]:
    """Data of a `course_version.published` event."""
    required = lessons if required_lessons is None else required_lessons
    return {
        "course_version_id": str(uuid4()),
        "course_id": str(uuid4()),
        "title": "Social science",
        "version": "2013J",
        "issuer_name": "Open College",
        "lessons": [{"lesson_id": str(uuid4()), "title": f"Lesson {n}", "required": n < required} for n in range(lessons)],
        "quizzes": quizzes or [],
    } | fields


def quiz(**fields: Any) -> dict[str, Any]:
    """A quiz of two questions, four points."""
    return {
        "quiz_id": str(uuid4()),
        "title": "Quiz",
        "required": True,
        "pass_threshold_percentage": 50,
        "questions": [
            {
                "question_id": "q1",
                "kind": "single_choice",
                "prompt": "?",
                "points": 3,
                "choices": [{"id": "a", "text": "A"}, {"id": "b", "text": "B"}],
                "correct": "a",
            },
            {"question_id": "q2", "kind": "numeric", "prompt": "?", "points": 1, "correct": 0.1, "tolerance": 0},
        ],
    } | fields


def at_once(work: Sequence[Callable[[], object]]) -> None:
    """Do all of it at the same moment, each in a thread with a database connection of its own."""
    barrier = threading.Barrier(len(work))
    errors: list[BaseException] = []

    def run(one: Callable[[], object]) -> None:
        try:
            barrier.wait(timeout=30)
            one()
        except BaseException as error:
            errors.append(error)
        finally:
            db.close()

    threads = [threading.Thread(target=run, args=[one]) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
