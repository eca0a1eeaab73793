"""The server's own tokens: NATS JWT (v2, `ed25519-nkey`), as auth callout needs them (ADR-26).

A key is 32 random bytes; its public half is written as base32 of prefix, key and CRC-16, so that
a key of one kind is never taken for another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_ACCOUNT = 0  # prefix byte: the text begins with A
_ISSUER_LABEL = b"mcp-bus nats issuer 1"
_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class Account:
    """The key of an account, which signs who may connect."""

    def __init__(self, seed: bytes) -> None:
        """`seed`: 32 bytes that nobody else knows."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        body = bytes([_ACCOUNT]) + raw
        checked = body + binascii.crc_hqx(body, 0).to_bytes(2, "little")
        self.public = base64.b32encode(checked).rstrip(b"=").decode()

    def sign(self, claims: dict[str, Any]) -> str:
        """`claims` as a token of this account, issued now."""
        told = {**claims, "iss": self.public, "iat": int(time.time())}
        digest = hashlib.sha256(json.dumps(told).encode()).digest()
        told["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
        body = f"{_part(_HEADER)}.{_part(told)}"
        return f"{body}.{_base64(self._key.sign(body.encode()))}"


def issuer(secret: bytes) -> Account:
    """Who signs for AGENTS; its key follows from the bus secret."""
    return Account(hmac.digest(secret, _ISSUER_LABEL, "sha256"))


def _part(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
