"""`mcp-bus workflows` and `mcp-bus executions`: define, run, look."""

from __future__ import annotations

import json
from typing import IO, Any

import click

from mcp_bus.cli import screen
from mcp_bus.cli.agents import read_json
from mcp_bus.cli.outcome import FAILED, Globals
from mcp_bus.cli.place import ask, client


@click.group(short_help="Show, define and run workflows.")
def workflows() -> None:
    """Show, define and run workflows."""


@click.group(short_help="List and show executions of workflows.")
def executions() -> None:
    """List and show executions of workflows."""


@workflows.command("show")
@click.argument("workflow_id", metavar="ID")
@client
def show_workflow(given: Globals, workflow_id: str) -> None:
    """Show the latest version of a workflow, and its newest executions."""
    workflow = ask(given, "GET", f"/workflows/{_quoted(workflow_id)}")
    if given.as_json:
        return screen.as_json(workflow)
    version = workflow["metadata"]["version"]
    screen.fields(id=workflow["id"], name=workflow["name"], version=version)
    steps = [(s["id"], s["agentId"], s["action"], s.get("inputs")) for s in workflow["steps"]]
    screen.table(("step", "agent", "action", "inputs"), steps)
    return _list(workflow["executions"])


@workflows.command()
@click.argument("file", type=click.File())
@client
def define(given: Globals, file: IO[str]) -> None:
    """Define the workflow in FILE (JSON, - for stdin)."""
    workflow = ask(given, "POST", "/workflows", read_json(file))
    if given.as_json:
        return screen.as_json(workflow)
    return screen.fields(id=workflow["id"], version=workflow["metadata"]["version"])


@workflows.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--inputs", default="{}", show_default=True, help="JSON object to start from.")
@click.option("--wait", type=float, help="Wait so many seconds for the end.")
@client
def run(given: Globals, workflow_id: str, inputs: str, wait: float | None) -> None:
    """Start an execution; exit code 1 if it is known to have failed."""
    try:
        body = {"inputs": json.loads(inputs)}
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--inputs") from None
    path = f"/workflows/{_quoted(workflow_id)}/execute"
    execution = ask(given, "PUT", path, body, {"wait": wait})
    if given.as_json:
        screen.as_json(execution)
    elif "steps" in execution:
        _show(execution)
    else:
        screen.fields(id=execution["executionId"], status=execution["status"])
    if execution["status"] == "failed":
        click.get_current_context().exit(FAILED)


@executions.command("list")
@click.argument("workflow_id", metavar="WORKFLOW")
@client
def list_executions(given: Globals, workflow_id: str) -> None:
    """List the newest executions of a workflow."""
    found = ask(given, "GET", f"/workflows/{_quoted(workflow_id)}")["executions"]
    return screen.as_json({"executions": found}) if given.as_json else _list(found)


@executions.command("show")
@click.argument("execution_id", metavar="ID")
@client
def show_execution(given: Globals, execution_id: str) -> None:
    """Show an execution with its steps."""
    execution = ask(given, "GET", f"/executions/{_quoted(execution_id)}")
    return screen.as_json(execution) if given.as_json else _show(execution)


def _list(found: list[dict[str, Any]]) -> None:
    rows = [
        (e["id"], e["version"], e["status"], screen.milliseconds(e["started"], e["ended"]))
        for e in found
    ]
    screen.table(("execution", "version", "status", "ms"), rows)


def _show(execution: dict[str, Any]) -> None:
    error = execution["error"]
    screen.fields(
        id=execution["id"],
        workflow=f"{execution['workflowId']} (version {execution['version']})",
        status=execution["status"],
        error=f"{error['code']}: {error['message']}" if error else None,
        ms=screen.milliseconds(execution["started"], execution["ended"]),
        outputs=execution["outputs"],
    )
    rows = [
        (s["id"], s["agentId"], s["action"], s["status"], _took(s), s["requestPosition"])
        for s in execution["steps"]
    ]
    screen.table(("step", "agent", "action", "status", "ms", "position"), rows)


def _took(step: dict[str, Any]) -> str:
    return screen.milliseconds(step["started"], step["ended"])


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")
