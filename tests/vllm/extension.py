"""Compile vLLM's extension for replay, against a PyTorch that is not the product's.

    python tests/vllm/extension.py FOLDER --torch SITE [--headers FOLDER ...] [--jobs 2]

The machine with the GPU has a PyTorch of its own, and an extension runs with the one that it was
compiled against. This takes the sources that ``legacy-cuda build vllm`` takes, the same patches,
the pinned toolchain, and the headers of the PyTorch in ``SITE`` (a ``site-packages``), and makes
``FOLDER/vllm/_C.abi3.so`` and ``_moe_C.abi3.so`` with PTX for one capability and nothing else.

Headers of cuRAND, cuSOLVER and cuSPARSE, which PyTorch's own include and the toolchain has not, are
looked for in ``--headers``, folders with ``nvidia/curand/include`` and so on: NVIDIA's wheels for
CUDA 12, installed there. Of PyTorch's C++ interface only what the operators use is read, instead of
all that ``torch/all.h`` includes: it halves the time.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "python" / "src"))

from legacy_cuda.build import compile as compiling  # noqa: E402  # the path has to be set first
from legacy_cuda.build import source  # noqa: E402
from legacy_cuda.capability import Capability  # noqa: E402
from legacy_cuda.catalog.recipes import find_recipe  # noqa: E402
from legacy_cuda.catalog.toolchains import find_toolchain  # noqa: E402
from legacy_cuda.toolchain import make  # noqa: E402

LIBRARIES = ("VLLM_EXT_SRC", "_C"), ("VLLM_MOE_EXT_SRC", "_moe_C")
ROCM = "csrc/custom_quickreduce.cu"
ALL = """\
#pragma once
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>
#include <torch/version.h>
namespace torch {
using namespace at;
constexpr auto kUInt8 = at::kByte;
constexpr auto kInt8 = at::kChar;
constexpr auto kInt32 = at::kInt;
constexpr auto kInt64 = at::kLong;
constexpr auto kFloat16 = at::kHalf;
constexpr auto kFloat32 = at::kFloat;
}
"""
NINJA = """\
rule cuda
  command = {nvcc} {flags} {cuda} $
      -DTORCH_EXTENSION_NAME=$name -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule cxx
  command = {cxx} {flags} -fPIC -DTORCH_EXTENSION_NAME=$name -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {cxx} -shared -Wl,-s,-rpath,'$$ORIGIN' -o $out $in $
      -L{torch}/lib -lc10 -lc10_cuda -ltorch_cpu -ltorch_cuda -ltorch -L{toolkit}/lib64 -lcudart
"""


def sources(text: str, variable: str) -> list[str]:
    """What CMakeLists.txt compiles for every target: that variable's lists which name files."""
    lists = re.findall(rf"(?:set|list)\((?:APPEND )?{variable}\s+([^)]*)\)", text)
    if variable == "VLLM_MOE_EXT_SRC":
        lists += re.findall(r"set\(MOE_PERMUTE_SRC\s+([^)]*)\)", text)
    found = [path for one in lists for path in re.findall(r'"(csrc/[^"]+)"', one)]
    return [path for path in found if path != ROCM]


def tell(text: str, done: int = 0, total: int = 0) -> None:
    """What is being done, for who waits."""
    if done == total:
        print(text, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", type=Path, required=True, metavar="SITE")
    parser.add_argument("--headers", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--capability", type=Capability.parse, default=Capability(6, 1))
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    recipe = find_recipe("vllm")
    (way,) = recipe.ways
    tree, objects = options.folder / "sources", options.folder / "objects"
    if not tree.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        archive = compiling.archive(recipe, None, tell)
        source.prepare(archive, source.changes(recipe), tree)
    prefix, _ = make.make(find_toolchain(way.toolchain), tell)
    torch = (options.torch / "torch").resolve()
    reduced = options.folder / "include" / "torch"
    reduced.mkdir(parents=True, exist_ok=True)
    for header, content in (("all.h", ALL), ("types.h", "#include <torch/all.h>\n")):
        path = reduced / header
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
    number = f"{options.capability.major}{options.capability.minor}"
    included = [
        tree / "csrc",
        reduced.parent,
        torch / "include",
        torch / "include" / "torch" / "csrc" / "api" / "include",
        Path(sysconfig.get_path("include")),
        prefix / "cuda" / "include",
        *(path for folder in options.headers for path in folder.glob("nvidia/*/include")),
    ]
    for path in included:
        if not path.is_dir():
            parser.error(f"there is no {path}")
    flags = " ".join(
        [
            "-std=c++20 -O3 -DNDEBUG -DPy_LIMITED_API=0x03080000 -DENABLE_FP8",
            f"-DVLLM_WITHOUT_CUTLASS -DVLLM_LOWEST_CAPABILITY={number}",
            *(f"-I{path.resolve()}" for path in included),
        ]
    )
    cuda = (
        f"-gencode arch=compute_{number},code=compute_{number} --expt-relaxed-constexpr "
        "--extended-lambda -cudart shared -Xcompiler -fPIC"
    )
    text = (tree / "CMakeLists.txt").read_text()
    lines = [
        NINJA.format(
            nvcc=prefix / "bin" / "nvcc",
            cxx=prefix / "bin" / "g++",
            flags=flags,
            cuda=cuda,
            torch=torch,
            toolkit=prefix / "cuda",
        )
    ]
    for variable, name in LIBRARIES:
        made = []
        for path in dict.fromkeys(sources(text, variable)):
            out = (objects / name / path).resolve().with_suffix(".o")
            rule = "cuda" if path.endswith(".cu") else "cxx"
            lines.append(f"build {out}: {rule} {(tree / path).resolve()}\n  name = {name}")
            made.append(str(out))
        target = options.folder.resolve() / "vllm" / f"{name}.abi3.so"
        lines.append(f"build {target}: link {' '.join(made)}")
    (options.folder / "build.ninja").write_text("\n".join(lines) + "\n")
    ninja = shutil.which("ninja")
    if ninja is None:
        parser.error("there is no ninja")
    command = [ninja, "-C", str(options.folder), "-j", str(options.jobs), "-k", "0"]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
