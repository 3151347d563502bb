-- Completion happens here and nowhere else. It is a function in the database since progress, quizzes and commands all
-- end with it in the same round trip, and since a function's plans stay cached on the connection, where statements from
-- outside, unprepared because of the proxy, are planned anew each time.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

-- Complete those of the given enrolments whose required items are all fulfilled, each once: history, event and all.
--
-- The caller has locked these rows of `enrollments` by an earlier statement of the same transaction. Without that, two
-- transactions that fulfil the last two items at the same moment would each miss the other's.
--
-- `completed_at` is the time of the item that was fulfilled last. Should a message that arrives late show that an item had
-- been fulfilled earlier than known, a completed enrolment's `completed_at` follows: the order of arrival makes no difference.
CREATE FUNCTION complete_enrollments(user_ids uuid [], course_version_ids uuid []) RETURNS void LANGUAGE plpgsql AS $$
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
        INSERT INTO enrollment_history (user_id, course_version_id, from_status, to_status, occurred_at, actor, sequence)
        SELECT c.user_id, c.course_version_id, c.from_status, 'completed', c.completed_at, 'learner-progress', c.sequence
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
