"""Our reader against NVIDIA's cuobjdump, the runtime's registration records and the payloads.

``libraries.toml`` says which libraries and what is in them; docs/devicecode.md explains every
difference that is asserted here. cuobjdump comes out of two pinned wheels, never from PATH: 12.8
(in triton 3.3.1) still knows Kepler, 13.5 also knows the family-specific variants of CUDA 13.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from wheels import Library, WheelUnavailable, extract, obtain, read_list

from legacy_cuda.devicecode import (
    DeviceCodeError,
    Entry,
    FileCode,
    elf,
    fatbin,
    ptx,
    scan_file,
    scan_wheel,
)

WHEELS, LIBRARIES = read_list()
READERS = {
    "12.8": ("triton-3.3.1", "triton/backends/nvidia/bin/cuobjdump"),
    "13.5": ("cuobjdump-13.5", "nvidia/cu13/bin/cuobjdump"),
}
EXECUTABLE = ".nv_fatbin"
RELOCATABLE = "__nv_relfatbin"
LTO_MAGIC = b"\xedCN\x7f"
SMALL = 1 << 15  # bytes, packed and unpacked together: so far every stub is recognised
NO_CODE = "does not contain device code"

# One block of cuobjdump's text for each entry: kind, target, version and some flags by name.
_BLOCK = re.compile(
    r"^Fatbin (?P<kind>\w+) code:\n=+\narch = (?P<arch>\S+)\n"
    r"code version = \[(?P<major>\d+),(?P<minor>\d+)\]\n"
    r"(?P<rest>(?:(?!Fatbin ).*\n?)*)",
    re.MULTILINE,
)
_LISTED = re.compile(r"^(ELF|PTX) file +\d+: .*\.(sm_\w+)\.(?:cubin|ptx)$", re.MULTILINE)


def wheel_path(key: str) -> Path:
    try:
        return obtain(WHEELS[key])
    except WheelUnavailable as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def cuobjdump(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The cuobjdump of a release, by its number."""
    found: dict[str, Path] = {}

    def of(release: str) -> Path:
        if release not in found:
            key, member = READERS[release]
            folder = tmp_path_factory.mktemp(f"cuobjdump-{release}")
            found[release] = extract(wheel_path(key), member, folder)
        return found[release]

    return of


@dataclass
class Case:
    """A library unpacked, and what our reader says of it while it is still in its wheel."""

    library: Library
    path: Path
    code: FileCode


_scanned: dict[str, dict[str, FileCode]] = {}


@pytest.fixture(scope="module")
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    library: Library = request.param
    wheel = wheel_path(library.wheel.key)
    if library.wheel.key not in _scanned:
        _scanned[library.wheel.key] = {code.path: code for code in scan_wheel(wheel)}
    path = extract(wheel, library.member, tmp_path_factory.mktemp("library"))
    yield Case(library, path, _scanned[library.wheel.key][library.member])
    path.unlink()


def each(libraries: list[Library]) -> pytest.MarkDecorator:
    def parameter(library: Library) -> object:
        name = f"{library.wheel.key}:{Path(library.member).name}"
        return pytest.param(library, id=name, marks=[pytest.mark.large] * library.wheel.large)

    return pytest.mark.parametrize("case", [parameter(lib) for lib in libraries], indirect=True)


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )


def seen(entry: Entry) -> tuple[str, bool]:
    """An entry as cuobjdump tells of it: its label, and whether it is compressed."""
    return entry.label, entry.compression != ""


def parse(text: str) -> list[tuple[str, bool]]:
    blocks = []
    for block in _BLOCK.finditer(text):
        label = block["arch"]
        if block["kind"] == "ptx":
            label = f"{label.replace('sm_', 'compute_')}@{block['major']}.{block['minor']}"
        else:
            assert block["kind"] == "elf", f"cuobjdump tells of {block['kind']!r} code"
        blocks.append((label, "\ncompressed\n" in f"\n{block['rest']}\n"))
    assert len(blocks) == text.count("Fatbin "), "cuobjdump's text has a block of another form"
    return blocks


