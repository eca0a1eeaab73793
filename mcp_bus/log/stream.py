"""The stream that is the log: made at the first start, brought up to date at each later one."""

from __future__ import annotations

from typing import Any

from mcp_bus import subjects
from mcp_bus.config import CONSUMERS_MAX, HEADERS_BYTES_MAX, MESSAGE_BYTES_MAX, Settings
from mcp_bus.log.connection import Log, connect
from mcp_bus.log.queues import dropped_config
from mcp_bus.log.snapshots import snapshots_config

STREAM_NOT_FOUND = 10059


async def prepare(url: str, settings: Settings) -> None:
    """Create or update the stream; needs the account that owns JetStream."""
    log = await connect(url, name="prepare")
    try:
        if not await _exists(log, subjects.STREAM):  # what belonged to another log is gone
            for stream in (subjects.DROPPED_STREAM, subjects.SNAPSHOTS_STREAM):
                await log.api(f"STREAM.DELETE.{stream}", allow=(STREAM_NOT_FOUND,))
        configs = (dropped_config(settings), snapshots_config(settings), stream_config(settings))
        for wanted in configs:
            verb = "UPDATE" if await _exists(log, wanted["name"]) else "CREATE"
            await log.api(f"STREAM.{verb}.{wanted['name']}", wanted)
    finally:
        await log.close()


async def _exists(log: Log, stream: str) -> bool:
    return "error" not in await log.api(f"STREAM.INFO.{stream}", allow=(STREAM_NOT_FOUND,))


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
        "max_consumers": CONSUMERS_MAX,
        "max_msg_size": MESSAGE_BYTES_MAX + HEADERS_BYTES_MAX,
        "allow_atomic": settings.replicas > 1 or settings.durability == "always",
        "allow_direct": True,
        "deny_delete": True,
        "duplicate_window": int(settings.duplicate_window_s * 1e9),
        "republish": {"src": "mcp.>", "dest": "out.>"},
    }
