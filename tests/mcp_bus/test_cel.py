"""Expressions as conditions: what may stand in one, what it comes to, and that it ends."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from mcp_bus.config import CEL_CHARS_MAX, CEL_ITEMS_MAX
from mcp_bus.domain import cel, conditions
from mcp_bus.domain.answers import asked_for
from mcp_bus.errors import Refused
from mcp_bus.messages import Message
from tests.mcp_bus.history import History, agent, errors_of, step, workflow

CONTEXT: dict[str, Any] = {
    "inputs": {
        "n": 3,
        "half": 2.5,
        "flag": True,
        "none": None,
        "name": "Ada",
        "list": [{"total": 3}, {"total": 5, "tags": ["x"]}],
        "key": "total",
        "odd key": {"in": 7},
        "words": ["map", "filter(", "a.b"],
        "big": list(range(CEL_ITEMS_MAX + 1)),
        "long": ["word"] * 500,
    },
    "steps": {"a-1": {"outputs": {"ok": True}}, "b": {"outputs": 4}},
    "execution": {"id": "e1"},
}


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ("inputs.n > 2", True),
        ("inputs.n > 2.5 && inputs.half < 3", True),
        ("inputs.n == 3.0", True),
        ("inputs.flag ? inputs.n == 4 : false", False),
        ("!inputs.flag || inputs.n in [1, 2]", False),
        ("inputs.none == null", True),
        ("inputs.name.startsWith('A') && size(inputs.name) == 3", True),
        ("inputs.name.matches('^A.a$')", True),
        ('inputs.list[1].total - inputs["list"][0].total == 2', True),
        ("inputs.list[0][inputs.key] == 3", True),
        ("inputs['odd key'][\"in\"] == 7", True),
        ("has(inputs.gone) || has(inputs.none)", True),
        ("has(inputs.gone.further[3].x)", False),
        ("has(inputs.gone) && inputs.gone > 1", False),
        ("inputs.gone > 1 || inputs.flag", True),
        ("inputs.list.all(o, o.total > inputs.half)", True),
        ("inputs.list.exists(o, has(o.tags) && 'x' in o.tags)", True),
        ("inputs.words.exists(w, w == '.map(x, y)') || \".filter(\" == '.filter('", True),
        ("steps['a-1'].outputs.ok && steps.b.outputs == 4", True),
        ("has(steps.c.outputs)", False),
        ("execution.id == 'e' + string(1)", True),
        ("int('7') + 1 == 8 && double(1) == 1.0", True),
        ("'n' in inputs", True),
    ],
)
def test_an_expression_holds_or_not(source: str, holds: bool) -> None:
    """References are those of a workflow, by their types in JSON."""
    assert list(conditions.findings({"cel": source}, "")) == []
    assert conditions.holds({"cel": source}, CONTEXT) is holds


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("inputs.n", "it comes to int, neither true nor false"),
        ("inputs.gone > 1", "inputs.gone has no value"),
        ("steps.c.outputs.x", "steps.c.outputs.x has no value"),
        ("inputs.n > 'a'", "No such overload"),
        ("inputs.n / 0 == 1", "division by zero"),
        ("inputs.list[1]['gone'] == 1", "inputs.list[1]['gone'] has no value"),
        ("inputs.list[0][inputs.name] == 1", "'Ada' is not there"),
        ("inputs.name.matches('(')", "not a valid regex"),
        ("inputs.n.all(x, x)", "No such overload"),
        ("inputs.big.all(x, x >= 0)", f"5001 items, more than {CEL_ITEMS_MAX}"),
        ("inputs.list.all(o, o in inputs.long)", "inputs.long takes more than 1024 bytes"),
        ("inputs.list.all(o, o.gone == 1)", "'gone' is not there"),
        ("9223372036854775807 + inputs.n > 0", "verflow"),
    ],
)
def test_what_is_neither_true_nor_false_is_an_error(source: str, why: str) -> None:
    """In the words of who wrote it; it is no false."""
    assert list(conditions.findings({"cel": source}, "")) == []
    with pytest.raises(Refused) as refused:
        conditions.holds({"cel": source}, CONTEXT)
    assert refused.value.code == "condition_failed"
    assert why in refused.value.detail
    assert "__" not in refused.value.detail


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (3, "it is a text"),
        ("", "Syntax error"),
        ("inputs.n >", "Syntax error"),
        ("inputs.n > 1 // always", "cannot be read from '// always'"),
        ("inputs.list.map(x, x) == []", "there is no function map"),
        ("inputs.list.filter(x, true) == []", "there is no function filter"),
        ("inputs.list.exists_one(x, true)", "there is no function exists_one"),
        ("now() > 1", "there is no function now"),
        ("timestamp('2026-01-01T00:00:00Z') == 1", "there is no function timestamp"),
        ("inputs.list.all(x, x.tags.all(y, true))", "more than one list"),
        ("inputs.a.all(x, x) || inputs.b.exists(x, x)", "more than one list"),
        ("[1, 2].all(x, x > 0)", "the items of a reference"),
        ("inputs.a.all(inputs, true)", "REFERENCE.all(item, …)"),
        ("inputs.a.all(x)", "REFERENCE.all(item, …)"),
        ("all(inputs.a, x, true)", "REFERENCE.all(item, …)"),
        ("inputs.a.all(x, x.matches('a'))", "none for each item"),
        ("inputs.a.matches('a') && inputs.b.matches('b')", "one matches at most"),
        ("x > 1", "x is none of inputs, steps, execution"),
        ("inputs.a.all(x, true) && x", "x is none of"),
        ("__0__ == 1", "has no place there"),
        ("b'a' == b'a'", "b is none of"),
        ("'a' 'b' == 'ab'", "Syntax error"),
        ("'''a''' == 'a'", "has no place there"),
        ("inputs.all(x, (x)", "not closed"),
        ("true || " * 70 + "true", f"at most {CEL_CHARS_MAX} characters"),
        ("(" * 250 + "true" + ")" * 250, ""),
        ("#", "cannot be read"),
    ],
)
def test_what_may_not_stand_in_an_expression_is_told(source: Any, why: str) -> None:
    """When it is defined, with the place of the condition."""
    (found,) = conditions.findings({"cel": source}, "/at")
    assert (found.pointer, found.code) == ("/at/cel", "bad_condition")
    assert why in found.detail


@pytest.mark.parametrize(
    "source", ["steps.a == 1", "steps[inputs.n].outputs", "execution.start > 1", "steps == 1"]
)
def test_a_reference_to_nowhere_is_told(source: str) -> None:
    """Only what others may refer to."""
    (found,) = conditions.findings({"cel": source}, "")
    assert found.code == "unknown_reference"


def test_what_it_was_judged_by_is_recorded() -> None:
    """Each reference as it is written, beside those of other conditions; a large one's size."""
    condition = {
        "cel": "inputs.n > 2 && has(inputs.gone) || inputs.list[0].total == inputs.gone",
        "inputs.flag": True,
    }
    told = {"inputs.n": 3, "inputs.list[0].total": 3, "inputs.flag": True}
    assert conditions.operands(condition, CONTEXT) == told
    assert conditions.operands({"cel": "size(inputs.big) > 1"}, CONTEXT) == {
        "inputs.big": "(23896 bytes)"
    }


