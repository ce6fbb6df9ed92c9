"""Published wheels for the artefact tests: pinned by sha256, downloaded once by pip, kept.

The folder is ``LEGACY_CUDA_TEST_CACHE``, or ``~/.cache/legacy-cuda/test-wheels``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIST = Path(__file__).with_name("libraries.toml")
PLATFORMS = (
    "manylinux_2_31_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
)


class WheelUnavailable(Exception):
    """A pinned wheel is not in the cache and cannot be downloaded."""


@dataclass(frozen=True)
class Wheel:
    """A pin: what to ask pip for and what must come. ``size`` in bytes."""

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


def cache() -> Path:
    """The folder that keeps the wheels."""
    named = os.environ.get("LEGACY_CUDA_TEST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "legacy-cuda" / "test-wheels"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def obtain(wheel: Wheel) -> Path:
    """The wheel in the cache, downloaded by pip if it is not there, its sha256 checked.

    Raises:
        WheelUnavailable: it is in no cache and pip could not download it, or it is not the file
            that was pinned.
    """
    folder = cache()
    path = folder / wheel.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _download(wheel, Path(scratch))
            (Path(scratch) / wheel.file).replace(path)
    if path.stat().st_size != wheel.size or sha256(path) != wheel.sha256:
        raise WheelUnavailable(
            f"{path} is not the file that was pinned (sha256 {wheel.sha256}); delete it and try "
            "again"
        )
    return path


def _download(wheel: Wheel, into: Path) -> None:
    requirements = into / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir"]
    command += ["--implementation", "cp", "--python-version", "3.11"]
    for abi in ("cp311", "abi3", "none"):
        command += ["--abi", abi]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    command += ["--dest", str(into), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (into / wheel.file).exists():
        reason = done.stderr.strip().splitlines()[-1:] or [f"pip gave no {wheel.file}"]
        raise WheelUnavailable(
            f"{wheel.requirement} ({wheel.size >> 20} MiB) cannot be downloaded: {reason[0]}\n"
            f"These tests need PyPI, or {wheel.file} in {cache()}."
        )


def extract(wheel: Path, member: str, into: Path) -> Path:
    """Unpack one member, with the standard library rather than with the code under test."""
    path = into / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, path.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