def in_section(code: FileCode, section: str) -> list[Entry]:
    return [
        entry
        for placed in code.containers
        if placed.section == section
        for entry in placed.container.entries
    ]


def registered(path: Path) -> list[int]:
    """Offsets of the containers that the library registers with the CUDA runtime when loaded.

    nvcc writes one record of 24 bytes for each into .nvFatBinSegment (magic 0x466243b1, version,
    address of the container, one more address); in a shared library the address is filled in by a
    relocation (R_X86_64_RELATIVE, type 8). Read with pyelftools, not with the code under test.
    """
    with path.open("rb") as file:
        image = ELFFile(file)
        segment = image.get_section_by_name(".nvFatBinSegment")
        if segment is None:
            return []
        first, size = segment["sh_addr"], segment["sh_size"]
        assert size % 24 == 0
        records = list(struct.iter_unpack("<II16x", segment.data()))
        assert {magic for magic, _ in records} == {0x466243B1}
        addresses = [
            address
            for section in image.iter_sections(type="SHT_RELA")
            for place, info, address in struct.iter_unpack("<QQq", section.data())
            if first <= place < first + size
            and (place - first) % 24 == 8
            and info & 0xFFFFFFFF == 8
        ]
        assert len(addresses) == len(records)
        loaded = [
            (section["sh_addr"], section["sh_addr"] + section["sh_size"], section["sh_offset"])
            for section in image.iter_sections()
            if section["sh_flags"] & 2 and section["sh_type"] != "SHT_NOBITS"
        ]
    offsets = [
        address - low + offset
        for address in addresses
        for low, high, offset in loaded
        if low <= address < high
    ]
    assert len(offsets) == len(records)
    return sorted(offsets)


@each(LIBRARIES)
def test_sections_hold_what_the_list_says(case: Case) -> None:
    records = set(registered(case.path)) if case.code.format == "shared" else set()
    assert {placed.section for placed in case.code.containers} == set(case.library.sections)
    for name, expected in case.library.sections.items():
        inside = [placed.container for placed in case.code.containers if placed.section == name]
        unregistered = [box for box in inside if box.offset not in records]
        assert len(inside) == expected.containers
        assert sum(box.stub for box in inside) == expected.stubs
        assert Counter(e.label for box in inside for e in box.entries) == expected.entries
        if name in (EXECUTABLE, RELOCATABLE):
            assert len(unregistered) == expected.unregistered


@each(LIBRARIES)
def test_file_on_disk_reads_as_in_its_wheel(case: Case) -> None:
    assert scan_file(case.path, case.code.path) == case.code


@each(LIBRARIES)
def test_entries_are_those_of_cuobjdump_in_the_same_order(
    case: Case, cuobjdump: Callable[[str], Path]
) -> None:
    program = cuobjdump(case.library.cuobjdump)
    executable = [seen(entry) for entry in in_section(case.code, EXECUTABLE)]
    relocatable = [seen(entry) for entry in in_section(case.code, RELOCATABLE)]
    everything = run(program, "-all", case.path)
    if not executable and not relocatable:  # cuobjdump looks into no other section
        assert NO_CODE in everything.stderr
        return
    assert everything.returncode == 0, everything.stderr
    assert parse(everything.stdout) == executable + relocatable
    plain = run(program, case.path)
    assert plain.returncode == 0, plain.stderr
    assert parse(plain.stdout) == (executable or relocatable)


@each(LIBRARIES)
def test_lists_of_cuobjdump_have_the_same_counts(
    case: Case, cuobjdump: Callable[[str], Path]
) -> None:
    program = cuobjdump(case.library.cuobjdump)
    entries = in_section(case.code, EXECUTABLE)
    for option, kind in (("--list-elf", "cubin"), ("--list-ptx", "ptx")):
        listed = run(program, option, case.path)
        theirs = Counter(target for _, target in _LISTED.findall(listed.stdout))
        names = [str(entry.target) for entry in entries if entry.kind == kind]
        if kind == "cubin":  # whose names leave the "f" out, in every release
            names = [name.removesuffix("f") for name in names]
        ours = Counter(name.replace("compute_", "sm_") for name in names)
        assert theirs == ours
        assert sum(theirs.values()) == listed.stdout.count(" file "), "a line was not understood"


