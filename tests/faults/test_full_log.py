"""The log is full under load: who publishes is told so, and it recovers by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mcp_bus import config
from mcp_bus.embedded import running
from tests.faults.load import SCENARIO_S_MAX, loaded
from tests.faults.still import standing_still
from tests.faults.verdict import caught_up, wrong_in_store

LOG_BYTES_MAX = 4 * 1024**2  # a few seconds of the load
MESSAGES, EXECUTIONS = 500, 50


async def test_a_log_that_is_full_recovers_by_itself(tmp_path: Path) -> None:
    """Nobody records, until publishers are refused; as soon as somebody may, there is room."""
    settings = config.load(
        {}, data_dir=tmp_path, port=0, nats_port=0, postgres_port=0, log_bytes_max=LOG_BYTES_MAX
    )
    async with running(settings) as bus, asyncio.timeout(SCENARIO_S_MAX), loaded(bus) as load:
        with standing_still(bus.pids["postgres"]):
            while not load.refused:  # noqa: ASYNC110
                await asyncio.sleep(config.HEALTH_POLL_S)
        await load.goes_on(MESSAGES, EXECUTIONS)
        await caught_up(bus)
        await load.stop()
        assert {error.code for error in load.refused.values()} == {"log_full"}
        assert load.unknown == {}
        assert await wrong_in_store(bus, load) == []
