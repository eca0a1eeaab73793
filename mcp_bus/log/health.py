"""Whether the log's server can write. After an error, as of a disk that is full, it takes nothing
for a stream any more and answers nobody, until it is started again; only its health tells.
"""

from __future__ import annotations

import json

from mcp_bus import subjects
from mcp_bus.errors import Unavailable
from mcp_bus.log.connection import Log

_HEALTH = "$SYS.REQ.SERVER.PING.HEALTHZ"
_LOG = json.dumps({"account": "BUS", "stream": subjects.STREAM}).encode()  # and nothing else
_SAID = "write error"


async def write_error(log: Log) -> str:
    """Why the server writes no more, "" while it does or where nobody says; of several servers the
    first that answers counts. Needs the account that owns JetStream."""
    try:
        told = json.loads(await log.question(_HEALTH, _LOG))
    except Unavailable:
        return ""
    error = str(told.get("data", {}).get("error", ""))
    return error if _SAID in error else ""
