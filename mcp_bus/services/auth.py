"""The auth service: says who may connect to the log, and ends the connections of the revoked.

The server asks for each client of AGENTS. The answer is what its token proves: the permissions of
exactly one agent, until the token is over. Revocations are folded from the registry's facts, so
any number of these may run, and none needs PostgreSQL. Nobody is let in before the fold has seen
the whole log. Never: a token in a log line; a reason in a refusal, which is for the operator only.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from mcp_bus import config, nkeys, subjects, telemetry, tokens
from mcp_bus.claims import claims_of
from mcp_bus.domain import permissions
from mcp_bus.domain.facts import name_of
from mcp_bus.errors import LogWentBack, MessageError, Refused, Unavailable
from mcp_bus.log import Log, Record, callout
from mcp_bus.messages import parse
from mcp_bus.runtime import Runtime
from mcp_bus.tokens import Keys

FACTS = f"mcp.event.{subjects.REGISTRY}.*"

logger = telemetry.logger(__name__)


@dataclass
class Revocations:
    """Who was ever revoked, when (log time, Unix ms), and who still is."""

    at: dict[str, int] = field(default_factory=dict)
    now: set[str] = field(default_factory=set)

    def read(self, record: Record) -> str | None:
        """Fold one message; the agent that it revokes, if it does."""
        try:
            message = parse(record.data, record.subject)
        except MessageError:
            return None  # the recorder keeps it in quarantine
        fact = name_of(message)
        if fact == "AgentRevoked":
            self.at[message.target] = record.time
            self.now.add(message.target)
            return message.target
        if fact == "AgentReinstated":
            self.now.discard(message.target)
        return None

    def hold(self, agent: str, issued_s: float) -> bool:
        """Whether a token of an agent is revoked: with the agent, or before it came back."""
        return agent in self.now or issued_s * 1000 <= self.at.get(agent, -1)


class Door:
    """Answers the server's questions; pure but for the clock in the answer."""

    def __init__(self, keys: Keys, account: nkeys.Account, revocations: Revocations) -> None:
        self._keys = keys
        self._account = account
        self._revocations = revocations

    def answer(self, question: bytes) -> bytes:
        """The server's question as a JWT, and ours: a user's JWT, or an error."""
        asked = claims_of(question.decode())["nats"]
        user, options = asked["user_nkey"], asked.get("connect_opts") or {}
        said: dict[str, Any] = {"type": "authorization_response", "version": 2}
        try:
            said["jwt"] = self._admitted(user, str(options.get("auth_token") or ""))
        except Refused as error:
            said["error"] = error.code
            host = (asked.get("client_info") or {}).get("host")
            logger.info("refused a client", host=host, name=options.get("name"), reason=str(error))
        claims = {"aud": asked["server_id"]["id"], "sub": user, "nats": said}
        return self._account.sign(claims).encode()

    def _admitted(self, user: str, token: str) -> str:
        proven = tokens.verify(self._keys, token, "nats")
        agent = proven.agent or ""
        if self._revocations.hold(agent, proven.issued):
            raise Refused(f"{agent} is revoked", code="agent_revoked")
        may = {
            "type": "user",
            "version": 2,
            "pub": {"allow": permissions.publishes(agent)},
            "sub": {"allow": permissions.hears(agent, proven.principal)},
            "allowed_connection_types": ["STANDARD"],
        }
        claims = {
            "aud": callout.ACCOUNT,
            "sub": user,
            "name": agent,
            "exp": proven.expires,
            "nats": may,
        }
        return self._account.sign(claims)


async def run(runtime: Runtime) -> None:
    """Run until cancelled; raises LogWentBack for a log without its beginning."""
    revocations = Revocations()
    door = Door(runtime.keys, nkeys.issuer(runtime.secret), revocations)
    outside = await runtime.connect_auth()
    service = Service(runtime, revocations, outside)
    await service.catch_up()
    await callout.serve(outside, door.answer)
    runtime.ready()
    await service.follow()


class Service:
    """The fold of the revocations, through losses of the connection."""

    def __init__(self, runtime: Runtime, revocations: Revocations, outside: Log) -> None:
        self._runtime = runtime
        self._revocations = revocations
        self._outside = outside
        self._identity = ""
        self._position = 0
        self._kicking: set[asyncio.Task[None]] = set()

    async def catch_up(self) -> None:
        """Read everything that the log holds now."""
        await self._read(to_the_end=True)

    async def follow(self) -> None:
        """Read on, and end the connections of each agent that is revoked, until cancelled."""
        await self._read(to_the_end=False)

    async def _read(self, *, to_the_end: bool) -> None:
        while True:
            try:
                log = await self._runtime.connect_log(reconnect=False)
                try:
                    await self._check(log)
                    await self._fold(log, to_the_end)
                    return
                finally:
                    await log.close()
            except LogWentBack:
                raise
            except Unavailable as error:
                logger.warning("session ended", reason=error.detail)
                await asyncio.sleep(config.RECONNECT_WAIT_S)

    async def _check(self, log: Log) -> None:
        info = await log.info()
        self._identity = self._identity or info.identity
        if info.first > 1 or info.identity != self._identity or info.last < self._position:
            raise LogWentBack(f"the log does not hold what was read up to {self._position}")

    async def _fold(self, log: Log, to_the_end: bool) -> None:
        async with log.follow(self._position, FACTS) as follower:
            behind = follower.pending
            while behind > 0 or not to_the_end:
                for record in await follower.read():
                    behind -= 1
                    self._position = record.position
                    revoked = self._revocations.read(record)
                    if revoked is not None and not to_the_end:
                        task = asyncio.create_task(self._kick(revoked))
                        self._kicking.add(task)
                        task.add_done_callback(self._kicking.discard)
                self._runtime.report(position=self._position, lag=max(behind, 0))

    async def _kick(self, agent: str) -> None:
        """Twice: a connection may just have been let in by a process that did not know yet."""
        for wait_s in (0.0, config.KICK_AGAIN_S):
            await asyncio.sleep(wait_s)
            try:
                ended = await callout.kick(self._outside, agent)
            except Exception as error:
                logger.warning("cannot end connections", agent=agent, reason=repr(error))
                continue
            logger.info("revoked", agent=agent, connections=ended)
