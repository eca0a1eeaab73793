"""Who may do what: the one role table. Deciders authorise commands by it, the gateway routes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mcp_bus import subjects
from mcp_bus.errors import Refused
from mcp_bus.messages import Message

AGENTS_READ = "agents:read"
AGENTS_WRITE = "agents:write"  # one's own agent: the subject is the agent id
AGENTS_WRITE_ANY = "agents:write:any"
WORKFLOWS_READ = "workflows:read"
WORKFLOWS_WRITE = "workflows:write"
WORKFLOWS_EXECUTE = "workflows:execute"
HISTORY_READ = "history:read"
ANALYTICS_READ = "analytics:read"

_READ = frozenset({AGENTS_READ, WORKFLOWS_READ, HISTORY_READ, ANALYTICS_READ})

ROLES: dict[str, frozenset[str]] = {
    "admin": _READ | {AGENTS_WRITE, AGENTS_WRITE_ANY, WORKFLOWS_WRITE, WORKFLOWS_EXECUTE},
    "operator": _READ | {WORKFLOWS_EXECUTE},
    "developer": _READ | {AGENTS_WRITE, WORKFLOWS_WRITE, WORKFLOWS_EXECUTE},
    "analyst": _READ,
    "agent": frozenset({AGENTS_READ, AGENTS_WRITE, WORKFLOWS_READ, WORKFLOWS_EXECUTE}),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is authenticated: a subject and its roles."""

    subject: str
    roles: tuple[str, ...]

    def require(self, permission: str) -> None:
        """Raises Refused `forbidden` unless a role grants the permission."""
        if not may(self.roles, permission):
            raise Refused(
                f"{self.subject} ({', '.join(self.roles) or 'no role'}) lacks {permission}",
                code="forbidden",
            )


def may(roles: Iterable[str], permission: str) -> bool:
    """Whether one of the roles grants the permission."""
    return any(permission in ROLES.get(role, frozenset()) for role in roles)


def principal_of(message: Message) -> Principal:
    """Whose command this is: its source; from the gateway the principal that it vouches for.

    One exact source is believed, because the server can forbid exactly that one to agents.
    """
    claimed = message.metadata.principal
    if message.source != subjects.GATEWAY:
        return Principal(message.source, ("agent",))
    roles = claimed.get("roles") if claimed else None
    subject = claimed.get("subject") if claimed else None
    known = tuple(r for r in roles if isinstance(r, str)) if isinstance(roles, list) else ()
    return Principal(subject if isinstance(subject, str) else message.source, known)
