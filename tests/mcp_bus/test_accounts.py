"""What the shipped nats.conf and the auth service let an agent do, tried by one that means harm.

Every attack is a plain NATS client with a real token of agent `a`; `b` is another agent. An attack
asserts that it did no harm; against a deliberately weak bus, where each client may do everything
in the account of the services, every one of them must fail to.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from nats.aio.msg import Msg

from mcp_bus import log, tokens
from mcp_bus.errors import Refused
from mcp_bus.messages import Message
from tests.conftest import KEYS, Nats, nothing_missed
from tests.mcp_bus import attacker
from tests.mcp_bus.attacker import Attack, connected, greeted, open_queue, stored
from tests.mcp_bus.forger import GIT, NOW, forgeries, signed
from tests.services import WAIT_S

FOREIGN_PUBLISHES = (
    # another agent's name, queue, requests in hand, heartbeat, inbox
    "mcp.request.b.x",
    "mcp.response.b.x.i1",
    "mcp.event.b.x",
    "$JS.API.CONSUMER.MSG.NEXT.MCP.agent-b",
    "$JS.ACK.MCP.agent-b.1.1.1.1.1",
    "hb.b",
    "bus.query.b",
    "bus.read.b",
    "bus.read.b.any",
    "bus.read.a.any",
    "_INBOX_b.x",
    # micro discovery: asking, and answering elsewhere than in the one place for it
    "$SRV.PING",
    "$SRV.PING.b",
    "$SRV.STATS.b.i1",
    "_SRV",
    "_SRV_b.x",
    "_INBOX._SRV.x",
    # every name at once: a wildcard is a token like any other when it is published to
    "mcp.event.*.x",
    "mcp.event.>",
    # the bus itself
    "mcp.event.registry.x",
    "mcp.event.workflows._epoch",
    "mcp.event._clock.x",
    "mcp.event._health.x",
    "mcp.event._queue.a",
    "mcp.event._log.bus",
    "mcp.request.gateway.registry",
    "mcp.response.registry.a.i1",
    "out.event.a.b",
    "bus.status.registry",
    "bus.tell",
    # the server: the log's API, reading past the permissions, who may connect
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.INFO.MCP",
    "$JS.API.STREAM.CREATE.MINE",
    "$JS.API.STREAM.UPDATE.MCP",
    "$JS.API.STREAM.PURGE.MCP",
    "$JS.API.STREAM.DELETE.MCP",
    "$JS.API.STREAM.SNAPSHOT.MCP",
    "$JS.API.STREAM.MSG.GET.MCP",
    "$JS.API.STREAM.MSG.DELETE.MCP",
    "$JS.API.DIRECT.GET.MCP",
    "$JS.API.DIRECT.GET.MCP.mcp.request.b.x",
    "$JS.API.CONSUMER.CREATE.MCP.mine",
    "$JS.API.CONSUMER.CREATE.MCP.mine.mcp.request.*.b",
    "$JS.API.CONSUMER.DURABLE.CREATE.MCP.agent-a",
    "$JS.API.CONSUMER.DELETE.MCP.agent-b",
    "$JS.API.CONSUMER.PAUSE.MCP.agent-b",
    "$JS.API.CONSUMER.INFO.MCP.agent-b",
    "$JS.API.CONSUMER.MSG.NEXT.MCP.*",
    "$JS.FC.MCP.agent-b.x",
    "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.MCP.agent-b",
    "$JS.API.STREAM.DELETE.MCP_DROPPED",
    "$JS.API.DIRECT.GET.MCP_DROPPED",
    # key-value and objects, as the server's clients make and read them
    "$JS.API.STREAM.CREATE.KV_bucket",
    "$JS.API.STREAM.CREATE.OBJ_bucket",
    "$JS.API.DIRECT.GET.KV_bucket.$KV.bucket.key",
    "$KV.bucket.key",
    "$O.bucket.M.key",
    "$O.bucket.C.chunk",
    "$SYS.REQ.USER.AUTH",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.SERVER.PING.CONNZ",
    "$SYS.REQ.SERVER.PING.HEALTHZ",
    "$SYS.REQ.SERVER.PING.JSZ",
)
FOREIGN_LISTENS = (
    ">",
    "mcp.>",
    "mcp.request.*.a",
    "out.>",
    "out.response.*.b.*",
    "out.response.*.*.*",
    "out.event.*.b",
    "out.request.*.a",
    "_INBOX_b.>",
    "_INBOX.>",
    "hb.*",
    "bus.status.*",
    "bus.query.*",
    "bus.read.*",
    "bus.read.*.any",
    "_SRV.>",
    "_SRV.x",
    "$SRV.>",
    "$SRV.*.*",
    "$SRV.PING.b",
    "$SRV.PING.b.*",
    "$SRV.*.a.>",
    "$JS.>",
    "$SYS.>",
    "$SYS.REQ.USER.AUTH",
)


async def test_an_agent_does_its_work_through_the_imports(nats: Nats) -> None:
    """Publish with its ack, its own queue with its ack, and what was stored for it."""
    async with (
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a"), "a") as (a, complaints),
        connected(nats.agent("b"), "b") as (b, complaints_b),
    ):
        await open_queue(bus, "b")
        answers = await a.subscribe("out.response.*.a.i1")
        told = await b.subscribe("out.event.*.b")
        beats = await bus.subscribe("hb.*")
        for client in (a, b, bus):
            await client.flush()
        assert (await a.jetstream(timeout=WAIT_S).publish("mcp.request.a.b", b"work")).seq == 1
        assert (await a.jetstream(timeout=WAIT_S).publish("mcp.event.a.b", b"news")).seq == 2
        assert (await told.next_msg(WAIT_S)).data == b"news"
        queue = await b.jetstream(timeout=WAIT_S).pull_subscribe_bind("agent-b", "MCP")
        (taken,) = await queue.fetch(1, timeout=WAIT_S)
        assert taken.data == b"work"
        await taken.ack()
        assert (await b.jetstream(timeout=WAIT_S).publish("mcp.response.b.a.i1", b"done")).seq == 3
        answer = await answers.next_msg(WAIT_S)
        assert answer.headers is not None
        assert (answer.data, answer.headers["Nats-Sequence"]) == (b"done", "3")
        await a.publish("hb.a", b"alive")
        assert (await beats.next_msg(WAIT_S)).subject == "hb.a"
        async with asyncio.timeout(WAIT_S):
            while (await bus.jetstream().consumer_info("MCP", "agent-b", WAIT_S)).num_ack_pending:
                await bus.flush()
        assert complaints.empty()
        assert complaints_b.empty()


async def publish_as_another(nats: Nats) -> None:
    """All else is refused by the server, and nothing of it is stored."""
    async with (
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a"), "a") as (a, complaints),
    ):
        await open_queue(bus, "b")
        for subject in FOREIGN_PUBLISHES:
            await a.publish(subject, b"forged", reply="_INBOX_a.mine")
            complaint = await asyncio.wait_for(complaints.get(), attacker.PATIENCE_S)
            assert complaint == f'nats: permissions violation for publish to "{subject.lower()}"'
        assert await stored(bus) == {}


async def listen_to_others(nats: Nats) -> None:
    """Every other subscription is refused."""
    async with connected(nats.agent("a"), "a") as (a, complaints):
        for subject in FOREIGN_LISTENS:
            await a.subscribe(subject)
            complaint = await asyncio.wait_for(complaints.get(), attacker.PATIENCE_S)
            assert f'permissions violation for subscription to "{subject.lower()}"' in complaint


async def forge_a_reply(nats: Nats) -> None:
    """The ack of a publish, and a pulled message, never land in the log or among the stored:
    not under a foreign name, and not under one's own, where they would feed themselves."""
    async with (
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a"), "a") as (a, _complaints),
    ):
        await open_queue(bus, "a")
        republished = await bus.subscribe("out.>")

        async def answer(msg: Msg) -> None:
            await msg.respond(b"an answer")

        await bus.subscribe("bus.query.*", cb=answer)
        await bus.flush()
        forged = (
            "mcp.event.workflows.x",
            "mcp.request.registry.a",
            "mcp.event.b.x",
            "mcp.request.a.a",
            "out.event.a.b",
        )
        for reply in forged:
            await a.publish("mcp.request.a.a", b"x", reply=reply)
            await a.publish("$JS.API.CONSUMER.MSG.NEXT.MCP.agent-a", b"", reply=reply)
            await a.publish("bus.query.a", b"?", reply=reply)
        await a.flush()
        ack = await a.jetstream(timeout=WAIT_S).publish("mcp.request.a.a", b"last")
        assert ack.seq == len(forged) + 1
        # the acks before it were sent before it; what was pulled, before what is pulled now
        queue = await a.jetstream().pull_subscribe_bind("agent-a", "MCP")
        await queue.fetch(1, timeout=attacker.PATIENCE_S)
        await bus.jetstream(timeout=WAIT_S).publish("mcp.event.bus.x", b"marker")
        heard = [await republished.next_msg(attacker.PATIENCE_S) for _ in range(len(forged) + 2)]
        assert [msg.data for msg in heard] == [*[b"x"] * len(forged), b"last", b"marker"]
        assert await stored(bus) == {"mcp.request.a.a": len(forged) + 1, "mcp.event.bus.x": 1}


