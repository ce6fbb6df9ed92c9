"""Compile every kernel of the corpus for every capability, without a GPU, and write it down.

    python -m tests.triton.matrix --python PYTHON --json OUT [--capability 6.1 ...]
    python -m tests.triton.matrix --report OUT...

The first form runs cells in a process of PYTHON (any that has Triton, patched or not), which is
started again after a crash or a timeout. Cells already in OUT that were made by the same Triton
from the same kernel are kept. The second form prints Markdown. Exit code 1: some cell is not as
`expected.py` says.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .expected import HALF_KEPT, REFUSALS, refusal
from .measure import dp4a, half_arithmetic

Pair = tuple[int, int]
Document = dict[str, Any]

SCHEMA = "legacy-cuda/triton-matrix/1"
ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES: tuple[Pair, ...] = ((3, 7), (5, 2), (6, 0), (6, 1), (7, 0))
#: Where unpatched Triton has to accept the kernels: 8.0, but for what came later.
PROOFS: tuple[Pair, ...] = ((8, 0), (8, 9), (9, 0))
#: Where the SASS is counted.
SASS: tuple[Pair, ...] = ((5, 2), (6, 1), (7, 0))
#: Where fp16 arithmetic is slow or missing.
HALF_SLOW: tuple[Pair, ...] = ((5, 2), (6, 1))
#: The tags of kernels whose opcodes the report shows. That there is no fp16 arithmetic at the
#: capabilities of `SASS` holds for every kernel.
SHOWN = ("dot", "softmax", "layernorm", "attention")
#: Capabilities that have dp4a: 6.1 and newer (PTX ISA, dp4a), not 6.0.
DP4A: tuple[Pair, ...] = ((6, 1), (7, 0))
#: Shared memory a block may have without asking for more, in bytes (all of these cards).
SHARED_LIMIT = 48 * 1024
#: One of each kind, for a run of minutes.
CI_SUBSET = (
    "add_fp16",
    "arithmetic_fp16",
    "eviction_fp32",
    "softmax_all_fp16",
    "layernorm_backward",
    "cumulative_bf16",
    "sort_fp16",
    "through_fp8e4nv",
    "through_fp8e5_fp16",
    "matmul_fp16",
    "matmul_fp16_in_fp16",
    "matmul_int8",
    "attention_causal_fp16",
    "atomic_add_fp16",
    "atomic_add_fp64",
    "atomic_cas_fp16",
    "atomic_orders_i32",
    "spin_lock",
    "inductor_looped_fp32",
)


class WorkerDied(Exception):
    """The worker crashed or took too long; the message says which and shows its last words."""


class Worker:
    """A process of another Python that compiles cells."""

    def __init__(self, python: str, ptxas: str | None, folder: Path) -> None:
        cache = tempfile.mkdtemp(prefix="cache-", dir=folder)
        self.log = Path(cache) / "log"
        environment = {
            **os.environ,
            "TRITON_CACHE_DIR": cache,
            "TRITON_ALWAYS_COMPILE": "1",
            "MATRIX_LOG": str(self.log),
            "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT)))),
            # Triton looks for a GPU's driver library through these; there is none to find
            "CUDA_VISIBLE_DEVICES": "",
        }
        if ptxas:
            environment["TRITON_PTXAS_PATH"] = ptxas
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [python, "-m", f"{__package__}.worker"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            self.hello = self._answer(120)
        except WorkerDied:
            self.close()
            raise

    def compile(self, kernel: str, capability: Pair, timeout: float) -> dict[str, Any]:
        """One cell; `timeout` in seconds. Raises `WorkerDied`."""
        asked = {"kernel": kernel, "capability": capability, "sass": capability in SASS}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(self._last_words()) from None
        return self._answer(timeout)

    def _answer(self, timeout: float) -> dict[str, Any]:
        stdout = self.process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], timeout)
        if not ready:
            raise WorkerDied(f"no answer in {timeout:.0f} s")
        line = stdout.readline()
        if not line.endswith(b"\n"):
            raise WorkerDied(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        code = self.process.wait(10)
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines()]
        if code > 0:
            return f"{how}: {lines[-1][:300] if lines else 'no message'}"
        message = next((line for line in lines if "LLVM ERROR" in line), "no message")
        # the frames that Python's faulthandler wrote, innermost first
        frames = [line.rpartition(" in ")[2] for line in lines if line.startswith('File "')]
        where = f" (in {', '.join(frames[:3])})" if frames else ""
        return f"{how}: {message[:300]}{where}"

    def close(self) -> None:
        """End the process and everything it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def name_of(capability: Pair) -> str:
    return f"{capability[0]}.{capability[1]}"


