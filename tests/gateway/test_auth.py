"""Tokens: what is issued is accepted, and every known forgery is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import pytest

from gateway import auth
from mcp_bus.config import TOKEN_BYTES_MAX
from mcp_bus.errors import Refused

SECRET = b"a secret of thirty-two characters"
KEY = hmac.digest(SECRET, b"mcp-bus rest token key 1", "sha256")
NOW = int(time.time())
GOOD: dict[str, Any] = {
    "sub": "ann",
    "roles": ["developer"],
    "aud": ["rest"],
    "iss": "mcp-bus",
    "iat": NOW,
    "exp": NOW + 3600,
}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(
    claims: object,
    key: bytes | None = KEY,
    *,
    digest: str = "sha256",
    **header: Any,
) -> str:
    """A token made by hand, so that it may be as wrong as we like; without a key unsigned."""
    head = b64(json.dumps({"alg": "HS256", "typ": "JWT", **header}).encode())
    text = f"{head}.{b64(json.dumps(claims).encode())}"
    signature = hmac.new(key, text.encode(), getattr(hashlib, digest)).digest() if key else b""
    return f"{text}.{b64(signature)}"


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def swapped() -> str:
    """A good signature under another payload."""
    head, _, signature = signed(GOOD).split(".")
    return f"{head}.{b64(json.dumps({**GOOD, 'sub': 'admin'}).encode())}.{signature}"


def embedded_key() -> str:
    """A token that brings the key along by which it wants to be checked."""
    own = b"a key that the forger brings along"
    return signed(GOOD, own, jwk={"kty": "oct", "alg": "HS256", "k": b64(own)})


FORGERIES: dict[str, str] = {
    "nothing": "",
    "words": "let me in",
    "three empty parts": "..",
    "not base64": "!.!.!",
    "not text": "é.ü.ß",
    "a list of claims": signed([1, 2]),
    "algorithm none": signed(GOOD, None, alg="none"),
    "algorithm nOnE": signed(GOOD, None, alg="nOnE"),
    "none, but signed": signed(GOOD, alg="none"),
    "HS384": signed(GOOD, digest="sha384", alg="HS384"),
    "HS512": signed(GOOD, digest="sha512", alg="HS512"),
    "another key": signed(GOOD, b"another key of thirty-two bytes!!"),
    "the bus secret itself": signed(GOOD, SECRET),
    "an empty key": signed(GOOD, b"\0"),
    "its own key in the header": embedded_key(),
    "signature cut off": signed(GOOD).rpartition(".")[0] + ".",
    "signature cut short": signed(GOOD)[:-4],
    "payload swapped": swapped(),
    "an unknown critical header": signed(GOOD, crit=["zz"], zz=1),
    "expired": signed({**GOOD, "exp": NOW - 1}),
    "expiry no number": signed({**GOOD, "exp": "soon"}),
    "expiry infinite": signed({**GOOD, "exp": float("inf")}),
    "not yet valid": signed({**GOOD, "nbf": NOW + 86400}),
    "issued tomorrow": signed({**GOOD, "iat": NOW + 86400}),
    "for another door": signed({**GOOD, "aud": ["nats"]}),
    "audience no text": signed({**GOOD, "aud": [1]}),
    "of another issuer": signed({**GOOD, "iss": "elsewhere"}),
    "issuer a list": signed({**GOOD, "iss": ["mcp-bus"]}),
    "subject a number": signed({**GOOD, "sub": 7}),
    "subject empty": signed({**GOOD, "sub": ""}),
    "subject with a newline": signed({**GOOD, "sub": "a\nb"}),
    "roles a text": signed({**GOOD, "roles": "admin"}),
    "roles of numbers": signed({**GOOD, "roles": [1]}),
    "roles null": signed({**GOOD, "roles": None}),
    "deeply nested": signed({**GOOD, "x": 1})[:20] + "[" * 3000,
    **{f"no {name}": signed(without(name)) for name in GOOD},
}


def test_a_token_says_who_and_in_which_roles() -> None:
    """What is issued is accepted with its subject and roles."""
    token = auth.issue(SECRET, "ann", ["developer", "analyst"], 60)
    principal = auth.verify(SECRET, token)
    assert (principal.subject, principal.roles) == ("ann", ("developer", "analyst"))


def test_the_hand_made_token_is_right() -> None:
    """The forgeries below differ from a token that is accepted."""
    assert auth.verify(SECRET, signed(GOOD)).subject == "ann"
    assert auth.verify(SECRET, signed(GOOD, kid="../../etc/passwd")).subject == "ann"
    assert auth.verify(SECRET, signed(GOOD, jku="http://169.254.169.254/")).subject == "ann"


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_token_is_refused(name: str) -> None:
    """No forgery passes, and each is refused as unauthenticated."""
    with pytest.raises(Refused) as raised:
        auth.verify(SECRET, FORGERIES[name])
    assert raised.value.code == "unauthenticated"


def test_an_endless_token_is_not_even_decoded() -> None:
    """A token beyond the bound is refused before anything is computed."""
    with pytest.raises(Refused):
        auth.verify(SECRET, signed({**GOOD, "x": "A" * TOKEN_BYTES_MAX}))


def test_another_bus_has_other_tokens() -> None:
    """A token of one bus is none of another."""
    token = auth.issue(b"another secret of thirty-two bytes", "ann", ["admin"], 60)
    with pytest.raises(Refused):
        auth.verify(SECRET, token)


@pytest.mark.parametrize(
    ("subject", "roles", "ttl_s"),
    [
        ("", ["admin"], 60),
        ("a\nb", ["admin"], 60),
        ("a", ["root"], 60),
        ("a", [], 60),
        ("a", ["admin"], 0),
    ],
)
def test_a_senseless_token_is_not_issued(subject: str, roles: list[str], ttl_s: int) -> None:
    """A token needs a subject, known roles, and some time to live."""
    with pytest.raises(Refused):
        auth.issue(SECRET, subject, roles, ttl_s)
