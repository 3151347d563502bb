-- The one definition of what an enrolment consists of and of what of it is fulfilled since when. Completion, the
-- figures of progress and the list of what is missing all read it.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

CREATE VIEW enrollment_items AS
SELECT
    e.user_id,
    e.course_version_id,
    'lesson' AS kind,
    l.lesson_id AS id,
    l.title,
    l.required,
    l.position,
    p.completed_at AS fulfilled_at
FROM enrollments AS e
INNER JOIN course_version_lessons AS l ON e.course_version_id = l.course_version_id
LEFT JOIN lesson_progress AS p
    ON e.user_id = p.user_id AND l.lesson_id = p.lesson_id AND e.course_version_id = p.enrolled_course_version_id
UNION ALL
SELECT
    e.user_id,
    e.course_version_id,
    'quiz' AS kind,
    q.quiz_id AS id,
    q.title,
    q.required,
    q.position,
    (
        SELECT min(a.completed_at) FROM quiz_attempts AS a
        WHERE a.user_id = e.user_id AND a.quiz_id = q.quiz_id AND a.enrolled_course_version_id = e.course_version_id AND a.is_passed
    ) AS fulfilled_at
FROM enrollments AS e
INNER JOIN course_version_quizzes AS q ON e.course_version_id = q.course_version_id;
