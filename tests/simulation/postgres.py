"""A model of PostgreSQL, as far as the recorder and the projector use it.

The port to the event store is the connection: what mcp_bus.store and projections call on asyncpg's.
Modelled are transactions (nothing of one is seen before its commit, nothing stays of one that was
cut), unique ids and positions, locks of rows and of advice, NOTIFY with the commit, and commits
without fsync, of which a crash takes the last. statements.py answers the statements.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from tests.simulation import statements

if TYPE_CHECKING:
    from tests.simulation.processes import Process

LATENCY_S_MAX = 0.003
SLOW_S_MAX = 0.08
NOTICED_S_MAX = 2.0  # until the server knows that a client is gone

Key = Any
Row = Any
Changes = dict[str, dict[Key, Row | None]]


class Database:
    """What is committed, and who holds what."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.down = False
        self.tables: dict[str, dict[Key, Row]] = {}
        self.ids: dict[str, int] = {}  # messageId -> position
        self.advised: dict[str, Connection] = {}
        self.held: dict[str, Connection] = {}  # rows of bus.checkpoints
        self.released = asyncio.Event()
        self.connections: list[Connection] = []
        self.on_commit: Callable[[Changes], None] = lambda _: None
        self._unsynced: list[Changes] = []  # what takes back the commits that no fsync followed

    def pool(self, process: Process) -> Pool:
        return Pool(self, process)

    def go_down(self) -> None:
        """Killed; commits that did not wait for an fsync may be lost, the last ones first."""
        self.down = True
        for connection in list(self.connections):
            connection.broken()
        for _ in range(self.chance.randint(0, len(self._unsynced))):
            self._change(self._unsynced.pop())
        self._unsynced.clear()

    def commit(self, changes: Changes, synced: bool) -> None:
        """All of it at once, or UniqueViolationError and nothing."""
        for row in changes.get("store.messages", {}).values():
            if row is not None and self.ids.get(row.message_id, row.position) != row.position:
                raise asyncpg.UniqueViolationError(f"message_id {row.message_id}")
        undo = {
            table: {key: self.tables.get(table, {}).get(key) for key in rows}
            for table, rows in changes.items()
        }
        self._change(changes)
        self._unsynced = [] if synced else [*self._unsynced, undo]
        self.on_commit(changes)

    def _change(self, changes: Changes) -> None:
        for table, rows in changes.items():
            found = self.tables.setdefault(table, {})
            for key, row in rows.items():
                if row is None:
                    found.pop(key, None)
                else:
                    found[key] = row
                    if table == "store.messages" and row.message_id is not None:
                        self.ids[row.message_id] = row.position

    def tell(self, channel: str, payload: str) -> None:
        for connection in self.connections:
            connection.told(channel, payload)

    def release(self, connection: Connection) -> None:
        """What a session or a transaction held is free."""
        self.held = {name: c for name, c in self.held.items() if c is not connection}
        self.released.set()
        self.released = asyncio.Event()


class Pool:
    """As asyncpg.Pool."""

    def __init__(self, database: Database, process: Process) -> None:
        self._database = database
        self._process = process

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        self._process.step()
        await asyncio.sleep(self._database.chance.random() * LATENCY_S_MAX)
        if self._database.down:
            raise ConnectionRefusedError("the database is away")
        connection = Connection(self._database, self._process)
        try:
            yield connection
        finally:
            connection.end()


