"""A small CUDA package through the whole builder: pinned toolchain, real back ends, real wheels.

The package is made here, of a few files, so that it compiles in seconds; everything it meets on its
way is what llama.cpp meets.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from legacy_cuda import audit, fetch
from legacy_cuda.build import compile as building
from legacy_cuda.build import finish, source
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import locks
from legacy_cuda.catalog.recipes import Recipe, Sdist, Way, find_recipe
from legacy_cuda.catalog.toolchains import find_toolchain
from legacy_cuda.devicecode import scan_wheel
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.toolchain import found, make

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "tiny-cuda"
FILES = 6
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

CMAKE = """
cmake_minimum_required(VERSION 3.21)
project(tiny LANGUAGES CXX CUDA)
find_package(CUDAToolkit REQUIRED)
add_library(tiny SHARED %s)
target_link_libraries(tiny PRIVATE CUDA::cudart)
target_include_directories(tiny PRIVATE src/../marks)  # as CMake projects like to write it
set_target_properties(tiny PROPERTIES BUILD_WITH_INSTALL_RPATH TRUE
    INSTALL_RPATH "$ORIGIN/../nvidia/cuda_runtime/lib")
install(TARGETS tiny LIBRARY DESTINATION tiny_cuda)
"""
KERNEL = """
#include <cstdio>
#include <mark.h>
#include <vector>
namespace { __device__ int seen%(n)d; }  // its name holds a hash of the path
__global__ void kernel%(n)d(float *a, float b) { a[threadIdx.x] += b * seen%(n)d; }
extern "C" int run%(n)d(float *a) {
    std::vector<int> list(%(n)d);
    std::printf("%%s %%s %%zu", __FILE__, mark(), list.size());
    kernel%(n)d<<<1, 32>>>(a, 1.0f);
    return cudaGetLastError();
}
"""
# Nothing here can be seen by others: what it is called comes of the text that the preprocessor
# leaves, and in that of the header is __FILE__, in the toolchain's folder.
LOCAL = """
#include <cub/cub.cuh>
static __device__ void one(float *to) { *to = 1; }
template <void (*F)(float *)> static __global__ void each(float *to) { F(to + threadIdx.x); }
namespace { struct Starter { Starter() { each<one><<<1, 32>>>(nullptr); } } starter; }
"""
PYPROJECT = """
[build-system]
requires = ["scikit-build-core>=0.10"]
build-backend = "scikit_build_core.build"
[project]
name = "tiny-cuda"
version = "1.0"
description = "kernels"
dependencies = ["numpy>=1.20"]
[tool.scikit-build]
wheel.packages = ["tiny_cuda"]
wheel.py-api = "py3"
"""
PATCH = """\
Why: the answer is another one
Capabilities: 3.7 6.1
Origin: ours

--- a/tiny_cuda/__init__.py
+++ b/tiny_cuda/__init__.py
@@ -1 +1 @@
-ANSWER = 41
+ANSWER = 42
"""


def files() -> dict[str, str]:
    """The package's files."""
    names = [f"src/kernel{number}.cu" for number in range(FILES)]
    kernels = {name: KERNEL % {"n": number} for number, name in enumerate(names)}
    return {
        "pyproject.toml": PYPROJECT,
        "CMakeLists.txt": CMAKE % " ".join(names),
        "marks/mark.h": "inline const char *mark() { return __FILE__; }\n",
        "tiny_cuda/__init__.py": "ANSWER = 41\n",
        **kernels,
    }


def sdist(folder: Path, content: dict[str, str]) -> tuple[Path, Sdist]:
    """The source distribution of these files."""
    path = folder / "tiny_cuda-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in content.items():
            item = tarfile.TarInfo(f"tiny_cuda-1.0/{name}")
            item.size = len(text.encode())
            archive.addfile(item, io.BytesIO(text.encode()))
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return path, Sdist(NAME, "1.0", path.name, sha256, len(data), 0)


def recipe(facts: Sdist) -> Recipe:
    way = Way("11.8", (Capability(3, 7), Capability(6, 1)), {}, 60, 1 << 30)
    told = {
        "build-dir": "{build}",
        "cmake.build-type": "Release",
        "cmake.define.CMAKE_CUDA_ARCHITECTURES": "{architectures}",
    }
    return Recipe(
        NAME, "1.0", "kernels", facts, "", "", "build-cmake", told, {}, (), {},
        headers=False, disk=1 << 20, ways=(way,),
    )  # fmt: skip


