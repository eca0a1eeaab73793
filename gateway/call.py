"""What a handler is given and what it gives back.

    async def handler(gateway: Gateway, call: Call) -> Answer

`Gateway` is what every handler shares, `Call` one request after all checks, `Answer` JSON with a
status. Handlers raise BusError; they never see HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg
from pydantic import BaseModel, ConfigDict

from gateway.read_models import ReadModels
from gateway.services import Services
from mcp_bus import telemetry
from mcp_bus.config import QUERY_S
from mcp_bus.domain.health import Heartbeats
from mcp_bus.domain.roles import Principal
from mcp_bus.errors import Unavailable
from mcp_bus.faults import Faults
from mcp_bus.log import Asker, Log
from mcp_bus.messages import now_ms
from mcp_bus.services.revocations import Revocations
from mcp_bus.tokens import Keys

T = TypeVar("T")

logger = telemetry.logger(__name__)


@dataclass(frozen=True)
class Gateway:
    """The opened resources of one gateway; made by `gateway.app.opened`."""

    keys: Keys
    secret: bytes  # of the bus: ids that nobody can guess are derived from it
    log: Log
    asker: Asker
    pool: asyncpg.Pool
    read_models: ReadModels
    services: Services
    heartbeats: Heartbeats
    revocations: Revocations
    faults: Faults
    stopping: asyncio.Event  # whoever waits for long answers now

    def live(self, agent: str) -> dict[str, Any]:
        """How an agent's processes are, as this gateway hears them; see Heartbeats.live."""
        return self.heartbeats.live(agent, asyncio.get_running_loop().time(), now_ms())

    async def query(self, query: Callable[..., Awaitable[T]], *given: Any, **more: Any) -> T:
        """Ask the read models; Unavailable `store_unavailable` when PostgreSQL does not answer."""
        try:
            async with asyncio.timeout(QUERY_S):
                return await query(self.pool, *given, **more)
        except (Unavailable, TimeoutError) as error:
            logger.warning("the read models do not answer", reason=str(error))
            raise Unavailable(
                "the read models do not answer: PostgreSQL is away", code="store_unavailable"
            ) from None


@dataclass(frozen=True)
class Call:
    """One request, checked: `body` and `query` are of the models that its route names."""

    principal: Principal
    traceparent: str | None
    path: dict[str, str]
    query: Any
    body: Any
    json: Any  # the body as it was sent
    expected: int | None = None  # If-Match: the position of the last change that was seen
    idempotency_key: str | None = None
    headers: dict[str, str] = field(default_factory=dict)  # of the answer, also of a problem


@dataclass(frozen=True)
class Answer:
    """A status and the JSON of the body."""

    status: int
    body: Any


Handler = Callable[[Gateway, Call], Awaitable[Answer]]


class NoQuery(BaseModel):
    """The query of a route that knows no parameter."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Route:
    """One line of `gateway.routes.ROUTES`."""

    method: str
    path: str
    handler: Handler
    permission: str | None  # None: no token is needed
    statuses: tuple[int, ...]  # of answers that are no problems
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | None = None
    bare: str | None = None  # the field that a body stands for which is a bare list
