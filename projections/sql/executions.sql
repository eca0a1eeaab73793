-- Executions and their steps, from the engine's conversation with the agents.

CREATE TABLE executions (
    id          text PRIMARY KEY,           -- also the correlation id of all its messages
    workflow_id text NOT NULL,
    version     text,                       -- NULL while it is pending
    status      text NOT NULL,              -- pending, running, waiting, paused, compensating;
                                            -- completed, failed, cancelled
    inputs      json,
    output_step text,                       -- the last step that completed: its outputs are ours
    outputs     json,                       -- where the engine named them
    error       json,                       -- {code, message, retryable, details}
    parent_id   text,                       -- the execution a step of which started it
    rerun_of    text,                       -- the execution whose answers it keeps
    rerun_from  text,                       -- the step at which it began again
    started_us  bigint NOT NULL,            -- log time of the command, Unix µs
    ended_us    bigint,
    position    bigint NOT NULL             -- also moved by each of its steps
);
CREATE INDEX ON executions (started_us, workflow_id, status);

-- Which executions a workflow had, in the order of their commands.
CREATE TABLE workflow_executions (
    execution_id     text PRIMARY KEY,
    workflow_id      text NOT NULL,
    started_position bigint NOT NULL,
    position         bigint NOT NULL
);
CREATE INDEX ON workflow_executions (workflow_id, started_position);

-- Steps that were asked for, skipped or failed; those still pending stand in workflow_steps.
CREATE TABLE execution_steps (
    execution_id      text NOT NULL,
    step_id           text NOT NULL,
    agent_id          text,
    action            text,
    status            text NOT NULL,        -- running, waiting, retrying, completed, skipped, failed,
                                            -- cancelled, undoing, undone, not_undone
    attempt           integer NOT NULL,
    child_id          text,                 -- the execution that it started; NULL of one with forEach
    items             integer,              -- of a step with forEach, which has no request of its own
    inputs            json,
    outputs           json,
    error             json,
    request_id        text,
    request_position  bigint,
    response_position bigint,
    kept_position     bigint,               -- of what ended it in the execution that was run again
    started_us        bigint,
    ended_us          bigint,
    position          bigint NOT NULL,
    PRIMARY KEY (execution_id, step_id)
);
