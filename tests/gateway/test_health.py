"""GET /health, on a whole bus and on half of one."""

from __future__ import annotations

import pytest

from mcp_bus import __version__, config, runtime
from mcp_bus.cli.services import SERVICES as COMMANDS
from mcp_bus.config import Settings

from .conftest import SERVICES, Rest, serving


async def test_a_whole_bus_is_ok(bus: Rest) -> None:
    """Without a token: 200, every service with status, position and lag."""
    said = await bus.healthy()
    assert list(said.body) == ["status", "version", "position", "services"]
    assert (said.body["status"], said.body["version"]) == ("ok", __version__)
    assert list(said.body["services"]) == list(SERVICES) == list(COMMANDS)
    for service in said.body["services"].values():
        assert service.keys() == {"status", "position", "lag"}
        assert service["status"] == "ok"


async def test_a_silent_service_degrades_the_bus(alone: Rest) -> None:
    """A service that was never heard is silent, and the answer is 503."""
    said = await alone.call("GET", "/health", token="")
    assert (said.status, said.body["status"]) == (503, "degraded")
    assert said.body["services"]["registry"] == {"status": "silent", "position": 0, "lag": 0}


async def test_a_whole_bus_is_ok_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No service waits for a message or a tick: here these would come after a minute."""
    monkeypatch.setattr(config, "DECIDER_IDLE_S", 60.0)
    monkeypatch.setattr(runtime, "STATUS_EVERY_S", 60.0)
    async with serving(settings, list(SERVICES)) as rest:
        await rest.healthy()
