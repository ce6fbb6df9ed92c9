"""The replay's shim against NVIDIA's own headers and runtimes: CUDA 11.8, 12.4 (the pinned
toolchains) and 13 (the nvcc on PATH, if it is one). No GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from legacy_cuda.replay import command, report
from legacy_cuda.replay.inside.settings import Settings
from legacy_cuda.replay.native import compiler
from legacy_cuda.replay.native.answers import Attribute

SHIM = compiler.SHIM.read_text(encoding="utf-8")
ROWS = re.findall(r"ROW\((\d+), (\w+), (\d), (-?\d+), (-?\d+), (-?\d+)\)", SHIM)
RELEASES = ("11.8", "12.4", "13")

# The shim's constants by the names that they have in the headers.
CONSTANTS = {
    "INVALID_VALUE": ("cudaErrorInvalidValue", "CUDA_ERROR_INVALID_VALUE"),
    "NO_SUCH_SYMBOL": ("cudaErrorSymbolNotFound", "CUDA_ERROR_NOT_FOUND"),
    "NOT_SUPPORTED": ("cudaErrorNotSupported", "CUDA_ERROR_NOT_SUPPORTED"),
    "SHARED_PER_BLOCK": ("cudaDevAttrMaxSharedMemoryPerBlock",),
    "THREADS_PER_MULTIPROCESSOR": ("cudaDevAttrMaxThreadsPerMultiProcessor",),
    "CAPABILITY_MAJOR": ("cudaDevAttrComputeCapabilityMajor",),
    "CAPABILITY_MINOR": ("cudaDevAttrComputeCapabilityMinor",),
    "SHARED_PER_MULTIPROCESSOR": ("cudaDevAttrMaxSharedMemoryPerMultiprocessor",),
    "SHARED_OPTIN": ("cudaDevAttrMaxSharedMemoryPerBlockOptin",),
    "BLOCKS_PER_MULTIPROCESSOR": ("cudaDevAttrMaxBlocksPerMultiprocessor",),
    "FUNCTION_SHARED_SIZE": ("CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES",),
    "FUNCTION_MAX_DYNAMIC_SHARED": (
        "cudaFuncAttributeMaxDynamicSharedMemorySize",
        "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES",
    ),
    "FUNCTION_FIRST_OF_CLUSTERS": (
        "CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET",
        "cudaFuncAttributeClusterDimMustBeSet",
    ),
    "FUNCTION_LAST_OF_CLUSTERS": (
        "CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE",
        "cudaFuncAttributeClusterSchedulingPolicyPreference",
    ),
    "LAUNCH_COOPERATIVE": ("cudaLaunchAttributeCooperative", "CU_LAUNCH_ATTRIBUTE_COOPERATIVE"),
    "LAUNCH_CLUSTER_DIMENSION": (
        "cudaLaunchAttributeClusterDimension",
        "CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION",
    ),
    "LAUNCH_PROGRAMMATIC_STREAM_SERIALIZATION": (
        "cudaLaunchAttributeProgrammaticStreamSerialization",
        "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION",
    ),
    "LAUNCH_PROGRAMMATIC_EVENT": (
        "cudaLaunchAttributeProgrammaticEvent",
        "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT",
    ),
    "LAUNCH_PREFERRED_CLUSTER_DIMENSION": (
        "cudaLaunchAttributePreferredClusterDimension",
        "CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION",
    ),
    "LAUNCH_COMPLETION_EVENT": (
        "cudaLaunchAttributeLaunchCompletionEvent",
        "CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT",
    ),
    "CUBLAS_ARCH_MISMATCH": ("CUBLAS_STATUS_ARCH_MISMATCH",),
    "COMPUTE_16F": ("CUBLAS_COMPUTE_16F",),
    "COMPUTE_16F_PEDANTIC": ("CUBLAS_COMPUTE_16F_PEDANTIC",),
    "DATA_16F": ("CUDA_R_16F",),
}
# The shim's structures by the names that they have in the headers: fields in their order.
STRUCTURES = {
    "struct extent": ("dim3", {"x": "x", "y": "y", "z": "z"}),
    "struct configuration": (
        "cudaLaunchConfig_t",
        {
            "grid": "gridDim", "block": "blockDim", "shared": "dynamicSmemBytes",
            "stream": "stream", "attributes": "attrs", "count": "numAttrs",
        },
    ),
    "struct driver_configuration": (
        "CUlaunchConfig",
        {
            "grid": "gridDimX", "block": "blockDimX", "shared": "sharedMemBytes",
            "stream": "hStream", "attributes": "attrs", "count": "numAttrs",
        },
    ),
    "struct attribute": (
        "cudaLaunchAttribute",
        {
            "id": "id", "value.number": "val.programmaticStreamSerializationAllowed",
            "value.extent.y": "val.clusterDim.y",
        },
    ),
    "struct function": (
        "struct cudaFuncAttributes",
        {
            "shared": "sharedSizeBytes", "threads": "maxThreadsPerBlock", "ptx": "ptxVersion",
            "binary": "binaryVersion",
        },
    ),
}  # fmt: skip
WHOLE = ("struct extent", "struct configuration", "struct driver_configuration", "struct attribute")
"""Structures that are declared to their end."""

NOT_IN = {  # functions that not every runtime has
    "11.8": {"cudaGetDeviceProperties_v2", "__cudaLaunchKernel", "__cudaLaunchKernel_ptsz"},
    "12.4": set(),
    "13": {"cudaGetDeviceProperties_v2", "cudaLaunchCooperativeKernelMultiDevice"},
}

PROGRAM = """
#include <cstdio>
__global__ void add(int *a) { a[threadIdx.x] += 1; }
int main() {
  cudaDeviceProp told;
  int code = cudaGetDeviceProperties(&told, 0);
  add<<<1, 32>>>(nullptr);
  int launched = cudaGetLastError();
  add<<<1, 32, 200000>>>(nullptr);
  std::printf("%d %d %d\\n", code, launched, cudaGetLastError());
}
"""


@pytest.fixture(scope="session")
def root() -> Callable[[str], Path]:
    """The folder of a toolkit: ``include``, ``lib64`` and ``bin`` are in it."""

    def root(release: str) -> Path:
        if release == "13":
            nvcc = shutil.which("nvcc")
            words = [nvcc or "false", "--dryrun", "-c", "x.cu"]
            said = subprocess.run(words, capture_output=True, text=True, check=False).stderr
            top = re.search(r"TOP=(.*)", said)
            path = Path(top[1]).resolve() if top else Path("none")
            if not (path / "lib64" / "libcudart.so.13").exists():
                pytest.skip("skipped: the nvcc on PATH is not of CUDA 13")
            return path
        done = subprocess.run(
            [sys.executable, "-m", "legacy_cuda", "toolchain", release, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Path(json.loads(done.stdout)["path"]) / "cuda"

    return root


def constants() -> dict[str, int]:
    """The shim's enumerators."""
    bodies = re.findall(r"enum \{(.*?)\};", SHIM, re.S)
    return {
        name: int(value) for body in bodies for name, value in re.findall(r"(\w+) = (\d+)", body)
    }


