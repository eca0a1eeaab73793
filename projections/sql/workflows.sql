-- Definitions, from the engine's facts.

-- The latest version of each workflow.
CREATE TABLE workflows (
    id         text PRIMARY KEY,
    name       text NOT NULL,
    version    text NOT NULL,
    definition json NOT NULL,               -- the Workflow as the engine said it
    defined_us bigint NOT NULL,             -- log time of this version, Unix µs
    position   bigint NOT NULL
);

-- The steps of every version; a version never changes.
CREATE TABLE workflow_steps (
    workflow_id text NOT NULL,
    version     text NOT NULL,
    ordinal     integer NOT NULL,           -- place in the array: the order in which steps run
    step_id     text NOT NULL,
    agent_id    text NOT NULL,
    action      text NOT NULL,
    inputs      json NOT NULL,
    outputs     json NOT NULL,
    conditions  json,
    timeout_ms  bigint,
    position    bigint NOT NULL,
    PRIMARY KEY (workflow_id, version, ordinal)
);
