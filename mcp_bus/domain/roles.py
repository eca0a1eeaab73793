"""Who may do what: the one role table. Deciders authorise commands by it, the gateway routes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mcp_bus import subjects
from mcp_bus.errors import Refused
from mcp_bus.messages import Message

AGENTS_READ = "agents:read"
AGENTS_WRITE = "agents:write"
AGENTS_REVOKE = "agents:revoke"
WORKFLOWS_READ = "workflows:read"
WORKFLOWS_WRITE = "workflows:write"
WORKFLOWS_EXECUTE = "workflows:execute"
HISTORY_READ = "history:read"
ANALYTICS_READ = "analytics:read"
BUS_LISTEN = "bus:listen"  # hear every stored message live

Scope = Literal["own", "any"]  # own: what carries one's own id as agent id

ROLES = ("admin", "operator", "developer", "analyst", "agent")

# permission -> the scope in which each of ROLES has it, None: not at all
# fmt: off
GRANTS: dict[str, tuple[Scope | None, ...]] = {
    #                   admin  operator  developer  analyst  agent
    AGENTS_READ:       ("any", "any",    "any",     "any",   "any"),
    AGENTS_WRITE:      ("any", None,     "own",     None,    "own"),
    AGENTS_REVOKE:     ("any", "any",    None,      None,    None),
    WORKFLOWS_READ:    ("any", "any",    "any",     "any",   "any"),
    WORKFLOWS_WRITE:   ("any", None,     "any",     None,    None),
    WORKFLOWS_EXECUTE: ("any", "any",    "any",     None,    "any"),
    HISTORY_READ:      ("any", "any",    "any",     "any",   None),
    ANALYTICS_READ:    ("any", "any",    "any",     "any",   None),
    BUS_LISTEN:        ("any", "any",    "any",     "any",   "own"),
}
# fmt: on


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is authenticated: a subject and its roles."""

    subject: str
    roles: tuple[str, ...]

    def scope(self, permission: str) -> Scope | None:
        """The widest scope in which a role grants the permission, None if none does."""
        granted = {
            scope
            for role, scope in zip(ROLES, GRANTS[permission], strict=True)
            if role in self.roles
        }
        return "any" if "any" in granted else "own" if "own" in granted else None

    def may(self, permission: str, agent: str | None = None) -> bool:
        """Whether a role grants the permission for `agent`; without one, in either scope."""
        scope = self.scope(permission)
        return scope == "any" or (scope == "own" and agent in (None, self.subject))

    def require(self, permission: str, agent: str | None = None) -> None:
        """Raises Refused `forbidden` unless `may(permission, agent)`."""
        if not self.may(permission, agent):
            own = "own" in GRANTS[permission] and agent in (None, self.subject)
            raise Refused(
                f"{self.subject} ({', '.join(self.roles) or 'no role'}) "
                f"lacks {permission} with scope {'own or any' if own else 'any'}",
                code="forbidden",
            )


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
