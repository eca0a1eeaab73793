"""The services, each a command and a process of its own; compose and `up` run the same ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import click

# name -> (where its `async def run(runtime)` is, what it does)
SERVICES: dict[str, tuple[str, str]] = {
    "recorder": ("mcp_bus.services.recorder", "copy the log into the event store"),
    "registry": ("mcp_bus.services.registry", "decide about agents"),
    "workflow-engine": ("mcp_bus.services.workflows", "decide about workflows and executions"),
    "projector": ("projections.projector", "fold the event store into the read models"),
    "auth": ("mcp_bus.services.auth", "say who may connect to the log"),
    "gateway": ("gateway.app", "serve REST"),
}


def service_commands() -> Iterator[click.Command]:
    """One command per service."""
    for name, (module, does) in SERVICES.items():
        yield click.Command(
            name,
            callback=partial(_serve, name, module),
            help=f"Service: {does}. Settings come from MCP_BUS_* variables.",
            short_help=f"Service: {does}.",
        )


def _serve(name: str, module: str) -> None:
    from mcp_bus import config, runtime

    settings = config.load()
    with asyncio.Runner(loop_factory=_fast_loop()) as runner:
        runner.run(runtime.serve(settings, name, import_module(module).run))


def _fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop where it is installed (it has no Windows build), else asyncio's own."""
    if find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    return factory
