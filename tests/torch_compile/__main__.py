"""``python -m tests.torch_compile``: compile the programs, or compile and run them."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any


def _capability(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torch_compile", description=__doc__)
    parser.add_argument("--capability", type=_capability, help="pretended capability, 6.1")
    parser.add_argument("--compile-only", action="store_true", help="without a GPU")
    parser.add_argument("--device", default="cuda", help="where to run (default: cuda)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="in the name")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write what was seen there")
    args = parser.parse_args()
    if args.compile_only != (args.capability is not None):
        parser.error("--compile-only and --capability go together")

    with tempfile.TemporaryDirectory() as folder:
        # what an earlier run compiled would not be compiled again
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        os.environ["TRITON_CACHE_DIR"] = f"{folder}/triton"
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        document = _compile_only(args) if args.compile_only else _run(args)
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return (
        0 if all(p["status"] in ("compiled", "ran", "not run") for p in document["programs"]) else 1
    )


def _versions() -> dict[str, Any]:
    import importlib.util

    import torch
    import triton

    patched = importlib.util.find_spec("triton.backends.nvidia.legacy") is not None
    return {"torch": torch.__version__, "triton": triton.__version__, "triton_legacy": patched}


def _compile_only(args: argparse.Namespace) -> dict[str, Any]:
    from . import compile_only
    from .programs import PROGRAMS

    recorder = compile_only.start(args.capability)
    outcomes = []
    for program in PROGRAMS:
        if args.only and not any(text in program.name for text in args.only):
            continue
        outcome = compile_only.compile_program(program, recorder)
        outcomes.append(asdict(outcome))
        good = sum(kernel.ok for kernel in outcome.kernels)
        print(
            f"{outcome.status:9}{program.name:26}{good:4} of {len(outcome.kernels):3} kernels"
            f"{outcome.seconds:7.1f} s  {outcome.error or ''}",
            flush=True,
        )
    name = "{}.{}".format(*args.capability)
    return {
        "schema": "legacy-cuda-torch-compile-1",
        "seen": f"compiled only, for {name}",
        **_versions(),
        "programs": outcomes,
    }


def _run(args: argparse.Namespace) -> dict[str, Any]:
    import torch

    from .programs import PROGRAMS
    from .run import run_program

    where = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    runs = []
    for program in PROGRAMS:
        if args.only and not any(text in program.name for text in args.only):
            continue
        run = run_program(program, args.device)
        runs.append(asdict(run))
        worst = f"{max(run.errors):9.1e}" if run.errors else " " * 9
        print(
            f"{run.status:9}{program.name:26}{run.kernels:4} kernels, greatest error {worst}"
            f"{run.seconds:7.1f} s  {run.error or ''}",
            flush=True,
        )
    return {
        "schema": "legacy-cuda-torch-compile-1",
        "seen": f"run on {where}",
        **_versions(),
        "programs": runs,
    }


if __name__ == "__main__":
    sys.exit(main())
