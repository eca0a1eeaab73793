"""What an agent may do on NATS, by its id and roles: the subjects that its connection is given.

Its requests, answers and events leave under its own id alone; it takes requests from its own
queue, and hears and reads what the log has stored for it. Who may `bus:listen` to any agent hears
and reads all of it.
"""

from __future__ import annotations

from mcp_bus import subjects
from mcp_bus.domain.roles import BUS_LISTEN, Principal


def publishes(agent: str, principal: Principal) -> list[str]:
    """Where an agent may publish, whose token is this principal's."""
    queue = f"{subjects.STREAM}.{subjects.queue_of(agent)}"
    own = [
        f"mcp.request.{agent}.*",
        f"mcp.response.{agent}.*.*",
        f"mcp.event.{agent}.*",
        f"$JS.API.CONSUMER.MSG.NEXT.{queue}",
        f"$JS.ACK.{queue}.>",
        subjects.heartbeat_of(agent),
        subjects.query_of(agent),
        subjects.read_of(agent),
    ]
    every = principal.scope(BUS_LISTEN) == "any"
    return [*own, subjects.read_of(agent, everything=True)] if every else own


def hears(agent: str, principal: Principal) -> list[str]:
    """What an agent may subscribe to, whose token is this principal's."""
    own = [f"_INBOX_{agent}.>", f"out.response.*.{agent}.*", f"out.event.*.{agent}"]
    return [*own, "out.>"] if principal.scope(BUS_LISTEN) == "any" else own
