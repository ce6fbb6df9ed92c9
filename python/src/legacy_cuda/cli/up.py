"""``legacy-cuda up``: a stack as an environment on disk, proven."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from legacy_cuda import sizes
from legacy_cuda.cli import output
from legacy_cuda.cli import resolve as resolve_command
from legacy_cuda.resolve import Refusal


def add(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "up",
        help="make the environment for these GPUs and prove it",
        description="Make the environment for these GPUs from its lock: every wheel by sha256, "
        "every library audited, the engine imported. Run it again at any time: it goes on where it "
        "stopped, and does nothing where nothing is to be done. An environment of another stack, "
        "lock or Python is replaced with --recreate only. What has to be compiled for the GPUs "
        "comes from an index of built wheels, or is compiled here.",
        epilog="examples:\n"
        "  legacy-cuda up p40\n"
        "  legacy-cuda up k80 --python 3.10 --path ~/envs/k80\n"
        "  legacy-cuda up p4000 gtx1060-6gb --json\n"
        "  legacy-cuda up p40 --engine llama-cpp\n"
        "  legacy-cuda up p40 --engine llama-cpp --index ~/wheels\n"
        "  legacy-cuda up p40 --engine vllm\n\n"
        "mirrors, proxies and credentials are set up as for uv (UV_DEFAULT_INDEX, ...)",
        formatter_class=output.HelpFormatter,
    )
    resolve_command.add_selection(parser)
    parser.add_argument("--python", help="which Python, for example 3.11 (default: what fits)")
    parser.add_argument("--path", type=Path, help="where to (default: below the user's data)")
    parser.add_argument(
        "--index",
        metavar="DIR|URL",
        default=os.environ.get("LEGACY_CUDA_INDEX") or None,
        help="what legacy-cuda index has made of built wheels (default: LEGACY_CUDA_INDEX)",
    )
    parser.add_argument("--offline", action="store_true", help="from the caches alone")
    parser.add_argument("--recreate", action="store_true", help="make it anew even if it is there")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make or check the environment; 1 for a refusal or a negative verdict."""
    answer = resolve_command.select(arguments)
    if isinstance(answer, Refusal):
        if arguments.json:
            output.document("resolve", resolve_command.document(answer))
        else:
            resolve_command.show(answer)
        return 1
    from legacy_cuda import environment

    plan = environment.plan(answer, arguments.python, arguments.path)
    with environment.exclusive(plan.target):
        environment.clear_leftovers(plan.target)
        before = environment.read_manifest(plan.target, arguments.recreate)
        if before is not None and arguments.python is None:
            earlier = before["python"]
            if earlier != plan.python and earlier in plan.lock.pythons:
                plan = environment.plan(answer, earlier, arguments.path)
        if before is not None:
            environment.keep(before, plan)
            why = environment.stale(before, plan)
            if not why:
                return _report(before, plan, arguments.json, "unchanged since it was made")
            print(f"{why}: looking at it again", file=sys.stderr)
            with output.progress() as update:
                manifest = environment.refresh(before, plan, update)
            return _report(manifest, plan, arguments.json, "examined again")
        found = _find(plan, arguments)
        _announce(plan, found, arguments)
        if None in found:  # before hours of compiling; it is looked at again before uv's work
            environment.check_space(plan)
        compiled = _build(plan, found, arguments.offline)
        with output.progress() as update:
            manifest = environment.make(
                plan, arguments.offline, update, arguments.recreate, compiled
            )
        return _report(manifest, plan, arguments.json, "made")


def _find(plan: Any, arguments: argparse.Namespace) -> list[Any]:
    """For each package that is compiled for these GPUs its wheel, or None: it has to be built."""
    from legacy_cuda.build import provide

    found = []
    for need in plan.compiled:
        with output.progress() as update:

            def tell(done: int, total: int, update: Any = update) -> None:
                update("fetching", done, total)

            found.append(provide.find(need, arguments.index, arguments.offline, tell))
    return found


def _build(plan: Any, found: list[Any], offline: bool) -> list[Any]:
    """Build what was not found."""
    from legacy_cuda.build import provide

    wheels = []
    for need, there in zip(plan.compiled, found, strict=True):
        wheel = there
        if wheel is None:
            print(f"compiling {need.recipe.package} {need.version}", file=sys.stderr, flush=True)
            with output.steps() as tell:
                wheel = provide.build(need, offline, _interpreter(need, plan), tell)
        if wheel.as_recorded is False:
            print(
                f"warning: {wheel.path.name} is not what the catalog records: sha256 "
                f"{wheel.sha256}, expected {need.recorded.sha256}; please report it",
                file=sys.stderr,
            )
        wheels.append(wheel)
    return wheels


def _interpreter(need: Any, plan: Any) -> tuple[str, str]:
    """The Python that a package is built with: the environment's, if its back end is locked for
    it, else another; the wheel is for all of them."""
    from legacy_cuda.catalog.locks import load_lock
    from legacy_cuda.environment import choose_python, has_headers

    pythons, headers = load_lock(need.recipe.lock).pythons, need.recipe.headers
    if plan.python in pythons and (not headers or has_headers(plan.interpreter)):
        return plan.python, plan.interpreter
    return choose_python(pythons[::-1], headers)


