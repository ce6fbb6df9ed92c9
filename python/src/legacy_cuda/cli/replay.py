"""``legacy-cuda replay``: run a command whose GPU answers as one of an old capability."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from legacy_cuda.cli import output
from legacy_cuda.errors import SurroundingsError, UserError


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "replay",
        usage="legacy-cuda replay --capability X.Y [--compile-only] [--stock] [--report FILE]\n"
        "                          [--libraries DIR] [--multiprocessors N] -- COMMAND ...",
        help="run an old capability's code on a newer GPU",
        description="Run a command whose Triton and PyTorch take the GPU for one of an old "
        "capability: the same code is generated as there, the old target's assembler has to "
        "accept it, and then it runs on the GPU at hand. A program in CUDA C++ that was compiled "
        "to PTX for the old capability runs as it is, and its questions about the GPU are answered "
        "as there. Shows that the numbers are right; shows nothing about speed, nor about the old "
        "card itself.",
        epilog="examples:\n"
        "  legacy-cuda replay --capability 6.1 -- python train.py\n"
        "  legacy-cuda replay --capability 5.2 --report m40.json -- python -m pytest tests\n"
        "  legacy-cuda replay --capability 3.7 --compile-only -- python kernels.py\n"
        "  legacy-cuda replay --capability 6.1 -- ./test-backend-ops test -b CUDA0\n\n"
        "the exit code is the command's",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument("--capability", required=True, metavar="X.Y", help="which, for example 6.1")
    parser.add_argument(
        "--compile-only", action="store_true", help="no GPU: compile, and launch nothing"
    )
    parser.add_argument(
        "--stock", action="store_true", help="do not warn that Triton is not patched"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write what was replayed as JSON"
    )
    parser.add_argument(
        "--libraries",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with libraries in CUDA C++ that the command loads, if not its own",
    )
    parser.add_argument(
        "--multiprocessors",
        type=int,
        default=0,
        metavar="N",
        help="how many a program in C++ is told of: some split their work by it",
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run, after --"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code.

    Raises:
        UserError: there is no command, or it cannot be replayed here.
    """
    from legacy_cuda.replay import command, report

    words: list[str] = arguments.words
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise UserError(
            "there is nothing to replay",
            next_step="put the command behind --: legacy-cuda replay --capability 6.1 -- python "
            "program.py",
        )
    if arguments.multiprocessors < 0:
        raise UserError("--multiprocessors wants a number of multiprocessors, 1 or more")
    for folder in arguments.libraries:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder", "--libraries names one")
    if arguments.report is not None:
        report.check_target(arguments.report)
    record = command.temporary_record()
    try:
        settings = command.prepare(
            arguments.capability,
            arguments.compile_only,
            arguments.stock,
            record,
            arguments.multiprocessors,
        )
        print(f"legacy-cuda: {settings.intent}", file=sys.stderr, flush=True)
        code = command.run(words, settings, arguments.libraries)
        document = report.gather(settings, words, code)
        print(f"legacy-cuda: {report.summary(document)}", file=sys.stderr, flush=True)
        if arguments.report is not None:
            try:
                report.write(document, arguments.report)
            except OSError as error:
                problem = SurroundingsError("the report could not be written", str(error))
                output.error(problem)
                return code or problem.exit_code
        return code
    finally:
        record.unlink(missing_ok=True)
