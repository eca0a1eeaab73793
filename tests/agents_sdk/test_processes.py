"""An agent as a process of its own: how it ends, and who answers then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agents_sdk import connect
from mcp_bus import config, log
from tests.conftest import Nats

GREETER = """
import asyncio, sys
from agents_sdk import Agent
agent = Agent("greeter", url=sys.argv[1])

@agent.action
async def wait_for(event: str) -> str:
    async with agent.bus.subscribe(target=event) as happened:
        await agent.bus.publish("started", {"event": "Started"})
        await anext(happened)
    return "done"

@agent.action
async def greet(name: str) -> str:
    return f"Hello, {name}"

agent.run()
"""


@contextlib.asynccontextmanager
async def program(bus: Nats, tmp_path: Path, **extra: str) -> AsyncIterator[Any]:
    """The greeter as a process of its own."""
    path = tmp_path / "greeter.py"
    path.write_text(GREETER)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MCP_BUS_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(path), bus.agent("greeter", "developer")),
        env=environment | extra,
        stderr=-1,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_sigterm_finishes_what_runs(bus: Nats, tmp_path: Path) -> None:
    """The answer to a request in hand is stored before the process ends, with exit code 0."""
    async with (
        connect(bus.agent("client", "developer")) as client,
        client.subscribe(target="started") as started,
        program(bus, tmp_path) as process,
    ):
        async with client.subscribe("registry", "greeter", "response") as registered:
            await anext(registered)
        asking = asyncio.create_task(client.request("greeter", "wait_for", {"event": "go"}))
        await anext(started)
        process.send_signal(signal.SIGTERM)
        line = ""
        while "drains" not in line:
            line = (await process.stderr.readline()).decode()
        await client.publish("go", {"event": "Go"})
        assert await asking == {"result": "done"}
        assert await process.wait() == 0


async def test_a_killed_process_leaves_its_request_to_the_next(
    bus: Nats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed with the request in hand: another process of the id answers it, once."""
    monkeypatch.setattr(config, "ACK_WAIT_S", 2.0)
    async with connect(bus.agent("client", "developer")) as client:
        async with program(bus, tmp_path, MCP_BUS_FAULT_AT="agent.taken") as process:
            async with client.subscribe("registry", "greeter", "response") as registered:
                await anext(registered)
            asking = asyncio.create_task(client.request("greeter", "greet", {"name": "Ann"}))
            assert await process.wait() == -signal.SIGKILL
        async with program(bus, tmp_path):
            assert await asking == {"result": "Hello, Ann"}


async def test_a_process_killed_before_its_acknowledgement_answers_once(
    bus: Nats, tmp_path: Path
) -> None:
    """The request is run again by the next process, and its answer is the one that is there."""
    async with connect(bus.agent("client", "developer")) as client:
        async with program(bus, tmp_path, MCP_BUS_FAULT_AT="agent.answered") as process:
            async with client.subscribe("registry", "greeter", "response") as registered:
                await anext(registered)
            assert await client.request("greeter", "greet", {"name": "Ann"})
            assert await process.wait() == -signal.SIGKILL
        services = await log.connect(bus.services, name="test")
        async with program(bus, tmp_path):
            await client.request("greeter", "greet", {"name": "Bob"}, timeout=40)
            last = (await services.info()).last
            answers = [
                record.subject
                for position in range(1, last + 1)
                if (record := await services.get(position)) is not None
                and record.subject.startswith("mcp.response.greeter.")
            ]
        await services.close()
        assert len(answers) == 2


async def test_an_agent_that_finds_no_bus_says_so(tmp_path: Path) -> None:
    """One sentence and exit code 1."""
    path = tmp_path / "agent.py"
    path.write_text('from agents_sdk import Agent\nAgent("a").run()\n')
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MCP_BUS_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "MCP_BUS_DATA_DIR": str(tmp_path),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(path)), env=environment, stderr=-1
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    assert said.decode().startswith("a: no bus found")
    assert "Traceback" not in said.decode()
