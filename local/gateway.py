"""API Gateway's HTTP API on this computer: HTTP requests become payload 2.0 events for the functions that the template names."""

import base64
import json
import os
import re
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import uvicorn
from joserfc.jwk import RSAKey

from local.child import Child, context, load, log_path, snake
from local.template import ACCOUNT, PROJECT, Function, Route, Template
from local.tokens import InvalidTokenError, signing_key, verify

#: API Gateway's quota on a payload: 10 MB.
MAX_BODY_BYTES = 10 * 1024 * 1024

#: A body of these types arrives as text, of any other type, and of none, in Base64. AWS's guide only speaks of "binary" types;
#: this list was observed on AWS (ministackorg/ministack, pull request 766).
TEXT_TYPE = re.compile(r"text/.*|application/(json|xml|javascript)")

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Learner progress and certification: the API</title>
<link rel="stylesheet" href="/docs/swagger-ui.min.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.min.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, persistAuthorization: true})</script>
</body>
</html>
"""

type Headers = list[tuple[str, str]]
type Invoke = Callable[[str, dict[str, Any]], Any]


@dataclass(frozen=True)
class Request:
    """An HTTP request; path and query are as they came, still percent-encoded; names of headers are in lower case."""

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes
    client: str = "127.0.0.1"
    protocol: str = "HTTP/1.1"

    def header(self, name: str) -> str | None:
        """Return a header's value, that of repeated ones joined by commas, or None."""
        values = [value for key, value in self.headers if key == name]
        return ",".join(values) if values else None


@dataclass(frozen=True)
class Response:
    """An HTTP response."""

    status: int
    headers: Headers
    body: bytes


class Routes:
    """Finds a request's route as API Gateway does: the most specific path first, its method before `ANY`, `$default` last."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Put the routes in the order in which they are tried."""
        self._default: Route | None = None
        patterns: list[tuple[list[int], bool, re.Pattern[str], Route]] = []
        for route in routes:
            if route.path == "$default":
                self._default = route
                continue
            segments = route.path.split("/")
            rank = [2 if "+}" in segment else 1 if segment.startswith("{") else 0 for segment in segments]
            patterns.append((rank, route.method == "ANY", re.compile("/".join(map(_segment, segments))), route))
        patterns.sort(key=lambda entry: entry[:2])
        self._patterns = [(pattern, route) for _, _, pattern, route in patterns]

    def find(self, method: str, path: str) -> tuple[Route | None, dict[str, str]]:
        """Return the route and the path parameters, percent-decoded."""
        for pattern, route in self._patterns:
            if route.method in (method, "ANY") and (found := pattern.fullmatch(path)):
                return route, {name: unquote(value) for name, value in found.groupdict().items()}
        return self._default, {}


def _segment(segment: str) -> str:
    if segment.startswith("{"):
        name = segment.strip("{+}")
        return f"(?P<{name}>.+)" if segment.endswith("+}") else f"(?P<{name}>[^/]+)"
    return re.escape(segment)


