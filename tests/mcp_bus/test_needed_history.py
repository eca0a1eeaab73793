"""What a decision needs and the log has let go, while the event store is away."""

from __future__ import annotations

from pathlib import Path

from mcp_bus import config
from mcp_bus.messages import Message
from tests.conftest import SECRET, Nats
from tests.mcp_bus.deciding import deciding, opened


async def test_a_command_that_needs_the_event_store_is_refused_while_it_is_away(
    nats: Nats, tmp_path: Path
) -> None:
    """And can be sent again; nothing else waits for it."""
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    settings = config.load(
        {}, data_dir=tmp_path, nats=nats.services, secret=SECRET, postgres=nowhere
    )
    async with opened(nats.services) as bus, deciding(settings):
        await bus.defined()
        execution = await bus.started(n=1)
        request, position = await bus.requested(0)
        error = {"error": {"code": "no", "message": "no"}}
        await bus.log.publish(Message.answer(request, "echo", error))
        _, end = await bus.next(f"mcp.event.workflows.{execution}", position)
        await bus.log.publish(Message.build("event", "a", "b", {}))
        await bus.purge(end + 1)
        wanted = {"executionId": execution, "from": "a", "at": end}
        refused = (await bus.ask("workflows", "rerun", wanted))["error"]
        assert (refused["code"], refused["retryable"]) == ("store_unavailable", True)
        other = await bus.started(n=2)
        assert (await bus.requested(end))[0].metadata.correlation_id == other
