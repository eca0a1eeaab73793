"""Settings: one frozen value, checked before anything starts.

They come from `MCP_BUS_*` variables; an unknown name is refused with the nearest known one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from mcp_bus.errors import SettingsError

PREFIX = "MCP_BUS_"


def default_data_dir() -> Path:
    """The user's data folder (XDG Base Directory): where a bus lives when nobody says."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "mcp-bus"


class Settings(BaseModel):
    """One bus, as its processes see it. Field `nats_port` is the variable `MCP_BUS_NATS_PORT`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Field(
        default_factory=default_data_dir, description="Folder of the embedded bus."
    )
    nats: SecretStr | None = Field(
        None, description="URL of the log, with user and password. Default: the embedded one."
    )
    nats_auth: SecretStr | None = Field(
        None,
        description="URL of the log for the auth service (account AUTH). Default: embedded.",
    )
    postgres: SecretStr | None = Field(
        None, description="URL of the event store (service role). Default: the embedded one."
    )
    postgres_admin: SecretStr | None = Field(
        None, description="URL of a role that may create schemas and roles; for migrations only."
    )
    secret: SecretStr | None = Field(
        None,
        min_length=32,
        description="The bus secret: signs tokens and makes ids unguessable. "
        "Default: DATA_DIR/secret, made at the first start.",
    )
    token_key: Path | None = Field(
        None,
        description="PEM file of the Ed25519 or RSA key of the tokens: a private key issues and "
        "verifies, a public one only verifies. Default: a key derived from the bus secret.",
    )
    url: str | None = Field(None, description="URL of the gateway, for the CLI.")
    token: SecretStr | None = Field(None, description="Bearer token, for the CLI and the SDK.")
    host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    port: int = Field(8420, ge=0, le=65535, description="Port of the gateway; 0 takes a free one.")
    nats_port: int = Field(4420, ge=0, le=65535, description="Port of the embedded log; 0: free.")
    postgres_port: int = Field(
        5420, ge=0, le=65535, description="Port of the embedded event store; 0: free."
    )
    pg_bin: Path | None = Field(
        None, description="Folder of initdb and postgres. Default: the binaries of the wheel."
    )
    durability: Literal["always", "interval"] = Field(
        "always",
        description="always: fsync before the ack. interval: the server flushes by itself, and a "
        "crash of the machine (not of a process) can lose the last two minutes.",
    )
    duplicate_window_s: float = Field(
        120.0,
        ge=30,  # twice PUBLISH_SETTLE_S
        description="How long the log knows a message id (s).",
    )
    queue_max_s: float = Field(
        600.0,
        ge=1,
        le=24 * 3600,
        description="How long a request waits to be taken by its agent; then it is given up (s).",
    )
    log_bytes_max: int = Field(
        8 * 1024**3,
        ge=1024**2,
        description="What the log holds at most (bytes); a full one refuses, and forgets nothing.",
    )
    log_high_water: float = Field(
        0.75,
        gt=0,
        lt=1,
        description="Part of log_bytes_max above which the recorder trims what it has recorded.",
    )
    replicas: Annotated[Literal[1, 3, 5], BeforeValidator(int)] = Field(  # a variable is a text
        1, description="Copies of the log in a NATS cluster."
    )
    instance: str = Field(
        "1",
        pattern=r"^[A-Za-z0-9_]{1,32}$",
        description="Name of this process among those of its service; keeps it over restarts.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else JSON lines."
    )
    fault_at: str | None = Field(
        None,
        description="Tests only: POINT or POINT:N kills the process with SIGKILL when it reaches "
        "that fault point for the Nth time (mcp_bus/faults.py).",
    )

    def environment(self) -> dict[str, str]:
        """The variables that give a child process these settings."""
        out = {}
        for name, value in self:
            if value is None:
                continue
            plain = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            out[PREFIX + name.upper()] = plain
        return out


def load(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings from `MCP_BUS_*`; `overrides` that are not None win.

    Raises SettingsError for an unknown name (with a suggestion) or a value that does not fit.
    """
    environ = os.environ if environ is None else environ
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    values: dict[str, Any] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX):
            continue
        if variable not in known:
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"unknown setting {variable}{hint}")
        if value != "":
            values[known[variable]] = value
    values.update({name: value for name, value in overrides.items() if value is not None})
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = PREFIX + str(first["loc"][0]).upper() if first["loc"] else "settings"
        raise SettingsError(f"{name}: {first['msg']}") from None
