"""Replay of programs in C++: the shim between a small program and a made-up CUDA runtime that
reports an H200. No GPU, no CUDA: what is compiled here stands in for libcudart, libcuda, libcublas.
"""

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

import builders
import pytest
from elftools.elf.elffile import ELFFile
from test_replay import H200, options

from legacy_cuda import catalog
from legacy_cuda.capability import Capability, Target
from legacy_cuda.cli import replay as replay_command
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.replay import command, gpu, native, report
from legacy_cuda.replay.inside.settings import Settings
from legacy_cuda.replay.native import answers, compiler, cublas, dynamic, program, verdict
from legacy_cuda.replay.native.answers import Attribute

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="skipped: no C compiler here")

ROW = re.compile(r"ROW\((\d+), (\w+), (\d), (-?\d+), (-?\d+), (-?\d+)\)")
PROPERTIES = ROW.findall(compiler.SHIM.read_text(encoding="utf-8"))
MAJORS = {"11.0": 0, "12": 1, "13": 2}
"""Of a runtime: how its soname ends, and which column of PROPERTIES is its layout."""

# What a card of Hopper says, as far as it is asked here.
H200_SAYS = {
    8: 49152, 12: 65536, 16: 132, 38: 62914560, 39: 2048, 75: 9, 76: 0, 81: 233472, 82: 65536,
    87: 2, 88: 1, 89: 1, 90: 1, 95: 1, 96: 1, 97: 232448, 100: 0, 101: 0, 106: 32, 108: 39321600,
    109: 134213632, 111: 1024, 120: 1, 102: 1, 41: 1, 115: 1,
}  # fmt: skip

RUNTIME = """
/* A fake. Not NVIDIA's: it says what an H200 says, and launches nothing. */
#include <stdio.h>
#include <string.h>
static int last, most_dynamic = 49152;
static const int says[][2] = SAYS;
static const int fields[][3] = FIELDS;
static int ask(int question) {
  for (unsigned n = 0; n < sizeof says / sizeof *says; n++)
    if (says[n][0] == question) return says[n][1];
  return -1;
}
static int fill(char *to) {
  memset(to, 0, 1032);
  strcpy(to, "NVIDIA H200");
  for (unsigned n = 0; n < sizeof fields / sizeof *fields; n++) {
    long long value = ask(fields[n][0]);
    memcpy(to + fields[n][1], &value, fields[n][2]);
  }
  return 0;
}
int cudaRuntimeGetVersion(int *version) { *version = VERSION; return 0; }
int cudaGetDeviceProperties(char *to, int device) { return device > 1 ? 101 : fill(to); }
int cudaGetDeviceProperties_v2(char *to, int device) { return device > 1 ? 101 : fill(to); }
int cudaDeviceGetAttribute(int *value, int question, int device) {
  *value = ask(question); return device > 1 ? 101 : 0;
}
struct function { size_t shared, constant, local;
                  int threads, registers, ptx, binary, rest[24]; };
int cudaFuncGetAttributes(struct function *to, const void *function) {
  memset(to, 0, sizeof *to);
  to->shared = 1024; to->ptx = 61; to->binary = 90; to->registers = 32;
  return 0;
}
int cudaFuncSetAttribute(const void *function, int attribute, int value) {
  if (attribute == 8) most_dynamic = value;
  printf("set %d\\n", attribute); return 0;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int threads, size_t s) {
  *n = 32; return 0;
}
typedef struct { unsigned x, y, z; } extent;
int cudaLaunchKernel(const void *f, extent g, extent b, void **a, size_t s, void *t) {
  if (s > (size_t)most_dynamic) return last = 1;
  printf("launched %u %u %zu\\n", g.x, b.z, s); return 0;
}
int __cudaLaunchKernel(const void *f, extent g, extent b, void **a, size_t s, void *t) {
  printf("launched by handle\\n"); return 0;
}
int cudaLaunchKernelExC(const char *how, const void *f, void **a) {
  printf("launched ex\\n"); return 0;
}
int cudaLaunchCooperativeKernel(const void *f, extent g, extent b, void **a, size_t s, void *t) {
  printf("launched together\\n"); return 0;
}
int cudaGetLastError(void) { int code = last; last = 0; return code; }
int cudaPeekAtLastError(void) { return last; }
int __cudaRegisterFatBinary(void *data) { return 0; }
"""
DRIVER = """
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetAttribute(int *value, int question, int device) {
  *value = question == 75 ? 9 : question == 76 ? 0 : question == 102 ? 1 : 232448; return 0;
}
int cuDeviceComputeCapability(int *major, int *minor, int device) {
  *major = 9; *minor = 0; return 0;
}
"""
# Declares what it uses as CUDA's headers do, as far as a caller can tell.
PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct extent { unsigned x, y, z; };
struct attribute { int id; int pad;
                   union { char bytes[64]; int number; struct extent extent; } value; };
