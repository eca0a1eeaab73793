"""Tokens over REST: agents renew their own, and nobody hands out more than they have."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr

from agents_sdk.client import opened
from agents_sdk.tokens import Place
from mcp_bus import tokens
from mcp_bus.claims import claims_of
from mcp_bus.config import HEALTH_POLL_S, TOKEN_TTL_S, TOKEN_TTL_S_MAX, Settings
from mcp_bus.embedded.addresses import LOOPBACK
from tests.conftest import Nats
from tests.services import WAIT_S

from .conftest import Rest, serving
from .test_problems import is_problem

GIT = "/agents/git/tokens"


async def test_an_agent_renews_its_token(alone: Rest) -> None:
    """The role agent is enough for oneself; what comes is good at both doors, and for the next."""
    token = alone.token("git", "agent")
    for _ in range(2):
        said = await alone.call("POST", GIT, {}, token=token)
        assert (said.status, list(said.body)) == (201, ["token", "agent", "roles", "expires"])
        assert (said.body["agent"], said.body["roles"]) == ("git", ["agent"])
        token = said.body["token"]
        for door in tokens.DOORS:
            found = tokens.verify(alone.services["gateway"].runtime.keys, token, door)
            assert (found.principal.subject, found.principal.roles) == ("git", ("agent",))
            assert (found.agent, found.expires * 1000) == ("git", said.body["expires"])
            assert found.expires - found.issued == TOKEN_TTL_S
    assert (await alone.call("POST", "/agents/clock/tokens", {}, token=token)).status == 403


async def test_a_process_lives_longer_than_its_token(alone: Rest, nats: Nats) -> None:
    """At two thirds of its life the SDK renews it at the gateway, and connects anew with it."""
    keys = alone.services["gateway"].runtime.keys
    short = tokens.issue(keys, "git", ["agent"], 3, doors=("rest", "nats"), agent="git")
    bus = await opened("git", Place(nats.url, alone.url, lambda: short))
    lost = asyncio.Event()
    bus.log.on_lost(lost)
    async with asyncio.timeout(WAIT_S):
        await lost.wait()
    assert await bus.log.connected(WAIT_S)
    claims = claims_of(bus._tokens.brought())
    assert claims["exp"] - claims["iat"] == TOKEN_TTL_S
    assert await bus.publish("somebody", {"event": "WentOn"})
    await bus.close()


async def test_an_admin_issues_for_any_agent(alone: Rest) -> None:
    """For as long as is asked, in the roles that are asked for."""
    said = await alone.call("POST", GIT, {"ttl": TOKEN_TTL_S_MAX, "roles": ["analyst", "agent"]})
    is_problem(said, "forbidden")  # an admin may all that an analyst may, and is none
    said = await alone.call("POST", GIT, {"ttl": 60, "roles": ["admin", "agent"]})
    assert (said.status, said.body["roles"]) == (201, ["admin", "agent"])
    assert 0 < said.body["expires"] / 1000 - time.time() <= 60
    for role in ("developer", "operator", "analyst", "agent"):
        token = alone.token("ann", role)
        is_problem(await alone.call("POST", GIT, {}, token=token), "forbidden")


@pytest.mark.parametrize("roles", [["admin"], ["agent", "admin"], ["developer"], ["nobody"]])
async def test_nobody_hands_out_more_than_they_have(alone: Rest, roles: list[str]) -> None:
    """Roles beyond one's own are forbidden, and named."""
    said = await alone.call("POST", GIT, {"roles": roles}, token=alone.token("git", "agent"))
    is_problem(said, "forbidden")
    assert said.codes == [("/roles", "forbidden")]
    own = await alone.call("POST", GIT, {"roles": ["analyst"]}, token=alone.token("git", "analyst"))
    is_problem(own, "forbidden")  # who may not write agents gets no token for one
    both = alone.token("git", "developer", "agent")
    assert (await alone.call("POST", GIT, {"roles": ["developer"]}, token=both)).status == 201


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"ttl": 0}, "/ttl", "bad_value"),
        ({"ttl": TOKEN_TTL_S_MAX + 1}, "/ttl", "bad_value"),
        ({"ttl": "60"}, "/ttl", "wrong_type"),
        ({"ttl": None}, "/ttl", "wrong_type"),
        ({"roles": []}, "/roles", "bad_value"),
        ({"roles": ["agent"] * 6}, "/roles", "bad_value"),
        ({"roles": "agent"}, "/roles", "wrong_type"),
        ({"subject": "admin"}, "/subject", "bad_value"),
    ],
)
async def test_a_senseless_wish_is_told_where(
    alone: Rest, body: dict[str, object], pointer: str, code: str
) -> None:
    """Life and roles have bounds, and nothing else can be asked for."""
    said = await alone.call("POST", GIT, body)
    is_problem(said, code)
    assert said.codes == [(pointer, code)]


