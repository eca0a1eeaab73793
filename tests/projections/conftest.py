"""A connection to a database of a test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from mcp_bus.store import event_store
from tests.conftest import Postgres


@pytest.fixture
async def pool(postgres: Postgres) -> AsyncIterator[asyncpg.Pool]:
    """A pool of the service role."""
    pool = await event_store.connect(postgres.service)
    yield pool
    pool.terminate()  # a failing test may have left one of its connections busy


@pytest.fixture
async def connection(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    async with pool.acquire() as connection:
        yield connection
