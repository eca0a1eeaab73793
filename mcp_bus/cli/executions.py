"""`mcp-bus executions`: look at executions, compare them, and tell them what to do."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click

from mcp_bus.cli import screen
from mcp_bus.cli.outcome import FAILED, Globals
from mcp_bus.cli.place import ask, client

# what makes a step of one execution the same as that of another
COMPARED = ("status", "attempt", "agentId", "inputs", "outputs", "error")


@click.group(short_help="List, show, compare and steer executions of workflows.")
def executions() -> None:
    """List, show, compare and steer executions of workflows."""


@executions.command("list")
@click.argument("workflow_id", metavar="WORKFLOW")
@client
def list_executions(given: Globals, workflow_id: str) -> None:
    """List the newest executions of a workflow."""
    found = ask(given, "GET", f"/workflows/{quoted(workflow_id)}")["executions"]
    return screen.as_json({"executions": found}) if given.as_json else listed(found)


@executions.command("show")
@click.argument("execution_id", metavar="ID")
@client
def show_execution(given: Globals, execution_id: str) -> None:
    """Show an execution with its steps."""
    execution = _get(given, execution_id)
    return screen.as_json(execution) if given.as_json else shown(execution)


@executions.command()
@click.argument("execution_id", metavar="ID")
@client
def cancel(given: Globals, execution_id: str) -> None:
    """End an execution: agents are called back, and what its steps did is undone."""
    _tell(given, execution_id, "cancel")


@executions.command()
@click.argument("execution_id", metavar="ID")
@client
def pause(given: Globals, execution_id: str) -> None:
    """Let an execution begin no further step."""
    _tell(given, execution_id, "pause")


@executions.command()
@click.argument("execution_id", metavar="ID")
@client
def resume(given: Globals, execution_id: str) -> None:
    """Let an execution begin steps again."""
    _tell(given, execution_id, "resume")


@executions.command()
@click.argument("execution_id", metavar="ID")
@click.argument("name")
@click.option("--payload", default="null", show_default=True, help="JSON that the step gives.")
@client
def signal(given: Globals, execution_id: str, name: str, payload: str) -> None:
    """Send an execution the signal NAME, for which a step waits, or will."""
    try:
        body = {"name": name, "payload": json.loads(payload)}
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--payload") from None
    _tell(given, execution_id, "signals", body)


@executions.command()
@click.argument("one", metavar="A")
@click.argument("other", metavar="B")
@client
def diff(given: Globals, one: str, other: str) -> None:
    """Name the first step where two executions part; exit code 1 if there is one."""
    found = parted(_get(given, one), _get(given, other))
    if given.as_json:
        screen.as_json({"parts": found})
    elif found is None:
        click.echo("the same, step by step")
    else:
        rows = [(name, found["a"].get(name), found["b"].get(name)) for name in found["differ"]]
        screen.fields(step=found["step"])
        screen.table(("of the step", one, other), rows)
    if found is not None:
        click.get_current_context().exit(FAILED)


def parted(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any] | None:
    """The first step, in the order of the first execution's definition and then of the other's,
    in which two executions differ, what differs, and both sides ({} where there is none)."""
    sides = [{step["id"]: step for step in execution["steps"]} for execution in (one, other)]
    for id in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = sides[0].get(id, {}), sides[1].get(id, {})
        differ = [name for name in COMPARED if a.get(name) != b.get(name)]
        if differ:
            return {"step": id, "differ": differ, "a": a, "b": b}
    return None


def listed(found: list[dict[str, Any]]) -> None:
    """Print executions, a line each."""
    rows = [
        (e["id"], e["version"], e["status"], screen.milliseconds(e["started"], e["ended"]))
        for e in found
    ]
    screen.table(("execution", "version", "status", "ms"), rows)


def shown(execution: dict[str, Any]) -> None:
    """Print an execution with its steps."""
    ended(execution)
    rows = [
        (s["id"], s["agentId"], s["action"], s["status"], _took(s), s["requestPosition"])
        for s in execution["steps"]
    ]
    screen.table(("step", "agent", "action", "status", "ms", "position"), rows)


def ended(execution: dict[str, Any]) -> None:
    """Print what became of an execution, without its steps."""
    error = execution["error"]
    screen.fields(
        id=execution["id"],
        workflow=f"{execution['workflowId']} (version {execution['version']})",
        status=execution["status"],
        error=f"{error['code']}: {error['message']}" if error else None,
        ms=screen.milliseconds(execution["started"], execution["ended"]),
        outputs=execution["outputs"],
    )


def quoted(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def _get(given: Globals, execution_id: str) -> dict[str, Any]:
    found: dict[str, Any] = ask(given, "GET", f"/executions/{quoted(execution_id)}")
    return found


def _tell(given: Globals, execution_id: str, what: str, body: Any = None) -> None:
    said = ask(given, "POST", f"/executions/{quoted(execution_id)}/{what}", body)
    if given.as_json:
        return screen.as_json(said)
    return screen.fields(id=said["executionId"], status=said["status"])


def _took(step: dict[str, Any]) -> str:
    return screen.milliseconds(step["started"], step["ended"])
