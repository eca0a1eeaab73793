"""The secrets of one embedded bus: random, one file of mode 600 each, kept between runs.

The engines are on loopback, where every user of the machine can connect: so each has a password,
and nobody has to choose one. Never on a command line, where other users could read it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from mcp_bus.config import Settings
from mcp_bus.embedded.folder import make_private, write_private
from mcp_bus.errors import SettingsError

SECRET_BYTES = 32


@dataclass(frozen=True, repr=False)
class Credentials:
    """Passwords by who uses them, and the bus secret."""

    secret: str
    bus: str  # NATS: our services
    auth: str  # NATS: the service that is asked who may connect
    sys: str  # NATS: the system account
    postgres_admin: str
    postgres_service: str
    postgres_reader: str

    def bus_secret(self, settings: Settings) -> bytes:
        """The secret that the settings name, else the one of this folder."""
        given = settings.secret.get_secret_value() if settings.secret else self.secret
        return given.encode()


def load(folder: Path) -> Credentials:
    """The credentials kept in `folder`; what is missing is made."""
    make_private(folder / "passwords")
    return Credentials(
        secret=_kept(folder / "secret"),
        bus=_kept(folder / "passwords" / "bus"),
        auth=_kept(folder / "passwords" / "auth"),
        sys=_kept(folder / "passwords" / "sys"),
        postgres_admin=_kept(postgres_admin_file(folder)),
        postgres_service=_kept(folder / "passwords" / "postgres_service"),
        postgres_reader=_kept(folder / "passwords" / "postgres_reader"),
    )


def postgres_admin_file(folder: Path) -> Path:
    """Where initdb reads its superuser's password."""
    return folder / "passwords" / "postgres_admin"


def _kept(path: Path) -> str:
    try:
        value = path.read_text().strip()
    except FileNotFoundError:
        # a letter first: a configuration could take digits for a number
        value = "s" + secrets.token_hex(SECRET_BYTES)
        write_private(path, value + "\n")
    if not value:
        raise SettingsError(f"{path} is empty: put its secret back, or start with a new folder")
    return value
