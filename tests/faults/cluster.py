"""Three nats-servers on loopback that keep three copies of the log, as compose.yaml starts them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from mcp_bus import config, log
from mcp_bus.embedded import Bus, children, credentials, nats_server, ports, running
from mcp_bus.embedded.addresses import LOOPBACK
from mcp_bus.embedded.children import Child, Command
from mcp_bus.embedded.folder import Folder, locked, make_private
from mcp_bus.errors import Unavailable
from mcp_bus.subjects import STREAM
from tests.conftest import SECRET, Nats
from tests.faults.load import SCENARIO_S_MAX, Load, loaded
from tests.services import opened

NODES = ("n1", "n2", "n3")
ROUTE = f"nats://route:of-tests@{LOOPBACK}"
POLL_S = 0.05


class Cluster:
    """Made by `clustered`; a node is named as in NODES."""

    def __init__(self, path: Path, folders: dict[str, Folder]) -> None:
        self._folders = folders
        self._secrets = credentials.load(path)
        self._ports = {node: ports.choose(LOOPBACK, 0, node) for node in NODES}
        self._routes = {node: ports.choose(LOOPBACK, 0, node) for node in NODES}
        self._servers: dict[str, Child] = {}
        places = ",".join(f"{LOOPBACK}:{self._ports[node]}" for node in NODES)
        self.urls = Nats(
            f"nats://bus:{self._secrets.bus}@{places}",
            f"nats://auth:{self._secrets.auth}@{places}",
            f"nats://{places}",
        )
        self.settings = config.load(
            {},
            data_dir=path,
            port=0,
            postgres_port=0,
            nats=self.urls.services,
            nats_auth=self.urls.auth,
            secret=SECRET,
            replicas=3,
            log_bytes_max=1024**3,
        )

    async def start(self, *nodes: str) -> None:
        """Start nodes, and wait until they take connections."""
        for node in nodes:
            self._servers[node] = await self._started(node)
        for node in nodes:
            await nats_server.speaks(self._servers[node], self._ports[node])

    async def prepare(self) -> None:
        """Make the streams, as soon as there is somebody who leads."""
        while True:
            with contextlib.suppress(Unavailable):
                await log.prepare(self.urls.services, self.settings)
                return

    async def kill(self, *nodes: str) -> None:
        """End nodes at once."""
        for node in nodes:
            self._servers[node].kill()
        for node in nodes:
            await self._servers[node].wait()

    def forget(self, *nodes: str) -> None:
        """Nodes that were killed begin with nothing."""
        for node in nodes:
            shutil.rmtree(self._folders[node].nats)

    @asynccontextmanager
    async def frozen(self, node: str, seconds: float) -> AsyncIterator[None]:
        """A node stands still while the block is worked off, and for so long at least."""
        until = time.monotonic() + seconds
        os.kill(self._servers[node].pid, signal.SIGSTOP)
        try:
            yield
            await asyncio.sleep(until - time.monotonic())
        finally:
            os.kill(self._servers[node].pid, signal.SIGCONT)

    async def leader(self) -> str:
        """The node that leads the log, once there is one."""
        while not (leader := (await self._state()).get("leader")):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return str(leader)

    async def whole(self) -> None:
        """Wait until every node has all of the log."""
        while True:
            copies = (await self._state()).get("replicas", [])
            if len(copies) == 2 and all(copy["current"] for copy in copies):
                return
            await asyncio.sleep(POLL_S)

    async def restored(self) -> None:
        """Wait until the nodes that did not take a copy of the log have it from the one that did:
        the servers call them current before that, and say it in their own logs alone."""
        done = f"Catchup for stream 'BUS > {STREAM}' complete"
        followers = [node for node in NODES if node != await self.leader()]
        for node in followers:
            words = self._folders[node].logs / f"{nats_server.NAME}.log"
            while done not in words.read_text():  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        await self.kill(*self._servers)

    async def _state(self) -> dict[str, Any]:
        """What the servers say of the copies of the log; nothing while they cannot."""
        with contextlib.suppress(Unavailable):
            async with opened(self.urls.services) as channel:
                found = await channel.api(f"STREAM.INFO.{STREAM}")
                return dict(found["cluster"])
        return {}

    async def _started(self, node: str) -> Child:
        routes = ",".join(f"{ROUTE}:{port}" for port in self._routes.values())
        folder = self._folders[node]
        make_private(folder.nats)
        command = Command(
            nats_server.NAME,
            (
                *(str(nats_server.find_binary()), "--config"),
                *(str(nats_server.find_configuration()), "--name", node),
                *("--cluster_name", "mcp-bus", "--routes", routes),
                *("--cluster", f"{ROUTE}:{self._routes[node]}"),
            ),
            children.environment()
            | nats_server.variables(self.settings, folder.nats, self._ports[node], self._secrets),
        )
        return await children.start(command, folder)


@asynccontextmanager
async def clustered(path: Path) -> AsyncIterator[Cluster]:
    """A cluster whose log is ready."""
    async with AsyncExitStack() as leaving:
        folders = {node: await leaving.enter_async_context(locked(path / node)) for node in NODES}
        cluster = Cluster(path, folders)
        leaving.push_async_callback(cluster.close)
        await cluster.start(*NODES)
        await cluster.prepare()
        yield cluster


@asynccontextmanager
async def loaded_cluster(path: Path) -> AsyncIterator[tuple[Cluster, Bus, Load]]:
    """A bus under load on a cluster, for one scenario."""
    async with (
        clustered(path) as cluster,
        running(cluster.settings) as bus,
        asyncio.timeout(SCENARIO_S_MAX),
        loaded(bus) as load,
    ):
        yield cluster, bus, load
