-- What must hold in the database whenever you look, whatever happened before. Each query gives the rows that break one rule:
-- ids alone, neither names nor answers. No row is good.
--
-- `make verify` runs this file and sums up; `psql -f` runs it too. It only reads, all of it from one snapshot, so that work under
-- way makes no difference, and takes nothing from others but one processor. What constraints hold already is not repeated here.
-- The rules about events look at 29 days, because the relay removes what was sent 30 days ago.

BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;
-- Whoever hangs here holds back the removal of dead rows in the whole database.
SET LOCAL statement_timeout = '5min';
SET LOCAL lock_timeout = '5s';
SET LOCAL max_parallel_workers_per_gather = 0;
SET LOCAL work_mem = '64MB';
SET LOCAL jit = off;
SET LOCAL timezone = 'UTC';

-- The schema

\echo schema_is_whole
-- Every constraint is validated, every index usable and every trigger switched on, or else what they hold is held by nobody.
SELECT conrelid::regclass AS of_table, conname AS name FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND NOT convalidated
UNION ALL
SELECT i.indrelid::regclass, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relnamespace = 'public'::regnamespace AND NOT (i.indisvalid AND i.indisready)
UNION ALL
SELECT t.tgrelid::regclass, t.tgname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace = 'public'::regnamespace AND t.tgenabled NOT IN ('O', 'A');

\echo rows_belong_to_enrolments
-- Everything that a learner did belongs to an enrolment. Foreign keys say so, which a restoration or a replica may go around.
SELECT r.of_table, r.user_id, r.course_version_id
FROM (
    SELECT 'lesson_progress' AS of_table, user_id, enrolled_course_version_id AS course_version_id FROM lesson_progress
    UNION ALL
    SELECT 'quiz_attempts', user_id, enrolled_course_version_id FROM quiz_attempts
    UNION ALL
    SELECT 'certificates', user_id, course_version_id FROM certificates
    UNION ALL
    SELECT 'enrollment_history', user_id, course_version_id FROM enrollment_history
    UNION ALL
    SELECT 'requirement_waivers', user_id, course_version_id FROM requirement_waivers
    UNION ALL
    SELECT 'quiz_allowances', user_id, course_version_id FROM quiz_allowances
) r
LEFT JOIN enrollments e ON e.user_id = r.user_id AND e.course_version_id = r.course_version_id
WHERE e.user_id IS NULL;

-- The catalogue

\echo items_have_ids_of_their_own
-- A lesson and a quiz of one course version never share an id, because a waiver names one or the other by it.
SELECT l.course_version_id, l.lesson_id AS id
FROM course_version_lessons l
JOIN course_version_quizzes q ON q.course_version_id = l.course_version_id AND q.quiz_id = l.lesson_id;

\echo present_keys_are_the_latest
-- A quiz grades by the latest of its answer keys, which are numbered 1, 2, 3, …: otherwise nothing can be graded.
SELECT q.course_version_id, q.quiz_id, q.key_version
FROM course_version_quizzes q
LEFT JOIN (
    SELECT course_version_id, quiz_id, count(*) AS keys, max(key_version) AS latest FROM quiz_answer_keys
    GROUP BY course_version_id, quiz_id
) k ON k.course_version_id = q.course_version_id AND k.quiz_id = q.quiz_id
WHERE (q.key_version, q.key_version) IS DISTINCT FROM (k.latest, k.keys);

-- Enrolments

\echo completed_enrolments_are_fulfilled
-- Whoever has completed a course version has fulfilled everything that it requires, and it requires something. A waiver that was
-- taken back after the completion leaves it as it is.
WITH excused AS (
    SELECT DISTINCT h.user_id, h.course_version_id, (h.details ->> 'requirement_id')::uuid AS id
    FROM enrollment_history h
    WHERE h.type = 'waiver_withdrawn' AND h.position > (
        SELECT max(c.position) FROM enrollment_history c
        WHERE c.user_id = h.user_id AND c.course_version_id = h.course_version_id AND c.type = 'completed'
    )
)
SELECT e.user_id, e.course_version_id, min(i.id::text) FILTER (WHERE i.fulfilled_at IS NULL AND x.id IS NULL) AS missing
FROM enrollments e
LEFT JOIN enrollment_items i ON i.user_id = e.user_id AND i.course_version_id = e.course_version_id AND i.required
LEFT JOIN excused x ON x.user_id = i.user_id AND x.course_version_id = i.course_version_id AND x.id = i.id
WHERE e.completed_at IS NOT NULL
GROUP BY e.user_id, e.course_version_id
HAVING count(i.id) = 0 OR count(*) FILTER (WHERE i.fulfilled_at IS NULL AND x.id IS NULL) > 0;

