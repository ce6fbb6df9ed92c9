"""Whether a toolchain compiles, links and targets what it says: by doing it."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.toolchains import Toolchain
from legacy_cuda.devicecode import scan
from legacy_cuda.errors import SurroundingsError
from legacy_cuda.toolchain.environ import variables

_PROGRAM = """
#include <cmath>
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_fp16.h>
#include <string>
#include <thread>
#include <thrust/device_vector.h>

__global__ void scale(float *values, __half by, int count) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) values[at] *= __half2float(by);
}

extern "C" int work(float *values, int count) {
    std::thread([&] { scale<<<1, 32>>>(values, __float2half(2.0f), count); }).join();
    cublasHandle_t handle;
    CUdevice device;
    return cublasCreate(&handle) + cuDeviceGet(&device, 0) + std::to_string(count).size();
}
"""


def targets(toolchain: Toolchain) -> list[Capability]:
    """The legacy capabilities that the toolkit compiles for."""
    toolkit = toolchain.toolkit
    known = {gpu.capability for gpu in catalog.gpus() if gpu.legacy}
    return sorted(
        item for item in known if toolkit.capability_min <= item <= toolkit.capability_max
    )


def check(root: Path, toolchain: Toolchain) -> dict[str, Any]:
    """Compile and link a library for every legacy capability; what its device code was made for.

    Raises:
        SurroundingsError: it does not compile, or the library holds other code than it should.
    """
    wanted = targets(toolchain)
    with tempfile.TemporaryDirectory(prefix="legacy-cuda-toolchain-") as name:
        folder = Path(name)
        source, library = folder / "try.cu", folder / "try.so"
        source.write_text(_PROGRAM, encoding="utf-8")
        command = [str(root / "bin" / "nvcc"), "-std=c++17", "-shared", "-Xcompiler", "-fPIC"]
        command += [f"-gencode=arch=compute_{c.number},code=sm_{c.number}" for c in wanted]
        command += [
            str(source),
            "-o",
            str(library),
            "-lcublas",
            "-lcuda",
            "-Wno-deprecated-gpu-targets",
        ]
        done = subprocess.run(
            command,
            env=variables(root, folder, folder),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise cannot_run(done.stderr or done.stdout)
        found = sorted(
            {
                entry.capability
                for placed in scan.scan_file(library).containers
                for entry in placed.container.entries
            }
        )
    if found != wanted:
        raise SurroundingsError(
            f"the toolchain {toolchain.name} makes other code than it is asked for",
            f"asked for {', '.join(map(str, wanted))}; got {', '.join(map(str, found)) or 'none'}",
        )
    return {"targets": [str(item) for item in wanted]}


def cannot_run(message: str) -> SurroundingsError:
    """The toolchain's compilers do not work here: what they said, and why that may be."""
    glibc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    if platform.machine() != "x86_64":
        hint = "the pinned compilers are x86_64 programs"
    elif not loader.exists():
        hint = f"there is no {loader}: on NixOS use the compilers of `nix develop` with --found"
    elif "GLIBC_" in message:
        hint = f"they need a newer C library than this machine's ({glibc}): use --found"
    else:
        hint = "an installed toolkit may be used instead, with --found"
    return SurroundingsError("the toolchain's compilers do not work here", message.strip(), hint)
