"""The bus as processes that a test starts, kills and starts again; nobody restarts them for it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from mcp_bus import log, tokens
from mcp_bus.config import Settings
from mcp_bus.embedded import ports
from mcp_bus.messages import Message, parse
from tests.services import WAIT_S

SERVICES = ("recorder", "registry", "workflow-engine", "projector", "auth", "gateway")
ECHO = Path(__file__).with_name("echo.py")


class Services:
    """Five services and an agent `echo`, each a process of its own, on given engines."""

    def __init__(self, settings: Settings, agents_url: str) -> None:
        port = ports.choose("127.0.0.1", 0, "port")
        self.settings = settings.model_copy(update={"port": port})
        self.url = f"http://127.0.0.1:{port}"
        self._agents_url = agents_url
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        secret = self.settings.secret
        assert secret is not None
        keys = tokens.Keys.of(secret.get_secret_value().encode(), None)
        token = tokens.issue(keys, "tests", ["admin"], 3600)
        self._session = aiohttp.ClientSession(
            self.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=aiohttp.ClientTimeout(total=40),
        )
        try:
            for name in (*SERVICES, "agent"):
                await self.start(name)
            await self.healthy()
            await self.registered("echo")
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End every process, at once."""
        if self._session:
            await self._session.close()
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
        for process in self._processes.values():
            await process.wait()

    async def start(self, name: str, **settings: str) -> None:
        """Start a service (or `agent`) with further MCP_BUS_* settings."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MCP_BUS_")}
        environment |= self.settings.model_copy(update=settings).environment()
        command = ["-m", "mcp_bus", name]
        if name == "agent":
            command = [str(ECHO)]
            environment["MCP_BUS_NATS"] = self._agents_url
        with (self.settings.data_dir / f"{name}.log").open("ab") as words:
            self._processes[name] = await asyncio.create_subprocess_exec(
                sys.executable, *command, env=environment, stderr=words
            )

    async def restart(self, name: str, **settings: str) -> None:
        """SIGKILL, then start."""
        self._processes[name].kill()
        await self._processes[name].wait()
        await self.start(name, **settings)

    async def died(self, name: str) -> None:
        """Wait until a process has killed itself at its fault point."""
        code = await asyncio.wait_for(self._processes[name].wait(), WAIT_S)
        assert code == -signal.SIGKILL, code

    async def healthy(self) -> None:
        """Wait until the gateway says that every service does its work."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    if (await self.request("GET", "/health"))[0] == 200:
                        return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)  # no signal says that a port is open

    async def registered(self, agent: str) -> None:
        """Wait until an agent can be discovered."""
        async with asyncio.timeout(WAIT_S):
            while True:
                _, found = await self.request("GET", "/agents/discover")
                if agent in [known["id"] for known in found["agents"]]:
                    return
                await asyncio.sleep(0.05)  # polls the read model, as a client does

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One REST call: status and JSON."""
        assert self._session is not None
        async with self._session.request(method, path, json=body) as response:
            return response.status, await response.json()

    async def messages(self) -> list[tuple[int, Message]]:
        """Everything that the log holds."""
        found: list[tuple[int, Message]] = []
        connection = await log.connect(_url(self.settings), name="test")
        try:
            async with connection.follow(0) as follower:
                while len(found) < follower.pending:
                    for record in await follower.read():
                        found.append((record.position, parse(record.data, record.subject)))
        finally:
            await connection.close()
        return found


def _url(settings: Settings) -> str:
    assert settings.nats is not None
    return settings.nats.get_secret_value()
