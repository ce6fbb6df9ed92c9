"""A roofline: what a GPU can compute at so many operations for each byte that it reads.

To the left memory is the limit, to the right arithmetic. Pure: from rates to a picture (SVG) or to
lines of text. Operations are in 10^12 a second, bytes in 10^9 a second, both axes logarithmic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_COLOURS = {"fp32": "#3c9d6b", "fp64": "#4a7fb5", "fp16": "#a15c9d", "dp4a": "#e0a243"}


@dataclass(frozen=True)
class Roof:
    """One kind of arithmetic: its rate in 10^12 operations/s, measured or nominal."""

    name: str
    tera: float
    nominal: bool = False


@dataclass(frozen=True)
class Roofline:
    """Memory's bandwidth in 10^9 bytes/s, measured and nominal (0: not known), roofs, and points
    that were measured: operations per byte, 10^12 operations/s."""

    bandwidth: float
    nominal_bandwidth: float
    roofs: tuple[Roof, ...]
    points: tuple[tuple[float, float], ...]


def read(steps: Sequence[dict[str, Any]], nominal: dict[str, float]) -> Roofline | None:
    """The roofline of one GPU's steps; None where memory or fp32 was not measured."""
    facts = {step["name"]: step["facts"] for step in steps if step["outcome"] == "passed"}
    if "bandwidth" not in facts or "fp32 rate" not in facts:
        return None
    memory = facts["bandwidth"]
    roofs = [
        Roof(name, facts[f"{name} rate"]["tera_per_s"])
        for name in _COLOURS
        if f"{name} rate" in facts
    ]
    roofs += [Roof(name, nominal[name], True) for name in _COLOURS if name in nominal]
    points = [(1 / 6, memory["triad_gb_s"] / 6e3)]  # two operations for twelve bytes
    points += [
        (point["per_byte"], point["tera_per_s"])
        for point in facts.get("roofline", {}).get("points", [])
    ]
    return Roofline(
        max(memory["copy_gb_s"], memory["triad_gb_s"]),
        nominal.get("memory", 0.0),
        tuple(roofs),
        tuple(points),
    )


@dataclass(frozen=True)
class _Axes:
    """Logarithmic axes: what a place in the picture stands for."""

    left: float
    right: float
    bottom: float
    top: float

    def across(self, per_byte: float) -> float:
        """0 at the left end, 1 at the right one."""
        return math.log(per_byte / self.left) / math.log(self.right / self.left)

    def up(self, tera: float) -> float:
        """0 at the bottom, 1 at the top."""
        return math.log(max(tera, self.bottom) / self.bottom) / math.log(self.top / self.bottom)


def _axes(roofline: Roofline) -> _Axes:
    highest = max(roof.tera for roof in roofline.roofs)
    left = 0.1
    lowest = min([left * roofline.bandwidth / 1e3, *(roof.tera for roof in roofline.roofs)])
    slowest = min(roofline.bandwidth, roofline.nominal_bandwidth or roofline.bandwidth)
    ridge = highest / (slowest / 1e3)
    right = max([4 * ridge, 100.0, *(point[0] for point in roofline.points)])
    return _Axes(left, right, lowest / 1.5, highest * 1.5)


