"""The reference pages are whole: what is public in the code stands in docs/, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import agents_sdk
from agents_sdk import testing
from gateway.routes import ROUTES
from mcp_bus import subjects
from mcp_bus.cli import main
from mcp_bus.config import PREFIX, Settings
from mcp_bus.domain import permissions
from mcp_bus.domain.agents import COMMANDS as REGISTRY_COMMANDS
from mcp_bus.domain.decider import Undecided, failed
from mcp_bus.domain.definitions import Asking, Child, Definition, Retry, Step, StepConditions, Wait
from mcp_bus.domain.executions import COMMANDS as WORKFLOWS_COMMANDS
from mcp_bus.domain.facts import FACTS
from mcp_bus.domain.roles import Principal
from mcp_bus.errors import CODES
from mcp_bus.messages import Message
from tests.mcp_bus.history import History, agent, step, workflow

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def text(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def rows(page: str) -> Iterator[list[str]]:
    """The cells of each table row of a page, headings and rulers included."""
    for line in text(page).splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def named(page: str) -> set[str]:
    """The first cells of a page that are one name: `name`."""
    return {cells[0].strip("`") for cells in rows(page) if re.fullmatch(r"`[^`]+`", cells[0])}


def test_every_code_is_explained_with_its_status() -> None:
    """docs/errors.md has each code of CODES once, with its HTTP status, and no other."""
    found = [(c[0].strip("`"), int(c[1])) for c in rows("errors.md") if c[1].isdigit()]
    assert sorted(found) == sorted((code, status) for code, (status, _) in CODES.items())


def test_workflows_are_told_whole() -> None:
    """docs/workflows.md has every key of a definition, and every code of workflows and executions;
    what is in a picture, or in an example, is in the tables."""
    page = text("workflows.md")
    models = (Definition, Step, StepConditions, Retry, Wait, Asking, Child)
    keys = {field.alias for model in models for field in model.model_fields.values()}
    assert not [key for key in keys if not _stands(str(key), page)]
    section = text("errors.md").partition("## Workflows")[2].partition("\n## ")[0]
    codes = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
    elsewhere = {"unknown_conversation", "changed_meanwhile"}
    assert codes - elsewhere <= set(re.findall(r"`(\w+)`", page))


def test_every_setting_is_explained_with_its_default() -> None:
    """docs/settings.md has each field of Settings, with the default that the code has."""
    assert named("settings.md") == {PREFIX + name.upper() for name in Settings.model_fields}
    told = {cells[0].strip("`"): cells[1] for cells in rows("settings.md")}
    for name, field in Settings.model_fields.items():
        default = field.default
        if field.default_factory is not None:
            continue
        wanted = "none" if default is None else f"`{default}`"
        assert told[PREFIX + name.upper()].startswith(wanted), name


def test_every_fact_is_explained() -> None:
    """docs/facts.md has one section per fact of FACTS, and its example is that fact."""
    assert examples().keys() == FACTS.keys()
    assert {name: example["event"] for name, example in examples().items()} == {
        name: name for name in FACTS
    }


def test_every_example_of_a_fact_has_its_shape() -> None:
    """The keys of each example, at every level but for what authors chose, are the real ones."""
    for name, real in real_facts().items():
        example = examples()[name]
        assert list(example) == list(real), name
        for key in ("error", "workflow"):
            if key in real:
                assert list(example[key]) == list(real[key]), name


def test_every_command_is_explained() -> None:
    """docs/facts.md has each action of each decider."""
    found = {(c[0].strip("`"), c[1].strip("`")) for c in rows("facts.md") if len(c) == 5}
    wanted = {("registry", name) for name in REGISTRY_COMMANDS}
    wanted |= {("workflows", name) for name in WORKFLOWS_COMMANDS}
    assert found - {("to", "action"), ("---", "---")} == wanted


def test_what_agents_may_do_is_told() -> None:
    """docs/subjects.md has what a connection is given, for each role's widest scope."""
    page = text("subjects.md")
    admin = Principal("me", ("admin",))
    for heading, given in (
        ("agent `me` may publish", permissions.publishes("me", admin)),
        ("agent `me` may hear", permissions.hears("me", admin)),
    ):
        table = page.partition(f"| {heading} |")[2].partition("\n\n")[0]
        assert re.findall(r"^\| `([^`]+)`", table, re.MULTILINE) == given


def test_every_subject_of_the_stream_is_explained() -> None:
    """docs/subjects.md has each kind of message, and the ids that are reserved."""
    kinds = {name.split(".")[1] for name in named("subjects.md") if name.startswith("mcp.")}
    assert kinds >= set(subjects.KINDS)
    assert {tuple(s.split(".")[:2]) for s in subjects.STREAM_SUBJECTS} == {
        ("mcp", kind) for kind in subjects.KINDS
    }
    for name in (subjects.REGISTRY, subjects.WORKFLOWS, "bus", "discover", "register", "validate"):
        assert subjects.is_reserved(name)
        assert f"`{name}`" in text("subjects.md")


def test_every_route_is_explained() -> None:
    """docs/rest.md names each route of ROUTES by method and path."""
    page = text("rest.md")
    missing = [
        f"{route.method} {route.path}"
        for route in ROUTES
        if not re.search(rf"{route.method}[\s|`]+{re.escape(route.path)}(?![\w/{{-])", page)
    ]
    assert not missing


