"""The plugin: found by pytest wherever the distribution is, and free until a test wants a bus."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest

from agents_sdk import Agent, connect
from agents_sdk.testing import Bus, Started, fake_agent, process, returns

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.md"
OURS = "{name.partition('.')[0] for name in sys.modules}"


def example() -> str:
    """The test file in docs/testing.md, at the lines where it stands there."""
    text = PAGE.read_text("utf-8")
    found = re.search(r'^    """Release notes.*?(?=^\S)', text, re.MULTILINE | re.DOTALL)
    assert found
    return "\n" * text.count("\n", 0, found.start()) + textwrap.dedent(found[0])


exec(compile(example(), str(PAGE), "exec"))  # noqa: S102, its tests are tests of this file


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_pytest_finds_the_plugin() -> None:
    """By the entry point of the distribution."""
    found = metadata.entry_points(group="pytest11", name="mcp_bus")
    assert [entry.value for entry in found] == ["mcp_bus.pytest_plugin"]


def test_the_plugin_costs_nothing_before_it_is_used() -> None:
    """It imports neither the SDK nor what that needs."""
    done = python(f"import sys, pytest, mcp_bus.pytest_plugin; print(*{OURS})")
    assert done.returncode == 0, done.stderr
    assert not {"agents_sdk", "aiohttp", "nats", "pydantic"} & set(done.stdout.split())


@pytest.mark.parametrize("missing", ["aiohttp", "eventsourcing"])
def test_without_the_server_it_says_what_to_install(missing: str) -> None:
    """In one sentence, with the package that was missed first."""
    done = python(f"import sys; sys.modules[{missing!r}] = None; import agents_sdk.testing")
    said = f"agents_sdk.testing needs {missing}: pip install 'mcp-event-bus[server]'"
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {said}"


def test_the_kit_needs_no_pytest() -> None:
    """It can be used with another runner."""
    program = "import sys; sys.modules['pytest'] = None; from agents_sdk.testing import started"
    assert python(program).returncode == 0


async def test_what_is_told_nothing_finds_the_bus_of_the_test(bus: Bus) -> None:
    """An agent and a client as they are in production, with no word of where the bus is."""
    agent = Agent("greeter")

    @agent.action
    def greet(name: str) -> str:
        return f"Hello, {name}!"

    async with agent, connect(id="guest") as guest:
        assert await guest.request("greeter", "greet", {"name": "Ann"}) == {"result": "Hello, Ann!"}


def test_the_environment_names_the_bus_only_while_a_test_uses_it() -> None:
    """A test without the fixture has the environment that it was started in."""
    assert "mcp-bus-" not in os.environ.get("MCP_BUS_DATA_DIR", "")


async def test_one_bus_serves_all_tests_of_a_process(bus: Bus, mcp_bus_started: Started) -> None:
    """Its services are one child, beside the two engines."""
    assert process.current() is mcp_bus_started
    assert set(mcp_bus_started.bus.pids) == {"services", "nats-server", "postgres"}


def test_without_a_bus_there_are_no_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the fixture."""
    monkeypatch.setattr(process, "_of_this_process", [])
    with pytest.raises(Exception, match="needs the fixture `bus`"):
        fake_agent("git", log=returns(1))
