-- Who is known and what they can do, from the registry's facts.
-- `position` is everywhere the last position that changed a row.

CREATE TABLE agents (
    id            text PRIMARY KEY,
    type          text NOT NULL,
    status        text NOT NULL,            -- active; inactive, which is one of the next three
    deactivated   boolean NOT NULL,         -- by its own wish, or its owner's
    silent        boolean,                  -- no heartbeat; NULL: never heard
    revoked       boolean NOT NULL,         -- until reinstated
    owner         text NOT NULL,
    version       bigint NOT NULL,          -- of the last fact
    capabilities  json NOT NULL,            -- as they were registered
    about         json NOT NULL,            -- version, description, tags, maxConcurrency, if given
    agent_version text,
    tags          json NOT NULL,            -- list of texts
    words         text NOT NULL,            -- what a search by text looks at
    registered_us bigint NOT NULL,          -- log time, Unix µs
    changed_us    bigint NOT NULL,
    position      bigint NOT NULL
);
CREATE INDEX ON agents USING gin (to_tsvector('simple', words));

-- Each capability that any agent ever had, and how many have it now.
CREATE TABLE capabilities (
    name     text PRIMARY KEY,
    agents   bigint NOT NULL,
    position bigint NOT NULL
);

CREATE TABLE agent_capabilities (
    agent_id   text NOT NULL,
    ordinal    integer NOT NULL,            -- place in the agent's list
    capability text NOT NULL,
    actions    json NOT NULL,               -- list of ids
    parameters json NOT NULL,
    position   bigint NOT NULL,
    PRIMARY KEY (agent_id, ordinal)
);
CREATE INDEX ON agent_capabilities (capability, agent_id);
