"""The NVIDIA devices of the PCI bus, from sysfs (Linux: ABI/testing/sysfs-bus-pci)."""

from __future__ import annotations

import re

from legacy_cuda.doctor.facts import Device, Fact, Link, Region
from legacy_cuda.doctor.place import Place

DEVICES = "/sys/bus/pci/devices"
_NVIDIA = "0x10de"
_ID = re.compile(r"0x([0-9a-f]{4})")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_VIRTUAL = "0x1b36"  # Red Hat: the bridges of QEMU, whose lanes are made up
_WIDE = 0x00100000  # IORESOURCE_MEM_64 (linux/ioport.h)
_BARS = 6  # the first lines of ``resource``; the expansion ROM and bridge windows follow


def look(place: Place) -> tuple[Device, ...]:
    """Every NVIDIA device, in bus order."""
    return tuple(
        _device(place, name)
        for name in place.names(DEVICES, needed=True)
        if _word(place, f"{DEVICES}/{name}/vendor") == _NVIDIA
    )


def _device(place: Place, name: str) -> Device:
    folder = f"{DEVICES}/{name}"
    number = _ID.fullmatch(_word(place, f"{folder}/device"))
    driver = place.link_name(f"{folder}/driver")
    bridges = place.real(folder).split("/")[:-1]  # the slot's is the last one
    switch = "/".join(bridges[:-1]) if _ADDRESS.fullmatch(bridges[-2:][0]) else None
    return Device(
        address=name,
        pci_id=f"10de:{number[1] if number else '????'}",
        kind=_word(place, f"{folder}/class"),
        driver=Fact(driver, f"{folder}/driver") if driver else None,
        regions=_regions(place, f"{folder}/resource"),
        link=_link(place, folder),
        switch=_link(place, switch) if switch else None,
    )


def _regions(place: Place, path: str) -> Fact[tuple[Region, ...]] | None:
    text = place.text(path)
    if text is None:
        return None
    regions = []
    for number, line in enumerate(text.splitlines()[:_BARS]):
        try:
            start, end, flags = (int(word, 16) for word in line.split())
        except ValueError:
            return None
        regions.append(Region(number, start, end, bool(flags & _WIDE) or end >> 32 > 0))
    return Fact(tuple(regions), path) if len(regions) == _BARS else None


def _link(place: Place, folder: str) -> Fact[Link] | None:
    width = _lanes(place, f"{folder}/current_link_width")
    width_max = _lanes(place, f"{folder}/max_link_width")
    if width is None or width_max is None:
        return None
    slot = place.real(folder).rpartition("/")[0]  # the bridge above it
    virtual = _word(place, f"{slot}/vendor") == _VIRTUAL
    return Fact(
        Link(
            width=width,
            width_max=width_max,
            slot_width_max=None if virtual else _lanes(place, f"{slot}/max_link_width"),
            speed=_word(place, f"{folder}/current_link_speed"),
            speed_max=_word(place, f"{folder}/max_link_speed"),
        ),
        f"{folder}/current_link_width",
    )


def _lanes(place: Place, path: str) -> int | None:
    """A number of lanes; None for what virtual machines say (0, 63, 255, ``Unknown``)."""
    text = _word(place, path)
    return int(text) if text in ("1", "2", "4", "8", "12", "16", "32") else None


def _word(place: Place, path: str) -> str:
    return (place.text(path, 256) or "").strip().lower()
