"""The stream that is the log: made at the first start, brought up to date at each later one."""

from __future__ import annotations

from typing import Any

from mcp_bus import subjects
from mcp_bus.config import CONSUMERS_MAX, HEADERS_BYTES_MAX, MESSAGE_BYTES_MAX, Settings
from mcp_bus.errors import SettingsError
from mcp_bus.log import durability
from mcp_bus.log.connection import Log, connect
from mcp_bus.log.queues import dropped_config
from mcp_bus.log.records import IDENTITY, STREAM_NOT_FOUND, identity_of
from mcp_bus.log.snapshots import snapshots_config

NO_ROOM = 10047


async def prepare(url: str, settings: Settings) -> None:
    """Create or update the stream; needs the account that owns JetStream. SettingsError where the
    server does not keep to the settings."""
    log = await connect(url, name="prepare")
    try:
        await durability.check(log, settings)
        await bring_up_to_date(log, settings)
    finally:
        await log.close()


async def bring_up_to_date(log: Log, settings: Settings) -> None:
    """The streams as the settings want them; SettingsError where there is no room."""
    known = await _config(log, subjects.STREAM)
    if known is None:  # what belonged to another log is gone
        # by a purge: one that is deleted while the server still removes the files of the last one
        # of its name comes back with its messages, or cannot be made
        for left in (subjects.DROPPED_STREAM, subjects.SNAPSHOTS_STREAM):
            await log.api(f"STREAM.PURGE.{left}", allow=(STREAM_NOT_FOUND,))
    wanted_log = stream_config(settings)
    if known is not None and (identity := identity_of(known)) is not None:
        wanted_log["metadata"] = {IDENTITY: identity}
    configs = (dropped_config(settings), snapshots_config(settings), wanted_log)
    for wanted in configs:
        verb = "CREATE" if await _config(log, wanted["name"]) is None else "UPDATE"
        found = await log.api(f"STREAM.{verb}.{wanted['name']}", wanted, allow=(NO_ROOM,))
        if "error" in found:
            raise SettingsError(
                f"the server has no room for {wanted['name']} ({wanted['max_bytes']} bytes): "
                "give it more (max_file_store), or the log less (MCP_BUS_LOG_BYTES_MAX)"
            )


async def _config(log: Log, stream: str) -> dict[str, Any] | None:
    """The settings of a stream; None where there is none."""
    found = await log.api(f"STREAM.INFO.{stream}", allow=(STREAM_NOT_FOUND,))
    return found.get("config")


def stream_config(settings: Settings) -> dict[str, Any]:
    """A full log refuses and never forgets, and nobody deletes single messages.

    Atomic batches save fsyncs (publisher.py), and are the only way to fence several copies
    (fenced.py). An agent could hold all that the server has open, which slows the others down, so
    there is none where nobody needs them.
    """
    return {
        "name": subjects.STREAM,
        "subjects": list(subjects.STREAM_SUBJECTS),
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": settings.replicas,
        "max_bytes": settings.log_bytes_max,
        "max_consumers": CONSUMERS_MAX,
        "max_msg_size": MESSAGE_BYTES_MAX + HEADERS_BYTES_MAX,
        "allow_atomic": settings.replicas > 1 or settings.durability == "always",
        "allow_direct": True,
        "deny_delete": True,
        "duplicate_window": int(settings.duplicate_window_s * 1e9),
        "republish": {"src": "mcp.>", "dest": "out.>"},
    }
