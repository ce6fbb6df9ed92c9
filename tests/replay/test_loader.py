"""Does the driver load and run exactly what the audit says it does? Needs a GPU.

Fat binaries are built field by field around real PTX and cubins (assembled by the ptxas at hand),
judged by the audit for the GPU's capability, and given to the driver. Runs on any NVIDIA GPU; what
it shows, it shows for that GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import struct
import subprocess
from pathlib import Path

import builders
import pytest

from legacy_cuda import audit, catalog
from legacy_cuda.capability import Capability
from legacy_cuda.devicecode import scan_file
from legacy_cuda.devicecode.scan import FileCode

ANSWER = 42
REFUSED = {
    200: "invalid image",
    209: "no binary for this GPU",
    218: "invalid PTX",
    222: "PTX of an unsupported version",
}


class Driver:
    """The driver API, as far as loading and running one kernel goes."""

    def __init__(self) -> None:
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)
        major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(major), 75, 0)
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), 76, 0)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.capability = Capability(major.value, minor.value)
        self.version = (version.value // 1000, version.value % 1000 // 10)

    def call(self, name: str, *arguments: object) -> None:
        code = getattr(self.cuda, name)(*arguments)
        assert code == 0, f"{name} answered {code}"

    def runs(self, image: bytes) -> bool:
        """Whether the image loads and its kernel writes the right answer."""
        module = ctypes.c_void_p()
        code = self.cuda.cuModuleLoadData(ctypes.byref(module), image)
        if code:
            assert code in REFUSED, f"cuModuleLoadData answered {code}"
            return False
        function, pointer = ctypes.c_void_p(), ctypes.c_uint64()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, b"kernel")
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), 4)
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(pointer))
        self.call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, parameters, None)
        out = ctypes.c_uint32()
        self.call("cuMemcpyDtoH_v2", ctypes.byref(out), pointer, 4)
        self.call("cuMemFree_v2", pointer)
        self.call("cuModuleUnload", module)
        assert out.value == ANSWER
        return True


@pytest.fixture(scope="module")
def driver() -> Driver:
    try:
        return Driver()
    except OSError as error:
        pytest.skip(f"skipped: no NVIDIA driver here ({error})")


def ptx(target: str, isa: str) -> bytes:
    return (
        f".version {isa}\n.target {target}\n.address_size 64\n"
        ".visible .entry kernel(.param .u64 out)\n{\n.reg .u64 %rd<3>;\n"
        "ld.param.u64 %rd1, [out];\ncvta.to.global.u64 %rd2, %rd1;\n"
        f"st.global.u32 [%rd2], {ANSWER};\nret;\n}}\n"
    ).encode()


def find_ptxas() -> str | None:
    """The ptxas of Triton's wheel, which knows old and new targets, or the one on PATH."""
    spec = importlib.util.find_spec("triton")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "backends/nvidia/bin/ptxas"
        if bundled.exists():
            return str(bundled)
    return shutil.which("ptxas")


def cubin(target: str, folder: Path) -> bytes:
    ptxas = find_ptxas()
    if ptxas is None:
        pytest.skip("skipped: no ptxas here to assemble a cubin")
    source, out = folder / f"{target}.ptx", folder / f"{target}.cubin"
    source.write_bytes(ptx(target, "8.7"))
    subprocess.run([ptxas, f"-arch={target}", source, "-o", out], check=True)
    return out.read_bytes()


def entry(label: str, folder: Path) -> bytes:
    """``sm_80`` or ``compute_61@6.0`` as an entry of a fat binary."""
    flags = 0x11  # 64-bit, Linux
    name, _, isa = label.partition("@")
    if name.endswith("a"):
        flags |= builders.ARCH_SPECIFIC
    number = int(name.partition("_")[2].rstrip("a"))
    if name.startswith("sm_"):
        code = cubin(name, folder)
        kind, version = builders.CUBIN, (1, 7)
    else:
        code = ptx(name.replace("compute_", "sm_"), isa) + b"\0"
        major, minor = isa.split(".")
        kind, version = builders.PTX, (int(major), int(minor))
    code += bytes(-len(code) % 8)
    made = bytearray(builders.entry(kind, number, code, flags=flags, isa=version, header_size=80))
    # Where compilers put the offset and the length of the compiler options, here none. A driver
    # that passes over a cubin and takes the PTX beside it (580.159 was seen to) follows it.
    struct.pack_into("<I", made, 20, 64)
    struct.pack_into("<II", made, 64, 72, 0)
    return bytes(made)


CASES = [
    "compute_50@4.3",
    "compute_61@6.0",
    "compute_70@6.0",
    "compute_61@8.7",
    "compute_61@9.9",
    "compute_90@8.0",
    "compute_90a@8.0",
    "compute_120@8.7",
    "sm_61",
    "sm_75",
    "sm_80",
    "sm_86",
    "sm_90",
    "sm_90a",
    "sm_100",
    "sm_61 sm_80",
    "sm_61 compute_61@6.0",
    "sm_80 sm_90",
    "sm_100 compute_61@9.9",
]


@pytest.mark.parametrize("case", CASES)
def test_the_driver_does_what_the_audit_says(case: str, driver: Driver, tmp_path: Path) -> None:
    image = builders.container(*(entry(label, tmp_path) for label in case.split()))
    file = tmp_path / "case.fatbin"
    file.write_bytes(image)
    code: FileCode = scan_file(file)
    verdict = audit.judge(audit.summarise([code]), driver.capability)
    expected = verdict.good
    if verdict.driver is not None:
        (needed,) = (item for item in catalog.branches() if item.branch == verdict.driver)
        expected = expected and driver.version >= needed.cuda
    ran = driver.runs(image)
    print(f"{case} on {driver.capability}: {verdict.outcome}, ran: {ran}")
    assert ran == expected


def test_the_container_we_describe_is_the_container_the_driver_reads(
    driver: Driver, tmp_path: Path
) -> None:
    """A wrong size in the header that the readers refuse is refused by the driver as well."""
    image = builders.container(entry("compute_50@4.3", tmp_path))
    assert driver.runs(image)
    broken = bytearray(image)
    struct.pack_into("<H", broken, 4, 7)  # the version, which has to be 1
    assert not driver.runs(bytes(broken))