struct configuration { struct extent grid, block; size_t shared; void *stream;
                       struct attribute *attributes; unsigned count; };
struct function { size_t shared, constant, local; int threads, registers, ptx, binary, rest[24]; };
#if V == 12
#define cudaGetDeviceProperties cudaGetDeviceProperties_v2
#endif
extern int cudaGetDeviceProperties(char *, int), cudaDeviceGetAttribute(int *, int, int);
extern int cudaFuncGetAttributes(struct function *, const void *);
extern int cudaFuncSetAttribute(const void *, int, int);
extern int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *, const void *, int, size_t);
extern int cudaLaunchKernel(const void *, struct extent, struct extent, void **, size_t, void *);
extern int __cudaLaunchKernel(const void *, struct extent, struct extent, void **, size_t, void *);
extern int cudaLaunchKernelExC(const struct configuration *, const void *, void **);
extern int cudaLaunchCooperativeKernel(const void *, struct extent, struct extent, void **, size_t,
                                       void *);
extern int cudaGetLastError(void), cudaPeekAtLastError(void);
#ifndef NO_DRIVER
extern int cuDeviceGetAttribute(int *, int, int), cuDeviceComputeCapability(int *, int *, int);
#endif
static struct extent one = {1, 1, 1}, grid = {7, 1, 1}, block = {32, 1, 5};
static int launch_ex(int id, struct extent value, size_t shared) {
  struct attribute attribute = {id, 0, {{0}}};
  attribute.value.extent = value;
  struct configuration how = {one, one, shared, NULL, &attribute, 1};
  return cudaLaunchKernelExC(&how, "kernel", NULL);
}
int run(int count, char **words) {
  char told[2048];
  setvbuf(stdout, NULL, _IONBF, 0);
  for (int n = 1; n < count; n++) {
    char *word = words[n], *value = strchr(word, ':');
    int number = value ? atoi(value + 1) : 0, answer = 0, other = 0;
    if (!strncmp(word, "name", 4)) {
      int code = cudaGetDeviceProperties(told, number);
      printf("name %d %s\\n", code, told);
    } else if (!strncmp(word, "field", 5)) {
      cudaGetDeviceProperties(told, 0);
      int size = atoi(strrchr(word, ':') + 1);
      long long field = 0;
      memcpy(&field, told + number, size);
      printf("%lld\\n", field);
    } else if (!strncmp(word, "ask", 3)) {
      cudaDeviceGetAttribute(&answer, number, 1);
      printf("%d\\n", answer);
#ifndef NO_DRIVER
    } else if (!strncmp(word, "driver", 6)) {
      cuDeviceGetAttribute(&answer, number, 0);
      printf("%d\\n", answer);
    } else if (!strncmp(word, "capability", 10)) {
      cuDeviceComputeCapability(&answer, &other, 0);
      printf("%d.%d\\n", answer, other);
#endif
    } else if (!strncmp(word, "function", 8)) {
      struct function function;
      cudaFuncGetAttributes(&function, "kernel");
      printf("%d %d\\n", function.ptx, function.binary);
    } else if (!strncmp(word, "optin", 5))
      printf("optin %d\\n", cudaFuncSetAttribute("kernel", 8, number));
    else if (!strncmp(word, "cluster_function", 16))
      printf("cluster_function %d\\n", cudaFuncSetAttribute("kernel", 14, 1));
    else if (!strncmp(word, "blocks", 6)) {
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&answer, "kernel", 250, number);
      printf("%d\\n", answer);
    } else if (!strncmp(word, "launch", 6))
      printf("launch %d\\n", cudaLaunchKernel("kernel", grid, block, NULL, number, NULL));
    else if (!strncmp(word, "handle", 6))
      printf("handle %d\\n", __cudaLaunchKernel("kernel", one, one, NULL, number, NULL));
    else if (!strncmp(word, "together", 8))
      printf("together %d\\n", cudaLaunchCooperativeKernel("kernel", one, one, NULL, 0, NULL));
    else if (!strncmp(word, "ex", 2)) {
      struct extent extent = {1, number, 1};
      printf("ex %d\\n", launch_ex(atoi(strrchr(word, ':') + 1), extent, 0));
    } else if (!strncmp(word, "last", 4)) {
      other = cudaPeekAtLastError();
      answer = cudaGetLastError();
      printf("last %d %d %d\\n", other, answer, cudaGetLastError());
    }
  }
  return 0;
}
#ifdef MAIN
int main(int count, char **words) { return run(count, words); }
#endif
"""
LOADER = """
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **words) {
  void *library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) { fprintf(stderr, "%s\\n", dlerror()); return 9; }
  int (*run)(int, char **) = (int (*)(int, char **))dlsym(library, "run");
  return run(count - 1, words + 1);
}
"""


def cc(folder: Path, text: str, name: str, *more: str) -> Path:
    """Compile C in a folder."""
    assert COMPILER is not None
    source = folder / f"{name}.c"
    source.write_text(text)
    made = folder / name
    subprocess.run([COMPILER, str(source), "-o", str(made), *more], check=True)
    return made


def shared(folder: Path, text: str, soname: str, version: str = "", *more: str) -> Path:
    """A shared library whose symbols have a version, as NVIDIA's have."""
    words = ["-shared", "-fPIC", f"-Wl,-soname,{soname}", *more]
    if version:
        (folder / f"{soname}.map").write_text(f"{version} {{ global: *; }};\n")
        words.append(f"-Wl,--version-script={folder / soname}.map")
    return cc(folder, text, soname, *words)


