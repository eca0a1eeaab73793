-- Positions that hold nothing, because the log lost what was there or was moved past it (`repair`).
-- Every position up to the recorder's checkpoint is in messages, in quarantine, or in one of these.

CREATE TABLE store.gaps (
    next       bigint PRIMARY KEY,   -- the first position behind the gap
    first      bigint NOT NULL,      -- and the first in it; none is lost where both are the same
    why        text NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    message_id text NOT NULL,        -- of LogRepaired, by which the log tells of it
    CHECK (first <= next)
);

GRANT SELECT, INSERT ON store.gaps TO mcp_bus_service;
GRANT SELECT ON store.gaps TO mcp_bus_reader;
