"""Who may do what: permissions with a scope."""

from __future__ import annotations

import pytest

from mcp_bus.domain.roles import (
    AGENTS_READ,
    AGENTS_REVOKE,
    AGENTS_WRITE,
    BUS_LISTEN,
    GRANTS,
    ROLES,
    Principal,
)
from mcp_bus.errors import Refused


def test_every_permission_says_something_of_every_role() -> None:
    """A row of the table has one cell for each role."""
    assert {len(scopes) for scopes in GRANTS.values()} == {len(ROLES)}


def test_the_widest_scope_of_all_roles_counts() -> None:
    """A principal has what any of its roles grants; a role that nobody knows grants nothing."""
    assert Principal("git", ("agent",)).scope(BUS_LISTEN) == "own"
    assert Principal("git", ("agent", "analyst")).scope(BUS_LISTEN) == "any"
    assert Principal("git", ("agent", "root")).scope(AGENTS_REVOKE) is None
    assert Principal("git", ()).scope(AGENTS_READ) is None


def test_scope_own_is_for_the_agent_that_is_the_subject() -> None:
    """For another agent it takes scope any; where no agent is named either will do."""
    git, root = Principal("git", ("agent",)), Principal("root", ("admin",))
    assert git.may(AGENTS_WRITE, "git")
    assert git.may(AGENTS_WRITE)
    assert not git.may(AGENTS_WRITE, "other")
    assert root.may(AGENTS_WRITE, "other")


@pytest.mark.parametrize(
    ("role", "permission", "agent", "lacks"),
    [
        ("agent", AGENTS_WRITE, "other", "agents:write with scope any"),
        ("analyst", AGENTS_WRITE, "ann", "agents:write with scope own or any"),
        ("analyst", AGENTS_WRITE, None, "agents:write with scope own or any"),
        ("developer", AGENTS_REVOKE, "ann", "agents:revoke with scope any"),
    ],
)
def test_a_refusal_names_what_is_lacking(
    role: str, permission: str, agent: str | None, lacks: str
) -> None:
    """The sentence says who, in which roles, and which permission with which scope would do."""
    with pytest.raises(Refused) as refused:
        Principal("ann", (role,)).require(permission, agent)
    assert (refused.value.code, str(refused.value)) == ("forbidden", f"ann ({role}) lacks {lacks}")
