"""Locks: for every package of a stack one wheel file per Python, by sha256.

The files are ``data/locks/NAME.toml``, remade by ``tools/update_locks.py``; nothing here touches
the network. Sizes are in bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCK_DIRECTORY = Path(__file__).parent / "data" / "locks"

_NAME = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
SHA256 = re.compile(r"[0-9a-f]{64}")
_WHEEL = re.compile(r"[A-Za-z0-9_.+!]+(?:-[A-Za-z0-9_.+!]+){4,5}\.whl")
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_x86_64")
# The names manylinux tags had before they told the glibc version (PEP 600, "Legacy manylinux
# tags").
LEGACY_MANYLINUX = {
    "manylinux1_x86_64": (2, 5),
    "manylinux2010_x86_64": (2, 12),
    "manylinux2014_x86_64": (2, 17),
}


class LockError(ValueError):
    """There is no such lock, or its file is not a well-formed lock."""


class UnsupportedPythonError(LockError):
    """The lock holds no files for the Python asked for."""


def glibc_floor(name: str) -> tuple[int, int] | None:
    """The oldest glibc that the platform tags of a wheel's name admit; None where it needs none.

    Raises:
        LockError: a platform tag is neither ``any`` nor a manylinux one for x86_64.
    """
    floors = []
    for tag in name.removesuffix(".whl").rsplit("-", 1)[1].split("."):
        if tag == "any":
            return None
        match = _MANYLINUX.fullmatch(tag)
        floor = (int(match[1]), int(match[2])) if match else LEGACY_MANYLINUX.get(tag)
        if floor is None:
            raise LockError(f"{name}: {tag} is not a linux x86_64 platform tag")
        floors.append(floor)
    return min(floors)


@dataclass(frozen=True)
class LockedFile:
    """One wheel file.

    ``size`` is what is downloaded and ``unpacked`` the sum of its members once unpacked, both in
    bytes; ``pythons`` the versions (``"3.11"``) it is chosen for.
    """

    package: str
    version: str
    name: str
    sha256: str
    size: int
    unpacked: int
    pythons: tuple[str, ...]

    @property
    def glibc_min(self) -> tuple[int, int] | None:
        """The oldest glibc that the file's platform tags admit; None where it needs none.

        Raises:
            LockError: a platform tag is neither ``any`` nor a manylinux one for x86_64.
        """
        return glibc_floor(self.name)


@dataclass(frozen=True)
class LockedPackage:
    """One package at one version; ``requires`` names the packages of the lock it depends on."""

    name: str
    version: str
    requires: tuple[str, ...]
    files: tuple[LockedFile, ...]

    def file(self, python: str) -> LockedFile:
        """The file for a Python such as ``"3.11"``.

        Raises:
            UnsupportedPythonError: no file, or more than one, is meant for that Python.
        """
        found = [file for file in self.files if python in file.pythons]
        if len(found) != 1:
            raise UnsupportedPythonError(
                f"{self.name} {self.version} has {len(found)} files for Python {python}, not one"
            )
        return found[0]


@dataclass(frozen=True)
class Lock:
    """Everything a stack installs from PyPI.

    ``roots`` are the requirements it was resolved from, ``exclude_newer`` the moment (RFC 3339)
    after which uploads were ignored, ``pythons`` the versions it serves, ascending.
    """

    name: str
    roots: tuple[str, ...]
    exclude_newer: str
    pythons: tuple[str, ...]
    packages: tuple[LockedPackage, ...]

    def package(self, name: str) -> LockedPackage:
        """The package of that normalised name.

        Raises:
            LockError: the lock has none.
        """
        for package in self.packages:
            if package.name == name:
                return package
        raise LockError(f"lock {self.name} has no package {name}")

    def select(self, python: str) -> tuple[LockedFile, ...]:
        """The files for one Python (``"3.11"``), one per package, by package name.

        Raises:
            UnsupportedPythonError: the lock does not serve that Python.
        """
        if python not in self.pythons:
            raise UnsupportedPythonError(
                f"lock {self.name} has no wheels for Python {python}; "
                f"it serves {', '.join(self.pythons)}"
            )
        return tuple(package.file(python) for package in self.packages)

    def requirements(self, python: str, instead: Mapping[str, str] | None = None) -> str:
        """Hash-pinned requirement lines for an installer, one file each, ending in a newline.

        ``instead`` gives the lines of packages that do not come from the index, hash included.

        Raises:
            UnsupportedPythonError: the lock does not serve that Python.
        """
        pins = {
            file.package: f"{file.package}=={file.version} --hash=sha256:{file.sha256}"
            for file in self.select(python)
        }
        return "".join(f"{line}\n" for line in {**pins, **(instead or {})}.values())

    def download_bytes(self, python: str) -> int:
        """How many bytes an installation downloads when nothing is cached.

        Raises:
            UnsupportedPythonError: the lock does not serve that Python.
        """
        return sum(file.size for file in self.select(python))

    def unpacked_bytes(self, python: str) -> int:
        """How many bytes the files unpack to, file system overhead and bytecode aside.

        Raises:
            UnsupportedPythonError: the lock does not serve that Python.
        """
        return sum(file.unpacked for file in self.select(python))

    @cached_property
    def glibc_min(self) -> tuple[int, int]:
        """The oldest glibc on which every file may be installed, e.g. ``(2, 28)``.

        Raises:
            LockError: a file is not for linux x86_64, or none of them depends on glibc.
        """
        floors = [file.glibc_min for package in self.packages for file in package.files]
        known = [floor for floor in floors if floor is not None]
        if not known:
            raise LockError(f"lock {self.name} has no file that depends on glibc")
        return max(known)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over what gets installed: packages, versions, files, and for which Python.

        The lock's name, where it came from and the order in its file make no difference.
        """
        content = sorted(
            (package.name, package.version, file.name, file.sha256, sorted(file.pythons))
            for package in self.packages
            for file in package.files
        )
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def lock_names() -> tuple[str, ...]:
    """The names of all locks of the catalog, sorted."""
    return tuple(sorted(path.stem for path in LOCK_DIRECTORY.glob("*.toml")))


