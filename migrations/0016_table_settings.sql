-- When vacuum clears away what changes leave behind. By default that is once a fifth of a table is dead, on RDS and Aurora a tenth: the
-- larger the table, the longer it waits.

SET LOCAL lock_timeout = '1s';
SET LOCAL statement_timeout = '60s';

-- One report in seven leaves a row behind to which indexes still lead.
ALTER TABLE lesson_progress SET (autovacuum_vacuum_scale_factor = 0.02);

-- The relay passes over what it has sent since the last vacuum, each time that it looks for what is unsent. These rows are on few
-- pages, the latest ones, and then vacuum leaves the indexes alone, unless told otherwise.
ALTER TABLE outbox SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000, vacuum_index_cleanup = on
);
