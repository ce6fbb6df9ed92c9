"""What a plan cannot count: overhead of CUDA, and shares of a card's figures that are reached.

The file is ``data/estimates.toml``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import CatalogError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Kind = Literal["few bits", "quantised", "16-bit"]


@dataclass(frozen=True, slots=True)
class Overhead:
    """MiB of a process on a GPU beside its buffers."""

    likely_mib: int
    most_mib: int
    source: str


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Least and most share of bandwidth and of ``rate`` that is reached; see the data file."""

    kind: Kind
    decode: tuple[float, float]
    rate: Literal["fp32", "fp16", "tensor"]
    prefill: tuple[float, float]
    measured: bool
    basis: str


@cache
def _read() -> dict[str, Any]:
    with (catalog.DATA / "estimates.toml").open("rb") as file:
        data: dict[str, Any] = tomllib.load(file)
    return data


def overhead(cuda: tuple[int, int]) -> Overhead:
    """The overhead of a version of CUDA.

    Raises:
        CatalogError: nothing is estimated for it.
    """
    for row in _read()["overhead"]:
        low, high = (catalog.version_tuple(row[key]) for key in ("cuda_min", "cuda_max"))
        if low <= cuda <= high:
            return Overhead(row["likely_mib"], row["most_mib"], row["source"])
    raise CatalogError(f"no overhead of CUDA {catalog.dotted(cuda)} is estimated")


def arithmetic(capability: Capability, kind: Kind) -> Arithmetic | None:
    """How fast weights of a kind are used on a capability; None: nothing is estimated.

    Where nothing is said of weights of few bits, they count as the quantised do.
    """
    for wanted in (kind, "quantised" if kind == "few bits" else None):
        for row in _read()["arithmetic"]:
            low, high = (Capability.parse(row[f"capability_{end}"]) for end in ("min", "max"))
            if row["kind"] == wanted and low <= capability <= high:
                return Arithmetic(
                    row["kind"],
                    tuple(row["decode"]),
                    row["rate"],
                    tuple(row["prefill"]),
                    row["measured"],
                    row["basis"],
                )
    return None
