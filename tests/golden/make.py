"""Keep a short history as this build writes it: `python -m tests.golden.make` (`make golden`).

Run it once for each new migration, or for a new form of what the log holds, and commit the folder
that it makes; folders of earlier builds stay as they are. See test_golden.py for what is in one.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import asyncpg

from agents_sdk import Agent
from mcp_bus import config, log
from mcp_bus.config import Settings
from mcp_bus.embedded import Bus, postgres, running
from mcp_bus.messages import Message
from mcp_bus.store import event_store, migrate
from tests.conftest import SECRET
from tests.golden.history import ANSWERS, PLAYED, WAITING, ask

HERE = Path(__file__).parent


async def main() -> None:
    """Play, dump the store, stop, and pack the log."""
    number = max(migrate.migrations())[:4]
    with tempfile.TemporaryDirectory() as path:
        settings = config.load(
            {},
            data_dir=Path(path),
            port=0,
            nats_port=0,
            postgres_port=0,
            secret=SECRET,
            durability="interval",
        )
        made = HERE / number
        made.mkdir()
        async with running(settings) as bus:
            answers = await played(bus)
            (made / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")
            store = dumped(settings, bus)
        (made / "store.sql.gz").write_bytes(gzip.compress(store.encode(), mtime=0))
        with tarfile.open(made / "log.tar.gz", "w:gz") as packed:
            packed.add(settings.data_dir / "nats", "nats")


async def played(bus: Bus) -> dict[str, Any]:
    """Everything that a bus of two agents can say in a moment; and what is then told of it."""
    async with agent(bus):
        for method, path, body in PLAYED:
            await ask(bus.gateway_url, bus.token, method, path, body)
    assert bus.settings.nats
    services = await log.connect(bus.settings.nats.get_secret_value(), name="make")
    good = Message.build("event", "echo", "b", {"event": "said"})
    await services.publish(good)
    for wrong in (b"not JSON", good.encode()):  # malformed, and a copy without an id for the log
        await services.client.publish("mcp.event.echo.b", wrong)
    await services.close()
    await ask(bus.gateway_url, bus.token, "PUT", f"/workflows/{WAITING}/execute", {})
    last = (await settled(bus)).last
    answers = {path: await ask(bus.gateway_url, bus.token, "GET", path) for path in ANSWERS}
    executions = answers["/workflows/relay"]["executions"]
    for path in [
        f"/{what}/{e['id']}" for e in executions for what in ("executions", "conversations")
    ]:
        answers[path] = await ask(bus.gateway_url, bus.token, "GET", path)
    assert (await settled(bus)).last == last
    return {"position": last, "answers": answers}


def agent(bus: Bus) -> Agent:
    """An agent that gives back a text, or refuses to."""
    echo = Agent("echo", type="test", capability="text", data_dir=bus.data_dir)

    @echo.action
    def say(text: str) -> dict[str, str]:
        """Give the text back."""
        if not text:
            raise ValueError("nothing to say")
        return {"text": text}

    return echo


async def settled(bus: Bus) -> log.LogInfo:
    """The log, once everything in it is in the read models."""
    assert bus.settings.nats
    assert bus.settings.postgres
    services = await log.connect(bus.settings.nats.get_secret_value(), name="make")
    info = await services.info()
    await services.close()
    connection = await asyncpg.connect(bus.settings.postgres.get_secret_value())
    await event_store.reached(connection, event_store.READ, info.last)
    await connection.close()
    return info


def dumped(settings: Settings, bus: Bus) -> str:
    """The database as SQL that a PostgreSQL of another version takes as well."""
    assert bus.admin_url
    program = postgres.find_binaries(settings) / "pg_dump"
    done = subprocess.run(
        [program, "--inserts", "--rows-per-insert=100", bus.admin_url],
        capture_output=True,
        check=True,
        env=os.environ | {"LC_ALL": "C"},
    )
    session = ("SET ", "SELECT pg_catalog.set_config", "\\", "--")  # of pg_dump's own version
    kept = [
        line for line in done.stdout.decode().splitlines() if line and not line.startswith(session)
    ]
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    asyncio.run(main())
