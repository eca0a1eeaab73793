"""The stream that is the log: made at the first start, brought up to date at each later one."""

from __future__ import annotations

from typing import Any

from mcp_bus import subjects
from mcp_bus.config import HEADERS_BYTES_MAX, MESSAGE_BYTES_MAX, Settings
from mcp_bus.log.connection import connect

STREAM_NOT_FOUND = 10059


async def prepare(url: str, settings: Settings) -> None:
    """Create or update the stream; needs the account that owns JetStream."""
    log = await connect(url, name="prepare")
    try:
        wanted = stream_config(settings)
        found = await log.api(f"STREAM.INFO.{subjects.STREAM}", allow=(STREAM_NOT_FOUND,))
        verb = "CREATE" if "error" in found else "UPDATE"
        await log.api(f"STREAM.{verb}.{subjects.STREAM}", wanted)
    finally:
        await log.close()


def stream_config(settings: Settings) -> dict[str, Any]:
    """A full log refuses and never forgets, and nobody deletes single messages.

    An agent could hold every atomic batch that the server has open, so there is none where nobody
    needs them (fenced.py).
    """
    return {
        "name": subjects.STREAM,
        "subjects": list(subjects.STREAM_SUBJECTS),
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": settings.replicas,
        "max_msg_size": MESSAGE_BYTES_MAX + HEADERS_BYTES_MAX,
        "allow_atomic": settings.replicas > 1,
        "allow_direct": True,
        "deny_delete": True,
        "duplicate_window": int(settings.duplicate_window_s * 1e9),
        "republish": {"src": "mcp.>", "dest": "out.>"},
    }
