"""Alert rules and dashboard, held against Prometheus's own promtool.

``CASES`` has for every alert series in which it fires and series in which it does not; promtool
runs the rules over them. The series are written as promtool's unit tests write them, a value a
minute: ``85x10`` stays for ten more.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.alerts import Alert, alerts, tomllib
from legacy_cuda.cli import main
from legacy_cuda.monitor import dashboard, engines, metrics, rules
from legacy_cuda.monitor.sampler import after
from legacy_cuda.nvml import Device, Missing, Process, Snapshot, Xid

GPU = 'gpu="0", uuid="GPU-a", name="Tesla P40"'


@dataclass(frozen=True)
class Case:
    """``series`` by name and labels to values, one a minute. ``fires`` at that minute, with
    these labels; not at all with ``labels`` None. ``value``: where it is not that of VALUES."""

    alert: str
    series: dict[str, str]
    minute: int
    labels: dict[str, str] | None
    value: str | None = None


P40 = {"gpu": "0", "uuid": "GPU-a", "name": "Tesla P40"}
USED, TOTAL = f"nvidia_gpu_memory_used_bytes{{{GPU}}}", f"nvidia_gpu_memory_total_bytes{{{GPU}}}"
HOT, SLOWDOWN = f"nvidia_gpu_temperature_gpu{{{GPU}}}", f"nvidia_gpu_temperature_slowdown{{{GPU}}}"
THROTTLE = "nvidia_gpu_clocks_throttle_reason{" + GPU + ', reason="%s"}'
FAILURE = "nvidia_gpu_failure{" + GPU + ', reason="%s"}'
XID = "nvidia_gpu_xid_last_timestamp_seconds{" + GPU + ', xid="%s"}'
LIMIT, CAP = f"nvidia_gpu_power_limit{{{GPU}}}", f"nvidia_gpu_power_cap{{{GPU}}}"
ECC = f"nvidia_gpu_ecc_errors_uncorrected_volatile_total{{{GPU}}}"
NVML = 'nvidia_gpu_monitor_nvml_up{reason="%s"}'
LAST = "nvidia_gpu_monitor_last_sample_timestamp_seconds"
ENGINE = {"engine": "ollama", "url": "http://127.0.0.1:11434"}
_OWN = 'engine="ollama", url="http://127.0.0.1:11434"'
UP, LOADED, ON_GPUS = (
    f"legacy_cuda_engine_{name}{{{_OWN}}}" for name in ("up", "models_loaded", "gpu_memory_bytes")
)
WHOLE, PART = (
    f'legacy_cuda_engine_{name}{{{_OWN}, model="m"}}' for name in ("model_bytes", "model_gpu_bytes")
)
CASES = [
    Case("NvidiaGpuMemoryHigh", {USED: "91x20", TOTAL: "100x20"}, 6, P40),
    Case("NvidiaGpuMemoryHigh", {USED: "91x20", TOTAL: "100x20"}, 4, None),
    Case("NvidiaGpuMemoryHigh", {USED: "90x20", TOTAL: "100x20"}, 15, None),
    Case("NvidiaGpuHot", {HOT: "86x20"}, 6, P40),
    Case("NvidiaGpuHot", {HOT: "85x20"}, 15, None),
    Case("NvidiaGpuHot", {HOT: "80x20", SLOWDOWN: "82x20"}, 6, P40, "80"),
    Case("NvidiaGpuHot", {HOT: "79x20", SLOWDOWN: "82x20"}, 15, None),
    Case("NvidiaGpuHot", {HOT: "80x20", SLOWDOWN: "93x20"}, 15, None),
    Case("NvidiaGpuHot", {HOT: "86x20", SLOWDOWN: "93x20"}, 6, P40),
    Case("NvidiaGpuHot", {HOT: "86 86 86 86 80 86 86 86 86"}, 8, None),
    *(
        Case("NvidiaGpuThrottled", {THROTTLE % reason: "1x20"}, 6, {**P40, "reason": reason})
        for reason in ("hw_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown")
    ),
    Case("NvidiaGpuThrottled", {THROTTLE % "sw_power_cap": "1x20"}, 15, None),
    Case("NvidiaGpuThrottled", {THROTTLE % "hw_slowdown": "0x20"}, 15, None),
    Case("NvidiaGpuLost", {FAILURE % "GPU_IS_LOST": "1x20"}, 2, {**P40, "reason": "GPU_IS_LOST"}),
    Case("NvidiaGpuLost", {FAILURE % "TIMED_OUT": "1x20"}, 10, None),
    Case(
        "NvidiaGpuNotAnswering",
        {FAILURE % "TIMED_OUT": "1x20"},
        3,
        {**P40, "reason": "TIMED_OUT"},
    ),
    Case("NvidiaGpuNotAnswering", {FAILURE % "GPU_IS_LOST": "1x20"}, 10, None),
    Case("NvidiaGpuGone", {"nvidia_gpu_count": "4x5 3x20"}, 10, {}),
    Case("NvidiaGpuGone", {"nvidia_gpu_count": "4x20"}, 15, None),
    Case("NvidiaGpuGone", {"nvidia_gpu_count": "4x5 _x20"}, 15, None),
    Case("NvidiaGpuXid", {XID % "79": "0x20"}, 4, {**P40, "xid": "79"}),
    Case("NvidiaGpuXid", {XID % "79": "0x20"}, 5, None),
    Case("NvidiaGpuXid", {XID % "31": "0x20"}, 1, None),
    Case("NvidiaGpuEccUncorrected", {ECC: "0 2x9"}, 1, P40),
    Case("NvidiaGpuEccUncorrected", {ECC: "0x9"}, 5, None),
    Case("NvidiaGpuPowerCapLost", {LIMIT: "180x3 250x20", CAP: "180x30"}, 10, P40),
    Case("NvidiaGpuPowerCapLost", {LIMIT: "180x20", CAP: "180x20"}, 15, None),
    Case("NvidiaGpuPowerCapLost", {LIMIT: "250x20"}, 15, None),  # no cap was asked for
    Case(
        "NvidiaDriverNotAnswering",
        {NVML % "DRIVER_NOT_LOADED": "0x20"},
        3,
        {"reason": "DRIVER_NOT_LOADED"},
    ),
    Case("NvidiaDriverNotAnswering", {NVML % "": "1x20"}, 15, None),
    Case("NvidiaGpuSamplesStale", {LAST: "0 60 60x20"}, 5, {}),
    Case("NvidiaGpuSamplesStale", {LAST: "0+60x20"}, 15, None),
    Case("NvidiaGpuMonitorGone", {"nvidia_gpu_count": "1x20"}, 3, {}),
    Case("NvidiaGpuMonitorGone", {LAST: "0x20"}, 15, None),
    Case("NvidiaEngineOnCpu", {LOADED: "1x20", ON_GPUS: "5e9x3 0x20"}, 6, ENGINE),
    Case("NvidiaEngineOnCpu", {LOADED: "1x20", ON_GPUS: "5e9x20"}, 15, None),
    Case("NvidiaEngineOnCpu", {LOADED: "0x20", ON_GPUS: "0x20"}, 15, None),
    Case("NvidiaEngineOnCpu", {LOADED: "1x20"}, 15, None),  # the driver does not tell
    Case("NvidiaEnginePartlyOnCpu", {PART: "60x20", WHOLE: "100x20"}, 3, {**ENGINE, "model": "m"}),
    Case("NvidiaEnginePartlyOnCpu", {PART: "100x20", WHOLE: "100x20"}, 15, None),
    Case("NvidiaEnginePartlyOnCpu", {PART: "0x20", WHOLE: "100x20"}, 15, None),
    Case("NvidiaEngineGone", {UP: "1x3 0x20"}, 7, ENGINE),
    Case("NvidiaEngineGone", {UP: "1 0 1 0 1 0 1 0 1"}, 7, None),
]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("skipped: there is no promtool (package prometheus)")
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def rules_file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yml"
    path.write_text(rules.document(alerts()), encoding="utf-8")
    return path


def test_the_file_keeps_to_its_schema() -> None:
    schema = json.loads((catalog.DATA.parent / "schema/alerts.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    data = tomllib.loads((catalog.DATA / "alerts.toml").read_text(encoding="utf-8"))
    Draft202012Validator(schema).validate(data)
    names = [alert.name for alert in alerts()]
    assert len(set(names)) == len(names)
    for row in data["alert"]:
        assert ("{threshold}" in row["expr"]) == ("threshold" in row)


def test_promtool_accepts_the_rules(rules_file: Path) -> None:
    done = promtool("check", "rules", rules_file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts())} rules found" in done.stdout


def test_each_alert_has_series_in_which_it_fires_and_in_which_not() -> None:
    names = {alert.name for alert in alerts()}
    assert {case.alert for case in CASES if case.labels is not None} == names
    assert {case.alert for case in CASES if case.labels is None} == names


def _filled(text: str, labels: dict[str, str]) -> str:
    """A text with its labels as Prometheus fills them in."""
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: labels.get(match[1], ""), text)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.labels is not None}")
def test_promtool_fires_it(case: Case, rules_file: Path) -> None:
    (alert,) = (one for one in alerts() if one.name == case.alert)
    expected = []
    if case.labels is not None:
        row: dict[str, object] = {"exp_labels": {"severity": alert.severity, **case.labels}}
        row["exp_annotations"] = _annotations(alert, case)
        expected.append(row)
    test = {
        "rule_files": [str(rules_file)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in case.series.items()
                ],
                "alert_rule_test": [
                    {
                        "eval_time": f"{case.minute}m",
                        "alertname": case.alert,
                        "exp_alerts": expected,
                    }
                ],
            }
        ],
    }
    path = rules_file.with_name("test.yml")
    path.write_text(json.dumps(test), encoding="utf-8")  # JSON is YAML
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


#: What Prometheus writes for the value in a summary, by alert: of the first firing case.
VALUES = {
    "NvidiaGpuMemoryHigh": ("{{ $value | humanizePercentage }}", "91%"),
    "NvidiaGpuHot": ("{{ $value }}", "86"),
    "NvidiaGpuGone": ("{{ $value }}", "3"),
    "NvidiaGpuEccUncorrected": ("{{ $value }}", "2"),
    "NvidiaGpuPowerCapLost": ("{{ $value }}", "250"),
    "NvidiaGpuSamplesStale": ("{{ $value | humanizeDuration }}", "4m 0s"),
    "NvidiaEnginePartlyOnCpu": ("{{ $value | humanizePercentage }}", "60%"),
}


def _annotations(alert: Alert, case: Case) -> dict[str, str]:
    placeholder, value = VALUES.get(alert.name, ("", ""))
    value = case.value or value
    summary = alert.summary.replace(placeholder, value) if placeholder else alert.summary
    return {
        "summary": _filled(summary, case.labels or {}),
        "description": _filled(alert.description, case.labels or {}),
    }


# Names ------------------------------------------------------------------------------------------


def names_there_are() -> set[str]:
    """The name of every series of a machine that has everything, healthy and not."""
    values: dict[str, Any] = {reading.field: 1 for reading in metrics.READINGS}
    full = Device(
        index=0,
        uuid="GPU-a",
        name="Tesla P40",
        pci_id=catalog.find_gpu("p40").pci_ids[0],
        capability=str(Capability(6, 1)),
        throttle_reasons=(),
        processes=(Process(1, "compute", 1, "a", 1),),
        missing={"device": Missing("TIMED_OUT", "")},
        **values,
    )
    other = Device(index=1, uuid="GPU-b")
    found = Snapshot(1.0, 0.1, devices=(full, other), xids=(Xid(0, 79, 1, 1.0),))
    empty = metrics.State(Snapshot(0.0, 0.0), (), {}, power_caps={"": 100.0})
    state = after(empty, found)
    counts = {"prompt_tokens": 1, "generated_tokens": 1, "requests_running": 1}
    said = engines.Reading(
        engines.Engine("ollama", "h"), True, {"m": (2, 1)}, {**counts, "requests_waiting": 1}
    )
    page = [*metrics.families(state), *engines.families([said], state.devices)]
    return {sample.name for metric in page for sample in metric.samples}


def names_in(expr: str) -> set[str]:
    return set(re.findall(r"(?:nvidia_gpu|legacy_cuda_engine)_\w+", expr))


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    there = names_there_are()
    asked = {name for alert in alerts() for name in names_in(alert.expr)}
    asked |= {
        name for panel in dashboard.PANELS for expr, _ in panel.queries for name in names_in(expr)
    }
    assert asked <= there


# The dashboard ----------------------------------------------------------------------------------


def test_the_dashboard_is_what_grafana_imports() -> None:
    made = dashboard.document(alerts())
    assert json.loads(json.dumps(made)) == made
    panels = made["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
        assert [target["refId"] for target in panel["targets"]] == ["A", "B", "C"][
            : len(panel["targets"])
        ]
    variables = {variable["name"] for variable in made["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)\}?", json.dumps(panels)))
    assert used == variables == {"datasource", "gpu"}
    hot = next(panel for panel in panels if panel["title"] == "Temperature")
    (alert,) = (one for one in alerts() if one.name == "NvidiaGpuHot")
    assert hot["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"] == alert.threshold


def test_promtool_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    exprs = [expr for panel in dashboard.PANELS for expr, _ in panel.queries]
    recorded = [
        {"record": f"query_{number}", "expr": expr.replace("$gpu", ".*")}
        for number, expr in enumerate(exprs)
    ]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": recorded}]}))
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_prints_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "--alert-rules"]) == 0
    assert capsys.readouterr().out == rules.document(alerts())
    assert main(["monitor", "--dashboard"]) == 0
    assert json.loads(capsys.readouterr().out) == dashboard.document(alerts())
