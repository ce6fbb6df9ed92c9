"""The kernel's release, and what its log says of GPUs since the machine started."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from legacy_cuda.doctor import kernel_log
from legacy_cuda.doctor.facts import Fact, KernelFacts
from legacy_cuda.doctor.place import Place

RELEASE = "/proc/sys/kernel/osrelease"
FILES = ("/var/log/dmesg", "/var/log/kern.log")
_WORDS = ("NVRM", "nvidia", "nouveau", "nova_core", "NovaCore")
_START = "Linux version "  # the first line of every start
_LINES = 5000
_BYTES = 8 << 20


def look(place: Place) -> KernelFacts:
    """From dmesg or journalctl on the running system; else from the files that syslog writes."""
    release = (place.text(RELEASE, 256) or "").strip()
    return KernelFacts(Fact(release, RELEASE) if release else None, _log(place))


def _log(place: Place) -> Fact[tuple[str, ...]] | None:
    if place.live:
        said = kernel_log.read()
        if said is not None:
            return Fact(about_gpus(said.text.splitlines()), said.command)
    for path in FILES:
        data = place.data(path, _BYTES, from_end=True)
        if data:
            return Fact(about_gpus(data.decode("utf-8", "replace").splitlines()), path)
    return None


def about_gpus(lines: Iterable[str]) -> tuple[str, ...]:
    """The lines that speak of GPUs, since the last start; at most 5000, the newest.

    NVRM's messages have several lines, each with its own NVRM.
    """
    kept: deque[str] = deque(maxlen=_LINES)
    for line in lines:
        if _START in line:
            kept.clear()
        elif any(word in line for word in _WORDS):
            kept.append(line[:1000])
    return tuple(kept)
