"""The examples are what they say: each workflow runs with its agents, on a real bus."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from agents_sdk import BusError
from agents_sdk.testing import Bus
from mcp_bus.cli import documents

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "workflows"
FILES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".json", ".yaml"))


def workflow(name: str) -> dict[str, Any]:
    """An example's definition."""
    (path,) = [path for path in FILES if path.stem == name]
    with path.open() as file:
        found: dict[str, Any] = documents.read(file)
    return found


def program(name: str) -> dict[str, Any]:
    """The names of an example's agents, as their program has them before it runs."""
    return runpy.run_path(str(FOLDER / f"{name}.py"))


async def started(bus: Bus, name: str, inputs: dict[str, Any]) -> str:
    """The id of an execution that has begun."""
    command = {"workflowId": name.replace("_", "-"), "inputs": inputs}
    return str((await bus.request("workflows", "execute", command))["executionId"])


async def test_fan_out_asks_all_at_once_and_takes_the_cheapest(bus: Bus) -> None:
    """The three are asked by one decision: that about the start."""
    names = program("fan_out")
    async with names["agent"], bus.subscribe("workflows", "market", kind="request") as asked:
        await bus.define(workflow("fan_out"))
        done = await bus.run_workflow("fan-out", {"item": "lamp"})
        requests = [await anext(asked) for _ in range(4)]
    assert done == {"shop": "south", "price": 39.0}
    causes = [request.metadata.causation_id for request in requests]
    assert causes[0] == causes[1] == causes[2] == requests[0].metadata.correlation_id
    assert requests[3].payload["action"] == "cheapest"


async def test_saga_takes_back_what_was_booked(bus: Bus) -> None:
    """The last one first; a trip that goes well is kept."""
    names = program("saga")
    async with names["agent"]:
        await bus.define(workflow("saga"))
        done = await bus.run_workflow("saga", {"to": "Rome"})
        with pytest.raises(BusError, match="no cars on Capri"):
            await bus.run_workflow("saga", {"to": "Capri"})
    assert done == {"bookings": ["flight to Rome", "hotel to Rome", "car to Rome"]}
    assert names["booked"] == done["bookings"]
    assert names["cancelled"] == ["hotel to Capri", "flight to Capri"]


@pytest.mark.parametrize("yes", [True, False])
async def test_human_signal_waits_for_a_person(bus: Bus, yes: bool) -> None:
    """Whose word decides whether the last step is skipped."""
    async with program("human_signal")["agent"]:
        await bus.define(workflow("human_signal"))
        execution = await started(bus, "human_signal", {"topic": "tea"})
        await bus.wait_for("StepWaiting", execution)
        said = {"executionId": execution, "name": "verdict", "payload": {"yes": yes, "by": "ann"}}
        await bus.command("workflows", "signal", said)
        await bus.wait_for("StepCompleted" if yes else "StepSkipped", execution)
        await bus.wait_for("ExecutionCompleted", execution)


async def test_retry_asks_again_later_each_time(bus: Bus) -> None:
    """Nobody waits for it here: time goes on."""
    names = program("retry")
    async with names["agent"]:
        await bus.define(workflow("retry"))
        execution = await started(bus, "retry", {"city": "Ulm"})
        async with bus.subscribe("workflows", execution, kind="event", after=0) as facts:
            for attempt in range(names["BUSY_TIMES"]):
                retrying = (await anext(facts)).payload
                assert (retrying["event"], retrying["attempt"]) == ("StepRetrying", attempt + 2)
                await bus.next_timer()
            assert (await anext(facts)).payload["event"] == "ExecutionCompleted"
        assert names["asked"] == {"Ulm": 3}
        with pytest.raises(BusError, match="it has sunk"):
            await bus.run_workflow("retry", {"city": "Atlantis"})


async def test_rerun_writes_no_second_report(bus: Bus) -> None:
    """After the fix what failed is done again, and nothing else."""
    names, broken = program("rerun"), workflow("rerun")
    async with names["agent"]:
        await bus.define(broken)
        with pytest.raises(BusError, match="genral is none of") as failed:
            await bus.run_workflow("rerun", {"topic": "rain"})
        report, post = broken["steps"]
        mended = {**post, "inputs": {**post["inputs"], "channel": "weather"}}
        await bus.define({**broken, "steps": [report, mended]})
        execution = failed.value.details["executionId"]
        done = await bus.rerun(execution, "post", version="2")
    assert done == {"posted": "weather: Report 1, on rain."}
    assert names["written"] == ["rain"]


async def test_for_each_reads_two_chapters_at_a_time(bus: Bus) -> None:
    """And keeps their order, whichever is read first."""
    names = program("for_each")
    async with names["agent"]:
        await bus.define(workflow("for_each"))
        chapters = [f"Part {n}. And so on." for n in range(5)]
        done = await bus.run_workflow("for-each", {"chapters": chapters})
    assert done == {"book": "Part 0; Part 1; Part 2; Part 3; Part 4"}
    assert (max(names["at_once"]) <= 2, len(names["at_once"])) == (True, 5)


async def test_order_is_paid_by_a_workflow_of_its_own(bus: Bus) -> None:
    """Which undoes by itself what it did; the order fails by it."""
    bank = program("payment")
    async with program("order")["agent"], bank["agent"]:
        await bus.define(workflow("payment"))
        await bus.define(workflow("order"))
        done = await bus.run_workflow("order", {"amount": 5, "customer": "ann"})
        with pytest.raises(BusError, match="the account of eve is closed"):
            await bus.run_workflow("order", {"amount": 7, "customer": "eve"})
    assert done == {"packed": "for 5 of ann"}
    assert bank["released"] == ["7 of eve"]


async def test_invoices_are_paid_by_a_workflow_for_each(bus: Bus) -> None:
    """In the order of the list; one that cannot be paid leaves the books open."""
    async with program("invoices")["agent"], program("payment")["agent"]:
        await bus.define(workflow("payment"))
        await bus.define(workflow("invoices"))
        customers = [{"name": name, "owes": owes} for owes, name in enumerate("abcdefg")]
        done = await bus.run_workflow("invoices", {"customers": customers})
        customers[4]["name"] = "eve"
        with pytest.raises(BusError, match="the account of eve is closed"):
            await bus.run_workflow("invoices", {"customers": customers})
    assert done == {"closed": "0 of a, 1 of b, 2 of c, 3 of d, 4 of e, 5 of f, 6 of g"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_every_example_is_told(path: Path) -> None:
    """In docs/workflows.md, with its agents beside it."""
    page = (ROOT / "docs" / "workflows.md").read_text()
    assert path.with_suffix(".py").exists()
    assert re.search(rf"\(\.\./examples/workflows/{path.name}\)", page)
