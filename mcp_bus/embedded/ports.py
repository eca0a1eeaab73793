"""Ports on loopback: checked before anything starts, so that a taken one is named clearly.

A free port is taken from below the range that the system hands out for outgoing connections:
inside it, a client that reconnects to an engine which is just restarting could be given the
engine's own port, connect to itself, and keep the engine from ever coming back.
"""

from __future__ import annotations

import random
import socket

from mcp_bus.config import FREE_PORT_MAX, FREE_PORT_MIN, FREE_PORT_TRIES_MAX
from mcp_bus.errors import SettingsError


def choose(host: str, port: int, setting: str) -> int:
    """`port` if it can be listened on, or a free one for 0; SettingsError names the setting."""
    if port:
        refusal = _refusal(host, port)
        if refusal:
            raise SettingsError(
                f"port {port} on {host} cannot be used: {refusal}; "
                f"set {setting} to another port, or to 0 for a free one"
            )
        return port
    for _ in range(FREE_PORT_TRIES_MAX):
        port = random.randint(FREE_PORT_MIN, FREE_PORT_MAX)
        refusal = _refusal(host, port)
        if refusal is None:
            return port
    raise SettingsError(f"found no free port on {host}: {refusal}; set {setting}")


def _refusal(host: str, port: int) -> str | None:
    """Why nobody can listen there, None if one can."""
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(address[0], address[1]) as probe:
            # what the engines do too: connections that linger after a stop are no obstacle
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None
