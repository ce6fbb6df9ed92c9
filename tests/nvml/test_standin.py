"""The stand-in for NVML, read by the unmodified nvidia-ml-py in a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pynvml
import pytest

from legacy_cuda import catalog
from tests.nvml import standin
from tests.nvml.standin import MIB, Standin

HERE = Path(__file__).parent
NOT_SUPPORTED = {"error": pynvml.NVML_ERROR_NOT_SUPPORTED}
NOT_FOUND = {"error": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}


def dump(machine: Standin) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "dump.py")],
        env={**os.environ, **machine.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", standin.machines())
def test_each_machine_is_read(name: str, tmp_path: Path) -> None:
    machine = standin.read(name)
    if "hang" in name:
        for card in machine["card"]:
            card["hangs"] = {}
    found = dump(Standin(machine, tmp_path))
    if "init_error" in machine:
        assert found["error"] == getattr(pynvml, f"NVML_ERROR_{machine['init_error']}")
        return
    branch = next(b for b in catalog.branches() if b.branch == machine["driver_branch"])
    assert found["driver"] == branch.latest
    assert found["cuda"] == branch.cuda[0] * 1000 + branch.cuda[1] * 10
    gpus = [(card, gpu) for card in machine["card"] for gpu in _dies(card["gpu"])]
    assert len(found["devices"]) == len(gpus)
    for (card, gpu), device in zip(gpus, found["devices"], strict=True):
        if "fails" in card:
            assert device["error"] == getattr(pynvml, f"NVML_ERROR_{card['fails']}")
            continue
        if "*" in card.get("errors", {}):
            error = {"error": getattr(pynvml, f"NVML_ERROR_{card['errors']['*']}")}
            assert [device[key] for key in ("name", "pci", "temperature", "power")] == [error] * 4
            continue
        number = device["pci"][1]
        assert f"{number & 0xFFFF:04x}:{number >> 16:04x}" in gpu.pci_ids
        assert device["capability"] == list(gpu.capability)
        assert device["name"].endswith(card.get("name", gpu.product))
        assert device["temperature"] == card.get("temperature_c", 35)
        assert device["power_limit"] == 1000 * card.get("power_limit_w", gpu.tdp_w / gpu.dies)


def _dies(name: str) -> list[catalog.Gpu]:
    gpu = catalog.find_gpu(name)
    return [gpu] * gpu.dies


def test_every_value_of_a_k80(tmp_path: Path) -> None:
    first, second = dump(Standin(standin.read("k80"), tmp_path))["devices"]
    gpu = catalog.find_gpu("k80")
    assert gpu.usable_mib_ecc_on is not None
    total, used = gpu.usable_mib_ecc_on * MIB, 10312 * MIB
    assert first == {
        "name": "Tesla K80",
        "uuid": first["uuid"],
        "index": 0,
        "pci": ["00000000:01:00.0", 0x102D10DE, "0000:01:00.0"],
        "capability": [3, 7],
        "memory": [total, total - used, used],
        "memory_v2": NOT_FOUND,
        "bar1": [256 * MIB, 2 * MIB],
        "utilization": [93, 41],
        "encoder": [0, 167000],
        "temperature": 47,
        "slowdown": 93,
        "fan": NOT_SUPPORTED,
        "power": 61500,
        "power_limit": 150000,
        "power_enforced": 150000,
        "power_range": [75000, 150000],
        "energy": NOT_SUPPORTED,
        "clock_sm": 823,
        "clock_memory_max": 2505,
        "throttle": pynvml.nvmlClocksThrottleReasonSwPowerCap,
        "events": NOT_FOUND,
        "pstate": 0,
        "ecc": [1, 1],
        "ecc_corrected_aggregate": 12,
        "ecc_uncorrected_volatile": 0,
        "retired_single": 1,
        "retired_pending": 0,
        "link": [3, 16, 3, 16, 0],
        "transmitted": 0,
        "power_violation": NOT_SUPPORTED,
        "persistence": 1,
        "mig": NOT_SUPPORTED,
        "processes": NOT_FOUND,
        "processes_v2": [],
        "process_use": NOT_SUPPORTED,
        "memory_temperature": [[pynvml.NVML_ERROR_NOT_SUPPORTED, 0, 0]],
    }
    assert second["uuid"] != first["uuid"]
    assert second["index"] == 1


def test_what_a_newer_driver_and_newer_cards_add(tmp_path: Path) -> None:
    busy, idle = dump(Standin(standin.read("p40x2"), tmp_path))["devices"]
    gpu = catalog.find_gpu("p40")
    assert gpu.usable_mib_ecc_on is not None
    total = gpu.memory_mib * 15 // 16 * MIB
    reserved = total - gpu.usable_mib_ecc_on * MIB
    used = 19456 * MIB
    assert busy["memory"] == [total, total - reserved - used, reserved + used]
    assert busy["memory_v2"] == [total, reserved, total - reserved - used, used]
    assert busy["events"] == busy["throttle"] == pynvml.nvmlClocksThrottleReasonSwPowerCap
    assert busy["processes"] == busy["processes_v2"] == [[4711, 19450 * MIB]]
    assert busy["process_use"] == [[4711, 97, 57]]
    assert busy["power_violation"] == 512_250_000_000
    assert busy["link"] == [3, 16, 3, 16, 3]
    assert busy["transmitted"] == 5120
    assert idle["ecc"] == [0, 0]
    assert idle["ecc_corrected_aggregate"] == NOT_SUPPORTED
    assert idle["memory"][0] == gpu.memory_mib * MIB

    (v100,) = dump(Standin(standin.read("v100"), tmp_path))["devices"]
    assert v100["energy"] == 1_234_567_500
    assert v100["memory_temperature"] == [[0, pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, 39]]


def test_a_library_without_a_function_lacks_its_symbol(tmp_path: Path) -> None:
    (device, _) = dump(Standin(standin.read("broken-old-library"), tmp_path))["devices"]
    assert device["processes_v2"] == NOT_FOUND
    assert device["memory_temperature"] == NOT_FOUND
    assert device["temperature"] == 35


def test_a_field_fails_alone(tmp_path: Path) -> None:
    machine = standin.read("v100")
    machine["card"][0]["errors"] = {
        "nvmlDeviceGetPowerUsage": "NO_PERMISSION",
        "nvmlDeviceGetTemperature": "UNKNOWN",
    }
    (device,) = dump(Standin(machine, tmp_path))["devices"]
    assert device["power"] == {"error": pynvml.NVML_ERROR_NO_PERMISSION}
    assert device["temperature"] == {"error": pynvml.NVML_ERROR_UNKNOWN}
    assert device["power_limit"] == 250_000


def test_a_call_takes_as_long_as_it_is_told(tmp_path: Path) -> None:
    machine = standin.read("v100")
    machine["card"][0]["hangs"] = {"nvmlDeviceGetName": 1.5}
    started = time.monotonic()
    (device,) = dump(Standin(machine, tmp_path))["devices"]
    assert time.monotonic() - started > 1.5
    assert device["name"] == "Tesla V100-PCIE-16GB"


def test_no_call_without_init_and_no_device_beyond_the_last(tmp_path: Path) -> None:
    machine = Standin(standin.read("v100"), tmp_path)
    assert _script(
        machine,
        """
        say(lambda: n.nvmlDeviceGetCount())
        n.nvmlInit()
        say(lambda: n.nvmlDeviceGetHandleByIndex(1))
        say(lambda: n.nvmlDeviceGetTemperature(None, 0))
        n.nvmlShutdown()
        say(lambda: n.nvmlShutdown())
        say(lambda: n.nvmlErrorString(15))
        """,
    ) == ["1", "2", "2", "1", "GPU is lost"]


def test_devices_are_found_by_address_and_uuid(tmp_path: Path) -> None:
    machine = Standin(standin.read("mixed"), tmp_path)
    assert _script(
        machine,
        """
        n.nvmlInit()
        say(lambda: n.nvmlDeviceGetName(n.nvmlDeviceGetHandleByPciBusId("00000000:02:00.0")))
        handle = n.nvmlDeviceGetHandleByIndex(2)
        uuid = n.nvmlDeviceGetUUID(handle)
        say(lambda: n.nvmlDeviceGetName(n.nvmlDeviceGetHandleByUUID(uuid)))
        say(lambda: n.nvmlDeviceGetHandleByUUID("GPU-none"))
        """,
    ) == ["Tesla P40", "NVIDIA GeForce GTX 1080 Ti", "6"]


def test_a_running_program_sees_a_change_and_an_xid(tmp_path: Path) -> None:
    machine = Standin(standin.read("broken-lost"), tmp_path)
    machine.change(0, xids=[13])
    program = subprocess.Popen(
        [sys.executable, "-c", _PREAMBLE + _WATCH],
        env={**os.environ, **machine.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin
    assert program.stdout
    assert program.stdout.readline() == "35\n"
    machine.change(0, temperature_c=88, xids=[13, 48])
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline() == "88\n"
    assert program.stdout.readline() == "48\n"  # not 13, which was before it registered
    assert program.stdout.readline() == "10\n"  # NVML_ERROR_TIMEOUT: there is no other
    machine.change(0, fails="GPU_IS_LOST")
    rest, _ = program.communicate("\n", timeout=30)
    assert rest == "15\n"


_PREAMBLE = """
import pynvml as n, sys
def say(question):
    try:
        print(question(), flush=True)
    except n.NVMLError as error:
        print(error.value, flush=True)
"""
_WATCH = """
n.nvmlInit()
handle = n.nvmlDeviceGetHandleByIndex(0)
events = n.nvmlEventSetCreate()
n.nvmlDeviceRegisterEvents(handle, n.nvmlEventTypeXidCriticalError, events)
say(lambda: n.nvmlDeviceGetTemperature(handle, 0))
sys.stdin.readline()
say(lambda: n.nvmlDeviceGetTemperature(handle, 0))
say(lambda: n.nvmlEventSetWait_v2(events, 5000).eventData)
say(lambda: n.nvmlEventSetWait_v2(events, 20))
sys.stdin.readline()
say(lambda: n.nvmlDeviceGetTemperature(handle, 0))
"""


def _script(machine: Standin, text: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + textwrap.dedent(text)],
        env={**os.environ, **machine.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    machine = standin.read("v100")
    machine["card"][0]["temprature_c"] = 40
    with pytest.raises(ValueError, match="temprature_c"):
        Standin(machine, tmp_path)
