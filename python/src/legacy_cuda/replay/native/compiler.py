"""C compiled by the machine's own compiler into the cache: once, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from legacy_cuda.errors import SurroundingsError
from legacy_cuda.paths import cache_directory

SHIM = Path(__file__).with_name("shim.c")
_OPTIONS = ("-std=c11", "-O2", "-Wall", "-shared", "-fPIC", "-fvisibility=hidden")
_LIBRARIES = ("-ldl", "-lpthread")  # of their own below glibc 2.34


def find() -> list[str]:
    """A C compiler: CC, the usual names on PATH, or that of a pinned toolchain in the cache.

    Raises:
        SurroundingsError: there is none.
    """
    chosen = shlex.split(os.environ.get("CC", ""))
    for words in (chosen, ["cc"], ["gcc"], ["clang"]):
        if words and shutil.which(words[0]):
            return words
    for gcc in sorted((cache_directory() / "toolchains").glob("*/bin/gcc"), reverse=True):
        if (gcc.parents[1] / "toolchain.json").is_file() and os.access(gcc, os.X_OK):
            return [str(gcc)]
    raise SurroundingsError(
        "there is no C compiler here",
        "the library that answers a C++ program's questions about its GPU is compiled where it "
        "runs; looked for: CC, cc, gcc, clang, a toolchain of legacy-cuda",
        "install gcc, or run: legacy-cuda toolchain 12.4",
    )


def shim() -> Path:
    """The library to preload, compiled if it is not there.

    Raises:
        SurroundingsError: it cannot be compiled, or not be preloaded.
    """
    return library("liblegacy_cuda_replay.so", {"shim.c": SHIM.read_text(encoding="utf-8")})


def library(name: str, sources: Mapping[str, str], options: tuple[str, ...] = ()) -> Path:
    """A shared library of that name, from texts by file name: ``.c`` is compiled, the rest is there
    for ``options``. Kept under a hash of all of it and of the C library.

    Raises:
        SurroundingsError: there is no compiler, it refuses, or the result does not load.
    """
    digest = hashlib.sha256()
    libc = " ".join(platform.libc_ver())
    for part in (name, *options, *_OPTIONS, platform.machine(), libc, *map(repr, sources.items())):
        digest.update(part.encode() + b"\0")
    target = cache_directory() / "replay" / "native" / digest.hexdigest()[:16] / name
    if target.is_file():
        return target
    compiler = find()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as making:
            folder = Path(making)
            for file, text in sources.items():
                (folder / file).write_text(text, encoding="utf-8")
            code = [file for file in sources if file.endswith(".c")]
            words = [*compiler, *_OPTIONS, *options, *code, "-o", name, *_LIBRARIES]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SurroundingsError(
                    f"{name} does not compile",
                    f"{shlex.join(words)}: {(done.stderr or done.stdout).strip()}",
                    "set CC to a C compiler that works here",
                )
            _check_preload(folder / name)
            (folder / name).replace(target)
    except OSError as error:
        raise SurroundingsError(
            f"{name} cannot be made",
            str(error),
            "free space, or set LEGACY_CUDA_CACHE to another folder",
        ) from error
    return target


def _check_preload(path: Path) -> None:
    """The loader goes on without a library that it cannot preload, so it is tried here.

    Raises:
        SurroundingsError: it cannot be.
    """
    if any(sign in str(path) for sign in " :"):
        raise SurroundingsError(
            "libraries below this cache cannot be preloaded",
            f"LD_PRELOAD splits names at spaces and colons: {path.parent}",
            "set LEGACY_CUDA_CACHE to another folder",
        )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ""],
        env={**os.environ, "LD_PRELOAD": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or "LD_PRELOAD" in done.stderr:
        raise SurroundingsError(
            f"{path.name} cannot be preloaded here",
            done.stderr.strip() or f"a program with it ended with {done.returncode}",
            "set CC to a compiler for this machine's C library",
        )
