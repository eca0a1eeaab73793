"""Both deciders on a real log, their commands, and their snapshots when a test wants them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from mcp_bus import log, subjects
from mcp_bus.config import Settings
from mcp_bus.log import Asker, Log, snapshots
from mcp_bus.log.snapshots import Head
from mcp_bus.messages import Message, parse
from mcp_bus.services import registry, workflows
from tests.mcp_bus.history import ADMIN, agent, step, workflow
from tests.services import WAIT_S, running

SOURCE = "gateway"


class Bus:
    """The services' door to the log, commands of an admin, and an agent `echo` played by hand."""

    def __init__(self, services: Log) -> None:
        self.log = services
        self._asker = Asker(services, SOURCE, services.answers)

    async def command(self, target: str, action: str, inputs: Any) -> dict[str, Any]:
        """The payload of the answer to a command that is not refused."""
        answer = await self.ask(target, action, inputs)
        assert "outputs" in answer, answer
        return answer

    async def ask(self, target: str, action: str, inputs: Any) -> dict[str, Any]:
        """The payload of the answer to a command."""
        message = Message.build(
            "request",
            SOURCE,
            target,
            {"action": action, "inputs": inputs},
            principal=ADMIN,
            reply_to=self._asker.instance,
        )
        answer: dict[str, Any] = (await self._asker.ask(message, WAIT_S)).message.payload
        return answer

    async def defined(self) -> None:
        """An agent that is active, and a workflow of two steps that it is asked for."""
        await self.command("registry", "register", agent("echo", "echo"))
        named = {"x": "${steps.a.outputs.n}", "y": "${inputs.n}"}
        await self.command("workflows", "define", workflow(step("a"), step("b", inputs=named)))

    async def started(self, **inputs: Any) -> str:
        """The id of an execution that has begun."""
        asked = {"workflowId": "w", "inputs": inputs}
        outcome = await self.command("workflows", "execute", asked)
        return str(outcome["outputs"]["executionId"])

    async def requested(self, after: int) -> tuple[Message, int]:
        """The next request to `echo` after a position, and its own."""
        return await self.next(subjects.requests_to("echo"), after)

    async def next(self, subject: str, after: int) -> tuple[Message, int]:
        """The first message after a position that a subject filter matches, when it is there."""
        async with asyncio.timeout(WAIT_S), self.log.follow(after, subject) as follower:
            record = (await follower.read())[0]
            return parse(record.data, record.subject), record.position

    async def last(self) -> int:
        return (await self.log.info()).last

    async def snapshot(self, *deciders: str) -> list[Head]:
        """The newest snapshots of deciders, once they have everything that the log has now."""
        last = await self.last()
        found = []
        async with asyncio.timeout(WAIT_S):
            for decider in deciders or subjects.DECIDERS:
                while not (heads := await snapshots.heads(self.log, decider)) or (
                    heads[-1].position < last
                ):
                    await self.log.tell(subjects.SNAPSHOT_WANTED, b"")
                    await asyncio.sleep(0.05)
                found.append(heads[-1])
        return found

    async def purge(self, before: int) -> None:
        """Let the log begin at a position."""
        await self.log.api(f"STREAM.PURGE.{subjects.STREAM}", {"seq": before})


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Bus]:
    services = await log.connect(url, name="test")
    bus = Bus(services)
    await bus._asker.start()
    try:
        yield bus
    finally:
        await services.close()


@contextlib.asynccontextmanager
async def deciding(settings: Settings) -> AsyncIterator[None]:
    """Both deciders run."""
    async with (
        running(settings, "registry", registry.run),
        running(settings, "workflow-engine", workflows.run),
    ):
        yield
