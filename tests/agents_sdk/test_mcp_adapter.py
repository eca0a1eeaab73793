"""Real Model Context Protocol servers as agents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp.server.mcpserver import MCPServer

from agents_sdk import Agent, BusError, connect
from agents_sdk.adapters.mcp import describe
from agents_sdk.adapters.transports import Address, Program, header_of
from tests.agents_sdk.adapted import PLAIN, adapted, plain
from tests.agents_sdk.web import answering
from tests.conftest import Nats
from tests.services import WAIT_S

ADAPTER = (sys.executable, "-m", "mcp_bus", "adapter", "mcp")
TIME = (sys.executable, "-m", "mcp_server_time")
GIT = (sys.executable, "-m", "mcp_server_git")

OUTPUTS = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "structured": {"type": ["object", "null"]}},
    "required": ["text", "structured"],
}


def environment(**extra: str) -> dict[str, str]:
    """That of this process, without a bus of this machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MCP_BUS_")}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | extra


def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """The adapter as a program, until it ends."""
    return subprocess.run(
        [*ADAPTER, *arguments],
        capture_output=True,
        text=True,
        env=environment(**extra),
        check=False,
    )


@contextlib.asynccontextmanager
async def program(bus: Nats, agent: str, *command: str) -> AsyncIterator[Any]:
    """The adapter as a process, once it has registered."""
    async with (
        connect(bus.agent("client", "developer")) as client,
        client.subscribe("registry", agent, "response") as registered,
    ):
        process = await asyncio.create_subprocess_exec(
            *(*ADAPTER, "--id", agent, "--", *command),
            env=environment(MCP_BUS_NATS=bus.agent(agent)),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            await anext(registered)
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()


@pytest.fixture
def empty_repository(tmp_path: Path) -> Path:
    """A git repository without a commit."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


async def test_every_tool_is_described() -> None:
    """With its description and its schema, under the capability that was named."""
    described = await describe(Agent("tools", type="mcp", capability="offer"), Program(GIT))
    assert (described["id"], described["type"]) == ("tools", "mcp")
    (capability,) = described["capabilities"]
    assert capability["name"] == "offer"
    assert set(capability["actions"]) == set(capability["parameters"])
    tool = capability["parameters"]["git_log"]
    assert tool["description"]
    assert tool["inputs"]["required"] == ["repo_path"]
    assert tool["outputs"] == OUTPUTS


async def test_a_tool_answers_with_text_and_structure(
    bus: Nats, caplog: pytest.LogCaptureFixture
) -> None:
    """And its error is `tool_error` with its words; the server speaks the newest version."""
    caplog.set_level("INFO")
    async with adapted(bus, "time", Program(TIME)) as (client, _):
        told = await client.request("time", "get_current_time", {"timezone": "UTC"})
        assert told["structured"]["timezone"] == "UTC"
        assert json.loads(told["text"]) == told["structured"]
        with pytest.raises(BusError) as wrong:
            await client.request("time", "get_current_time", {"timezone": "Nowhere/Town"})
        assert wrong.value.code == "tool_error"
        assert "Nowhere/Town" in wrong.value.detail
    assert " speaks 2026-07-28\n" in caplog.text


async def test_a_tool_without_structure_answers_with_text(
    bus: Nats, empty_repository: Path
) -> None:
    """`structured` is null then."""
    async with adapted(bus, "git", Program(GIT)) as (client, _):
        told = await client.request("git", "git_status", {"repo_path": str(empty_repository)})
    assert told["text"].startswith("Repository status:")
    assert told["structured"] is None


async def test_a_server_sees_its_own_variables_and_not_those_of_the_bus(
    bus: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a tool whose name is no id has one with `_` for what ids do not have."""
    monkeypatch.setenv("TOOL_TOKEN", "for the tool")
    monkeypatch.setenv("MCP_BUS_TOKEN", "for the bus")
    async with adapted(bus, "plain", plain()) as (client, _):
        seen = (await client.request("plain", "a_b_c"))["text"].split()
    assert "TOOL_TOKEN" in seen
    assert not [name for name in seen if name.startswith("MCP_BUS_")]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of a killed parent")
async def test_a_server_dies_with_a_killed_agent(bus: Nats) -> None:
    """Even with SIGKILL, and even if the server reads its stdin no more."""
    async with (
        connect(bus.agent("client", "developer")) as client,
        program(bus, "plain", *PLAIN) as process,
    ):
        pid = int((await client.request("plain", "pid"))["text"])
        os.kill(pid, signal.SIGSTOP)  # it cannot even notice that its stdin is closed
        watched = os.pidfd_open(pid)
        process.kill()
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(watched, gone.set)
        try:
            async with asyncio.timeout(WAIT_S):
                await gone.wait()
        finally:
            asyncio.get_running_loop().remove_reader(watched)
            os.close(watched)


# --- a server at a URL


def sums(secret: str) -> Any:
    """An application that speaks MCP to who brings the secret, and else answers 401."""
    server = MCPServer("sums")

    @server.tool()
    def add(a: int, b: int) -> int:
        return a + b

    app = server.streamable_http_app()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope.get("headers", ())).get(b"x-secret", b"").decode()
        if scope["type"] == "lifespan" or given == secret:
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": given.encode()})

    return guarded