\echo completions_date_from_the_last_item
-- `completed_at` is the time of the item that was fulfilled last, whatever the order in which messages came. Items whose waiver
-- was taken back after the completion don't count, and a revoked enrolment catches up when it is reinstated.
WITH excused AS (
    SELECT DISTINCT h.user_id, h.course_version_id, (h.details ->> 'requirement_id')::uuid AS id
    FROM enrollment_history h
    WHERE h.type = 'waiver_withdrawn' AND h.position > (
        SELECT max(c.position) FROM enrollment_history c
        WHERE c.user_id = h.user_id AND c.course_version_id = h.course_version_id AND c.type = 'completed'
    )
)
SELECT e.user_id, e.course_version_id, e.completed_at, max(i.fulfilled_at) AS fulfilled_at
FROM enrollments e
JOIN enrollment_items i ON i.user_id = e.user_id AND i.course_version_id = e.course_version_id AND i.required
LEFT JOIN excused x ON x.user_id = i.user_id AND x.course_version_id = i.course_version_id AND x.id = i.id
WHERE e.completed_at IS NOT NULL
GROUP BY e.user_id, e.course_version_id
HAVING count(*) FILTER (WHERE i.fulfilled_at IS NULL AND x.id IS NULL) = 0 AND (
    max(i.fulfilled_at) FILTER (WHERE x.id IS NULL) > e.completed_at
    OR e.status = 'completed' AND count(x.id) = 0 AND max(i.fulfilled_at) < e.completed_at
);

\echo fulfilled_enrolments_are_completed
-- Whatever fulfils an active or a cancelled enrolment completes it in the same transaction, so none is left behind.
SELECT e.user_id, e.course_version_id, e.status
FROM enrollments e
JOIN enrollment_items i ON i.user_id = e.user_id AND i.course_version_id = e.course_version_id AND i.required
WHERE e.status IN ('active', 'cancelled_by_user')
GROUP BY e.user_id, e.course_version_id
HAVING count(i.fulfilled_at) = count(*);

\echo status_is_what_the_history_says
-- An enrolment is in the status to which its last act led.
SELECT e.user_id, e.course_version_id, e.status, h.to_status
FROM enrollments e
LEFT JOIN (
    SELECT DISTINCT ON (user_id, course_version_id) user_id, course_version_id, to_status FROM enrollment_history
    ORDER BY user_id, course_version_id, position DESC
) h ON h.user_id = e.user_id AND h.course_version_id = e.course_version_id
WHERE e.status IS DISTINCT FROM h.to_status;

\echo history_is_a_chain
-- Each act found the status to which the one before it had led, and led where its kind leads, so an enrolment is completed once.
SELECT h.user_id, h.course_version_id, h.position, h.type
FROM (
    SELECT user_id, course_version_id, position, type, from_status, to_status, lag(to_status) OVER (
        PARTITION BY user_id, course_version_id ORDER BY position
    ) AS previous_status
    FROM enrollment_history
) h
WHERE h.from_status IS DISTINCT FROM h.previous_status OR NOT CASE h.type
    WHEN 'created' THEN h.from_status IS NULL AND h.to_status = 'active'
    WHEN 'cancelled' THEN h.from_status = 'active' AND h.to_status = 'cancelled_by_user'
    WHEN 'revoked' THEN h.from_status IN ('active', 'cancelled_by_user', 'completed') AND h.to_status = 'revoked_by_admin'
    WHEN 'reinstated' THEN h.from_status = 'revoked_by_admin' AND h.to_status IN ('active', 'completed')
    WHEN 'reactivated' THEN h.from_status IN ('cancelled_by_user', 'completed') AND h.to_status = 'active'
    WHEN 'completed' THEN h.from_status IN ('active', 'cancelled_by_user') AND h.to_status = 'completed'
    WHEN 'reset' THEN h.to_status = CASE h.from_status WHEN 'completed' THEN 'active' ELSE h.from_status END
    ELSE h.to_status = h.from_status
END;

