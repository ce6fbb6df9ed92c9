"""Which GPUs the driver shows, by the driver API. Run as a file, it prints them as JSON.

In a process of its own, because a process that has initialised the driver cannot fork programs that
use it.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*, cuda.h


@dataclass(frozen=True)
class VisibleGpu:
    """A GPU as CUDA programs see it, after CUDA_VISIBLE_DEVICES."""

    name: str
    capability: tuple[int, int]


class NoGpuError(RuntimeError):
    """There is no GPU here, or no driver for it; the text says which."""


def visible() -> list[VisibleGpu]:
    """The GPUs of this machine.

    Raises:
        NoGpuError: there is none.
    """
    try:
        done = subprocess.run(
            [sys.executable, __file__], capture_output=True, text=True, check=False, timeout=120
        )
    except subprocess.TimeoutExpired as error:
        raise NoGpuError("the NVIDIA driver did not answer within two minutes") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["the driver could not be asked"]
        raise NoGpuError(lines[-1])
    return [VisibleGpu(row["name"], tuple(row["capability"])) for row in json.loads(done.stdout)]


def _main() -> int:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        print(f"no NVIDIA driver here: {error}", file=sys.stderr)
        return 1
    count = ctypes.c_int()
    code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        print(f"the NVIDIA driver shows no GPU (error {code})", file=sys.stderr)
        return 1
    found = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(128)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        found.append(
            {"name": name.value.decode(errors="replace"), "capability": [major.value, minor.value]}
        )
    json.dump(found, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
