"""The command `mcp-bus`: the bus, its services, and questions to a running bus.

One file per group of commands; here they are put together. Exit codes: 0 ok, 1 failed, 2 usage,
3 bus unreachable. An expected error is one sentence on stderr (with --json an object), never a
traceback. Modules of commands import little at their top, so that `mcp-bus --help` is quick.
"""

from __future__ import annotations

from pathlib import Path

import click

from mcp_bus import __version__
from mcp_bus.cli.adapter import adapter
from mcp_bus.cli.agents import agents
from mcp_bus.cli.backup import backup, restore
from mcp_bus.cli.dead_letters import dead_letters
from mcp_bus.cli.demo import demo
from mcp_bus.cli.executions import executions
from mcp_bus.cli.history import conversation, tail
from mcp_bus.cli.migrate import migrate
from mcp_bus.cli.outcome import Globals, Outcome
from mcp_bus.cli.quarantine import quarantine
from mcp_bus.cli.rebuild import rebuild
from mcp_bus.cli.repair import repair
from mcp_bus.cli.secrets import secrets
from mcp_bus.cli.services import service_commands
from mcp_bus.cli.token import token as issue_token
from mcp_bus.cli.up import up
from mcp_bus.cli.workflows import workflows


@click.group(cls=Outcome, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mcp-bus")
@click.option("--json", "as_json", is_flag=True, help="Answer with JSON.")
@click.option("--url", help="URL of the gateway.  [MCP_BUS_URL]")
@click.option("--token", help="Bearer token.  [MCP_BUS_TOKEN]")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the embedded bus.  [MCP_BUS_DATA_DIR]",
)
@click.pass_context
def main(
    context: click.Context,
    as_json: bool,
    url: str | None,
    token: str | None,
    data_dir: Path | None,
) -> None:
    """An event-sourced message bus for AI agents."""
    context.obj = Globals(as_json, url, token, data_dir)


main.add_command(demo)
main.add_command(up)
main.add_command(migrate)
main.add_command(secrets)
main.add_command(adapter)
for _command in (agents, workflows, executions, dead_letters, conversation, quarantine, tail):
    main.add_command(_command)
main.add_command(issue_token)
main.add_command(rebuild)
for _command in (repair, backup, restore):
    main.add_command(_command)
for _command in service_commands():
    main.add_command(_command)
