"""DBOS: a workflow of three steps in one process, kept in PostgreSQL before each goes on.

    python -m benchmarks.peers.dbos_workflow     `p50_ms N` or `per_second N`: says how much

Written as its documentation does, asynchronous, on uvloop like ours; its database is made anew.
Nothing is sent to anybody: a step is a function of this process.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import psycopg
import uvloop
from dbos import DBOS, DBOSConfig
from sqlalchemy import Engine, event

from benchmarks import load
from benchmarks.helper import say, told

DATABASE = "dbos"
# the PostgreSQL of our wheel brings no extensions; DBOS makes this one, and uses nothing of it
EXTENSION = 'CREATE EXTENSION IF NOT EXISTS "uuid-ossp";'


def without_extension(
    _connection: object, _cursor: object, statement: str, parameters: object, *_: object
) -> tuple[str, object]:
    """A statement, as it is executed."""
    return statement.replace(EXTENSION, ""), parameters


async def echo(n: int) -> int:
    """A step."""
    return n


async def three(n: int) -> int:
    """The same three steps as ours."""
    return await step(await step(await step(n)))


event.listen(Engine, "before_cursor_execute", without_extension, retval=True)
step: Callable[[int], Awaitable[int]] = DBOS.step()(echo)
workflow: Callable[[int], Awaitable[int]] = DBOS.workflow()(three)


async def measure() -> None:
    """Run as many as each line says, until there is none."""
    server = os.environ["MCP_BUS_POSTGRES_ADMIN"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")
    config = DBOSConfig(
        name="bench",
        system_database_url=urlsplit(server)._replace(path=f"/{DATABASE}").geturl(),
        run_admin_server=False,
        log_level="ERROR",
    )
    DBOS(config=config)
    DBOS.launch()
    say("ready")
    while line := await told():
        name, _, count = line.partition(" ")
        say(str(await MEASURES[name](lambda: workflow(7), int(count))))
    DBOS.destroy()


MEASURES = {"p50_ms": load.p50_ms, "per_second": load.per_second}

if __name__ == "__main__":
    uvloop.run(measure())
