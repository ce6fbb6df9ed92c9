"""Finding fat binary containers in a stream and reading their entries and payloads."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from itertools import pairwise

import builders
import lz4.block
import pytest
import zstandard
from builders import container, entry
from hypothesis import example, given, settings
from hypothesis import strategies as st

from legacy_cuda.devicecode import Container, ContainerScanner, DeviceCodeError, Entry
from legacy_cuda.devicecode.fatbin import payload

TB = 1 << 40


def scan(data: bytes, step: int | None = None) -> list[Container]:
    """Scan in pieces of ``step`` bytes, seeking to what is wanted."""
    scanner = ContainerScanner()
    while piece := data[scanner.wanted :][:step]:
        scanner.feed(scanner.wanted, piece)
    return scanner.finish(len(data))


def outcome(data: bytes, step: int | None = None) -> list[Container] | None:
    try:
        return scan(data, step)
    except DeviceCodeError:
        return None


def only(data: bytes) -> Entry:
    (found,) = scan(data)
    (single,) = found.entries
    return single


def labels(data: bytes) -> list[list[str]]:
    return [[item.label for item in found.entries] for found in scan(data)]


# --- reading entries


def test_reads_every_field() -> None:
    data = container(
        entry(builders.CUBIN, 35, b"\1" * 100),
        entry(builders.PTX, 52, b"\2" * 33, isa=(7, 4), header_size=72),
        entry(builders.LTO, 80, b""),
        entry(64, 90, b"\3"),
    )
    (found,) = scan(b"\0" * 5 + data + b"\0" * 3)
    assert (found.offset, found.size) == (5, len(data))
    assert [item.kind for item in found.entries] == ["cubin", "ptx", "lto", "other"]
    assert [str(item.capability) for item in found.entries] == ["3.5", "5.2", "8.0", "9.0"]
    assert [item.size for item in found.entries] == [100, 33, 0, 1]
    assert found.entries[0].offset == 5 + 16 + 64
    assert found.entries[1].offset == 5 + 16 + 64 + 100 + 72
    assert [item.label for item in found.entries] == [
        "sm_35",
        "compute_52@7.4",
        "lto_80",
        "other_90",
    ]
    assert [str(item.target) if item.target else None for item in found.entries] == [
        "sm_35",
        "compute_52",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("flags", "label"),
    [
        (0, "sm_90"),
        (builders.ARCH_SPECIFIC, "sm_90a"),
        (builders.FAMILY_SPECIFIC, "sm_90f"),
        (builders.ARCH_SPECIFIC | builders.FAMILY_SPECIFIC, "sm_90a"),
        (0x11, "sm_90"),
    ],
)
def test_variants(flags: int, label: str) -> None:
    assert only(container(entry(number=90, flags=flags))).label == label


def test_containers_of_one_file_are_found_in_order() -> None:
    one, two = container(entry(number=50)), container(entry(number=61), entry(number=70))
    assert labels(one + two + b"xyz" + one) == [["sm_50"], ["sm_61", "sm_70"], ["sm_50"]]


def test_no_container() -> None:
    assert scan(b"") == []
    assert scan(builders.noise(10_000)) == []


def test_a_container_inside_a_payload_is_not_another_one() -> None:
    inner = container(entry(number=50))
    assert labels(container(entry(number=61, payload=inner))) == [["sm_61"]]


# --- what only looks like a container


@pytest.mark.parametrize(
    "fake",
    [
        builders.FATBIN_MAGIC,
        builders.FATBIN_MAGIC * 20,
        container(),
        container(b"\0" * 64),
        container(entry(version=0x0102)),
        container(entry(number=0)),
        container(entry(number=1000)),
        container(entry(size=65)),
        container(entry(), size=2 * TB),
        container(entry(compressed_size=65)),
        builders.FATBIN_MAGIC.replace(b"\x01\x00", b"\x02\x00") + container(entry())[8:],
    ],
)
def test_magic_by_chance_is_ignored(fake: bytes) -> None:
    real = container(entry(number=61))
    assert labels(fake + real) == [["sm_61"]]
    assert labels(real + fake) == [["sm_61"]]


def test_a_container_right_behind_half_a_magic_is_found() -> None:
    real = container(entry(number=61))
    for cut in range(1, 8):
        for step in (None, 1, 7):
            found = scan(builders.FATBIN_MAGIC[:cut] + real, step)
            assert [item.offset for item in found] == [cut]


# --- any way of chopping, any way of skipping

entries = st.builds(
    entry,
    st.sampled_from([builders.PTX, builders.CUBIN, builders.LTO, 16]),
    st.sampled_from([35, 61, 90, 120]),
    st.binary(max_size=150),
    flags=st.sampled_from([0, builders.LZ4, builders.ZSTD, builders.ARCH_SPECIFIC]),
    header_size=st.sampled_from([64, 72, 100]),
)
containers = st.lists(entries, min_size=1, max_size=3).map(lambda items: container(*items))
fillers = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 16).map(lambda size: container()[:size]),
    st.just(builders.FATBIN_MAGIC),
    st.just(b"\0" * 200),
)
files = st.lists(st.one_of(containers, fillers), max_size=6).map(b"".join)
chops = st.lists(st.integers(0, 2000), max_size=20)


def pieces(data: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [(start, data[start:end]) for start, end in pairwise(edges)]


def chopped(data: bytes, cuts: list[int], skip: bool) -> list[Container] | None:
    scanner = ContainerScanner()
    try:
        for start, piece in pieces(data, cuts):
            if skip:
                if start + len(piece) <= scanner.wanted:
                    continue
                unread = max(0, scanner.wanted - start)
                start, piece = start + unread, piece[unread:]
            assert scanner.wanted <= start + len(piece)
            scanner.feed(start, piece)
        return scanner.finish(len(data))
    except DeviceCodeError:
        return None


@given(files, chops, st.booleans())
@example(container(entry()) * 2, list(range(500)), True)
@example(container(entry()) * 2, list(range(500)), False)
def test_chopping_changes_nothing(data: bytes, cuts: list[int], skip: bool) -> None:
    whole = outcome(data)
    assert chopped(data, cuts, skip) == whole
    assert outcome(data, 1) == whole


@given(st.lists(st.tuples(st.binary(max_size=40), containers), max_size=5), st.binary(max_size=40))
def test_everything_that_was_built_is_found(parts: list[tuple[bytes, bytes]], rest: bytes) -> None:
    data = b"".join(filler + real for filler, real in parts) + rest
    at, expected = 0, []
    for filler, real in parts:
        expected.append((at + len(filler), len(real)))
        at += len(filler) + len(real)
    assert [(found.offset, found.size) for found in scan(data)] == expected


@given(files, st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=8), chops)
def test_damage_raises_nothing_but_the_one_error(
    data: bytes, damage: list[tuple[int, int]], cuts: list[int]
) -> None:
    broken = bytearray(data)
    for at, value in damage:
        if at < len(broken):
            broken[at] = value
    whole = outcome(bytes(broken))
    assert chopped(bytes(broken), cuts, True) == whole
    for found in whole or []:
        assert found.offset + found.size <= len(broken)
        for item in found.entries:
            assert found.offset < item.offset
            assert item.offset + item.size <= found.offset + found.size


def test_payloads_are_passed_over() -> None:
    data = container(entry(payload=bytes(1 << 20)), entry(number=70, payload=bytes(1 << 20)))
    scanner = ContainerScanner()
    read = 0
    while piece := data[scanner.wanted :][:256]:
        scanner.feed(scanner.wanted, piece)
        read += len(piece)
    assert [len(found.entries) for found in scanner.finish(len(data))] == [2]
    assert read <= 1024


def test_bytes_left_out_are_refused() -> None:
    scanner = ContainerScanner()
    scanner.feed(0, b"\0" * 10)
    with pytest.raises(ValueError, match="left out"):
        scanner.feed(11, b"\0")


def test_position_never_goes_back_and_reaches_the_end() -> None:
    data = b"\0" * 100 + container(entry(), entry()) + b"\0" * 100
    scanner = ContainerScanner()
    before = 0
    for at in range(len(data)):
        scanner.feed(at, data[at : at + 1])
        assert before <= scanner.position <= scanner.wanted
        before = scanner.position
    assert scanner.position == len(data)


# --- stubs

EMPTY_PTX = b".version 8.5\n.target sm_61\n.address_size 64\n"
EMPTY_CUBIN = builders.Elf([builders.Sec(".debug_frame", b"x")], machine=190, osabi=0x33).build()


def zipped(kind: int, code: bytes) -> bytes:
    data = zstandard.ZstdCompressor().compress(code)
    return entry(
        kind,
        payload=data,
        flags=builders.ZSTD,
        compressed_size=len(data),
        uncompressed_size=len(code),
    )


@pytest.mark.parametrize(
    ("data", "stub"),
    [
        (container(entry(builders.PTX, payload=EMPTY_PTX)), True),
        (container(entry(payload=EMPTY_CUBIN)), True),
        (container(entry(payload=EMPTY_CUBIN), zipped(builders.PTX, EMPTY_PTX)), True),
        (container(entry(payload=EMPTY_CUBIN), zipped(builders.PTX, builders.ptx())), False),
        (container(entry(payload=EMPTY_CUBIN), entry(payload=builders.cubin(61))), False),
        (container(entry(builders.PTX, payload=EMPTY_PTX + b".func f() {}")), False),
        (container(entry(builders.LTO, payload=EMPTY_PTX)), False),
        (container(entry(builders.PTX, payload=b"packed in some unknown way")), False),
        (container(entry(builders.PTX, payload=b"\1" * 50, flags=builders.LZ4)), False),
        (container(entry(payload=b"")), False),
        (container(entry(builders.PTX, payload=EMPTY_PTX + b" " * (1 << 20))), False),
        (container(*[zipped(builders.PTX, EMPTY_PTX + b" " * (1 << 16))] * 99), False),
    ],
)
def test_stub(data: bytes, stub: bool) -> None:
    for step in (None, 100, 1 << 12):
        (found,) = scan(b"\0" * 9 + data + b"\0" * 9, step)
        assert found.stub is stub


def test_looking_for_stubs_cannot_be_made_expensive() -> None:
    bomb = container(*[zipped(builders.PTX, EMPTY_PTX + bytes(1 << 20))] * 150)
    assert len(bomb) <= 1 << 15
    start = time.process_time()
    assert len(scan(bomb * 100, 1 << 20)) == 100
    assert time.process_time() - start < 5


# --- lies


def test_truncated_anywhere_behind_the_first_header() -> None:
    data = container(entry(), entry(builders.PTX, 70, b"\1" * 10, header_size=80))
    for size in range(len(data)):
        for step in (None, 1):
            if size < 16 + 64:
                assert scan(data[:size], step) == []
            else:
                with pytest.raises(DeviceCodeError):
                    scan(data[:size], step)


@pytest.mark.parametrize(
    "second",
    [
        entry(size=65),
        entry(size=63),
        entry(size=(1 << 64) - 1),
        entry(size=(1 << 64) - 64),
        entry(header_size=63 + 64)[:64] + b"\0" * 64,
        entry(version=0),
        entry(number=5),
        entry(number=0xFFFFFFFF),
        entry(compressed_size=0xFFFFFFFF),
        bytes(128),
        bytes(63),
        b"\0",
    ],
)
def test_a_bad_entry_behind_a_good_one_is_an_error(second: bytes) -> None:
    data = container(entry(), second)
    for step in (None, 1, 13):
        with pytest.raises(DeviceCodeError):
            scan(data + bytes(200), step)


def test_an_entry_header_of_zero_bytes_does_not_hang() -> None:
    data = bytearray(container(entry(), entry()))
    data[16 + 128 + 4 : 16 + 128 + 8] = bytes(4)
    with pytest.raises(DeviceCodeError):
        scan(bytes(data))


def test_a_container_that_reaches_beyond_the_file() -> None:
    data = container(entry(size=TB - 64), size=TB)
    with pytest.raises(DeviceCodeError, match="the file ends at"):
        scan(data)


def test_endless_entries_are_refused_before_memory_runs_out() -> None:
    many = entry(payload=b"") * 4096
    scanner = ContainerScanner()
    scanner.feed(0, builders.FATBIN_MAGIC + (1 << 39).to_bytes(8, "little"))
    with pytest.raises(DeviceCodeError, match="more than"):
        for _ in range(100):
            scanner.feed(scanner.wanted, many)


def test_a_file_of_nothing_but_magic_is_read_in_linear_time() -> None:
    data = builders.FATBIN_MAGIC * (1 << 16)
    start = time.process_time()
    assert scan(data, 4096) == []
    assert time.process_time() - start < 5


# --- payloads


def packed(code: bytes, compression: str, **lies: int) -> tuple[Entry, bytes]:
    if compression == "lz4":
        data, flags = lz4.block.compress(code, store_size=False), builders.LZ4
    elif compression == "zstd":
        data, flags = zstandard.ZstdCompressor().compress(code), builders.ZSTD
    else:
        data, flags = code, 0
    fields = {"compressed_size": len(data), "uncompressed_size": len(code)} if flags else {}
    stored = data + bytes(-len(data) % 8)
    if not flags:
        stored = data
    built = container(entry(payload=stored, flags=flags, **{**fields, **lies}))
    single = only(built)
    return single, built[single.offset : single.offset + single.size]


@given(st.binary(max_size=3000), st.sampled_from(["", "lz4", "zstd"]))
def test_payload_round_trips(code: bytes, compression: str) -> None:
    single, stored = packed(code, compression)
    assert single.compression == compression
    assert payload(single, stored) == code


def test_zstd_frame_without_a_size_of_its_own() -> None:
    code = b"kernel" * 1000
    data = zstandard.ZstdCompressor(write_content_size=False).compress(code)
    for claimed, fine in ((len(code), True), (len(code) - 1, False), (len(code) + 1, False)):
        single = only(
            container(entry(payload=data, flags=builders.ZSTD, uncompressed_size=claimed))
        )
        if fine:
            assert payload(single, data) == code
        else:
            with pytest.raises(DeviceCodeError):
                payload(single, data)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("claim", [0, 1, 5999, 6001, 1 << 29, (1 << 30) + 1, TB, (1 << 64) - 1])
def test_wrong_uncompressed_size(compression: str, claim: int) -> None:
    single, stored = packed(b"kernel" * 1000, compression, uncompressed_size=claim)
    with pytest.raises(DeviceCodeError):
        payload(single, stored)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_limit(compression: str) -> None:
    single, stored = packed(bytes(1000), compression)
    assert payload(single, stored, limit=1000) == bytes(1000)
    with pytest.raises(DeviceCodeError, match="claims 1000 bytes"):
        payload(single, stored, limit=999)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_truncated_payload(compression: str) -> None:
    single, stored = packed(builders.noise(200) + b"a" * 200, compression)
    for size in range(single.compressed_size):
        with pytest.raises(DeviceCodeError):
            payload(single, stored[:size])


@given(st.sampled_from(["lz4", "zstd"]), st.binary(max_size=300), st.integers(0, 5000))
@settings(max_examples=200)
def test_garbage_payload_raises_nothing_but_the_one_error(
    compression: str, data: bytes, claim: int
) -> None:
    flags = builders.LZ4 if compression == "lz4" else builders.ZSTD
    for body in (data, b"\x28\xb5\x2f\xfd" + data):
        single = only(container(entry(payload=body, flags=flags, uncompressed_size=claim)))
        with suppress(DeviceCodeError):
            assert len(payload(single, body)) == claim


def test_bombs_take_no_memory() -> None:
    """A process that may not use more than 1 GiB refuses payloads that claim or hold far more."""
    script = textwrap.dedent(
        """
        import re, resource
        from pathlib import Path
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        import zstandard
        from legacy_cuda.capability import Capability
        from legacy_cuda.devicecode import DeviceCodeError, Entry
        from legacy_cuda.devicecode.fatbin import payload

        packer = zstandard.ZstdCompressor().compressobj()  # states no size
        frame = b"".join(packer.compress(bytes(1 << 20)) for _ in range(512)) + packer.flush()
        zeros = zstandard.ZstdCompressor().compress(bytes(1 << 26))
        header = b"\\x28\\xb5\\x2f\\xfd\\xe0"  # a frame whose size stands in 8 bytes
        liar = header + (1 << 40).to_bytes(8, "little") + b"\\x01\\x00\\x00"
        cases = [("lz4", b"\\x1f" * 99, 1 << 30), ("lz4", b"\\x1f" * 99, 1 << 40)]
        cases += [("zstd", liar, size) for size in (0, 99, 1 << 20, 1 << 40)]
        cases += [("zstd", frame, size) for size in (0, 99, 1 << 20, 1 << 40)]
        cases += [("zstd", zeros, size) for size in (0, 99, 1 << 20, 1 << 40)]
        for compression, data, size in cases:
            item = Entry("cubin", Capability(6, 1), "", 0, len(data), compression, len(data), size)
            try:
                payload(item, data)
            except DeviceCodeError as error:
                assert not isinstance(error.__cause__, MemoryError), (compression, size)
            else:
                raise SystemExit(f"{compression} {size} was taken")
        peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
        assert peak < 300 << 10, f"{peak} KiB"
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_magic_that_begins_inside_a_container_is_not_another_one() -> None:
    """Found by fuzzing: a piece ends with the container, and with the first bytes of a magic."""
    start = container(entry(payload=b"\xaa" * 64))[:8]
    inside = container(entry(payload=b"\xaa" * 62 + start[:2]))
    data = inside + start[2:] + container(entry())[8:] + bytes(100)
    whole = ContainerScanner()
    whole.feed(0, data)
    pieces = ContainerScanner()
    pieces.feed(0, data[: len(inside)])
    pieces.feed(len(inside), data[len(inside) :])
    assert pieces.finish(len(data)) == whole.finish(len(data))
    assert len(whole.finish(len(data))) == 1
