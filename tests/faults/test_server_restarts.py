"""The log's server dies again and again under load: no answer is lost, and none is doubled."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from agents_sdk import Agent, Bus, connect
from mcp_bus import config, embedded
from mcp_bus.embedded import nats_server, running, supervisor
from tests.faults.load import SCENARIO_S_MAX, token
from tests.faults.verdict import recorded

RESTARTS = 20
AT_ONCE = 16  # questions under way all the time
ANSWERS = 50  # that come between two deaths

# each question in the event store, and how many answers it has there
STORED = """
SELECT request.message_id, count(answer.position) AS answers
FROM store.messages AS request
LEFT JOIN store.messages AS answer
    ON answer.causation_id = request.message_id AND answer.source = 'counter'
        AND answer.target = 'asker' AND answer.kind = 'response'
WHERE request.kind = 'request' AND request.source = 'asker' AND request.target = 'counter'
GROUP BY request.message_id
"""


async def test_an_agent_survives_20_server_restarts_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL and SIGTERM in turn, each once the server is back and has worked again: every
    question gets its own answer, and the event store has each once."""
    monkeypatch.setattr(supervisor, "RESTARTS_WINDOW_S", 0)  # so many deaths are no surprise here
    settings = config.load({}, data_dir=tmp_path, port=0, nats_port=0, postgres_port=0)
    async with running(settings) as bus, asyncio.timeout(SCENARIO_S_MAX):
        ran: Counter[int] = Counter()
        agent = Agent("counter", url=bus.nats_url, token=token(bus, "counter"))

        @agent.action
        async def count(n: int) -> dict[str, int]:
            ran[n] += 1
            return {"n": n}

        mine = token(bus, "asker")
        async with agent, connect(bus.nats_url, id="asker", token=mine) as asker:
            load = Load(asker)
            for how in (signal.SIGKILL, signal.SIGTERM) * (RESTARTS // 2):
                await load.answers(ANSWERS)
                os.kill(bus.pids[nats_server.NAME], how)
            await load.answers(ANSWERS)
            await load.stop()
        stored = await _stored(bus)
    assert not load.failures
    assert set(ran.values()) == {1}
    assert len(ran) == len(stored) == load.answered
    assert set(stored.values()) == {1}


class Load:
    """AT_ONCE questions under way; each that is answered is followed by the next one."""

    def __init__(self, asker: Bus) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._asker = asker
        self._numbers = itertools.count()
        self._stopping = False
        self._changed = asyncio.Event()
        self._asking = [asyncio.create_task(self._ask()) for _ in range(AT_ONCE)]

    async def answers(self, more: int) -> None:
        """Wait for so many answers more."""
        until = self.answered + more
        while self.answered < until:
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Wait for what is under way, and ask nothing more."""
        self._stopping = True
        await asyncio.gather(*self._asking)

    async def _ask(self) -> None:
        while not self._stopping:
            n = next(self._numbers)
            try:
                outputs = await self._asker.request("counter", "count", {"n": n})
                if outputs != {"n": n}:
                    self.failures.append(f"{n} was answered with {outputs}")
            except Exception as error:
                self.failures.append(f"{n}: {error!r}")
            self.answered += 1
            self._changed.set()


async def _stored(bus: embedded.Bus) -> dict[str, int]:
    """The questions that the recorder has copied, and how many answers each has."""
    await recorded(bus)
    assert bus.admin_url is not None
    store = await asyncpg.connect(bus.admin_url)
    try:
        assert await store.fetchval("SELECT count(*) FROM store.quarantine") == 0
        return {row["message_id"]: row["answers"] for row in await store.fetch(STORED)}
    finally:
        await store.close()
