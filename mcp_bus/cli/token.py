"""`mcp-bus token`: a bearer token, made from the bus secret or a private key; no bus need run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import Globals
from mcp_bus.cli.place import client, settings_of

if TYPE_CHECKING:
    from mcp_bus.config import Settings
    from mcp_bus.tokens import Keys

DURATION = re.compile(r"\A([0-9]{1,9})([smhd]?)\Z")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def _seconds(_context: click.Context, _parameter: click.Parameter, given: str | None) -> int | None:
    if given is None:
        return None
    found = DURATION.match(given)
    seconds = int(found[1]) * SECONDS[found[2]] if found else 0
    if seconds < 1:
        raise click.BadParameter(f"{given!r} is no duration: 90, 90s, 15m, 12h, 30d")
    return seconds


@click.command(short_help="Issue a bearer token.")
@click.option("--subject", help="Who it is for. Default: the agent.")
@click.option("--role", "roles", multiple=True, help="A role; may be repeated. Default: agent.")
@click.option("--agent", metavar="ID", help="For an agent: good for the log, in its name, too.")
@click.option(
    "--ttl",
    "ttl_s",
    metavar="TIME",
    callback=_seconds,
    help="How long it is good: 90, 90s, 15m, 12h, 30d.",
)
@client
def token(
    given: Globals,
    subject: str | None,
    roles: tuple[str, ...],
    agent: str | None,
    ttl_s: int | None,
) -> None:
    """Issue a bearer token; without --agent it needs --subject and --role.

    Signed with the private key in MCP_BUS_TOKEN_KEY, else with MCP_BUS_SECRET, else with the
    secret in DATA_DIR: whoever may read that may be anybody.
    """
    from mcp_bus import tokens
    from mcp_bus.config import TOKEN_TTL_S

    subject = agent if subject is None else subject
    roles = roles or (("agent",) if agent is not None else ())
    if subject is None or not roles:
        raise click.UsageError("without --agent a token needs --subject and --role")
    doors: tuple[tokens.Door, ...] = ("rest",) if agent is None else tokens.DOORS
    ttl_s = ttl_s or TOKEN_TTL_S
    keys = _keys(settings_of(given))
    issued = tokens.issue(keys, subject, roles, ttl_s, doors=doors, agent=agent)
    if given.as_json:
        said = {"token": issued, "subject": subject, "roles": roles, "agent": agent, "ttl": ttl_s}
        screen.as_json(said)
    else:
        click.echo(issued)


def _keys(settings: Settings) -> Keys:
    from mcp_bus.tokens import Keys

    if settings.token_key is not None:
        return Keys.of(b"", settings.token_key)  # who holds the key need not know the secret
    return Keys.of(_secret(settings).encode(), None)


def _secret(settings: Settings) -> str:
    from mcp_bus.errors import SettingsError

    if settings.secret is not None:
        return settings.secret.get_secret_value()
    path = settings.data_dir.expanduser() / "secret"
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"no bus secret: {path}: {error.strerror}, and MCP_BUS_SECRET is not set"
        ) from None
