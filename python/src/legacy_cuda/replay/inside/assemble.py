"""ptxas: its report for the old target, and the same PTX assembled for the GPU at hand.

The PTX is not changed for that, not even its ``.target``: ptxas assembles PTX of any target for
every newer GPU (CUDA Compiler Driver NVCC, "GPU Compilation"), which is what a driver's JIT does.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .settings import Pair, number


class ReplayError(RuntimeError):
    """The old target's ptxas accepted a kernel, the GPU's own did not."""


@dataclass
class PtxasRun:
    """One run of ptxas: its command and what it said on standard error."""

    command: list[str]
    log: str


class WatchedSubprocess:
    """Stands in for the module ``subprocess`` where Triton calls ptxas, and keeps what it says."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    @contextmanager
    def watch(self) -> Iterator[list[PtxasRun]]:
        """The runs within the block, of this thread."""
        before = getattr(self._of_thread, "runs", None)
        runs: list[PtxasRun] = []
        self._of_thread.runs = runs
        try:
            yield runs
        finally:
            self._of_thread.runs = before

    def run(self, command: list[str], *arguments: Any, **options: Any) -> Any:
        """``subprocess.run``."""
        try:
            return subprocess.run(command, *arguments, **options)
        finally:
            name = getattr(options.get("stderr"), "name", None)
            runs = getattr(self._of_thread, "runs", None)
            if runs is not None and isinstance(name, str):
                log = Path(name).read_text(errors="replace")
                runs.append(PtxasRun([str(part) for part in command], log))


def read_report(log: str) -> dict[str, int]:
    """Numbers in what ``ptxas -v`` says of one kernel: registers a thread, the rest in bytes."""
    wanted = {
        "registers": r"Used (\d+) registers",
        "stack": r"(\d+) bytes stack frame",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
        "static_shared": r"(\d+) bytes smem",
    }
    report = {}
    for name, pattern in wanted.items():
        values = [int(value) for value in re.findall(pattern, log)]
        report[name] = max(values, default=0)
    return report


def complaint(error: Exception) -> str:
    """What ptxas objected to, without names of temporary files and line numbers: the same kernel
    has the same complaint on every run."""
    said = re.findall(r"line \d+; error\s*: (.*)", str(error))
    return "; ".join(dict.fromkeys(said)) or str(error).partition("\n")[0][:300]


@functools.lru_cache
def release(ptxas: str) -> str:
    """The CUDA release of a ptxas, ``"12.8"``; empty if it does not say."""
    done = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release (\d+\.\d+)", done.stdout)
    return found[1] if found else ""


def ptxas_for(gpu: Pair, backend: Path) -> str:
    """The ptxas that assembles for the GPU: LEGACY_CUDA_REPLAY_PTXAS, or the one in Triton's wheel
    (``backend`` is the folder ``triton/backends/nvidia``)."""
    chosen = os.environ.get("LEGACY_CUDA_REPLAY_PTXAS")
    if chosen:
        return chosen
    blackwell = backend / "bin" / "ptxas-blackwell"
    if gpu >= (10, 0) and blackwell.exists():
        return str(blackwell)
    return str(backend / "bin" / "ptxas")


def for_gpu(ptx: str, gpu: Pair, ptxas: str, options: list[str]) -> bytes:
    """Assemble PTX for a GPU; returns the cubin.

    Raises:
        ReplayError: ptxas refuses it.
    """
    with tempfile.TemporaryDirectory(prefix="legacy-cuda-replay-") as folder:
        source, made = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [ptxas, *options, f"--gpu-name=sm_{number(gpu)}", str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ReplayError(
                f"ptxas accepted a kernel for the old target but {ptxas} did not for "
                f"sm_{number(gpu)}: {done.stderr.strip()}. LEGACY_CUDA_REPLAY_PTXAS can name "
                "another ptxas."
            )
        return made.read_bytes()
