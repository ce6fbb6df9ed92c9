"""``legacy-cuda audit``: can this wheel, file or environment run on that GPU?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from legacy_cuda.cli import output


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "audit",
        help="can this wheel, file or environment run on that GPU?",
        description="Read the device code in a wheel, a library, a folder, an environment or a "
        "package on PyPI, and say whether it runs on a GPU. Nothing in it is executed.",
        epilog="examples:\n"
        "  legacy-cuda audit torch==2.8.0 --gpu p40\n"
        "  legacy-cuda audit ~/venv --gpu p40 --verbose\n"
        "  legacy-cuda audit dist/*.whl libfoo.so --gpu k80,m40,p100,p40,v100\n\n"
        "exit code 1 if any target does not run on any of the GPUs",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument("target", nargs="+", help="a path, or name==version of a package on PyPI")
    parser.add_argument(
        "--gpu", action="append", required=True, help="one or more, separated by commas"
    )
    parser.add_argument("--python", default="3.11", help="whose wheels (default: 3.11)")
    parser.add_argument(
        "--rescan", action="store_true", help="read known wheels again instead of taking evidence"
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="every library")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=run)


_SHORT = {
    "runs": "runs",
    "runs-through-jit": "runs, JIT",
    "runs-with-limits": "runs, limits",
    "does-not-run": "does not run",
    "no-device-code": "no device code",
}
_STYLE = {
    "runs": ("green",),
    "runs, JIT": ("yellow",),
    "runs, limits": ("yellow",),
    "does not run": ("red",),
}


def run(arguments: argparse.Namespace) -> int:
    """Judge every target for every GPU; 1 if one does not run."""
    from legacy_cuda import audit, evidence, targets
    from legacy_cuda.environment import verdict_document

    gpus = list(dict.fromkeys(output.read_gpus(arguments.gpu)))
    subjects = []
    with output.progress() as update:
        for target in arguments.target:
            done = 0

            def scanned(count: int, target: str = target) -> None:
                nonlocal done
                done += count
                update(f"reading {target}"[:60], done, 0)

            subjects += targets.load_all(target, arguments.python, arguments.rescan, scanned)
    good = True
    documents: list[dict[str, Any]] = []
    rows = [["", *(f"{gpu.name} ({gpu.capability})" for gpu in gpus)]]
    details: list[str] = []
    for subject in subjects:
        row = [f"{subject.package} {subject.version}" if subject.package else subject.name]
        verdicts = []
        texts: dict[str, list[str]] = {}
        owner = dict(subject.owners)
        for gpu in gpus:
            verdict = audit.without(
                audit.judge(subject.libraries, gpu.capability, subject.torch_cuda), subject.absent
            )
            newest = built = None
            if not verdict.good:
                good = False
                if subject.package:
                    newest = evidence.newest_that_runs(subject.package, gpu.capability)
                    built = _compiled(subject.package, gpu)
            row.append(_SHORT[verdict.outcome])
            verdicts.append(
                {
                    "gpu": gpu.name,
                    **verdict_document(verdict, owner),
                    "summary": _summary(subject, verdict, owner),
                    "newest_that_runs": newest,
                    "compiled_by": built,
                }
            )
            text = _detail(subject, verdict, newest, built, owner, arguments.verbose)
            texts.setdefault(text, []).append(f"{gpu.name} ({gpu.capability})")
        rows.append(row)
        details.append(output.paint(subject.name, "bold") + _origin(subject))
        for text, names in texts.items():
            first, *more = text.split("\n")
            details += [output.wrapped("", f"{', '.join(names)}: {first}", 4), *more]
        documents.append(
            {
                "name": subject.name,
                "kind": subject.kind,
                "package": subject.package,
                "version": subject.version,
                "sha256": subject.sha256,
                "evidence_of": subject.scanned or None,
                "verdicts": verdicts,
            }
        )
    if arguments.json:
        output.document("audit", {"subjects": documents})
        return 0 if good else 1
    if len(rows) > 2 or len(gpus) > 1:
        print(output.table(rows, lambda cell: _STYLE.get(cell, ())))
        print()
    print("\n".join(details))
    return 0 if good else 1


def _origin(subject: Any) -> str:
    if subject.scanned:
        return f" (evidence of {subject.scanned}; --rescan reads it anew)"
    return f" (sha256 {subject.sha256[:12]})" if subject.sha256 else ""


def _summary(subject: Any, verdict: Any, owner: dict[str, str]) -> str:
    from legacy_cuda import audit

    if subject.kind == "folder" and not subject.libraries:
        return "holds no device code, and no wheel lies directly in this folder"
    return audit.describe(verdict, owner)


def _compiled(package: str, gpu: Any) -> str | None:
    """The command that compiles a package for a GPU, where a recipe does."""
    from legacy_cuda.catalog.recipes import recipes

    for recipe in recipes():
        if recipe.package == package and recipe.way({gpu.capability}):
            return f"legacy-cuda build {package} --for {gpu.name}"
    return None


def _detail(
    subject: Any,
    verdict: Any,
    newest: str | None,
    built: str | None,
    owner: dict[str, str],
    verbose: bool,
) -> str:
    style = _STYLE.get(_SHORT[verdict.outcome], ())
    text = _summary(subject, verdict, owner)
    lines = [output.paint(text, *style) if style else text]
    if newest:
        lines.append(f"    newest known version that runs there: {subject.package}=={newest}")
    elif not verdict.good and subject.package and not built:
        lines.append(f"    no version of {subject.package} that runs there is known here")
    if built:
        lines.append(f"    compiled for it by: {built}")
    if verbose:
        for item in verdict.libraries:
            if item.state == "empty":
                continue
            came = f" [{owner[item.path]}]" if item.path in owner else ""
            jit = f", {item.jit} through JIT" if item.jit else ""
            role = "" if item.role == "core" else f" ({item.role})"
            lines.append(
                f"    {item.state:<8} {item.sass} of {item.containers} containers{jit}  "
                f"{_shown(item.path, subject)}{came}{role}"
            )
    return "\n".join(lines)


def _shown(path: str, subject: Any) -> str:
    """The path of a library as it is shown: below the folder that was named."""
    if subject.kind == "library":
        return str(subject.name)
    if subject.kind == "folder":
        return path.removeprefix(f"{Path(subject.name).absolute()}/")
    return path
