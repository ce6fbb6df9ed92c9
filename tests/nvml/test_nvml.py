"""``legacy_cuda.nvml`` on the stand-in's machines: what is read, what fails alone, what is cut off.

No GPU and no driver has a part in this; tests/nvml/standin.py says what the stand-in is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pynvml
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legacy_cuda import catalog, nvml
from legacy_cuda.nvml import Device, Missing, Session, Snapshot, worker
from tests.nvml import standin
from tests.nvml.standin import MIB, Standin

#: Seconds: more than a reader needs to start on a machine that is busy with other things.
PATIENCE = 20.0
#: Seconds a call may take beyond its limit: what a busy machine needs to go on with a process.
SLACK = 2.0

Start = Callable[[Any], Standin]


@pytest.mark.parametrize("name", [n for n in standin.machines() if not n.startswith("broken")])
def test_healthy_machines(name: str, start: Start) -> None:
    machine = start(name).machine
    found = nvml.snapshot(PATIENCE)
    assert found.error is None
    branch = next(b for b in catalog.branches() if b.branch == machine["driver_branch"])
    assert found.driver_version == branch.latest
    assert found.cuda_version == catalog.dotted(branch.cuda)
    gpus = [
        (card, gpu)
        for card in machine["card"]
        for gpu in [catalog.find_gpu(card["gpu"])] * catalog.find_gpu(card["gpu"]).dies
    ]
    assert [device.index for device in found.devices] == list(range(len(gpus)))
    for (card, gpu), device in zip(gpus, found.devices, strict=True):
        assert device.failure is None
        assert device.pci_id in gpu.pci_ids
        assert device.capability == str(gpu.capability)
        assert device.power_default_limit_w == pytest.approx(gpu.tdp_w / gpu.dies)
        assert device.temperature_c == card.get("temperature_c", 35)
        assert device.ecc is (card.get("ecc", True) if gpu.ecc else None)
        for field in fields(Device):  # a value, or a reason
            if field.name not in ("index", "missing", "memory_reserved_bytes"):
                assert (getattr(device, field.name) is None) == (field.name in device.missing)


def test_everything_about_a_busy_p40(start: Start) -> None:
    machine = standin.read("p40x2")
    machine["card"][0]["processes"][0]["pid"] = os.getpid()
    start(machine)
    device = nvml.snapshot(PATIENCE).devices[0]
    gpu = catalog.find_gpu("p40")
    assert gpu.usable_mib_ecc_on is not None
    total = gpu.memory_mib * 15 // 16
    (process,) = device.processes or ()
    assert process.pid == os.getpid()
    assert process.name == Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    assert (process.kind, process.memory_bytes, process.sm_percent) == ("compute", 19450 * MIB, 97)
    shown = {field.name: getattr(device, field.name) for field in fields(Device)}
    for name in ("processes", "missing", "uuid", "vbios"):
        del shown[name]
    assert shown == {
        "index": 0,
        "name": "Tesla P40",
        "pci_address": "0000:01:00.0",
        "pci_id": "10de:1b38",
        "pci_subsystem_id": "10de:0000",
        "capability": "6.1",
        "persistence": True,
        "compute_mode": "default",
        "display_active": False,
        "mig": None,
        "ecc": True,
        "ecc_pending": True,
        "memory_total_bytes": total * MIB,
        "memory_reserved_bytes": (total - gpu.usable_mib_ecc_on) * MIB,
        "memory_used_bytes": 19456 * MIB,
        "memory_free_bytes": (gpu.usable_mib_ecc_on - 19456) * MIB,
        "bar1_total_bytes": 32768 * MIB,
        "bar1_used_bytes": 2 * MIB,
        "utilization_percent": 98,
        "memory_utilization_percent": 57,
        "encoder_percent": 0,
        "decoder_percent": 0,
        "temperature_c": 71,
        "temperature_memory_c": None,
        "temperature_slowdown_c": 93,
        "temperature_shutdown_c": 96,
        "fan_percent": None,
        "power_w": 139.8,
        "power_limit_w": 140.0,
        "power_enforced_limit_w": 140.0,
        "power_default_limit_w": 250.0,
        "power_min_limit_w": 125.0,
        "power_max_limit_w": 250.0,
        "energy_j": None,
        "pstate": 0,
        "clock_graphics_mhz": 1303,
        "clock_sm_mhz": 1303,
        "clock_memory_mhz": 3615,
        "clock_video_mhz": 1164,
        "clock_graphics_max_mhz": 1531,
        "clock_sm_max_mhz": 1531,
        "clock_memory_max_mhz": 3615,
        "throttle_reasons": ("sw_power_cap",),
        "power_violation_s": 512.25,
        "thermal_violation_s": 0.0,
        "pcie_generation": 3,
        "pcie_generation_max": 3,
        "pcie_width": 16,
        "pcie_width_max": 16,
        "pcie_replays": 3,
        "pcie_sent_bytes_s": 5120 * 1024,
        "pcie_received_bytes_s": 20480 * 1024,
        "ecc_corrected_volatile": 0,
        "ecc_uncorrected_volatile": 0,
        "ecc_corrected_aggregate": 0,
        "ecc_uncorrected_aggregate": 0,
        "retired_pages_single_bit": 0,
        "retired_pages_double_bit": 0,
        "retired_pages_pending": False,
    }
    assert device.missing["fan_percent"] == Missing("NOT_SUPPORTED", "nvmlDeviceGetFanSpeed")
    assert str(device.missing["mig"]) == "not supported (nvmlDeviceGetMigMode)"


def test_what_only_some_cards_tell(start: Start) -> None:
    start("v100")
    (device,) = nvml.snapshot(PATIENCE).devices
    assert (device.energy_j, device.temperature_memory_c) == (1234567.5, 39)


def test_the_throttle_reasons_are_all_named(start: Start) -> None:
    bits = {
        value
        for name, value in vars(pynvml).items()
        if name.startswith("nvmlClocksEventReason") and value and value & (value - 1) == 0
    }
    assert set(worker.THROTTLE_REASONS.values()) == bits
    assert tuple(worker.THROTTLE_REASONS) == nvml.THROTTLE_REASONS
    start("p4")
    (device,) = nvml.snapshot(PATIENCE).devices
    assert device.throttle_reasons == (
        "hw_slowdown",
        "sw_thermal_slowdown",
        "hw_thermal_slowdown",
    )
    assert device.thermal_violation_s == 1834.5


def test_an_old_driver_has_other_names_for_the_same(start: Start) -> None:
    """R470 lacks the second version of several functions and structures."""
    machine = standin.read("k80")
    machine["card"][0]["processes"] = [{"pid": 4711, "memory_mib": 10240}]
    start(machine)
    device = nvml.snapshot(PATIENCE).devices[1]
    gpu = catalog.find_gpu("k80")
    assert gpu.usable_mib_ecc_on is not None
    assert device.memory_total_bytes == gpu.usable_mib_ecc_on * MIB
    assert device.memory_reserved_bytes is None
    assert device.memory_used_bytes == 10312 * MIB
    assert device.throttle_reasons == ("sw_power_cap",)
    assert [(p.pid, p.memory_bytes, p.sm_percent) for p in device.processes or ()] == [
        (4711, 10240 * MIB, None)
    ]


def test_functions_that_are_not_there_cost_their_fields_only(start: Start) -> None:
    start("broken-old-library")
    for device in nvml.snapshot(PATIENCE).devices:
        assert device.failure is None
        assert device.missing["processes"].error == "FUNCTION_NOT_FOUND"
        assert device.missing["temperature_memory_c"].error == "FUNCTION_NOT_FOUND"
        assert device.temperature_c == 35


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("broken-driver-not-loaded", Missing("DRIVER_NOT_LOADED", "nvmlInit")),
        ("broken-version-mismatch", Missing("LIB_RM_VERSION_MISMATCH", "nvmlInit")),
    ],
)
def test_nvml_as_a_whole_gives_nothing(name: str, error: Missing, start: Start) -> None:
    start(name)
    found = nvml.snapshot(PATIENCE)
    assert found.error == error
    assert found.devices == ()


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    if any(Path(place, standin.LIBRARY).exists() for place in worker.PLACES):
        pytest.skip("skipped: this machine has a driver")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    found = nvml.snapshot(PATIENCE)
    if found.error is None:
        pytest.skip("skipped: this machine has a driver")
    assert found.error == Missing("LIBRARY_NOT_FOUND", "nvmlInit")


@pytest.mark.parametrize(
    ("name", "error"), [("broken-lost", "GPU_IS_LOST"), ("broken-no-permission", "NO_PERMISSION")]
)
def test_one_gpu_fails_and_the_other_answers(name: str, error: str, start: Start) -> None:
    start(name)
    good, bad = nvml.snapshot(PATIENCE).devices
    assert good.failure is None
    assert good.temperature_c == 35
    assert bad.failure == Missing(error, "nvmlDeviceGetHandleByIndex")
    assert bad.temperature_c is None
    assert bad.missing["temperature_c"] == bad.failure


def test_a_gpu_that_answers_every_call_with_an_error_is_not_up(start: Start) -> None:
    start("broken-unknown")
    good, bad = nvml.snapshot(PATIENCE).devices
    assert good.failure is None
    assert bad.failure == Missing("UNKNOWN", "nvmlDeviceGetMemoryInfo")
    assert bad.missing["name"] == Missing("UNKNOWN", "nvmlDeviceGetName")


def test_a_gpu_that_answers_again_is_asked_for_a_new_handle(start: Start) -> None:
    machine = start("p40x2")
    with Session() as session:
        before = session.sample(PATIENCE).devices[1]
        machine.change(1, errors={"*": "UNKNOWN"})
        dead = session.sample(PATIENCE).devices[1]
        machine.change(1, fails="GPU_IS_LOST")
        asked = session.sample(PATIENCE).devices[1]
        del machine.machine["card"][1]["fails"]
        machine.change(1, errors={})
        after = session.sample(PATIENCE).devices[1]
    assert dead.failure == Missing("UNKNOWN", "nvmlDeviceGetMemoryInfo")
    assert (dead.uuid, dead.name) == (before.uuid, before.name)
    assert asked.failure == Missing("GPU_IS_LOST", "nvmlDeviceGetHandleByIndex")
    assert after.failure is None and after.temperature_c == before.temperature_c


def test_a_gpu_that_is_lost_while_it_is_watched_keeps_its_name(start: Start) -> None:
    machine = start("p40x2")
    with Session() as session:
        before = session.sample(PATIENCE).devices[1]
        machine.change(1, fails="GPU_IS_LOST")
        good, lost = session.sample(PATIENCE).devices
    assert good.failure is None
    assert lost.failure is not None
    assert lost.failure.error == "GPU_IS_LOST"
    assert (lost.name, lost.uuid) == (before.name, before.uuid)
    assert lost.memory_used_bytes is None


def timed(limit: float) -> tuple[Snapshot, float]:
    began = time.monotonic()
    found = nvml.snapshot(limit)
    return found, time.monotonic() - began


def test_a_call_that_hangs_is_cut_and_the_rest_is_there(start: Start) -> None:
    start("broken-hang")
    found, took = timed(4.0)
    assert took < 4.0 + SLACK
    good, bad = found.devices
    assert good.failure is None
    assert good.temperature_c == 40
    assert bad.failure is not None
    assert bad.failure.error == "TIMED_OUT"
    assert bad.failure.call.startswith("nvmlDeviceGetTemperature, for ")
    # asked before, and after, the call that hangs
    assert bad.name == "Tesla P40"
    assert bad.memory_used_bytes == 0
    assert bad.missing["power_w"] == bad.failure


def test_a_device_that_hangs_at_once(start: Start) -> None:
    start("broken-hang-all")
    found, took = timed(4.0)
    assert took < 4.0 + SLACK
    (device,) = found.devices
    assert device.failure is not None
    assert device.failure.call.startswith("nvmlDeviceGetHandleByIndex, for ")


def test_a_session_goes_on_beside_a_hanging_gpu_and_takes_it_back(start: Start) -> None:
    machine = start("broken-hang")
    machine.change(1, hangs={"nvmlDeviceGetTemperature": 10})
    with Session() as session:
        first = session.sample(4.0)
        machine.change(1, hangs={})  # the call that hangs still takes its ten seconds
        machine.change(0, temperature_c=61)
        began = time.monotonic()
        second = session.sample(PATIENCE)
        assert time.monotonic() - began < SLACK  # not held up by what hangs already
        assert [device.failure is None for device in first.devices] == [True, False]
        assert second.devices[0].temperature_c == 61
        assert second.devices[1].failure is not None
        assert second.devices[1].memory_used_bytes is None  # nothing of an earlier round
        deadline = time.monotonic() + PATIENCE
        while session.sample(4.0).devices[1].failure and time.monotonic() < deadline:
            time.sleep(0.2)
        assert session.sample(4.0).devices[1].temperature_c == 35


def test_a_driver_that_hangs_in_its_start(start: Start) -> None:
    machine = start("p4")
    text = machine.file.read_text().replace("- nvmlInit 0 0", "- nvmlInit 60 0")
    machine.file.write_text(text)
    found, took = timed(4.0)
    assert took < 4.0 + SLACK
    assert found.error is not None
    assert found.error.error == "TIMED_OUT"
    assert found.error.call.startswith("nvmlInit, for ")


def test_a_container_without_libcuda(start: Start) -> None:
    machine = start("p4")
    text = machine.file.read_text()
    changed = text.replace(
        "nvmlSystemGetCudaDriverVersion 0 0", "nvmlSystemGetCudaDriverVersion 0 12"
    )
    assert changed != text
    machine.file.write_text(changed)
    found = nvml.snapshot(PATIENCE)
    assert (found.error, found.cuda_version) == (None, None)
    assert found.devices[0].temperature_c == 91


def test_a_driver_that_comes_later_is_found(start: Start) -> None:
    machine = start("broken-driver-not-loaded")
    with Session() as session:
        first = session.sample(PATIENCE)
        del machine.machine["init_error"]
        machine.write()
        second = session.sample(PATIENCE)
    assert first.error is not None
    assert second.error is None
    assert second.devices[0].name == "Tesla P40"


def test_a_reader_that_stops_is_replaced(start: Start) -> None:
    """What a kernel does to a process is done to it here with signals."""
    import signal

    start("p4")
    with Session() as session:
        assert session.sample(PATIENCE).error is None
        assert session._process
        session._process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        stopped = session.sample(1.0)
        assert time.monotonic() - began < 1.0 + SLACK
        assert stopped.error == Missing("TIMED_OUT", "the reader did not answer")
        assert session.sample(PATIENCE).error is None
        session._process.kill()
        session._process.wait()
        died = session.sample(PATIENCE)
        assert died.error == Missing("READER_DIED", "exit code -9")
        assert session.sample(PATIENCE).error is None


def test_readers_that_cannot_be_killed_are_not_waited_for_nor_multiplied(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that hangs in the kernel does not die of SIGKILL: here kill does nothing."""
    import signal

    start("p4")
    left: list[subprocess.Popen[bytes]] = []
    with monkeypatch.context() as patched:
        patched.setattr(subprocess.Popen, "kill", lambda self: left.append(self))
        session = Session()
        for _ in range(3):
            assert session.sample(PATIENCE).error is None
            assert session._process
            session._process.send_signal(signal.SIGSTOP)
            assert session.sample(0.3).error == Missing("TIMED_OUT", "the reader did not answer")
        began = time.monotonic()
        refused = session.sample(PATIENCE)
        assert time.monotonic() - began < SLACK
        assert refused.error == Missing("TIMED_OUT", "3 readers hang in the driver")
        session.close()
    assert len(left) == 3
    for process in left:
        process.kill()
        process.wait()
    assert session.sample(PATIENCE).error is None
    session.close()


