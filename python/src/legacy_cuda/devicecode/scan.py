"""Device code of whole files, wheels and folders.

Libraries are read as streams: memory stays at a few MiB a thread however large they are, and
payloads of files on disk are passed over without being read.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from legacy_cuda.devicecode import elf, fatbin, ptx
from legacy_cuda.devicecode.archive import Member, WheelReader
from legacy_cuda.devicecode.errors import DeviceCodeError
from legacy_cuda.devicecode.fatbin import Container, ContainerScanner, Entry

Format = Literal["shared", "object", "archive", "cubin", "fatbin", "ptx"]
Linkage = Literal["loadable", "link-time"]

PIECE = 1 << 20
_HEAD = 64
_SMALLEST = 64  # bytes: nothing shorter holds device code
_TAIL = 1 << 20  # kept of a streamed ELF file, for the section names that stand near its end
_KEPT = 1 << 24  # and from the section table on: room for 100,000 sections and their names
_AR_MAGIC = b"!<arch>\n"
_RELOCATABLE_SECTION = "__nv_relfatbin"

_T = TypeVar("_T")

Progress = Callable[[int], None]
"""Called with the number of bytes done since the last call; from several threads."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A container and where it lies: its section ("" outside any) and how it is used."""

    container: Container
    section: str
    linkage: Linkage


@dataclass(frozen=True, slots=True)
class FileCode:
    """All device code of one file. ``path`` is relative to what was scanned."""

    path: str
    size: int
    format: Format
    containers: tuple[Placed, ...]


def classify(head: bytes) -> Format | None:
    """What kind of file begins like this, or None if it can hold no device code."""
    if head.startswith(elf.MAGIC):
        if head[5:6] == b"\2":  # big-endian: no CUDA host is
            return None
        try:
            header = elf.parse_header(head)
        except DeviceCodeError:
            return "shared"  # reported as broken when it is read
        if header.machine == elf.EM_CUDA:
            return "cubin"
        return "object" if header.type == elf.ET_REL else "shared"
    if fatbin.looks_like_container(head):
        return "fatbin"
    if head.startswith(_AR_MAGIC):
        return "archive"
    return None


def _is_ptx_name(name: str) -> bool:
    return name.endswith(".ptx")


class _Tail:
    """What is kept of an ELF file that streams by, so that its section table can be read."""

    def __init__(self, header: elf.Header) -> None:
        self._from = header.section_offset
        self._kept: list[tuple[int, bytes]] = []
        self._last: list[tuple[int, bytes]] = []

    def feed(self, offset: int, piece: bytes) -> None:
        if offset + len(piece) > self._from:
            if offset < self._from + _KEPT:
                self._kept.append((offset, piece))
        else:
            self._last.append((offset, piece))
            while len(self._last) > 1 and self._last[1][0] + _TAIL < offset + len(piece):
                self._last.pop(0)

    def read(self, offset: int, length: int) -> bytes:
        end = offset + length
        found = bytearray()
        for start, piece in [*self._last, *self._kept]:
            at = offset + len(found)
            if start <= at < min(start + len(piece), end):
                found += piece[at - start : end - start]
        if len(found) < length:
            raise _NotKept
        return bytes(found)


class _NotKept(Exception):
    """A range of the stream is needed that has gone by."""


def _offset(section: elf.Section) -> int:
    return section.offset


def _place(containers: list[Container], sections: list[elf.Section]) -> tuple[Placed, ...]:
    ranges = sorted((section for section in sections if section.size), key=_offset)
    starts = [section.offset for section in ranges]

    def section_of(container: Container) -> str:
        before = bisect_right(starts, container.offset) - 1
        if before >= 0 and container.offset < starts[before] + ranges[before].size:
            return ranges[before].name
        return ""

    placed = []
    for container in containers:
        name = section_of(container)
        linkage: Linkage = "link-time" if name == _RELOCATABLE_SECTION else "loadable"
        placed.append(Placed(container, name, linkage))
    return tuple(placed)


