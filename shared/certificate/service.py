"""Making what certificates consist of beyond their row: document, signed credential, and the status lists that tell of them.

Nobody waits for it. It is done when something happened to a certificate, and every minute for whatever was left over: each part
of each certificate for itself, so that a store or a key that is away holds up nothing else.
"""

from collections.abc import Callable, Container
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
# Typst does not say that it may be used by several threads.
_drawing = Lock()


def finish(remaining_milliseconds: Callable[[], int]) -> None:
    """Make what is due, until nothing is left or the invocation's time is."""
    making = _Making()
    with ThreadPoolExecutor(_THREADS) as pool:
        while remaining_milliseconds() > _ENOUGH:
            lists, rows = db.run(making.lease)
            signed_now = {number for number, changes in lists.fetchall() if making.status_list(number, changes)}
            due = rows.fetchall()
            made = list(pool.map(lambda row: making.certificate(row, signed_now), due))
            if made:
                db.run(lambda conn: outstanding.save(conn, made))
            if len(due) < BATCH:
                break
    count("CertificatePartsFailed", len(making.failed))


class _Making:
    """One invocation's work: the keys that can sign, what failed, and what is not to be asked any more."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        # What did not answer is left alone until the next invocation, so that waiting for it doesn't use up this one.
        self._silent: set[str] = set()
        self._issuer = credential.did(settings.public_base_url())
        self.keys: dict[Algorithm, signing.Key] = {}
        named: list[tuple[Algorithm, str]] = [("Ed25519", settings.credential_key()), ("ES256", settings.credential_jwt_key())]
        for algorithm, setting in named:
            key = signing.key(setting, algorithm)
            if self._attempt(f"key for {algorithm}", lambda key=key: key.public_key):
                self.keys[algorithm] = key

    def lease(self, conn: db.Connection) -> tuple[Cursor[tuple[int, int]], Cursor[outstanding.Unfinished]]:
        """Publish the keys, and take status lists, if they can be signed, and certificates that are due."""
        for key in self.keys.values():
            outstanding.register_key(conn, signing.kid(key.public_key), key.algorithm, key.public_key)
        lists = outstanding.lease_status_lists(conn, nothing="Ed25519" not in self.keys)
        return lists, outstanding.lease(conn, BATCH)

    def status_list(self, number: int, changes: int) -> bool:
        """Sign a status list as it is now; whether it succeeded."""
        revoked = [index for (index,) in db.run(lambda conn: outstanding.revoked_indexes(conn, number)).fetchall()]
        now = datetime.now(UTC)
        unsigned = credential.build_status_list(number, revoked, settings.public_base_url(), now)
        signed = self._attempt("status list", lambda: self._signed(unsigned, self.keys["Ed25519"], now), str(number))
        if signed:
            db.run(lambda conn: outstanding.save_status_list(conn, number, changes, signed))
        return signed is not None

    def certificate(self, row: outstanding.Unfinished, signed_now: Container[int]) -> outstanding.Made:
        """What a certificate lacks, as far as it can be made now. Nothing is signed that leads to no status list."""
        has_list = row.has_list or row.status_entry // credential.STATUS_LIST_ENTRIES in signed_now
        ed25519, es256 = (self.keys.get(name) if has_list else None for name in ("Ed25519", "ES256"))
        pdf_url = signed = token = None
        uid = row.certificate_uid
        if row.pdf_url is None:
            pdf_url = self._attempt("document", lambda: _document(row), uid)
        if ed25519 and not row.has_credential:
            signed = self._attempt("credential", lambda: self._signed(_unsigned(row), ed25519, datetime.now(UTC)), uid)
        if es256 and not row.has_jwt:
            token = self._attempt("jwt", lambda: credential.jwt(_unsigned(row), es256, self._issuer), uid)
        return outstanding.Made(row.id, row.revision, pdf_url, signed, token)

    def _signed(self, unsigned: credential.Document, key: signing.Key, now: datetime) -> str:
        return credential.text(credential.sign(unsigned, key, self._issuer, now))

    def _attempt[T](self, part: str, make: Callable[[], T], of: str | None = None) -> T | None:
        """One part of the work; None if it failed, which is logged and counted, and tried again when its lease is over."""
        if part in self._silent:
            return None
        try:
            return make()
        except ClientError as error:
            logger.warning("not made, for AWS refused", part=part, of=of, reason=str(error))
        except BotoCoreError as error:
            self._silent.add(part)
            logger.warning("not made, for AWS does not answer", part=part, of=of, reason=str(error))
        except Exception as error:
            # Whatever is wrong with one certificate, the others are made. The message could hold the learner's name.
            trace = error.__traceback__
            while trace and trace.tb_next:
                trace = trace.tb_next
            where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else None
            logger.error("not made", part=part, of=of, error=type(error).__name__, where=where)
        self.failed.append(part)
        return None


def _document(row: outstanding.Unfinished) -> str:
    with _drawing:
        content = document.pdf(row.as_issued(), row.locale)
    url = storage.url(row.certificate_uid, row.revision)
    storage.put(url, row.certificate_uid, content)
    return url


def _unsigned(row: outstanding.Unfinished) -> credential.Document:
    return credential.build(
        row.as_issued(), row.course_version_id, row.locale, row.status_entry, row.status_index, settings.public_base_url()
    )
