"""The edge of the HTTP API: who calls, problem documents (RFC 9457), pages of lists.

Whatever our code refuses leaves as `application/problem+json`. What the gateway itself refuses (401, 413, 429) never
gets here; what nobody expected is raised, so that Lambda counts it as an error.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote
from uuid import UUID

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestUnsupportedContentType, RequestValidationError
from aws_lambda_powertools.event_handler.openapi.params import Path, Query
from pydantic import BaseModel, BeforeValidator, TypeAdapter

from shared import db, parsing
from shared.errors import (
    Flaw,
    Forbidden,
    Invalid,
    Malformed,
    PathNotFound,
    ServiceError,
    Unavailable,
    UnsupportedMediaType,
    explain,
    pointer,
)

#: The longest body: twice the answers that an attempt may have, and what surrounds them.
MAX_BODY_CHARACTERS = 1_000_000

ADMIN = "learner-progress:admin"
REPORT = "learner-progress:report"

#: For `security=` of a route: which scopes let a caller in (any one of the list). A learner's route names no scope.
LEARNER: list[dict[str, list[str]]] = [{"jwt": []}]
ADMIN_ONLY: list[dict[str, list[str]]] = [{"jwt": [ADMIN]}]
REPORT_OR_ADMIN: list[dict[str, list[str]]] = [{"jwt": [REPORT]}, {"jwt": [ADMIN]}]

#: On whatever leaves a function, unless it says something else: an answer is what its type says and no page to be run or framed,
#: links from it tell nobody where they stood, only the one who asked keeps it, and whoever came by TLS comes by TLS again.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
}


def _page_size(value: object) -> object:
    """Keep pydantic from taking " 5", "+5", "1_0" and "5.0" for numbers."""
    if isinstance(value, str) and not re.fullmatch("[1-9][0-9]?|100", value):
        raise ValueError("expected a whole number from 1 to 100")
    return value


_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"

#: The learner in a path: a UUID, or `me` for the token's own.
UserId = Annotated[str, Path(pattern=f"^(me|{_UUID})$")]
#: The size of a page.
Limit = Annotated[int, BeforeValidator(_page_size), Query(json_schema_extra={"minimum": 1, "maximum": 100})]
#: Where a page begins: `next_cursor` of the page before.
Cursor = Annotated[str | None, Query(max_length=500)]


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[dict[Literal["pointer", "detail"], str]] | None = None


class Caller(NamedTuple):
    """Whom the gateway let in, by the claims that it has verified."""

    user_id: UUID
    scopes: frozenset[str]

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.scopes


class _JsonOnly(APIGatewayHttpResolver):
    """A resolver that takes JSON alone, by whatever spelling of its media type."""

    def resolve(self, event: Mapping[str, Any], context: Any) -> dict[str, Any]:
        # Powertools heeds the case of the media type, and would parse forms and multipart bodies as well.
        headers: dict[str, str] = event.get("headers") or {}
        is_json = headers.get("content-type", "").split(";")[0].strip().lower() in ("", "application/json")
        media_type = "application/json" if is_json or not event.get("body") else "application/octet-stream"
        if headers.get("content-type") != media_type:
            event = {**event, "headers": headers | {"content-type": media_type}}
        with db.answering_within(context.get_remaining_time_in_millis()):
            answer = super().resolve(event, context)
        return {**answer, "headers": _HEADERS | answer["headers"]}


def resolver(*, exact_numbers: bool = False) -> APIGatewayHttpResolver:
    """A resolver that validates, authorises by each route's `security`, and answers every error as a problem document.

    With `exact_numbers`, numbers with a fraction in a body are parsed as Decimal rather than float.
    """
    app = _JsonOnly(enable_validation=True, json_body_deserializer=partial(_body, exact_numbers=exact_numbers))

    def refuse(error: ServiceError) -> Response[str]:
        # The body is parsed before any middleware runs; who may not call at all is told that first.
        try:
            _authorise(app)
        except (Forbidden, PathNotFound) as refusal:
            error = refusal
        return _problem(app, error)

    @app.exception_handler(ServiceError)
    def _(error: ServiceError) -> Response[str]:
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    def _(error: RequestValidationError) -> Response[str]:
        return refuse(Invalid(*(Flaw(_place(e["loc"]), explain(e)) for e in error.errors())))

    @app.exception_handler(RequestUnsupportedContentType)
    def _(_error: RequestUnsupportedContentType) -> Response[str]:
        return refuse(UnsupportedMediaType())

    @app.exception_handler([UnicodeDecodeError, binascii.Error])
    def _(_error: UnicodeDecodeError | binascii.Error) -> Response[str]:
        # The gateway hands over in base64 what it takes for binary; nothing else here is decoded from bytes.
        return refuse(Malformed("The body is not in UTF-8."))

    @app.exception_handler(NotFoundError)
    def _(_error: NotFoundError) -> Response[str]:
        return _problem(app, PathNotFound())

    def authorise(app: APIGatewayHttpResolver, next_middleware: Any) -> Response[str]:
        _authorise(app)
        return next_middleware(app)

    app.use([authorise])
    return app


def _body(text: str, *, exact_numbers: bool) -> Any:
    # A body of six megabytes can have a million flaws, and what names them would not fit into the function's memory.
    if len(text) > MAX_BODY_CHARACTERS:
        raise Invalid(Flaw("#", f"expected at most {MAX_BODY_CHARACTERS} characters"))
    content = parsing.loads(text, exact_numbers=exact_numbers, names_are_unique=True)
    if not isinstance(content, dict):
        raise Invalid(Flaw("#", "expected an object"))
    return content


def _place(location: tuple[int | str, ...]) -> str:
    """Where an invalid input stands: a JSON pointer into the body, or `query/limit`, `path/user_id`."""
    where, *rest = location
    return pointer(tuple(rest)) if where == "body" else "/".join(map(str, location))


def _authorise(app: APIGatewayHttpResolver) -> None:
    """Raise Forbidden unless the caller's token has one of the scopes that the route asks for."""
    route = app.context.get("_route")
    asked = [scope for requirement in (route.security if route else None) or [] for scope in requirement["jwt"]]
    if asked and not caller(app).scopes.intersection(asked):
        raise Forbidden(f"This needs the scope {' or '.join(asked)}.")


