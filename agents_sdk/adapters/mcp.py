"""An agent made of a Model Context Protocol server: each of its tools is an action.

    mcp-bus adapter mcp --id git -- mcp-server-git --repository .

Inputs go to the tool as they come, the server checks them; outputs are {"text": all text of the
result, "structured": object or null}; a result that says isError is the error `tool_error`. A
server that ends is started again, and the agent ends when that does not help. The actions follow
the tools: when these change, the agent is registered anew.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from mcp.types import TextContent, Tool

from agents_sdk.actions import Action, ActionError
from agents_sdk.adapters.mcp_server import Server, started, tools_of
from agents_sdk.adapters.progress import handed_on
from agents_sdk.adapters.transports import Run, Transport
from agents_sdk.agent import Agent
from agents_sdk.context import here

OUTPUTS = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "structured": {"type": ["object", "null"]}},
    "required": ["text", "structured"],
}


async def describe(agent: Agent, transport: Transport) -> dict[str, Any]:
    """The registration of `agent` with the tools of the server, which is asked once.

    Raises BusError, ServerFailed among them.
    """
    async with started(transport, Run(agent.id)) as client:
        server = Server(agent.id, transport)  # never called
        await agent.replace(action_of(server, tool) for tool in await tools_of(client))
    return agent.describe()


async def adapt(agent: Agent, transport: Transport) -> None:
    """Serve the tools of the server as actions of `agent`, until it is told to stop.

    Raises BusError: ServerFailed when the server cannot be kept running.
    """
    server = Server(agent.id, transport)
    listed = asyncio.Event()

    async def take(tools: list[Tool]) -> None:
        await agent.replace(action_of(server, tool) for tool in tools)
        listed.set()

    def over(_: asyncio.Task[None]) -> None:
        listed.set()
        agent.stop()

    keeping = asyncio.create_task(server.keep(take))
    keeping.add_done_callback(over)
    try:
        await listed.wait()
        if not keeping.done():
            await agent.serve()
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
    if not keeping.cancelled():
        keeping.result()


def action_of(server: Server, tool: Tool) -> Action:
    """The action that calls `tool`; a character that no id may have becomes `_`."""

    async def run(inputs: dict[str, Any]) -> dict[str, Any]:
        async with handed_on(here()) as progress:
            result = await server.call(tool.name, inputs, progress)
        text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
        if result.is_error:
            raise ActionError("tool_error", text or f"{tool.name} failed without a word")
        return {"text": text, "structured": result.structured_content}

    return Action(
        name=re.sub(r"[^A-Za-z0-9_-]", "_", tool.name)[:64],
        run=run,
        description=tool.description or "",
        inputs=tool.input_schema,
        outputs=OUTPUTS,
    )
