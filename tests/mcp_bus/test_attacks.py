"""What the log and the deciders withstand from an agent that is let in and means harm.

As in test_accounts.py: each attack asserts that it did no harm, and must do it on a weak bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats import micro
from nats.aio.client import Client

from agents_sdk.serving import answer_id
from mcp_bus import config, log
from mcp_bus.config import HEADERS_BYTES_MAX, MESSAGE_BYTES_MAX, SUBSCRIPTIONS_MAX
from mcp_bus.domain.agents import REGISTRY
from mcp_bus.domain.decider import Fold
from mcp_bus.log import Record
from mcp_bus.log.records import BATCH_ID, BATCH_SEQUENCE, BATCHES_TOO_MANY, MESSAGE_ID
from mcp_bus.messages import Message, dumps, parse
from mcp_bus.services import registry, workflows
from mcp_bus.subjects import DECIDERS, epoch_of
from tests.conftest import SECRET, Nats
from tests.mcp_bus import attacker
from tests.mcp_bus.attacker import Attack, connected, honest, open_queue, spoken, stored
from tests.mcp_bus.forger import GIT, signed
from tests.mcp_bus.history import agent, step, workflow
from tests.services import WAIT_S, running


async def refusal(client: Client, data: bytes, headers: dict[str, str] | None = None) -> int:
    """The number by which the log refuses an event of agent `a`, 0 when it does not."""
    said = await client.request("mcp.event.a.b", data, timeout=WAIT_S, headers=headers)
    answer: dict[str, Any] = json.loads(said.data or b"{}")
    return int(answer.get("error", {}).get("err_code", 0))


async def publish_too_much(nats: Nats) -> None:
    """More than any message has, but less than the server takes from a client."""
    async with (
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a"), "a") as (a, _complaints),
    ):
        most = MESSAGE_BYTES_MAX + HEADERS_BYTES_MAX
        assert await refusal(a, b"x" * (most + 1)) == 10054
        assert await refusal(a, b"x" * MESSAGE_BYTES_MAX, {"X": "x" * HEADERS_BYTES_MAX}) == 10054
        assert await stored(bus) == {}


async def hold_every_batch(nats: Nats) -> None:
    """The server has 50 atomic batches open, for everybody together."""
    async with honest(nats, "b") as b, connected(nats.agent("a"), "a") as (a, _complaints):
        refused, number = 0, itertools.count()
        while not refused:
            opening = {BATCH_ID: f"mine-{next(number)}", BATCH_SEQUENCE: "1"}
            refused = await refusal(a, b"{}", opening)
        assert refused == BATCHES_TOO_MANY
        many = [Message.build("event", "b", "b", {"event": "Counted"}) for _ in range(300)]
        outcomes = await asyncio.gather(*map(b.publish, many), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [log.Published] * len(many)


async def acknowledge_for_another(nats: Nats) -> None:
    """With the very subject under which the request was given to the other."""
    async with (
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a"), "a") as (a, _complaints),
        connected(nats.agent("b"), "b") as (b, _complaints_b),
    ):
        await open_queue(bus, "b")
        await a.jetstream(timeout=WAIT_S).publish("mcp.request.a.b", b"work")
        queue = await b.jetstream(timeout=WAIT_S).pull_subscribe_bind("agent-b", "MCP")
        (taken,) = await queue.fetch(1, timeout=WAIT_S)
        for word in (b"+ACK", b"+TERM"):
            await a.publish(taken.reply, word)
        await a.flush()
        await taken.nak()
        (again,) = await queue.fetch(1, timeout=attacker.PATIENCE_S)
        assert again.data == b"work"


async def publish_to_wildcards(nats: Nats) -> None:
    """A wildcard that is published to is stored; no queue and no listener takes it for its own."""
    async with (
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a"), "a") as (a, _complaints),
        connected(nats.agent("b"), "b") as (b, _complaints_b),
    ):
        await open_queue(bus, "b")
        told = [await b.subscribe(s) for s in ("out.event.*.b", "out.response.*.b.*")]
        await b.flush()
        for source, target in (("a", "*"), ("a", ">"), ("*", "b"), ("*", "*"), (">", "b")):
            await a.publish(f"mcp.request.{source}.{target}", b"forged")
            await a.publish(f"mcp.event.{source}.{target}", b"forged")
            await a.publish(f"mcp.response.{source}.{target}.*", b"forged")
        for subject in ("mcp.request.a.b", "mcp.event.a.b", "mcp.response.a.b.i1"):
            await a.jetstream(timeout=WAIT_S).publish(subject, b"last")
        queue = await b.jetstream(timeout=WAIT_S).pull_subscribe_bind("agent-b", "MCP")
        (taken,) = await queue.fetch(1, timeout=attacker.PATIENCE_S)
        heard = [taken, *[await one.next_msg(attacker.PATIENCE_S) for one in told]]
        assert [msg.data for msg in heard] == [b"last"] * 3


async def guess_the_id_of_an_answer(nats: Nats) -> None:
    """What is published under the id of another's message keeps that message out of the log."""
    async with (
        honest(nats, "me") as me,
        honest(nats, "b") as b,
        connected(nats.agent("a"), "a") as (a, complaints),
    ):
        overheard = await a.subscribe("mcp.request.*.b")
        await a.flush()
        request = Message.build("request", "me", "b", {})
        await me.publish(request)
        hearing = asyncio.create_task(overheard.next_msg(WAIT_S))
        refused = asyncio.create_task(complaints.get())
        await asyncio.wait({hearing, refused}, return_when=asyncio.FIRST_COMPLETED)
        guess = Message.build("request", "me", "b", {}).encode()
        known = (await hearing).data if hearing.done() else guess
        hearing.cancel()
        refused.cancel()
        guessed = parse(known, request.subject)
        await a.jetstream(timeout=WAIT_S).publish(
            "mcp.event.a.b", b"first", headers={MESSAGE_ID: answer_id(guessed, at(guessed))}
        )
        answer = Message.answer(request, "b", {}, message_id=answer_id(request, at(request)))
        assert not (await b.publish(answer)).duplicate


