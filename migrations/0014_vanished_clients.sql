-- A function that Lambda has ended no longer waits for its statement, which would hold its locks until it is done, for as long as
-- 25 seconds. With this the server looks after its client every two seconds while a statement runs.

DO $$
DECLARE
    name text;
BEGIN
    IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) THEN
        RETURN;
    END IF;
    FOREACH name IN ARRAY ARRAY['learner_progress_app', 'learner_progress_relay', 'learner_progress_report'] LOOP
        EXECUTE format('ALTER ROLE %I SET client_connection_check_interval = ''2s''', name);
    END LOOP;
END
$$;
