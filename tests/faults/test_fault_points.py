"""Every process is killed at every point where it hurts; each workflow ends as it would have."""

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
from tests.faults.load import SCENARIO_S_MAX
from tests.journeys.services import Services


def step(name: str, action: str = "echo", **more: Any) -> dict[str, Any]:
    return {"id": name, "agentId": "echo", "action": action, "inputs": {"n": 7}, **more}


UNDO = {"agentId": "echo", "action": "echo", "inputs": {"n": "${steps.a.outputs.n}"}}
# by how they end
WORKFLOWS: dict[str, list[dict[str, Any]]] = {
    "completed": [
        {
            "id": "row",
            "steps": [
                step("a"),
                step("b", inputs={"n": "${steps.a.outputs.n}"}),
                step("c", inputs={"n": "${steps.b.outputs.n}"}),
            ],
        },
        {
            "id": "join",
            "steps": [step("a"), step("b", dependsOn=[]), step("c", dependsOn=["a", "b"])],
        },
        {
            "id": "again",
            "steps": [step("a", "second", retry={"maxAttempts": 2, "initialDelayMs": 1})],
        },
        {"id": "pause", "steps": [{"id": "a", "wait": {"ms": 1}}, step("b")]},
        {
            "id": "each",
            "steps": [step("a", forEach="${inputs.list}", maxParallel=4, inputs={"n": "${item}"})],
        },
        {"id": "child", "steps": [{"id": "a", "workflow": {"id": "join"}}, step("b")]},
        {
            "id": "children",
            "steps": [
                {
                    "id": "a",
                    "forEach": "${inputs.list}",
                    "maxParallel": 4,
                    "workflow": {"id": "pause", "inputs": {"n": "${item}"}},
                }
            ],
        },
    ],
    "failed": [
        {"id": "undone", "steps": [step("a", compensate=UNDO), step("b", "fail", inputs={})]}
    ],
}
ENDS = {workflow["id"]: end for end, ending in WORKFLOWS.items() for workflow in ending}
VICTIMS = sorted({point.partition(".")[0] for point in FAULT_POINTS})


@pytest.mark.parametrize("victim", VICTIMS)
async def test_workflows_survive_a_kill_of(victim: str, settings: Settings, nats: Nats) -> None:
    """At each of its fault points: SIGKILL, a new process, the right end, no request twice."""
    points = [point for point in FAULT_POINTS if point.startswith(f"{victim}.")]
    async with Services(settings, nats.agent("echo")) as services:
        for ending in WORKFLOWS.values():
            for workflow in ending:
                status, answer = await services.request(
                    "POST", "/workflows", {"name": workflow["id"], **workflow}
                )
                assert status == 201, answer
        for number, point in enumerate(points):
            await services.restart(victim, fault_at=point)
            if victim == "gateway":
                await services.healthy()
            await _killed_while_workflows_run(services, victim, number)
            for name, end in ENDS.items():
                executions = await _ended(services, name, number)
                assert {e["status"] for e in executions} == {end}, (point, name)
            assert set((await _requests(services)).values()) == {1}, point


async def _killed_while_workflows_run(services: Services, victim: str, number: int) -> None:
    starts = [asyncio.create_task(_execute(services, name, number)) for name in ENDS]
    if victim == "registry":
        starts.append(asyncio.create_task(_register(services, f"other-{number}")))
    await services.died(victim)
    await services.start(victim)
    await asyncio.gather(*starts)
    await services.healthy()


async def _register(services: Services, agent: str) -> None:
    """As a client whose answer does not come in time would: again."""
    wanted = {"id": agent, "type": "test", "capabilities": []}
    async with asyncio.timeout(SCENARIO_S_MAX):
        while (await services.request("POST", "/agents/register", wanted))[0] not in (200, 201):
            pass


async def _execute(services: Services, name: str, known: int) -> None:
    """Ask for one execution more, as a client whose gateway dies would."""
    async with asyncio.timeout(SCENARIO_S_MAX):
        while len(await _known(services, name)) <= known:
            with contextlib.suppress(aiohttp.ClientError):
                status, answer = await services.request(
                    "PUT", f"/workflows/{name}/execute", {"inputs": {"list": list(range(12))}}
                )
                assert status == 202, answer
                return
            await asyncio.sleep(0.1)  # the port of a dead gateway gives no signal


async def _known(services: Services, name: str) -> list[dict[str, Any]]:
    with contextlib.suppress(aiohttp.ClientError):
        _, workflow = await services.request("GET", f"/workflows/{name}")
        found: list[dict[str, Any]] = workflow["executions"]
        return found
    return []


async def _ended(services: Services, name: str, known: int) -> list[dict[str, Any]]:
    """Every execution of a workflow, more than are known, once each has ended."""
    async with asyncio.timeout(SCENARIO_S_MAX):
        while True:
            found = await _known(services, name)
            if len(found) > known and all(e["ended"] for e in found):
                return found
            await asyncio.sleep(0.05)  # polls the read model, as a client does


async def _requests(services: Services) -> Counter[tuple[str, ...]]:
    """How often each attempt of a step, of an item, or to undo one, was asked for."""
    counted: Counter[tuple[str, ...]] = Counter()
    for _, message in await services.messages():
        about = (message.metadata.model_extra or {}).get("step")
        if message.kind == "request" and message.source == "workflows" and about:
            asked = (str(about.get(name)) for name in ("id", "item", "attempt", "undoes"))
            counted[message.metadata.correlation_id, *asked] += 1
    return counted