def payload(request: Request, route: Route, parameters: Mapping[str, str], claims: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the event of a request, in payload format 2.0; what a request lacks, the event lacks too."""
    now = datetime.now(UTC)
    route_key = route.path if route.path == "$default" else f"{route.method} {route.path}"
    # HTTP APIs decode the path, unlike REST APIs and function URLs.
    path = unquote(request.path)
    host = request.header("host") or "127.0.0.1"
    headers = {name: request.header(name) for name, _ in request.headers if name != "cookie"}
    headers |= {
        "x-forwarded-for": ", ".join(filter(None, [request.header("x-forwarded-for"), request.client])),
        "x-forwarded-port": host.rpartition(":")[2] if ":" in host else "80",
        "x-forwarded-proto": "http",
    }
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": route_key,
        "rawPath": path,
        "rawQueryString": request.query,
        "headers": headers,
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": "local",
            "domainName": host,
            "domainPrefix": host.partition(".")[0],
            "http": {
                "method": request.method,
                "path": path,
                "protocol": request.protocol,
                "sourceIp": request.client,
                "userAgent": request.header("user-agent") or "",
            },
            "requestId": str(uuid.uuid4()),
            "routeKey": route_key,
            "stage": "$default",
            "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(now.timestamp() * 1000),
        },
        "isBase64Encoded": False,
    }
    if claims is not None:
        # The routes ask for no scopes at the gateway, and then AWS lists none.
        jwt = {"claims": {name: claim_text(value) for name, value in claims.items()}, "scopes": None}
        event["requestContext"]["authorizer"] = {"jwt": jwt}
    if cookies := request.header("cookie"):
        event["cookies"] = [cookie.strip() for cookie in cookies.split(";")]
    if request.query:
        values: dict[str, str] = {}
        for name, value in parse_qsl(request.query, keep_blank_values=True):
            values[name] = f"{values[name]},{value}" if name in values else value
        event["queryStringParameters"] = values
    if parameters:
        event["pathParameters"] = dict(parameters)
    if request.body:
        event |= _body(request)
    return event


def _body(request: Request) -> dict[str, Any]:
    media_type = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if TEXT_TYPE.fullmatch(media_type):
        try:
            return {"body": request.body.decode(), "isBase64Encoded": False}
        except UnicodeDecodeError:
            # What claims to be text and isn't goes on byte by byte, for the function to judge.
            pass
    return {"body": base64.b64encode(request.body).decode(), "isBase64Encoded": True}


def claim_text(value: Any) -> str:
    """Return a claim as the JWT authorizer hands it on, which is always a text: `[a b]` for an array."""
    match value:
        case str():
            return value
        case list():
            return f"[{' '.join(map(claim_text, value))}]"
        case _:
            return json.dumps(value)


def reply(answer: Any) -> Response:
    """Turn a function's answer, in payload format 2.0, into a response.

    Raises ValueError, TypeError or KeyError if it is none.
    """
    if not isinstance(answer, dict) or "statusCode" not in answer:
        # API Gateway takes any other JSON for the body of a success.
        return Response(200, [("content-type", "application/json")], json.dumps(answer).encode())
    headers = [(str(name).lower(), str(value)) for name, value in (answer.get("headers") or {}).items()]
    headers += [("set-cookie", cookie) for cookie in answer.get("cookies") or []]
    if not any(name == "content-type" for name, _ in headers):
        headers.append(("content-type", "text/plain; charset=utf-8"))
    body = answer.get("body") or ""
    content = base64.b64decode(body, validate=True) if answer.get("isBase64Encoded") else body.encode()
    return Response(int(answer["statusCode"]), headers, content)


def refusal(status: int, message: str, *headers: tuple[str, str]) -> Response:
    """Return what the gateway itself answers, in its own format."""
    return Response(status, [("content-type", "application/json"), *headers], json.dumps({"message": message}).encode())


def authorize(request: Request, key: RSAKey, issuer: str, audience: Sequence[str]) -> dict[str, Any] | Response:
    """Return the claims of the request's bearer token, or the refusal."""
    header = request.header("authorization")
    if not header:
        return refusal(401, "Unauthorized", ("www-authenticate", "Bearer"))
    scheme, _, token = header.partition(" ")
    try:
        if scheme.lower() != "bearer":
            raise InvalidTokenError("the authorization scheme must be Bearer")
        return verify(token.strip(), key, issuer, audience)
    except InvalidTokenError as error:
        reason = re.sub(r"[^ !#-\[\]-~]", " ", str(error))
        challenge = f'Bearer scope="" error="invalid_token" error_description="{reason}"'
        return refusal(401, "Unauthorized", ("www-authenticate", challenge))


def respond(request: Request, routes: Routes, template: Template, key: RSAKey, invoke: Invoke) -> Response:
    """Answer one request."""
    if document := _documentation(request):
        return document
    route, parameters = routes.find(request.method, request.path)
    if route is None:
        return refusal(404, "Not Found")
    claims = None
    if not route.public:
        claims = authorize(request, key, template.issuer, template.audience)
        if isinstance(claims, Response):
            return claims
    event = payload(request, route, parameters, claims)
    request_id = ("apigw-requestid", event["requestContext"]["requestId"])
    try:
        response = reply(invoke(route.function, event))
    except Exception:  # Whatever a function raises, API Gateway's answer is this; the traceback is in the function's log.
        traceback.print_exc()
        return refusal(500, "Internal Server Error", request_id)
    return Response(response.status, [*response.headers, request_id], response.body)


def _documentation(request: Request) -> Response | None:
    if request.method not in ("GET", "HEAD"):
        return None
    match request.path:
        case "/docs":
            return Response(200, [("content-type", "text/html; charset=utf-8")], PAGE.encode())
        case "/openapi.json":
            return Response(200, [("content-type", "application/json")], (PROJECT / "docs" / "openapi.json").read_bytes())
        case "/docs/swagger-ui-bundle.min.js":
            return Response(200, [("content-type", "text/javascript; charset=utf-8")], _asset("swagger-ui-bundle.min.js"))
        case "/docs/swagger-ui.min.css":
            return Response(200, [("content-type", "text/css; charset=utf-8")], _asset("swagger-ui.min.css"))
        case _:
            return None


def _asset(name: str) -> bytes:
    return (files("aws_lambda_powertools.event_handler.openapi.swagger_ui") / name).read_bytes()


def application(respond_to: Callable[[Request], Response], say: Callable[[str], None]) -> Callable[..., Awaitable[None]]:
    """Return the ASGI application.

    Requests are answered one after the other on the event loop's own thread: an execution environment handles one event at a
    time, and more of them are more processes.
    """

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        started = time.monotonic()
        path = scope["raw_path"].decode("ascii", "backslashreplace")
        body = await _read(receive)
        if body is None:
            response = refusal(413, "Request Entity Too Large", ("connection", "close"))
        else:
            request = Request(
                method=scope["method"],
                path=path,
                query=scope["query_string"].decode("ascii", "backslashreplace"),
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
                body=body,
                client=scope["client"][0],
                protocol=f"HTTP/{scope['http_version']}",
            )
            response = respond_to(request)
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})
        # Lines on a screen are kept too, and no log speaks of a learner.
        shown = re.sub(r"(?<=^/users/)(?!me/)[^/]+", "…", path)
        say(f"{scope['method']:<4} {response.status} {(time.monotonic() - started) * 1000:>5.0f} ms  {shown}")

    return app


