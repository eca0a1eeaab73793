"""Tokens made by hand, so that they may be as wrong as we like, and every known forgery."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

from tests import conftest

SECRET = conftest.SECRET.encode()
KEY = hmac.digest(SECRET, b"mcp-bus token key 1", "sha256")
NOW = int(time.time())
GOOD: dict[str, Any] = {
    "sub": "ann",
    "roles": ["developer"],
    "aud": ["rest"],
    "iss": "mcp-bus",
    "iat": NOW,
    "exp": NOW + 3600,
}
GIT = {**GOOD, "sub": "git", "roles": ["agent"], "aud": ["rest", "nats"], "agent": "git"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def made(claims: object, sign: Callable[[bytes], bytes], **header: Any) -> str:
    """A token made by hand, so that it may be as wrong as we like."""
    head = b64(json.dumps({"alg": "HS256", "typ": "JWT", **header}).encode())
    text = f"{head}.{b64(json.dumps(claims).encode())}"
    return f"{text}.{b64(sign(text.encode()))}"


def signed(
    claims: object,
    key: bytes | None = KEY,
    *,
    digest: str = "sha256",
    **header: Any,
) -> str:
    """A hand-made token under an HMAC; without a key unsigned."""

    def sign(text: bytes) -> bytes:
        return hmac.new(key, text, getattr(hashlib, digest)).digest() if key else b""

    return made(claims, sign, **header)


def swapped(good: dict[str, Any]) -> str:
    """A good signature under another payload."""
    head, _, signature = signed(good).split(".")
    return f"{head}.{b64(json.dumps({**good, 'sub': 'admin'}).encode())}.{signature}"


def embedded_key(good: dict[str, Any]) -> str:
    """A token that brings the key along by which it wants to be checked."""
    own = b"a key that the forger brings along"
    return signed(good, own, jwk={"kty": "oct", "alg": "HS256", "k": b64(own)})


def forgeries(good: dict[str, Any], elsewhere: str) -> dict[str, str]:
    """What differs in one thing from a token with these claims; `elsewhere` is the other door."""
    return {
        "nothing": "",
        "words": "let me in",
        "three empty parts": "..",
        "not base64": "!.!.!",
        "not text": "é.ü.ß",
        "a list of claims": signed([1, 2]),
        "algorithm none": signed(good, None, alg="none"),
        "algorithm nOnE": signed(good, None, alg="nOnE"),
        "none, but signed": signed(good, alg="none"),
        "HS384": signed(good, digest="sha384", alg="HS384"),
        "HS512": signed(good, digest="sha512", alg="HS512"),
        "another key": signed(good, b"another key of thirty-two bytes!!"),
        "the bus secret itself": signed(good, SECRET),
        "an empty key": signed(good, b"\0"),
        "its own key in the header": embedded_key(good),
        "signature cut off": signed(good).rpartition(".")[0] + ".",
        "signature cut short": signed(good)[:-4],
        "payload swapped": swapped(good),
        "an unknown critical header": signed(good, crit=["zz"], zz=1),
        "expiry no number": signed({**good, "exp": "soon"}),
        "expiry infinite": signed({**good, "exp": float("inf")}),
        "not yet valid": signed({**good, "nbf": NOW + 86400}),
        "issued tomorrow": signed({**good, "iat": NOW + 86400}),
        "for another door": signed({**good, "aud": [elsewhere], "agent": "git"}),
        "audience no text": signed({**good, "aud": [1]}),
        "of another issuer": signed({**good, "iss": "elsewhere"}),
        "issuer a list": signed({**good, "iss": ["mcp-bus"]}),
        "subject a number": signed({**good, "sub": 7}),
        "subject empty": signed({**good, "sub": ""}),
        "subject with a newline": signed({**good, "sub": "a\nb"}),
        "roles a text": signed({**good, "roles": "admin"}),
        "roles of numbers": signed({**good, "roles": [1]}),
        "roles null": signed({**good, "roles": None}),
        "agent a number": signed({**good, "agent": 7}),
        "agent reserved": signed({**good, "agent": "registry"}),
        "deeply nested": signed({**good, "x": 1})[:20] + "[" * 1500,
        **{f"no {name}": signed({k: v for k, v in good.items() if k != name}) for name in good},
    }
