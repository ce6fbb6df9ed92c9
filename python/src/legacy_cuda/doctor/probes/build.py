"""CUDA toolkits, host compilers and the C library's headers, by their files: nothing is run, so an
nvcc of another version than its toolkit's papers say is not noticed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

from legacy_cuda import paths
from legacy_cuda.doctor.facts import BuildFacts, Fact, InstalledToolkit
from legacy_cuda.doctor.place import Place

COMMANDS = ("/usr/bin", "/usr/local/bin")
FEATURES = ("/usr/include/features.h", "/usr/include/x86_64-linux-gnu/features.h")
_NUMBER = re.compile(r"(\d{1,2})\.(\d{1,2})")
_MACRO = re.compile(r"^#define\s+CUDA_VERSION\s+(\d{4,6})\b", re.MULTILINE)
_COMPILER = re.compile(r"(?:x86_64-linux-gnu-)?g\+\+-(\d{1,2})")  # not those for other machines
_GLIBC = re.compile(r"^#define\s+__GLIBC(_MINOR)?__\s+(\d{1,4})\b", re.MULTILINE)
_COSPI = re.compile(r"^.*\bdouble\s+cospi\s*\(\s*double\s+x\s*\)[^;\n]*", re.MULTILINE)


def look(place: Place, variables: dict[str, str] | None = None) -> BuildFacts:
    """What a build on this machine would find.

    Args:
        variables: the environment; None: the process's own for the running system, else none.
    """
    if variables is None:
        variables = dict(os.environ) if place.live else {}
    toolkits: dict[str, InstalledToolkit] = {}
    for root in _roots(place, variables):
        if place.mode(f"{root}/bin/nvcc") is None:
            continue
        real = place.real(root)
        if real not in toolkits and (toolkit := _toolkit(place, root)) is not None:
            toolkits[real] = toolkit
    compilers = {
        int(match[1]): f"{folder}/{name}"
        for folder in COMMANDS
        for name in place.names(folder)
        if (match := _COMPILER.fullmatch(name))
    }
    return BuildFacts(
        tuple(toolkits.values()),
        tuple(Fact(number, path) for number, path in sorted(compilers.items())),
        _usual(place),
        _glibc(place),
    )


def _roots(place: Place, variables: dict[str, str]) -> Iterator[str]:
    for name in paths.TOOLKIT_VARIABLES:
        if (value := variables.get(name, "")).startswith("/"):
            yield value.rstrip("/")
    for name in place.names("/usr/local"):
        if name.startswith("cuda-"):
            yield f"/usr/local/{name}"
    yield from paths.TOOLKITS


def _toolkit(place: Place, root: str) -> InstalledToolkit | None:
    for version, source in _versions(place, root):
        if version is not None:
            return InstalledToolkit(root, version, source, _cospi(place, root))
    return None


def _versions(place: Place, root: str) -> Iterator[tuple[tuple[int, int] | None, str]]:
    """What the toolkit's papers say of its version, the best first."""
    path = f"{root}/version.json"
    try:
        said = json.loads(place.text(path) or "{}")["cuda"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = ""
    yield _pair(said if isinstance(said, str) else ""), path
    path = f"{root}/version.txt"
    yield _pair(place.text(path, 256) or ""), path
    path = f"{root}/include/cuda.h"
    macro = _MACRO.search(place.text(path, 1 << 20) or "")
    number = int(macro[1]) if macro else 0
    yield ((number // 1000, number % 1000 // 10) if macro else None), path


def _pair(text: str) -> tuple[int, int] | None:
    match = _NUMBER.search(text)
    return (int(match[1]), int(match[2])) if match else None


def _cospi(place: Place, root: str) -> Fact[str] | None:
    for below in ("include", "targets/x86_64-linux/include"):
        path = f"{root}/{below}/crt/math_functions.h"
        match = _COSPI.search(place.text(path, 1 << 20) or "")
        if match is not None:
            return Fact(" ".join(match[0].split()), path)
    return None


def _usual(place: Place) -> Fact[int] | None:
    """The version of the g++ that is called so, by what its link leads to."""
    for folder in COMMANDS:
        name = place.real(f"{folder}/g++").rpartition("/")[2]
        match = _COMPILER.fullmatch(name)
        if match is not None:
            return Fact(int(match[1]), f"{folder}/g++")
    return None


def _glibc(place: Place) -> Fact[tuple[int, int]] | None:
    for path in FEATURES:
        said = {bool(minor): int(n) for minor, n in _GLIBC.findall(place.text(path) or "")}
        if len(said) == 2:
            return Fact((said[False], said[True]), path)
    return None
