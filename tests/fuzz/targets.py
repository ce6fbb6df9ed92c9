"""What is fuzzed: one function per reader, its seeds, and what must hold for every input.

Everywhere, only the reader's own error may escape, and nothing is written outside the folder that
is unpacked to.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import builders
import machines
import model_files
import ptx_examples

from legacy_cuda.build import source
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.doctor import rules
from legacy_cuda.catalog.models import find_mix
from legacy_cuda.cli.doctor import document
from legacy_cuda.devicecode import (
    Container,
    ContainerScanner,
    DeviceCodeError,
    elf,
    ptx,
    scan_file,
    scan_wheel,
)
from legacy_cuda.devicecode.archive import WheelReader
from legacy_cuda.devicecode.fatbin import payload
from legacy_cuda.doctor import bundle, logs, redact
from legacy_cuda.doctor.diagnosis import diagnose, diagnose_log
from legacy_cuda.doctor.examine import PROBES
from legacy_cuda.doctor.facts import Fact, Facts, Service
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import apis
from legacy_cuda.errors import UserError
from legacy_cuda.planner import gguf, metadata, safetensors, shapes
from legacy_cuda.planner.model import ModelError
from legacy_cuda.planner.placement import Settings, place
from legacy_cuda.toolchain import deb
from legacy_cuda.triton_backend.legalize import LegalizeError, legalize

_SCRATCH = tempfile.TemporaryDirectory(prefix="legacy-cuda-fuzz-")


def _scratch(data: bytes) -> Path:
    path = Path(_SCRATCH.name, "input")
    path.write_bytes(data)
    return path


def fuzz_elf(data: bytes) -> None:
    """Headers, section tables and whole libraries; the stream finds what the file holds."""

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0 and offset + length <= len(data), "asked for bytes outside the file"
        return data[offset : offset + length]

    with suppress(DeviceCodeError):
        header = elf.parse_header(data[: elf.HEADER_SIZE])
        with suppress(DeviceCodeError):
            assert elf.cubin_capability(header).number >= 10
        for section in elf.read_sections(header, read, len(data)):
            assert section.offset + section.size <= len(data)
    try:
        on_disk = [scan_file(_scratch(data), "lib.so")]
    except DeviceCodeError as error:
        on_disk = [] if "neither" in str(error) else None
    if len(data) >= 64:
        try:
            streamed = scan_wheel(_scratch(builders.wheel({"lib.so": data}, 0)), threads=1)
        except DeviceCodeError:
            streamed = None
        assert streamed == on_disk, "the stream and the file disagree"


def _scan(data: bytes, steps: bytes) -> list[Container] | None:
    """Feed the data in pieces of these sizes, over and over, seeking to what is wanted."""
    scanner = ContainerScanner()
    turn = 0
    try:
        while scanner.wanted < len(data):
            step = 1 + steps[turn % len(steps)] if steps else len(data)
            before = scanner.wanted
            scanner.feed(before, data[before : before + step])
            assert scanner.wanted > before, "no progress"
            turn += 1
        return scanner.finish(len(data))
    except DeviceCodeError:
        return None


def fuzz_fatbin(data: bytes) -> None:
    """Containers and payloads; pieces of any size find what the whole does.

    The first byte says how many of the following are the sizes of the pieces.
    """
    count = data[0] % 8 if data else 0
    steps, data = data[1 : 1 + count], data[1 + count :]
    whole = _scan(data, b"")
    assert _scan(data, steps or b"\0") == whole, "pieces and the whole disagree"
    for found in whole or []:
        assert found.offset + found.size <= len(data)
        for item in found.entries:
            assert found.offset < item.offset
            assert item.offset + item.size <= found.offset + found.size
            with suppress(DeviceCodeError):
                stored = data[item.offset : item.offset + item.size]
                code = payload(item, stored, limit=1 << 24)
                assert not item.compression or len(code) == item.uncompressed_size


def _read_zip(data: bytes) -> None:
    path = _scratch(data)
    with suppress(DeviceCodeError):
        scan_wheel(path, threads=1)
    with suppress(DeviceCodeError), WheelReader(path) as wheel:
        for member in wheel.members[:16]:
            with suppress(DeviceCodeError):
                head = wheel.head(member, 64)
                content = b"".join(wheel.stream(member))
                assert content.startswith(head), "the head is not the beginning"
                assert len(content) == member.size
                assert zlib.crc32(content) == member.crc
                try:
                    with zipfile.ZipFile(io.BytesIO(data)) as archive:
                        info = next(
                            info
                            for info in archive.infolist()
                            if not info.is_dir()
                            and (info.filename, info.header_offset)
                            == (member.name, member.header_offset)
                        )
                        expected = archive.read(info)
                except Exception:  # zipfile refuses more (it compares the local header's name)
                    continue
                assert content == expected, "zipfile reads another content"


def fuzz_zip(data: bytes) -> None:
    """Whole wheels. An input that is none is taken for a member's deflate stream and wrapped."""
    if b"PK\5\6" in data:
        _read_zip(data)
        return
    packed = data
    content = b""
    with suppress(zlib.error):
        content = zlib.decompressobj(-15).decompress(packed, 1 << 22)
    name = "a.ptx" if content[:2] == b"//" else "a.so"
    member = builders.RawMember(name, packed, len(content), zlib.crc32(content), 8)
    _read_zip(builders.raw_zip(member))


