"""The limits: the least programs that do the bus's jobs with bare nats-py and asyncpg.

    python -m benchmarks.raw publish N     N stored messages, as many unacked as helps
    python -m benchmarks.raw alone         answers each `N` with the p50 of N js.publish, ms
    python -m benchmarks.raw copy N        N messages of the stream copied into a table, unread
    python -m benchmarks.raw pong          answers each stored message with one
    python -m benchmarks.raw reply         replies to each question on core NATS
    python -m benchmarks.raw serve         the agent `raw`: answers the requests in its queue
    python -m benchmarks.raw listen        hears every heartbeat, and does nothing

No ids, no envelope, no checks, no checkpoint: nobody could run a bus on these.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import asyncpg
import nats
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.harness import RAW_STREAM
from benchmarks.helper import begin, left, say, told
from benchmarks.load import p50_ms
from mcp_bus.subjects import STREAM, queue_of

MESSAGE_BYTES = 512
WINDOW = 2000  # unacked publishes
BATCH = 500  # messages asked for by one pull
PULLS = 4  # that overlap
COPY_MAX = 2000  # rows of one COPY
SERVED_MAX = 64  # requests asked for by one pull of an agent, as the SDK does
HOPS = 8  # of a chain: there and back, four times

TABLE = "CREATE TABLE IF NOT EXISTS raw (position bigint PRIMARY KEY, subject text, raw bytea)"


async def connected() -> Client:
    """A bare connection to the log, as the services' account."""
    return await nats.connect(os.environ["MCP_BUS_NATS"])


async def publish(count: int) -> None:
    """Publish with a window of unacked messages until each is acked."""
    client, acked, changed = await connected(), 0, asyncio.Event()

    async def on_ack(msg: Msg) -> None:
        nonlocal acked
        acked += 1
        changed.set()

    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=on_ack, pending_msgs_limit=-1, pending_bytes_limit=-1)
    data, sent = b"x" * MESSAGE_BYTES, 0
    await begin()
    while acked < count:
        while sent < count and sent - acked < WINDOW:
            await client.publish("raw.bench", data, reply=inbox)
            sent += 1
        changed.clear()
        if acked < count:
            await changed.wait()
    say("done")
    await client.close()


async def alone() -> None:
    """Publish a message of an agent, of the same size, one after the other, again and again."""
    client = await nats.connect(
        os.environ["MCP_BUS_NATS"], token=os.environ["MCP_BUS_TOKEN"], inbox_prefix=b"_INBOX_bench"
    )
    stream, head = client.jetstream(), {"source": "bench", "target": "nobody"}
    metadata = {"timestamp": 0, "correlationId": "raw", "capabilities": []}
    context = {"type": "event", "payload": "", "metadata": metadata}
    context["payload"] = "x" * (MESSAGE_BYTES - len(json.dumps(head | {"context": context})))
    message = json.dumps(head | {"context": context}).encode()

    async def one() -> object:
        return await stream.publish("mcp.event.bench.nobody", message)

    say("ready")
    while count := await told():
        say(str(await p50_ms(one, int(count))))
    await client.close()


async def copy(count: int) -> None:
    """Follow the stream by overlapping pulls and COPY what has arrived."""
    client = await connected()
    database = await asyncpg.connect(os.environ["MCP_BUS_POSTGRES_ADMIN"])
    await database.execute(TABLE)
    await database.execute("TRUNCATE raw")
    arrived: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=arrived.put, pending_msgs_limit=-1, pending_bytes_limit=-1)
    settings = {"name": "copy", "ack_policy": "none", "deliver_policy": "all", "mem_storage": True}
    await client.request(
        f"$JS.API.CONSUMER.CREATE.{RAW_STREAM}.copy",
        json.dumps({"stream_name": RAW_STREAM, "config": settings}).encode(),
    )
    pull = json.dumps({"batch": BATCH, "expires": 30_000_000_000}).encode()
    copied = asked = 0
    await begin()
    while copied < count:
        while asked < copied + PULLS * BATCH:
            await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{RAW_STREAM}.copy", pull, reply=inbox)
            asked += BATCH
        batch = [await arrived.get()]
        while len(batch) < COPY_MAX and not arrived.empty():
            batch.append(arrived.get_nowait())
        rows = [(int(msg.reply.split(".")[5]), msg.subject, msg.data) for msg in batch]
        await database.copy_records_to_table("raw", records=rows)
        copied += len(rows)
    say("done")
    await client.close()
    await database.close()