class Workshop:
    """A cache of its own for builds, whose toolchain is the shared one; and orders for it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.toolchain, _ = make.make(find_toolchain("11.8"), lambda what, done, total: None)
        self.folder = folder
        monkeypatch.setenv("LEGACY_CUDA_CACHE", str(folder / "cache"))
        patches = folder / "package" / "patches" / NAME / "1.0"
        patches.mkdir(parents=True)
        (patches / "0001-answer.patch").write_text(PATCH)
        monkeypatch.setattr(source, "PACKAGE", folder / "package")
        self.archive, self.facts = sdist(folder, files())

    def order(self, *capabilities: str, code: str = "sass", **changes: Any) -> building.Order:
        made = replace(recipe(self.facts), **changes)
        wanted = tuple(sorted(Capability.parse(item) for item in capabilities))
        return building.Order(made, made.ways[0], wanted, self.toolchain, code, 2, None)

    def build(
        self,
        order: building.Order,
        copy: int = 0,
        tell: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> building.Compiled:
        out = self.folder / f"out-{copy}"
        python = (PYTHON, sys.executable)
        return building.compile_wheel(order, self.archive, python, out, tell, copy)

    def builds(self) -> list[str]:
        folder = self.folder / "cache" / "builds"
        return [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(tmp_path, monkeypatch)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {item.filename: archive.read(item) for item in archive.infolist()}


def test_the_wheel_is_whole(workshop: Workshop, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    built = workshop.build(workshop.order("3.7", "6.1"), tell=lambda *status: seen.append(status))
    assert built.path.name.startswith("tiny_cuda-1.0+cu118.sm37.sm61-py3-none-manylinux_2_")
    assert built.requires == ("nvidia-cuda-runtime-cu11>=11.8.89",)
    inside = members(built.path)
    info = "tiny_cuda-1.0+cu118.sm37.sm61.dist-info"
    metadata = inside[f"{info}/METADATA"].decode()
    for line in ("Version: 1.0+cu118.sm37.sm61", "Requires-Dist: numpy>=1.20", built.requires[0]):
        assert line in metadata
    assert inside["tiny_cuda/__init__.py"] == b"ANSWER = 42\n"  # patched
    for row in csv.reader(io.StringIO(inside[f"{info}/RECORD"].decode())):
        assert row[0] in inside
        assert not row[1] or row[1:] == list(finish.recorded(inside[row[0]]))
    [library] = audit.summarise(scan_wheel(built.path))
    for verdict in built.verdicts:
        assert verdict.outcome == "runs"
        assert verdict.libraries[0].sass == verdict.libraries[0].containers == FILES
    assert {label for group in library.groups for label in group.code} == {"sm_37", "sm_61"}
    counts = [total for what, _, total in seen if what.startswith("compiling kernel")]
    assert len(set(counts)) == 1 and counts[0] >= FILES
    assert b"tmpxft" not in inside["tiny_cuda/libtiny.so"]
    assert str(tmp_path).encode() not in inside["tiny_cuda/libtiny.so"]
    assert workshop.builds() == []  # what is not needed any more is gone
    check_documents(built, inside, info)


def check_documents(built: building.Compiled, inside: dict[str, bytes], info: str) -> None:
    """Bill of materials by its own schema; provenance names every input."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = inside[f"{info}/sboms/tiny-cuda.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    [made_from] = [part for part in bill["components"] if "pedigree" in part]
    assert made_from["pedigree"]["patches"][0]["diff"]["text"]["content"] == PATCH
    statement = json.loads(built.provenance.read_text())
    assert statement["subject"][0]["digest"]["sha256"] == built.sha256
    materials = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    names = {item["name"] for item in materials}
    toolchain = find_toolchain("11.8")
    assert {wheel.name for wheel in toolchain.wheels} < names
    assert {"tiny_cuda-1.0.tar.gz", "0001-answer.patch"} < names
    assert len(materials) == len(names)


