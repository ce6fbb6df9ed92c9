"""What the driver says of the GPUs through NVML: clocks, heat, power, memory errors, processes.

Only of the running system. A process of its own asks and is left behind if it hangs: see
:mod:`legacy_cuda.nvml`.
"""

from __future__ import annotations

from legacy_cuda import nvml
from legacy_cuda.doctor.facts import Fact
from legacy_cuda.doctor.place import Place
from legacy_cuda.nvml import Snapshot

SECONDS = nvml.LIMIT
SOURCE = "NVML"
#: One of them is there where a driver can be asked: the driver's own, and that of WSL2.
SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")
_JUDGED = ("LIB_RM_VERSION_MISMATCH", "GPU_IS_LOST")  # rules speak of these


def look(place: Place) -> Fact[Snapshot] | None:
    """None on a recorded tree, and where nothing of a driver is there."""
    if not place.live or all(place.mode(path) is None for path in SIGNS):
        return None
    found = nvml.snapshot(SECONDS)
    if found.error is not None and found.error.error not in _JUDGED:
        place.problems.append(f"NVML: {found.error}")
    for device in found.devices:
        if device.failure is not None and device.failure.error not in _JUDGED:
            name = f"GPU {device.index}, {device.name or device.pci_address or '?'}"
            place.problems.append(f"{name}: {device.failure}")
    return Fact(found, SOURCE)
