"""A learner sees only what is theirs: every route under every caller, through gateway, handler and database.

The gateway is the local one with real tokens, the functions have the rights that they have in production. What a caller may not
have looks the same whether it exists or not: in the answer, and in what goes over the wire to the database.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from uuid import UUID, uuid4

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.jwk import RSAKey

from local import gateway, template, tokens
from local.child import snake
from local.gateway import Request, Routes
from local.service import parameters
from shared import db, settings
from tests.support import access
from tests.support.access import ENTRIES, OPENAPI, OTHER, ROUTES, Kind, Route, World, a_world, unknown_ids
from tests.support.service import ADMIN, LEARNER, Service
from tests.support.wire import Wire, counted

STACK = template.read(parameters("http://127.0.0.1:3000", "postgresql://somewhere/db", Path("/nowhere")), "http://127.0.0.1:4000")
KEY = RSAKey.generate_key(2048)
STRANGERS_KEY = RSAKey.generate_key(2048)
NEVER: dict[Kind, bool] = {"public": True, "learner": False, "report": False, "admin": False}
ADMINISTRATOR = "learner-progress:admin"


class Caller(NamedTuple):
    """How a request says who sends it: the Authorization header, whether it is a good one, and what its bearer may do."""

    authorization: str | None
    is_let_in: bool
    may: Any


def claims(sub: UUID = ADMIN, **changes: Any) -> dict[str, Any]:
    """What a good token says; a bad one of an administrator must get nothing either."""
    now = int(time.time())
    good = {"iss": tokens.ISSUER, "aud": tokens.AUDIENCE, "sub": str(sub), "iat": now, "exp": now + 3600, "scope": ADMINISTRATOR}
    return {name: value for name, value in (good | changes).items() if value is not None}


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def rs256(header: dict[str, Any] | None = None, key: RSAKey = KEY, **changes: Any) -> str:
    return jwt.encode({"alg": "RS256"} | (header or {}), claims(**changes), key)


def hs256(secret: bytes) -> str:
    """A token whose MAC is keyed by what everybody knows: for whoever verifies by the algorithm that the token names."""
    signed = f"{encoded({'alg': 'HS256', 'typ': 'JWT'})}.{encoded(claims())}"
    mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def tampered(change: Callable[[str, str, str], str]) -> str:
    return change(*rs256(sub=OTHER, scope=None).split("."))


def refused(token: str, scheme: str = "Bearer ") -> Caller:
    return Caller(f"{scheme}{token}", False, NEVER)


def bearer(sub: UUID, scope: Any, may: Any) -> Caller:
    return Caller(f"Bearer {rs256(sub=sub, scope=scope)}", True, may)


PUBLIC = KEY.public_key
assert PUBLIC is not None

#: At the gateway: no token, and every kind of bad one. All but the first are an administrator's, if they are believed.
BAD_TOKENS = {
    "no token": Caller(None, False, NEVER),
    "an empty header": Caller("", False, NEVER),
    "a scheme alone": Caller("Bearer", False, NEVER),
    "expired": refused(rs256(exp=int(time.time()) - 10)),
    "without an end": refused(rs256(exp=None)),
    "not yet valid": refused(rs256(nbf=int(time.time()) + 86_400)),
    "of the future": refused(rs256(iat=int(time.time()) + 86_400)),
    "of another issuer": refused(rs256(iss="https://iam.example.org")),
    "of an issuer that begins alike": refused(rs256(iss=f"{tokens.ISSUER}.example.org")),
    "without an issuer": refused(rs256(iss=None)),
    "for another audience": refused(rs256(aud="learner-progress-test")),
    "for other audiences": refused(rs256(aud=["a", "b"])),
    "without an audience": refused(rs256(aud=None)),
    "alg none": refused(f"{encoded({'alg': 'none'})}.{encoded(claims())}."),
    "alg None": refused(f"{encoded({'alg': 'None'})}.{encoded(claims())}."),
    "alg none, signed": refused(f"{encoded({'alg': 'none'})}.{encoded(claims())}.{rs256().split('.')[2]}"),
    "HS256 by the public key in PEM": refused(hs256(KEY.as_pem(private=False))),
    "HS256 by the public key in DER": refused(hs256(PUBLIC.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))),
    "HS256 by the public key in PKCS 1": refused(hs256(PUBLIC.public_bytes(Encoding.PEM, PublicFormat.PKCS1))),
    "HS256 by an empty key": refused(hs256(b"")),
    "RS512": refused(jwt.encode({"alg": "RS512"}, claims(), KEY, algorithms=["RS512"])),
    "of another key": refused(rs256(key=STRANGERS_KEY)),
    "of another key under our key's name": refused(rs256({"kid": KEY.thumbprint()}, STRANGERS_KEY)),
    "of another key that it brings along": refused(
        rs256({"jwk": STRANGERS_KEY.as_dict(private=False), "kid": STRANGERS_KEY.thumbprint()}, STRANGERS_KEY)
    ),
    "unknown kid": refused(rs256({"kid": "unknown"})),
    "tampered payload": refused(tampered(lambda head, _, signature: f"{head}.{encoded(claims())}.{signature}")),
    "tampered header": refused(tampered(lambda _, body, signature: f"{encoded({'alg': 'RS256', 'x': 1})}.{body}.{signature}")),
    "without a signature": refused(tampered(lambda head, body, _: f"{head}.{body}.")),
    "cut short": refused(rs256()[:-5]),
    "twice": refused(f"{rs256()}, Bearer {rs256()}"),
    "no JWT": refused("a.b.c"),
    "Basic": refused(rs256(), "Basic "),
    "Token": refused(rs256(), "Token "),
    "DPoP": refused(rs256(), "DPoP "),
}

CALLERS: dict[str, Caller] = BAD_TOKENS | {
    "the learner": bearer(LEARNER, None, access.CALLERS["own"]),
    "the learner, with other scopes": bearer(LEARNER, "openid profile", access.CALLERS["own"]),
    "another learner": bearer(OTHER, None, access.CALLERS["another learner"]),
    "report": bearer(OTHER, "learner-progress:report", access.CALLERS["report"]),
    "report among others": bearer(OTHER, "openid learner-progress:report email", access.CALLERS["report"]),
    "admin": bearer(ADMIN, ADMINISTRATOR, access.CALLERS["admin"]),
    "admin among others": bearer(ADMIN, f"openid {ADMINISTRATOR} email", access.CALLERS["admin"]),
    **{
        f"scope {scope!r}": bearer(OTHER, scope, NEVER)
        for scope in (
            *("", " ", "openid", "*", "admin", "learner-progress", "learner-progress:*", "learner-progress:"),
            *("learner-progress:administrator", "learner-progress:admins", "learner-progress:admin:read"),
            *("LEARNER-PROGRESS:ADMIN", "Learner-Progress:Admin", "learner-progress:ADMIN", "learner-progress: admin"),
            *("learner-progress:reports", "LEARNER-PROGRESS:REPORT", "learner_progress:admin", "xlearner-progress:admin"),
            *("openid,learner-progress:admin", "openid\tlearner-progress:admin", "openid\nlearner-progress:admin"),
            *("openid\u00a0learner-progress:admin", "learner-progress:admin\u200b", "learner-progress:\u0430dmin"),
            # As the gateway hands on an array, also of three.
            *("[a b]", "[learner-progress:admin]", "[openid learner-progress:admin email]"),
            *([ADMINISTRATOR], ["openid", ADMINISTRATOR, "email"], {"learner-progress:admin": True}, True, None),
        )
    },
}  # fmt: skip
#: The things of the learner, and ids that belong to nothing.
TARGETS = ("theirs", "nothing")
CELLS = [(route, caller, target) for route in ROUTES for caller in CALLERS for target in TARGETS]


def expected(route: Route, caller: str, target: str) -> tuple[int, ...]:
    """What a cell of the matrix answers."""
    entry, who = route.entry, CALLERS[caller]
    if entry.kind != "public" and not who.is_let_in:
        return (401,)
    if who.may[entry.kind]:
        return (200, 201) if target == "theirs" or entry.missing is None else (entry.missing,)
    return (404,) if entry.kind == "learner" else (403,)


class Seen(NamedTuple):
    """An answer as far as it must not tell what exists from what doesn't, and what it took."""

    status: int
    headers: frozenset[tuple[str, str]]
    body: str
    trips: int
    statements: int
    texts: tuple[str, ...]


