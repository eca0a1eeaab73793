"""`mcp-bus adapter`: agents made of what speaks another protocol."""

from __future__ import annotations

import asyncio
import json
import logging
import os

import click

from mcp_bus.cli.outcome import Globals


@click.group(short_help="Make an agent of an MCP server.")
def adapter() -> None:
    """Make an agent of what speaks another protocol."""


@adapter.command(
    short_help="Make an agent of a Model Context Protocol server.",
    # what stands behind the server's program belongs to it
    context_settings={"allow_interspersed_args": False},
)
@click.option("--id", "agent_id", required=True, metavar="ID", help="The agent's id.")
@click.option("--type", "type_", default="mcp", show_default=True, help="The agent's type.")
@click.option("--capability", metavar="NAME", help="What holds its actions.  [default: the id]")
@click.option("--url", metavar="URL", help="Where the server answers (streamable HTTP).")
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="Sent to the URL with each request; ${VARIABLE} is taken from the environment.",
)
@click.option("--describe", is_flag=True, help="Print the registration as JSON, and end.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND [ARGUMENT]...]", type=click.UNPROCESSED)
@click.pass_obj
def mcp(
    given: Globals,
    agent_id: str,
    type_: str,
    capability: str | None,
    url: str | None,
    headers: tuple[str, ...],
    describe: bool,
    command: tuple[str, ...],
) -> None:
    """Make an agent of a Model Context Protocol server, until it is told to stop.

    The server is a program that is started, or answers at a URL. Each of its tools is an action.

    \b
      mcp-bus adapter mcp --id git -- mcp-server-git --repository .
      mcp-bus adapter mcp --id wiki --url https://wiki.example/mcp \\
          --header 'Authorization: Bearer ${WIKI_TOKEN}'

    Write single quotes: the shell must not put the secret into the list of processes.
    """
    if bool(url) == bool(command):
        raise click.UsageError("name the server: either --url, or its program behind --")
    if headers and not url:
        raise click.UsageError("--header is for a server at a --url")
    if given.url:
        os.environ["MCP_BUS_URL"] = given.url  # where the SDK looks for it
    try:
        from agents_sdk.adapters import mcp as adapters
        from agents_sdk.adapters.transports import Address, Program, header_of
    except ModuleNotFoundError as error:
        from mcp_bus.errors import SettingsError

        raise SettingsError(
            f"the adapter needs {error.name}: pip install 'mcp-event-bus[mcp]'"
        ) from None
    from agents_sdk.agent import Agent, configure_logging

    configure_logging()
    for chatty in ("mcp", "httpx2", "httpcore2"):  # they tell ids of sessions, and headers
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("mcp.client.stdio").setLevel(logging.CRITICAL)  # a traceback per wrong line
    agent = Agent(
        agent_id, type=type_, capability=capability, token=given.token, data_dir=given.data_dir
    )
    transport = (
        Address(url, dict(header_of(h, os.environ) for h in headers)) if url else Program(command)
    )
    if describe:
        registration = asyncio.run(adapters.describe(agent, transport))
        click.echo(json.dumps(registration, indent=2, ensure_ascii=False))
    else:
        asyncio.run(adapters.adapt(agent, transport))
