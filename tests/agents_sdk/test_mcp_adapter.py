"""Real Model Context Protocol servers as agents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agents_sdk import BusError, connect
from tests.conftest import Nats

ADAPTER = (sys.executable, "-m", "agents_sdk.adapters.mcp")
TIME = (sys.executable, "-m", "mcp_server_time")
GIT = (sys.executable, "-m", "mcp_server_git")

OUTPUTS = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "structured": {"type": ["object", "null"]}},
    "required": ["text", "structured"],
}

# a server that says what it sees, and can be told to die
ODD = """
import os, sys
from mcp.server.mcpserver import MCPServer
server = MCPServer("odd")

@server.tool(name="files/read.all")
def read() -> str:
    return " ".join(sorted(os.environ))

@server.tool()
def pid() -> str:
    return str(os.getpid())

@server.tool()
def die() -> str:
    sys.stderr.write("my last words\\n")
    os._exit(3)

server.run()
"""


def environment(**extra: str) -> dict[str, str]:
    """That of this process, without a bus of this machine."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MCP_BUS_")}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | extra


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The adapter until it ends."""
    return subprocess.run(
        [*ADAPTER, *arguments], capture_output=True, text=True, env=environment(), check=False
    )


@contextlib.asynccontextmanager
async def adapter(bus: Nats, agent: str, *command: str) -> AsyncIterator[Any]:
    """The adapter as a process, once it has registered."""
    async with (
        connect(bus.agent("client", "developer")) as client,
        client.subscribe("registry", agent, "response") as registered,
    ):
        process = await asyncio.create_subprocess_exec(
            *(*ADAPTER, "--id", agent, "--", *command),
            env=environment(MCP_BUS_NATS=bus.agent(agent), TOOL_TOKEN="for the tool"),
            stderr=subprocess.PIPE,
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


@pytest.mark.parametrize(
    ("command", "action", "required"),
    [(TIME, "get_current_time", ["timezone"]), (GIT, "git_log", ["repo_path"])],
)
def test_every_tool_is_described(command: tuple[str, ...], action: str, required: Any) -> None:
    """With its description and its schema, under the capability that was named."""
    done = run("--id", "tools", "--capability", "offer", "--describe", "--", *command)
    described = json.loads(done.stdout)
    assert (described["id"], described["type"]) == ("tools", "mcp")
    (capability,) = described["capabilities"]
    assert capability["name"] == "offer"
    assert set(capability["actions"]) == set(capability["parameters"])
    tool = capability["parameters"][action]
    assert tool["description"]
    assert tool["inputs"]["required"] == required
    assert tool["outputs"] == OUTPUTS


async def test_a_tool_answers_with_text_and_structure(bus: Nats) -> None:
    """And its error is `tool_error` with its words."""
    async with adapter(bus, "time", *TIME), connect(bus.agent("client", "developer")) as client:
        told = await client.request("time", "get_current_time", {"timezone": "UTC"})
        assert told["structured"]["timezone"] == "UTC"
        assert json.loads(told["text"]) == told["structured"]
        with pytest.raises(BusError) as wrong:
            await client.request("time", "get_current_time", {"timezone": "Nowhere/Town"})
        assert wrong.value.code == "tool_error"
        assert "Nowhere/Town" in wrong.value.detail


async def test_a_tool_without_structure_answers_with_text(
    bus: Nats, empty_repository: Path
) -> None:
    """`structured` is null then."""
    async with adapter(bus, "git", *GIT), connect(bus.agent("client", "developer")) as client:
        told = await client.request("git", "git_status", {"repo_path": str(empty_repository)})
    assert told["text"].startswith("Repository status:")
    assert told["structured"] is None


async def test_a_server_sees_its_own_variables_and_not_those_of_the_bus(
    bus: Nats, tmp_path: Path
) -> None:
    """And a tool whose name is no id has one with `_` for what ids do not have."""
    (tmp_path / "odd.py").write_text(ODD)
    async with (
        adapter(bus, "odd", sys.executable, str(tmp_path / "odd.py")),
        connect(bus.agent("client", "developer")) as client,
    ):
        seen = (await client.request("odd", "files_read_all"))["text"].split()
    assert "TOOL_TOKEN" in seen
    assert not [name for name in seen if name.startswith("MCP_BUS_")]


async def test_an_agent_ends_when_its_server_ends(bus: Nats, tmp_path: Path) -> None:
    """The request in hand is answered, and the last words are told, with exit code 1."""
    (tmp_path / "odd.py").write_text(ODD)
    async with (
        connect(bus.agent("client", "developer")) as client,
        adapter(bus, "odd", sys.executable, str(tmp_path / "odd.py")) as process,
    ):
        with pytest.raises(BusError) as lost:
            await client.request("odd", "die")
        _, said = await process.communicate()
    assert (lost.value.code, lost.value.retryable) == ("tool_error", True)
    assert process.returncode == 1
    last = said.decode().rpartition("odd: ")[2]
    assert last.startswith("the MCP server")
    assert "my last words" in last


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of a killed parent")
async def test_a_server_dies_with_a_killed_agent(bus: Nats, tmp_path: Path) -> None:
    """Even with SIGKILL, and even if the server reads its stdin no more."""
    (tmp_path / "odd.py").write_text(ODD)
    async with (
        connect(bus.agent("client", "developer")) as client,
        adapter(bus, "odd", sys.executable, str(tmp_path / "odd.py")) as process,
    ):
        pid = int((await client.request("odd", "pid"))["text"])
        os.kill(pid, signal.SIGSTOP)  # it cannot even notice that its stdin is closed
        watched = os.pidfd_open(pid)
        process.kill()
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(watched, gone.set)
        try:
            async with asyncio.timeout(10):
                await gone.wait()
        finally:
            asyncio.get_running_loop().remove_reader(watched)
            os.close(watched)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--id", "a"), 2, "the server's command is missing"),
        (("--id", "registry", "--", "true"), 1, "cannot name an agent"),
        (("--id", "a", "--", "no-such-program"), 1, "there is no program 'no-such-program'"),
        (("--id", "a", "--", "false"), 1, "did not start"),
        (("--id", "a", "--", "cat"), 1, "did not start"),
        (("--id", "a", "--", "sh", "-c", "echo broken >&2; exit 3"), 1, "broken"),
    ],
)
def test_what_cannot_start_says_so(arguments: tuple[str, ...], code: int, said: str) -> None:
    """One clear error, no traceback, and a code that is not 0."""
    done = run(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
