"""The two ways to a Model Context Protocol server: a program of our own, or an address.

A program runs as a child and is spoken to over its standard streams; what it writes on stderr goes
to the log, line by line, with the agent's id. It sees the environment of this process without what
belongs to the bus, and never outlives it. An address is spoken to over streamable HTTP.
Never: a header's value in a log line, in an error or in the name of a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
import shutil
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol, TextIO
from urllib.parse import urlsplit

import anyio
import httpx2
from mcp import MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import MCP_SESSION_ID, streamable_http_client
from mcp.shared.message import SessionMessage
from mcp.types import CONNECTION_CLOSED

from agents_sdk.adapters import bound_child
from mcp_bus.config import (
    ACTION_S_MAX,
    LAST_WORDS_LINES,
    LAST_WORDS_S,
    MCP_HTTP_S,
    MCP_STDERR_LINE_BYTES_MAX,
    PREFIX,
)
from mcp_bus.errors import Refused

logger = logging.getLogger(__name__)

Streams = tuple[Any, Any]  # what the SDK reads from and writes to

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, a token
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Run:
    """What is known of one run of the server of an agent, from its start to its end."""

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.changed = asyncio.Event()  # its tools have
        self.ended = asyncio.Event()
        self.last_words: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        self.status: int | None = None  # of the last HTTP answer

    def begin(self) -> None:
        """Forget a start that failed."""
        self.ended.clear()
        self.last_words.clear()


class Transport(Protocol):
    """A way to a server."""

    name: str  # what it is called in sentences
    modes: tuple[str, ...]  # of the SDK, to be tried in turn while the server ends at them

    def opened(self, run: Run) -> AbstractAsyncContextManager[Streams]:
        """The streams to the server, which runs as long as they are open."""

    def why(self, run: Run, error: BaseException) -> str:
        """What is wrong with the server, when `error` was all that its start brought."""


class Program:
    """A server that is started as `command`; Refused when there is no such program.

    Some that know only the old handshake end at the question that comes before it, which others
    leave without an answer for 10 s. So it may come twice to the first start, and to no later one.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.modes: tuple[str, ...] = ("auto", "legacy")
        self.name = f"`{shlex.join(command)}`"
        self._command = command
        if shutil.which(command[0]) is None:
            raise Refused(f"there is no program {command[0]!r} on this machine", code="not_found")

    @contextlib.asynccontextmanager
    async def opened(self, run: Run) -> AsyncIterator[Streams]:
        """Its standard streams; `run.ended` is set when it closes its own."""
        ours, theirs = anyio.create_memory_object_stream[SessionMessage | Exception](0)

        async def hand_on() -> None:
            with contextlib.suppress(anyio.BrokenResourceError):  # our own end is closed first
                async with ours:
                    async for message in read:
                        if isinstance(message, Exception):
                            run.last_words.append("(on its stdout stands what is no MCP)")
                        await ours.send(message)
                    run.ended.set()  # before anybody else hears of it

        async with (
            _stderr(run) as errlog,
            stdio_client(_parameters(self._command), errlog=errlog) as (read, write),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(hand_on)
            try:
                yield theirs, write
            finally:
                tasks.cancel_scope.cancel()

    def why(self, run: Run, error: BaseException) -> str:
        """In words: it ended, or what it wrote is no MCP."""
        if run.ended.is_set() or getattr(error, "code", None) == CONNECTION_CLOSED:
            return "did not start: it ended without a word of MCP"
        return f"does not speak MCP: {error}"


class Address:
    """A server at a URL, which gets these headers with each request.

    Raises Refused for what is no http or https URL, or names a user: a process list shows it.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        try:
            parts = urlsplit(url)
            fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            fits = False
        if not fits:
            raise Refused("the server's URL must be http://HOST[:PORT]/PATH or https://…")
        if "@" in parts.netloc:
            raise Refused("a user or password does not belong into the server's URL: use --header")
        self.name = f"{parts.scheme}://{parts.netloc}{parts.path}"  # a query may hold a key
        self.modes: tuple[str, ...] = ("auto",)  # another version may answer there tomorrow
        self._url = url
        self._headers = headers

    @contextlib.asynccontextmanager
    async def opened(self, run: Run) -> AsyncIterator[Streams]:
        """The streams of a session; `run.ended` is set when the server knows it no more."""

        async def asked(request: httpx2.Request) -> None:
            if request.method == "DELETE":  # the good-bye; a tool may take as long as an action
                request.extensions["timeout"]["read"] = MCP_HTTP_S

        async def answered(response: httpx2.Response) -> None:
            run.status = response.status_code
            if run.status == 404 and MCP_SESSION_ID in response.request.headers:
                run.ended.set()  # the session is over: what the protocol says, to 2025-11-25

        async with (
            httpx2.AsyncClient(
                headers=self._headers,
                timeout=httpx2.Timeout(MCP_HTTP_S, read=ACTION_S_MAX),
                event_hooks={"request": [asked], "response": [answered]},
            ) as client,
            streamable_http_client(self._url, http_client=client) as streams,
        ):
            yield streams

    def why(self, run: Run, error: BaseException) -> str:
        """In words: not reached, an HTTP error, or no MCP."""
        if isinstance(error, httpx2.TransportError):
            return f"cannot be reached: {str(error) or type(error).__name__}"
        if run.status is not None and run.status >= 400:
            return f"does not let us speak MCP: it answered with HTTP status {run.status}"
        said = str(error).splitlines()[0] if isinstance(error, MCPError) else type(error).__name__
        return f"does not speak MCP: {said}"


def header_of(text: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Name and value of 'Name: value'; ${VARIABLE} in the value is taken from `environ`.

    Raises Refused; its sentence never has the value, which may be a secret.
    """
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not _HEADER_NAME.fullmatch(name):
        raise Refused("a header is 'Name: value'; its value may hold ${VARIABLE}")
    missing = [v for v in _VARIABLE.findall(value) if v not in environ]
    if missing:
        raise Refused(f"the header {name} needs the variable {missing[0]}, which is not set")
    value = _VARIABLE.sub(lambda found: environ[found[1]], value).strip()
    if not _HEADER_VALUE.fullmatch(value):
        raise Refused(f"the value of the header {name} has characters that no header may have")
    return name, value


@contextlib.asynccontextmanager
async def _stderr(run: Run) -> AsyncIterator[TextIO]:
    """A file for the server's stderr; each of its lines goes to the log."""
    reading, writing = os.pipe()
    reader = asyncio.StreamReader(limit=MCP_STDERR_LINE_BYTES_MAX)
    source, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb")
    )
    lines = asyncio.create_task(_log_lines(run, reader))
    file = os.fdopen(writing, "w")
    try:
        yield file
    finally:
        file.close()
        # its own children may still hold the other end
        await asyncio.wait({lines}, timeout=LAST_WORDS_S)
        lines.cancel()
        source.close()


async def _log_lines(run: Run, reader: asyncio.StreamReader) -> None:
    """Log each line; one that is too long in pieces."""
    while not reader.at_eof():
        try:
            line = await reader.readuntil()
        except asyncio.IncompleteReadError as error:
            line = error.partial
        except asyncio.LimitOverrunError:
            line = await reader.readexactly(MCP_STDERR_LINE_BYTES_MAX)
        said = line.decode(errors="replace").rstrip()
        if said:
            run.last_words.append(said)
            logger.info("%s: %s", run.agent, said)


def _parameters(command: Sequence[str]) -> StdioServerParameters:
    arguments = list(command)
    if sys.platform == "linux":
        wrapper = [sys.executable, "-I", "-S", str(Path(bound_child.__file__))]
        arguments = [*wrapper, str(os.getpid()), *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    return StdioServerParameters(command=arguments[0], args=arguments[1:], env=environment)