def load_lock(name: str) -> Lock:
    """The lock of that name, e.g. ``"torch-2.7.1"``.

    Raises:
        LockError: there is no such lock, or its file is malformed.
    """
    path = LOCK_DIRECTORY / f"{name}.toml"
    if _NAME.fullmatch(name) is None or not path.is_file():
        known = ", ".join(lock_names()) or "none"
        raise LockError(f"there is no lock {name!r}; known: {known}")
    return parse_lock(path.read_text(encoding="utf-8"), name)


def parse_lock(text: str, name: str) -> Lock:
    """Read the text of a lock that should be called ``name``.

    Raises:
        LockError: it is not TOML, lacks or misspells a key, has another name, gives a package
            twice or two files to one Python, requires what it does not hold, or holds a value
            that would not be safe to pass on (a path as a file name, a sha256 that is none).
    """
    try:
        data = tomllib.loads(text)
        if data["schema"] != 1:
            raise LockError(f"lock {name}: schema {data['schema']!r} is unknown, only 1 is")
        lock = Lock(
            name=_text(data, "name"),
            roots=_texts(data, "roots"),
            exclude_newer=_text(data, "exclude_newer"),
            pythons=_texts(data, "pythons"),
            packages=tuple(sorted(_packages(data), key=lambda package: package.name)),
        )
    except tomllib.TOMLDecodeError as error:
        raise LockError(f"lock {name}: not TOML: {error}") from error
    except KeyError as error:
        raise LockError(f"lock {name}: the key {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise LockError(f"lock {name}: {error}") from error
    if lock.name != name:
        raise LockError(f"lock {name}: the file says its name is {lock.name!r}")
    _check(lock)
    return lock


def _packages(data: dict[str, Any]) -> Iterator[LockedPackage]:
    for item in data["package"]:
        name, version = _text(item, "name"), _text(item, "version")
        files = tuple(
            LockedFile(
                package=name,
                version=version,
                name=_text(file, "name"),
                sha256=_text(file, "sha256"),
                size=_bytes(file, "size"),
                unpacked=_bytes(file, "unpacked"),
                pythons=_texts(file, "pythons"),
            )
            for file in item["files"]
        )
        yield LockedPackage(name, version, _texts(item, "requires"), files)


def _check(lock: Lock) -> None:
    names = [package.name for package in lock.packages]
    for package in lock.packages:
        where = f"lock {lock.name}: {package.name}"
        if names.count(package.name) > 1:
            raise LockError(f"{where}: listed more than once")
        if missing := set(package.requires) - set(names):
            raise LockError(f"{where}: requires {', '.join(sorted(missing))}, not in the lock")
        for file in package.files:
            if _WHEEL.fullmatch(file.name) is None:
                raise LockError(f"{where}: {file.name!r} is not the name of a wheel")
            if SHA256.fullmatch(file.sha256) is None:
                raise LockError(f"{where}: {file.sha256!r} is not a sha256 in hex")
        chosen = [python for file in package.files for python in file.pythons]
        if sorted(chosen) != sorted(lock.pythons):
            raise LockError(
                f"{where}: files for Python {', '.join(chosen) or 'none'}, "
                f"expected one each for {', '.join(lock.pythons)}"
            )


def _text(data: dict[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is {value!r}, not a string")
    return value


def _texts(data: dict[str, Any], key: str) -> tuple[str, ...]:
    value = data[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{key} is {value!r}, not an array of strings")
    return tuple(value)


def _bytes(data: dict[str, Any], key: str) -> int:
    value = data[key]
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise TypeError(f"{key} is {value!r}, not a positive number of bytes")
    return value
