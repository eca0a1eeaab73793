"""Where the bus is, and one question to its gateway.

The bus is found by --url and --token, MCP_BUS_URL and MCP_BUS_TOKEN, else by DATA_DIR/bus.json,
which a running embedded bus keeps. A token from that file is sent to no other address.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from mcp_bus.cli.outcome import Globals, Unreachable

if TYPE_CHECKING:
    from mcp_bus.config import Settings


@dataclass(frozen=True)
class Place:
    """A gateway and who asks it."""

    url: str
    token: str = field(repr=False)


def client(command: Callable[..., None]) -> Callable[..., None]:
    """A command that asks the bus: it gets the global options, and takes --json itself too."""

    @click.option("--json", "json_here", is_flag=True, help="Answer with JSON.")
    @click.pass_context
    @functools.wraps(command)
    def called(context: click.Context, /, *, json_here: bool, **options: Any) -> None:
        root = context.find_root()
        root.obj = replace(root.obj, as_json=root.obj.as_json or json_here)  # for errors as well
        command(root.obj, **options)

    return called


def settings_of(given: Globals) -> Settings:
    """The settings of a client: its options, else its variables."""
    from mcp_bus import config

    return config.load(url=given.url, token=given.token, data_dir=given.data_dir)


def place_of(settings: Settings) -> Place:
    """The gateway to ask; Unreachable when nobody says where it is."""
    from mcp_bus.errors import SettingsError

    if settings.url is None:
        found = bus_file(settings)
        token = settings.token.get_secret_value() if settings.token else found["token"]
        return Place(found["gateway"], token)
    if settings.token is None:
        raise SettingsError("MCP_BUS_TOKEN is not set: the gateway wants a token (--token)")
    return Place(settings.url.rstrip("/"), settings.token.get_secret_value())


def bus_file(settings: Settings) -> dict[str, Any]:
    """What the embedded bus of DATA_DIR says about itself."""
    path = settings.data_dir.expanduser() / "bus.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise Unreachable(
            f"no bus is running on {settings.data_dir}: start one with `mcp-bus up`, "
            "or say where it is with --url and --token"
        ) from None
    except (OSError, ValueError) as error:
        raise Unreachable(f"cannot read {path}: {error}") from None
    return found


def roles_of(settings: Settings) -> list[str]:
    """The roles that the token in use claims; the bus decides whether it has them."""
    from mcp_bus.claims import claims_of

    try:
        roles = claims_of(place_of(settings).token).get("roles")
    except ValueError:
        return []
    return roles if isinstance(roles, list) else []


def ask(
    given: Globals, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None
) -> Any:
    """One call of the REST API: the JSON that it answers.

    Raises BusError for a problem, Unreachable when nobody answers.
    """
    place = place_of(settings_of(given))
    wanted = {name: str(value) for name, value in (query or {}).items() if value is not None}
    return asyncio.run(_ask(place, method, path, body, wanted))


async def _ask(place: Place, method: str, path: str, body: Any, query: dict[str, str]) -> Any:
    import aiohttp

    from mcp_bus.config import CLIENT_S, EXECUTE_WAIT_S_MAX

    patience = aiohttp.ClientTimeout(total=CLIENT_S + EXECUTE_WAIT_S_MAX, connect=CLIENT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=patience) as session,
            session.request(
                method,
                place.url + path,
                params=query,
                json=body,
                headers={"Authorization": f"Bearer {place.token}"},
            ) as response,
        ):
            text = await response.text()
            status = response.status
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(f"no bus answers at {place.url}: {reason}") from None
    try:
        said = json.loads(text)
    except ValueError:
        raise Unreachable(f"{place.url} answers, but it is no gateway (HTTP {status})") from None
    if status >= 400:
        raise _refusal(said, status)
    return said


def _refusal(problem: Any, status: int) -> Exception:
    """The problem of an answer as the error that it tells."""
    from mcp_bus.errors import BusError

    told = problem if isinstance(problem, dict) else {}
    return BusError.from_json(
        {
            "code": told.get("code", "internal"),
            "message": told.get("detail", f"HTTP {status}"),
            "details": {"errors": told.get("errors", [])},
        }
    )
