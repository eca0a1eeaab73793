"""Every service of the bus in one process: `python -m mcp_bus.embedded.together`.

The same `run(runtime)` functions that are processes of their own elsewhere. Most of what a start
takes is Python that reads its packages, six times over; here it reads them once. For tests, which
start often and kill no single service: one that fails ends all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from gateway import app
from mcp_bus import config
from mcp_bus.config import Settings
from mcp_bus.runtime import Service, opened
from mcp_bus.services import auth, recorder, registry, workflows
from projections import projector

# in the order in which they start; they stop in the reverse one
SERVICES: dict[str, Service] = {
    "recorder": recorder.run,
    "registry": registry.run,
    "workflow-engine": workflows.run,
    "projector": projector.run,
    "auth": auth.run,
    "gateway": app.run,
}


async def run(settings: Settings) -> None:
    """Run all of them until told to stop; what one of them raises is the caller's."""
    async with contextlib.AsyncExitStack() as leaving:
        waiting: set[asyncio.Future[Any]] = set()
        for name, service in SERVICES.items():
            runtime = await leaving.enter_async_context(opened(settings, name))
            work = asyncio.ensure_future(service(runtime))
            leaving.push_async_callback(_ended, work)
            # a signal reaches the runtime that was opened last before it
            stop = asyncio.ensure_future(runtime.stopping.wait())
            leaving.callback(stop.cancel)
            waiting |= {work, stop}
        ended, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in ended:
            each.result()


async def _ended(work: asyncio.Future[None]) -> None:
    work.cancel()
    await asyncio.wait({work})


if __name__ == "__main__":
    asyncio.run(run(config.load()))
