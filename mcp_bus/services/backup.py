"""Backup and restore: event store and log together, from a running bus, into a folder.

    DIR/store/TABLE.z     rows as PostgreSQL writes them, compressed: all of one moment
    DIR/log/STREAM        the copy that nats-server makes of a stream
    DIR/secret            the bus secret, where the bus is an embedded one
    DIR/manifest.json     what is in each file and how it is checked; written last

The event store comes first and the log after it, so that the log holds everything behind the
recorder's checkpoint: what was acknowledged before the backup began is in one of them. The other
way round the log would have gone back. Each file is read again before the manifest is written, and
a restore checks everything before it begins and again when it is done.

Never: a folder or an engine that holds something already.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mcp_bus import __version__, subjects
from mcp_bus.config import COPY_CHUNK_BYTES
from mcp_bus.errors import LogWentBack, Refused, Unavailable
from mcp_bus.log import Log, connect, copies
from mcp_bus.services.damage import diagnosed
from mcp_bus.store import copies as rows
from mcp_bus.store import event_store, gaps, migrate
from mcp_bus.store.event_store import RECORDER, Connection

MANIFEST = "manifest.json"
FORMAT = 1
# the log last: a snapshot of a decider must not be ahead of it
STREAMS = (subjects.SNAPSHOTS_STREAM, subjects.DROPPED_STREAM, subjects.STREAM)

Progress = Callable[[str, int], None]  # what, and how much of it: bytes as they are kept


@dataclass(frozen=True)
class Backup:
    """What a folder holds, as its manifest says."""

    path: Path
    manifest: dict[str, Any]

    @property
    def recorded(self) -> int:
        """The checkpoint of the recorder."""
        return int(self.manifest["recorded"])

    @property
    def last(self) -> int:
        """The last position in the log."""
        return int(self.manifest["log"][subjects.STREAM]["state"]["last_seq"])


async def taken(
    nats: str, postgres: str, path: Path, secret: str | None, progress: Progress
) -> Backup:
    """Back up into a new folder. Raises Refused, Unavailable, LogWentBack."""
    if path.exists() and any(path.iterdir()):
        raise Refused(f"{path} is not empty: a backup is never written over something")
    for folder in (path, path / "store", path / "log"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "migration": max(migrate.migrations()),
        "files": {},
    }
    log = await connect(nats, name="backup")
    try:
        async with rows.opened(postgres) as connection:
            if (damage := await diagnosed(log, connection)) is not None:
                raise damage.error()
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                manifest |= await _store(connection, path, manifest["files"], progress)
        manifest["log"] = await _log(log, path, manifest["files"], progress)
    finally:
        await log.close()
    if secret is not None:
        with _Kept(path, "secret", manifest["files"], None) as file:
            file.write(f"{secret}\n".encode())
    backup = Backup(path, manifest)
    _check_positions(backup)
    check_files(backup, progress)
    _write_manifest(backup)
    return backup


def opened(path: Path) -> Backup:
    """The backup in a folder; Refused for what is none, or one of a newer release."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise Refused(f"{path} holds no whole backup: {error}") from None
    if manifest.get("format") != FORMAT or manifest["migration"] > max(migrate.migrations()):
        raise Refused(f"the backup in {path} was made by a newer release, {manifest['version']}")
    return Backup(path, manifest)


def check_files(backup: Backup, progress: Progress) -> None:
    """Refused unless each file is what was written, to the last bit."""
    for name, known in backup.manifest["files"].items():
        digest, size = hashlib.sha256(), 0
        try:
            with (backup.path / name).open("rb") as file:
                while piece := file.read(1024 * 1024):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            raise Refused(f"{backup.path / name} cannot be read: {error.strerror}") from None
        if (size, digest.hexdigest()) != (known["bytes"], known["sha256"]):
            raise Refused(f"{backup.path / name} is damaged")
        progress(f"checked {name}", size)


async def restored(
    nats: str, postgres: str, backup: Backup, progress: Progress, *, store_only: bool = False
) -> None:
    """Put a backup into engines that are prepared and hold nothing; `store_only`: beside the log
    that it was made of, and that went on since. Raises Refused, Unavailable, LogWentBack."""
    check_files(backup, progress)
    log = await connect(nats, name="restore")
    try:
        async with rows.opened(postgres) as connection:
            await _refuse_unless_empty(log, connection, store_only)
            if not store_only:
                await _put_log(log, backup, progress)
            async with connection.transaction():
                await _put_store(connection, backup, progress)
                if not store_only:
                    # the server takes its copy for a new stream; what is in it is compared now
                    await gaps.adopt(connection, (await log.info()).identity)
                if (damage := await diagnosed(log, connection)) is not None:
                    raise damage.error()
    finally:
        await log.close()


