"""What must hold in the database at every moment, whatever went wrong: nothing half done, nothing twice, nothing missing."""

from tests.support.service import Service

#: Each finds what breaks a rule, so that no row is the right answer. The outbox keeps what was sent, and so tells everything.
RULES = {
    "what was published about an enrolment is numbered 1, 2, 3, …": """
        SELECT e.user_id, e.course_version_id, e.sequence, count(o.id), count(DISTINCT o.data ->> 'sequence')
        FROM enrollments e
        LEFT JOIN outbox o ON o.destination = 'bus' AND (o.data ->> 'user_id')::uuid = e.user_id
            AND (o.data ->> 'course_version_id')::uuid = e.course_version_id
        GROUP BY e.user_id, e.course_version_id, e.sequence
        HAVING (count(o.id), count(DISTINCT o.data ->> 'sequence'), coalesce(max((o.data ->> 'sequence')::int), 0))
            <> (e.sequence, e.sequence, e.sequence)
    """,
    "a change of an enrolment stands in the history and is published, both or neither": """
        SELECT h.type, o.type, h.sequence, o.data
        FROM (SELECT * FROM enrollment_history WHERE sequence IS NOT NULL) h
        FULL JOIN (SELECT * FROM outbox WHERE destination = 'bus' AND type LIKE 'enrollment.%%') o
            ON (o.data ->> 'user_id')::uuid = h.user_id AND (o.data ->> 'course_version_id')::uuid = h.course_version_id
            AND (o.data ->> 'sequence')::int = h.sequence
        WHERE o.type IS DISTINCT FROM 'enrollment.' || h.type
    """,
    "the status is that of the last change": """
        SELECT e.user_id, e.status, h.to_status FROM enrollments e CROSS JOIN LATERAL (
            SELECT to_status FROM enrollment_history h
            WHERE h.user_id = e.user_id AND h.course_version_id = e.course_version_id ORDER BY position DESC LIMIT 1
        ) h WHERE h.to_status <> e.status
    """,
    "there is no enrolment without a history": """
        SELECT e.user_id FROM enrollments e WHERE (
            SELECT count(*) FROM enrollment_history h
            WHERE h.user_id = e.user_id AND h.course_version_id = e.course_version_id AND h.type = 'created'
        ) <> 1
    """,
    "what is fulfilled is completed": """
        SELECT e.user_id, e.status FROM enrollments e WHERE e.status = 'active' AND (
            SELECT count(*) > 0 AND bool_and(i.fulfilled_at IS NOT NULL) FROM enrollment_items i
            WHERE i.user_id = e.user_id AND i.course_version_id = e.course_version_id AND i.required
        )
    """,
    "a lesson's completion is published once": """
        SELECT user_id, lesson_id, sum(n) FROM (
            SELECT user_id, lesson_id, enrolled_course_version_id, 1 AS n FROM lesson_progress WHERE status = 'completed'
            UNION ALL
            SELECT user_id, lesson_id, enrolled_course_version_id, 1 FROM lesson_progress_set_aside WHERE status = 'completed'
            UNION ALL
            SELECT (data ->> 'user_id')::uuid, (data ->> 'lesson_id')::uuid, (data ->> 'course_version_id')::uuid, -1
            FROM outbox WHERE type = 'lesson.completed'
        ) t GROUP BY user_id, lesson_id, enrolled_course_version_id HAVING sum(n) <> 0
    """,
    "an attempt's grade is published once": """
        SELECT id, sum(n) FROM (
            SELECT id, 1 AS n FROM all_quiz_attempts WHERE completed_at IS NOT NULL
            UNION ALL
            SELECT (data ->> 'attempt_id')::uuid, -1 FROM outbox WHERE type = 'quiz.graded'
        ) t GROUP BY id HAVING sum(n) <> 0
    """,
    "attempts are numbered 1, 2, 3, …": """
        SELECT user_id, quiz_id FROM quiz_attempts GROUP BY user_id, quiz_id, enrolled_course_version_id
        HAVING max(attempt_number) <> count(*)
    """,
    "a certificate is issued once, and told of once": """
        SELECT certificate_uid, sum(n) FROM (
            SELECT certificate_uid, 1 AS n FROM certificates
            UNION ALL
            SELECT data ->> 'certificate_uid', -1 FROM outbox WHERE type = 'certificate.issued'
        ) t GROUP BY certificate_uid HAVING sum(n) <> 0
    """,
    "an act on a certificate stands in the history and is published, both or neither": """
        SELECT uid, type, sum(n) FROM (
            SELECT details ->> 'certificate_uid' AS uid, replace(type, '_', '.') AS type, 1 AS n
            FROM enrollment_history WHERE type LIKE 'certificate_%%'
            UNION ALL
            SELECT data ->> 'certificate_uid', type, -1 FROM outbox
            WHERE type IN ('certificate.revoked', 'certificate.reinstated', 'certificate.reissued')
        ) t GROUP BY uid, type HAVING sum(n) <> 0
    """,
    "what a certificate said before is kept for each time that it was issued anew": """
        SELECT c.certificate_uid, c.revision FROM certificates c
        WHERE c.revision - 1 <> (SELECT count(*) FROM certificate_snapshots s WHERE s.certificate_id = c.id)
    """,
    "a transfer stands in both histories": """
        SELECT user_id, a.n, b.n FROM (
            SELECT user_id, course_version_id::text AS source, details ->> 'to' AS target, count(*) AS n
            FROM enrollment_history WHERE details ? 'to' GROUP BY 1, 2, 3
        ) a FULL JOIN (
            SELECT user_id, details ->> 'from' AS source, course_version_id::text AS target, count(*) AS n
            FROM enrollment_history WHERE details ? 'from' GROUP BY 1, 2, 3
        ) b USING (user_id, source, target) WHERE a.n IS DISTINCT FROM b.n
    """,
    "what was set aside was set aside by a reset": """
        SELECT reset_id FROM (
            SELECT reset_id FROM lesson_progress_set_aside UNION ALL SELECT reset_id FROM quiz_attempts_set_aside
        ) t WHERE NOT EXISTS (SELECT FROM enrollment_history h WHERE h.id = t.reset_id AND h.type = 'reset')
    """,
}


def broken(service: Service) -> dict[str, list[object]]:
    """The rules that do not hold, and by which rows."""
    found = {rule: service.rows(query) for rule, query in RULES.items()}
    return {rule: list(rows) for rule, rows in found.items() if rows}
