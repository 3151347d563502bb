-- What leaves the service says by which request or event it was caused: the W3C Trace Context `traceparent`. And statements
-- call no sequence any more, since RDS Proxy pins the connection of one that does; it does not look into functions.

ALTER TABLE outbox ADD COLUMN traceparent text;

-- The next entry in a status list that nobody has.
CREATE FUNCTION next_status_entry() RETURNS bigint LANGUAGE sql VOLATILE
RETURN nextval('status_list_entries');

-- As before, and each completion is told of with the traceparent of what fulfilled its last item: of the event in the outbox
-- that the same transaction has written about that. So in a batch of many producers, each gets its own. Where there is no such
-- event, as of a waiver, it is `by_default`.
CREATE FUNCTION complete_enrollments(user_ids uuid [], course_version_ids uuid [], by_default text) RETURNS void LANGUAGE plpgsql AS $$
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
    INSERT INTO outbox (destination, type, occurred_at, data, traceparent)
    SELECT 'bus', 'enrollment.completed', c.completed_at, jsonb_build_object(
        'user_id', c.user_id, 'course_version_id', c.course_version_id, 'status', 'completed', 'completed_at', rfc3339(c.completed_at),
        'sequence', c.sequence
    ), coalesce((
        -- Gathered once for all, at the first enrolment that is completed, and not at all if none is. What was written in this
        -- transaction is found by the time at which it began. Of two values for a key the later one stays.
        SELECT jsonb_object_agg(
            concat(o.data ->> 'user_id', o.data ->> 'course_version_id'), o.traceparent
            ORDER BY o.occurred_at, (o.data ->> 'sequence')::bigint
        )
        FROM outbox o
        LEFT JOIN course_version_lessons l
            ON o.type = 'lesson.completed' AND l.course_version_id = (o.data ->> 'course_version_id')::uuid
            AND l.lesson_id = (o.data ->> 'lesson_id')::uuid AND l.required
        LEFT JOIN course_version_quizzes q
            ON o.type IN ('quiz.graded', 'quiz.regraded') AND (o.data ->> 'is_passed')::boolean
            AND q.course_version_id = (o.data ->> 'course_version_id')::uuid AND q.quiz_id = (o.data ->> 'quiz_id')::uuid AND q.required
        WHERE o.sent_at IS NULL AND o.available_at = now() AND o.destination = 'bus'
            AND (l.lesson_id IS NOT NULL OR q.quiz_id IS NOT NULL OR o.type LIKE 'enrollment.%')
    ) ->> concat(c.user_id, c.course_version_id), by_default)
    FROM completed c;
END
$$;

-- The code of before, which goes on while a deployment is under way, hands over no traceparent.
CREATE OR REPLACE FUNCTION complete_enrollments(user_ids uuid [], course_version_ids uuid []) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM complete_enrollments(user_ids, course_version_ids, NULL::text);
END
$$;
