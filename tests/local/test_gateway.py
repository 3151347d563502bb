"""The gateway's mapping between HTTP and payload 2.0, without a network."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import RSAKey

from local import gateway, template, tokens
from local.gateway import Request, Routes
from local.service import parameters
from local.template import Route

STACK = template.read(parameters("http://127.0.0.1:3000", "postgresql://somewhere/db", Path("/nowhere")), "http://127.0.0.1:4000")
USER = "5d0e7c1a-3b52-4f0e-9c41-6a1f0b7d2e10"
NONE: gateway.Headers = []
PRIVATE = Route("GET", "/users/{user_id}/enrollments", "EnrollmentApi", public=False)


@pytest.fixture(scope="module")
def key() -> RSAKey:
    return RSAKey.generate_key(2048)


def request(path: str = "/users/me/enrollments", query: str = "", headers: gateway.Headers = NONE, body: bytes = b"") -> Request:
    return Request("GET", path, query, headers, body)


def answered(sent: Request, key: RSAKey, answer: Any = None) -> tuple[gateway.Response, list[tuple[str, dict[str, Any]]]]:
    """Return the response, and how the functions were invoked."""
    invocations: list[tuple[str, dict[str, Any]]] = []

    def invoke(name: str, event: dict[str, Any]) -> Any:
        invocations.append((name, event))
        if isinstance(answer, Exception):
            raise answer
        return answer

    return gateway.respond(sent, Routes(STACK.routes), STACK, key, invoke), invocations


def bearer(key: RSAKey, scope: str = "") -> tuple[str, str]:
    return "authorization", f"Bearer {tokens.issue(key, USER, scope)}"


def test_event_has_the_shape_of_payload_2_0() -> None:
    sent = Request(
        method="POST",
        path="/users/me/enrollments",
        query="parameter1=value1&parameter1=value2&parameter2=a%20b&empty=",
        headers=[
            ("host", "127.0.0.1:3000"),
            ("user-agent", "agent"),
            ("content-type", "application/json"),
            ("header2", "value1"),
            ("header2", "value2"),
            ("cookie", "cookie1=1; cookie2=2"),
        ],
        body='{"name": "Žofie"}'.encode(),
    )
    claims = {"sub": USER, "exp": 1583798639, "aud": ["one", "two"], "admin": True, "scope": "a b"}
    event = gateway.payload(sent, PRIVATE, {"user_id": "me"}, claims)
    context = event.pop("requestContext")
    # The keys of apiGatewayProxyV2Event.json in the tests of Powertools, but for those that this API never has:
    # stageVariables, and authentication, which is mutual TLS.
    assert event == {
        "version": "2.0",
        "routeKey": "GET /users/{user_id}/enrollments",
        "rawPath": "/users/me/enrollments",
        "rawQueryString": "parameter1=value1&parameter1=value2&parameter2=a%20b&empty=",
        "cookies": ["cookie1=1", "cookie2=2"],
        "headers": {
            "host": "127.0.0.1:3000",
            "user-agent": "agent",
            "content-type": "application/json",
            "header2": "value1,value2",
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-port": "3000",
            "x-forwarded-proto": "http",
        },
        "queryStringParameters": {"parameter1": "value1,value2", "parameter2": "a b", "empty": ""},
        "pathParameters": {"user_id": "me"},
        "body": '{"name": "Žofie"}',
        "isBase64Encoded": False,
    }
    assert context.keys() == {
        *("accountId", "apiId", "authorizer", "domainName", "domainPrefix", "http"),
        *("requestId", "routeKey", "stage", "time", "timeEpoch"),
    }
    assert context["http"] == {
        "method": "POST",
        "path": "/users/me/enrollments",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "agent",
    }
    assert context["authorizer"]["jwt"] == {
        "claims": {"sub": USER, "exp": "1583798639", "aud": "[one two]", "admin": "true", "scope": "a b"},
        "scopes": None,
    }
    assert context["stage"] == "$default"
    json.dumps(event)


def test_what_a_request_lacks_the_event_lacks() -> None:
    event = gateway.payload(request(), Route("ANY", "$default", "ReportApi", public=True), {}, None)
    assert not event.keys() & {"body", "cookies", "queryStringParameters", "pathParameters"}
    assert "authorizer" not in event["requestContext"]
    assert event["routeKey"] == "$default"


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "TEXT/plain", "application/xml"])
def test_bodies_of_text_types_arrive_as_text(content_type: str) -> None:
    event = gateway.payload(request(headers=[("content-type", content_type)], body=b"{}"), PRIVATE, {}, None)
    assert (event["body"], event["isBase64Encoded"]) == ("{}", False)


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "application/octet-stream"])
def test_other_bodies_arrive_in_base64(content_type: str | None) -> None:
    headers = [("content-type", content_type)] if content_type else []
    event = gateway.payload(request(headers=headers, body=b"{}"), PRIVATE, {}, None)
    assert (event["body"], event["isBase64Encoded"]) == ("e30=", True)


def test_text_that_is_not_utf_8_arrives_in_base64() -> None:
    event = gateway.payload(request(headers=[("content-type", "application/json")], body=b"\xff\xfe"), PRIVATE, {}, None)
    assert base64.b64decode(event["body"]) == b"\xff\xfe"
    assert event["isBase64Encoded"]


@pytest.mark.parametrize(
    ("method", "path", "expected", "parameters"),
    [
        ("GET", "/pets/dog/1", "static", {}),
        ("GET", "/pets/dog/2", "parameter", {"id": "2"}),
        ("GET", "/pets/dog/a%2Fb%20c", "parameter", {"id": "a/b c"}),
        ("GET", "/pets/cat/2", "greedy", {"proxy": "cat/2"}),
        ("POST", "/pets/dog/1", "any", {}),
        ("GET", "/pets/dog/1/", "greedy", {"proxy": "dog/1/"}),
        ("GET", "/pets", "default", {}),
        ("POST", "/pets/cat", "default", {}),
        ("GET", "/petsXdog/1", "default", {}),
    ],
)
def test_the_most_specific_route_is_taken(method: str, path: str, expected: str, parameters: dict[str, str]) -> None:
    routes = Routes(
        [
            Route("ANY", "$default", "default", public=True),
            Route("GET", "/pets/{proxy+}", "greedy", public=True),
            Route("GET", "/pets/dog/{id}", "parameter", public=True),
            Route("ANY", "/pets/dog/1", "any", public=True),
            Route("GET", "/pets/dog/1", "static", public=True),
        ]
    )
    route, found = routes.find(method, path)
    assert route is not None
    assert (route.function, found) == (expected, parameters)


@pytest.mark.parametrize(
    "headers",
    [[], [("authorization", "Bearer")], [("authorization", "Bearer a.b.c")], [("authorization", "Basic YTpi")]],
    ids=str,
)
def test_without_a_good_token_no_function_is_called(key: RSAKey, headers: list[tuple[str, str]]) -> None:
    response, invocations = answered(request(headers=headers), key)
    assert response.status == 401
    assert json.loads(response.body) == {"message": "Unauthorized"}
    assert dict(response.headers)["www-authenticate"].startswith("Bearer")
    assert not invocations


def test_public_routes_and_unknown_paths_need_no_token(key: RSAKey) -> None:
    for path, function in (("/certificates/abc", "CertificateApi"), ("/health", "ReportApi"), ("/nowhere", "ReportApi")):
        response, [(name, event)] = answered(request(path=path), key, {"statusCode": 200, "body": "x"})
        assert (response.status, name) == (200, function)
        assert "authorizer" not in event["requestContext"]


@pytest.mark.parametrize("answer", [RuntimeError("boom"), {"statusCode": 200, "body": 5}, {"statusCode": "two hundred"}], ids=str)
def test_a_function_that_fails_is_a_500(key: RSAKey, answer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    response, _ = answered(request(path="/health"), key, answer)
    assert (response.status, json.loads(response.body)) == (500, {"message": "Internal Server Error"})
    assert "Traceback" in capfd.readouterr().err


def test_an_answer_becomes_a_response() -> None:
    answer = {
        "statusCode": 201,
        "headers": {"Content-Type": "application/pdf", "Location": "/x"},
        "cookies": ["a=1; Secure", "b=2"],
        "body": base64.b64encode(b"%PDF").decode(),
        "isBase64Encoded": True,
    }
    response = gateway.reply(answer)
    assert response.status == 201
    assert response.body == b"%PDF"
    assert response.headers == [
        ("content-type", "application/pdf"),
        ("location", "/x"),
        ("set-cookie", "a=1; Secure"),
        ("set-cookie", "b=2"),
    ]


def test_an_answer_without_a_status_is_the_body_of_a_success() -> None:
    response = gateway.reply({"hello": "world"})
    assert (response.status, json.loads(response.body)) == (200, {"hello": "world"})
    assert response.headers == [("content-type", "application/json")]


def test_the_documentation_needs_nothing_from_elsewhere(key: RSAKey) -> None:
    page, _ = answered(request(path="/docs"), key)
    assert b"://" not in page.body
    for path in ("/docs/swagger-ui-bundle.min.js", "/docs/swagger-ui.min.css"):
        assert path.encode() in page.body
        asset, invocations = answered(request(path=path), key)
        assert asset.status == 200
        assert len(asset.body) > 10_000
        assert not invocations
