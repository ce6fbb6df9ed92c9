"""``legacy-cuda build``: a wheel for old GPUs: a published one patched, or compiled from source."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from legacy_cuda import catalog, sizes
from legacy_cuda.capability import Capability
from legacy_cuda.catalog import CatalogError, Gpu
from legacy_cuda.cli import build_compiled, output
from legacy_cuda.cli import resolve as resolve_command
from legacy_cuda.errors import UserError
from legacy_cuda.resolve import USUAL_ENGINE, Refusal, resolve

if TYPE_CHECKING:
    from legacy_cuda.build.make import Built
    from legacy_cuda.catalog.patched import PatchedPackage


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "build",
        help="make a wheel for these GPUs: patched, or compiled",
        description="Make a wheel that runs on these GPUs, the same bytes on every machine. "
        "triton and torch: the published wheel, by its sha256, with our patches applied to its "
        "Python files under a local version (legacy-cuda up does that by itself). "
        "llama-cpp-python, llama-cpp-tools and vllm: compiled from the published sources with a "
        "pinned compiler for just these GPUs, audited, with a bill of materials and its "
        "provenance. What a compilation that was broken off has done is kept.",
        epilog="examples:\n"
        "  legacy-cuda build triton --for p40\n"
        "  legacy-cuda build torch --for p40,m40 --python 3.12 --output ~/wheels\n"
        "  legacy-cuda build triton --for p40 --version 3.6.0 --json\n"
        "  legacy-cuda build torch --for p40 --wheel torch-2.7.1-cp312-cp312-PLATFORM.whl\n"
        "  legacy-cuda build llama-cpp-python --for k80 --dry-run\n"
        "  legacy-cuda build llama-cpp-python --for p40,p100 --output ~/wheels\n\n"
        "install what it made:  pip install ./FILE.whl",
        formatter_class=output.HelpFormatter,
    )
    parser.add_argument(
        "package",
        help="triton, torch, llama-cpp-python, llama-cpp-tools or vllm",
        metavar="PACKAGE",
    )
    parser.add_argument(
        "--for",
        dest="gpus",
        metavar="GPU[,GPU]",
        action="append",
        required=True,
        help="name, alias, product name or PCI id",
    )
    parser.add_argument("--version", help="which version (default: that of the GPUs' stack)")
    parser.add_argument("--python", help="for which Python, for example 3.11 (default: what fits)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", default=Path(), help="where to (default: here)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    patching = parser.add_argument_group("patched packages")
    patching.add_argument(
        "--wheel", type=Path, metavar="FILE", help="the published wheel, if you have it already"
    )
    build_compiled.add_options(parser.add_argument_group("compiled packages"))
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Nothing:
    """There is nothing to patch: why, and what is nearest."""

    because: str
    instead: tuple[str, ...]


def choose(
    package: str, gpus: list[Gpu], version: str | None
) -> PatchedPackage | Refusal | Nothing:
    """Which patched package these GPUs want.

    Raises:
        UserError: no version of the package is patched, or not the one that is asked for.
    """
    from legacy_cuda.catalog.locks import load_lock
    from legacy_cuda.catalog.patched import find_patched, patched
    from legacy_cuda.catalog.recipes import recipes

    rows = [row for row in patched() if row.package == package]
    if not rows:
        raise UserError(
            f"there is neither a recipe nor a patch for {package!r}",
            "patched are " + ", ".join(f"{row.package} {row.version}" for row in patched()) + "; "
            "compiled are " + ", ".join(f"{row.package} {row.version}" for row in recipes()),
            "name one of these",
        )
    wanted = sorted({gpu.capability for gpu in gpus})
    reason = f"nothing to patch in {package}"
    if version is None:
        answer = resolve(gpus, catalog.find_engine(USUAL_ENGINE))
        if isinstance(answer, Refusal):
            return answer
        lock = load_lock(answer.facts.lock)
        version = next((item.version for item in lock.packages if item.name == package), "")
        if version not in [row.version for row in rows]:
            return Nothing(
                f"the {answer.facts.name} stack has {package} {version}, which is not patched"
                if version
                else f"the {answer.facts.name} stack has no {package}",
                _nearest(rows, wanted, version),
            )
        reason = f"nothing to patch in the {package} {version} of the {answer.facts.name} stack"
    try:
        facts = find_patched(package, version)
    except CatalogError as error:
        raise UserError(
            f"there are no patches for {package} {version}",
            f"patched are {', '.join(error.near)}",
            "name one of these with --version",
        ) from error
    absent = [capability for capability in wanted if capability not in facts.capabilities]
    if absent:
        names = ", ".join(str(capability) for capability in absent)
        served = ", ".join(str(capability) for capability in facts.capabilities)
        return Nothing(
            f"{reason} for {names}: the patches are for {served}", _nearest(rows, wanted, version)
        )
    return facts


def _nearest(
    rows: list[PatchedPackage], wanted: list[Capability], version: str | None
) -> tuple[str, ...]:
    """What else there is: a version patched for all of these, or some; the wheel as published."""
    newest = rows[::-1]
    for row in newest:
        if set(wanted) <= set(row.capabilities):
            return (f"{row.package} {row.version} is patched for them: --version {row.version}",)
    found = []
    for capability in wanted:
        served = [row.version for row in newest if capability in row.capabilities]
        if served and len(wanted) > 1:
            found.append(f"for {capability} alone: --version {served[0]}")
    if version:
        found.append(f"the wheel as published: pip install {rows[0].package}=={version}")
    return tuple(found)


def run(arguments: argparse.Namespace) -> int:
    """Build and print; 1 where there is nothing to build for these GPUs."""
    from packaging.utils import canonicalize_name

    gpus = output.read_gpus(arguments.gpus)
    package = canonicalize_name(arguments.package.strip())
    if recipe := build_compiled.recipe_for(package):
        return build_compiled.run(recipe, arguments, gpus)
    build_compiled.refuse_options(package, arguments)
    answer = choose(package, gpus, arguments.version)
    if isinstance(answer, Refusal):
        if arguments.json:
            output.document("resolve", resolve_command.document(answer))
        else:
            resolve_command.show(answer)
        return 1
    if isinstance(answer, Nothing):
        return _refuse(answer, arguments, gpus)
    from legacy_cuda.build import make

    series = make.load_series(answer)
    if not series.patches:
        none = Nothing(f"there is no patch for {answer.package} {answer.version} yet", ())
        return _refuse(none, arguments, gpus)
    python = arguments.python and ".".join(arguments.python.split(".")[:2])
    if python is not None and python not in answer.pythons:
        raise UserError(
            f"there is no {answer.package} {answer.version} for Python {arguments.python}",
            f"there are wheels for {', '.join(answer.pythons)}",
            f"leave --python out, or take --python {answer.pythons[-1]}",
        )
    with output.progress() as update:
        if arguments.wheel is not None:
            source = make.given_wheel(answer, arguments.wheel, python)
            wheel = arguments.wheel
        else:
            source = answer.wheel(python or _default_python(answer.pythons))
            print(
                f"{source.file}: {sizes.readable(source.size)} to download unless it is cached",
                file=sys.stderr,
                flush=True,
            )
            wheel = make.source_wheel(answer, source, False, update)
        built = make.build(series, source, wheel, arguments.output, update)
    _show(built, arguments, gpus)
    return 0


def _default_python(pythons: tuple[str, ...]) -> str:
    """The Python that ``up`` would take."""
    from legacy_cuda.environment import choose_python

    return choose_python(pythons[::-1])[0]


def _refuse(nothing: Nothing, arguments: argparse.Namespace, gpus: list[Gpu]) -> int:
    if arguments.json:
        output.document(
            "build",
            {
                "package": arguments.package,
                "gpus": [gpu.name for gpu in gpus],
                "built": False,
                "because": nothing.because,
                "instead": list(nothing.instead),
            },
        )
        return 1
    print(output.paint("refused", "red", "bold") + " [nothing-to-patch]")
    print(output.wrapped("  because", nothing.because, 12))
    for text in nothing.instead:
        print(output.wrapped("  instead", text, 12))
    return 1


def _show(built: Built, arguments: argparse.Namespace, gpus: list[Gpu]) -> None:
    path = built.path
    target = str(path) if path.is_absolute() else f"./{path}"
    other = _other_version(built, gpus)
    install = f"pip install {'--no-deps ' if other else ''}{shlex.quote(target)}"
    wanted = {gpu.capability for gpu in gpus}
    if arguments.json:
        output.document(
            "build",
            {
                **built.document(),
                "gpus": [gpu.name for gpu in gpus],
                "built": True,
                "path": str(built.path.absolute()),
                "pythons": list(built.source.pythons),
                "state": "made" if built.fresh else "there already",
                "install": install,
            },
        )
        return
    facts = built.series.facts
    title = output.paint(f"{facts.package} {facts.installed}", "bold")
    state = "made" if built.fresh else "there already"
    print(
        f"{title}, {state}: {sizes.readable(built.size)} for Python "
        f"{', '.join(built.source.pythons)}"
    )
    print(f"  file       {output.short(path)}")
    checked = "as recorded" if built.checked else "not recorded: the patches are newer"
    print(f"  sha256     {built.sha256}  ({checked})")
    print(f"  made from  {built.source.file}")
    for patch in built.series.patches:
        mine = [str(item) for item in patch.capabilities if item in wanted]
        what = f"{patch.name.removesuffix('.patch')}: {patch.why}"
        note = f" [for {', '.join(mine)}]" if mine else " [not for these GPUs]"
        print(output.wrapped("  patched", what + note, 13))
    if built.series.modules:
        folders = ", ".join(copied.target for copied in facts.modules)
        print(f"  added      {len(built.series.modules)} modules in {folders}")
    print(f"  install    {install}")
    if other:
        print(output.wrapped("", f"in an environment of its own: {other}", 13))


def _other_version(built: Built, gpus: list[Gpu]) -> str:
    """Which version the GPUs' stack has, where it is not the one that was built."""
    from legacy_cuda.catalog.locks import load_lock

    facts = built.series.facts
    answer = resolve(gpus, catalog.find_engine(USUAL_ENGINE))
    if isinstance(answer, Refusal):
        return ""
    for item in load_lock(answer.facts.lock).packages:
        if item.name == facts.package and item.version != facts.version:
            return f"the {answer.facts.name} stack has {item.name} {item.version}"
    return ""
