-- A confirmation holds against older commands of its own side, so that each side needs its own: with one for both, an
-- administrator's would let an older command of the learner through. Administrators can only confirm a revocation.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

ALTER TABLE enrollments ADD COLUMN revocation_confirmed_at timestamptz;

UPDATE enrollments SET revocation_confirmed_at = confirmed_at, confirmed_at = NULL, confirmed = NULL WHERE confirmed = 'revoked';
