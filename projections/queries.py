"""The questions that read models answer, each one SQL statement, in the shapes of the REST API.

Times are Unix ms, durations ms with fractions. Every function takes a pool and raises Unavailable
`store_unavailable` while the database is away, or while its read models are not built yet. What
is not there is None or empty; whether that is an error is for the caller to say.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from mcp_bus.config import EXECUTIONS_SHOWN_MAX, PAGE_BYTES_MAX, ROWS_MAX
from mcp_bus.errors import Unavailable
from mcp_bus.store import event_store
from projections.analytics import middle_ms

HOUR_MS = 3_600_000
PERCENTILES = ("p50", "p90", "p95", "p99")
Json = dict[str, Any]

_WORKFLOW = """
SELECT definition, (
    SELECT json_agg(json_build_object(
        'id', e.id, 'version', e.version, 'status', e.status,
        'started', e.started_us / 1000, 'ended', e.ended_us / 1000
    ) ORDER BY newest.started_position DESC)
    FROM (
        SELECT execution_id, started_position FROM read.workflow_executions
        WHERE workflow_id = $1 ORDER BY started_position DESC LIMIT $2
    ) AS newest
    JOIN read.executions AS e ON e.id = newest.execution_id
) AS executions
FROM read.workflows
WHERE id = $1
"""

# one row per step of the version that ran; an execution without known steps is one row of NULLs
_EXECUTION = """
SELECT
    e.id, e.workflow_id, e.version, e.status, e.inputs, e.error, e.output_step, e.outputs,
    e.started_us / 1000 AS started, e.ended_us / 1000 AS ended,
    e.parent_id, e.rerun_of, e.rerun_from,
    CASE WHEN e.ended_us IS NOT NULL THEN e.position END AS end_position,
    planned.step_id, coalesce(s.agent_id, planned.agent_id) AS agent_id, planned.action,
    coalesce(s.status, 'pending') AS step_status, coalesce(s.attempt, 0) AS attempt,
    s.items, s.child_id, s.inputs AS step_inputs, s.outputs AS step_outputs, s.error AS step_error,
    s.request_position, s.response_position, s.kept_position,
    s.started_us / 1000 AS step_started, s.ended_us / 1000 AS step_ended
FROM read.executions AS e
LEFT JOIN read.workflow_steps AS planned
    ON planned.workflow_id = e.workflow_id AND planned.version = e.version
LEFT JOIN read.execution_steps AS s
    ON s.execution_id = e.id AND s.step_id = planned.step_id
WHERE e.id = $1
ORDER BY planned.ordinal
"""

_PERFORMANCE = """
WITH buckets AS (
    SELECT agent_id, action, bucket, sum(count) AS count, max(max_us) AS max_us
    FROM read.analytics
    WHERE metric = 'performance' AND hour >= $1 AND hour < $2
    GROUP BY agent_id, action, bucket
), ranked AS (
    SELECT *,
        sum(count) OVER (PARTITION BY agent_id, action) AS total,
        sum(count) OVER (PARTITION BY agent_id, action ORDER BY bucket) AS upto
    FROM buckets
)
SELECT
    agent_id, action, sum(count)::bigint AS count, max(max_us) AS max_us,
    min(bucket) FILTER (WHERE upto >= total * 0.50) AS p50,
    min(bucket) FILTER (WHERE upto >= total * 0.90) AS p90,
    min(bucket) FILTER (WHERE upto >= total * 0.95) AS p95,
    min(bucket) FILTER (WHERE upto >= total * 0.99) AS p99
FROM ranked
GROUP BY agent_id, action
ORDER BY agent_id COLLATE "C", action COLLATE "C"
LIMIT $3
"""

_USAGE = """
SELECT 'messages' AS what, source, target, kind, sum(count)::bigint AS count,
    sum(bytes)::bigint AS bytes
FROM read.analytics
WHERE metric = 'usage' AND hour >= $1 AND hour < $2
GROUP BY source, target, kind
UNION ALL
SELECT 'executions', workflow_id, status, NULL, count(*), NULL
FROM read.executions
WHERE started_us >= $1 * 1000 AND started_us < $2 * 1000
GROUP BY workflow_id, status
ORDER BY 1, 2, 3, 4
LIMIT $3
"""

_ERRORS = """
SELECT code, agent_id, action, workflow_id, step_id, sum(count)::bigint AS count,
    min(first_us) / 1000 AS first_seen, max(last_us) / 1000 AS last_seen, max(sample) AS sample
