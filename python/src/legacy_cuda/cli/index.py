"""``legacy-cuda index``: a static package index over a folder of wheels, sorted by GPU."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda.cli import output

if TYPE_CHECKING:
    from legacy_cuda.index.make import Index
    from legacy_cuda.index.wheels import Wheel


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "index",
        help="a package index over a folder of wheels, sorted by GPU",
        description="Write a static package index over the wheels that lie in a folder, for pip "
        "and uv to install from by file:// or through any web server. simple/ lists every wheel; "
        "sm61/simple/ and its like list those that run on that capability, by audit of their "
        "device code, and those without any. index.html is for people. Nothing in a wheel is "
        "executed, and the same wheels give the same bytes.",
        epilog="examples:\n"
        "  legacy-cuda build torch --for p40 --output ~/wheels\n"
        "  legacy-cuda index ~/wheels\n"
        "  legacy-cuda index ~/wheels --json\n\n"
        "install from it:  as it prints, or legacy-cuda up p40 --engine llama-cpp --index FOLDER\n"
        "serve it:         python -m http.server --bind 127.0.0.1 --directory FOLDER",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the wheels lie")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the index and print what it lists."""
    from legacy_cuda.index.make import make

    with output.progress() as update:
        done: dict[str, int] = {}

        def tell(file: str, count: int) -> None:
            done[file] = done.get(file, 0) + count
            update(f"reading {file}"[:60], done[file], 0)

        made = make(arguments.folder, tell)
    if arguments.json:
        output.document("index", document(arguments.folder, made))
    else:
        _show(arguments.folder, made)
    return 0


def document(folder: Path, made: Index) -> dict[str, Any]:
    """What was made, as JSON."""
    from legacy_cuda.index import simple

    changes = made.changes
    return {
        "path": str(folder.absolute()),
        "page": "index.html",
        "indexes": [
            {"capability": None, "path": "simple/", "files": [w.file for w in made.wheels]},
            *(
                {
                    "capability": str(capability),
                    "path": f"{simple.prefix(capability)}simple/",
                    "files": [w.file for w in made.wheels if w.verdict(capability).good],
                }
                for capability in made.capabilities
            ),
        ],
        "wheels": [_wheel(wheel) for wheel in made.wheels],
        "written": list(changes.written),
        "removed": list(changes.removed),
        "kept": list(changes.kept),
        "unchanged": len(changes.unchanged),
    }


def _wheel(wheel: Wheel) -> dict[str, Any]:
    from legacy_cuda import audit
    from legacy_cuda.index.wheels import cards

    return {
        "file": wheel.file,
        "project": wheel.project,
        "version": str(wheel.version),
        "size": wheel.size,
        "sha256": wheel.sha256,
        "requires_python": wheel.requires_python or None,
        "device_code": wheel.has_code,
        "verdicts": [
            {
                "capability": str(verdict.capability),
                "gpus": [gpu.name for gpu in cards(verdict.capability)],
                "outcome": verdict.outcome,
                "driver": verdict.driver,
                "summary": audit.describe(verdict),
            }
            for verdict in wheel.verdicts
        ],
    }


def _show(folder: Path, made: Index) -> None:
    from legacy_cuda.index import overview, simple
    from legacy_cuda.index.wheels import cards

    changes, wheels = made.changes, made.wheels
    projects = len({wheel.project for wheel in wheels})
    title = output.paint(output.short(folder), "bold")
    state = "index written" if changes.written or changes.removed else "index as it was"
    print(f"{title}: {_count(len(wheels), 'wheel')} of {_count(projects, 'project')}, {state}")
    rows = [["index", "for", "lists"], ["simple/", "any", "everything"]]
    for capability in made.capabilities:
        gpus = cards(capability)
        some = ", ".join(gpu.name for gpu in gpus[:3]) + (", ..." if len(gpus) > 3 else "")
        files = [wheel for wheel in wheels if wheel.verdict(capability).good]
        bare = sum(not wheel.has_code for wheel in files)
        text = f"{_count(len(files) - bare, 'wheel')} with code that runs there"
        rows.append(
            [
                f"{simple.prefix(capability)}simple/",
                f"{capability} ({some})",
                text + (f", {bare} without device code" if bare else ""),
            ]
        )
    print(output.table(rows, lambda cell: ()))
    for wheel in wheels:
        if wheel.has_code and not any(map(wheel.serves, made.capabilities)):
            print(f"{wheel.file} runs on no old GPU: only simple/ lists it")
    for path in changes.kept:
        print(f"{path} was changed by somebody: it is no longer needed, and was left there")
    print(f"page     {output.short(folder / 'index.html')} (with the commands for each GPU)")
    address = shlex.quote(folder.absolute().as_uri())
    for capability in made.capabilities[-1:]:
        for command in overview.commands(wheels, capability):
            line = " && ".join(command.pip).replace(overview.ADDRESS, address)
            print(f"for {capability}  {line}")


def _count(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
