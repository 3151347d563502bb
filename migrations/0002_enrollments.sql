-- Everything a learner does belongs to an enrolment in one course version. Column and key names are those of the
-- schema that the service grew from; what was added to it says why.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

CREATE TABLE enrollments (
    user_id uuid NOT NULL,
    course_version_id uuid NOT NULL REFERENCES course_versions,
    enrolled_at timestamptz DEFAULT now(),
    status varchar DEFAULT 'active' NOT NULL
        CHECK (status IN ('active', 'completed', 'cancelled_by_user', 'revoked_by_admin')),
    completed_at timestamptz,
    source_of_enrollment varchar,
    -- When, by whom and why the enrolment came to its status.
    status_changed_at timestamptz NOT NULL DEFAULT now(),
    status_actor text,
    status_reason text,
    -- Since when it is cancelled or revoked, the earlier of the two; what is dated up to then is still taken.
    inactive_since timestamptz,
    -- The latest command that took effect, by its own time; an older one changes nothing.
    commanded_at timestamptz NOT NULL,
    command text NOT NULL CHECK (command IN ('requested', 'cancelled', 'reinstated', 'revoked')),
    -- The latest command that found what it asked for; an older one of its own side (the learner's, the administrators') changes nothing.
    confirmed_at timestamptz,
    confirmed text CHECK (confirmed IN ('requested', 'cancelled', 'revoked')),
    -- Numbers the events published about this enrolment: 1, 2, 3, ...
    sequence bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, course_version_id),
    CONSTRAINT enrollments_inactive_has_time CHECK ((inactive_since IS NULL) = (status IN ('active', 'completed'))),
    CONSTRAINT enrollments_confirmed_whole CHECK ((confirmed IS NULL) = (confirmed_at IS NULL)),
    -- A revoked enrolment keeps the time at which it had been completed.
    CONSTRAINT enrollments_completed_has_time CHECK (
        CASE status WHEN 'completed' THEN completed_at IS NOT NULL WHEN 'revoked_by_admin' THEN TRUE ELSE completed_at IS NULL END
    )
);
CREATE INDEX enrollments_status_idx ON enrollments (status);
-- The roster of a course version, in pages.
CREATE INDEX enrollments_roster_idx ON enrollments (course_version_id, user_id);

CREATE TABLE enrollment_history (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    course_version_id uuid NOT NULL,
    from_status varchar,
    to_status varchar NOT NULL,
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    actor text,
    reason text,
    sequence bigint NOT NULL,
    FOREIGN KEY (user_id, course_version_id) REFERENCES enrollments,
    UNIQUE (user_id, course_version_id, sequence)
);

CREATE TABLE lesson_progress (
    user_id uuid NOT NULL,
    lesson_id uuid NOT NULL,
    enrolled_course_version_id uuid NOT NULL,
    status varchar NOT NULL DEFAULT 'not_started' CHECK (status IN ('not_started', 'in_progress', 'completed')),
    progress_percentage double precision DEFAULT 0 NOT NULL CHECK (progress_percentage BETWEEN 0 AND 100),
    last_accessed_at timestamptz DEFAULT now(),
    started_at timestamptz,
    completed_at timestamptz,
    CONSTRAINT pk_lesson_progress PRIMARY KEY (user_id, lesson_id, enrolled_course_version_id),
    FOREIGN KEY (user_id, enrolled_course_version_id) REFERENCES enrollments,
    CONSTRAINT lesson_progress_completed_is_100 CHECK (
        (status = 'completed') = (progress_percentage = 100) AND (status = 'completed') = (completed_at IS NOT NULL)
    )
);
-- There is no foreign key to course_version_lessons on purpose: each insert would share-lock one row of the lesson that
-- hundreds of learners take at the same moment. The statement that writes joins that table instead.
CREATE INDEX idx_lesson_progress_course_status ON lesson_progress (user_id, enrolled_course_version_id, status);

CREATE TABLE quiz_attempts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    quiz_id uuid NOT NULL,
    enrolled_course_version_id uuid NOT NULL,
    attempt_number integer NOT NULL DEFAULT 1 CHECK (attempt_number >= 1),
    score double precision CHECK (score BETWEEN 0 AND 100),
    is_passed boolean,
    started_at timestamptz DEFAULT now(),
    completed_at timestamptz,
    answers_snapshot jsonb,
    -- Until when answers are taken; NULL: there is no time limit.
    expires_at timestamptz,
    -- False: the answers came after the time limit, and those that had been saved before were graded.
    in_time boolean,
    -- What the attempt was graded by, and how each question came out: enough to explain and repeat it years later.
    key_version integer,
    pass_threshold_percentage numeric,
    question_results jsonb,
    CONSTRAINT uq_quiz_attempt UNIQUE (user_id, quiz_id, enrolled_course_version_id, attempt_number),
    FOREIGN KEY (user_id, enrolled_course_version_id) REFERENCES enrollments,
    FOREIGN KEY (enrolled_course_version_id, quiz_id) REFERENCES course_version_quizzes,
    FOREIGN KEY (enrolled_course_version_id, quiz_id, key_version) REFERENCES quiz_answer_keys,
    CONSTRAINT quiz_attempts_graded_whole CHECK (
        num_nonnulls(completed_at, score, is_passed, in_time, key_version, pass_threshold_percentage, question_results) IN (0, 7)
    )
);
CREATE INDEX idx_quiz_attempt_course_perf ON quiz_attempts (user_id, enrolled_course_version_id);
CREATE UNIQUE INDEX quiz_attempts_one_open ON quiz_attempts (user_id, quiz_id, enrolled_course_version_id) WHERE completed_at IS NULL;

CREATE TABLE certificates (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    course_version_id uuid NOT NULL,
    issued_at timestamptz DEFAULT now() NOT NULL,
    certificate_uid varchar NOT NULL UNIQUE,
    pdf_url text,
    -- What the certificate says, frozen when it was issued: learner_name, course_title, version, issuer_name, score, completed_at.
    metadata jsonb NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    revocation_reason text,
    revoked_by text,
    UNIQUE (user_id, course_version_id),
    FOREIGN KEY (user_id, course_version_id) REFERENCES enrollments,
    CONSTRAINT certificates_revoked_whole CHECK (num_nonnulls(revoked_at, revocation_reason, revoked_by) IN (0, 3))
);
