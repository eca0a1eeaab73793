"""What a JWT says of itself (RFC 7519), unproven: who verifies it does so elsewhere."""

from __future__ import annotations

import base64
import json
from typing import Any


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a token; its signature is not looked at. ValueError for anything else."""
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("a token has three parts")
    claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    if not isinstance(claims, dict):
        raise ValueError("claims are an object")
    return claims
