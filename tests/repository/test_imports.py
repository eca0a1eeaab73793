"""The direction of imports: the contracts in pyproject.toml cover every module, and they bite."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("agents_sdk", "gateway", "mcp_bus", "projections")

# contract -> (module, an import that its contract forbids there)
PLANTED = [
    ("layers", "mcp_bus/domain/planted.py", "import mcp_bus.log"),
    ("layers", "projections/planted.py", "import mcp_bus.services"),
    ("layers", "gateway/planted.py", "import agents_sdk"),
    ("layers", "agents_sdk/testing/planted.py", "import mcp_bus.cli"),
    ("kit", "agents_sdk/planted.py", "import agents_sdk.testing"),
    ("nats", "gateway/planted.py", "import nats"),
    ("postgres", "mcp_bus/services/planted.py", "import asyncpg"),
    ("sdk", "agents_sdk/planted.py", "import mcp_bus.telemetry"),
    ("pure", "mcp_bus/domain/planted.py", "import time"),
]


@pytest.mark.parametrize(("contract", "module", "statement"), PLANTED)
def test_a_forbidden_import_is_caught(
    contract: str, module: str, statement: str, tmp_path: Path
) -> None:
    """The contract that is kept in a copy of our packages breaks with one import planted in it."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    assert lint(tmp_path, contract).returncode == 0

    (tmp_path / module).write_text(f"{statement}\n")

    broken = lint(tmp_path, contract)
    assert broken.returncode == 1
    assert module.removesuffix(".py").replace("/", ".") in broken.stdout


def test_every_module_has_a_layer() -> None:
    """No module of mcp_bus stands outside the layers, where nothing would watch its imports."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in config["contracts"] if c["id"] == "layers")
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    present = {
        f"mcp_bus.{path.stem}"
        for path in (ROOT / "mcp_bus").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert present <= placed


def lint(folder: Path, contract: str) -> subprocess.CompletedProcess[str]:
    """One contract of import-linter on the packages in `folder`, and on no others."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--contract", contract],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
