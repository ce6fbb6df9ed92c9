"""vLLM: a folder of safetensors and cards to its arguments, or why it does not serve it.

What vLLM allocates beside weights and cache is found out by itself when it starts (it runs the
largest batch once and gives the rest of its share to the cache), so what is counted here is the
least: weights in the format that it computes in, and the cache that the conversations need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legacy_cuda.capability import Capability
from legacy_cuda.catalog.models import ModelShape
from legacy_cuda.catalog.serving import (
    needs_float32,
    quantisation_min,
    quantisation_note,
    variables_for,
)
from legacy_cuda.engines import Address
from legacy_cuda.planner.plan import MIB, Device

NAME = PROGRAM = "vllm"
HEALTH = "/health"
METRICS = "/metrics"
#: Of addresses, that its processes need beside the internet's: gloo and NCCL list the interfaces.
FAMILIES = ("AF_NETLINK",)
_MOST = 0.95  # of a GPU's memory
_BLOCK = 16  # tokens that its cache is allocated in, its default
_ACTIVATIONS = 0.1  # of its share, for what a batch needs: a guess, vLLM measures it


@dataclass(frozen=True, slots=True)
class Setup:
    """How vLLM is to run a model. ``weights`` and ``cache`` in bytes for each GPU; ``share`` of a
    GPU's memory, 0 to 1; ``refused`` says why it does not run, "" where it does."""

    dtype: str
    gpus: int
    context: int
    parallel: int
    share: float
    weights: int
    cache: int
    refused: str = ""


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def dtype_of(config: Mapping[str, Any]) -> str:
    """``half`` or ``float32``: what it computes in on cards without bfloat16."""
    kinds = (config.get("model_type"), _text(config).get("model_type"))
    wide = any(isinstance(kind, str) and needs_float32(NAME, kind) for kind in kinds)
    said = _text(config).get("torch_dtype") or _text(config).get("dtype")
    return "float32" if wide or said == "float32" else "half"


def _method(config: Mapping[str, Any]) -> str:
    """How a model is quantised, "" where it does not say."""
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    return method if isinstance(method, str) else ""


def note(config: Mapping[str, Any]) -> str:
    """What is to be said of a model that is served; "" where nothing is."""
    return quantisation_note(NAME, _method(config))


def gate(config: Mapping[str, Any], capabilities: Sequence[Capability]) -> str:
    """Why it does not take a model on cards of these capabilities; "" where nothing is known
    against it."""
    if method := _method(config):
        least = quantisation_min(NAME, method)
        if least is not None and min(capabilities) < least:
            return f"its quantisation, {method}, needs capability {least}"
    if _text(config).get("kv_lora_rank") and min(capabilities) < (8, 0):
        return "its attention (MLA) needs capability 8.0 in vLLM"
    return ""


def _beyond(config: Mapping[str, Any], shape: ModelShape, context: int) -> bool:
    """Whether a context is longer than the model's; with scaled positions, or where another length
    is stated, which vLLM takes instead, that is not judged."""
    text = _text(config)
    for name in ("rope_scaling", "rope_parameters"):
        scaling = text.get(name)
        if scaling and not (isinstance(scaling, dict) and scaling.get("rope_type") == "default"):
            return False
    if config.get("model_max_length") or text.get("model_max_length"):
        return False
    return 0 < shape.context < context


def _per_token(shape: ModelShape, width: int) -> int:
    """Bytes of keys and values of one token in all layers."""
    return 2 * shape.layers * shape.heads_kv * shape.head_size * width


def set_up(
    config: Mapping[str, Any],
    shape: ModelShape,
    size: int,
    devices: Sequence[Device],
    context: int,
    parallel: int,
) -> Setup:
    """How it runs a model on these devices, which it uses alike.

    Args:
        config: of config.json.
        shape: the same, understood.
        size: bytes of the safetensors files.
        devices: of one kind; with several each takes its part of every layer.
        context: tokens of each conversation.
        parallel: conversations at a time.
    """
    dtype, gpus = dtype_of(config), len(devices)
    why = gate(config, [device.gpu.capability for device in devices])
    if not why and _beyond(config, shape, context):
        why = f"the model is made for {shape.context} tokens, and vLLM takes no longer context"
    if not why and shape.heads % gpus:
        why = f"{shape.heads} heads are not divided among {gpus} GPUs"
    least = min(devices, key=lambda device: device.room)
    share = min(_MOST, math.floor(100 * least.room / (least.total_mib * MIB)) / 100)
    wide = 2 if dtype == "float32" and not config.get("quantization_config") else 1
    said = _text(config).get("torch_dtype") or _text(config).get("dtype")
    weights = size * (1 if said == "float32" else wide) // gpus
    tokens = parallel * math.ceil(context / _BLOCK) * _BLOCK
    heads = max(gpus, shape.heads_kv) / shape.heads_kv  # fewer than GPUs: each has a copy
    per_token = _per_token(shape, 4 if dtype == "float32" else 2)
    cache = math.ceil(tokens * per_token * heads / gpus)
    room = int(share * least.total_mib * MIB * (1 - _ACTIVATIONS))
    if not why and weights + cache > room:
        missing = (weights + cache - room) / MIB
        why = f"{missing:.0f} MiB are missing on {least.name}"
    return Setup(dtype, gpus, context, parallel, share, weights, cache, why)


def without_code(program: Path, capabilities: Sequence[Capability]) -> str:
    """What the extension of an environment's vLLM lacks for GPUs of these capabilities; "" where
    that is nothing, or where the program's environment or its extension cannot be read. Of several
    Pythons in one folder any may be the program's, so that one with such an extension is enough."""
    from legacy_cuda import audit
    from legacy_cuda.devicecode import DeviceCodeError, scan_file
    from legacy_cuda.doctor.probes.code import LIBRARIES

    folder, (name,) = LIBRARIES[NAME]
    extension, lacks = f"{folder}/{name}", ""
    for path in program.resolve().parent.parent.glob(f"lib/python3*/site-packages/{extension}"):
        try:
            libraries = audit.summarise([scan_file(path, extension)])
        except (DeviceCodeError, OSError):
            return ""
        verdicts = [audit.judge(libraries, capability) for capability in sorted(set(capabilities))]
        bad = [verdict for verdict in verdicts if not verdict.good]
        if not bad:
            return ""
        lacks = f"for {bad[0].capability}, the vLLM in {path.parents[1]} {audit.describe(bad[0])}"
    return lacks


def arguments(setup: Setup, folder: Path, address: Address, name: str) -> list[str]:
    """What ``vllm`` is started with.

    ``--enforce-eager`` because neither its compiled graphs nor CUDA graphs were run on these cards;
    with several GPUs they exchange through NCCL, not through vLLM's own kernel, which needs peer
    access.
    """
    found = ["serve", str(folder), "--served-model-name", name]
    found += ["--host", address.host, "--port", str(address.port)]
    found += ["--dtype", setup.dtype, "--max-model-len", str(setup.context)]
    found += ["--max-num-seqs", str(setup.parallel)]
    found += ["--gpu-memory-utilization", f"{setup.share:.2f}", "--enforce-eager"]
    if setup.gpus > 1:
        found += ["--tensor-parallel-size", str(setup.gpus), "--disable-custom-all-reduce"]
    return found


def environment(gpus: Sequence[Capability]) -> dict[str, str]:
    """The catalog's variables for these GPUs."""
    return {row.name: row.value for row in variables_for(NAME, gpus)}
