"""The table of rights says what the template says, and no right on everything goes without its reason."""

import pytest

from local.policies import PolicyError, document
from local.template import PROJECT, Template

TEXT = (PROJECT / "template.yaml").read_text()


def changed(before: str, after: str) -> str:
    """The template with its first such place changed."""
    assert before in TEXT
    return TEXT.replace(before, after, 1)


def test_every_function_is_in_the_table(stack: Template) -> None:
    lines = document(TEXT).splitlines()
    assert [line.split("`")[1] for line in lines if "| FunctionPolicy" in line] == list(stack.functions)


@pytest.mark.parametrize(
    "comment",
    [
        "          # X-Ray knows no resources that could be named here.\n",
        "          # The function's code may not use them.\n",
        "          # To which queues is up to the relay's role.\n",
        "          # The queues that it is attached to.\n",
        "          # As for CredentialKey: this key alone, and IAM policies say who.\n",
    ],
)
def test_a_right_on_everything_needs_a_reason(comment: str) -> None:
    with pytest.raises(PolicyError, match="without a comment that says why"):
        document(changed(comment, ""))


def test_a_right_on_everything_of_one_kind_needs_a_reason_too() -> None:
    right = "Action: events:PutEvents\n                Resource: !"
    everything = "arn:${AWS::Partition}:events:${AWS::Region}:${AWS::AccountId}:event-bus/*"
    with pytest.raises(PolicyError, match=r"OutboxRelay has events:PutEvents on event-bus/\* without"):
        document(changed(f"{right}GetAtt EventBus.Arn", f"{right}Sub {everything}"))


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("Action: s3:GetObject", "Action: [s3:GetObject, s3:DeleteObject]", "`s3:GetObject`, `s3:DeleteObject`"),
        (
            "Action: events:PutEvents\n                Resource",
            "Action: events:PutRule\n                Resource",
            "`events:PutRule`",
        ),
        (
            "aws:SourceArn: !GetAtt CertificateRule.Arn",
            "aws:SourceArn: !GetAtt EventBus.Arn",
            "`aws:SourceArn ArnEquals EventBus`",
        ),
        ("aws:SecureTransport: false", "aws:SecureTransport: true", "`aws:SecureTransport Bool true`"),
    ],
)
def test_another_right_makes_another_table(before: str, after: str, line: str) -> None:
    assert line not in document(TEXT)
    assert line in document(changed(before, after))


def test_a_principal_that_it_does_not_know_is_refused() -> None:
    with pytest.raises(PolicyError, match="who is"):
        document(changed("Principal: {Service: events.amazonaws.com}", 'Principal: {AWS: "123456789012"}'))