FROM read.analytics
WHERE metric = 'errors' AND hour >= $1 AND hour < $2
GROUP BY code, agent_id, action, workflow_id, step_id
ORDER BY count DESC, max(sample) DESC
LIMIT $3
"""


async def workflow(pool: asyncpg.Pool, id: str) -> Json | None:
    """The latest version of a workflow, with its newest executions; None if there is none."""
    async with asking(pool) as connection:
        row = await connection.fetchrow(_WORKFLOW, id, EXECUTIONS_SHOWN_MAX)
    if row is None:
        return None
    definition: Json = json.loads(row["definition"])
    return definition | {"executions": _value(row["executions"]) or []}


async def execution(pool: asyncpg.Pool, id: str) -> Json | None:
    """An execution with all steps of its version; `outputs` are those of its last step."""
    async with asking(pool) as connection:
        rows = await connection.fetch(_EXECUTION, id)
    if not rows:
        return None
    steps = [_execution_step(row) for row in rows if row["step_id"] is not None]
    first = rows[0]
    completed = first["status"] == "completed"
    last = [s["outputs"] for s in steps if completed and s["id"] == first["output_step"]]
    return {
        "id": first["id"],
        "workflowId": first["workflow_id"],
        "version": first["version"],
        "correlationId": first["id"],
        "status": first["status"],
        "inputs": _value(first["inputs"]),
        "outputs": last[0] if last and first["outputs"] is None else _value(first["outputs"]),
        "error": _value(first["error"]),
        "parentId": first["parent_id"],
        "rerunOf": first["rerun_of"],
        "rerunFrom": first["rerun_from"],
        "started": first["started"],
        "ended": first["ended"],
        "endPosition": first["end_position"],
        "steps": steps,
    }


async def conversation(
    pool: asyncpg.Pool, correlation_id: str, after: int = 0, limit: int = 100
) -> Json:
    """A page of a conversation in the order of the log; `next` is the `after` of the next page."""
    async with asking(pool) as connection:
        messages, more = await event_store.read_conversation(
            connection, correlation_id, after, limit, PAGE_BYTES_MAX
        )
    return {
        "messages": [
            {"position": m.position, "time": m.time_us // 1000, "message": json.loads(m.raw)}
            for m in messages
        ],
        "next": messages[-1].position if more else None,
    }


async def performance(pool: asyncpg.Pool, from_ms: int, to_ms: int) -> Json:
    """How long each action of each agent took, by the log's time, from request to answer."""
    rows, answer = await _period(pool, _PERFORMANCE, from_ms, to_ms)
    answer["rows"] = [
        {
            "agentId": row["agent_id"],
            "action": row["action"],
            "count": row["count"],
            **{
                f"{p}Ms": _percentile_ms(row[p], row["max_us"])
                for p in ("p50", "p90", "p95", "p99")
            },
            "maxMs": row["max_us"] / 1000,
        }
        for row in rows
    ]
    return answer | {"next": None}


async def usage(pool: asyncpg.Pool, from_ms: int, to_ms: int) -> Json:
    """Messages by source, target and kind (events by source alone); executions by status."""
    rows, answer = await _period(pool, _USAGE, from_ms, to_ms)
    answer["rows"] = [
        {
            "source": row["source"],
            "target": row["target"],
            "kind": row["kind"],
            "messages": row["count"],
            "bytes": row["bytes"],
        }
        for row in rows
        if row["what"] == "messages"
    ]
    answer["executions"] = [
        {"workflowId": row["source"], "status": row["target"], "count": row["count"]}
        for row in rows
        if row["what"] == "executions"
    ]
    return answer


async def errors(pool: asyncpg.Pool, from_ms: int, to_ms: int) -> Json:
    """What went wrong, most frequent first, each with the position of the last one."""
    rows, answer = await _period(pool, _ERRORS, from_ms, to_ms)
    answer["rows"] = [
        {
            "code": row["code"],
            "agentId": row["agent_id"],
            "action": row["action"],
            "workflowId": row["workflow_id"],
            "stepId": row["step_id"],
            "count": row["count"],
            "firstSeen": row["first_seen"],
            "lastSeen": row["last_seen"],
            "samplePosition": row["sample"],
        }
        for row in rows
    ]
    return answer | {"next": None}


async def position(pool: asyncpg.Pool) -> int:
    """Up to which position the read models are."""
    async with asking(pool) as connection:
        return await event_store.checkpoint(connection, event_store.READ)


@asynccontextmanager
async def asking(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection; a database that is away is told as such."""
    try:
        with event_store.answering():
            async with pool.acquire() as connection:
                yield connection
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):  # or another release's
        raise Unavailable("the read models are not built yet", code="store_unavailable") from None


async def _period(pool: asyncpg.Pool, sql: str, from_ms: int, to_ms: int) -> tuple[list[Any], Json]:
    """Rows of whole hours, and the period that they cover."""
    start, end = from_ms // HOUR_MS * HOUR_MS, -(-to_ms // HOUR_MS) * HOUR_MS
    async with asking(pool) as connection:
        return await connection.fetch(sql, start, end, ROWS_MAX), {"from": start, "to": end}


def _execution_step(row: Any) -> Json:
    return {
        "id": row["step_id"],
        "agentId": row["agent_id"],
        "action": row["action"],
        "status": row["step_status"],
        "attempt": row["attempt"],
        "items": row["items"],
        "childId": row["child_id"],
        "inputs": _value(row["step_inputs"]),
        "outputs": _value(row["step_outputs"]),
        "error": _value(row["step_error"]),
        "requestPosition": row["request_position"],
        "responsePosition": row["response_position"],
        "keptPosition": row["kept_position"],
        "started": row["step_started"],
        "ended": row["step_ended"],
    }


def _percentile_ms(bucket: int, max_us: int) -> float:
    return round(min(middle_ms(bucket), max_us / 1000), 3)


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)
