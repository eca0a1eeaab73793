"""`mcp-bus token`: a bearer token, made from the bus secret; the bus need not run."""

from __future__ import annotations

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import client, settings_of


@click.command(short_help="Issue a bearer token.")
@click.option("--subject", required=True, help="Who it is for; an agent's id for an agent.")
@click.option("--role", "roles", multiple=True, required=True, help="A role; may be repeated.")
@click.option("--ttl", "ttl_s", type=click.IntRange(min=1), help="How long it is good (s).")
@client
def token(given: Globals, subject: str, roles: tuple[str, ...], ttl_s: int | None) -> None:
    """Issue a bearer token.

    Signed with MCP_BUS_SECRET, else with the secret in DATA_DIR: whoever may read that may be
    anybody.
    """
    from gateway import auth
    from mcp_bus.config import TOKEN_TTL_S
    from mcp_bus.errors import SettingsError

    settings = settings_of(given)
    path = settings.data_dir.expanduser() / "secret"
    if settings.secret is not None:
        secret = settings.secret.get_secret_value()
    else:
        try:
            secret = path.read_text().strip()
        except OSError as error:
            raise SettingsError(
                f"no bus secret: {path}: {error.strerror}, and MCP_BUS_SECRET is not set"
            ) from None
    ttl_s = ttl_s or TOKEN_TTL_S
    issued = auth.issue(secret.encode(), subject, list(roles), ttl_s)
    if given.as_json:
        screen.as_json({"token": issued, "subject": subject, "roles": roles, "ttl": ttl_s})
    else:
        click.echo(issued)
