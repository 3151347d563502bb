"""The SQL of what is still to be made: certificates without document or credential, and status lists that changed.

Whatever is due is leased, which also is its next try: a process that died or failed holds it back for a minute, and longer
when it fails again.
"""

from dataclasses import astuple, dataclass
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import class_row

from shared.certificate.models import Algorithm
from shared.certificate.store import Row
from shared.db import Connection, columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished(Row):
    """A certificate that lacks something, leased to the caller."""

    revision: int
    status_entry: int
    status_index: int
    pdf_url: str | None
    has_credential: bool
    has_jwt: bool
    has_list: bool
    """Whether its status list is signed: a credential that leads to none is refused."""


def lease(conn: Connection, limit: int) -> Cursor[Unfinished]:
    """Take up to `limit` certificates that are due, the longest waiting first; nobody else gets them meanwhile."""
    return conn.cursor(row_factory=class_row(Unfinished)).execute(
        """
        WITH due AS MATERIALIZED (
            SELECT id FROM certificates WHERE due_at <= now() ORDER BY due_at LIMIT %s FOR NO KEY UPDATE SKIP LOCKED
        )
        UPDATE certificates c
        SET due_at = now() + make_interval(secs => 60 * 2 ^ least(c.tries, 2)), tries = c.tries + 1
        FROM due WHERE c.id = due.id
        RETURNING c.id, c.user_id, c.course_version_id, c.certificate_uid, c.issued_at, c.expires_at, c.revoked_at,
            c.revocation_reason, c.metadata, c.revision, c.status_entry, c.pdf_url, c.credential IS NOT NULL AS has_credential,
            c.credential_jwt IS NOT NULL AS has_jwt, EXISTS (
                SELECT FROM status_lists l WHERE l.number = c.status_entry / 131072 AND l.credential IS NOT NULL
            ) AS has_list,
            status_index(c.status_entry, (SELECT secret FROM status_list_secret)) AS status_index,
            CASE WHEN c.revoked_at IS NOT NULL THEN 'revoked' WHEN c.expires_at <= now() THEN 'expired' ELSE 'valid' END AS status
        """,
        [limit],
    )


@dataclass(frozen=True, slots=True)
class Made:
    """What was made for a snapshot of a certificate; None: it has that already, or it failed."""

    id: UUID
    revision: int
    pdf_url: str | None
    credential: str | None
    credential_jwt: str | None


def save(conn: Connection, made: list[Made]) -> None:
    """Keep what was made. A certificate that has all is finished; one that was reissued meanwhile is left as it is."""
    conn.execute(
        """
        UPDATE certificates c
        SET pdf_url = coalesce(m.pdf_url, c.pdf_url), credential = coalesce(m.credential, c.credential),
            credential_jwt = coalesce(m.credential_jwt, c.credential_jwt),
            due_at = CASE WHEN num_nulls(
                coalesce(m.pdf_url, c.pdf_url), coalesce(m.credential, c.credential), coalesce(m.credential_jwt, c.credential_jwt)
            ) > 0 THEN c.due_at END
        FROM unnest(%b::uuid[], %b::int[], %b::text[], %b::text[], %b::text[])
            AS m (id, revision, pdf_url, credential, credential_jwt)
        WHERE c.id = m.id AND c.revision = m.revision
        """,
        columns([astuple(m) for m in made], 5),
    )


def register_key(conn: Connection, kid: str, algorithm: Algorithm, public_key: bytes) -> None:
    """Publish a key before the first credential that it signs."""
    conn.execute(
        "INSERT INTO signing_keys (kid, algorithm, public_key) VALUES (%s, %s, %b) ON CONFLICT DO NOTHING",
        [kid, algorithm, public_key],
    )


def lease_status_lists(conn: Connection, *, nothing: bool = False) -> Cursor[tuple[int, int]]:
    """Take the status lists that are due, for 30 seconds: the number of each, and its changes so far. Or take nothing."""
    return conn.execute(
        """
        UPDATE status_lists SET due_at = now() + interval '30 seconds'
        WHERE number IN (SELECT number FROM status_lists WHERE due_at <= now() AND NOT %s FOR NO KEY UPDATE SKIP LOCKED)
        RETURNING number, changes
        """,
        [nothing],
    )


def revoked_indexes(conn: Connection, number: int) -> Cursor[tuple[int]]:
    """Which entries of a status list are set: those of revoked certificates and of snapshots that were replaced.

    To be read in a transaction after the one that read the list's changes: then it holds what they stand for, or more.
    """
    return conn.execute(
        """
        SELECT status_index(status_entry, (SELECT secret FROM status_list_secret)) FROM (
            SELECT status_entry FROM certificates WHERE revoked_at IS NOT NULL
            UNION ALL
            SELECT status_entry FROM certificate_snapshots
        ) gone
        WHERE status_entry >= %(first)s AND status_entry < %(first)s + 131072
        """,
        {"first": number * 131_072},
    )


def save_status_list(conn: Connection, number: int, changes: int, credential: str) -> None:
    """Keep a signed status list, unless a later one was signed meanwhile; if it has changed since, it stays due."""
    conn.execute(
        """
        UPDATE status_lists
        SET credential = %(credential)s, signed_changes = %(changes)s,
            due_at = CASE WHEN changes > %(changes)s THEN due_at END
        WHERE number = %(number)s AND (signed_changes IS NULL OR signed_changes <= %(changes)s)
        """,
        {"number": number, "changes": changes, "credential": credential},
    )
