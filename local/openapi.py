"""The OpenAPI document of the whole HTTP API, put together from the functions' resolvers: `python -m local.openapi [--check]`."""

import argparse
import importlib
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from aws_lambda_powertools.event_handler.openapi.models import HTTPBearer, SecurityScheme

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "openapi.json"
FUNCTIONS = ("enrollment_api", "progress_api", "quiz_api", "certificate_api", "report_api")

SECURITY: dict[str, SecurityScheme] = {"jwt": HTTPBearer(bearerFormat="JWT")}

DESCRIPTION = """Who is enrolled, how far are they, did they pass, can they prove it.

Callers carry a bearer JWT of the IAM service, whose `sub` is the `user_id`. `me` in a path is the token's own learner. Errors are
problem documents (RFC 9457), but for what the gateway itself refuses: 401, 413 and 429 are its own `{"message": …}`."""


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    merged: dict[str, Any] = {}
    for name in FUNCTIONS:
        app = importlib.import_module(f"functions.{name}.app").app
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        part = json.loads(
            app.get_openapi_json_schema(title="Learner Progress & Certification", version=version, security_schemes=SECURITY)
        )
        if not merged:
            merged = part
            continue
        merged["paths"] |= part["paths"]
        merged["components"]["schemas"] |= part["components"]["schemas"]
    for operations in merged["paths"].values():
        for operation in operations.values():
            _complete(operation)
    for unused in ("HTTPValidationError", "ResponseValidationError", "ValidationError"):
        merged["components"]["schemas"].pop(unused, None)
    merged["info"]["description"] = DESCRIPTION
    merged["servers"] = [{"url": "/"}]
    merged["components"]["schemas"] = dict(sorted(merged["components"]["schemas"].items()))
    merged["paths"] = dict(sorted(merged["paths"].items()))
    return merged


def _complete(operation: dict[str, Any]) -> None:
    """Add the answers that come from outside a route: of the gateway, of parsing the body, of a database that is away."""
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses = operation["responses"]
    if "application/problem+json" not in responses["422"].get("content", {}):
        del responses["422"]
    if operation.get("security"):
        message = {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]}
        responses["401"] = {"description": "No or no good token", "content": {"application/json": {"schema": message}}}
    if "requestBody" in operation:
        # A body may be missing where it is optional, but null is none.
        media = operation["requestBody"]["content"]["application/json"]
        media["schema"] = next((s for s in media["schema"].get("anyOf", []) if s != {"type": "null"}), media["schema"])
        responses["400"] = {"description": "The body is no JSON", "content": problem}
        responses["415"] = {"description": "The body is not sent as JSON", "content": problem}
    responses["503"] = {"description": "The database cannot be reached", "content": problem}
    operation["responses"] = dict(sorted(responses.items()))


def main() -> None:
    """Write the document, or with --check fail if the committed one is another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare with docs/openapi.json")
    text = json.dumps(document(), indent=2, ensure_ascii=False) + "\n"
    if not parser.parse_args().check:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(text)
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != text:
        sys.exit("docs/openapi.json differs from the code: run `make openapi` and commit it")


if __name__ == "__main__":
    main()
