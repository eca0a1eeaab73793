"""Dead letters, from what nobody could finish to what is sent anew of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agents_sdk import BusError, connect
from mcp_bus.config import HEALTH_POLL_S
from tests.conftest import Nats
from tests.services import WAIT_S

from .conftest import Rest, echo
from .test_executions import asks, ended
from .test_quarantine import command as _command
from .test_reruns import counting, failed


async def only(bus: Rest) -> dict[str, Any]:
    """The one dead letter that there is."""
    (letter,) = (await bus.call("GET", "/dead-letters")).body["deadLetters"]
    return dict(letter)


async def until(bus: Rest, conversation: str, kind: str) -> dict[str, Any]:
    """The last message of a conversation, once it is of a kind."""
    async with asyncio.timeout(WAIT_S):
        while True:
            said = await bus.call("GET", f"/conversations/{conversation}")
            last: dict[str, Any] = said.body["messages"][-1]["message"]
            if last["context"]["type"] == kind:
                return last
            await asyncio.sleep(HEALTH_POLL_S)


async def test_a_step_is_sent_anew_with_other_inputs(bus: Rest, nats: Nats) -> None:
    """Nobody is asked again for the steps before it, and it is marked; a second time is refused."""
    calls: list[str] = []
    async with counting(nats, calls):
        first = await failed(bus, asks("a"), asks("bad"))
        letter = await only(bus)
        path = f"/dead-letters/{letter['position']}"
        shown = (await bus.call("GET", path)).body
        asked = {"action": "say", "inputs": {"text": "bad"}}
        assert shown["request"]["context"]["payload"] == asked
        assert (letter["executionId"], letter["stepId"]) == (first["id"], "bad")
        assert (letter["error"]["code"], letter["redriven"]) == ("bad_text", None)
        said = await bus.call("POST", f"{path}/redrive", {"inputs": {"text": "good"}})
        assert said.status == 202, said.body
        second = await ended(bus, f"/executions/{said.body['executionId']}")
        again = await bus.call("POST", f"{path}/redrive", {})
    assert (second["status"], second["rerunOf"]) == ("completed", first["id"])
    assert calls == ["a", "bad", "good"]
    assert (await only(bus))["redriven"]["by"] == second["id"]
    assert (again.status, again.body["code"]) == (409, "already_redriven")
    unknown = await bus.call("GET", f"/dead-letters/{letter['position'] + 1}")
    assert (unknown.status, unknown.body["code"]) == (404, "not_found")


async def test_what_could_not_be_undone_is_asked_anew(bus: Rest, nats: Nats) -> None:
    """As one request in the conversation of the execution, which has ended."""
    calls: list[str] = []
    undo = {"agentId": "echo", "action": "say", "inputs": {"text": "bad"}}
    async with counting(nats, calls):
        first = await failed(bus, asks("a", compensate=undo), asks("bad"))
        letters = (await bus.call("GET", "/dead-letters")).body["deadLetters"]
        assert [(one["stepId"], one["undoes"]) for one in letters] == [("a", True), ("bad", False)]
        path = f"/dead-letters/{letters[0]['position']}/redrive"
        said = await bus.call("POST", path, {"inputs": {"text": "undone"}})
        assert said.body["correlationId"] == first["id"]
        last = await until(bus, first["id"], "response")
    assert last["context"]["payload"] == {"outputs": {"text": "undone"}}
    assert calls == ["a", "bad", "bad", "undone"]
    assert (await bus.call("GET", f"/executions/{first['id']}")).body == first


async def test_a_single_request_is_sent_anew_by_whoever_asks(bus: Rest, nats: Nats) -> None:
    """In its conversation, with the old one as its cause; on the command line, as an operator."""
    async with connect(nats.agent("asker"), id="asker") as asker:
        with pytest.raises(BusError) as refused:
            await asker.request("later", "say", {"text": "lost"})
    assert refused.value.code == "unknown_agent"
    async with asyncio.timeout(WAIT_S):
        while not (await bus.call("GET", "/dead-letters")).body["deadLetters"]:  # noqa: ASYNC110
            await asyncio.sleep(HEALTH_POLL_S)
    letter = await only(bus)
    assert (letter["asker"], letter["agentId"], letter["action"]) == ("asker", "later", "say")
    position = str(letter["position"])
    listed = await asyncio.to_thread(command, bus, "list")
    assert listed.stdout.splitlines()[1].split()[3:6] == ["later", "say", "unknown_agent"]
    async with echo(nats, "later"):
        redrive = ("redrive", position, "--inputs", '{"text": "found"}', "--json")
        done = await asyncio.to_thread(command, bus, *redrive)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        last = await until(bus, said["correlationId"], "response")
    assert (last["source"], last["context"]["payload"]) == ("later", {"outputs": {"text": "found"}})
    told = (await bus.call("GET", f"/conversations/{said['correlationId']}")).body["messages"]
    old, anew = (m["message"] for m in told if m["message"]["context"]["type"] == "request")
    assert (anew["source"], anew["context"]["metadata"]["principal"]["subject"]) == (
        "gateway",
        "otto",
    )
    assert anew["context"]["metadata"]["causationId"] == old["context"]["metadata"]["messageId"]
    shown = await asyncio.to_thread(command, bus, "show", position)
    assert f"redriven  {said['messageId']}" in shown.stdout
    analyst = bus.token("ann", "analyst")
    path = f"/dead-letters/{position}/redrive"
    assert (await bus.call("POST", path, {}, token=analyst)).status == 403


async def test_one_of_several_who_send_it_anew_at_once_is_first(bus: Rest, nats: Nats) -> None:
    """Be it a step or a single request; the others are refused, and nobody is asked twice."""
    calls: list[str] = []
    undo = {"agentId": "echo", "action": "say", "inputs": {"text": "bad"}}
    async with counting(nats, calls):
        await failed(bus, asks("a", compensate=undo), asks("bad"))
        letters = (await bus.call("GET", "/dead-letters")).body["deadLetters"]
        for letter in letters:
            path = f"/dead-letters/{letter['position']}/redrive"
            all_said = await asyncio.gather(
                *(
                    bus.call("POST", path, {"inputs": {"text": by}}, token=bus.token(by, "admin"))
                    for by in ("ann", "ben", "cleo")
                )
            )
            codes = sorted(said.body.get("code", "") for said in all_said)
            assert codes == ["", "already_redriven", "already_redriven"]
            (said,) = (s.body for s in all_said if s.status == 202)
            if "executionId" in said:
                await ended(bus, f"/executions/{said['executionId']}")
            else:
                await until(bus, said["correlationId"], "response")
        redriven = (await bus.call("GET", "/dead-letters")).body["deadLetters"]
    first, last = calls[3], calls[5]  # a was undone, and is asked again
    assert calls == ["a", "bad", "bad", first, "a", last]
    assert {first, last} <= {"ann", "ben", "cleo"}
    assert all(letter["redriven"] for letter in redriven)


def command(bus: Rest, *words: str) -> Any:
    return _command(bus, *words, group="dead-letters")
