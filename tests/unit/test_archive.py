"""Members of a wheel as streams, and archives that lie."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import builders
import pytest
from builders import RawMember, raw_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legacy_cuda.devicecode import DeviceCodeError, scan_wheel
from legacy_cuda.devicecode.archive import WheelReader

Write = Callable[[bytes], Path]
TEXT = b"the quick brown fox " * 50


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_one(data: bytes) -> Path:
        path = tmp_path / "some.whl"
        path.write_bytes(data)
        return path

    return write_one


def contents(path: Path) -> dict[str, bytes]:
    with WheelReader(path) as wheel:
        return {member.name: b"".join(wheel.stream(member)) for member in wheel.members}


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def member(name: str = "a.so", data: bytes = TEXT, **lies: object) -> RawMember:
    fields = {"packed": data, "size": len(data), "crc": zlib.crc32(data), **lies}
    return RawMember(name, **fields)  # type: ignore[arg-type]  # a test's own lies


def packed_member(name: str = "a.so", data: bytes = TEXT, **lies: object) -> RawMember:
    return member(name, data, **{"packed": deflated(data), "method": 8, **lies})


# --- honest archives


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members(write: Write, method: int) -> None:
    files = {
        "a/b.so": TEXT,
        "empty": b"",
        "big": builders.noise(3 << 20),
        "zeros": bytes(5 << 20),
        "one": b"x",
        "näme with space": b"y",
    }
    assert contents(write(builders.wheel(files, method))) == files


def test_folders_are_no_members(write: Write) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.mkdir("folder") if sys.version_info >= (3, 11) else archive.writestr("folder/", b"")
        archive.writestr("folder/file", b"x")
    assert contents(write(out.getvalue())) == {"folder/file": b"x"}


def test_an_archive_without_members(write: Write) -> None:
    assert contents(write(builders.wheel({}))) == {}


def test_zip64_and_data_descriptors(write: Write) -> None:
    class Pipe(io.RawIOBase):
        """A file that cannot be sought in, which makes zipfile write data descriptors."""

        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, piece: object) -> int:
            self.data += bytes(piece)  # type: ignore[call-overload]  # any buffer
            return len(bytes(piece))  # type: ignore[call-overload]

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("one", "two"):
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(TEXT)
    data = bytes(pipe.data)
    assert b"PK\x07\x08" in data, "no data descriptor was written"
    assert contents(write(data)) == {"one": TEXT, "two": TEXT}


def test_zip64_directory(write: Write) -> None:
    """Sizes and offset of a member, and the directory's place, only in their zip64 fields."""
    full = 0xFFFFFFFF
    extra = struct.pack("<HHQQQ", 1, 24, len(TEXT), len(TEXT), 0)
    local = member()
    data = raw_zip(local)[: 30 + len(local.name) + len(TEXT)]
    entry = struct.pack(
        "<4sHHHHHHIIIHHHHHII",
        *(b"PK\1\2", 45, 45, 0, 0, 0, 33, zlib.crc32(TEXT), full, full),
        *(len(local.name), len(extra), 0, 0, 0, 0, full),
    )
    entry += local.name.encode() + extra
    at = len(data)
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(entry), at)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at + len(entry), 1)
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, full, full, 0)
    assert contents(write(data + entry + end64 + locator + end)) == {"a.so": TEXT}


def test_bytes_before_the_archive(write: Write) -> None:
    data = b"#!/bin/sh\nexit 1\n" * 100 + builders.wheel({"a": TEXT, "b": b"x"})
    assert contents(write(data)) == {"a": TEXT, "b": b"x"}


def test_head(write: Write) -> None:
    data = builders.noise(100_000)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with WheelReader(write(builders.wheel({"a": data, "b": b"xy"}, method))) as wheel:
            long, short = wheel.members
            for length in (0, 1, 64, 5000, 100_000, 200_000):
                assert wheel.head(long, length) == data[:length]
            assert wheel.head(short, 64) == b"xy"


