"""GET /health: whether every service of the bus does its work.

Needs no token and asks no engine, so that it answers at once whatever is down.
"""

from __future__ import annotations

from gateway.call import Answer, Call, Gateway
from mcp_bus import __version__


async def health(gateway: Gateway, _: Call) -> Answer:
    """200 while every service is ok, else 503; `position` is that of the read models."""
    services = gateway.services.as_json()
    ok = all(service["status"] == "ok" for service in services.values())
    body = {
        "status": "ok" if ok else "degraded",
        "version": __version__,
        "position": gateway.read_models.position,
        "services": services,
    }
    return Answer(200 if ok else 503, body)
