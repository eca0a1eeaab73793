"""A log that went back: everybody refuses, it is repaired, and the bus goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from mcp_bus import config
from mcp_bus.config import REPAIR_BEYOND, Settings
from mcp_bus.errors import Unavailable
from mcp_bus.log import Log, LogInfo, mending
from mcp_bus.messages import Message
from mcp_bus.runtime import Runtime
from mcp_bus.services import damage, history, recorder, repair
from mcp_bus.services.damage import diagnosed
from mcp_bus.store import event_store
from mcp_bus.store.gaps import Gap
from tests.conftest import Postgres
from tests.gateway.conftest import SERVICES, Rest, Said, echo, serving
from tests.own_log import OwnLog, command, contiguous, own_log, rebuilt_equal, settings_of
from tests.services import WAIT_S, reached

SLOW = {
    "id": "slow",
    "type": "test",
    "capabilities": [{"name": "text", "actions": ["say"], "parameters": {}}],
}


def workflow(agent: str) -> dict[str, object]:
    inputs = {"text": "${inputs.text}"}
    steps = [{"id": "s", "agentId": agent, "action": "say", "inputs": inputs}]
    return {"id": agent, "name": agent, "steps": steps}


async def run(bus: Rest, name: str, wait: str = "?wait=20") -> Said:
    path = f"/workflows/{name}/execute{wait}"
    return await bus.call("PUT", path, {"inputs": {"text": "a"}})


async def ended(bus: Rest, postgres: Postgres, execution: str) -> dict[str, Any]:
    """An execution once it has ended."""
    while True:
        found: dict[str, Any] = (await bus.call("GET", f"/executions/{execution}")).body
        if found["ended"] is not None:
            return found
        position = (await bus.call("GET", "/health", token="")).body["position"]
        await reached(postgres.service, event_store.READ, position + 1)


async def refused(bus: Rest, *names: str) -> dict[str, str]:
    """What these services say, once all of them refuse."""
    async with asyncio.timeout(WAIT_S):
        while True:
            said = (await bus.call("GET", "/health", token="")).body["services"]
            if all(said[name]["status"] == "log_went_back" for name in names):
                return {name: said[name]["detail"] for name in names}
            await asyncio.sleep(config.HEALTH_POLL_S)


async def recorded(own: OwnLog, settings: Settings, count: int) -> list[bytes]:
    """A log whose messages are recorded, all of them, by a recorder that has ended."""
    assert settings.postgres
    async with recording(settings):
        kept = await sent(own, *range(count))
        await reached(settings.postgres.get_secret_value(), event_store.RECORDER, count)
    return kept


async def test_a_former_leader_of_a_cluster_is_not_believed(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still, and says at first where the log ended then: nothing is to be repaired."""
    monkeypatch.setattr(damage, "REPAIR_RETRY_S", 0.01)
    async with own_log(tmp_path) as own:
        settings = settings_of(own, postgres)
        await recorded(own, settings, 20)
        connection = await asyncpg.connect(postgres.service)
        async with own.opened() as log:
            now = replace(await log.info(), replicas=3)
            said = iter([replace(now, last=10, messages=10)])

            async def info() -> LogInfo:
                return next(said, now)

            monkeypatch.setattr(log, "info", info)
            assert await damage.diagnosed(log, connection) is None
            said = iter([replace(now, replicas=1, last=10, messages=10)])
            assert await damage.diagnosed(log, connection) is not None
        await connection.close()


