"""Every process is killed at every point where it hurts; the workflow completes all the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

import aiohttp
import pytest

from mcp_bus.config import Settings
from mcp_bus.faults import FAULT_POINTS
from tests.conftest import Nats
from tests.journeys.services import Services

WORKFLOW = {
    "id": "three",
    "name": "Three steps",
    "steps": [
        {"id": "a", "agentId": "echo", "action": "echo", "inputs": {"n": "${inputs.n}"}},
        {
            "id": "b",
            "agentId": "echo",
            "action": "echo",
            "inputs": {"n": "${steps.a.outputs.n}", "text": "b"},
        },
        {"id": "c", "agentId": "echo", "action": "echo", "inputs": {"n": "${steps.b.outputs.n}"}},
    ],
}


@pytest.mark.timeout(90)
@pytest.mark.parametrize("point", FAULT_POINTS)
async def test_a_workflow_survives_a_kill_at(point: str, settings: Settings, nats: Nats) -> None:
    """SIGKILL at the point, a new process, one completion, one request per step."""
    victim = point.partition(".")[0]
    async with Services(settings, nats.agents) as services:
        status, answer = await services.request("POST", "/workflows", WORKFLOW)
        assert status == 201, answer
        await services.restart(victim, fault_at=point)
        if victim == "gateway":
            await services.healthy()
        start = asyncio.create_task(_execute(services))
        if victim == "registry":
            other = {"id": "other", "type": "test", "capabilities": []}
            registering = asyncio.create_task(services.request("POST", "/agents/register", other))
        await services.died(victim)
        await services.start(victim)
        await start
        if victim == "registry":
            assert (await registering)[0] == 201
        await services.healthy()
        executions = await _ended(services)
        assert [e["status"] for e in executions] == ["completed"] * len(executions)
        assert executions
        assert set((await _requests_per_step(services)).values()) == {1}


async def _execute(services: Services) -> None:
    """Ask for an execution until one is known, as a client whose gateway dies would."""
    for _ in range(100):
        with contextlib.suppress(aiohttp.ClientError):
            status, answer = await services.request(
                "PUT", "/workflows/three/execute", {"inputs": {"n": 7}}
            )
            assert status == 202, answer
            return
        if await _known(services):
            return
        await asyncio.sleep(0.1)  # the port of a dead gateway gives no signal
    raise AssertionError("the gateway did not come back")


async def _known(services: Services) -> list[dict[str, Any]]:
    with contextlib.suppress(aiohttp.ClientError):
        _, workflow = await services.request("GET", "/workflows/three")
        found: list[dict[str, Any]] = workflow["executions"]
        return found
    return []


async def _ended(services: Services) -> list[dict[str, Any]]:
    """Every execution, once each has ended."""
    async with asyncio.timeout(40):
        while True:
            known = await _known(services)
            if known and all(e["ended"] for e in known):
                return known
            await asyncio.sleep(0.05)  # polls the read model, as a client does


async def _requests_per_step(services: Services) -> Counter[tuple[str, str]]:
    counted: Counter[tuple[str, str]] = Counter()
    for _, message in await services.messages():
        step = (message.metadata.model_extra or {}).get("step")
        if message.kind == "request" and message.source == "workflows" and step:
            counted[message.metadata.correlation_id, step["id"]] += 1
    return counted
