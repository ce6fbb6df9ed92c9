"""Samples as metrics: names, units, what is said of a GPU that is lost. No driver, no stand-in."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from legacy_cuda import catalog, nvml
from legacy_cuda.cli.monitor import _power_caps
from legacy_cuda.monitor import csvlog, metrics, overview
from legacy_cuda.monitor.metrics import State
from legacy_cuda.monitor.sampler import after
from legacy_cuda.nvml import Device, Missing, Process, Snapshot, Xid

MIB = 1 << 20
P40 = Device(
    index=0,
    name="Tesla P40",
    uuid="GPU-a",
    pci_id="10de:1b38",
    pci_address="0000:01:00.0",
    capability="6.1",
    memory_total_bytes=23040 * MIB,
    memory_used_bytes=19456 * MIB,
    utilization_percent=98,
    temperature_c=71,
    power_w=139.8,
    power_limit_w=140.0,
    clock_sm_mhz=1303,
    throttle_reasons=("sw_power_cap",),
    pcie_replays=3,
    ecc=True,
    ecc_uncorrected_volatile=2,
    processes=(Process(4711, "compute", 19450 * MIB, 'a "b"\\', 97),),
)
NOTHING = State(Snapshot(0.0, 0.0), (), {})
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def state(*devices: Device, **changes: object) -> State:
    found = replace(Snapshot(1000.0, 0.25, "580.1", "13.0"), devices=devices, **changes)
    return after(NOTHING, found)


def series(shown: State) -> Series:
    """Every sample of the rendered page, by name and labels, read by Prometheus's own parser."""
    text = metrics.render(metrics.families(shown)).decode()
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(shown: State, name: str, /, **labels: str) -> float | None:
    """The one sample of that name with at least these labels."""
    matching = [
        number
        for (one, its), number in series(shown).items()
        if one == name and labels.items() <= dict(its).items()
    ]
    assert len(matching) < 2
    return matching[0] if matching else None


def test_names_and_units() -> None:
    shown = state(P40)
    for name, expected in {
        "nvidia_gpu_memory_used_bytes": 19456 * MIB,
        "nvidia_gpu_memory_total_bytes": 23040 * MIB,
        "nvidia_gpu_utilization_gpu": 98,
        "nvidia_gpu_temperature_gpu": 71,
        "nvidia_gpu_power_draw": 139.8,
        "nvidia_gpu_power_limit": 140,
        "nvidia_gpu_clocks_current_sm_clock_hz": 1.303e9,
        "nvidia_gpu_pcie_replay_total": 3,
        "nvidia_gpu_ecc_mode_current": 1,
        "nvidia_gpu_ecc_errors_uncorrected_volatile_total": 2,
        "nvidia_gpu_processes": 1,
        "nvidia_gpu_up": 1,
        "nvidia_gpu_last_sample_timestamp_seconds": 1000,
    }.items():
        assert value(shown, name, gpu="0", uuid="GPU-a", name="Tesla P40") == expected
    assert value(shown, "nvidia_gpu_count") == 1
    assert value(shown, "nvidia_gpu_monitor_nvml_up", reason="") == 1
    assert value(shown, "nvidia_gpu_monitor_sample_duration_seconds") == 0.25
    assert (
        value(
            shown,
            "nvidia_gpu_info",
            card="p40",
            capability="6.1",
            pci_bus_id="0000:01:00.0",
            driver_version="580.1",
            cuda_version="13.0",
        )
        == 1
    )


def test_a_process_is_named_whatever_its_name() -> None:
    shown = state(P40)
    own = {"pid": "4711", "process_name": 'a "b"\\', "type": "compute"}
    assert value(shown, "nvidia_gpu_process_memory_used_bytes", **own) == 19450 * MIB
    assert value(shown, "nvidia_gpu_process_utilization_sm", **own) == 97


def test_each_throttle_reason_is_a_series_all_the_time() -> None:
    found = {
        dict(labels)["reason"]: number
        for (name, labels), number in series(state(P40)).items()
        if name == "nvidia_gpu_clocks_throttle_reason"
    }
    assert found == {name: float(name == "sw_power_cap") for name in nvml.THROTTLE_REASONS}


