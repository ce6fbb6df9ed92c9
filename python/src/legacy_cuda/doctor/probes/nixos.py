"""NixOS: which kernel modules were started and which come next, and what the configuration's own
files in /etc/nixos say of CUDA. Nothing is evaluated: what they import is not seen."""

from __future__ import annotations

import re
from collections.abc import Iterator

from legacy_cuda.doctor.facts import Fact, NixosFacts
from legacy_cuda.doctor.place import Place

BOOTED = "/run/booted-system/kernel-modules"
CURRENT = "/run/current-system/kernel-modules"
CONFIGURATION = "/etc/nixos"
_SETTING = re.compile(
    r"^[^#\n]*\b(cudaSupport|cudaCapabilities|videoDrivers|nvidiaPackages|hardware\.nvidia)\b[^#\n]*",
    re.MULTILINE,
)
_FOLDERS = 50
_LINES = 100


def look(place: Place) -> NixosFacts | None:
    """None where there is no NixOS."""
    if place.mode("/run/current-system") is None:
        return None
    return NixosFacts(_modules(place, BOOTED), _modules(place, CURRENT), tuple(_settings(place)))


def _modules(place: Place, path: str) -> Fact[str] | None:
    return Fact(place.real(path), path) if place.mode(path) is not None else None


def _settings(place: Place) -> Iterator[Fact[str]]:
    waiting = [CONFIGURATION]
    seen = left = 0
    while waiting and seen < _FOLDERS:
        folder = waiting.pop()
        seen += 1
        for name in place.names(folder):
            path = f"{folder}/{name}"
            if name.endswith(".nix"):
                for match in _SETTING.finditer(place.text(path) or ""):
                    if left < _LINES:
                        left += 1
                        yield Fact(match[0].strip()[:300], path)
            elif "." not in name and folder.count("/") < 5:
                waiting.append(path)