def parse_capability(text: str) -> Pair:
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def run(
    python: str,
    out: Path | None = None,
    *,
    capabilities: Sequence[Pair] = CAPABILITIES,
    kernels: Sequence[str] = (),
    ptxas: str | None = None,
    timeout: float = 120,
    proof: bool = False,
    progress: bool = False,
) -> Document:
    """Compile the cells and return the document that was written to `out`.

    `ptxas` is for capabilities below 5.0, which the ptxas in Triton's wheels does not know;
    `timeout` is for one cell, in seconds. With `proof` a kernel is compiled only at the capability
    of its own proof. Raises `ValueError` for a kernel that is not there and `WorkerDied` if Triton
    cannot be imported.
    """
    document: Document = {"schema": SCHEMA, "cells": {}}
    if out is not None and out.exists():
        document = json.loads(out.read_text())
    with tempfile.TemporaryDirectory(prefix="triton-matrix-") as folder:
        for capability in capabilities:
            old = ptxas if capability < (5, 0) else None
            _run_capability(
                document,
                Path(folder),
                python,
                out,
                capability,
                kernels,
                old,
                timeout,
                proof,
                progress,
            )
    return document


def _run_capability(
    document: Document,
    folder: Path,
    python: str,
    out: Path | None,
    capability: Pair,
    kernels: Sequence[str],
    ptxas: str | None,
    timeout: float,
    proof: bool,
    progress: bool,
) -> None:
    worker = Worker(python, ptxas, folder)
    hello = worker.hello
    available: dict[str, Any] = hello["kernels"]
    missing = [name for name in kernels if name not in available]
    if missing:
        worker.close()
        raise ValueError(f"Triton {hello['version']} has no kernel {', '.join(missing)}")
    document["triton"] = {name: hello[name] for name in ("version", "legacy", "legalises")}
    cells: dict[str, Any] = document["cells"]
    for key, cell in list(cells.items()):
        known = available.get(cell["kernel"])
        if known is None or cell["digest"] != _cell_digest(hello, known):
            del cells[key]
    wanted = list(kernels) or list(available)
    if proof:
        wanted = [name for name in wanted if tuple(available[name]["proof"]) == capability]
    saved = time.monotonic()
    try:
        for number, kernel in enumerate(wanted, start=1):
            key = f"{kernel}@{name_of(capability)}"
            if key in cells:
                continue
            try:
                cell = worker.compile(kernel, capability, timeout)
            except WorkerDied as error:
                worker.close()
                cell = {"ok": False, "error": "WorkerDied", "reason": str(error)}
                worker = Worker(python, ptxas, folder)
            cells[key] = {
                "kernel": kernel,
                "capability": name_of(capability),
                "tags": available[kernel]["tags"],
                "digest": _cell_digest(hello, available[kernel]),
                **cell,
            }
            if progress:
                said = "ok" if cell["ok"] else f"{cell['error']}: {cell['reason']}"
                head = f"{hello['version']} {name_of(capability)} {number}/{len(wanted)}"
                print(f"{head} {kernel}: {said}", file=sys.stderr, flush=True)
            if out is not None and time.monotonic() - saved > 5:
                _write(out, document)
                saved = time.monotonic()
    finally:
        worker.close()
        if out is not None:
            _write(out, document)


def _cell_digest(hello: dict[str, Any], kernel: dict[str, Any]) -> str:
    return f"{hello['digest'][:16]}-{kernel['digest'][:16]}"


def _write(out: Path, document: Document) -> None:
    temporary = out.with_name(out.name + ".part")
    temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    temporary.replace(out)


@dataclass(frozen=True)
class Surprise:
    """A cell that is not as it has to be."""

    version: str
    kernel: str
    capability: str
    what: str


