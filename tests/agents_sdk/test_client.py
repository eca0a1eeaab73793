"""The client: finding the bus, asking, telling, listening."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agents_sdk import BusError, connect
from agents_sdk.place import find
from mcp_bus import config, log
from mcp_bus.embedded import ports
from mcp_bus.messages import Message, parse
from mcp_bus.services import reader
from tests.conftest import Nats
from tests.deliveries import taking
from tests.services import WAIT_S


@pytest.fixture(autouse=True)
def no_bus_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever runs on this machine, a test finds what it made itself."""
    for name in ("MCP_BUS_NATS", "MCP_BUS_URL", "MCP_BUS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MCP_BUS_DATA_DIR", str(tmp_path))


def found(
    url: str | None = None, token: str | None = None, data_dir: Path | None = None
) -> tuple[str, str | None, str | None]:
    """Where the bus is: log, gateway, token."""
    place = find(url, token, data_dir)
    return place.url, place.gateway, place.token()


def test_arguments_win_over_the_environment_over_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each place is looked at in turn."""
    said = {"nats": "nats://folder", "gateway": "http://folder", "token": "t0"}
    (tmp_path / "bus.json").write_text(json.dumps(said))
    assert found() == ("nats://folder", "http://folder", "t0")
    monkeypatch.setenv("MCP_BUS_NATS", "nats://environment")
    monkeypatch.setenv("MCP_BUS_TOKEN", "t1")
    assert found() == ("nats://environment", None, "t1")
    monkeypatch.setenv("MCP_BUS_URL", "http://environment")
    assert found() == ("nats://environment", "http://environment", "t1")
    assert found(data_dir=tmp_path) == ("nats://folder", "http://folder", "t1")
    assert found("nats://argument", "t2") == ("nats://argument", "http://environment", "t2")


def test_a_url_with_a_password_needs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token of the REST API must not replace it."""
    monkeypatch.setenv("MCP_BUS_TOKEN", "for the gateway")
    assert found("nats://a:b@host") == ("nats://a:b@host", None, None)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"nats": null}'])
def test_no_bus_anywhere_names_all_three_places(tmp_path: Path, content: str | None) -> None:
    """Argument, variable, and the file that was looked for."""
    if content is not None:
        (tmp_path / "bus.json").write_text(content)
    with pytest.raises(BusError) as missing:
        find(None, None, None)
    for word in ("url=", "MCP_BUS_NATS", str(tmp_path / "bus.json")):
        assert word in missing.value.detail


async def test_a_bus_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its password, and within LOG_CONNECT_S."""
    monkeypatch.setattr(config, "LOG_CONNECT_S", 1.0)
    port = ports.choose("127.0.0.1", 0, "port")
    with pytest.raises(BusError, match="no ") as missing:
        async with connect(f"nats://agents:secret@127.0.0.1:{port}"):
            pass
    assert missing.value.code == "log_unavailable"
    assert "secret" not in missing.value.detail


async def test_an_id_that_is_none_is_refused(nats: Nats) -> None:
    """Before anything is sent."""
    with pytest.raises(BusError, match="is not an id"):
        async with connect(nats.agent("ab"), id="a.b"):
            pass


async def test_an_event_is_heard_once_it_is_stored(nats: Nats) -> None:
    """By whoever listens to its source, its target, or to all; with its position told."""
    async with (
        connect(nats.agent("teller"), id="teller") as teller,
        connect(nats.agent("client", "developer")) as listener,
        listener.subscribe(source="teller") as by_source,
        listener.subscribe(target="topic") as by_target,
        listener.subscribe(target="other") as others,
    ):
        assert await teller.publish("topic", {"event": "Happened", "n": 1}) == 1
        assert await teller.publish("other", {"event": "Happened", "n": 2}) == 2
        assert (await anext(by_source)).payload["n"] == 1
        assert (await anext(by_source)).payload["n"] == 2
        assert (await anext(by_target)).payload["n"] == 1
        assert (await anext(others)).payload["n"] == 2


async def test_a_subscription_ends_with_its_bus(nats: Nats) -> None:
    """Who still waits is told."""
    async with connect(nats.agent("client", "developer")) as bus:
        messages = bus.subscribe()
        await messages.__aenter__()
        waiting = asyncio.ensure_future(anext(messages, None))
    assert await waiting is None


@pytest.mark.parametrize(("source", "kind"), [("a.*", "event"), (">", "event"), ("*", "all")])
async def test_a_filter_is_made_of_ids_and_stars(nats: Nats, source: str, kind: str) -> None:
    """Nothing of NATS shines through."""
    async with connect(nats.agent("client", "developer")) as bus:
        with pytest.raises(BusError):
            bus.subscribe(source=source, kind=kind)  # type: ignore[arg-type]


async def test_nobody_answers_is_told_in_time(nats: Nats) -> None:
    """`answer_timeout`, retryable, with the position of the question."""
    async with connect(nats.agent("client", "developer")) as bus:
        with pytest.raises(BusError) as silent:
            await bus.request("nobody", "act", timeout=0.2)
    assert (silent.value.code, silent.value.retryable) == ("answer_timeout", True)
    assert silent.value.details == {"position": 1}


async def test_an_answer_that_was_not_heard_is_found_in_the_log(nats: Nats) -> None:
    """One is missed with the connection, or with the server that stored it; the asker looks."""
    services = await log.connect(nats.services, name="test")
    await services.open_queue("echo", after=0)
    await reader.serve(services)
    async with (
        connect(nats.agent("client")) as bus,
        taking(services, "echo", 1) as queue,
    ):
        assert bus._asker._listening is not None
        await bus._asker._listening.stop()
        asking = asyncio.create_task(bus.request("echo", "say", timeout=WAIT_S))
        asked = parse((await queue.get()).record.data)
        await services.publish(Message.answer(asked, "echo", {"outputs": {"said": 1}}))
        assert await asking == {"said": 1}
    await services.close()


async def test_what_every_reader_would_refuse_is_not_published(nats: Nats) -> None:
    """Too large, too deep, too big a number: the sender is told, the log stays clean."""
    deep: list[object] = []
    for _ in range(40):
        deep = [deep]
    async with connect(nats.agent("client", "developer")) as bus:
        for payload, code in (
            ({"x": "a" * 300_000}, "too_large"),
            ({"x": deep}, "too_deep"),
            ({"x": 2**60}, "bad_number"),
            ({"x": float("nan")}, "bad_number"),
            ({"x": "\ud800"}, "bad_text"),
            ({"x": object()}, "wrong_type"),
        ):
            with pytest.raises(BusError) as refused:
                await bus.publish("topic", payload)
            assert refused.value.code == code
        assert await bus.publish("topic", {"event": "First"}) == 1