def at(message: Message) -> Record:
    """A message as the log delivers it; its position is in no answer's id."""
    return Record(1, 0, message.subject, message.encode(), {})


async def guess_the_id_of_an_output(nats: Nats) -> None:
    """All but the secret is known to everybody: who decides, at which position, how much."""
    async with deciding(nats), connected(nats.agent("a"), "a") as (a, _complaints):
        answers = await a.subscribe("out.response.registry.a.i")
        register = command("a", "registry", "register", agent("a"))
        await a.jetstream(timeout=WAIT_S).publish(register.subject, register.encode())
        answer = await answers.next_msg(attacker.PATIENCE_S)
        position = int((answer.headers or {})["Nats-Sequence"]) + 2  # behind what stands here first
        fold = Fold(REGISTRY, b"a guess of thirty-two characters", "")
        headers = {MESSAGE_ID: fold.output_id(position, 1, 1)}
        await a.jetstream(timeout=WAIT_S).publish("mcp.event.a.b", b"first", headers=headers)
        again = await a.jetstream(timeout=WAIT_S).publish(register.subject, register.encode())
        assert again.seq == position
        await answers.next_msg(attacker.PATIENCE_S)


async def command_without_the_right(nats: Nats) -> None:
    """In one's own name, whatever one claims to be, and in the name of who is believed."""
    async with (
        deciding(nats),
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a"), "a") as (a, _complaints),
    ):
        known = command("b", "registry", "register", agent("b", "x"))
        answers = await bus.subscribe("out.response.*.*.i")
        await bus.publish(known.subject, known.encode())
        await answers.next_msg(attacker.PATIENCE_S)
        for wanted in NOT_FOR_AGENTS:
            forged, own = command("gateway", *wanted), command("a", *wanted)
            await a.publish(forged.subject, forged.encode())
            await a.jetstream(timeout=WAIT_S).publish(own.subject, own.encode())
            answer = parse((await answers.next_msg(attacker.PATIENCE_S)).data)
            assert answer.target == "a"
            assert answer.payload["error"]["code"] == "forbidden"
        said = {name for name in await stored(bus) if not name.endswith(".a")}
        assert said == {
            *("mcp.request.b.registry", "mcp.event.registry.b", "mcp.response.registry.b.i"),
            *(f"mcp.request.a.{decider}" for decider in DECIDERS),
            *(f"mcp.response.{decider}.a.i" for decider in DECIDERS),
            *(epoch_of(decider) for decider in DECIDERS),
        }


async def have_a_service_answer_for_another(nats: Nats) -> None:
    """One who asks by micro discovery says where the answer goes; `b` is in league, and answers
    there, as every service does that trusts its client library."""
    async with (
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a", "developer"), "a") as (a, _complaints),
        connected(nats.agent("b"), "b") as (b, complaints),
    ):
        beats = await bus.subscribe("hb.*")
        await bus.flush()
        await micro.add_service(b, name="b", version="1.0.0")
        forged = (
            "mcp.response.c.me.i1",
            "mcp.event.workflows.x",
            "mcp.request.gateway.registry",
            "out.event.c.x",
            "hb.c",
            "_INBOX_c.x",
        )
        for reply in forged:
            await a.publish("$SRV.PING", b"", reply=reply)
            refused = await asyncio.wait_for(complaints.get(), attacker.PATIENCE_S)
            assert refused == f'nats: permissions violation for publish to "{reply.lower()}"'
        assert await stored(bus) == {}
        assert not beats.pending_msgs


