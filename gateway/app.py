"""The gateway as a service: REST for what the bus decides and knows.

A command becomes a message to a decider and the decider's answer becomes the HTTP answer; a query
is one SQL statement on the read models. It keeps no state of its own: any number may run, and each
hears the answers to its own questions. Told to stop, it takes nothing new, finishes what is in
flight within DRAIN_GATEWAY_S, and lets those who wait for the end of an execution go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from gateway import bus_queries, door
from gateway.call import Gateway
from gateway.errors import problems
from gateway.read_models import ReadModels
from gateway.routes import ROUTES
from gateway.services import SUBJECT, Services
from mcp_bus import telemetry
from mcp_bus.config import BODY_BYTES_MAX, CATCH_UP_S, DRAIN_GATEWAY_S
from mcp_bus.domain.health import Heartbeats
from mcp_bus.errors import SettingsError
from mcp_bus.log import Asker, Record
from mcp_bus.runtime import TELL, Runtime
from mcp_bus.services import reader
from mcp_bus.services.revocations import Revocations, Watch
from mcp_bus.subjects import GATEWAY, heartbeat_of

logger = telemetry.logger(__name__)


async def run(runtime: Runtime) -> None:
    """Serve REST until cancelled."""
    watch = Watch(runtime)
    async with opened(runtime, watch.revocations) as gateway:
        runner = web.AppRunner(
            make_app(gateway),
            access_log=None,  # ours has the route instead of the path, and the subject
            shutdown_timeout=DRAIN_GATEWAY_S,
        )
        await runner.setup()
        catching_up = asyncio.create_task(watch.catch_up())
        following = {catching_up}
        try:
            # of a log that went back, /health is to tell; nobody else is let in before
            await asyncio.wait({catching_up}, timeout=CATCH_UP_S)
            await _listen(runner, runtime)
            await catching_up
            following = {
                asyncio.create_task(gateway.read_models.follow()),
                asyncio.create_task(watch.follow()),
            }
            # for ever, and not cancelled with us
            ended, _ = await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
            ended.pop().result()
        finally:
            gateway.stopping.set()
            await runner.cleanup()  # what is in flight still needs to see the read models
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)  # they close what they use


@contextlib.asynccontextmanager
async def opened(runtime: Runtime, revocations: Revocations) -> AsyncIterator[Gateway]:
    """The resources of a gateway; PostgreSQL may be away."""
    keys = runtime.keys  # before anything is opened: the file may be wrong
    log = await runtime.connect_log()
    pool = await runtime.connect_store()
    asker = Asker(log, GATEWAY, log.answers)
    await asker.start()
    services = Services()
    heartbeats = Heartbeats()
    loop = asyncio.get_running_loop()

    def beat(record: Record) -> None:
        heartbeats.heard(record.subject, record.data, loop.time())

    listening = [
        await log.listen(SUBJECT, services.heard),
        await log.listen(heartbeat_of("*"), beat),
    ]
    await log.tell(TELL, b"")  # or it would know nothing of the services for a second
    try:
        gateway = Gateway(
            keys=keys,
            secret=runtime.secret,
            log=log,
            asker=asker,
            pool=pool,
            read_models=ReadModels(pool, runtime.report),
            services=services,
            heartbeats=heartbeats,
            revocations=revocations,
            faults=runtime.faults,
            stopping=asyncio.Event(),
        )
        listening += [await bus_queries.serve(gateway), *await reader.serve(log)]
        yield gateway
    finally:
        for each in listening:
            await each.stop()
        await asker.stop()


def make_app(gateway: Gateway) -> web.Application:
    """The application: the routes, and what is around each of them."""
    app = web.Application(middlewares=[door.access, problems], client_max_size=BODY_BYTES_MAX)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, door.opened(route, gateway))
    return app


async def _listen(runner: web.AppRunner, runtime: Runtime) -> None:
    settings = runtime.settings
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror} (MCP_BUS_PORT)"
        ) from None
    for address in runner.addresses:
        logger.info("listens", host=address[0], port=address[1])
