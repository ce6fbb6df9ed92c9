"""Write the tables of README.md and docs/monitor.md anew: which stack each GPU gets, which wheel
runs, which metrics and alerts there are.

    python tools/update_readme.py [--check]

What stands between ``<!-- generated: NAME -->`` and ``<!-- /generated -->`` in these files is
replaced; everything else is left as it is. Nothing is downloaded: the audit's table comes from the
catalog's evidence alone.

Exit: 0 fine, 1 --check found a table that would change, 2 a marker or evidence is missing.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.version import Version

from legacy_cuda import audit, catalog, evidence
from legacy_cuda.catalog import Gpu
from legacy_cuda.catalog.alerts import alerts
from legacy_cuda.catalog.locks import load_lock
from legacy_cuda.monitor import engines, metrics
from legacy_cuda.nvml import Snapshot
from legacy_cuda.resolve import Refusal, drivers_for, resolve

README = Path(__file__).parents[1] / "README.md"
MONITOR = README.parent / "docs" / "monitor.md"

# The rows and columns of the audit's table. "newest" is the newest version with evidence.
WHEELS = (
    ("torch", "2.0.1"),
    ("torch", "2.6.0"),
    ("torch", "2.7.1"),
    ("torch", "2.8.0"),
    ("torch", "2.10.0"),
    ("torch", "2.11.0"),
    ("vllm", "0.14.0"),
    ("vllm", "0.19.1"),
    ("bitsandbytes", "0.47.0"),
    ("bitsandbytes", "0.50.2"),
    ("nvidia-cudnn-cu12", "9.5.1.17"),
    ("nvidia-cudnn-cu12", "newest"),
)
GPUS = ("k80", "m40", "p100", "p40", "v100")

CELLS: dict[audit.Outcome, str] = {
    "runs": "runs",
    "runs-through-jit": "runs, JIT",
    "runs-with-limits": "runs, limits",
    "does-not-run": "no",
    "no-device-code": "no device code",
}


class OutOfStepError(Exception):
    """A file has not the markers, or the catalog not the evidence, that this program needs."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first row its heading."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def memory(gpu: Gpu) -> str:
    """``24 GB``, or ``2 x 12 GB`` for a card with two dies."""
    text = f"{gpu.memory_mib / 1024:g} GB"
    return f"{gpu.dies} x {text}" if gpu.dies > 1 else text


def short_reason(refusal: Refusal, gpu: Gpu) -> str:
    """Why there is no stack, up to the first colon or full stop."""
    text = refusal.because[0]
    if refusal.rule.startswith("engine-"):
        text = refusal.engine.rule(gpu.capability).reason
    short = re.split(r"[:.;] ", text)[0].rstrip(".")
    return short[:1].lower() + short[1:]


def stacks() -> str:
    """Every legacy card with its stack for PyTorch, or with the reason why it has none."""
    engine = catalog.find_engine("torch")
    rows = [["GPU", "name", "capability", "memory", "driver", "stack", "torch", "CUDA"]]
    for gpu in catalog.gpus():
        if not gpu.legacy:
            continue
        row = [gpu.product, f"`{gpu.name}`", str(gpu.capability), memory(gpu)]
        answer = resolve([gpu], engine)
        if isinstance(answer, Refusal):
            drivers = drivers_for([gpu.capability])
            driver = f"{drivers[-1].branch.branch}, {drivers[-1].flavour}" if drivers else "none"
            row += [driver, f"refused: {short_reason(answer, gpu)}", "", ""]
        else:
            facts = answer.facts
            row += [
                f"{answer.driver.branch.branch}, {answer.driver.flavour}",
                facts.name,
                load_lock(facts.lock).package("torch").version,
                ".".join(str(part) for part in facts.cuda),
            ]
        rows.append(row)
    return table(rows)