async def _read(receive: Callable[[], Awaitable[Any]]) -> bytes | None:
    """Return the request's body, or None when it is too large."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def serve(child: Child) -> None:
    """Serve the listening socket that the parent has opened, until the parent ends."""
    settings, template = child.settings, child.settings.template()
    functions = {route.function: template.functions[route.function] for route in template.routes}
    handlers = {name: load(function, settings.endpoint) for name, function in functions.items()}
    key, routes = signing_key(Path(settings.local_dir)), Routes(template.routes)
    logs = {name: _log(settings.local_dir, function) for name, function in functions.items()}

    def invoke(name: str, event: dict[str, Any]) -> Any:
        # What a function prints goes to its own log, whichever logger or traceback it comes from.
        os.dup2(logs[name], 1)
        os.dup2(logs[name], 2)
        return handlers[name](event, context(functions[name], child.ending))

    app = application(lambda request: respond(request, routes, template, key, invoke), child.say)
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    child.ready()

    def end() -> None:
        child.ending.wait()
        server.should_exit = True

    with child.busy:
        threading.Thread(target=end, daemon=True).start()
        server.run(sockets=[socket.socket(fileno=settings.listener)])


def _log(local_dir: str, function: Function) -> int:
    return os.open(log_path(local_dir, snake(function.name)), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