def test_head_behind_empty_blocks(write: Write) -> None:
    """A deflate stream can begin with any number of blocks that hold nothing."""
    empty = b"\x00\x00\x00\xff\xff"
    for count in (1, 100, 200_000):
        packed = packed_member(packed=empty * count + deflated(TEXT))
        with WheelReader(write(raw_zip(packed))) as wheel:
            assert wheel.head(wheel.members[0], 64) == TEXT[:64]
            assert b"".join(wheel.stream(wheel.members[0])) == TEXT


def test_pieces_are_small(write: Write) -> None:
    with WheelReader(write(builders.wheel({"zeros": bytes(10 << 20)}))) as wheel:
        sizes = [len(piece) for piece in wheel.stream(wheel.members[0])]
    assert sum(sizes) == 10 << 20
    assert max(sizes) <= 1 << 20


def test_several_threads_read_at_once(write: Write) -> None:
    files = {str(number): builders.noise(1 << 18, number) for number in range(8)}
    found: dict[str, bytes] = {}
    with WheelReader(write(builders.wheel(files))) as wheel:

        def one(number: int) -> None:
            item = wheel.members[number]
            found[item.name] = b"".join(wheel.stream(item))

        threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == files


@given(
    st.dictionaries(st.text("abc/é.", min_size=1, max_size=8), st.binary(max_size=300), max_size=5),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_members(write: Write, files: dict[str, bytes], stored: bool) -> None:
    files = {
        name: data
        for name, data in files.items()
        if not name.startswith("/") and not name.endswith("/") and ".." not in name.split("/")
    }
    method = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    assert contents(write(builders.wheel(files, method))) == files


# --- archives that a wheel must not be


def refused(path: Path, message: str | None = None) -> None:
    with pytest.raises(DeviceCodeError, match=message):
        contents(path)


def test_the_raw_builder_builds_honest_archives(write: Write) -> None:
    assert contents(write(raw_zip(member("a"), packed_member("b")))) == {"a": TEXT, "b": TEXT}


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "..", "a/..", "..\\x", "C:\\x", "a\\b", "//host/x", "../"],
)
def test_names_that_leave_the_archive(write: Write, name: str) -> None:
    refused(write(raw_zip(member(name))), "leaves the archive")


def test_a_member_without_a_name(write: Write) -> None:
    refused(write(raw_zip(member(""))), "has no name")
    refused(write(raw_zip(member("\0so"))), "has no name")


@pytest.mark.parametrize("name", ["..x", "x..", "...", "a/..b/c", "./a"])
def test_names_with_dots_that_stay(write: Write, name: str) -> None:
    assert list(contents(write(raw_zip(member(name)))).values()) == [TEXT]


def test_encrypted(write: Write) -> None:
    refused(write(raw_zip(member(flags=1))), "encrypted")


@pytest.mark.parametrize("method", [1, 9, 12, 14, 93, 99, 0xFFFF])
def test_unsupported_compression(write: Write, method: int) -> None:
    refused(write(raw_zip(member(method=method))), "compression")


@pytest.mark.parametrize("make", [member, packed_member])
@pytest.mark.parametrize(
    ("lies", "message"),
    [
        ({"crc": 1}, "CRC"),
        ({"size": len(TEXT) - 1}, "longer than it says"),
        ({"size": 0}, "longer than it says"),
        ({"size": len(TEXT) + 1}, "ends after"),
        ({"size": 0xFFFFFFFE}, None),
        ({"stored_size": 10}, None),
        ({"stored_size": 0}, None),
        ({"stored_size": 100_000}, "outside"),
        ({"stored_size": 0xFFFFFFFE}, "outside"),
        ({"header_offset": 1}, None),
        ({"header_offset": 100_000}, "outside"),
        ({"header_offset": 0xFFFFFFFE}, "outside"),
        ({"packed": b""}, None),
        ({"packed": b"\xff" * 100}, None),
    ],
)
def test_members_that_lie(
    write: Write, make: Callable[..., RawMember], lies: dict[str, object], message: str | None
) -> None:
    refused(write(raw_zip(make(**lies))), message)


