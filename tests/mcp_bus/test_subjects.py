"""Subjects: built and parsed in one place, tokens checked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_bus import subjects
from mcp_bus.errors import MessageError

IDS = st.from_regex(subjects.ID)


@given(st.sampled_from(subjects.KINDS), IDS, IDS, IDS)
def test_a_subject_reads_as_it_was_built(
    kind: subjects.Kind, source: str, target: str, instance: str
) -> None:
    """parse is the inverse of str."""
    built = subjects.Subject(kind, source, target, instance if kind == "response" else None)
    assert subjects.parse(str(built)) == built


@pytest.mark.parametrize(
    "subject",
    [
        "mcp.request.a",
        "mcp.request.a.b.c",
        "mcp.response.a.b",
        "mcp.command.a.b",
        "out.request.a.b",
        "mcp.request.a.*",
        "mcp.request.a.>",
        "mcp.request.a b.c",
        "mcp.request..b",
        "mcp.request.a.b\n",
        "mcp",
        "",
    ],
)
def test_anything_else_is_no_subject(subject: str) -> None:
    """Wildcards in a published subject are refused, because NATS would store them."""
    with pytest.raises(MessageError):
        subjects.parse(subject)


@pytest.mark.parametrize("name", ["registry", "bus", "gateway", "gateway-7", "_clock", "discover"])
def test_ids_of_the_bus_are_reserved(name: str) -> None:
    """No agent may carry an id of the bus."""
    assert subjects.is_reserved(name)
    assert not subjects.is_reserved("a" + name)
