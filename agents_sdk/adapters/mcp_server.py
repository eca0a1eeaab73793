"""A Model Context Protocol server as its adapter sees it: it is kept running, and takes calls.

The official SDK speaks with it, in whichever version of the protocol both know. One task, `keep`,
holds the connection, and starts the server again when it ends; calls come from any other task.
Whoever keeps it is told of its tools, at each start and each time that it says they have changed.
Promises: a call ends with the result of the tool or with an error. The one that a server had in
hand when it ended is `server_ended`, and is not sent again, since the tool may have done half of
its work; one that comes while the server is away waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from mcp import Client, MCPError
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.shared.dispatcher import ProgressFnT
from mcp.types import CONNECTION_CLOSED, CallToolResult, Tool, ToolListChangedNotification
from pydantic import ValidationError

from agents_sdk.actions import ActionError
from agents_sdk.adapters.transports import Run, Transport
from mcp_bus.config import (
    MCP_LIST_EVERY_S,
    MCP_LISTEN_AGAIN_S,
    MCP_SERVER_AGAIN_S,
    MCP_SERVER_AGAIN_S_MAX,
    MCP_SERVER_FAILURES_MAX,
    MCP_SERVER_START_S,
    MCP_SERVER_WELL_S,
    MCP_TOOL_PAGES_MAX,
)
from mcp_bus.errors import BusError, Refused, Unavailable

logger = logging.getLogger(__name__)

Take = Callable[[list[Tool]], Awaitable[None]]


class ServerFailed(Unavailable):
    """The MCP server did not start, or ended; the detail holds its last words."""

    default_code = "server_ended"

    @classmethod
    def of(cls, transport: Transport, run: Run, how: str) -> ServerFailed:
        """What to raise, with the last words of this run."""
        words = "".join(f"\n    {line}" for line in run.last_words)
        said = "; its last words:" if words else ""
        return cls(f"the MCP server {transport.name} {how}{said}{words}")


class Server:
    """One server, which is there as long as `keep` runs."""

    def __init__(self, agent: str, transport: Transport) -> None:
        self._agent = agent
        self._transport = transport
        self._client: Client | None = None
        self._run = Run(agent)  # the latest
        self._has_run = False
        self._settled = asyncio.Event()  # it runs, or will not run again

    async def keep(self, take: Take) -> None:
        """Keep the server running; `take` gets its tools when it has started or they have changed.

        Raises ServerFailed when its first start fails, or when MCP_SERVER_FAILURES_MAX runs in a
        row end before MCP_SERVER_WELL_S; and what `take` raises.
        """
        loop = asyncio.get_running_loop()
        failures = 0
        try:
            while True:
                begun = loop.time()
                try:
                    await self._once(take)
                except ServerFailed as error:
                    failures = 1 if loop.time() - begun >= MCP_SERVER_WELL_S else failures + 1
                    wait_s = self._wait_s(failures, error)
                    logger.warning("%s: %s; again in %g s", self._agent, error, wait_s)
                await asyncio.sleep(wait_s)
        finally:
            self._settled.set()

    async def call(
        self, tool: str, inputs: dict[str, Any], progress: ProgressFnT
    ) -> CallToolResult:
        """The result of a tool; `progress` is called with what it tells of it meanwhile.

        Raises ActionError `server_ended` (retryable) when the server ended meanwhile or for good,
        `tool_error` for any other error.
        """
        await self._settled.wait()
        client, run = self._client, self._run
        if client is None:
            raise self._gone(tool)
        try:
            return await client.call_tool(tool, inputs, progress_callback=progress)
        except MCPError as error:
            if error.code == CONNECTION_CLOSED or run.ended.is_set():
                raise self._gone(tool) from None
            raise ActionError("tool_error", error.message) from None
        except (RuntimeError, ValidationError) as error:  # the SDK checks what tools answer
            said = str(error).partition("\n")[0]
            raise ActionError("tool_error", f"{tool} did not answer as it must: {said}") from None

    async def _once(self, take: Take) -> None:
        """Start the server and hold the connection until it ends, which raises ServerFailed."""
        self._run = run = Run(self._agent)
        async with started(self._transport, run) as client, asyncio.TaskGroup() as tasks:
            await take(await tools_of(client))
            tasks.create_task(_listen(client, run))
            tasks.create_task(_follow(client, run, take))
            self._client, self._has_run = client, True
            self._settled.set()
            try:
                await run.ended.wait()
            finally:  # before the server is gone, which may take it a while
                self._client = None
                self._settled.clear()
            raise ConnectionError  # ends the tasks; `started` has the words for it

    def _wait_s(self, failures: int, error: ServerFailed) -> float:
        """How long to wait before the next start; raises what ends the agent instead."""
        if not self._has_run:
            raise error
        if failures == MCP_SERVER_FAILURES_MAX:
            often = f"It ended {failures} times in a row within {MCP_SERVER_WELL_S:g} s."
            raise ServerFailed(f"{error.detail}\n{often}")
        return min(MCP_SERVER_AGAIN_S * 2.0 ** (failures - 1), MCP_SERVER_AGAIN_S_MAX)

    def _gone(self, tool: str) -> ActionError:
        # the answer stays in the log for ever, and the server's command line may hold a key
        said = f"the MCP server of {self._agent} ended, and {tool} with it"
        return ActionError("server_ended", said, retryable=True)


@contextlib.asynccontextmanager
async def started(transport: Transport, run: Run) -> AsyncIterator[Client]:
    """A client of the running server.

    Raises ServerFailed when it does not start, or the connection breaks meanwhile.
    """
    client = await _met(transport, run)
    version = client.protocol_version
    logger.info("%s: the MCP server %s speaks %s", run.agent, transport.name, version)
    leaving = contextlib.AsyncExitStack()
    leaving.push_async_exit(client)
    try:
        async with leaving:
            yield client
    except BaseExceptionGroup as group:  # the connection's tasks wrap whatever ends them
        first = _first(group)
        if not isinstance(first, Exception) or isinstance(first, BusError):
            raise first from None
        broke = f"failed: {str(first) or type(first).__name__}"
        how = "ended" if run.ended.is_set() else broke
        raise ServerFailed.of(transport, run, how) from None


async def _met(transport: Transport, run: Run) -> Client:
    """A client that has shaken hands with the server, in the newest way that this one knows."""

    async def heard(message: object) -> None:
        if isinstance(message, ToolListChangedNotification):
            run.changed.set()

    for mode in transport.modes:
        run.begin()
        opened = transport.opened(run)
        client = Client(opened, mode=mode, cache=None, message_handler=heard)
        try:
            async with asyncio.timeout(MCP_SERVER_START_S):
                await client.__aenter__()
        except TimeoutError:
            how = f"did not answer within {MCP_SERVER_START_S:g} s"
            break
        except Exception as error:
            how = transport.why(run, _first(error))
            if not run.ended.is_set():
                break
        else:
            if client.session.initialize_result is not None:
                transport.modes = transport.modes[-1:]
            return client
    raise ServerFailed.of(transport, run, how)


async def tools_of(client: Client) -> list[Tool]:
    """All tools that the server lists now; TimeoutError, MCPError or Refused when it does not."""
    found: list[Tool] = []
    cursor: str | None = None
    try:
        async with asyncio.timeout(MCP_SERVER_START_S):
            for _ in range(MCP_TOOL_PAGES_MAX):
                page = await client.list_tools(cursor=cursor)
                found += page.tools
                cursor = page.next_cursor
                if cursor is None:
                    return found
    except TimeoutError:
        said = f"it did not list its tools within {MCP_SERVER_START_S:g} s"
        raise TimeoutError(said) from None
    raise Refused(f"the server lists more than {MCP_TOOL_PAGES_MAX} pages of tools")


async def _follow(client: Client, run: Run, take: Take) -> None:
    """List the tools again each time that they have changed."""
    while True:
        await run.changed.wait()
        run.changed.clear()
        await take(await tools_of(client))
        await asyncio.sleep(MCP_LIST_EVERY_S)


async def _listen(client: Client, run: Run) -> None:
    """Since 2026-07-28 a server tells of changes only who listens; `heard` gets what it tells."""
    tools = client.server_capabilities.tools
    while tools is not None and tools.list_changed:
        try:
            async with client.listen(tools_list_changed=True) as events:
                run.changed.set()  # nobody told what changed before
                async for _ in events:
                    pass
        except ListenNotSupportedError:
            return  # an older one tells anyway
        except SubscriptionLost as error:
            logger.debug("%s: nobody tells of changes to the tools: %s", run.agent, error)
        except MCPError as error:
            if error.code != CONNECTION_CLOSED:
                logger.warning("%s: no word of changes to the tools: %s", run.agent, error)
                return
        await asyncio.sleep(MCP_LISTEN_AGAIN_S)


def _first(error: BaseException) -> BaseException:
    """What a task group wrapped."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
