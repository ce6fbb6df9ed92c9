"""Patched wheels on disk: the published wheel by its sha256, the series applied, all checked.

A wheel is written beside its place under a hidden name, which is locked, and renamed when it is
whole. The cache (``patched/SOURCE/SERIES/``) keeps one result for each published wheel.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from legacy_cuda import fetch, paths, sizes
from legacy_cuda.build import series as series_module
from legacy_cuda.build.patches import PatchError
from legacy_cuda.build.repack import RepackError, output_name, repack
from legacy_cuda.build.series import Series
from legacy_cuda.catalog.patched import PatchedPackage, SourceWheel
from legacy_cuda.errors import SurroundingsError, UserError

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""

_PIECE = 1 << 20
_NOTE = "built.json"


@dataclass(frozen=True, slots=True)
class Built:
    """A patched wheel. Size in bytes; ``fresh`` if it was made just now; ``checked`` if the catalog
    records the sha256 that this series gives, which is then this one."""

    series: Series
    source: SourceWheel
    path: Path
    sha256: str
    size: int
    fresh: bool
    checked: bool

    def document(self) -> dict[str, Any]:
        """As JSON, for reports and manifests."""
        facts = self.series.facts
        return {
            "package": facts.package,
            "version": facts.installed,
            "file": self.path.name,
            "sha256": self.sha256,
            "size": self.size,
            "checked": self.checked,
            "source": {
                "version": facts.version,
                "file": self.source.file,
                "sha256": self.source.sha256,
            },
            "series": self.series.digest,
            "capabilities": [str(capability) for capability in facts.capabilities],
            "patches": [
                {
                    "name": patch.name,
                    "why": patch.why,
                    "capabilities": [str(capability) for capability in patch.capabilities],
                    "origin": patch.origin,
                    "files": [diff.path for diff in patch.files],
                }
                for patch in self.series.patches
            ],
            "modules": sorted(self.series.modules),
        }


def load_series(facts: PatchedPackage) -> Series:
    """The series of a package.

    Raises:
        SurroundingsError: this installation's own patches cannot be read.
    """
    try:
        return series_module.load(facts)
    except (OSError, PatchError) as error:
        raise _broken(facts, error) from error


def _broken(facts: PatchedPackage, error: Exception) -> SurroundingsError:
    return SurroundingsError(
        f"the patches for {facts.package} {facts.version} cannot be applied",
        str(error),
        "reinstall legacy-cuda; if it stays so, please report it",
    )


def source_wheel(
    facts: PatchedPackage, source: SourceWheel, offline: bool, progress: Progress | None = None
) -> Path:
    """The published wheel in the cache, downloaded if need be, its sha256 checked.

    Raises:
        SurroundingsError: the network or the disk failed, or it is not cached and ``offline``.
    """
    remote = fetch.Remote(facts.package, facts.version, source.file, source.sha256, source.size)
    if offline and not fetch.cached_path(remote).is_file():
        raise SurroundingsError(
            f"the cache does not hold {source.file}",
            f"it would be {fetch.cached_path(remote)}",
            "run once without --offline",
        )
    tell = progress or (lambda what, done, total: None)
    return fetch.download(
        remote,
        source.pythons[0],
        lambda done, total: tell(f"fetching {facts.package}", done, total),
    )


def given_wheel(facts: PatchedPackage, path: Path, python: str | None) -> SourceWheel:
    """Which of a package's published wheels a file is, by its sha256.

    Raises:
        UserError: none of them, or it cannot be read.
    """
    try:
        found = file_sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read", str(error), "name a wheel") from error
    wheels = [wheel for wheel in facts.wheels if python is None or python in wheel.pythons]
    for wheel in wheels:
        if wheel.sha256 == found:
            return wheel
    expected = "\n".join(f"expected {wheel.sha256}  {wheel.file}" for wheel in wheels)
    raise UserError(
        f"{path.name} is not a wheel of {facts.package} {facts.version} that is known here",
        f"its sha256 is {found}\n{expected}",
        "leave --wheel out: the published wheel is downloaded",
    )


def expected_sha256(series: Series, source: SourceWheel) -> str:
    """What the result has to be; "" where the catalog has no result for just this series."""
    return source.result if series.digest == series.facts.series else ""


def build(
    series: Series,
    source: SourceWheel,
    wheel: Path,
    folder: Path,
    progress: Progress | None = None,
) -> Built:
    """Write the patched wheel into a folder; ``wheel`` is the published one, already checked.

    A result that is there already is kept if the catalog knows its sha256 and it has it.

    Raises:
        SurroundingsError: the disk failed, a patch does not fit, or the result is not what the
            catalog records. What was there before is still there then.
    """
    facts = series.facts
    expected = expected_sha256(series, source)
    tell = progress or (lambda what, done, total: None)
    try:
        target = folder / output_name(source.file, series)
        folder.mkdir(parents=True, exist_ok=True)
        with _part(target) as (out, part):
            if expected and target.is_file() and file_sha256(target) == expected:
                size = target.stat().st_size
                return Built(series, source, target, expected, size, False, True)
            written = repack(
                wheel,
                source.file,
                source.sha256,
                series,
                out,
                lambda done, total: tell(f"patching {facts.package}", done, total),
            )
            out.flush()
            if expected and written.sha256 != expected:
                raise SurroundingsError(
                    f"the patched {facts.package} {facts.version} is not what it should be",
                    f"expected sha256 {expected}, got {written.sha256}",
                    f"{wheel} may be damaged: remove it and run again; else please report it",
                )
            part.rename(target)
    except (PatchError, RepackError) as error:
        raise _broken(facts, error) from error
    except OSError as error:
        raise SurroundingsError(
            f"the patched {facts.package} could not be written to {folder}",
            str(error),
            f"free {sizes.readable(source.size * 1.01)}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "choose a folder you may write to (--output, LEGACY_CUDA_CACHE)",
        ) from error
    return Built(series, source, target, written.sha256, written.size, True, bool(expected))


@contextlib.contextmanager
def _part(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """An empty file beside a place, ours alone; it is removed unless it has been renamed.

    What a killed run left is used again. Waits for another run that makes the same.
    """
    path = target.with_name(f".{target.name}.part")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _same(descriptor, path):  # the other run renamed or removed it meanwhile
                continue
            try:
                file.truncate()
                yield file, path
            finally:
                if _same(descriptor, path):
                    path.unlink()
            return


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def cached(
    series: Series,
    source: SourceWheel,
    offline: bool = False,
    verify: bool = False,
    progress: Progress | None = None,
) -> Built:
    """The patched wheel in the cache, made first if it is not there.

    A file whose size and time are those it was made with is taken as it is, but for ``verify``,
    with which it is read again. Wheels made by other series from the same published wheel go.

    Raises:
        SurroundingsError: the network or the disk failed, a patch does not fit, the result is not
            what the catalog records, or something is not cached and ``offline``.
    """
    folder = cache_folder(series, source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with fetch.locked(folder.parent / ".lock"):
            found = _known(series, source, verify)
            if found is not None:
                return found
            wheel = source_wheel(series.facts, source, offline, progress)
            built = build(series, source, wheel, folder, progress)
            _note(built)
            for other in folder.parent.iterdir():
                if other.is_dir() and other != folder:
                    shutil.rmtree(other, ignore_errors=True)
            return built
    except OSError as error:
        raise SurroundingsError(
            f"the patched {series.facts.package} could not be stored in {folder}",
            str(error),
            "free space, or set LEGACY_CUDA_CACHE to another folder",
        ) from error


def cache_folder(series: Series, source: SourceWheel) -> Path:
    """Where the cache keeps what this series makes of a published wheel."""
    return paths.cache_directory() / "patched" / source.sha256 / series.digest


def to_store(series: Series, source: SourceWheel) -> int:
    """Bytes that :func:`cached` is going to add to the cache, about."""
    if (cache_folder(series, source) / _NOTE).is_file():
        return 0
    facts = series.facts
    remote = fetch.Remote(facts.package, facts.version, source.file, source.sha256)
    return source.size if fetch.cached_path(remote).is_file() else 2 * source.size


def _note(built: Built) -> None:
    """Write down what was made, beside it."""
    status = built.path.stat()
    text = json.dumps({"sha256": built.sha256, "size": built.size, "mtime": status.st_mtime_ns})
    temporary = built.path.with_name(f".{_NOTE}.new")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.rename(built.path.with_name(_NOTE))


def _known(series: Series, source: SourceWheel, verify: bool) -> Built | None:
    """What the cache holds, if it is what it was when it was made; and what the catalog says."""
    folder = cache_folder(series, source)
    target = folder / output_name(source.file, series)
    expected = expected_sha256(series, source)
    try:
        note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        sha256, size, time = str(note["sha256"]), int(note["size"]), int(note["mtime"])
        status = target.stat()
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if status.st_size != size or (expected and sha256 != expected):
        return None
    built = Built(series, source, target, sha256, size, False, bool(expected))
    if verify or status.st_mtime_ns != time:
        if file_sha256(target) != sha256:
            return None
        _note(built)
    return built


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
