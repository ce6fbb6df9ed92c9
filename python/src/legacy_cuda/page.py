"""What the HTML pages share: one file each, no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
:root { --ink: #1c2127; --soft: #5d6672; --line: #d9dee5; --paper: #fff; --panel: #f5f7f9;
  --good: #1f7a4d; --jit: #a15c00; --bad: #b3261e; --accent: #76b900; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4b1; --line: #323a44;
  --paper: #14181d; --panel: #1c2229; --good: #4fc38a; --jit: #e0a243; --bad: #f2847d; } }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 10px; }
p.lead { color: var(--soft); margin: 0 0 20px; }
.verdict { border-left: 5px solid var(--good); background: var(--panel); padding: 14px 18px;
  margin: 12px 0; }
.verdict.bad { border-color: var(--bad); }
.verdict.limits, .verdict.jit { border-color: var(--jit); }
.verdict b { font-size: 17px; }
pre { background: var(--panel); padding: 10px 14px; margin: 12px 0; overflow-x: auto; }
.legend { color: var(--soft); font-size: 13px; }
.tags { display: flex; flex-wrap: wrap; gap: 8px; margin: 14px 0; }
.tag { border: 1px solid var(--line); border-radius: 4px; padding: 2px 9px; font-size: 13px; }
.tag.no { color: var(--soft); border-style: dashed; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 5px 8px; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .soft { fill: var(--soft); }
.key { display: inline-block; width: 12px; height: 12px; margin: 0 5px 0 14px;
  vertical-align: -1px; border: 1px solid var(--line); }
details { margin-top: 8px; } summary { cursor: pointer; color: var(--soft); }
code { font-size: 13px; }
@media (max-width: 700px) { main { padding: 20px 14px 40px; } }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
"""


def head(title: str, style: str = "") -> list[str]:
    """A page up to the beginning of its text. ``style`` is what it needs beside `STYLE`."""
    return [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}{style}</style></head><body><main>",
    ]


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], numbers: int | None = None) -> str:
    """A table; every cell is escaped. From column ``numbers`` on cells are flush right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{'' if numbers is None or at < numbers else ' class=n'}>{escape(cell)}</{tag}>"
            for at, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{line("th", heading)}</tr>{body}</table></div>'