def surprises(document: Document, *, sass: bool = True) -> list[Surprise]:
    """Cells that failed, or compiled, against expectation; with `sass`, wrong code too."""
    found = []
    for cell in _cells(document):
        capability = parse_capability(cell["capability"])
        rule = refusal(cell["kernel"], capability)
        what = []
        if cell["ok"] and rule:
            what.append(f"compiled, but should be refused: {rule.reason}")
        elif not cell["ok"] and rule and rule.message not in cell["reason"]:
            what.append(f"refused for another reason than {rule.message!r}: {cell['reason']}")
        elif not cell["ok"] and not rule:
            what.append(f"{cell['error']}: {cell['reason']}")
        elif cell["ok"]:
            what += _wrong_code(cell, capability, sass)
        version = document["triton"]["version"]
        found += [Surprise(version, cell["kernel"], cell["capability"], text) for text in what]
    return found


def _wrong_code(cell: dict[str, Any], capability: Pair, sass: bool) -> list[str]:
    wrong = []
    made_for = cell["cubin_capability"]
    if made_for is None:
        wrong.append("nothing is known of what the cubin is for")
    elif tuple(made_for) != capability:
        wrong.append(f"the cubin is for {name_of(tuple(made_for))}")
    if cell["shared"] > SHARED_LIMIT and capability < (7, 0):
        wrong.append(f"{cell['shared']} bytes of shared memory, more than {SHARED_LIMIT}")
    if not sass or "opcodes" not in cell:
        return wrong
    halves = half_arithmetic(cell["opcodes"])
    if halves and capability in HALF_SLOW and cell["kernel"] not in HALF_KEPT:
        wrong.append(f"{halves} instructions of fp16 arithmetic")
    if "int8-dot" in cell["tags"] and capability in DP4A and not dp4a(cell["detailed"]):
        wrong.append("an int8 dot without DP4A")
    return wrong


def _cells(document: Document) -> Iterable[dict[str, Any]]:
    cells: dict[str, Any] = document["cells"]
    return cells.values()


def report(documents: Sequence[Document]) -> str:
    """Markdown: what compiles where, what does not and why, code, resources, and time."""
    parts = [
        _summary(documents),
        _table_of_cells(documents),
        _table_of_failures(documents),
        _table_of_sass(documents),
        _table_of_resources(documents),
        _table_of_time(documents),
    ]
    return "\n".join(parts)


def _version(document: Document) -> str:
    return f"{document['triton']['version']}{'' if document['triton']['legacy'] else ' (stock)'}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(field) for field in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _mark(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    rule = refusal(cell["kernel"], parse_capability(cell["capability"]))
    if cell["ok"]:
        return "ok, expected not to" if rule else "ok"
    return "refused" if rule and rule.message in cell["reason"] else "FAIL"


def _axes(documents: Sequence[Document]) -> tuple[list[str], list[str]]:
    kernels: dict[str, None] = {}
    capabilities: set[str] = set()
    for document in documents:
        for cell in _cells(document):
            kernels[cell["kernel"]] = None
            capabilities.add(cell["capability"])
    return list(kernels), sorted(capabilities, key=parse_capability)


def _summary(documents: Sequence[Document]) -> str:
    rows = []
    for document in documents:
        for capability in _axes([document])[1]:
            cells = [cell for cell in _cells(document) if cell["capability"] == capability]
            marks = Counter(_mark(cell) for cell in cells)
            row = (
                len(cells),
                marks["ok"],
                marks["refused"],
                len(cells) - marks["ok"] - marks["refused"],
            )
            rows.append((_version(document), capability, *row))
    head = ("Triton", "capability", "cells", "compile", "refused as expected", "wrong")
    return "## Summary\n\n" + _table(head, rows)


def _table_of_cells(documents: Sequence[Document]) -> str:
    kernels, capabilities = _axes(documents)
    head = ["kernel", *(f"{_version(d)} at {c}" for d in documents for c in capabilities)]
    rows = []
    for kernel in kernels:
        cells = [d["cells"].get(f"{kernel}@{c}") for d in documents for c in capabilities]
        rows.append((kernel, *(_mark(cell) for cell in cells)))
    return "## Cells\n\n" + _table(head, rows)


