"""The NVIDIA kernel module: loaded or not, its release and flavour. modinfo is not run."""

from __future__ import annotations

import re

from legacy_cuda.catalog import Flavour
from legacy_cuda.doctor.facts import DriverFacts, Fact
from legacy_cuda.doctor.place import Place

VERSION = "/proc/driver/nvidia/version"
MODULES = "/sys/module"
SOURCES = "/usr/src"
#: In the text of VERSION: the module's line, with its release.
RELEASE_LINE = re.compile(r"^NVRM version:.*?\s(\d{3}\.\d+(?:\.\d+)?)\b", re.MULTILINE)
_RELEASE = re.compile(r"\d{3}\.\d+(?:\.\d+)?")
_FOLDER = re.compile(r"nvidia-(?:[a-z0-9-]+-)?(\d{3}\.\d+(?:\.\d+)?)")


def look(place: Place) -> DriverFacts:
    """What is loaded, and what waits to be built."""
    text = place.text(VERSION)
    modules = tuple(name for name in place.names(MODULES, needed=True) if name.startswith("nvidia"))
    version: Fact[str] | None = None
    flavour: Fact[Flavour] | None = None
    first = RELEASE_LINE.search(text or "")
    if first is not None:
        version = Fact(first[1], VERSION)
        opened = "Open Kernel Module" in first[0]
        flavour = Fact("open" if opened else "proprietary", VERSION)
    else:
        path = f"{MODULES}/nvidia/version"
        word = (place.text(path, 256) or "").strip()
        if _RELEASE.fullmatch(word):
            version = Fact(word, path)
    folders = (_FOLDER.fullmatch(name) for name in place.names(SOURCES))
    return DriverFacts(
        version=version,
        flavour=flavour,
        modules=Fact(modules, MODULES),
        sources=tuple(Fact(match[1], f"{SOURCES}/{match[0]}") for match in folders if match),
    )
