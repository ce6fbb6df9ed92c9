"""The process that asks NVML. It is started by ``Session`` and speaks JSON lines with it.

A request is ``{"deadline": seconds}``, of the machine's monotonic clock; the reply is everything
known by then. The main thread never calls into the driver, so that it can always reply: the
machine, the events and each GPU have threads of their own, which say what they are about to ask
before they ask it. Calls through ctypes do not hold Python's lock. No call here sets anything.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pynvml

Handle = Any
Why = list[str]  # error, call: the two texts of legacy_cuda.nvml.Missing

#: Where the library may be, besides the loader's own path: NixOS, WSL, Debian's alternatives.
PLACES = (
    "/run/opengl-driver/lib",
    "/usr/lib/wsl/lib",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
)
_LIBRARY = "libnvidia-ml.so.1"
_EVENT_WAIT = 1000  # milliseconds

# legacy_cuda.nvml.THROTTLE_REASONS: which bit is which
THROTTLE_REASONS = {
    "gpu_idle": pynvml.nvmlClocksThrottleReasonGpuIdle,
    "applications_clocks_setting": pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting,
    "sw_power_cap": pynvml.nvmlClocksThrottleReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "sync_boost": pynvml.nvmlClocksThrottleReasonSyncBoost,
    "sw_thermal_slowdown": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
    "hw_thermal_slowdown": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "hw_power_brake_slowdown": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    "display_clock_setting": pynvml.nvmlClocksThrottleReasonDisplayClockSetting,
}
_COMPUTE_MODES = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "default",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD: "exclusive-thread",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive-process",
}
_ERRORS = {
    value: name.removeprefix("NVML_ERROR_")
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_")
}
_LOST = "GPU_IS_LOST"


def _why(error: Exception, call: str) -> Why:
    """An exception of a call as the two texts of a ``Missing``."""
    if isinstance(error, pynvml.NVMLError):
        return [_ERRORS.get(error.value, f"ERROR_{error.value}"), call]
    return ["UNREADABLE", f"{call}: {type(error).__name__}: {error}"]


# What is asked ----------------------------------------------------------------------------------


def _first(*functions: Callable[[Handle], Any]) -> Callable[[Handle], Any]:
    """The first of several functions that this driver's library has."""

    def ask(handle: Handle) -> Any:
        for function in functions[:-1]:
            with suppress(pynvml.NVMLError_FunctionNotFound):
                return function(handle)
        return functions[-1](handle)

    return ask


def _pci(handle: Handle) -> tuple[str, str, str]:
    info = pynvml.nvmlDeviceGetPciInfo_v3(handle)
    # nvml.h: the device's id above, the vendor's below. sysfs has four digits of the domain.
    domain, _, rest = info.busId.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}", _pci_id(info.pciDeviceId), _pci_id(info.pciSubSystemId)


def _pci_id(number: int) -> str:
    return f"{number & 0xFFFF:04x}:{number >> 16:04x}"


def _memory(handle: Handle) -> tuple[int, int | None, int, int]:
    """Total, reserved, used, free. The older structure counts what is reserved as used."""
    with suppress(pynvml.NVMLError_FunctionNotFound):
        new = pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
        return new.total, new.reserved, new.used, new.free
    old = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return old.total, None, old.used, old.free


def _memory_temperature(handle: Handle) -> int:
    (value,) = pynvml.nvmlDeviceGetFieldValues(handle, [pynvml.NVML_FI_DEV_MEMORY_TEMP])
    if value.nvmlReturn != pynvml.NVML_SUCCESS:
        raise pynvml.NVMLError(value.nvmlReturn)
    return int(value.value.uiVal)


def _throttle(handle: Handle) -> list[str]:
    bits = _first(
        pynvml.nvmlDeviceGetCurrentClocksEventReasons,
        pynvml.nvmlDeviceGetCurrentClocksThrottleReasons,
    )(handle)
    return [name for name, bit in THROTTLE_REASONS.items() if bits & bit]


