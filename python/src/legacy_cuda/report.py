"""The HTML report of an environment: one file, no scripts, nothing fetched."""

from __future__ import annotations

import shlex
from collections import Counter
from html import escape
from typing import Any

from legacy_cuda import audit, catalog
from legacy_cuda.capability import Capability

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
td.n { text-align: right; font-variant-numeric: tabular-nums; }
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

_LEGEND = (
    "Role: a core library is needed whole; a dispatching one is needed and picks among its kernels "
    "by GPU; without a feature library only that is lost; of alternatives one is loaded; tools are "
    "not judged. State: the library serves the GPU with all its containers, with a part of them "
    "(partial), with so few that they count as none (stray), or with none. SASS: containers with "
    "machine code for the GPU. JIT: containers with PTX only, which the driver compiles."
)
_COLOURS = {"sass": "#3c9d6b", "jit": "#e0a243", "none": "none"}


def html(manifest: dict[str, Any]) -> str:
    """The report on an environment, from its manifest (``environment.SCHEMA``)."""
    gpus = [catalog.find_gpu(name) for name in manifest["gpus"]]
    counts = Counter(gpu.product for gpu in gpus)
    cards = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(manifest['name'])}: legacy-cuda report</title>",
        f"<style>{STYLE}</style></head><body><main>",
        f"<h1>{escape(cards)}</h1>",
        f'<p class="lead">{escape(manifest["stack"])} stack, '
        f"made {escape(manifest['created'])} by legacy-cuda {escape(manifest['tool'])}</p>",
        *(_verdict(item) for item in manifest["audit"]),
        _altered(manifest.get("altered", [])),
        f"<pre>. {escape(shlex.quote(manifest['path'] + '/activate'))}</pre>",
        _tags(manifest),
        "<h2>Coverage</h2>",
        _picture(manifest, [gpu.capability for gpu in gpus]),
        "<h2>Why this stack</h2>",
        _table(
            ("part", "choice", "because"),
            [(item["subject"], item["choice"], item["because"]) for item in manifest["reasons"]],
        ),
        _notes(manifest["notes"]),
        "<h2>Libraries</h2>",
        f'<p class="legend">{_LEGEND}</p>',
        *(_libraries(item) for item in manifest["audit"]),
        "<h2>Packages</h2><details><summary>",
        f"{len(manifest['packages'])} packages, each by sha256"
        f"{', of those that are not compiled' if manifest['compiled'] else ''} from lock "
        f"{escape(manifest['lock']['name'])}</summary>",
        _table(("package", "version"), list(manifest["packages"].items())),
        "</details>",
        *_patched(manifest["patched"]),
        *_compiled(manifest["compiled"]),
        f"<footer>Environment {escape(manifest['path'])}, Python {escape(manifest['python'])}. "
        "A container is one fat binary; containers without a kernel and link-time code are not "
        "counted. Audited means that the device code was read, not that it was run.</footer>",
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _verdict(item: dict[str, Any]) -> str:
    kind = {"does-not-run": "bad", "runs-with-limits": "limits", "runs-through-jit": "jit"}
    head = {"does-not-run": "does not run", "no-device-code": "no device code"}.get(
        item["outcome"], "runs"
    )
    rest = item["summary"].removeprefix(head).lstrip(" :;") if head != "no device code" else ""
    return (
        f'<div class="verdict {kind.get(item["outcome"], "")}"><b>Capability '
        f"{escape(item['capability'])}: {head}</b> (audited)"
        f"{'<br>' + escape(rest) if rest else ''}</div>"
    )


def _notes(notes: list[str]) -> str:
    if not notes:
        return ""
    rows = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h2>Good to know</h2><ul>{rows}</ul>"


def _patched(items: list[dict[str, Any]]) -> list[str]:
    """What was patched, by which patch and why."""
    if not items:
        return []
    parts = ["<h2>Patched packages</h2>"]
    for item in items:
        source, modules = item["source"], len(item["modules"])
        more = f", {modules} modules of legacy-cuda copied in" if modules else ""
        checked = "" if item["checked"] else " (not compared with a recorded result)"
        parts += [
            f"<h3>{escape(item['package'])} {escape(item['version'])}</h3>",
            f'<p class="legend">Made from {escape(source["file"])} (sha256 {source["sha256"]})'
            f"{more}; sha256 of the result {item['sha256']}{checked}.</p>",
            _table(
                ("patch", "for capability", "why", "origin"),
                [
                    (
                        patch["name"],
                        ", ".join(patch["capabilities"]),
                        patch["why"],
                        patch["origin"],
                    )
                    for patch in item["patches"]
                ],
            ),
        ]
    return parts


def _compiled(items: list[dict[str, Any]]) -> list[str]:
    """What was compiled for the GPUs."""
    if not items:
        return []
    known = {True: "yes", False: "no", None: "none recorded"}
    rows: list[tuple[str, ...]] = [
        (
            f"{item['package']} {item['version']}",
            f"CUDA {item['toolchain']}",
            item["origin"],
            item["sha256"],
            known[item["as_recorded"]],
        )
        for item in items
    ]
    head = ("package", "toolchain", "from", "sha256", "as recorded")
    return ["<h2>Compiled for these GPUs</h2>", _table(head, rows)]


def _altered(names: list[str]) -> str:
    if not names:
        return ""
    return (
        '<div class="verdict bad"><b>Altered since it was made</b><br>No longer as installed: '
        f"{escape(', '.join(names))}</div>"
    )