async def have_an_agent_answer_as_itself(nats: Nats) -> None:
    """One who asks by micro discovery says where the answer goes; the agent is honest, and may
    publish there, but not at the will of another."""
    async with (
        honest(nats, "b") as b,
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a", "developer"), "a") as (a, _complaints),
    ):
        beats = await bus.subscribe("hb.*")
        await bus.flush()
        answers = await a.subscribe("_SRV.>")
        await log.micro.serve(b, "b", "i1", {"PING": lambda: b"pong"})
        await b.heard_from_here("$SRV.PING")
        for reply in (
            *("mcp.event.b.x", "mcp.request.b.registry", "mcp.response.b.me.i1"),
            *("hb.b", "bus.query.b", "_SRV", "_SRV.*", "_SRV.>"),
        ):
            await a.publish("$SRV.PING.b", b"", reply=reply)
        await a.publish("$SRV.PING.b.i1", b"", reply="_SRV.mine")
        answer = await answers.next_msg(attacker.PATIENCE_S)
        assert (answer.subject, answer.data) == ("_SRV.mine", b"pong")
        await bus.flush()
        assert await stored(bus) == {}
        assert not beats.pending_msgs


NOT_FOR_AGENTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("registry", "register", agent("b", "y")),
    ("registry", "set_capabilities", {"id": "b", "capabilities": []}),
    ("registry", "revoke", {"id": "b"}),
    ("registry", "revoke", {"id": "a"}),
    ("workflows", "define", workflow(step("s", agentId="b", action="x"))),
)


def command(source: str, decider: str, action: str, inputs: dict[str, Any]) -> Message:
    """A command whose sender says that it is an admin."""
    admin = {"subject": "admin", "roles": ["admin"]}
    payload = {"action": action, "inputs": inputs}
    return Message.build("request", source, decider, payload, reply_to="i", principal=admin)


@contextlib.asynccontextmanager
async def deciding(nats: Nats) -> AsyncIterator[None]:
    """A registry and a workflow engine."""
    settings = config.load({}, nats=nats.services, secret=SECRET)
    async with (
        running(settings, "registry", registry.run),
        running(settings, "workflow-engine", workflows.run),
    ):
        yield


ATTACKS = (
    publish_too_much,
    hold_every_batch,
    acknowledge_for_another,
    publish_to_wildcards,
    guess_the_id_of_an_answer,
    guess_the_id_of_an_output,
    command_without_the_right,
    have_a_service_answer_for_another,
    have_an_agent_answer_as_itself,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_attack_does_no_harm(attack: Attack, nats: Nats) -> None:
    """Against what is shipped."""
    await attack(nats)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
async def test_an_attack_can_do_harm(attack: Attack, nats: Nats, weak: None) -> None:
    """Against a weak bus: so it is no attack that always misses."""
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        await attack(nats)


async def test_a_client_has_so_many_subscriptions(nats: Nats) -> None:
    """The others are refused, each with a word; that they are not there the server itself says."""
    words = "".join(f"SUB _INBOX_git.{number} {number}\r\n" for number in range(10_000))
    async with (
        spoken(nats.url, signed(GIT), words) as answers,
        connected(nats.auth, "auth") as (auth, _),
        asyncio.timeout(WAIT_S),
    ):
        said = [await answers.readline() for _ in range(10_000 - SUBSCRIPTIONS_MAX)]
        assert set(said) == {b"-ERR 'maximum subscriptions exceeded'\r\n"}
        assert await answers.readline() == b"PONG\r\n"
        wanted = json.dumps({"auth": True, "acc": "AGENTS", "user": "git"}).encode()
        servers = await auth.request("$SYS.REQ.SERVER.PING.CONNZ", wanted, timeout=WAIT_S)
        (found,) = json.loads(servers.data)["data"]["connections"]
        assert found["subscriptions"] == SUBSCRIPTIONS_MAX


async def test_the_largest_message_goes_in(nats: Nats) -> None:
    """With the longest id and trace that a message may have."""
    longest = "\U0001f41d" * 256

    def message(text: str) -> Message:
        return Message.build(
            "event", "me", "b", text, message_id=longest, traceparent=longest, correlation_id="c"
        )

    room = MESSAGE_BYTES_MAX - len(dumps(message("").model_dump(by_alias=True, exclude_unset=True)))
    assert len(message("x" * room).encode()) == MESSAGE_BYTES_MAX
    async with honest(nats, "me") as me:
        assert (await me.publish(message("x" * room))).position == 1
