"""Run inside a stack's environment: import torch and say, as JSON, what it was built for.

Executed as a file by that environment's Python, so it imports nothing of legacy-cuda. On a machine
with a working driver it also multiplies a small matrix on every GPU and compares with the CPU.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def check() -> dict[str, Any]:
    """Version, CUDA version, arch flags and devices of the torch that is importable here."""
    torch = importlib.import_module("torch")
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "arch_flags": (torch._C._cuda_getArchFlags() or "").split(),
        "cudnn": torch.backends.cudnn.version(),
        "devices": [_run(torch, index) for index in range(_device_count(torch))],
    }


def _device_count(torch: Any) -> int:
    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def _run(torch: Any, index: int) -> dict[str, Any]:
    device: dict[str, Any] = {
        "name": torch.cuda.get_device_name(index),
        "capability": "{}.{}".format(*torch.cuda.get_device_capability(index)),
    }
    try:
        here = torch.arange(4096, dtype=torch.float32).reshape(64, 64) / 64
        there = here.to(f"cuda:{index}")
        device["ran"] = bool(torch.allclose((there @ there.T).cpu(), here @ here.T, rtol=1e-4))
    except Exception as error:  # whatever the driver or a library has to say is the result
        device["ran"] = False
        device["error"] = str(error).partition("\n")[0]
    return device


if __name__ == "__main__":
    try:
        result = check()
    except Exception as error:  # an import error is a result, not an accident
        result = {"error": f"{type(error).__name__}: {error}"}
    json.dump(result, sys.stdout)
