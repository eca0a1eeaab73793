"""The table of routes and its reference page tell the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.call import Route
from gateway.door import PATH_MODELS
from gateway.routes import ROUTES
from mcp_bus.domain.roles import GRANTS, ROLES

PAGE = (Path(__file__).parents[2] / "docs" / "rest.md").read_text(encoding="utf-8")
SECTIONS = {
    title: text
    for title, _, text in (part.partition("\n") for part in PAGE.split("\n## "))
    if re.match(r"(GET|POST|PUT) /", title)
}


def name(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_the_page_has_every_route_and_no_other() -> None:
    """A route without a section, or a section without a route, fails."""
    assert list(SECTIONS) == [name(route) for route in ROUTES]


@pytest.mark.parametrize("route", ROUTES, ids=name)
def test_a_section_says_what_its_route_does(route: Route) -> None:
    """Permission, statuses and query parameters are those of the table."""
    text = SECTIONS[name(route)]
    permission = re.search(r"Permission `([a-z:]+)`", text)
    assert (permission[1] if permission else None) == route.permission
    told = {int(status) for status in re.findall(r"\b(20\d|503)\b", text)}
    assert told == set(route.statuses)
    fields = {f.alias or own for own, f in route.query.model_fields.items()}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == fields


@pytest.mark.parametrize("route", ROUTES, ids=name)
def test_a_route_can_be_used(route: Route) -> None:
    """Each permission is granted by some role, and each path parameter has a shape."""
    assert route.permission is None or any(GRANTS[route.permission])
    assert set(re.findall(r"{(\w+)}", route.path)) <= PATH_MODELS.keys()


def test_the_page_has_every_role() -> None:
    """The page's table of roles is GRANTS, cell for cell."""
    lines = PAGE.partition("| permission |")[2].partition("\n\n")[0].splitlines()
    heading, _, *rows = (
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines
    )
    assert tuple(heading) == ROLES
    told = {name: tuple(None if cell == "-" else cell for cell in cells) for name, *cells in rows}
    assert told == GRANTS