class Api:
    """The service behind its gateway."""

    def __init__(self, service: Service, wire: Wire) -> None:
        self.service = service
        self.wire = wire
        self.routes = Routes(STACK.routes)
        self.events: list[dict[str, Any]] = []

    def invoke(self, function: str, event: dict[str, Any]) -> Any:
        self.events.append(event)
        return self.service.invoke(snake(function), json.loads(json.dumps(event)))

    def ask(
        self,
        method: str,
        path: str,
        authorization: str | None,
        body: Any = None,
        query: str = "",
        headers: gateway.Headers | None = None,
    ) -> Seen:
        sent = [("content-type", "application/json"), ("host", "127.0.0.1"), *(headers or [])]
        sent += [("authorization", authorization)] if authorization is not None else []
        content = b"" if body is None else json.dumps(body).encode()
        self.wire.reset()
        answer = gateway.respond(Request(method, path, query, sent, content), self.routes, STACK, KEY, self.invoke)
        text = answer.body.decode()
        if ("content-type", "application/problem+json") in answer.headers:
            # The instance is the path that was asked for, and the one thing that may differ.
            document = json.loads(text)
            assert document.pop("instance") == path
            text = json.dumps(document)
        said = frozenset((name, value) for name, value in answer.headers if name != "apigw-requestid")
        return Seen(answer.status, said, text, self.wire.trips, self.wire.statements, tuple(self.wire.texts))


