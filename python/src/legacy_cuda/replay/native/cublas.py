"""A stand-in for a cuBLAS of another major version: each call goes to the machine's own.

cuBLAS is hundreds of megabytes, its major version is in its soname and in the version of its
symbols, and the functions that programs call have been the same from 11 to 13. So a program of CUDA
11 can be replayed with the libcublas.so.13 that is there. For replay only, made where it is used:
no wheel holds it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from legacy_cuda.replay.inside.settings import PREFIX
from legacy_cuda.replay.native import compiler, program

TARGET = f"{PREFIX}_CUBLAS"
"""The variable with the path of the machine's own cuBLAS; a person may set it."""

_SOURCE = """\
/* Made by legacy-cuda replay. Each function jumps to the one of that name in the machine's own
 * cuBLAS, with the arguments as they are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT {count}
__attribute__((visibility("hidden"))) void *legacy_cuda_targets[COUNT];
static const char *const names[COUNT] = {{
{names}
}};

static void absent(void)
{{
    fprintf(stderr, "legacy-cuda replay: this machine's cuBLAS has no such function\\n");
    abort();
}}

__attribute__((constructor)) static void fill(void)
{{
    const char *path = getenv("{variable}");
    void *library = path && *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library)
        fprintf(stderr, "legacy-cuda replay: no cuBLAS to forward to: %s\\n",
                path && *path ? dlerror() : "{variable} is not set");
    for (int n = 0; n < COUNT; n++) {{
        void *found = library ? dlsym(library, names[n]) : NULL;
        legacy_cuda_targets[n] = found ? found : (void *)absent;
    }}
}}

#if defined(__x86_64__)
#define JUMP(offset) "jmp *legacy_cuda_targets+" #offset "(%rip)\\n"
#elif defined(__aarch64__)
#define JUMP(offset) "adrp x16, legacy_cuda_targets+" #offset "\\n" \\
    "ldr x16, [x16, :lo12:legacy_cuda_targets+" #offset "]\\nbr x16\\n"
#else
#error "no forwarding for this processor"
#endif
#define FORWARD(name, offset) \\
    __asm__(".text\\n.globl " #name "\\n.type " #name ", %function\\n.p2align 4\\n" \\
            #name ":\\n" JUMP(offset) ".size " #name ", .-" #name "\\n");

{forwards}
"""


def stub(soname: str, symbols: set[str]) -> Path:
    """The library of that soname, its symbols of the version that NVIDIA gives them: the soname.

    Raises:
        SurroundingsError: it cannot be compiled.
    """
    names = sorted(name for name in symbols if re.fullmatch(r"\w+", name))
    source = _SOURCE.format(
        count=max(1, len(names)),
        variable=TARGET,
        names="\n".join(f'    "{name}",' for name in names) or "    0",
        forwards="\n".join(f"FORWARD({name}, {8 * n})" for n, name in enumerate(names)),
    )
    versions = f"{soname} {{ global: {' '.join(f'{name};' for name in names)} local: *; }};\n"
    return compiler.library(
        soname,
        {"stub.c": source, "versions": versions},
        (f"-Wl,-soname,{soname}", "-Wl,--version-script=versions"),
    )


def own(variables: Mapping[str, str]) -> Path | None:
    """The machine's own cuBLAS, the newest there is; None if there is none."""
    chosen = variables.get(TARGET)
    if chosen:
        return Path(chosen)
    found: dict[int, Path] = {}
    for folder in _folders(variables):
        for path in folder.glob("libcublas.so.*"):
            major = path.name.removeprefix("libcublas.so.")
            if major.isdigit():
                found.setdefault(int(major), path)
    for name, path in program.loader_cache().items():
        major = name.removeprefix("libcublas.so.")
        if major.isdigit():
            found.setdefault(int(major), path)
    return found[max(found)].resolve() if found else None


def _folders(variables: Mapping[str, str]) -> Iterator[Path]:
    """Where NVIDIA's installer and wheels put libraries, and where the loader is told to look."""
    for item in variables.get("LD_LIBRARY_PATH", "").split(":"):
        if item:
            yield Path(item)
    for site in dict.fromkeys([*sys.path, *_sites_of_python(variables)]):
        if site:
            yield from sorted(Path(site, "nvidia").glob("*/lib"), reverse=True)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if variables.get(name):
            yield Path(variables[name], "lib64")
    yield from sorted(Path("/usr/local").glob("cuda*/lib64"), reverse=True)


def _sites_of_python(variables: Mapping[str, str]) -> list[str]:
    """The module path of the python3 on PATH, which may have PyTorch and its libraries."""
    python = shutil.which("python3", path=variables.get("PATH"))
    if python is None:
        return []
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    words = [python, "-c", "import json, sys; print(json.dumps(sys.path))"]
    done = subprocess.run(words, env=plain, capture_output=True, text=True, check=False)
    try:
        return [str(item) for item in json.loads(done.stdout)]
    except ValueError:
        return []
