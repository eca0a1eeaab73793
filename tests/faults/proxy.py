"""A wire that can be cut: a TCP proxy between those who connect and an engine, and a bus whose
agents and services all connect through one.

What is done to the wire is done to the connections that there are, but for a delay and a rate,
which hold for all until they are 0 again. A connection that one side ends is ended on the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal
from urllib.parse import urlsplit

from mcp_bus import config, embedded
from mcp_bus.embedded import credentials, ports
from mcp_bus.embedded.addresses import LOOPBACK, plan
from mcp_bus.embedded.bus import service_command

Way = Literal["up", "down"]  # to the engine, from the engine

CHUNK_BYTES = 64 * 1024
CHUNKS_MAX = 64  # that wait in one direction, before nothing more is read
PIECES_A_S = 20  # into which a rate is divided
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close sends RST


@dataclass(eq=False)
class Wire:
    """One connection, both halves of it."""

    writers: dict[Way, asyncio.StreamWriter]
    silent: Way | None = None  # what comes this way gets lost
    reset_after: dict[Way, int] = field(default_factory=dict)  # bytes of this way

    def reset(self) -> None:
        """End it as a machine does that knows nothing of it."""
        for writer in self.writers.values():
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, RESET
                )
            writer.transport.abort()


class Proxy:
    """Made by `proxied`; listens on `port`."""

    def __init__(self, engine_port: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.bytes_a_s = 0  # of each connection and way; 0: as fast as it goes
        self.wires: set[Wire] = set()
        self.resets = 0
        self._engine_port = engine_port

    def cut(self, chance: Random) -> None:
        """Reset half of the connections, one at least."""
        for wire in chance.sample(list(self.wires), -(-len(self.wires) // 2)):
            wire.reset()

    def cut_in_frames(self, chance: Random) -> None:
        """Reset each connection within what is sent next, one way or the other."""
        for wire in self.wires:
            wire.reset_after[chance.choice(("up", "down"))] = chance.randrange(1, 200)

    def fall_silent(self, chance: Random) -> None:
        """Of each connection, what goes one way or the other is lost, and nobody is told."""
        for wire in self.wires:
            wire.silent = chance.choice(("up", "down"))

    def passed_on(self, data: bytes, wire: Wire, way: Way) -> bytes:
        """What of that which was read is to arrive."""
        return data

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side ends it."""
        try:
            engine = await asyncio.open_connection(LOOPBACK, self._engine_port)
        except OSError:
            writer.transport.abort()
            return
        wire = Wire({"up": engine[1], "down": writer})
        self.wires.add(wire)
        carrying = [
            asyncio.ensure_future(self._carry(reader, wire, "up")),
            asyncio.ensure_future(self._carry(engine[0], wire, "down")),
        ]
        try:
            await asyncio.wait(carrying, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.wires.discard(wire)
            for carrier in carrying:
                carrier.cancel()
            await asyncio.gather(*carrying, return_exceptions=True)
            for end in wire.writers.values():
                end.close()

    async def _carry(self, reader: asyncio.StreamReader, wire: Wire, way: Way) -> None:
        """Read ahead, so that what is delayed is late and not slow."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_MAX)
        writing = asyncio.ensure_future(self._write(waiting, wire, way))
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(CHUNK_BYTES):
                    data = self.passed_on(data, wire, way)
                    if data:
                        await waiting.put((_now() + self.delay_s, data))
                await waiting.put((_now() + self.delay_s, b""))
                await writing
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(
        self, waiting: asyncio.Queue[tuple[float, bytes]], wire: Wire, way: Way
    ) -> None:
        """Write what is due, until the end of it."""
        writer = wire.writers[way]
        while True:
            due, data = await waiting.get()
            if not data:
                return
            await asyncio.sleep(due - _now())
            while data and way != wire.silent:
                size = self.bytes_a_s // PIECES_A_S or len(data)
                if way in wire.reset_after:
                    size = min(size, wire.reset_after[way])
                writer.write(data[:size])
                with contextlib.suppress(OSError):  # its end is read by the other half
                    await writer.drain()
                data = data[size:]
                if way in wire.reset_after:
                    wire.reset_after[way] -= size
                    if wire.reset_after[way] <= 0:
                        self.resets += 1
                        wire.reset()
                        return
                if self.bytes_a_s:
                    await asyncio.sleep(1 / PIECES_A_S)


@contextlib.asynccontextmanager
async def proxied(engine_port: int, kind: type[Proxy] = Proxy) -> AsyncIterator[Proxy]:
    """A wire to what listens, or will listen, on a port of loopback."""
    proxy = kind(engine_port)
    carrying: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(proxy.serve(reader, writer))
        carrying.add(task)
        task.add_done_callback(carrying.discard)

    server = await asyncio.start_server(connected, LOOPBACK, 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)


@dataclass(frozen=True)
class Wired:
    """A bus, and the wires by which it and its agents reach the engines."""

    bus: embedded.Bus
    nats_url: str  # for agents
    nats: Proxy
    postgres: Proxy


@contextlib.asynccontextmanager
async def wired(path: Path, kind: type[Proxy] = Proxy) -> AsyncIterator[Wired]:
    """A bus each of whose services reaches both engines by a wire; `kind` is that of the log."""
    given = {name: ports.choose(LOOPBACK, 0, name) for name in ("nats_port", "postgres_port")}
    settings = config.load({}, data_dir=path, port=0, **given)
    addresses = plan(settings, credentials.load(path))
    assert addresses.nats_auth is not None
    async with (
        proxied(given["nats_port"], kind) as nats,
        proxied(given["postgres_port"]) as postgres,
    ):
        found = {
            "MCP_BUS_NATS": _by(addresses.nats, nats),
            "MCP_BUS_NATS_AUTH": _by(addresses.nats_auth, nats),
            "MCP_BUS_POSTGRES": _by(addresses.postgres, postgres),
        }
        variables = [f"{name}={url}" for name, url in found.items()]

        def command(name: str) -> tuple[str, ...]:
            return ("env", *variables, *service_command(name))

        async with embedded.running(settings, command=command) as bus:
            yield Wired(bus, _by(bus.nats_url, nats), nats, postgres)


def _by(url: str, proxy: Proxy) -> str:
    return url.replace(f":{urlsplit(url).port}", f":{proxy.port}")


def _now() -> float:
    return asyncio.get_running_loop().time()
