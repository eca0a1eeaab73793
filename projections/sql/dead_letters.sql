-- Requests that no agent could finish, and what was sent anew of them.

CREATE TABLE dead_letters (
    position         bigint PRIMARY KEY,    -- of the fact, or of the registry's answer, that says so
    time_us          bigint NOT NULL,
    name             text NOT NULL,         -- under which redrives know it
    asker            text NOT NULL,
    agent_id         text,                  -- of a step these stand in execution_steps
    action           text,
    request_position bigint,
    error            json NOT NULL,         -- {code, message, retryable, details}
    workflow_id      text,                  -- of a step
    execution_id     text,
    step_id          text,
    item             integer,               -- of a step with forEach, from 0
    undoes           boolean NOT NULL       -- what could not be done is to undo the step
);

-- What was sent anew, the last time: executions that begin again at a step, and single requests.
CREATE TABLE redrives (
    name     text PRIMARY KEY,              -- EXECUTION/STEP, or the position of a dead letter
    redriver text NOT NULL,                 -- the new execution, or the id of the new request
    time_us  bigint NOT NULL,
    position bigint NOT NULL
);
