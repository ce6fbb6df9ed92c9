"""Samples as metrics in Prometheus's text format. Pure: no clock, no driver.

Names: ``nvidia_gpu_`` and the field of ``nvidia-smi --query-gpu``, with underscores for dots, as
utkuozdemir/nvidia_gpu_exporter does it after its ``nvidia_smi_``. From there come clocks in Hz
(``..._clock_hz``), PCIe throughput, energy in joules, and Xids with the time of the last one.
Utilisation is in percent, as NVIDIA/dcgm-exporter and nvidia-smi have it. A value that a GPU does
not tell is no sample, as with both exporters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from legacy_cuda import catalog
from legacy_cuda.nvml import THROTTLE_REASONS, Device, Missing, Snapshot

#: The labels of every series about a GPU: the driver's index, its UUID, its name.
LABELS = ("gpu", "uuid", "name")


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric that is a field of ``Device``, times ``factor``. Counters get ``_total``."""

    name: str
    field: str
    help: str
    kind: Literal["gauge", "counter"] = "gauge"
    factor: float = 1


_MHZ = 1e6
READINGS: tuple[Reading, ...] = (
    Reading("memory_total_bytes", "memory_total_bytes", "Memory, bytes."),
    Reading("memory_reserved_bytes", "memory_reserved_bytes", "Memory kept by the driver, bytes."),
    Reading("memory_used_bytes", "memory_used_bytes", "Memory in use, bytes."),
    Reading("memory_free_bytes", "memory_free_bytes", "Memory not in use, bytes."),
    Reading("bar1_memory_total_bytes", "bar1_total_bytes", "BAR1, bytes."),
    Reading("bar1_memory_used_bytes", "bar1_used_bytes", "BAR1 in use, bytes."),
    Reading("utilization_gpu", "utilization_percent", "Time in which a kernel ran, percent."),
    Reading(
        "utilization_memory",
        "memory_utilization_percent",
        "Time in which memory was read or written, percent.",
    ),
    Reading("utilization_encoder", "encoder_percent", "Use of the video encoder, percent."),
    Reading("utilization_decoder", "decoder_percent", "Use of the video decoder, percent."),
    Reading("temperature_gpu", "temperature_c", "Temperature of the chip, degrees C."),
    Reading("temperature_memory", "temperature_memory_c", "Temperature of HBM, degrees C."),
    Reading(
        "temperature_slowdown",
        "temperature_slowdown_c",
        "Temperature at which the hardware lowers clocks, degrees C.",
    ),
    Reading(
        "temperature_shutdown",
        "temperature_shutdown_c",
        "Temperature at which the card is switched off, degrees C.",
    ),
    Reading("fan_speed", "fan_percent", "Speed asked of the fan, percent."),
    Reading("power_draw", "power_w", "Power, watts."),
    Reading("power_limit", "power_limit_w", "Power limit that is set, watts."),
    Reading("enforced_power_limit", "power_enforced_limit_w", "Power limit in force, watts."),
    Reading("power_default_limit", "power_default_limit_w", "Power limit after a start, watts."),
    Reading("power_min_limit", "power_min_limit_w", "Lowest power limit, watts."),
    Reading("power_max_limit", "power_max_limit_w", "Highest power limit, watts."),
    Reading("energy_joules", "energy_j", "Energy since the driver was loaded, joules.", "counter"),
    Reading("pstate", "pstate", "Performance state, 0 (fastest) to 15."),
    *(
        Reading(
            f"clocks_current_{name}_clock_hz",
            f"clock_{name}_mhz",
            f"Clock, {name}, Hz.",
            factor=_MHZ,
        )
        for name in ("graphics", "sm", "memory", "video")
    ),
    *(
        Reading(
            f"clocks_max_{name}_clock_hz",
            f"clock_{name}_max_mhz",
            f"Highest clock, {name}, Hz.",
            factor=_MHZ,
        )
        for name in ("graphics", "sm", "memory")
    ),
    Reading(
        "power_violation_seconds",
        "power_violation_s",
        "Time with clocks lowered for power, seconds.",
        "counter",
    ),
    Reading(
        "thermal_violation_seconds",
        "thermal_violation_s",
        "Time with clocks lowered for heat, seconds.",
        "counter",
    ),
    Reading("pcie_link_gen_current", "pcie_generation", "PCIe generation of the link now."),
    Reading("pcie_link_gen_max", "pcie_generation_max", "PCIe generation that is possible."),
    Reading("pcie_link_width_current", "pcie_width", "PCIe lanes of the link now."),
    Reading("pcie_link_width_max", "pcie_width_max", "PCIe lanes that are possible."),
    Reading("pcie_replay", "pcie_replays", "PCIe packets sent again.", "counter"),
    Reading(
        "pcie_throughput_tx_bytes_per_second",
        "pcie_sent_bytes_s",
        "Sent over PCIe, bytes a second over 20 ms.",
    ),
    Reading(
        "pcie_throughput_rx_bytes_per_second",
        "pcie_received_bytes_s",
        "Received over PCIe, bytes a second over 20 ms.",
    ),
    Reading("persistence_mode", "persistence", "Whether the driver stays loaded without users."),
    Reading("display_active", "display_active", "Whether a display is in use."),
    Reading("mig_mode_current", "mig", "Whether it is divided into instances."),
    Reading("ecc_mode_current", "ecc", "Whether memory is protected by ECC."),
    Reading("ecc_mode_pending", "ecc_pending", "Whether it will be after a restart."),
    *(
        Reading(
            f"ecc_errors_{kind}_{period}",
            f"ecc_{kind}_{period}",
            f"Memory errors that ECC {verb}, {since}.",
            "counter",
        )
        for kind, verb in (("corrected", "corrected"), ("uncorrected", "could not correct"))
        for period, since in (("volatile", "since the driver was loaded"), ("aggregate", "in all"))
    ),
    Reading(
        "retired_pages_single_bit_ecc_count",
        "retired_pages_single_bit",
        "Pages not used any more for several single-bit errors.",
    ),
    Reading(
        "retired_pages_double_bit_count",
        "retired_pages_double_bit",
        "Pages not used any more for a double-bit error.",
    ),
    Reading("retired_pages_pending", "retired_pages_pending", "Whether pages wait for a restart."),
)