def _processes(handle: Handle) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    shares: dict[int, int] = {}
    # not every card counts this, and none does where nothing ran
    with suppress(pynvml.NVMLError):
        since = time.time_ns() // 1000 - 2_000_000
        for sample in pynvml.nvmlDeviceGetProcessUtilization(handle, since):
            shares[sample.pid] = sample.smUtil
    kinds = {
        "compute": (
            pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
            pynvml.nvmlDeviceGetComputeRunningProcesses_v2,
        ),
        "graphics": (
            pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
            pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2,
        ),
    }
    for kind, functions in kinds.items():
        for process in _first(*functions)(handle):
            found.append(
                {
                    "pid": process.pid,
                    "kind": kind,
                    "memory_bytes": process.usedGpuMemory,
                    "name": _process_name(process.pid),
                    "sm_percent": shares.get(process.pid),
                }
            )
    return found


def _process_name(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().decode(errors="replace").strip()
    except OSError:
        return None


def _temperature(handle: Handle) -> int:
    return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))


def _threshold(which: int) -> Callable[[Handle], int]:
    return lambda handle: pynvml.nvmlDeviceGetTemperatureThreshold(handle, which)


def _clock(which: int) -> Callable[[Handle], int]:
    return lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, which)


def _max_clock(which: int) -> Callable[[Handle], int]:
    return lambda handle: pynvml.nvmlDeviceGetMaxClockInfo(handle, which)


def _ecc_errors(kind: int, counter: int) -> Callable[[Handle], int]:
    return lambda handle: pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, counter)


def _retired(cause: int) -> Callable[[Handle], int]:
    return lambda handle: len(pynvml.nvmlDeviceGetRetiredPages(handle, cause))


def _throughput(counter: int) -> Callable[[Handle], int]:
    # nvml.h: KiB a second
    return lambda handle: 1024 * pynvml.nvmlDeviceGetPcieThroughput(handle, counter)


def _violation(policy: int) -> Callable[[Handle], float]:
    # nvml.h: nanoseconds
    return lambda handle: pynvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime / 1e9


def _thousandth(function: Callable[[Handle], int]) -> Callable[[Handle], float]:
    """Milliwatts as watts, millijoules as joules."""
    return lambda handle: function(handle) / 1000


def _yes(function: Callable[[Handle], int]) -> Callable[[Handle], bool]:
    return lambda handle: bool(function(handle))