def fuzz_ptx(data: bytes) -> None:
    """Heads of PTX modules."""
    looks = ptx.looks_like_ptx(data)
    try:
        header = ptx.parse_header(data)
    except DeviceCodeError:
        return
    assert looks
    assert header.target.kind == "ptx"
    assert ptx.parse_header(b"// comment\n/* another */\n" + data[: ptx.HEAD - 25]) == header


def fuzz_legalize(data: bytes) -> None:
    """PTX for each legacy capability: twice is once, and nothing happens from 7.0 on.

    The first byte says which capability.
    """
    targets = ((3, 5), (3, 7), (5, 2), (5, 3), (6, 0), (6, 1))
    capability = targets[data[0] % len(targets)] if data else targets[0]
    text = data[1:].decode("utf-8", "replace")
    assert legalize(text, (7, 0)) == text
    try:
        legal = legalize(text, capability, (7, 8))
    except LegalizeError:
        return
    assert legalize(legal, capability, (7, 8)) == legal, "twice is not once"


def _unpacked(unpack: Callable[[Path, Path], object], data: bytes) -> None:
    """Unpack into a folder: what it comes to is files, folders and links that stay below it."""
    outside = Path(_SCRATCH.name, "outside")
    shutil.rmtree(outside, ignore_errors=True)
    root = outside / "root"
    root.mkdir(parents=True)
    unpack(_scratch(data), root)
    assert [path.name for path in outside.iterdir()] == ["root"], "something lies outside"
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_symlink():
                assert not path.readlink().is_absolute(), "a link to anywhere"
                target = os.path.normpath(path.parent / path.readlink())
                assert target == str(root) or target.startswith(f"{root}/"), "a link leads out"
            else:
                assert path.is_file()
    shutil.rmtree(outside)


def fuzz_deb(data: bytes) -> None:
    """Packages of Debian. An input that is none is taken for the tar in one."""
    if not data.startswith(b"!<arch>"):
        packed = lzma.compress(data, preset=0)
        head = b"%-16s%-12d%-6d%-6d%-8s%-10d`\n"
        data = b"!<arch>\n" + head % (b"data.tar.xz", 0, 0, 0, b"100644", len(packed)) + packed

    def unpack(path: Path, root: Path) -> None:
        with suppress(deb.DebError):
            deb.unpack(path, root, lambda name: True)

    _unpacked(unpack, data)


def fuzz_sdist(data: bytes) -> None:
    """Source distributions. An input that is none is taken for the tar in one."""
    if not data.startswith(b"\x1f\x8b"):
        data = gzip.compress(data, 1)
    nothing = source.Changes((), (), {})

    def unpack(path: Path, root: Path) -> None:
        with suppress(source.SourceError):
            source.prepare(path, nothing, root / "source")

    _unpacked(unpack, data)