def runtime(folder: Path, major: str) -> Path:
    """The made-up runtime of CUDA 11, 12 or 13."""
    rows = [row for row in PROPERTIES if int(row[3 + MAJORS[major]]) >= 0]
    says = ",".join(f"{{{question},{value}}}" for question, value in H200_SAYS.items())
    fields = ",".join(f"{{{row[0]},{row[3 + MAJORS[major]]},{row[2]}}}" for row in rows)
    text = RUNTIME.replace("SAYS", f"{{{says}}}").replace("FIELDS", f"{{{fields}}}")
    text = text.replace("VERSION", {"11.0": "11080", "12": "12040", "13": "13000"}[major])
    return shared(folder, text, f"libcudart.so.{major}", f"libcudart.so.{major}")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runtimes, and for each ``program-MAJOR`` and ``libplugin-MAJOR.so``; a ``loader``."""
    folder = tmp_path_factory.mktemp("native")
    driver = shared(folder, DRIVER, "libcuda.so.1")
    for major in MAJORS:
        here = folder / major
        here.mkdir()
        library = runtime(here, major)
        words = [f"-DV={major.partition('.')[0]}", f"-Wl,-rpath,{here}:{folder}", str(library)]
        cc(here, PROGRAM, f"program-{major}", "-DMAIN", *words, str(driver))
        shared(here, PROGRAM, f"libplugin-{major}.so", "", *words, "-DNO_DRIVER")
    cc(folder, LOADER, "loader", "-ldl")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all, so that the shim is compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for name in [name for name in os.environ if name.startswith("LEGACY_CUDA_REPLAY")]:
        monkeypatch.delenv(name)
    for name in ("LD_PRELOAD", "LD_LIBRARY_PATH", "CC", native.TF32):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LEGACY_CUDA_CACHE", str(cache))
    monkeypatch.setattr(gpu, "visible", lambda: [H200, H200])


Run = Callable[..., tuple[list[str], dict[str, Any], str]]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a program through the subcommand: the lines it wrote, the report, and what was said."""

    def run(
        words: list[str], capability: str = "6.1", *more: str
    ) -> tuple[list[str], dict[str, Any], str]:
        document = tmp_path / "report.json"
        code = replay_command.run(
            options("--capability", capability, "--report", str(document), *more, "--", *words)
        )
        said = capfd.readouterr()
        assert code == 0, said
        return said.out.splitlines(), json.loads(document.read_text()), said.err

    return run


def facts(capability: str) -> catalog.CapabilityFacts:
    return catalog.capabilities()[Capability.parse(capability)]


# ------------------------------------------------------------------------------------ answers


def test_what_old_cards_say() -> None:
    told = {name: answers.answers(facts(name)) for name in ("3.7", "5.2", "6.0", "6.1", "7.0")}
    shared_memory = [row[Attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN] for row in told.values()]
    assert shared_memory == [49152, 49152, 49152, 49152, 98304]
    per = [row[Attribute.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR] >> 10 for row in told.values()]
    assert per == [112, 96, 64, 96, 96]
    ratios = [row[Attribute.SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO] for row in told.values()]
    assert ratios == [3, 32, 2, 32, 2]
    assert [row.get(Attribute.COOPERATIVE_LAUNCH) for row in told.values()] == [0, 0] + 3 * [None]
    assert [row[Attribute.L2_CACHE_SIZE] >> 10 for row in told.values()] == [
        1536, 3072, 4096, 3072, 6144,
    ]  # fmt: skip
    assert told["3.7"][Attribute.MAX_REGISTERS_PER_MULTIPROCESSOR] == 2 * 65536
    for row in told.values():
        assert row[Attribute.CLUSTER_LAUNCH] == row[Attribute.MAX_PERSISTING_L2_CACHE_SIZE] == 0
        assert Attribute.MULTIPROCESSOR_COUNT not in row
        assert 102 not in row and 115 not in row  # virtual memory management, memory pools