\echo inactive_since_is_when_it_was_left
-- What is dated up to `inactive_since` is still taken: it is the time of the act by which the enrolment was cancelled or revoked.
SELECT e.user_id, e.course_version_id, e.inactive_since, h.occurred_at
FROM enrollments e
LEFT JOIN (
    SELECT DISTINCT ON (user_id, course_version_id) user_id, course_version_id, occurred_at FROM enrollment_history
    WHERE type IN ('cancelled', 'revoked') AND from_status IN ('active', 'completed')
    ORDER BY user_id, course_version_id, position DESC
) h ON h.user_id = e.user_id AND h.course_version_id = e.course_version_id
WHERE e.inactive_since IS NOT NULL AND e.inactive_since IS DISTINCT FROM h.occurred_at;

\echo starting_over_is_dated_by_the_history
-- What is dated before `reset_at` has no effect: it is the time of the last reset in the history.
SELECT e.user_id, e.course_version_id, e.reset_at, h.reset_at AS last_reset_at
FROM enrollments e
LEFT JOIN (
    SELECT user_id, course_version_id, max(occurred_at) AS reset_at FROM enrollment_history WHERE type = 'reset'
    GROUP BY user_id, course_version_id
) h ON h.user_id = e.user_id AND h.course_version_id = e.course_version_id
WHERE e.reset_at IS DISTINCT FROM h.reset_at;

\echo waivers_name_requirements
-- What is waived is a lesson or a quiz of that course version, or it would make no difference to anything.
SELECT w.user_id, w.course_version_id, w.requirement_id
FROM requirement_waivers w
WHERE NOT EXISTS (
    SELECT FROM course_version_lessons l WHERE l.course_version_id = w.course_version_id AND l.lesson_id = w.requirement_id
) AND NOT EXISTS (
    SELECT FROM course_version_quizzes q WHERE q.course_version_id = w.course_version_id AND q.quiz_id = w.requirement_id
);

-- Progress and attempts

\echo lessons_are_of_the_course_version
-- Progress is for lessons of the enrolment's course version. There is no foreign key, for the sake of those who write.
SELECT p.of_table, p.user_id, p.course_version_id, p.lesson_id
FROM (
    SELECT 'lesson_progress' AS of_table, user_id, enrolled_course_version_id AS course_version_id, lesson_id FROM lesson_progress
    UNION ALL
    SELECT 'lesson_progress_set_aside', user_id, enrolled_course_version_id, lesson_id FROM lesson_progress_set_aside
) p
LEFT JOIN course_version_lessons l ON l.course_version_id = p.course_version_id AND l.lesson_id = p.lesson_id
WHERE l.lesson_id IS NULL;

\echo lesson_times_are_in_order
-- A lesson is started at its earliest report, accessed last at its latest one, and completed at one in between.
SELECT user_id, enrolled_course_version_id AS course_version_id, lesson_id
FROM lesson_progress
WHERE status <> 'not_started'
    AND (started_at <= coalesce(completed_at, started_at) AND coalesce(completed_at, started_at) <= last_accessed_at) IS NOT TRUE;

\echo attempt_numbers_have_no_gaps
-- Attempts at a quiz are numbered 1, 2, 3, …, so that limits count right; those that were set aside together likewise.
SELECT user_id, enrolled_course_version_id AS course_version_id, quiz_id, reset_id
FROM (
    SELECT user_id, enrolled_course_version_id, quiz_id, NULL::uuid AS reset_id, attempt_number FROM quiz_attempts
    UNION ALL
    SELECT user_id, enrolled_course_version_id, quiz_id, reset_id, attempt_number FROM quiz_attempts_set_aside
) a
GROUP BY user_id, enrolled_course_version_id, quiz_id, reset_id
HAVING count(*) <> max(attempt_number) OR count(DISTINCT attempt_number) <> count(*);

\echo attempt_times_are_in_order
-- An attempt ends after it started, and one that ran out ended when its time did.
SELECT id
FROM all_quiz_attempts
WHERE (started_at <= coalesce(completed_at, started_at)) IS NOT TRUE OR expires_at < started_at
    OR NOT in_time AND completed_at IS DISTINCT FROM expires_at;

\echo attempts_that_ran_out_are_closed
-- quiz_maintenance closes attempts whose time and grace are over, with what was saved, within seconds.
SELECT a.id
FROM quiz_attempts a
JOIN enrollments e ON e.user_id = a.user_id AND e.course_version_id = a.enrolled_course_version_id
WHERE a.completed_at IS NULL AND a.expires_at < now() - interval '5 minutes'
    AND (e.inactive_since IS NULL OR a.expires_at <= e.inactive_since);

