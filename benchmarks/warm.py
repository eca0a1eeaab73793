"""A whole bus at work, for the benchmarks that need all of it: every service, and agents.

async with bus_at_work() as bus, echoing(bus): …
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, Literal

import aiohttp
from pydantic import SecretStr

from benchmarks.harness import PROGRAM_S_MAX, Program, program, temporary_settings, token
from mcp_bus import config, log
from mcp_bus.config import HEALTH_POLL_S, Settings
from mcp_bus.embedded import Bus, running
from mcp_bus.messages import Message, parse
from mcp_bus.subjects import REGISTRY, stored

CLIENT = "bench"


@contextlib.asynccontextmanager
async def bus_at_work(
    durability: Literal["always", "interval"] = "interval",
) -> AsyncIterator[Bus]:
    """Both engines and every service, in a folder that goes away."""
    with temporary_settings(durability) as settings:
        async with running(settings) as bus:
            yield bus


@contextlib.asynccontextmanager
async def echoing(bus: Bus, agent: str = "echo") -> AsyncIterator[Program]:
    """An agent at work, a process of its own."""
    async with program("benchmarks.echo", agent, settings=as_agent(bus, agent)) as process:
        yield process


def as_agent(bus: Bus, agent: str) -> Settings:
    """What a helper process needs to come in as an agent."""
    mine = token(secret(bus), agent, "agent")
    return config.load({}, nats=SecretStr(bus.nats_url), token=SecretStr(mine), log_level="warning")


def as_crowd(bus: Bus) -> Settings:
    """What a helper process needs to come in as any agent: it issues the tokens itself."""
    return config.load(
        {},
        nats=SecretStr(bus.nats_url),
        secret=SecretStr(secret(bus).decode()),
        log_level="warning",
    )


def as_service(bus: Bus) -> Settings:
    """What a helper process needs to come in as our services do: to all subjects, unasked."""
    return config.load({}, nats=SecretStr(services_url(bus)), log_level="warning")


def services_url(bus: Bus) -> str:
    """Where the services' account is."""
    assert bus.settings.nats is not None
    return bus.settings.nats.get_secret_value()


def secret(bus: Bus) -> bytes:
    """The bus secret."""
    assert bus.settings.secret is not None
    return bus.settings.secret.get_secret_value().encode()


async def caught_up(bus: Bus) -> None:
    """Wait until the read models have reached the end of the log."""
    channel = await log.connect(services_url(bus), name=CLIENT)
    last = (await channel.info()).last
    await channel.close()
    async with asyncio.timeout(PROGRAM_S_MAX), aiohttp.ClientSession(bus.gateway_url) as session:
        while True:
            async with session.get("/health") as response:
                if (await response.json())["position"] >= last:
                    return
            await asyncio.sleep(HEALTH_POLL_S)


async def register(channel: log.Log, agents: Iterable[dict[str, Any]]) -> None:
    """Register these agents by messages in their own names, and wait until they are."""
    wanted = {agent["id"]: agent for agent in agents}
    async with facts(channel, "AgentRegistered", wanted):
        for id, agent in wanted.items():
            payload = {"action": "register", "inputs": agent}
            await channel.publish(Message.build("request", id, REGISTRY, payload))


@contextlib.asynccontextmanager
async def facts(channel: log.Log, name: str, agents: Iterable[str]) -> AsyncIterator[None]:
    """Leave the block once the registry has said this of each of these agents."""
    missing, all_said = set(agents), asyncio.Event()

    def heard(record: log.Record) -> None:
        fact = parse(record.data)
        if isinstance(fact.payload, dict) and fact.payload.get("event") == name:
            missing.discard(fact.target)
        if not missing:
            all_said.set()

    subject = stored(f"mcp.event.{REGISTRY}.*")
    listening = await channel.listen(subject, heard)
    await channel.heard_from_here(subject)
    try:
        yield
        async with asyncio.timeout(PROGRAM_S_MAX):
            await all_said.wait()
    finally:
        await listening.stop()