@pytest.fixture
def api(service: Service, world: World, monkeypatch: pytest.MonkeyPatch) -> Generator[Api]:
    with counted(os.environ["DATABASE_URL"]) as wire:
        monkeypatch.setenv("DATABASE_URL", wire.url)
        settings.database_url.cache_clear()
        db.close()
        # The connection is there before anything is counted.
        assert service.http("GET", "/health").status == 200
        yield Api(service, wire)
        db.close()


@pytest.fixture
def world(service: Service) -> World:
    return a_world(service)


def test_every_route_has_its_entry_and_is_for_whom_the_api_says(capsys: pytest.CaptureFixture[str]):
    assert set(ENTRIES) == {str(route) for route in ROUTES}, "docs/openapi.json and the entries of tests/support/access.py differ"
    assert {(r.method, r.path) for r in ROUTES} == {(r.method, r.path) for r in STACK.routes if r.path != "$default"}
    said: dict[Kind, frozenset[str] | None] = {
        "public": None,
        "learner": frozenset(),
        "report": frozenset({"learner-progress:report", ADMINISTRATOR}),
        "admin": frozenset({ADMINISTRATOR}),
    }
    for route in ROUTES:
        assert route.scopes == said[route.entry.kind], route
        assert (route.entry.body is None) or route.takes_body, route
    assert len(set(CELLS)) == len(ROUTES) * len(CALLERS) * len(TARGETS)
    with capsys.disabled():
        print(f"\n{len(CELLS):,} cells: {len(ROUTES)} routes, {len(CALLERS)} callers, {len(TARGETS)} targets")


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_every_caller_gets_from_every_route_what_is_theirs_and_nothing_else(api: Api, world: World, route: Route):
    body = world.body(route)
    paths = {"theirs": world.path(route), "nothing": world.path(route, **unknown_ids(route))}
    wrong: list[str] = []

    def asked(caller: str) -> list[Seen]:
        seen: list[Seen] = []
        for target in TARGETS:
            if route.entry.before and target == "theirs" and theirs(caller):
                earlier = world.path(route).rpartition("/")[0] + route.entry.before
                assert world.service.admin("POST", earlier, access.WHY).status == 200
            answer = api.ask(route.method, paths[target], CALLERS[caller].authorization, body)
            if answer.status not in expected(route, caller, target):
                wrong.append(
                    f"{caller}, {target}: {answer.status} and not {expected(route, caller, target)}: {answer.body[:300]}"
                )
            seen.append(answer)
        return seen

    def theirs(caller: str) -> bool:
        return CALLERS[caller].may[route.entry.kind]

    before = world.state()
    for caller in CALLERS:
        if not theirs(caller):
            existing, nothing = asked(caller)
            if existing != nothing:
                wrong.append(f"{caller}: what exists is told from what does not: {existing} {nothing}")
            if existing.status in (401, 403) and existing.statements:
                wrong.append(f"{caller}: {existing.statements} statements for whom nothing is looked up")
    assert world.state() == before
    for caller in filter(theirs, CALLERS):
        asked(caller)
    assert wrong == []


def variants(world: World, route: Route) -> list[str]:
    """What another learner may try: the learner's things, nobody's, and a mix of both."""
    nobody, nothing = str(uuid4()), unknown_ids(route)
    paths = [
        world.path(route),
        world.path(route, user_id=nobody),
        world.path(route, **nothing),
        world.path(route, user_id=nobody, **nothing),
        world.path(route, user_id=str(LEARNER).upper()),
        *(world.path(route, **{name: value}) for name, value in nothing.items()),
    ]
    return list(dict.fromkeys(paths))


