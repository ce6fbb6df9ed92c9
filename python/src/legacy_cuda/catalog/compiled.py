"""Wheels that were compiled, by the digest of what went in: what another build has to come to.

The file is ``data/compiled.toml``, written by ``tools/update_compiled.py`` from built wheels and
their provenance. Sizes are in bytes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache

from legacy_cuda import catalog
from legacy_cuda.capability import Capability

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class CompiledWheel:
    """A wheel as it came out: ``inputs`` is the digest of sources, patches, settings, toolchain
    (:func:`legacy_cuda.build.compile.digest`), ``unpacked`` the sum of its members."""

    package: str
    version: str
    capabilities: tuple[Capability, ...]
    inputs: str
    file: str
    sha256: str
    size: int
    unpacked: int


@cache
def compiled() -> tuple[CompiledWheel, ...]:
    """Every recorded wheel, in the order of the file: by package and version."""
    with (catalog.DATA / "compiled.toml").open("rb") as file:
        rows = tomllib.load(file)["wheel"]
    return tuple(
        CompiledWheel(**{**row, "capabilities": tuple(map(Capability.parse, row["capabilities"]))})
        for row in rows
    )


def find_compiled(package: str, inputs: str) -> CompiledWheel | None:
    """The wheel that comes of these inputs, if that is recorded."""
    for wheel in compiled():
        if (wheel.package, wheel.inputs) == (package, inputs):
            return wheel
    return None
