"""Migrations: each file once, in order, whole or not at all; privileges as promised."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import quote, urlsplit

import asyncpg
import pytest

from mcp_bus.errors import SettingsError, Unavailable
from mcp_bus.store import migrate
from tests.conftest import Engines, Postgres

FILES = {
    "0001_a.sql": "CREATE TABLE a (i int); CREATE INDEX ON a (i);",
    "0002_b.sql": "ALTER TABLE a ADD j int;",
}


@pytest.fixture
async def admin(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    """A connection that may do everything, in a database without migrations of ours."""
    connection = await asyncpg.connect(postgres.admin)
    await connection.execute("DROP TABLE bus.migrations")
    yield connection
    await connection.close()


async def as_role(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def test_each_file_is_applied_once(admin: asyncpg.Connection) -> None:
    """The second run finds nothing to do."""
    assert await migrate.apply(admin, FILES) == ["0001_a.sql", "0002_b.sql"]
    assert await migrate.apply(admin, FILES) == []


async def test_a_changed_file_is_refused(admin: asyncpg.Connection) -> None:
    """What was applied is history: a change is a new file."""
    await migrate.apply(admin, FILES)
    with pytest.raises(SettingsError, match=r"0001_a\.sql was changed"):
        await migrate.apply(admin, FILES | {"0001_a.sql": "SELECT 1"})


async def test_a_file_that_comes_too_late_is_refused(admin: asyncpg.Connection) -> None:
    """A number below one that was applied would run on tables of another shape."""
    await migrate.apply(admin, {"0002_b.sql": "SELECT 1"})
    with pytest.raises(SettingsError, match="would be applied after"):
        await migrate.apply(admin, {"0001_a.sql": "SELECT 1", "0002_b.sql": "SELECT 1"})


async def test_a_database_of_a_newer_release_is_refused(admin: asyncpg.Connection) -> None:
    """An old release does not touch what it does not know."""
    await migrate.apply(admin, FILES)
    with pytest.raises(SettingsError, match=r"newer release, which has 0002_b\.sql"):
        await migrate.apply(admin, {"0001_a.sql": FILES["0001_a.sql"]})


async def test_a_failing_file_leaves_nothing(admin: asyncpg.Connection) -> None:
    """Its first statements are undone with the last."""
    with pytest.raises(asyncpg.UndefinedTableError):
        await migrate.apply(admin, {"0001_z.sql": "CREATE TABLE z (i int); SELECT * FROM nope;"})
    assert await admin.fetchval("SELECT to_regclass('z')") is None
    assert await admin.fetchval("SELECT count(*) FROM bus.migrations") == 0


async def test_a_failing_file_leaves_those_before_it(admin: asyncpg.Connection) -> None:
    """Each is a transaction of its own: a corrected release goes on where it failed."""
    with pytest.raises(asyncpg.UndefinedTableError):
        await migrate.apply(admin, FILES | {"0003_c.sql": "SELECT * FROM nope"})
    assert await migrate.apply(admin, FILES | {"0003_c.sql": "SELECT 1"}) == ["0003_c.sql"]


def test_the_files_are_numbered_without_a_gap() -> None:
    """So that two changes that were made beside each other cannot both be the next."""
    numbers = [int(name[:4]) for name in migrate.migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_many_starters_migrate_a_new_database_once(engines: Engines) -> None:
    """Four processes start at once: one works, the others wait and find nothing to do."""
    urls = engines.postgres("many-starters")  # a name that needs quotes
    secrets = engines.secrets
    results = await asyncio.gather(
        *(
            migrate.migrate(
                urls.admin,
                service_password=secrets.postgres_service,
                reader_password=secrets.postgres_reader,
            )
            for _ in range(4)
        )
    )
    assert sorted(map(len, results)) == [0, 0, 0, len(migrate.migrations())]
    await as_role(urls.service, "SELECT * FROM store.messages")
    await as_role(engines.postgres("postgres").admin, 'DROP DATABASE "many-starters" WITH (FORCE)')


async def test_passwords_are_set_each_time_and_quoted(engines: Engines, postgres: Postgres) -> None:
    """A password is data, whatever characters it has."""
    secrets = engines.secrets
    odd = 'it\'s \\ "odd"; DROP ROLE mcp_bus_reader; --'
    try:
        await migrate.migrate(
            postgres.admin, service_password=secrets.postgres_service, reader_password=odd
        )
        place = urlsplit(postgres.reader).netloc.rpartition("@")[2]
        path = urlsplit(postgres.reader).path
        await as_role(
            f"postgresql://mcp_bus_reader:{quote(odd, safe='')}@{place}{path}", "SELECT 1"
        )
        with pytest.raises(asyncpg.InvalidPasswordError):
            await as_role(postgres.reader, "SELECT 1")
    finally:
        await migrate.migrate(
            postgres.admin,
            service_password=secrets.postgres_service,
            reader_password=secrets.postgres_reader,
        )
    await as_role(postgres.reader, "SELECT 1")


async def test_the_service_role_cannot_change_history(postgres: Postgres) -> None:
    """Immutable by privilege, not by good will, in every table of the store; nor can it give
    itself the right to."""
    service, admin = await asyncpg.connect(postgres.service), await asyncpg.connect(postgres.admin)
    tables = dict(await admin.fetch(_TABLES))
    assert {"messages", "quarantine", "gaps"} <= tables.keys()
    assert await admin.fetchval(_SUPER) == 0
    for table, column in tables.items():
        for attack in ATTACKS:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await service.execute(attack.format(f"store.{table}", column))
        await service.execute(f"GRANT ALL ON store.{table} TO {migrate.SERVICE}")  # grants nothing
        rights = await admin.fetch(_RIGHTS, migrate.SERVICE, f"store.{table}")
        assert {row[0] for row in rights} == {"SELECT", "INSERT"}
    await service.close()
    await admin.close()


_TABLES = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = 'store' AND ordinal_position = 1
"""
_SUPER = """
SELECT count(*) FROM pg_roles WHERE rolname = 'mcp_bus_service'
AND (rolsuper OR rolcreaterole OR rolreplication OR rolbypassrls)
"""
_RIGHTS = """
SELECT p FROM unnest(ARRAY[
    'SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'
]) AS p
WHERE has_table_privilege($1, $2, p)
"""
ATTACKS = (
    "UPDATE {0} SET {1} = {1}",
    "UPDATE {0} SET {1} = {1} WHERE false",
    "DELETE FROM {0}",
    "TRUNCATE {0}",
    "DROP TABLE {0}",
    "ALTER TABLE {0} ADD x int",
    "ALTER TABLE {0} DISABLE TRIGGER ALL",
    "ALTER TABLE {0} OWNER TO mcp_bus_service",
    "ALTER TABLE {0} SET SCHEMA read",
    "CREATE RULE x AS ON INSERT TO {0} DO INSTEAD NOTHING",
    "CREATE INDEX x ON {0} ({1})",
    "CREATE TRIGGER x BEFORE INSERT ON {0} EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "SELECT 1 FROM {0} FOR UPDATE",
    "CREATE TABLE store.x (i int)",
    "DROP SCHEMA store CASCADE",
    "ALTER SCHEMA store RENAME TO x",
    "SET session_replication_role = replica",
    "SET ROLE mcp_bus_admin",
    "ALTER ROLE mcp_bus_service SUPERUSER",
    "UPDATE bus.migrations SET sha256 = ''",
)


async def test_the_reader_role_reads_and_writes_nothing(postgres: Postgres) -> None:
    """It sees store and read, tables made later included."""
    await as_role(postgres.service, "CREATE TABLE read.later (i int)")
    await as_role(postgres.service, "CREATE SCHEMA beside CREATE TABLE beside.later (i int)")
    await as_role(postgres.reader, "SELECT * FROM store.messages, store.quarantine, read.later")
    await as_role(postgres.reader, "SELECT * FROM beside.later")
    for sql in ("INSERT INTO read.later VALUES (1)", "CREATE TABLE read.mine (i int)"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await as_role(postgres.reader, sql)


async def test_a_database_that_is_away_or_refuses_is_told_clearly(postgres: Postgres) -> None:
    """No server is worth another try, a wrong password is not."""
    with pytest.raises(Unavailable, match="no PostgreSQL"):
        await migrate.migrate(
            "postgresql://x:y@127.0.0.1:1/z", service_password="s", reader_password="r"
        )
    wrong = postgres.admin.replace(urlsplit(postgres.admin).password or "", "wrong")
    with pytest.raises(SettingsError, match="refuses"):
        await migrate.migrate(wrong, service_password="s", reader_password="r")