LEARNERS = [route for route in ROUTES if route.entry.kind == "learner"]


@pytest.mark.parametrize("route", LEARNERS, ids=str)
def test_anothers_things_are_like_nothing_in_the_answer_and_on_the_wire(api: Api, world: World, route: Route):
    authorization = CALLERS["another learner"].authorization
    before = world.state()
    # A body that is good, one that is not, none; each must be judged alike whatever the path leads to.
    bodies = [world.body(route)] + ([{"unknown": 1}, []] if route.takes_body else [])
    queries = ["", "limit=1", "limit=0", "limit=1&cursor=x", f"limit=1&cursor={cursor(world, route)}"] if route.pages else [""]
    for body in bodies:
        for query in queries:
            seen = {api.ask(route.method, path, authorization, body, query) for path in variants(world, route)}
            assert len(seen) == 1, (body, query)
            assert next(iter(seen)).status in ((404,) if body == bodies[0] and query in ("", "limit=1") else (404, 422))
    assert world.state() == before


def cursor(world: World, route: Route) -> str:
    """A real cursor of the learner's own list, or of a list like it."""
    service = world.service
    page = service.http("GET", world.path("/users/me/enrollments"), query={"limit": "1"}).json["next_cursor"]
    assert page
    own = service.http("GET", world.path(route).replace(str(LEARNER), "me"), query={"limit": "1"}).json["next_cursor"]
    return own or page


#: But for enrolling, which whoever is not enrolled may do.
ENROLL = "PUT /users/{user_id}/enrollments/{course_version_id}"
OF_ENROLLMENTS = [route for route in LEARNERS if "{course_version_id}" in route.path and str(route) != ENROLL]


@pytest.mark.parametrize("route", OF_ENROLLMENTS, ids=str)
def test_a_course_that_another_learner_takes_is_like_an_unknown_one_under_me(api: Api, world: World, route: Route):
    authorization, body = CALLERS["another learner"].authorization, world.body(route)
    paths = [world.path(route, user_id="me"), world.path(route, user_id="me", **unknown_ids(route))]
    first, second = (api.ask(route.method, path, authorization, body) for path in paths)
    assert first == second
    assert (first.status, first.trips) == (404, 1)


def test_a_cursor_of_anothers_list_opens_nothing(api: Api, world: World):
    authorization = CALLERS["another learner"].authorization
    page = world.service.http("GET", "/users/me/enrollments", query={"limit": "1"}).json["next_cursor"]
    answers = {api.ask("GET", f"/users/{who}/enrollments", authorization, query=f"cursor={page}") for who in ("me", OTHER)}
    answers |= {api.ask("GET", "/users/me/enrollments", authorization, query="cursor=bm9uc2Vuc2U")}
    (answer,) = answers
    assert (answer.status, answer.statements) == (422, 0)


def test_who_is_somebody_is_taken_from_the_token_however_ids_are_written(api: Api, world: World):
    own, admin = (CALLERS[caller].authorization for caller in ("the learner", "admin"))
    path = "/users/{user_id}/enrollments/{course_version_id}"
    for user_id in ("me", str(LEARNER), str(LEARNER).upper()):
        assert api.ask("GET", world.path(path, user_id=user_id), own).status == 200
    # For an administrator too, me is the token's own learner.
    assert api.ask("GET", world.path(path, user_id="me"), admin).status == 404
    assert json.loads(api.ask("GET", "/users/me/enrollments", admin).body)["items"] == []
    assert api.ask("PUT", world.path(path, user_id="me"), admin).status == 201
    assert json.loads(api.ask("GET", world.path(path, user_id="me"), admin).body)["user_id"] == str(ADMIN)


FORGED = {
    "requestContext": {
        "authorizer": {"jwt": {"claims": {"sub": str(LEARNER), "scope": ADMINISTRATOR}, "scopes": [ADMINISTRATOR]}}
    },
    "authorizer": {"jwt": {"claims": {"sub": str(LEARNER), "scope": ADMINISTRATOR}}},
    "claims": {"sub": str(LEARNER), "scope": ADMINISTRATOR},
    "pathParameters": {"user_id": str(LEARNER)},
    "sub": str(LEARNER),
    "scope": ADMINISTRATOR,
    "scopes": ADMINISTRATOR,
    "routeKey": "GET /health",
    "rawPath": "/health",
    "version": "1.0",
    "isBase64Encoded": True,
}
NAMES = [
    *("requestcontext", "request-context", "x-amzn-request-context", "x-amzn-requestcontext", "x-apigateway-event"),
    *("x-apigateway-context", "x-amzn-apigateway-api-id", "x-amz-security-token", "x-amz-client-context", "authorizer", "claims"),
    *(
        "x-amzn-oidc-identity",
        "x-amzn-oidc-data",
        "x-amzn-lambda-context",
        "x-forwarded-user",
        "x-original-url",
        "x-user-id",
        "sub",
    ),
    *("scope", "x-http-method-override", "x-rewrite-url", "forwarded", "x-forwarded-authorization", "proxy-authorization"),
]


