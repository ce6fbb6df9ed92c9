"""Which GPUs this machine has, by PCI id. The one place that reads sysfs for it."""

from __future__ import annotations

from pathlib import Path

from legacy_cuda import catalog
from legacy_cuda.catalog import CatalogError, Gpu
from legacy_cuda.errors import UserError

SYSFS = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers


def detect(sysfs: Path = SYSFS) -> list[Gpu]:
    """The NVIDIA GPUs of this machine that are in the catalog, in bus order, one for every card.

    Works without a driver: device ids come from PCI. A card with two dies is counted once.

    Raises:
        UserError: there is none, or one that is not in the catalog.
    """
    found: list[Gpu] = []
    spare: dict[str, int] = {}
    for device in sorted(sysfs.glob("*")) if sysfs.is_dir() else []:
        if _read(device / "vendor") != _NVIDIA:
            continue
        if not _read(device / "class").startswith(_DISPLAY_CLASSES):
            continue
        pci_id = f"10de:{_read(device / 'device').removeprefix('0x')}"
        try:
            gpu = catalog.find_gpu(pci_id)
        except CatalogError as error:
            raise UserError(
                f"this machine has a GPU that is not in the catalog: {pci_id}",
                f"at PCI address {device.name}",
                "name the GPUs yourself, or report the card",
            ) from error
        if spare.get(gpu.name, 0):
            spare[gpu.name] -= 1
            continue
        spare[gpu.name] = gpu.dies - 1
        found.append(gpu)
    if not found:
        raise UserError(
            "this machine has no NVIDIA GPU",
            f"none among the PCI devices in {sysfs}",
            "name the GPU, for example: p40",
        )
    return found


def pci_id(address: str, sysfs: Path = SYSFS) -> str:
    """``10de:1b38`` of the device at a PCI address such as ``0000:3b:00.0``; "" if not known."""
    vendor, device = (_read(sysfs / address.lower() / part) for part in ("vendor", "device"))
    return f"{vendor}:{device}".replace("0x", "") if vendor and device else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip().lower()
    except OSError:
        return ""
