"""`mcp-bus rebuild`: every read model anew from position 0, compared, then switched."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import Globals, Unreachable
from mcp_bus.cli.place import bus_file, client, settings_of

if TYPE_CHECKING:
    from mcp_bus.config import Settings
    from projections.rebuild import TableReport

COLUMNS = ("table", "rows", "hash", "rebuilt rows", "rebuilt hash", "")


@click.command(short_help="Build the read models anew, while the bus runs.")
@client
def rebuild(given: Globals) -> None:
    """Build every read model anew from position 0, beside the live ones, then switch.

    Both are compared at one position, so that the table tells whether the old ones were right.
    Reads MCP_BUS_POSTGRES, else the passwords in DATA_DIR of a running bus.
    """
    url = _postgres_url(settings_of(given))
    reports = asyncio.run(_rebuild(url))
    if given.as_json:
        rows = [
            {
                "table": r.table,
                "rows": r.live_rows,
                "hash": r.live_hash,
                "rebuiltRows": r.rebuilt_rows,
                "rebuiltHash": r.rebuilt_hash,
            }
            for r in reports
        ]
        return screen.as_json({"tables": rows})
    return screen.table(
        COLUMNS,
        [
            (r.table, r.live_rows, r.live_hash, r.rebuilt_rows, r.rebuilt_hash, _verdict(r))
            for r in reports
        ],
    )


async def _rebuild(url: str) -> list[TableReport]:
    from mcp_bus.store import event_store
    from projections import rebuild as projections

    pool = await event_store.connect(url)
    try:
        return await projections.rebuild(pool)
    except event_store.DOWN as error:
        raise Unreachable(f"the event store does not answer: {error}") from None
    finally:
        await pool.close()


def _postgres_url(settings: Settings) -> str:
    """The event store with the role that may build; only the embedded bus keeps its password."""
    from mcp_bus.embedded import credentials
    from mcp_bus.store.migrate import SERVICE

    if settings.postgres is not None:
        return settings.postgres.get_secret_value()
    reader = bus_file(settings)["postgres"]
    if reader is None:
        raise Unreachable("this bus does not say where its store is: set MCP_BUS_POSTGRES")
    password = credentials.load(settings.data_dir.expanduser()).postgres_service
    return f"postgresql://{SERVICE}:{password}@{reader.rpartition('@')[2]}"


def _verdict(report: TableReport) -> str:
    return "equal" if report.equal else "DIFFERENT"
