"""A Model Context Protocol server as its adapter sees it: it runs, has tools, and takes calls.

The official SDK speaks with it, in whichever version of the protocol both know. One task, `keep`,
holds the connection from its start to its end; calls come from any other task.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from mcp import Client, MCPError
from mcp.types import CONNECTION_CLOSED, CallToolResult, Tool

from agents_sdk.actions import ActionError
from agents_sdk.adapters.transports import Run, Transport
from mcp_bus.config import MCP_SERVER_START_S, MCP_TOOL_PAGES_MAX
from mcp_bus.errors import BusError, Refused, Unavailable

logger = logging.getLogger(__name__)

Take = Callable[[list[Tool]], Awaitable[None]]


class ServerFailed(Unavailable):
    """The MCP server did not start, or ended; the detail holds its last words."""

    default_code = "tool_error"

    @classmethod
    def of(cls, transport: Transport, run: Run, how: str) -> ServerFailed:
        """What to raise, with the last words of this run."""
        words = "".join(f"\n    {line}" for line in run.last_words)
        said = "; its last words:" if words else ""
        return cls(f"the MCP server {transport.name} {how}{said}{words}")


class Server:
    """One server, which runs as long as `keep` does."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._client: Client | None = None

    async def keep(self, take: Take) -> None:
        """Run the server until it ends; `take` gets its tools.

        Raises ServerFailed once it has ended, and what `take` raises.
        """
        run = Run()
        async with started(self._transport, run) as client:
            await take(await tools_of(client))
            self._client = client
            await run.ended.wait()
        raise ServerFailed.of(self._transport, run, "ended")

    async def call(self, tool: str, inputs: dict[str, Any]) -> CallToolResult:
        """The result of a tool; raises ActionError `tool_error` when there is none."""
        if self._client is None:
            raise ActionError("tool_error", "the server does not run", retryable=True)
        try:
            return await self._client.call_tool(tool, inputs)
        except MCPError as error:
            lost = error.code == CONNECTION_CLOSED
            raise ActionError("tool_error", error.message, retryable=lost) from None


@contextlib.asynccontextmanager
async def started(transport: Transport, run: Run) -> AsyncIterator[Client]:
    """A client of the running server.

    Raises ServerFailed when it does not start, or the connection breaks meanwhile.
    """
    client = Client(transport.opened(run), cache=None)
    try:
        async with asyncio.timeout(MCP_SERVER_START_S):
            await client.__aenter__()
    except TimeoutError:
        how = f"did not answer within {MCP_SERVER_START_S:g} s"
        raise ServerFailed.of(transport, run, how) from None
    except Exception as error:
        raise ServerFailed.of(transport, run, transport.why(run, _first(error))) from None
    logger.info("the MCP server %s speaks %s", transport.name, client.protocol_version)
    leaving = contextlib.AsyncExitStack()
    leaving.push_async_exit(client)
    try:
        async with leaving:
            yield client
    except BaseExceptionGroup as group:  # the connection's tasks wrap whatever ends them
        first = _first(group)
        if not isinstance(first, Exception) or isinstance(first, BusError):
            raise first from None
        how = f"does not answer any more: {str(first) or type(first).__name__}"
        raise ServerFailed.of(transport, run, how) from None


async def tools_of(client: Client) -> list[Tool]:
    """All tools that the server lists now."""
    found: list[Tool] = []
    cursor: str | None = None
    for _ in range(MCP_TOOL_PAGES_MAX):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise Refused(f"the server lists more than {MCP_TOOL_PAGES_MAX} pages of tools")


def _first(error: BaseException) -> BaseException:
    """What a task group wrapped."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
