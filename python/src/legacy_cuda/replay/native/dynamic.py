"""What an ELF file asks of the dynamic loader: libraries, where to look for them, symbols.

Source: the System V ABI ("Dynamic Linking"), and for versions the GNU C library's ``elf.h`` and
Ulrich Drepper's "ELF Symbol Versioning". 64-bit files only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH = 1, 14, 15, 29
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_NEED = struct.Struct("<HHIII")  # Verneed: version, count, file, first, next
_AUX = struct.Struct("<IHHII")  # Vernaux: hash, flags, index, name, next
_DEVICE_CODE = ".nv_fatbin"  # nvcc's section for it


@dataclass(frozen=True)
class Symbol:
    """A symbol that another file has to bring: its version, and the file that has it, by soname.
    Both are empty for a symbol without a version."""

    name: str
    version: str
    file: str


@dataclass(frozen=True)
class Binary:
    """A program or a shared library. ``rpath`` goes before LD_LIBRARY_PATH, ``runpath`` after."""

    path: Path
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]
    undefined: tuple[Symbol, ...]
    device_code: bool

    @property
    def needs_runtime(self) -> bool:
        """Whether it names the CUDA runtime as a library to load."""
        return any(name.startswith("libcudart.so") for name in self.needed)

    @property
    def own_runtime(self) -> bool:
        """Whether it has device code and registers it with a runtime that is linked into it."""
        return self.device_code and all(
            symbol.name != "__cudaRegisterFatBinary" for symbol in self.undefined
        )


def read(path: Path) -> Binary | None:
    """Read an ELF file; None for anything else, and for one that is broken."""
    from legacy_cuda.devicecode import elf
    from legacy_cuda.devicecode.errors import DeviceCodeError

    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size

            def part(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length)

            header = elf.parse_header(part(0, elf.HEADER_SIZE))
            if not header.wide:
                return None
            sections = {item.name: item for item in elf.read_sections(header, part, size)}

            def content(name: str) -> bytes:
                section = sections.get(name)
                return part(section.offset, section.size) if section else b""

            return _binary(path, content, _DEVICE_CODE in sections)
    except (OSError, DeviceCodeError, struct.error, ValueError):
        return None


def _binary(path: Path, content: Callable[[str], bytes], device_code: bool) -> Binary:
    strings = content(".dynstr")

    def text(at: int) -> str:
        return strings[at : strings.index(b"\0", at)].decode("utf-8", "replace")

    entries: dict[int, list[str]] = {}
    for tag, value in _DYNAMIC.iter_unpack(content(".dynamic")):
        if tag in (_DT_NEEDED, _DT_SONAME, _DT_RPATH, _DT_RUNPATH):
            entries.setdefault(tag, []).append(text(value))
    origin = str(path.resolve().parent)

    def folders(tag: int) -> tuple[str, ...]:
        found = ":".join(entries.get(tag, [])).split(":")
        return tuple(
            item.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for item in found if item
        )

    versions = _versions(content(".gnu.version_r"), text)
    indices = content(".gnu.version")
    undefined = []
    for number, row in enumerate(_SYMBOL.iter_unpack(content(".dynsym"))):
        name, section = row[0], row[3]
        if section or not name:
            continue
        index = 0
        if len(indices) >= 2 * number + 2:
            index = struct.unpack_from("<H", indices, 2 * number)[0] & 0x7FFF
        version, file = versions.get(index, ("", ""))
        undefined.append(Symbol(text(name), version, file))
    runpath = folders(_DT_RUNPATH)
    return Binary(
        path,
        tuple(entries.get(_DT_NEEDED, [])),
        () if runpath else folders(_DT_RPATH),
        runpath,
        tuple(undefined),
        device_code,
    )


def _versions(data: bytes, text: Callable[[int], str]) -> dict[int, tuple[str, str]]:
    """Version names by index, each with the file it is wanted of."""
    found: dict[int, tuple[str, str]] = {}
    at = 0
    while data:
        _, count, file, first, following = _NEED.unpack_from(data, at)
        below = at + first
        for _ in range(count):
            _, _, index, name, step = _AUX.unpack_from(data, below)
            found[index & 0x7FFF] = text(name), text(file)
            below += step
        if not following:
            break
        at += following
    return found
