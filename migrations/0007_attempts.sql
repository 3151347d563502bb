-- What may become of an attempt besides being graded once: it is set aside, transferred or graded again; and what may be
-- granted to a learner.
-- squawk-ignore-file ban-drop-constraint, adding-foreign-key-constraint, constraint-missing-not-valid, require-concurrent-index-creation

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

ALTER TABLE quiz_attempts
-- The course version whose answer key it was graded by: its own, or the one that the attempt was transferred from.
ADD COLUMN key_course_version_id uuid,
-- The attempt that this one is a copy of, made when the learner was transferred from another course version.
ADD COLUMN transferred_from uuid,
-- True: graded again, it fell below the threshold, and the pass once given was kept.
ADD COLUMN pass_kept boolean NOT NULL DEFAULT FALSE;
UPDATE quiz_attempts SET key_course_version_id = enrolled_course_version_id WHERE completed_at IS NOT NULL;
ALTER TABLE quiz_attempts
DROP CONSTRAINT quiz_attempts_enrolled_course_version_id_quiz_id_key_versi_fkey,
DROP CONSTRAINT quiz_attempts_graded_whole;
ALTER TABLE quiz_attempts
ADD CONSTRAINT quiz_attempts_answer_key_fkey
FOREIGN KEY (key_course_version_id, quiz_id, key_version) REFERENCES quiz_answer_keys,
ADD CONSTRAINT quiz_attempts_graded_whole CHECK (
    num_nonnulls(
        completed_at, score, is_passed, in_time, key_version, key_course_version_id, pass_threshold_percentage, question_results
    ) IN (0, 8)
);
-- Attempts that have a time limit and are open, in the order in which they run out.
CREATE INDEX quiz_attempts_running_idx ON quiz_attempts (expires_at) WHERE completed_at IS NULL AND expires_at IS NOT NULL;
-- All that was graded by the keys of one quiz, learner by learner.
CREATE INDEX quiz_attempts_regrade_idx ON quiz_attempts (key_course_version_id, quiz_id, user_id, enrolled_course_version_id)
WHERE completed_at IS NOT NULL;
-- However often a transfer is repeated, an attempt is carried over once.
CREATE UNIQUE INDEX quiz_attempts_transferred_once ON quiz_attempts (enrolled_course_version_id, transferred_from)
WHERE transferred_from IS NOT NULL;

-- Attempts as they were when the enrolment was started over; `reset_id` is that act in the history.
CREATE TABLE quiz_attempts_set_aside (
    id uuid PRIMARY KEY,
    reset_id uuid NOT NULL REFERENCES enrollment_history,
    user_id uuid NOT NULL,
    quiz_id uuid NOT NULL,
    enrolled_course_version_id uuid NOT NULL,
    attempt_number integer NOT NULL,
    score double precision,
    is_passed boolean,
    started_at timestamptz,
    completed_at timestamptz,
    answers_snapshot jsonb,
    expires_at timestamptz,
    in_time boolean,
    key_version integer,
    pass_threshold_percentage numeric,
    question_results jsonb,
    key_course_version_id uuid,
    transferred_from uuid,
    pass_kept boolean NOT NULL
);
CREATE INDEX quiz_attempts_set_aside_reset_idx ON quiz_attempts_set_aside (reset_id);

-- Every attempt that there ever was.
CREATE VIEW all_quiz_attempts AS
SELECT
    id,
    user_id,
    quiz_id,
    enrolled_course_version_id,
    attempt_number,
    score,
    is_passed,
    started_at,
    completed_at,
    answers_snapshot,
    expires_at,
    in_time,
    key_version,
    pass_threshold_percentage,
    question_results,
    key_course_version_id,
    transferred_from,
    pass_kept,
    NULL::timestamptz AS set_aside_at
FROM quiz_attempts
UNION ALL
SELECT
    a.id,
    a.user_id,
    a.quiz_id,
    a.enrolled_course_version_id,
    a.attempt_number,
    a.score,
    a.is_passed,
    a.started_at,
    a.completed_at,
    a.answers_snapshot,
    a.expires_at,
    a.in_time,
    a.key_version,
    a.pass_threshold_percentage,
    a.question_results,
    a.key_course_version_id,
    a.transferred_from,
    a.pass_kept,
    h.recorded_at AS set_aside_at
FROM quiz_attempts_set_aside AS a
INNER JOIN enrollment_history AS h ON a.reset_id = h.id;

-- What a learner was granted beyond a quiz's limits.
CREATE TABLE quiz_allowances (
    user_id uuid NOT NULL,
    course_version_id uuid NOT NULL,
    quiz_id uuid NOT NULL,
    extra_attempts integer NOT NULL CHECK (extra_attempts >= 0),
    extra_time_percentage integer NOT NULL CHECK (extra_time_percentage >= 0),
    PRIMARY KEY (user_id, course_version_id, quiz_id),
    FOREIGN KEY (user_id, course_version_id) REFERENCES enrollments,
    FOREIGN KEY (course_version_id, quiz_id) REFERENCES course_version_quizzes
);

-- When each corrected question was corrected last, as {question_id: time}: of two corrections the later one counts, in
-- whatever order they arrive.
ALTER TABLE quiz_answer_keys ADD COLUMN corrected jsonb NOT NULL DEFAULT '{}';

-- Grading again all attempts at a quiz by its present answer key, in chunks of learners; a dry run only says what would be.
CREATE TABLE quiz_regrades (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    course_version_id uuid NOT NULL,
    quiz_id uuid NOT NULL,
    dry_run boolean NOT NULL,
    take_away boolean NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    -- How far it got: all learners up to this one, in this enrolment, are done.
    after_user_id uuid,
    after_course_version_id uuid,
    attempts bigint NOT NULL DEFAULT 0,
    attempts_changed bigint NOT NULL DEFAULT 0,
    completed_at timestamptz,
    -- Once all transactions before this one have ended, no attempt can appear any more that was graded before the correction.
    horizon xid8,
    -- Whoever works on it keeps others off until then.
    leased_until timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (course_version_id, quiz_id) REFERENCES course_version_quizzes
);
CREATE INDEX quiz_regrades_unfinished_idx ON quiz_regrades (requested_at) WHERE completed_at IS NULL;

-- Whom a regrade makes a difference to, or would.
CREATE TABLE quiz_regrade_learners (
    regrade_id uuid NOT NULL REFERENCES quiz_regrades,
    user_id uuid NOT NULL,
    course_version_id uuid NOT NULL,
    -- Best scores before and after.
    previous_score double precision NOT NULL,
    score double precision NOT NULL,
    pass text CHECK (pass IN ('gained', 'lost', 'kept')),
    certificate text CHECK (certificate IN ('gained', 'lost')),
    PRIMARY KEY (regrade_id, user_id, course_version_id)
);

-- What an attempt had been graded before it was graded again.
CREATE TABLE quiz_attempt_gradings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    attempt_id uuid NOT NULL,
    user_id uuid NOT NULL,
    regrade_id uuid NOT NULL REFERENCES quiz_regrades,
    replaced_at timestamptz NOT NULL DEFAULT now(),
    key_version integer NOT NULL,
    score double precision NOT NULL,
    is_passed boolean NOT NULL,
    pass_kept boolean NOT NULL,
    question_results jsonb NOT NULL
);
CREATE INDEX quiz_attempt_gradings_attempt_idx ON quiz_attempt_gradings (attempt_id);