def _table_of_failures(documents: Sequence[Document]) -> str:
    rows: list[tuple[str, str, str, str]] = []
    for document in documents:
        grouped: dict[tuple[str, str], list[str]] = {}
        for cell in _cells(document):
            if not cell["ok"]:
                what = f"{cell['error']}: {cell['reason']}".replace("|", "\\|")
                grouped.setdefault((cell["kernel"], what), []).append(cell["capability"])
        for (kernel, what), where in grouped.items():
            rows.append((kernel, _version(document), ", ".join(where), what))
    refused = [f"- {rule.kernel} below {name_of(rule.below)}: {rule.reason}" for rule in REFUSALS]
    title = "## Failures\n\nExpected, because of the hardware:\n\n" + "\n".join(refused) + "\n\n"
    return title + _table(("kernel", "Triton", "capabilities", "reason"), sorted(rows))


def _table_of_sass(documents: Sequence[Document]) -> str:
    rows = []
    for document in documents:
        for cell in _cells(document):
            if "opcodes" not in cell:
                continue
            opcodes = cell["opcodes"]
            if set(SHOWN) & set(cell["tags"]) or half_arithmetic(opcodes):
                multiply = opcodes.get("XMAD", 0) + opcodes.get("IMAD", 0)
                rows.append(
                    (
                        cell["kernel"],
                        _version(document),
                        cell["capability"],
                        half_arithmetic(opcodes),
                        dp4a(cell["detailed"]),
                        opcodes.get("FFMA", 0),
                        opcodes.get("DFMA", 0),
                        multiply,
                    )
                )
    head = (
        "kernel",
        "Triton",
        "capability",
        "fp16 arithmetic",
        "DP4A",
        "FFMA",
        "DFMA",
        "XMAD and IMAD",
    )
    return "## SASS\n\n" + _table(head, sorted(rows))


def _table_of_resources(documents: Sequence[Document]) -> str:
    rows = []
    for document in documents:
        for cell in _cells(document):
            used = cell.get("resources")
            if used:
                rows.append(
                    (
                        cell["kernel"],
                        _version(document),
                        cell["capability"],
                        used["registers"],
                        f"{used['spill_stores']} / {used['spill_loads']}",
                        used["static_shared"] + cell["shared"],
                    )
                )
    head = ("kernel", "Triton", "capability", "registers", "spill bytes out / in", "shared bytes")
    return "## Resources\n\n" + _table(head, sorted(rows))


def _table_of_time(documents: Sequence[Document]) -> str:
    rows = []
    for document in documents:
        for capability in _axes([document])[1]:
            times = [
                cell["seconds"]
                for cell in _cells(document)
                if cell["ok"] and cell["capability"] == capability
            ]
            total = sum(seconds["total"] for seconds in times)
            legaliser = sum(seconds.get("legaliser", 0.0) for seconds in times)
            share = f"{100 * legaliser / total:.2f} %" if total else ""
            rows.append((_version(document), capability, f"{total:.1f}", f"{legaliser:.2f}", share))
    head = ("Triton", "capability", "seconds", "of them in the legaliser", "share")
    return "## Time\n\n" + _table(head, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.triton.matrix", description=__doc__)
    parser.add_argument("--python", help="a Python that has Triton")
    parser.add_argument("--capability", type=parse_capability, nargs="+", action="extend")
    parser.add_argument("--kernel", nargs="+", action="extend", default=[])
    parser.add_argument("--subset", choices=["ci"])
    parser.add_argument(
        "--proof",
        action="store_true",
        help="each kernel at the one capability where unpatched Triton has to accept it",
    )
    parser.add_argument("--ptxas", help="the ptxas for capabilities below 5.0")
    parser.add_argument("--timeout", type=float, default=120, help="of one cell, in seconds")
    parser.add_argument("--json", type=Path, help="where the cells are kept")
    parser.add_argument("--report", type=Path, nargs="+", help="print Markdown of these")
    options = parser.parse_args(arguments)
    if options.report:
        print(report([json.loads(path.read_text()) for path in options.report]))
        return 0
    if not options.python or not options.json:
        parser.error("give --python and --json, or --report")
    kernels = list(options.kernel)
    if options.subset:
        kernels += [name for name in CI_SUBSET if name not in kernels]
    document = run(
        options.python,
        options.json,
        capabilities=options.capability or (PROOFS if options.proof else CAPABILITIES),
        kernels=kernels,
        ptxas=options.ptxas,
        timeout=options.timeout,
        proof=options.proof,
        progress=True,
    )
    wrong = surprises(document)
    for surprise in wrong:
        print(f"{surprise.kernel} at {surprise.capability}: {surprise.what}", file=sys.stderr)
    print(f"{len(document['cells'])} cells, {len(wrong)} not as expected", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
