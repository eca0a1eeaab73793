"""Actions: from a function to schemas, and from JSON to its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from agents_sdk import Action, ActionError, BusError
from agents_sdk.actions import outputs_of
from mcp_bus.messages import dumps, loads


class Colour(Enum):
    RED = "red"


class Page(BaseModel):
    title: str
    written: date | None = None


@dataclass
class Point:
    x: int
    y: list[int]


class Options(TypedDict):
    deep: bool


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def everything(
    page: Page,
    point: Point,
    options: Options,
    colour: Colour,
    day: date,
    pair: tuple[int, str],
    count: Annotated[int, Field(gt=0, description="how many")] = 5,
    *,
    limit: int = Field(3, lt=9),
    anything: Any = None,
) -> Page:
    """Take one of each.

    The second paragraph belongs to it.
    """
    assert isinstance(point, Point)
    assert isinstance(colour, Colour)
    assert isinstance(pair, tuple)
    return Page(title=f"{page.title} {count} {limit}", written=day)


INPUTS: dict[str, Any] = {
    "page": {"title": "a", "written": "2026-01-02"},
    "point": {"x": 1, "y": [2, 3]},
    "options": {"deep": True},
    "colour": "red",
    "day": "2026-05-06",
    "pair": [1, "b"],
}


def test_a_function_is_described_by_its_hints_and_its_docstring() -> None:
    """Names, required ones, defaults, constraints and the whole docstring are in the schema."""
    described = Action.of(everything).describe()
    assert described["description"].startswith("Take one of each.\n\nThe second")
    inputs = described["inputs"]
    assert inputs["type"] == "object"
    assert inputs["required"] == ["page", "point", "options", "colour", "day", "pair"]
    assert inputs["properties"]["count"] == {
        "default": 5,
        "description": "how many",
        "exclusiveMinimum": 0,
        "title": "Count",
        "type": "integer",
    }
    assert inputs["properties"]["limit"]["exclusiveMaximum"] == 9
    assert described["outputs"]["properties"].keys() == {"title", "written"}
    loads(dumps(described))


async def test_inputs_arrive_as_what_the_hints_say() -> None:
    """Models, dataclasses, enumerations, dates and tuples are built from JSON."""
    outputs = await Action.of(everything).run(INPUTS)
    assert outputs == {"title": "a 5 3", "written": "2026-05-06"}


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [
        ({"count": "3"}, "/count"),
        ({"count": 0}, "/count"),
        ({"count": True}, "/count"),
        ({"point": {"x": 1, "y": [2, "z"]}}, "/point/y/1"),
        ({"colour": "blue"}, "/colour"),
        ({"a/b": 1}, "/a~1b"),
        ({"day": None}, "/day"),
    ],
)
async def test_inputs_that_do_not_fit_are_refused_with_a_pointer(
    wrong: dict[str, Any], pointer: str
) -> None:
    """`bad_inputs`, where it is wrong, and nothing is converted."""
    with pytest.raises(BusError) as refused:
        await Action.of(everything).run(INPUTS | wrong)
    assert refused.value.code == "bad_inputs"
    assert refused.value.findings[0].pointer == f"/context/payload/inputs{pointer}"


async def test_a_missing_input_is_named() -> None:
    """What is required and not there has a pointer of its own."""
    with pytest.raises(BusError) as refused:
        await Action.of(everything).run({k: v for k, v in INPUTS.items() if k != "day"})
    assert [(f.pointer, f.code) for f in refused.value.findings] == [
        ("/context/payload/inputs/day", "missing")
    ]


@pytest.mark.parametrize("name", ["schema", "json", "copy", "model_config", "self", "cls"])
async def test_a_parameter_may_have_any_name(name: str) -> None:
    """No name clashes with one of pydantic's."""
    scope: dict[str, Any] = {}
    exec(f"def act({name}: int) -> int:\n    return {name}", scope)  # noqa: S102
    action = Action.of(scope["act"])
    assert await action.run({name: 7}) == {"result": 7}
    assert action.describe()["inputs"]["required"] == [name]


