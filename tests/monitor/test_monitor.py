"""``legacy-cuda monitor`` as a process, on the stand-in for NVML: served, logged, shown once."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from legacy_cuda import catalog
from legacy_cuda.monitor import csvlog, sampler
from tests.nvml import standin
from tests.nvml.standin import MIB, Standin

PATIENCE = 30.0  # seconds: for a machine that is busy with other things
COMMAND = [sys.executable, "-m", "legacy_cuda", "monitor"]


def run(machine: Standin | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = machine.environment if machine else {}
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Monitor:
    """A monitor that serves, and what it says."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def get(self, path: str = "/metrics", **headers: str) -> tuple[Any, bytes]:
        address = self.url.replace("/metrics", path)
        request = urllib.request.Request(address, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.headers, answer.read()

    def series(self) -> dict[str, float]:
        """Samples by name and the labels gpu, reason and xid."""
        found = {}
        for family in text_string_to_metric_families(self.get()[1].decode()):
            for sample in family.samples:
                own = [
                    sample.labels[key] for key in ("gpu", "reason", "xid") if key in sample.labels
                ]
                found[" ".join([sample.name, *own]).strip()] = sample.value
        return found

    def until(self, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
        deadline = time.monotonic() + PATIENCE
        while not condition(found := self.series()):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found


@contextmanager
def monitor(machine: Standin, *arguments: str) -> Iterator[Monitor]:
    process = subprocess.Popen(
        [*COMMAND, "--listen", "127.0.0.1:0", "--interval", "0.5", *arguments],
        env={**os.environ, **machine.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("serving http://127.0.0.1:"), process.communicate()
        yield Monitor(process, line.split()[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_what_a_scrape_shows(tmp_path: Path) -> None:
    machine = Standin(standin.read("p40x2"), tmp_path)
    with monitor(machine, "--power-cap", "p40=140") as served:
        found = served.series()
        assert found["nvidia_gpu_memory_used_bytes 0"] == 19456 * MIB
        assert found["nvidia_gpu_temperature_gpu 0"] == 71
        assert found["nvidia_gpu_power_draw 0"] == pytest.approx(139.8)
        assert found["nvidia_gpu_power_cap 1"] == 140
        assert found["nvidia_gpu_power_limit 1"] == 250
        assert found["nvidia_gpu_clocks_throttle_reason 0 sw_power_cap"] == 1
        assert found["nvidia_gpu_count"] == 2
        assert found["process_resident_memory_bytes"] > MIB
        headers, _ = served.get()
        assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        headers, packed = served.get(**{"Accept-Encoding": "gzip"})
        assert headers["Content-Encoding"] == "gzip"
        assert b"nvidia_gpu_up" in gzip.decompress(packed)
        overview = served.get("/")[1].decode()
        assert (
            "<td>p40<td>Tesla P40<td>19456 / 23040 MiB<td>98 %<td>71 C<td>140 / 140 W" in overview
        )
        assert 'href="/metrics"' in overview
        with pytest.raises(urllib.error.HTTPError, match="404"):
            served.get("/etc/passwd")
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE) == 0


def test_a_gpu_that_is_lost_and_an_xid(tmp_path: Path) -> None:
    machine = Standin(standin.read("p40x2"), tmp_path)
    with monitor(machine) as served:
        served.until(lambda found: found.get("nvidia_gpu_monitor_xid_watch") == 1)
        machine.change(1, xids=[79])
        served.until(lambda found: found.get("nvidia_gpu_xid_errors_total 1 79") == 1)
        machine.change(1, fails="GPU_IS_LOST")
        found = served.until(lambda found: found["nvidia_gpu_up 1"] == 0)
        assert found["nvidia_gpu_failure 1 GPU_IS_LOST"] == 1
        assert found["nvidia_gpu_up 0"] == 1
        assert found["nvidia_gpu_temperature_gpu 0"] == 71
        assert "nvidia_gpu_temperature_gpu 1" not in found
        assert found["nvidia_gpu_xid_errors_total 1 79"] == 1


def test_a_gpu_that_hangs_holds_up_neither_scrapes_nor_the_other(tmp_path: Path) -> None:
    machine = Standin(standin.read("p40x2"), tmp_path)
    with monitor(machine) as served:
        machine.change(1, hangs={"nvmlDeviceGetPowerUsage": 300})
        longest = 0.0
        deadline = time.monotonic() + PATIENCE
        while True:  # while the sample that begins to hang is taken, and after it
            began = time.monotonic()
            found = served.series()
            longest = max(longest, time.monotonic() - began)
            if found["nvidia_gpu_up 1"] == 0:
                break
            assert time.monotonic() < deadline
        assert longest < 2.0
        assert found["nvidia_gpu_failure 1 TIMED_OUT"] == 1
        machine.change(0, temperature_c=64)
        found = served.until(lambda found: found["nvidia_gpu_temperature_gpu 0"] == 64)
        assert found["nvidia_gpu_up 0"] == 1
        last = found["nvidia_gpu_last_sample_timestamp_seconds 0"]
        assert last > found["nvidia_gpu_last_sample_timestamp_seconds 1"]
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE) == 0


def test_a_driver_that_comes_later(tmp_path: Path) -> None:
    machine = Standin(standin.read("broken-driver-not-loaded"), tmp_path)
    with monitor(machine) as served:
        found = served.series()
        assert found["nvidia_gpu_monitor_nvml_up DRIVER_NOT_LOADED"] == 0
        del machine.machine["init_error"]
        machine.write()
        found = served.until(lambda found: found.get("nvidia_gpu_monitor_nvml_up") == 1)
        assert found["nvidia_gpu_up 0"] == 1


@pytest.mark.parametrize(
    ("fault", "renewed"),
    [
        ({}, False),
        ({"fails": "GPU_IS_LOST"}, True),
        ({"hangs": {"nvmlDeviceGetPowerUsage": 300}}, False),
    ],
)
def test_nvml_is_started_anew_where_that_may_help(
    fault: dict[str, Any], renewed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Standin(standin.read("p40x2"), tmp_path)
    machine.change(1, **fault)
    for name, text in machine.environment.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(sampler, "RENEWAL", 0.0)
    one = sampler.Sampler(limit=4.0)
    try:
        state = one.sample()
        assert (state.devices[1].failure is not None) == bool(fault)
        assert (one._session._process is None) == renewed
        again = one.sample()
        assert again.devices[0].failure is None
        assert again.samples == 2
    finally:
        one.stop()


def test_a_client_that_says_nothing_keeps_nobody_waiting(tmp_path: Path) -> None:
    with monitor(Standin(standin.read("p4"), tmp_path)) as served:
        port = int(served.url.split(":")[2].split("/")[0])
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        assert served.series()["nvidia_gpu_temperature_gpu 0"] == 91
        silent += [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        time.sleep(0.5)  # more than are served at a time: the last ones are closed
        for connection in silent:
            connection.close()
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert served.series()["nvidia_gpu_temperature_gpu 0"] == 91
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)


def test_an_address_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(Standin(standin.read("p4"), tmp_path), "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 3
    assert f"nothing can be served at 127.0.0.1:{port}" in done.stderr
    assert "--listen" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--listen", "9835"),
        ("--listen", "127.0.0.1:port"),
        ("--listen", "127.0.0.1:99999"),
        ("--listen", "127.0.0.1:" + "9" * 5000),
        ("--listen", ":9835"),
        ("--interval", "0"),
        ("--interval", "nan"),
        ("--interval", "inf"),
        ("--power-cap", "p40=much"),
        ("--power-cap", "-5"),
        ("--power-cap", "=5"),
        ("--power-cap", "p41=180"),
        ("--engine", "ollama=http://127.0.0.1:99999"),
        ("--engine", "ollama=http://[::1:80"),
        ("--engine", "ollama=http://h@h:80"),
        ("--once", "--csv", "x"),
        ("--json", "--csv", "x"),
    ],
)
def test_bad_input(arguments: tuple[str, ...]) -> None:
    done = run(None, *arguments)
    assert done.returncode == 2
    assert "error" in done.stderr
    assert "Traceback" not in done.stderr


def test_once(tmp_path: Path) -> None:
    done = run(Standin(standin.read("p4000-gtx1060"), tmp_path), "--once")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "580" in lines[0]
    shown = "0 p4000 Quadro P4000 3520 / 8192 MiB 34 % 54 C 50 / 105 W 1480 MHz"
    assert " ".join(lines[2].split()) == shown
    lost = run(Standin(standin.read("broken-lost"), tmp_path), "--once")
    assert lost.returncode == 1
    assert "GPU 1: gpu is lost" in lost.stdout


def test_no_gpu_at_all(tmp_path: Path) -> None:
    machine = {**standin.read("p4"), "card": []}
    done = run(Standin(machine, tmp_path), "--once")
    assert done.returncode == 3
    assert "lists no GPU" in done.stderr


def test_once_as_json(tmp_path: Path) -> None:
    done = run(Standin(standin.read("k80"), tmp_path), "--json")
    document = json.loads(done.stdout)
    assert document["schema"] == "legacy-cuda/monitor/1"
    assert [device["card"] for device in document["devices"]] == ["k80", "k80"]
    first = document["devices"][0]
    assert first["power_w"] == 61.5
    assert first["missing"]["fan_percent"]["error"] == "NOT_SUPPORTED"


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("broken-version-mismatch", "start the machine again"),
        ("broken-driver-not-loaded", "modprobe"),
    ],
)
def test_once_without_a_driver(name: str, step: str, tmp_path: Path) -> None:
    machine = Standin(standin.read(name), tmp_path)
    done = run(machine, "--once")
    assert done.returncode == 3
    assert "the NVIDIA driver does not answer" in done.stderr
    assert step in done.stderr
    document = json.loads(run(machine, "--json").stdout)
    assert document["schema"] == "legacy-cuda/error/1"
    assert document["exit_code"] == 3


def _log(machine: Standin, path: Path, rows: int) -> None:
    """Let a monitor log until the file has so many rows."""
    process = subprocess.Popen(
        [*COMMAND, "--csv", str(path), "--interval", "0.5"],
        env={**os.environ, **machine.environment},
    )
    deadline = time.monotonic() + PATIENCE
    try:
        while not path.exists() or len(path.read_text().splitlines()) < rows:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_csv_log_goes_on_where_it_was(tmp_path: Path) -> None:
    machine = Standin(standin.read("broken-lost"), tmp_path)
    path = tmp_path / "gpus.csv"
    _log(machine, path, 5)
    before = path.read_text()
    machine.change(0, temperature_c=77, power_w=120.5)
    _log(machine, path, len(before.splitlines()) + 2)
    text = path.read_text()
    assert text.startswith(before)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == csvlog.COLUMNS
    assert text.count("temperature_c") == 1  # one heading
    first, second = rows[0], rows[1]
    assert (first["index"], first["state"], first["temperature_c"]) == ("0", "ok", "35")
    assert (second["index"], second["state"], second["temperature_c"]) == ("1", "GPU_IS_LOST", "")
    last = [row for row in rows if row["index"] == "0"][-1]
    assert (last["temperature_c"], last["power_w"]) == ("77", "120.5")
    assert last["throttle_reasons"] == "gpu_idle"
    gpu = catalog.find_gpu("p40")
    assert last["memory_total_bytes"] == str(gpu.memory_mib * 15 // 16 * MIB)


def test_a_row_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    machine = Standin(standin.read("p4"), tmp_path)
    path = tmp_path / "gpus.csv"
    path.write_text(",".join(csvlog.COLUMNS) + "\n2026-01-01T00:00:00.000Z,0,o")
    _log(machine, path, 3)
    last = path.read_text().splitlines()[2]
    assert last.count(",") == len(csvlog.COLUMNS) - 1 and ",0,ok," in last


def test_a_file_without_lines_is_not_read_to_its_end(tmp_path: Path) -> None:
    """/dev/full has zeros without an end; it took all memory."""
    done = run(Standin(standin.read("p4"), tmp_path), "--csv", "/dev/full")
    assert done.returncode == 2 and "has other columns" in done.stderr


def test_a_csv_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    done = run(Standin(standin.read("p4"), tmp_path), "--csv", str(path))
    assert done.returncode == 2
    assert "has other columns" in done.stderr
    assert path.read_text() == "a,b\n1,2\n"