def _tars() -> list[bytes]:
    """One with files, a folder and links; one that climbs; one with long names (PAX)."""
    found = []
    for form, names in (
        (tarfile.GNU_FORMAT, ("a-1/b.py", "a-1/c/d.sh")),
        (tarfile.PAX_FORMAT, ("a-1/" + "long/" * 40 + "b.py", "a-1/\u00e9")),
        (tarfile.USTAR_FORMAT, ("a-1/../../x", "/etc/x")),
    ):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for name in names:
                item = tarfile.TarInfo(name)
                item.size = 5
                archive.addfile(item, io.BytesIO(b"x = 1"))
            if form == tarfile.GNU_FORMAT:
                for kind, text in (
                    (tarfile.SYMTYPE, "../c"),
                    (tarfile.LNKTYPE, "a-1/b.py"),
                    (tarfile.DIRTYPE, ""),
                ):
                    item = tarfile.TarInfo(f"a-1/e{kind.decode()}")
                    item.type, item.linkname = kind, text
                    archive.addfile(item)
        found.append(out.getvalue()[:6144])
    return found


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def _containers() -> list[bytes]:
    import lz4.block
    import zstandard

    code = builders.ptx() * 3
    packed = [
        (builders.LZ4, lz4.block.compress(code, store_size=False)),
        (builders.ZSTD, zstandard.ZstdCompressor().compress(code)),
        (builders.ZSTD, zstandard.ZstdCompressor(write_content_size=False).compress(code)),
    ]
    small = builders.entry(payload=builders.cubin(61, size=8))
    return [
        builders.container(builders.entry(payload=b"")),
        builders.container(small, builders.entry(builders.PTX, 70, builders.ptx())),
        *(
            builders.container(
                builders.entry(
                    builders.PTX,
                    payload=data,
                    flags=flags,
                    compressed_size=len(data),
                    uncompressed_size=len(code),
                )
            )
            for flags, data in packed
        ),
    ]


def _elves() -> list[bytes]:
    fat = builders.container(builders.entry(payload=b"code"))
    sections = [
        builders.Sec(".nv_fatbin", fat),
        builders.Sec("__nv_relfatbin", fat),
        builders.Sec(".bss", b"x", 8),
    ]
    return [
        builders.cubin(61, size=8),
        builders.cubin(90, new_abi=True, size=8),
        *(
            builders.Elf(sections, wide=wide, extended=extended, table_first=first).build()
            for wide in (True, False)
            for extended in (True, False)
            for first in (True, False)
        ),
    ]


def _zips() -> list[bytes]:
    members = {"a.so": _elves()[2], "b.ptx": builders.ptx(), "c/d.py": b"x = 1\n" * 20}
    return [
        builders.wheel({}),
        builders.wheel(members),
        builders.wheel(members, zipfile.ZIP_STORED),
        b"prefix" + builders.wheel({"a.cubin": builders.cubin(61, size=8)}),
        *(_deflated(data) for data in members.values()),
    ]


def _ptx() -> list[bytes]:
    return [
        builders.ptx(),
        builders.ptx("sm_90a", "8.0"),
        b"/* a */ .version 7.4 // b\n.target sm_35, debug\n",
    ]


def _legalizable() -> list[bytes]:
    statements = [text for row in ptx_examples.EXAMPLES.values() for text in row]
    return [
        bytes([number % 6]) + f"@%p1 {text} // x\nL{number}: ret;".encode()
        for number, text in enumerate([*statements, *ptx_examples.REFUSED])
    ] + [b"\5" + ptx_examples.module(ptx_examples.kernel("k", statements[0])).encode()]


def fuzz_gguf(data: bytes) -> None:
    """The header of a model file, and the model and plan that come of it."""
    with suppress(ModelError):
        header = gguf.read_file(io.BytesIO(data), len(data))
        model = metadata.model_of(header, "input")
        assert model.bytes <= len(data)
        if model.shape.layers <= 8 and len(model.tensors) <= 64:
            found = place(model, Settings(context=256), [1 << 30], [Capability(6, 1)])
            assert found.gpus[0].weights >= 0


