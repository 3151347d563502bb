-- A certificate is one for each learner and course version. Where the course is completed again after it has expired, it is
-- renewed, and what it said before is kept.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

-- True: it was revoked because the completion that it attests was taken back. Completing again makes it valid again.
ALTER TABLE certificates ADD COLUMN completion_withdrawn boolean NOT NULL DEFAULT FALSE;

-- What a certificate said before it was renewed.
CREATE TABLE certificate_snapshots (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    certificate_id uuid NOT NULL REFERENCES certificates,
    issued_at timestamptz NOT NULL,
    expires_at timestamptz,
    pdf_url text,
    metadata jsonb NOT NULL,
    replaced_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX certificate_snapshots_certificate_idx ON certificate_snapshots (certificate_id);

-- Whether a certificate is renewed by a completion at this time: the one that it attests was taken back, or the certificate
-- had expired by then and this is a later one.
CREATE FUNCTION is_renewed_by(certificate certificates, completed_at timestamptz) RETURNS boolean LANGUAGE sql STABLE
RETURN (certificate).completion_withdrawn OR (
    (certificate).revoked_at IS NULL AND (certificate).expires_at <= completed_at
    AND completed_at > ((certificate).metadata ->> 'completed_at')::timestamptz
);
