"""Making what certificates consist of beyond their row: document, signed credential, and the status lists that tell of them.

Nobody waits for it. It is done when something happened to a certificate, and every minute for whatever was left over: each part
of each certificate for itself, so that a store or a key that is away holds up nothing else.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Lock

from botocore.exceptions import BotoCoreError, ClientError
from psycopg import Cursor

from shared import db, settings
from shared.certificate import credential, document, outstanding, signing, storage
from shared.certificate.models import Algorithm
from shared.observability import count, logger

#: How many certificates are leased at a time.
BATCH = 50
#: Milliseconds that must be left of an invocation for another batch.
_ENOUGH = 20_000
#: Certificates made side by side, since most of the time goes into waiting for S3 and KMS.
_THREADS = 8
type Keys = dict[Algorithm, signing.Key]

# Typst does not say that it may be used by several threads.
_drawing = Lock()


def finish(remaining_milliseconds: Callable[[], int]) -> None:
    """Make what is due, until nothing is left or the invocation's time is."""
    keys = _keys()
    with ThreadPoolExecutor(_THREADS) as pool:
        while remaining_milliseconds() > _ENOUGH:

            def lease(conn: db.Connection) -> tuple[Cursor[tuple[int, int]], Cursor[outstanding.Unfinished]]:
                for key in keys.values():
                    outstanding.register_key(conn, signing.kid(key.public_key), key.algorithm, key.public_key)
                return outstanding.lease_status_lists(conn), outstanding.lease(conn, BATCH)

            lists, rows = db.run(lease)
            for number, changes in lists.fetchall():
                _sign_status_list(number, changes, keys)
            due = rows.fetchall()
            made = list(pool.map(lambda row: _make(row, keys), due))
            if made:
                db.run(lambda conn: outstanding.save(conn, made))
            if len(due) < BATCH:
                return


def _keys() -> Keys:
    """The keys that can sign now, each under its algorithm."""
    keys: Keys = {}
    settings_of: list[tuple[Algorithm, str]] = [
        ("Ed25519", settings.credential_key()),
        ("ES256", settings.credential_jwt_key()),
    ]
    for algorithm, setting in settings_of:
        key = signing.key(setting, algorithm)
        if _attempt(f"key for {algorithm}", lambda key=key: key.public_key):
            keys[algorithm] = key
    return keys


def _make(row: outstanding.Unfinished, keys: Keys) -> outstanding.Made:
    """What a certificate lacks, as far as it can be made now."""
    uid = row.certificate_uid
    ed25519, es256 = keys.get("Ed25519"), keys.get("ES256")
    return outstanding.Made(
        row.id,
        row.revision,
        None if row.pdf_url else _attempt("document", lambda: _document(row), uid),
        None if row.has_credential or not ed25519 else _attempt("credential", lambda: _credential(row, ed25519), uid),
        None if row.has_jwt or not es256 else _attempt("jwt", lambda: credential.jwt(_unsigned(row), es256, _issuer()), uid),
    )


def _document(row: outstanding.Unfinished) -> str:
    with _drawing:
        content = document.pdf(row.as_issued(), row.locale)
    url = storage.url(row.certificate_uid, row.revision)
    storage.put(url, row.certificate_uid, content)
    return url


def _credential(row: outstanding.Unfinished, key: signing.Key) -> str:
    return credential.text(credential.sign(_unsigned(row), key, _issuer(), datetime.now(UTC)))


def _unsigned(row: outstanding.Unfinished) -> credential.Document:
    return credential.build(
        row.as_issued(), row.course_version_id, row.locale, row.status_entry, row.status_index, settings.public_base_url()
    )


def _sign_status_list(number: int, changes: int, keys: Keys) -> None:
    key = keys.get("Ed25519")
    if key is None:
        return
    revoked = [index for (index,) in db.run(lambda conn: outstanding.revoked_indexes(conn, number)).fetchall()]
    now = datetime.now(UTC)
    unsigned = credential.build_status_list(number, revoked, settings.public_base_url(), now)
    signed = _attempt("status list", lambda: credential.text(credential.sign(unsigned, key, _issuer(), now)), str(number))
    if signed:
        db.run(lambda conn: outstanding.save_status_list(conn, number, changes, signed))


def _issuer() -> str:
    return credential.did(settings.public_base_url())


def _attempt[T](part: str, make: Callable[[], T], of: str | None = None) -> T | None:
    """One part of the work; None if it failed, which is logged and counted, and tried again when its lease is over."""
    try:
        made = make()
    except (BotoCoreError, ClientError) as error:
        logger.warning("not made, for AWS did not let us", part=part, of=of, reason=str(error))
    except Exception as error:
        # Whatever is wrong with one certificate, the others are made. The message could hold the learner's name.
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else None
        logger.error("not made", part=part, of=of, error=type(error).__name__, where=where)
    else:
        return made
    count("CertificatePartsFailed")
    return None