def fuzz_safetensors(data: bytes) -> None:
    """The header of a file of safetensors, and a config.json."""
    with suppress(ModelError):
        safetensors.header_values(data, len(data))
    with suppress(ModelError):
        shapes.model_of(safetensors.shape_of_config(safetensors._json(data, "it"), "x"), _MIX)


def _models() -> list[bytes]:
    return [model_files.smallest(), model_files.gguf({}, [])]


def _folders() -> list[bytes]:
    return [
        model_files.safetensors({"a": ("F16", (4, 4)), "b": ("U8", (3,))}),
        b'{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 9, '
        b'"num_attention_heads": 4, "intermediate_size": 128}',
    ]


_MIX = find_mix("Q4_K_M")


_TREE = (
    *("/etc/systemd/system/ai.service", "/etc/systemd/system/ai.service.d/a.conf"),
    *("/etc/ai.env", "/etc/docker/daemon.json", "/etc/cdi/nvidia.yaml", "/etc/os-release"),
    *("/etc/nixos/configuration.nix", "/etc/passwd", "/etc/hostname", "/etc/ld.so.conf.d/x.conf"),
    *("/proc/cpuinfo", "/proc/stat", "/proc/driver/nvidia/version", "/var/log/dmesg"),
    *("/proc/sys/kernel/osrelease", "/sys/module/nvidia/version", "/usr/include/features.h"),
    *("/opt/cuda/version.json", "/opt/cuda/include/crt/math_functions.h"),
    *("/opt/ai/lib/python3.12/site-packages/torch/version.py",),
    *("/opt/ai/lib/python3.12/site-packages/torch/lib/libtorch_cuda.so",),
    *(
        f"/sys/bus/pci/devices/0000:3b:00.0/{name}"
        for name in ("vendor", "device", "class", "resource", "current_link_width")
    ),
    *("/etc/nvidia-container-runtime/config.toml", "/proc/4711/cmdline"),
    "/sys/kernel/iommu_groups/7/type",
)


@cache
def _machine() -> machines.Machine:
    machine = machines.Machine(Path(_SCRATCH.name, "machine"), "p40")
    for path in ("opt/cuda/bin/nvcc", "opt/ai/lib/python3.12/site-packages/torch-2.9.dist-info/x"):
        machine.write(path, "")
    return machine


def fuzz_machine(data: bytes) -> None:
    """The first byte chooses a file of a machine, the rest is what is in it. No probe raises, there
    is a diagnosis, and its document is JSON, redacted too."""
    machine = _machine()
    path = _TREE[data[0] % len(_TREE)] if data else _TREE[0]
    file = machine.root / path.lstrip("/")
    before = file.read_bytes() if file.is_file() else None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data[1:])
    try:
        seen = {name: probe(Place(machine.root)) for name, probe in PROBES.items()}
        found = Facts(machines.TODAY, **seen)
        diagnosis = diagnose(found)
        known = bundle.known(Place(machine.root), {})
        json.dumps(document(found, redact.diagnosis(diagnosis, known), None))
        assert diagnosis.verdict in ("errors", "warnings", "fine")
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)


def fuzz_answer(data: bytes) -> None:
    """What an engine answers is read or not; nothing is raised."""
    for engine in apis._PORTS:
        service = Service("a.service", engine, Fact((), "unit"), (), None)
        answer = apis._read(service, data, "x")
        assert answer is None or all(item.size > 0 for item in answer.models)


def _machines() -> list[bytes]:
    texts = {
        0: b"[Service]\nExecStart=/opt/ai/bin/vllm serve x --dtype bfloat16\n"
        b"EnvironmentFile=/etc/ai.env\nEnvironment='CUDA_VISIBLE_DEVICES=-1' \\\n A=b\n"
        b"PrivateDevices=yes\n",
        2: b"OLLAMA_HOST='127.0.0.1'\n#x\n",
        3: b'{"runtimes": {"nvidia": {"path": "x"}}}',
        4: b"kind: nvidia.com/gpu\n- hostPath: /lib/libcuda.so.570.1\n",
        6: b"nixpkgs.config.cudaSupport = true;\n",
        13: b"[ 5.0] NVRM: installed in this system is not supported by open\n",
        17: b'{"cuda": {"version": "12.8.1"}}',
        20: _elves()[2],
        26: b"[nvidia-container-cli]\nno-cgroups = true\n",
        27: b"/usr/bin/llama-server\0--port\08080\0",
        24: b"0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200\n" * 6,
    }
    return [bytes([number]) + text for number, text in texts.items()]