\echo scores_equal_their_evidence
-- A score is 100 × points earned ÷ points possible, and passed is what reaches the threshold, by the exact number: anyone can
-- count it again years later. `pass_kept` marks a pass that the score no longer gives. The points are exact fractions; sixty
-- digits of them tell all that differs, unless a quiz is worth less than 1e-20 points.
WITH graded AS (
    SELECT id, score, is_passed, pass_kept, pass_threshold_percentage, question_results FROM all_quiz_attempts
    WHERE completed_at IS NOT NULL
    UNION ALL
    SELECT g.attempt_id, g.score, g.is_passed, g.pass_kept, a.pass_threshold_percentage, g.question_results
    FROM quiz_attempt_gradings g JOIN all_quiz_attempts a ON a.id = g.attempt_id
), counted AS (
    SELECT g.id, g.score, g.is_passed, g.pass_kept, g.pass_threshold_percentage, q.earned, q.possible
    FROM graded g
    CROSS JOIN LATERAL (
        SELECT
            sum(CASE WHEN r.points_earned LIKE '%/%'
                THEN round(split_part(r.points_earned, '/', 1)::numeric, 60) / split_part(r.points_earned, '/', 2)::numeric
                ELSE r.points_earned::numeric END) AS earned,
            sum(CASE WHEN r.points_possible LIKE '%/%'
                THEN round(split_part(r.points_possible, '/', 1)::numeric, 60) / split_part(r.points_possible, '/', 2)::numeric
                ELSE r.points_possible::numeric END) AS possible
        FROM jsonb_to_recordset(g.question_results) AS r (points_earned text, points_possible text)
    ) q
), judged AS (
    SELECT id, score, is_passed, pass_kept, round(100 * earned, 60) / possible AS exact,
        100 * earned >= (pass_threshold_percentage - 1e-40) * possible AS is_deserved
    FROM counted WHERE possible > 1e-20
)
SELECT DISTINCT id
FROM judged
WHERE abs(score - exact::float8) > 1e-9 OR is_passed <> (is_deserved OR pass_kept) OR pass_kept AND is_deserved;

\echo evidence_is_of_the_answer_key
-- An attempt names the answer key that it was graded by, which is there, and has a result for each of the key's questions.
WITH graded AS (
    SELECT id, key_course_version_id, quiz_id, key_version, question_results FROM all_quiz_attempts WHERE completed_at IS NOT NULL
    UNION ALL
    SELECT g.attempt_id, a.key_course_version_id, a.quiz_id, g.key_version, g.question_results
    FROM quiz_attempt_gradings g LEFT JOIN all_quiz_attempts a ON a.id = g.attempt_id
)
SELECT DISTINCT g.id
FROM graded g
LEFT JOIN (
    SELECT course_version_id, quiz_id, key_version, jsonb_path_query_array(questions, '$[*].question_id') AS question_ids
    FROM quiz_answer_keys
) k ON k.course_version_id = g.key_course_version_id AND k.quiz_id = g.quiz_id AND k.key_version = g.key_version
WHERE k.question_ids IS DISTINCT FROM jsonb_path_query_array(g.question_results, '$[*].question_id');

\echo grades_are_by_the_present_key
-- After a correction all attempts are graded again; none is left with an older key unless that is still going on.
SELECT a.id, a.key_course_version_id, a.quiz_id
FROM quiz_attempts a
JOIN course_version_quizzes q ON q.course_version_id = a.key_course_version_id AND q.quiz_id = a.quiz_id
WHERE a.key_version < q.key_version AND NOT EXISTS (
    SELECT FROM quiz_regrades r
    WHERE r.course_version_id = q.course_version_id AND r.quiz_id = q.quiz_id AND NOT r.dry_run AND r.completed_at IS NULL
);

\echo regrades_go_on
-- A regrade is worked on until it is done. None waits for more than five minutes, is put off for longer, or takes a day.
SELECT id
FROM quiz_regrades
WHERE completed_at IS NULL AND (
    leased_until NOT BETWEEN now() - interval '5 minutes' AND now() + interval '10 minutes'
    OR requested_at < now() - interval '1 day'
);

\echo copies_are_of_the_same_learner
-- An attempt that was carried over is a copy of one of the same learner at the same quiz.
SELECT a.id
FROM all_quiz_attempts a
LEFT JOIN all_quiz_attempts o ON o.id = a.transferred_from
WHERE a.transferred_from IS NOT NULL AND (a.user_id, a.quiz_id) IS DISTINCT FROM (o.user_id, o.quiz_id);

