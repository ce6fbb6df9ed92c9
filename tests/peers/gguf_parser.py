"""gguf-parser-go's estimate and the planner's beside what llama.cpp logged, on the same files.

    python -m tests.peers.gguf_parser --program PROGRAM --work FOLDER [--logs FILE] [--json OUT]

PROGRAM is gguf-parser-go's own command (cmd/gguf-parser). The files are those of
``tests/llama/placements.py``, written into FOLDER where they are not there yet; the cases are those
with GPUs in ``--logs`` (``tests/unit/placements.json``), and nothing of llama.cpp is needed. Prints
two tables of errors in per cent, the program's and the planner's, from the lowest to the highest of
a model's GPUs; OUT gets every GPU's MiB.

The program gets what the case says: llama-server's arguments, the free memory of the GPUs as the
split where the case has none (llama.cpp takes it by itself), and flash attention where the planner
says that llama.cpp uses it.

It prints totals of a GPU: UMA, which leaves out the compute buffer and what is mapped, and NonUMA,
all of it. So it is asked three times: without mmap, then with the cache on the host too, then with
that and mmap, for one GPU. The differences are the parts. ``total`` is the figure that it prints,
with the buffer of results (logits and embeddings of a batch), which it has on the GPU and llama.cpp
has in the host's memory; ``sum`` is without that buffer.

Needs: gguf, numpy.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.llama.placements import TINY, file_of, settings_of
from tests.unit.placements import (
    FILE,
    HALF_DIGIT,
    MIB,
    Recorded,
    error,
    foretold,
    planned,
    recorded,
)

FIELDS = ("uma", "nonuma", "handleOutputLayer")
PARTS = {"weights": "model", "cache": "KV", "compute": "compute"}
SUMS = {"program": ("sum", "total"), "plan": ("sum",)}
WIDE = 20  # per cent


def arguments_of(case: Recorded, file: Path) -> list[str]:
    """A case as arguments of the program."""
    settings = settings_of(case.settings)
    found = [
        "--path", str(file), "--json", "--estimate", "--platform-footprint", "0,0",
        "--ctx-size", str(settings.total), "--parallel-size", str(settings.parallel),
        "--batch-size", "2048", "--ubatch-size", str(settings.batch),
        "--cache-type-k", settings.keys.name.lower(),
        "--cache-type-v", settings.values.name.lower(),
    ]  # fmt: skip
    if planned(case).flash:
        found.append("--flash-attention")
    if settings.layers is not None:
        found += ["--gpu-layers", str(settings.layers)]
    return found


def ask(program: str, arguments: Sequence[str], count: int) -> list[dict[str, Any]]:
    """What the program says of each of so many GPUs. Raises RuntimeError where it does not."""
    done = subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[:300]}")
    try:
        (item,) = json.loads(done.stdout)["estimate"]["items"]
        gpus = [{field: gpu[field] for field in FIELDS} for gpu in item["vrams"]]
    except (ValueError, KeyError, TypeError):
        raise RuntimeError(f"printed no estimate: {done.stdout.strip()[:100]!r}") from None
    if len(gpus) != count:
        raise RuntimeError(f"{len(gpus)} GPUs, not {count}")
    return gpus


def estimated(program: str, case: Recorded, file: Path) -> list[dict[str, float]]:
    """MiB of each GPU after the program, by part."""
    common = arguments_of(case, file)
    shares = settings_of(case.settings).split or case.free
    split = ["--tensor-split", ",".join(map(str, shares))]
    count = len(case.free)
    whole = ask(program, [*common, *split, "--no-mmap"], count)
    without = ask(program, [*common, *split, "--no-mmap", "--no-kv-offload"], count)
    (single,) = ask(program, [*common, "--no-kv-offload"], 1)
    found = []
    for gpu, bare in zip(whole, without, strict=True):
        results = single["uma"] if gpu["handleOutputLayer"] else 0
        parts = {
            "weights": bare["uma"] - results,
            "cache": gpu["uma"] - bare["uma"],
            "compute": gpu["nonuma"] - gpu["uma"],
        }
        parts["sum"], parts["total"] = sum(parts.values()), gpu["nonuma"]
        found.append({name: size / MIB for name, size in parts.items()})
    return found


def logged_and_planned(case: Recorded) -> list[tuple[dict[str, float], dict[str, float]]]:
    """MiB of each GPU after llama.cpp's log, and after the planner, by part."""
    found = []
    sizes = list(foretold(case))
    for number in range(len(case.free)):
        of_gpu = {kind: pair for kind, backend, *pair in sizes if backend == f"CUDA{number}"}
        logged, plan = (
            {part: of_gpu[kind][which] for part, kind in PARTS.items()} for which in (0, 1)
        )
        for parts in (logged, plan):
            parts["sum"] = parts["total"] = sum(parts.values())
        found.append((logged, plan))
    return found


