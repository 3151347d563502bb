-- What the Course and IAM services have told us. Rows of a course version never change once published, but for
-- quiz_answer_keys, which gains a row for each corrected key.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

CREATE TABLE course_versions (
    course_version_id uuid PRIMARY KEY,
    course_id uuid NOT NULL,
    title text NOT NULL,
    version text NOT NULL,
    issuer_name text NOT NULL,
    self_enrollment boolean NOT NULL,
    certificate_enabled boolean NOT NULL,
    -- Days that a certificate is valid; NULL: for ever.
    certificate_valid_for_days integer CHECK (certificate_valid_for_days >= 1),
    -- Digest of the canonical body: publishing the same version again is told from publishing another under its id.
    digest bytea NOT NULL,
    published_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE course_version_lessons (
    course_version_id uuid NOT NULL REFERENCES course_versions,
    lesson_id uuid NOT NULL,
    title text NOT NULL,
    required boolean NOT NULL,
    position integer NOT NULL,
    PRIMARY KEY (course_version_id, lesson_id)
);

CREATE TABLE course_version_quizzes (
    course_version_id uuid NOT NULL REFERENCES course_versions,
    quiz_id uuid NOT NULL,
    title text NOT NULL,
    required boolean NOT NULL,
    position integer NOT NULL,
    pass_threshold_percentage numeric NOT NULL CHECK (pass_threshold_percentage BETWEEN 0 AND 100),
    -- NULL in any of these: no limit.
    max_attempts integer CHECK (max_attempts >= 1),
    time_limit_seconds integer CHECK (time_limit_seconds >= 1),
    retry_delay_seconds integer CHECK (retry_delay_seconds >= 0),
    reveal_answers boolean NOT NULL,
    -- The answer key that new attempts are graded by.
    key_version integer NOT NULL DEFAULT 1,
    PRIMARY KEY (course_version_id, quiz_id)
);

CREATE TABLE quiz_answer_keys (
    course_version_id uuid NOT NULL,
    quiz_id uuid NOT NULL,
    key_version integer NOT NULL CHECK (key_version >= 1),
    questions jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (course_version_id, quiz_id, key_version),
    FOREIGN KEY (course_version_id, quiz_id) REFERENCES course_version_quizzes
);

CREATE TABLE learners (
    user_id uuid PRIMARY KEY,
    -- NULL: the learner is known only by having finished a course; the certificate waits for the name.
    name text,
    locale text,
    -- The time of the message that this row tells of, so that an older one which arrives later changes nothing.
    updated_at timestamptz
);
