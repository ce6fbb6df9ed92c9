"""Published wheels for the artefact tests: pinned by sha256, kept in the tool's cache."""

from __future__ import annotations

import shutil
import stat
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legacy_cuda import fetch
from legacy_cuda.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIST = Path(__file__).with_name("libraries.toml")


class WheelUnavailable(Exception):
    """A pinned wheel is not in the cache and cannot be downloaded."""


@dataclass(frozen=True)
class Wheel:
    """A pin: what to ask the index for and what must come. ``size`` in bytes."""

    key: str
    requirement: str
    file: str
    sha256: str
    size: int
    large: bool


@dataclass(frozen=True)
class Section:
    """What one section of a library holds.

    ``unregistered`` counts the containers that no registration record points to (in .nv_fatbin and
    __nv_relfatbin), ``relocatable`` the cubins of ELF type REL outside __nv_relfatbin, ``opaque``
    the payloads of intermediate code that are scrambled.
    """

    containers: int
    stubs: int
    unregistered: int
    relocatable: int
    opaque: int
    entries: dict[str, int]


@dataclass(frozen=True)
class Library:
    """A file in a wheel and what must be found in it, by section."""

    wheel: Wheel
    member: str
    cuobjdump: str
    sections: dict[str, Section]


def read_list(path: Path = LIST) -> tuple[dict[str, Wheel], list[Library]]:
    """The pins and the libraries of ``libraries.toml``."""
    document: dict[str, Any] = tomllib.loads(path.read_text())
    wheels = {
        key: Wheel(
            key,
            row["requirement"],
            row["file"],
            row["sha256"],
            row["size"],
            row.get("large", False),
        )
        for key, row in document["wheels"].items()
    }
    libraries = [
        Library(
            wheels[row["wheel"]],
            row["member"],
            row["cuobjdump"],
            {
                name: Section(
                    part["containers"],
                    part.get("stubs", 0),
                    part.get("unregistered", 0),
                    part.get("relocatable", 0),
                    part.get("opaque", 0),
                    part["entries"],
                )
                for name, part in row["sections"].items()
            },
        )
        for row in document["libraries"]
    ]
    return wheels, libraries


def obtain(wheel: Wheel) -> Path:
    """The wheel in the tool's cache, downloaded if it is not there, its sha256 checked.

    Raises:
        WheelUnavailable: it is not in the cache and cannot be downloaded.
    """
    package, _, version = wheel.requirement.partition("==")
    remote = fetch.Remote(package, version, wheel.file, wheel.sha256, wheel.size)
    try:
        return fetch.download(remote)
    except UserError as error:
        raise WheelUnavailable(
            f"{wheel.requirement} ({wheel.size >> 20} MiB) cannot be downloaded: {error.what}\n"
            f"{error.why}\nThese tests need PyPI, or {fetch.cached_path(remote)}."
        ) from error


def extract(wheel: Path, member: str, into: Path) -> Path:
    """Unpack one member, with the standard library rather than with the code under test."""
    path = into / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, path.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
