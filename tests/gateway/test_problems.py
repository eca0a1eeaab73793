"""Errors over HTTP: each a problem (RFC 9457) with a stable code and a pointer."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway import door
from gateway.errors import problems
from gateway.routes import ROUTES
from mcp_bus.config import BODY_BYTES_MAX
from mcp_bus.domain.roles import ROLES, Principal
from mcp_bus.errors import CODES

from .conftest import Rest, Said

AGENT = {"id": "a", "type": "t", "capabilities": []}


def is_problem(said: Said, code: str) -> None:
    """The shape of every problem."""
    assert said.headers["Content-Type"] == "application/problem+json"
    assert list(said.body) == ["type", "title", "status", "code", "detail", "errors"]
    status, title = CODES[code]
    assert (said.status, said.body["status"], said.body["title"]) == (status, status, title)
    assert (said.body["code"], said.body["type"]) == (code, f"/errors/{code}")
    assert said.body["detail"]
    for error in said.body["errors"]:
        assert list(error) == ["pointer", "code", "detail"]


async def test_every_route_but_health_wants_a_token(alone: Rest) -> None:
    """Without a token, and with a wrong one, each is 401 and says how to authenticate."""
    for route in ROUTES:
        if route.path == "/health":
            continue
        path = re.sub(r"{\w+}", "1", route.path)
        for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic eDp5"}):
            said = await alone.call(route.method, path, token="", headers=headers)
            is_problem(said, "unauthenticated")
            assert said.headers["WWW-Authenticate"] == 'Bearer realm="mcp-bus"'


async def test_a_role_opens_what_it_may(alone: Rest) -> None:
    """Each route is forbidden to exactly the roles that lack its permission."""
    for role in ROLES:
        ann = Principal("ann", (role,))
        for route in ROUTES:
            path = re.sub(r"{\w+}", "1", route.path)
            # a query that nobody knows is refused after the permission and before the work
            said = await alone.call(
                route.method, path + "?zz=1", data=b"[]", token=alone.token("ann", role)
            )
            if route.permission is None or ann.may(route.permission):
                assert said.codes == [("/query/zz", "bad_value")], (role, route.path)
            else:
                is_problem(said, "forbidden")


@pytest.mark.parametrize(
    ("data", "code", "pointer"),
    [
        (b"", "malformed_json", ""),
        (b"{", "malformed_json", ""),
        (b"\xff\xfe", "malformed_json", ""),
        (gzip.compress(b"{}", mtime=0), "malformed_json", ""),
        (b'{"id":"a","id":"b"}', "duplicate_key", "/id"),
        (b'{"id":NaN}', "bad_number", "/id"),
        (b'{"id":1e999}', "bad_number", "/id"),
        (b'{"id":9007199254740993}', "bad_number", "/id"),
        (rb'{"id":"\ud800"}', "bad_text", "/id"),
        (b"[" * 40 + b"]" * 40, "too_deep", "/0" * 32),
        (b"[]", "wrong_type", ""),
        (b"null", "wrong_type", ""),
        (b'{"type":"t","capabilities":[]}', "missing", "/id"),
        (b'{"id":"a b","type":"t","capabilities":[]}', "bad_id", "/id"),
        (b'{"id":"a","type":5,"capabilities":[]}', "wrong_type", "/type"),
        (b'{"id":"a","type":"t","capabilities":[],"status":"on"}', "bad_value", "/status"),
        (
            b'{"id":"a","type":"t","capabilities":[{"name":"x","actions":["a/b"],"parameters":{}}]}',
            "bad_id",
            "/capabilities/0/actions/0",
        ),
    ],
)
async def test_a_wrong_body_is_told_where(
    alone: Rest, data: bytes, code: str, pointer: str
) -> None:
    """400 for what is no JSON, 422 for the wrong shape, always with a pointer."""
    said = await alone.call("POST", "/agents/register", data=data)
    is_problem(said, code)
    assert (pointer, code) in said.codes


async def test_all_findings_come_in_one_answer(alone: Rest) -> None:
    """A body with four faults is told all four."""
    step = {"id": "s", "agentId": 3, "action": "x y"}
    said = await alone.call("POST", "/workflows", {"id": "a b", "steps": [step]})
    assert {
        ("/id", "bad_id"),
        ("/name", "missing"),
        ("/steps/0/agentId", "wrong_type"),
        ("/steps/0/action", "bad_id"),
    } == set(said.codes)


async def test_pointers_lead_into_the_bare_list(alone: Rest) -> None:
    """PUT capabilities takes the list itself, and then points into the list itself."""
    wrong = [{"name": "x", "actions": []}]
    bare = await alone.call("PUT", "/agents/a/capabilities", wrong)
    named = await alone.call("PUT", "/agents/a/capabilities", {"capabilities": wrong})
    assert bare.codes == [("/0/parameters", "missing")]
    assert named.codes == [("/capabilities/0/parameters", "missing")]


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/agents/discover?colour=red", ("/query/colour", "bad_value")),
        ("/agents/discover?a~/b=1", ("/query/a~0~1b", "bad_value")),
        ("/agents/discover?status=asleep", ("/query/status", "bad_value")),
        ("/agents/discover?type=a&type=b", ("/query/type", "bad_value")),
        ("/agents/discover?type=%00", ("/query/type", "bad_id")),
        ("/workflows/a%20b", ("/path/id", "bad_id")),
        ("/workflows/a%2Fb", ("/path/id", "bad_id")),
        ("/workflows/w?x=1", ("/query/x", "bad_value")),
        ("/executions/%00", ("/path/id", "bad_id")),
        ("/conversations/%0A", ("/path/correlationId", "bad_id")),
        ("/conversations/c?after=-1", ("/query/after", "bad_value")),
        ("/conversations/c?after=1e3", ("/query/after", "bad_value")),
        ("/conversations/c?limit=0", ("/query/limit", "bad_value")),
        ("/conversations/c?limit=201", ("/query/limit", "bad_value")),
        ("/conversations/c?after=99999999999999999999", ("/query/after", "bad_value")),
        ("/analytics/usage?from=5&to=3", ("/query/from", "bad_value")),
        ("/analytics/usage?to=yesterday", ("/query/to", "bad_value")),
        ("/analytics/errors?to=99999999999999999", ("/query/to", "bad_value")),
        ("/health?x=1", ("/query/x", "bad_value")),
    ],
)
async def test_a_wrong_address_is_told_where(
    alone: Rest, path: str, found: tuple[str, str]
) -> None:
    """Parameters of path and query are checked like a body."""
    said = await alone.call("GET", path)
    is_problem(said, found[1])
    assert said.codes == [found]


@pytest.mark.parametrize("wait", ["0", "-1", "nan", "inf", "301", "soon", ""])
async def test_a_wait_has_bounds(alone: Rest, wait: str) -> None:
    """An execute waits for more than nothing and for at most five minutes."""
    said = await alone.call("PUT", f"/workflows/w/execute?wait={wait}", {"inputs": {}})
    assert said.codes == [("/query/wait", "bad_value")]


async def test_a_body_has_a_bound(alone: Rest) -> None:
    """A body beyond the bound is 413, announced or not, and the gateway lives on."""
    large = b" " * (BODY_BYTES_MAX + 1)
    is_problem(await alone.call("POST", "/workflows", data=large), "too_large")

    async def pieces() -> Any:
        for _ in range(BODY_BYTES_MAX // 1024 + 1):
            yield b" " * 1024

    async with alone.session.post(
        alone.url + "/workflows",
        data=pieces(),
        headers={"Authorization": f"Bearer {alone.token()}"},
    ) as answer:
        assert answer.status == 413
    assert (await alone.call("GET", "/health", token="")).status == 503


async def test_a_command_must_fit_a_message(alone: Rest) -> None:
    """What fits the body's bound but no message is refused here, and nothing is published."""
    large = {**AGENT, "note": "x" * 300_000}
    is_problem(await alone.call("POST", "/agents/register", large), "too_large")
    deep: Any = {}
    for _ in range(29):
        deep = {"a": deep}
    said = await alone.call("POST", "/agents/register", {**AGENT, "note": deep})
    is_problem(said, "too_deep")
    assert said.codes == [("/note" + "/a" * 28, "too_deep")]