def fuzz_log(data: bytes) -> None:
    """A log of any bytes: findings, or that it is compressed."""
    with suppress(UserError):
        scan = logs.scan(logs.blocks(io.BytesIO(data)), [rule for rule in rules() if rule.patterns])
        diagnosis = diagnose_log(Facts(machines.TODAY), scan, "log")
        assert len(diagnosis.findings) == len(scan.hits)
        json.dumps(document(Facts(machines.TODAY), diagnosis, scan))
        redact.diagnosis(diagnosis, redact.Known(("host",), ("user",)))


def _logs() -> list[bytes]:
    return [
        b"a\nNVRM: GPU 0000:3b:00.0: RmInitAdapter failed! (0x24:0x72:1603)\n",
        "é\r\nCUDA error: device kernel image is invalid\r\n".encode("utf-16"),
        b"\x1b[31mgcc versions later than 11 are not supported!\x1b[0m unsupported GNU version! ",
        b"NVRM:  supported through the NVIDIA 580.xx Legacy drivers. 203.0.113.7 --api-key x\n",
    ]


@dataclass(frozen=True)
class Target:
    """A function to fuzz and the inputs to begin with."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()


TARGETS = {
    "elf": Target(fuzz_elf, _elves, (b"\x7fELF", b".nv_fatbin\0", b"__nv_relfatbin\0")),
    "fatbin": Target(
        fuzz_fatbin,
        lambda: [bytes(steps) + data for data in _containers() for steps in ([0], [2, 0, 70])],
        (builders.FATBIN_MAGIC, b"\x28\xb5\x2f\xfd", b"\x02\x00\x01\x01\x40\x00\x00\x00"),
    ),
    "zip": Target(fuzz_zip, _zips, (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7")),
    "ptx": Target(fuzz_ptx, _ptx, (b".version ", b".target ", b"sm_", b"//", b"/*", b"*/")),
    "gguf": Target(
        fuzz_gguf, _models, (b"GGUF\3\0\0\0", b".weight", b"blk.0.", b"general.architecture")
    ),
    "safetensors": Target(
        fuzz_safetensors, _folders, (b'"dtype"', b'"shape"', b'"data_offsets"', b"__metadata__")
    ),
    "deb": Target(fuzz_deb, _tars, (b"ustar", b"../", b"GNU.sparse", b"path=", b"linkpath=")),
    "sdist": Target(fuzz_sdist, _tars, (b"ustar", b"../", b"GNU.sparse", b"path=")),
    "doctor-log": Target(
        fuzz_log,
        _logs,
        tuple(
            pattern.text.encode()[:60]
            for rule in rules()
            for pattern in rule.patterns
            if '"' not in pattern.text
        ),
    ),
    "doctor-machine": Target(
        fuzz_machine,
        _machines,
        (
            b"[Service]",
            b"ExecStart=",
            b"Environment=",
            b"ollama",
            b"0x10de",
            b"libcuda.so.",
            b"flags :",
        ),
    ),
    "doctor-answer": Target(
        fuzz_answer,
        lambda: [
            b'{"models": [{"name": "a", "size": 5, "size_vram": 3}]}',
            b'vllm:num_preemptions_total{engine="0"} 4.0\n',
            b'{"status": "ok"}',
        ],
        (b'"models"', b'"size_vram"', b"vllm:num_preemptions"),
    ),
    "legalize": Target(
        fuzz_legalize,
        _legalizable,
        (b"@%p1 ", b"[%rd1+", b".L1::", b".acq_rel", b".bf16x2", b".f16", b"{%r1, ", b"cvt.rn."),
    ),
}