def _announce(plan: Any, found: list[Any], arguments: argparse.Namespace) -> None:
    """Say what it will cost before it does: on standard error, also where nobody watches."""
    from legacy_cuda.build import provide
    from legacy_cuda.catalog.toolchains import find_toolchain

    facts = plan.stack.facts
    patched = "".join(
        f"  patched  {item.facts.package} {item.facts.installed}: {len(item.patches)} patches\n"
        for item in plan.patched
    )
    toolchains = set()
    for need, there in zip(plan.compiled, found, strict=True):
        how = "built already"
        if there is None:
            looked = provide.is_looked_in(arguments.index, arguments.offline)
            how = "not in the index; " if looked else ""
            how += f"to be compiled here, about {provide.minutes(need)} minutes"
            toolchains.add(need.way.toolchain)
        patched += f"  compiled {need.recipe.package} {need.version}: {how}\n"
    for name in sorted(toolchains):
        size = sizes.readable(find_toolchain(name).download)
        patched += f"  with     the toolchain {name}: {size} to download, unless it is there\n"
    print(
        f"{plan.stack.name}: {facts.title}, {len(plan.lock.packages)} packages for "
        f"Python {plan.python}\n{patched}"
        f"  download {sizes.readable(plan.download)} (less what is cached), "
        f"on disk {sizes.readable(plan.unpacked)}, to {output.short(plan.target)}",
        file=sys.stderr,
        flush=True,
    )


def _report(manifest: dict[str, Any], plan: Any, as_json: bool, state: str) -> int:
    from legacy_cuda.environment import MANIFEST, REPORT, build_settings

    bad = [item for item in manifest["audit"] if item["outcome"] == "does-not-run"]
    check, flags = manifest["check"], manifest["arch_flags"]
    engine = plan.stack.engine.title
    failed_run = (
        manifest["gpu_run"].startswith("failed on ") or "; failed on " in manifest["gpu_run"]
    )
    good = not bad and flags["agree"] is not False and "error" not in check and not failed_run
    altered = manifest["altered"]
    good = good and not altered
    if as_json:
        document = {key: value for key, value in manifest.items() if key != "schema"}
        output.document("up", {**document, "state": state, "good": good})
        return 0 if good else 1
    print(f"{output.paint(manifest['name'], 'bold')}: {manifest['stack']} stack, {state}")
    for item in manifest["audit"]:
        style = "red" if item["outcome"] == "does-not-run" else "green"
        label = f"  audited    {item['capability']}"
        print(output.wrapped(label, output.paint(item["summary"], style), 20))
    if altered:
        text = f"no longer as installed: {', '.join(altered[:3])}"
        text += f" and {len(altered) - 3} more" if len(altered) > 3 else ""
        text += "; --recreate makes it anew"
        print(output.wrapped("  altered", output.paint(text, "red"), 13))
    if patched := manifest["patched"]:
        whole = [item for item in patched if not _altered(item, altered)]
        names = (
            ", ".join(f"{item['package']} {item['version']}" for item in whole) or "none any more"
        )
        print(output.wrapped("  patched", f"{names}  (why: {REPORT})", 13))
    for item in manifest["compiled"]:
        text = f"{item['package']} {item['version']}  "
        if _altered(item, altered):
            text += "(no longer there)"
        else:
            text += f"({_ORIGINS[item['origin']]}; {_RECORDED[item['as_recorded']]})"
        print(output.wrapped("  compiled", text, 13))
    if "error" in check:
        text = f"{engine} is not usable: {check['error']}"
        print(output.wrapped("  check", output.paint(text, "red"), 13))
    else:
        print(output.wrapped("  check", _checked(engine, check, flags), 13))
    run_style = (
        "dim" if manifest["gpu_run"].startswith("not run") else "red" if failed_run else "green"
    )
    why = f": {check['gpu_library']}" if "gpu_library" in check else ""
    text = output.paint(manifest["gpu_run"] + why, run_style)
    print(output.wrapped("  on a GPU", text, 13))
    driver = manifest["driver"]
    print(
        f"  driver     branch {driver['branch']} (newest known {driver['latest']}), "
        f"{driver['module']} kernel module"
    )
    names = ", ".join(name for name, _, _ in build_settings(plan.stack))
    print(
        output.wrapped("  activate", f". {output.short(plan.target)}/activate  (sets {names})", 13)
    )
    print(f"  report     {output.short(plan.target)}/{REPORT}, {MANIFEST}")
    return 0 if good else 1


def _checked(engine: str, check: dict[str, Any], flags: dict[str, Any]) -> str:
    """What the engine said when it was imported, in words."""
    cuda = f" (CUDA {check['cuda']})" if "cuda" in check else ""
    if "torch" in check:  # of an engine on PyTorch it is PyTorch that says what it was built for
        text = f"{engine} {check['version']} is importable"
        who = f", with torch {check['torch']}{cuda}, which"
    else:
        text, who = f"{engine} {check['version']}{cuda} is importable", " and"
    if flags["agree"] is None:
        return text
    agree = "as audited" if flags["agree"] else "NOT as audited"
    return f"{text}{who} says it was built for {' '.join(flags['said'])}: {agree}"


_ORIGINS = {"built": "compiled here", "index": "from an index"}
_RECORDED = {
    True: "the recorded bytes",
    False: "NOT the recorded bytes",
    None: "its bytes are not recorded",
}


def _altered(item: dict[str, Any], altered: list[str]) -> bool:
    """Whether a patched package is no longer the one that was installed."""
    return any(name.startswith(f"{item['package']} ") for name in altered)
