"""The locks: each pins, with hashes, what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)

# lock -> (extras, dependency groups), as `make lock` compiles it
LOCKS = {
    "server.txt": (["server"], ["build"]),
    "demo.txt": (["server", "mcp", "demo"], ["build"]),
    "dev.txt": (["server", "mcp", "demo"], ["build", "dev"]),
    "peers.txt": ([], ["peers"]),
}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_what_pyproject_asks_for(lock: str) -> None:
    """A dependency that was added or raised without `make lock` is found before it is missed."""
    pinned = dict(PINNED.findall((ROOT / "requirements" / lock).read_text()))
    wrong = [
        f"{wanted}: {pinned.get(name)}"
        for wanted in asked_for(*LOCKS[lock])
        if (name := wanted.name.lower()) not in pinned or pinned[name] not in wanted.specifier
    ]
    assert not wrong


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash(lock: str) -> None:
    """Nothing is installed that is not, byte for byte, what was locked."""
    text = (ROOT / "requirements" / lock).read_text()
    pins = re.split(r"\n(?=\S)", text.strip())
    assert len(pins) == len(PINNED.findall(text))
    assert all("--hash=sha256:" in pin for pin in pins)


def asked_for(extras: list[str], groups: list[str]) -> list[Requirement]:
    """What pyproject.toml wants for a lock, without the project itself."""
    wanted: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = wanted["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    for group in groups:
        lines += [line for line in wanted["dependency-groups"][group] if isinstance(line, str)]
    found = [Requirement(line) for line in lines]
    return [requirement for requirement in found if requirement.name != project["name"]]