def caller(app: APIGatewayHttpResolver) -> Caller:
    """Who calls. The claims were verified by the gateway and can't be set by a client: it writes `requestContext` itself."""
    authorizer: dict[str, Any] | None = app.current_event["requestContext"].get("authorizer")
    if authorizer is None:
        # The gateway took the path for an unknown one, and asked for no token: it decodes paths after looking for the route.
        raise PathNotFound
    claims: dict[str, str] = authorizer["jwt"]["claims"]
    # The gateway writes an array as `[a b c]`, of which only the ones in the middle would be read as scopes.
    scope = "" if claims.get("scope", "").startswith("[") else claims.get("scope", "")
    try:
        return Caller(UUID(claims.get("sub", "")), frozenset(scope.split(" ")))
    except ValueError:
        raise Forbidden("The token's subject is no user id: expected a UUID.") from None


def learner(app: APIGatewayHttpResolver, user_id: str, otherwise: type[ServiceError]) -> UUID:
    """The learner that a path speaks of.

    Raises
    ------
    ServiceError
        `otherwise`, if the caller is neither that learner nor an administrator: as if there were nothing.
    """
    who = caller(app)
    target = who.user_id if user_id == "me" else UUID(user_id)
    if target != who.user_id and not who.is_admin:
        raise otherwise
    return target


def reply(model: BaseModel | str, status: int = 200) -> Response[str]:
    """A JSON answer, for the caller alone and so never cached."""
    body = model if isinstance(model, str) else model.model_dump_json()
    return Response(status, content_type="application/json", body=body)