def test_what_is_not_known_is_not_there() -> None:
    shown = state(Device(index=0, uuid="GPU-a", name="x"))
    assert value(shown, "nvidia_gpu_temperature_gpu") is None
    assert value(shown, "nvidia_gpu_processes") is None
    assert value(shown, "nvidia_gpu_up") == 1


def test_every_number_of_a_device_is_a_metric() -> None:
    """A field is shown as itself, or in one of the metrics made by hand."""
    by_hand = {"index", "missing", "throttle_reasons", "processes", "compute_mode", *nvml.IDENTITY}
    shown = [reading.field for reading in metrics.READINGS]
    assert sorted(shown) == sorted({field.name for field in fields(Device)} - by_hand)
    names = [reading.name for reading in metrics.READINGS]
    assert len(set(names)) == len(names)


def test_a_lost_gpu_keeps_its_name_and_loses_its_values() -> None:
    before = state(P40, Device(index=1, uuid="GPU-b", name="Tesla P40", temperature_c=40))
    why = Missing("GPU_IS_LOST", "nvmlDeviceGetHandleByIndex")
    lost = Device(index=1, missing={"device": why})
    now = after(before, replace(before.snapshot, time=1010.0, devices=(P40, lost)))
    assert value(now, "nvidia_gpu_up", uuid="GPU-a") == 1
    assert value(now, "nvidia_gpu_up", uuid="GPU-b", name="Tesla P40") == 0
    assert value(now, "nvidia_gpu_failure", uuid="GPU-b", reason="GPU_IS_LOST") == 1
    assert value(now, "nvidia_gpu_failure", uuid="GPU-a") is None
    assert value(now, "nvidia_gpu_temperature_gpu", uuid="GPU-b") is None
    assert value(now, "nvidia_gpu_last_sample_timestamp_seconds", uuid="GPU-b") == 1000
    assert value(now, "nvidia_gpu_last_sample_timestamp_seconds", uuid="GPU-a") == 1010
    assert (now.samples, now.failures) == (2, 1)


def test_a_gpu_the_driver_lists_no_more() -> None:
    """The first of two is gone: the other moves to its index, and keeps its UUID."""
    other = Device(index=1, uuid="GPU-b", name="Tesla P4", temperature_c=40)
    before = state(P40, other)
    now = after(before, replace(before.snapshot, devices=(replace(other, index=0),)))
    assert value(now, "nvidia_gpu_up", uuid="GPU-b", gpu="0") == 1
    assert value(now, "nvidia_gpu_failure", uuid="GPU-a", reason="NOT_LISTED") == 1
    assert value(now, "nvidia_gpu_count") == 1
    again = after(now, before.snapshot)
    assert value(again, "nvidia_gpu_failure") is None


def test_a_gpu_without_a_name_is_not_taken_for_one_that_moved() -> None:
    before = state(P40, Device(index=1, uuid="GPU-b", name="Tesla P4"))
    why = Missing("GPU_IS_LOST", "nvmlDeviceGetHandleByIndex")
    moved, lost = replace(P40, index=1), Device(index=0, missing={"device": why})
    now = after(before, replace(before.snapshot, devices=(lost, moved)))
    assert value(now, "nvidia_gpu_up", uuid="GPU-a", gpu="1") == 1
    assert value(now, "nvidia_gpu_failure", gpu="0", uuid="", reason="GPU_IS_LOST") == 1
    assert value(now, "nvidia_gpu_failure", uuid="GPU-b", reason="NOT_LISTED") == 1


def test_no_driver() -> None:
    before = state(P40)
    why = Missing("LIB_RM_VERSION_MISMATCH", "nvmlInit")
    now = after(before, Snapshot(1010.0, 0.1, error=why, xid_missing=why))
    assert value(now, "nvidia_gpu_monitor_nvml_up", reason="LIB_RM_VERSION_MISMATCH") == 0
    assert value(now, "nvidia_gpu_failure", uuid="GPU-a", reason="LIB_RM_VERSION_MISMATCH") == 1
    assert value(now, "nvidia_gpu_count") is None  # not 0: nobody could count
    assert value(now, "nvidia_gpu_monitor_last_sample_timestamp_seconds") == 1010


def test_xids() -> None:
    shown = state(P40, xids=(Xid(0, 79, 2, 990.5),))
    assert value(shown, "nvidia_gpu_xid_errors_total", gpu="0", xid="79", uuid="GPU-a") == 2
    assert value(shown, "nvidia_gpu_xid_last_timestamp_seconds", xid="79") == 990.5


