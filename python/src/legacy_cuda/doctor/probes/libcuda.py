"""Where libcuda.so.1 lies, of which release, and whether a compat folder comes before it."""

from __future__ import annotations

import os
import re

from legacy_cuda.doctor.facts import Fact, Library, LibraryFacts
from legacy_cuda.doctor.place import Place

NAME = "libcuda.so.1"
FOLDERS = (
    "/run/opengl-driver/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/usr/lib64",
    "/usr/lib64/nvidia",
    "/usr/lib",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
)
LOCAL = "/usr/local"
SETTINGS = "/etc/ld.so.conf.d"
_VERSION = re.compile(r"libcuda\.so\.(\d{3}\.\d+(?:\.\d+)?)")
_CUDA = re.compile(r"cuda(-\d+(\.\d+)?)?")


def look(place: Place, variables: dict[str, str] | None = None) -> LibraryFacts:
    """Every libcuda on the usual paths and in CUDA's compat folders.

    Args:
        variables: the environment; None: the process's own for the running system, else none.
    """
    if variables is None:
        variables = dict(os.environ) if place.live else {}
    compat = [f"{LOCAL}/{name}/compat" for name in place.names(LOCAL) if _CUDA.fullmatch(name)]
    found: dict[str, Library] = {}
    for folder in (*FOLDERS, *compat):
        path = f"{folder}/{NAME}"
        real = place.real(path)
        if place.mode(path) is None or real in found:
            continue
        found[real] = Library(path, _version(place, folder, real), folder in compat)
    return LibraryFacts(tuple(found.values()), _first(place, compat, variables))


def _version(place: Place, folder: str, real: str) -> str | None:
    named = _VERSION.fullmatch(real.rpartition("/")[2])
    if named is not None:
        return named[1]
    beside = {match[1] for name in place.names(folder) if (match := _VERSION.fullmatch(name))}
    return beside.pop() if len(beside) == 1 else None


def _first(place: Place, compat: list[str], variables: dict[str, str]) -> Fact[str] | None:
    """What puts a compat folder that holds a libcuda on the loader's path."""
    holding = {place.real(item): item for item in compat if place.mode(f"{item}/{NAME}")}
    if not holding:
        return None
    for folder in variables.get("LD_LIBRARY_PATH", "").split(":"):
        if folder.startswith("/") and place.real(folder.rstrip("/")) in holding:
            return Fact(folder, "LD_LIBRARY_PATH")
    for name in place.names(SETTINGS):
        for line in (place.text(f"{SETTINGS}/{name}") or "").splitlines():
            folder = line.strip().rstrip("/")
            if folder.startswith("/") and place.real(folder) in holding:
                return Fact(folder, f"{SETTINGS}/{name}")
    return None
