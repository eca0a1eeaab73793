"""A log with the real registry beside it: what an agent needs to live."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opentelemetry import trace

from mcp_bus import config
from mcp_bus.services import registry
from tests.agents_sdk.spans import Exported
from tests.conftest import SECRET, Nats
from tests.services import running


@pytest.fixture
async def bus(nats: Nats, tmp_path: Path) -> AsyncIterator[Nats]:
    """URLs of a log whose registry works."""
    settings = config.load({}, data_dir=tmp_path, nats=nats.services, secret=SECRET)
    async with running(settings, "registry", registry.run):
        yield nats


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Exported:
    """OpenTelemetry as a program sets it up, for one test: a process can do it only once."""
    exported = Exported()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: exported.provider)
    return exported
