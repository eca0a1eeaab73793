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


VICTIMS = sorted({point.partition(".")[0] for point in FAULT_POINTS})


@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_workflow_survives_a_kill_of(victim: str, settings: Settings, nats: Nats) -> None:
    """At each of its fault points: SIGKILL, a new process, completion, one request per step."""
    points = [point for point in FAULT_POINTS if point.startswith(f"{victim}.")]
    async with Services(settings, nats.agent("echo")) as services:
        status, answer = await services.request("POST", "/workflows", WORKFLOW)
        assert status == 201, answer
        for number, point in enumerate(points):
            await services.restart(victim, fault_at=point)
            if victim == "gateway":
                await services.healthy()
            await _killed_while_a_workflow_runs(services, victim, number)
            executions = await _ended(services, number)
            assert {e["status"] for e in executions} == {"completed"}, point
            assert set((await _requests_per_step(services)).values()) == {1}, point


async def _killed_while_a_workflow_runs(services: Services, victim: str, number: int) -> None:
    start = asyncio.create_task(_execute(services, number))
    if victim == "registry":
        other = {"id": f"other-{number}", "type": "test", "capabilities": []}
        registering = asyncio.create_task(services.request("POST", "/agents/register", other))
    await services.died(victim)
    await services.start(victim)
    await start
    if victim == "registry":
        assert (await registering)[0] == 201
    await services.healthy()


async def _execute(services: Services, known: int) -> None:
    """Ask for one execution more, as a client whose gateway dies would."""
    for _ in range(100):
        with contextlib.suppress(aiohttp.ClientError):
            status, answer = await services.request(
                "PUT", "/workflows/three/execute", {"inputs": {"n": 7}}
            )
            assert status == 202, answer
            return
        if len(await _known(services)) > known:
            return
        await asyncio.sleep(0.1)  # the port of a dead gateway gives no signal
    raise AssertionError("the gateway did not come back")


async def _known(services: Services) -> list[dict[str, Any]]:
    with contextlib.suppress(aiohttp.ClientError):
        _, workflow = await services.request("GET", "/workflows/three")
        found: list[dict[str, Any]] = workflow["executions"]
        return found
    return []


async def _ended(services: Services, known: int) -> list[dict[str, Any]]:
    """Every execution, more than are known, once each has ended."""
    async with asyncio.timeout(40):
        while True:
            found = await _known(services)
            if len(found) > known and all(e["ended"] for e in found):
                return found
            await asyncio.sleep(0.05)  # polls the read model, as a client does


async def _requests_per_step(services: Services) -> Counter[tuple[str, str]]:
    counted: Counter[tuple[str, str]] = Counter()
    for _, message in await services.messages():
        step = (message.metadata.model_extra or {}).get("step")
        if message.kind == "request" and message.source == "workflows" and step:
            counted[message.metadata.correlation_id, step["id"]] += 1
    return counted