\echo what_was_set_aside_is_of_a_reset
-- What was set aside belongs to the act that did it, of the same enrolment, or the history could not show it.
SELECT s.of_table, s.user_id, s.course_version_id, s.reset_id
FROM (
    SELECT 'lesson_progress_set_aside' AS of_table, user_id, enrolled_course_version_id AS course_version_id, reset_id
    FROM lesson_progress_set_aside
    UNION ALL
    SELECT 'quiz_attempts_set_aside', user_id, enrolled_course_version_id, reset_id FROM quiz_attempts_set_aside
) s
LEFT JOIN enrollment_history h ON h.id = s.reset_id
WHERE (s.user_id, s.course_version_id, 'reset') IS DISTINCT FROM (h.user_id, h.course_version_id, h.type);

-- Certificates

\echo certificates_attest_a_completion
-- A certificate is of an enrolment that was completed at some time, in a course version that gives certificates.
SELECT c.id
FROM certificates c
JOIN course_versions v ON v.course_version_id = c.course_version_id
WHERE NOT v.certificate_enabled OR NOT EXISTS (
    SELECT FROM enrollment_history h
    WHERE h.user_id = c.user_id AND h.course_version_id = c.course_version_id AND h.type = 'completed'
);

\echo withdrawn_completions_are_not_attested
-- Where grading again took a completion back, the certificate is revoked, until it is completed again or someone reinstates it.
SELECT c.id
FROM certificates c
LEFT JOIN (
    SELECT DISTINCT ON (user_id, course_version_id) user_id, course_version_id, type FROM enrollment_history
    WHERE type IN ('completed', 'completion_withdrawn', 'certificate_reinstated')
        OR type = 'reactivated' AND from_status = 'completed'
    ORDER BY user_id, course_version_id, position DESC
) h ON h.user_id = c.user_id AND h.course_version_id = c.course_version_id
WHERE c.revoked_at IS NULL AND (c.completion_withdrawn OR h.type IN ('reactivated', 'completion_withdrawn'));

\echo certificate_uids_have_their_check_character
-- A uid is 23 characters of Crockford's base 32 and, modulo 37, a check character: otherwise nobody can look it up.
WITH weights AS MATERIALIZED (
    SELECT n, mod(power(32::numeric, 23 - n), 37)::int AS weight FROM generate_series(1, 23) AS n
), spelled AS (
    SELECT id, certificate_uid, replace(certificate_uid, '-', '') AS characters FROM certificates
)
SELECT s.id
FROM spelled s
WHERE s.certificate_uid !~ '^([0-9A-HJKMNP-TV-Z]{4}-){5}[0-9A-HJKMNP-TV-Z]{4}$'
    OR strpos('0123456789ABCDEFGHJKMNPQRSTVWXYZ', right(s.characters, 1)) - 1 <> (
        SELECT sum((strpos('0123456789ABCDEFGHJKMNPQRSTVWXYZ', substr(s.characters, w.n, 1)) - 1) * w.weight) % 37 FROM weights w
    );

\echo certificates_say_what_they_attest
-- What a certificate says is frozen in it, whole, and it expires if its course version says so.
SELECT c.id
FROM certificates c
JOIN course_versions v ON v.course_version_id = c.course_version_id
WHERE num_nulls(
    c.metadata ->> 'learner_name', c.metadata ->> 'course_title', c.metadata ->> 'version', c.metadata ->> 'issuer_name',
    c.metadata ->> 'completed_at'
) > 0 OR (c.expires_at IS NULL) <> (v.certificate_valid_for_days IS NULL);

\echo certificates_are_issued
-- Whoever completed a course version that gives certificates, and has a name, has one, renewed where it had expired; or what
-- makes it is on its way: an event that is unsent, or was sent within the last hour.
WITH under_way AS (
    SELECT (data ->> 'user_id')::uuid AS user_id, (data ->> 'course_version_id')::uuid AS course_version_id FROM outbox
    WHERE (sent_at IS NULL OR sent_at > now() - interval '1 hour') AND type IN ('enrollment.completed', 'enrollment.reinstated')
)
SELECT e.user_id, e.course_version_id
FROM enrollments e
JOIN course_versions v ON v.course_version_id = e.course_version_id AND v.certificate_enabled
JOIN learners l ON l.user_id = e.user_id AND l.name IS NOT NULL
LEFT JOIN certificates c ON c.user_id = e.user_id AND c.course_version_id = e.course_version_id
WHERE e.status = 'completed' AND (c.id IS NULL OR is_renewed_by(c, e.completed_at)) AND NOT EXISTS (
    SELECT FROM under_way u WHERE u.user_id = e.user_id AND u.course_version_id = e.course_version_id
);

