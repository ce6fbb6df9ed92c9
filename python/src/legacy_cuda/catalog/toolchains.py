"""Toolchains: which packages make one CUDA toolkit with its host compiler and C library.

The file is ``data/toolchains.toml``, whose packages ``tools/update_toolchains.py`` writes. Sizes
are in bytes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from legacy_cuda import catalog
from legacy_cuda.catalog import CatalogError, Toolkit
from legacy_cuda.catalog.locks import LockedFile, load_lock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A package of a Debian archive; ``file`` is its path below the archive's address."""

    name: str
    version: str
    file: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Host:
    """The host compiler and the C library that it compiles against. ``system`` are the sonames of
    libraries that a program may need of the machine it runs on."""

    gcc: str
    glibc: str
    system: frozenset[str]
    packages: tuple[DebianPackage, ...]


@dataclass(frozen=True, slots=True)
class CudaLibrary:
    """A library of CUDA: the requirement (PEP 508) that brings it, and where it then lies below
    site-packages."""

    soname: str
    requires: str
    folder: str


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A pinned toolchain, called by its toolkit's version: ``11.8``."""

    name: str
    nvcc: str
    lock: str
    layout: int
    host: Host
    packages: tuple[DebianPackage, ...]
    libraries: tuple[CudaLibrary, ...]

    @property
    def toolkit(self) -> Toolkit:
        """What the catalog says of the toolkit: targets, compilers, drivers."""
        major, minor = catalog.version_tuple(self.name)
        return catalog.toolkits()[major, minor]

    @property
    def wheels(self) -> tuple[LockedFile, ...]:
        """The wheels with CUDA's headers and libraries, by package name."""
        lock = load_lock(self.lock)
        return lock.select(lock.pythons[-1])

    @property
    def download(self) -> int:
        """Bytes to download where nothing is cached."""
        packages = (*self.host.packages, *self.packages)
        return sum(item.size for item in packages) + sum(item.size for item in self.wheels)

    @property
    def digest(self) -> str:
        """sha256 (hex) over everything that goes in."""
        content = [
            *(asdict(package) for package in (*self.host.packages, *self.packages)),
            load_lock(self.lock).digest,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def toolchains() -> tuple[Toolchain, ...]:
    """Every toolchain of the catalog, oldest toolkit first."""
    with (catalog.DATA / "toolchains.toml").open("rb") as file:
        data = tomllib.load(file)
    row = data["host"]
    host = Host(row["gcc"], row["glibc"], frozenset(row["system"]), _packages(row))
    return tuple(
        Toolchain(
            row["name"],
            row["nvcc"],
            row["lock"],
            row["layout"],
            host,
            _packages(row),
            tuple(CudaLibrary(**library) for library in row["library"]),
        )
        for row in data["toolchain"]
    )


def find_toolchain(name: str) -> Toolchain:
    """The toolchain of that name (``"11.8"``).

    Raises:
        CatalogError: there is none; those that there are are given.
    """
    for item in toolchains():
        if item.name == name:
            return item
    raise CatalogError(f"no toolchain {name!r}", tuple(item.name for item in toolchains()))


def _packages(row: dict[str, Any]) -> tuple[DebianPackage, ...]:
    return tuple(DebianPackage(**package) for package in row["package"])
