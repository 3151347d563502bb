"""The service's own handlers, called as Lambda calls them.

python -m tests.bench.programs.ours, with DATABASE_URL in the environment.
"""

import itertools
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import psycopg

from functions.progress_api.app import handler as progress_api
from functions.progress_worker.app import handler as progress_worker
from local import gateway, template
from local.service import parameters
from shared import settings
from tests.bench.programs import child, workload
from tests.support.service import context, record

STACK = template.read(parameters("http://127.0.0.1:3000", settings.database_url(), Path("/nowhere")), "http://127.0.0.1:4000")
ROUTES = gateway.Routes(STACK.routes)

_reports = workload.reports(2)


def _event(report: workload.Report) -> dict[str, Any]:
    """The event that API Gateway makes of the request, whose token it has verified."""
    path = f"/users/{report.user_id}/enrollments/{workload.COURSE_VERSION}/lessons/{report.lesson_id}/progress"
    body = json.dumps({"progress_percentage": report.percentage}).encode()
    headers = [("host", "localhost"), ("content-type", "application/json")]
    request = gateway.Request("PUT", path, "", headers, body)
    route, values = ROUTES.find("PUT", path)
    assert route
    claims = {"sub": report.user_id, "iss": "https://iam", "aud": "learner-progress", "exp": 2_000_000_000}
    return gateway.payload(request, route, values, claims)


def requests(calls: int) -> list[float]:
    seconds: list[float] = []
    for report in itertools.islice(_reports, calls):
        event, invocation = _event(report), context("progress_api")
        began = perf_counter()
        answer = progress_api(event, invocation)
        seconds.append(perf_counter() - began)
        assert answer["statusCode"] == 200, answer
    return seconds


def existing(messages: int) -> list[float]:
    """Messages of 1,000 events on lessons begun, in one invocation."""
    return _batch(messages, 0)


def new(messages: int) -> list[float]:
    """The same on lessons in which nothing has been done."""
    with psycopg.connect(settings.database_url(), autocommit=True) as conn:
        lessons = [workload.lesson(workload.BEGUN + n) for n in range(messages)]
        conn.execute("DELETE FROM lesson_progress WHERE lesson_id = ANY(%s::uuid[])", [lessons])
    return _batch(messages, workload.BEGUN)


def _batch(messages: int, first: int) -> list[float]:
    event = {"Records": [record(json.dumps(workload.events(first + n))) for n in range(messages)]}
    invocation = context("progress_worker")
    began = perf_counter()
    answer = progress_worker(event, invocation)
    seconds = perf_counter() - began
    assert answer == {"batchItemFailures": []}
    return [seconds]


if __name__ == "__main__":
    child.answer({"request": requests, "existing": existing, "new": new})
