"""An agent made of a Model Context Protocol server: each of its tools is an action.

    python -m agents_sdk.adapters.mcp --id git -- mcp-server-git --repository .

The server runs as a child and is spoken to over stdio by the official SDK; what it writes on
stderr goes to the log. Inputs go to the tool as they come, the server checks them; outputs are
{"text": all text of the result, "structured": object or null}; a result that says isError is the
error `tool_error`. The agent ends when its server ends, and the server never outlives the agent.
The server sees the adapter's environment, without what belongs to the bus.
Tools are listed once, at the start (this landing).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import anyio
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.message import SessionMessage
from mcp.types import CONNECTION_CLOSED, TextContent, Tool

from agents_sdk.actions import Action, ActionError
from agents_sdk.adapters import bound_child
from agents_sdk.agent import Agent, configure_logging
from mcp_bus.config import (
    LAST_WORDS_LINES,
    LAST_WORDS_S,
    MCP_SERVER_START_S,
    MCP_TOOL_PAGES_MAX,
    PREFIX,
)
from mcp_bus.errors import BusError, Refused, Unavailable

logger = logging.getLogger(__name__)

OUTPUTS = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "structured": {"type": ["object", "null"]}},
    "required": ["text", "structured"],
}


class ServerFailed(Unavailable):
    """The MCP server did not start, or ended; the detail holds its last words."""

    default_code = "tool_error"


class Server:
    """A running MCP server; made by `started`."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = shlex.join(command)
        self.ended = asyncio.Event()
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)

    def failed(self, how: str) -> ServerFailed:
        """What to raise, with its last words."""
        words = "".join(f"\n    {line}" for line in self.last_words)
        return ServerFailed(
            f"the MCP server `{self.command}` {how}{'; its last words:' if words else ''}{words}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; ends with exit code 1 and one sentence when something fails."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m agents_sdk.adapters.mcp",
        usage="%(prog)s --id ID [options] -- COMMAND [ARGUMENT ...]",
        description="Make an agent of a Model Context Protocol server (stdio).",
    )
    parser.add_argument("--id", required=True, help="the agent's id")
    parser.add_argument("--type", default="mcp", help="the agent's type (default: mcp)")
    parser.add_argument("--capability", help="what holds its actions (default: the id)")
    parser.add_argument(
        "--describe", action="store_true", help="print the registration as JSON and exit"
    )
    options = parser.parse_args(arguments[:cut])
    command = arguments[cut + 1 :]
    if not command:
        parser.error("the server's command is missing: put it behind --")
    try:
        configure_logging()
        agent = Agent(options.id, type=options.type, capability=options.capability)
        if options.describe:
            registration = asyncio.run(describe(agent, command))
            print(json.dumps(registration, indent=2, ensure_ascii=False))  # noqa: T201
        else:
            asyncio.run(adapt(agent, command))
    except BusError as error:
        sys.exit(f"{options.id}: {error}")


async def describe(agent: Agent, command: Sequence[str]) -> dict[str, Any]:
    """The registration of `agent` with the tools of the server `command`, which is asked once.

    Raises BusError, ServerFailed among them.
    """
    async with started(Server(command), command) as client:
        await _add_tools(agent, client)
        return agent.describe()


async def adapt(agent: Agent, command: Sequence[str]) -> None:
    """Serve the tools of the server `command` as actions of `agent`, until one of both ends.

    Raises BusError, ServerFailed among them.
    """
    server = Server(command)
    async with started(server, command) as client:
        await _add_tools(agent, client)
        ending = asyncio.create_task(_stop_when_ended(agent, server))
        try:
            await agent.serve()
        finally:
            ending.cancel()
        ended = server.ended.is_set()
    if ended:
        raise server.failed("ended")


def action_of(client: Client, tool: Tool) -> Action:
    """The action that calls `tool`; a character that no id may have becomes `_`."""

    async def run(inputs: dict[str, Any]) -> dict[str, Any]:
        try:
            result = await client.call_tool(tool.name, inputs)
        except MCPError as error:
            lost = error.code == CONNECTION_CLOSED
            raise ActionError("tool_error", error.message, retryable=lost) from None
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


@contextlib.asynccontextmanager
async def started(server: Server, command: Sequence[str]) -> AsyncIterator[Client]:
    """A client of the running server; ServerFailed when it does not start."""
    if shutil.which(command[0]) is None:
        raise Refused(f"there is no program {command[0]!r} on this machine", code="not_found")
    try:
        async with contextlib.AsyncExitStack() as leaving:
            yield await _start(server, command, leaving)
    except BaseExceptionGroup as group:
        raise _first(group) from None


async def _start(
    server: Server, command: Sequence[str], leaving: contextlib.AsyncExitStack
) -> Client:
    try:
        async with asyncio.timeout(MCP_SERVER_START_S):
            errlog = await leaving.enter_async_context(_stderr(server))
            transport = _transport(server, command, errlog)
            return await leaving.enter_async_context(Client(transport))
    except TimeoutError:
        how = f"did not answer within {MCP_SERVER_START_S:g} s"
    except Exception as error:
        how = f"did not start: {_first(error)}"
    await leaving.aclose()  # it has ended, and so have its last words
    raise server.failed(how)


@contextlib.asynccontextmanager
async def _stderr(server: Server) -> AsyncIterator[TextIO]:
    """A file for the server's stderr; each of its lines goes to the log."""
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    source, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
    )
    lines = asyncio.create_task(_log_lines(server, reader))
    file = os.fdopen(writing, "w")
    try:
        yield file
    finally:
        file.close()
        # its own children may still hold the other end
        await asyncio.wait({lines}, timeout=LAST_WORDS_S)
        lines.cancel()
        source.close()


async def _log_lines(server: Server, reader: asyncio.StreamReader) -> None:
    while not reader.at_eof():
        try:
            line = (await reader.readline()).decode(errors="replace").rstrip()
        except ValueError:
            continue  # longer than the reader's limit: left out
        if line:
            server.last_words.append(line)
            logger.info("%s", line)


@contextlib.asynccontextmanager
async def _transport(
    server: Server, command: Sequence[str], errlog: TextIO
) -> AsyncIterator[tuple[Any, Any]]:
    """Standard streams of the server, with `server.ended` set when it closes its own."""
    ours, theirs = anyio.create_memory_object_stream[SessionMessage | Exception](0)

    async def hand_on() -> None:
        with contextlib.suppress(anyio.BrokenResourceError):  # our own end is closed first
            async with ours:
                async for message in read:
                    await ours.send(message)
        server.ended.set()

    async with (
        stdio_client(_parameters(command), errlog=errlog) as (read, write),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(hand_on)
        try:
            yield theirs, write
        finally:
            tasks.cancel_scope.cancel()


def _parameters(command: Sequence[str]) -> StdioServerParameters:
    arguments = list(command)
    if sys.platform == "linux":
        wrapper = [sys.executable, "-I", "-S", str(Path(bound_child.__file__))]
        arguments = [*wrapper, str(os.getpid()), *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    return StdioServerParameters(command=arguments[0], args=arguments[1:], env=environment)


async def _add_tools(agent: Agent, client: Client) -> None:
    cursor: str | None = None
    for _ in range(MCP_TOOL_PAGES_MAX):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            agent.add(action_of(client, tool))
        cursor = page.next_cursor
        if cursor is None:
            return
    raise Refused(f"the server lists more than {MCP_TOOL_PAGES_MAX} pages of tools")


async def _stop_when_ended(agent: Agent, server: Server) -> None:
    await server.ended.wait()
    agent.stop()


def _first(error: BaseException) -> BaseException:
    """What a task group wrapped."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
