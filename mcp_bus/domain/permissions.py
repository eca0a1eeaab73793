"""What an agent may do on NATS, by its id and roles: the subjects that its connection is given.

Its requests, answers and events leave under its own id alone; it takes requests from its own
queue, and hears and reads what the log has stored for it. Who may `bus:listen` to any agent hears
and reads all of it, and may ask by micro discovery. Never: leave to answer wherever a question
says (the server's `allow_responses`), or a question with the reply `mcp.response.…` would have an
agent publish in the name of another.
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
        f"{subjects.MICRO_INBOX}.>",
    ]
    everything = [subjects.read_of(agent, everything=True), "$SRV.>"]
    return own + everything if _hears_all(principal) else own


def hears(agent: str, principal: Principal) -> list[str]:
    """What an agent may subscribe to, whose token is this principal's.

    Leave for `x.*` is leave for `x.>` as well, as the server reads it: so the verbs are named.
    """
    own = [
        f"_INBOX_{agent}.>",
        f"out.response.*.{agent}.*",
        f"out.event.*.{agent}",
        *(s for verb in subjects.MICRO_VERBS for s in subjects.micro_of(verb, agent, "*")),
    ]
    return [*own, "out.>", f"{subjects.MICRO_INBOX}.>"] if _hears_all(principal) else own


def _hears_all(principal: Principal) -> bool:
    return principal.scope(BUS_LISTEN) == "any"