async def pong() -> None:
    """Answer each stored message on `raw.ping.<n>` with one on `raw.pong.<n>`."""
    client, inbox = await connected(), ""

    async def heard(msg: Msg) -> None:
        number = msg.subject.rpartition(".")[2]
        await client.publish(f"raw.pong.{number}", msg.data, reply=inbox)

    async def on_ack(_: Msg) -> None:
        pass

    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=on_ack, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.subscribe("heard.ping.*", cb=heard, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.flush()
    await begin()
    await left()


async def reply() -> None:
    """Answer each question on core NATS (`raw.ask`) with what it holds."""
    client = await connected()

    async def asked(msg: Msg) -> None:
        await msg.respond(msg.data)

    await client.subscribe("raw.ask", cb=asked, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.flush()
    await begin()
    await left()


async def serve() -> None:
    """Answer each request in the queue of the agent `raw` with its inputs; ack it once the answer
    is stored. One pull at a time, for SERVED_MAX."""
    client = await nats.connect(
        os.environ["MCP_BUS_NATS"], token=os.environ["MCP_BUS_TOKEN"], inbox_prefix=b"_INBOX_raw"
    )
    queue = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{queue_of('raw')}"
    pull = json.dumps({"batch": SERVED_MAX, "expires": 5_000_000_000}).encode()
    pulled, stored = client.new_inbox(), client.new_inbox()
    unacked: dict[str, str] = {}
    left_over, taken = 0, 0

    async def asked(msg: Msg) -> None:
        nonlocal left_over, taken
        if msg.data:
            taken += 1
            unacked[str(taken)] = msg.reply
            subject, answer = _answer(json.loads(msg.data))
            await client.publish(subject, answer, reply=f"{stored}.{taken}")
        left_over = left_over - 1 if msg.data else 0  # else the pull is over
        if left_over <= 0:
            left_over = SERVED_MAX
            await client.publish(queue, pull, reply=pulled)

    async def on_stored(msg: Msg) -> None:
        await client.publish(unacked.pop(msg.subject.rpartition(".")[2]), b"+ACK")

    for subject, heard in ((pulled, asked), (f"{stored}.*", on_stored)):
        await client.subscribe(subject, cb=heard, pending_msgs_limit=-1, pending_bytes_limit=-1)
    left_over = SERVED_MAX
    await client.publish(queue, pull, reply=pulled)
    await client.flush()
    say("ready")
    await left()


def _answer(request: dict[str, Any]) -> tuple[str, bytes]:
    """The subject of an answer, and the least that an asker takes for one."""
    source, asked = request["source"], request["context"]["metadata"]
    metadata = {
        "timestamp": int(time.time() * 1000),
        "correlationId": asked["correlationId"],
        "capabilities": [],
        "messageId": uuid.uuid4().hex,
        "causationId": asked["messageId"],
        "replyTo": asked["replyTo"],
    }
    payload = {"outputs": request["context"]["payload"]["inputs"]}
    context = {"type": "response", "payload": payload, "metadata": metadata}
    answer = {"source": "raw", "target": source, "context": context}
    return f"mcp.response.raw.{source}.{asked['replyTo']}", json.dumps(answer).encode()


async def listen() -> None:
    """Hear the heartbeats of all agents."""
    client = await connected()

    async def heard(_: Msg) -> None:
        pass

    await client.subscribe("hb.*", cb=heard, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await client.flush()
    say("ready")
    await left()


class Chains:
    """The other end of `pong`: chains of eight stored hops, each hop after the one before."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._next = 0

    async def open(self) -> None:
        async def on_ack(_: Msg) -> None:
            pass

        for subject, heard in ((self._inbox, on_ack), ("heard.pong.*", self._heard)):
            await self._client.subscribe(
                subject, cb=heard, pending_msgs_limit=-1, pending_bytes_limit=-1
            )

    async def one(self) -> None:
        """One chain, from its first publish to its last message heard."""
        self._next += 1
        number = str(self._next)
        for _ in range(HOPS // 2):
            heard = self._waiting[number] = asyncio.get_running_loop().create_future()
            await self._client.publish(
                f"raw.ping.{number}", b"x" * MESSAGE_BYTES, reply=self._inbox
            )
            await heard
        del self._waiting[number]

    async def _heard(self, msg: Msg) -> None:
        self._waiting[msg.subject.rpartition(".")[2]].set_result(None)


PROGRAMS: dict[str, Callable[..., object]] = {
    "publish": publish,
    "alone": alone,
    "copy": copy,
    "pong": pong,
    "reply": reply,
    "serve": serve,
    "listen": listen,
}

if __name__ == "__main__":
    uvloop.run(PROGRAMS[sys.argv[1]](*map(int, sys.argv[2:])))  # type: ignore[arg-type]
