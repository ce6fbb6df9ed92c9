"""A run as an HTML page: one file, no scripts, nothing fetched. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from legacy_cuda import page
from legacy_cuda.bench import advice
from legacy_cuda.bench.figures import METRICS, Estimate, Summary, round_, summarise, with_margin
from legacy_cuda.bench.runfile import Run

_MORE = """
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr));
  gap: 18px 32px; }
.charts figure { margin: 0; } .charts figcaption { font-weight: 600; margin-bottom: 4px; }
.charts svg { max-width: 100%; height: auto; }
td.n, th.n { white-space: nowrap; }
td small { color: var(--soft); }
@media (max-width: 500px) { .charts { grid-template-columns: 1fr; } }
"""
_COLOURS = ("#2f7fd0", "#d9822b", "#3c9d6b", "#a45bb8", "#c0453b", "#5f8a8b", "#8f7a1e")
_WIDTH, _HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 74, 14, 40
_LABEL = 13


class Dot(NamedTuple):
    """A figure at a place on the x axis, with half of its interval."""

    x: int
    value: float
    margin: float | None


def html(run: Run) -> str:
    """The page of a run."""
    summaries = summarise(run.repeats)
    server, machine = run.server, run.machine
    engine = " ".join(str(server[name]) for name in ("engine", "version") if server[name])
    gpus = ", ".join(machine["gpus"] or []) or f"GPUs not known: {machine['gpus_unknown']}"
    left = run.missing()
    parts = [
        *page.head(f"{server['model']}: legacy-cuda bench", _MORE),
        f"<h1>{escape(server['model'])}</h1>",
        f'<p class="lead">{escape(engine or "engine not known")} at {escape(run.settings["url"])}, '
        f"measured from {escape(run.created)} by legacy-cuda {escape(run.tool)}</p>",
        '<div class="tags">',
        *(
            f'<span class="tag">{escape(text)}</span>'
            for text in (
                gpus,
                f"driver {machine['driver'] or 'not known'}",
                machine["cpu"],
                *([run.settings["note"]] if run.settings["note"] else []),
            )
        ),
        "</div>",
        _notice("bad", "Not complete", [f"{len(left)} rounds are not measured"] if left else []),
        _notice("", "The figures suggest", advice.suggestions(summaries, server)),
        _notice("limits", "Mind", advice.warnings(summaries, run.prompts)),
        _charts(summaries),
        "<h2>Figures</h2>",
        _table(summaries),
        '<p class="legend">Means of the rounds with half of their 95 % interval, where there are '
        "several. Percentiles are of all requests and gaps; one is left out where there are too "
        "few values to tell. Prefill: prompt tokens that were in no cache over TTFT, for one "
        "request at a time. TTFT: from sending on an open connection to the first text. Decode: "
        "tokens after the first over their time, of one request. ITL: between pieces of text. "
        "Throughput: all tokens generated over the time of a round. Requests that failed are in "
        "no figure.</p>",
        _by_server(summaries),
        _skipped(run),
        f"<footer>{escape(_how(run))}</footer>",
        "</main></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _how(run: Run) -> str:
    settings, kept = run.settings, run.prompts
    cache = "the same prompt every time" if settings["same_prompt"] else "no prompt twice"
    return (
        f"{settings['api']} API, prompts of {kept['text']} counted by {kept['counted_by']}, "
        f"{cache}; {settings['repeat']} rounds of each point in turns, {settings['requests']} "
        f"requests in a row each, {settings['warmup']} rounds of warm-up."
    )


def _notice(kind: str, title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    text = "<br>".join(escape(line) for line in lines)
    return f'<div class="verdict {kind}"><b>{escape(title)}</b><br>{text}</div>'


def _skipped(run: Run) -> str:
    lines = [f"{point}: {why}" for point, why in run.skipped.items()]
    return _notice("limits", "Not measured", lines)


def figure(summary: Summary, name: str) -> str:
    """A mean with half its interval, for people; empty if there is none."""
    found = summary.metrics.get(name)
    if not found:
        return ""
    return with_margin(found)


def percentiles(summary: Summary, name: str) -> str:
    """The median and the highest percentile that can be told."""
    row = summary.percentiles[name]
    high = next((key for key in ("p99", "p95", "p90") if row[key] is not None), None)
    text = round_(row["p50"])
    return f"{text} ({high} {round_(row[high])})" if high else text


HEAD = (
    "prompt",
    "answer",
    "at once",
    "prefill tok/s",
    "TTFT ms",
    "TTFT p50",
    "decode tok/s",
    "ITL ms p50",
    "throughput tok/s",
    "ok",
    "failed",
)


def row(summary: Summary) -> tuple[str, ...]:
    """A point as cells, under ``HEAD``."""
    point = summary.point
    return (
        str(point.prompt),
        str(point.generate),
        str(point.concurrency),
        figure(summary, "prefill_tokens_per_s"),
        figure(summary, "ttft_ms"),
        percentiles(summary, "ttft_ms"),
        figure(summary, "decode_tokens_per_s"),
        percentiles(summary, "itl_ms"),
        figure(summary, "output_tokens_per_s"),
        str(summary.outcomes.get("ok", 0)),
        str(summary.not_counted or ""),
    )


def _table(summaries: Sequence[Summary]) -> str:
    return page.table(HEAD, [row(summary) for summary in summaries], numbers=0)


def _by_server(summaries: Sequence[Summary]) -> str:
    """What the server's own clock says, where it says it."""
    shown = [s for s in summaries if "server_decode_tokens_per_s" in s.metrics]
    if not shown:
        return ""
    names = ("server_prefill_tokens_per_s", "server_decode_tokens_per_s")
    rows = [(str(s.point), *(figure(s, name) for name in names)) for s in shown]
    head = ("point", "prefill tok/s", "decode tok/s")
    return "<h2>By the server's own clock</h2>" + page.table(head, rows, numbers=0)