async def test_a_log_from_an_older_copy_is_repaired(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with what to do; then nothing that was recorded is lost or said twice, positions only
    go up, who was revoked stays it, and the step whose request was lost is asked for again."""
    monkeypatch.setattr(repair, "REPAIR_ITSELF_S", 0.0)
    monkeypatch.setattr(history, "REPAIR_RETRY_S", 0.1)
    async with own_log(tmp_path) as own:
        settings = settings_of(own, postgres)
        async with serving(settings, list(SERVICES)) as bus:
            await bus.healthy()
            async with echo(own.urls):
                await bus.call("POST", "/workflows", workflow("echo"))
                assert (await run(bus, "echo")).body["status"] == "completed"
        older = await own.copied("older")
        async with serving(settings, list(SERVICES)) as bus:
            await bus.healthy()
            async with echo(own.urls):
                done = (await run(bus, "echo")).body
            for body in (SLOW, {**SLOW, "id": "gone"}):
                await bus.call("POST", "/agents/register", body)
            await bus.call("POST", "/agents/gone/revoke", {})
            await bus.call("POST", "/workflows", workflow("slow"))
            waiting = (await run(bus, "slow", "")).body["executionId"]
            async with own.opened() as log:
                last = (await log.info()).last
            await reached(postgres.service, event_store.READ, last)

        await own.replace(older)
        async with own.opened() as log:
            stray = Message.build("event", "echo", "b", {"event": "said meanwhile"})
            await log.publish(stray)
        async with serving(settings, list(SERVICES)) as bus:
            told = await refused(bus, "recorder", "registry", "workflow-engine", "auth")
            assert all("`mcp-bus repair --dry-run`" in detail for detail in told.values())
            assert f"and {last} was recorded" in told["recorder"]
            plan = await command(settings, "repair", "--dry-run")
            assert (plan["quarantined"], plan["repaired"]) == (1, False)
            done_so = await command(settings, "repair", "--yes")
            assert done_so["repaired"]
            assert done_so["first"] == last + 2
            assert done_so["next"] > last + REPAIR_BEYOND
            await bus.healthy()

            async with echo(own.urls), echo(own.urls, "slow"):
                again = (await run(bus, "echo")).body
                assert again["status"] == "completed"
                assert again["steps"][0]["requestPosition"] >= done_so["next"]
                found = await ended(bus, postgres, waiting)
            assert (found["status"], found["steps"][0]["attempt"]) == ("completed", 2)
            assert (await bus.call("GET", f"/executions/{done['id']}")).body == done
            lost = bus.token("gone", "agent")
            refusal = await bus.call("GET", "/agents/discover", token=lost)
            assert (refusal.status, refusal.body["code"]) == (403, "agent_revoked")
            kept = (await bus.call("GET", f"/quarantine/{last + 1}")).body
            assert (kept["code"], kept["text"]) == ("log_went_back", stray.encode().decode())
            await contiguous(postgres)
            await rebuilt_equal(postgres)


async def sent(own: OwnLog, *payloads: Any) -> list[bytes]:
    """Messages that the log has acknowledged."""
    messages = [Message.build("event", "a", "b", payload) for payload in payloads]
    async with own.opened() as log:
        for message in messages:
            await log.publish(message)
    return [message.encode() for message in messages]


async def rows(postgres: Postgres, sql: str) -> list[Any]:
    connection = await asyncpg.connect(postgres.service)
    try:
        return [row[0] for row in await connection.fetch(sql)]
    finally:
        await connection.close()


RAW = "SELECT raw FROM store.messages WHERE source = 'a' ORDER BY position"
APART = "SELECT raw FROM store.quarantine WHERE code = 'log_went_back' ORDER BY position"


@contextlib.asynccontextmanager
async def recording(settings: Settings) -> AsyncIterator[Runtime]:
    """A recorder at work; its runtime tells how it is."""
    runtime = Runtime(settings, "recorder")
    work = asyncio.ensure_future(recorder.run(runtime))
    try:
        yield runtime
    finally:
        work.cancel()
        await asyncio.wait({work})
        await runtime.close()


async def alarm(runtime: Runtime) -> str:
    """What a recorder complains about, once it refuses."""
    async with asyncio.timeout(WAIT_S):
        while runtime.status["status"] != "log_went_back":  # noqa: ASYNC110
            await asyncio.sleep(config.HEALTH_POLL_S)
    return str(runtime.status["detail"])


async def mended(own: OwnLog, settings: Settings, seen: int = 0) -> Gap | None:
    """What `mcp-bus repair` does."""
    assert settings.postgres
    connection = await asyncpg.connect(settings.postgres.get_secret_value())
    try:
        async with own.opened() as log:
            found = await diagnosed(log, connection, seen)
            if found is None:
                await repair.finished(log, connection, settings)
                return None
            return await repair.repaired(log, connection, found, settings)
    finally:
        await connection.close()


async def last_of(own: OwnLog) -> int:
    async with own.opened() as log:
        return (await log.info()).last


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[OwnLog]:
    async with own_log(tmp_path) as own:
        yield own


@pytest.mark.parametrize("torn", [False, True])
async def test_a_log_that_a_crash_cut_short_is_repaired_by_itself(
    own: OwnLog, postgres: Postgres, torn: bool
) -> None:
    """Everything that it lost is recorded: the recorder goes on, far behind, by itself."""
    settings = settings_of(own, postgres)
    kept = await recorded(own, settings, 10)
    shorter = await own.copied("shorter")
    async with recording(settings):
        kept += await sent(own, *range(10))
        await reached(postgres.service, event_store.RECORDER, 20)
    if torn:
        await own.kill()
        block = own.block()
        os.truncate(block, block.stat().st_size * 2 // 3)
        await own.start()
        assert 10 < await last_of(own) < 20
    else:
        await own.replace(shorter)
    async with recording(settings):
        await reached(postgres.service, event_store.RECORDER, 20 + REPAIR_BEYOND)
        kept += await sent(own, "after")
        last = await last_of(own)
        await reached(postgres.service, event_store.RECORDER, last)
    assert await rows(postgres, RAW) == kept
    assert last > 20 + REPAIR_BEYOND
    assert await contiguous(postgres) == last


async def test_a_log_made_anew_is_repaired_when_an_operator_says_so(
    own: OwnLog, postgres: Postgres
) -> None:
    """Its folder is gone: all that was recorded stays, what the new one was sent is kept apart."""
    settings = settings_of(own, postgres)
    kept = await recorded(own, settings, 10)
    await own.replace(None)
    strays = await sent(own, *range(3))
    async with recording(settings) as runtime:
        assert "this one was made" in await alarm(runtime)
        gap = await mended(own, settings)
        assert gap is not None
        assert (gap.first, gap.next > REPAIR_BEYOND) == (14, True)
        kept += await sent(own, "after")
        await reached(postgres.service, event_store.RECORDER, await last_of(own))
        assert "detail" not in runtime.status
    assert await rows(postgres, RAW) == kept
    assert await rows(postgres, APART) == strays
    await contiguous(postgres)
    assert await mended(own, settings) is None


async def test_an_older_log_that_has_grown_since_is_seen_through(
    own: OwnLog, postgres: Postgres
) -> None:
    """It is longer than what was recorded, and holds other messages there."""
    settings = settings_of(own, postgres)
    older = await own.copied("older")
    kept = await recorded(own, settings, 10)
    await own.replace(older)
    strays = await sent(own, *range(15))
    async with recording(settings) as runtime:
        assert "another message at 10" in await alarm(runtime)
        await mended(own, settings)
        kept += await sent(own, "after")
        await reached(postgres.service, event_store.RECORDER, await last_of(own))
    assert await rows(postgres, RAW) == kept
    assert await rows(postgres, APART) == strays
    await contiguous(postgres)


async def test_what_the_log_lost_before_it_was_recorded_is_a_gap(
    own: OwnLog, postgres: Postgres
) -> None:
    """Somebody emptied it too early: what is behind that is recorded at its own positions."""
    settings = settings_of(own, postgres)
    async with recording(settings):
        kept = await sent(own, 1, 2)
        await reached(postgres.service, event_store.RECORDER, 2)
    await sent(own, 3, 4)
    async with own.opened() as log:
        await log.purge(5)
    kept += await sent(own, 5)
    async with recording(settings) as runtime:
        assert "the log begins at 5, and 2 was recorded last" in await alarm(runtime)
        gap = await mended(own, settings)
        assert gap is not None
        assert (gap.first, gap.next) == (3, 5)
        await reached(postgres.service, event_store.RECORDER, 6)
    assert await rows(postgres, RAW) == kept
    assert await contiguous(postgres) == 6


async def test_a_flipped_bit_is_seen_and_repaired(
    own: OwnLog, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server drops what it cannot read, and says nothing; the event store has it."""
    monkeypatch.setattr(repair, "REPAIR_ITSELF_S", -1.0)
    settings = settings_of(own, postgres)
    kept = await recorded(own, settings, 100)
    await own.kill()
    block = own.block()
    data = bytearray(block.read_bytes())
    data[len(data) // 2] ^= 1
    block.write_bytes(data)
    await own.start()
    async with recording(settings) as runtime:
        assert "and 100 was recorded" in await alarm(runtime)
        await mended(own, settings)
        kept += await sent(own, "after")
        await reached(postgres.service, event_store.RECORDER, await last_of(own))
    assert await rows(postgres, RAW) == kept
    await contiguous(postgres)
    assert await mended(own, settings) is None


@pytest.mark.parametrize("step", ["purge", "publish"])
async def test_a_repair_that_was_cut_short_is_finished(
    own: OwnLog, postgres: Postgres, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the log was moved, or before anybody was told: the next recorder does it, and
    nothing is kept apart twice."""
    settings = settings_of(own, postgres)
    kept = await recorded(own, settings, 10)
    await own.replace(None)
    strays = await sent(own, *range(3))

    async def killed(*_: object) -> None:
        raise Unavailable("killed")

    with monkeypatch.context() as patch, pytest.raises(Unavailable, match="killed"):
        patch.setattr(Log, step, killed)
        await mended(own, settings)
    async with recording(settings):
        moved = 2 if step == "purge" else 1
        await reached(postgres.service, event_store.RECORDER, moved * REPAIR_BEYOND)
        kept += await sent(own, "after")
        await reached(postgres.service, event_store.RECORDER, await last_of(own))
    assert await rows(postgres, RAW) == kept
    assert await rows(postgres, APART) == strays
    told = "SELECT count(*) FROM store.messages WHERE source = '_log'"
    assert await rows(postgres, told) == [1]
    await contiguous(postgres)


async def test_a_log_that_was_left_closed_is_opened(own: OwnLog, postgres: Postgres) -> None:
    """Whoever is killed while the log takes nothing leaves it so; publishers wait."""
    settings = settings_of(own, postgres)
    async with own.opened() as log:
        closing = mending.closed(log, settings.duplicate_window_s)
        await closing.__aenter__()
        window = (await log.info()).duplicate_window_s
        waiting = asyncio.ensure_future(sent(own, "patient"))
        async with recording(settings):
            await waiting
            await reached(postgres.service, event_store.RECORDER, 1)
        assert window < (await log.info()).duplicate_window_s == settings.duplicate_window_s


async def test_positions_that_a_service_has_seen_are_not_used_again(
    own: OwnLog, postgres: Postgres
) -> None:
    """The log lost messages that nobody recorded, and a decider has read them."""
    settings = settings_of(own, postgres)
    async with recording(settings):
        kept = await sent(own, *range(10))
        await reached(postgres.service, event_store.RECORDER, 10)
        assert await mended(own, settings) is None
        gap = await mended(own, settings, seen=12)
        assert gap is not None
        assert (gap.first, gap.next) == (11, 13 + REPAIR_BEYOND)
        kept += await sent(own, "after")
        await reached(postgres.service, event_store.RECORDER, await last_of(own))
    assert await rows(postgres, RAW) == kept
    await contiguous(postgres)


async def test_an_event_store_that_says_nothing_is_not_waited_for(
    own: OwnLog, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who must run without PostgreSQL asks it about the log for so long, and then goes on."""
    monkeypatch.setattr(history, "STORE_CONNECT_S", 0.1)

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    url = SecretStr(f"postgresql://nobody@127.0.0.1:{port}/nothing")
    settings = settings_of(own, postgres).model_copy(update={"postgres": url})
    runtime = Runtime(settings, "registry")
    async with own.opened() as log, asyncio.timeout(WAIT_S):
        await history.History(runtime).check(log)
    silent.close()
    await runtime.close()