def test_nothing_that_a_client_sends_becomes_a_claim(api: Api, world: World):
    """The gateway writes `requestContext` itself, so that a client can't; tried with every part of a request."""
    authorization = CALLERS["another learner"].authorization
    text = json.dumps(FORGED)
    encodings = [text, encoded(FORGED), f"Bearer {encoded(FORGED)}", str(LEARNER)]
    path = world.path("/users/{user_id}/enrollments/{course_version_id}/cancel")
    query = urlencode({name: json.dumps(value) for name, value in FORGED.items()})

    def asked(body: Any = None, **options: Any) -> tuple[Seen, dict[str, Any]]:
        api.events.clear()
        answer = api.ask("POST", path, authorization, body, **options)
        context = api.events[0]["requestContext"]
        for changing in ("requestId", "time", "timeEpoch"):
            del context[changing]
        return answer, context

    plain, context = asked()
    assert plain.status == 404
    assert context["authorizer"]["jwt"]["claims"]["sub"] == str(OTHER)
    for n, value in enumerate(encodings):
        headers = [(name, value) for name in NAMES]
        headers.append(("cookie", "; ".join(f"{name}={encoded(FORGED)}" for name in NAMES)))
        assert asked(headers=headers) == (plain, context), n
        assert asked(query=query, headers=headers) == (plain, context), n
    # A body can hold what it likes: it is no more than an unknown field.
    forged, seen_context = asked(FORGED)
    assert (forged.status, seen_context) == (422, context)
    before = world.state()
    for name in FORGED:
        assert asked({"reason": "x", name: FORGED[name]})[1] == context
    assert world.state() == before
    # And without a token, no function is called at all.
    api.events.clear()
    assert api.ask("POST", path, None, FORGED, query, [(name, text) for name in NAMES]).status == 401
    assert api.events == []


def test_a_function_that_is_asked_without_claims_serves_nobody(service: Service, world: World):
    """Should a route ever be left without its authorizer, its function knows no such path rather than serve whoever asks."""
    for route in [route for route in ROUTES if route.entry.kind != "public"]:
        assert service.http(route.method, world.path(route), world.body(route), sub=None).status == 404


# Headers

#: How to get an answer of each status that has no row in the matrix: what is sent in the place of a good request.
STATUSES: dict[int, dict[str, Any]] = {
    400: {"raw": "{"},
    415: {"raw": "a=b", "headers": {"content-type": "text/plain"}},
    422: {"raw": "[]"},
}


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_every_answer_says_how_it_may_be_used(world: World, route: Route, monkeypatch: pytest.MonkeyPatch):
    """`Service.http` looks at the headers of each answer that any test gets; here, each status that the API names is seen."""
    service, path, body = world.service, world.path(route), world.body(route)
    responses = OPENAPI["paths"][route.path][route.method.lower()]["responses"]
    seen = {401}
    sub, scope = (None, "") if route.entry.kind == "public" else (ADMIN, ADMINISTRATOR)
    for status, sent in STATUSES.items():
        if route.takes_body and str(status) in responses:
            seen.add(service.http(route.method, path, sub=sub, scope=scope, **sent).status)
    if route.entry.kind != "public":
        seen.add(service.http(route.method, path, body, sub=OTHER).status)
    for where in (path, world.path(route, **unknown_ids(route)), *(path.replace(world.ids[name], "no-id") for name in world.ids)):
        seen.add(service.http(route.method, where, body, sub=sub, scope=scope).status)
    settings.database_url.cache_clear()
    db.close()
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/nowhere")
    seen.add(service.http(route.method, path, body, sub=sub, scope=scope).status)
    settings.database_url.cache_clear()
    # The gateway answers 401. What depends on the state of things is seen by other tests.
    assert {int(status) for status in responses} - seen <= {200, 201, 202, 302, 403, 409}
    assert 503 in seen


# What is written down


def test_the_documented_table_is_this_matrix(root: Path):
    assert access.table() in (root / "docs/security.md").read_text(), f"docs/security.md should hold:\n{access.table()}"
