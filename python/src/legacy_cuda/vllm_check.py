"""Run inside a stack's environment: import vLLM and say, as JSON, what it was built for.

Executed as a file by that environment's Python, so it imports nothing of legacy-cuda. On a machine
with a working driver it also has an operator of vLLM's extension normalise rows on every GPU, and
compares with the CPU.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_MODULES = ("vllm", "vllm._C", "vllm._moe_C", "vllm.engine.arg_utils", "vllm.v1.engine.llm_engine")
_EPSILON = 1e-6  # of the normalisation; any


def check() -> dict[str, Any]:
    """Versions, arch flags and devices of the vLLM and the torch that are importable here."""
    for name in _MODULES:
        importlib.import_module(name)
    torch = importlib.import_module("torch")
    return {
        "version": importlib.metadata.version("vllm"),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "command": _command(),
        "arch_flags": (torch._C._cuda_getArchFlags() or "").split(),
        "devices": [_run(torch, index) for index in range(_device_count(torch))],
    }


def _command() -> str:
    """What the command ``vllm``, beside this Python, says of its version.

    Raises:
        RuntimeError: it does not start.
    """
    command = [str(Path(sys.executable).parent / "vllm"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).splitlines()
    if done.returncode:
        why = lines[-1] if lines else f"it ended with code {done.returncode}"
        raise RuntimeError(f"vllm --version fails: {why}")
    return lines[-1] if lines else ""


def _device_count(torch: Any) -> int:
    return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0


def _run(torch: Any, index: int) -> dict[str, Any]:
    device: dict[str, Any] = {
        "name": torch.cuda.get_device_name(index),
        "capability": "{}.{}".format(*torch.cuda.get_device_capability(index)),
    }
    try:
        here = torch.arange(1, 4097, dtype=torch.float32).reshape(8, 512) / 64
        weight = torch.linspace(0.5, 2, 512)
        mean = here.double().pow(2).mean(dim=1, keepdim=True)
        expected = (here.double() * (mean + _EPSILON).rsqrt() * weight).float()
        there = here.to(f"cuda:{index}")
        with torch.cuda.device(index):
            result = torch.empty_like(there)
            torch.ops._C.rms_norm(result, there, weight.to(there), _EPSILON)
        device["ran"] = bool(torch.allclose(result.cpu(), expected, rtol=1e-4))
    except Exception as error:  # whatever the driver or a library has to say is the result
        device["ran"] = False
        device["error"] = str(error).partition("\n")[0]
    return device


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # vLLM writes its log to standard output
        try:
            result = check()
        except Exception as error:  # an import error is a result, not an accident
            result = {"error": f"{type(error).__name__}: {error}"}
    json.dump(result, sys.stdout)
