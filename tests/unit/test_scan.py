"""Device code of files, wheels and folders."""

from __future__ import annotations

import os
import socket
import threading
import zipfile
from pathlib import Path

import builders
import pytest
from builders import Elf, Sec, container, entry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legacy_cuda.devicecode import DeviceCodeError, FileCode, scan_file, scan_tree, scan_wheel

PASCAL = container(entry(number=60, payload=b"\1" * 300), entry(builders.PTX, 61, b"\2" * 200))
VOLTA = container(entry(number=70, payload=b"\3" * 500))


def on_disk(folder: Path, data: bytes, name: str = "lib.so") -> FileCode:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return scan_file(path, name)


def in_wheel(
    folder: Path, data: bytes, name: str = "lib.so", method: int = zipfile.ZIP_DEFLATED
) -> FileCode:
    path = folder / "some.whl"
    path.write_bytes(builders.wheel({name: data}, method))
    (found,) = scan_wheel(path)
    return found


def scanned(folder: Path, data: bytes, name: str = "lib.so") -> FileCode:
    """Scan a file on disk, in wheels and in a folder; all must see the same."""
    found = on_disk(folder / "tree", data, name)
    assert scan_tree(folder / "tree") == [found]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert in_wheel(folder, data, name, method) == found
    return found


def summary(found: FileCode) -> list[tuple[str, str, list[str]]]:
    return [
        (placed.section, placed.linkage, [item.label for item in placed.container.entries])
        for placed in found.containers
    ]


PASCAL_LABELS = ["sm_60", "compute_61@8.5"]

# --- formats


def test_shared_library(tmp_path: Path) -> None:
    data = builders.library(PASCAL, VOLTA)
    found = scanned(tmp_path, data)
    assert (found.path, found.size, found.format) == ("lib.so", len(data), "shared")
    assert summary(found) == [
        (".nv_fatbin", "loadable", PASCAL_LABELS),
        (".nv_fatbin", "loadable", ["sm_70"]),
    ]
    for placed, original in zip(found.containers, (PASCAL, VOLTA), strict=True):
        at = placed.container.offset
        assert data[at : at + placed.container.size] == original


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("table_first", [True, False])
def test_sections(tmp_path: Path, wide: bool, table_first: bool) -> None:
    sections = [
        Sec(".text", b"\xc3" * 100),
        Sec("__nv_relfatbin", VOLTA),
        Sec(".bss", bytes(1 << 20), type=8),
        Sec(".nv_fatbin", PASCAL + bytes(8) + PASCAL),
        Sec(".rodata", b"x" + VOLTA + b"x"),
    ]
    elf = Elf(sections, wide=wide, table_first=table_first, between=b"12345" + PASCAL)
    assert summary(scanned(tmp_path, elf.build())) == [
        ("", "loadable", PASCAL_LABELS),
        ("__nv_relfatbin", "link-time", ["sm_70"]),
        (".nv_fatbin", "loadable", PASCAL_LABELS),
        (".nv_fatbin", "loadable", PASCAL_LABELS),
        (".rodata", "loadable", ["sm_70"]),
    ]


def test_container_outside_any_section(tmp_path: Path) -> None:
    data = Elf([Sec(".text", bytes(99))], gap=7).build() + b"padding" + PASCAL
    assert summary(scanned(tmp_path, data)) == [("", "loadable", PASCAL_LABELS)]


def test_no_section_table(tmp_path: Path) -> None:
    data = bytearray(builders.library(PASCAL))
    data[40:48] = bytes(8)
    assert summary(scanned(tmp_path, bytes(data))) == [("", "loadable", PASCAL_LABELS)]


def test_object_file(tmp_path: Path) -> None:
    data = builders.library(PASCAL, section="__nv_relfatbin", type=1)
    found = scanned(tmp_path, data, "a.o")
    assert found.format == "object"
    assert summary(found) == [("__nv_relfatbin", "link-time", PASCAL_LABELS)]


