"""What nvidia-ml-py itself says of a machine, as JSON.

Run where the loader finds the stand-in. For every device and every question below the answer, or
the error's number.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pynvml

QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "name": pynvml.nvmlDeviceGetName,
    "uuid": pynvml.nvmlDeviceGetUUID,
    "index": pynvml.nvmlDeviceGetIndex,
    "pci": lambda h: [(p := pynvml.nvmlDeviceGetPciInfo(h)).busId, p.pciDeviceId, p.busIdLegacy],
    "capability": lambda h: list(pynvml.nvmlDeviceGetCudaComputeCapability(h)),
    "memory": lambda h: [(m := pynvml.nvmlDeviceGetMemoryInfo(h)).total, m.free, m.used],
    "memory_v2": lambda h: [
        (m := pynvml.nvmlDeviceGetMemoryInfo(h, pynvml.nvmlMemory_v2)).total,
        m.reserved,
        m.free,
        m.used,
    ],
    "bar1": lambda h: [(m := pynvml.nvmlDeviceGetBAR1MemoryInfo(h)).bar1Total, m.bar1Used],
    "utilization": lambda h: [(u := pynvml.nvmlDeviceGetUtilizationRates(h)).gpu, u.memory],
    "encoder": pynvml.nvmlDeviceGetEncoderUtilization,
    "temperature": lambda h: pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU),
    "slowdown": lambda h: pynvml.nvmlDeviceGetTemperatureThreshold(
        h, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
    ),
    "fan": pynvml.nvmlDeviceGetFanSpeed,
    "power": pynvml.nvmlDeviceGetPowerUsage,
    "power_limit": pynvml.nvmlDeviceGetPowerManagementLimit,
    "power_enforced": pynvml.nvmlDeviceGetEnforcedPowerLimit,
    "power_range": pynvml.nvmlDeviceGetPowerManagementLimitConstraints,
    "energy": pynvml.nvmlDeviceGetTotalEnergyConsumption,
    "clock_sm": lambda h: pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_SM),
    "clock_memory_max": lambda h: pynvml.nvmlDeviceGetMaxClockInfo(h, pynvml.NVML_CLOCK_MEM),
    "throttle": pynvml.nvmlDeviceGetCurrentClocksThrottleReasons,
    "events": pynvml.nvmlDeviceGetCurrentClocksEventReasons,
    "pstate": pynvml.nvmlDeviceGetPerformanceState,
    "ecc": pynvml.nvmlDeviceGetEccMode,
    "ecc_corrected_aggregate": lambda h: pynvml.nvmlDeviceGetTotalEccErrors(h, 0, 1),
    "ecc_uncorrected_volatile": lambda h: pynvml.nvmlDeviceGetTotalEccErrors(h, 1, 0),
    "retired_single": lambda h: len(pynvml.nvmlDeviceGetRetiredPages(h, 0)),
    "retired_pending": pynvml.nvmlDeviceGetRetiredPagesPendingStatus,
    "link": lambda h: [
        pynvml.nvmlDeviceGetCurrPcieLinkGeneration(h),
        pynvml.nvmlDeviceGetCurrPcieLinkWidth(h),
        pynvml.nvmlDeviceGetMaxPcieLinkGeneration(h),
        pynvml.nvmlDeviceGetMaxPcieLinkWidth(h),
        pynvml.nvmlDeviceGetPcieReplayCounter(h),
    ],
    "transmitted": lambda h: pynvml.nvmlDeviceGetPcieThroughput(h, pynvml.NVML_PCIE_UTIL_TX_BYTES),
    "power_violation": lambda h: (
        pynvml.nvmlDeviceGetViolationStatus(h, pynvml.NVML_PERF_POLICY_POWER).violationTime
    ),
    "persistence": pynvml.nvmlDeviceGetPersistenceMode,
    "mig": pynvml.nvmlDeviceGetMigMode,
    "processes": lambda h: [
        [p.pid, p.usedGpuMemory] for p in pynvml.nvmlDeviceGetComputeRunningProcesses_v3(h)
    ],
    "processes_v2": lambda h: [
        [p.pid, p.usedGpuMemory] for p in pynvml.nvmlDeviceGetComputeRunningProcesses_v2(h)
    ],
    "process_use": lambda h: [
        [p.pid, p.smUtil, p.memUtil] for p in pynvml.nvmlDeviceGetProcessUtilization(h, 0)
    ],
    "memory_temperature": lambda h: [
        (value.nvmlReturn, value.valueType, value.value.uiVal)
        for value in pynvml.nvmlDeviceGetFieldValues(h, [pynvml.NVML_FI_DEV_MEMORY_TEMP])
    ],
}


def ask(question: Callable[[Any], Any], handle: Any) -> Any:
    try:
        return question(handle)
    except pynvml.NVMLError as error:
        return {"error": error.value}


def machine() -> dict[str, Any]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"error": error.value, "text": str(error)}
    devices = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            devices.append({"error": error.value, "text": str(error)})
            continue
        devices.append({name: ask(question, handle) for name, question in QUESTIONS.items()})
    found = {
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "cuda": pynvml.nvmlSystemGetCudaDriverVersion(),
        "devices": devices,
    }
    pynvml.nvmlShutdown()
    return found


if __name__ == "__main__":
    print(json.dumps(machine()))