def _tags(manifest: dict[str, Any]) -> str:
    check, flags, driver = manifest["check"], manifest["arch_flags"], manifest["driver"]
    version = escape(str(check.get("version", check.get("error", "not importable"))))
    cuda = f", CUDA {escape(str(check['cuda']))}" if "cuda" in check else ""
    agree = {True: "agree", False: "disagree", None: "not compared: no driver here"}[flags["agree"]]
    ran = manifest["gpu_run"]
    tags = [
        f'<span class="tag">{escape(manifest["engine"])} {version}{cuda}</span>',
        f'<span class="tag">arch flags and audit {agree}</span>',
        f'<span class="tag">driver branch {escape(driver["branch"])}, '
        f"{escape(driver['module'])} module</span>",
        f'<span class="tag{" no" if ran == "not run" else ""}">on a GPU: {escape(ran)}</span>',
    ]
    return f'<div class="tags">{"".join(tags)}</div>'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def _libraries(item: dict[str, Any]) -> str:
    rows = []
    for library in item["libraries"]:
        if library["state"] == "empty":
            continue
        total, sass, jit = library["containers"], library["sass"], library["jit"]
        name = library["path"].rpartition("/")[2]
        rows.append(
            f'<tr><td title="{escape(library["path"])}">{escape(name)}</td>'
            f"<td>{escape(library['distribution'])}</td><td>{escape(library['role'])}</td>"
            f'<td class="n">{total}</td><td class="n">{sass}</td><td class="n">{jit}</td>'
            f"<td>{escape(library['state'])}</td></tr>"
        )
    return (
        f"<h3>Capability {escape(item['capability'])}</h3>"
        '<div class="scroll"><table><tr><th>library</th><th>from</th><th>role</th>'
        "<th>containers</th><th>SASS</th><th>JIT</th><th>state</th></tr>"
        f"{''.join(rows)}</table></div>"
    )


def _picture(manifest: dict[str, Any], marked: list[Capability]) -> str:
    """Libraries x capabilities: how much of each cell is served by SASS and by PTX."""
    libraries = [
        audit.Library(item["path"], item["size"], "shared", audit.read_groups(item["groups"]))
        for item in manifest["libraries"]
    ]
    shown = [
        library
        for library in libraries
        if audit.rule_for(library.path).role != "tool"
        and any(group.linkage == "loadable" for group in library.groups)
    ]
    distributions = {item["path"]: item["distribution"] for item in manifest["libraries"]}
    bare = Counter(library.path.rpartition("/")[2] for library in shown)
    names = {}
    for library in shown:
        name = library.path.rpartition("/")[2]
        came = distributions[library.path] or library.path.rpartition("/")[0]
        names[library.path] = f"{name} [{came}]" if bare[name] > 1 else name
    columns = [
        capability
        for capability in catalog.capabilities()
        if any(gpu.capability == capability for gpu in catalog.gpus())
    ]
    # those of the GPUs at hand first: on a narrow screen they are what shows beside the names
    columns.sort(key=lambda capability: capability not in marked)
    longest = max((len(name) for name in names.values()), default=0)
    left = min(440, 20 + 7 * longest)  # 7: a little above the mean width of 12 px letters
    top, cell, row = 44, 42, 24
    width, height = left + cell * len(columns) + 10, top + row * len(shown) + 8
    out = [
        f'<div class="scroll"><svg viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="coverage of libraries by capability">'
    ]
    for place, capability in enumerate(columns):
        x = left + cell * place
        if capability in marked:
            out.append(
                f'<rect x="{x}" y="4" width="{cell - 4}" height="{height - 8}" rx="4" '
                'fill="#76b900" fill-opacity="0.16"/>'
            )
        weight = ' font-weight="700"' if capability in marked else ' class="soft"'
        out.append(
            f'<text x="{x + cell / 2 - 2}" y="26" text-anchor="middle"{weight}>{capability}</text>'
        )
    for line, library in enumerate(shown):
        y = top + row * line
        name = names[library.path]
        out.append(f'<text x="0" y="{y + 15}">{escape(name)}</text>')
        for place, capability in enumerate(columns):
            verdict = audit.judge_library(library, capability)
            out.append(_cell(left + cell * place, y, cell - 8, row - 6, name, capability, verdict))
    out.append("</svg></div>")
    key = (
        f'<p><span class="key" style="background:{_COLOURS["sass"]}"></span>SASS for it'
        f'<span class="key" style="background:{_COLOURS["jit"]}"></span>PTX, compiled by the driver'
        '<span class="key"></span>nothing. The filled share is the share of containers; libraries '
        "that pick their kernels by GPU need only a part of them.</p>"
    )
    return key + "".join(out)


def _cell(
    x: int,
    y: int,
    width: int,
    height: int,
    name: str,
    capability: Capability,
    verdict: audit.LibraryVerdict,
) -> str:
    title = (
        f"{name} on {capability}: {verdict.sass} of {verdict.containers} containers with SASS, "
        f"{verdict.jit} through JIT ({verdict.state})"
    )
    parts = [
        f"<g><title>{escape(title)}</title>"
        f'<rect x="{x + 2}" y="{y}" width="{width}" height="{height}" fill="none" '
        'stroke="#8a93a0" stroke-opacity="0.5"/>'
    ]
    if verdict.containers and verdict.state not in ("none", "stray"):
        sass = max(1.5, width * verdict.sass / verdict.containers) if verdict.sass else 0.0
        jit = max(1.5, width * verdict.jit / verdict.containers) if verdict.driver else 0.0
        parts.append(
            f'<rect x="{x + 2}" y="{y}" width="{sass:.1f}" height="{height}" '
            f'fill="{_COLOURS["sass"]}"/>'
            f'<rect x="{x + 2 + sass:.1f}" y="{y}" width="{min(jit, width - sass):.1f}" '
            f'height="{height}" fill="{_COLOURS["jit"]}"/>'
        )
    return "".join([*parts, "</g>"])
