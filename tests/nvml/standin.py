"""Machines for tests: a TOML file becomes a stand-in for NVIDIA's libnvidia-ml.so.1.

    python -m tests.nvml.standin MACHINE [COMMAND ...]

runs a command (a shell, if none is given) that finds ``machines/MACHINE.toml`` instead of a driver.
The library is ``standin.c``, compiled where the tests run. It answers what the file says and
nothing else: what a test shows with it is how a program reads NVML, not how a GPU behaves. The
numbers in the files are made up, of the size that such cards show.

What the catalog has of a card comes from there: names, ids, memory, power, capability. The keys of
a ``[[card]]`` are those of ``_DEFAULTS`` and ``_OPTIONAL`` below, in MHz, watts, degrees C, percent
and MiB. Faults are keys too:

- ``init_error`` (of the machine): what nvmlInit returns, ``DRIVER_NOT_LOADED`` for one;
- ``fails``: what every call for the card returns, ``GPU_IS_LOST``;
- ``errors``: what single functions return, ``{nvmlDeviceGetFanSpeed = "NOT_SUPPORTED"}``, with
  ``"*"`` for all but the one that gives the handle;
- ``hangs``: how many seconds single functions take, ``{"*" = 60}`` for all of them;
- ``missing`` (of the machine): functions that the library lacks, besides those that the driver
  branch does not have yet (``functions.toml``).
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pynvml

from legacy_cuda import catalog
from legacy_cuda.replay.native import compiler

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
LIBRARY = "libnvidia-ml.so.1"
VARIABLE = "LEGACY_CUDA_NVML_STANDIN"
MIB = 1 << 20

THROTTLE = {
    "gpu_idle": pynvml.nvmlClocksThrottleReasonGpuIdle,
    "applications_clocks_setting": pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting,
    "sw_power_cap": pynvml.nvmlClocksThrottleReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "sync_boost": pynvml.nvmlClocksThrottleReasonSyncBoost,
    "sw_thermal_slowdown": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
    "hw_thermal_slowdown": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "hw_power_brake_slowdown": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
}
# A card that does nothing. What a key stands for is the NVML function that `_answers` gives it to.
_DEFAULTS: dict[str, Any] = {
    "temperature_c": 35,
    "slowdown_c": 93,
    "shutdown_c": 96,
    "power_w": 25.0,
    "utilization_gpu": 0,
    "utilization_memory": 0,
    "utilization_encoder": 0,
    "utilization_decoder": 0,
    "memory_used_mib": 0,
    "bar1_total_mib": 256,
    "bar1_used_mib": 2,
    "clocks": {"graphics": 405, "sm": 405, "memory": 405, "video": 405},
    "max_clocks": {"graphics": 1500, "sm": 1500, "memory": 3600, "video": 1300},
    "throttle": ["gpu_idle"],
    "pstate": 8,
    "persistence": True,
    "compute_mode": 0,
    "display_active": False,
    "pcie": {"generation": 1, "width": 16, "max_generation": 3, "max_width": 16, "replays": 0},
    "pcie_tx_kib_s": 0,
    "pcie_rx_kib_s": 0,
    "processes": [],
    "violations": {"power_s": 0.0, "thermal_s": 0.0},
    "xids": [],
    "vbios": "86.02.23.00.01",
    "errors": {},
    "hangs": {},
}
# Keys without a default. What a card lacks of them is NOT_SUPPORTED, or comes from the catalog.
_OPTIONAL = frozenset(
    {
        *("gpu", "name", "uuid", "fails", "mig", "fan_percent", "temperature_memory_c", "energy_j"),
        *("ecc", "ecc_errors", "retired_pages"),
        *("power_limit_w", "power_default_limit_w", "power_min_w", "power_max_w"),
    }
)


def machines() -> list[str]:
    """The names of the recorded machines."""
    return sorted(path.stem for path in (HERE / "machines").glob("*.toml"))


def read(name: str) -> dict[str, Any]:
    """A recorded machine, as a mapping that a test may change before it is started."""
    machine: dict[str, Any] = tomllib.loads((HERE / "machines" / f"{name}.toml").read_text("utf-8"))
    return machine


class Standin:
    """A machine in a folder: the library, and the file that it answers from.

    ``environment`` has to be that of a program before it starts, since the loader reads it then.
    """

    def __init__(self, machine: Mapping[str, Any], folder: Path) -> None:
        self.machine = copy.deepcopy(dict(machine))
        self.file = folder / "nvml.txt"
        self.library = _library(self.machine)
        self.write()

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to find this machine."""
        return {"LD_LIBRARY_PATH": str(self.library.parent), VARIABLE: str(self.file)}

    def change(self, card: int, **keys: Any) -> None:
        """Change keys of a card; running programs see it at their next call."""
        self.machine["card"][card].update(keys)
        self.write()

    def write(self) -> None:
        """Write the file anew, in one step."""
        temporary = self.file.with_suffix(".new")
        temporary.write_text("".join(f"{line}\n" for line in _lines(self.machine)), "utf-8")
        temporary.replace(self.file)


