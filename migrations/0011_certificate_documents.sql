-- What strangers trust a certificate by: its document, its signed credential, and the list that says whether it was revoked.
--
-- Certificates are issued by one statement; their documents are made afterwards, each when it can be.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

-- Public keys that credentials were signed by, for ever: a credential names its key.
CREATE TABLE signing_keys (
    -- The fragment of its DID URL.
    kid text PRIMARY KEY,
    algorithm text NOT NULL CHECK (algorithm IN ('Ed25519', 'ES256')),
    -- SubjectPublicKeyInfo in DER (RFC 5280).
    public_key bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A Bitstring Status List of 131,072 entries.
CREATE TABLE status_lists (
    number integer PRIMARY KEY,
    -- Counts up with each revocation and reinstatement, and how far the signed list is.
    changes bigint NOT NULL DEFAULT 0,
    signed_changes bigint,
    credential text,
    -- When it is to be signed, or to be tried again; NULL: the signed list is current.
    due_at timestamptz DEFAULT now()
);
CREATE INDEX status_lists_due_idx ON status_lists (due_at) WHERE due_at IS NOT NULL;

-- The next entry that nobody has, over all lists.
CREATE SEQUENCE status_list_entries AS bigint MINVALUE 0 START 0;

-- Scatters the entries of a list, so that neither the order of issue nor what two certificates have in common shows.
CREATE TABLE status_list_secret (
    only_one boolean PRIMARY KEY DEFAULT TRUE CHECK (only_one),
    secret uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO status_list_secret DEFAULT VALUES;

-- Where in its list an entry lies: a permutation of 0..131071 for each list, by a Feistel network of four rounds. It works on
-- 18 bits, two halves of nine, and goes round again while it lands outside the list.
CREATE FUNCTION status_index(entry bigint, secret uuid) RETURNS integer LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    list bytea := int8send(entry / 131072);
    place integer := entry % 131072;
    hash bytea;
BEGIN
    LOOP
        FOR round IN 1..4 LOOP
            hash := sha256(uuid_send(secret) || list || int4send(round) || int4send(place & 511));
            place := ((place & 511) << 9) | ((place >> 9) # ((get_byte(hash, 0) << 1) | (get_byte(hash, 1) & 1)));
        END LOOP;
        EXIT WHEN place < 131072;
    END LOOP;
    RETURN place;
END
$$;

-- Which snapshot of the certificate this is; each has its own document and its own entry in a status list.
-- squawk-ignore adding-field-with-default
ALTER TABLE certificates ADD COLUMN revision integer NOT NULL DEFAULT 1;
ALTER TABLE certificates ADD COLUMN status_entry bigint;
ALTER TABLE certificates ALTER COLUMN status_entry SET DEFAULT nextval('status_list_entries');
-- squawk-ignore require-concurrent-index-creation
CREATE UNIQUE INDEX certificates_status_entry_key ON certificates (status_entry);
-- The signed credential with a Data Integrity proof, and as a JSON Web Token.
ALTER TABLE certificates ADD COLUMN credential text;
ALTER TABLE certificates ADD COLUMN credential_jwt text;
-- When what it still lacks is to be made, or to be tried again; NULL: it has its document and both credentials.
ALTER TABLE certificates ADD COLUMN due_at timestamptz DEFAULT now();
ALTER TABLE certificates ADD COLUMN tries integer NOT NULL DEFAULT 0;
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX certificates_due_idx ON certificates (due_at) WHERE due_at IS NOT NULL;

UPDATE certificates SET status_entry = nextval('status_list_entries');
INSERT INTO status_lists (number) SELECT DISTINCT status_entry / 131072 FROM certificates;
-- squawk-ignore adding-not-nullable-field
ALTER TABLE certificates ALTER COLUMN status_entry SET NOT NULL;

-- A snapshot that was replaced: its credential must not pass for the current one, so its entry is set.
ALTER TABLE certificate_snapshots ADD COLUMN revision integer;
ALTER TABLE certificate_snapshots ADD COLUMN status_entry bigint;
ALTER TABLE certificate_snapshots ADD COLUMN credential text;
ALTER TABLE certificate_snapshots ADD COLUMN credential_jwt text;
ALTER TABLE certificate_snapshots ADD COLUMN actor text;
ALTER TABLE certificate_snapshots ADD COLUMN reason text;
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX certificate_snapshots_status_entry_idx ON certificate_snapshots (status_entry) WHERE status_entry IS NOT NULL;
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX certificates_revoked_idx ON certificates (status_entry) WHERE revoked_at IS NOT NULL;

-- Each certificate has a list, whoever issues it. It is only inserted where it is not there, which waits for nobody who is just
-- changing it.
CREATE FUNCTION add_status_lists() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO status_lists (number)
    SELECT DISTINCT a.status_entry / 131072 AS number FROM after a
    WHERE NOT EXISTS (SELECT FROM status_lists l WHERE l.number = a.status_entry / 131072)
    ORDER BY number ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER certificates_have_lists AFTER INSERT ON certificates
REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION add_status_lists();
CREATE TRIGGER certificates_have_other_lists AFTER UPDATE ON certificates
REFERENCING NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION add_status_lists();

-- Whoever revokes, reinstates or replaces, by whatever statement: the lists are to be signed anew. They are locked in the order
-- of their numbers, so that two such statements don't deadlock.
CREATE FUNCTION note_status_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH changed AS MATERIALIZED (
        SELECT l.number FROM status_lists l WHERE l.number IN (
            SELECT unnest(ARRAY[b.status_entry / 131072, a.status_entry / 131072])
            FROM before b JOIN after a ON a.id = b.id
            WHERE (b.revoked_at IS NULL) <> (a.revoked_at IS NULL) OR b.status_entry <> a.status_entry
        )
        ORDER BY l.number FOR NO KEY UPDATE
    )
    UPDATE status_lists l SET changes = l.changes + 1, due_at = now() FROM changed WHERE l.number = changed.number;
    RETURN NULL;
END
$$;
CREATE TRIGGER certificates_status_changed AFTER UPDATE ON certificates
REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION note_status_changes();

-- What a certificate of this enrolment says if it is issued now; without a name where the learner's is not known.
CREATE FUNCTION certificate_metadata(e enrollments) RETURNS jsonb LANGUAGE sql STABLE
RETURN (
    SELECT jsonb_build_object(
        'learner_name', l.name, 'locale', l.locale, 'course_title', v.title, 'version', v.version, 'issuer_name', v.issuer_name,
        'completed_at', rfc3339((e).completed_at),
        'criteria', (
            SELECT coalesce(jsonb_agg(jsonb_build_object(
                'kind', r.kind, 'title', r.title, 'pass_threshold_percentage', r.pass_threshold_percentage
            ) ORDER BY r.rank, r.position), '[]')
            FROM (
                SELECT 1 AS rank, position, 'lesson' AS kind, title, NULL::numeric AS pass_threshold_percentage
                FROM course_version_lessons WHERE course_version_id = (e).course_version_id AND required
                UNION ALL
                SELECT 2, position, 'quiz', title, pass_threshold_percentage
                FROM course_version_quizzes WHERE course_version_id = (e).course_version_id AND required
            ) r
        ),
        'score', (
            SELECT avg(best.score) FROM (
                SELECT max(a.score) FILTER (WHERE a.is_passed) AS score FROM course_version_quizzes q
                LEFT JOIN quiz_attempts a ON a.user_id = (e).user_id AND a.quiz_id = q.quiz_id
                    AND a.enrolled_course_version_id = (e).course_version_id
                WHERE q.course_version_id = (e).course_version_id AND q.required
                GROUP BY q.quiz_id
            ) best
        )
    )
    FROM course_versions v LEFT JOIN learners l ON l.user_id = (e).user_id
    WHERE v.course_version_id = (e).course_version_id
);

-- What was required has not been in snapshots before.
UPDATE certificates c SET metadata = c.metadata || jsonb_build_object('criteria', certificate_metadata(e) -> 'criteria')
FROM enrollments e WHERE e.user_id = c.user_id AND e.course_version_id = c.course_version_id;
