"""The events under events/ are what the template's triggers would send to each function."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from local.template import Template

PROJECT = Path(__file__).parents[2]
EVENTS = sorted(PROJECT.glob("events/*/*.json"))


def logical_id(path: Path) -> str:
    return path.parent.name.title().replace("_", "")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def ids(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_every_function_and_every_route_has_an_event(stack: Template) -> None:
    assert {logical_id(path) for path in EVENTS} == set(stack.functions)
    shown = {event["routeKey"] for path in EVENTS if "routeKey" in (event := read(path))}
    assert shown == {route.path if route.path == "$default" else f"{route.method} {route.path}" for route in stack.routes}


@pytest.mark.parametrize("path", [path for path in EVENTS if path.parent.name.endswith("_api")], ids=ids)
def test_http_event_is_as_its_route_would_send_it(stack: Template, path: Path) -> None:
    event = read(path)
    routes = {
        route.path if route.path == "$default" else f"{route.method} {route.path}": route
        for route in stack.routes
        if route.function == logical_id(path)
    }
    route = routes[event["routeKey"]]
    context = event["requestContext"]
    assert event["version"] == "2.0"
    assert context["routeKey"] == event["routeKey"]
    assert context["http"]["path"] == event["rawPath"]
    if route.path != "$default":
        assert context["http"]["method"] == route.method
        assert re.sub(r"{(\w+)}", lambda name: event["pathParameters"][name[1]], route.path) == event["rawPath"]
    assert ("authorizer" in context) is not route.public
    assert ("authorization" in event["headers"]) is not route.public
    if not route.public:
        assert all(isinstance(claim, str) for claim in context["authorizer"]["jwt"]["claims"].values())
    if "body" in event:
        assert int(event["headers"]["content-length"]) == len(event["body"].encode())


@pytest.mark.parametrize(
    "path", [path for path in EVENTS if path.parent.name.endswith("_worker") and path.stem != "every_minute"], ids=ids
)
def test_queue_event_is_as_sqs_would_send_it(stack: Template, path: Path) -> None:
    [queue] = [source.queue for source in stack.sources if source.function == logical_id(path)]
    records = read(path)["Records"]
    assert records
    for record in records:
        assert record["eventSource"] == "aws:sqs"
        assert f"-{queue}-" in record["eventSourceARN"]
        assert hashlib.md5(record["body"].encode(), usedforsecurity=False).hexdigest() == record["md5OfBody"]
