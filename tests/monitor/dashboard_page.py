"""The dashboard's panels with numbers in them, as a page, where no Grafana is to be had.

    python -m tests.monitor.dashboard_page FILE.html [--seconds 60]

Runs the monitor on a machine that is stood in for, whose numbers change, with a real Prometheus
(on PATH), asks it every query of the dashboard, and draws the panels where the dashboard has them.
It is not Grafana: what it shows is that the queries are answered, and what with.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from legacy_cuda.catalog.alerts import alerts
from legacy_cuda.monitor import dashboard
from tests.monitor.test_monitor import monitor
from tests.monitor.test_prometheus import _free_port
from tests.nvml import standin
from tests.nvml.standin import Standin

COLUMN, ROW = 50, 30  # pixels of a cell of Grafana's grid
COLOURS = ("#3274d9", "#56a64b", "#e0752d", "#8f3bb8", "#c4162a", "#b7a000", "#00778f", "#6d6d6d")
STYLE = """
body { font: 13px sans-serif; background: #f4f5f5; color: #24292e; margin: 16px;
  position: relative }
section { position: absolute; background: #fff; border: 1px solid #d8d9da; border-radius: 3px;
  box-sizing: border-box; padding: 6px 8px; overflow: hidden }
h2 { font-size: 13px; margin: 0 0 4px } p { margin: 0; white-space: nowrap }
.number { font-size: 28px; color: #56a64b } .small { font-size: 11px }
"""


def shown(value: float, unit: str) -> str:
    """A number in Grafana's unit, in short."""
    if unit in ("bytes", "Bps", "hertz"):
        step, names = (
            (1024, ("", "Ki", "Mi", "Gi")) if unit == "bytes" else (1000, ("", "k", "M", "G"))
        )
        power = min(3, int(math.log(abs(value), step))) if abs(value) >= 1 else 0
        suffix = {"bytes": "B", "Bps": "B/s", "hertz": "Hz"}[unit]
        return f"{value / step**power:.3g} {names[power]}{suffix}"
    if unit == "percentunit":
        return f"{100 * value:.0f} %"
    suffixes = {"percent": " %", "celsius": " C", "watt": " W", "s": " s"}
    return f"{value:.4g}{suffixes.get(unit, '')}"


def named(metric: dict[str, str], legend: str) -> str:
    for key, value in metric.items():
        legend = legend.replace("{{" + key + "}}", value)
    return legend


def ask(address: str, expr: str, start: float, end: float) -> list[dict[str, Any]]:
    """The series of a query over a time, one value a second."""
    words = {"query": expr.replace("$gpu", ".*"), "start": start, "end": end, "step": 1}
    url = f"http://{address}/api/v1/query_range?{urllib.parse.urlencode(words)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result


def lines(series: list[tuple[str, list[list[Any]]]], unit: str, wide: int, high: int) -> str:
    """A graph with its legend."""
    points = [(float(at), float(value)) for _, values in series for at, value in values]
    if not points:
        return '<p class="small">no data</p>'
    low, top = min(0.0, *(y for _, y in points)), max(y for _, y in points) or 1.0
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    legend = 15 * min(4, len(series))
    height = high - 34 - legend

    def place(at: float, value: float) -> str:
        x = 50 + (wide - 70) * (at - first) / max(1.0, last - first)
        return f"{x:.1f},{height - (height - 8) * (value - low) / (top - low or 1):.1f}"

    out = [f'<svg width="{wide - 18}" height="{height + 2}">']
    out += [f'<text x="0" y="12" font-size="10">{shown(top, unit)}</text>']
    out += [f'<line x1="50" x2="{wide - 20}" y1="{height}" y2="{height}" stroke="#ccc"/>']
    text = []
    for number, (name, values) in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(place(float(at), float(value)) for at, value in values)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if number < 4:
            now = shown(float(values[-1][1]), unit)
            text.append(f'<p class="small" style="color:{colour}">{escape(name)}: {now}</p>')
    return "".join([*out, "</svg>", *text])


def page(address: str, start: float, end: float) -> tuple[str, int, int]:
    """The page, how many queries there are, and how many have an answer with numbers."""
    made = dashboard.document(alerts())
    parts, asked, answered = [], 0, 0
    for panel in made["panels"]:
        series = []
        for target in panel["targets"]:
            found = ask(address, target["expr"], start, end)
            asked, answered = asked + 1, answered + bool(found)
            legend = target.get("legendFormat", "")
            series += [(named(one["metric"], legend), one["values"]) for one in found]
        at, unit = panel["gridPos"], panel["fieldConfig"]["defaults"]["unit"]
        wide, high = at["w"] * COLUMN - 6, at["h"] * ROW - 6
        if panel["type"] == "stat":
            numbers = [f"{name} {shown(float(values[-1][1]), unit)}" for name, values in series]
            inner = f'<p class="number">{escape(", ".join(numbers) or "no data")}</p>'
        else:
            inner = lines(series, unit, wide, high)
        parts.append(
            f'<section style="left:{at["x"] * COLUMN}px;top:{at["y"] * ROW + 30}px;width:{wide}px;'
            f'height:{high}px"><h2>{escape(panel["title"])}</h2>{inner}</section>'
        )
    head = f'<!doctype html><meta charset="utf-8"><title>{made["title"]}</title>'
    title = f"<b>{escape(made['title'])}</b>: a stand-in for two P40, not cards"
    return f"{head}<style>{STYLE}</style>{title}{''.join(parts)}", asked, answered


class Engine(BaseHTTPRequestHandler):
    """A llama-server whose counts grow with time."""

    def do_GET(self) -> None:
        now = time.monotonic()
        counts = {"prompt_tokens_total": 300 * now, "tokens_predicted_total": 40 * now}
        counts |= {"requests_processing": 1 + int(now) % 3, "requests_deferred": int(now) % 2}
        lines = [f"llamacpp:{name} {value:.0f}\n" for name, value in counts.items()]
        self.send_response(200)
        self.end_headers()
        self.wfile.write("".join(lines).encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


def main() -> int:
    """Run it all and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("there is no prometheus on PATH")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        machine = Standin(standin.read("p40x2"), folder)
        address = f"127.0.0.1:{_free_port()}"
        server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        engine = f"llama-server=http://127.0.0.1:{server.server_address[1]}"
        with monitor(machine, "--engine", engine) as served:
            target = urllib.parse.urlsplit(served.url).netloc
            jobs = [{"job_name": "gpus", "static_configs": [{"targets": [target]}]}]
            config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
            (folder / "prometheus.yml").write_text(json.dumps(config))
            command = [program, f"--config.file={folder / 'prometheus.yml'}"]
            command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                start = time.time()
                for second in range(options.seconds):
                    wave = math.sin(second / 6)
                    machine.change(0, temperature_c=71 + int(6 * wave), power_w=120 + 40 * wave,
                                   utilization_gpu=50 + int(45 * wave))  # fmt: skip
                    machine.change(1, temperature_c=40 + second // 4, utilization_gpu=second % 30,
                                   memory_used_mib=200 * second)  # fmt: skip
                    time.sleep(1)
                text, asked, answered = page(address, start, time.time())
            finally:
                process.kill()
                process.wait()
    options.file.write_text(text, encoding="utf-8")
    print(f"{asked} queries, {answered} with numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
