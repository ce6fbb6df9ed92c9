"""Builders of small fat binaries, ELF files and zip archives, for the tests and the fuzzers.

They write the formats from their field tables, independently of the readers under test.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
from dataclasses import dataclass, field

FATBIN_MAGIC = b"\x50\xed\x55\xba\x01\x00\x10\x00"
LZ4, ZSTD, ARCH_SPECIFIC, FAMILY_SPECIFIC = 0x2000, 0x8000, 0x100000, 0x200000
PTX, CUBIN, LTO = 1, 2, 8


def entry(
    kind: int = CUBIN,
    number: int = 61,
    payload: bytes = b"\xaa" * 64,
    *,
    flags: int = 0,
    isa: tuple[int, int] = (8, 5),
    header_size: int = 64,
    version: int = 0x0101,
    size: int | None = None,
    compressed_size: int = 0,
    uncompressed_size: int = 0,
) -> bytes:
    """One entry. ``size`` lies about the payload's size; the other fields are as in the format."""
    head = bytearray(header_size)
    struct.pack_into("<HHI", head, 0, kind, version, header_size)
    struct.pack_into("<QI", head, 8, len(payload) if size is None else size, compressed_size)
    struct.pack_into("<HHI", head, 24, isa[1], isa[0], number)
    struct.pack_into("<Q", head, 40, flags)
    struct.pack_into("<Q", head, 56, uncompressed_size)
    return bytes(head) + payload


def container(*entries: bytes, size: int | None = None) -> bytes:
    """A fat binary with these entries. ``size`` lies about their size."""
    body = b"".join(entries)
    return FATBIN_MAGIC + struct.pack("<Q", len(body) if size is None else size) + body


@dataclass
class Sec:
    """A section to build: its name, bytes and ELF section type (1 PROGBITS, 8 NOBITS)."""

    name: str
    data: bytes = b""
    type: int = 1


@dataclass
class Elf:
    """An ELF file to build."""

    sections: list[Sec] = field(default_factory=list)
    wide: bool = True
    type: int = 3
    machine: int = 62
    osabi: int = 0
    flags: int = 0
    big_endian: bool = False
    table_first: bool = False
    """Put the section table right behind the header instead of at the end."""
    extended: bool = False
    """Keep the number of sections and the index of their names in the first section header."""
    gap: int = 0
    """Bytes between the section names and the section table."""
    between: bytes = b""
    """Bytes in front of the first section, which belong to none."""

    def build(self) -> bytes:
        """The file."""
        order = ">" if self.big_endian else "<"
        row = struct.Struct(order + ("IIQQQQIIQQ" if self.wide else "10I"))
        head_size = 64 if self.wide else 52
        sections = [*self.sections, Sec(".shstrtab", type=3)]
        names = bytearray(b"\0")
        name_at = []
        for section in sections:
            name_at.append(len(names))
            names += section.name.encode() + b"\0"
        sections[-1].data = bytes(names)
        count = len(sections) + 1
        table_size = row.size * count
        body = bytearray(head_size)
        table_at = head_size
        if self.table_first:
            body += bytes(table_size)
        body += self.between
        rows = []
        for at, section in zip(name_at, sections, strict=True):
            rows.append(row.pack(at, section.type, 0, 0, len(body), len(section.data), 0, 0, 1, 0))
            if section.type != 8:
                body += section.data
        first = [0] * 10
        if self.extended:
            first[5], first[6] = count, count - 1
        table = row.pack(*first) + b"".join(rows)
        if self.table_first:
            body[table_at : table_at + table_size] = table
        else:
            body += bytes(self.gap)
            table_at = len(body)
            body += table
        ident = b"\x7fELF" + bytes(
            [2 if self.wide else 1, 2 if self.big_endian else 1, 1, self.osabi]
        )
        body[:16] = ident.ljust(16, b"\0")
        struct.pack_into(
            order + ("HHIQQQIHHHHHH" if self.wide else "HHIIIIIHHHHHH"),
            body,
            16,
            self.type,
            self.machine,
            1,
            0,
            0,
            table_at,
            self.flags,
            head_size,
            0,
            0,
            row.size,
            0 if self.extended else count,
            0xFFFF if self.extended else count - 1,
        )
        return bytes(body)


def library(*containers: bytes, section: str = ".nv_fatbin", type: int = 3) -> bytes:
    """A shared library (or, with type 1, an object file) with containers in one section."""
    text = Sec(".text", b"\xc3" * 40)
    return Elf([text, Sec(section, b"".join(containers))], type=type).build()


def cubin(number: int, new_abi: bool = False, size: int = 256) -> bytes:
    """A cubin with nothing in it but a section of ``size`` zero bytes."""
    return Elf(
        [Sec(".text.kernel", bytes(size))],
        type=2,
        machine=190,
        osabi=0x41 if new_abi else 0x33,
        flags=number << 8 | 0x02 if new_abi else 0x050500 | number,
    ).build()


def ptx(target: str = "sm_61", isa: str = "8.5") -> bytes:
    """A PTX module as a compiler writes it."""
    return (
        "//\n// Generated by a compiler for the tests\n//\n// Based on nothing\n//\n\n"
        f".version {isa}\n.target {target}\n.address_size 64\n\n"
        ".visible .entry kernel()\n{\n\tret;\n}\n"
    ).encode()


def static_library(*members: bytes) -> bytes:
    """An ar archive."""
    out = bytearray(b"!<arch>\n")
    for number, member in enumerate(members):
        head = f"{number}.o/".ljust(16) + "0".ljust(12) + "0".ljust(6) * 2 + "644".ljust(8)
        out += (head + str(len(member)).ljust(10) + "`\n").encode() + member
        out += b"\n" * (len(member) % 2)
    return bytes(out)


def wheel(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive of these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


@dataclass
class RawMember:
    """A zip member of which every field can lie. ``packed`` is what is stored."""

    name: str
    packed: bytes
    size: int
    crc: int
    method: int = 0
    flags: int = 0
    stored_size: int | None = None
    header_offset: int | None = None
    extra: bytes = b""


def raw_zip(*members: RawMember) -> bytes:
    """A zip archive written field by field."""
    out = bytearray()
    directory = bytearray()
    for member in members:
        name = member.name.encode()
        stored = len(member.packed) if member.stored_size is None else member.stored_size
        at = len(out) if member.header_offset is None else member.header_offset
        common = (member.flags, member.method, 0, 33, member.crc, stored, member.size, len(name))
        out += struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, *common, 0) + name + member.packed
        directory += struct.pack(
            "<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, *common, len(member.extra), 0, 0, 0, 0, at
        )
        directory += name + member.extra
    start = len(out)
    count = len(members)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(directory), start, 0)
    return bytes(out + directory + end)


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, the same in every run."""
    return random.Random(seed).randbytes(size)
