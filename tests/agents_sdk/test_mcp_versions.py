"""The old versions of the Model Context Protocol, which a handshake names.

That of 2026-07-28 is in test_mcp_adapter.py; over HTTP a new one in test_mcp_tools_changed.py, an
old one in test_mcp_restart.py.
"""

from __future__ import annotations

import pytest

from agents_sdk import BusError
from tests.agents_sdk.adapted import adapted, plain
from tests.conftest import Nats


@pytest.mark.parametrize("version", ["2025-11-25", "2024-11-05"])
async def test_an_old_server_is_spoken_to_in_its_version(
    bus: Nats, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    """Whichever it is, its tools are called."""
    caplog.set_level("INFO")
    async with adapted(bus, "old", plain(version)) as (client, _):
        assert (await client.request("old", "pid"))["text"]
    assert f" speaks {version}\n" in caplog.text


async def test_a_server_that_wants_the_handshake_first_gets_it(
    bus: Nats, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended at the question of a newer client: once, and not again when it is restarted."""
    caplog.set_level("INFO")
    async with adapted(bus, "strict", plain("2025-06-18", "strict")) as (client, _):
        assert (await client.request("strict", "pid"))["text"]
        with pytest.raises(BusError):
            await client.request("strict", "die")
        assert (await client.request("strict", "pid"))["text"]
    assert caplog.messages.count("strict: I expected the handshake") == 1
    assert caplog.text.count(" speaks 2025-06-18\n") == 2
