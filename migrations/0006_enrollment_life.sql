-- What administrators do to an enrolment beyond its status: starting it over, waiving a requirement, transferring it.
--
-- Nothing was deployed before this migration and the next one, so they need not let older code go on working beside them.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

-- When the enrolment was started over last; what is dated before has no effect any more.
ALTER TABLE enrollments ADD COLUMN reset_at timestamptz;

-- The history also tells of acts that change no status and that nobody is told of, so these have no sequence number.
-- `position` is the order in which things were written down, which is the order in which they are read.
-- squawk-ignore adding-field-with-default
ALTER TABLE enrollment_history ADD COLUMN position bigint GENERATED ALWAYS AS IDENTITY;
ALTER TABLE enrollment_history ADD COLUMN type text;
-- What the act was about, such as the requirement waived or the course version transferred to.
ALTER TABLE enrollment_history ADD COLUMN details jsonb;
-- squawk-ignore ban-drop-not-null
ALTER TABLE enrollment_history ALTER COLUMN sequence DROP NOT NULL;
UPDATE enrollment_history SET type = CASE
    WHEN from_status IS NULL THEN 'created'
    WHEN to_status = 'cancelled_by_user' THEN 'cancelled'
    WHEN to_status = 'revoked_by_admin' THEN 'revoked'
    WHEN from_status = 'revoked_by_admin' THEN 'reinstated'
    WHEN to_status = 'completed' THEN 'completed'
    ELSE 'reactivated'
END;
-- squawk-ignore adding-not-nullable-field
ALTER TABLE enrollment_history ALTER COLUMN type SET NOT NULL;
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX enrollment_history_order_idx ON enrollment_history (user_id, course_version_id, position);

-- Requirements that an administrator lets count as fulfilled. A lesson and a quiz of one course version never share an id.
CREATE TABLE requirement_waivers (
    user_id uuid NOT NULL,
    course_version_id uuid NOT NULL,
    requirement_id uuid NOT NULL,
    waived_at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (user_id, course_version_id, requirement_id),
    FOREIGN KEY (user_id, course_version_id) REFERENCES enrollments
);

-- Lesson progress as it was when the enrolment was started over; `reset_id` is that act in the history.
CREATE TABLE lesson_progress_set_aside (
    reset_id uuid NOT NULL REFERENCES enrollment_history,
    user_id uuid NOT NULL,
    lesson_id uuid NOT NULL,
    enrolled_course_version_id uuid NOT NULL,
    status varchar NOT NULL,
    progress_percentage double precision NOT NULL,
    last_accessed_at timestamptz,
    started_at timestamptz,
    completed_at timestamptz,
    PRIMARY KEY (reset_id, lesson_id)
);
