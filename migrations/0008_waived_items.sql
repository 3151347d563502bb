-- What is waived counts as fulfilled since then. Nothing counts since before the enrolment was started over: not what was waived
-- before, and not what was carried over from another enrolment.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

CREATE OR REPLACE VIEW enrollment_items AS
SELECT
    e.user_id,
    e.course_version_id,
    'lesson' AS kind,
    l.lesson_id AS id,
    l.title,
    l.required,
    l.position,
    CASE WHEN f.since IS NOT NULL THEN greatest(f.since, e.reset_at) END AS fulfilled_at,
    w.waived_at
FROM enrollments AS e
INNER JOIN course_version_lessons AS l ON e.course_version_id = l.course_version_id
LEFT JOIN lesson_progress AS p
    ON e.user_id = p.user_id AND l.lesson_id = p.lesson_id AND e.course_version_id = p.enrolled_course_version_id
LEFT JOIN requirement_waivers AS w
    ON e.user_id = w.user_id AND e.course_version_id = w.course_version_id AND l.lesson_id = w.requirement_id
CROSS JOIN LATERAL (SELECT least(p.completed_at, w.waived_at) AS since) AS f
UNION ALL
SELECT
    e.user_id,
    e.course_version_id,
    'quiz' AS kind,
    q.quiz_id AS id,
    q.title,
    q.required,
    q.position,
    CASE WHEN f.since IS NOT NULL THEN greatest(f.since, e.reset_at) END AS fulfilled_at,
    w.waived_at
FROM enrollments AS e
INNER JOIN course_version_quizzes AS q ON e.course_version_id = q.course_version_id
LEFT JOIN requirement_waivers AS w
    ON e.user_id = w.user_id AND e.course_version_id = w.course_version_id AND q.quiz_id = w.requirement_id
CROSS JOIN LATERAL (
    SELECT least(
        (
            SELECT min(a.completed_at) FROM quiz_attempts AS a
            WHERE a.user_id = e.user_id AND a.quiz_id = q.quiz_id AND a.enrolled_course_version_id = e.course_version_id AND a.is_passed
        ),
        w.waived_at
    ) AS since
) AS f;

-- As before; the history says by its type what happened.
CREATE OR REPLACE FUNCTION complete_enrollments(user_ids uuid [], course_version_ids uuid []) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH fulfilled AS (
        SELECT e.user_id, e.course_version_id, e.status AS from_status, e.completed_at AS known_completed_at, items.completed_at
        FROM (SELECT DISTINCT k.user_id, k.course_version_id FROM unnest(user_ids, course_version_ids) AS k (user_id, course_version_id)) t
        JOIN enrollments e ON e.user_id = t.user_id AND e.course_version_id = t.course_version_id
        CROSS JOIN LATERAL (
            SELECT max(i.fulfilled_at) AS completed_at, count(*) AS required, count(i.fulfilled_at) AS fulfilled
            FROM enrollment_items i
            WHERE i.user_id = t.user_id AND i.course_version_id = t.course_version_id AND i.required
        ) items
        WHERE e.status <> 'revoked_by_admin' AND items.required > 0 AND items.fulfilled = items.required
    ), completed AS (
        UPDATE enrollments e
        SET status = 'completed', completed_at = f.completed_at, status_changed_at = f.completed_at, status_actor = 'learner-progress',
            status_reason = NULL, inactive_since = NULL, sequence = e.sequence + 1
        FROM fulfilled f
        WHERE e.user_id = f.user_id AND e.course_version_id = f.course_version_id AND e.status IN ('active', 'cancelled_by_user')
        RETURNING e.user_id, e.course_version_id, e.completed_at, e.sequence, f.from_status
    ), corrected AS (
        UPDATE enrollments e SET completed_at = f.completed_at, status_changed_at = f.completed_at
        FROM fulfilled f
        WHERE e.user_id = f.user_id AND e.course_version_id = f.course_version_id AND e.status = 'completed'
            AND f.completed_at < f.known_completed_at
    ), history AS (
        INSERT INTO enrollment_history (user_id, course_version_id, type, from_status, to_status, occurred_at, actor, sequence)
        SELECT c.user_id, c.course_version_id, 'completed', c.from_status, 'completed', c.completed_at, 'learner-progress', c.sequence
        FROM completed c
    )
    INSERT INTO outbox (destination, type, occurred_at, data)
    SELECT 'bus', 'enrollment.completed', c.completed_at, jsonb_build_object(
        'user_id', c.user_id, 'course_version_id', c.course_version_id, 'status', 'completed', 'completed_at', rfc3339(c.completed_at),
        'sequence', c.sequence
    )
    FROM completed c;
END
$$;
