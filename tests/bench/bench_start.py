#!/usr/bin/env python3
"""How long legacy-cuda takes to start: medians of whole processes, with a limit.

    bench_start.py [--repeat 20] [--limit-ms 150] [--json FILE]

After a warm-up the commands run in turn. The interpreter that does nothing is measured beside them,
since its start is part of theirs. Exit code 1 if a median is over the limit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "legacy-cuda --help": ["-m", "legacy_cuda", "--help"],
    "legacy-cuda resolve p40": ["-m", "legacy_cuda", "resolve", "p40"],
    "legacy-cuda resolve k80 p40 --json": ["-m", "legacy_cuda", "resolve", "k80", "p40", "--json"],
}
ALLOWED = (0, 1)  # the last one is a refusal
LIMIT_MS = 150.0  # what the tool promises for its start


def measure(arguments: list[str]) -> float:
    """Milliseconds of one process.

    Raises:
        SystemExit: it failed.
    """
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    spent = (time.perf_counter() - begin) * 1000
    if done.returncode not in ALLOWED or done.stderr:
        raise SystemExit(f"{arguments} ended with {done.returncode}: {done.stderr.decode()}")
    return spent


def main() -> int:
    """Measure and print; 1 over the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=20, help="runs of each (default 20)")
    parser.add_argument("--limit-ms", type=float, default=LIMIT_MS, help="default 150")
    parser.add_argument("--json", type=Path, help="also write the result here")
    arguments = parser.parse_args()
    spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(arguments.repeat + 2):
        for name, command in COMMANDS.items():
            milliseconds = measure(command)
            if number >= 2:
                spent[name].append(milliseconds)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    over = [name for name, median in medians.items() if median > arguments.limit_ms]
    print(f"{'':38}{'median ms':>10}{'min':>8}{'max':>8}")
    for name, values in spent.items():
        mark = "  over the limit" if name in over else ""
        print(f"{name:38}{medians[name]:>10.1f}{min(values):>8.1f}{max(values):>8.1f}{mark}")
    if arguments.json:
        document = {
            "schema": "legacy-cuda/bench-start/1",
            "limit_ms": arguments.limit_ms,
            "median_ms": {name: round(median, 1) for name, median in medians.items()},
            "runs_ms": {name: [round(v, 1) for v in values] for name, values in spent.items()},
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