async def _put_log(log: Log, backup: Backup, progress: Progress) -> None:
    for stream, copied in backup.manifest["log"].items():
        await copies.remove(log, stream)
        pieces = _pieces(backup.path / "log" / stream, progress)
        state = await copies.put(log, stream, copied, pieces)
        if state["messages"] != copied["state"]["messages"]:
            raise Unavailable(f"{stream} has {state['messages']} messages after all")
    await copies.identify(log, subjects.STREAM)


async def _put_store(connection: Connection, backup: Backup, progress: Progress) -> None:
    for table, known in backup.manifest["store"].items():
        found = _rows(backup.path / "store" / f"{table}.z", progress)
        count = await rows.put(connection, table, known["columns"], found)
        if count != known["rows"]:
            raise Unavailable(f"{table} has {count} rows after all")


async def _store(
    connection: Connection, path: Path, files: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Every table of one moment."""
    tables: dict[str, Any] = {}
    for table in rows.TABLES:
        packer = zlib.compressobj(1)
        with _Kept(path, f"store/{table}.z", files, progress) as file:

            async def write(piece: bytes, file: _Kept = file, packer: Any = packer) -> None:
                file.write(packer.compress(piece))

            count = await rows.take(connection, table, write)
            file.write(packer.flush())
        tables[table] = {"rows": count, "columns": await rows.columns(connection, table)}
    return {
        "store": tables,
        "recorded": await event_store.checkpoint(connection, RECORDER),
        "identity": await gaps.identity(connection),
    }


async def _log(
    log: Log, path: Path, files: dict[str, Any], progress: Progress
) -> dict[str, dict[str, Any]]:
    streams = {}
    for stream in STREAMS:
        if await copies.info(log, stream) is None:
            continue
        with _Kept(path, f"log/{stream}", files, progress) as file:
            streams[stream] = await copies.take(log, stream, file.write)
    return streams


def _check_positions(backup: Backup) -> None:
    """LogWentBack unless the log goes on where the event store ends."""
    state = backup.manifest["log"][subjects.STREAM]["state"]
    if not state["first_seq"] <= backup.recorded + 1 <= state["last_seq"] + 1:
        raise LogWentBack(
            f"the log was copied from {state['first_seq']} to {state['last_seq']}, and "
            f"{backup.recorded} was recorded: it changed meanwhile, back up again"
        )


def _write_manifest(backup: Backup) -> None:
    draft = backup.path / f".{MANIFEST}"
    with draft.open("w") as file:
        json.dump(backup.manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(backup.path / MANIFEST)


async def _refuse_unless_empty(log: Log, connection: Connection, store_only: bool) -> None:
    found = await copies.info(log, subjects.STREAM)
    if found is not None and found["state"]["last_seq"] and not store_only:
        raise Refused("this log holds messages: a backup is restored into nothing else")
    counts = await rows.counts(connection)
    if any(counts.values()):
        raise Refused(f"this event store is in use, {counts}: a backup is restored into a new one")


async def _pieces(path: Path, progress: Progress) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(COPY_CHUNK_BYTES):
            yield piece
            progress(f"restored log/{path.name}", len(piece))


async def _rows(path: Path, progress: Progress) -> AsyncIterator[bytes]:
    unpacker = zlib.decompressobj()
    with path.open("rb") as file:
        while piece := file.read(COPY_CHUNK_BYTES):
            yield unpacker.decompress(piece)
            progress(f"restored store/{path.name}", len(piece))
    yield unpacker.flush()


class _Kept:
    """A new file of mode 600 that is on the disk, and in the manifest, when it is closed."""

    def __init__(
        self, path: Path, name: str, files: dict[str, Any], progress: Progress | None
    ) -> None:
        self._name, self._files, self._progress = name, files, progress
        self._digest, self._size = hashlib.sha256(), 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._file: IO[bytes] = os.fdopen(os.open(path / name, flags, 0o600), "wb")

    def write(self, piece: bytes) -> None:
        self._file.write(piece)
        self._digest.update(piece)
        self._size += len(piece)
        if self._progress is not None:
            self._progress(f"wrote {self._name}", len(piece))

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if error[0] is None:
            digest = self._digest.hexdigest()
            self._files[self._name] = {"bytes": self._size, "sha256": digest}
