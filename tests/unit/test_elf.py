"""ELF headers, section tables and the capability of cubins."""

from __future__ import annotations

import struct
import sys
import sysconfig
from pathlib import Path

import builders
import pytest
from builders import Elf, Sec
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from legacy_cuda.devicecode import DeviceCodeError, elf


def sections(data: bytes) -> list[elf.Section]:
    def read(offset: int, length: int) -> bytes:
        assert offset + length <= len(data), "nothing outside the file is asked for"
        return data[offset : offset + length]

    return elf.read_sections(elf.parse_header(data[: elf.HEADER_SIZE]), read, len(data))


def contents(data: bytes) -> list[tuple[str, bytes]]:
    return [
        (section.name, data[section.offset : section.offset + section.size])
        for section in sections(data)
        if section.name != ".shstrtab"
    ]


TWO = [Sec(".text", b"\xc3" * 7), Sec(".nv_fatbin", b"code")]


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("table_first", [True, False])
@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize("gap", [0, 3, 1000])
def test_section_tables(wide: bool, table_first: bool, extended: bool, gap: int) -> None:
    data = Elf(TWO, wide=wide, table_first=table_first, extended=extended, gap=gap).build()
    assert contents(data) == [(".text", b"\xc3" * 7), (".nv_fatbin", b"code")]


@pytest.mark.parametrize("wide", [True, False])
def test_header_fields(wide: bool) -> None:
    data = Elf(TWO, wide=wide, type=1, machine=183, osabi=3, flags=0xDEADBEEF).build()
    header = elf.parse_header(data[: elf.HEADER_SIZE])
    assert (header.wide, header.type, header.machine) == (wide, 1, 183)
    assert (header.osabi, header.flags) == (3, 0xDEADBEEF)
    assert header.section_count == 4
    assert header.section_offset + header.section_table_size == len(data)


def test_a_32_bit_header_is_52_bytes() -> None:
    data = Elf(wide=False).build()
    assert elf.parse_header(data[:52]).machine == 62
    with pytest.raises(DeviceCodeError, match="truncated"):
        elf.parse_header(data[:51])


def test_sections_without_bytes_in_the_file_are_left_out() -> None:
    bss = Sec(".bss", bytes(1 << 16), type=8)
    assert contents(Elf([bss, Sec(".data", b"x")]).build()) == [(".data", b"x")]


def test_many_sections_by_extended_numbering() -> None:
    many = [Sec(f".text.f{number}", b"x") for number in range(0xFF00)]
    found = contents(Elf(many, extended=True).build())
    assert len(found) == 0xFF00
    assert found[-1] == (".text.f65279", b"x")


def test_no_section_table() -> None:
    data = bytearray(Elf(TWO).build())
    data[40:48] = bytes(8)
    assert sections(bytes(data)) == []


def test_names_of_cpp_functions_can_be_long() -> None:
    long = ".text._ZN" + "3abc" * 1000
    found = contents(Elf([Sec(long, b"x"), Sec(".nv_fatbin", b"y")]).build())
    assert long.startswith(found[0][0])
    assert len(found[0][0]) >= 200
    assert found[1] == (".nv_fatbin", b"y")


def test_names_that_are_no_utf8_do_no_harm() -> None:
    data = Elf([Sec(".text", b"x"), Sec("ABCDEF", b"y")]).build().replace(b"ABCDEF", b"\xff" * 6)
    assert [content for _, content in contents(data)] == [b"x", b"y"]


# --- cubins


@pytest.mark.parametrize("number", [20, 35, 37, 50, 61, 70, 90, 120])
@pytest.mark.parametrize("new_abi", [False, True])
def test_cubin_capability(number: int, new_abi: bool) -> None:
    header = elf.parse_header(builders.cubin(number, new_abi))
    assert elf.cubin_capability(header).number == number


@pytest.mark.parametrize(
    ("osabi", "flags", "number"),
    [
        (0x33, 0x00560556, 86),
        (0x33, 0x003D053D, 61),
        (0x33, 0xFFFFFF25, 37),
        (0x41, 0x06005A02, 90),
        (0x41, 0xFFFF3DFF, 61),
        (0x41, 0x00000B00, 11),
    ],
)
def test_cubin_flags(osabi: int, flags: int, number: int) -> None:
    header = elf.parse_header(Elf(machine=190, osabi=osabi, flags=flags).build())
    assert elf.cubin_capability(header).number == number


@pytest.mark.parametrize(
    ("osabi", "flags", "variant"),
    [
        (0x33, 0x005A055A, ""),
        (0x33, 0x005A0D5A, "a"),
        (0x33, 0xFFFFFF25, ""),  # no variants below 9.0
        (0x41, 0x06006402, ""),
        (0x41, 0x0600640A, "a"),
        (0x41, 0x06005A02, ""),
    ],
)
def test_cubin_variant(osabi: int, flags: int, variant: str) -> None:
    header = elf.parse_header(Elf(machine=190, osabi=osabi, flags=flags).build())
    assert elf.cubin_variant(header) == variant


