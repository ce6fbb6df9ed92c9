"""Recipes: how packages are compiled for old GPUs, from which sources, with what.

The file is ``data/recipes.toml``. Sizes and memory are in bytes, times in seconds of one processor.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import CatalogError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Sdist:
    """A source distribution of the index; ``unpacked`` is the sum of its members."""

    package: str
    version: str
    name: str
    sha256: str
    size: int
    unpacked: int


@dataclass(frozen=True)
class Way:
    """One way to compile a package: with which toolchain, for which capabilities.

    ``seconds`` for one capability and ``memory`` for one compiler are what was measured.
    """

    toolchain: str
    capabilities: tuple[Capability, ...]
    settings: dict[str, str]
    seconds: int
    memory: int


@dataclass(frozen=True)
class Recipe:
    """A package at one version. ``settings`` are those of the build back end (PEP 517), and
    ``environment`` variables that it or what it runs is told by.

    ``overlay`` names a folder of ours that is laid over the sources, "" where there is none.
    ``local`` is the local version where that does not depend on the GPU: "" for a package with
    device code. ``requires`` are requirements (PEP 508) beside those that the sources state, and
    ``libraries`` the sonames that these bring, with their folder below site-packages. ``headers``
    says whether Python's are read, ``disk`` is what a build takes.
    """

    package: str
    version: str
    summary: str
    sdist: Sdist
    overlay: str
    local: str
    lock: str
    settings: dict[str, str]
    environment: dict[str, str]
    requires: tuple[str, ...]
    libraries: dict[str, str]
    headers: bool
    disk: int
    ways: tuple[Way, ...]

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """Every capability that it can be compiled for, ascending."""
        return tuple(sorted({item for way in self.ways for item in way.capabilities}))

    def way(self, capabilities: set[Capability]) -> Way | None:
        """The way that serves all of them: the newest toolkit of several; None where none does."""
        for way in self.ways[::-1]:
            if capabilities <= set(way.capabilities):
                return way
        return None

    def seconds(self, way: Way, capabilities: int) -> int:
        """Of one processor, about, for a build for so many capabilities."""
        return way.seconds * (1 if self.local else capabilities)

    def installed(self, way: Way, capabilities: set[Capability]) -> str:
        """The version of the wheel, with a local version (PEP 440): ``0.3.36+cu118.sm37``."""
        if self.local:
            return f"{self.version}+{self.local}"
        targets = ".".join(f"sm{item.number}" for item in sorted(capabilities))
        return f"{self.version}+cu{way.toolchain.replace('.', '')}.{targets}"


@cache
def recipes() -> tuple[Recipe, ...]:
    """Every recipe, in the order of the file."""
    with (catalog.DATA / "recipes.toml").open("rb") as file:
        return tuple(_recipe(row) for row in tomllib.load(file)["recipe"])


def find_recipe(package: str) -> Recipe:
    """The recipe for a package.

    Raises:
        CatalogError: there is none; the packages there are recipes for are given.
    """
    for recipe in recipes():
        if recipe.package == package:
            return recipe
    raise CatalogError(
        f"there is no recipe for {package!r}", tuple(recipe.package for recipe in recipes())
    )


def _recipe(row: dict[str, Any]) -> Recipe:
    return Recipe(
        package=row["package"],
        version=row["version"],
        summary=row["summary"],
        sdist=Sdist(**row["sdist"]),
        overlay=row.get("overlay", ""),
        local=row.get("local", ""),
        lock=row["lock"],
        settings=row["settings"],
        environment=row.get("environment", {}),
        requires=tuple(row.get("requires", ())),
        libraries=row.get("libraries", {}),
        headers=row.get("headers", False),
        disk=row["disk"],
        ways=tuple(
            Way(
                toolchain=way["toolchain"],
                capabilities=tuple(Capability.parse(item) for item in way["capabilities"]),
                settings=way["settings"],
                seconds=way["seconds"],
                memory=way["memory"],
            )
            for way in row["way"]
        ),
    )
