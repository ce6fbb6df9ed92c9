"""The machine's GPUs, and what is seen of them: what every rule speaks about. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from legacy_cuda import catalog
from legacy_cuda.catalog import CatalogError, Gpu
from legacy_cuda.doctor.facts import Device, Facts

PASSTHROUGH = ("vfio-pci", "pci-stub", "xen-pciback")
"""Drivers that keep a card for a virtual machine, on purpose."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen, verbatim where it is a line of a log, and where; the card that it is about,
    where one is named. ``said``: names of ``doctor.toml`` and what this fills them in with."""

    text: str
    source: str
    gpu: Gpu | None = None
    said: tuple[tuple[str, str], ...] = ()


Seen = Iterator[Evidence]


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU of the machine that is in the catalog, at its place on the bus."""

    device: Device
    gpu: Gpu


def cards(facts: Facts) -> list[Card]:
    """The machine's GPUs that are in the catalog, those kept for virtual machines left out."""
    found = []
    for device in facts.pci or ():
        if device.is_gpu and not kept_away(device):
            try:
                found.append(Card(device, _gpu(facts, device)))
            except CatalogError:
                continue
    return found


def _gpu(facts: Facts, device: Device) -> Gpu:
    """The card of a PCI id; where cards share one, that whose memory the driver shows."""
    gpu = catalog.find_gpu(device.pci_id)
    for seen in facts.nvml.value.devices if facts.nvml else ():
        if seen.pci_address == device.address and seen.memory_total_bytes is not None:
            return catalog.identify(device.pci_id, seen.memory_total_bytes) or gpu
    return gpu


def present(facts: Facts) -> list[Device]:
    """The machine's GPUs, those kept for virtual machines left out."""
    return [device for device in facts.pci or () if device.is_gpu and not kept_away(device)]


def strangers(facts: Facts) -> list[Device]:
    """The GPUs of :func:`present` that are not in the catalog."""
    known = {card.device.address for card in cards(facts)}
    return [device for device in present(facts) if device.address not in known]


def kept_away(device: Device) -> bool:
    """Whether it is kept for a virtual machine."""
    return device.driver is not None and device.driver.value in PASSTHROUGH


def named(facts: Facts) -> Iterator[tuple[str, Device, Gpu | None]]:
    """Every GPU that is present, with words for it."""
    for card in cards(facts):
        yield where(card), card.device, card.gpu
    for device in strangers(facts):
        yield f"GPU {device.pci_id} at {device.address}", device, None


def where(card: Card) -> str:
    """Words for a card: its product, capability and place."""
    return f"{card.gpu.product} ({card.gpu.capability}) at {card.device.address}"