\echo certificates_get_their_parts
-- A certificate that lacks its document or a credential is due to get it, and is not due for more than ten minutes, nor tried
-- in vain for half an hour.
SELECT id
FROM certificates
WHERE num_nulls(pdf_url, credential, credential_jwt) > 0 AND (due_at IS NULL OR due_at > now() + interval '1 hour')
    OR due_at < now() - interval '10 minutes' OR due_at IS NOT NULL AND tries > 8;

\echo snapshots_are_kept
-- Of every revision of a certificate before the present one there is one snapshot; older ones than the first have no number.
SELECT c.id
FROM certificates c
LEFT JOIN certificate_snapshots s ON s.certificate_id = c.id
GROUP BY c.id
HAVING c.revision - 1 <> count(s.revision) OR count(DISTINCT s.revision) <> count(s.revision)
    OR max(s.revision) >= c.revision OR max(s.issued_at) > c.issued_at;

\echo status_entries_are_of_one_snapshot
-- A certificate and each snapshot of it have an entry of their own in a status list, or an old credential would pass for the
-- present one. The next one is not taken yet either.
SELECT status_entry
FROM (SELECT status_entry FROM certificates UNION ALL SELECT status_entry FROM certificate_snapshots) s
WHERE status_entry IS NOT NULL
GROUP BY status_entry
HAVING count(*) > 1 OR status_entry > (
    SELECT coalesce(last_value, CASE WHEN has_sequence_privilege('status_list_entries', 'USAGE, SELECT') THEN -1 END)
    FROM pg_sequences WHERE schemaname = 'public' AND sequencename = 'status_list_entries'
);

\echo revocations_reach_the_status_lists
-- Each entry's list exists, and one that has changed since it was signed is due, and is not due for more than ten minutes.
SELECT s.number
FROM (
    SELECT DISTINCT status_entry / 131072 AS number FROM certificates
    UNION
    SELECT DISTINCT status_entry / 131072 FROM certificate_snapshots WHERE status_entry IS NOT NULL
    UNION
    SELECT number FROM status_lists
) s
LEFT JOIN status_lists l ON l.number = s.number
WHERE l.number IS NULL OR l.due_at NOT BETWEEN now() - interval '10 minutes' AND now() + interval '1 hour'
    OR l.due_at IS NULL AND (l.credential IS NULL OR l.signed_changes IS DISTINCT FROM l.changes);

-- What is published

\echo sequence_is_not_behind
-- The next event of an enrolment gets the number after its `sequence`, so none that was given away may be above that.
SELECT e.user_id, e.course_version_id, e.sequence, g.sequence AS given
FROM enrollments e
JOIN (
    SELECT user_id, course_version_id, max(sequence) AS sequence
    FROM (
        SELECT user_id, course_version_id, sequence FROM enrollment_history
        UNION ALL
        SELECT (data ->> 'user_id')::uuid, (data ->> 'course_version_id')::uuid, (data ->> 'sequence')::bigint FROM outbox
        WHERE destination = 'bus'
    ) n
    GROUP BY user_id, course_version_id
) g ON g.user_id = e.user_id AND g.course_version_id = e.course_version_id
WHERE g.sequence > e.sequence;

\echo sequence_numbers_count_up
-- The events about an enrolment are numbered 1, 2, 3, …, without gap or repetition, so that consumers can put them in order.
WITH young AS MATERIALIZED (
    -- All that happened to an enrolment that was made recently is still in the outbox.
    SELECT user_id, course_version_id FROM enrollment_history WHERE type = 'created' AND recorded_at > now() - interval '29 days'
), told AS (
    SELECT (data ->> 'user_id')::uuid AS user_id, (data ->> 'course_version_id')::uuid AS course_version_id,
        (data ->> 'sequence')::bigint AS sequence, created_at > now() - interval '29 days' AS is_recent
    FROM outbox WHERE destination = 'bus'
), neighbours AS (
    SELECT user_id, course_version_id, sequence, is_recent, lag(sequence) OVER enrollment AS previous,
        lag(is_recent) OVER enrollment AS previous_is_recent, lead(sequence) OVER enrollment AS following
    FROM told
    WINDOW enrollment AS (PARTITION BY user_id, course_version_id ORDER BY sequence)
)
SELECT n.user_id, n.course_version_id, n.previous, n.sequence
FROM neighbours n
JOIN enrollments e ON e.user_id = n.user_id AND e.course_version_id = n.course_version_id
LEFT JOIN young y ON y.user_id = n.user_id AND y.course_version_id = n.course_version_id
WHERE n.previous IS NULL AND y.user_id IS NOT NULL AND n.sequence <> 1
    OR n.sequence = n.previous
    OR n.previous_is_recent AND n.sequence > n.previous + 1
    OR n.is_recent AND n.following IS NULL AND e.sequence > n.sequence;

