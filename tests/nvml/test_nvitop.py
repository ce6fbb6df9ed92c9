"""An unmodified nvitop shows the stand-in's machines. It comes from PyPI, into a folder of its own.

Its screen is compared with what the machine's file says: nvitop is a reader of NVML that this
project has no part in.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nvml import standin
from tests.nvml.standin import Standin

REQUIREMENTS = Path(__file__).with_name("nvitop.txt")


@pytest.fixture(scope="module")
def nvitop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, in an environment of its own."""
    import uv

    folder = tmp_path_factory.mktemp("nvitop")
    program = uv.find_uv_bin()
    make = [program, "venv", "--quiet", "--python", sys.executable, str(folder)]
    install = [program, "pip", "sync", "--quiet", "--require-hashes", "--only-binary", ":all:"]
    install += ["--python", str(folder / "bin" / "python"), str(REQUIREMENTS)]
    for command in (make, install):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"nvitop cannot be had: {done.stderr}"
    return folder / "bin" / "nvitop"


def screen(nvitop: Path, machine: Standin) -> str:
    done = subprocess.run(
        [str(nvitop), "--once", "--no-unicode"],
        env={**os.environ, **machine.environment, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "FunctionNotFound" not in done.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def test_a_k80_is_two_devices(nvitop: Path, tmp_path: Path) -> None:
    shown = screen(nvitop, Standin(standin.read("k80"), tmp_path))
    assert "Driver Version: 470" in shown
    assert shown.count("Tesla K80") == 2
    assert len(re.findall(r"N/A +47C +P0 +62W / 150W .* 10312MiB / 11441MiB .* 93% ", shown)) == 2


def test_processes_by_device(nvitop: Path, tmp_path: Path) -> None:
    machine = standin.read("p4000-gtx1060")
    for card in machine["card"]:
        for process in card["processes"]:
            if process["pid"] == 4711:
                process["pid"] = os.getpid()
    shown = screen(nvitop, Standin(machine, tmp_path))
    assert re.search(r"53% +54C +P0 +50W / 105W .* 3520MiB / 8192MiB .* 34% ", shown)
    assert re.search(r"38% +49C +P2 +30W / 120W .* 3300MiB / 6144MiB .* 21% ", shown)
    for device, memory, share in ((0, 3041, 33), (1, 3253, 20)):
        assert re.search(rf"{device} +{os.getpid()} C .* {memory}MiB +{share} ", shown)


def test_a_lost_gpu_beside_a_good_one(nvitop: Path, tmp_path: Path) -> None:
    shown = screen(nvitop, Standin(standin.read("broken-lost"), tmp_path))
    assert re.search(r"0 +Tesla P40 ", shown)
    assert re.search(r"1 +ERROR: GPU is Lost", shown)