def recorded(package: str, version: str) -> list[evidence.Evidence]:
    """The evidence on a version, or on the newest one there is.

    Raises:
        OutOfStepError: there is none.
    """
    known = evidence.known(package)
    if version == "newest" and known:
        version = max((item.version for item in known), key=Version)
    found = [item for item in known if item.version == version]
    if not found:
        raise OutOfStepError(f"the catalog has no evidence on {package} {version}")
    return found


def wheels() -> str:
    """The audit's verdict on well-known wheels, and below the table what the limited ones lack."""
    gpus = [catalog.find_gpu(name) for name in GPUS]
    rows = [["", *(f"{gpu.name} ({gpu.capability})" for gpu in gpus)]]
    notes: dict[str, int] = {}
    for package, wanted in WHEELS:
        found = recorded(package, wanted)
        name = f"{package} {found[0].version}"
        row = [name]
        for gpu in gpus:
            verdicts = [audit.judge(item.libraries, gpu.capability) for item in found]
            if len({verdict.outcome for verdict in verdicts}) > 1:
                raise OutOfStepError(f"the wheels of {name} differ in what runs on {gpu.name}")
            verdict = verdicts[0]
            cell = CELLS[verdict.outcome]
            if verdict.outcome == "runs-with-limits":
                note = f"{name}: {audit.describe(verdict)}"
                cell += f" ({notes.setdefault(note, len(notes) + 1)})"
            row.append(cell)
        rows.append(row)
    lines = [f"{number}. {note}" for note, number in notes.items()]
    return "\n".join([table(rows), "", *lines]).rstrip()


def metric_names() -> str:
    """What the monitor shows, in the order of its page."""
    rows = [["metric", "type", "what it is"]]
    found = [
        *metrics.families(metrics.State(Snapshot(0.0, 0.0), (), {})),
        *engines.families((), ()),
    ]
    for metric in found:
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        rows.append([f"`{name}`", metric.type, metric.documentation])
    return table(rows)


def alert_names() -> str:
    """The alerts, in the catalog's order."""
    rows = [["alert", "severity", "fires when", "for"]]
    for alert in alerts():
        expr = alert.expr.replace("|", "\\|")
        rows.append([alert.name, alert.severity, f"`{expr}`", alert.lasting])
    return table(rows)


SECTIONS: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"stacks": stacks, "audit": wheels},
    MONITOR: {"metrics": metric_names, "alerts": alert_names},
}


def rewrite(path: Path) -> tuple[str, str]:
    """A file's text as it is, and with every generated section made anew.

    Raises:
        OutOfStepError: a section's markers are not there exactly once.
    """
    before = text = path.read_text(encoding="utf-8")
    for name, make in SECTIONS[path].items():
        pattern = re.compile(
            rf"(<!-- generated: {name} -->\n)(?:(?!<!-- generated:).)*?(<!-- /generated -->)",
            re.DOTALL,
        )
        found = list(pattern.finditer(text))
        if len(found) != 1:
            raise OutOfStepError(
                f"{path.name} has {len(found)} sections between "
                f"'<!-- generated: {name} -->' and '<!-- /generated -->', not one"
            )
        text = f"{text[: found[0].end(1)]}{make()}\n{text[found[0].start(2) :]}"
    return before, text


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Write the documents' tables anew.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a change")
    options = parser.parse_args(arguments)
    try:
        texts = {path: rewrite(path) for path in SECTIONS}
    except (OutOfStepError, FileNotFoundError) as error:
        print(f"update_readme: {error}", file=sys.stderr)
        return 2
    code = 0
    for path, (before, after) in texts.items():
        if before == after:
            print(f"{path.name}: unchanged")
        elif options.check:
            print(f"{path.name}: would change; run tools/update_readme.py")
            code = 1
        else:
            sibling = path.with_suffix(".md.new")
            sibling.write_text(after, encoding="utf-8")
            sibling.replace(path)
            print(f"{path.name}: written")
    return code


if __name__ == "__main__":
    sys.exit(main())
