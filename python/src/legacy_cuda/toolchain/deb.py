"""Packages of Debian, unpacked without dpkg and without root: deb(5)."""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from legacy_cuda.errors import is_about_a_name

_MAGIC = b"!<arch>\n"  # ar(5)
_HEADER = 60  # bytes: name 16, date 12, owner 6, group 6, mode 8, size 10, end 2
_END = b"`\n"


class DebError(ValueError):
    """The file is no package of Debian, or holds what is not to be unpacked."""


class _Member(io.RawIOBase):
    """A file in an ar archive, as a stream."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.left = size

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer as far as there is something left; how many bytes."""
        data = self.file.read(min(len(buffer), self.left))
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)


def _data(file: BinaryIO) -> _Member:
    """The member with the files: data.tar.xz, as Debian's own packages have it."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise DebError("it does not begin as an ar archive")
    while header := file.read(_HEADER):
        name = header[:16].rstrip(b" ").rstrip(b"/")
        digits = header[48:58].strip()
        if len(header) != _HEADER or header[58:] != _END or not digits.isdigit():
            raise DebError("a member's header is not one of an ar archive")
        size = int(digits)
        if name == b"data.tar.xz":
            return _Member(file, size)
        if name.startswith(b"data.tar"):
            raise DebError(f"{name.decode('ascii', 'replace')} is not compressed by xz")
        file.seek(size + size % 2, 1)
    raise DebError("it has no data.tar")


def _inside(name: str) -> PurePosixPath:
    """The path of a member below the root it is unpacked to.

    Raises:
        DebError: it leads out of it.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DebError(f"{name} leads out of the package")
    return path


def unpack(package: Path, root: Path, wanted: Callable[[PurePosixPath], bool]) -> int:
    """Unpack the files and links for which ``wanted`` is true; returns how many.

    Owners, set-user-id bits and times are not taken over. Absolute links become relative ones, so
    that they stay below ``root``.

    Raises:
        DebError: the file is damaged, or a member or link leads out of ``root``.
        OSError: a file could not be written.
    """
    try:
        with (
            package.open("rb") as file,
            lzma.open(io.BufferedReader(_data(file)), "rb") as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            return sum(_place(archive, item, root, wanted) for item in archive)
    except DebError:
        raise
    except (lzma.LZMAError, tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DebError(f"its data is damaged: {error}") from error
    except OSError as error:
        if is_about_a_name(error):
            raise DebError(f"a member cannot have its name: {error}") from error
        raise


def _place(
    archive: tarfile.TarFile,
    item: tarfile.TarInfo,
    root: Path,
    wanted: Callable[[PurePosixPath], bool],
) -> bool:
    path = _inside(item.name)
    if item.isdir() or not wanted(path):
        return False  # folders are made as they are needed
    target = root / path
    _check_parents(target, root)
    if item.isreg():
        source = archive.extractfile(item)
        assert source is not None  # a regular file has content
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link there may lead anywhere
        with target.open("xb") as out:
            while piece := source.read(1 << 20):
                out.write(piece)
        target.chmod(0o755 if item.mode & 0o100 else 0o644)
    elif item.issym():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(_relative(path, item.linkname))
    elif item.islnk():
        source_path = root / _inside(item.linkname)
        _check_parents(source_path, root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.hardlink_to(source_path)
    else:
        return False  # a device or a pipe: no package that is used here has one
    return True


def _check_parents(target: Path, root: Path) -> None:
    """A link that was unpacked before must not lead what comes after it out of the root."""
    path = target.relative_to(root)
    for parent in path.parents:
        if (root / parent).is_symlink() and parent != Path():
            raise DebError(f"{path} lies behind a link")


def _relative(path: PurePosixPath, linked: str) -> str:
    """A link's text, relative, that stays below the root.

    Raises:
        DebError: it climbs above the root.
    """
    link = PurePosixPath(linked)
    depth = len(path.parts) - 1
    if link.is_absolute():
        return str(PurePosixPath(*[".."] * depth, *link.parts[1:]))
    for part in link.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            raise DebError(f"the link {path} leads out of the package")
    return linked
