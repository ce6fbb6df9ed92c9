"""Wheels that are compiled for GPUs, from wherever they are to be had: cache, index, this machine.

A wheel is known by the digest of what goes into it, and kept in the cache under it (``compiled/``).
Where the catalog records what comes out, that sha256 is asked of a wheel from anywhere. What an
index says is not trusted further than that it has a file of this name with this sha256.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

from legacy_cuda import fetch, paths
from legacy_cuda.build import backend, source
from legacy_cuda.build import compile as building
from legacy_cuda.build.compile import Order, Tell
from legacy_cuda.build.make import file_sha256
from legacy_cuda.build.patches import PatchError
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.compiled import CompiledWheel, compiled, find_compiled
from legacy_cuda.catalog.locks import SHA256, LockError, glibc_floor
from legacy_cuda.catalog.recipes import Recipe, Way
from legacy_cuda.catalog.toolchains import find_toolchain
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.toolchain import make

_TIMEOUT = 60.0  # seconds, for the page of an index
_PAGE = 16 << 20  # bytes: more than any page of an index has
_NOTE = "wheel.json"


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
        """Bytes that it unpacks to, about: those of this one or of another for one capability."""
        return max([0, *(item.unpacked for item in self._known)])

    @property
    def glibc_min(self) -> tuple[int, int] | None:
        """The oldest glibc that it runs on, as far as that is recorded for the package."""
        floors = [glibc_floor(item.file) for item in self._known]
        return max((floor for floor in floors if floor is not None), default=None)

    @property
    def _known(self) -> list[CompiledWheel]:
        if self.recorded is not None:
            return [self.recorded]
        return [item for item in compiled() if item.package == self.recipe.package]


@dataclass(frozen=True)
class Provided:
    """A wheel that is there, its sha256 looked at just now; ``origin`` is where it came from:
    ``index`` or ``built``."""

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
    if recipe.local:  # one wheel for all of them
        wanted = recipe.capabilities
    made = Need(recipe, way, wanted, "", None)
    try:
        inputs = building.digest(order(made), source.changes(recipe))
    except (OSError, PatchError) as error:
        raise SurroundingsError(
            f"the patches of {recipe.package} cannot be read", str(error), "reinstall legacy-cuda"
        ) from error
    return replace(made, inputs=inputs, recorded=find_compiled(recipe.package, inputs))


def order(wanted: Need) -> Order:
    """How it is built here; the toolchain may have to be made first."""
    place = make.place(find_toolchain(wanted.way.toolchain))
    return building.order(wanted.recipe, wanted.way, wanted.capabilities, place)


def is_looked_in(index: str | None, offline: bool) -> bool:
    """Whether :func:`find` looks into an index for what the cache has not."""
    return bool(index) and not (offline and _Place(index or "").remote)


def find(
    wanted: Need, index: str | None, offline: bool, progress: fetch.Progress | None = None
) -> Provided | None:
    """The wheel from the cache or an index; None where neither has it.

    ``index`` is a folder or an address of what ``legacy-cuda index`` has written. A wheel from
    there goes into the cache. One in the cache that is damaged does not count.

    Raises:
        UserError: the index is none.
        SurroundingsError: the index cannot be read, or has other bytes than are recorded.
    """
    kept = _cached(wanted)
    if kept is not None and kept.as_recorded is not False:
        return kept
    if not index or not is_looked_in(index, offline):
        return kept
    place = _Place(index)
    rows = [row for row in place.rows(wanted.recipe.package) if _fits(row, wanted)]
    if not rows:
        return kept
    recorded = wanted.recorded
    row = next((item for item in rows if recorded and item.sha256 == recorded.sha256), rows[0])
    if recorded is not None and row.sha256 != recorded.sha256:
        raise SurroundingsError(
            f"the index has another {row.file} than the one that is recorded",
            f"{index}: sha256 {row.sha256}\nrecorded: {recorded.sha256}",
            "leave the index out (--index, LEGACY_CUDA_INDEX) to compile it here, or have it "
            "built anew",
        )
    with _ours(wanted):
        path = place.download(wanted, row, progress)
        return _keep(wanted, path, row.sha256, "index")


def build(wanted: Need, offline: bool, interpreter: tuple[str, str], tell: Tell) -> Provided:
    """Compile the wheel here, into the cache; ``interpreter`` as for the builder.

    Raises:
        SurroundingsError: as :func:`legacy_cuda.build.compile.compile_wheel`; or ``offline``, which
            a build cannot be.
    """
    recipe = wanted.recipe
    if offline:
        raise SurroundingsError(
            f"the cache does not hold {recipe.package} {wanted.version}",
            "it would have to be compiled, with a toolchain and sources from the network",
            "run once without --offline, or name a folder of built wheels with --index",
        )
    with _ours(wanted):
        kept = _cached(wanted)  # another run may have compiled it meanwhile
        if kept is not None:
            return kept
        backend.ensure_python(*interpreter)
        archive = building.archive(recipe, None, tell)
        folder, _ = make.make(find_toolchain(wanted.way.toolchain), tell)
        work = replace(order(wanted), toolchain=folder)
        with tempfile.TemporaryDirectory(dir=_folder(wanted), prefix=".new-") as out:
            built = building.compile_wheel(work, archive, interpreter, Path(out), tell)
            return _keep(wanted, built.path, built.sha256, "built")


def minutes(wanted: Need) -> int:
    """How long compiling takes here, about."""
    return max(1, round(building.minutes(order(wanted))))


def keep_built(wanted: Need, built: building.Compiled) -> None:
    """Take a wheel that was built for somebody else into the cache, so that ``up`` finds it.

    Raises:
        SurroundingsError: the disk failed.
    """
    with _ours(wanted):
        _keep(wanted, built.path, built.sha256, "built")


def _folder(wanted: Need) -> Path:
    return paths.cache_directory() / "compiled" / wanted.inputs


@contextlib.contextmanager
def _ours(wanted: Need) -> Iterator[None]:
    """Hold the lock on the wheel's place in the cache.

    Raises:
        SurroundingsError: the disk failed.
    """
    folder = _folder(wanted)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with fetch.locked(folder / ".lock"):
            yield
    except OSError as error:
        raise SurroundingsError(
            f"{wanted.recipe.package} could not be stored in {folder}",
            str(error),
            "free space, or set LEGACY_CUDA_CACHE to another folder",
        ) from error


def _keep(wanted: Need, path: Path, sha256: str, origin: str) -> Provided:
    """Put a wheel whose sha256 is known into its place in the cache, in one step."""
    target = _folder(wanted) / path.name
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(path, part)
    part.rename(target)
    note = {"file": target.name, "sha256": sha256, "origin": origin}
    temporary = target.with_name(f".{_NOTE}.part")
    temporary.write_text(json.dumps(note) + "\n", encoding="utf-8")
    temporary.rename(target.with_name(_NOTE))
    return Provided(wanted, target, sha256, target.stat().st_size, origin)


def _cached(wanted: Need) -> Provided | None:
    """What was compiled or downloaded before, if it is still what it was then."""
    folder = _folder(wanted)
    try:
        note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        path, sha256, origin = folder / str(note["file"]), str(note["sha256"]), str(note["origin"])
        if path.parent != folder or file_sha256(path) != sha256:
            raise ValueError("damaged")
        return Provided(wanted, path, sha256, path.stat().st_size, origin)
    except (OSError, ValueError, TypeError, KeyError):
        return None


# --------------------------------------------------------------------------------------- the index


@dataclass(frozen=True)
class _Row:
    """A file of an index: its address is absolute, its size 0 where none is given."""

    file: str
    sha256: str
    size: int
    address: str

    @classmethod
    def parse(cls, data: dict[str, Any], page: str) -> _Row | None:
        """A row of a page (PEP 691); None for what is none, or no wheel that could be meant."""
        try:
            file, sha256 = data["filename"], data["hashes"]["sha256"]
            size, address = data.get("size", 0), urljoin(page, data["url"])
            glibc_floor(file)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, LockError):
            return None
        well = (
            isinstance(size, int)
            and size >= 0
            and re.fullmatch(r"[A-Za-z0-9_.+-]+\.whl", file)
            and SHA256.fullmatch(str(sha256))
        )
        return cls(file, sha256, size, address) if well else None


def _fits(row: _Row, wanted: Need) -> bool:
    """Whether a file of an index is a wheel of just this version for this machine."""
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename
    from packaging.version import Version

    try:
        name, version, _, tags = parse_wheel_filename(row.file)
    except InvalidWheelFilename:
        return False
    return (
        name == wanted.recipe.package
        and version == Version(wanted.version)
        and any(tag in tags for tag in sys_tags())
    )


class _Place:
    """Where an index is: a folder of this machine or an address."""

    def __init__(self, text: str) -> None:
        """Understand its name; nothing is read.

        Raises:
            UserError: it is neither.
        """
        self.text = text
        try:
            scheme = urlsplit(text).scheme
            if scheme not in ("", "file", "http", "https"):
                raise ValueError("it is neither a folder nor an address of http, https or file")
            url = text if scheme else Path(text).expanduser().resolve().as_uri()
            _local(url)
        except ValueError as error:
            raise UserError(
                f"{text!r} is no package index",
                str(error),
                "name a folder in which legacy-cuda index was run, or its address",
            ) from error
        self.remote = not url.startswith("file:")
        self.base = url.rstrip("/")

    def _simple(self) -> str:
        """The part that is for pip: that folder itself, or the one that it is in, is named."""
        for folder in (f"{self.base}/simple/", f"{self.base}/"):
            if self._get(f"{folder}index.json") is not None:
                return folder
        raise UserError(
            f"{self.text!r} is no package index",
            f"there is no {self.base}/simple/index.json",
            "name a folder in which legacy-cuda index was run, or its address (--index, "
            "LEGACY_CUDA_INDEX)",
        )

    def rows(self, package: str) -> list[_Row]:
        """The files of a package's page (PEP 691); none where the index does not have it.

        Raises:
            UserError: there is no index.
            SurroundingsError: it cannot be read.
        """
        page = f"{self._simple()}{package}/index.json"
        found = self._get(page)
        if found is None:
            return []
        content, address = found
        try:
            rows = [_Row.parse(row, address) for row in json.loads(content)["files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise SurroundingsError(
                f"{page} is no page of a package index",
                f"{type(error).__name__}: {error}",
                "make the index anew: legacy-cuda index DIR",
            ) from error
        return [row for row in rows if row is not None]

    def _get(self, url: str) -> tuple[bytes, str] | None:
        """A page and the address it came from; None where there is none."""
        if not self.remote:
            try:
                return _local(url).read_bytes(), url
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise SurroundingsError(
                    f"the index {self.text} cannot be read", str(error), "name another"
                ) from error
        import requests

        try:
            with requests.get(url, timeout=_TIMEOUT, stream=True) as answer:
                if answer.status_code == requests.codes.not_found:
                    return None
                answer.raise_for_status()
                content = b""
                for piece in answer.iter_content(1 << 16):
                    content += piece
                    if len(content) > _PAGE:
                        raise SurroundingsError(
                            f"{url} is no page of a package index", "it does not end"
                        )
                return content, answer.url
        except requests.RequestException as error:
            raise SurroundingsError(
                f"the index {self.text} cannot be reached",
                str(error),
                "check the address, or leave it out to compile here",
            ) from error

    def download(self, wanted: Need, row: _Row, progress: fetch.Progress | None) -> Path:
        """The file, where it is or downloaded; its sha256 has been checked."""
        if self.remote:
            if urlsplit(row.address).scheme not in ("http", "https"):
                raise SurroundingsError(
                    f"the index {self.text} says that {row.file} is at {row.address}",
                    "that is no address of http or https",
                    "name another index",
                )
            package = wanted.recipe.package
            remote = fetch.Remote(
                package, wanted.version, row.file, row.sha256, row.size, row.address
            )
            path = fetch.cached_path(remote)
            if path.is_file() and file_sha256(path) != row.sha256:
                path.unlink()
            return fetch.download(remote, progress=progress)
        path = _local(row.address)
        try:
            found = file_sha256(path)
        except OSError as error:
            raise SurroundingsError(
                f"{path} cannot be read",
                str(error),
                "make the index anew: legacy-cuda index DIR",
            ) from error
        if found != row.sha256:
            raise SurroundingsError(
                f"{path} is not what its index says",
                f"its sha256 is {found}\nthe index says {row.sha256}",
                "make the index anew: legacy-cuda index DIR",
            )
        return path


def _local(url: str) -> Path:
    """The file that a file address names.

    Raises:
        ValueError: it names none.
    """
    path = url2pathname(urlsplit(url).path)
    if "\0" in path:
        raise ValueError("there is a zero byte in it")
    return Path(path)
