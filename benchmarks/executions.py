"""Executions, started by a message each, and what the engine says of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from benchmarks.harness import token
from benchmarks.warm import CLIENT, secret
from mcp_bus import log
from mcp_bus.embedded import Bus
from mcp_bus.messages import Message, parse
from mcp_bus.subjects import WORKFLOWS, stored

EXECUTION_S_MAX = 30.0
FAILED = "ExecutionFailed"


class Executions:
    """Those of one bus, as who starts them sees them: in the agents' account."""

    def __init__(self, bus: Bus, channel: log.Log) -> None:
        self._bus = bus
        self._channel = channel
        self._awaited: dict[str, tuple[str, asyncio.Future[None]]] = {}

    async def define(self, workflow: dict[str, Any]) -> None:
        """Post a workflow."""
        headers = {"Authorization": f"Bearer {self._bus.token}"}
        async with (
            aiohttp.ClientSession(self._bus.gateway_url, headers=headers) as session,
            session.post("/workflows", json=workflow) as response,
        ):
            if response.status != 201:
                raise RuntimeError(f"POST /workflows answered {await response.text()}")

    async def start(
        self, workflow: str, until: str = "ExecutionCompleted", given: Any = None
    ) -> str:
        """Start one and wait until a fact is said of it; its id."""
        inputs = {"workflowId": workflow, "inputs": given or {"n": 7}}
        command = _command("execute", inputs)
        execution = command.metadata.correlation_id
        await self._until(execution, until, command)
        return execution

    async def signal(self, execution: str, name: str) -> None:
        """Send one that waits for it a signal, and wait for its end."""
        inputs = {"executionId": execution, "name": name, "payload": {}}
        await self._until(execution, "ExecutionCompleted", _command("signal", inputs))

    async def _until(self, execution: str, fact: str, command: Message) -> None:
        heard = asyncio.get_running_loop().create_future()
        self._awaited[execution] = (fact, heard)
        await self._channel.publish(command)
        async with asyncio.timeout(EXECUTION_S_MAX):
            await heard
        del self._awaited[execution]

    async def hear(self) -> None:
        """Listen to the engine, before anything is started."""
        await self._channel.listen(stored(f"mcp.event.{WORKFLOWS}.*"), self._heard)

    def _heard(self, record: log.Record) -> None:
        said = parse(record.data)
        fact, heard = self._awaited.get(said.target, ("", None))
        if heard is None or heard.done():
            return
        if said.payload["event"] == fact:
            heard.set_result(None)
        elif said.payload["event"] == FAILED:
            heard.set_exception(RuntimeError(f"an execution failed: {said.payload}"))


def _command(action: str, inputs: dict[str, Any]) -> Message:
    return Message.build("request", CLIENT, WORKFLOWS, {"action": action, "inputs": inputs})


@contextlib.asynccontextmanager
async def executing(bus: Bus, *workflows: dict[str, Any]) -> AsyncIterator[Executions]:
    """Who starts executions of these workflows, with the rights of a developer."""
    mine = token(secret(bus), CLIENT, "developer")
    channel = await log.connect(bus.nats_url, name=CLIENT, token=mine)
    try:
        executions = Executions(bus, channel)
        await executions.hear()
        for workflow in workflows:
            await executions.define(workflow)
        yield executions
    finally:
        await channel.close()
