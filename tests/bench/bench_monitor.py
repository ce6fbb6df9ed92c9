"""How ``legacy-cuda monitor`` stands many scrapes: latency, memory, and a GPU that begins to hang.

    python -m tests.bench.bench_monitor [--rate 200] [--seconds 60] [--machine p100x4]

A machine of tests/nvml (a stand-in, no GPU) is served and scraped at a fixed rate, each scrape due
at its time whether or not the one before is done, over a few connections that stay. At half time a
call of the last GPU begins to hang for ever. Then the same metrics are served by the peer,
prometheus_client's own server, which makes the page anew for each scrape. Exit 1 where p99 is 50 ms
or more, a scrape failed, or memory grew by more than 5 %.
"""

from __future__ import annotations

import argparse
import http.client
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.nvml import standin
from tests.nvml.standin import Standin

P99 = 0.05  # seconds
GROWTH = 1.05
CONNECTIONS = 8

_PEER = """
import sys, time, threading
from http.server import ThreadingHTTPServer
from prometheus_client import CollectorRegistry, MetricsHandler
from prometheus_client.registry import Collector
from legacy_cuda.monitor import metrics
from legacy_cuda.monitor.sampler import Sampler

class Live(Collector):
    def collect(self):
        return [metric for metric in metrics.families(sampler.state) if metric.samples]

sampler = Sampler(1.0)
sampler.start()
registry = CollectorRegistry()
registry.register(Live())
server = ThreadingHTTPServer(("127.0.0.1", 0), MetricsHandler.factory(registry))
server.daemon_threads = True
print(f"serving http://127.0.0.1:{server.server_address[1]}/metrics", flush=True)
server.serve_forever()
"""
_OURS = ["-m", "legacy_cuda", "monitor", "--listen", "127.0.0.1:0", "--interval", "1"]


@dataclass
class Result:
    """Seconds from when a scrape was due to its last byte, what failed, and memory in KiB."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    size: int = 0

    def quantile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _resident(pid: int) -> int:
    """KiB of a process and its children: the reader of NVML is one."""
    status = Path(f"/proc/{pid}/status").read_text()
    own = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    children = [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]
    return own + sum(_resident(child) for child in children)


def load(url: str, pid: int, rate: float, seconds: float, half: Callable[[], None]) -> Result:
    """Scrape at a rate for a time; ``half`` is called in the middle."""
    found = Result()
    due: queue.Queue[float | None] = queue.Queue()
    parts = urlsplit(url)

    def work() -> None:
        connection = http.client.HTTPConnection(parts.netloc, timeout=30)
        while (when := due.get()) is not None:
            try:
                connection.request("GET", parts.path)
                body = connection.getresponse().read()
                found.latencies.append(time.perf_counter() - when)
                found.size = len(body)
                if b"nvidia_gpu_up" not in body:
                    found.failures.append("no samples in it")
            except (OSError, http.client.HTTPException) as error:
                found.failures.append(repr(error))
                connection.close()
        connection.close()

    workers = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    for worker in workers:
        worker.start()
    began = time.perf_counter()
    total = int(rate * seconds)
    for number in range(total):
        when = began + number / rate
        time.sleep(max(0.0, when - time.perf_counter()))
        due.put(when)
        if number == total // 2:
            half()
        if number % int(rate * 5) == 0:
            found.memory.append(_resident(pid))
    for _ in workers:
        due.put(None)
    for worker in workers:
        worker.join()
    found.memory.append(_resident(pid))
    return found


def measure(name: str, program: list[str], arguments: argparse.Namespace) -> Result:
    """Start a server on a machine of its own, load it, say how it did."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Standin(standin.read(arguments.machine), Path(folder))
        last = len(machine.machine["card"]) - 1
        process = subprocess.Popen(
            [sys.executable, *program],
            env={**os.environ, **machine.environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout
            url = process.stdout.readline().split()[1]
            found = load(
                url,
                process.pid,
                arguments.rate,
                arguments.seconds,
                lambda: machine.change(last, hangs={"nvmlDeviceGetPowerUsage": 3600}),
            )
        finally:
            process.kill()
            process.wait()
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    milliseconds = ", ".join(f"{k} {1000 * found.quantile(v):.1f}" for k, v in shares.items())
    print(
        f"{name}: {len(found.latencies)} scrapes of {found.size} bytes, "
        f"{len(found.failures)} failed; "
        f"ms: {milliseconds}, longest {1000 * max(found.latencies):.1f}, "
        f"mean {1000 * statistics.fmean(found.latencies):.1f}; "
        f"MiB: {', '.join(f'{kib / 1024:.1f}' for kib in found.memory)}"
    )
    return found


def main() -> int:
    """Measure both, print both, judge ours."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--machine", default="p100x4", choices=standin.machines())
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    ours = measure("legacy-cuda monitor", _OURS, arguments)
    peer = measure("prometheus_client's server", ["-c", _PEER], arguments)
    print(f"p99, peer to ours: {peer.quantile(0.99) / ours.quantile(0.99):.1f}")
    settled = ours.memory[1 : 1 + max(1, len(ours.memory) // 4)]
    grown = ours.memory[-1] / max(settled)
    fine = ours.quantile(0.99) < P99 and not ours.failures and grown <= GROWTH
    print("fine" if fine else f"not fine: memory times {grown:.3f}, failures {ours.failures[:3]}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
