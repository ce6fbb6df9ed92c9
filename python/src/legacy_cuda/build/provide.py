"""Wheels that are compiled for GPUs, from wherever they are to be had: cache, index, this machine.

A wheel is known by the digest of what goes into it. Where the catalog records what comes out, that
sha256 is asked of a wheel from anywhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from legacy_cuda import fetch, paths
from legacy_cuda.build import compile as building
from legacy_cuda.build import source
from legacy_cuda.build.compile import Order, Tell
from legacy_cuda.build.make import file_sha256
from legacy_cuda.build.patches import PatchError
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.compiled import CompiledWheel, find_compiled
from legacy_cuda.catalog.locks import load_lock
from legacy_cuda.catalog.recipes import Recipe, Way
from legacy_cuda.catalog.toolchains import find_toolchain
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.toolchain import make

_TIMEOUT = 60.0  # seconds, for the page of an index


@dataclass(frozen=True)
class Need:
    """A package that has to be had for these capabilities; ``inputs`` is the digest of what goes
    into it, ``recorded`` what comes out, where that is known."""

    recipe: Recipe
    way: Way
    capabilities: tuple[Capability, ...]
    inputs: str
    recorded: CompiledWheel | None

    @property
    def version(self) -> str:
        """The version of the wheel, with its local version."""
        return self.recipe.installed(self.way, set(self.capabilities))

    @property
    def unpacked(self) -> int:
        """Bytes that it unpacks to; 0 where that is not recorded."""
        return self.recorded.unpacked if self.recorded else 0


@dataclass(frozen=True)
class Provided:
    """A wheel that is there, its sha256 looked at; ``origin`` is ``cache``, ``index`` or
    ``built``."""

    need: Need
    path: Path
    sha256: str
    size: int
    origin: str

    @property
    def as_recorded(self) -> bool | None:
        """Whether it is the wheel that the catalog records; None where it records none."""
        recorded = self.need.recorded
        return None if recorded is None else recorded.sha256 == self.sha256

    def document(self) -> dict[str, Any]:
        """As JSON, for manifests."""
        return {
            "package": self.need.recipe.package,
            "version": self.need.version,
            "file": self.path.name,
            "sha256": self.sha256,
            "size": self.size,
            "origin": self.origin,
            "as_recorded": self.as_recorded,
            "inputs": self.need.inputs,
            "toolchain": self.need.way.toolchain,
            "capabilities": [str(item) for item in self.need.capabilities],
        }


def need(recipe: Recipe, capabilities: Iterable[Capability]) -> Need:
    """What has to be had of a recipe for these capabilities, all of which it serves.

    Raises:
        SurroundingsError: this installation's patches cannot be read.
    """
    wanted = tuple(sorted(set(capabilities)))
    way = recipe.way(set(wanted))
    assert way is not None, "a stack covers what its recipes compile for"
    try:
        inputs = building.digest(_order(recipe, way, wanted), source.changes(recipe))
    except (OSError, PatchError) as error:
        raise SurroundingsError(
            f"the patches of {recipe.package} cannot be read", str(error), "reinstall legacy-cuda"
        ) from error
    if recipe.local:  # one wheel for all of them
        wanted = recipe.capabilities
    return Need(recipe, way, wanted, inputs, find_compiled(recipe.package, inputs))


def order(wanted: Need) -> Order:
    """How it is built here; the toolchain may have to be made first."""
    return _order(wanted.recipe, wanted.way, wanted.capabilities)


def _order(recipe: Recipe, way: Way, capabilities: tuple[Capability, ...]) -> Order:
    count = building.jobs(way, building.processors(), building.available_memory())
    place = make.place(find_toolchain(way.toolchain))
    return Order(recipe, way, capabilities, place, "sass", count, shutil.which("ccache"))


def find(
    wanted: Need, index: str | None, offline: bool, progress: fetch.Progress | None = None
) -> Provided | None:
    """The wheel from the cache or an index; None where neither has it.

    ``index`` is a folder or an address of what ``legacy-cuda index`` has written.

    Raises:
        UserError: the index is none.
        SurroundingsError: the index cannot be read, or has other bytes than are recorded.
    """
    kept = _cached(wanted)
    if kept is not None or index is None:
        return kept
    place = _Place.parse(index)
    if place.remote and offline:
        raise SurroundingsError(
            f"the cache does not hold {wanted.recipe.package} {wanted.version}",
            f"the index is {index}",
            "run once without --offline",
        )
    rows = [row for row in place.files(wanted.recipe.package) if _fits(row, wanted)]
    if not rows:
        return None
    row = next((item for item in rows if _is_recorded(item, wanted)), rows[0])
    file, sha256 = str(row["filename"]), str(row["hashes"]["sha256"])
    if wanted.recorded is not None and not _is_recorded(row, wanted):
        raise SurroundingsError(
            f"the index has another {file} than the one that is recorded",
            f"{index}: sha256 {sha256}\nrecorded: {wanted.recorded.sha256}",
            "leave the index out to compile it here, or have it built anew",
        )
    path = place.download(wanted, row, progress)
    return Provided(wanted, path, sha256, path.stat().st_size, "index")


def build(wanted: Need, offline: bool, tell: Tell) -> Provided:
    """Compile the wheel here, into the cache.

    Raises:
        SurroundingsError: as :func:`legacy_cuda.build.compile.compile_wheel`; or ``offline``, which
            a build cannot be.
    """
    from legacy_cuda.environment import choose_python

    recipe = wanted.recipe
    if offline:
        raise SurroundingsError(
            f"the cache does not hold {recipe.package} {wanted.version}",
            "it would have to be compiled, with a toolchain and sources from the network",
            "run once without --offline",
        )
    archive = building.archive(recipe, None, tell)
    folder, _ = make.make(find_toolchain(wanted.way.toolchain), tell)
    interpreter = choose_python(load_lock(recipe.lock).pythons[::-1])
    built = building.compile_wheel(
        replace(order(wanted), toolchain=folder), archive, interpreter, _folder(wanted), tell
    )
    return Provided(wanted, built.path, built.sha256, built.size, "built")


def minutes(wanted: Need) -> int:
    """How long compiling takes here, about."""
    seconds = wanted.recipe.seconds(wanted.way, len(wanted.capabilities))
    return max(1, round(seconds / min(order(wanted).jobs, building.processors()) / 60))


def _folder(wanted: Need) -> Path:
    return paths.cache_directory() / "compiled" / wanted.inputs


def _cached(wanted: Need) -> Provided | None:
    """What was compiled or downloaded before, read again."""
    places = [*_folder(wanted).glob("*.whl")]
    if wanted.recorded is not None:
        places.insert(0, fetch.cached_path(_remote(wanted.recorded)))
    found = []
    for path in places:
        try:
            found.append(Provided(wanted, path, file_sha256(path), path.stat().st_size, "cache"))
        except OSError:
            continue
    return next((item for item in found if item.as_recorded), next(iter(found), None))


def _remote(wheel: CompiledWheel, url: str = "") -> fetch.Remote:
    return fetch.Remote(wheel.package, wheel.version, wheel.file, wheel.sha256, wheel.size, url)


def _fits(row: dict[str, Any], wanted: Need) -> bool:
    """Whether a file of an index is a wheel of just this version.

    Its name says more than a Python version asks for: it is not taken for a path.
    """
    try:
        name, version, _, _ = parse_wheel_filename(str(row["filename"]))
        return (
            name == wanted.recipe.package
            and version == Version(wanted.version)
            and len(str(row["hashes"]["sha256"])) == 64
            and "/" not in str(row["filename"])
        )
    except (InvalidWheelFilename, KeyError, TypeError):
        return False


def _is_recorded(row: dict[str, Any], wanted: Need) -> bool:
    return wanted.recorded is not None and row["hashes"]["sha256"] == wanted.recorded.sha256


@dataclass(frozen=True)
class _Place:
    """Where an index is: an address that ends in ``/``, of a folder of this machine or remote."""

    text: str
    url: str

    @property
    def remote(self) -> bool:
        return not self.url.startswith("file:")

    @classmethod
    def parse(cls, text: str) -> _Place:
        scheme = urlsplit(text).scheme
        if scheme not in ("", "file", "http", "https"):
            raise UserError(
                f"{text!r} is no index", "", "name a folder, or an address of http, https or file"
            )
        url = text if scheme else Path(text).expanduser().resolve().as_uri()
        url = url.rstrip("/").removesuffix("/simple")
        return cls(text, f"{url}/")

    def files(self, package: str) -> Iterator[dict[str, Any]]:
        """The rows of a package's page (PEP 691), each with its address added; none without one."""
        page = f"{self.url}simple/{package}/index.json"
        content = self._read(page, f"{self.url}simple/index.json")
        if content is None:
            return
        try:
            for row in json.loads(content)["files"]:
                yield {**row, "address": urljoin(page, str(row["url"]))}
        except (ValueError, KeyError, TypeError) as error:
            raise SurroundingsError(
                f"{page} is no page of a package index",
                f"{type(error).__name__}: {error}",
                "make the index anew: legacy-cuda index DIR",
            ) from error

    def _read(self, page: str, top: str) -> bytes | None:
        """A page; None where the index, which has to be one, does not have it."""
        content = self._get(page)
        if content is None and self._get(top) is None:
            raise UserError(
                f"{self.text} is no package index",
                f"there is no {top}",
                "name a folder in which legacy-cuda index was run, or its address",
            )
        return content

    def _get(self, url: str) -> bytes | None:
        if not self.remote:
            try:
                return _local(url).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise SurroundingsError(f"{self.text} cannot be read", str(error)) from error
        import requests

        try:
            answer = requests.get(url, timeout=_TIMEOUT)
            if answer.status_code == requests.codes.not_found:
                return None
            answer.raise_for_status()
        except requests.RequestException as error:
            raise SurroundingsError(
                f"the index {self.text} cannot be reached", str(error), "check the address"
            ) from error
        return answer.content

    def download(self, wanted: Need, row: dict[str, Any], progress: fetch.Progress | None) -> Path:
        """The file, where it is or in the cache; its sha256 has been checked."""
        file, sha256 = str(row["filename"]), str(row["hashes"]["sha256"])
        address = str(row["address"])
        if address.startswith("file:"):
            path = _local(address)
            try:
                found = file_sha256(path)
            except OSError as error:
                raise SurroundingsError(f"{path} cannot be read", str(error)) from error
            if found != sha256:
                raise SurroundingsError(
                    f"{path} is not what its index says",
                    f"its sha256 is {found}\nthe index says {sha256}",
                    "make the index anew: legacy-cuda index DIR",
                )
            return path
        remote = fetch.Remote(
            wanted.recipe.package, wanted.version, file, sha256, int(row.get("size", 0)), address
        )
        return fetch.download(remote, progress=progress)


def _local(url: str) -> Path:
    return Path(url2pathname(urlsplit(url).path))
