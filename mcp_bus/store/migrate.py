"""Bring database, roles and schemas of the event store up to date.

Numbered files in `sql/`, each applied once, in order, in a transaction of its own, with its
checksum kept. Any number of processes may start together: one works, the others wait and find
nothing to do. Refused: a file that was changed after it was applied, a file that would come
after a later one, and a database that a newer release has migrated. Never drops anything.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from urllib.parse import unquote, urlsplit

import asyncpg

from mcp_bus.config import MIGRATE_S_MAX, STORE_CONNECT_S
from mcp_bus.errors import SettingsError, Unavailable

SERVICE = "mcp_bus_service"
READER = "mcp_bus_reader"
POSTGRES_MIN = 15  # NULLS NOT DISTINCT

_MAINTENANCE = "postgres"  # the database that every cluster has
_LOCK = 7_266_001  # taken in the maintenance database, because roles belong to the whole cluster
_FILE = re.compile(r"\A[0-9]{4}_[a-z0-9_]+\.sql\Z")


async def migrate(
    admin_url: str, *, service_password: str, reader_password: str | None
) -> list[str]:
    """Make what is missing and return the names of the files that were applied now.

    `admin_url` names the database, which is created if needed; its role may create databases,
    roles and schemas. Passwords are set each time; None leaves the reader's as it is, which at
    first means that nobody reads with that role. Raises SettingsError or Unavailable.
    """
    files = migrations()
    database = unquote(urlsplit(admin_url).path.lstrip("/"))
    if not database:
        raise SettingsError("the URL for migrations names no database")
    maintenance = await _connect(urlsplit(admin_url)._replace(path=f"/{_MAINTENANCE}").geturl())
    try:
        await maintenance.execute("SELECT pg_advisory_lock($1)", _LOCK, timeout=MIGRATE_S_MAX)
        await _prepare_cluster(maintenance, database, service_password, reader_password)
        connection = await _connect(admin_url)
        try:
            return await apply(connection, files)
        finally:
            await connection.close()
    finally:
        await maintenance.close()  # and with it goes the lock


def migrations() -> dict[str, str]:
    """The numbered files of this release: name and SQL, in order."""
    folder = resources.files("mcp_bus.store") / "sql"
    names = sorted(file.name for file in folder.iterdir() if _FILE.match(file.name))
    return {name: (folder / name).read_text("utf-8") for name in names}


async def apply(connection: asyncpg.Connection, files: dict[str, str]) -> list[str]:
    """Apply those of `files` that this database has not seen; the caller holds the lock."""
    await connection.execute(
        """
        CREATE SCHEMA IF NOT EXISTS bus;
        CREATE TABLE IF NOT EXISTS bus.migrations (
            name text PRIMARY KEY, sha256 text NOT NULL, applied timestamptz DEFAULT now() NOT NULL
        )
        """
    )
    done = dict(await connection.fetch("SELECT name, sha256 FROM bus.migrations"))
    _check(files, done)
    applied = []
    for name, sql in files.items():
        if name in done:
            continue
        async with connection.transaction():
            await connection.execute(sql)
            await connection.execute(
                "INSERT INTO bus.migrations (name, sha256) VALUES ($1, $2)", name, _digest(sql)
            )
        applied.append(name)
    return applied


def _check(files: dict[str, str], done: dict[str, str]) -> None:
    unknown = sorted(set(done) - set(files))
    if unknown:
        raise SettingsError(
            f"the database was migrated by a newer release, which has {unknown[-1]}; this one "
            f"ends at {max(files, default='nothing')}"
        )
    for name, sql in files.items():
        if name in done and done[name] != _digest(sql):
            raise SettingsError(f"migration {name} was changed after it was applied")
        if name not in done and done and name < max(done):
            raise SettingsError(f"migration {name} would be applied after {max(done)}")


async def _connect(url: str) -> asyncpg.Connection:
    try:
        connection = await asyncpg.connect(url, timeout=STORE_CONNECT_S)
    except (OSError, TimeoutError, asyncpg.CannotConnectNowError) as error:
        raise Unavailable(
            f"no PostgreSQL for migrations: {error!r}", code="store_unavailable"
        ) from None
    except asyncpg.PostgresError as error:
        raise SettingsError(f"PostgreSQL refuses the role for migrations: {error}") from None
    version = connection.get_server_version().major
    if version < POSTGRES_MIN:
        await connection.close()
        raise SettingsError(f"PostgreSQL {POSTGRES_MIN} or later is needed, found {version}")
    return connection


async def _prepare_cluster(
    connection: asyncpg.Connection,
    database: str,
    service_password: str,
    reader_password: str | None,
) -> None:
    """Roles with their passwords, and the database, which the service role may fill."""
    for role, password in ((SERVICE, service_password), (READER, reader_password)):
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role} LOGIN")
        if password is None:
            continue
        # the server quotes, because a role's password cannot be a parameter
        await connection.execute(
            await connection.fetchval(
                "SELECT format('ALTER ROLE %I LOGIN PASSWORD %L', $1::text, $2::text)",
                role,
                password,
            )
        )
    # who is no superuser may make schemas for a role only as its member
    await connection.execute(f"GRANT {SERVICE} TO CURRENT_USER")
    quoted = await connection.fetchval("SELECT quote_ident($1)", database)
    if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
        # bytewise order: the same on every system, so that a rebuild is equal row for row
        await connection.execute(
            f"CREATE DATABASE {quoted} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'"
        )
    await connection.execute(f"GRANT CONNECT, CREATE ON DATABASE {quoted} TO {SERVICE}")
    await connection.execute(f"GRANT CONNECT ON DATABASE {quoted} TO {READER}")


def _digest(sql: str) -> str:
    return hashlib.sha256(sql.encode()).hexdigest()
