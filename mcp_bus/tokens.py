"""Bearer tokens: who asks, in which roles, and at which door.

A token is a JWT (RFC 7519) for one or more doors (claim `aud`): `rest`, and `nats`, the log, where
the claim `agent` says in whose name its holder speaks. Without a key file it is signed with a key
derived from the bus secret; with one by Ed25519 or RSA, so that a door may verify what it cannot
issue. Promises: one algorithm, which follows from the key and is never taken from the token; a
token without subject, roles, audience, issuer, time of issue and expiry is refused; every refusal
says the same to the caller, so that nobody learns which check a forgery passed. Never: a token in
a log line, in a URL or in a problem.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from mcp_bus.config import RSA_BITS_MIN, TOKEN_BYTES_MAX
from mcp_bus.domain.roles import ROLES, Principal
from mcp_bus.errors import Refused, SettingsError
from mcp_bus.messages import Id, Text
from mcp_bus.subjects import is_id, is_reserved

Door = Literal["rest", "nats"]
DOORS: tuple[Door, ...] = ("rest", "nats")
ISSUER = "mcp-bus"
_KEY_LABEL = b"mcp-bus token key 1"
_REQUIRED = ["sub", "roles", "aud", "iss", "iat", "exp"]
_SETTING = "MCP_BUS_TOKEN_KEY"
_subject = TypeAdapter(Text)

PrivateKey: TypeAlias = Ed25519PrivateKey | RSAPrivateKey
PublicKey: TypeAlias = Ed25519PublicKey | RSAPublicKey


@dataclass(frozen=True)
class Keys:
    """What signs and verifies the tokens of a bus, and the one algorithm that it does so by."""

    algorithm: Literal["HS256", "EdDSA", "RS256"]
    verifying: bytes | PublicKey = field(repr=False)
    signing: bytes | PrivateKey | None = field(repr=False)  # None: others issue

    @classmethod
    def of(cls, secret: bytes, key_file: Path | None) -> Self:
        """HS256 by a key derived from `secret`; with a key file EdDSA or RS256, as its key is.

        The file holds one key as unencrypted PEM: a private one issues and verifies, a public one
        only verifies. Raises SettingsError for any other file.
        """
        if key_file is None:
            # the secret itself signs nothing: what it is used for otherwise opens no door
            derived = hmac.digest(secret, _KEY_LABEL, "sha256")
            return cls("HS256", derived, derived)
        loaded = _loaded(key_file)
        if isinstance(loaded, Ed25519PrivateKey | RSAPrivateKey):
            private, public = loaded, loaded.public_key()
        else:
            private, public = None, loaded
        if isinstance(public, Ed25519PublicKey):
            return cls("EdDSA", public, private)
        if isinstance(public, RSAPublicKey):
            if public.key_size < RSA_BITS_MIN:
                raise SettingsError(
                    f"{_SETTING}: the RSA key in {key_file} has {public.key_size} bits, "
                    f"and {RSA_BITS_MIN} are the least"
                )
            return cls("RS256", public, private)
        raise SettingsError(f"{_SETTING}: the key in {key_file} is neither Ed25519 nor RSA")


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says, once it is verified."""

    principal: Principal
    agent: str | None  # in whose name its holder speaks on the log; always there at door nats
    issued: int  # Unix s
    expires: int  # Unix s


