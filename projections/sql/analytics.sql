-- Hourly rollups; what a metric has no use for is NULL. Every number merges, so any period is a
-- sum of hours.
--   performance  agent_id, action, bucket: count answers of a duration within the bucket
--   usage        source, target, kind: count messages of bytes in all
--   errors       code, agent_id, action, workflow_id, step_id: count, first, last and a sample

CREATE TABLE analytics (
    metric      text NOT NULL,
    hour        bigint NOT NULL,            -- its start, Unix ms
    agent_id    text,
    action      text,
    bucket      integer,                    -- durations from 1.02^bucket up to 1.02^(bucket+1) µs
    source      text,
    target      text,                       -- '*' for events: what they are about is no target
    kind        text,
    code        text,
    workflow_id text,
    step_id     text,
    count       bigint NOT NULL,
    bytes       bigint NOT NULL,
    max_us      bigint NOT NULL,
    first_us    bigint NOT NULL,
    last_us     bigint NOT NULL,
    sample      bigint NOT NULL,            -- position of the last one
    UNIQUE NULLS NOT DISTINCT (
        metric, hour, agent_id, action, bucket, source, target, kind, code, workflow_id, step_id
    )
);