@pytest.mark.parametrize(
    ("machine", "osabi", "flags", "message"),
    [
        (62, 0x33, 61, "not a cubin"),
        (190, 0x00, 61, "unknown ABI"),
        (190, 0x40, 61, "unknown ABI"),
        (190, 0x33, 0x3D00, "impossible"),
        (190, 0x41, 0x003D, "impossible"),
        (190, 0x33, 9, "impossible"),
    ],
)
def test_what_is_no_cubin(machine: int, osabi: int, flags: int, message: str) -> None:
    header = elf.parse_header(Elf(machine=machine, osabi=osabi, flags=flags).build())
    with pytest.raises(DeviceCodeError, match=message):
        elf.cubin_capability(header)


# --- lies


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("extended", [True, False])
def test_truncated_anywhere(wide: bool, extended: bool) -> None:
    data = Elf(TWO, wide=wide, extended=extended, gap=5).build()
    for size in range(len(data)):
        with pytest.raises(DeviceCodeError):
            sections(data[:size])


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 15, 16])
def test_short_heads(size: int) -> None:
    with pytest.raises(DeviceCodeError):
        elf.parse_header(Elf().build()[:size])


def test_big_endian_and_unknown_class() -> None:
    with pytest.raises(DeviceCodeError, match="little-endian"):
        elf.parse_header(Elf(TWO, big_endian=True).build())
    data = bytearray(Elf(TWO).build())
    data[4] = 3
    with pytest.raises(DeviceCodeError, match="class"):
        elf.parse_header(bytes(data))


def patched(offset: int, layout: str, value: int, **options: bool) -> bytes:
    data = bytearray(Elf(TWO, **options).build())
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        patched(40, "<Q", 1),  # e_shoff: over the header, whose bytes make no section table
        patched(40, "<Q", 1 << 62),
        patched(40, "<Q", (1 << 64) - 1),
        patched(58, "<H", 63),  # e_shentsize
        patched(58, "<H", 0),
        patched(58, "<H", 1, extended=True),
        patched(60, "<H", 5),  # e_shnum: one too many
        patched(60, "<H", 0xFFFF),
        patched(62, "<H", 4),  # e_shstrndx: one too far
        patched(62, "<H", 0xFFFE),
    ],
)
def test_headers_that_lie(data: bytes) -> None:
    with pytest.raises(DeviceCodeError):
        sections(data)


@pytest.mark.parametrize("field", [0, 24, 32], ids=["name", "offset", "size"])
@pytest.mark.parametrize("row", [1, 3], ids=[".text", ".shstrtab"])
@pytest.mark.parametrize("value", [1 << 20, (1 << 31) - 1, (1 << 32) - 1])
def test_section_headers_that_lie(field: int, row: int, value: int) -> None:
    data = bytearray(Elf(TWO).build())
    at = elf.parse_header(bytes(data)).section_offset + 64 * row + field
    struct.pack_into("<I", data, at, value)
    with pytest.raises(DeviceCodeError):
        sections(bytes(data))


@pytest.mark.parametrize("count", [5, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_extended_numbering_that_lies(count: int) -> None:
    data = bytearray(Elf(TWO, extended=True).build())
    at = elf.parse_header(bytes(data)).section_offset
    struct.pack_into("<Q", data, at + 32, count)
    with pytest.raises(DeviceCodeError):
        sections(bytes(data))


@given(
    st.binary(max_size=400),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=10),
)
def test_damage_raises_nothing_but_the_one_error(
    garbage: bytes, wide: bool, damage: list[tuple[int, int]]
) -> None:
    broken = bytearray(Elf(TWO, wide=wide).build())
    for at, value in damage:
        if at < len(broken):
            broken[at] = value
    for data in (bytes(broken), elf.MAGIC + garbage, garbage, bytes(broken[:64]) + garbage):
        try:
            found = sections(data)
            elf.cubin_capability(elf.parse_header(data))
        except DeviceCodeError:
            continue
        assert all(section.offset + section.size <= len(data) for section in found)


# --- against another reader


def real_files() -> list[Path]:
    folder = Path(sysconfig.get_path("platlib"))
    found = [Path("/bin/ls"), Path(sys.executable).resolve()]
    found += sorted(folder.rglob("*.so"))[:20]
    stdlib = Path(sysconfig.get_path("platstdlib"), "lib-dynload")
    found += sorted(stdlib.glob("*.so"))[:10]
    return [path for path in found if path.is_file()]


def test_real_files_read_as_by_pyelftools() -> None:
    compared = 0
    for path in real_files():
        data = path.read_bytes()
        if data[:4] != elf.MAGIC:
            continue
        with path.open("rb") as file:
            expected = [
                (section.name, section["sh_offset"], section["sh_size"])
                for section in ELFFile(file).iter_sections()
                if section["sh_type"] not in ("SHT_NULL", "SHT_NOBITS")
            ]
        found = [(section.name, section.offset, section.size) for section in sections(data)]
        assert found == expected, path
        compared += 1
    assert compared >= 2, "no ELF file was found to compare with"