def test_every_command_of_the_program_is_explained() -> None:
    """docs/cli.md names each command of `mcp-bus`, and each of its options."""
    page, missing = text("cli.md"), []
    for path, command in commands(main):
        options = [o for p in command.params for o in p.opts if o.startswith("--")]
        missing += [name for name in (" ".join(path), *options) if not _stands(name, page)]
    assert not missing


def test_every_name_of_the_sdk_is_explained() -> None:
    """docs/sdk.md names each of `agents_sdk.__all__`, which is sorted and whole."""
    assert agents_sdk.__all__ == sorted(agents_sdk.__all__)
    assert all(hasattr(agents_sdk, name) for name in agents_sdk.__all__)
    missing = [name for name in agents_sdk.__all__ if not _stands(name, text("sdk.md"))]
    assert not missing


def test_every_name_for_tests_is_explained() -> None:
    """docs/testing.md names each of `agents_sdk.testing.__all__`, which is sorted and whole, and
    the fixtures."""
    assert testing.__all__ == sorted(testing.__all__)
    assert all(hasattr(testing, name) for name in testing.__all__)
    public = [name for name in vars(testing.Bus) if not name.startswith("_")]
    names = [*testing.__all__, *public, "bus", "mcp_bus_started"]
    assert not [name for name in names if not _stands(name, text("testing.md"))]


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its path; `()` is the program itself."""
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


def examples() -> dict[str, dict[str, Any]]:
    """The JSON example in each `### Section` of docs/facts.md."""
    sections = re.split(r"^### (\w+)$", text("facts.md"), flags=re.MULTILINE)[1:]
    found = {}
    for name, body in zip(sections[::2], sections[1::2], strict=True):
        block = re.search(r"(?:^    .*\n)+", body, re.MULTILINE)
        assert block, name
        found[name] = json.loads(block[0])
    return found


def _special_courses(history: History) -> None:
    """Executions that wait, are asked again, paused, cancelled and undone."""
    undo = {"agentId": "echo", "action": "echo"}

    def run(*steps: dict[str, Any]) -> str:
        history.command("workflows", "define", workflow(*steps))
        started = history.command("workflows", "execute", {"workflowId": "w"})
        return str(started["outputs"]["executionId"])

    def reply(payload: dict[str, Any]) -> None:
        asked = history.requests()[-1]
        history.say(Message.answer(asked, asked.target, payload))

    def tell(action: str, **inputs: Any) -> None:
        history.command("workflows", action, {"executionId": execution, **inputs})

    execution = run({"id": "approve", "wait": {"signal": "go"}}, step("b"))
    tell("signal", name="other")
    tell("signal", name="go", payload={"by": "ann"})
    tell("cancel")
    execution = run(step("a", retry={"maxAttempts": 2}))
    reply({"error": {"code": "no", "message": "no", "retryable": True}})
    tell("pause")
    for message in history.folds[1].due(history.time + 2000):
        history.append(message, 2000)
    history.settle()
    tell("resume")
    tell("cancel")
    execution = run(step("a", compensate=undo), step("b", compensate=undo), step("c"))
    for _ in range(2):
        reply({"outputs": {}})
    tell("cancel")
    reply({"outputs": {}})
    reply({"error": {"code": "no", "message": "no", "retryable": False, "details": None}})


def real_facts() -> dict[str, dict[str, Any]]:
    """One payload of each fact that the deciders decide, by name."""
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    history.command("registry", "register", agent("echo", "echo", "shout", status="inactive"))
    history.command("registry", "register", agent("echo", "echo"))
    for seen in ("HeartbeatSeen", "HeartbeatsMissed", "HeartbeatSeen"):
        history.observe("echo", seen)
    history.command("registry", "revoke", {"id": "echo"})
    history.command("registry", "register", agent("echo", "echo"))
    skipped = step("b", conditions={"pre": {"inputs.n": 1}})
    history.command("workflows", "define", workflow(skipped))
    answers: list[dict[str, Any]] = [{"outputs": {}}, {"error": {"code": "no", "message": "no"}}]
    for answer in answers:
        history.command("workflows", "define", workflow(step("a"), skipped))
        history.command("workflows", "execute", {"workflowId": "w", "inputs": {"n": 2}})
        asked = history.requests()[-1]
        history.say(Message.answer(asked, asked.target, answer))
    _special_courses(history)
    history.say(Message.build("request", "asker", "echo", {"action": "echo"}))
    history.stuck(history.log[-1].position, "not_taken")
    messages = [logged.message for logged in history.log]
    said = [m for m in messages if m.kind == "event" and m.source in subjects.DECIDERS]
    found = {m.payload["event"]: m.payload for m in said if m.payload["event"] in FACTS}
    found["DecisionFailed"] = failed(
        "workflows", Undecided(1, 0, ("execution", "e")), None, ValueError("no")
    )[0].payload
    assert FACTS.keys() - found.keys() == {"DeciderEpoch"}, found.keys()
    return found


def _stands(name: str, page: str) -> bool:
    """Whether a page names it as a whole word in code: between backticks, or indented."""
    word = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
    return bool(re.search(rf"`[^`\n]*{word}|^    .*{word}", page, re.MULTILINE))
