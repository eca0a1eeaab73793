"""What the registry keeps up with its agents outside the log."""

from __future__ import annotations

import pytest

from mcp_bus import config
from mcp_bus.config import QUEUE_OPEN_AGAIN_S
from mcp_bus.domain.agents import Agents
from mcp_bus.log import Log, queues
from mcp_bus.log.stream import stream_config
from mcp_bus.services import registry
from mcp_bus.services.queues import Dropped
from mcp_bus.services.registry import Beside
from mcp_bus.subjects import STREAM


async def test_a_queue_that_the_log_refuses_is_opened_later(
    bus: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry goes on without it, the other queues too; nothing that was asked is lost."""
    clock = [0.0]
    monkeypatch.setattr(registry, "_now", lambda: clock[0])
    full = stream_config(config.load({})) | {"max_consumers": 1}
    await bus.api(f"STREAM.UPDATE.{STREAM}", full)
    beside, agents = (
        Beside(600.0, Dropped()),
        Agents(since=dict.fromkeys(("one", "two", "three"), 0)),
    )

    async def opened() -> list[bool]:
        await beside(bus, agents, 0)
        return [await queues.taken(bus, agent) is not None for agent in agents.since]

    assert await opened() == [True, False, False]
    await bus.api(f"STREAM.UPDATE.{STREAM}", full | {"max_consumers": 3})
    assert await opened() == [True, False, True]
    clock[0] = QUEUE_OPEN_AGAIN_S
    assert await opened() == [True, True, True]
