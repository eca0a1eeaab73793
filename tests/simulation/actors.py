"""Who speaks in a simulated run: sources with a script, and agents that answer.

They publish by the product's own Log. A source says one thing after the other and each until it is
acknowledged, over its own crashes too; it then knows what it was promised. Agents answer, fail,
answer late, twice, without naming what they answer, or not at all.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mcp_bus import subjects
from mcp_bus.errors import MessageError, OutcomeUnknown, Unavailable
from mcp_bus.log import Log, Record
from mcp_bus.messages import Message, new_id, parse
from mcp_bus.subjects import SNAPSHOT_WANTED

if TYPE_CHECKING:
    from tests.simulation.processes import SimulatedRuntime
    from tests.simulation.world import World

ADMIN = {"subject": "root", "roles": ["admin"]}
AGENTS = ("echo", "mute", "twin")
AGAIN_S = 0.2
LONG_S = 10.0
SNAPSHOT_AFTER = 7  # steps of the gateway


@dataclass(frozen=True, slots=True)
class Said:
    """One step of a script: a message, or bytes that are none; `not_before` is a time (s)."""

    message: Message | None
    after_s: float
    data: bytes = b""
    not_before: float = 0.0


@dataclass(slots=True)
class Script:
    """What a source says, and how far it has come: all of it that outlives its process."""

    source: str
    steps: list[Said] = field(default_factory=list)
    done: int = 0

    @property
    def over(self) -> bool:
        return self.done >= len(self.steps)


async def speak(runtime: SimulatedRuntime, script: Script) -> None:
    """One life of a source."""
    world = runtime.process.world
    log = await _connected(runtime)
    loop = asyncio.get_running_loop()
    while not script.over:
        said = script.steps[script.done]
        await asyncio.sleep(max(said.after_s, said.not_before - loop.time()))
        if said.message is None:
            await log.client.publish(f"mcp.event.{script.source}.x", said.data)
        elif not await _published(world, log, said.message, ordered=not said.not_before):
            continue
        script.done += 1
        if script.source == "gateway" and script.done % SNAPSHOT_AFTER == 0:
            await log.tell(SNAPSHOT_WANTED, b"")


async def answer(runtime: SimulatedRuntime, agent: str) -> None:
    """One life of an agent; where it goes on it knows by what it wrote down, or not."""
    world = runtime.process.world
    while True:
        log = await _connected(runtime)
        try:
            after = world.remembered.get(agent, 0)
            async with log.follow(after, subjects.requests_to(agent)) as follower:
                async for batch in follower:
                    for record in batch:
                        await _answered(world, log, agent, record)
                        if agent != "mute":
                            world.remembered[agent] = record.position
        except Unavailable:
            await asyncio.sleep(AGAIN_S)
        finally:
            await log.close()


async def _answered(world: World, log: Log, agent: str, record: Record) -> None:
    try:
        request = parse(record.data, record.subject)
    except MessageError:
        return
    name = f"{agent}-{record.position}"
    chance = random.Random(f"{world.seed} {name}")
    way = chance.choices(
        ("outputs", "error", "late", "silent", "twice", "no cause"), (60, 8, 8, 8, 8, 8)
    )[0]
    if way == "silent":
        return
    payload: dict[str, Any] = {"outputs": {"n": record.position}}
    if way == "error":
        payload = {"error": {"code": "broken", "message": "it broke", "retryable": False}}
    for copy in range(2 if way == "twice" else 1):
        said = Message.answer(
            request, agent, payload, message_id=f"{name}-{copy}", timestamp=record.time
        )
        if way == "no cause":
            said = Message.build(
                "response",
                agent,
                request.source,
                payload,
                correlation_id=request.metadata.correlation_id,
                message_id=f"{name}-{copy}",
                timestamp=record.time,
            )
        if way == "late":
            asyncio.ensure_future(_later(world, log, said, 3 * chance.random()))  # noqa: RUF006
        else:
            await _published(world, log, said, ordered=False)


async def _later(world: World, log: Log, message: Message, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await _published(world, log, message, ordered=False)


async def _published(world: World, log: Log, message: Message, *, ordered: bool) -> bool:
    """Publish; whether it was acknowledged, which the world then holds the bus to."""
    try:
        stored = await log.publish(message)
    except (Unavailable, OutcomeUnknown):
        return False
    world.acknowledged(message, stored.position, ordered=ordered)
    return True


async def _connected(runtime: SimulatedRuntime) -> Log:
    while True:
        try:
            return await runtime.connect_log()
        except Unavailable:
            await asyncio.sleep(AGAIN_S)


# --- scripts ----------------------------------------------------------------------------------


def scripts(chance: random.Random, window_s: float) -> list[Script]:
    """Three sources with 51 to 66 steps between them."""
    gateway = Script("gateway")
    for agent in AGENTS:
        gateway.steps.append(_command(chance, "registry", "register", _agent(agent, "go")))
    for count in (1, 2, 3):
        gateway.steps.append(_command(chance, "workflows", "define", _workflow(chance, count)))
    gateway.steps.append(_command(chance, "workflows", "define", CHILDREN))
    for _ in range(chance.randint(10, 13)):
        gateway.steps.append(_asked(chance))
    _hold(chance, gateway.steps)
    found = [gateway, _talk(chance, "alice"), _talk(chance, "bob")]
    if (
        window_s < LONG_S or chance.random() < 0.2
    ):  # of copies beyond the window, which take their time
        for script in found:
            originals = [
                s.message for s in script.steps if s.message is not None and not _holds(s.message)
            ]
            for message in chance.sample(originals, 2):
                script.steps.append(Said(message, 0.0, not_before=window_s + 5))
    return found


def _asked(chance: random.Random) -> Said:
    way = chance.random()
    if way < 0.7:
        given = {"n": chance.randint(1, 9), "list": [1, 2, 3]}
        inputs = {"workflowId": f"w{chance.randint(1, 4)}", "inputs": given}
        return _command(chance, "workflows", "execute", inputs)
    if way < 0.8:
        return _command(chance, "workflows", "define", _workflow(chance, chance.randint(1, 3)))
    if way < 0.9:
        agent = _agent(chance.choice(AGENTS), chance.choice(["go", "come"]))
        return _command(chance, "registry", "register", agent)
    return _command(chance, "registry", "choose", {"capability": "c", "action": "go"})


def _hold(chance: random.Random, steps: list[Said]) -> None:
    """One execution that starts others is paused, and later resumed: so it ends."""
    executes = [at for at, said in enumerate(steps) if _starts(said.message, CHILDREN["id"])]
    if not executes or chance.random() < 0.3:
        return
    at = chance.choice(executes)
    started = steps[at].message
    assert started is not None
    about = {"executionId": started.metadata.message_id}
    steps.insert(at + 1, _command(chance, "workflows", "pause", about))
    steps.insert(chance.randint(at + 2, len(steps)), _command(chance, "workflows", "resume", about))


def _starts(message: Message | None, workflow: str) -> bool:
    """Whether it is the command that starts a workflow."""
    asked = message.payload if message is not None else {}
    return bool(asked.get("inputs", {}).get("workflowId") == workflow)


def _holds(message: Message) -> bool:
    """Whether it pauses: said again much later it would do so for ever."""
    return bool(message.payload.get("action") == "pause")


def _talk(chance: random.Random, source: str) -> Script:
    script = Script(source)
    for number in range(chance.randint(17, 20)):
        way = chance.random()
        after_s = chance.random() * 0.25
        payload: dict[str, Any] = {"number": number}
        if way < 0.5:
            message = Message.build("event", source, "room", payload, message_id=new_id())
        elif way < 0.8:
            target = chance.choice([*AGENTS, "nobody"])
            payload = {"action": "go", "inputs": payload}
            message = Message.build("request", source, target, payload, message_id=new_id())
        elif way < 0.9 and script.steps:
            copied = chance.choice(script.steps)  # once more, within the window
            script.steps.append(Said(copied.message, after_s, copied.data, not_before=1e-9))
            continue
        else:
            script.steps.append(Said(None, after_s, chance.choice([b"{", b"[]", b"\xff"])))
            continue
        script.steps.append(Said(message, after_s))
    return script


def _command(chance: random.Random, target: str, action: str, inputs: Any) -> Said:
    message = Message.build(
        "request",
        "gateway",
        target,
        {"action": action, "inputs": inputs},
        principal=ADMIN,
        message_id=new_id(),
    )
    return Said(message, chance.random() * 0.25)


def _agent(agent: str, action: str) -> dict[str, Any]:
    actions = sorted({"go", action})
    return {
        "id": agent,
        "type": "test",
        "capabilities": [{"name": "c", "actions": actions, "parameters": {}}],
    }


CHILDREN: dict[str, Any] = {
    "id": "w4",
    "name": "W4",
    "steps": [
        {
            "id": "s0",
            "forEach": "${inputs.list}",
            "maxParallel": 2,
            "workflow": {"id": "w2", "inputs": {"n": "${item}"}},
        },
        {"id": "s1", "workflow": {"id": "w1", "inputs": {"n": "${inputs.n}"}}},
    ],
}


def _workflow(chance: random.Random, count: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    for number in range(count):
        before = f"${{steps.s{number - 1}.outputs.n}}" if number else "${inputs.n}"
        steps.append(
            {
                "id": f"s{number}",
                "agentId": chance.choice([*AGENTS, "capability:c"]),
                "action": "go",
                "inputs": {"n": before},
                "timeoutMs": chance.randint(1000, 3000),
            }
        )
    return {"id": f"w{count}", "name": f"W{count}", "steps": steps}