def compare(program: str, cases: Iterable[Recorded], work: Path) -> list[dict[str, Any]]:
    """Every case with its GPUs, or with what was wrong."""
    found: list[dict[str, Any]] = []
    for case in cases:
        row: dict[str, Any] = {
            "model": case.model,
            "devices": case.devices,
            "settings": case.settings,
        }
        try:
            said = estimated(program, case, file_of(case.model, work))
        except (RuntimeError, subprocess.TimeoutExpired) as failure:
            found.append({**row, "failed": str(failure), "gpus": []})
            continue
        gpus = [
            {"logged": logged, "program": mine, "plan": plan}
            for mine, (logged, plan) in zip(said, logged_and_planned(case), strict=True)
        ]
        found.append({**row, "failed": None, "gpus": gpus})
    return found


def errors(gpus: Iterable[dict[str, Any]], who: str, part: str) -> list[float]:
    """Of each GPU, in per cent."""
    digits = HALF_DIGIT if part in PARTS else len(PARTS) * HALF_DIGIT
    return [error(gpu[who][part], gpu["logged"][part], digits) for gpu in gpus]


def cell(values: Sequence[float]) -> str:
    """From the lowest to the highest."""
    low, high = (f"{value:+.1f}" if value else "0" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def beyond(values: Sequence[float]) -> str:
    """The median of the errors, and how many are large."""
    sizes = [abs(value) for value in values]
    return f"{median(sizes):.1f}, {sum(size > WIDE for size in sizes)}"


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the tables."""
    small = {f"{name}:{mix}" for name, mix in TINY.items()}
    compared = [row for row in rows if row["gpus"]]
    groups = {name: [name] for name in dict.fromkeys(row["model"] for row in compared)}
    tiny, full = ([name for name in groups if (name in small) is which] for which in (True, False))
    groups[f"{len(tiny)} tiny models"] = tiny
    groups[f"{len(full)} models of full size"] = full
    for who, sums in SUMS.items() if compared else ():
        sizes = [f"{part}: median, beyond {WIDE} %" for part in sums]
        heads = ["model", "GPUs, cases", *PARTS, *sums, *sizes]
        print(f"\n{who}: errors in per cent\n")
        print(f"| {' | '.join(heads)} |")
        print("|" + " --- |" * len(heads))
        for name, models in groups.items():
            of_group = [row for row in compared if row["model"] in models]
            gpus = [gpu for row in of_group for gpu in row["gpus"]]
            if not gpus:
                continue
            cells = [cell(errors(gpus, who, part)) for part in (*PARTS, *sums)]
            cells += [beyond(errors(gpus, who, part)) for part in sums]
            print(f"| {name} | {len(gpus)}, {len(of_group)} | {' | '.join(cells)} |")
    failed = [row for row in rows if row["failed"]]
    print(f"\n{len(failed)} of {len(rows)} cases failed")
    for row in failed:
        print(f"{row['model']} {row['devices']} {row['settings']}: {row['failed']}")


def main() -> int:
    """Compare, print, write. 1 where the program failed on a case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--logs", type=Path, default=FILE)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not shutil.which(options.program):
        parser.error(f"no program {options.program}: compile gguf-parser-go's cmd/gguf-parser")
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        cases = [case for case in recorded(options.logs) if case.devices]
        rows = compare(options.program, cases, options.work)
        show(rows)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    except (ImportError, OSError) as failure:
        sys.exit(f"{parser.prog}: {failure}")
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
