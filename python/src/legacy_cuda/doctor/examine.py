"""Run the probes side by side, each with a time limit, and put together what they saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from legacy_cuda.doctor.facts import Facts, Failure
from legacy_cuda.doctor.place import Memory, Place
from legacy_cuda.doctor.probes import (
    apis,
    build,
    code,
    containers,
    cpu,
    driver,
    engines,
    journals,
    kernel,
    libcuda,
    nixos,
    nodes,
    nvml,
    pci,
    python,
    system,
    virtual,
)

SECONDS = 1.5
Probe = Callable[[Place], Any]
PROBES: Mapping[str, Probe] = {
    "pci": pci.look,
    "driver": driver.look,
    "nodes": nodes.look,
    "libraries": libcuda.look,
    "kernel": kernel.look,
    "cpu": cpu.look,
    "system": system.look,
    "python": lambda place: place.once("python", python.look),
    "code": code.look,
    "build": build.look,
    "engines": engines.look,
    "journals": journals.look,
    "apis": apis.look,
    "containers": containers.look,
    "virtual": virtual.look,
    "nixos": nixos.look,
    "nvml": nvml.look,
}
LIMITS = {"nvml": nvml.SECONDS + 0.5}
"""Seconds of a probe that ends by itself, and whose answer is worth waiting for."""


def _what(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


def examine(
    root: Path = Path("/"),
    today: date | None = None,
    probes: Mapping[str, Probe] = PROBES,
    seconds: float = SECONDS,
) -> Facts:
    """What the probes see below a root folder; never raises for what they meet.

    Args:
        root: ``/``, or a folder with a recorded tree.
        today: the day that support windows are compared with; None: the clock's.
        probes: by the name of their field in :class:`Facts`.
        seconds: the time all of them have together, but for those in ``LIMITS``. What is not done
            then is left behind.
    """
    seen: dict[str, Any] = {}
    failures: list[Failure] = []
    lock = threading.Lock()
    memory = Memory()

    def run(name: str, probe: Probe) -> None:
        place = Place(root, memory)
        try:
            fact, problems = probe(place), place.problems
        except Exception as error:
            fact, problems = None, [*place.problems, _what(error)]
        with lock:
            seen[name] = fact
            failures.extend(Failure(name, problem) for problem in problems)

    threads = {}
    for name, probe in probes.items():
        threads[name] = threading.Thread(target=run, args=(name, probe), daemon=True)
        threads[name].start()
    begin = time.monotonic()
    limits = {name: max(seconds, LIMITS.get(name, 0.0)) for name in threads}
    for name, thread in threads.items():
        thread.join(max(0.0, begin + limits[name] - time.monotonic()))
    with lock:
        late = [name for name in threads if name not in seen]
        failures += [Failure(name, f"took longer than {limits[name]:g} s") for name in late]
        return Facts(
            today=today or date.today(),
            **{name: value for name, value in seen.items() if value is not None},
            failures=tuple(sorted(failures, key=lambda item: (item.probe, item.what))),
        )
