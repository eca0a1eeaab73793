"""Bearer tokens: who asks, and in which roles.

A token is a JWT (RFC 7519) signed with HMAC-SHA256 by a key that is derived from the bus secret.
Whoever has the secret can issue tokens without a running bus. Promises: one algorithm, named here
and never taken from the token; a token without subject, audience, issuer and expiry is refused;
every refusal says the same to the caller, so that nobody learns which check a forgery passed.
Never: a token in a log line, in a URL or in a problem.
"""

from __future__ import annotations

import hmac
import time

import jwt
from pydantic import StrictStr, TypeAdapter, ValidationError

from mcp_bus.config import TOKEN_BYTES_MAX
from mcp_bus.domain.roles import ROLES, Principal
from mcp_bus.errors import Refused
from mcp_bus.messages import Text

ALGORITHM = "HS256"
ISSUER = "mcp-bus"
AUDIENCE = "rest"
_KEY_LABEL = b"mcp-bus rest token key 1"
_REQUIRED = ["sub", "roles", "aud", "iss", "iat", "exp"]
_subject = TypeAdapter(Text)
_roles = TypeAdapter(list[StrictStr])


def issue(secret: bytes, subject: str, roles: list[str], ttl_s: int) -> str:
    """A token for `subject` in `roles`, good for `ttl_s` seconds.

    Raises Refused for a subject that is no text, an unknown role, or a time that is over at once.
    """
    try:
        _subject.validate_python(subject)
    except ValidationError:
        raise Refused("a subject has 1 to 256 characters, none of them a control") from None
    unknown = sorted(set(roles) - ROLES.keys())
    if unknown or not roles:
        raise Refused(f"no role {', '.join(unknown)!r}; there are {', '.join(ROLES)}")
    if ttl_s < 1:
        raise Refused(f"a token must live for at least a second, not {ttl_s}")
    now = int(time.time())
    claims = {
        "sub": subject,
        "roles": roles,
        "aud": [AUDIENCE],
        "iss": ISSUER,
        "iat": now,
        "exp": now + ttl_s,
    }
    return jwt.encode(claims, _key(secret), algorithm=ALGORITHM)


def verify(secret: bytes, token: str) -> Principal:
    """Whose token this is; Refused `unauthenticated` for any that we did not issue, or is over."""
    if len(token) > TOKEN_BYTES_MAX:
        raise _refused()
    try:
        claims = jwt.decode(
            token,
            _key(secret),
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            options={"require": _REQUIRED},
        )
        subject = _subject.validate_python(claims["sub"])
        roles = _roles.validate_python(claims["roles"])
    except jwt.ExpiredSignatureError:
        raise _refused("the token is over: get a new one") from None  # its owner may know
    except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError):
        raise _refused() from None
    return Principal(subject, tuple(roles))


def _key(secret: bytes) -> bytes:
    """The signing key: the secret itself signs nothing, so one door's key opens no other."""
    return hmac.digest(secret, _KEY_LABEL, "sha256")


def _refused(detail: str = "the token is not one of ours") -> Refused:
    return Refused(detail, code="unauthenticated")