\echo acts_are_published
-- An act of the history that has a number was published under it.
SELECT h.user_id, h.course_version_id, h.position, h.type
FROM enrollment_history h
WHERE h.sequence IS NOT NULL AND h.recorded_at > now() - interval '29 days' AND NOT EXISTS (
    SELECT FROM outbox o
    WHERE o.destination = 'bus' AND o.type = 'enrollment.' || h.type AND (o.data ->> 'user_id')::uuid = h.user_id
        AND (o.data ->> 'course_version_id')::uuid = h.course_version_id AND (o.data ->> 'sequence')::bigint = h.sequence
);

\echo completed_lessons_are_published
-- The completion of a lesson is published once, and once more when it is completed after the enrolment was started over.
WITH young AS MATERIALIZED (
    -- All that happened to an enrolment that was made recently is still in the outbox.
    SELECT user_id, course_version_id FROM enrollment_history WHERE type = 'created' AND recorded_at > now() - interval '29 days'
), told AS (
    SELECT (data ->> 'user_id')::uuid AS user_id, (data ->> 'course_version_id')::uuid AS course_version_id,
        (data ->> 'lesson_id')::uuid AS lesson_id, count(*) AS events
    FROM outbox WHERE destination = 'bus' AND type = 'lesson.completed'
    GROUP BY 1, 2, 3
), completed AS (
    SELECT user_id, course_version_id, lesson_id, count(*) AS times, max(completed_at) FILTER (WHERE counts) AS completed_at
    FROM (
        SELECT user_id, enrolled_course_version_id AS course_version_id, lesson_id, completed_at, TRUE AS counts
        FROM lesson_progress WHERE completed_at IS NOT NULL
        UNION ALL
        SELECT user_id, enrolled_course_version_id, lesson_id, completed_at, FALSE
        FROM lesson_progress_set_aside WHERE completed_at IS NOT NULL
    ) p
    GROUP BY user_id, course_version_id, lesson_id
), compared AS (
    SELECT user_id, course_version_id, lesson_id, coalesce(times, 0) AS times, completed_at, coalesce(events, 0) AS events
    FROM completed FULL JOIN told USING (user_id, course_version_id, lesson_id)
)
SELECT c.user_id, c.course_version_id, c.lesson_id, c.events
FROM compared c
JOIN enrollments e ON e.user_id = c.user_id AND e.course_version_id = c.course_version_id
LEFT JOIN young y ON y.user_id = c.user_id AND y.course_version_id = c.course_version_id
WHERE c.events > c.times OR y.user_id IS NOT NULL AND c.events < c.times
    OR c.completed_at > now() - interval '29 days' AND c.events = 0;

\echo graded_attempts_are_published
-- The grade of an attempt is published once.
WITH young AS MATERIALIZED (
    -- All that happened to an enrolment that was made recently is still in the outbox.
    SELECT user_id, course_version_id FROM enrollment_history WHERE type = 'created' AND recorded_at > now() - interval '29 days'
), told AS (
    SELECT (data ->> 'attempt_id')::uuid AS id, (data ->> 'user_id')::uuid AS user_id,
        (data ->> 'course_version_id')::uuid AS course_version_id, count(*) AS events
    FROM outbox WHERE destination = 'bus' AND type = 'quiz.graded'
    GROUP BY 1, 2, 3
), compared AS (
    SELECT id, user_id, course_version_id, a.completed_at, coalesce(t.events, 0) AS events
    FROM (
        SELECT id, user_id, enrolled_course_version_id AS course_version_id, completed_at FROM all_quiz_attempts
        WHERE completed_at IS NOT NULL
    ) a
    FULL JOIN told t USING (id, user_id, course_version_id)
)
SELECT c.id
FROM compared c
JOIN enrollments e ON e.user_id = c.user_id AND e.course_version_id = c.course_version_id
LEFT JOIN young y ON y.user_id = c.user_id AND y.course_version_id = c.course_version_id
WHERE c.completed_at IS NULL OR c.events > 1
    OR c.events = 0 AND (y.user_id IS NOT NULL OR c.completed_at > now() - interval '29 days');

