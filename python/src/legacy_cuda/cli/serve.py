"""``legacy-cuda serve``: a model by llama-server, placed as ``plan`` says."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda.cli import output
from legacy_cuda.cli import plan as plan_command
from legacy_cuda.errors import SurroundingsError, UserError

if TYPE_CHECKING:
    from legacy_cuda.engines.llama_server import Address
    from legacy_cuda.planner.plan import Result


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a GGUF file by llama-server as planned, or print a service for systemd",
        description="Start llama-server on a GGUF file, with the arguments that place it on the "
        "GPUs as `plan` says; say when it is ready; start it again when it crashes. A file that "
        "is damaged, or that does not fit, is refused before anything is started.",
        epilog="examples:\n"
        "  legacy-cuda serve model.gguf --gpu p40 --context 8192 --parallel 4\n"
        "  legacy-cuda serve model.gguf --gpu p4000,gtx1060-6gb --systemd > llama.service\n"
        "  legacy-cuda serve model.gguf --gpu k80 --env",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a GGUF file (any part of a split one)")
    plan_command.add_settings(parser)
    parser.add_argument("--name", help="what it is called over HTTP (default: the file's name)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: loopback)")
    parser.add_argument(
        "--port", type=output.whole(1, 65535), default=8080, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--program",
        type=Path,
        help="llama-server (default: the one on PATH: activate the environment that `up` made)",
    )
    parser.add_argument(
        "--anyway", action="store_true", help="start it although the plan says it does not fit"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--systemd", action="store_true", help="print a service instead")
    form.add_argument("--env", action="store_true", help="print variables and command instead")
    form.add_argument("--json", action="store_true", help="print both as one JSON document instead")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve, or print; 1 where it does not fit."""
    from legacy_cuda.engines import llama_server, unit

    result = _planned(arguments)
    if result is None:
        return 1
    address = llama_server.Address(arguments.host, arguments.port)
    program = _program(arguments)
    path = _first_file(arguments.model)
    name = arguments.name or arguments.model.stem
    command = [str(program), *llama_server.arguments(result, path, address, name)]
    variables = llama_server.environment()
    if arguments.json:
        content = {"command": command, "environment": variables, "url": address.url}
        output.document("serve", {**content, "health": address.url + llama_server.HEALTH})
    elif arguments.env or arguments.systemd:
        try:
            if arguments.env:
                text = unit.environment_file(variables, command)
            else:
                text = unit.unit(
                    f"{name} by llama-server",
                    command,
                    variables,
                    readable=_readable(program, path),
                    loopback=arguments.host in ("127.0.0.1", "::1", "localhost"),
                )
        except ValueError as error:
            raise UserError("this cannot be written for a service", str(error)) from error
        sys.stdout.write(text)
    else:
        return _foreground(command, variables, address)
    return 0


def _foreground(command: list[str], variables: dict[str, str], address: Address) -> int:
    from legacy_cuda.engines import llama_server
    from legacy_cuda.engines import run as runner

    if runner.is_taken(address.host, address.port):
        raise SurroundingsError(
            f"something listens on {address.host} port {address.port} already",
            next_step="--port names another one",
        )
    print(f"starting {address.url}", file=sys.stderr, flush=True)
    engine = runner.Engine(command, variables, address.url + llama_server.HEALTH)
    return runner.serve(
        engine, lambda text: print(f"{address.url}: {text}", file=sys.stderr, flush=True)
    )


def _planned(arguments: argparse.Namespace) -> Result | None:
    """The placement, or None after it was said that it does not fit.

    Raises:
        UserError: the file is damaged, or no stack serves the cards.
    """
    from legacy_cuda.cli.resolve import chosen_gpus
    from legacy_cuda.planner import gguf, metadata
    from legacy_cuda.planner import plan as planner
    from legacy_cuda.planner.model import ModelError

    path = arguments.model
    if not path.exists():
        raise UserError(
            f"there is no file {path}",
            next_step="serve needs a GGUF file; legacy-cuda plan knows models by name",
        )
    try:
        model = metadata.model_of(gguf.read(path), path.name)
    except ModelError as error:
        raise UserError(f"{path} is not served", str(error)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read", str(error)) from error
    cards = chosen_gpus(arguments.gpu or [])
    cuda = plan_command.cuda_for(cards, "llama-server")
    if isinstance(cuda, UserError):
        raise cuda
    settings, where = plan_command.asked(arguments, model, cards, cuda)
    try:
        result = planner.balanced(model, settings, where)
    except ValueError as error:
        raise UserError("this cannot be counted", str(error)) from error
    if result.fits or (arguments.anyway and not result.problem):
        return result
    missing = -min(result.spare) / (1 << 20)
    why = result.problem or f"{missing:.0f} MiB are missing on the fullest GPU"
    print(f"{path.name} does not fit: {why}", file=sys.stderr)
    print("  -> legacy-cuda plan with the same arguments says what does", file=sys.stderr)
    return None


def _program(arguments: argparse.Namespace) -> Path:
    """llama-server by its full path.

    Raises:
        SurroundingsError: there is none.
    """
    from legacy_cuda.engines.llama_server import PROGRAM

    found = shutil.which(str(arguments.program or PROGRAM))
    if found is None:
        raise SurroundingsError(
            f"there is no program {arguments.program or PROGRAM}",
            next_step="legacy-cuda up GPU --engine llama-cpp makes an environment with it; "
            "activate that, or name the program with --program",
        )
    return Path(found).absolute()


def _first_file(path: Path) -> Path:
    """The file that llama.cpp is to be given: of a split model the first."""
    from legacy_cuda.planner.gguf import parts

    return parts(path)[0].absolute()


def _readable(program: Path, path: Path) -> list[Path]:
    """What the service sees of a home folder: the model, and the environment that the program is in
    with its Python, or else the program and the libraries beside it. Never a home as a whole.

    Raises:
        UserError: the environment is a home folder, or holds all of them.
    """
    from legacy_cuda.planner.gguf import parts

    place = program.parent.parent
    if not (place / "pyvenv.cfg").is_file():
        found = [program, *sorted(program.parent.glob("lib*.so*"))]
    elif _is_broad(place):
        raise UserError(
            f"the environment of {program} is {place}, too much to show to a service",
            next_step="make an environment in a folder of its own, as legacy-cuda up does",
        )
    else:
        found = [place, *_python(program.parent / "python", place)]
    return list(dict.fromkeys([*found, *(item.absolute() for item in parts(path))]))


def _python(link: Path, place: Path) -> list[Path]:
    """What an environment's Python needs outside of it: the folder of each link on the way to it,
    and the folder that it is installed in, under each name that it goes by."""
    found = []
    for _ in range(40):  # as many as Linux follows
        if not link.is_symlink():
            break
        if link.parent.parent != place:
            found.append(link if _is_broad(link.parent) else link.parent)
        link = Path(os.path.normpath(link.parent / link.readlink()))
    if not link.is_file():
        return []
    for python in (link, link.resolve()):
        installed = python.parent.parent
        if _is_broad(installed):
            found += [python.parent, *sorted(installed.glob("lib/python3*"))]
        else:
            found.append(installed)
    return [folder for folder in found if not folder.is_relative_to("/usr")]


def _is_broad(folder: Path) -> bool:
    """Whether a folder is a home, or holds one, or is where a person's programs keep their data."""
    homes = (Path("/root"), Path.home())
    return (
        Path("/home") in (folder, folder.parent)
        or folder in [home / ".local" for home in homes]
        or any(home.is_relative_to(folder) for home in homes)
    )
