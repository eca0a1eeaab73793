"""`mcp-bus workflows`: check, define, run, look."""

from __future__ import annotations

from typing import IO, Any

import click

from mcp_bus.cli import documents, screen
from mcp_bus.cli.executions import begun, listed, parsed, quoted
from mcp_bus.cli.outcome import FAILED, Globals
from mcp_bus.cli.place import ask, client
from mcp_bus.cli.watch import until_ended
from mcp_bus.subjects import is_id


@click.group(short_help="Show, define and run workflows.")
def workflows() -> None:
    """Show, define and run workflows."""


@workflows.command("show")
@click.argument("workflow_id", metavar="ID")
@client
def show_workflow(given: Globals, workflow_id: str) -> None:
    """Show the latest version of a workflow, and its newest executions."""
    workflow = ask(given, "GET", f"/workflows/{quoted(workflow_id)}")
    if given.as_json:
        return screen.as_json(workflow)
    version = workflow["metadata"]["version"]
    screen.fields(id=workflow["id"], name=workflow["name"], version=version)
    steps = [(s["id"], s.get("agentId"), s.get("action"), _given(s)) for s in workflow["steps"]]
    screen.table(("step", "agent", "action", "inputs"), steps)
    return listed(workflow["executions"])


@workflows.command()
@click.argument("file", type=click.File())
@client
def validate(given: Globals, file: IO[str]) -> None:
    """Check the workflow in FILE (JSON or YAML, - for JSON from stdin) without a bus: all that the
    bus would refuse, but not whether its agents are there. Exit code 1 if there is anything."""
    from mcp_bus.domain import checks
    from mcp_bus.domain.agents import checked
    from mcp_bus.domain.definitions import Definition
    from mcp_bus.errors import Refused

    try:
        found = checks.findings(checked(Definition, documents.read(file)))
    except Refused as refused:
        found = refused.findings
    if given.as_json:
        screen.as_json({"findings": [finding.as_json() for finding in found]})
    elif found:
        rows = [(finding.pointer or "/", finding.code, finding.detail) for finding in found]
        screen.table(("where", "code", "what"), rows)
    else:
        click.echo("nothing is wrong with it")
    if found:
        click.get_current_context().exit(FAILED)


@workflows.command()
@click.argument("file", type=click.File())
@client
def define(given: Globals, file: IO[str]) -> None:
    """Define the workflow in FILE (JSON or YAML, - for JSON from stdin)."""
    workflow = ask(given, "POST", "/workflows", documents.read(file))
    if given.as_json:
        return screen.as_json(workflow)
    return screen.fields(id=workflow["id"], version=workflow["metadata"]["version"])


@workflows.command()
@click.argument("which", metavar="ID|FILE")
@click.option("--inputs", default="{}", show_default=True, help="JSON object to start from.")
@click.option("--wait", type=float, help="Wait so many seconds for the end.")
@click.option("--watch", is_flag=True, help="Show its steps as they go, until the end.")
@client
def run(given: Globals, which: str, inputs: str, wait: float | None, watch: bool) -> None:
    """Start an execution of the workflow ID, or of the one in FILE (JSON or YAML), which is defined
    first, and then waited for; exit code 1 if it is known to have failed.

    Ctrl-C ends the waiting, and not the execution."""
    if watch and wait is not None:
        raise click.UsageError("--watch waits until the end: --wait says nothing besides")
    body = {"inputs": parsed(inputs, "--inputs")}
    in_file = which == "-" or not is_id(which)
    if in_file:
        file = click.File().convert(which, None, click.get_current_context())
        workflow = ask(given, "POST", "/workflows", documents.read(file))
        which, body["version"] = workflow["id"], workflow["metadata"]["version"]
    path = f"/workflows/{quoted(which)}/execute"
    execution = ask(given, "PUT", path, body, {"wait": wait})
    if watch or (in_file and wait is None):
        execution = until_ended(given, execution["executionId"], shown=watch)
    begun(given, execution, watched=watch)


def _given(step: dict[str, Any]) -> Any:
    """What a step is given; of one that waits, for what."""
    return step["wait"] if "wait" in step else step.get("inputs")
