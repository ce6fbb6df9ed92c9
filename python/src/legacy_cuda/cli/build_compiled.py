"""``legacy-cuda build`` for packages that are compiled: what it takes, the work, what came out."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda import sizes
from legacy_cuda.catalog import Gpu
from legacy_cuda.cli import output
from legacy_cuda.errors import SurroundingsError, UserError

if TYPE_CHECKING:
    from legacy_cuda.build.compile import Compiled, Order
    from legacy_cuda.catalog.recipes import Recipe

_OPTIONS = ("jobs", "ptx", "replay", "sdist", "found", "compiler", "no_ccache", "twice", "dry_run")


def add_options(group: Any) -> None:
    """Add what only compiled packages know."""
    group.add_argument(
        "--dry-run", action="store_true", help="say what it takes, and build nothing"
    )
    group.add_argument(
        "--jobs", type=int, metavar="N", help="compilers at once (default: what fits)"
    )
    group.add_argument(
        "--ptx", action="store_true", help="PTX of the newest of these GPUs as well, for newer ones"
    )
    group.add_argument(
        "--replay", action="store_true", help="PTX only, to be run by legacy-cuda replay"
    )
    group.add_argument(
        "--sdist", type=Path, metavar="FILE", help="the published sources, if you have them already"
    )
    group.add_argument(
        "--found",
        nargs="?",
        const="",
        metavar="DIR",
        help="compile with an installed toolkit (see legacy-cuda toolchain); others may get other "
        "bytes",
    )
    group.add_argument(
        "--compiler", type=Path, metavar="FILE", help="with --found: the g++ to compile with"
    )
    group.add_argument("--no-ccache", action="store_true", help="leave ccache alone if it is here")
    group.add_argument(
        "--twice", action="store_true", help="build again in another folder and compare the bytes"
    )


def recipe_for(package: str) -> Recipe | None:
    """The recipe for a package, if it is one that is compiled."""
    from legacy_cuda.catalog import CatalogError
    from legacy_cuda.catalog.recipes import find_recipe

    try:
        return find_recipe(package)
    except CatalogError:
        return None


def refuse_options(package: str, arguments: argparse.Namespace) -> None:
    """Options that a patched package has no use for.

    Raises:
        UserError: one of them was given.
    """
    from legacy_cuda.catalog.recipes import recipes

    for name in _OPTIONS:
        if getattr(arguments, name) not in (None, False):
            compiled = ", ".join(recipe.package for recipe in recipes())
            raise UserError(
                f"--{name.replace('_', '-')} is for packages that are compiled",
                f"those are {compiled}, and not {package}",
            )


def run(recipe: Recipe, arguments: argparse.Namespace, gpus: list[Gpu]) -> int:
    """Build and print; 1 where it is not built for these GPUs."""
    _check(recipe, arguments)
    capabilities = {gpu.capability for gpu in gpus}
    way = recipe.way(capabilities)
    if way is None:
        return _refuse(recipe, arguments, gpus)
    from legacy_cuda import paths
    from legacy_cuda.build import backend, provide
    from legacy_cuda.build import compile as building
    from legacy_cuda.catalog.locks import load_lock
    from legacy_cuda.catalog.toolchains import find_toolchain
    from legacy_cuda.environment import choose_python
    from legacy_cuda.toolchain import make

    pythons = load_lock(recipe.lock).pythons
    if arguments.python is not None and arguments.python not in pythons:
        raise UserError(
            f"{recipe.package} is not built with Python {arguments.python}",
            f"its build back end is locked for {', '.join(pythons)}",
            "leave --python out: the wheel is for every Python",
        )
    code = "ptx" if arguments.replay else "sass+ptx" if arguments.ptx else "sass"
    toolchain = find_toolchain(way.toolchain)
    order = building.order(
        recipe,
        way,
        capabilities,
        make.place(toolchain),
        code,
        arguments.jobs,
        ccache=not (arguments.no_ccache or arguments.twice),
        pinned=arguments.found is None,
    )
    minutes = building.minutes(order)
    if arguments.dry_run:
        _plan(order, arguments, minutes)
        return 0
    print(
        f"{recipe.package} {recipe.version} for {', '.join(map(str, order.capabilities))}: about "
        f"{max(1, round(minutes))} minutes with {order.jobs} at once"
        + (" (less with what ccache has)" if order.ccache else ""),
        file=sys.stderr,
        flush=True,
    )
    pythons = (arguments.python,) if arguments.python else pythons[::-1]
    interpreter = choose_python(pythons, recipe.headers)
    with output.progress() as tell:
        archive = building.archive(recipe, arguments.sdist, tell)
        backend.ensure_python(*interpreter)  # the toolchain is gigabytes
        order = replace(order, toolchain=_toolchain(toolchain, arguments, tell))
    place = arguments.output
    if arguments.twice:
        place = paths.cache_directory() / "builds" / f"{recipe.package}-{order.version}.twice"
    with output.steps() as tell:
        built = building.compile_wheel(order, archive, interpreter, place, tell)
    again = None
    if arguments.twice:
        with output.steps() as tell:
            second = place / "again"
            again = building.compile_wheel(order, archive, interpreter, second, tell, copy=1)
        if again.sha256 != built.sha256:
            raise SurroundingsError(
                "two builds of the same gave different bytes, and none is published",
                f"{built.sha256}  {built.path}\n{again.sha256}  {again.path}",
                "please report it, with both files",
            )
        built = building.publish(built, arguments.output)
        shutil.rmtree(place)
    as_recorded = None
    if order.code == "sass" and order.pinned:
        wanted = provide.need(recipe, capabilities)
        provide.keep_built(wanted, built)  # for up
        if wanted.recorded is not None:
            as_recorded = wanted.recorded.sha256 == built.sha256
    _show(built, again, as_recorded, arguments, gpus)
    return 0


def _check(recipe: Recipe, arguments: argparse.Namespace) -> None:
    if arguments.wheel is not None:
        raise UserError("--wheel is for packages that are patched", f"{recipe.package} is compiled")
    if arguments.version not in (None, recipe.version):
        raise UserError(
            f"there is no recipe for {recipe.package} {arguments.version}",
            f"there is one for {recipe.version}",
            "leave --version out",
        )
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UserError("--jobs is a number of compilers, at least 1", f"{arguments.jobs} is not")
    if recipe.local and (arguments.ptx or arguments.replay):
        raise UserError(
            f"{recipe.package} has no device code", "--ptx and --replay say which device code"
        )
    if arguments.ptx and arguments.replay:
        raise UserError("--ptx and --replay exclude one another", "--replay is PTX without SASS")
    if arguments.compiler is not None and arguments.found is None:
        raise UserError("--compiler is for --found", "the pinned toolchain brings its own gcc")


def _toolchain(toolchain: Any, arguments: argparse.Namespace, tell: Any) -> Path:
    from legacy_cuda.toolchain import found, make

    if arguments.found is None:
        return make.make(toolchain, tell)[0]
    toolkit = found.find_toolkit(toolchain, Path(arguments.found) if arguments.found else None)
    compiler = found.find_compiler(toolchain, arguments.compiler)
    return found.make(toolchain, toolkit, compiler)[0]


def _plan(order: Order, arguments: argparse.Namespace, minutes: float) -> None:
    """What a build takes."""
    from legacy_cuda.build import source
    from legacy_cuda.catalog.toolchains import find_toolchain
    from legacy_cuda.toolchain import folder, make

    recipe, way = order.recipe, order.way
    changes = source.changes(recipe)
    if arguments.json:
        output.document(
            "build-plan",
            {
                "package": recipe.package,
                "version": order.version,
                "toolchain": way.toolchain,
                "capabilities": [str(item) for item in order.capabilities],
                "sdist": {"file": recipe.sdist.name, "sha256": recipe.sdist.sha256},
                "jobs": order.jobs,
                "minutes": round(minutes, 1),
                "memory": way.memory * order.jobs,
                "disk": recipe.disk,
                "changes": [name for name, _ in changes.rows()],
            },
        )
        return
    print(output.paint(f"{recipe.package} {order.version}", "bold") + f": {recipe.summary}")
    print(f"  sources    {recipe.sdist.name}, {sizes.readable(recipe.sdist.size)}")
    pinned = f"pinned (legacy-cuda toolchain {way.toolchain})"
    print(f"  compiler   CUDA {way.toolchain}, {pinned if order.pinned else 'of this machine'}")
    print(
        f"  takes      about {max(1, round(minutes))} minutes with {order.jobs} at once, "
        f"{sizes.readable(way.memory * order.jobs)} of memory, "
        f"{sizes.readable(recipe.disk)} on disk"
    )
    if order.pinned:
        toolchain = find_toolchain(way.toolchain)
        there = (make.place(toolchain) / folder.MANIFEST).is_file()
        size = sizes.readable(toolchain.download)
        print(f"  toolchain  {'is there already' if there else f'{size} to download first'}")
    if arguments.twice:
        print("  twice      and so twice the time")
    names = [patch.name.removesuffix(".patch") for patch in changes.patches]
    print(output.wrapped("  patched", f"{', '.join(names)} (why: in each file)", 13))


def _refuse(recipe: Recipe, arguments: argparse.Namespace, gpus: list[Gpu]) -> int:
    able = set(recipe.capabilities)
    absent = sorted({gpu.capability for gpu in gpus} - able)
    if absent:
        because = (
            f"{recipe.package} is compiled for {', '.join(map(str, recipe.capabilities))}, not for "
            + ", ".join(map(str, absent))
        )
        rest = dict.fromkeys(gpu.name for gpu in gpus if gpu.capability in able)
        others = [gpu for gpu in gpus if gpu.capability not in able]
        instead = [f"leave it out: --for {','.join(rest)}"] if rest else []
        if any(gpu.legacy for gpu in others):
            name = next(gpu.name for gpu in others if gpu.legacy)
            instead.append(f"see what there is: legacy-cuda resolve {name}")
        if not all(gpu.legacy for gpu in others):
            instead.append("GPUs newer than Volta are served by stock builds")
    else:
        because = "no one toolkit compiles for all of these GPUs"
        instead = ["build one wheel for each"]
    if arguments.json:
        output.document(
            "build",
            {
                "package": recipe.package,
                "gpus": [gpu.name for gpu in gpus],
                "built": False,
                "because": because,
                "instead": instead,
            },
        )
        return 1
    print(output.paint("refused", "red", "bold") + " [no-recipe]")
    print(output.wrapped("  because", because, 12))
    for line in instead:
        print(output.wrapped("  instead", line, 12))
    return 1


def _show(
    built: Compiled,
    again: Compiled | None,
    as_recorded: bool | None,
    arguments: argparse.Namespace,
    gpus: list[Gpu],
) -> None:
    order: Order = built.order
    recipe = order.recipe
    path = built.path
    install = f"pip install {shlex.quote(str(path) if path.is_absolute() else f'./{path}')}"
    libraries = [
        {
            "capability": str(verdict.capability),
            "path": library.path,
            "containers": library.containers,
            "sass": library.sass,
            "jit": library.jit,
        }
        for verdict in built.verdicts
        for library in verdict.libraries
    ]
    if arguments.json:
        output.document(
            "build",
            {
                "package": recipe.package,
                "version": order.version,
                "gpus": [gpu.name for gpu in gpus],
                "capabilities": [str(item) for item in order.capabilities],
                "built": True,
                "file": path.name,
                "path": str(path.absolute()),
                "sha256": built.sha256,
                "size": built.size,
                "toolchain": order.way.toolchain,
                "requires": list(built.requires),
                "audit": libraries,
                "seconds": round(built.seconds, 1),
                "processor_seconds": round(built.processor_seconds, 1),
                "peak_memory": built.peak,
                "jobs": order.jobs,
                "ccache": order.ccache is not None,
                "resumed": built.resumed,
                "as_recorded": as_recorded,
                "again": again and {"sha256": again.sha256, "seconds": round(again.seconds, 1)},
                "provenance": str(built.provenance.absolute()),
                "install": install,
            },
        )
        return
    title = output.paint(f"{recipe.package} {order.version}", "bold")
    resumed = ", gone on with" if built.resumed else ""
    print(
        f"{title}, compiled in {built.seconds / 60:.1f} minutes{resumed}: "
        f"{sizes.readable(built.size)}"
    )
    print(f"  file       {output.short(path)}")
    print(f"  sha256     {built.sha256}")
    if again is not None:
        print(f"  again      {again.sha256}  (equal; {again.seconds / 60:.1f} minutes)")
    if as_recorded is not None:
        known = "as recorded" if as_recorded else "NOT as recorded: please report it"
        print(f"  bytes      {output.paint(known, 'green' if as_recorded else 'red')}")
    for row in libraries:
        kind = "PTX" if order.code == "ptx" else "SASS"
        print(
            f"  audited    {row['path']}: {row['containers']} of {row['containers']} containers "
            f"have {kind} for {row['capability']}"
        )
    if not libraries:
        print("  audited    no device code in it")
    for item in built.requires:
        print(f"  needs      {item}")
    print(f"  provenance {output.short(built.provenance)}")
    print(f"  install    {install}")
