"""The results as one HTML file, in the style of an environment's report: no scripts, no links."""

from __future__ import annotations

from html import escape
from typing import Any

from legacy_cuda import page, sizes
from legacy_cuda.verify import roofline

_BAD = {"failed": "bad", "degraded": "limits", "incomplete": "limits"}


def html(document: dict[str, Any]) -> str:
    """The page of a document of ``legacy-cuda verify --json``."""
    parts = [
        *page.head("legacy-cuda verify"),
        "<h1>legacy-cuda verify</h1>",
        f'<p class="lead">{escape(document["created"])}, legacy-cuda {escape(document["tool"])}, '
        f"driver for CUDA {escape(document['driver_cuda'])}</p>",
    ]
    for gpu in document["gpus"]:
        parts += _gpu(gpu)
    if document["peers"]:
        parts.append("<h2>From GPU to GPU</h2>")
        rows = [
            (
                step["name"],
                step["outcome"],
                f"{step['facts']['gb_s']:.1f} GB/s" if "gb_s" in step["facts"] else "",
                {True: "direct", False: "through the machine's memory"}.get(
                    step["facts"].get("direct"), step.get("why", "")
                ),
            )
            for step in document["peers"]
        ]
        parts.append(page.table(("copy", "outcome", "rate", "way"), rows))
    parts.append(
        "<footer>Rates are compared with the catalog's figures for the card, where it has them. "
        "Replayed means that an older capability's code ran here: right numbers, nobody's "
        "rates.</footer></main></body></html>"
    )
    return "\n".join(parts) + "\n"


def _gpu(gpu: dict[str, Any]) -> list[str]:
    verdict = gpu["verdict"]
    findings = "".join(f"<br>{escape(item['text'])}" for item in verdict["findings"])
    parts = [
        f"<h2>{escape(gpu['name'])} ({escape(gpu['bus'])})</h2>",
        f'<div class="verdict {_BAD.get(verdict["state"], "")}"><b>{escape(verdict["state"])}</b> '
        f"({escape(gpu['label'])}){findings}</div>",
    ]
    rates = [
        (
            rate["name"],
            f"{rate['measured']:.2f} {rate['unit']}",
            f"{rate['nominal']:.2f}" if rate["nominal"] else "not recorded",
            f"{100 * rate['share']:.0f} %" if rate["share"] else "",
        )
        for rate in verdict["rates"]
    ]
    if rates:
        parts.append(page.table(("rate", "measured", "nominal", "share"), rates))
    drawn = roofline.read(gpu["steps"], gpu["nominal"])
    if drawn is not None:
        parts += ["<h3>Roofline</h3>", roofline.svg(drawn)]
        parts.append(
            '<p class="legend">Lines are measured, dashed ones nominal; dots are fp32 arithmetic '
            "at so many operations for each byte that is read.</p>"
        )
    steps = [(step["name"], step["outcome"], detail(step, gpu)) for step in gpu["steps"]]
    parts += ["<h3>Steps</h3>", page.table(("step", "outcome", ""), steps)]
    if gpu["code"] is not None:
        code = gpu["code"]
        parts.append(
            f'<p class="legend">Code: {escape(code["target"])} from {escape(code["origin"])}, '
            f"sha256 {code['sha256']}.</p>"
        )
    return parts


def detail(step: dict[str, Any], gpu: dict[str, Any]) -> str:
    """What is to be said of a step beside its outcome: how much memory was tested, the rate and the
    clock at the end of the load, or why it did not pass."""
    facts = step["facts"]
    if step["name"] == "memory" and step["outcome"] == "passed":
        share = f"{sizes.mib(facts['bytes'])} of {sizes.mib(gpu['memory'])} MiB"
        return f"{share}, {facts['patterns']} patterns"
    if "sustained_clock_mhz" in facts:
        unit = "TOP/s" if step["name"] == "dp4a rate" else "TFLOP/s"
        return (
            f"{facts['sustained_tera_per_s']:.2f} {unit} at {facts['sustained_clock_mhz']:.0f} MHz "
            f"after {facts['seconds']:.1f} s"
        )
    return str(step.get("why", ""))
