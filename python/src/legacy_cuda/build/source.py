"""A source distribution in a folder: unpacked, patched, and with what we lay over it."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from legacy_cuda.build import patches
from legacy_cuda.build.patches import Patch
from legacy_cuda.build.series import PACKAGE
from legacy_cuda.catalog.recipes import Recipe
from legacy_cuda.errors import is_about_a_name

_DAMAGED = (
    *(EOFError, OverflowError, ValueError),
    *(gzip.BadGzipFile, tarfile.TarError, zlib.error),
)
OVERLAYS = PACKAGE / "build" / "overlays"


class SourceError(ValueError):
    """The archive is damaged, or no source distribution."""


@dataclass(frozen=True)
class Changes:
    """What is done to the sources: the patches, and the files laid over them by path."""

    patches: tuple[Patch, ...]
    patch_texts: tuple[bytes, ...]
    overlay: dict[str, bytes]

    def rows(self) -> list[tuple[str, str]]:
        """Name and sha256 (hex) of everything, in the order in which it is applied."""
        texts = zip(self.patches, self.patch_texts, strict=True)
        named = [(patch.name, text) for patch, text in texts]
        named += [(f"overlay/{path}", text) for path, text in sorted(self.overlay.items())]
        return [(name, hashlib.sha256(text).hexdigest()) for name, text in named]


def changes(recipe: Recipe) -> Changes:
    """The patches for a recipe's sources and its overlay, read from the files beside this program.

    Raises:
        PatchError: a patch is malformed.
        OSError: a file cannot be read.
    """
    sdist = recipe.sdist
    files = sorted((PACKAGE / "patches" / sdist.package / sdist.version).glob("*.patch"))
    texts = [path.read_bytes() for path in files]
    overlay = {}
    if recipe.overlay:
        root = OVERLAYS / recipe.overlay
        overlay = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }
    parsed = (patches.parse(text, path.name) for path, text in zip(files, texts, strict=True))
    return Changes(tuple(parsed), tuple(texts), overlay)


def prepare(archive: Path, changes: Changes, folder: Path) -> None:
    """Unpack a source distribution into ``folder``, a new one, and change it.

    Raises:
        SourceError: the archive is damaged, or leads out of the folder.
        PatchError: a patch does not fit.
        OSError: the disk failed.
    """
    folder.mkdir()
    _unpack(archive, folder)

    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    changed = patches.apply_all(changes.patches, read)
    for name, content in {**changed, **changes.overlay}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _unpack(archive: Path, folder: Path) -> None:
    """Files only, below the one top folder that a source distribution has (PyPA, "Source
    distribution format"); times are those of this unpacking."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for item, path in _members(tar):
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(item)
                assert source is not None  # a regular file has content
                with target.open("xb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                target.chmod(0o755 if item.mode & 0o100 else 0o644)
    except SourceError:
        raise
    except _DAMAGED as error:
        raise SourceError(f"{archive.name} is damaged: {error}") from error
    except FileExistsError as error:
        raise SourceError(f"{archive.name} has a file twice: {error.filename}") from error
    except OSError as error:
        if is_about_a_name(error):
            raise SourceError(f"{archive.name} has a name that cannot be: {error}") from error
        raise


def _members(tar: Iterable[tarfile.TarInfo]) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    tops = set()
    for item in tar:
        path = PurePosixPath(item.name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise SourceError(f"{item.name!r} leads out of the source distribution")
        tops.add(path.parts[0])
        if len(tops) > 1:
            raise SourceError(f"it has several top folders: {', '.join(sorted(tops))}")
        if item.isreg() and len(path.parts) > 1:
            yield item, PurePosixPath(*path.parts[1:])
        elif not item.isdir():
            raise SourceError(f"{item.name!r} is neither a file in a folder nor a folder")
