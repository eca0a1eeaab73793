"""A server that neither answers nor closes: noticed, and survived without a loss or a copy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from agents_sdk import connect
from mcp_bus import config, log
from mcp_bus.domain.agents import Agents
from mcp_bus.domain.decider import Logged
from mcp_bus.errors import OutcomeUnknown, SettingsError
from mcp_bus.log.records import headers_of
from mcp_bus.log.stream import stream_config
from mcp_bus.messages import Message
from mcp_bus.services import reader
from mcp_bus.services.queues import Dropped, Queues
from mcp_bus.subjects import STREAM
from tests.conftest import Engines, Nats
from tests.services import WAIT_S


@contextlib.contextmanager
def frozen(engines: Engines) -> Iterator[None]:
    """The server of this test process stands still."""
    os.kill(engines.nats_pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, engines.nats_pid, os.WSTOPPED)  # until its last thread has stopped
        yield
    finally:
        os.kill(engines.nats_pid, signal.SIGCONT)


async def test_a_frozen_server_is_noticed(
    engines: Engines, nats: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After as many pings as may be outstanding, and one: by default in 15 s. What is published
    meanwhile is stored once, when the server is back."""
    assert config.PING_EVERY_S * (config.PINGS_OUTSTANDING_MAX + 1) <= 15
    monkeypatch.setattr(config, "PING_EVERY_S", 0.2)
    connection = await log.connect(nats.agent("a"), name="a")
    lost, before = asyncio.Event(), connection.generation
    connection.on_lost(lost)
    with frozen(engines):
        publishing = asyncio.create_task(
            connection.publish(Message.build("event", "a", "b", {"event": "Happened"}))
        )
        async with asyncio.timeout(WAIT_S):
            await lost.wait()
        assert connection.generation > before
    assert (await publishing).position == 1
    assert (await connection.publish(Message.build("event", "a", "b", {}))).position == 2
    await connection.close()


async def test_a_publish_without_an_answer_is_of_unknown_outcome(
    engines: Engines, nats: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored when the server wakes, though nobody waited; again under its id, it is one."""
    monkeypatch.setattr(config, "PUBLISH_RETRY_S", 0.4)
    monkeypatch.setattr(config, "PUBLISH_ATTEMPT_S", 0.1)
    connection = await log.connect(nats.agent("a"), name="a")
    message = Message.build("event", "a", "b", {"event": "Happened"})
    with frozen(engines), pytest.raises(OutcomeUnknown) as unknown:
        await connection.publish(message)
    assert unknown.value.message_id == message.metadata.message_id
    monkeypatch.undo()
    again = await connection.publish(message)
    assert (again.position, again.duplicate) == (1, True)
    await connection.close()


@pytest.mark.parametrize("who", ["a service", "an agent"])
async def test_an_unknown_outcome_is_settled_by_looking(
    who: str, engines: Engines, nats: Nats, bus: log.Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the log may have forgotten its id, publishing it again makes no second one."""
    await reader.serve(bus)
    settings = stream_config(config.load({})) | {"duplicate_window": 500_000_000}
    await bus.api(f"STREAM.UPDATE.{STREAM}", settings)
    url = nats.services if who == "a service" else nats.agent("a")
    async with connect(url, id="a") as client:
        await client.publish("b", {"event": "Before"})
        message = Message.build("event", "a", "b", {"event": "Happened"})
        monkeypatch.setattr(config, "PUBLISH_RETRY_S", 0.4)
        monkeypatch.setattr(config, "PUBLISH_ATTEMPT_S", 0.1)
        with frozen(engines), pytest.raises(OutcomeUnknown):
            await client.log.publish(message)
        monkeypatch.undo()
        await _forgotten(bus)
        monkeypatch.setattr(config, "PUBLISH_SETTLE_S", 0)
        last = (await bus.info()).last
        again = await client.log.publish(message)
        stands = await bus.get(again.position)
        assert stands is not None
        assert (stands.data, again.duplicate) == (message.encode(), True)
        assert (await bus.info()).last == last


def test_a_log_that_forgets_ids_too_soon_is_refused() -> None:
    """Before anything starts: it must know an id for as long as it is published again blindly, and
    that once more."""
    with pytest.raises(SettingsError, match="MCP_BUS_DUPLICATE_WINDOW_S"):
        config.load({"MCP_BUS_DUPLICATE_WINDOW_S": str(2 * config.PUBLISH_SETTLE_S - 0.1)})
    assert config.PUBLISH_RETRY_S <= config.PUBLISH_SETTLE_S


async def _forgotten(bus: log.Log) -> None:
    """Wait until the log knows none of the ids that it has."""
    probe = Message.build("event", "test", "test", {"event": "Probed"})
    known = (await bus.publish(probe)).position
    headers = headers_of(probe.metadata.message_id or "", probe)
    async with asyncio.timeout(WAIT_S):
        while True:
            ack = await bus.publisher.attempt(probe.subject, probe.encode(), headers)
            if ack is not None and ack["seq"] != known:
                return


async def test_a_look_at_stuck_queues_ends_in_time(
    engines: Engines, nats: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many do not answer: they are asked together."""
    monkeypatch.setattr(config, "LOG_REQUEST_S", 1.0)
    connection = await log.connect(nats.services, name="test")
    agents, looks = Agents(), Queues(0.0, Dropped())
    for position in range(1, 31):
        request = Message.build("request", "asker", f"agent-{position}", {})
        agents.outstanding.asked(Logged(position, 0, request))
    with frozen(engines):
        async with asyncio.timeout(30 * config.LOG_REQUEST_S / 2):
            await looks._look(connection, agents, 30)
    await connection.close()
