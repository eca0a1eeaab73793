"""Actions: what an agent can do, each with a JSON Schema that says so.

An ordinary function becomes an action: its inputs' schema comes from its type hints (pydantic;
defaults, Annotated, models, dataclasses and TypedDicts included), its outputs' schema from the
return type, its description from the docstring. Inputs are checked before the function runs, as
JSON, strictly: "3" is no integer. What has a schema already is made an `Action` directly.
What it returns is checked against that schema as well, before it is published. Never: an action
whose inputs do not fit is called.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Self, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from agents_sdk import streaming
from agents_sdk.context import Context, here
from mcp_bus import subjects
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import dumps, findings_of

Run = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

Check = Callable[[Any, Any], None]  # what was returned, and the JSON of it

INPUTS = "/context/payload/inputs"
OUTPUTS = "/context/payload/outputs"
RESULT = OUTPUTS + "/result"


class ActionError(BusError):
    """Raise it in an action to answer with this error; the code is your own and stable.

    `details` is any JSON; `retryable` says that the same request may succeed later.
    """

    def __init__(
        self, code: str, message: str, *, retryable: bool = False, details: Any = None
    ) -> None:
        super().__init__(message, code=code, retryable=retryable, details=details)


@dataclass(frozen=True, slots=True)
class Action:
    """One action: `run` takes the request's inputs, a JSON object, and returns the outputs.

    `inputs` and `outputs` are JSON Schemas, which `run` has to keep; for an error of its own
    it raises ActionError.
    What is not `idempotent` runs at most once: a request that is handed out again, because the
    process that had it died or gave it back, is answered `maybe_executed`.
    """

    name: str
    run: Run
    description: str = ""
    inputs: dict[str, Any] | None = None
    outputs: dict[str, Any] | None = None
    capability: str | None = None  # None: the agent's own
    idempotent: bool = True

    def __post_init__(self) -> None:
        if not subjects.is_id(self.name):
            raise Refused(
                f"{self.name!r} cannot name an action: 1 to 64 letters, digits, _ and -",
                code="bad_id",
            )

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        capability: str | None = None,
        idempotent: bool = True,
    ) -> Self:
        """The action that calls `function`; a synchronous one runs in a thread, and an async
        generator answers in parts, {"result": [part, …]} as a whole.

        A parameter annotated `Context` is no input: it gets that of the request.
        Raises Refused for a signature that JSON cannot fill.
        """
        name = str(name or getattr(function, "__name__", ""))
        hints = _hints(function, name)
        parameters = _parameters(function, name)
        contexts = [key for key in parameters if hints.get(key) is Context]
        for key in contexts:
            del parameters[key]
        inputs = _inputs_model(name, parameters, hints)
        returns = _returns(function, hints.get("return", Any))
        try:
            return cls(
                name=name,
                run=_runner(function, inputs, list(parameters), contexts, _check(returns)),
                description=inspect.getdoc(function) or "",
                inputs=inputs.model_json_schema(),
                outputs=_outputs_schema(_whole(function, returns)),
                capability=capability,
                idempotent=idempotent,
            )
        except PydanticUserError as error:
            raise Refused(f"action {name}: {error.message.splitlines()[0]}") from None

    def describe(self) -> dict[str, Any]:
        """What the registry knows of it: {description, inputs, outputs}."""
        return {
            "description": self.description,
            "inputs": self.inputs if self.inputs is not None else {"type": "object"},
            "outputs": self.outputs if self.outputs is not None else {"type": "object"},
        }


# --- from a signature to a model of the inputs --------------------------------------------------


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise Refused(f"action {name}: a type hint cannot be read: {error}") from None


def _parameters(function: Callable[..., Any], name: str) -> dict[str, inspect.Parameter]:
    """By name; each must be one that an object's key can fill."""
    found = dict(inspect.signature(function).parameters)
    for parameter in found.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise Refused(f"action {name}: parameter {parameter} cannot be filled by its name")
    return found


def _inputs_model(
    name: str, parameters: dict[str, inspect.Parameter], hints: dict[str, Any]
) -> type[BaseModel]:
    """A model with one field per parameter, `p0`, `p1` …: the alias is the parameter's name, so
    that no name clashes with one of pydantic's."""
    fields: dict[str, Any] = {}
    for index, (key, parameter) in enumerate(parameters.items()):
        hint: Any = Annotated[hints.get(key, Any), Field(alias=key)]
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[f"p{index}"] = (hint, default)
    try:
        model: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    except PydanticUserError as error:
        raise Refused(f"action {name}: {error.message.splitlines()[0]}") from None
    return model