def test_static_library(tmp_path: Path) -> None:
    one = builders.library(PASCAL, type=1)
    data = builders.static_library(one, b"text\n", builders.library(VOLTA, type=1))
    found = scanned(tmp_path, data, "lib.a")
    assert found.format == "archive"
    assert summary(found) == [
        ("", "link-time", PASCAL_LABELS),
        ("", "link-time", ["sm_70"]),
    ]


@pytest.mark.parametrize("new_abi", [False, True])
def test_bare_cubin(tmp_path: Path, new_abi: bool) -> None:
    data = builders.cubin(61, new_abi)
    found = scanned(tmp_path, data, "kernel.cubin")
    assert (found.format, found.size) == ("cubin", len(data))
    assert summary(found) == [("", "loadable", ["sm_61"])]


@pytest.mark.parametrize(
    ("osabi", "flags", "label"),
    [(0x33, 0x005A0D5A, "sm_90a"), (0x41, 0x0600640A, "sm_100a"), (0x41, 0x06006402, "sm_100")],
)
def test_bare_cubin_of_a_variant(tmp_path: Path, osabi: int, flags: int, label: str) -> None:
    data = Elf([Sec(".text.k", bytes(256))], type=2, machine=190, osabi=osabi, flags=flags).build()
    assert summary(scanned(tmp_path, data, "kernel.cubin")) == [("", "loadable", [label])]


def test_bare_fatbin(tmp_path: Path) -> None:
    found = scanned(tmp_path, PASCAL, "kernels.bin")
    assert found.format == "fatbin"
    assert summary(found) == [("", "loadable", PASCAL_LABELS)]


def test_bare_ptx(tmp_path: Path) -> None:
    data = builders.ptx("sm_52", "7.8") + b"// the end\n" * 20_000
    found = scanned(tmp_path, data, "deep/er/kernel.ptx")
    assert (found.path, found.format) == ("deep/er/kernel.ptx", "ptx")
    assert summary(found) == [("", "loadable", ["compute_52@7.8"])]


def test_library_without_device_code(tmp_path: Path) -> None:
    found = scanned(tmp_path, Elf([Sec(".text", b"\xc3" * 500)]).build())
    assert (found.format, found.containers) == ("shared", ())


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    data = builders.library(PASCAL)
    for name in ("lib.so.12", "_C.cpython-311.so", "program", "data.txt"):
        assert summary(on_disk(tmp_path, data, name))


def test_what_holds_no_device_code_is_passed_over(tmp_path: Path) -> None:
    text = b"INPUT(libreal.so.1)\n" * 20
    files = {
        "lib/fake.so": text,
        "empty.so": b"",
        "short.ptx": b"x",
        "code.py": b"x = 1\n" * 100,
        "foreign.o": Elf([Sec(".text", bytes(99))], big_endian=True).build(),
        "nested.zip": builders.wheel({"lib.so": builders.library(PASCAL)}),
        "magic.bin": b"x" + PASCAL,
    }
    for name, data in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert scan_tree(tmp_path / "tree") == []
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(builders.wheel(files))
    assert scan_wheel(wheel) == []
    with pytest.raises(DeviceCodeError, match="neither"):
        scan_file(tmp_path / "tree/lib/fake.so")


def test_results_are_sorted_whatever_the_threads(tmp_path: Path) -> None:
    files = {
        f"{name}/lib{size}.so": builders.library(VOLTA, bytes(size))
        for name in "cab"
        for size in (10, 100_000, 1000)
    }
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(builders.wheel(files))
    for name, data in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    expected = scan_wheel(wheel, threads=1)
    assert [found.path for found in expected] == sorted(files)
    for threads in (2, 8, None):
        assert scan_wheel(wheel, threads=threads) == expected
        assert scan_tree(tmp_path / "tree", threads=threads) == expected


