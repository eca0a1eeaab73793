"""What the commands print: JSON, a table on a terminal, plain columns into a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

GAP = "  "


def as_json(value: Any) -> None:
    """One line of JSON, as it came."""
    click.echo(json.dumps(value, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table with rich on a terminal, else columns of text."""
    texts = [[plain(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich(columns, texts)
        return
    lines = [[column.upper() for column in columns], *texts]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(GAP.join(cells).rstrip())


def fields(**values: Any) -> None:
    """A few named values, one per line."""
    width = max(map(len, values))
    for name, value in values.items():
        click.echo(f"{name.ljust(width)}{GAP}{plain(value)}")


def milliseconds(started: int | None, ended: int | None) -> str:
    """How long something took, as far as it is known."""
    return "" if started is None or ended is None else str(ended - started)


def moment(time_ms: int) -> str:
    """A time of the log, in UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(" ", "milliseconds")


def plain(value: Any) -> str:
    """One line without control characters: what an agent says must not move the cursor."""
    text = "" if value is None else value if isinstance(value, str) else _compact(value)
    return "".join(c if c.isprintable() else " " for c in text)


def _rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*columns, header_style="bold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))  # Text: an agent's words are no markup
    Console().print(drawn)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