async def trace_into_the_log(nats: Nats) -> None:
    """The server reports on a traced message to a subject that the sender names."""
    async with (
        connected(nats.services, "bus") as (bus, _),
        connected(nats.agent("a"), "a") as (a, _complaints),
    ):
        reports = await bus.subscribe("mcp.event.b.x")
        await bus.flush()
        for only in ("", "true"):
            headers = {"Nats-Trace-Dest": "mcp.event.b.x", "Nats-Trace-Only": only}
            await a.publish("mcp.event.a.b", b"traced", headers=headers)
        # who owns the log is reported on, behind all reports before it
        headers = {"Nats-Trace-Dest": "mcp.event.b.x"}
        await bus.publish("mcp.event.bus.x", b"marker", headers=headers)
        first = json.loads((await reports.next_msg(WAIT_S)).data)
        assert first["events"][0]["subj"] == "mcp.event.bus.x"
        assert (await stored(bus))["mcp.event.b.x"] == 1


BAD_TOKENS = {
    **forgeries({**GIT, "sub": "a", "agent": "a"}, elsewhere="rest"),
    "over": signed({**GIT, "exp": NOW - 1}),
    **{f"as {agent}": signed({**GIT, "agent": agent}) for agent in ("*", ">", "a.b", "", "_clock")},
}