def test_progress_adds_up(tmp_path: Path) -> None:
    big = builders.library(PASCAL, builders.noise(3 << 20))
    files = {"a.so": big, "b.ptx": builders.ptx(), "c.a": builders.static_library(big)}
    total = len(big) + len(files["c.a"])
    lock, done = threading.Lock(), [0]

    def count(number: int) -> None:
        assert number >= 0
        with lock:
            done[0] += number

    wheel = tmp_path / "some.whl"
    wheel.write_bytes(builders.wheel(files))
    scan_wheel(wheel, count)
    assert done[0] == total + len(files["b.ptx"])
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    wheel.unlink()
    done[0] = 0
    scan_tree(tmp_path, progress=count)
    assert total <= done[0] <= total + len(files["b.ptx"])


# --- the stream and the file on disk agree


@pytest.mark.parametrize("size", [0, 1 << 20, 3 << 20, 20 << 20])
@pytest.mark.parametrize("table_first", [True, False])
def test_section_names_far_from_the_section_table(
    tmp_path: Path, size: int, table_first: bool
) -> None:
    """The names stand more than is kept of the stream before the table, or behind it."""
    far = Sec(".debug_info", builders.noise(size))
    sections = [Sec(".nv_fatbin", PASCAL), far, Sec("__nv_relfatbin", VOLTA)]
    data = Elf(sections, table_first=table_first, gap=size).build()
    found = on_disk(tmp_path, data)
    assert [part[0] for part in summary(found)] == [".nv_fatbin", "__nv_relfatbin"]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert in_wheel(tmp_path, data, method=method) == found


def test_a_large_section_table_over_many_pieces(tmp_path: Path) -> None:
    functions = [Sec(f".text.f{number}", b"x") for number in range(50_000)]
    data = Elf([Sec(".nv_fatbin", PASCAL), *functions], type=1).build()
    assert len(data) > 3 << 20
    found = on_disk(tmp_path, data)
    assert summary(found) == [(".nv_fatbin", "loadable", PASCAL_LABELS)]
    assert in_wheel(tmp_path, data) == found


def test_containers_across_the_pieces_of_the_stream(tmp_path: Path) -> None:
    for shift in range(-100, 20, 7):
        before = Sec(".rodata", builders.noise((1 << 20) + shift))
        data = Elf([before, Sec(".nv_fatbin", PASCAL + VOLTA)]).build()
        found = on_disk(tmp_path, data)
        assert len(found.containers) == 2
        assert in_wheel(tmp_path, data, method=zipfile.ZIP_STORED) == found


def test_many_containers_and_many_sections_take_linear_time(tmp_path: Path) -> None:
    small = container(entry(payload=b""))
    sections = [Sec(f".s{number}", small) for number in range(30_000)]
    found = on_disk(tmp_path, Elf(sections).build())
    assert [part[0] for part in summary(found)] == [section.name for section in sections]


sections = st.lists(
    st.builds(
        Sec,
        st.sampled_from([".nv_fatbin", "__nv_relfatbin", ".text", ".data"]),
        st.lists(st.one_of(st.sampled_from([PASCAL, VOLTA]), st.binary(max_size=50))).map(b"".join),
        st.sampled_from([1, 8]),
    ),
    max_size=5,
)
elves = st.builds(
    Elf,
    sections,
    wide=st.booleans(),
    type=st.sampled_from([1, 2, 3]),
    table_first=st.booleans(),
    extended=st.booleans(),
    gap=st.integers(0, 100),
    between=st.sampled_from([b"", b"xx", VOLTA]),
)


