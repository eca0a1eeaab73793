"""What a helper process and its benchmark say to each other, a line at a time.

The helper says `ready` and waits for the word; when its stdin ends, the benchmark is gone or wants
no more of it, and it ends. Nothing of ours is imported here: a peer's process runs in a venv that
has none of it.
"""

from __future__ import annotations

import asyncio
import sys


async def begin() -> None:
    """Say that we are ready, and wait for the word; ends this process if it never comes."""
    say("ready")
    if not await told():
        raise SystemExit


async def told() -> str:
    """The next line of the benchmark, "" when there is none any more."""
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()


async def left() -> None:
    """Wait until the benchmark is gone, or wants us to."""
    await asyncio.to_thread(sys.stdin.read)


def say(word: str) -> None:
    """A line to the benchmark."""
    print(word, flush=True)
