"""Agents that a test scripts: real ones on the real bus, whose actions say what the test wants.

    async with fake_agent("git", git_log=returns({"commits": 3})) as git:
        ...
        assert git.calls == [("git_log", {"repo_path": "."})]

An action is a script (`returns`, `raises`, `in_turn`, `never`), which takes any inputs, or a
function like those of any agent, whose inputs are checked. What it was asked is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple

from agents_sdk.actions import Action, ActionError, Run, outputs_of
from agents_sdk.agent import Agent
from agents_sdk.testing.process import current
from mcp_bus.config import TEST_WAIT_S


class Call(NamedTuple):
    """What an agent was asked."""

    action: str
    inputs: dict[str, Any]


@dataclass(frozen=True)
class Script:
    """What an action does each time, whatever its inputs are; made by `returns` and the others."""

    act: Callable[[FakeAgent], Awaitable[dict[str, Any]]]


class FakeAgent(Agent):
    """A running agent of a test; made by `fake_agent`."""

    def __init__(
        self, id: str, actions: dict[str, Callable[..., Any] | Script], capability: str | None
    ) -> None:
        bus = current()
        super().__init__(
            id, type="fake", capability=capability, url=bus.bus.nats_url, token=bus.token(id)
        )
        self.calls: list[Call] = []
        self.over = asyncio.Event()  # the block is left
        self._asked = asyncio.Event()
        for name, does in actions.items():
            action = (
                self._scripted(name, does)
                if isinstance(does, Script)
                else Action.of(does, name=name)
            )
            self.add(replace(action, run=self._recorded(name, action.run)))

    async def called(self, times: int = 1, *, within_s: float = TEST_WAIT_S) -> list[Call]:
        """Wait until it was asked so often; its calls. Raises AssertionError after `within_s`."""
        __tracebackhide__ = True
        try:
            async with asyncio.timeout(within_s):
                while len(self.calls) < times:
                    self._asked.clear()
                    await self._asked.wait()
        except TimeoutError:
            raise AssertionError(
                f"{self.id} was not asked {times} times within {within_s:g} s, but: {self.calls}"
            ) from None
        return self.calls

    def _scripted(self, name: str, script: Script) -> Action:
        async def run(_: dict[str, Any]) -> dict[str, Any]:
            return await script.act(self)

        return Action(name, run)

    def _recorded(self, name: str, run: Run) -> Run:
        async def recorded(inputs: dict[str, Any]) -> dict[str, Any]:
            self.calls.append(Call(name, inputs))
            self._asked.set()
            return await run(inputs)

        return recorded

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()
        await super().__aexit__(kind, error, trace)


def fake_agent(
    id: str, /, *, capability: str | None = None, **actions: Callable[..., Any] | Script
) -> FakeAgent:
    """An agent of the bus of this process, with these actions, that runs while `async with`.

    `calls` are what it was asked, in order. Its actions are listed under `capability`, by default
    the id. Raises BusError when no bus is running, Refused for an id that is none.
    """
    return FakeAgent(id, actions, capability)


def returns(value: Any) -> Script:
    """Answer with this each time: a mapping is the outputs, anything else their `result`.

    Raises ActionError for what is not JSON.
    """
    outputs = outputs_of(value)

    async def act(_: FakeAgent) -> dict[str, Any]:
        return outputs

    return Script(act)


def raises(
    code: str, message: str = "as the test wants", *, retryable: bool = False, details: Any = None
) -> Script:
    """Answer with this error each time."""

    async def act(_: FakeAgent) -> dict[str, Any]:
        raise ActionError(code, message, retryable=retryable, details=details)

    return Script(act)


def in_turn(first: Script, *others: Script) -> Script:
    """One after the other, and the last one from then on: `in_turn(raises("busy"), returns(1))`."""
    left = [first, *others]

    async def act(agent: FakeAgent) -> dict[str, Any]:
        script = left.pop(0) if len(left) > 1 else left[0]
        return await script.act(agent)

    return Script(act)


def never() -> Script:
    """Do not answer while the test runs; when the agent ends, its answer is an error."""

    async def act(agent: FakeAgent) -> dict[str, Any]:
        await agent.over.wait()
        raise ActionError("never_answers", "it was not to answer, and its test is over")

    return Script(act)
