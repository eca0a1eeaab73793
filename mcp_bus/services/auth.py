"""The auth service: says who may connect to the log, and ends the connections of the revoked.

The server asks for each client of AGENTS. The answer is what its token proves: the permissions of
exactly one agent, until the token is over. Revocations are folded from the log, so any number of
these may run, and none needs PostgreSQL. Never: a token in a log line; a reason in a refusal, which
is for the operator only.
"""

from __future__ import annotations

import asyncio
from typing import Any

from mcp_bus import config, nkeys, telemetry, tokens
from mcp_bus.claims import claims_of
from mcp_bus.domain import permissions
from mcp_bus.errors import Refused
from mcp_bus.log import Log, callout
from mcp_bus.runtime import Runtime
from mcp_bus.services.revocations import Revocations, Watch
from mcp_bus.tokens import Keys

logger = telemetry.logger(__name__)


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
            "pub": {"allow": permissions.publishes(agent, proven.principal)},
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
    """Run until cancelled."""
    outside = await runtime.connect_auth()
    watch = Watch(runtime, revoked=Kicks(outside).begin, report=runtime.report)
    door = Door(runtime.keys, nkeys.issuer(runtime.secret), watch.revocations)
    await watch.catch_up()
    await callout.serve(outside, door.answer)
    runtime.ready()
    await watch.follow()


class Kicks:
    """Ends the connections of agents, beside whatever else is done."""

    def __init__(self, outside: Log) -> None:
        self._outside = outside
        self._kicking: set[asyncio.Task[None]] = set()

    def begin(self, agent: str) -> None:
        """End every connection of an agent, soon."""
        task = asyncio.create_task(self._kick(agent))
        self._kicking.add(task)
        task.add_done_callback(self._kicking.discard)

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
