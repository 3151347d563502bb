"""The token for logging in by IAM, held against what boto3 makes."""

from datetime import UTC, datetime

import botocore.auth
import botocore.session
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.iam import Credentials, token

HOST = "proxy.proxy-abcdefghijkl.eu-west-1.rds.amazonaws.com"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40),
    session_token=st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=80),
    moment=st.datetimes(datetime(2020, 1, 1), datetime(2099, 1, 1)),  # noqa: DTZ001 - As boto3 has it.
)
def test_it_equals_what_boto3_makes(
    user: str, secret: str, session_token: str | None, moment: datetime, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: moment)
    session = botocore.session.get_session()
    session.set_credentials("AKIDEXAMPLE", secret, session_token)
    expected = session.create_client("rds", region_name="eu-west-1").generate_db_auth_token(HOST, 5432, user)
    credentials = Credentials("AKIDEXAMPLE", secret, session_token, "eu-west-1")
    assert token(HOST, 5432, user, credentials, moment.replace(tzinfo=UTC)) == expected


def test_the_credentials_are_those_of_the_function(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "s", "SESSION_TOKEN": "t", "REGION": "eu-west-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    assert Credentials.of_this_function() == ("a", "s", "t", "eu-west-1")
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    assert Credentials.of_this_function().session_token is None
