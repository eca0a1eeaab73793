"""The read models as a whole: which projections there are, and how their tables are made.

The tables of one build stand in one schema, and the schema carries the fingerprint of the release
that made them. `read` is live; a rebuild makes another one beside it.
"""

from __future__ import annotations

import hashlib

import asyncpg

from mcp_bus.store import event_store
from projections.agents import AGENTS
from projections.analytics import ANALYTICS
from projections.dead_letters import DEAD_LETTERS
from projections.executions import EXECUTIONS
from projections.projection import Batch, Changes, Projection
from projections.workflows import WORKFLOWS

PROJECTIONS: tuple[Projection, ...] = (
    AGENTS,  # agents, capabilities, agent_capabilities
    WORKFLOWS,  # workflows, workflow_steps
    EXECUTIONS,  # executions, workflow_executions, execution_steps
    ANALYTICS,  # analytics
    DEAD_LETTERS,  # dead_letters, redrives
)
TABLES = tuple(table.name for projection in PROJECTIONS for table in projection.tables)

LIVE = "read"
# to be raised when a fold reads history differently; a change of the tables is seen without it
VERSION = 1


async def prepare(connection: asyncpg.Connection) -> None:
    """Make the live tables if there are none; they then begin at position 0."""
    await event_store.open_checkpoint(connection, event_store.READ)
    async with connection.transaction():
        position = await hold(connection)
        if await _fingerprint_of(connection, LIVE) is None:
            await make(connection, LIVE)
            await event_store.advance(
                connection, event_store.READ, position, 0, event_store.PROJECTED
            )


async def outdated(connection: asyncpg.Connection) -> bool:
    """Whether another release made the live tables."""
    return await _fingerprint_of(connection, LIVE) != fingerprint()


async def hold(connection: asyncpg.Connection) -> int:
    """Keep the live checkpoint where it is until the caller's transaction ends; its position."""
    return int(
        await connection.fetchval(
            "SELECT position FROM bus.checkpoints WHERE name = $1 FOR UPDATE", event_store.READ
        )
    )


async def make(connection: asyncpg.Connection, schema: str) -> None:
    """Make every table in a schema; inside the caller's transaction."""
    await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    await connection.execute(f"SET LOCAL search_path TO {schema}")
    for projection in PROJECTIONS:
        await connection.execute(projection.ddl())
    await connection.execute(f"COMMENT ON SCHEMA {schema} IS '{fingerprint()}'")


def fingerprint() -> str:
    """What tells the tables of this release from those of another one."""
    ddl = "".join(projection.ddl() for projection in PROJECTIONS)
    return f"{VERSION}:{hashlib.sha256(ddl.encode()).hexdigest()}"


async def fold(connection: asyncpg.Connection, batch: Batch) -> list[Changes]:
    """What each projection wants written, in the order of PROJECTIONS."""
    return [await projection.fold(connection, batch) for projection in PROJECTIONS]


async def write(connection: asyncpg.Connection, changes: list[Changes]) -> None:
    """Write what `fold` returned, inside the caller's transaction."""
    for projection, change in zip(PROJECTIONS, changes, strict=True):
        await projection.write(connection, change)


async def _fingerprint_of(connection: asyncpg.Connection, schema: str) -> str | None:
    found: str | None = await connection.fetchval(
        "SELECT obj_description(to_regnamespace($1), 'pg_namespace')", schema
    )
    return found
