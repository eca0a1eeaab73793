"""What clients see while an engine or a service is away, and that all heals by itself."""

from __future__ import annotations

import asyncio
import re

import pytest
from pydantic import SecretStr

from gateway import executions
from gateway.read_models import ReadModels
from mcp_bus import config
from mcp_bus.config import Settings
from mcp_bus.store import event_store
from projections.rebuild import rebuild
from tests.conftest import Engines, Nats

from .conftest import SERVICES, Rest, echo, serving, wired
from .test_executions import ended
from .test_workflows import run, workflow

AGENT = {"id": "a", "type": "t", "capabilities": []}


def through(url: SecretStr | None, port: int) -> SecretStr:
    """The same URL at another port."""
    assert url
    return SecretStr(re.sub(r":\d+(?=/|$)", f":{port}", url.get_secret_value()))


async def registered(bus: Rest, name: str) -> dict[str, str]:
    said = await bus.call("POST", "/agents/register", {**AGENT, "id": name})
    assert said.status == 201
    return said.headers


async def test_a_command_does_not_wait_for_a_projector_that_is_away(settings: Settings) -> None:
    """Without a projector a command is answered, marked behind; queries show what there was."""
    names = [name for name in SERVICES if name != "projector"]
    async with serving(settings, names) as bus:
        assert (await registered(bus, "a"))["Bus-Read-Model"] == "behind"


