"""`mcp-bus secrets`: what compose.yaml wants in its file .env, made at random."""

from __future__ import annotations

import secrets as chance

import click

from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import client

PASSWORDS = (
    "NATS_SYS",
    "NATS_BUS",
    "NATS_AUTH",
    "NATS_ROUTE",
    "POSTGRES_ADMIN",
    "POSTGRES_SERVICE",
)


@click.command(short_help="Print fresh secrets for a deployment.")
@client
def secrets(given: Globals) -> None:
    """Print fresh secrets for compose.yaml, as lines NAME=VALUE.

    Keep them where only their owner reads them: whoever has MCP_BUS_SECRET may be anybody.
    """
    from mcp_bus import nkeys

    secret = chance.token_hex(32)
    made = {f"{name}_PASSWORD": f"s{chance.token_hex(24)}" for name in PASSWORDS}
    made |= {
        "NATS_AUTH_ISSUER": nkeys.issuer(secret.encode()).public,
        "MCP_BUS_SECRET": secret,
    }
    for name, value in made.items():
        click.echo(f"{name}={value}")