@pytest.mark.parametrize(
    ("agent", "code"), [("registry", "reserved_id"), ("_clock", "reserved_id"), ("*", "bad_id")]
)
async def test_an_id_that_nobody_may_carry_gets_no_token(
    alone: Rest, agent: str, code: str
) -> None:
    """Not for an admin, and not for whoever has it as a subject."""
    for token in (None, alone.token(agent, "agent")):
        is_problem(await alone.call("POST", f"/agents/{agent}/tokens", {}, token=token), code)


async def test_a_gateway_with_a_public_key_issues_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    """It knows the tokens of whoever has the private key, and no HS256 of the secret."""
    key, path = Ed25519PrivateKey.generate(), tmp_path / "key.pem"
    spki = PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, spki))
    settings = settings.model_copy(update={"token_key": path})
    async with serving(settings, ["gateway"]) as rest:
        token = tokens.issue(tokens.Keys("EdDSA", key.public_key(), key), "git", ["agent"], 60)
        is_problem(await rest.call("POST", GIT, {}, token=token), "forbidden")
        assert settings.secret
        ours = tokens.Keys.of(settings.secret.get_secret_value().encode(), None)
        stale = tokens.issue(ours, "git", ["agent"], 60)
        is_problem(await rest.call("POST", GIT, {}, token=stale), "unauthenticated")


async def test_a_revoked_agent_is_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while PostgreSQL is away; its token stays dead when the agent is back, and in a gateway
    that starts later."""
    monkeypatch.setattr("gateway.commands.READ_MODEL_WAIT_S", 0.2)
    nowhere = SecretStr(f"postgresql://nobody@{LOOPBACK}:1/nothing")
    settings = settings.model_copy(update={"postgres": nowhere})
    agent = {"id": "git", "type": "t", "capabilities": []}
    async with serving(settings, ["registry", "gateway"]) as rest:
        keys = rest.services["gateway"].runtime.keys
        both = tokens.issue(keys, "somebody", ["agent"], 60, doors=tokens.DOORS, agent="git")
        old = {rest.token("git", "agent"): 201, both: 403, rest.token("ann", "agent"): 403}
        assert (await rest.call("POST", "/agents/register", agent)).status == 201
        for token, status in old.items():
            assert (await rest.call("POST", GIT, {}, token=token)).status == status
        assert (await rest.call("POST", "/agents/git/revoke", {})).status == 200
        own, by_claim, stranger = old
        async with asyncio.timeout(WAIT_S):
            while (await rest.call("POST", GIT, {}, token=own)).status != 403:  # noqa: ASYNC110
                await asyncio.sleep(HEALTH_POLL_S)
        is_problem(await rest.call("POST", GIT, {}), "agent_revoked")
        assert (await rest.call("POST", "/agents/register", agent)).status == 200
    async with serving(settings, ["gateway"]) as rest:
        for token in (own, by_claim):
            is_problem(await rest.call("POST", GIT, {}, token=token), "agent_revoked")
        is_problem(await rest.call("POST", GIT, {}, token=stranger), "forbidden")
        assert (await rest.call("POST", GIT, {})).status == 201