def issue(
    keys: Keys,
    subject: str,
    roles: Iterable[str],
    ttl_s: int,
    *,
    doors: tuple[Door, ...] = ("rest",),
    agent: str | None = None,
) -> str:
    """A token for `subject` in `roles`, good for `ttl_s` seconds at `doors`.

    For door nats, and only for it, `agent` is the id to speak as. Raises Refused: `bad_id` or
    `reserved_id` for an agent that nobody may be, `forbidden` when these keys only verify, else
    `bad_value` for a subject that is no text, no or an unknown role or door, an agent without
    door nats and the reverse, a time that is over at once, or a token that would be too long.
    """
    if keys.signing is None:
        raise Refused(
            f"nobody gets a token here: {_SETTING} is a public key, which only verifies; "
            "who has the private key issues them",
            code="forbidden",
        )
    roles = list(roles)
    _check(subject, roles, ttl_s, doors)
    _check_agent(agent, doors)
    now = int(time.time())
    claims: dict[str, Any] = {
        "sub": subject,
        "roles": roles,
        "aud": list(doors),
        "iss": ISSUER,
        "iat": now,
        "exp": now + ttl_s,
    }
    if agent is not None:
        claims["agent"] = agent
    token = jwt.encode(claims, keys.signing, algorithm=keys.algorithm)
    if len(token) > TOKEN_BYTES_MAX:
        raise Refused(f"the token would have {len(token)} bytes, and {TOKEN_BYTES_MAX} are taken")
    return token


def verify(keys: Keys, token: str, door: Door) -> Token:
    """What the token says; Refused `unauthenticated` for any that we did not issue for this door,
    or is over."""
    if len(token) > TOKEN_BYTES_MAX:
        raise _refused()
    try:
        decoded = jwt.decode(
            token,
            keys.verifying,
            algorithms=[keys.algorithm],
            audience=door,
            issuer=ISSUER,
            options={"require": _REQUIRED},
        )
        claims = _Claims.model_validate(decoded)
        issued, expires = int(claims.iat), int(claims.exp)
    except jwt.ExpiredSignatureError:
        raise _refused("the token is over: get a new one") from None  # its owner may know
    except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError):
        raise _refused() from None
    if door == "nats" and claims.agent is None:
        raise _refused()
    return Token(Principal(claims.sub, tuple(claims.roles)), claims.agent, issued, expires)


def _loaded(path: Path) -> Any:
    """The key in a PEM file, of whatever kind."""
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise SettingsError(f"{_SETTING}: cannot read {path}: {error.strerror}") from None
    try:
        if b"PRIVATE KEY-----" in data:
            return load_pem_private_key(data, password=None)
        return load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it wants a password
        raise SettingsError(
            f"{_SETTING}: {path} is no unencrypted PEM file of a private or public key"
        ) from None


def _unreserved(agent: str) -> str:
    if is_reserved(agent):
        raise ValueError("reserved")
    return agent


class _Claims(BaseModel):
    """The claims of ours whose shape PyJWT does not know; it has compared the others."""

    model_config = ConfigDict(strict=True)

    sub: Text
    roles: list[str]
    agent: Annotated[Id, AfterValidator(_unreserved)] | None = None
    iat: int | float
    exp: int | float


def _check(subject: str, roles: list[str], ttl_s: int, doors: tuple[Door, ...]) -> None:
    try:
        _subject.validate_python(subject)
    except ValidationError:
        raise Refused("a subject has 1 to 256 characters, none of them a control") from None
    unknown = sorted(set(roles).difference(ROLES))
    if unknown or not roles:
        raise Refused(f"no role {', '.join(unknown)!r}; there are {', '.join(ROLES)}")
    if ttl_s < 1:
        raise Refused(f"a token must live for at least a second, not {ttl_s}")
    if not doors or not set(doors) <= set(DOORS):
        raise Refused(f"no door {', '.join(doors)!r}; there are {', '.join(DOORS)}")


def _check_agent(agent: str | None, doors: tuple[Door, ...]) -> None:
    if (agent is not None) != ("nats" in doors):
        raise Refused("a token for the door nats names an agent, and no other token does")
    if agent is None:
        return
    if not is_id(agent):
        raise Refused(
            f"{agent!r} is not an id: 1 to 64 ASCII letters, digits, _ and -", code="bad_id"
        )
    if is_reserved(agent):
        raise Refused(f"the id {agent} is reserved", code="reserved_id")


def _refused(detail: str = "the token is not one of ours") -> Refused:
    return Refused(detail, code="unauthenticated")
