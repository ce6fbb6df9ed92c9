"""The files of an index on disk: each is whole at any time, and only our own are ever touched.

``legacy-cuda-index.json`` lists every file that was written, by path and sha256. What is not listed
there, or has other bytes than it lists, belongs to somebody else. While a run is at work it lists
the old state beside the new one, so that a run that follows a killed one knows both.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from legacy_cuda.errors import SurroundingsError, UserError

MANIFEST = "legacy-cuda-index.json"
SCHEMA = "legacy-cuda/index-files/1"

_PART = ".legacy-cuda-index.part"
_OURS = re.compile(
    r"index\.html|[^/]+\.whl\.metadata|(sm[0-9]+/)?simple/([a-z0-9-]+/)?index\.(html|json)"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP)  # some network file systems

Known = dict[str, set[str]]
"""The sha256s that a file may have to be ours, by path."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Paths below the folder. ``kept`` are files that are no longer wanted and not ours any more:
    somebody has changed them."""

    written: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: tuple[str, ...]
    kept: tuple[str, ...]


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder; it leaves nothing behind.

    Raises:
        UserError: there is no such folder.
        SurroundingsError: it cannot be read, or another run holds the lock.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"there is no folder {folder}", str(error), "name the folder that holds the wheels"
        ) from error
    except OSError as error:
        raise SurroundingsError(f"{folder} cannot be read", str(error)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SurroundingsError(
                f"{folder} is being indexed by another legacy-cuda",
                "it holds the lock on the folder",
                "wait for it, or end it",
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


def publish(folder: Path, files: Mapping[str, bytes]) -> Changes:
    """Put these files into a folder, in their order, and remove those of an earlier run.

    Files that have the right bytes already are left as they are. Call it with the lock held.

    Raises:
        UserError: a file of somebody else is in the way. Nothing is changed then.
        SurroundingsError: the disk failed. Every file is whole, and another run goes on.
    """
    try:
        return _publish(folder, files)
    except OSError as error:
        raise SurroundingsError(
            f"the index could not be written to {folder}",
            str(error),
            "free some space and run again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "choose a folder you may write to",
        ) from error


def _publish(folder: Path, files: Mapping[str, bytes]) -> Changes:
    wanted = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    known = _read_manifest(folder)
    there = {path: _look(folder, path) for path in (*wanted, *known)}
    written = [path for path, sha256 in wanted.items() if there[path] != sha256]
    for path in written:
        if there[path] and there[path] not in known.get(path, ()):
            raise UserError(
                f"{folder / path} is in the way",
                "the index has a file of that name, and this one was not written by legacy-cuda "
                "index, or has been changed since",
                "move it away, or keep the wheels in a folder of their own",
            )
    old = [path for path in known if path not in wanted and there[path]]
    removed = [path for path in old if there[path] in known[path]]
    manifest = _dump(wanted, {})
    if written or removed or _look(folder, MANIFEST) != hashlib.sha256(manifest).hexdigest():
        _clear(folder, there)
        both: Known = {path: {sha256} for path, sha256 in wanted.items()}
        for path, digests in known.items():
            both.setdefault(path, set()).update(digests)
        _write(folder, MANIFEST, _dump(wanted, both))
        for path in written:
            _write(folder, path, files[path])
        for path in removed:
            (folder / path).unlink()
        _remove_empty(folder, [path for path in known if path not in wanted])
        _write(folder, MANIFEST, manifest)
    return Changes(
        tuple(written),
        tuple(removed),
        tuple(path for path in wanted if path not in written),
        tuple(path for path in old if path not in removed),
    )


def _dump(files: Mapping[str, str], before: Mapping[str, set[str]]) -> bytes:
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "about": "Files that legacy-cuda index wrote. It replaces and removes these and no others.",
        "files": dict(sorted(files.items())),
    }
    if before:
        document["before"] = {path: sorted(digests) for path, digests in sorted(before.items())}
    return (json.dumps(document, indent=1) + "\n").encode()


def _read_manifest(folder: Path) -> Known:
    """Which files are ours.

    Raises:
        UserError: the manifest is none.
    """
    path = folder / MANIFEST
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("it is not a regular file")
        document = json.loads(path.read_bytes())
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']!r}, not {SCHEMA!r}")
        known: Known = {name: {sha256} for name, sha256 in document["files"].items()}
        for name, digests in document.get("before", {}).items():
            known.setdefault(name, set()).update(digests)
        for name, digests in known.items():
            if not _OURS.fullmatch(name) or not all(map(_SHA256.fullmatch, digests)):
                raise ValueError(f"it lists {name!r}")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be understood",
            f"it lists the files of an earlier index, and is damaged or not ours: {error}",
            "move it and the pages of the index away, and run again",
        ) from error
    return known


def _look(folder: Path, path: str) -> str:
    """The sha256 of a file, "" where there is none.

    Raises:
        UserError: there is something else than a file, or a link on the way to it.
    """
    place = folder
    parts = PurePosixPath(path).parts
    for number, part in enumerate(parts, 1):
        place = place / part
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            return ""
        right = stat.S_ISDIR(mode) if number < len(parts) else stat.S_ISREG(mode)
        if not right:
            raise UserError(
                f"{place} is in the way",
                "the index has a folder of that name"
                if number < len(parts)
                else "the index has a file of that name, and this is none",
                "move it away, or keep the wheels in a folder of their own",
            )
    digest = hashlib.sha256()
    with place.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _write(folder: Path, path: str, data: bytes) -> None:
    """Write a file beside its place and rename it."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(_PART)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(part, flags, 0o666), "wb") as file:
            file.write(data)
        part.rename(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _clear(folder: Path, paths: Iterable[str]) -> None:
    """Remove what a killed run left half written."""
    for place in {(folder / path).parent for path in (MANIFEST, *paths)}:
        with contextlib.suppress(FileNotFoundError):
            (place / _PART).unlink()


def _remove_empty(folder: Path, paths: Iterable[str]) -> None:
    """Remove the folders that these files lay in where nothing is left in them."""
    for path in paths:
        for place in (folder / path).parents:
            if place == folder:
                break
            try:
                place.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                break
