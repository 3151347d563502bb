"""Stands before a function of the HTTP API in the SAM CLI's local API, which has no JWT authorizer, and does that one's part.

It reads the claims without checking the token: that is the gateway's work, and no part of what runs in the container.
"""

import base64
import json
from typing import Any

# In the container, where the function's own code is too.
from shared import entrypoint


def handler(event: dict[str, Any], context: Any) -> Any:
    """Put the claims of a bearer token where API Gateway puts them, unless they are there, and call the function."""
    headers: dict[str, str] = {name.lower(): value for name, value in event["headers"].items()}
    token = headers.get("authorization", "").removeprefix("Bearer ")
    if token and "authorizer" not in event["requestContext"]:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        # API Gateway hands on every claim as text.
        texts = {name: str(value) for name, value in claims.items()}
        event["requestContext"]["authorizer"] = {"jwt": {"claims": texts, "scopes": None}}
    return entrypoint.handler(event, context)
