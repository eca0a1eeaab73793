-- The event store: every message of the log, for ever, by its position.
-- Immutable by privilege: the service role may add and read, nobody but an administrator more.

CREATE SCHEMA store;

CREATE TABLE store.messages (
    position       bigint PRIMARY KEY,        -- sequence in the log: the one global order
    time_us        bigint NOT NULL,           -- when the log stored it, Unix µs
    kind           text NOT NULL,
    source         text NOT NULL,
    target         text NOT NULL,
    correlation_id text NOT NULL,
    message_id     text,
    causation_id   text,
    sent_at        double precision NOT NULL, -- the sender's claim, Unix ms
    raw            bytea NOT NULL,            -- byte for byte as it was sent
    payload        jsonb                      -- for SQL; NULL where jsonb cannot hold it (\u0000)
);

CREATE UNIQUE INDEX messages_message_id ON store.messages (message_id)
    WHERE message_id IS NOT NULL;
CREATE INDEX messages_conversation ON store.messages (correlation_id, position);

-- What reached the log and is no message of its own: malformed, forged, or a late duplicate.
CREATE TABLE store.quarantine (
    position bigint PRIMARY KEY,
    time_us  bigint NOT NULL,
    subject  text NOT NULL,
    code     text NOT NULL,
    reason   text NOT NULL,
    raw      bytea NOT NULL
);

GRANT USAGE ON SCHEMA store TO mcp_bus_service, mcp_bus_reader;
GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA store TO mcp_bus_service;
GRANT SELECT ON ALL TABLES IN SCHEMA store TO mcp_bus_reader;

-- Where each reader stands; written in the transaction of what was done up to there.
CREATE TABLE bus.checkpoints (
    name     text PRIMARY KEY,
    position bigint NOT NULL
);

-- Which log this is; a log made anew begins at 1 again, and its positions mean something else.
CREATE TABLE bus.log (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    identity text NOT NULL
);

GRANT USAGE ON SCHEMA bus TO mcp_bus_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON bus.checkpoints, bus.log TO mcp_bus_service;

-- The read models, disposable: their tables are made by the projector, which owns the schema.
CREATE SCHEMA read AUTHORIZATION mcp_bus_service;
GRANT USAGE ON SCHEMA read TO mcp_bus_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE mcp_bus_service GRANT USAGE ON SCHEMAS TO mcp_bus_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE mcp_bus_service GRANT SELECT ON TABLES TO mcp_bus_reader;