def test_what_old_cards_refuse() -> None:
    refused = {name: answers.refusals(facts(name)) for name in ("3.7", "5.2", "6.0", "6.1", "7.0")}
    assert refused == {
        "3.7": ("cooperative", "clusters", "gemm_ex", "half_gemm"),
        "5.2": ("cooperative", "clusters", "half_gemm"),
        "6.0": ("clusters",), "6.1": ("clusters",), "7.0": ("clusters",),
    }  # fmt: skip
    assert answers.refusals(facts("9.0")) == ()


def test_facts_of_multiprocessors_agree() -> None:
    """What is known of a multiprocessor fits what is known of a block."""
    for row in catalog.capabilities().values():
        assert row.clusters <= row.l2_persistence <= row.cooperative_launch <= row.cublas_gemm_ex
        if row.legacy:
            assert row.shared_memory_per_multiprocessor_kib is not None
            assert row.shared_memory_per_multiprocessor_kib >= row.shared_memory_optin_kib
            assert row.registers_per_block and row.registers_per_multiprocessor
            assert row.registers_per_block <= row.registers_per_multiprocessor


def test_every_answer_has_its_place() -> None:
    """Each row of the shim's table asks what Python answers, once."""
    numbers = [int(row[0]) for row in PROPERTIES]
    assert len(set(numbers)) == len(numbers) == 23
    assert set(numbers) <= {int(item) for item in Attribute}
    assert answers.question(75) == "compute_capability_major" and answers.question(1) == "1"