@dataclass(frozen=True, slots=True)
class State:
    """What there is to show.

    ``devices`` holds every GPU that was ever seen, with what is known of it now; ``answered`` by
    ``key`` when each last answered in full, Unix seconds. ``power_caps``: watts by a card's name in
    the catalog, or by "" for every card.
    """

    snapshot: Snapshot
    devices: tuple[Device, ...]
    answered: Mapping[str, float]
    samples: int = 0
    failures: int = 0
    power_caps: Mapping[str, float] | None = None


def card(device: Device) -> str:
    """The card's name in the catalog, "" for one that is not there, or that cannot be told from
    others with its PCI id as long as it does not say how much memory it has."""
    found = catalog.identify(device.pci_id or "", device.memory_total_bytes)
    return found.name if found else ""


def key(device: Device) -> str:
    """What a GPU is known by: its UUID, or its index as long as it never said one."""
    return device.uuid or str(device.index)


def labels(device: Device) -> list[str]:
    """The values of LABELS."""
    return [str(device.index), device.uuid or "", device.name or ""]


def families(state: State) -> Iterator[Metric]:
    """The metrics of a state, in a fixed order."""
    yield from _about_gpus(state)
    for reading in READINGS:
        make = CounterMetricFamily if reading.kind == "counter" else GaugeMetricFamily
        metric = make(f"nvidia_gpu_{reading.name}", reading.help, labels=LABELS)
        for device in state.devices:
            value = getattr(device, reading.field)
            if value is not None:
                metric.add_metric(labels(device), float(value) * reading.factor)
        yield metric
    yield _throttling(state.devices)
    yield from _processes(state.devices)
    yield from _xids(state)
    yield from _about_itself(state)


