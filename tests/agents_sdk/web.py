"""An ASGI application on a port, in the loop of a test: started, and stopped as by a crash."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import uvicorn


class Web(uvicorn.Server):
    """Says when it listens, and lets nobody finish."""

    def __init__(self, app: Any, port: int) -> None:
        super().__init__(uvicorn.Config(app, log_level="critical", ws="none"))
        self.port = port
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.cut()
        self.force_exit = True
        await super().shutdown(sockets)

    def cut(self) -> None:
        """Break every connection; new ones are welcome."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


@contextlib.asynccontextmanager
async def answering(app: Any, port: int = 0) -> AsyncIterator[Web]:
    """`app` on this port, or a free one; at the end its connections are cut."""
    listener = socket.create_server(("127.0.0.1", port))
    web = Web(app, listener.getsockname()[1])
    serving = asyncio.create_task(web.serve([listener]))
    try:
        await web.listens.wait()
        yield web
    finally:
        web.should_exit = True
        await serving