def _runner(
    function: Callable[..., Any],
    model: type[BaseModel],
    names: list[str],
    contexts: list[str],
    check: Check,
) -> Run:
    asynchronous = inspect.iscoroutinefunction(function)

    async def run(inputs: dict[str, Any]) -> dict[str, Any]:
        try:
            # as JSON, where a date is a text and a tuple an array, and nothing else is converted
            checked = model.model_validate_json(dumps(inputs), strict=True)
        except ValidationError as error:
            findings = findings_of(error, INPUTS)
            said = "; ".join(f"{f.pointer}: {f.detail}" for f in findings[:3])
            raise Refused(said, code="bad_inputs", findings=findings) from None
        arguments = {name: getattr(checked, f"p{i}") for i, name in enumerate(names)}
        arguments |= {name: here() for name in contexts}
        if inspect.isasyncgenfunction(function):
            return await streaming.told(function(**arguments), lambda part: _json(part, check))
        if asynchronous:
            returned = await function(**arguments)
        else:
            returned = await asyncio.to_thread(function, **arguments)
        return outputs_of(returned, check)

    return run


# --- from what it returns to outputs ------------------------------------------------------------


def outputs_of(returned: Any, check: Check | None = None) -> dict[str, Any]:
    """A mapping, model or dataclass as an object, anything else as {"result": value}.

    Raises ActionError `action_failed` for what is not JSON, and what `check` raises.
    """
    value = _json(returned, check)
    is_object = isinstance(returned, (dict, BaseModel)) or is_dataclass(returned)
    # a RootModel of a list is a model and no object
    return value if is_object and isinstance(value, dict) else {"result": value}


def _json(returned: Any, check: Check | None) -> Any:
    try:
        value = to_jsonable_python(returned)
    except PydanticSerializationError as error:
        raise ActionError("action_failed", f"what it returned is not JSON: {error}") from None
    if check is not None:
        check(returned, value)
    return value


def _check(returns: Any) -> Check:
    """Raises BusError `bad_outputs` for what does not fit the schema of `returns`.

    What is published must read back as `returns`. Where it cannot, because that type is written
    otherwise than it is read (aliases, computed fields), what was returned must be of the type.
    """
    adapter = TypeAdapter(returns)
    read = adapter.json_schema(mode="validation")
    reads_back = read == adapter.json_schema(mode="serialization")

    def check(returned: Any, value: Any) -> None:
        try:
            if reads_back:
                adapter.validate_json(dumps(value), strict=True)
            else:
                adapter.validate_python(returned, strict=True)
        except ValidationError as error:
            findings = findings_of(error, OUTPUTS if isinstance(value, dict) else RESULT)
            said = "; ".join(f"{f.pointer}: {f.detail}" for f in findings[:3])
            raise BusError(said, code="bad_outputs", findings=findings) from None

    return check


def _returns(function: Callable[..., Any], hint: Any) -> Any:
    """What it returns: an async generator, what it yields."""
    if not inspect.isasyncgenfunction(function):
        return hint
    return next(iter(get_args(hint)), Any)


def _whole(function: Callable[..., Any], returns: Any) -> Any:
    """What the outputs hold: of an async generator, all that it yields."""
    return list[returns] if inspect.isasyncgenfunction(function) else returns


def _outputs_schema(returns: Any) -> dict[str, Any]:
    schema = TypeAdapter(returns).json_schema(mode="serialization")
    members = [_resolved(member, schema) for member in schema.get("anyOf", [schema])]
    objects = [member.get("type") == "object" for member in members]
    if all(objects):
        return schema
    if any(objects) or {} in members:
        return {"type": "object"}  # which of the two shapes it is, only the value tells
    definitions = {"$defs": schema.pop("$defs")} if "$defs" in schema else {}
    return {
        "type": "object",
        "properties": {"result": schema},
        "required": ["result"],
        **definitions,
    }


def _resolved(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref", "")
    found: dict[str, Any] = root.get("$defs", {}).get(reference.rpartition("/")[2], schema)
    return found
