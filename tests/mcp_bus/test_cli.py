"""The command line: exit codes, one sentence per expected error, and a quick --help."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mcp_bus import tokens
from mcp_bus.config import TOKEN_TTL_S
from mcp_bus.tokens import Keys

SECRET = "a secret of thirty-two characters"
HEAVY = ("aiohttp", "asyncpg", "nats", "pydantic", "structlog", "uvloop")


def run(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    return subprocess.run(
        [sys.executable, "-m", "mcp_bus", *map(str, arguments)],
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_help_names_the_commands() -> None:
    """`up` and every service are there."""
    done = run("--help")
    assert done.returncode == 0
    for name in ("up", "recorder", "registry", "workflow-engine", "projector", "gateway"):
        assert f"  {name} " in done.stdout


def test_help_is_quick() -> None:
    """Showing the help imports none of the heavy libraries."""
    code = f"import sys, mcp_bus.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_wrong_usage_exits_with_2() -> None:
    """An unknown option and a port that is none are usage errors."""
    assert run("up", "--nonsense").returncode == 2
    assert run("up", "--port", "70000").returncode == 2
    for words in (("--subject", "a"), ("--role", "admin"), ()):
        assert run("token", *words).returncode == 2
    for ttl in ("0", "0d", "-1", "1w", "1.5h", "h", "", "9" * 10):
        assert run("token", "--agent", "git", "--ttl", ttl).returncode == 2


def test_an_unknown_setting_is_one_sentence(tmp_path: Path) -> None:
    """A misspelt variable is refused with what was meant, and without a traceback."""
    done = run("up", "--data-dir", tmp_path, MCP_BUS_PROT="1")
    assert done.returncode == 1
    assert done.stderr == "mcp-bus: unknown setting MCP_BUS_PROT; did you mean MCP_BUS_PORT?\n"


def test_a_service_without_a_log_says_so() -> None:
    """A service that is started by hand names the setting that it lacks."""
    done = run("recorder")
    assert done.returncode == 1
    assert done.stderr == "mcp-bus: MCP_BUS_NATS is not set: where is the log?\n"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_taken_port_is_one_sentence(tmp_path: Path, as_json: bool) -> None:
    """Port and setting are named; with --json the error is an object."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = ["--json"] if as_json else []
        done = run(*flags, "up", "--data-dir", tmp_path, "--port", port)
    assert done.returncode == 1
    said = json.loads(done.stderr)["error"] if as_json else {"message": done.stderr}
    assert f"port {port} on 127.0.0.1 cannot be used" in said["message"]
    assert "MCP_BUS_PORT" in said["message"]
    assert "Traceback" not in done.stderr
    if as_json:
        assert said["code"] == "settings"


def test_a_token_for_an_agent_opens_both_doors() -> None:
    """--agent alone is enough; subject and roles may be others, the agent stays."""
    keys = Keys.of(SECRET.encode(), None)
    plain = run("token", "--agent", "git", MCP_BUS_SECRET=SECRET).stdout.strip()
    options = ("--subject", "ann", "--role", "developer")
    named = run("token", "--agent", "git", *options, MCP_BUS_SECRET=SECRET).stdout.strip()
    for door in tokens.DOORS:
        said = tokens.verify(keys, plain, door)
        assert (said.agent, said.principal.subject) == ("git", "git")
        assert (said.principal.roles, said.expires - said.issued) == (("agent",), TOKEN_TTL_S)
        said = tokens.verify(keys, named, door)
        assert (said.agent, said.principal.subject) == ("git", "ann")
        assert said.principal.roles == ("developer",)
    for reserved in ("registry", "*"):
        assert run("token", "--agent", reserved, MCP_BUS_SECRET=SECRET).returncode == 1


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("12h", 43200), ("30d", 2592000)]
)
def test_a_time_to_live_has_a_unit(ttl: str, seconds: int) -> None:
    """Seconds, minutes, hours and days; without a unit seconds."""
    done = run("--json", "token", "--agent", "git", "--ttl", ttl, MCP_BUS_SECRET=SECRET)
    told = json.loads(done.stdout)
    said = tokens.verify(Keys.of(SECRET.encode(), None), told["token"], "rest")
    assert said.expires - said.issued == told["ttl"] == seconds
    assert (told["agent"], told["subject"], told["roles"]) == ("git", "git", ["agent"])


def test_a_private_key_issues_without_the_secret(tmp_path: Path) -> None:
    """Whoever has the key file needs nothing else of the bus."""
    key, path = Ed25519PrivateKey.generate(), tmp_path / "key.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    done = run("--data-dir", tmp_path, "token", "--agent", "git", MCP_BUS_TOKEN_KEY=str(path))
    assert tokens.verify(Keys.of(b"", path), done.stdout.strip(), "nats").agent == "git"
    path.write_text("no key")
    done = run("token", "--agent", "git", MCP_BUS_TOKEN_KEY=str(path))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert str(path) in done.stderr
