"""Whether an engine computes on the GPUs that it was planned for, by what the driver says. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from legacy_cuda import sizes
from legacy_cuda.nvml import Snapshot

_LEAST = 0.5  # of the planned bytes: below that it was not the model that was loaded


@dataclass(frozen=True, slots=True)
class Proof:
    """``used``: None where the driver does not tell. ``text`` says what was seen."""

    used: bool | None
    text: str


def prove(
    before: Snapshot, after: Snapshot, processes: Collection[int], planned: Sequence[int]
) -> Proof:
    """What the driver says of an engine once it is ready.

    The memory of its processes decides; where the driver does not tell that (in a container, on
    some cards), the memory that was taken on all GPUs since ``before``.

    Args:
        before: the GPUs before it was started.
        after: when it was ready.
        processes: its process and those that it started.
        planned: bytes that were to lie on each GPU.
    """
    wanted = sum(planned)
    asked = sizes.mib(wanted)
    if after.error is not None:
        return Proof(None, f"the driver does not answer: {after.error}")
    mine = [
        process
        for device in after.devices
        for process in device.processes or ()
        if process.pid in processes
    ]
    taken = sum(process.memory_bytes or 0 for process in mine)
    if taken >= _LEAST * wanted:
        return Proof(True, f"{sizes.mib(taken)} MiB on the GPUs, {asked} planned")
    earlier = {device.index: device.memory_used_bytes or 0 for device in before.devices}
    grown = sum(
        max(0, (device.memory_used_bytes or 0) - earlier.get(device.index, 0))
        for device in after.devices
    )
    unknown = any(process.memory_bytes is None for process in mine) or not mine
    if unknown and grown >= _LEAST * wanted:
        return Proof(True, f"{sizes.mib(grown)} MiB more in use on the GPUs, {asked} planned")
    if not after.devices:
        return Proof(False, "the driver lists no GPU")
    seen = sizes.mib(max(taken, grown))
    return Proof(False, f"{seen} MiB on the GPUs, {asked} planned: it uses the CPU")