# ------------------------------------------------------------------- what a program is told


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("capability", ["3.7", "5.2", "6.0", "6.1", "7.0"])
def test_a_program_is_told_of_the_old_card(
    major: str, capability: str, built: Path, run: Run
) -> None:
    rows = [row for row in PROPERTIES if int(row[3 + MAJORS[major]]) >= 0]
    fields = [f"field:{row[3 + MAJORS[major]]}:{row[2]}" for row in rows]
    asks = [f"ask:{number}" for number in H200_SAYS]
    words = [str(built / major / f"program-{major}"), "name:0", "name:1", *fields, *asks]
    lines, document, said = run([*words, "function", "capability", "driver:97", "driver:102"],
                                capability)  # fmt: skip
    told = {**H200_SAYS, **answers.answers(facts(capability))}
    assert lines[:2] == [f"name 0 NVIDIA H200 (replayed as {capability})"] * 2
    assert lines[2 : 2 + len(rows)] == [str(told[int(row[0])]) for row in rows]
    assert lines[2 + len(rows) : -4] == [str(told[number]) for number in H200_SAYS]
    number = Capability.parse(capability).number
    assert lines[-4:] == [f"61 {number}", capability, str(told[97]), "1"]
    assert f"replayed at {capability} on NVIDIA H200" in said
    assert "nothing was replayed" not in said
    host = document["host"]
    (library,) = host["libraries"]
    assert Path(library["path"]).name == f"program-{major}"
    assert library["through"] == [f"libcudart.so.{major}"]
    row = {"question": "compute_capability_major", "gpu": 9, "told": number // 10, "processes": 1}
    assert row in host["answered"] and host["unanswered"] == []


def test_a_library_that_is_loaded_later_is_told_too(built: Path, run: Run) -> None:
    """Its runtime is in no scope that RTLD_NEXT looks at. Two of them, of two CUDAs."""
    for major in ("12", "11.0"):
        plugin = built / major / f"libplugin-{major}.so"
        lines, document, _ = run([str(built / "loader"), str(plugin), "name:0", "ask:75"])
        assert lines == ["name 0 NVIDIA H200 (replayed as 6.1)", "6"]
        (library,) = document["host"]["libraries"]
        assert library["path"] == str(plugin)


def test_libraries_for_the_gpu_at_hand_see_it_as_it_is(
    built: Path, tmp_path: Path, run: Run
) -> None:
    plugin = tmp_path / "libtorch_cuda.so"
    shutil.copy(built / "12" / "libplugin-12.so", plugin)
    words = ["name:0", "ask:75", "optin:100000", "together", "last"]
    lines, document, said = run([str(built / "loader"), str(plugin), *words], "3.7")
    assert lines == ["name 0 NVIDIA H200", "9", "set 8", "optin 0", "launched together",
                     "together 0", "last 0 0 0"]  # fmt: skip
    assert document["host"]["libraries"] == [] and "nothing was replayed" in said


def test_multiprocessors_are_the_gpus_unless_asked(built: Path, run: Run) -> None:
    words = [str(built / "12" / "program-12"), "ask:16"]
    assert run(words)[0] == ["132"]
    assert run(words, "6.1", "--multiprocessors", "30")[0] == ["30"]
    with pytest.raises(UserError, match="--multiprocessors"):
        run(words, "6.1", "--multiprocessors", "-1")


def test_without_a_replay_the_shim_does_nothing(built: Path) -> None:
    variables = {**os.environ, "LD_PRELOAD": str(compiler.shim())}
    words = [str(built / "12" / "program-12"), "name:0", "ask:75", "together"]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["name 0 NVIDIA H200", "9", "launched together",
                                        "together 0"]  # fmt: skip


# ----------------------------------------------------------------------- what is refused


def test_shared_memory_above_the_old_cards_is_refused(built: Path, run: Run) -> None:
    """The kernel has 1024 bytes of its own. The error is that of the real runtime: 1."""
    words = [str(built / "12" / "program-12"), "optin:48128", "optin:48129", "last", "launch:48128",
             "launch:49153", "launch:49153", "handle:49153", "last", "handle:1"]  # fmt: skip
    lines, document, said = run(words)
    assert lines == ["set 8", "optin 0", "optin 1", "last 1 1 0", "launched 7 5 48128", "launch 0",
                     "launch 1", "launch 1", "handle 1", "last 1 1 0", "launched by handle",
                     "handle 0"]  # fmt: skip
    told = "more shared memory than a block can have"
    assert document["refused"] == [
        {"name": "__cudaLaunchKernel", "error": told, "times": 1},
        {"name": "cudaFuncSetAttribute", "error": told, "times": 1},
        {"name": "cudaLaunchKernel", "error": told, "times": 2},
    ]
    assert "3 refused for the old target" in said
    words = [str(built / "12" / "program-12"), "optin:97280", "optin:97281", "launch:97280"]
    assert run(words, "7.0")[0] == ["set 8", "optin 0", "optin 1", "launched 7 5 97280", "launch 0"]


@pytest.mark.parametrize("capability", ["3.7", "5.2", "6.0", "6.1", "7.0"])
def test_what_came_later_is_refused(capability: str, built: Path, run: Run) -> None:
    cooperative = capability >= "6.0"
    words = [
        str(built / "13" / "program-13"),
        *("together", "ex:1:1", "ex:1:4", "ex:2:4", "ex:2:11", "ex:0:8"),
        *("cluster_function", "last"),
    ]
    lines, document, _ = run(words, capability)
    expected = ["launched together", "together 0"] if cooperative else ["together 801"]
    expected += ["launched ex", "ex 0"]  # an access policy window: a hint
    expected += ["launched ex", "ex 0", "ex 801", "ex 801"]  # a cluster of one block is none
    expected += ["launched ex", "ex 0", "cluster_function 801", "last 801 801 0"]
    assert lines == expected
    names = [(row["name"], row["times"]) for row in document["refused"]]
    assert ("cudaLaunchKernelExC", 2) in names
    assert (("cudaLaunchCooperativeKernel", 1) in names) == (not cooperative)


@pytest.mark.parametrize(
    ("attribute", "refused_at"),
    [(6, ("3.7", "6.1")), (7, ("3.7", "6.1")), (12, ("3.7", "6.1")), (2, ("3.7",))],
)
def test_launch_attributes(
    attribute: int, refused_at: tuple[str, ...], built: Path, run: Run
) -> None:
    for capability in ("3.7", "6.1"):
        words = [str(built / "11.0" / "program-11.0"), f"ex:1:{attribute}"]
        lines, _, _ = run(words, capability)
        refused = capability in refused_at
        assert lines == (["ex 801"] if refused else ["launched ex", "ex 0"])


def test_blocks_are_limited_as_on_the_old_card(built: Path, run: Run) -> None:
    """Of 256 threads: 8 by their number; by shared memory, with the kernel's own 1024 bytes."""
    words = [str(built / "12" / "program-12"), "blocks:0", "blocks:23552", "blocks:50000"]
    for capability, expected in (("6.1", [8, 4, 0]), ("6.0", [8, 2, 0]), ("7.0", [8, 4, 1])):
        assert run(words, capability)[0] == [str(item) for item in expected]


# ---------------------------------------------------------------------------- the environment


def test_preloads_that_are_there_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = command.prepare("6.1", False, False, tmp_path / "record")
    made = command.environment(settings, {"LD_PRELOAD": "/mine.so", native.TF32: "1"})
    assert made["LD_PRELOAD"] == f"/mine.so:{compiler.shim()}"
    assert native.TF32 not in made
    again = command.environment(settings, made)
    assert again["LD_PRELOAD"] == made["LD_PRELOAD"]
    assert command.environment(settings, {})[native.TF32] == "0"
    offline = command.prepare("6.1", True, False, tmp_path / "record")
    assert "LD_PRELOAD" not in command.environment(offline, {})
    newer = Settings((8, 0), (9, 0), "NVIDIA H200", 49152, 166912)
    assert native.TF32 not in command.environment(newer, {})


def test_the_shim_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler.shim()
    monkeypatch.setattr(compiler, "find", lambda: ["false"])
    assert compiler.shim() == first and first.is_relative_to(cache)
    assert [path.name for path in first.parent.iterdir()] == [first.name]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEGACY_CUDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_a_compiler_cpp_is_refused(built: Path, no_compiler: None, run: Run) -> None:
    with pytest.raises(SurroundingsError, match="no C compiler") as caught:
        run([str(built / "12" / "program-12"), "ask:75"])
    assert caught.value.exit_code == 3 and "legacy-cuda toolchain" in caught.value.next_step


def test_without_a_compiler_python_goes_on(no_compiler: None, run: Run) -> None:
    lines, _, said = run([sys.executable, "-c", "print('here')"])
    assert lines == ["here"]
    assert "warning: programs in C++ are not replayed: there is no C compiler here" in said


def test_a_pinned_toolchains_compiler_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = tmp_path / "toolchains" / "12.4-abc"
    gcc = made / "bin" / "gcc"
    gcc.parent.mkdir(parents=True)
    gcc.write_text("#!/bin/sh\n")
    gcc.chmod(0o755)
    monkeypatch.setenv("LEGACY_CUDA_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SurroundingsError):
        compiler.find()  # it is not finished
    (made / "toolchain.json").write_text("{}")
    assert compiler.find() == [str(gcc)]
    monkeypatch.setenv("CC", f"{gcc} -m64")
    assert compiler.find() == [str(gcc), "-m64"]


@pytest.mark.parametrize("broken", ["int x = ;", '#error "no"'])
def test_a_compiler_that_refuses_is_quoted(
    broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LEGACY_CUDA_CACHE", str(tmp_path))
    with pytest.raises(SurroundingsError, match="does not compile") as caught:
        compiler.library("libx.so", {"x.c": broken})
    assert "error" in caught.value.why
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_preloaded_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LEGACY_CUDA_CACHE", str(tmp_path / "with space"))
    with pytest.raises(SurroundingsError, match="cannot be preloaded"):
        compiler.shim()


# ------------------------------------------------------------------- what cannot be answered

STATIC = """
__attribute__((section(".nv_fatbin"), used)) static const char code[64] = "device code";
extern int cuDeviceGet(int *, int);
int main(void) { int device; return cuDeviceGet(&device, 0); }
"""


def test_a_static_runtime_is_warned_of(built: Path, tmp_path: Path, run: Run) -> None:
    words = [f"-Wl,-rpath,{built}", str(built / "libcuda.so.1")]
    path = cc(tmp_path, STATIC, "static", *words)
    _, document, said = run([str(path)])
    assert "warning: static has a CUDA runtime of its own" in said
    assert document["host"]["unanswered"] == [str(path)]
    assert "nothing was replayed: the GPU was used without a shared CUDA runtime" in said


def test_device_code_with_a_shared_runtime_is_not(built: Path, tmp_path: Path, run: Run) -> None:
    text = STATIC.replace("extern", "int __cudaRegisterFatBinary(void *);\nextern").replace(
        "return", "__cudaRegisterFatBinary(0); return"
    )
    words = [f"-Wl,-rpath,{built}:{built / '12'}", str(built / "libcuda.so.1"),
             str(built / "12" / "libcudart.so.12")]  # fmt: skip
    _, _, said = run([str(cc(tmp_path, text, "dynamic", *words))])
    assert "warning" not in said


@pytest.mark.parametrize(
    ("code", "same", "text"),
    [
        ([["compute_61"]], True, "1 containers"),
        ([["sm_61", "compute_61"]], True, "1 containers"),
        ([["sm_60", "compute_60"]], True, "1 containers"),
        ([["compute_52"], ["compute_61"]], True, "2 containers"),
        ([["compute_61", "sm_90"]], False, "sm_90 instead of compute_61"),
        ([["compute_61", "compute_70"]], False, "compute_70 instead of compute_61"),
        ([["sm_61"]], False, "nothing instead of sm_61"),
        ([["compute_70"]], False, "compute_70 instead of nothing"),
        ([["sm_75"]], None, "none"),
    ],
)
def test_code_that_ran_is_the_old_cards_or_not(
    code: list[list[str]], same: bool | None, text: str, tmp_path: Path
) -> None:
    containers = [
        builders.container(
            *(
                builders.entry(builders.PTX, Target.parse(name).capability.number, builders.ptx())
                if name.startswith("compute")
                else builders.entry(builders.CUBIN, Target.parse(name).capability.number)
                for name in names
            )
        )
        for names in code
    ]
    path = tmp_path / "libx.so"
    path.write_bytes(builders.library(*containers))
    found = verdict.judge(path, Capability(6, 1), Capability(9, 0))
    assert found["same_code"] is same and text in found["device_code"]


def test_code_that_cannot_be_read_is_not_judged(tmp_path: Path) -> None:
    found = verdict.judge(tmp_path / "gone", Capability(6, 1), Capability(9, 0))
    assert found["same_code"] is None and found["device_code"].startswith("not read")


def test_other_code_is_told(tmp_path: Path) -> None:
    path = tmp_path / "libx.so"
    path.write_bytes(builders.library(builders.container(builders.entry(number=90))))
    record = tmp_path / "record"
    line = {"kind": "host", "pid": 1, "program": "p", "library": str(path), "through": "/r.so"}
    record.write_text(
        json.dumps(line) + "\n" + '{"kind": "unanswered", "pid": 2, "program": "q"}\n'
    )
    settings = command.prepare("6.1", False, False, record)
    document = report.gather(settings, ["p"], 0)
    said = report.summary(document)
    assert said == (
        "replayed at 6.1 on NVIDIA H200: the host code of libx.so. Not replayed: libx.so ran "
        "1 x sm_90 instead of nothing; 0 as the old card's. Not answered: q"
    )


# --------------------------------------------------------------------------------- ELF, cuBLAS


def test_dynamic_sections_are_read_as_by_pyelftools(built: Path) -> None:
    paths = [*built.rglob("program-*"), *built.rglob("lib*.so*"), Path(sys.executable)]
    for path in [path for path in paths if path.suffix not in (".c", ".map")]:
        mine = dynamic.read(path)
        assert mine is not None
        with path.open("rb") as file:
            elf = ELFFile(file)
            section = elf.get_section_by_name(".dynamic")
            tags = [(tag.entry.d_tag, tag) for tag in section.iter_tags()]
            assert list(mine.needed) == [tag.needed for kind, tag in tags if kind == "DT_NEEDED"]
            runpath = [tag.runpath for kind, tag in tags if kind == "DT_RUNPATH"]
            assert ":".join(mine.runpath) == "".join(runpath)
            names = elf.get_section_by_name(".dynsym")
            undefined = {
                symbol.name for symbol in names.iter_symbols()
                if symbol.name and symbol.entry.st_shndx == "SHN_UNDEF"
            }  # fmt: skip
            assert {symbol.name for symbol in mine.undefined} == undefined
            wanted = elf.get_section_by_name(".gnu.version_r")
            versions = {
                (need.name, version.name)
                for need, found in (wanted.iter_versions() if wanted else [])
                for version in found
            }
            seen = {(item.file, item.version) for item in mine.undefined if item.version}
            assert seen <= versions
    twelve = dynamic.read(built / "12" / "program-12")
    assert twelve is not None and twelve.needs_runtime and not twelve.own_runtime
    assert dynamic.Symbol("cudaLaunchKernel", "libcudart.so.12", "libcudart.so.12") in (
        twelve.undefined
    )


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\2\1\1" + b"\0" * 300])
def test_what_is_no_program_is_passed_over(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    assert program.binaries(path, {}) == [] or data.startswith(b"\x7fELF\2")


CUBLAS_PROGRAM = """
#include <stdio.h>
extern int cublasCreate_v2(void **), cublasSscal_v2(void *, int, const float *, float *, int);
extern int cublasGemmEx(void *, int, int, int, int, int, const void *, const void *, int, int,
                        const void *, int, int, const void *, void *, int, int, int, int);
extern int cudaGetLastError(void);
int main(void) {
  void *handle; float one = 1;
  printf("%d", cublasCreate_v2(&handle));
  printf(" %d", cublasSscal_v2(handle, 5, &one, &one, 6));
  for (int compute = 64; compute < 69; compute += 4)
    printf(" %d", cublasGemmEx(handle, 1, 2, 3, 4, 5, &one, &one, 2, 6, &one, 2, 7, &one, &one, 2,
                               8, compute, 99));
  printf(" %d\\n", cudaGetLastError());
  return 0;
}
"""
CUBLAS = """
#include <stdio.h>
int cublasCreate_v2(void **handle) { *handle = handle; return 0; }
int cublasSscal_v2(void *h, int n, const float *a, float *x, int step) { return n * 10 + step; }
int cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, const void *al, const void *a,
                 int at, int lda, const void *b, int bt, int ldb, const void *be, void *c, int ct,
                 int ldc, int compute, int algorithm) {
  return ta == 1 && tb == 2 && k == 5 && lda == 6 && ldb == 7 && ldc == 8 && algorithm == 99
         ? 1000 + compute : -1;
}
"""


@pytest.fixture
def cublas_program(built: Path, tmp_path: Path) -> Path:
    """A program that needs libcublas.so.12, where there is only a libcublas.so.13."""
    there = tmp_path / "nvidia" / "cu13" / "lib"
    there.mkdir(parents=True)
    shared(there, CUBLAS, "libcublas.so.13", "libcublas.so.13")
    twelve = shared(tmp_path, CUBLAS, "libcublas.so.12", "libcublas.so.12")
    runtime_library = built / "12" / "libcudart.so.12"
    words = [f"-Wl,-rpath,{built / '12'}", str(twelve), str(runtime_library)]
    path = cc(tmp_path, CUBLAS_PROGRAM, "multiply", *words)
    twelve.unlink()
    return path


def test_another_cublas_is_forwarded_to(
    cublas_program: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    there = cublas_program.parent / "nvidia" / "cu13" / "lib" / "libcublas.so.13"
    monkeypatch.syspath_prepend(str(cublas_program.parent))
    lines, document, said = run([str(cublas_program)])
    assert lines == ["0 56 1064 1068 0"]
    assert "libcublas.so.12 is not here: calls go to libcublas.so.13" in said
    assert document["refused"] == []
    monkeypatch.setenv(cublas.TARGET, str(there))
    lines, document, _ = run([str(cublas_program)], "5.2")
    assert lines == ["0 56 8 1068 0"]  # 16F, where there is no half precision arithmetic
    lines, document, _ = run([str(cublas_program)], "3.7")
    assert lines == ["0 56 8 8 0"]
    (refused,) = document["refused"]
    assert refused["name"] == "cublasGemmEx" and refused["times"] == 2
    assert "ARCH_MISMATCH" in refused["error"]


def test_the_stand_in_has_soname_and_versions(cublas_program: Path) -> None:
    found = program.binaries(cublas_program, {})
    wanted = program.missing_cublas(found, {})
    assert wanted == {"libcublas.so.12": {"cublasCreate_v2", "cublasSscal_v2", "cublasGemmEx"}}
    made = cublas.stub("libcublas.so.12", wanted["libcublas.so.12"])
    assert made.name == "libcublas.so.12"
    assert program.missing_cublas(found, {"LD_LIBRARY_PATH": str(made.parent)}) == {}
    with made.open("rb") as file:
        elf = ELFFile(file)
        defined = elf.get_section_by_name(".gnu.version_d")
        assert [next(names).name for _, names in defined.iter_versions()] == 2 * ["libcublas.so.12"]


def test_no_cublas_at_all(
    cublas_program: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cublas, "own", lambda variables: None)
    words = ["--capability", "6.1", "--", str(cublas_program)]
    assert replay_command.run(options(*words)) == 127  # the loader's own
    assert "there is no libcublas.so.12 here" in capfd.readouterr().err


def test_the_newest_cublas_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "loader_cache", lambda: {})
    monkeypatch.setattr(cublas, "_folders", lambda variables: [tmp_path])
    assert cublas.own({}) is None
    for name in ("libcublas.so.11", "libcublas.so.13", "libcublas.so.9", "libcublas.so.13.1.0"):
        (tmp_path / name).touch()
    assert cublas.own({}) == (tmp_path / "libcublas.so.13").resolve()
    assert cublas.own({cublas.TARGET: "/mine"}) == Path("/mine")


def test_libraries_in_other_folders() -> None:
    """Those of a Python package, which the interpreter loads."""
    made = compiler.shim()
    python = Path(sys.executable)
    assert made.name not in {item.path.name for item in program.binaries(python, {})}
    assert made.name in {item.path.name for item in program.binaries(python, {}, [made.parent])}
