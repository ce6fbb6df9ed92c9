"""Patched wheels: what is patched for whom, the published wheels that go in, what must come out.

The file is ``data/patched.toml``, whose wheels and digests ``tools/update_patched.py`` writes.
Sizes are in bytes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import CatalogError
from legacy_cuda.catalog.locks import UnsupportedPythonError, load_lock

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class SourceWheel:
    """A published wheel and the sha256 of what is made from it ("" where that is not recorded)."""

    file: str
    sha256: str
    size: int
    pythons: tuple[str, ...]
    result: str


@dataclass(frozen=True, slots=True)
class CopiedFolder:
    """Modules copied into the wheel: a folder of legacy_cuda, and its path in the wheel."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class PatchedPackage:
    """One version of a package that is patched, and the capabilities it is patched for.

    ``series`` is the digest of the patches and modules for which the wheels' results are recorded.
    """

    package: str
    version: str
    local: str
    capabilities: tuple[Capability, ...]
    modules: tuple[CopiedFolder, ...]
    series: str
    wheels: tuple[SourceWheel, ...]

    @property
    def installed(self) -> str:
        """The version of the patched wheel: ``3.3.1+legacy.1`` (PEP 440, local version)."""
        return f"{self.version}+{self.local}"

    @property
    def pythons(self) -> tuple[str, ...]:
        """The Pythons there are wheels for, ascending."""
        found = {python for wheel in self.wheels for python in wheel.pythons}
        return tuple(sorted(found, key=catalog.version_tuple))

    def wheel(self, python: str) -> SourceWheel:
        """The wheel for a Python such as ``"3.11"``.

        Raises:
            UnsupportedPythonError: there is none.
        """
        for wheel in self.wheels:
            if python in wheel.pythons:
                return wheel
        raise UnsupportedPythonError(
            f"{self.package} {self.version} is patched for Python {', '.join(self.pythons)}, "
            f"not {python}"
        )


@cache
def patched() -> tuple[PatchedPackage, ...]:
    """Every patched package, in the order of the file: by name, oldest version first."""
    with (catalog.DATA / "patched.toml").open("rb") as file:
        rows = tomllib.load(file)["patched"]
    return tuple(_package(row) for row in rows)


def _package(row: dict[str, Any]) -> PatchedPackage:
    results = {wheel["name"]: wheel.get("result", "") for wheel in row.get("wheel", [])}
    if "lock" in row:
        locked = load_lock(row["lock"]).package(row["package"])
        if locked.version != row["version"]:
            raise CatalogError(
                f"{row['package']} {row['version']} is not that of lock {row['lock']}"
            )
        pins = [(file.name, file.sha256, file.size, file.pythons) for file in locked.files]
    else:
        pins = [
            (wheel["name"], wheel["sha256"], wheel["size"], tuple(wheel["pythons"]))
            for wheel in row.get("wheel", [])
        ]
    return PatchedPackage(
        package=row["package"],
        version=row["version"],
        local=row["local"],
        capabilities=tuple(Capability.parse(item) for item in row["capabilities"]),
        modules=tuple(CopiedFolder(item["source"], item["target"]) for item in row["modules"]),
        series=row.get("series", ""),
        wheels=tuple(
            SourceWheel(name, sha256, size, pythons, results.get(name, ""))
            for name, sha256, size, pythons in pins
        ),
    )


def find_patched(package: str, version: str) -> PatchedPackage:
    """The patched package of that name and (published) version.

    Raises:
        CatalogError: there is none; versions or names that there are are given.
    """
    rows = [row for row in patched() if row.package == package]
    for row in rows:
        if row.version == version:
            return row
    if rows:
        versions = tuple(row.version for row in rows)
        raise CatalogError(f"{package} {version} is not patched", versions)
    names = tuple(dict.fromkeys(row.package for row in patched()))
    raise CatalogError(f"{package} is not patched", names)
