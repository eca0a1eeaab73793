"""The pytest plugin: the fixture `bus`, for tests of agents and workflows (docs/testing.md).

    bus               a client for this test (agents_sdk.testing.Bus)
    mcp_bus_started   the bus itself, started once per process: with pytest-xdist once per worker

pytest loads this module wherever the distribution is installed, so it imports nothing of ours
before a test asks for a bus. A fixture `bus` of yours goes before this one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from agents_sdk.testing import Bus, Started

Function = TypeVar("Function", bound=Callable[..., Any])

# without pytest-asyncio it is for anyio's plugin, if for any
_in_a_loop: Callable[[Function], Function] = import_module(
    "pytest_asyncio" if find_spec("pytest_asyncio") else "pytest"
).fixture


@pytest.fixture(scope="session")
def mcp_bus_started() -> Iterator[Started]:
    """The bus of this process: real engines and services, in a folder that goes away."""
    from agents_sdk.testing import started

    with started() as running:
        yield running


@_in_a_loop
async def bus(mcp_bus_started: Started, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bus]:
    """A client for this test. What says nowhere where the bus is, finds this one."""
    from agents_sdk.testing import opened

    for name in [name for name in os.environ if name.startswith("MCP_BUS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MCP_BUS_DATA_DIR", str(mcp_bus_started.bus.data_dir))
    async with opened(mcp_bus_started) as client:
        yield client