\echo replaced_grades_are_published
-- Each grade that was replaced by grading again is told of, once.
SELECT id AS attempt_id, r.recently, t.events
FROM (
    SELECT attempt_id AS id, count(*) AS times, count(*) FILTER (WHERE replaced_at > now() - interval '29 days') AS recently
    FROM quiz_attempt_gradings GROUP BY attempt_id
) r
FULL JOIN (
    SELECT (o.data ->> 'attempt_id')::uuid AS id, count(*) AS events
    FROM outbox o
    JOIN enrollments e
        ON e.user_id = (o.data ->> 'user_id')::uuid AND e.course_version_id = (o.data ->> 'course_version_id')::uuid
    WHERE o.destination = 'bus' AND o.type = 'quiz.regraded'
    GROUP BY 1
) t USING (id)
WHERE coalesce(t.events, 0) NOT BETWEEN coalesce(r.recently, 0) AND coalesce(r.times, 0);

\echo certificates_are_published
-- A certificate's issue is published, the first one once, and so is its revocation.
WITH told AS (
    SELECT type, data ->> 'certificate_uid' AS certificate_uid, occurred_at FROM outbox
    WHERE destination = 'bus' AND type IN ('certificate.issued', 'certificate.reissued', 'certificate.revoked')
)
SELECT c.id
FROM certificates c
WHERE c.issued_at > now() - interval '29 days' AND NOT EXISTS (
    SELECT FROM told t WHERE t.certificate_uid = c.certificate_uid
        AND t.occurred_at = c.issued_at AND t.type <> 'certificate.revoked'
)
UNION
SELECT c.id
FROM certificates c
WHERE c.revoked_at > now() - interval '29 days' AND NOT EXISTS (
    SELECT FROM told t WHERE t.certificate_uid = c.certificate_uid
        AND t.occurred_at = c.revoked_at AND t.type = 'certificate.revoked'
)
UNION
SELECT c.id
FROM certificates c JOIN told t ON t.certificate_uid = c.certificate_uid AND t.type = 'certificate.issued'
GROUP BY c.id HAVING count(*) > 1;

-- The outbox

\echo outbox_is_sent
-- The relay looks every second: nothing is due for more than five minutes.
SELECT id, destination, type FROM outbox WHERE sent_at IS NULL AND available_at < now() - interval '5 minutes';

\echo outbox_gets_through
-- A row that was tried twenty times, for more than an hour, is refused by whom it is for.
SELECT id, destination, type, deliveries FROM outbox WHERE sent_at IS NULL AND deliveries >= 20;

\echo outbox_comes_up
-- A row is put off for twenty minutes at most, and an event waits for its enrolment or course version for a day at most.
SELECT id, destination, type FROM outbox
WHERE sent_at IS NULL AND (available_at > now() + interval '20 minutes' OR waiting_since < now() - interval '1 day');

\echo outbox_is_pruned
-- What was sent 30 days ago is removed, or the table grows for ever.
SELECT id FROM outbox WHERE sent_at < now() - interval '32 days';

-- Time

\echo nothing_is_dated_ahead
-- What is dated more than five minutes ahead is taken as of now, or refused: no time of what has happened lies beyond that.
SELECT 'enrollments' AS of_table, user_id, course_version_id FROM enrollments
WHERE greatest(
    enrolled_at, completed_at, status_changed_at, commanded_at, confirmed_at, revocation_confirmed_at, inactive_since, reset_at
) > now() + interval '5 minutes'
UNION ALL
SELECT 'lesson_progress', user_id, enrolled_course_version_id FROM lesson_progress
WHERE greatest(started_at, last_accessed_at, completed_at) > now() + interval '5 minutes'
UNION ALL
SELECT 'quiz_attempts', user_id, enrolled_course_version_id FROM quiz_attempts
WHERE greatest(started_at, completed_at) > now() + interval '5 minutes'
UNION ALL
SELECT 'requirement_waivers', user_id, course_version_id FROM requirement_waivers WHERE waived_at > now() + interval '5 minutes'
UNION ALL
SELECT 'certificates', user_id, course_version_id FROM certificates
WHERE greatest(issued_at, revoked_at) > now() + interval '5 minutes'
UNION ALL
SELECT 'enrollment_history', user_id, course_version_id FROM enrollment_history
WHERE greatest(occurred_at, recorded_at) > now() + interval '5 minutes';

COMMIT;
