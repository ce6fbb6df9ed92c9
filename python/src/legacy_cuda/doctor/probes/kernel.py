"""The kernel's release, and what its log says of GPUs since the machine started."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

from legacy_cuda.doctor import logs, system_log
from legacy_cuda.doctor.facts import Fact, KernelFacts
from legacy_cuda.doctor.place import Place

RELEASE = "/proc/sys/kernel/osrelease"
FILES = ("/var/log/dmesg", "/var/log/kern.log")
_WORDS = ("NVRM", "nvidia", "nouveau", "nova_core", "NovaCore")
_START = "Linux version "  # the first line of every start
_START_OF = re.compile(r"Linux version (\S+)")
_LOADED = "Nvlink Core is being initialized"  # the first line of every load of NVIDIA's module
STAT = "/proc/stat"
_BEGUN = re.compile(r"^btime (\d{1,15})$", re.MULTILINE)
BY_HAND = "sudo dmesg | legacy-cuda doctor --log -"
_LINES = 5000
_LENGTH = 1000  # of a line
_BYTES = 8 << 20


def look(place: Place) -> KernelFacts:
    """From dmesg or journalctl on the running system; else from the files that syslog writes."""
    release = (place.text(RELEASE, 256) or "").strip()
    return KernelFacts(Fact(release, RELEASE) if release else None, _log(place, release))


def _log(place: Place, release: str) -> Fact[tuple[str, ...]] | None:
    if place.live:
        said = system_log.read()
        if said is not None:
            return Fact(about_gpus(said.text.splitlines()), said.command)
    for path in FILES:
        data = place.data(path, _BYTES, from_end=True)
        lines = (data or b"").decode("utf-8", "replace").splitlines()
        lines = lines[1:] if data is not None and len(data) == _BYTES else lines  # half a line
        if lines and not _stale(place, path, lines, release):
            return Fact(about_gpus(lines), path)
    if place.live:
        place.problems.append(f"the kernel's log may not be read; {BY_HAND} asks it as root")
    return None


def _stale(place: Place, path: str, lines: list[str], release: str) -> bool:
    """Whether a file is of an earlier start: of another kernel, or written before this one."""
    started = next((found for line in reversed(lines) if (found := _START_OF.search(line))), None)
    if started is not None and release and started[1] != release:
        return True
    begun = _BEGUN.search(place.text(STAT, 1 << 20) or "")
    written = place.modified(path)
    return begun is not None and written is not None and written < int(begun[1])


def about_gpus(lines: Iterable[str]) -> tuple[str, ...]:
    """The lines that speak of GPUs, since the last start; at most 5000, the newest.

    NVRM's messages have several lines, each with its own NVRM. What it said before its module was
    loaded anew no longer holds; that a GPU fell off the bus (an Xid) stays.
    """
    module: deque[tuple[int, str]] = deque(maxlen=_LINES)
    others: deque[tuple[int, str]] = deque(maxlen=_LINES)
    for number, line in enumerate(lines):
        if _START in line:
            module.clear()
            others.clear()
        elif any(word in line for word in _WORDS):
            if _LOADED in line:
                module.clear()
            kept = module if "NVRM" in line and "Xid" not in line else others
            kept.append((number, logs.shortened(line, _LENGTH)))
    return tuple(line for _, line in sorted((*module, *others))[-_LINES:])