@pytest.mark.parametrize("offset", [1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_offsets_beyond_what_the_system_can_seek_to(write: Write, offset: int) -> None:
    extra = struct.pack("<HHQ", 1, 8, offset)
    refused(write(raw_zip(member(header_offset=0xFFFFFFFF, extra=extra))))


def test_a_directory_that_points_before_the_file(write: Write) -> None:
    data = bytearray(raw_zip(member("a"), member("b")))
    end = data.rindex(b"PK\5\6")
    start = struct.unpack_from("<I", data, end + 16)[0]
    for claimed in (start + 1, start + 40, 0xFFFFFFF0):
        struct.pack_into("<I", data, end + 16, claimed)
        refused(write(bytes(data)))


def test_overlapping_members(write: Write) -> None:
    body = deflated(bytes(1 << 20))
    first = packed_member("a", bytes(1 << 20), packed=body)
    again = packed_member("b", bytes(1 << 20), packed=b"", stored_size=len(body), header_offset=0)
    refused(write(raw_zip(first, again)), "overlap")
    inside = packed_member("b", b"", packed=b"", stored_size=len(body), header_offset=40)
    refused(write(raw_zip(first, inside)), "overlap")


def test_no_archive(write: Write) -> None:
    for data in (b"", b"x", b"PK", b"PK\5\6", TEXT * 1000, builders.library(b"x" * 1000)):
        refused(write(data), "not a readable zip archive")


def test_truncated_anywhere(write: Write) -> None:
    data = raw_zip(member("a", b"x" * 20), packed_member("b", TEXT))
    for size in range(len(data)):
        refused(write(data[:size]))


def test_cut_out_anywhere(write: Write) -> None:
    """A byte less in the middle is noticed; names apart, there is nothing it could hide in."""
    data = raw_zip(packed_member("a"))
    expected = {"a": TEXT}
    for at in range(len(data)):
        try:
            found = contents(write(data[:at] + data[at + 1 :]))
        except DeviceCodeError:
            continue
        assert list(found.values()) in (list(expected.values()), [])


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_damage_raises_nothing_but_the_one_error(
    write: Write, damage: list[tuple[int, int]]
) -> None:
    broken = bytearray(raw_zip(member("a", TEXT[:99]), packed_member("b", TEXT)))
    for at, value in damage:
        broken[at % len(broken)] = value
    try:
        found = contents(write(bytes(broken)))
    except DeviceCodeError:
        return
    assert set(found.values()) <= {TEXT, TEXT[:99], b""}


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.whl"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/null")):
        with pytest.raises((DeviceCodeError, IsADirectoryError)):
            WheelReader(path)
    with pytest.raises(FileNotFoundError):
        WheelReader(tmp_path / "missing.whl")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left_open(write: Write) -> None:
    good, before = builders.wheel({"a": TEXT}), descriptors()
    for _ in range(20):
        contents(write(good))
        refused(write(b"no archive"))
        refused(write(raw_zip(member("../x"))))
    assert descriptors() == before


# --- bombs


def test_a_bomb_is_refused_quickly_and_in_little_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.whl"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = builders.Elf().build()
    packed = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    packed += (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)) * 1024
    packed += packer.flush()
    size, crc = len(head) + (1 << 30), 0
    bomb.write_bytes(raw_zip(RawMember("a.so", packed, size, crc, 8)))
    liar = tmp_path / "liar.whl"
    liar.write_bytes(raw_zip(RawMember("a.so", packed, 1 << 20, crc, 8)))
    script = textwrap.dedent(
        """
        import re, sys, time
        from pathlib import Path
        from legacy_cuda.devicecode import DeviceCodeError, scan_wheel

        for name, message in ((sys.argv[1], "zip bomb"), (sys.argv[2], "longer than it says")):
            start = time.process_time()
            try:
                scan_wheel(Path(name))
            except DeviceCodeError as error:
                assert message in str(error), error
            else:
                raise SystemExit("the bomb was taken")
            assert time.process_time() - start < 1
        peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
        assert peak < 100 << 10, f"{peak} KiB"
        """
    )
    command = [sys.executable, "-c", script, str(bomb), str(liar)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_compresses_well_is_no_bomb(write: Write) -> None:
    zeros = builders.Elf([builders.Sec(".data", bytes(50 << 20))]).build()
    start = time.process_time()
    (found,) = scan_wheel(write(builders.wheel({"a.so": zeros})))
    assert found.size == len(zeros)
    assert time.process_time() - start < 5
