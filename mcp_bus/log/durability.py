"""When the log's servers flush what they acknowledge, as they say themselves.

An ack is worth what stands in the servers' configuration, and `MCP_BUS_DURABILITY` is only what we
believe of it; so it is read back.
"""

from __future__ import annotations

import json
from typing import Any

from mcp_bus.config import SYNC_INTERVAL_S_MAX, Settings
from mcp_bus.errors import SettingsError, Unavailable
from mcp_bus.log import servers
from mcp_bus.log.connection import Log

_JETSTREAM = "$SYS.REQ.SERVER.PING.JSZ"


async def check(log: Log, settings: Settings) -> None:
    """SettingsError where a server flushes otherwise than the settings say, or does not say how.
    Needs the account that owns JetStream."""
    try:
        if settings.replicas == 1:
            said = [json.loads(await log.question(_JETSTREAM, b"{}"))]
        else:
            said = await servers.each(log, _JETSTREAM, {})
    except Unavailable as error:
        raise SettingsError(
            f"no server of the log says when it flushes ({error.detail}): its configuration needs "
            f"the export and the import of {_JETSTREAM} that nats.conf has"
        ) from None
    for server in said:
        found = _mode(server["data"]["config"])
        if found != settings.durability:
            raise SettingsError(
                f"MCP_BUS_DURABILITY says {settings.durability}, and the log's server "
                f"{server['server']['name']} says {found}: give both the same (sync_interval: "
                "always, or 2m at most)"
            )


def _mode(jetstream: dict[str, Any]) -> str:
    if jetstream.get("sync_always"):
        return "always"
    interval_s = jetstream["sync_interval"] / 1e9
    return "interval" if interval_s <= SYNC_INTERVAL_S_MAX else f"every {interval_s:g} s"