class Connection:
    """As asyncpg.Connection: one session."""

    def __init__(self, database: Database, process: Process) -> None:
        self.database = database
        self.changes: Changes | None = None  # of the open transaction
        self.path = "public"
        self.synced = True
        self.asked_at = 0.0  # when it was asked last
        self._local_path: str | None = None
        self._said: list[tuple[str, str]] = []
        self._closed = False  # as the client sees it
        self._process = process
        self._heard: dict[str, list[Callable[..., None]]] = {}
        self._context = contextvars.copy_context()
        process.ports.append(self)
        database.connections.append(self)

    # --- as asyncpg

    def is_closed(self) -> bool:
        return self._closed

    async def execute(self, statement: str, *arguments: Any) -> None:
        await self._asked(lambda: statements.answer(self, statement, arguments))

    async def fetch(self, statement: str, *arguments: Any) -> list[Any]:
        if statement in statements.HOLDING:
            await self._hold(arguments[0])
        rows = await self._asked(lambda: statements.answer(self, statement, arguments))
        return list(rows)

    async def fetchrow(self, statement: str, *arguments: Any) -> Any:
        rows = await self.fetch(statement, *arguments)
        return rows[0] if rows else None

    async def fetchval(self, statement: str, *arguments: Any) -> Any:
        rows = await self.fetch(statement, *arguments)
        return next(iter(rows[0].values())) if rows else None

    async def copy_records_to_table(
        self, table: str, *, schema_name: str, records: Iterable[Any], columns: Any
    ) -> None:
        def copied() -> None:
            for record in records:
                self.put(f"{schema_name}.{table}", record.position, record, new=True)

        await self._asked(copied)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        await self._asked(self._begin)
        try:
            yield
        except BaseException:
            if not self._closed:
                await self._asked(self._rolled_back)
            raise
        await self._asked(self._committed)

    async def add_listener(self, channel: str, heard: Callable[..., None]) -> None:
        await self._asked(lambda: self._heard.setdefault(channel, []).append(heard))

    async def remove_listener(self, channel: str, heard: Callable[..., None]) -> None:
        await self._asked(lambda: self._heard[channel].remove(heard))

    # --- for the statements

    def rows(self, table: str) -> dict[Key, Row]:
        """A table as this session sees it."""
        committed = self.database.tables.get(table, {})
        changed = (self.changes or {}).get(table)
        if not changed:
            return committed
        return {k: row for k, row in (committed | changed).items() if row is not None}

    def put(self, table: str, key: Key, row: Row | None, *, new: bool = False) -> None:
        """Insert, replace or, with None, remove a row."""
        if new and key in self.rows(table):
            raise asyncpg.UniqueViolationError(f"{table} has {key} already")
        if self.changes is None:
            self.database.commit({table: {key: row}}, self.synced)
        else:
            self.changes.setdefault(table, {})[key] = row

    def place(self, table: str) -> str:
        """A read table, by the search path."""
        return f"{self._local_path or self.path}.{table}"

    def set_path(self, path: str, *, local: bool) -> None:
        if local:
            self._local_path = path
        else:
            self.path = path

    def advise(self, name: str) -> bool:
        """pg_try_advisory_lock."""
        return self.database.advised.setdefault(name, self) is self

    def notify(self, channel: str, payload: str) -> None:
        if self.changes is None:
            self.database.tell(channel, payload)
        else:
            self._said.append((channel, payload))

    # --- the session

    def told(self, channel: str, payload: str) -> None:
        """A notification is on its way."""
        loop = asyncio.get_running_loop()
        for heard in self._heard.get(channel, ()):
            loop.call_later(self._latency(), self._hear, heard, channel, payload)

    def broken(self) -> None:
        """The server ends this session."""
        self._closed = True
        self._over()

    def end(self) -> None:
        """The client gives it back."""
        self._closed = True
        if self._process.alive:
            self._over()

    def cut(self) -> None:
        """The process died; the server notices now or later."""
        self._closed = True
        chance = self.database.chance
        late = chance.random() < 0.2
        asyncio.get_running_loop().call_later(
            chance.random() * NOTICED_S_MAX if late else self._latency(), self._over
        )

    async def _asked(self, effect: Callable[[], Any]) -> Any:
        """One exchange: it may die before or after the server did what it was asked."""
        self._process.step()
        early = self.database.chance.random() < 0.5  # most of the time passes before, or after
        if not early:
            await self._while_open()
        self.asked_at = asyncio.get_running_loop().time()
        answer = None if self._closed else effect()
        self._process.step()
        if early:
            await self._while_open()
        return answer

    async def _while_open(self) -> None:
        """Time passes; raises what asyncpg does when the session ends meanwhile, or has."""
        if self._closed:
            raise asyncpg.InterfaceError("connection is closed")
        await asyncio.sleep(self._latency())
        if self._closed:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle")

    async def _hold(self, name: str) -> None:
        """Lock a row for this transaction; wait while another one has it."""
        while not self._closed and self.database.held.setdefault(name, self) is not self:
            await self.database.released.wait()

    def _begin(self) -> None:
        self.changes = {}

    def _committed(self) -> None:
        changes, self.changes = self.changes or {}, None
        said, self._said = self._said, []
        self._local_path = None
        self.database.release(self)
        self.database.commit(changes, self.synced)
        for channel, payload in said:
            self.database.tell(channel, payload)

    def _rolled_back(self) -> None:
        self.changes, self._said, self._local_path = None, [], None
        self.database.release(self)

    def _over(self) -> None:
        if self not in self.database.connections:
            return
        self.database.connections.remove(self)
        self._rolled_back()
        self._heard.clear()
        database = self.database
        database.advised = {n: c for n, c in database.advised.items() if c is not self}

    def _hear(self, heard: Callable[..., None], channel: str, payload: str) -> None:
        if not self._closed:
            self._context.run(heard, self, 0, channel, payload)

    def _latency(self) -> float:
        chance = self.database.chance
        return chance.random() * (SLOW_S_MAX if chance.random() < 0.03 else LATENCY_S_MAX)
