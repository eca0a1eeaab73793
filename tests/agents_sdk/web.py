"""An ASGI application on a port, in the loop of a test: started, and stopped as by a crash."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn.Config(app, log_level="critical", ws="none"))
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@contextlib.asynccontextmanager
async def answering(app: Any, port: int = 0) -> AsyncIterator[int]:
    """The port on which `app` answers; at the end its connections are cut."""
    listener = socket.create_server(("127.0.0.1", port))
    server = _Server(app)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        await server.listens.wait()
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await serving
