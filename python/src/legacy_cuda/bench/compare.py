"""Two runs, or a run and what a plan expects, side by side: ratios, and how sure they are. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, variance
from typing import Any, Literal

from legacy_cuda.bench.figures import (
    CONFIDENCE,
    METRICS,
    Estimate,
    Metric,
    Point,
    Summary,
    student,
)

COMPARED = (
    "prefill_tokens_per_s",
    "ttft_ms",
    "decode_tokens_per_s",
    "output_tokens_per_s",
)
"""The others say the same again: TPOT is the inverse of decode, latency is TTFT and decode."""
EXPECTATION = "legacy-cuda/bench-expectation/1"

Verdict = Literal["better", "worse", "no difference seen", "not known"]
Meets = Literal["within", "better than expected", "worse than expected", "not measured"]


@dataclass(frozen=True)
class Row:
    """One figure at one point: ``ratio`` of the second run to the first, ``low`` to ``high`` its
    95 % interval, None where a run has one round only."""

    point: Point
    metric: str
    first: float
    second: float
    ratio: float
    low: float | None
    high: float | None
    verdict: Verdict

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "point": self.point._asdict()}


def compare(first: Sequence[Summary], second: Sequence[Summary], least: float = 0.02) -> list[Row]:
    """The figures of the points that both runs have.

    A difference is only one if the interval leaves out 1 and the ratio is off by ``least``: what
    changes between two starts of a server is not in the noise of the rounds.
    """
    other = {summary.point: summary for summary in second}
    rows = []
    for summary in first:
        if summary.point not in other:
            continue
        for metric in METRICS:
            if metric.name in COMPARED and (
                row := _row(metric, summary, other[summary.point], least)
            ):
                rows.append(row)
    return rows


def _row(metric: Metric, first: Summary, second: Summary, least: float) -> Row | None:
    a, b = first.metrics.get(metric.name), second.metrics.get(metric.name)
    if not a or not b or min(*a.values, *b.values) <= 0:
        return None
    found, low, high = ratio(a, b)
    verdict: Verdict = "not known"
    if low is not None and high is not None:
        verdict = "no difference seen"
        if not low <= 1 <= high and abs(found - 1) >= least:
            verdict = "better" if (found > 1) == metric.more_is_better else "worse"
    return Row(first.point, metric.name, a.mean, b.mean, found, low, high, verdict)


def ratio(first: Estimate, second: Estimate) -> tuple[float, float | None, float | None]:
    """Of the second figure to the first, both above 0: of their geometric means, and its interval,
    which there is not where one of them has a single round."""
    logs = [[math.log(value) for value in found.values] for found in (first, second)]
    middle = fmean(logs[1]) - fmean(logs[0])
    margin = _margin(*logs)
    if margin is None:
        return math.exp(middle), None, None
    return math.exp(middle), math.exp(middle - margin), math.exp(middle + margin)


def _margin(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Half the interval of a difference of means, by Welch's t; None for single values."""
    if min(len(first), len(second)) < 2:
        return None
    parts = [variance(values) / len(values) for values in (first, second)]
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    return math.sqrt(sum(parts)) * student(CONFIDENCE, max(1, math.floor(freedom)))


@dataclass(frozen=True)
class Expected:
    """A figure that was expected between ``low`` and ``high`` at a point, and what was measured."""

    point: Point
    metric: str
    low: float
    high: float
    measured: float | None
    verdict: Meets

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "point": self.point._asdict()}


def meets(measured: Sequence[Summary], expected: Mapping[str, Any]) -> list[Expected]:
    """A run against expectations (``catalog/schema/bench-expectation.schema.json``).

    A figure whose interval touches the expected range is within it.

    Raises:
        ValueError: the expectations are not in their form.
    """
    if expected.get("schema") != EXPECTATION:
        raise ValueError(f"the schema is {expected.get('schema')!r}, not {EXPECTATION!r}")
    by_point = {summary.point: summary for summary in measured}
    known = {metric.name: metric for metric in METRICS}
    rows = []
    try:
        for item in expected["points"]:
            point = Point(int(item["prompt"]), int(item["generate"]), int(item["concurrency"]))
            for name, span in item["metrics"].items():
                if name not in known:
                    raise ValueError(f"there is no metric {name!r}")
                low, high = float(span["low"]), float(span["high"])
                found = by_point[point].metrics.get(name) if point in by_point else None
                verdict: Meets = "not measured"
                if found:
                    margin = found.margin or 0.0
                    verdict = "within"
                    if found.mean + margin < low:
                        verdict = _side(not known[name].more_is_better)
                    elif found.mean - margin > high:
                        verdict = _side(known[name].more_is_better)
                rows.append(
                    Expected(point, name, low, high, found.mean if found else None, verdict)
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return rows


def _side(good: bool) -> Meets:
    return "better than expected" if good else "worse than expected"