def test_the_same_bytes_in_another_folder_and_a_poisoned_environment(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = workshop.build(workshop.order("6.1"))
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("nvcc", "ptxas", "cicc", "fatbinary", "gcc", "g++", "ld", "as", "cmake", "ninja"):
        (bad / name).write_text("#!/bin/sh\necho poisoned >&2\nexit 97\n")
        (bad / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bad}:{os.environ['PATH']}")
    poison = {
        "CFLAGS": "-march=native -DPOISON",
        "CXXFLAGS": "-O0",
        "CUDAFLAGS": "-G",
        "NVCC_APPEND_FLAGS": "-lineinfo",
        "NVCC_PREPEND_FLAGS": "-DPOISON",
        "LDFLAGS": "-Wl,--build-id",
        "LD_LIBRARY_PATH": "/nowhere",
        "CPATH": "/nowhere",
        "CUDA_PATH": "/usr/local/cuda-13",
        "CUDA_HOME": "/usr/local/cuda-13",
        "CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Debug",
        "SKBUILD_CMAKE_DEFINE": "CMAKE_CUDA_ARCHITECTURES=90",
        "CUDAARCHS": "90",
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
        "PYTHONPATH": str(bad),
        "SOURCE_DATE_EPOCH": "1700000000",
    }
    for name, value in poison.items():
        monkeypatch.setenv(name, value)
    os.umask(before := os.umask(0o077))
    link = tmp_path / "link"
    link.symlink_to(workshop.folder / "cache")
    monkeypatch.setenv("LEGACY_CUDA_CACHE", str(link))
    try:
        os.umask(0o077)
        second = workshop.build(replace(workshop.order("6.1"), jobs=1), copy=1)
    finally:
        os.umask(before)
    assert second.sha256 == first.sha256


def test_the_same_bytes_through_ccache(workshop: Workshop) -> None:
    ccache = shutil.which("ccache")
    if ccache is None:
        pytest.skip("skipped: ccache is not installed here")
    plain = workshop.build(workshop.order("6.1"))
    for copy in (1, 2):
        cached = workshop.build(replace(workshop.order("6.1"), ccache=ccache), copy=copy)
        assert cached.sha256 == plain.sha256
    told = subprocess.run(
        [ccache, "--print-stats"],
        env={**os.environ, "CCACHE_DIR": str(workshop.folder / "cache" / "ccache")},
        capture_output=True,
        text=True,
        check=True,
    )
    figures = dict(line.split() for line in told.stdout.splitlines())
    hits = int(figures["direct_cache_hit"]) + int(figures["preprocessed_cache_hit"])
    assert hits >= FILES  # the second one's, from another folder


def test_the_same_bytes_with_a_toolchain_in_another_folder(
    workshop: Workshop, tmp_path: Path
) -> None:
    """And through ccache, if it is there."""
    content = {**files(), "src/local.cu": LOCAL}
    content["CMakeLists.txt"] = CMAKE % "src/local.cu"
    workshop.archive, workshop.facts = sdist(tmp_path, content)
    first = workshop.build(workshop.order("3.7"))
    inside = members(first.path)["tiny_cuda/libtiny.so"]
    assert re.search(rb"_INTERNAL_[0-9a-f]{8}_8_local_cu_[0-9a-f]{8}3one", inside)
    here, workshop.toolchain = workshop.toolchain, tmp_path / "elsewhere" / workshop.toolchain.name
    unused = shutil.ignore_patterns("libcublas*")
    shutil.copytree(here, workshop.toolchain, symlinks=True, ignore=unused)
    for copy, ccache in enumerate((None, shutil.which("ccache")), 1):
        order = replace(workshop.order("3.7"), ccache=ccache)
        assert workshop.build(order, copy=copy).sha256 == first.sha256


def test_a_toolkit_of_the_machine(workshop: Workshop) -> None:
    """The pinned one, as if it were installed: it compiles, strips, and is not called the same."""
    facts = find_toolchain("11.8")
    compiler = found.read_compiler(workshop.toolchain / "bin" / "g++")
    assert compiler is not None
    folder, _ = found.make(facts, workshop.toolchain / "cuda", compiler)
    order = replace(workshop.order("6.1"), toolchain=folder, pinned=False)
    built = workshop.build(order)
    assert built.path.name.startswith("tiny_cuda-1.0+cu118.sm61.found-")
    inside = members(built.path)
    assert b"tmpxft" not in inside["tiny_cuda/libtiny.so"]
    text = inside["tiny_cuda-1.0+cu118.sm61.found.dist-info/sboms/tiny-cuda.cdx.json"]
    assert b"of the machine" in text


def test_ptx_for_newer_cards_as_well(workshop: Workshop) -> None:
    built = workshop.build(workshop.order("3.7", "6.1", code="sass+ptx"))
    [library] = audit.summarise(scan_wheel(built.path))
    for group in library.groups:
        assert {label.partition("@")[0] for label in group.code} == {"sm_37", "sm_61", "compute_61"}


def test_it_installs_and_finds_its_libraries(workshop: Workshop, tmp_path: Path) -> None:
    built = workshop.build(workshop.order("6.1"))
    target = tmp_path / "site"
    install = [fetch.uv_binary(), "pip", "install", "--quiet", "--no-index", "--no-deps"]
    install += ["--python", sys.executable, "--target", str(target), str(built.path)]
    subprocess.run(install, check=True)
    library = target / "tiny_cuda" / "libtiny.so"
    environment = {"LD_TRACE_LOADED_OBJECTS": "1", "PATH": "/nowhere"}
    loader = ["/lib64/ld-linux-x86-64.so.2", str(library)]
    told = subprocess.run(loader, env=environment, capture_output=True, text=True, check=False)
    assert "libcudart.so.11.0 => not found" in told.stdout
    runtime = target / "nvidia" / "cuda_runtime" / "lib"
    runtime.mkdir(parents=True)
    shutil.copy(workshop.toolchain / "cuda" / "lib64" / "libcudart.so.11.0", runtime)
    told = subprocess.run(loader, env=environment, capture_output=True, text=True, check=False)
    assert f"libcudart.so.11.0 => {target}" in told.stdout


@pytest.mark.parametrize("capability", ["3.7", "6.1"])  # a K80's own driver compiles no such PTX
def test_ptx_only_for_a_replay(workshop: Workshop, capability: str) -> None:
    number = capability.replace(".", "")
    built = workshop.build(workshop.order(capability, code="ptx"))
    assert f"+cu118.sm{number}.replay-" in built.path.name
    [library] = audit.summarise(scan_wheel(built.path))
    assert {label.partition("@")[0] for group in library.groups for label in group.code} == {
        f"compute_{number}"
    }


def of_build(root: str) -> list[str]:
    """Command lines of processes that work in a build's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(root in word for word in words):
                found.append(" ".join(words))
    return found


def test_a_killed_build_goes_on(workshop: Workshop, tmp_path: Path) -> None:
    """SIGKILL in the middle: what is compiled is not compiled again; the bytes are the same."""
    whole = workshop.build(workshop.order("6.1"), copy=7)
    program = tmp_path / "go.py"
    program.write_text(
        "import sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "import test_compiled_wheels as here\n"
        "import pytest\n"
        "class Again(here.Workshop):\n"
        "    def __init__(self, folder, toolchain):\n"
        "        self.folder, self.toolchain = folder, toolchain\n"
        "        here.source.PACKAGE = folder / 'package'\n"
        "        self.archive, self.facts = here.sdist(folder, here.files())\n"
        f"w = Again(here.Path({str(workshop.folder)!r}), here.Path({str(workshop.toolchain)!r}))\n"
        "w.archive = here.Path(sys.argv[1])\n"
        f"w.facts = here.replace(w.facts, sha256={workshop.facts.sha256!r})\n"
        "w.build(w.order('6.1'), tell=lambda what, done, total: print(done, flush=True))\n"
    )
    copy = tmp_path / "kept.tar.gz"
    shutil.copy(workshop.archive, copy)
    process = subprocess.Popen(
        [sys.executable, str(program), str(copy)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    done = 0
    for line in process.stdout:
        done = int(line)
        if done >= FILES // 2:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert done >= FILES // 2
    [root] = [str(workshop.folder / "cache" / "builds" / name) for name in workshop.builds()]
    deadline = time.monotonic() + 10
    while of_build(root) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not of_build(root)  # no compiler outlives it
    assert len(workshop.builds()) == 1
    seen: list[int] = []
    built = workshop.build(workshop.order("6.1"), tell=lambda what, now, total: seen.append(total))
    assert built.resumed
    assert built.sha256 == whole.sha256
    assert max(seen) < FILES + 1  # ninja counts only what is left


def test_what_does_not_compile_is_said(workshop: Workshop, tmp_path: Path) -> None:
    content = {**files(), "src/kernel3.cu": "#error this card is too old\n"}
    workshop.archive, workshop.facts = sdist(tmp_path, content)
    with pytest.raises(SurroundingsError) as caught:
        workshop.build(workshop.order("6.1"))
    assert "this card is too old" in caught.value.why
    [left] = workshop.builds()  # the next run goes on there
    assert (workshop.folder / "cache" / "builds" / left / "log.txt").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("$ORIGIN/../nvidia/cuda_runtime/lib", "/usr/local/cuda/lib64"),
            "not below site-packages",
        ),
        (("$ORIGIN/../nvidia/cuda_runtime/lib", "$ORIGIN"), "does not find libcudart.so.11.0"),
        (("CUDA::cudart)", "CUDA::cudart z)"), "needs libz.so.1, which nothing brings"),
        (
            ("BUILD_WITH_INSTALL_RPATH TRUE", f'BUILD_RPATH "/{"x" * 200}"'),
            "had another RPATH when it was linked",
        ),
    ],
    ids=["absolute", "elsewhere", "unknown", "replaced"],
)
def test_what_would_not_be_found_is_refused(
    workshop: Workshop, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    content = files()
    content["CMakeLists.txt"] = content["CMakeLists.txt"].replace(*change)
    if "libz" in said:  # of another system: with a soname, and no header needed
        content["CMakeLists.txt"] += "\ntarget_link_options(tiny PRIVATE -Wl,--no-as-needed)\n"
        library = workshop.toolchain / "sysroot" / "lib" / "x86_64-linux-gnu"
        content["CMakeLists.txt"] = content["CMakeLists.txt"].replace(
            "CUDA::cudart z)", f"CUDA::cudart {library}/libz.so.1)"
        )
    workshop.archive, workshop.facts = sdist(tmp_path, content)
    with pytest.raises(SurroundingsError) as caught:
        workshop.build(workshop.order("6.1"))
    assert said in caught.value.why


def test_a_package_without_device_code_may_have_none(workshop: Workshop) -> None:
    with pytest.raises(SurroundingsError, match="not fit for release"):
        workshop.build(workshop.order("6.1", local="legacy.1"))


def test_a_patch_that_does_not_fit(workshop: Workshop, tmp_path: Path) -> None:
    content = {**files(), "tiny_cuda/__init__.py": "ANSWER = 40\n"}
    workshop.archive, workshop.facts = sdist(tmp_path, content)
    with pytest.raises(SurroundingsError) as caught:
        workshop.build(workshop.order("6.1"))
    assert "0001-answer.patch does not fit tiny_cuda/__init__.py" in caught.value.why
    assert not list((workshop.folder / "out-0").glob("*.whl"))


def test_a_source_distribution_that_is_another(workshop: Workshop, tmp_path: Path) -> None:
    other = tmp_path / "other.tar.gz"
    other.write_bytes(workshop.archive.read_bytes()[:-1])
    with pytest.raises(UserError) as caught:
        building.archive(recipe(workshop.facts), other, lambda what, done, total: None)
    assert workshop.facts.sha256 in caught.value.why


def test_no_room(workshop: Workshop) -> None:
    with pytest.raises(SurroundingsError) as caught:
        workshop.build(workshop.order("6.1", disk=1 << 60))
    assert "needs 1073741824.0 GiB" in caught.value.why
    assert workshop.builds() == []


def test_a_disk_that_fills_up(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(finish, "write", full)
    with pytest.raises(SurroundingsError) as caught:
        workshop.build(workshop.order("6.1"))
    assert "goes on where it stopped" in caught.value.next_step
    assert len(workshop.builds()) == 1


def test_setuptools(workshop: Workshop, tmp_path: Path) -> None:
    """The other back end: its requirements are not in the lock of this recipe, which is said."""
    content = {
        "pyproject.toml": '[build-system]\nrequires = ["setuptools>=77"]\n'
        'build-backend = "setuptools.build_meta"\n',
        "tiny_cuda/__init__.py": "ANSWER = 41\n",
    }
    workshop.archive, workshop.facts = sdist(tmp_path, content)
    with pytest.raises(SurroundingsError, match="does not compile here") as caught:
        workshop.build(workshop.order("6.1"))
    assert "setuptools>=77" in caught.value.why


SETUP = """
import os, subprocess
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

class CMake(build_ext):
    def build_extensions(self):
        os.makedirs(self.build_temp, exist_ok=True)
        out = os.path.abspath(os.path.dirname(self.get_ext_fullpath("tiny_cuda._C")))
        told = os.environ["CMAKE_ARGS"].split()
        for command in (
            ["cmake", os.path.abspath("."), "-G", "Ninja", *told],
            ["cmake", "--build", "."],
            ["cmake", "--install", ".", "--prefix", os.path.dirname(out)],
        ):
            subprocess.check_call(command, cwd=self.build_temp)

setup(
    name="tiny-cuda",
    version="1.0",
    packages=["tiny_cuda"],
    ext_modules=[Extension("tiny_cuda._C", [], py_limited_api=True)],
    cmdclass={"build_ext": CMake},
)
"""
MODULE = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
"""


@pytest.fixture
def setuptools(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe like vLLM's: setuptools, whose setup.py runs CMake and which is told by variables.

    Its lock is vLLM's without PyTorch, for the Python of these tests.
    """
    names = ("cmake", "ninja", "setuptools")
    lock = tomllib.loads((locks.LOCK_DIRECTORY / "build-vllm.toml").read_text())
    lock["package"] = [item for item in lock["package"] if item["name"] in names]
    lock |= {"name": "build-small", "roots": list(names), "pythons": [PYTHON]}
    for item in lock["package"]:
        for file in item["files"]:
            file["pythons"] = [PYTHON]
    folder = tmp_path / "locks"
    shutil.copytree(locks.LOCK_DIRECTORY, folder)
    (folder / "build-small.toml").write_text(tomli_w.dumps(lock))
    monkeypatch.setattr(locks, "LOCK_DIRECTORY", folder)
    content = files()
    content["pyproject.toml"] = """
[build-system]
requires = ["setuptools>=77", "cmake", "ninja"]
build-backend = "setuptools.build_meta"
"""
    content["setup.py"] = SETUP
    content["src/module.cpp"] = MODULE
    cmake = content["CMakeLists.txt"].replace("add_library(tiny SHARED", "add_library(_C MODULE")
    cmake = cmake.replace("add_library(", "Python_add_library(").replace(
        "MODULE ", "MODULE USE_SABI 3.8 WITH_SOABI src/module.cpp "
    )
    cmake = cmake.replace("tiny PR", "_C PR").replace("TARGETS tiny", "TARGETS _C")
    cmake = cmake[: cmake.index("set_target")] + cmake[cmake.index("install(") :]
    finds = "find_package(Python REQUIRED COMPONENTS Interpreter Development.SABIModule)\n"
    content["CMakeLists.txt"] = cmake.replace("Python_add", finds + "Python_add")
    workshop.archive, workshop.facts = sdist(tmp_path, content)
    return replace(
        recipe(workshop.facts),
        lock="build-small",
        settings=find_recipe("vllm").settings,
        environment={
            "CMAKE_ARGS": "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON "
            "-DCMAKE_INSTALL_RPATH=$ORIGIN/../nvidia/cuda_runtime/lib "
            "-DCMAKE_CUDA_RUNTIME_LIBRARY=Shared",
            "CUDAARCHS": "{architectures}",
        },
    )


def test_an_extension_of_setuptools(workshop: Workshop, setuptools: Recipe) -> None:
    """For every Python from 3.8 on, by the stable ABI; the same bytes in another folder."""
    way = setuptools.ways[0]
    order = building.Order(
        setuptools, way, (Capability(3, 7), Capability(6, 1)), workshop.toolchain, "sass", 2, None
    )
    seen: list[str] = []
    built = workshop.build(order, tell=lambda what, done, total: seen.append(what))
    assert built.path.name.startswith("tiny_cuda-1.0+cu118.sm37.sm61-cp38-abi3-manylinux_2_")
    assert built.requires == ("nvidia-cuda-runtime-cu11>=11.8.89",)
    inside = members(built.path)
    assert inside["tiny_cuda/__init__.py"] == b"ANSWER = 42\n"
    [library] = audit.summarise(scan_wheel(built.path))
    assert library.path == "tiny_cuda/_C.abi3.so"
    assert {label for group in library.groups for label in group.code} == {"sm_37", "sm_61"}
    assert any(what.startswith("compiling kernel") for what in seen)
    assert str(workshop.folder).encode() not in inside[library.path]
    definition = json.loads(built.provenance.read_text())["predicate"]["buildDefinition"]
    assert definition["internalParameters"]["environment"]["CUDAARCHS"] == "37-real;61-real"
    again = workshop.build(replace(order, jobs=1), copy=1)
    assert again.sha256 == built.sha256
