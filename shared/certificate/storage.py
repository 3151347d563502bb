"""Certificates' documents in S3. Nothing here is loaded before it is used: boto3 takes a quarter of a second to import."""

from functools import cache
from typing import Any

from shared import settings

#: Seconds for which a link to a document opens it.
LINK_SECONDS = 300


def url(certificate_uid: str, revision: int) -> str:
    """Where the document of a certificate's snapshot is kept, as it stands in `pdf_url`."""
    return f"s3://{settings.certificate_bucket()}/certificates/{certificate_uid}/{revision}.pdf"


def put(url: str, certificate_uid: str, document: bytes) -> None:
    """Store a document; once more stores the same. Raises what boto3 raises."""
    bucket, key = _place(url)
    _s3().put_object(
        Bucket=bucket,
        Key=key,
        Body=document,
        ContentType="application/pdf",
        ContentDisposition=f'inline; filename="certificate-{certificate_uid}.pdf"',
    )


def exists(url: str) -> bool:
    """Whether a document is still there. Raises what boto3 raises."""
    from botocore.exceptions import ClientError

    bucket, key = _place(url)
    try:
        _s3().head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
            return False
        raise
    return True


def link(url: str) -> str:
    """A link that opens a document for `LINK_SECONDS`, whoever has it. Signed here, without asking AWS."""
    bucket, key = _place(url)
    return _s3().generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=LINK_SECONDS)


def _place(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


@cache
def _s3() -> Any:
    import boto3
    from botocore.config import Config

    # What does not answer at once is tried again later, or the document is made on the spot.
    config = Config(
        connect_timeout=1,
        read_timeout=2,
        # Once more, since a connection that was kept may have been closed meanwhile.
        retries={"mode": "standard", "total_max_attempts": 2},
        # A bucket is addressed in its own region: the global address would redirect, and a signature holds for one host only.
        s3={"addressing_style": "virtual"},
        signature_version="s3v4",
        max_pool_connections=20,
    )
    return boto3.client("s3", config=config)