async def test_a_server_at_a_url_is_an_agent(bus: Nats) -> None:
    """Its tools are called over streamable HTTP, with the header in each request."""
    async with answering(sums("open sesame")) as web:
        address = Address(f"http://127.0.0.1:{web.port}/mcp", {"X-Secret": "open sesame"})
        async with adapted(bus, "sums", address) as (client, _):
            told = await client.request("sums", "add", {"a": 2, "b": 3})
    assert told == {"text": "5", "structured": {"result": 5}}


async def test_a_secret_is_taken_from_a_variable_and_never_told() -> None:
    """Neither in the log, at its most talkative, nor in the error."""
    async with answering(sums("open sesame")) as web:
        named = ("--id", "sums", "--type", "web", "--capability", "offer", "--describe")
        arguments = (*named, "--url", f"http://127.0.0.1:{web.port}/mcp")
        header = ("--header", "x-secret: ${SESAME}")
        talkative = {"MCP_BUS_LOG_LEVEL": "debug"}
        good, wrong = await asyncio.gather(
            asyncio.to_thread(run, *arguments, *header, SESAME="open sesame", **talkative),
            asyncio.to_thread(run, *arguments, *header, SESAME="open onions", **talkative),
        )
    described = json.loads(good.stdout)
    (offered,) = described["capabilities"]
    assert (described["id"], described["type"]) == ("sums", "web")
    assert (offered["name"], offered["actions"]) == ("offer", ["add"])
    assert wrong.returncode == 1
    assert f"http://127.0.0.1:{web.port}/mcp does not let us speak MCP" in wrong.stderr
    assert "401" in wrong.stderr
    assert not [said for said in (good.stderr, wrong.stdout, wrong.stderr) if "open " in said]


async def test_an_address_where_nobody_speaks_mcp() -> None:
    """One sentence each: nobody there, and a web server that knows no MCP."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(BusError, match=rf"http://127.0.0.1:{port}/ cannot be reached: "):
        await describe(Agent("a"), Address(f"http://127.0.0.1:{port}/", {}))

    async def page(scope: Any, receive: Any, send: Any) -> None:
        head = [(b"content-type", b"text/html")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"<h1>Welcome</h1>"})

    async with answering(page) as web:
        with pytest.raises(BusError, match="does not speak MCP: Unexpected content type"):
            await describe(Agent("a"), Address(f"http://127.0.0.1:{web.port}/?key=a", {}))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://files.example/mcp", "must be http://"),
        ("wiki.example/mcp", "must be http://"),
        ("http:///mcp", "must be http://"),
        ("http://wiki.example:99999/mcp", "must be http://"),
        ("https://me:secret@wiki.example/mcp", "use --header"),
    ],
)
def test_an_address_is_http_and_has_no_secret(url: str, said: str) -> None:
    """Only http and https; a password in the process list is refused, and not repeated."""
    with pytest.raises(BusError, match=said) as wrong:
        Address(url, {})
    assert "secret" not in wrong.value.detail


def test_a_key_in_a_query_is_not_in_the_name() -> None:
    """What sentences call the server ends before its query."""
    assert Address("https://a.example/mcp?key=k", {}).name == "https://a.example/mcp"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no colon: ${KEY}", "a header is"),
        ("secret", "a header is"),
        ("X-Key: secret ${GONE}", "needs the variable GONE"),
        ("X-Key: secret ${LINES}", "characters that no header may have"),
    ],
)
def test_a_wrong_header_is_refused_without_its_value(text: str, said: str) -> None:
    """A line break in a value would be a header of its own."""
    with pytest.raises(BusError, match=said) as wrong:
        header_of(text, {"KEY": "k", "LINES": "a\r\nX-Other: b"})
    assert "secret" not in wrong.value.detail
    assert header_of("X-Key:  a${KEY}b${KEY} ", {"KEY": "k"}) == ("X-Key", "akbk")


# --- what cannot start


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--id", "a"), 2, "name the server"),
        (("--id", "a", "--url", "http://a/", "--", "true"), 2, "name the server"),
        (("--id", "a", "--header", "A: b", "--", "true"), 2, "--header is for"),
        (("--id", "a", "--", "sh", "-c", "echo broken >&2; exit 3"), 1, "broken"),
    ],
)
def test_what_cannot_start_says_so(arguments: tuple[str, ...], code: int, said: str) -> None:
    """One clear error, no traceback, and a code that is not 0."""
    done = run(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("no-such-program", "there is no program 'no-such-program'"),
        ("false", "`false` did not start: it ended without a word of MCP"),
        ("cat", "`cat` does not speak MCP"),
    ],
)
async def test_a_program_that_is_no_server(command: str, said: str) -> None:
    """It is told from one that ended."""
    with pytest.raises(BusError, match=said):
        await describe(Agent("a"), Program([command]))
