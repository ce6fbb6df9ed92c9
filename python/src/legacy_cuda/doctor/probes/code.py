"""The device code of the packages in Python environments: from the catalog's evidence where it has
the same release and size, else read from the libraries. Nothing is loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from legacy_cuda.doctor.facts import DeviceCode, Environment
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import python

if TYPE_CHECKING:
    from legacy_cuda.audit import Library
    from legacy_cuda.devicecode.scan import FileCode

SECONDS = 0.8
"""After this time no other library is begun: large ones that are not in memory take seconds."""
LIBRARIES = {
    "torch": ("torch/lib", ("libtorch_cuda.so", "libtorch_cuda_cu.so")),
    "vllm": ("vllm", ("_C.abi3.so",)),
    "bitsandbytes": ("bitsandbytes", ("libbitsandbytes_cuda*.so",)),
    "llama-cpp-python": ("llama_cpp/lib", ("libggml-cuda.so",)),
}
"""Those without which a package does not run on a GPU: a folder, and names in it."""


def look(place: Place) -> tuple[DeviceCode, ...]:
    """Of every environment; what cannot be read in time is a problem of the place."""
    end = time.monotonic() + SECONDS
    found = []
    for environment in place.once("python", python.look).environments:
        for package in LIBRARIES:
            if environment.version(package) is None:
                continue
            if time.monotonic() > end:
                place.problems.append(
                    f"{package} in {environment.site} was not read for lack of time; "
                    f"legacy-cuda audit {environment.site} --gpu GPU takes its time"
                )
            elif (item := _of_package(place, environment, package)) is not None:
                found.append(item)
    return tuple(found)


def _of_package(place: Place, environment: Environment, package: str) -> DeviceCode | None:
    version = environment.version(package)
    if version is None:
        return None
    paths = list(_paths(place, environment.site, package))
    if not paths:
        return None
    known = _known(place, environment.site, package, version, paths)
    if known is not None:
        libraries, source = known
    else:
        from legacy_cuda import audit

        source = f"{environment.site}/{paths[0]}"
        libraries = audit.summarise(_scanned(place, environment.site, paths))
        if not libraries:
            return None
    return DeviceCode(
        environment.site, package, version, environment.torch_cuda, tuple(libraries), source
    )


def _paths(place: Place, site: str, package: str) -> Iterator[str]:
    """The package's libraries, below the site."""
    folder, patterns = LIBRARIES[package]
    for name in place.names(f"{site}/{folder}"):
        if any(Path(name).match(pattern) for pattern in patterns):
            yield f"{folder}/{name}"


def _known(
    place: Place, site: str, package: str, version: str, paths: list[str]
) -> tuple[tuple[Library, ...], str] | None:
    """What evidence says of these libraries, if each is there with the same size."""
    from legacy_cuda import evidence

    sizes = {path: place.size(f"{site}/{path}") for path in paths}
    for item in evidence.of_release(package, version):
        of_path = {library.path: library for library in item.libraries}
        if all(path in of_path and of_path[path].size == sizes[path] for path in paths):
            wanted = tuple(of_path[path] for path in paths)
            return wanted, f"{site}/{paths[0]}, by the evidence on {item.file} (same sizes)"
    return None


def _scanned(place: Place, site: str, paths: list[str]) -> Iterator[FileCode]:
    from legacy_cuda.devicecode import DeviceCodeError, scan_file

    for path in paths:
        try:
            yield scan_file(Path(place.host(f"{site}/{path}")), path)
        except (DeviceCodeError, OSError) as error:
            place.problems.append(f"{site}/{path}: {error}")
