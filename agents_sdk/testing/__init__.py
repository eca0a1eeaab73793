"""Tests of agents and workflows, on a real bus: docs/testing.md is its reference.

    async def test_the_log_is_summed_up(bus):
        async with fake_agent("git", git_log=returns({"commits": 3})):
            ...

One bus for all tests of a process: the real engines and services in a folder that goes away, and
for each test a client of its own. Nothing is simulated but the agents that a test scripts itself.
The fixture `bus` is that of mcp_bus.pytest_plugin. It needs the extra `server`; the rest of the
SDK never imports it.
"""

try:
    from agents_sdk.testing.agents import (
        Call,
        FakeAgent,
        Script,
        fake_agent,
        in_turn,
        never,
        raises,
        returns,
    )
    from agents_sdk.testing.bus import Bus, opened
    from agents_sdk.testing.conversation import assert_conversation
    from agents_sdk.testing.process import Started, started
except ModuleNotFoundError as error:
    _missing = str(error.name).partition(".")[0]
    raise ModuleNotFoundError(
        f"agents_sdk.testing needs {_missing}: pip install 'mcp-event-bus[server]'", name=_missing
    ) from None

__all__ = [
    "Bus",
    "Call",
    "FakeAgent",
    "Script",
    "Started",
    "assert_conversation",
    "fake_agent",
    "in_turn",
    "never",
    "opened",
    "raises",
    "returns",
    "started",
]