@pytest.mark.parametrize(
    ("caps", "expected"),
    [({"p40": 180.0}, 180), ({"": 150.0}, 150), ({"p4": 50.0}, None), ({}, None)],
)
def test_the_power_cap_is_that_of_the_card(caps: dict[str, float], expected: float | None) -> None:
    shown = replace(state(P40), power_caps=caps)
    assert value(shown, "nvidia_gpu_power_cap") == expected


def test_cards_that_share_an_id_are_told_apart_by_their_memory() -> None:
    """Both M40s in one machine, as a driver with ECC on shows them, and a cap for one."""
    small, large = (catalog.find_gpu(name) for name in ("m40", "m40-24gb"))
    assert small.pci_ids == large.pci_ids
    caps = _power_caps(["m40-24gb=180"])

    def m40(index: int, mib: int | None) -> Device:
        memory = mib * MIB if mib is not None else None
        uuid = f"GPU-{index}"
        return Device(index, uuid=uuid, pci_id=small.pci_ids[0], memory_total_bytes=memory)

    devices = (m40(0, small.usable_mib_ecc_on), m40(1, large.usable_mib_ecc_on), m40(2, None))
    shown = replace(state(*devices), power_caps=caps)
    assert [metrics.card(device) for device in devices] == ["m40", "m40-24gb", ""]
    found = [value(shown, "nvidia_gpu_power_cap", gpu=str(index)) for index in range(3)]
    assert found == [None, 180, None]


def test_a_gpu_that_says_later_who_it_is_is_no_second_one() -> None:
    """One that hung when the monitor was started, and was reset."""
    why = Missing("TIMED_OUT", "nvmlDeviceGetHandleByIndex")
    before = state(Device(index=0, missing={"device": why}))
    now = after(before, replace(before.snapshot, devices=(P40,)))
    assert [device.uuid for device in now.devices] == ["GPU-a"]
    assert value(now, "nvidia_gpu_failure") is None


def test_the_overview_escapes_what_others_named() -> None:
    why = Missing("TIMED_OUT", "<b>")
    text = overview.page(state(Device(0, {"device": why}, name="<script>")))
    assert b"<script>" not in text
    assert b"&lt;script&gt;" in text
    assert b"timed out (&lt;b&gt;)" in text


_text = st.text(max_size=12)
_number = st.one_of(st.none(), st.integers(0, 1 << 63), st.floats(allow_nan=False))
_devices = st.lists(
    st.builds(
        Device,
        index=st.integers(0, 3),
        uuid=st.one_of(st.none(), st.sampled_from(["GPU-a", "GPU-b", "GPU-c"])),
        name=st.one_of(st.none(), _text),
        pci_id=st.one_of(st.none(), _text),
        temperature_c=_number,
        memory_used_bytes=_number,
        throttle_reasons=st.one_of(st.none(), st.just(("hw_slowdown", "of another driver"))),
    ),
    unique_by=(lambda device: device.index, lambda device: device.uuid or str(device.index)),
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(_devices, min_size=1, max_size=4))
def test_any_row_of_samples_makes_a_page_that_prometheus_reads(rounds: list[list[Device]]) -> None:
    """No series appears twice, whatever comes, goes and moves; no number is lost."""
    now = NOTHING
    for devices in rounds:
        found = Snapshot(1.0, 0.1, devices=tuple(sorted(devices, key=lambda each: each.index)))
        now = after(now, found)
        shown = series(now)
        ups = [number for (name, _), number in shown.items() if name == "nvidia_gpu_up"]
        assert len(ups) == len(now.devices)
        assert sum(ups) == len(devices)
        known = [d.temperature_c for d in devices if d.temperature_c is not None]
        temperatures = [n for (name, _), n in shown.items() if name == "nvidia_gpu_temperature_gpu"]
        assert sorted(temperatures) == sorted(float(number) for number in known)
        assert all(not math.isnan(number) for number in temperatures)
        rows = [dict(zip(csvlog.COLUMNS, row, strict=True)) for row in csvlog.rows(now)]
        assert [row["index"] for row in rows] == [str(device.index) for device in now.devices]
        assert [row["state"] for row in rows].count("ok") == len(devices)
