"""What is recorded of the machine. GPUs come from ``hardware``."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

from legacy_cuda import hardware
from legacy_cuda.doctor.probes.driver import RELEASE_LINE
from legacy_cuda.errors import UserError

PROC = Path("/proc")


def facts(serves: bool, proc: Path = PROC, sysfs: Path = hardware.SYSFS) -> dict[str, Any]:
    """Processor, kernel, GPUs and driver of this machine.

    Where the server is elsewhere (not ``serves``) these are the client's, and its GPUs and driver
    say nothing about the figures: they are left out.
    """
    model = re.search(r"^model name\s*:\s*(.+)$", _read(proc / "cpuinfo"), re.M)
    found: dict[str, Any] = {
        "of": "server and client" if serves else "client",
        "cpu": model[1] if model else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "gpus": None,
        "gpus_unknown": "the server is on another machine",
        "driver": None,
    }
    if serves:
        try:
            found.update(gpus=[gpu.name for gpu in hardware.detect(sysfs)], gpus_unknown="")
        except UserError as error:
            found["gpus_unknown"] = error.what
        version = RELEASE_LINE.search(_read(proc / "driver/nvidia/version"))
        found["driver"] = version[1] if version else None
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
