"""Where the parts of one bus are: ports chosen, URLs made, before anything starts.

An engine given by URL (MCP_BUS_NATS, MCP_BUS_POSTGRES) is used as it is; the others get a port
on 127.0.0.1 and passwords of their own. URLs hold passwords: they are never printed or logged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from mcp_bus.config import Settings
from mcp_bus.embedded import ports
from mcp_bus.embedded.credentials import Credentials
from mcp_bus.errors import SettingsError
from mcp_bus.store.migrate import READER, SERVICE

LOOPBACK = "127.0.0.1"
ADMIN = "mcp_bus_admin"
DATABASE = "mcp_bus"


@dataclass(frozen=True)
class Addresses:
    """The URLs of one bus, by who uses them."""

    gateway: str
    nats: str = field(repr=False)  # our services
    nats_auth: str | None = field(repr=False)  # the auth service
    nats_agents: str  # agents, who bring their tokens
    nats_port: int | None  # of the embedded log
    postgres: str = field(repr=False)  # our services
    postgres_reader: str | None = field(repr=False)  # None when no admin was given
    postgres_admin: str | None = field(repr=False)  # migrations; None: made by somebody else
    postgres_port: int | None  # of the embedded event store
    service_password: str = field(repr=False)  # that the migrations give to the service role
    reader_password: str = field(repr=False)


def plan(settings: Settings, secrets: Credentials) -> Addresses:
    """Choose every port and URL; SettingsError names the setting of a port that is taken."""
    port = ports.choose(settings.host, settings.port, "MCP_BUS_PORT")
    nats_port = postgres_port = None
    if settings.nats is None:
        nats_port = ports.choose(LOOPBACK, settings.nats_port, "MCP_BUS_NATS_PORT")
        nats = f"nats://bus:{secrets.bus}@{LOOPBACK}:{nats_port}"
        auth: str | None = f"nats://auth:{secrets.auth}@{LOOPBACK}:{nats_port}"
    else:
        nats = settings.nats.get_secret_value()
        for name in ("nats_auth", "secret"):
            if getattr(settings, name) is None:
                raise SettingsError(
                    f"MCP_BUS_{name.upper()} is not set: a log given by MCP_BUS_NATS trusts the "
                    "auth service by its password and the issuer that follows from the bus secret"
                )
        auth = settings.nats_auth.get_secret_value() if settings.nats_auth else None

    if settings.postgres is None:
        postgres_port = ports.choose(LOOPBACK, settings.postgres_port, "MCP_BUS_POSTGRES_PORT")
        place = f"{LOOPBACK}:{postgres_port}/{DATABASE}"
        store = f"postgresql://{SERVICE}:{secrets.postgres_service}@{place}"
        admin = f"postgresql://{ADMIN}:{secrets.postgres_admin}@{place}"
    else:
        store = settings.postgres.get_secret_value()
        admin = settings.postgres_admin.get_secret_value() if settings.postgres_admin else ""
    reader = ""
    if admin:
        place = admin.partition("://")[2].rpartition("@")[2]
        reader = f"postgresql://{READER}:{secrets.postgres_reader}@{place}"

    return Addresses(
        gateway=f"http://{_reachable(settings.host)}:{port}",
        nats=nats,
        nats_auth=auth,
        nats_agents=f"nats://{nats.rpartition('@')[2].removeprefix('nats://')}",
        nats_port=nats_port,
        postgres=store,
        postgres_reader=reader or None,
        postgres_admin=admin or None,
        postgres_port=postgres_port,
        service_password=unquote(urlsplit(store).password or secrets.postgres_service),
        reader_password=secrets.postgres_reader,
    )


def of_services(
    settings: Settings, folder: Path, addresses: Addresses, secrets: Credentials
) -> Settings:
    """The settings that every service is started with, so that all find the same bus."""
    return settings.model_copy(
        update={
            "data_dir": folder,
            "port": urlsplit(addresses.gateway).port,
            "nats": SecretStr(addresses.nats),
            "nats_auth": SecretStr(addresses.nats_auth) if addresses.nats_auth else None,
            "postgres": SecretStr(addresses.postgres),
            "postgres_admin": None,
            "secret": settings.secret or SecretStr(secrets.secret),
        }
    )


def _reachable(host: str) -> str:
    """The host for a URL: what listens everywhere is reached on loopback."""
    if host in ("0.0.0.0", "::"):  # noqa: S104, nothing is bound here
        return LOOPBACK
    return f"[{host}]" if ":" in host else host
