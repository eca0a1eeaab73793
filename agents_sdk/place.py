"""Where the bus is: by arguments, else by the environment, else in the folder of a running one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agents_sdk.tokens import Place
from mcp_bus import config
from mcp_bus.errors import SettingsError


def find(url: str | None, token: str | None, data_dir: str | Path | None) -> Place:
    """Where the bus is: arguments, else environment, else the running embedded bus."""
    settings = config.load(data_dir=data_dir)
    if token is None and settings.token is not None:
        token = settings.token.get_secret_value()
    if url is None and data_dir is None and settings.nats is not None:
        url = settings.nats.get_secret_value()
    if url is None:
        found = _in_folder(settings.data_dir)
        given = token
        return Place(
            found["nats"],
            found.get("gateway"),
            lambda: given or _in_folder(settings.data_dir).get("token"),
        )
    if "@" in url:
        return Place(url)  # it names its user and password; the token may be for another door
    return Place(url, settings.url.rstrip("/") if settings.url else None, lambda: token)


def _in_folder(data_dir: Path) -> dict[str, Any]:
    path = data_dir.expanduser() / "bus.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("nats"), str):
        raise SettingsError(
            "no bus found: pass url=…, set MCP_BUS_NATS (and MCP_BUS_TOKEN), or start one with "
            f"`mcp-bus up`, which would be found by {path}"
        )
    return found
