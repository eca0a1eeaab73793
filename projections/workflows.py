"""Workflow definitions, from the facts of the engine: the latest of each, the steps of all."""

from __future__ import annotations

from typing import Any

import asyncpg

from mcp_bus.subjects import WORKFLOWS as ENGINE
from mcp_bus.subjects import is_id
from projections.projection import Batch, Changes, Entry, Projection, Row, Table, json_text, label

TABLES = (
    Table(
        "workflows",
        ("id",),
        {
            "id": "text",
            "name": "text",
            "version": "text",
            "definition": "json",
            "defined_us": "bigint",
            "position": "bigint",
        },
    ),
    Table(
        "workflow_steps",
        ("workflow_id", "version", "ordinal"),
        {
            "workflow_id": "text",
            "version": "text",
            "ordinal": "integer",
            "step_id": "text",
            "agent_id": "text",
            "action": "text",
            "inputs": "json",
            "outputs": "json",
            "conditions": "json",
            "timeout_ms": "bigint",
            "position": "bigint",
        },
    ),
)
FACTS = ("WorkflowDefined", "WorkflowRevised")


async def fold(_: asyncpg.Connection, batch: Batch) -> Changes:
    workflows: dict[str, Row] = {}
    steps: dict[tuple[str, str, int], Row] = {}
    for fact in batch:
        if fact.source != ENGINE or fact.event not in FACTS:
            continue
        workflow = fact.get("workflow")
        version = _version(workflow)
        if version is None:
            continue
        workflows[fact.target] = {
            "id": fact.target,
            "name": label(workflow.get("name")) or fact.target,
            "version": version,
            "definition": json_text(workflow),
            "defined_us": fact.time_us,
            "position": fact.position,
        }
        for row in _steps(fact, version, workflow.get("steps")):
            steps[fact.target, version, row["ordinal"]] = row
    return Changes(put={"workflows": workflows.values(), "workflow_steps": steps.values()})


def _version(workflow: Any) -> str | None:
    metadata = workflow.get("metadata") if isinstance(workflow, dict) else None
    return label(metadata.get("version")) if isinstance(metadata, dict) else None


def _steps(fact: Entry, version: str, steps: Any) -> list[Row]:
    return [
        {
            "workflow_id": fact.target,
            "version": version,
            "ordinal": ordinal,
            "step_id": step["id"],
            "agent_id": label(step.get("agentId")) or "",
            "action": label(step.get("action")) or "",
            "inputs": json_text(step.get("inputs", {})),
            "outputs": json_text(step.get("outputs", {})),
            "conditions": json_text(step["conditions"]) if step.get("conditions") else None,
            "timeout_ms": step["timeoutMs"] if isinstance(step.get("timeoutMs"), int) else None,
            "position": fact.position,
        }
        for ordinal, step in enumerate(steps if isinstance(steps, list) else [])
        if isinstance(step, dict) and is_id(step.get("id"))
    ]


WORKFLOWS = Projection("workflows", TABLES, fold)