@given(elves, st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_stream_and_disk_agree(tmp_path: Path, elf: Elf, damage: list[tuple[int, int]]) -> None:
    data = bytearray(elf.build())
    for at, value in damage:
        data[64 + at % (len(data) - 64)] = value
    path = tmp_path / "lib.so"
    path.write_bytes(data)
    try:
        expected = scan_file(path, "lib.so")
    except DeviceCodeError as error:
        with pytest.raises(DeviceCodeError) as caught:
            in_wheel(tmp_path, bytes(data))
        assert str(caught.value) == f"lib.so: {error}"
        return
    assert in_wheel(tmp_path, bytes(data)) == expected


# --- broken files


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("lib.so", builders.library(PASCAL)),
        ("lib.so", Elf([Sec(".text", b"\xc3" * 50)]).build()),
        ("lib.so", Elf([Sec(".nv_fatbin", VOLTA)], wide=False, extended=True).build()),
        ("kernel.cubin", builders.cubin(61)),
        ("kernel.fatbin", VOLTA),
    ],
)
def test_truncated_anywhere(tmp_path: Path, name: str, data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(DeviceCodeError):
            on_disk(tmp_path, data[:size], name)
        if size >= 64:  # what is shorter cannot hold device code and is passed over
            with pytest.raises(DeviceCodeError, match=name):
                in_wheel(tmp_path, data[:size], name)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    bad = builders.library(container(entry(), bytes(100)))
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/good.so").write_bytes(builders.library(PASCAL))
    (tmp_path / "tree/sub/bad.so").write_bytes(bad)
    with pytest.raises(DeviceCodeError, match=r"^sub/bad\.so: "):
        scan_tree(tmp_path / "tree")
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(builders.wheel({"good.so": builders.library(PASCAL), "sub/bad.so": bad}))
    with pytest.raises(DeviceCodeError, match=r"^sub/bad\.so: "):
        scan_wheel(wheel)


def test_ptx_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DeviceCodeError, match="not a PTX module"):
        on_disk(tmp_path, b"hello world\n" * 20, "kernel.ptx")


def test_wrong_crc_of_a_cubin(tmp_path: Path) -> None:
    wheel = bytearray(builders.wheel({"a.cubin": builders.cubin(61)}, zipfile.ZIP_STORED))
    wheel[150] ^= 1
    path = tmp_path / "some.whl"
    path.write_bytes(wheel)
    with pytest.raises(DeviceCodeError, match="CRC"):
        scan_wheel(path)


# --- trees


def test_nothing_in_a_tree_is_waited_for_or_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "tree", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "lib.so").write_bytes(builders.library(VOLTA))
    (root / "real.so").write_bytes(builders.library(PASCAL))
    os.mkfifo(root / "pipe.so")
    os.mkfifo(root / "pipe.ptx")
    (root / "link.so").symlink_to(outside / "lib.so")
    (root / "dangling.so").symlink_to("nowhere")
    (root / "endless.so").symlink_to("/dev/zero")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)  # the path of a socket may not be long
        try:
            server.bind("socket.so")
        finally:
            os.chdir(here)
        assert [found.path for found in scan_tree(root)] == ["real.so"]


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.so")
    for path in (tmp_path / "pipe.so", tmp_path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(DeviceCodeError, match="not a regular file"):
            scan_file(path)
    assert scan_tree(tmp_path, [(tmp_path / "pipe.so", 1000)]) == []


def test_missing_files_are_a_matter_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan_file(tmp_path / "missing.so")
    with pytest.raises(FileNotFoundError):
        scan_tree(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        scan_tree(tmp_path, [(tmp_path / "gone.so", 1000)])


def test_only_the_given_files(tmp_path: Path) -> None:
    for name in ("a.so", "b.so"):
        (tmp_path / name).write_bytes(builders.library(PASCAL))
    path = tmp_path / "b.so"
    assert [found.path for found in scan_tree(tmp_path, [(path, path.stat().st_size)])] == ["b.so"]


def test_a_ptx_file_that_is_no_ptx_is_passed_over_in_a_folder_and_refused_by_itself(
    tmp_path: Path,
) -> None:
    other = tmp_path / "slides.ptx"
    other.write_bytes(b"a point cloud, or something else entirely\n" * 10)
    (tmp_path / "kernel.ptx").write_bytes(builders.ptx("sm_61"))
    (tmp_path / "a.whl").write_bytes(builders.wheel({"x/slides.ptx": other.read_bytes()}))
    assert [code.path for code in scan_tree(tmp_path)] == ["kernel.ptx"]
    assert scan_wheel(tmp_path / "a.whl") == []
    with pytest.raises(DeviceCodeError, match="PTX"):
        scan_file(other)
