"""``legacy-cuda toolchain``: one CUDA toolkit with the host compiler that fits, in one folder."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda import sizes
from legacy_cuda.cli import output
from legacy_cuda.errors import UserError

if TYPE_CHECKING:
    from legacy_cuda.catalog.toolchains import Toolchain


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "toolchain",
        help="a CUDA toolkit with the host compiler that fits",
        description="Put one CUDA toolkit, the host compiler that it takes and a C library whose "
        "headers it compiles into one folder, without root: nvcc and gcc from packages of Debian, "
        "headers and libraries from NVIDIA's wheels, each checked by sha256. It compiles the same "
        "bytes on every machine. Before it is handed out, it compiles and links a program for "
        "every old GPU the toolkit knows. With no VERSION, list what there is.",
        epilog="examples:\n"
        "  legacy-cuda toolchain 11.8                   for Kepler, Maxwell, Pascal and Volta\n"
        '  eval "$(legacy-cuda toolchain 12.4 --env)"   nvcc, gcc and CUDA_HOME of this shell\n'
        "  legacy-cuda toolchain 12.4 --found           what is installed here, if it fits\n"
        "  legacy-cuda toolchain 12.4 --found /usr/local/cuda-12.4 --compiler /usr/bin/g++-12\n",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument("version", nargs="?", help="which CUDA, for example 11.8")
    parser.add_argument(
        "--found",
        nargs="?",
        const="",
        metavar="DIR",
        help="use an installed toolkit: in DIR, or CUDA_HOME, /usr/local, PATH; nothing is "
        "downloaded, and others may get other bytes",
    )
    parser.add_argument(
        "--compiler", type=Path, metavar="FILE", help="with --found: the g++ to compile with"
    )
    parser.add_argument("--env", action="store_true", help="print lines for a shell to evaluate")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the toolchain and print where it is."""
    from legacy_cuda.catalog import CatalogError
    from legacy_cuda.catalog.toolchains import find_toolchain, toolchains

    if arguments.compiler is not None and arguments.found is None:
        raise UserError("--compiler is for --found", "the pinned toolchain brings its own gcc")
    if arguments.version is None:
        for name in ("env", "found"):
            if getattr(arguments, name) not in (None, False):
                raise UserError(
                    f"--{name} is for one toolchain",
                    "no version was named",
                    f"for example: legacy-cuda toolchain 12.4 --{name}",
                )
        _list(arguments.json)
        return 0
    try:
        toolchain = find_toolchain(".".join(arguments.version.split(".")[:2]))
    except CatalogError as error:
        raise UserError(
            f"there is no toolchain {arguments.version!r}",
            "; ".join(f"{item.name} {_for(item)}" for item in toolchains()),
            "name one of these: CUDA 12.4 compiles for a stack of any CUDA 12",
        ) from error
    from legacy_cuda.toolchain import folder, found, make

    if arguments.found is None:
        if not (make.place(toolchain) / folder.MANIFEST).is_file():
            print(
                f"CUDA {toolchain.name}: {sizes.readable(toolchain.download)} to download",
                file=sys.stderr,
                flush=True,
            )
        with output.progress() as tell:
            root, fresh = make.make(toolchain, tell)
    else:
        given = Path(arguments.found) if arguments.found else None
        toolkit = found.find_toolkit(toolchain, given)
        compiler = found.find_compiler(toolchain, arguments.compiler)
        with output.progress() as tell:
            tell("trying it", 0, 0)
            root, fresh = found.make(toolchain, toolkit, compiler)
    settings = {
        "PATH": f"{root / 'bin'}",
        "CUDA_HOME": f"{root / 'cuda'}",
        "CC": f"{root / 'bin' / 'gcc'}",
        "CXX": f"{root / 'bin' / 'g++'}",
        "CUDAHOSTCXX": f"{root / 'bin' / 'g++'}",
    }
    manifest = folder.read_manifest(root)
    if arguments.env:
        for name, value in settings.items():
            more = ':"$PATH"' if name == "PATH" else ""
            print(f"export {name}={shlex.quote(value)}{more}")
    elif arguments.json:
        output.document(
            "toolchain",
            {
                **{key: value for key, value in manifest.items() if key != "schema"},
                "path": str(root),
                "state": "made" if fresh else "there already",
                "env": settings,
            },
        )
    else:
        title = output.paint(f"CUDA {manifest['nvcc']}", "bold")
        print(f"{title} with gcc {manifest['gcc']} and glibc {manifest['glibc']}: {_state(fresh)}")
        print(f"  folder   {output.short(root)}")
        print(output.wrapped("  targets", ", ".join(manifest["targets"]) + " (compiled for)", 11))
        if manifest["source"] == "found":
            text = f"{manifest['toolkit']}, {manifest['compiler']}: installed here, not pinned"
            print(output.wrapped("  from", text, 11))
        print(f'  use      eval "$(legacy-cuda toolchain {_again(arguments)} --env)"')
    return 0


def _state(fresh: bool) -> str:
    return "made" if fresh else "there already"


def _again(arguments: argparse.Namespace) -> str:
    words = [arguments.version]
    if arguments.found is not None:
        words += ["--found", *([arguments.found] if arguments.found else [])]
    if arguments.compiler is not None:
        words += ["--compiler", str(arguments.compiler)]
    return shlex.join(words)


def _for(toolchain: Toolchain) -> str:
    toolkit = toolchain.toolkit
    return f"(for {toolkit.capability_min} to {toolkit.capability_max})"


def _list(as_json: bool) -> None:
    from legacy_cuda.catalog.toolchains import toolchains
    from legacy_cuda.toolchain import folder, make, smoke

    rows: list[dict[str, Any]] = []
    for toolchain in toolchains():
        root = make.place(toolchain)
        rows.append(
            {
                "name": toolchain.name,
                "nvcc": toolchain.nvcc,
                "gcc": toolchain.host.gcc,
                "glibc": toolchain.host.glibc,
                "targets": [str(item) for item in smoke.targets(toolchain)],
                "download": toolchain.download,
                "path": str(root) if (root / folder.MANIFEST).is_file() else None,
            }
        )
    if as_json:
        output.document("toolchains", {"toolchains": rows})
        return
    lines = [["toolchain", "nvcc", "gcc", "compiles for", "download", "here"]]
    for row in rows:
        lines.append(
            [
                row["name"],
                row["nvcc"],
                row["gcc"],
                ", ".join(row["targets"]),
                sizes.readable(row["download"]),
                "yes" if row["path"] else "no",
            ]
        )
    print(output.table(lines, lambda cell: ()))
