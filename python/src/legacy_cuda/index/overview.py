"""The page for people: which wheel runs on which GPU, and the commands that install it.

One file that fetches nothing. The only script is the one below, which puts the page's own address
into the commands; what comes from wheels is escaped, and the page's policy lets nothing else run.
Pure functions.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from packaging.utils import canonicalize_name

from legacy_cuda import audit, catalog, sizes
from legacy_cuda.audit import Outcome, Verdict
from legacy_cuda.capability import Capability
from legacy_cuda.index import simple
from legacy_cuda.index.wheels import Wheel, cards

ADDRESS = "URL"
"""What stands for the address of the folder, in commands."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --soft: #5d6672; --line: #d9dee5; --paper: #fff;
  --panel: #f5f7f9; --good: #1f7a4d; --jit: #8a5000; --bad: #b3261e; --link: #2f5f00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4b1; --line: #323a44;
  --paper: #14181d; --panel: #1c2229; --good: #4fc38a; --jit: #e0a243; --bad: #f2847d;
  --link: #9fd64a; } }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 8px; }
p { margin: 6px 0 12px; }
.soft, td small { color: var(--soft); }
a { color: var(--link); }
pre { background: var(--panel); padding: 10px 14px; margin: 8px 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
code { font: 13px/1.6 ui-monospace, monospace; }
pre span.line { display: block; padding-left: 2em; text-indent: -2em; }
.gpus { border-bottom: 1px solid var(--line); padding: 8px 0; margin: 0; }
.gpus summary { color: var(--ink); } .gpus summary b { margin-right: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 8px; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td.file { overflow-wrap: anywhere; min-width: 200px; }
td.n { white-space: nowrap; }
td.sha256 { font: 11px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; min-width: 150px; }
.chip { display: inline-block; border: 1px solid var(--line); border-radius: 4px; padding: 0 6px;
  margin: 0 3px 3px 0; font-size: 13px; font-variant-numeric: tabular-nums; }
.chip.good { border-color: var(--good); color: var(--good); }
.chip.jit { border-color: var(--jit); color: var(--jit); border-style: dashed; }
details { margin-top: 4px; } summary { cursor: pointer; color: var(--soft); }
details p { margin: 6px 0; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
@media (max-width: 760px) {
  main { padding: 20px 14px 40px; }
  table, tbody, tr, td { display: block; }
  tr.head { display: none; }
  tr { border-bottom: 1px solid var(--line); padding: 10px 0; }
  td, td.file, td.sha256 { border: 0; padding: 2px 0; min-width: 0; }
  td[data-label]::before { content: attr(data-label) ": "; color: var(--soft);
    font: 13px system-ui, sans-serif; }
}
"""

# For a page without encryption pip asks for its host to be named, unless it is this machine.
_SCRIPT = """
const plain = /^[\\w.~:/%+@,=-]+$/;
const here = new URL(".", location.href).href.replace(/\\/$/, "");
const word = plain.test(here) ? here : "'" + here.replaceAll("'", "%27") + "'";
for (const part of document.querySelectorAll(".address")) part.textContent = word;
const local = /^(localhost|127\\.[\\d.]+|\\[::1\\])$/.test(location.hostname);
if (location.protocol === "http:" && !local)
  for (const part of document.querySelectorAll(".trust"))
    part.textContent = "--trusted-host " + location.host + " ";
document.getElementById("stands").hidden = true;
"""

_CHIP: dict[Outcome, str] = {
    "runs": "good",
    "runs-through-jit": "jit",
    "runs-with-limits": "jit",
}
_WORSE: dict[Outcome, int] = {"runs": 0, "no-device-code": 0, "runs-through-jit": 1}


@dataclass(frozen=True, slots=True)
class Command:
    """How to install a project for a capability: lines for pip and one for uv, in which
    :data:`ADDRESS` is to be replaced. ``elsewhere`` names what has to come from PyPI, None where
    that is not known."""

    pip: tuple[str, ...]
    uv: str
    elsewhere: tuple[str, ...] | None


def commands(wheels: Iterable[Wheel], capability: Capability) -> list[Command]:
    """For each project with device code for the capability, and each that has none at all, how the
    best build is installed.

    Builds that need the JIT, or run with limits, stand behind those of the same public version
    that do not; then the highest version counts, as for pip. Where something that it requires is
    not in the index, pip would take the highest version of everything from either place; so a
    local version, which PyPI cannot have, is named, or one is installed by itself first.
    """
    listed = [wheel for wheel in wheels if wheel.verdict(capability).good]
    found = []
    bare = {w.project for w in listed} - {w.project for w in listed if w.has_code}
    for project in sorted({w.project for w in listed if w.serves(capability)} | bare):
        best = max((w for w in listed if w.project == project), key=lambda w: _rank(w, capability))
        index = f"{ADDRESS}/{simple.prefix(capability)}simple"
        pinned = shlex.quote(f"{project}=={best.version}")
        elsewhere = _elsewhere(best, listed)
        if elsewhere == ():
            pip: tuple[str, ...] = (f"pip install --index-url {index} {pinned}",)
            uv = f"uv pip install --default-index {index} {pinned}"
        else:
            uv = f"uv pip install --index {index} {pinned}"
            if best.version.local:
                pip = (f"pip install --extra-index-url {index} {pinned}",)
            else:
                pip = (
                    f"pip install --no-deps --index-url {index} {pinned}",
                    f"pip install {pinned}",
                )
        found.append(Command(pip, uv, elsewhere))
    return found


def _rank(wheel: Wheel, capability: Capability) -> tuple[object, ...]:
    outcome = wheel.verdict(capability).outcome
    version = wheel.version
    public = type(version)(version.public)
    return not version.is_prerelease, public, -_WORSE.get(outcome, 2), version


def _elsewhere(wheel: Wheel, listed: list[Wheel]) -> tuple[str, ...] | None:
    """What a wheel requires, and what that requires, that is not listed, by name; None where that
    cannot be told. Whether a listed wheel fits the Python at hand is not looked at."""
    absent: set[str] = set()
    seen = {wheel.file}
    todo = [wheel]
    while todo:
        needs = todo.pop().needs
        if needs is None:
            return None
        for need in needs:
            name = str(canonicalize_name(need.name))
            named = [other for other in listed if other.project == name]
            fits = [one for one in named if need.specifier.contains(one.version, prereleases=True)]
            if not fits:
                absent.add(name)
            todo += [other for other in fits if other.file not in seen]
            seen |= {other.file for other in fits}
    return tuple(sorted(absent))


def html(wheels: tuple[Wheel, ...], served: tuple[Capability, ...]) -> str:
    """The page over all wheels; ``served`` are the capabilities that have an index of their own."""
    projects = {wheel.project for wheel in wheels}
    size = sizes.readable(sum(wheel.size for wheel in wheels))
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_policy())}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Wheels for old GPUs</title><style>{_STYLE}</style></head><body><main>",
        "<h1>Wheels for old GPUs</h1>",
        f'<p class="soft">{_count(wheels, "wheel")} of {_count(projects, "project")}, {size}. '
        "Which GPU a wheel runs on is what legacy-cuda found in the device code of every library "
        "in it (audited). Nothing was run.</p>",
        *_install(wheels, served),
        "<h2>Wheels</h2>",
        '<table><tbody><tr class="head"><th>file</th><th>version</th><th>size</th>'
        "<th>runs on</th><th>sha256</th></tr>",
        *(_row(wheel) for wheel in wheels),
        "</tbody></table>",
        '<p class="soft"><span class="chip good">6.1</span> runs on GPUs of that compute '
        'capability. <span class="chip jit">6.1</span> runs with limits, or through the '
        "driver's compiler: see the details. Nothing is said about memory, speed, or the driver "
        "that is installed.</p>",
        "<footer>Made by <code>legacy-cuda index</code>. Run it again when wheels come or go."
        "</footer></main>",
        f"<script>{_SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _policy() -> str:
    """The page's content security policy: our style and our script by hash, and nothing else."""

    def source(text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; style-src {source(_STYLE)}; script-src {source(_SCRIPT)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _install(wheels: tuple[Wheel, ...], served: tuple[Capability, ...]) -> list[str]:
    parts = ["<h2>Install</h2>"]
    if served:
        parts.append(
            "<p>Take the index of your GPU: it lists what runs there. Builds for different GPUs "
            "differ in their local version only, and from <code>simple/</code>, which lists "
            "everything, an installer takes the highest whatever the GPU.</p>"
        )
    parts.append(
        f'<p id="stands" class="soft"><code>{ADDRESS}</code> stands for the address of the folder '
        "that this page lies in.</p>"
    )
    for capability in served:
        folder = simple.prefix(capability)
        names = ", ".join(gpu.product for gpu in cards(capability))
        made = commands(wheels, capability)
        parts += [
            f'<details class="gpus" id="sm{capability.number}"{" open" if len(made) < 3 else ""}>',
            f"<summary><b>{escape(_title(capability))}</b>"
            f'<span class="soft">{escape(names)}</span></summary>',
            f'<p class="soft">Index: <a href="{folder}simple/index.html">{folder}simple/</a></p>',
        ]
        parts.append(_pre([line for one in made for line in one.pip]))
        parts.append(_pre([one.uv for one in made]))
        elsewhere = sorted({name for one in made for name in one.elsewhere or ()})
        if any(one.elsewhere != () for one in made):
            parts.append(
                f'<p class="soft">From PyPI come {escape(", ".join(elsewhere) or "other packages")}'
                ", and what these require: nothing is said about them here.</p>"
            )
        parts.append("</details>")
    bare = sorted({wheel.project for wheel in wheels if not wheel.has_code})
    if bare:
        parts.append(
            f'<p class="soft">Without device code, and so in every index: '
            f"{escape(', '.join(bare))}. Everything is in "
            '<a href="simple/index.html">simple/</a>.</p>'
        )
    return parts


def _pre(lines: list[str]) -> str:
    """Commands, with places for the script to fill."""
    text = "".join(f'<span class="line">{escape(line)}</span>' for line in lines)
    text = text.replace(f"{ADDRESS}/", f'<span class="address">{ADDRESS}</span>/')
    for option in ("--index-url", "--extra-index-url"):
        text = text.replace(f" {option} ", f' <span class="trust"></span>{option} ')
    return f"<pre><code>{text}</code></pre>"


def _title(capability: Capability) -> str:
    return f"{catalog.capabilities()[capability].architecture}, compute capability {capability}"


def _row(wheel: Wheel) -> str:
    link = f'<a href="{escape(simple.url("", wheel.file))}">{escape(wheel.file)}</a>'
    python = f"<br><small>Python {escape(wheel.requires_python)}</small>"
    return (
        f'<tr><td class="file">{link}{python if wheel.requires_python else ""}</td>'
        f'<td class="n" data-label="version">{escape(str(wheel.version))}</td>'
        f'<td class="n" data-label="size">{sizes.readable(wheel.size)}</td>'
        f'<td data-label="runs on">{_runs(wheel)}</td>'
        f'<td class="sha256" data-label="sha256">{wheel.sha256}</td></tr>'
    )


def _runs(wheel: Wheel) -> str:
    if not wheel.has_code:
        return "any: no device code"
    good = [verdict for verdict in wheel.verdicts if verdict.good]
    chips = "".join(
        f'<span class="chip {_CHIP[verdict.outcome]}">{verdict.capability}</span>'
        for verdict in good
    )
    gpus = [gpu for verdict in good for gpu in cards(verdict.capability)]
    lines = "".join(f"<p>{escape(line)}</p>" for line in _groups(wheel.verdicts))
    return (
        f"{chips}<details><summary>{_count(gpus, 'GPU')} of the catalog</summary>{lines}</details>"
    )


def _groups(verdicts: Iterable[Verdict]) -> list[str]:
    """What is said of the cards, those of which the same is said together."""
    groups: dict[str, list[str]] = {}
    for verdict in verdicts:
        names = [gpu.product for gpu in cards(verdict.capability)]
        text = f"{verdict.capability} ({', '.join(names)})"
        groups.setdefault(audit.describe(verdict), []).append(text)
    return [f"{'; '.join(names)}: {text}" for text, names in groups.items()]


def _count(things: Iterable[object], word: str) -> str:
    count = len(list(things))
    return f"{count} {word}{'' if count == 1 else 's'}"