#: What a device is asked: the fields of ``Device``, a name for the call, and the call, which
#: returns the value of the one field, or one for each. What stands in IDENTITY does not change:
#: once known, it is not asked again, and is said of a GPU that is lost too.
Question = tuple[tuple[str, ...], str, Callable[[Handle], Any]]
IDENTITY: tuple[Question, ...] = (
    (("name",), "nvmlDeviceGetName", pynvml.nvmlDeviceGetName),
    (("uuid",), "nvmlDeviceGetUUID", pynvml.nvmlDeviceGetUUID),
    (("pci_address", "pci_id", "pci_subsystem_id"), "nvmlDeviceGetPciInfo", _pci),
    (("vbios",), "nvmlDeviceGetVbiosVersion", pynvml.nvmlDeviceGetVbiosVersion),
    (
        ("capability",),
        "nvmlDeviceGetCudaComputeCapability",
        lambda handle: "{}.{}".format(*pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
    ),
)
STATE: tuple[Question, ...] = (
    (
        (
            *("memory_total_bytes", "memory_reserved_bytes"),
            *("memory_used_bytes", "memory_free_bytes"),
        ),
        "nvmlDeviceGetMemoryInfo",
        _memory,
    ),
    (
        ("bar1_total_bytes", "bar1_used_bytes"),
        "nvmlDeviceGetBAR1MemoryInfo",
        lambda handle: (
            (bar1 := pynvml.nvmlDeviceGetBAR1MemoryInfo(handle)).bar1Total,
            bar1.bar1Used,
        ),
    ),
    (
        ("utilization_percent", "memory_utilization_percent"),
        "nvmlDeviceGetUtilizationRates",
        lambda handle: (
            (rates := pynvml.nvmlDeviceGetUtilizationRates(handle)).gpu,
            rates.memory,
        ),
    ),
    (
        ("encoder_percent",),
        "nvmlDeviceGetEncoderUtilization",
        lambda handle: pynvml.nvmlDeviceGetEncoderUtilization(handle)[0],
    ),
    (
        ("decoder_percent",),
        "nvmlDeviceGetDecoderUtilization",
        lambda handle: pynvml.nvmlDeviceGetDecoderUtilization(handle)[0],
    ),
    (("temperature_c",), "nvmlDeviceGetTemperature", _temperature),
    (("temperature_memory_c",), "nvmlDeviceGetFieldValues", _memory_temperature),
    (
        ("temperature_slowdown_c",),
        "nvmlDeviceGetTemperatureThreshold",
        _threshold(pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
    ),
    (
        ("temperature_shutdown_c",),
        "nvmlDeviceGetTemperatureThreshold",
        _threshold(pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN),
    ),
    (("fan_percent",), "nvmlDeviceGetFanSpeed", pynvml.nvmlDeviceGetFanSpeed),
    (("power_w",), "nvmlDeviceGetPowerUsage", _thousandth(pynvml.nvmlDeviceGetPowerUsage)),
    (
        ("power_limit_w",),
        "nvmlDeviceGetPowerManagementLimit",
        _thousandth(pynvml.nvmlDeviceGetPowerManagementLimit),
    ),
    (
        ("power_enforced_limit_w",),
        "nvmlDeviceGetEnforcedPowerLimit",
        _thousandth(pynvml.nvmlDeviceGetEnforcedPowerLimit),
    ),
    (
        ("power_default_limit_w",),
        "nvmlDeviceGetPowerManagementDefaultLimit",
        _thousandth(pynvml.nvmlDeviceGetPowerManagementDefaultLimit),
    ),
    (
        ("power_min_limit_w", "power_max_limit_w"),
        "nvmlDeviceGetPowerManagementLimitConstraints",
        lambda handle: [
            limit / 1000 for limit in pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
        ],
    ),
    (
        ("energy_j",),
        "nvmlDeviceGetTotalEnergyConsumption",
        _thousandth(pynvml.nvmlDeviceGetTotalEnergyConsumption),
    ),
    (("pstate",), "nvmlDeviceGetPerformanceState", pynvml.nvmlDeviceGetPerformanceState),
    (("clock_graphics_mhz",), "nvmlDeviceGetClockInfo", _clock(pynvml.NVML_CLOCK_GRAPHICS)),
    (("clock_sm_mhz",), "nvmlDeviceGetClockInfo", _clock(pynvml.NVML_CLOCK_SM)),
    (("clock_memory_mhz",), "nvmlDeviceGetClockInfo", _clock(pynvml.NVML_CLOCK_MEM)),
    (("clock_video_mhz",), "nvmlDeviceGetClockInfo", _clock(pynvml.NVML_CLOCK_VIDEO)),
    (
        ("clock_graphics_max_mhz",),
        "nvmlDeviceGetMaxClockInfo",
        _max_clock(pynvml.NVML_CLOCK_GRAPHICS),
    ),
    (("clock_sm_max_mhz",), "nvmlDeviceGetMaxClockInfo", _max_clock(pynvml.NVML_CLOCK_SM)),
    (("clock_memory_max_mhz",), "nvmlDeviceGetMaxClockInfo", _max_clock(pynvml.NVML_CLOCK_MEM)),
    (("throttle_reasons",), "nvmlDeviceGetCurrentClocksThrottleReasons", _throttle),
    (
        ("power_violation_s",),
        "nvmlDeviceGetViolationStatus",
        _violation(pynvml.NVML_PERF_POLICY_POWER),
    ),
    (
        ("thermal_violation_s",),
        "nvmlDeviceGetViolationStatus",
        _violation(pynvml.NVML_PERF_POLICY_THERMAL),
    ),
    (
        ("pcie_generation",),
        "nvmlDeviceGetCurrPcieLinkGeneration",
        pynvml.nvmlDeviceGetCurrPcieLinkGeneration,
    ),
    (
        ("pcie_generation_max",),
        "nvmlDeviceGetMaxPcieLinkGeneration",
        pynvml.nvmlDeviceGetMaxPcieLinkGeneration,
    ),
    (("pcie_width",), "nvmlDeviceGetCurrPcieLinkWidth", pynvml.nvmlDeviceGetCurrPcieLinkWidth),
    (("pcie_width_max",), "nvmlDeviceGetMaxPcieLinkWidth", pynvml.nvmlDeviceGetMaxPcieLinkWidth),
    (("pcie_replays",), "nvmlDeviceGetPcieReplayCounter", pynvml.nvmlDeviceGetPcieReplayCounter),
    (
        ("pcie_sent_bytes_s",),
        "nvmlDeviceGetPcieThroughput",
        _throughput(pynvml.NVML_PCIE_UTIL_TX_BYTES),
    ),
    (
        ("pcie_received_bytes_s",),
        "nvmlDeviceGetPcieThroughput",
        _throughput(pynvml.NVML_PCIE_UTIL_RX_BYTES),
    ),
    (("persistence",), "nvmlDeviceGetPersistenceMode", _yes(pynvml.nvmlDeviceGetPersistenceMode)),
    (
        ("compute_mode",),
        "nvmlDeviceGetComputeMode",
        lambda handle: _COMPUTE_MODES.get(pynvml.nvmlDeviceGetComputeMode(handle), "unknown"),
    ),
    (("display_active",), "nvmlDeviceGetDisplayActive", _yes(pynvml.nvmlDeviceGetDisplayActive)),
    (
        ("mig",),
        "nvmlDeviceGetMigMode",
        _yes(lambda handle: pynvml.nvmlDeviceGetMigMode(handle)[0]),
    ),
    (
        ("ecc", "ecc_pending"),
        "nvmlDeviceGetEccMode",
        lambda handle: [bool(mode) for mode in pynvml.nvmlDeviceGetEccMode(handle)],
    ),
    *(
        (
            (f"ecc_{kind}_{period}",),
            "nvmlDeviceGetTotalEccErrors",
            _ecc_errors(kind_number, counter),
        )
        for kind, kind_number in (
            ("corrected", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ("uncorrected", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        )
        for period, counter in (
            ("volatile", pynvml.NVML_VOLATILE_ECC),
            ("aggregate", pynvml.NVML_AGGREGATE_ECC),
        )
    ),
    (
        ("retired_pages_single_bit",),
        "nvmlDeviceGetRetiredPages",
        _retired(pynvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS),
    ),
    (
        ("retired_pages_double_bit",),
        "nvmlDeviceGetRetiredPages",
        _retired(pynvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR),
    ),
    (
        ("retired_pages_pending",),
        "nvmlDeviceGetRetiredPagesPendingStatus",
        _yes(pynvml.nvmlDeviceGetRetiredPagesPendingStatus),
    ),
    (("processes",), "nvmlDeviceGetComputeRunningProcesses", _processes),
)


# Who asks ---------------------------------------------------------------------------------------


class _Asker(threading.Thread):
    """A thread that may hang in the driver. ``doing`` is the call it is in, and since when."""

    def __init__(self, lock: threading.Condition) -> None:
        super().__init__(daemon=True)
        self.lock = lock
        self.doing: tuple[str, float] | None = None

    def ask(self, call: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call into the driver."""
        with self.lock:
            self.doing = (call, time.monotonic())
        try:
            return function(*arguments)
        finally:
            with self.lock:
                self.doing = None

    def stuck(self) -> Why:
        """Why it has not answered. To be called with the lock held."""
        if self.doing is None:
            return ["TIMED_OUT", "not asked in time"]
        call, since = self.doing
        return ["TIMED_OUT", f"{call}, for {time.monotonic() - since:.1f} s"]


class _Device(_Asker):
    """The thread of one GPU: a round of questions whenever ``wanted`` is more than ``answered``."""

    def __init__(self, lock: threading.Condition, index: int) -> None:
        super().__init__(lock)
        self.index = index
        self.wanted = self.round = self.answered = 0
        self.identity: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self.missing: dict[str, Why] = {}
        self.handle: Handle = None
        self.start_s = 0.0

    def run(self) -> None:
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self.wanted > self.answered)
                self.round = self.wanted
                self.values, self.missing = {}, {}
            self._round()
            with self.lock:
                self.answered = self.round
                self.lock.notify_all()

    def _round(self) -> None:
        call = "nvmlDeviceGetHandleByIndex"
        if self.handle is None:
            began = time.monotonic()
            try:
                self.handle = self.ask(call, pynvml.nvmlDeviceGetHandleByIndex, self.index)
                self.start_s = time.monotonic() - began
            except Exception as error:
                with self.lock:
                    self.missing["device"] = _why(error, call)
                return
        questions = STATE if len(self.identity) == _IDENTITY_FIELDS else IDENTITY + STATE
        for names, call, function in questions:
            try:
                answer = self.ask(call, function, self.handle)
                values: Sequence[Any] = answer if len(names) > 1 else (answer,)
                with self.lock:
                    self.values.update(zip(names, values, strict=True))
                    if function in _IDENTITY_CALLS:
                        self.identity.update(zip(names, values, strict=True))
            except Exception as error:
                why = _why(error, call)
                with self.lock:
                    self.missing.update({name: why for name in names})
                    if why[0] == _LOST:
                        self.missing["device"] = why
                        return
        with self.lock:
            if not any(name in self.values for names, _, _ in STATE for name in names):
                # it answers every call, with errors: as good as none, and a new handle may help
                self.missing["device"] = self.missing["memory_total_bytes"]
                self.handle = None

    def reply(self) -> dict[str, Any]:
        """What is known of the round that is wanted. To be called with the lock held."""
        values, missing = dict(self.identity), {}
        if self.round == self.wanted:
            values.update(self.values)
            missing.update(self.missing)
        if self.answered < self.wanted:
            missing["device"] = self.stuck()
        if "device" in missing:
            for names, _, _ in IDENTITY + STATE:
                for name in names:
                    if values.get(name) is None:
                        missing.setdefault(name, missing["device"])
        return {"index": self.index, "values": values, "missing": missing}


_IDENTITY_FIELDS = sum(len(names) for names, _, _ in IDENTITY)
_IDENTITY_CALLS = {function for _, _, function in IDENTITY}


class _Machine(_Asker):
    """The thread that starts NVML and counts its GPUs; done once it has. Raises nothing."""

    def __init__(self, lock: threading.Condition, events: bool) -> None:
        super().__init__(lock)
        self.wants_events = events
        self.driver_version: str | None = None
        self.cuda_version: str | None = None
        self.error: Why | None = None
        self.start_s = 0.0
        self.devices: list[_Device] | None = None
        self.events: _Events | None = None

    def run(self) -> None:
        call = "nvmlInit"
        try:
            _load()
            began = time.monotonic()
            self.ask(call, pynvml.nvmlInit)
            self.start_s = time.monotonic() - began
            call = "nvmlDeviceGetCount"
            count = self.ask(call, pynvml.nvmlDeviceGetCount)
        except Exception as error:
            with self.lock:
                self.error = _why(error, call)
                self.lock.notify_all()
            return
        driver = cuda = None
        with suppress(Exception):
            driver = self.ask("nvmlSystemGetDriverVersion", pynvml.nvmlSystemGetDriverVersion)
        with suppress(Exception):  # it is libcuda's, which a container may lack
            number = self.ask(
                "nvmlSystemGetCudaDriverVersion", pynvml.nvmlSystemGetCudaDriverVersion_v2
            )
            cuda = f"{number // 1000}.{number % 1000 // 10}"
        with self.lock:
            self.driver_version, self.cuda_version = driver, cuda
            self.devices = [_Device(self.lock, index) for index in range(count)]
            for device in self.devices:
                device.start()
            if self.wants_events:
                self.events = _Events(self.lock, count)
                self.events.start()
            self.lock.notify_all()


class _Events(_Asker):
    """The thread that waits for Xid errors. What it finds is in ``seen``: (index, xid) to count and
    time."""

    def __init__(self, lock: threading.Condition, count: int) -> None:
        super().__init__(lock)
        self.count = count
        self.seen: dict[tuple[int, int], tuple[int, float]] = {}
        self.error: Why | None = ["NOT_READY", "not registered yet"]

    def run(self) -> None:
        call = "nvmlEventSetCreate"
        indices: dict[int | None, int] = {}
        try:
            events = self.ask(call, pynvml.nvmlEventSetCreate)
            call = "nvmlDeviceRegisterEvents"
            refused: pynvml.NVMLError | None = None
            for index in range(self.count):
                try:
                    handle = self.ask(call, pynvml.nvmlDeviceGetHandleByIndex, index)
                    wanted = pynvml.nvmlEventTypeXidCriticalError
                    self.ask(call, pynvml.nvmlDeviceRegisterEvents, handle, wanted, events)
                    indices[_address(handle)] = index
                except pynvml.NVMLError as error:  # of this GPU: the others can be watched
                    refused = error
            if refused and not indices:
                raise refused
        except Exception as error:
            with self.lock:
                self.error = _why(error, call)
            return
        call = "nvmlEventSetWait"
        with self.lock:
            self.error = None
        while True:
            try:
                event = self.ask(call, pynvml.nvmlEventSetWait_v2, events, _EVENT_WAIT)
            except pynvml.NVMLError_Timeout:
                with self.lock:
                    self.error = None
                continue
            except Exception as error:  # a GPU that is lost ends the wait at once
                with self.lock:
                    self.error = _why(error, call)
                time.sleep(_EVENT_WAIT / 1000)
                continue
            index = indices.get(_address(event.device), -1)
            with self.lock:
                self.error = None
                count, _ = self.seen.get((index, event.eventData), (0, 0.0))
                self.seen[index, event.eventData] = (count + 1, time.time())


def _address(handle: Handle) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _load() -> None:
    """Load the library from where the loader does not look; what is loaded is found by its name.

    Where it is nowhere, nvmlInit says so.
    """
    for path in (_LIBRARY, *(f"{place}/{_LIBRARY}" for place in PLACES)):
        with suppress(OSError):
            ctypes.CDLL(path)
            return


# What is replied ----------------------------------------------------------------------------------


def _answer(machine: _Machine, deadline: float) -> dict[str, Any]:
    """Everything known of the machine by the deadline (of the monotonic clock)."""
    lock = machine.lock

    def wait(condition: Callable[[], bool]) -> None:
        lock.wait_for(condition, max(0.0, deadline - time.monotonic()))

    with lock:
        wait(lambda: machine.devices is not None or machine.error is not None)
        devices = machine.devices or []
        # one that still hangs in an earlier round does not hold up this one
        awaited = [device for device in devices if device.answered == device.wanted]
        for device in devices:
            device.wanted += 1
        lock.notify_all()
        wait(lambda: all(device.answered == device.wanted for device in awaited))
        error = machine.error
        if machine.devices is None and error is None:
            error = machine.stuck()
        events = machine.events
        return {
            "driver_version": machine.driver_version,
            "cuda_version": machine.cuda_version,
            "error": error,
            "start_s": machine.start_s + max((device.start_s for device in devices), default=0.0),
            "devices": [device.reply() for device in devices],
            "xids": [[*key, *value] for key, value in sorted(events.seen.items())]
            if events
            else [],
            "xid_missing": events.error if events else ["NOT_READY", "nobody watches"],
        }


def main(events: bool) -> None:
    """Answer requests until there are no more. Leaves at once, whatever hangs."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # the driver's library may print
    lock = threading.Condition()
    machine = _Machine(lock, events)
    machine.start()
    for line in sys.stdin:
        deadline = json.loads(line)["deadline"]
        if machine.error is not None:  # it may be better now: the module was loaded
            machine = _Machine(lock, events)
            machine.start()
        print(json.dumps(_answer(machine, deadline)), file=replies, flush=True)
    os._exit(0)
