"""A real Prometheus (Debian's package) scrapes the monitor and evaluates the rules."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from legacy_cuda.catalog.alerts import alerts
from legacy_cuda.monitor import dashboard, rules
from tests.monitor.test_monitor import PATIENCE, monitor
from tests.nvml import standin
from tests.nvml.standin import MIB, Standin


class Prometheus:
    """A server, and what it answers."""

    def __init__(self, address: str) -> None:
        self.address = address

    def query(self, expr: str) -> list[dict[str, Any]]:
        path = f"/api/v1/query?query={urllib.parse.quote(expr)}"
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                return result
        except urllib.error.HTTPError as error:  # the query is none
            raise AssertionError(f"{expr}: {error.read().decode()}") from error
        except (urllib.error.URLError, ConnectionError):  # it is starting
            return []

    def until(self, expr: str) -> list[dict[str, Any]]:
        """The series of an expression, as soon as there is one."""
        deadline = time.monotonic() + PATIENCE
        while not (found := self.query(expr)):
            assert time.monotonic() < deadline, expr
            time.sleep(0.2)
        return found


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def machine(tmp_path: Path) -> Standin:
    return Standin(standin.read("p40x2"), tmp_path)


@pytest.fixture
def prometheus(machine: Standin, tmp_path: Path) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("skipped: there is no prometheus (package prometheus)")
    (tmp_path / "rules.yml").write_text(rules.document(alerts()), encoding="utf-8")
    address = f"127.0.0.1:{_free_port()}"
    with monitor(machine) as served:
        target = urllib.parse.urlsplit(served.url).netloc
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "gpus", "static_configs": [{"targets": [target]}]}],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                [
                    *(program, f"--config.file={tmp_path / 'prometheus.yml'}"),
                    *(
                        f"--storage.tsdb.path={tmp_path / 'data'}",
                        f"--web.listen-address={address}",
                    ),
                ],
                stdout=log,
                stderr=log,
            )
        try:
            yield Prometheus(address)
        finally:
            process.kill()
            process.wait()


def test_it_is_scraped_and_alerts_fire(machine: Standin, prometheus: Prometheus) -> None:
    found = prometheus.until('nvidia_gpu_memory_used_bytes{gpu="0"}')
    assert found[0]["metric"]["name"] == "Tesla P40"
    assert found[0]["value"][1] == str(19456 * MIB)
    assert prometheus.until("up == 1")
    prometheus.until("nvidia_gpu_monitor_xid_watch == 1")
    machine.change(0, xids=[79], hangs={"nvmlDeviceGetClockInfo": 300})
    machine.change(1, fails="GPU_IS_LOST")
    firing = prometheus.until('ALERTS{alertname="NvidiaGpuXid",alertstate="firing"}')
    assert firing[0]["metric"]["xid"] == "79"
    prometheus.until('ALERTS{alertname="NvidiaGpuLost",alertstate="pending"}')
    prometheus.until('nvidia_gpu_failure{gpu="0",reason="TIMED_OUT"}')
    time.sleep(3)  # scrapes go on
    assert prometheus.query("min_over_time(up[1m])")[0]["value"][1] == "1"
    assert float(prometheus.query("max_over_time(scrape_duration_seconds[1m])")[0]["value"][1]) < 2


def test_every_query_of_the_dashboard_is_answered(prometheus: Prometheus) -> None:
    """No GPU fails and no engine is there, so that these have no numbers; the others do."""
    prometheus.until("nvidia_gpu_memory_used_bytes")
    nothing = {"nvidia_gpu_failure", "nvidia_gpu_xid_errors_total"}
    for panel in dashboard.PANELS:
        for expr, _ in panel.queries:
            asked = expr.replace("$gpu", ".*")
            if "legacy_cuda_engine" in expr or any(name in expr for name in nothing):
                assert prometheus.query(asked) == []
            else:
                assert prometheus.until(asked), expr
