"""A log with the real registry beside it: what an agent needs to live."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcp_bus import config
from mcp_bus.services import registry
from tests.conftest import SECRET, Nats
from tests.services import running


@pytest.fixture
async def bus(nats: Nats, tmp_path: Path) -> AsyncIterator[Nats]:
    """URLs of a log whose registry works."""
    settings = config.load({}, data_dir=tmp_path, nats=nats.services, secret=SECRET)
    async with running(settings, "registry", registry.run):
        yield nats
