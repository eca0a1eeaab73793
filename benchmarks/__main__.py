"""`python -m benchmarks [--only ID,…] [--strict]`: a table, and benchmarks/results/latest.json.

Exit codes: 0 done, 1 with --strict when a row misses what it must reach, 2 usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import agents, engine, ingest
from benchmarks.harness import Row, machine

BENCHMARKS: dict[str, Callable[[], Awaitable[Row]]] = {
    "ingest.interval": ingest.interval,
    "agents.roundtrip.interval": agents.roundtrip_interval,
    "agents.64.interval": agents.sixty_four_interval,
    "engine.1.interval": engine.one_interval,
    "engine.64.interval": engine.sixty_four_interval,
}

RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> int:
    """Run what is asked for, in the order of BENCHMARKS."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", metavar="ID,…", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on a miss")
    options = parser.parse_args()
    wanted = [name for name in options.only.split(",") if name] or list(BENCHMARKS)
    unknown = [name for name in wanted if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    rows = uvloop.run(_measure([name for name in BENCHMARKS if name in wanted]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
    return 1 if options.strict and not all(row["ok"] for row in rows) else 0


async def _measure(names: list[str]) -> list[dict[str, Any]]:
    """The rows, each shown as soon as it is known."""
    print(f"{'':<26}{'measured':>12}{'limit':>12}{'ratio':>9}  unit", flush=True)
    rows = []
    for name in names:
        row = (await BENCHMARKS[name]()).as_json()
        rows.append(row)
        print(
            f"{row['id']:<26}{row['value']:>12,.1f}{row['against_value']:>12,.1f}"
            f"{row['ratio']:>9.2f}  {row['unit']}{_verdict(row)}",
            flush=True,
        )
    return rows


def _verdict(row: dict[str, Any]) -> str:
    if not row["must"]:
        return ""
    wanted = " and ".join(f"{must['of']} {must['op']} {must['than']:g}" for must in row["must"])
    return f"  {'ok' if row['ok'] else 'MISSED'}: {wanted}"


if __name__ == "__main__":
    sys.exit(main())
