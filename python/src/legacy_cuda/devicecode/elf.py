"""The little of ELF that is needed: the header, the section table, the capability of a cubin.

Source: the System V ABI's "Object Files" chapter (gABI), and for cubins comparison with the
output of ``ptxas`` and ``nvcc`` of CUDA 11.8 to 13.0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from legacy_cuda.capability import Capability, Variant
from legacy_cuda.devicecode.errors import DeviceCodeError

MAGIC = b"\x7fELF"
HEADER_SIZE = 64
EM_CUDA = 190
ET_REL = 1

_SHT_NOBITS = 8
_MAX_SECTION_TABLE = 1 << 24
_MAX_NAME = 256  # longer names (of C++ functions' own sections) are cut
_CUBIN_ABI_NEW = 0x41  # e_ident[EI_OSABI] from CUDA 13 on: capability in bits 8-15 of e_flags
_CUBIN_ABI_OLD = 0x33  # before: in bits 0-7
_VARIANT_A_NEW = 0x8
_VARIANT_A_OLD = 0x800
_FIRST_WITH_VARIANTS = Capability(9, 0)


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of an ELF header that matter here. Offsets and sizes in bytes."""

    wide: bool
    osabi: int
    type: int
    machine: int
    flags: int
    section_offset: int
    section_entry_size: int
    section_count: int
    names_index: int

    @property
    def section_table_size(self) -> int:
        return self.section_entry_size * self.section_count


@dataclass(frozen=True, slots=True)
class Section:
    """A named range of the file."""

    name: str
    offset: int
    size: int


def parse_header(head: bytes) -> Header:
    """Read the ELF header from the first 64 bytes of a file.

    Raises:
        DeviceCodeError: not ELF, truncated, or not little-endian (no CUDA host is).
    """
    if not head.startswith(MAGIC):
        raise DeviceCodeError("not an ELF file")
    if len(head) < 16 or head[4] not in (1, 2):
        raise DeviceCodeError("ELF header is truncated or of an unknown class")
    wide = head[4] == 2
    layout = struct.Struct("<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH")
    if head[5] != 1:
        raise DeviceCodeError("ELF file is not little-endian")
    if len(head) < 16 + layout.size:
        raise DeviceCodeError("ELF header is truncated")
    kind, machine, _, _, _, offset, flags, _, _, _, entry_size, count, names = layout.unpack_from(
        head, 16
    )
    if count and entry_size != (64 if wide else 40):
        raise DeviceCodeError(f"ELF section headers of {entry_size} bytes are unknown")
    return Header(wide, head[7], kind, machine, flags, offset, entry_size, count, names)


def cubin_capability(header: Header) -> Capability:
    """The capability a cubin was assembled for.

    Raises:
        DeviceCodeError: the file is no cubin, or of an unknown ABI.
    """
    if header.machine != EM_CUDA:
        raise DeviceCodeError("ELF file is not a cubin")
    if header.osabi == _CUBIN_ABI_NEW:
        number = header.flags >> 8 & 0xFF
    elif header.osabi == _CUBIN_ABI_OLD:
        number = header.flags & 0xFF
    else:
        raise DeviceCodeError(f"cubin of unknown ABI {header.osabi:#x}")
    if not 10 <= number <= 255:
        raise DeviceCodeError(f"cubin claims the impossible capability number {number}")
    return Capability.from_number(number)


def cubin_variant(header: Header) -> Variant:
    """``a`` for a cubin of an ``a`` variant, as far as its header tells.

    It does not for ``f`` variants, nor for sm_90a in the new ABI: their flags are those of plain
    targets. (In a container the entry's header says what its cubin is, and that is what counts.)

    Raises:
        DeviceCodeError: the file is no cubin, or of an unknown ABI.
    """
    capability = cubin_capability(header)
    bit = _VARIANT_A_NEW if header.osabi == _CUBIN_ABI_NEW else _VARIANT_A_OLD
    return "a" if capability >= _FIRST_WITH_VARIANTS and header.flags & bit else ""


def check_complete(header: Header, size: int) -> None:
    """Check that a file of ``size`` bytes reaches to the end of its section table.

    Raises:
        DeviceCodeError: it does not, so it is truncated.
    """
    if header.section_offset and header.section_offset + header.section_table_size > size:
        raise DeviceCodeError("ELF section table lies outside the file")


def read_sections(header: Header, read: Callable[[int, int], bytes], size: int) -> list[Section]:
    """Read the section table.

    Args:
        header: the file's header.
        read: ``read(offset, length)`` gives bytes of the file, fewer at its end.
        size: bytes in the file; ranges beyond it are refused.

    Raises:
        DeviceCodeError: the table is truncated or contradicts itself.
    """
    if not header.section_offset:
        return []
    layout = struct.Struct("<IIQQQQIIQQ" if header.wide else "<IIIIIIIIII")

    def table(count: int) -> bytes:
        length = count * layout.size
        if length > _MAX_SECTION_TABLE or header.section_offset + length > size:
            raise DeviceCodeError("ELF section table lies outside the file")
        data = read(header.section_offset, length)
        if len(data) != length:
            raise DeviceCodeError("ELF section table is truncated")
        return data

    count, names_index = header.section_count, header.names_index
    if not count or names_index == 0xFFFF:  # extended numbering: kept in the first header
        if header.section_entry_size and header.section_entry_size != layout.size:
            raise DeviceCodeError(
                f"ELF section headers of {header.section_entry_size} bytes are unknown"
            )
        first = layout.unpack(table(1))
        count = count or first[5]
        names_index = first[6] if names_index == 0xFFFF else names_index
    rows = table(count)
    if names_index >= count:
        raise DeviceCodeError("ELF section names are missing")
    names_row = layout.unpack_from(rows, names_index * layout.size)
    names_offset, names_size = names_row[4], names_row[5]
    if names_size > _MAX_SECTION_TABLE or names_offset + names_size > size:
        raise DeviceCodeError("ELF section names lie outside the file")
    names = read(names_offset, names_size)
    sections = []
    for row in layout.iter_unpack(rows):
        name_at, kind, offset, length = row[0], row[1], row[4], row[5]
        if kind in (0, _SHT_NOBITS):
            continue
        if offset + length > size:
            raise DeviceCodeError(f"ELF section at {offset:#x} reaches beyond the end of the file")
        end = names.find(b"\0", name_at, name_at + _MAX_NAME)
        if end < 0:
            end = name_at + _MAX_NAME
        if end > len(names):
            raise DeviceCodeError("ELF section name is not terminated")
        sections.append(Section(names[name_at:end].decode("utf-8", "replace"), offset, length))
    return sections
