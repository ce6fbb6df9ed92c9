"""Whether a library's device code, on the GPU at hand, was the code an old card would run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from legacy_cuda.capability import Capability, Target


def judge(path: Path, capability: Capability, gpu: Capability) -> dict[str, Any]:
    """What the driver takes from a file on the GPU, compared with what it takes on the old card.

    ``same_code`` is None where there is no device code, or it cannot be read.
    """
    from legacy_cuda.devicecode import scan
    from legacy_cuda.devicecode.errors import DeviceCodeError

    try:
        code = scan.scan_file(path)
    except (OSError, DeviceCodeError) as error:
        return {"same_code": None, "device_code": f"not read: {error}"}
    others: Counter[str] = Counter()
    same = 0
    for placed in code.containers:
        if placed.linkage != "loadable" or placed.container.stub:
            continue
        targets = [target for entry in placed.container.entries if (target := entry.target)]
        here, there = choose(targets, gpu), choose(targets, capability)
        if here is None and there is None:
            continue
        if is_twin(here, there):
            same += 1
        else:
            others[f"{here or 'nothing'} instead of {there or 'nothing'}"] += 1
    if not same and not others:
        return {"same_code": None, "device_code": "none"}
    if others:
        text = ", ".join(f"{times} x {what}" for what, times in sorted(others.items()))
        return {"same_code": False, "device_code": f"{text}; {same} as the old card's"}
    return {"same_code": True, "device_code": f"{same} containers, as the old card's"}


def choose(targets: Iterable[Target], device: Capability) -> Target | None:
    """What the driver takes for a device: the nearest cubin that runs there, else the newest PTX.
    (CUDA C++ Programming Guide, "Application Compatibility".)"""
    fitting = [target for target in targets if target.runs_on(device)]
    return max(
        fitting, key=lambda item: (item.kind == "sass", item.capability, item.variant), default=None
    )


def is_twin(here: Target | None, there: Target | None) -> bool:
    """Whether both come of one compilation: PTX here, and there it or the cubin made of it."""
    return (
        here is not None
        and there is not None
        and here.kind == "ptx"
        and not here.variant
        and here.capability == there.capability
    )
