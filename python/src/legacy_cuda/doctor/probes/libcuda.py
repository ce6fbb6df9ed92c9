"""Where libcuda.so.1 lies, of which release, and whether a compat folder comes before it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from legacy_cuda.doctor.facts import Fact, Library, LibraryFacts
from legacy_cuda.doctor.place import Place

NAME = "libcuda.so.1"
FOLDERS = (
    "/run/opengl-driver/lib",
    *(
        f"/usr/lib/{machine}-linux-gnu{below}"
        for machine in ("x86_64", "aarch64")
        for below in ("", "/nvidia/current")
    ),
    "/usr/lib64",
    "/usr/lib64/nvidia",
    "/usr/lib",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
)
LOCAL = "/usr/local"
SETTINGS = "/etc/ld.so.conf.d"
_VERSION = re.compile(r"libcuda\.so\.(\d{3}\.\d+(?:\.\d+)?)")
_CUDA = re.compile(r"cuda(-\d+(\.\d+)?)?")


def look(place: Place, variables: dict[str, str] | None = None) -> LibraryFacts:
    """Every libcuda on the loader's path, on the usual paths and in CUDA's compat folders.

    Args:
        variables: the environment; None: the process's own for the running system, else none.
    """
    if variables is None:
        variables = dict(os.environ) if place.live else {}
    # NVIDIA's images have compat/lib, a link to lib.real
    compat = [
        f"{LOCAL}/{name}/compat{below}"
        for name in place.names(LOCAL)
        if _CUDA.fullmatch(name)
        for below in ("", "/lib", "/lib.real")
    ]
    real_compat = {place.real(folder) for folder in compat}
    settings = list(_settings(place, variables))
    found: dict[str, Library] = {}
    first: Fact[Library] | None = None
    for number, (folder, source) in enumerate(
        [*settings, *((folder, folder) for folder in (*FOLDERS, *compat))]
    ):
        path = f"{folder}/{NAME}"
        if place.mode(path) is None:
            continue
        real = place.real(path)
        is_compat = place.real(folder) in real_compat
        library = Library(path, _version(place, folder, real), is_compat)
        found.setdefault(real, library)
        if first is None and number < len(settings):
            first = Fact(library, source)
    return LibraryFacts(tuple(found.values()), first if first and first.value.compat else None)


def _settings(place: Place, variables: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The folders that the loader was told of, in its order, each with what told it."""
    for folder in variables.get("LD_LIBRARY_PATH", "").split(":"):
        if folder.startswith("/"):
            yield folder.rstrip("/"), "LD_LIBRARY_PATH"
    for name in place.names(SETTINGS):
        if not name.endswith(".conf"):
            continue
        for line in (place.text(f"{SETTINGS}/{name}") or "").splitlines():
            folder = line.strip().rstrip("/")
            if folder.startswith("/"):
                yield folder, f"{SETTINGS}/{name}"


def _version(place: Place, folder: str, real: str) -> str | None:
    named = _VERSION.fullmatch(real.rpartition("/")[2])
    if named is not None:
        return named[1]
    beside = {match[1] for name in place.names(folder) if (match := _VERSION.fullmatch(name))}
    return beside.pop() if len(beside) == 1 else None