def test_a_program_ends_while_the_driver_hangs_and_so_does_its_pipe(start: Start) -> None:
    """Whoever reads the program's output sees its end: the reader holds none of its files."""
    start("broken-hang-all")
    code = "from legacy_cuda import nvml; print(nvml.snapshot(2.0).devices[0].failure.error)"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert time.monotonic() - began < 20
    assert (done.stdout, done.stderr) == ("TIMED_OUT\n", "")


@pytest.mark.parametrize("reply", ["", "{", "[]", '{"devices": 5}', "null"])
def test_a_reply_that_makes_no_sense(reply: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that writes where it should not, or a reader that is cut off."""
    program = f"import sys; sys.stdin.readline(); print({reply!r})"
    fake = [sys.executable, "-c", program]
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **more: real(fake, **more))
    found = nvml.snapshot(PATIENCE)
    assert found.error is not None
    assert found.error.error == "READER_DIED"


def test_a_reader_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    found = nvml.snapshot(PATIENCE)
    assert found.error is not None
    assert found.error.call.startswith("it cannot be started: ")


def test_what_the_environment_names_is_not_imported(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pynvml.py in the working folder has no part in it, though ``python -m`` looks there."""
    start("p4")
    (tmp_path / "pynvml.py").write_text("raise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    for first in ("", str(tmp_path)):
        monkeypatch.syspath_prepend(first)
        assert nvml.snapshot(PATIENCE).error is None


def test_a_working_folder_that_was_removed(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("p4")
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert nvml.snapshot(PATIENCE).error is None


def test_the_library_is_found_where_the_loader_does_not_look(start: Start) -> None:
    machine = start("p4")
    code = (
        "from legacy_cuda.nvml import worker as w; import pynvml, sys; w.PLACES = (sys.argv[1],)\n"
        "w._load(); pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(machine.library.parent)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_xids_are_counted(start: Start) -> None:
    machine = start("broken-lost")
    machine.change(0, xids=[13])
    with Session() as session:
        first = session.sample(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while first.xid_missing and time.monotonic() < deadline:
            first = session.sample(PATIENCE)
        assert first.xid_missing is None
        assert first.xids == ()  # 13 was before
        now = time.time()
        machine.change(0, xids=[13, 48, 31, 48])
        while sum(x.count for x in session.sample(1.0).xids) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        found = session.sample(PATIENCE).xids
        session.close()  # another reader counts on
        assert session.sample(PATIENCE).xids == found
    assert [(xid.index, xid.xid, xid.count) for xid in found] == [(0, 31, 1), (0, 48, 2)]
    assert all(now - 1 < xid.last <= time.time() for xid in found)


def test_no_events_from_a_library_that_has_none(start: Start) -> None:
    start("broken-old-library")
    with Session() as session:
        deadline = time.monotonic() + PATIENCE
        missing = session.sample(PATIENCE).xid_missing
        while missing and missing.error == "NOT_READY" and time.monotonic() < deadline:
            missing = session.sample(PATIENCE).xid_missing
    assert missing == Missing("FUNCTION_NOT_FOUND", "nvmlEventSetWait")


FUNCTIONS = sorted({call for _, call, _ in worker.STATE})
ERRORS = ["NOT_SUPPORTED", "NO_PERMISSION", "UNKNOWN", "NO_DATA", "INVALID_ARGUMENT"]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.dictionaries(st.sampled_from(FUNCTIONS), st.sampled_from(ERRORS)))
def test_whatever_fails_fails_alone(
    watched: tuple[Standin, Session, Device], faults: dict[str, str]
) -> None:
    machine, session, whole = watched
    in_files = dict(faults)
    if "nvmlDeviceGetCurrentClocksThrottleReasons" in faults:
        in_files["nvmlDeviceGetCurrentClocksEventReasons"] = faults[
            "nvmlDeviceGetCurrentClocksThrottleReasons"
        ]
    machine.change(0, errors=in_files)
    (device,) = session.sample(PATIENCE).devices
    assert device.failure is None
    for names, call, _ in worker.STATE:
        for name in names:
            if call in faults:
                assert getattr(device, name) is None
                assert device.missing[name] == Missing(faults[call], call)
            else:
                assert getattr(device, name) == getattr(whole, name)


@pytest.fixture
def watched(start: Start) -> Iterator[tuple[Standin, Session, Device]]:
    machine = start("v100")
    with Session() as session:
        yield machine, session, session.sample(PATIENCE).devices[0]


def test_there_is_no_call_that_writes() -> None:
    """Monitoring is all this is for: no limit, clock or mode is set here."""
    text = Path(worker.__file__).read_text()
    called = {word for word in text.replace("(", " ").replace(".", " ").split() if "nvml" in word}
    assert not [word for word in called if word.startswith(("nvmlDeviceSet", "nvmlDeviceReset"))]


def test_records_name_every_question() -> None:
    asked = [name for names, _, _ in worker.IDENTITY + worker.STATE for name in names]
    assert tuple(name for names, _, _ in worker.IDENTITY for name in names) == nvml.IDENTITY
    assert sorted(asked) == sorted({f.name for f in fields(Device)} - {"index", "missing"})
