-- Whom the service logs in as. Each function has no more rights than it needs, and a statement that hangs is ended before the
-- function is. The settings are those of the roles, because a SET would pin a connection of RDS Proxy.
--
-- Roles belong to the whole server. Whoever migrates a database of their own without the right to make roles goes without.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

DO $$
DECLARE
    name text;
BEGIN
    IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) THEN
        RAISE NOTICE 'no roles are made: % may not create roles', current_user;
        RETURN;
    END IF;
    FOREACH name IN ARRAY ARRAY['learner_progress_app', 'learner_progress_relay', 'learner_progress_report'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
        -- On RDS and Aurora this lets it log in by an IAM token, and by nothing else.
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_iam') THEN
            EXECUTE format('GRANT rds_iam TO %I', name);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
        EXECUTE format('GRANT USAGE ON SCHEMA public TO %I', name);
        EXECUTE format('ALTER ROLE %I SET lock_timeout = ''5s''', name);
        EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = ''10s''', name);
    END LOOP;
    -- The workers' invocations end after 30 s, or 60; a learner's request after 10.
    ALTER ROLE learner_progress_app SET statement_timeout = '25s';
    ALTER ROLE learner_progress_relay SET statement_timeout = '15s';
    ALTER ROLE learner_progress_report SET statement_timeout = '9s';

    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO learner_progress_app;
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO learner_progress_app;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO learner_progress_app;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO learner_progress_app;

    GRANT SELECT ON ALL TABLES IN SCHEMA public TO learner_progress_report;
    ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO learner_progress_report;

    GRANT SELECT, UPDATE, DELETE ON outbox TO learner_progress_relay;
END
$$;
