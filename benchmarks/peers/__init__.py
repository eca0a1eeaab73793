"""Peers: other people's buses, measured beside ours on the same engines.

They live in a venv of their own, `make bench-peers`, because their dependencies must not decide
what ours are. Their programs here run in it: they import nothing of ours but helper.py and load.py.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

NAMES = ("dbos", "faststream")

_VENV = Path(__file__).parents[2] / ".venv-peers"


class Missing(Exception):
    """A row cannot be measured, because its peer is not installed."""


def python() -> Path:
    """The interpreter that has the peers; raises Missing."""
    if not (_VENV / ".peers").exists():
        raise Missing("its peer is not installed: make bench-peers")
    return _VENV / "bin" / "python"


def versions() -> dict[str, str]:
    """The version of each peer that is installed."""
    found = metadata.distributions(path=[str(p) for p in _VENV.glob("lib/python*/site-packages")])
    return {d.metadata["Name"]: d.version for d in found if d.metadata["Name"] in NAMES}
