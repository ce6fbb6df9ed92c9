"""The HTML report of an environment: one file, no scripts, nothing fetched."""

from __future__ import annotations

import shlex
from collections import Counter
from html import escape
from typing import Any

from legacy_cuda import audit, catalog, page
from legacy_cuda.capability import Capability

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
        *page.head(f"{manifest['name']}: legacy-cuda report"),
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
        page.table(
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
        page.table(("package", "version"), list(manifest["packages"].items())),
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
            page.table(
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
    heading = ("package", "toolchain", "from", "sha256", "as recorded")
    return ["<h2>Compiled for these GPUs</h2>", page.table(heading, rows)]


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
    if "torch" in check:  # of an engine on PyTorch it is PyTorch's
        cuda = f", torch {escape(str(check['torch']))}{cuda}"
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
