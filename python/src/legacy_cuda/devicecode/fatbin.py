"""Fat binary containers: finding them in a file of any kind and reading their entries.

NVIDIA does not document the format. What is used here was established by comparison with
``cuobjdump`` on libraries of CUDA 11.7 to 13.x (``tests/artefact/test_cuobjdump.py`` repeats it):

A container is a 16-byte header (magic, version 1, header size 16, payload size) and then entries.
An entry is a header of at least 64 bytes, whose size it states, and a payload::

    offset  size
         0     2  kind: 1 PTX, 2 cubin (SASS), 8 LTO intermediate code
         2     2  version 0x0101
         4     4  size of this header
         8     8  size of the payload, padding included
        16     4  size of the compressed payload, 0 where it is not compressed
        24     2  minor \\  of the PTX ISA for PTX,
        26     2  major /  of the format for cubins
        28     4  capability as a number, 61 for 6.1
        40     8  flags
        56     8  size after decompression, 0 where it is not compressed
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from mmap import mmap
from typing import Literal

from legacy_cuda.capability import Capability, Target, Variant
from legacy_cuda.devicecode import elf
from legacy_cuda.devicecode.errors import DeviceCodeError

Kind = Literal["ptx", "cubin", "lto", "other"]
Compression = Literal["", "lz4", "zstd"]

MAGIC = 0xBA55ED50
_CONTAINER_HEADER = struct.Struct("<IHHQ")
_CONTAINER_START = struct.pack("<IHH", MAGIC, 1, _CONTAINER_HEADER.size)
_ENTRY_HEADER = struct.Struct("<HHIQIIHHIIIQQQ")
_ENTRY_VERSION = 0x0101
_MAX_ENTRY_HEADER = 1 << 16  # headers carry the compiler's options as text; 64 KiB is ample
_MAX_CONTAINER = 1 << 40
_MAX_ENTRIES = 1 << 18  # in one file; the most seen is 23,532 (libcufft 11.3.3)
_MAX_LZ4_RATIO = 256  # LZ4's block format cannot exceed 255
# Stubs of published wheels are mostly below 8 KiB; vLLM has some of 44 KiB. Larger ones (spconv
# 2.3.8: up to 287,352 bytes) count as ordinary containers: to know them, payloads that are now
# passed over would have to be read.
_LARGEST_STUB = 1 << 16
_LARGEST_STUB_CODE = 1 << 18

_FLAG_LZ4 = 0x2000
_FLAG_ZSTD = 0x8000
_FLAG_ARCH_SPECIFIC = 0x100000
_FLAG_FAMILY_SPECIFIC = 0x200000

_KINDS: dict[int, Kind] = {1: "ptx", 2: "cubin", 8: "lto"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of device code in a container. Offsets and sizes are bytes in the file."""

    kind: Kind
    capability: Capability
    variant: Variant
    offset: int
    size: int
    compression: Compression = ""
    compressed_size: int = 0
    uncompressed_size: int = 0
    ptx_isa: tuple[int, int] | None = None

    @property
    def target(self) -> Target | None:
        """What the entry can run on; None for intermediate code that nothing loads as it is."""
        if self.kind == "cubin":
            return Target("sass", self.capability, self.variant)
        if self.kind == "ptx":
            return Target("ptx", self.capability, self.variant)
        return None

    @property
    def label(self) -> str:
        """``sm_61``, ``compute_80@8.5`` (PTX with its ISA version) or ``lto_80``."""
        number = f"{self.capability.number}{self.variant}"
        if self.kind == "cubin":
            return f"sm_{number}"
        if self.kind == "ptx" and self.ptx_isa is not None:
            return f"compute_{number}@{self.ptx_isa[0]}.{self.ptx_isa[1]}"
        return f"{self.kind}_{number}"


@dataclass(frozen=True, slots=True)
class Container:
    """One fat binary: the same code for several targets. Offset and size in bytes.

    A ``stub`` holds no kernel and no function, for any target: nvcc leaves one behind for a source
    file whose device code was compiled out, and the linker one for a library that has none.
    It says nothing about which GPUs are served.
    """

    offset: int
    size: int
    entries: tuple[Entry, ...]
    stub: bool = False


