"""A program and the libraries it may load, before it is started."""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from legacy_cuda.replay.native import dynamic
from legacy_cuda.replay.native.answers import LEFT_ALONE
from legacy_cuda.replay.native.dynamic import Binary

_USUAL = ("/lib64", "/usr/lib64", "/lib", "/usr/lib")


def binaries(
    program: Path, variables: Mapping[str, str], folders: Iterable[Path] = ()
) -> list[Binary]:
    """The program, the libraries beside it and in ``folders`` (it may load them by name), and what
    all these need.

    NVIDIA's own libraries are not among them, nor what cannot be found; nothing if the program is
    no ELF file.
    """
    first = dynamic.read(program)
    if first is None:
        return []
    found = {program.resolve(): first}
    waiting = [first]
    for folder in (program.resolve().parent, *folders):
        for path in sorted(folder.glob("lib*.so*")):
            _add(path, found, waiting)
    while waiting:
        binary = waiting.pop()
        for soname in binary.needed:
            if not soname.startswith(LEFT_ALONE):
                path_found = locate(soname, binary, variables)
                if path_found is not None:
                    _add(path_found, found, waiting)
    return list(found.values())


def _add(path: Path, found: dict[Path, Binary], waiting: list[Binary]) -> None:
    real = path.resolve()
    if real in found or not real.is_file() or path.name.startswith(LEFT_ALONE):
        return
    binary = dynamic.read(real)
    if binary is not None:
        found[real] = binary
        waiting.append(binary)


def locate(soname: str, needer: Binary, variables: Mapping[str, str]) -> Path | None:
    """The file that the dynamic loader would take for a library, as ld.so(8) says.

    The RPATH of what loads the needing library is not looked at.
    """
    if "/" in soname:
        return Path(soname) if Path(soname).is_file() else None
    chosen = [item for item in variables.get("LD_LIBRARY_PATH", "").split(":") if item]
    for folder in (*needer.rpath, *chosen, *needer.runpath):
        if (Path(folder) / soname).is_file():
            return Path(folder) / soname
    known = loader_cache().get(soname)
    if known is not None:
        return known
    machine = platform.machine()
    for folder in (f"/lib/{machine}-linux-gnu", f"/usr/lib/{machine}-linux-gnu", *_USUAL):
        if (Path(folder) / soname).is_file():
            return Path(folder) / soname
    return None


@functools.lru_cache
def loader_cache() -> dict[str, Path]:
    """What ``ldconfig -p`` lists, 64-bit libraries only; nothing where there is no ldconfig."""
    ldconfig = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    if ldconfig is None:
        return {}
    done = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False)
    found: dict[str, Path] = {}
    for name, kind, path in re.findall(r"^\s*(\S+) \(([^)]*)\) => (.+)$", done.stdout, re.M):
        if "64" in kind:
            found.setdefault(name, Path(path))
    return found


def missing_cublas(found: Iterable[Binary], variables: Mapping[str, str]) -> dict[str, set[str]]:
    """Sonames of cuBLAS that the loader would not find, and the symbols that are wanted of each."""
    wanted: dict[str, set[str]] = {}
    for binary in found:
        for soname in binary.needed:
            if re.fullmatch(r"libcublas\.so\.\d+", soname) is None:
                continue
            if locate(soname, binary, variables) is None:
                symbols = wanted.setdefault(soname, set())
                symbols.update(
                    symbol.name
                    for symbol in binary.undefined
                    if symbol.name.startswith("cublas") and symbol.file in ("", soname)
                )
    return wanted
