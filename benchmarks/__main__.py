"""`python -m benchmarks [--only ID,…] [--strict]`: a table, and benchmarks/results/latest.json.

`agents.roundtrip` names all rows that begin with it. A row whose peer is not installed is shown as
skipped. Exit codes: 0 done, 1 with --strict when a row misses what it must reach or is skipped,
2 usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import (
    agents,
    crowded,
    engine,
    ingest,
    overhead,
    peers,
    publish,
    reconnect,
    recorder,
    registry,
    store,
)
from benchmarks.harness import Row, machine

BENCHMARKS: dict[str, Callable[[], Awaitable[Row]]] = {
    "ingest.interval": ingest.interval,
    "ingest.always": ingest.always,
    "ingest.grouped": ingest.grouped,
    "publish.single": publish.single,
    "recorder.lag": recorder.lag,
    "recorder.memory": recorder.memory,
    "store.read": store.read,
    "agents.roundtrip.interval": agents.roundtrip_interval,
    "agents.roundtrip.always": agents.roundtrip_always,
    "agents.1": agents.one,
    "agents.64": agents.sixty_four,
    "agents.reconnect": reconnect.reconnect,
    "sdk.overhead": overhead.overhead,
    "registry.1000.cpu": registry.cpu,
    "registry.1000.discovery": registry.discovery,
    "engine.1.interval": engine.one_interval,
    "engine.1.always": engine.one_always,
    "engine.64.interval": engine.sixty_four_interval,
    "engine.64.always": engine.sixty_four_always,
    "engine.fanout": engine.fanout,
    "engine.restart": crowded.restart,
    "engine.memory": crowded.memory,
    "engine.growth": crowded.growth,
}

RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> int:
    """Run what is asked for, in the order of BENCHMARKS."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", metavar="ID,…", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on a miss")
    options = parser.parse_args()
    wanted = [name for name in options.only.split(",") if name] or list(BENCHMARKS)
    unknown = [name for name in wanted if not any(_named(id, name) for id in BENCHMARKS)]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    rows = uvloop.run(_measure([id for id in BENCHMARKS if any(_named(id, n) for n in wanted)]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    return 1 if options.strict and not all(row["ok"] for row in rows) else 0


def _named(id: str, name: str) -> bool:
    return id == name or id.startswith(f"{name}.")


async def _measure(ids: list[str]) -> list[dict[str, Any]]:
    """The rows, each shown as soon as it is known."""
    print(f"{'':<26}{'measured':>12}{'limit':>12}{'ratio':>9}  unit", flush=True)
    rows = []
    for id in ids:
        try:
            row = (await BENCHMARKS[id]()).as_json()
        except peers.Missing as missing:
            row = {"id": id, "skipped": str(missing), "ok": False}
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"{row['id']:<26}{'skipped':>12}: {row['skipped']}"
    numbers = f"{_short(row['value']):>12}{_short(row['against_value']):>12}{row['ratio']:>9.2f}"
    return f"{row['id']:<26}{numbers}  {row['unit']}{_verdict(row)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _verdict(row: dict[str, Any]) -> str:
    if not row["must"]:
        return ""
    wanted = " and ".join(f"{must['of']} {must['op']} {must['than']:g}" for must in row["must"])
    return f"  {'ok' if row['ok'] else 'MISSED'}: {wanted}"


if __name__ == "__main__":
    sys.exit(main())