async def test_postgresql_away(
    settings: Settings, engines: Engines, nats: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands go on, marked behind; queries are 503; when it is back, all catches up."""
    monkeypatch.setattr("gateway.commands.READ_MODEL_WAIT_S", 0.2)
    async with wired(engines.postgres_port) as wire:
        far = {"postgres": through(settings.postgres, wire.port)}
        async with (
            serving(settings.model_copy(update=far), list(SERVICES)) as bus,
            echo(nats),
        ):
            assert (await bus.call("POST", "/workflows", workflow("say"))).status == 201
            wire.cut()
            assert (await registered(bus, "a"))["Bus-Read-Model"] == "behind"
            said = await bus.call("GET", "/agents/discover")
            assert (said.status, said.body["code"]) == (503, "store_unavailable")
            assert str(wire.port) not in said.body["detail"]
            started = await run(bus, wait=5)
            assert (started.status, list(started.body)) == (202, ["executionId", "status"])
            assert started.headers["Bus-Read-Model"] == "behind"
            await wire.mend()
            monkeypatch.undo()
            await bus.healthy()
            assert "Bus-Read-Model" not in await registered(bus, "b")
            found = (await bus.call("GET", "/agents/discover")).body["agents"]
            assert [agent["id"] for agent in found] == ["a", "b", "echo"]
            ended = await bus.call("GET", started.headers["Location"])
            assert ended.body["status"] == "completed"


async def test_postgresql_never_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway starts without its database, and takes commands."""
    monkeypatch.setattr("gateway.commands.READ_MODEL_WAIT_S", 0.1)
    nowhere = {"postgres": through(settings.postgres, 1)}
    async with serving(settings.model_copy(update=nowhere), ["registry", "gateway"]) as bus:
        assert (await registered(bus, "a"))["Bus-Read-Model"] == "behind"
        assert (await bus.call("GET", "/agents/discover")).status == 503


async def test_the_log_away(
    settings: Settings, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands are 503 while the log is away, queries go on, and all heals by itself."""
    monkeypatch.setattr(config, "PUBLISH_RETRY_S", 0.5)
    async with wired(engines.nats_port) as wire:
        far = {"nats": through(settings.nats, wire.port)}
        async with serving(settings.model_copy(update=far), list(SERVICES)) as bus:
            await registered(bus, "a")
            wire.cut()
            # the first may have gone out on the dying connection
            said = await bus.call("POST", "/agents/register", {**AGENT, "id": "b"})
            assert said.status == 503
            assert said.body["code"] in ("outcome_unknown", "log_unavailable")
            said = await run(bus)
            assert (said.status, said.body["code"]) == (503, "log_unavailable")
            assert (await bus.call("GET", "/agents/discover")).status == 200
            await wire.mend()
            monkeypatch.undo()
            await bus.healthy()
            await registered(bus, "c")


async def test_nobody_decides(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decider that does not answer is 504, and the sentence says which one."""
    monkeypatch.setattr("gateway.commands.COMMAND_S", 0.3)
    async with serving(settings, ["gateway"]) as bus:
        said = await bus.call("POST", "/agents/register", AGENT)
        assert (said.status, said.body["code"]) == (504, "answer_timeout")
        assert "registry" in said.body["detail"]


async def test_an_execution_is_pending_while_nobody_decides(
    settings: Settings, nats: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that nobody decides is 202 with the id by which it is found, and begins once there
    is an engine; with a key it may be repeated, so it is 504."""
    path, body = "/workflows/relay/execute", {"inputs": {"text": "hi"}}
    async with serving(settings, list(SERVICES)) as bus, echo(nats):
        assert (await bus.call("POST", "/workflows", workflow("say"))).status == 201
        await bus.services["workflow-engine"].stop()
        monkeypatch.setattr("gateway.commands.COMMAND_S", 0.3)
        said = await bus.call("PUT", path, body)
        assert (said.status, said.body["status"]) == (202, "pending")
        found = await bus.call("GET", said.headers["Location"])
        assert (found.status, found.body["status"]) == (200, "pending")
        assert found.body["id"] == said.body["executionId"]
        assert found.body["inputs"] == body["inputs"]
        once = await bus.call("PUT", path, body, headers={"Idempotency-Key": "k"})
        assert (once.status, once.body["code"]) == (504, "answer_timeout")
        waiting = asyncio.create_task(bus.call("PUT", f"{path}?wait=30", body))
        async with serving(settings, ["gateway", "workflow-engine"]):
            waited = await waiting
            begun = await ended(bus, said.headers["Location"])
        assert (waited.status, waited.body["status"]) == (200, "completed")
        assert (begun["status"], begun["outputs"]) == ("completed", {"text": "hi"})


async def test_an_end_that_was_not_heard_is_seen(
    bus: Rest, nats: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A waiting client gets its execution although the fact of its end was missed."""
    monkeypatch.setattr(executions, "ENDS", ())
    monkeypatch.setattr(executions, "EXECUTION_LOOK_S", 0.1)
    async with echo(nats):
        await bus.call("POST", "/workflows", workflow("say"))
        said = await run(bus)
        assert (said.status, said.body["status"]) == (200, "completed")


async def test_a_rebuild_disturbs_no_reader(bus: Rest) -> None:
    """While every table is replaced, queries and commands are answered as ever."""
    await registered(bus, "a")
    assert bus.settings.postgres
    pool = await event_store.connect(bus.settings.postgres.get_secret_value())
    over = asyncio.Event()

    async def read() -> int:
        count = 0
        while not over.is_set():
            said = await bus.call("GET", "/agents/discover")
            assert said.status == 200
            assert said.body["agents"][0]["id"] == "a"
            count += 1
        return count

    reading = asyncio.create_task(read())
    for number in range(3):
        reports = await rebuild(pool)
        assert all(report.equal for report in reports)
        assert "Bus-Read-Model" not in await registered(bus, f"b{number}")
    over.set()
    assert await reading > 0
    await event_store.close(pool)


async def test_each_position_wakes_exactly_those_that_wait_for_it() -> None:
    """Waiters are woken by position, whatever the order in which they came."""
    told: list[dict[str, object]] = []
    models = ReadModels(None, lambda **status: told.append(status))
    waiting = {p: asyncio.create_task(models.reached(p, 5)) for p in (5, 3, 9, 3_000)}
    late = asyncio.create_task(models.reached(4_000, 0.01))
    await asyncio.sleep(0)
    models._heard(None, 0, "", "5")
    assert await waiting[5]
    assert await waiting[3]
    assert not waiting[9].done()
    models._heard(None, 0, "", "junk")
    models._heard(None, 0, "", "3000")
    assert await waiting[9]
    assert await waiting[3_000]
    assert not await late
    assert await models.reached(2_999, 0)
    assert told[-1] == {"position": 3_000}