def svg(roofline: Roofline) -> str:
    """The picture: measured roofs are lines, nominal ones dashed."""
    axes = _axes(roofline)
    width, height, x0, y0 = 760, 380, 56, 16
    w, h = width - x0 - 70, height - y0 - 44

    def x(per_byte: float) -> float:
        return x0 + w * axes.across(per_byte)

    def y(tera: float) -> float:
        return y0 + h * (1 - axes.up(tera))

    out = [
        f'<div class="scroll"><svg viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="roofline">'
    ]
    for value in _decades(axes.left, axes.right):
        out.append(
            f'<line x1="{x(value):.1f}" y1="{y0}" x2="{x(value):.1f}" y2="{y0 + h}" '
            f'stroke="var(--line)"/><text class="soft" x="{x(value):.1f}" y="{y0 + h + 16}" '
            f'text-anchor="middle">{value:g}</text>'
        )
    for value in _decades(axes.bottom, axes.top):
        out.append(
            f'<line x1="{x0}" y1="{y(value):.1f}" x2="{x0 + w}" y2="{y(value):.1f}" '
            f'stroke="var(--line)"/><text class="soft" x="{x0 - 6}" y="{y(value) + 4:.1f}" '
            f'text-anchor="end">{value:g}</text>'
        )
    for roof in roofline.roofs:
        bandwidth = roofline.nominal_bandwidth if roof.nominal else roofline.bandwidth
        slope = bandwidth / 1e3
        if not slope:
            continue
        ridge = max(axes.left, roof.tera / slope)
        begin = min(max(axes.left, axes.bottom / slope), ridge)
        corners = (
            (begin, min(slope * begin, roof.tera)), (ridge, roof.tera), (axes.right, roof.tera)
        )  # fmt: skip
        colour = _COLOURS[roof.name]
        dash = ' stroke-dasharray="5 4" stroke-opacity="0.7"' if roof.nominal else ""
        kind = "nominal" if roof.nominal else "measured"
        out.append(
            f"<g><title>{escape(roof.name)}, {kind}: {roof.tera:.3g} * 10^12 operations/s, "
            f"{bandwidth:.0f} GB/s</title>"
            f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="'
            + " ".join(f"{x(per_byte):.1f},{y(tera):.1f}" for per_byte, tera in corners)
            + '"/></g>'
        )
        if not roof.nominal:
            out.append(
                f'<text x="{x0 + w + 6}" y="{y(roof.tera) + 4:.1f}">{escape(roof.name)}</text>'
            )
    for per_byte, tera in roofline.points:
        out.append(
            f"<g><title>{per_byte:.3g} operations for a byte: {tera:.3g} * 10^12 a second</title>"
            f'<circle cx="{x(per_byte):.1f}" cy="{y(tera):.1f}" r="3.5" '
            f'fill="{_COLOURS["fp32"]}"/></g>'
        )
    out.append(
        f'<text class="soft" x="{x0 + w / 2}" y="{height - 8}" text-anchor="middle">operations '
        'for each byte</text><text class="soft" x="4" y="10">10^12 operations/s</text></svg></div>'
    )
    return "".join(out)


def _decades(low: float, high: float) -> list[float]:
    return [
        10.0**power
        for power in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high)) + 1)
    ]


def text(roofline: Roofline, width: int = 72, height: int = 14) -> list[str]:
    """The measured fp32 roof and its points, for a terminal."""
    axes = _axes(roofline)
    grid = [[" "] * width for _ in range(height)]

    def put(per_byte: float, tera: float, mark: str) -> None:
        column = round((width - 1) * axes.across(per_byte))
        row = height - 1 - round((height - 1) * axes.up(tera))
        if 0 <= column < width and 0 <= row < height:
            grid[row][column] = mark

    (fp32,) = [roof for roof in roofline.roofs if roof.name == "fp32" and not roof.nominal]
    for roof in roofline.roofs:
        if roof.nominal:
            continue
        for column in range(width):
            per_byte = axes.left * (axes.right / axes.left) ** (column / (width - 1))
            slope = roofline.bandwidth / 1e3 * per_byte
            if slope > roof.tera:
                put(per_byte, roof.tera, "-" if roof is fp32 else ".")
            elif roof is fp32:
                put(per_byte, slope, "/")
    for per_byte, tera in roofline.points:
        put(per_byte, tera, "o")
    lines = []
    labels = {
        height - 1 - round((height - 1) * axes.up(roof.tera)): roof
        for roof in roofline.roofs
        if not roof.nominal
    }
    for number, row in enumerate(grid):
        end = f" {labels[number].name} {labels[number].tera:.2f}" if number in labels else ""
        lines.append(f"  |{''.join(row)}{end}".rstrip())
    lines.append("  +" + "-" * width)
    left, right = f"{axes.left:g}", f"{axes.right:.0f} operations/byte"
    lines.append(f"   {left}{right:>{width - len(left)}}")
    return lines
