"""The alerts on the GPU monitor's metrics: ``data/alerts.toml``, typed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Literal

from legacy_cuda import catalog

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert. ``expr`` is PromQL with the threshold in it, ``lasting`` a duration of Prometheus
    ("5m") for which it must hold; the texts have Prometheus's placeholders."""

    name: str
    expr: str
    threshold: float | None
    lasting: str
    severity: Literal["warning", "critical"]
    summary: str
    description: str
    source: str


@cache
def alerts() -> tuple[Alert, ...]:
    """All of them, in the file's order."""
    rows = tomllib.loads((catalog.DATA / "alerts.toml").read_text(encoding="utf-8"))["alert"]
    return tuple(
        Alert(
            name=row["name"],
            expr=row["expr"].replace("{threshold}", str(row.get("threshold", ""))),
            threshold=row.get("threshold"),
            lasting=row["for"],
            severity=row["severity"],
            summary=row["summary"],
            description=row["description"],
            source=row["source"],
        )
        for row in rows
    )
