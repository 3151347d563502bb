-- One report of a lesson that does not complete it, which is most of what players send. In a function the plans of its statements
-- are kept by the connection, which RDS Proxy allows no client: a statement prepared by one would pin it.

SET LOCAL lock_timeout = '1s';
SET LOCAL statement_timeout = '60s';

-- Why a report on a lesson is not taken, or 'unchanged' if it says nothing new; NULL: it is taken. What is known is the enrolment's
-- reset_at and inactive_since, and the row of lesson_progress, each NULL if there is none. PostgreSQL puts the expression where
-- the call stands.
CREATE FUNCTION report_outcome(
    is_enrolled boolean, is_lesson boolean, is_course_version boolean, reset_at timestamptz, inactive_since timestamptz,
    known_percentage double precision, known_started_at timestamptz, known_last_accessed_at timestamptz, known_completed_at timestamptz,
    percentage double precision, occurred_at timestamptz
) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN NOT is_lesson AND is_course_version THEN 'lesson_not_found'
    WHEN NOT is_enrolled THEN 'enrollment_not_found'
    WHEN known_percentage >= percentage AND known_started_at <= occurred_at AND known_last_accessed_at >= occurred_at
        AND (percentage < 100 OR known_completed_at <= occurred_at) THEN 'unchanged'
    WHEN occurred_at < reset_at THEN 'unchanged'
    WHEN occurred_at > inactive_since THEN 'enrollment_inactive'
END;

-- Take a report of less than 100 %, at `reported_at` or now; gives its outcome, as above, and what is known of the lesson then. Of one
-- that says 100 nothing is taken.
CREATE FUNCTION report_progress(
    for_user uuid, for_version uuid, for_lesson uuid, percentage double precision, reported_at timestamptz
) RETURNS TABLE (
    outcome text, lesson_id uuid, status varchar, progress_percentage double precision, started_at timestamptz,
    last_accessed_at timestamptz, completed_at timestamptz
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    happened_at CONSTANT timestamptz := coalesce(reported_at, now());
BEGIN
    SELECT
        report_outcome(
            e.user_id IS NOT NULL, l.lesson_id IS NOT NULL,
            EXISTS (SELECT FROM course_versions v WHERE v.course_version_id = for_version), e.reset_at, e.inactive_since,
            p.progress_percentage, p.started_at, p.last_accessed_at, p.completed_at, report_progress.percentage, happened_at
        ),
        l.lesson_id, coalesce(p.status, 'not_started'), coalesce(p.progress_percentage, 0), p.started_at, p.last_accessed_at,
        p.completed_at
    INTO outcome, lesson_id, status, progress_percentage, started_at, last_accessed_at, completed_at
    FROM (SELECT) AS always
    LEFT JOIN enrollments e ON e.user_id = for_user AND e.course_version_id = for_version
    LEFT JOIN course_version_lessons l ON l.course_version_id = for_version AND l.lesson_id = for_lesson
    -- IS TRUE: by the primary key. The planner takes learner and course version for independent of each other, expects one row of
    -- both, and would look through the learner's rows of all lessons by the other index.
    LEFT JOIN lesson_progress p ON p.user_id = for_user AND p.lesson_id = for_lesson
        AND (p.enrolled_course_version_id = for_version) IS TRUE;

    IF outcome IS NULL AND report_progress.percentage < 100 THEN
        -- Only starting over waits for this lock. So a report from before that act can't slip in behind it.
        PERFORM FROM enrollments e
        WHERE e.user_id = for_user AND e.course_version_id = for_version AND (e.reset_at IS NULL OR e.reset_at <= happened_at)
        FOR KEY SHARE;
        IF FOUND THEN
            INSERT INTO lesson_progress AS p (
                user_id, lesson_id, enrolled_course_version_id, status, progress_percentage, started_at, last_accessed_at
            ) VALUES (for_user, for_lesson, for_version, 'in_progress', report_progress.percentage, happened_at, happened_at)
            ON CONFLICT ON CONSTRAINT pk_lesson_progress DO UPDATE SET
                progress_percentage = greatest(p.progress_percentage, excluded.progress_percentage),
                started_at = least(p.started_at, excluded.started_at),
                last_accessed_at = greatest(p.last_accessed_at, excluded.last_accessed_at)
            RETURNING p.status, p.progress_percentage, p.started_at, p.last_accessed_at, p.completed_at
            INTO status, progress_percentage, started_at, last_accessed_at, completed_at;
        ELSE
            -- The learner started over at this moment: what was known is set aside by now.
            outcome := 'unchanged';
            SELECT coalesce(p.status, 'not_started'), coalesce(p.progress_percentage, 0), p.started_at, p.last_accessed_at, p.completed_at
            INTO status, progress_percentage, started_at, last_accessed_at, completed_at
            FROM (SELECT) AS always
            LEFT JOIN lesson_progress p ON p.user_id = for_user AND p.lesson_id = for_lesson
                AND (p.enrolled_course_version_id = for_version) IS TRUE;
        END IF;
    END IF;
    RETURN NEXT;
END
$$;