def public_reply(
    app: APIGatewayHttpResolver,
    body: str | bytes,
    content_type: str = "application/json",
    *,
    status: int = 200,
    max_age: int = 60,
    headers: Mapping[str, str] | None = None,
) -> Response[Any]:
    """An answer for anyone, which caches may keep for `max_age` seconds; 304 without a body to whoever has it already.

    Any web page may read it, since verifiers run in browsers too.
    """
    content = body.encode() if isinstance(body, str) else body
    etag = f'"{hashlib.sha256(content_type.encode() + content).hexdigest()[:32]}"'
    fields: dict[str, str | list[str]] = {
        "Access-Control-Allow-Origin": "*",
        "Cache-Control": f"public, max-age={max_age}",
        "ETag": etag,
        **(headers or {}),
    }
    known = {tag.strip().removeprefix("W/") for tag in (app.current_event.headers.get("if-none-match") or "").split(",")}
    if status == 200 and (etag in known or "*" in known):
        return Response(304, headers=fields)
    return Response(status, content_type=content_type, body=body, headers=fields)


def preferred(accept: str | None, offers: Sequence[str]) -> str:
    """Which of the media types on offer an Accept header asks for (RFC 9110, section 12.5.1).

    Of those that weigh the same, one that is named stands before one that a wildcard covers, and what is named first before
    what is named later. The first offer is for whoever asks for anything, for nothing, or for something else.
    """
    asked = parsing.weights(accept)
    order = list(asked)

    def rank(offer: str) -> tuple[float, int]:
        weight = asked.get(offer, asked.get(f"{offer.split('/')[0]}/*", asked.get("*/*", 0)))
        return weight, -order.index(offer) if weight > 0 and offer in asked else -len(order)

    return max(offers, key=rank)


def _problem(app: APIGatewayHttpResolver, error: ServiceError) -> Response[str]:
    document: dict[str, Any] = {
        "type": f"urn:problem-type:learner-progress:{error.code()}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        # The gateway decodes the path, and an instance is a URI reference.
        "instance": quote(app.current_event.raw_path, safe="/:@!$&'()*+,;=~"),
    }
    if isinstance(error, Invalid):
        document["errors"] = [flaw._asdict() for flaw in error.flaws]
    headers: dict[str, Any] = {}
    if error.is_public and app.current_event.http_method == "GET":
        # As in `public_reply`: a verifier in a browser has to read it, and whoever guesses asks again and again.
        headers = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Retry-After", "Vary": "Accept"}
        if error.status == 404:
            headers["Cache-Control"] = "public, max-age=60"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = "5"
    # Powertools serialises only application/json, so the body is serialised here.
    return Response(error.status, content_type="application/problem+json", body=json.dumps(document), headers=headers)


def encode_cursor(where: str, *key: Any) -> str:
    """The key of a page's last row as an opaque cursor that fits only the list `where`."""
    text = json.dumps([where, *map(str, key)], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, where: str, *types: Any) -> Any:
    """The key in a cursor of the list `where`, parsed to `types`; None for the first page.

    Raises
    ------
    Invalid
        It is no cursor of this list.
    """
    if cursor is None:
        return None
    try:
        content = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not isinstance(content, list) or len(content) != len(types) + 1 or content[0] != where:
            raise ValueError
        return tuple(TypeAdapter(t).validate_python(value) for t, value in zip(types, content[1:], strict=True))
    except (ValueError, binascii.Error, RecursionError):
        raise Invalid(Flaw("query/cursor", "expected next_cursor of this list, unchanged")) from None


def answer(model: Any = None, description: str = "OK", also: Sequence[str] = ()) -> Any:
    """OpenAPI's description of an answer: as JSON by a model, if there is one, and in what other media types."""
    content: dict[str, Any] = {media_type: {} for media_type in also}
    if model is not None:
        content["application/json"] = {"model": model}
    return {"description": description, "content": content}


def problems(*statuses: int) -> dict[int, Any]:
    """OpenAPI's `responses` for these statuses, beside 403 and 422, which nearly every route has."""
    content = {"application/problem+json": {"model": Problem}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
