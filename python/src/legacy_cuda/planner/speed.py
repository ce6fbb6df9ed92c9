"""About how fast a placed model is: from bandwidth and arithmetic, as a range. An estimate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from legacy_cuda.catalog import Gpu
from legacy_cuda.catalog.estimates import Arithmetic, Kind, arithmetic
from legacy_cuda.planner.model import Model, Tensor
from legacy_cuda.planner.placement import Placement, Settings

TENSOR_RATE = 8  # tensor cores of 7.0 to fp32: 64 times 2 to 64 half operations a clock


@dataclass(frozen=True)
class Speed:
    """Tokens a second of one conversation: least and most, when tokens are generated with an empty
    and with a full context, and when a prompt is read. ``basis`` says what each figure rests on."""

    decode: tuple[float, float]
    decode_full: tuple[float, float]
    prefill: tuple[float, float]
    measured: bool
    basis: tuple[str, ...]


def kind_of(model: Model) -> Kind:
    """What kind most of the weights are of."""
    sizes: Counter[Kind] = Counter()
    for tensor in model.tensors:
        form = tensor.format
        if not form.quantised:
            kind: Kind = "16-bit"
        else:
            kind = "few bits" if form.bytes * 8 / form.values < 4 else "quantised"
        sizes[kind] += tensor.values
    return sizes.most_common(1)[0][0] if sizes else "16-bit"


def _share(model: Model, tensor: Tensor) -> float:
    """Which share of a tensor one token uses: all, or that of the experts it is sent to."""
    shape = model.shape
    if len(tensor.dimensions) > 2 and shape.experts:
        return min(1.0, shape.experts_used / shape.experts)
    return 1.0


def _rate(gpu: Gpu, how: Arithmetic) -> float:
    """Operations a second of the arithmetic that prompts are read with."""
    rate = (gpu.fp32_tflops or 0.0) * 1e12
    if how.rate == "fp16":
        ratio = gpu.facts.fp16_fp32_ratio or "1:1"
        times, of = ratio.split(":")
        return rate * float(Fraction(int(times), int(of)))
    return rate * TENSOR_RATE if how.rate == "tensor" else rate


def _used(model: Model, placement: Placement) -> tuple[list[float], list[float]]:
    """Bytes that a token that is generated uses, and values that one of a prompt does, on each
    backend. Of a prompt only the last token meets the output matrix."""
    host = len(placement.gpus)
    size, count = [0.0] * (host + 1), [0.0] * (host + 1)
    output = "output" if "output.weight" in model.by_name else "token_embd"
    for tensor in model.tensors:
        if len(tensor.dimensions) < 2:
            continue
        if tensor.role == "token_embd" and tensor.role != output:
            continue  # one row of it
        place = placement.places[-1 if tensor.block is None else tensor.block]
        share = _share(model, tensor)
        size[place] += tensor.bytes * share
        if tensor.role != output:
            count[place] += tensor.values * share
    return size, count


def speed_of(
    model: Model, settings: Settings, placement: Placement, gpus: Sequence[Gpu]
) -> Speed | None:
    """The speed of a model that lies on GPUs as a whole; None: some of it does not, or nothing is
    estimated for one of them. One GPU works after the other."""
    host = len(gpus)
    if host in placement.places:
        return None
    kind = kind_of(model)
    size, count = _used(model, placement)
    decode, full, prefill = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    basis: list[str] = []
    measured = True
    for number, gpu in enumerate(gpus):
        how = arithmetic(gpu.capability, kind)
        if how is None or not gpu.bandwidth_gb_s or not gpu.fp32_tflops:
            return None
        cached = placement.gpus[number].cache / settings.parallel
        for end in (0, 1):
            # the least share takes the longest
            bandwidth = gpu.bandwidth_gb_s * 1e9 * how.decode[end]
            decode[end] += size[number] / bandwidth
            full[end] += (size[number] + cached) / bandwidth
            prefill[end] += 2 * count[number] / (_rate(gpu, how) * how.prefill[end])
        measured = measured and how.measured
        text = f"{gpu.capability}, {how.kind} weights: {how.basis}"
        if text not in basis:
            basis.append(text)
    return Speed(
        _per_second(decode),
        _per_second(full),
        _per_second(prefill),
        measured,
        tuple(basis),
    )


def _per_second(seconds: list[float]) -> tuple[float, float]:
    least, most = (1 / item if item else math.inf for item in seconds)
    return least, most