async def test_nothing_there_and_wrong_method(alone: Rest) -> None:
    """aiohttp's own refusals have the same form; 405 tells what is allowed."""
    is_problem(await alone.call("GET", "/nothing"), "not_found")
    is_problem(await alone.call("GET", "/agents/register/"), "not_found")
    said = await alone.call("DELETE", "/workflows")
    is_problem(said, "method_not_allowed")
    assert said.headers["Allow"] == "POST"


async def test_a_body_that_breaks_off_harms_nobody(alone: Rest) -> None:
    """A client that promises a body and leaves does not stop the gateway."""
    port = alone.settings.port
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /workflows HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
        b"Authorization: Bearer " + alone.token().encode() + b"\r\n\r\n{"
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await alone.call("GET", "/health", token="")).status == 503


async def test_a_mistake_of_ours_tells_nothing() -> None:
    """What a handler did not expect is a 500 without a word about the inside."""

    async def broken(_: web.Request) -> web.Response:
        raise KeyError("postgresql://service:password@host/")

    app = web.Application(middlewares=[door.access, problems])
    app.router.add_get("/broken", broken)
    async with TestClient(TestServer(app)) as client:
        answer = await client.get("/broken")
        text = await answer.text()
    is_problem(Said(answer.status, dict(answer.headers), json.loads(text)), "internal")
    assert "password" not in text
    assert "KeyError" not in text
