"""A disk of an engine's own, which can be filled: a tmpfs, for which the test must be root."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1024**2


class Disk:
    """Made by `disk`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder.parent / "ballast"

    def fill(self) -> None:
        """Leave not a byte."""
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        self._ballast.unlink()


@contextlib.contextmanager
def disk(path: Path, size: int) -> Iterator[Disk]:
    """A folder on a file system of so many bytes; skips the test where nothing can be mounted."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount(8): nothing can be given a disk of its own")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        (path / "data").mkdir(mode=0o700)
        yield Disk(path / "data")
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
