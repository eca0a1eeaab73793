"""Items: a step with forEach asks its agent once for each item of a list, or starts an execution of
another workflow for each. Pure.

At most `maxParallel` of them are under way. Inputs of an execution are decided one after the
other, each when the one before was read back: too slow for thousands of items. So outputs of an
item are noted when they are read, by every fold, and become an input only where something follows
from them: a quarter of what may be under way is free and asked for anew, all are answered, or
they cannot be among the outputs of the step. Everything else that happens to an item (an error, a
time-out) is an input.

The end of a child is known once the whole decision that it belongs to is in the log. Others may be
made meanwhile about the parent: so what counts is from which position on it is known, not its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp_bus.config import FOR_EACH_MAX, FOR_EACH_REFERENCES_MAX
from mcp_bus.domain.answers import given, result_of
from mcp_bus.domain.decider import Logged
from mcp_bus.domain.definitions import Step
from mcp_bus.domain.execution import Items, Request
from mcp_bus.domain.fitting import OUTPUTS_BYTES_MAX
from mcp_bus.domain.references import references, resolve
from mcp_bus.errors import BusError, Refused
from mcp_bus.messages import Message, dumps

ASKED_TOGETHER = 4  # a quarter of maxParallel at a time


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a list of `of`."""

    value: Any
    index: int
    of: int

    @staticmethod
    def at(index: int, values: list[Any]) -> Item:
        return Item(values[index], index, len(values))

    def context(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """What its inputs are resolved against."""
        return {**context, "item": self.value, "index": self.index}

    def as_json(self) -> dict[str, int]:
        return {"index": self.index, "of": self.of}


def values_of(step: Step, context: Mapping[str, Any]) -> list[Any]:
    """The list of a step with forEach; Refused `unresolved_reference`, `not_a_list`,
    `too_many_items`."""
    values = resolve(step.for_each, context)
    if not isinstance(values, list):
        raise Refused(f"{step.for_each} of {step.id} is no list", code="not_a_list")
    if len(values) > FOR_EACH_MAX:
        raise Refused(
            f"{step.for_each} of {step.id} has {len(values)} items, more than {FOR_EACH_MAX}",
            code="too_many_items",
        )
    return values


def check_references(step: Step, of: int) -> None:
    """Refused `too_many_items` where what so many items are asked with, or give, takes too long to
    be made."""
    each = sum(1 for _ in references([step.sent, step.gives]))
    if each * of > FOR_EACH_REFERENCES_MAX:
        raise Refused(
            f"the inputs and outputs of {of} items of {step.id} have {each} references each, more "
            f"than {FOR_EACH_REFERENCES_MAX} together",
            code="too_many_items",
        )


def asked_until(step: Step, answered: int) -> int:
    """How many items are asked for once so many of them are answered."""
    together = _together(step)
    return step.max_parallel + answered // together * together


def note(items: Items, step: Step, request: Request, answer: Logged, known_at: int) -> bool:
    """Note the outputs of an item, known from a position on; whether something follows from that.

    What cannot be among the outputs of the step is not noted: its decision says why.
    """
    try:
        size = _size(step, result_of(answer.message))
    except BusError:
        return True
    if request.item is None or items.size + size > OUTPUTS_BYTES_MAX:
        return True
    items.size += size
    items.answers[request.item], request.noted = answer.position, known_at
    answered = len(items.answers)
    together = _together(step)
    more = asked_until(step, answered) - together < items.of
    return answered == items.of or (more and answered % together == 0)


def check_noted(items: Items, step: Step, request: Request, outputs: Any) -> None:
    """Refused `unresolved_reference` or `too_large`: why an item's outputs were not noted."""
    if not request.noted:
        size = items.size + _size(step, outputs)
        raise Refused(
            f"the outputs of the first {len(items.answers) + 1} items of {step.id} take {size} "
            f"bytes, of {OUTPUTS_BYTES_MAX}",
            code="too_large",
        )


def gathered(items: Items, step: Step, messages: Mapping[int, Message]) -> list[Any]:
    """The outputs of all items, in order, of the messages that ended them by position."""
    return [given(step, result_of(messages[at])) for at in positions(items)]


def positions(items: Items) -> list[int]:
    """Where the outputs of all items stand, in order."""
    return [items.answers[index] for index in range(items.of)]


def _size(step: Step, outputs: Any) -> int:
    return len(dumps(given(step, outputs))) + 1


def _together(step: Step) -> int:
    return max(step.max_parallel // ASKED_TOGETHER, 1)