@pytest.mark.parametrize(
    "source",
    [
        "inputs.l.all(x, x in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] || x.y.z > 1 || x >= 0)",
        "inputs.s.matches('(a*)*b') || inputs.s + inputs.s + inputs.s + inputs.s == ''",
        "inputs.l.exists(x, x == inputs.l[0] && x == inputs.l[1])",
        "inputs.l == inputs.l && inputs.l != inputs.l",
    ],
)
def test_the_largest_inputs_take_a_moment(source: str) -> None:
    """Whoever decides is not held up by anybody's expression."""
    context = {"inputs": {"l": list(range(CEL_ITEMS_MAX)), "s": "a" * 250_000}}
    assert list(conditions.findings({"cel": source}, "")) == []
    begun = time.process_time()
    with contextlib.suppress(Refused):
        conditions.holds({"cel": source}, context)
    assert time.process_time() - begun < 2


def test_the_library_is_loaded_without_its_console() -> None:
    """Which takes longer than everything else that a decider imports."""
    assert not hasattr(cel._library(), "cli")


def run(condition: str, inputs: Any, *others: dict[str, Any], where: str = "pre") -> History:
    history = History()
    history.command("registry", "register", agent("echo", "echo"))
    judged = step("a", conditions={where: {"cel": condition}}, retry={"maxAttempts": 3})
    said = history.command("workflows", "define", workflow(judged, *others))
    assert "outputs" in said, said
    history.command("workflows", "execute", {"workflowId": "w", "inputs": inputs})
    return history


def test_a_step_is_skipped_by_an_expression() -> None:
    """And asked by it; either way what it was judged by stands in the log."""
    skipped = run("inputs.n > 3", {"n": 3})
    assert skipped.facts("workflows")[1:] == ["StepSkipped", "ExecutionCompleted"]
    assert skipped.log[-2].message.payload["operands"] == {"inputs.n": 3}
    asked = run("inputs.n > 2", {"n": 3}).requests()[0]
    assert (asked.metadata.model_extra or {})["step"]["operands"] == {"inputs.n": 3}


def test_a_reference_of_an_expression_is_a_dependency() -> None:
    """Like any other: its step comes first, and must be there."""
    history = run("steps['b-1'].outputs.n == 1", {}, step("b-1", dependsOn=[]))
    assert [asked_for(request)["id"] for request in history.requests()] == ["b-1"]
    history.say(Message.answer(history.requests()[0], "echo", {"outputs": {"n": 1}}))
    assert [asked_for(request)["id"] for request in history.requests()] == ["b-1", "a"]
    nowhere = workflow(step("a", conditions={"pre": {"cel": "steps.z.outputs"}}))
    refused = history.command("workflows", "define", nowhere)
    assert errors_of(refused) == [("unknown_reference", "/steps/0/conditions/pre")]


@pytest.mark.parametrize("where", ["pre", "post"])
def test_a_step_fails_by_a_condition_that_cannot_be_judged(where: str) -> None:
    """And is not asked again: it would come to the same."""
    history = run("inputs.gone > 1", {}, where=where)
    if where == "post":
        history.say(Message.answer(history.requests()[0], "echo", {"outputs": {}}))
    assert history.facts("workflows")[1:] == ["ExecutionFailed"]
    failed = history.log[-1].message.payload
    assert (failed["stepId"], failed["error"]["code"]) == ("a", "condition_failed")
    assert "inputs.gone has no value" in failed["error"]["message"]
