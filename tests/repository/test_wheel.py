"""What is shipped: the wheel is whole, and its base install is enough for an agent."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("agents_sdk", "gateway", "mcp_bus", "projections")
# without aiohttp, which nats-py loads for its WebSocket transport where it finds it
SERVER_ONLY = {
    "asyncpg",
    "click",
    "cryptography",
    "eventsourcing",
    "jwt",
    "mcp",
    "opentelemetry.sdk",
    "rich",
    "structlog",
    "uvloop",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_every_file_of_our_packages(wheel: zipfile.ZipFile) -> None:
    """Modules, SQL and type markers are shipped, and nothing beside our packages."""
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == files | {"mcp_bus/embedded/nats.conf"}
    assert {f"{package}/py.typed" for package in PACKAGES} <= files


def test_the_base_install_is_the_sdk(wheel: zipfile.ZipFile) -> None:
    """Without an extra, nats-py, orjson, pydantic and the API of OpenTelemetry are required."""
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    required = metadata.get_all("Requires-Dist", [])
    base = {line.split("<")[0].split(">")[0] for line in required if "extra ==" not in line}
    assert base == {"nats-py", "opentelemetry-api", "orjson", "pydantic"}


def test_an_agent_loads_nothing_of_the_server() -> None:
    """Importing the SDK loads no package that the base install lacks."""
    program = f"import sys, agents_sdk; print(sorted({SERVER_ONLY!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_command_says_what_it_lacks() -> None:
    """With the base install alone `mcp-bus` is one sentence and exit code 1."""
    program = "import sys; sys.modules['click'] = None; from mcp_bus.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "mcp-bus needs click: pip install 'mcp-event-bus[server]'\n"
