"""What env-doctor and torch's collect_env ask of nvidia-smi, answered through nvidia-ml-py.

The real one refuses every stand-in of NVML that starts: it wants a table of functions that NVIDIA
keeps to itself (nvmlInternalGetExportTable). So this stands in for it, for these two tools only;
the texts of errors are those that nvidia-smi prints.
"""

from __future__ import annotations

import sys

import pynvml

_REFUSED = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure "
        "that the latest NVIDIA driver is installed and running.\n"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "Failed to initialize NVML: Driver/library version mismatch"
    ),
}


def main(arguments: list[str]) -> int:
    """Print what is asked; the exit codes are nvidia-smi's."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        print(_REFUSED.get(error.value, f"Failed to initialize NVML: {error}"))
        return int(error.value)
    count = pynvml.nvmlDeviceGetCount()
    if not count:
        print("No devices were found")
        return 6
    if not arguments:
        driver = pynvml.nvmlSystemGetDriverVersion()
        number = pynvml.nvmlSystemGetCudaDriverVersion()
        cuda = f"{number // 1000}.{number % 1000 // 10}"
        print(f"| NVIDIA-SMI {driver}   Driver Version: {driver}   CUDA Version: {cuda} |")
    for index in range(count):
        try:
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(device)
        except pynvml.NVMLError:
            print(f"Unable to determine the device handle for GPU{index}: Unknown Error")
            return 255
        if arguments[:1] == ["-L"]:
            print(f"GPU {index}: {name} (UUID: {pynvml.nvmlDeviceGetUUID(device)})")
        elif arguments:
            total = pynvml.nvmlDeviceGetMemoryInfo(device).total >> 20
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(device)
            print(f"{index}, {name}, {total} MiB, {major}.{minor}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
