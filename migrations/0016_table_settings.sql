-- How the tables that change most are kept in order. Whatever a change leaves behind is cleared away by vacuum, which by default
-- begins when a fifth of a table (on RDS and Aurora a tenth) is dead: the larger the table, the longer it waits.

SET LOCAL lock_timeout = '1s';
SET LOCAL statement_timeout = '60s';

-- The relay passes over what it has sent since the last vacuum, each time that it looks for what is unsent: half a million rows are
-- 13 ms. Dead rows are on few pages, those of the latest rows, and vacuum leaves the indexes alone then, unless told otherwise.
ALTER TABLE outbox SET (
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000, vacuum_index_cleanup = on
);
