"""From requests to figures: speeds, percentiles, and how sure they are. Pure.

Names and meanings are those of the field: TTFT, TPOT, ITL and throughput as in vLLM's serving
benchmark, prompt and generation speed as llama-bench's ``pp`` and ``tg``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any, NamedTuple

from legacy_cuda.bench.answer import Answer

CONFIDENCE = 0.95
BURST_MS = 0.05
"""Pieces closer than this were not computed one after another: they waited together on the way."""


class Point(NamedTuple):
    """What is measured: prompt and answer in tokens, and so many requests at once."""

    prompt: int
    generate: int
    concurrency: int

    def __str__(self) -> str:
        return f"pp{self.prompt} tg{self.generate} c{self.concurrency}"


@dataclass(frozen=True)
class Repeat:
    """One round at a point. ``seconds`` from the first request sent to the last answer's end;
    ``client_cpu`` is the processor time of this program in it, as a share of that. ``unfinished``
    says why it was not done, if so: it is kept then, but no figure is made of it."""

    point: Point
    number: int
    started: str
    seconds: float
    client_cpu: float
    answers: tuple[Answer, ...]
    unfinished: str = ""


@dataclass(frozen=True)
class Metric:
    """A figure: its name in documents, how it is written for people, and which way is better."""

    name: str
    title: str
    unit: str
    more_is_better: bool
    of: Callable[[Repeat], float | None]


Number = Callable[[Answer], "float | None"]


def _mean(repeat: Repeat, value: Number) -> float | None:
    found = [number for answer in _good(repeat) if (number := value(answer)) is not None]
    return fmean(found) if found else None


def _rate(repeat: Repeat, tokens: Number, ms: Number) -> float | None:
    """Tokens per second: all of them over all of the time, of the requests that have both."""
    pairs = [(tokens(answer), ms(answer)) for answer in _good(repeat)]
    known = [(count, spent) for count, spent in pairs if count and spent]
    return 1000 * sum(c for c, _ in known) / sum(s for _, s in known) if known else None


def _good(repeat: Repeat) -> list[Answer]:
    return [answer for answer in repeat.answers if answer.ok]


def _later_tokens(answer: Answer) -> int | None:
    """Tokens after the first."""
    return None if answer.completion_tokens is None else answer.completion_tokens - 1


def _later_ms(answer: Answer) -> float | None:
    """From the first text to the last."""
    if answer.latency_ms is None or answer.ttft_ms is None:
        return None
    return answer.latency_ms - answer.ttft_ms


def _tpot_ms(answer: Answer) -> float | None:
    tokens, spent = _later_tokens(answer), _later_ms(answer)
    return spent / tokens if tokens and tokens > 0 and spent is not None else None


def _computed(answer: Answer) -> int | None:
    """Tokens of the prompt that were not in a cache."""
    if answer.prompt_tokens is None:
        return None
    return answer.prompt_tokens - (answer.cached_tokens or 0)


def _throughput(tokens: Callable[[Answer], int | None]) -> Callable[[Repeat], float | None]:
    """Tokens of a round over its time; None if a request failed, as it was not the load named."""

    def of(repeat: Repeat) -> float | None:
        counts = [tokens(answer) for answer in repeat.answers if answer.ok]
        if len(counts) < len(repeat.answers) or None in counts or repeat.seconds <= 0:
            return None
        return sum(count for count in counts if count is not None) / repeat.seconds

    return of


METRICS = (
    Metric(
        "prefill_tokens_per_s",
        "prefill",
        "tokens/s",
        True,
        lambda r: _rate(r, _computed, lambda a: a.ttft_ms) if r.point.concurrency == 1 else None,
    ),
    Metric("ttft_ms", "TTFT", "ms", False, lambda r: _mean(r, lambda a: a.ttft_ms)),
    Metric(
        "decode_tokens_per_s",
        "decode",
        "tokens/s",
        True,
        lambda r: _rate(r, _later_tokens, _later_ms),
    ),
    Metric("tpot_ms", "TPOT", "ms", False, lambda r: _mean(r, _tpot_ms)),
    Metric(
        "itl_ms",
        "ITL",
        "ms",
        False,
        lambda r: _mean(r, lambda a: fmean(a.gaps_ms) if a.gaps_ms else None),
    ),
    Metric("latency_ms", "latency", "ms", False, lambda r: _mean(r, lambda a: a.latency_ms)),
    Metric(
        "output_tokens_per_s",
        "throughput",
        "tokens/s",
        True,
        _throughput(lambda answer: answer.completion_tokens),
    ),
    Metric(
        "total_tokens_per_s",
        "total",
        "tokens/s",
        True,
        _throughput(
            lambda answer: (
                None
                if answer.prompt_tokens is None or answer.completion_tokens is None
                else answer.prompt_tokens + answer.completion_tokens
            )
        ),
    ),
    Metric(
        "server_prefill_tokens_per_s",
        "prefill by the server",
        "tokens/s",
        True,
        lambda r: _rate(r, _computed, lambda a: a.prompt_ms),
    ),
    Metric(
        "server_decode_tokens_per_s",
        "decode by the server",
        "tokens/s",
        True,
        lambda r: _rate(r, lambda a: a.completion_tokens, lambda a: a.predicted_ms),
    ),
)


@dataclass(frozen=True)
class Estimate:
    """A figure of some rounds: their mean, and half the width of its confidence interval, which
    one round alone does not have. ``values`` are the rounds'."""

    mean: float
    margin: float | None
    values: tuple[float, ...]


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of rounds and its 95 % interval by Student's t; None of none."""
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], None, tuple(values))
    error = stdev(values) / math.sqrt(len(values))
    return Estimate(fmean(values), error * student(CONFIDENCE, len(values) - 1), tuple(values))


