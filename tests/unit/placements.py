"""What llama.cpp said, beside what the planner says: see tests/llama/placements.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legacy_cuda.capability import Capability
from legacy_cuda.catalog.models import find_mix, find_model
from legacy_cuda.planner.model import Model
from legacy_cuda.planner.placement import Placement, place
from legacy_cuda.planner.shapes import model_of
from tests.llama.placements import settings_of
from tests.llama.tiny import TINY

FILE = Path(__file__).with_name("placements.json")
REPLAYED = Path(__file__).with_name("placements_replayed.json")  # 3.7, replayed on an H200
MIB = 1 << 20
HALF_DIGIT = 0.0051  # llama.cpp prints two digits of MiB


@dataclass(frozen=True)
class Recorded:
    """A case: a shape and a mix, stand-ins for GPUs (name, capability, free MiB), settings, and the
    MiB that llama.cpp logged by kind and backend."""

    model: str
    devices: str
    settings: dict[str, Any]
    mib: dict[str, dict[str, float]]

    @property
    def capabilities(self) -> list[Capability]:
        numbers = [item.split(":")[1] for item in self.devices.split(",") if item]
        return [Capability(int(number[0]), int(number[1])) for number in numbers]

    @property
    def free(self) -> list[int]:
        return [int(item.split(":")[2]) * MIB for item in self.devices.split(",") if item]


def recorded(file: Path = FILE) -> list[Recorded]:
    """Every case: on stand-ins for GPUs, or as REPLAYED."""
    return [Recorded(**row) for row in json.loads(file.read_text(encoding="utf-8"))]


def planned_model(case: Recorded) -> Model:
    """The model of a case, derived from its shape."""
    name, _, mix = case.model.partition(":")
    return model_of(TINY.get(name) or find_model(name), find_mix(mix))


def planned(case: Recorded) -> Placement:
    """What the planner says of a case."""
    settings = settings_of(case.settings)
    return place(planned_model(case), settings, case.free, case.capabilities)


def foretold(case: Recorded) -> Iterator[tuple[str, str, float, float]]:
    """Kind, backend, MiB that llama.cpp logged, MiB that the planner says."""
    placement = planned(case)
    for number, load in enumerate(placement.gpus):
        backend = f"CUDA{number}"
        for kind, size in (
            ("model", load.weights), ("KV", load.cache), ("RS", load.state),
            ("compute", load.compute),
        ):  # fmt: skip
            yield kind, backend, case.mib[kind].get(backend, 0.0), size / MIB
    host = "CUDA_Host" if placement.gpus else "CPU"
    yield "KV", "CPU", case.mib["KV"].get("CPU", 0.0), placement.host.cache / MIB
    yield "compute", host, case.mib["compute"].get(host, 0.0), placement.host.compute / MIB


def error(mine: float, said: float, digits: float = HALF_DIGIT) -> float:
    """Per cent of what llama.cpp logged; what the digits that it prints explain is no error."""
    return 100 * (mine - said) / max(said, 0.01) if abs(mine - said) > digits else 0.0
