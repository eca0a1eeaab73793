"""How a command ends: exit code 0 ok, 1 failed, 2 usage, 3 bus unreachable; and one sentence for
an expected error, with --json an object.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mcp_bus.errors import BusError, Unavailable

FAILED = 1
UNREACHABLE = 3


class Unreachable(Unavailable):
    """Nobody answers where the bus should be."""


@dataclass(frozen=True)
class Globals:
    """The options before the command, which every command may read (`click.pass_obj`)."""

    as_json: bool = False
    url: str | None = None
    token: str | None = None
    data_dir: Path | None = None


class Outcome(click.Group):
    """A group that turns the errors of the bus into exit codes."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BusError as error:
            as_json = isinstance(context.obj, Globals) and context.obj.as_json
            said = json.dumps({"error": error.as_json()}) if as_json else f"mcp-bus: {error.detail}"
            click.echo(said, err=True)
            context.exit(UNREACHABLE if isinstance(error, Unreachable) else FAILED)
