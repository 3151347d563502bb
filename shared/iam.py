"""Logging in to the database by IAM: a token instead of a password, good for the moment in which a connection is opened.

A token is a presigned URL without its scheme (Signature Version 4 with the parameters in the query,
https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.html). It is made here rather than by boto3, whose
import would cost each cold start a quarter of a second; a test holds it against what boto3 makes.
"""

import hashlib
import hmac
import os
from datetime import UTC, datetime
from typing import NamedTuple, Self
from urllib.parse import quote

#: Seconds for which a token opens connections; one that is open stays so.
LIFETIME_SECONDS = 900


class Credentials(NamedTuple):
    """What signs: Lambda keeps the credentials of a function's role in its environment."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None
    region: str

    @classmethod
    def of_this_function(cls) -> Self:
        """The credentials of this function's role. Raises KeyError outside of Lambda, unless they are set."""
        env = os.environ
        return cls(env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env.get("AWS_SESSION_TOKEN"), env["AWS_REGION"])


def token(host: str, port: int, user: str, credentials: Credentials, now: datetime | None = None) -> str:
    """The password with which `user` logs in to the proxy or cluster at an address."""
    moment = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/{credentials.region}/rds-db/aws4_request"
    parameters = {
        "Action": "connect",
        "DBUser": user,
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{credentials.access_key_id}/{scope}",
        "X-Amz-Date": moment,
        "X-Amz-Expires": str(LIFETIME_SECONDS),
        "X-Amz-SignedHeaders": "host",
    }
    if credentials.session_token:
        parameters["X-Amz-Security-Token"] = credentials.session_token
    query = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in parameters.items())
    ordered = "&".join(sorted(query.split("&")))
    nothing = hashlib.sha256(b"").hexdigest()
    request = f"GET\n/\n{ordered}\nhost:{host}:{port}\n\nhost\n{nothing}"
    to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_access_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    return f"{host}:{port}/?{query}&X-Amz-Signature={signature}"
