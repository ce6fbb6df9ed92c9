#!/usr/bin/env python3
"""``legacy-cuda up`` against bare uv, both from an empty cache into an empty folder.

    bench_up.py [--repeat 3] [--gpu p40] [--folder DIR] [--json FILE]

In turn, in one run, with the same Python, index and disk:

- bare: ``uv venv`` and ``uv pip sync --require-hashes`` of the same lock,
- up: ``legacy-cuda up``, which installs the same and audits every library, imports torch and
  writes the report,
- again: ``legacy-cuda up`` on the environment that is there.

Every round downloads the stack twice (gigabytes); which of the two begins alternates. ``ratio`` is
the median of up divided by that of bare. ``--warm`` fills uv's cache once and keeps it for all, so
that installing is compared without the network. Everything is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from legacy_cuda import environment
from legacy_cuda.catalog import find_engine, find_gpu
from legacy_cuda.fetch import uv_binary
from legacy_cuda.resolve import Refusal, resolve


def timed(commands: Sequence[Sequence[str]], variables: dict[str, str]) -> float:
    """Run commands one after the other; seconds in all.

    Raises:
        SystemExit: one failed.
    """
    begin = time.perf_counter()
    for command in commands:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - begin


def main() -> int:
    """Measure, print, delete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--gpu", default="p40", help="whose stack (default p40)")
    parser.add_argument("--folder", type=Path, help="where; needs room for three environments")
    parser.add_argument("--warm", action="store_true", help="with a full cache instead")
    parser.add_argument("--json", type=Path, help="also write the result here")
    arguments = parser.parse_args()
    answer = resolve([find_gpu(arguments.gpu)], find_engine("torch"))
    if isinstance(answer, Refusal):
        parser.error(f"there is no stack for {arguments.gpu}")
    plan = environment.plan(answer)
    spent: dict[str, list[float]] = {"bare": [], "up": [], "again": []}
    with tempfile.TemporaryDirectory(prefix="bench-up-", dir=arguments.folder) as name:
        folder = Path(name)
        requirements = folder / "requirements.txt"
        requirements.write_text(plan.lock.requirements(plan.python), encoding="utf-8")
        cache, bare, home = folder / "cache", folder / "bare", folder / "home"
        variables = {**os.environ, "UV_CACHE_DIR": str(cache), "LEGACY_CUDA_HOME": str(home)}
        uv = uv_binary()
        bare_commands = [
            [uv, "venv", "--relocatable", "--python", plan.interpreter, str(bare)],
            [
                *(uv, "pip", "sync", "--require-hashes", "--only-binary", ":all:"),
                *("--python", str(bare / "bin" / "python"), str(requirements)),
            ],
        ]
        up = [sys.executable, "-m", "legacy_cuda", "up", arguments.gpu, "--python", plan.python]

        def run_bare() -> None:
            spent["bare"].append(timed(bare_commands, variables))

        def run_up() -> None:
            spent["up"].append(timed([up], variables))
            spent["again"].append(timed([up], variables))

        if arguments.warm:
            timed(bare_commands, variables)
            shutil.rmtree(bare)
        for number in range(arguments.repeat):
            for run in (run_bare, run_up) if number % 2 == 0 else (run_up, run_bare):
                print(f"round {number + 1}/{arguments.repeat}: {run.__name__}", file=sys.stderr)
                run()
                for place in (bare, home) if arguments.warm else (bare, home, cache):
                    shutil.rmtree(place, ignore_errors=True)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    ratio = medians["up"] / medians["bare"]
    print(
        f"{plan.lock.name}, Python {plan.python}, {plan.download / 1e9:.2f} GB to download, "
        f"{plan.unpacked / 1e9:.2f} GB on disk, {'full' if arguments.warm else 'empty'} cache"
    )
    for name, values in spent.items():
        runs = " ".join(f"{value:.2f}" for value in values)
        print(f"{name:<8}{medians[name]:>9.2f} s   ({runs})")
    print(f"ratio up / bare: {ratio:.2f}")
    if arguments.json:
        document = {
            "schema": "legacy-cuda/bench-up/1",
            "gpu": arguments.gpu,
            "lock": plan.lock.name,
            "python": plan.python,
            "cache": "full" if arguments.warm else "empty",
            "seconds": {name: [round(v, 3) for v in values] for name, values in spent.items()},
            "median_s": {name: round(median, 3) for name, median in medians.items()},
            "ratio": round(ratio, 3),
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
