"""`mcp-bus repair`: let the bus go on after its log lost what was seen before."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import client, settings_of

if TYPE_CHECKING:
    from mcp_bus.config import Settings
    from mcp_bus.log import Log
    from mcp_bus.services.repair import Plan
    from mcp_bus.store.gaps import Gap


@click.command(short_help="Go on after the log went back or was lost.")
@click.option("--dry-run", is_flag=True, help="Say what is wrong and what would be done, no more.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@client
def repair(given: Globals, dry_run: bool, yes: bool) -> None:
    """Let the bus go on after its log went back, was damaged or was lost.

    For a bus that refuses because its log was restored from an older copy, damaged or made anew,
    and whose right log is gone for good. Nothing that was recorded is lost, and nothing is
    published again. Works on a stopped bus (DATA_DIR), on a running one, and by MCP_BUS_NATS
    with MCP_BUS_POSTGRES.
    """
    settings = settings_of(given)

    def agreed(plan: Plan) -> bool:
        if not given.as_json:
            click.echo(_explained(plan))
        if dry_run or yes:
            return yes and not dry_run
        if not sys.stdin.isatty():
            raise click.UsageError("say --yes, for there is nobody to ask")
        return click.confirm("Repair?")

    plan, gap = asyncio.run(_repair(settings, agreed))
    if given.as_json:
        return screen.as_json(_as_json(plan, gap))
    if plan is None:
        click.echo("the log is the one that the event store records: nothing is to be repaired")
    elif gap is not None:
        click.echo(f"repaired: the next message stands at {gap.next} or behind it")
    return None


async def _repair(settings: Settings, agreed: Any) -> tuple[Plan | None, Gap | None]:
    from mcp_bus import log, telemetry
    from mcp_bus.embedded import engines
    from mcp_bus.services import repair
    from mcp_bus.services.damage import diagnosed
    from mcp_bus.store import event_store

    telemetry.configure(settings, "repair")
    async with engines.reached(settings) as places:
        opened = await log.connect(places.nats, name="repair")
        pool = await event_store.connect(places.postgres)
        try:
            async with pool.acquire() as connection:
                damage = await diagnosed(opened, connection, await _seen(opened))
                if damage is None:
                    await repair.finished(opened, connection, settings)
                    return None, None
                plan = repair.planned(damage)
                if not agreed(plan):
                    return plan, None
                return plan, await repair.repaired(opened, connection, damage, settings)
        finally:
            await event_store.close(pool)
            await opened.close()


async def _seen(opened: Log) -> int:
    """The last position that a running service says it has read."""
    from mcp_bus.config import REPAIR_TOLD_S
    from mcp_bus.log import Record
    from mcp_bus.messages import loads
    from mcp_bus.runtime import TELL

    told = [0]

    def heard(record: Record) -> None:
        said = loads(record.data)
        if isinstance(said, dict) and isinstance(said.get("position"), int):
            told.append(said["position"])

    await opened.listen("bus.status.*", heard)
    await opened.tell(TELL, b"")
    await asyncio.sleep(REPAIR_TOLD_S)
    return max(told)


def _explained(plan: Plan) -> str:
    damage = plan.damage
    lines = [f"{damage.detail}.", "A repair"]
    if plan.strays:
        lines.append(f"  keeps {plan.strays} messages of this log, never recorded, in quarantine")
    if damage.kind == "moved":
        lines.append("  empties the log, whose recorded messages stay in the event store")
        lines.append(f"  leaves the positions {plan.first} to {plan.next - 1} empty")
    else:
        lines.append(f"  empties the log up to {damage.recorded}, which is recorded")
        lines.append("  leaves the positions empty that the log lacks behind that")
    lines.append("  tells who waits for an answer that the request was lost; workflows ask again")
    lines.append("Lost is what was acknowledged, not recorded yet, and is not in this log.")
    return "\n".join(lines)


def _as_json(plan: Plan | None, gap: Gap | None) -> dict[str, Any]:
    if plan is None:
        return {"damage": None, "repaired": False}
    told: dict[str, Any] = {
        "damage": {"kind": plan.damage.kind, "detail": plan.damage.detail},
        "quarantined": plan.strays,
        "first": plan.first if gap is None else gap.first,
        "next": plan.next if gap is None else gap.next,
        "repaired": gap is not None,
    }
    return told
