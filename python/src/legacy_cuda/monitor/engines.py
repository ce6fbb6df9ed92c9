"""What engines say of themselves, as metrics beside those of the GPUs. Pure: no clock, no network.

Names are the same for every engine; where each comes from is in ``_COUNTS``. An engine that has a
model loaded and nothing on a GPU has fallen to the CPU, which none of them reports by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from legacy_cuda.engines import llama_server, ollama, vllm
from legacy_cuda.nvml import Device

LABELS = ("engine", "url")
_COUNTERS = ("prompt_tokens", "generated_tokens")
_GAUGES = ("requests_running", "requests_waiting")
_HELP = {
    "prompt_tokens": "Tokens of prompts that it computed.",
    "generated_tokens": "Tokens that it generated.",
    "requests_running": "Requests that it computes now.",
    "requests_waiting": "Requests that wait.",
}
# what each is called there: llama-server of llama.cpp, vLLM 0.14.0 (v1/metrics/loggers.py)
_COUNTS: Mapping[str, Mapping[str, str]] = {
    llama_server.NAME: {
        "prompt_tokens": "llamacpp:prompt_tokens_total",
        "generated_tokens": "llamacpp:tokens_predicted_total",
        "requests_running": "llamacpp:requests_processing",
        "requests_waiting": "llamacpp:requests_deferred",
    },
    vllm.NAME: {
        "prompt_tokens": "vllm:prompt_tokens_total",
        "generated_tokens": "vllm:generation_tokens_total",
        "requests_running": "vllm:num_requests_running",
        "requests_waiting": "vllm:num_requests_waiting",
    },
    ollama.NAME: {},
}
# what its processes on a GPU are called, by a part of the name in /proc, in small letters
_PROCESSES = {llama_server.NAME: "llama-server", vllm.NAME: "vllm", ollama.NAME: "ollama"}
# where each says whether it serves, and where it says more
_PATHS = {
    llama_server.NAME: (llama_server.HEALTH, llama_server.METRICS),
    vllm.NAME: (vllm.HEALTH, vllm.METRICS),
    ollama.NAME: (ollama.HEALTH, ollama.LOADED),
}
KINDS = tuple(_COUNTS)


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that is asked: its kind, one of KINDS, and its address."""

    kind: str
    url: str

    @property
    def paths(self) -> tuple[str, str]:
        """Where it says whether it serves, and where it says more."""
        return _PATHS[self.kind]


@dataclass(frozen=True, slots=True)
class Reading:
    """What an engine answered. ``up``: it serves. ``models``: name to bytes in all and on GPUs, as
    Ollama says it; others have one model and do not say. ``counts`` by the names of ``_HELP``."""

    engine: Engine
    up: bool
    models: Mapping[str, tuple[int, int]] | None = None
    counts: Mapping[str, float] = field(default_factory=dict)


def counts_of(kind: str, text: str) -> dict[str, float]:
    """The counts in an engine's own metrics, summed over its labels; those it lacks are left out.

    Raises:
        ValueError: the text is no metrics.
    """
    wanted = {theirs: ours for ours, theirs in _COUNTS[kind].items()}
    found: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in wanted:
                    name = wanted[sample.name]
                    found[name] = found.get(name, 0.0) + sample.value
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"no metrics: {error}") from error
    return found


def reading_of(engine: Engine, answer: bytes | None, more: Any) -> Reading:
    """What two answers come to.

    Args:
        engine: who was asked.
        answer: whether it serves: None where it does not.
        more: for Ollama the JSON of its loaded models, for others the text of their metrics; None
            where it did not answer.
    """
    if answer is None:
        return Reading(engine, up=False)
    if more is None:
        return Reading(engine, up=True)
    try:
        if engine.kind == ollama.NAME:
            rows = ollama.loaded(more)
            return Reading(engine, True, {row.name: (row.size, row.on_gpus) for row in rows})
        return Reading(engine, True, counts=counts_of(engine.kind, more))
    except ValueError:
        return Reading(engine, up=True)


def on_gpus(reading: Reading, devices: Iterable[Device]) -> int | None:
    """Bytes that an engine has on the GPUs: what Ollama says, or what the driver says of processes
    of its name. None where neither tells."""
    if reading.models is not None:
        return sum(on_gpu for _, on_gpu in reading.models.values())
    cards = list(devices)
    if not cards:  # the driver does not answer
        return None
    total = 0
    for device in cards:
        if device.processes is None:
            return None
        for process in device.processes:
            if process.name is None:  # of another namespace: it may be its
                return None
            if _PROCESSES[reading.engine.kind] in process.name.lower():
                if process.memory_bytes is None:
                    return None
                total += process.memory_bytes
    return total


def each_on_gpus(readings: Sequence[Reading], devices: Sequence[Device]) -> list[int | None]:
    """Bytes that each engine has on the GPUs, None where nobody tells: the driver does not tell
    which of several engines of a kind a process belongs to."""
    asked = Counter(one.engine.kind for one in readings)
    return [
        None if one.models is None and asked[one.engine.kind] > 1 else on_gpus(one, devices)
        for one in readings
    ]


def families(readings: Iterable[Reading], devices: Iterable[Device]) -> Iterator[Metric]:
    """The metrics of engines, in a fixed order."""
    known = list(readings)

    def gauge(name: str, text: str, more: tuple[str, ...] = ()) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"legacy_cuda_engine_{name}", text, labels=(*LABELS, *more))

    up = gauge("up", "Whether the engine answers and serves: 1 or 0.")
    loaded = gauge("models_loaded", "Models in its memory.")
    used = gauge("gpu_memory_bytes", "Memory that it has on GPUs, bytes.")
    whole = gauge("model_bytes", "Memory that a model takes in all, bytes.", ("model",))
    part = gauge("model_gpu_bytes", "Memory that a model takes on GPUs, bytes.", ("model",))
    for one, taken in zip(known, each_on_gpus(known, list(devices)), strict=True):
        own = [one.engine.kind, one.engine.url]
        up.add_metric(own, float(one.up))
        if not one.up:
            continue
        models = 1 if one.models is None else len(one.models)
        if one.models is not None or one.engine.kind != ollama.NAME:
            loaded.add_metric(own, models)
            if taken is not None:
                used.add_metric(own, taken)
        for name, (size, on_gpu) in (one.models or {}).items():
            whole.add_metric([*own, name], size)
            part.add_metric([*own, name], on_gpu)
    yield from (up, loaded, used, whole, part)
    for name in (*_GAUGES, *_COUNTERS):
        make = CounterMetricFamily if name in _COUNTERS else GaugeMetricFamily
        metric = make(f"legacy_cuda_engine_{name}", _HELP[name], labels=LABELS)
        for one in known:
            if name in one.counts:
                metric.add_metric([one.engine.kind, one.engine.url], one.counts[name])
        yield metric
