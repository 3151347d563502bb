-- Everything that leaves the service, written in the transaction that it tells of and sent by outbox_relay.

SET LOCAL lock_timeout = '4s';
SET LOCAL statement_timeout = '60s';

-- How every time leaves the service: RFC 3339 in UTC, whatever the session's time zone.
CREATE FUNCTION rfc3339(moment timestamptz) RETURNS text LANGUAGE sql IMMUTABLE
RETURN to_char(moment AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');

CREATE TABLE outbox (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now(),
    destination text NOT NULL CHECK (destination IN ('bus', 'queue', 'dead_letter_queue')),
    -- Which queue (enrollment, progress, quiz, certificate, catalog); NULL for the bus.
    queue text CHECK ((queue IS NULL) = (destination = 'bus')),
    -- An event of our own: its type, the time of what it tells of, and its data.
    type text,
    occurred_at timestamptz,
    data jsonb,
    -- A message that could not be taken: its body as it came, why, how often it was tried, and since when it waits.
    body text,
    reason text,
    code text,
    tries integer NOT NULL DEFAULT 0,
    waiting_since timestamptz,
    -- The same event set apart twice is one row; the SQS message it came in tells a redelivery from a new complaint.
    message_key bytea UNIQUE,
    message_id text,
    -- Not to be sent before; the relay moves it on while it sends, so that a killed relay's rows come up again.
    available_at timestamptz NOT NULL DEFAULT now(),
    deliveries integer NOT NULL DEFAULT 0,
    sent_at timestamptz,
    error text,
    CONSTRAINT outbox_event_or_message CHECK (num_nonnulls(type, occurred_at, data) = 3 AND body IS NULL OR num_nonnulls(type, occurred_at, data) = 0 AND body IS NOT NULL)
);
CREATE INDEX outbox_unsent_idx ON outbox (available_at) WHERE sent_at IS NULL;
-- Sent rows are the feed of changes for 30 days, then the relay removes them.
CREATE INDEX outbox_sent_idx ON outbox (sent_at) WHERE sent_at IS NOT NULL;