async def bring_a_bad_token(nats: Nats) -> None:
    """Each is refused, and in the same words."""
    said = await asyncio.gather(*(greeted(nats.url, token) for token in BAD_TOKENS.values()))
    refused = dict(zip(BAD_TOKENS, said, strict=True))
    assert refused == dict.fromkeys(BAD_TOKENS, "-ERR 'Authorization Violation'")
    assert await greeted(nats.url, signed(GIT)) == "PONG"


async def forge_an_answer(nats: Nats) -> None:
    """In the name of who was asked, past the log, and with the right cause in one's own name."""
    me = await log.connect(nats.agent("me"), name="me")
    asker = log.Asker(me, "me", nothing_missed)
    await asker.start()
    question = Message.build("request", "me", "b", {}, reply_to=asker.instance)
    asking = asyncio.ensure_future(asker.ask(question, WAIT_S))
    try:
        async with (
            connected(nats.services, "bus") as (bus, _),
            connected(nats.agent("a"), "a") as (a, _complaints),
            connected(nats.agent("b"), "b") as (b, _complaints_b),
        ):
            while question.subject not in await stored(bus):  # what stands before it is no answer
                pass
            for source in ("b", "registry", "a"):
                forged = Message.answer(question, source, {"outputs": {"forged": True}})
                stored_as = f"out.{forged.subject.removeprefix('mcp.')}"
                headers = {"Nats-Stream": "MCP", "Nats-Subject": forged.subject}
                headers["Nats-Sequence"] = "1000"
                await a.publish(forged.subject, forged.encode())
                await a.publish(stored_as, forged.encode(), headers=headers)
            await a.flush()
            answer = Message.answer(question, "b", {"outputs": {"forged": False}})
            await b.publish(answer.subject, answer.encode())
            assert (await asking).message.payload == answer.payload
    finally:
        asking.cancel()
        await me.close()


ATTACKS = (
    publish_as_another,
    listen_to_others,
    forge_a_reply,
    trace_into_the_log,
    bring_a_bad_token,
    forge_an_answer,
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


async def test_a_client_with_a_bad_token_is_told_soon(nats: Nats) -> None:
    """For good, and without the reason."""
    for token in ("", BAD_TOKENS["another key"]):
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(Refused) as refused:
                await log.connect(nats.url, name="a", token=token)
        assert refused.value.code == "unauthenticated"


async def test_a_role_that_may_listen_hears_everything_stored(nats: Nats) -> None:
    """And still nothing that is not."""
    for role in ("admin", "operator", "developer", "analyst"):
        async with connected(nats.agent("a", role), "a") as (a, complaints):
            await a.subscribe("out.>")
            await a.flush()
            assert complaints.empty()
            await a.subscribe("mcp.>")
            assert "permissions violation" in await complaints.get()


async def test_a_connection_ends_with_its_token(nats: Nats) -> None:
    """At the second at which it expires."""
    token = tokens.issue(KEYS, "a", ["agent"], 2, doors=("rest", "nats"), agent="a")
    connection = await log.connect(nats.url, name="a", token=token)
    async with asyncio.timeout(WAIT_S):
        await connection.ended.wait()
    await connection.close()


async def test_a_connection_goes_on_with_the_next_token(nats: Nats) -> None:
    """When its token is over it connects again, with the one that it is given then."""
    lives = iter((2, 60))

    def token() -> str:
        ttl_s = next(lives)
        return tokens.issue(KEYS, "a", ["agent"], ttl_s, doors=("rest", "nats"), agent="a")

    connection = await log.connect(nats.url, name="a", token=token)
    lost = asyncio.Event()
    connection.on_lost(lost)
    async with asyncio.timeout(WAIT_S):
        await lost.wait()
    assert await connection.connected(WAIT_S)
    assert (await connection.publish(Message.build("event", "a", "b", {"event": "On"}))).position
    assert not connection.ended.is_set()
    await connection.close()