def _branch(machine: Mapping[str, Any]) -> catalog.Branch:
    wanted = machine["driver_branch"]
    return next(branch for branch in catalog.branches() if branch.branch == wanted)


def _library(machine: Mapping[str, Any]) -> Path:
    """The library without the functions that this machine's driver lacks."""
    first = tomllib.loads((HERE / "functions.toml").read_text("utf-8"))["first_branch"]
    missing = {name for name, since in first.items() if since > int(machine["driver_branch"])}
    missing |= set(machine.get("missing", []))
    hidden = "".join(f" {name};" for name in sorted(missing))
    symbols = f"{{ global: nvml*;{f' local:{hidden}' if hidden else ''} }};\n"
    sources = {"standin.c": (HERE / "standin.c").read_text("utf-8"), "symbols.map": symbols}
    options = ("-Wl,--version-script=symbols.map", f"-Wl,-soname,{LIBRARY}")
    return compiler.library(LIBRARY, sources, options)


def _error(name: str) -> int:
    number: int = getattr(pynvml, f"NVML_ERROR_{name}")
    return number


def _lines(machine: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the file; its form is described in ``standin.c``."""
    branch = _branch(machine)
    major, minor = branch.cuda
    devices = list(_devices(machine))
    yield f"- nvmlInit 0 {_error(machine['init_error']) if 'init_error' in machine else 0}"
    yield f"- nvmlSystemGetDriverVersion 0 0 {branch.latest}"
    yield f"- nvmlSystemGetNVMLVersion 0 0 {major}.{branch.latest}"
    yield f"- nvmlSystemGetCudaDriverVersion 0 0 {1000 * major + 10 * minor}"
    yield f"- nvmlDeviceGetCount 0 0 {len(devices)}"
    yield "- nvmlEventSetCreate 0 0"
    for index, (gpu, card) in enumerate(devices):
        unknown = set(card) - set(_DEFAULTS) - _OPTIONAL
        if unknown:
            raise ValueError(f"unknown keys of a card: {sorted(unknown)}")
        hangs = card["hangs"]
        if "fails" in card:
            yield f"{index} * {hangs.get('*', 0)} {_error(card['fails'])}"
            continue
        answers = dict(_answers(index, gpu, card, branch))
        for function, error in card["errors"].items():
            answers = {key: text for key, text in answers.items() if not _is_of(key, function)}
            yield f"{index} {function} {hangs.get(function, 0)} {_error(error)}"
        for key, value in answers.items():
            hang = hangs.get(key.partition(".")[0], hangs.get("*", 0))
            yield f"{index} {key} {hang} 0 {value}"
        for number, xid in enumerate(card["xids"]):
            yield f"{index} event.{number} 0 0 {pynvml.nvmlEventTypeXidCriticalError} {xid}"


def _is_of(key: str, function: str) -> bool:
    if function == "*":
        return key != "nvmlDeviceGetHandleByIndex"
    return key == function or key.startswith(f"{function}.")


def _devices(machine: Mapping[str, Any]) -> Iterator[tuple[catalog.Gpu, dict[str, Any]]]:
    """The card of every device, with the default of every key; a card with two dies is two."""
    for card in machine["card"]:
        gpu = catalog.find_gpu(card["gpu"])
        for _ in range(gpu.dies):
            yield gpu, {**_DEFAULTS, **card}


def memory_mib(gpu: catalog.Gpu, ecc: bool, branch: int) -> tuple[int, int]:
    """Total and reserved memory as a branch shows it, in MiB (``catalog/data/gpus.toml``)."""
    usable = gpu.usable_mib_ecc_on if ecc else gpu.usable_mib_ecc_off
    if branch < 510:
        return (usable or gpu.memory_mib), 0
    gddr = (gpu.memory_type or "").startswith("GDDR")
    total = gpu.memory_mib * 15 // 16 if ecc and gddr else gpu.memory_mib
    return total, total - min(usable or total, total)


def _answers(
    index: int, gpu: catalog.Gpu, card: Mapping[str, Any], branch: catalog.Branch
) -> Iterator[tuple[str, str]]:
    """Every call a device answers, and what it writes."""

    def get(name: str, *values: object) -> tuple[str, str]:
        numbers = (int(value) if isinstance(value, bool) else value for value in values)
        return f"nvmlDeviceGet{name}", " ".join(str(value) for value in numbers)

    def each(name: str, values: Mapping[int, object]) -> Iterator[tuple[str, str]]:
        return (get(f"{name}.{which}", value) for which, value in values.items())

    brand = "NVIDIA " if gpu.product.startswith(("GeForce", "TITAN")) else ""
    name = card.get("name", brand + gpu.product)
    vendor, _, chip = gpu.pci_ids[0].partition(":")
    pci_id = int(chip, 16) << 16 | int(vendor, 16)
    ecc = gpu.ecc is True and card.get("ecc", True)
    total, reserved = memory_mib(gpu, ecc, int(branch.branch))
    default_limit = card.get("power_default_limit_w", (gpu.tdp_w or 250) / gpu.dies)
    limit = card.get("power_limit_w", default_limit)
    compute = [each_ for each_ in card["processes"] if each_.get("kind", "C") == "C"]
    graphics = [each_ for each_ in card["processes"] if each_.get("kind", "C") == "G"]
    throttle = sum(THROTTLE[reason] for reason in card["throttle"])
    pcie = card["pcie"]
    clock_order = ("graphics", "sm", "memory", "video")

    yield get("HandleByIndex")
    yield get("Index")
    yield get("MinorNumber", index)
    yield get("Name", name)
    unique = uuid.uuid5(uuid.NAMESPACE_OID, f"legacy-cuda stand-in {index}")
    yield get("UUID", card.get("uuid", f"GPU-{unique}"))
    yield get("VbiosVersion", card["vbios"])
    yield get("PciInfo", 0, index + 1, 0, pci_id, 0x10DE, f"00000000:{index + 1:02X}:00.0")
    yield get("CudaComputeCapability", *gpu.capability)
    yield get("MultiGpuBoard", gpu.dies > 1)
    yield get("MemoryInfo", total * MIB, reserved * MIB, card["memory_used_mib"] * MIB)
    yield get("BAR1MemoryInfo", card["bar1_total_mib"] * MIB, card["bar1_used_mib"] * MIB)
    yield get("UtilizationRates", card["utilization_gpu"], card["utilization_memory"])
    yield get("EncoderUtilization", card["utilization_encoder"], 167000)
    yield get("DecoderUtilization", card["utilization_decoder"], 167000)
    yield get("Temperature.0", card["temperature_c"])
    yield from each("TemperatureThreshold", {0: card["shutdown_c"], 1: card["slowdown_c"]})
    yield get("PowerUsage", round(card["power_w"] * 1000))
    yield get("PowerManagementMode", 1)
    yield get("PowerManagementLimit", round(limit * 1000))
    yield get("EnforcedPowerLimit", round(limit * 1000))
    yield get("PowerManagementDefaultLimit", round(default_limit * 1000))
    lowest = card.get("power_min_w", default_limit / 2)
    highest = card.get("power_max_w", default_limit)
    yield get("PowerManagementLimitConstraints", round(lowest * 1000), round(highest * 1000))
    yield from each("ClockInfo", {n: card["clocks"][k] for n, k in enumerate(clock_order)})
    yield from each("MaxClockInfo", {n: card["max_clocks"][k] for n, k in enumerate(clock_order)})
    for word in ("ThrottleReasons", "EventReasons"):
        yield get(f"CurrentClocks{word}", throttle)
        yield get(f"SupportedClocks{word}", sum(THROTTLE.values()))
    yield get("PerformanceState", card["pstate"])
    yield get("PowerState", card["pstate"])
    yield get("PersistenceMode", card["persistence"])
    yield get("ComputeMode", card["compute_mode"])
    yield get("DisplayMode", card["display_active"])
    yield get("DisplayActive", card["display_active"])
    yield get("CurrPcieLinkGeneration", pcie["generation"])
    yield get("CurrPcieLinkWidth", pcie["width"])
    yield get("MaxPcieLinkGeneration", pcie["max_generation"])
    yield get("MaxPcieLinkWidth", pcie["max_width"])
    yield get("PcieReplayCounter", pcie.get("replays", 0))
    yield from each("PcieThroughput", {0: card["pcie_tx_kib_s"], 1: card["pcie_rx_kib_s"]})
    for kind, running in (("Compute", compute), ("Graphics", graphics), ("MPSCompute", [])):
        numbers = (number for one in running for number in (one["pid"], one["memory_mib"] * MIB))
        yield get(f"{kind}RunningProcesses", *numbers)
    samples = (
        (one["pid"], 1, one.get("sm", 0), one.get("memory", 0), 0, 0) for one in card["processes"]
    )
    yield get("ProcessUtilization", *(number for sample in samples for number in sample))
    yield get("SupportedEventTypes", pynvml.nvmlEventTypeXidCriticalError)
    yield "nvmlDeviceRegisterEvents", ""
    violations = card["violations"]
    for policy, key in (
        (pynvml.NVML_PERF_POLICY_POWER, "power_s"),
        (pynvml.NVML_PERF_POLICY_THERMAL, "thermal_s"),
    ):
        yield get(f"ViolationStatus.{policy}", 0, round(violations[key] * 1e9))
    if gpu.ecc is True:
        yield get("EccMode", ecc, ecc)
    if ecc:
        errors = card.get("ecc_errors", {})
        for kind, type_ in (("corrected", 0), ("uncorrected", 1)):
            for period, counter in (("volatile", 0), ("aggregate", 1)):
                yield get(f"TotalEccErrors.{type_}.{counter}", errors.get(f"{kind}_{period}", 0))
        retired = card.get("retired_pages", {})
        for cause, key in ((0, "single_bit"), (1, "double_bit")):
            yield get(f"RetiredPages.{cause}", *(4096 * n for n in range(retired.get(key, 0))))
        yield get("RetiredPagesPendingStatus", retired.get("pending", False))
    if "fan_percent" in card:
        yield get("FanSpeed", card["fan_percent"])
    if "energy_j" in card:
        yield get("TotalEnergyConsumption", round(card["energy_j"] * 1000))
    if "mig" in card:
        yield get("MigMode", card["mig"], card["mig"])
    if "temperature_memory_c" in card:
        which = pynvml.NVML_FI_DEV_MEMORY_TEMP
        kind_ = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
        yield get(f"FieldValues.{which}", kind_, card["temperature_memory_c"])


def main(arguments: list[str]) -> int:
    """Run a command on a machine."""
    import tempfile

    if not arguments or arguments[0] not in machines():
        print(f"usage: python -m tests.nvml.standin MACHINE [COMMAND ...]\n{machines()}")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        standin = Standin(read(arguments[0]), Path(folder))
        command = arguments[1:] or [os.environ.get("SHELL", "sh")]
        done = subprocess.run(command, env={**os.environ, **standin.environment}, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
