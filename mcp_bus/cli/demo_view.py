"""How the demo looks: colours and a spinner on a terminal, plain lines everywhere else.

With --json the progress goes to stderr and stdout gets one object at the end.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from mcp_bus.cli import screen


class View:
    """Shows what happens as it happens; texts of others are shown as they are, never as markup."""

    def __init__(self, as_json: bool) -> None:
        self._began = time.monotonic()
        self._as_json = as_json
        self._plain = as_json or not sys.stdout.isatty()
        self._console = Console(stderr=as_json, markup=False, highlight=False)

    def say(self, what: str, text: str) -> None:
        """One line: when, what, and the facts."""
        text = _clean(text)
        elapsed = f"{time.monotonic() - self._began:5.1f} s"
        if self._plain:
            self._line(f"{elapsed}  {what:<10} {text}")
        else:
            self._console.print(
                Text.assemble((elapsed, "dim"), "  ", (f"{what:<10}", "bold cyan"), " ", text)
            )

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """A spinner while something takes its time."""
        if self._plain:
            yield
            return
        with self._console.status(Text(text)):
            yield

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table under its title; without rows only the title."""
        if self._as_json:
            return
        self._line(f"\n{_clean(title)}")
        if rows:
            screen.table(columns, rows)

    def notes(self, markdown: str) -> None:
        """A document."""
        if self._as_json:
            return
        self._line("")
        if self._plain:
            self._line(_clean(markdown).rstrip())
        else:
            self._console.print(Markdown(_clean(markdown)))

    def result(self, found: dict[str, Any]) -> None:
        """What the demo found, for programs."""
        if self._as_json:
            print(json.dumps(found, indent=2, ensure_ascii=False))  # noqa: T201

    def _line(self, text: str) -> None:
        print(text, file=sys.stderr if self._as_json else sys.stdout, flush=True)


def _clean(text: str) -> str:
    """Without control characters: a commit's subject must not steer the terminal."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)