def _charts(summaries: Sequence[Summary]) -> str:
    """Pictures of what was swept over; none for a single point."""
    prompts = sorted({s.point.prompt for s in summaries})
    concurrencies = sorted({s.point.concurrency for s in summaries})
    drawn: list[str] = []
    if len(concurrencies) > 1:
        for name in ("output_tokens_per_s", "decode_tokens_per_s", "ttft_ms"):
            drawn.append(
                _chart(
                    name,
                    "requests at once",
                    concurrencies,
                    [
                        (f"pp{prompt}", [s for s in summaries if s.point.prompt == prompt])
                        for prompt in prompts
                    ],
                    lambda s: s.point.concurrency,
                )
            )
    if len(prompts) > 1:
        names = ["prefill_tokens_per_s"] if 1 in concurrencies else []
        for name in [*names, "decode_tokens_per_s", "ttft_ms"]:
            drawn.append(
                _chart(
                    name,
                    "tokens of the prompt",
                    prompts,
                    [
                        (f"{count} at once", [s for s in summaries if s.point.concurrency == count])
                        for count in concurrencies
                    ],
                    lambda s: s.point.prompt,
                )
            )
    figures = "".join(chart for chart in drawn if chart)
    return f'<h2>Pictures</h2><div class="charts">{figures}</div>' if figures else ""


def _chart(
    name: str,
    axis: str,
    places: Sequence[int],
    series: Sequence[tuple[str, Sequence[Summary]]],
    place: Callable[[Summary], int],
) -> str:
    metric = next(item for item in METRICS if item.name == name)
    lines = [
        (
            label,
            [
                Dot(places.index(place(s)), s.metrics[name].mean, s.metrics[name].margin)
                for s in group
                if name in s.metrics
            ],
        )
        for label, group in series
    ]
    lines = [(label, sorted(dots)) for label, dots in lines if dots]
    if not lines:
        return ""
    top = max(dot.value + (dot.margin or 0) for _, dots in lines for dot in dots)
    step = _step(top)
    ceiling = step * math.ceil(top / step) if top else 1.0
    title = f"{metric.title}, {metric.unit}"
    out = [
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{escape(title)} by {escape(axis)}">'
    ]
    for tick in range(round(ceiling / step) + 1):
        y = _y(tick * step, ceiling)
        out.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="#8a93a0" stroke-opacity="0.3"></line>'
            f'<text class="soft" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{tick * step:g}</text>"
        )
    for at, value in enumerate(places):
        out.append(
            f'<text class="soft" x="{_x(at, len(places)):.1f}" y="{_HEIGHT - 22}" '
            f'text-anchor="middle">{value}</text>'
        )
    out.append(
        f'<text class="soft" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 5}" '
        f'text-anchor="middle">{escape(axis)}</text>'
    )
    ends = _apart([_y(dots[-1].value, ceiling) for _, dots in lines])
    for number, (label, dots) in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        out.append(_line(label, dots, colour, len(places), ceiling, metric.unit, 3.0 * number))
        x = _x(dots[-1].x, len(places)) + 3 * number + 9
        out.append(
            f'<text x="{x:.1f}" y="{ends[number] + 4:.1f}" style="fill:{colour}">'
            f"{escape(label)}</text>"
        )
    return "".join([*out, "</svg></figure>"])


def _line(
    label: str,
    dots: Sequence[Dot],
    colour: str,
    places: int,
    ceiling: float,
    unit: str,
    shift: float,
) -> str:
    """One series; ``shift`` to the right keeps its intervals from covering the others'."""
    spots = [(_x(dot.x, places) + shift, _y(dot.value, ceiling), dot) for dot in dots]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in spots)
    out = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"></polyline>']
    for x, y, dot in spots:
        title = f"{label}: {with_margin(Estimate(dot.value, dot.margin, ()))} {unit}"
        if dot.margin is not None:
            high = _y(min(ceiling, dot.value + dot.margin), ceiling)
            low = _y(max(0.0, dot.value - dot.margin), ceiling)
            out.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{high:.1f}" y2="{low:.1f}" '
                f'stroke="{colour}" stroke-width="1.5"></line>'
            )
        out.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">'
            f"<title>{escape(title)}</title></circle>"
        )
    return "".join(out)


def _x(at: int, places: int) -> float:
    wide = _WIDTH - _LEFT - _RIGHT - 20
    return _LEFT + 10 + (wide * at / (places - 1) if places > 1 else wide / 2)


def _y(value: float, ceiling: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - value / ceiling)


def _step(top: float) -> float:
    """A round step that divides up to ``top`` into at most five."""
    if top <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(top / 5))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if top / (power * factor) <= 5)


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights of labels, moved so that none covers another or the axis, where they have room."""
    order = sorted(range(len(heights)), key=lambda at: heights[at])
    moved = list(heights)
    above = -math.inf
    for at in order:
        above = moved[at] = max(heights[at], above + _LABEL)
    below = float(_HEIGHT - _BOTTOM) + _LABEL
    for at in reversed(order):
        below = moved[at] = min(moved[at], below - _LABEL)
    return moved