@each([library for library in LIBRARIES if EXECUTABLE in library.sections])
def test_every_registered_container_is_found(case: Case) -> None:
    """And those that nothing registers are stubs of the device linker, one a library at most."""
    boxes = [
        placed.container
        for placed in case.code.containers
        if placed.section in (EXECUTABLE, RELOCATABLE)
    ]
    records = registered(case.path)
    assert set(records) <= {box.offset for box in boxes}
    assert len(set(records)) == len(records)
    left = [box for box in boxes if box.offset not in set(records)]
    assert len(left) <= 1
    assert all(box.stub for box in left)


def has_code(entry: Entry, code: bytes) -> bool:
    """Whether there is a kernel or a function in a payload."""
    if entry.kind == "cubin":
        return b".text." in code
    return re.search(rb"\.(entry|func)\s", code) is not None


@each(LIBRARIES)
def test_payloads_agree_with_their_entries(case: Case) -> None:
    """Every payload is decompressed, and what it says of itself is what its entry says."""
    relocatable: Counter[str] = Counter()
    opaque: Counter[str] = Counter()
    with case.path.open("rb") as file:
        for placed in case.code.containers:
            stub, size = True, placed.container.size
            for entry in placed.container.entries:
                file.seek(entry.offset)
                stored = file.read(entry.size)
                size += entry.uncompressed_size
                if entry.kind == "cubin":
                    code = fatbin.payload(entry, stored)
                    stub = stub and not has_code(entry, code)
                    header = elf.parse_header(code[: elf.HEADER_SIZE])
                    assert elf.cubin_capability(header) == entry.capability, entry
                    if placed.section == RELOCATABLE:
                        assert header.type == elf.ET_REL
                    else:
                        relocatable[placed.section] += header.type == elf.ET_REL
                elif entry.kind == "ptx":
                    code = fatbin.payload(entry, stored)
                    stub = stub and not has_code(entry, code)
                    module = ptx.parse_header(code)
                    assert module.isa == entry.ptx_isa, entry
                    assert module.target == entry.target, entry
                else:
                    assert entry.kind == "lto", entry
                    stub = False
                    try:
                        assert fatbin.payload(entry, stored).startswith(LTO_MAGIC)
                    except DeviceCodeError:
                        opaque[placed.section] += 1
            if placed.container.stub or size <= SMALL:
                assert placed.container.stub == stub, placed
    for name, section in case.library.sections.items():
        assert relocatable[name] == section.relocatable
        assert opaque[name] == section.opaque


def one_library(key: str, name: str) -> list[Library]:
    found = [lib for lib in LIBRARIES if lib.wheel.key == key and lib.member.endswith(name)]
    assert found
    return found


@each(one_library("curand-cu11", "libcurand.so.10"))
def test_cuobjdump_13_refuses_kepler(case: Case, cuobjdump: Callable[[str], Path]) -> None:
    done = run(cuobjdump("13.5"), case.path)
    assert done.returncode == 1
    assert "Support for 'sm_35' has been removed" in done.stderr


@each(one_library("xformers-0.0.29.post1", "_C.so"))
def test_cuobjdump_13_refuses_some_older_cubins(
    case: Case, cuobjdump: Callable[[str], Path]
) -> None:
    done = run(cuobjdump("13.5"), case.path)
    assert done.returncode == 1
    assert "Invalid ELF" in done.stderr
    assert len(parse(done.stdout)) < len(in_section(case.code, EXECUTABLE))


@each(one_library("cupy-cuda13x", "cub.cpython-311-x86_64-linux-gnu.so"))
def test_cuobjdump_12_8_does_not_know_family_variants(
    case: Case, cuobjdump: Callable[[str], Path]
) -> None:
    done = run(cuobjdump("12.8"), case.path)
    ours = [seen(entry) for entry in in_section(case.code, EXECUTABLE)]
    assert any(label.startswith("sm_") and label.endswith("f") for label, _ in ours)
    assert parse(done.stdout) == [
        (re.sub(r"f(?=$|@)", "", label), packed) for label, packed in ours
    ]