def star(*values: int) -> None: ...
def named(**values: int) -> None: ...
def only(value: int, /) -> None: ...
def unreadable(value: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def foreign(value: pytest.Session) -> None: ...


@pytest.mark.parametrize("function", [star, named, only, unreadable, foreign])
def test_a_signature_that_json_cannot_fill_is_refused_at_once(function: Any) -> None:
    """When the agent is written, not when it is asked."""
    with pytest.raises(BusError, match=f"action {function.__name__}"):
        Action.of(function)


def test_an_action_has_an_id_for_a_name() -> None:
    """A lambda has none."""
    with pytest.raises(BusError, match="cannot name an action"):
        Action.of(lambda: 1)


@pytest.mark.parametrize(
    ("returns", "schema"),
    [
        (int, {"type": "object", "properties": {"result": {"type": "integer"}}}),
        (None, {"type": "object", "properties": {"result": {"type": "null"}}}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (Page | None, {"type": "object"}),
        (Any, {"type": "object"}),
    ],
)
def test_the_schema_of_the_outputs_says_what_outputs_are(returns: Any, schema: Any) -> None:
    """An object as it is, anything else under `result`; either of both is any object."""

    def act() -> Any: ...

    act.__annotations__["return"] = returns
    found = Action.of(act).describe()["outputs"]
    assert {key: found[key] for key in schema} == schema


@given(JSON)
def test_any_json_becomes_outputs_that_hold_it(value: Any) -> None:
    """An object is the outputs; whatever else is `result`."""
    outputs = outputs_of(value)
    assert outputs == (value if isinstance(value, dict) else {"result": value})


@given(st.dictionaries(st.sampled_from(["n", "text", "extra"]), JSON))
async def test_an_action_is_called_with_what_fits_and_never_otherwise(
    inputs: dict[str, Any],
) -> None:
    """For any JSON: either the hints hold, or it is `bad_inputs`."""
    called: list[tuple[int, str]] = []

    async def act(n: int, text: str = "") -> None:
        called.append((n, text))

    fits = type(inputs.get("n")) is int and type(inputs.get("text", "")) is str
    code = ""
    try:
        await Action.of(act).run(inputs)
    except BusError as error:
        code = error.code
    if fits and "extra" not in inputs:
        assert called == [(inputs["n"], inputs.get("text", ""))]
    else:
        assert (code, called) == ("bad_inputs", [])


class Priced(BaseModel):
    """Read otherwise than it is written."""

    amount: int = Field(alias="amountIn", serialization_alias="amountOut")


class Wide(Page):
    pages: int = 0


FITTING: list[tuple[Any, Any]] = [
    (int, 3),
    (float, 3),
    (list[int], (1, 2)),
    (date, date(2026, 1, 2)),
    (date, "2026-01-02"),
    (Colour, Colour.RED),
    (Page, Wide(title="a", pages=2)),
    (Page, {"title": "a"}),
    (Page | None, None),
    (Point, Point(1, [2])),
    (Options, {"deep": True}),
    (Priced, Priced(amountIn=3)),
    (Annotated[int, Field(gt=0)], 3),
    (Any, {"whatever": [1]}),
    (None, None),
]
UNFITTING: list[tuple[Any, Any, str]] = [
    (int, "3", "/result"),
    (str, 3, "/result"),
    (list[int], [1, "b"], "/result/1"),
    (Page, {"written": None}, "/title"),
    (Point, Point("x", []), "/x"),  # type: ignore[arg-type]
    (Options, {"deep": 1}, "/deep"),
    (Priced, {"amount": 3}, "/amountIn"),
    (Annotated[int, Field(gt=0)], 0, "/result"),
    (None, 1, "/result"),
]


def returning(returns: Any, value: Any) -> Action:
    """An action that says it returns one thing, and returns `value`."""

    async def act() -> Any:
        return value

    act.__annotations__["return"] = returns
    return Action.of(act)


@pytest.mark.parametrize(("returns", "value"), FITTING)
async def test_outputs_that_fit_are_published(returns: Any, value: Any) -> None:
    """As they would be without a type."""
    assert await returning(returns, value).run({}) == outputs_of(value)


@pytest.mark.parametrize(("returns", "value", "pointer"), UNFITTING)
async def test_outputs_that_do_not_fit_are_the_actions_failure(
    returns: Any, value: Any, pointer: str
) -> None:
    """`bad_outputs`, and where: nobody gets what the schema does not say."""
    with pytest.raises(BusError) as refused:
        await returning(returns, value).run({})
    assert refused.value.code == "bad_outputs"
    assert refused.value.findings[0].pointer == f"/context/payload/outputs{pointer}"


def test_what_is_not_json_is_the_actions_failure() -> None:
    """An object of a class that nobody can serialise."""
    with pytest.raises(ActionError) as failed:
        outputs_of(object())
    assert failed.value.code == "action_failed"