def _gauge(name: str, text: str, more: Iterable[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"nvidia_gpu_{name}", text, labels=(*LABELS, *more))


def _about_gpus(state: State) -> Iterator[Metric]:
    info = _gauge(
        "info",
        "What the GPU is: 1.",
        ("card", "pci_bus_id", "capability", "vbios_version", "driver_version", "cuda_version"),
    )
    up = _gauge("up", "Whether the GPU answered all of the last sample: 1 or 0.")
    failure = _gauge("failure", "1 with the reason for which the GPU does not answer.", ("reason",))
    answered = _gauge(
        "last_sample_timestamp_seconds", "When the GPU last answered all of a sample, Unix time."
    )
    cap = _gauge("power_cap", "Power limit that was asked for with --power-cap, watts.")
    snapshot = state.snapshot
    for device in state.devices:
        own = labels(device)
        more = (card(device), device.pci_address, device.capability, device.vbios)
        versions = (snapshot.driver_version, snapshot.cuda_version)
        info.add_metric([*own, *(text or "" for text in (*more, *versions))], 1)
        why = failure_of(device, snapshot)
        up.add_metric(own, float(why is None))
        if why:
            failure.add_metric([*own, why.error], 1)
        if key(device) in state.answered:
            answered.add_metric(own, state.answered[key(device)])
        caps = state.power_caps or {}
        watts = caps.get(card(device), caps.get(""))
        if watts is not None:
            cap.add_metric(own, watts)
    yield from (info, up, failure, answered, cap)
    if snapshot.error is None:
        count = GaugeMetricFamily("nvidia_gpu_count", "GPUs that the driver lists.")
        count.add_metric([], len(snapshot.devices))
        yield count


def failure_of(device: Device, snapshot: Snapshot) -> Missing | None:
    """Why a GPU that was seen does not answer: its own reason, or that of NVML as a whole."""
    return snapshot.error or device.failure


def _throttling(devices: Iterable[Device]) -> Metric:
    metric = _gauge(
        "clocks_throttle_reason", "Whether clocks are lowered for the reason: 1 or 0.", ("reason",)
    )
    for device in devices:
        if device.throttle_reasons is not None:
            for reason in THROTTLE_REASONS:
                metric.add_metric(
                    [*labels(device), reason], float(reason in device.throttle_reasons)
                )
    return metric


def _processes(devices: Iterable[Device]) -> Iterator[Metric]:
    own = ("pid", "process_name", "type")
    count = _gauge("processes", "Processes with a context on the GPU.")
    memory = _gauge("process_memory_used_bytes", "Memory in use by the process, bytes.", own)
    share = _gauge("process_utilization_sm", "Multiprocessors' time of the process, percent.", own)
    for device in devices:
        if device.processes is None:
            continue
        count.add_metric(labels(device), len(device.processes))
        for process in device.processes:
            values = [*labels(device), str(process.pid), process.name or "", process.kind]
            if process.memory_bytes is not None:
                memory.add_metric(values, process.memory_bytes)
            if process.sm_percent is not None:
                share.add_metric(values, process.sm_percent)
    yield from (count, memory, share)


def _xids(state: State) -> Iterator[Metric]:
    names = (*LABELS, "xid")
    total = CounterMetricFamily(
        "nvidia_gpu_xid_errors", "Xid errors since the monitor was started.", labels=names
    )
    last = _gauge("xid_last_timestamp_seconds", "When the Xid was last seen, Unix time.", ("xid",))
    known = {device.index: device for device in state.devices}
    for xid in state.snapshot.xids:
        values = [*labels(known.get(xid.index, Device(xid.index))), str(xid.xid)]
        total.add_metric(values, xid.count)
        last.add_metric(values, xid.last)
    yield from (total, last)


def _about_itself(state: State) -> Iterator[Metric]:
    snapshot, prefix = state.snapshot, "nvidia_gpu_monitor_"

    def one(name: str, text: str, value: float, **named: str) -> Metric:
        metric = GaugeMetricFamily(prefix + name, text, labels=tuple(named))
        metric.add_metric(list(named.values()), value)
        return metric

    error, unwatched = snapshot.error, snapshot.xid_missing
    yield one(
        "nvml_up",
        "Whether the driver answered: 1, or 0 with the reason.",
        float(error is None),
        reason=error.error if error else "",
    )
    yield one(
        "xid_watch",
        "Whether Xid errors are watched for: 1, or 0 with the reason.",
        float(unwatched is None),
        reason=unwatched.error if unwatched else "",
    )
    yield one(
        "last_sample_timestamp_seconds", "When the last sample began, Unix time.", snapshot.time
    )
    yield one("sample_duration_seconds", "How long it took.", snapshot.duration_s)
    for name, text, value in (
        ("samples", "Samples taken.", state.samples),
        ("failed_samples", "Samples in which the driver or a GPU did not answer.", state.failures),
    ):
        counter = CounterMetricFamily(prefix + name, text)
        counter.add_metric([], value)
        yield counter


class _Page(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self.metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self.metrics


def render(metrics: Iterable[Metric]) -> bytes:
    """Metrics in Prometheus's text format; those without a sample are left out."""
    return generate_latest(_Page(metric for metric in metrics if metric.samples))
