"""The pinned toolchain of CUDA 11.8, from Debian's packages and NVIDIA's wheels, at work."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from legacy_cuda.capability import Capability
from legacy_cuda.catalog.toolchains import find_toolchain, toolchains
from legacy_cuda.devicecode import scan
from legacy_cuda.toolchain import environ, smoke

SOURCE = """
#include <cstdio>
#include <cuda_fp16.h>
#include <vector>
namespace { __device__ int seen; }  // its name holds a hash of the path
namespace named { static __device__ int mine; }  // likewise
static __global__ void count() { seen += named::mine; }
__global__ void add(float *a, const __half *b) { a[threadIdx.x] += __half2float(b[threadIdx.x]); }
extern "C" int host(int n) {
    std::vector<int> seen(n);
    std::printf("%s %s %d.%d %zu", __FILE__, __VERSION__, __GLIBC__, __GLIBC_MINOR__, seen.size());
    add<<<1, 32>>>(nullptr, nullptr);
    count<<<1, 1>>>();
    return 0;
}
"""


def toolchain(name: str, *options: str, **more: str) -> Any:
    """What the command answers."""
    done = subprocess.run(
        [sys.executable, "-m", "legacy_cuda", "toolchain", name, "--json", *options],
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def made() -> Any:
    return toolchain("11.8")


# Nothing here can be seen by others, so that the compiler has no name to tell the source by.
LOCAL = """
static __device__ void one(float *to) { *to = 1; }
template <void (*F)(float *)> static __global__ void each(float *to) { F(to + threadIdx.x); }
namespace { struct Starter { Starter() { each<one><<<1, 32>>>(nullptr); } } starter; }
"""


def compile_with(
    root: Path,
    folder: Path,
    variables: dict[str, str],
    numbers: tuple[int, ...] = (37, 61),
    source: str = SOURCE,
) -> str:
    """sha256 of a library that is compiled for 3.7 and 6.1, or other capabilities."""
    folder.mkdir()
    (folder / "a.cu").write_text(source)
    codes = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in numbers]
    subprocess.run(
        [
            *("nvcc", "-O2", "-shared", "-Xcompiler", "-fPIC", "-Wno-deprecated-gpu-targets"),
            *codes,
            *("a.cu", "-o", "a.so"),
        ],
        cwd=folder,
        env=variables,
        check=True,
    )
    subprocess.run(["strip", "a.so"], cwd=folder, env=variables, check=True)
    return hashlib.sha256((folder / "a.so").read_bytes()).hexdigest()


def test_it_is_what_the_catalog_says(made: Any) -> None:
    facts = find_toolchain("11.8")
    assert (made["nvcc"], made["gcc"], made["source"]) == (facts.nvcc, facts.host.gcc, "pinned")
    assert made["targets"] == [str(item) for item in smoke.targets(facts)]
    for command, expected in (("nvcc", facts.nvcc), ("g++", facts.host.gcc), ("ld", "GNU ld")):
        path = Path(made["path"]) / "bin" / command
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
        assert expected in done.stdout


def test_the_second_time_is_quick(made: Any) -> None:
    started = time.monotonic()
    again = toolchain("11.8")
    assert again["state"] == "there already"
    assert time.monotonic() - started < 5


def test_it_compiles_in_its_own_world(made: Any, tmp_path: Path) -> None:
    """A poisoned environment, other paths, another time: the same bytes; the pinned C library."""
    root = Path(made["path"])
    clean = compile_with(
        root, tmp_path / "one", environ.variables(root, tmp_path, tmp_path / "one")
    )
    other = tmp_path / "elsewhere" / "deeper"
    other.parent.mkdir()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name in ("ptxas", "gcc", "g++", "fatbinary", "cicc", "ld", "as"):
        (bin_folder / name).write_text("#!/bin/sh\nexit 97\n")
        (bin_folder / name).chmod(0o755)
    poisoned = {**os.environ, **environ.variables(root, tmp_path, other)}
    poisoned["LD_LIBRARY_PATH"] = "/nowhere"
    poisoned["PATH"] = f"{root / 'bin'}:{bin_folder}:{os.environ['PATH']}"
    assert compile_with(root, other, poisoned) == clean
    library = tmp_path / "one" / "a.so"
    (file,) = [scan.scan_file(library)]
    served = {entry.capability for one in file.containers for entry in one.container.entries}
    assert served == {Capability(3, 7), Capability(6, 1)}
    done = subprocess.run(
        [root / "bin" / "readelf", "-dV", library], capture_output=True, text=True, check=True
    )
    assert "libcudart.so.11.0" in done.stdout
    versions = [word for word in done.stdout.split() if word.startswith("GLIBC_2.")]
    assert max(int(word.split(".")[1]) for word in versions) <= 36


def test_kernels_that_launch_kernels_do_not_link(made: Any, tmp_path: Path) -> None:
    """There is no device runtime: an error, not a library that does nothing."""
    root = Path(made["path"])
    text = "__global__ void b() {}\n__global__ void a() { b<<<1, 1>>>(); }\n"
    text += "int main() { a<<<1, 1>>>(); }\n"
    (tmp_path / "a.cu").write_text(text)
    done = subprocess.run(
        ["nvcc", "-arch=sm_61", "-rdc=true", "a.cu", "-o", "a", "-lcudadevrt"],
        cwd=tmp_path,
        env=environ.variables(root, tmp_path, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "cudaLaunchDevice" in done.stderr + done.stdout


@pytest.mark.parametrize("name", [item.name for item in toolchains()])
def test_a_source_without_public_names_is_the_same_bytes_anywhere(
    name: str, tmp_path: Path
) -> None:
    """The compiler's own name for such a source has the process's number and the folder in it."""
    made = toolchain(name)
    root = Path(made["path"])
    numbers = tuple(Capability.parse(item).number for item in made["targets"][:2])
    found = set()
    for folder in (tmp_path / "one", tmp_path / "another-place"):
        variables = environ.variables(root, tmp_path, folder)
        found.add(compile_with(root, folder, variables, numbers, LOCAL))
        names = subprocess.run(
            ["cuobjdump", "-elf", "a.so"],
            cwd=folder,
            env=variables,
            capture_output=True,
            check=True,
        ).stdout
        assert re.search(rb"_INTERNAL_[0-9a-f]{8}_4_a_cu_[0-9a-f]{8}3one", names)
    assert len(found) == 1


@pytest.mark.parametrize("name", [item.name for item in toolchains() if item.name != "11.8"])
def test_the_others_compile_the_same_bytes_anywhere(name: str, tmp_path: Path) -> None:
    made = toolchain(name)
    root = Path(made["path"])
    numbers = tuple(Capability.parse(item).number for item in made["targets"][:2])
    found = set()
    for folder in (tmp_path / "one", tmp_path / "another-place"):
        variables = environ.variables(root, tmp_path, folder)
        found.add(compile_with(root, folder, variables, numbers))
    assert len(found) == 1
