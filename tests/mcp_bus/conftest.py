"""Every history is checked for its snapshots; and a deliberately weak bus, on which an attack must
do harm.

weak      every token is good and opens everything, ids can be guessed, the stream has no bounds,
          micro discovery is answered wherever the asker likes, who gets no batch gives up
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from mcp_bus import config, log, tokens
from mcp_bus.domain import permissions
from mcp_bus.domain.decider import Fold
from mcp_bus.domain.roles import Principal
from mcp_bus.log import Log
from mcp_bus.log.stream import stream_config
from tests.conftest import Nats
from tests.mcp_bus import attacker
from tests.mcp_bus.history import History


@pytest.fixture(autouse=True)
def every_history_goes_on_from_a_snapshot() -> Iterator[None]:
    """Of each history that a test of this folder makes, at every position."""
    History.made.clear()  # by tests of other folders, which write what no decider has said
    yield
    histories, History.made[:] = list(History.made), []
    for history in histories:
        history.check_snapshots()


@pytest.fixture
async def bus(nats: Nats) -> AsyncIterator[Log]:
    """The log, as our services reach it."""
    connection = await log.connect(nats.services, name="test")
    yield connection
    await connection.close()


@pytest.fixture
async def agents(nats: Nats) -> AsyncIterator[Log]:
    """The log, as the agent `echo` reaches it."""
    connection = await log.connect(nats.agent("echo"), name="echo")
    yield connection
    await connection.close()


@pytest.fixture
async def me(nats: Nats) -> AsyncIterator[Log]:
    """The log, as the agent `me` reaches it."""
    connection = await log.connect(nats.agent("me"), name="me")
    yield connection
    await connection.close()


@pytest.fixture
async def weak(nats: Nats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token is good, and opens everything in the account that owns the log."""
    monkeypatch.setattr(attacker, "PATIENCE_S", 0.5)  # an attack may wait for what does not come
    everybody = tokens.Token(Principal("a", ("agent",)), "a", int(time.time()), 2**31)
    monkeypatch.setattr(tokens, "verify", lambda *_: everybody)
    monkeypatch.setattr(log.callout, "ACCOUNT", "BUS")
    monkeypatch.setattr(permissions, "publishes", lambda *_: [">"])
    monkeypatch.setattr(permissions, "hears", lambda *_: [">"])
    monkeypatch.setattr(log.micro, "ANSWERED", re.compile(""))
    monkeypatch.setattr(log.publisher, "NO_BATCH", ())
    monkeypatch.setattr(Fold, "_mac", lambda *_: "0" * 32)
    services = await log.connect(nats.services, name="test")
    boundless = {"max_msg_size": -1, "allow_atomic": True}
    await services.api("STREAM.UPDATE.MCP", stream_config(config.load({})) | boundless)
    await services.close()