def functions() -> list[str]:
    """What the shim replaces."""
    start = SHIM.index("#define FUNCTIONS(F)")
    return re.findall(r"^    F\((\w+)\)", SHIM[start:], re.M)


@pytest.mark.parametrize("release", RELEASES)
def test_layouts_and_numbers_are_those_of_the_headers(
    release: str, root: Callable[[str], Path], tmp_path: Path
) -> None:
    include = root(release) / "include"
    column = RELEASES.index(release)
    names = ["driver_types.h", "cuda.h", "library_types.h"]
    names += [name for name in ["cublas_api.h"] if (include / name).is_file()]
    headers = {name: (include / name).read_text(errors="replace") for name in names}
    text = re.sub(r"/\*.*?\*/", "", "\n".join(headers.values()), flags=re.S)
    body = text[text.index("struct __device_builtin__ cudaDeviceProp") :]
    body = body[: body.index("};")]
    checks = ["offsetof(struct cudaDeviceProp, name) == 0"]
    checks.append("sizeof(((struct cudaDeviceProp *)0)->name) == NAME_SIZE")
    for number, field, size, *places in ROWS:
        at = int(places[column])
        assert (at >= 0) == bool(re.search(rf"\b{field}\b", body)), field
        if at >= 0:
            checks.append(f"offsetof(struct cudaDeviceProp, {field}) == {at}")
            checks.append(f"sizeof(((struct cudaDeviceProp *)0)->{field}) == {size}")
        assert int(number) in set(Attribute)
    for question in Attribute:
        name = f"CU_DEVICE_ATTRIBUTE_{question.name}"
        if re.search(rf"\b{name}\b", text):
            checks.append(f"{name} == {int(question)}")
    for name, value in constants().items():
        if name == "ATTRIBUTES":
            checks += [f"{value} > CU_DEVICE_ATTRIBUTE_MAX"]
            continue
        for theirs in CONSTANTS[name]:
            if re.search(rf"\b{theirs}\b", text):
                checks.append(f"{theirs} == {value}")
    assert release == "11.8" or len(checks) > 100
    start, end = SHIM.index("#define NAME_SIZE"), SHIM.index("/* ---", SHIM.index("#define NAME_S"))
    structures = re.findall(r"^struct \w+ \{.*?^\};", SHIM[start:end], re.M | re.S)
    for mine, (theirs, fields) in STRUCTURES.items():
        checks += [f"offsetof({mine}, {a}) == offsetof({theirs}, {b})" for a, b in fields.items()]
        if mine in WHOLE:
            checks.append(f"sizeof({mine}) == sizeof({theirs})")
    checks.append("sizeof(CUlaunchAttribute) == sizeof(struct attribute)")
    source = tmp_path / "check.c"
    names = ["stddef.h", *(name.replace("cublas_api", "cublas_v2") for name in headers)]
    includes = "".join(f"#include <{name}>\n" for name in names)
    asserts = "".join(f'_Static_assert({check}, "{check}");\n' for check in checks)
    source.write_text(f"{includes}#define NAME_SIZE 256\n" + "\n".join(structures) + "\n" + asserts)
    done = subprocess.run(
        [*compiler.find(), "-std=c11", "-fsyntax-only", f"-I{include}", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("release", RELEASES)
def test_what_is_replaced_is_there(release: str, root: Callable[[str], Path]) -> None:
    library = next((root(release) / "lib64").glob(f"libcudart.so.{release[:2]}*"))
    with library.resolve().open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym").iter_symbols()
        there = {symbol.name for symbol in symbols if symbol.entry.st_shndx != "SHN_UNDEF"}
    wanted = {name for name in functions() if name.lstrip("_").startswith("cuda")}
    assert wanted - there == NOT_IN[release]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("codes", [("compute_61",), ("compute_61", "sm_90")])
def test_a_compiled_program_meets_the_shim(
    release: str,
    codes: tuple[str, ...],
    root: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Symbols with versions of NVIDIA's own runtime, calls as nvcc writes them. Without a GPU every
    answer is an error; what is refused is refused before the runtime is asked."""
    if release == "13":  # compiles for 7.5 and newer only
        codes = tuple(code.replace("61", "75") for code in codes)
    folder = root(release)
    nvcc = folder / "bin" / "nvcc" if release == "13" else folder.parent / "bin" / "nvcc"
    (tmp_path / "a.cu").write_text(PROGRAM)
    words = [f"-gencode=arch=compute_{code[-2:]},code={code}" for code in codes]
    words += ["-cudart", "shared", "-Wno-deprecated-gpu-targets", "-o", "a", "a.cu"]
    words += ["-Xlinker", f"-rpath={folder / 'lib64'}"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("LD_")}
    subprocess.run([str(nvcc), *words], cwd=tmp_path, env=plain, check=True)
    record = tmp_path / "record"
    record.touch()
    capability = (7, 5) if release == "13" else (6, 1)
    settings = Settings(capability, (9, 0), "NVIDIA H200", 49152, 49152, str(record))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert command.run([str(tmp_path / "a")], settings) == 0
    properties, launched, refused = map(int, capfd.readouterr().out.split())
    document: dict[str, Any] = report.gather(settings, ["a"], 0)
    (library,) = document["host"]["libraries"]
    assert Path(library["path"]) == tmp_path / "a"
    assert library["through"][0].startswith(f"libcudart.so.{release[:2]}")
    assert library["same_code"] is (len(codes) == 1)
    said = report.summary(document)
    assert ("Not replayed: a ran 1 x sm_90 instead of" in said) == (len(codes) == 2)
    (row,) = document["refused"]
    assert row["error"] == "more shared memory than a block can have" and row["times"] == 1
    if properties:  # no GPU, or none that this runtime can use
        assert launched and refused in (1, launched)
    else:
        assert (launched, refused) == (0, 1) and document["host"]["answered"]
