"""A conversation as a test tells it."""

from __future__ import annotations

from typing import Any

import pytest

from agents_sdk import ActionError, BusError, Context
from agents_sdk.testing import Bus, assert_conversation, fake_agent


async def talk(bus: Bus, name: str) -> None:
    """Ask an agent that tells how far it is, asks another one, and fails."""

    async def read(context: Context) -> str:
        await context.progress(0.5)
        return str(await context.request("disk", "seek"))

    async def seek() -> dict[str, Any]:
        raise ActionError("worn_out", "too many turns")

    async with fake_agent("reader", read=read), fake_agent("disk", seek=seek):
        with pytest.raises(BusError):
            await bus.request("reader", "read", correlation_id=name)
        await bus.publish(name, {"event": "Regretted"}, correlation_id=name)


TALK = [
    "client -> reader: request read",
    "reader -> client: Progress",
    "reader -> disk: request seek",
    "disk -> reader: error worn_out",
    "reader -> client: error worn_out",
    "client: Regretted",
]


async def test_each_message_is_one_line_in_order(bus: Bus) -> None:
    """Requests, answers, errors, events; of this conversation alone."""
    await talk(bus, "another")
    await talk(bus, "told")
    await assert_conversation(bus, "told", TALK)


async def test_the_difference_is_shown_with_what_is_behind_it(bus: Bus) -> None:
    """The lines that agree, the expected one, the one found with position and payload."""
    await talk(bus, "told")
    expected = [*TALK[:3], "disk -> reader: response", *TALK[4:]]
    with pytest.raises(AssertionError) as failed:
        await assert_conversation(bus, "told", expected)
    lines = str(failed.value).splitlines()
    assert lines[0] == "conversation told (- expected, + in the log):"
    assert lines[3] == "    reader -> disk: request seek"
    assert lines[4] == "  - disk -> reader: response"
    assert lines[5].startswith("  + disk -> reader: error worn_out    (")
    assert '"too many turns"' in lines[5]
    assert len(lines) == 1 + len(TALK) + 1


@pytest.mark.parametrize("expected", [TALK[:-1], [*TALK, "client: Forgot"], []])
async def test_neither_more_nor_less_is_the_same(bus: Bus, expected: list[str]) -> None:
    """What is missing is waited for, what is too much is seen at once."""
    await talk(bus, "told")
    with pytest.raises(AssertionError):
        await assert_conversation(bus, "told", expected, within_s=0.3)