def looks_like_container(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a bare fat binary."""
    return head.startswith(_CONTAINER_START)


def _read_entry(buffer: bytes | mmap, at: int, offset: int, space: int) -> tuple[Entry, int]:
    """Read the entry header at ``buffer[at]``, which is ``offset`` in the file.

    Returns the entry and how many bytes it takes, header included.

    Raises:
        DeviceCodeError: the header contradicts itself or the ``space`` left in the container.
    """
    (
        kind,
        version,
        header_size,
        size,
        compressed_size,
        _,
        minor,
        major,
        number,
        _,
        _,
        flags,
        _,
        uncompressed_size,
    ) = _ENTRY_HEADER.unpack_from(buffer, at)
    if version != _ENTRY_VERSION or not _ENTRY_HEADER.size <= header_size <= _MAX_ENTRY_HEADER:
        raise DeviceCodeError(f"no fat binary entry at offset {offset:#x}")
    if header_size + size > space:
        raise DeviceCodeError(
            f"fat binary entry at offset {offset:#x} claims {header_size + size} bytes, "
            f"its container has {space} left"
        )
    if compressed_size > size or not 10 <= number <= 999:
        raise DeviceCodeError(f"fat binary entry at offset {offset:#x} contradicts itself")
    compression: Compression = "lz4" if flags & _FLAG_LZ4 else "zstd" if flags & _FLAG_ZSTD else ""
    name = _KINDS.get(kind, "other")
    variant: Variant = (
        "a" if flags & _FLAG_ARCH_SPECIFIC else "f" if flags & _FLAG_FAMILY_SPECIFIC else ""
    )
    entry = Entry(
        kind=name,
        capability=Capability.from_number(number),
        variant=variant,
        offset=offset + header_size,
        size=size,
        compression=compression,
        compressed_size=compressed_size,
        uncompressed_size=uncompressed_size,
        ptx_isa=(major, minor) if name == "ptx" else None,
    )
    return entry, header_size + size


class ContainerScanner:
    """Find every container in a file that arrives piece by piece.

    Feed it the file in order. Between two pieces the caller may leave out everything before
    :attr:`wanted`, which is how payloads are passed over without being read::

        scanner = ContainerScanner()
        while piece := read(scanner.wanted, 1 << 20):
            scanner.feed(scanner.wanted, piece)
        containers = scanner.finish()

    It holds no more than one entry header, or one container of at most 64 KiB, besides the piece
    it was given.
    """

    def __init__(self) -> None:
        self._found: list[Container] = []
        self._carry = b""
        self._next = 0
        self._start = 0
        self._end = 0  # of the open container, 0 where none is open
        self._count = 0  # of entries
        self._entries: list[Entry] = []
        self._stub = False

    @property
    def wanted(self) -> int:
        """Offset in the file of the next byte that has to be fed."""
        return self._next

    @property
    def position(self) -> int:
        """Offset up to which all containers have been read (for progress)."""
        return self._next - len(self._carry)

    def feed(self, offset: int, piece: bytes) -> None:
        """Take the bytes of the file from ``offset`` on.

        Raises:
            ValueError: bytes before ``wanted`` were left out.
            DeviceCodeError: a container contradicts itself.
        """
        if offset > self._next:
            raise ValueError(f"bytes {self._next} to {offset} were left out")
        if offset < self._next:
            piece = piece[self._next - offset :]
        if not piece:
            return
        base = self._next - len(self._carry)
        buffer = self._carry + piece if self._carry else piece
        rest = self._walk(buffer, base)
        if rest >= len(buffer):
            self._carry = b""
            self._next = base + rest
        else:
            self._carry = bytes(buffer[rest:])
            self._next = base + len(buffer)

    def _walk(self, buffer: bytes, base: int) -> int:
        """Read as far as the buffer goes; the place in it from which bytes are still needed."""
        at = 0
        length = len(buffer)
        while True:
            if self._end:
                while base + at < self._end:
                    if at + _ENTRY_HEADER.size > length:
                        if self._end - base - at < _ENTRY_HEADER.size:
                            raise DeviceCodeError(
                                f"fat binary at offset {self._start:#x} ends inside an entry"
                            )
                        return at
                    entry, taken = _read_entry(buffer, at, base + at, self._end - base - at)
                    self._count += 1
                    if self._count > _MAX_ENTRIES:
                        raise DeviceCodeError(f"more than {_MAX_ENTRIES} fat binary entries")
                    self._entries.append(entry)
                    at += taken
                self._close()
            if at >= length:
                return at
            searched = at
            at = buffer.find(_CONTAINER_START, searched)
            if at < 0:  # never back into what has been read
                return max(searched, length - _overlap(buffer))
            first = at + _CONTAINER_HEADER.size
            if first + _ENTRY_HEADER.size > length:
                return at
            size: int = _CONTAINER_HEADER.unpack_from(buffer, at)[3]
            if not _begins_container(buffer, first, size):
                at += 1
                continue
            self._start = base + at
            self._end = base + first + size
            self._stub = False
            if size <= _LARGEST_STUB:
                if first + size > length:
                    self._end = 0  # come back when all of it is here
                    return at
                self._stub = _is_stub(buffer[first : first + size])
            at = first

    def _close(self) -> None:
        entries = tuple(self._entries)
        size = self._end - self._start
        self._found.append(Container(self._start, size, entries, self._stub))
        self._entries = []
        self._end = 0

    def finish(self, size: int) -> list[Container]:
        """All containers of a file of ``size`` bytes, once everything was fed.

        Raises:
            DeviceCodeError: the file ends inside a container.
        """
        if self._end:
            if self._end > size or self._carry or self._next < size:
                raise DeviceCodeError(
                    f"fat binary at offset {self._start:#x} reaches to {self._end}, "
                    f"the file ends at {size}"
                )
            self._close()
        elif self._carry and looks_like_container(self._carry):
            start = self._next - len(self._carry)
            body = _CONTAINER_HEADER.size
            claimed = int.from_bytes(self._carry[8:body], "little")
            if len(self._carry) >= body + _ENTRY_HEADER.size and _begins_container(
                self._carry, body, claimed
            ):
                raise DeviceCodeError(
                    f"fat binary at offset {start:#x} reaches to {start + body + claimed}, "
                    f"the file ends at {size}"
                )
        elif self._next > size:
            raise DeviceCodeError(f"a fat binary reaches to {self._next}, the file ends at {size}")
        return self._found


def _begins_container(buffer: bytes, first: int, size: int) -> bool:
    """Whether an entry follows the magic; where it stands by chance, none does."""
    if not _ENTRY_HEADER.size <= size <= _MAX_CONTAINER:
        return False
    try:
        _read_entry(buffer, first, first, size)
    except DeviceCodeError:
        return False
    return True


def _is_stub(body: bytes) -> bool:
    """Whether the entries of a small container, which are all of ``body``, hold no code."""
    at = total = 0
    while at + _ENTRY_HEADER.size <= len(body):
        entry, taken = _read_entry(body, at, at, len(body) - at)
        total += entry.uncompressed_size
        if entry.kind not in ("cubin", "ptx") or total > _LARGEST_STUB_CODE:
            return False
        try:
            code = payload(entry, body[entry.offset : entry.offset + entry.size])
        except DeviceCodeError:
            return False  # what cannot be read may be code
        if entry.kind == "cubin" and not code.startswith(elf.MAGIC):
            return False
        if entry.kind == "ptx" and b".version" not in code:
            return False
        # not .entry in a cubin: some toolkits name a section .nv.uft.entry in every one
        signs = (b".text.",) if entry.kind == "cubin" else (b".entry", b".func")
        if any(sign in code for sign in signs):
            return False
        at += taken
    return True


def _overlap(buffer: bytes) -> int:
    """How many bytes at the end of the buffer could begin a container header."""
    for length in range(min(len(_CONTAINER_START) - 1, len(buffer)), 0, -1):
        if buffer.endswith(_CONTAINER_START[:length]):
            return length
    return 0


def payload(entry: Entry, stored: bytes, limit: int = 1 << 30) -> bytes:
    """The code of an entry, decompressed.

    Args:
        entry: the entry.
        stored: the ``entry.size`` bytes at ``entry.offset``.
        limit: refuse to decompress to more than this many bytes.

    Raises:
        DeviceCodeError: the payload cannot be decompressed to what its header promises.
    """
    if not entry.compression:
        return stored
    if entry.uncompressed_size > limit:
        raise DeviceCodeError(
            f"entry at offset {entry.offset:#x} claims {entry.uncompressed_size} bytes of code"
        )
    packed = stored[: entry.compressed_size or entry.size]
    try:
        if entry.compression == "lz4":
            import lz4.block

            if entry.uncompressed_size > _MAX_LZ4_RATIO * len(packed):
                raise ValueError(f"{len(packed)} bytes cannot hold that much")
            code: bytes = lz4.block.decompress(packed, uncompressed_size=entry.uncompressed_size)
        else:
            import zstandard

            # The frame may state a size of its own, which the decompressor would allocate.
            if zstandard.frame_content_size(packed) not in (-1, entry.uncompressed_size):
                raise ValueError("its frame states another size")
            code = zstandard.ZstdDecompressor().decompress(
                packed, max_output_size=entry.uncompressed_size
            )
    except Exception as error:  # lz4 and zstandard raise classes of their own
        raise DeviceCodeError(
            f"entry at offset {entry.offset:#x} cannot be decompressed: {error}"
        ) from error
    if len(code) != entry.uncompressed_size:
        raise DeviceCodeError(
            f"entry at offset {entry.offset:#x} holds {len(code)} bytes, "
            f"not {entry.uncompressed_size}"
        )
    return code
