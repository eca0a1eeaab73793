"""The token by which a process of one id is let in, renewed at two thirds of its life.

Where it comes from: a token for the id itself is used as it is; any other one (of an admin, in
`bus.json` of the embedded bus) buys one from the gateway, `POST /agents/{id}/tokens`. With a
gateway known a token is renewed there; without one it lasts as long as it lasts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mcp_bus import config, log
from mcp_bus.claims import claims_of
from mcp_bus.errors import BusError, Refused, Unavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a bus is, and what its doors are opened with."""

    url: str  # of the log
    gateway: str | None = None  # URL
    token: Callable[[], str | None] = lambda: None  # asked anew for each renewal


class Tokens:
    """The token of one id at one bus."""

    def __init__(self, id: str, place: Place, *, own_roles: bool) -> None:
        """`own_roles`: with the roles of the token that buys it, instead of the agent's alone."""
        self.now: str | None = None
        self._id = id
        self._place = place
        self._own_roles = own_roles

    def brought(self) -> str:
        """What the next connection brings, "" for nothing."""
        return self.now or ""

    async def renew(self) -> None:
        """Get a fresh token; raises Refused, Unavailable."""
        given = self.now or self._place.token()
        if given is None:
            return
        claims = _claims(given)
        if self._place.gateway is None or (self.now is None and claims.get("agent") == self._id):
            self.now = given
            return
        body: dict[str, Any] = {}
        if self._own_roles and isinstance(claims.get("roles"), list):
            body["roles"] = claims["roles"]
        try:
            self.now = await asyncio.to_thread(self._buy, given, body)
        except Refused:
            fresh = self._place.token()  # the file may hold a newer one by now
            if fresh is None or fresh == given:
                raise
            self.now = await asyncio.to_thread(self._buy, fresh, body)

    async def keep(self, channel: log.Log) -> None:
        """Renew the token long before it is over, until cancelled."""
        while (wait_s := self._rest_s()) is not None:
            await asyncio.sleep(wait_s)
            try:
                await self.renew()
            except BusError as error:
                logger.warning("the token of %s is not renewed yet: %s", self._id, error)
                await asyncio.sleep(config.TOKEN_RENEW_RETRY_S)
                continue
            await channel.reconnect()

    def _rest_s(self) -> float | None:
        """How long until two thirds of the token's life are over; None if it cannot be renewed."""
        if self.now is None or self._place.gateway is None:
            return None
        claims = _claims(self.now)
        issued, over = claims.get("iat"), claims.get("exp")
        if not isinstance(issued, int | float) or not isinstance(over, int | float):
            return None
        return max(issued + (over - issued) * 2 / 3 - time.time(), 0.0)

    def _buy(self, token: str, body: dict[str, Any]) -> str:
        request = urllib.request.Request(  # noqa: S310, a gateway is http or https
            f"{self._place.gateway}/agents/{self._id}/tokens",
            data=json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=config.TOKEN_REQUEST_S) as answer:  # noqa: S310
                return str(json.load(answer)["token"])
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"no token from {self._place.gateway}: {error}") from None


def _refusal(error: urllib.error.HTTPError) -> BusError:
    try:
        problem = json.load(error)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        code, detail = "unauthenticated", f"the gateway answered {error.code}"
    if error.code >= 500:
        return Unavailable(detail, code=code)
    return Refused(detail, code=code)


def _claims(token: str) -> dict[str, Any]:
    try:
        return claims_of(token)
    except ValueError:
        return {}
