"""Virtual machines and what is given to them: the CPU's hypervisor flag, IOMMU groups."""

from __future__ import annotations

from collections.abc import Iterator

from legacy_cuda.doctor.facts import Fact, Group, Neighbour, VirtualFacts
from legacy_cuda.doctor.place import Place
from legacy_cuda.doctor.probes import cpu

GROUPS = "/sys/kernel/iommu_groups"
PRODUCT = "/sys/class/dmi/id/product_name"


def look(place: Place) -> VirtualFacts:
    """Groups that hold an NVIDIA device, each with all its devices."""
    return VirtualFacts(_guest(place), tuple(_groups(place)))


def _guest(place: Place) -> Fact[str] | None:
    if "hypervisor" not in cpu.flags(place):
        return None
    return Fact((place.text(PRODUCT, 256) or "").strip() or "a virtual machine", cpu.INFO)


def _groups(place: Place) -> Iterator[Group]:
    for number in place.names(GROUPS):
        folder = f"{GROUPS}/{number}/devices"
        devices = place.names(folder)
        if any(_word(place, f"{folder}/{name}/vendor") == "0x10de" for name in devices):
            yield Group(
                number,
                tuple(
                    Neighbour(
                        name,
                        _word(place, f"{folder}/{name}/class"),
                        place.link_name(f"{folder}/{name}/driver"),
                    )
                    for name in devices
                ),
                _translation(place, f"{GROUPS}/{number}/type"),
            )


def _translation(place: Place, path: str) -> Fact[str] | None:
    text = (place.text(path, 256) or "").strip()
    return Fact(text, path) if text else None


def _word(place: Place, path: str) -> str:
    return (place.text(path, 256) or "").strip().lower()
