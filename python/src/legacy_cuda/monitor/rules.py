"""Prometheus's file of alert rules, from the catalog's alerts."""

from __future__ import annotations

import json
from collections.abc import Iterable

from legacy_cuda.catalog.alerts import Alert

_HEAD = """\
# Alert rules on the metrics of `legacy-cuda monitor`, made by `legacy-cuda monitor --alert-rules`.
# Name this file under rule_files: in prometheus.yml.
groups:
  - name: legacy-cuda
    rules:
"""


def document(alerts: Iterable[Alert]) -> str:
    """The file, as YAML. Every text is written as a JSON string, which YAML reads alike."""
    return _HEAD + "".join(_rule(alert) for alert in alerts)


def _rule(alert: Alert) -> str:
    def text(value: str) -> str:
        return json.dumps(value, ensure_ascii=False)

    return (
        f"      - alert: {alert.name}\n"
        f"        expr: {text(alert.expr)}\n"
        f"        for: {alert.lasting}\n"
        f"        labels:\n"
        f"          severity: {alert.severity}\n"
        f"        annotations:\n"
        f"          summary: {text(alert.summary)}\n"
        f"          description: {text(alert.description)}\n"
    )
