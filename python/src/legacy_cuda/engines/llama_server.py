"""llama-server: a plan to its arguments, its addresses, and what its log says of memory."""

from __future__ import annotations

import re
from pathlib import Path

from legacy_cuda.engines import Address
from legacy_cuda.planner.plan import Result

NAME = PROGRAM = "llama-server"
HEALTH = "/health"  # 200 once the model is loaded, 503 before
METRICS = "/metrics"  # Prometheus; --metrics switches it on
_BATCH = 2048  # --batch-size by default; --ubatch-size is never more than it

# kinds of buffers as the log names them
_KINDS = {"model": "weights", "KV": "cache", "RS": "state", "compute": "compute"}
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute) buffer size =\s+([\d.]+) MiB")


def arguments(result: Result, path: Path, address: Address, name: str) -> list[str]:
    """What llama-server is started with so that it places the model as planned.

    ``--fit off`` keeps it from changing what was planned; everything that a plan depends on is
    given, for its defaults change. A plan for one GPU uses the first, however many there are.
    ``--device`` names the GPUs, so that it ends where one is not there, instead of computing on
    the CPU; a plan without a layer on a GPU uses none.

    Args:
        result: the plan.
        path: the model's file, the first of a split one.
        address: where to listen.
        name: what the model is called over HTTP.
    """
    settings, placement = result.settings, result.placement
    found = ["--model", str(path), "--alias", name]
    found += ["--host", address.host, "--port", str(address.port), "--metrics", "--offline"]
    found += ["--ctx-size", str(settings.total), "--parallel", str(settings.parallel)]
    found.append("--kv-unified" if settings.unified else "--no-kv-unified")
    found += ["--ubatch-size", str(settings.batch), "--fit", "off"]
    if settings.batch > _BATCH:
        found += ["--batch-size", str(settings.batch)]
    layers = result.model.shape.layers + 1
    if settings.layers is not None:
        layers = min(layers, settings.layers)
    found += ["--n-gpu-layers", str(layers)]
    gpus = [f"CUDA{number}" for number in range(len(placement.gpus))]
    found += ["--device", ",".join(gpus) if layers else "none"]
    if len(gpus) > 1 and layers:
        # as counts of layers: free memory, which it would split by, changes from day to day
        counts = [placement.places.count(number) for number in range(len(gpus))]
        found += ["--split-mode", "layer", "--tensor-split", ",".join(map(str, counts))]
    else:
        found += ["--split-mode", "none", "--main-gpu", "0"]
    found += ["--flash-attn", "on" if placement.flash else "off"]
    found += ["--cache-type-k", settings.keys.name.lower()]
    found += ["--cache-type-v", settings.values.name.lower()]
    return found


def memory(log: str) -> dict[str, dict[str, float]]:
    """MiB that it says it took: by backend (``CUDA0``, ``CPU_Mapped``), then by kind."""
    found: dict[str, dict[str, float]] = {}
    for backend, kind, size in _BUFFER.findall(log):
        kinds = found.setdefault(backend, {})
        kinds[_KINDS[kind]] = kinds.get(_KINDS[kind], 0.0) + float(size)
    return found
