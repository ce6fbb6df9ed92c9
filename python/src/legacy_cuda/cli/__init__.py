"""The command line: one module a subcommand, each with ``add(subparsers)`` and ``run(arguments)``.

Exit codes: 0 fine, 1 a negative verdict, 2 bad input or usage, 3 the surroundings failed.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import traceback
from collections.abc import Sequence

from legacy_cuda import __version__

_COMMANDS = (
    "audit",
    "bench",
    "build",
    "doctor",
    "gpus",
    "index",
    "monitor",
    "plan",
    "replay",
    "resolve",
    "serve",
    "toolchain",
    "up",
    "verify",
)
_DESCRIPTION = "Proven AI software stacks for old NVIDIA GPUs, Kepler to Volta."
_EPILOG = """examples:
  legacy-cuda up p40                          the P40's PyTorch stack, made and proven
  legacy-cuda resolve k80 p40                 one machine, two cards: which stack, and why
  legacy-cuda audit torch==2.8.0 --gpu p40    can this version run there, and which still does?

exit codes: 0 fine, 1 a negative verdict, 2 bad input, 3 the surroundings failed
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from legacy_cuda.cli import output

    main_parser = argparse.ArgumentParser(
        prog="legacy-cuda",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=output.HelpFormatter,
    )
    main_parser.add_argument("--version", action="version", version=f"legacy-cuda {__version__}")
    main_parser.add_argument(
        "--debug", action="store_true", help="show a traceback where something fails"
    )
    subparsers = main_parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        importlib.import_module(f"legacy_cuda.cli.{name}").add(subparsers)
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from legacy_cuda.cli import output
    from legacy_cuda.errors import SurroundingsError, UserError

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    output.prepare()
    options = argparse.Namespace(debug=False)
    try:
        try:
            parser().parse_args(arguments, options)
            code: int = options.run(options)
        finally:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        print(f"interrupted{f': {stop}' if stop.args else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        output.settle()
        return 141
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        if isinstance(error, UserError):
            problem = error
        elif isinstance(error, OSError):
            output.settle()  # it may be standard output that failed
            problem = SurroundingsError("the system refused something", str(error))
        else:
            problem = SurroundingsError(
                "legacy-cuda itself failed",
                f"{type(error).__name__}: {error}",
                "run again with --debug before the subcommand, and report what it says",
            )
        output.error(problem, as_json=getattr(options, "json", False))
        return problem.exit_code
