"""What the log and the deciders withstand from an agent that is let in and means harm.

As in test_accounts.py: each attack asserts that it did no harm, and must do it on a weak bus.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from nats.aio.client import Client

from mcp_bus import log
from mcp_bus.config import HEADERS_BYTES_MAX, MESSAGE_BYTES_MAX
from mcp_bus.log.records import BATCH_ID, BATCH_SEQUENCE
from mcp_bus.messages import Message, dumps
from tests.conftest import Nats
from tests.mcp_bus.attacker import Attack, connected, stored


async def refusal(client: Client, data: bytes, headers: dict[str, str] | None = None) -> int:
    """The number by which the log refuses an event of agent `a`, 0 when it does not."""
    said = await client.request("mcp.event.a.b", data, timeout=5, headers=headers)
    answer: dict[str, Any] = json.loads(said.data or b"{}")
    return int(answer.get("error", {}).get("err_code", 0))


async def publish_too_much(nats: Nats) -> None:
    """More than any message has, but less than the server takes from a client."""
    async with (
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a"), "a") as (a, _complaints),
    ):
        most = MESSAGE_BYTES_MAX + HEADERS_BYTES_MAX
        assert await refusal(a, b"x" * (most + 1)) == 10054
        assert await refusal(a, b"x" * MESSAGE_BYTES_MAX, {"X": "x" * HEADERS_BYTES_MAX}) == 10054
        assert await stored(bus) == {}


async def hold_a_batch(nats: Nats) -> None:
    """The server has 50 atomic batches open, for everybody together."""
    async with connected(nats.agent("a"), "a") as (a, _complaints):
        assert await refusal(a, b"x", {BATCH_ID: "mine", BATCH_SEQUENCE: "1"}) == 10174


ATTACKS = (publish_too_much, hold_a_batch)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_attack_does_no_harm(attack: Attack, nats: Nats) -> None:
    """Against what is shipped."""
    await attack(nats)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_attack_can_do_harm(attack: Attack, nats: Nats, weak: None) -> None:
    """Against a weak bus: so it is no attack that always misses."""
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        await attack(nats)


async def test_the_largest_message_goes_in(nats: Nats) -> None:
    """With the longest id and trace that a message may have."""
    longest = "\U0001f41d" * 256
    me = await log.connect(nats.agent("me"), name="me")

    def message(text: str) -> Message:
        return Message.build(
            "event", "me", "b", text, message_id=longest, traceparent=longest, correlation_id="c"
        )

    room = MESSAGE_BYTES_MAX - len(dumps(message("").model_dump(by_alias=True, exclude_unset=True)))
    assert len(message("x" * room).encode()) == MESSAGE_BYTES_MAX
    assert (await me.publish(message("x" * room))).position == 1
    await me.close()