def _single(entry: Entry) -> tuple[Placed, ...]:
    return (Placed(Container(0, entry.size, (entry,)), "", "loadable"),)


def _bare(kind: Format, head: bytes, size: int) -> tuple[Placed, ...]:
    """A cubin or PTX file by itself, as a container with one entry."""
    if kind == "cubin":
        header = elf.parse_header(head)
        elf.check_complete(header, size)
        capability = elf.cubin_capability(header)
        return _single(Entry("cubin", capability, elf.cubin_variant(header), 0, size))
    module = ptx.parse_header(head)
    target = module.target
    return _single(Entry("ptx", target.capability, target.variant, 0, size, ptx_isa=module.isa))


def _finish(
    kind: Format,
    scanner: ContainerScanner,
    header: elf.Header | None,
    read: Callable[[int, int], bytes],
    size: int,
) -> tuple[Placed, ...]:
    containers = scanner.finish(size)
    if kind == "fatbin" and (not containers or containers[0].offset):
        raise DeviceCodeError("fat binary without a readable entry")
    if header is not None:
        elf.check_complete(header, size)
    if not containers:
        return ()
    if header is not None:
        return _place(containers, elf.read_sections(header, read, size))
    linkage: Linkage = "link-time" if kind == "archive" else "loadable"
    return tuple(Placed(container, "", linkage) for container in containers)


def scan_file(path: Path, name: str | None = None, progress: Progress | None = None) -> FileCode:
    """Read the device code of one file on disk. Nothing in it is executed.

    Args:
        path: the file.
        name: what to call it in the result; its path by default.
        progress: told of bytes done.

    Raises:
        DeviceCodeError: the file is of no known kind, truncated, corrupt or hostile.
        OSError: it cannot be read.
    """
    name = str(path) if name is None else name
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise DeviceCodeError("not a regular file")
        size = status.st_size
        head = os.pread(fd, _HEAD, 0)
        kind = classify(head)
        if kind is None and _is_ptx_name(name):
            kind = "ptx"
        if kind is None:
            raise DeviceCodeError("neither ELF, fat binary, cubin, PTX nor static library")
        if kind in ("cubin", "ptx"):
            return FileCode(name, size, kind, _bare(kind, os.pread(fd, ptx.HEAD, 0), size))
        header = elf.parse_header(head) if kind in ("shared", "object") else None
        scanner = ContainerScanner()
        done = 0
        while scanner.wanted < size:
            piece = os.pread(fd, PIECE, scanner.wanted)
            if not piece:
                break
            scanner.feed(scanner.wanted, piece)
            if progress is not None:
                now = min(scanner.position, size)
                progress(now - done)
                done = now
        if progress is not None:
            progress(size - done)

        def read(offset: int, length: int) -> bytes:
            return os.pread(fd, length, offset)

        return FileCode(name, size, kind, _finish(kind, scanner, header, read, size))
    finally:
        os.close(fd)


def _scan_member(wheel: WheelReader, member: Member, kind: Format, progress: Progress) -> FileCode:
    if kind in ("cubin", "ptx"):
        head = wheel.head(member, min(member.size, ptx.HEAD))
        for piece in wheel.stream(member):
            progress(len(piece))
        return FileCode(member.name, member.size, kind, _bare(kind, head, member.size))
    header: elf.Header | None = None
    tail: _Tail | None = None
    if kind in ("shared", "object"):
        header = elf.parse_header(wheel.head(member, _HEAD))
        tail = _Tail(header)
    scanner = ContainerScanner()
    offset = 0
    for piece in wheel.stream(member):
        if offset + len(piece) > scanner.wanted:
            scanner.feed(offset, piece)
        if tail is not None:
            tail.feed(offset, piece)
        offset += len(piece)
        progress(len(piece))

    def read_again(start: int, length: int) -> bytes:
        found = bytearray()
        position = 0
        for again in wheel.stream(member):
            low, high = max(start, position), min(start + length, position + len(again))
            if low < high:
                found += again[low - position : high - position]
            position += len(again)
        return bytes(found)

    def read(start: int, length: int) -> bytes:
        assert tail is not None
        try:
            return tail.read(start, length)
        except _NotKept:
            return read_again(start, length)

    return FileCode(
        member.name, member.size, kind, _finish(kind, scanner, header, read, member.size)
    )