def with_margin(found: Estimate) -> str:
    """A mean and half its interval, with as many digits."""
    mean = round_(found.mean)
    if found.margin is None:
        return mean
    return f"{mean} ± {found.margin:.{len(mean.partition('.')[2])}f}"


def round_(value: float | None) -> str:
    """Three digits that count, without an exponent."""
    if value is None:
        return ""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{min(digits, 4)}f}"


@cache
def student(confidence: float, freedom: int) -> float:
    """The t that ``confidence`` of Student's distribution lies within, two-sided, by bisection.

    Raises:
        ValueError: no degrees of freedom, or a confidence that is no share.
    """
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"no such quantile: {confidence}, {freedom}")
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """The share of Student's distribution between -t and t (Abramowitz and Stegun, 26.7.3-4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    cos, sin = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cos, 0.0) if odd else (1.0, 0.0)
    for at in range(freedom // 2):
        total += term
        term *= (
            cos * cos * (2 * at + 2) / (2 * at + 3)
            if odd
            else (cos * cos * (2 * at + 1) / (2 * at + 2))
        )
    return (2 / math.pi) * (angle + sin * total) if odd else sin * total


def percentile(values: Sequence[float], percent: float) -> float | None:
    """By linear interpolation, as NumPy does it.

    None where too few values lie beyond it to say: a 99th percentile takes a hundred.
    """
    if not values or (percent != 50 and len(values) * min(percent, 100 - percent) < 100):
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Summary:
    """A point, from its finished rounds. Percentiles are of all requests and gaps, ``bursts`` is
    the share of gaps that are none. ``outcomes`` and ``problems`` are of all rounds, ``failed``
    counts requests of finished ones."""

    point: Point
    rounds: int
    outcomes: dict[str, int]
    failed: int
    problems: tuple[str, ...]
    metrics: dict[str, Estimate]
    percentiles: dict[str, dict[str, float | None]]
    prompt_tokens: tuple[int, int] | None
    completion_tokens: tuple[int, int] | None
    short: int
    cached_tokens: int | None
    counted_by: tuple[str, ...]
    tokens_per_piece: float | None
    bursts: float
    client_cpu: float

    def value(self, metric: str) -> float | None:
        """The mean of a metric, if there is one."""
        found = self.metrics.get(metric)
        return found.mean if found else None

    @property
    def not_counted(self) -> int:
        """Requests that are in no figure because of what became of them."""
        return sum(count for outcome, count in self.outcomes.items() if outcome != "ok")


def summarise(repeats: Sequence[Repeat]) -> list[Summary]:
    """One summary for each point that anything was tried at, in their order."""
    points = sorted({repeat.point for repeat in repeats})
    return [_summary(point, [r for r in repeats if r.point == point]) for point in points]


def _summary(point: Point, tried: Sequence[Repeat]) -> Summary:
    repeats = [repeat for repeat in tried if not repeat.unfinished]
    answers = [answer for repeat in repeats for answer in repeat.answers]
    good = [answer for answer in answers if answer.ok]
    metrics = {}
    for metric in METRICS:
        values = [value for repeat in repeats if (value := metric.of(repeat)) is not None]
        if found := estimate(values):
            metrics[metric.name] = found
    series = {
        "ttft_ms": [answer.ttft_ms for answer in good if answer.ttft_ms is not None],
        "itl_ms": [gap for answer in good for gap in answer.gaps_ms],
        "latency_ms": [answer.latency_ms for answer in good if answer.latency_ms is not None],
    }
    cached = [answer.cached_tokens for answer in good if answer.cached_tokens is not None]
    every = [answer for repeat in tried for answer in repeat.answers]
    outputs = [answer.completion_tokens for answer in good]
    gaps = series["itl_ms"]
    tokens, pieces = sum(count or 0 for count in outputs), len(gaps) + len(good)
    return Summary(
        point,
        len(repeats),
        dict(sorted(Counter(answer.outcome for answer in every).items())),
        len(answers) - len(good),
        tuple(dict.fromkeys(answer.problem for answer in every if answer.problem))[:5],
        metrics,
        {
            name: {f"p{percent}": percentile(values, percent) for percent in (50, 90, 95, 99)}
            for name, values in series.items()
        },
        _range([answer.prompt_tokens for answer in good]),
        _range(outputs),
        sum(1 for count in outputs if count is not None and count < point.generate),
        max(cached) if cached else None,
        tuple(sorted({answer.counted_by for answer in good})),
        tokens / pieces if tokens and pieces else None,
        sum(gap < BURST_MS for gap in gaps) / len(gaps) if gaps else 0.0,
        max((repeat.client_cpu for repeat in repeats), default=0.0),
    )


def _range(values: Sequence[int | None]) -> tuple[int, int] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def record(summary: Summary) -> dict[str, Any]:
    """A summary as JSON."""

    def shown(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.5g}")

    return {
        **summary.point._asdict(),
        "rounds": summary.rounds,
        "outcomes": summary.outcomes,
        "failed": summary.failed,
        "problems": list(summary.problems),
        "metrics": {
            name: {
                "mean": shown(found.mean),
                "margin_95": shown(found.margin),
                "rounds": [shown(value) for value in found.values],
            }
            for name, found in summary.metrics.items()
        },
        "percentiles": {
            name: {key: shown(value) for key, value in row.items()}
            for name, row in summary.percentiles.items()
        },
        "prompt_tokens": summary.prompt_tokens and list(summary.prompt_tokens),
        "completion_tokens": summary.completion_tokens and list(summary.completion_tokens),
        "short_answers": summary.short,
        "cached_tokens_most": summary.cached_tokens,
        "tokens_counted_by": list(summary.counted_by),
        "tokens_per_piece": shown(summary.tokens_per_piece),
        "bursts": shown(summary.bursts),
        "client_cpu": shown(summary.client_cpu),
    }
