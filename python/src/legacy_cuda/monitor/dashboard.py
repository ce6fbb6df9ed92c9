"""A Grafana dashboard of the metrics, as the JSON that Grafana imports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from legacy_cuda.catalog.alerts import Alert

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24  # columns of Grafana's grid
_CHOSEN = '{uuid=~"$gpu"}'
_LEGEND = "{{gpu}} {{name}}"


@dataclass(frozen=True)
class Panel:
    """A graph, or a number ("stat"). ``queries``: PromQL and legend; ``alert`` draws its line."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str
    width: int = 12
    height: int = 8
    kind: str = "timeseries"
    alert: str | None = None
    highest: float | None = None


def _gpu(name: str) -> str:
    return f"nvidia_gpu_{name}{_CHOSEN}"


PANELS: tuple[Panel, ...] = (
    Panel("GPUs that answer", ((f"sum({_gpu('up')})", ""),), "none", 4, 4, "stat"),
    Panel(
        "GPUs that do not",
        (("nvidia_gpu_failure" + _CHOSEN, "{{gpu}} {{reason}}"),),
        "none",
        8,
        4,
        "stat",
    ),
    Panel("Power, all GPUs", ((f"sum({_gpu('power_draw')})", ""),), "watt", 4, 4, "stat"),
    Panel("Memory in use", ((f"sum({_gpu('memory_used_bytes')})", ""),), "bytes", 4, 4, "stat"),
    Panel(
        "Since the last sample",
        (("time() - nvidia_gpu_monitor_last_sample_timestamp_seconds", ""),),
        "s",
        4,
        4,
        "stat",
        "NvidiaGpuSamplesStale",
    ),
    Panel(
        "Memory",
        ((f"{_gpu('memory_used_bytes')} / {_gpu('memory_total_bytes')}", _LEGEND),),
        "percentunit",
        alert="NvidiaGpuMemoryHigh",
        highest=1,
    ),
    Panel("Utilisation", ((_gpu("utilization_gpu"), _LEGEND),), "percent", highest=100),
    Panel("Temperature", ((_gpu("temperature_gpu"), _LEGEND),), "celsius", alert="NvidiaGpuHot"),
    Panel(
        "Power and its limit",
        ((_gpu("power_draw"), _LEGEND), (_gpu("power_limit"), f"{_LEGEND} limit")),
        "watt",
    ),
    Panel("SM clock", ((_gpu("clocks_current_sm_clock_hz"), _LEGEND),), "hertz"),
    Panel(
        "Clocks lowered for",
        (
            (
                f"nvidia_gpu_clocks_throttle_reason{_CHOSEN[:-1]}" + ',reason!="gpu_idle"} == 1',
                "{{gpu}} {{reason}}",
            ),
        ),
        "none",
    ),
    Panel(
        "PCIe",
        (
            (_gpu("pcie_throughput_rx_bytes_per_second"), f"{_LEGEND} received"),
            (_gpu("pcie_throughput_tx_bytes_per_second"), f"{_LEGEND} sent"),
        ),
        "Bps",
    ),
    Panel(
        "Errors: ECC not corrected, Xid, PCIe replays",
        (
            (_gpu("ecc_errors_uncorrected_volatile_total"), f"{_LEGEND} ECC"),
            (_gpu("xid_errors_total"), _LEGEND + " Xid {{xid}}"),
            (_gpu("pcie_replay_total"), f"{_LEGEND} replays"),
        ),
        "none",
    ),
    Panel(
        "Engines: tokens a second",
        (
            ("rate(legacy_cuda_engine_generated_tokens_total[1m])", "{{engine}} {{url}} generated"),
            ("rate(legacy_cuda_engine_prompt_tokens_total[1m])", "{{engine}} {{url}} prompts"),
        ),
        "none",
    ),
    Panel(
        "Engines: requests, and memory on GPUs",
        (
            ("legacy_cuda_engine_requests_running", "{{engine}} {{url}} running"),
            ("legacy_cuda_engine_requests_waiting", "{{engine}} {{url}} waiting"),
            ("legacy_cuda_engine_gpu_memory_bytes / 2^30", "{{engine}} {{url}} GiB"),
        ),
        "none",
    ),
    Panel(
        "Memory by process",
        ((_gpu("process_memory_used_bytes"), "{{gpu}} {{process_name}} {{pid}}"),),
        "bytes",
        24,
    ),
)


def document(alerts: Iterable[Alert]) -> dict[str, Any]:
    """The dashboard. Lines of alerts stand where the alerts have their thresholds."""
    thresholds = {alert.name: alert.threshold for alert in alerts}
    return {
        "uid": "legacy-cuda-gpus",
        "title": "GPUs (legacy-cuda)",
        "tags": ["gpu", "nvidia", "legacy-cuda"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "panels": list(_placed(thresholds)),
    }


def _variables() -> list[dict[str, Any]]:
    query = "label_values(nvidia_gpu_info, uuid)"
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "gpu",
            "label": "GPU",
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": query, "refId": "gpu"},
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
            "refresh": 2,
            "sort": 1,
        },
    ]


def _placed(thresholds: dict[str, float | None]) -> Iterable[dict[str, Any]]:
    """The panels side by side, in rows."""
    x = y = height = 0
    for number, panel in enumerate(PANELS, 1):
        if x + panel.width > _WIDTH:
            x, y, height = 0, y + height, 0
        place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        x, height = x + panel.width, max(height, panel.height)
        yield _panel(number, panel, place, thresholds[panel.alert] if panel.alert else None)


def _panel(
    number: int, panel: Panel, place: dict[str, int], threshold: float | None
) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if threshold is not None:
        steps.append({"color": "red", "value": threshold})
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if panel.highest is not None:
        defaults |= {"min": 0, "max": panel.highest}
    if panel.kind == "timeseries" and threshold is not None:
        defaults["custom"] = {"thresholdsStyle": {"mode": "line"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": expr}
            | ({"legendFormat": legend} if legend else {})
            for place, (expr, legend) in enumerate(panel.queries)
        ],
    }