def _threads(threads: int | None) -> int:
    return threads or min(8, os.cpu_count() or 1)


def _nothing(_: int) -> None:
    return


def _gather(
    one: Callable[[_T], FileCode | None], todo: Iterable[_T], threads: int
) -> list[FileCode]:
    """What ``one`` makes of each item, sorted by path.

    Items are begun in the order given (largest first), each by the thread that is free: a future
    for each of a wheel's ten thousand members would cost as much as looking into them. After an
    error nothing new is begun, and the error of the foremost item is raised.
    """
    queue = deque(enumerate(todo))
    found: list[FileCode] = []
    errors: list[tuple[int, Exception]] = []

    def work() -> None:
        while True:
            try:
                index, item = queue.popleft()
            except IndexError:
                return
            try:
                code = one(item)
            except Exception as error:
                errors.append((index, error))
                queue.clear()
                return
            if code is not None:
                found.append(code)

    with ThreadPoolExecutor(threads) as pool:
        try:
            wait([pool.submit(work) for _ in range(threads)])
        except BaseException:  # interrupted
            queue.clear()
            raise
    if errors:
        raise min(errors, key=lambda item: item[0])[1]
    return sorted(found, key=lambda code: code.path)


def scan_wheel(
    path: Path, progress: Progress | None = None, threads: int | None = None
) -> list[FileCode]:
    """Read the device code of every member of a wheel, without unpacking it.

    Returns one item for every member that can hold device code, sorted by path; most hold none.

    Raises:
        DeviceCodeError: not a wheel, or one with corrupt or hostile members (named).
        OSError: it cannot be read.
    """
    report = progress or _nothing
    with WheelReader(path) as wheel:

        def one(member: Member) -> FileCode | None:
            kind = classify(wheel.head(member, _HEAD))
            if kind is None and _is_ptx_name(member.name):
                kind = "ptx" if ptx.looks_like_ptx(wheel.head(member, ptx.HEAD)) else None
            if kind is None:
                return None
            try:
                return _scan_member(wheel, member, kind, report)
            except DeviceCodeError as error:
                raise DeviceCodeError(f"{member.name}: {error}") from error

        candidates = [member for member in wheel.members if member.size >= _SMALLEST]
        candidates.sort(key=lambda member: -member.size)
        return _gather(one, candidates, _threads(threads))


def walk(root: Path) -> Iterator[tuple[Path, int]]:
    """Regular files below a folder with their sizes, links not followed, in a fixed order."""
    stack = [root]
    while stack:
        folder = stack.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                if entry.is_dir(follow_symlinks=False):
                    stack.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield Path(entry.path), entry.stat(follow_symlinks=False).st_size


def scan_tree(
    root: Path,
    files: Iterable[tuple[Path, int]] | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> list[FileCode]:
    """Read the device code of every file below a folder, or of the given files below it.

    Raises:
        DeviceCodeError: a file is corrupt or hostile (named).
        OSError: something cannot be read.
    """
    report = progress or _nothing
    todo = sorted(walk(root) if files is None else files, key=lambda item: -item[1])

    def one(item: tuple[Path, int]) -> FileCode | None:
        path, size = item
        if size < _SMALLEST:
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        name = path.relative_to(root).as_posix()
        length = ptx.HEAD if _is_ptx_name(name) else _HEAD
        try:
            head = os.pread(fd, length, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)
        if classify(head) is None and not (_is_ptx_name(name) and ptx.looks_like_ptx(head)):
            return None
        try:
            return scan_file(path, name, report)
        except DeviceCodeError as error:
            raise DeviceCodeError(f"{name}: {error}") from error

    return _gather(one, todo, _threads(threads))
