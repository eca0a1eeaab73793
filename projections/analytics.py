"""Analytics: performance, usage and errors as hourly rollups that only ever add up.

A duration is the log's time between a request and the answer that names it as its cause, counted
in buckets that grow by 2 %: percentiles over any period are then within 1 % and need no single
durations. A fact's target is what it is about, one of any number of ids, so events are counted by
their source alone. Nothing is loaded: each batch adds to what is there.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate, repeat
from operator import mul
from typing import Any

import asyncpg

from mcp_bus.config import LOOK_UP_MAX
from mcp_bus.messages import is_error
from mcp_bus.store import event_store
from mcp_bus.subjects import DECIDERS, REGISTRY, WORKFLOWS, is_id
from projections.projection import (
    ADDED,
    LARGEST,
    SMALLEST,
    Batch,
    Changes,
    Entry,
    Projection,
    Row,
    Table,
    entry,
    error_of,
    hour_of,
    label,
)

Key = tuple[Any, ...]

LABELS = {
    "agent_id": "text",
    "action": "text",
    "bucket": "integer",
    "source": "text",
    "target": "text",
    "kind": "text",
    "code": "text",
    "workflow_id": "text",
    "step_id": "text",
}
MERGE = {
    "count": ADDED,
    "bytes": ADDED,
    "max_us": LARGEST,
    "first_us": SMALLEST,
    "last_us": LARGEST,
    "sample": LARGEST,
}
KEY = {"metric": "text", "hour": "bigint"} | LABELS
TABLE = Table("analytics", tuple(KEY), KEY | dict.fromkeys(MERGE, "bigint"), merge=MERGE)

ANY_TARGET = "*"
RATIO = 1.02
MIDDLE = math.sqrt(RATIO)
BUCKETS_MAX = 1500  # 1.02^1500 µs is 90 days
# products instead of a logarithm: the same on every machine, to the last bit
BOUNDS = list(accumulate(repeat(RATIO, BUCKETS_MAX), mul, initial=1.0))


async def fold(connection: asyncpg.Connection, batch: Batch) -> Changes:
    requests = await _requests(connection, batch)
    failing = await _failing_steps(connection, batch)
    rollups: dict[Key, Row] = {}
    for message in batch:
        target = ANY_TARGET if message.kind == "event" else message.target
        labels = {"source": message.source, "target": target, "kind": message.kind}
        _add(rollups, message, "usage", labels)
        if message.kind == "response":
            _answer(rollups, message, requests.get(message.causation_id))
        elif message.source in DECIDERS:
            _failure(rollups, message, failing.get(message.position))
    return Changes(put={"analytics": rollups.values()})


def bucket_of(duration_us: int) -> int:
    """The bucket of a duration."""
    return max(bisect_right(BOUNDS, duration_us) - 1, 0)


def middle_ms(bucket: int) -> float:
    """The duration that stands for a bucket: at most 1 % from any in it."""
    return BOUNDS[bucket] * MIDDLE / 1000


def _answer(rollups: dict[Key, Row], answer: Entry, request: Entry | None) -> None:
    """Count a response as a performance, as an error, or as both."""
    if request is not None and not _belongs(answer, request):
        request = None
    agent = request.target if request else answer.source
    action = _action(request) if request else None
    if request is not None and answer.source == request.target:
        took = max(answer.time_us - request.time_us, 0)
        labels = {"agent_id": agent, "action": action, "bucket": bucket_of(took)}
        _add(rollups, answer, "performance", labels, took)
    if not is_error(answer.payload):
        return
    code = error_of(answer.get("error"))["code"]
    if code == "decision_failed" and answer.source in DECIDERS:
        return  # the fact DecisionFailed, which stands beside it, is counted
    labels = {"code": code, "agent_id": agent, "action": action} | _step(request)
    _add(rollups, answer, "errors", labels)


def _failure(rollups: dict[Key, Row], fact: Entry, request: Entry | None) -> None:
    """Count what the deciders themselves found wrong; an agent's error was its answer."""
    if fact.event == "DecisionFailed":
        _add(rollups, fact, "errors", {"code": "decision_failed", "agent_id": fact.source})
    elif fact.event == "ExecutionFailed" and fact.get("origin") == "engine":
        labels = {
            "code": error_of(fact.get("error"))["code"],
            "agent_id": request.target if request else None,
            "action": _action(request) if request else None,
            "workflow_id": label(fact.get("workflowId")),
            "step_id": label(fact.get("stepId")),
        }
        _add(rollups, fact, "errors", labels)


def _add(
    rollups: dict[Key, Row], message: Entry, metric: str, labels: Mapping[str, Any], max_us: int = 0
) -> None:
    hour = hour_of(message.time_us)
    key = (metric, hour, *(labels.get(name) for name in LABELS))
    row = rollups.get(key)
    if row is None:
        row = rollups[key] = dict(zip(KEY, key, strict=True)) | {
            "count": 0,
            "bytes": 0,
            "max_us": max_us,
            "first_us": message.time_us,
            "last_us": message.time_us,
        }
    row["count"] += 1
    row["bytes"] += message.size
    row["max_us"] = max(row["max_us"], max_us)
    row["first_us"] = min(row["first_us"], message.time_us)
    row["last_us"] = max(row["last_us"], message.time_us)
    row["sample"] = message.position


async def _requests(connection: asyncpg.Connection, batch: Batch) -> dict[str | None, Entry]:
    """The requests that the responses of a batch name as their cause, by id."""
    found: dict[str | None, Entry] = {m.message_id: m for m in batch if m.message_id is not None}
    causes = {m.causation_id for m in batch if m.kind == "response" and m.causation_id is not None}
    missing = sorted(causes - found.keys())
    for start in range(0, len(missing), LOOK_UP_MAX):
        page = missing[start : start + LOOK_UP_MAX]
        for request in map(entry, await event_store.read_by_ids(connection, page)):
            # a page of large requests must not stay in memory for the sake of their actions
            found[request.message_id] = request._replace(payload={"action": _action(request)})
    return {i: m for i, m in found.items() if i in causes and m.kind == "request"}


async def _failing_steps(connection: asyncpg.Connection, batch: Batch) -> dict[int, Entry]:
    """The requests of the steps at which the engine gave up, by position of its fact."""
    facts = {
        m.position: m
        for m in batch
        if m.source == WORKFLOWS and m.event == "ExecutionFailed" and m.get("origin") == "engine"
    }
    if not facts:
        return {}
    asked = await event_store.read_last_requests(
        connection, WORKFLOWS, [(m.correlation_id, m.position) for m in facts.values()]
    )
    requests = {position: entry(stored) for position, stored in asked.items()}
    return {
        position: request
        for position, request in requests.items()
        if _step(request).get("step_id") == facts[position].get("stepId")
    }


def _belongs(answer: Entry, request: Entry) -> bool:
    """Whether a response answers the request that it names."""
    return (
        answer.position > request.position
        and answer.correlation_id == request.correlation_id
        and answer.target == request.source
        and (
            answer.source == request.target
            or (answer.source == REGISTRY and is_error(answer.payload))
        )
    )


def _action(request: Entry) -> str | None:
    action = request.get("action")
    return action if is_id(action) else None


def _step(request: Entry | None) -> dict[str, str | None]:
    """Workflow and step that a request is a part of."""
    step = request.metadata.get("step") if request and request.source == WORKFLOWS else None
    if not isinstance(step, dict):
        return {}
    return {"workflow_id": label(step.get("workflowId")), "step_id": label(step.get("id"))}


ANALYTICS = Projection("analytics", (TABLE,), fold)
