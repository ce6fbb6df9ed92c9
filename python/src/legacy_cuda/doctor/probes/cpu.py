"""The CPU's vector instructions, from /proc/cpuinfo (x86 only)."""

from __future__ import annotations

from legacy_cuda.doctor.facts import CpuFacts, Fact
from legacy_cuda.doctor.place import Place

INFO = "/proc/cpuinfo"


def look(place: Place) -> CpuFacts | None:
    """Of the first processor; None where it lists no flags."""
    found = flags(place)
    return CpuFacts(Fact("avx" in found, INFO), Fact("avx2" in found, INFO)) if found else None


def flags(place: Place) -> list[str]:
    """What the first processor lists."""
    for line in (place.text(INFO) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return value.split()
    return []
