"""The SQL of certificates."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import class_row

from shared import settings, trace
from shared.certificate.models import Algorithm, Certificate, CertificateStatus, OwnCertificate
from shared.db import Connection, columns


def lock_learners(conn: Connection, user_ids: Collection[UUID]) -> None:
    """Make sure of a row for each of these learners, and wait for whoever is just writing one.

    So either a certificate's issuance sees the learner's name, or the message with the name, handled after it, sees the
    completed enrolment that waits for it. Without that the two could miss each other.
    """
    conn.execute(
        """
        INSERT INTO learners AS l (user_id) SELECT u.user_id FROM unnest(%b::uuid[]) AS u (user_id) ORDER BY u.user_id
        ON CONFLICT (user_id) DO UPDATE SET user_id = excluded.user_id WHERE FALSE
        """,
        [sorted(user_ids)],
    )


def issue(conn: Connection, enrollments: Sequence[tuple[UUID, UUID, str, str | None]]) -> Cursor[tuple[UUID, UUID, bool]]:
    """Issue certificates, each with the uid drawn for it, where they are due and there is none yet.

    The last of each is the traceparent of the event that asks for it, if that has one.

    Due: the enrolment is completed, its course version gives certificates, and the learner's name is known. A certificate
    that a later completion renews keeps its uid, and what it said before is kept. Lock the learners and the enrolments
    before. Gives the keys of those issued or renewed, with true, and with false those without an enrolment.
    """
    return conn.execute(
        """
        WITH i AS (
            SELECT * FROM unnest(%b::uuid[], %b::uuid[], %b::text[], %b::text[])
                AS i (user_id, course_version_id, certificate_uid, traceparent)
        ), due AS MATERIALIZED (
            SELECT e.user_id, e.course_version_id, i.certificate_uid, certificate_metadata(e) AS metadata,
                now() + make_interval(days => v.certificate_valid_for_days) AS expires_at,
                next_status_entry() AS status_entry
            FROM i
            JOIN enrollments e ON e.user_id = i.user_id AND e.course_version_id = i.course_version_id AND e.status = 'completed'
            JOIN course_versions v ON v.course_version_id = e.course_version_id AND v.certificate_enabled
            JOIN learners l ON l.user_id = e.user_id AND l.name IS NOT NULL
            LEFT JOIN certificates c ON c.user_id = e.user_id AND c.course_version_id = e.course_version_id
            WHERE c.id IS NULL OR is_renewed_by(c, e.completed_at)
        ), issued AS (
            INSERT INTO certificates AS c (user_id, course_version_id, certificate_uid, expires_at, metadata, status_entry)
            SELECT user_id, course_version_id, certificate_uid, expires_at, metadata, status_entry
            FROM due ORDER BY user_id, course_version_id
            ON CONFLICT (user_id, course_version_id) DO UPDATE
            SET issued_at = now(), expires_at = excluded.expires_at, metadata = excluded.metadata, revision = c.revision + 1,
                status_entry = excluded.status_entry, pdf_url = NULL, credential = NULL, credential_jwt = NULL, due_at = now(),
                tries = 0, revoked_at = NULL, revocation_reason = NULL, revoked_by = NULL, completion_withdrawn = FALSE
            RETURNING c.id, c.user_id, c.course_version_id, c.certificate_uid, c.issued_at
        ), renewed AS (
            INSERT INTO certificate_snapshots (
                certificate_id, issued_at, expires_at, pdf_url, metadata, revision, status_entry, credential, credential_jwt
            )
            SELECT old.id, old.issued_at, old.expires_at, old.pdf_url, old.metadata, old.revision, old.status_entry,
                old.credential, old.credential_jwt
            FROM certificates old JOIN issued c ON c.id = old.id
            RETURNING certificate_id
        ), counted AS (
            UPDATE enrollments e SET sequence = e.sequence + 1
            FROM issued c WHERE e.user_id = c.user_id AND e.course_version_id = c.course_version_id
            RETURNING e.user_id, e.course_version_id, e.status, e.sequence
        ), told AS (
            INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
            SELECT 'bus', CASE WHEN c.id IN (SELECT certificate_id FROM renewed) THEN 'certificate.reissued'
                ELSE 'certificate.issued' END, c.issued_at, jsonb_build_object(
                'user_id', c.user_id, 'course_version_id', c.course_version_id, 'certificate_uid', c.certificate_uid,
                'status', 'valid', 'sequence', n.sequence
            ), coalesce(i.traceparent, %s::text)
            FROM issued c
            JOIN counted n ON n.user_id = c.user_id AND n.course_version_id = c.course_version_id
            JOIN i ON i.user_id = c.user_id AND i.course_version_id = c.course_version_id
        )
        SELECT user_id, course_version_id, TRUE FROM issued
        UNION ALL
        SELECT i.user_id, i.course_version_id, FALSE FROM i
        WHERE NOT EXISTS (
            SELECT FROM enrollments e WHERE e.user_id = i.user_id AND e.course_version_id = i.course_version_id
        )
        """,
        [*columns(enrollments, 4), trace.current()],
        binary=True,
    )


def request_missing(conn: Connection, learners: Mapping[UUID, str | None] | None) -> None:
    """Ask for the certificates that completed enrolments of these learners (None: of all) lack, or that they renew.

    Each learner stands with the traceparent of the event that asks, if that has one.
    """
    conn.execute(
        """
        INSERT INTO outbox (destination, queue, type, occurred_at, data, traceparent)
        SELECT 'queue', 'certificate', 'enrollment.completed', e.completed_at, jsonb_build_object(
            'user_id', e.user_id, 'course_version_id', e.course_version_id, 'status', 'completed',
            'completed_at', rfc3339(e.completed_at), 'sequence', e.sequence
        ), coalesce(u.traceparent, %(traceparent)s::text)
        FROM enrollments e
        JOIN course_versions v ON v.course_version_id = e.course_version_id AND v.certificate_enabled
        JOIN learners l ON l.user_id = e.user_id AND l.name IS NOT NULL
        LEFT JOIN unnest(%(users)b::uuid[], %(traceparents)b::text[]) AS u (user_id, traceparent) ON u.user_id = e.user_id
        WHERE (%(users)b::uuid[] IS NULL OR e.user_id = ANY(%(users)b::uuid[])) AND e.status = 'completed' AND NOT EXISTS (
            SELECT FROM certificates c
            WHERE c.user_id = e.user_id AND c.course_version_id = e.course_version_id AND NOT is_renewed_by(c, e.completed_at)
        )
        """,
        {
            "users": None if learners is None else list(learners),
            "traceparents": None if learners is None else list(learners.values()),
            "traceparent": trace.current(),
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the certificates' table with its status by the database's clock."""

    id: UUID
    user_id: UUID
    course_version_id: UUID
    certificate_uid: str
    status: CertificateStatus
    issued_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    revocation_reason: str | None
    metadata: dict[str, Any]

    def public(self) -> Certificate:
        return Certificate.model_validate(self._values())

    def own(self) -> OwnCertificate:
        return OwnCertificate.model_validate(self._values())

    def as_issued(self) -> Certificate:
        """What its document and its credential say, whatever becomes of it: their reader asks for its state."""
        return self.public().model_copy(update={"status": "valid", "revoked_at": None, "revocation_reason": None})

    @property
    def locale(self) -> str | None:
        """The learner's locale when the certificate was issued (BCP 47)."""
        return self.metadata["locale"]

    def _values(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in Row.__slots__}
        return self.metadata | values | {"url": f"{settings.public_base_url()}/certificates/{self.certificate_uid}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown(Row):
    """A certificate with what was made of it; None: not yet."""

    pdf_url: str | None
    credential: str | None
    credential_jwt: str | None


def by_uid(conn: Connection, certificate_uid: str) -> Cursor[Shown]:
    """The certificate with this uid."""
    return conn.cursor(row_factory=class_row(Shown)).execute(
        """
        SELECT id, user_id, course_version_id, certificate_uid, issued_at, expires_at, revoked_at, revocation_reason, metadata,
            pdf_url, credential, credential_jwt,
            CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'valid' END AS status
        FROM certificates WHERE certificate_uid = %s
        """,
        [certificate_uid],
    )


def of_enrollment(conn: Connection, user_id: UUID, course_version_id: UUID) -> Cursor[Row]:
    """The certificate of an enrolment."""
    return conn.cursor(row_factory=class_row(Row)).execute(
        """
        SELECT id, user_id, course_version_id, certificate_uid, issued_at, expires_at, revoked_at, revocation_reason, metadata,
            CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'valid' END AS status
        FROM certificates WHERE user_id = %b AND course_version_id = %b
        """,
        [user_id, course_version_id],
    )


def of_learner(conn: Connection, user_id: UUID, after: tuple[datetime, UUID] | None, limit: int) -> Cursor[Row]:
    """A learner's certificates in the order in which they were issued, from behind the key `after`."""
    return conn.cursor(row_factory=class_row(Row)).execute(
        """
        SELECT id, user_id, course_version_id, certificate_uid, issued_at, expires_at, revoked_at, revocation_reason, metadata,
            CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'valid' END AS status
        FROM certificates
        WHERE user_id = %(user_id)b AND (%(at)b::timestamptz IS NULL OR (issued_at, id) > (%(at)b::timestamptz, %(id)b::uuid))
        ORDER BY issued_at, id LIMIT %(limit)s
        """,
        {"user_id": user_id, "at": after and after[0], "id": after and after[1], "limit": limit},
    )


@dataclass(frozen=True, slots=True)
class Needed:
    """One thing that a certificate needs; `fulfilled_at` None: it is still missing."""

    kind: str
    id: UUID | None
    title: str
    fulfilled_at: datetime | None
    waived: bool


def requirements(conn: Connection, user_id: UUID, course_version_id: UUID) -> Cursor[Needed]:
    """What a certificate needs of an enrolment, in the order of the course; the first row is the enrolment itself.

    No row: there is no such enrolment.
    """
    return conn.cursor(row_factory=class_row(Needed)).execute(
        """
        SELECT kind, id, title, fulfilled_at, waived FROM (
            SELECT 0 AS rank, 0 AS position, e.status AS kind, NULL::uuid AS id, v.title, e.completed_at AS fulfilled_at,
                FALSE AS waived
            FROM enrollments e JOIN course_versions v ON v.course_version_id = e.course_version_id
            WHERE e.user_id = %(user_id)b AND e.course_version_id = %(course_version_id)b
            UNION ALL
            SELECT CASE i.kind WHEN 'lesson' THEN 1 ELSE 2 END, i.position, i.kind, i.id, i.title, i.fulfilled_at,
                i.waived_at IS NOT NULL
            FROM enrollment_items i
            WHERE i.user_id = %(user_id)b AND i.course_version_id = %(course_version_id)b AND i.required
            UNION ALL
            SELECT 3, 0, CASE WHEN v.certificate_enabled THEN 'learner_name' ELSE 'disabled' END, NULL, '',
                CASE WHEN l.name IS NOT NULL THEN now() END, FALSE
            FROM enrollments e
            JOIN course_versions v ON v.course_version_id = e.course_version_id
            LEFT JOIN learners l ON l.user_id = e.user_id
            WHERE e.user_id = %(user_id)b AND e.course_version_id = %(course_version_id)b
        ) needed
        ORDER BY rank, position
        """,
        {"user_id": user_id, "course_version_id": course_version_id},
    )


def lock_enrollment(conn: Connection, certificate_uid: str) -> None:
    """Lock the enrolment of a certificate, as everyone does before they lock a certificate."""
    conn.execute(
        """
        SELECT FROM enrollments
        WHERE (user_id, course_version_id) = (SELECT user_id, course_version_id FROM certificates WHERE certificate_uid = %s)
        FOR NO KEY UPDATE
        """,
        [certificate_uid],
    )


def revoke(
    conn: Connection,
    certificate_uid: str | None = None,
    *,
    act: UUID,
    reason: str,
    actor: str,
    of_revoked: tuple[UUID, UUID] | None = None,
) -> None:
    """Revoke a certificate, named by its uid or by its enrolment if that is revoked, and publish it.

    One that was revoked before keeps its first reason, unless that was only that the completion had been taken back. `act` is
    the id in the history: here and below, what is there already is not done again.
    """
    conn.execute(
        """
        WITH revoked AS (
            UPDATE certificates c
            SET revoked_at = now(), revocation_reason = %(reason)s, revoked_by = %(actor)s, completion_withdrawn = FALSE
            FROM enrollments e
            WHERE e.user_id = c.user_id AND e.course_version_id = c.course_version_id
                AND NOT EXISTS (SELECT FROM enrollment_history WHERE id = %(act)b)
                AND (c.revoked_at IS NULL OR c.completion_withdrawn) AND (
                c.certificate_uid = %(uid)s OR c.user_id = %(user_id)b::uuid AND c.course_version_id = %(course_version_id)b::uuid
                AND e.status = 'revoked_by_admin'
            )
            RETURNING c.user_id, c.course_version_id, c.certificate_uid, c.revoked_at, c.revocation_reason
        ), counted AS (
            UPDATE enrollments e SET sequence = e.sequence + 1
            FROM revoked c WHERE e.user_id = c.user_id AND e.course_version_id = c.course_version_id
            RETURNING e.sequence, e.status
        ), history AS (
            INSERT INTO enrollment_history (
                id, user_id, course_version_id, type, from_status, to_status, occurred_at, actor, reason, details
            )
            SELECT %(act)b, c.user_id, c.course_version_id, 'certificate_revoked', n.status, n.status, now(), %(actor)s,
                %(reason)s, jsonb_build_object('certificate_uid', c.certificate_uid)
            FROM revoked c CROSS JOIN counted n
        )
        INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
        SELECT 'bus', 'certificate.revoked', c.revoked_at, jsonb_build_object(
            'user_id', c.user_id, 'course_version_id', c.course_version_id, 'certificate_uid', c.certificate_uid,
            'status', 'revoked', 'reason', c.revocation_reason, 'sequence', n.sequence
        ), %(traceparent)s::text
        FROM revoked c CROSS JOIN counted n
        """,
        {
            "act": act,
            "reason": reason,
            "actor": actor,
            "uid": certificate_uid,
            "user_id": of_revoked and of_revoked[0],
            "course_version_id": of_revoked and of_revoked[1],
            "traceparent": trace.current(),
        },
    )


def reinstate(conn: Connection, certificate_uid: str, *, act: UUID, reason: str, actor: str) -> None:
    """Lift the revocation of a certificate and publish it; one that is not revoked stays as it is."""
    conn.execute(
        """
        WITH reinstated AS (
            UPDATE certificates
            SET revoked_at = NULL, revocation_reason = NULL, revoked_by = NULL, completion_withdrawn = FALSE
            WHERE certificate_uid = %(uid)s AND revoked_at IS NOT NULL
                AND NOT EXISTS (SELECT FROM enrollment_history WHERE id = %(act)b)
            RETURNING user_id, course_version_id, certificate_uid,
                CASE WHEN expires_at <= now() THEN 'expired' ELSE 'valid' END AS status
        ), counted AS (
            UPDATE enrollments e SET sequence = e.sequence + 1
            FROM reinstated c WHERE e.user_id = c.user_id AND e.course_version_id = c.course_version_id
            RETURNING e.sequence, e.status
        ), history AS (
            INSERT INTO enrollment_history (
                id, user_id, course_version_id, type, from_status, to_status, occurred_at, actor, reason, details
            )
            SELECT %(act)b, c.user_id, c.course_version_id, 'certificate_reinstated', n.status, n.status, now(), %(actor)s,
                %(reason)s, jsonb_build_object('certificate_uid', c.certificate_uid)
            FROM reinstated c CROSS JOIN counted n
        )
        INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
        SELECT 'bus', 'certificate.reinstated', now(), jsonb_build_object(
            'user_id', c.user_id, 'course_version_id', c.course_version_id, 'certificate_uid', c.certificate_uid,
            'status', c.status, 'reason', %(reason)s::text, 'sequence', n.sequence
        ), %(traceparent)s::text
        FROM reinstated c CROSS JOIN counted n
        """,
        {"uid": certificate_uid, "act": act, "reason": reason, "actor": actor, "traceparent": trace.current()},
    )


def reissue(conn: Connection, certificate_uid: str, *, act: UUID, reason: str, actor: str) -> None:
    """Make a new snapshot of a certificate, with the learner's name as it is now, keep the old one, and publish it.

    Its uid, its date of issue, its expiry and a revocation stay. What the enrolment achieved is taken anew as well, unless it
    is not completed any more, or is by a later completion that renews the certificate.
    """
    conn.execute(
        """
        WITH fresh AS MATERIALIZED (
            SELECT c.id, next_status_entry() AS status_entry, c.metadata
                || CASE WHEN e.status = 'completed' AND NOT is_renewed_by(c, e.completed_at)
                    THEN certificate_metadata(e) ELSE '{}' END
                || jsonb_build_object(
                    'learner_name', coalesce(l.name, c.metadata ->> 'learner_name'),
                    'locale', coalesce(l.locale, c.metadata ->> 'locale')
                ) AS metadata
            FROM certificates c
            JOIN enrollments e ON e.user_id = c.user_id AND e.course_version_id = c.course_version_id
            LEFT JOIN learners l ON l.user_id = c.user_id
            WHERE c.certificate_uid = %(uid)s AND NOT EXISTS (SELECT FROM enrollment_history WHERE id = %(act)b)
        ), reissued AS (
            UPDATE certificates c
            SET metadata = fresh.metadata, revision = c.revision + 1, status_entry = fresh.status_entry, pdf_url = NULL,
                credential = NULL, credential_jwt = NULL, due_at = now(), tries = 0
            FROM fresh WHERE c.id = fresh.id
            RETURNING c.id, c.user_id, c.course_version_id, c.certificate_uid,
                CASE WHEN c.revoked_at IS NOT NULL THEN 'revoked' WHEN c.expires_at <= now() THEN 'expired' ELSE 'valid' END
                    AS status
        ), kept AS (
            INSERT INTO certificate_snapshots (
                certificate_id, issued_at, expires_at, pdf_url, metadata, revision, status_entry, credential, credential_jwt,
                actor, reason
            )
            SELECT old.id, old.issued_at, old.expires_at, old.pdf_url, old.metadata, old.revision, old.status_entry,
                old.credential, old.credential_jwt, %(actor)s, %(reason)s
            FROM certificates old JOIN reissued c ON c.id = old.id
        ), counted AS (
            UPDATE enrollments e SET sequence = e.sequence + 1
            FROM reissued c WHERE e.user_id = c.user_id AND e.course_version_id = c.course_version_id
            RETURNING e.sequence, e.status
        ), history AS (
            INSERT INTO enrollment_history (
                id, user_id, course_version_id, type, from_status, to_status, occurred_at, actor, reason, details
            )
            SELECT %(act)b, c.user_id, c.course_version_id, 'certificate_reissued', n.status, n.status, now(), %(actor)s,
                %(reason)s, jsonb_build_object('certificate_uid', c.certificate_uid)
            FROM reissued c CROSS JOIN counted n
        )
        INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
        SELECT 'bus', 'certificate.reissued', now(), jsonb_build_object(
            'user_id', c.user_id, 'course_version_id', c.course_version_id, 'certificate_uid', c.certificate_uid,
            'status', c.status, 'reason', %(reason)s::text, 'sequence', n.sequence
        ), %(traceparent)s::text
        FROM reissued c CROSS JOIN counted n
        """,
        {"uid": certificate_uid, "act": act, "reason": reason, "actor": actor, "traceparent": trace.current()},
    )


def document_is_gone(conn: Connection, certificate_id: UUID, pdf_url: str) -> None:
    """Have a document made again that is not in its place any more."""
    conn.execute(
        "UPDATE certificates SET pdf_url = NULL, due_at = now(), tries = 0 WHERE id = %b AND pdf_url = %s",
        [certificate_id, pdf_url],
    )


def signing_keys(conn: Connection) -> Cursor[tuple[Algorithm, bytes]]:
    """The public keys that credentials were ever signed by, the newest first: algorithm and SubjectPublicKeyInfo."""
    return conn.execute("SELECT algorithm, public_key FROM signing_keys ORDER BY created_at DESC, kid", binary=True)


def status_list(conn: Connection, number: int) -> Cursor[tuple[str]]:
    """The signed credential of a status list, once there is one."""
    return conn.execute("SELECT credential FROM status_lists WHERE number = %s AND credential IS NOT NULL", [number])
