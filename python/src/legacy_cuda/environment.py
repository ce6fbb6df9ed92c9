"""A stack as an environment on disk, made through uv: whole, or not there at all.

It is built in a hidden folder beside its final place and renamed there when everything in it has
been checked. A killed run leaves the old state; the next run clears away what it left and goes on
with what uv has in its cache.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import ctypes
import datetime
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from legacy_cuda import __version__, audit, paths, report, sizes
from legacy_cuda.build import make as patched_wheels
from legacy_cuda.build import provide
from legacy_cuda.build.make import Built
from legacy_cuda.build.provide import Need, Provided
from legacy_cuda.build.series import Series
from legacy_cuda.catalog.locks import Lock, load_lock
from legacy_cuda.catalog.patched import find_patched
from legacy_cuda.catalog.recipes import find_recipe
from legacy_cuda.devicecode import DeviceCodeError, scan_tree
from legacy_cuda.devicecode.scan import walk
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.fetch import NO_PROJECT, uv_binary, uv_variables
from legacy_cuda.resolve import Stack
from legacy_cuda.targets import owners, read_torch_cuda

MANIFEST = "legacy-cuda.json"
REPORT = "report.html"
ACTIVATE = "activate"
SCHEMA = "legacy-cuda/environment/2"
_SPARE = 1.03  # of the unpacked size: directories, bytecode, the manifest
_SMALL = 1 << 20  # bytes: up to it a file is read again whenever an environment is made

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""

_CHECKS = {
    "torch": Path(__file__).with_name("torch_check.py"),
    "llama-cpp": Path(__file__).with_name("llama_check.py"),
    "vllm": Path(__file__).with_name("vllm_check.py"),
}
"""For each engine the program that its environment's Python runs, and that prints JSON."""

_ENGINE_LIBRARIES = ("torch/lib/libtorch_cuda.so", "llama_cpp/lib/libggml-cuda.so")

# The parent's death kills uv and Python too, so that neither goes on alone (prctl(2)).
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_AT_FDCWD = -100  # fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h

_CHECK_LIMIT = 600.0  # seconds for importing the engine and a small matrix on every GPU


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``up`` is going to do. Sizes in bytes; ``python`` a version, ``interpreter`` what to
    give to uv: a path, or a version that uv is to download; ``patched`` the series of the packages
    that are not installed as published, ``compiled`` those that are compiled for the GPUs."""

    stack: Stack
    lock: Lock
    python: str
    interpreter: str
    target: Path
    download: int
    unpacked: int
    patched: tuple[Series, ...] = ()
    compiled: tuple[Need, ...] = ()

    @property
    def versions(self) -> dict[str, str]:
        """The version of every package as it is installed."""
        published = {package.name: package.version for package in self.lock.packages}
        patched = {item.facts.package: item.facts.installed for item in self.patched}
        return {
            **published,
            **patched,
            **{item.recipe.package: item.version for item in self.compiled},
        }


def plan(stack: Stack, python: str | None = None, target: Path | None = None) -> Plan:
    """Choose Python and place.

    The Python is the one asked for, else the one that runs this if the lock has wheels for it,
    else the first of the stack's that uv finds on the machine, else one that uv will download.

    Raises:
        UserError: the lock has no wheels for the Python asked for, or the machine is none for
            which there are wheels.
        SurroundingsError: this installation's patches cannot be read.
    """
    lock = load_lock(stack.facts.lock)
    if python is not None:
        version = ".".join(python.split(".")[:2])
        if version not in lock.pythons:
            raise UserError(
                f"the {stack.facts.name} stack has no wheels for Python {python}",
                f"{lock.name} serves {', '.join(lock.pythons)}",
                f"leave --python out, or take --python {stack.facts.pythons[0]}",
            )
        interpreter = _find_python(version) or version
    else:
        version, interpreter = choose_python(stack.facts.pythons)
    place = target if target is not None else paths.environments_directory() / stack.name
    capabilities = {gpu.capability for gpu in stack.gpus}
    compiled = tuple(provide.need(find_recipe(name), capabilities) for name in stack.facts.compiled)
    _check_machine(lock, compiled)
    return Plan(
        stack=stack,
        lock=lock,
        python=version,
        interpreter=interpreter,
        target=Path(os.path.realpath(place)),
        download=lock.download_bytes(version),
        unpacked=lock.unpacked_bytes(version) + sum(item.unpacked for item in compiled),
        patched=tuple(
            patched_wheels.load_series(find_patched(name, lock.package(name).version))
            for name in stack.facts.patched
        ),
        compiled=compiled,
    )


def _check_machine(lock: Lock, compiled: Sequence[Need] = ()) -> None:
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        raise UserError(
            f"there are no wheels for {machine}", "the stacks are made of Linux x86_64 wheels"
        )
    name, version = platform.libc_ver()
    floors = [item.glibc_min for item in compiled]
    least = max([lock.glibc_min, *(floor for floor in floors if floor is not None)])
    needed = ".".join(str(part) for part in least)
    if name != "glibc":
        raise UserError(
            f"there are no wheels of {lock.name} for this system: it has no glibc",
            f"its wheels need glibc {needed} or newer",
            "use a distribution with glibc, or a container of one",
        )
    if tuple(int(part) for part in version.split(".")) < least:
        raise UserError(
            f"this system's glibc {version} is too old for {lock.name}",
            f"its wheels need glibc {needed} or newer",
            "use a newer distribution, or a container of one",
        )


def choose_python(pythons: tuple[str, ...], headers: bool = False) -> tuple[str, str]:
    """A version of these and what to give to uv for it: the Python that runs this, else the first
    that is on the machine (``headers``: and has them); else the first, which uv then downloads."""
    for version, path in _pythons(pythons):
        if not headers or has_headers(path):
            return version, path
    return pythons[0], pythons[0]


def has_headers(interpreter: str) -> bool:
    """Whether C can be compiled against a Python, by its path; by a version, uv downloads it, with
    all that belongs to it."""
    if os.sep not in interpreter:
        return True
    code = "import os, sys, sysconfig\n"
    code += "sys.exit(not os.path.isfile(os.path.join(sysconfig.get_path('include'), 'Python.h')))"
    try:
        done = subprocess.run([interpreter, "-I", "-c", code], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _pythons(versions: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running in versions:
        yield running, str(getattr(sys, "_base_executable", sys.executable))
    for version in versions:
        found = _find_python(version)
        if found is not None:
            yield version, found


def _find_python(version: str) -> str | None:
    command = [uv_binary(), "python", "find", "--no-config", "--no-project"]
    command += ["--no-python-downloads", "--system", version]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def read_manifest(target: Path, recreate: bool = False) -> dict[str, Any] | None:
    """The manifest of the environment at that place; None where there is no environment.

    Where it is to be made anew, None too for an environment of ours, of whichever version.

    Raises:
        UserError: there is something else.
    """
    if not target.exists() and not target.is_symlink():
        return None
    try:
        data: dict[str, Any] = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        schema = str(data["schema"])
        if not schema.startswith(SCHEMA.rpartition("/")[0]):
            raise ValueError(f"its schema is {schema!r}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        if target.is_dir() and not any(target.iterdir()):
            return None
        raise UserError(
            f"{target} exists and was not made by legacy-cuda",
            f"{MANIFEST} in it cannot be read: {error}",
            "choose another place with --path, or move it away",
        ) from error
    if recreate:
        return None
    if schema != SCHEMA:
        raise UserError(
            f"{target} was made by another version of legacy-cuda",
            f"its schema is {schema!r}",
            "make it anew with --recreate",
        )
    return data


def fingerprint(target: Path) -> str:
    """sha256 over the paths, sizes and times of all files but bytecode and the manifest."""
    digest = hashlib.sha256()
    for path, size in walk(target):
        name = path.relative_to(target).as_posix()
        if name.endswith(".pyc") or name == MANIFEST:
            continue
        status = path.stat(follow_symlinks=False)
        digest.update(f"{name}\0{size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def altered(site: Path, versions: Mapping[str, str]) -> list[str]:
    """Files of these packages that are not what their wheels' RECORDs say, and packages that are
    not there in that version, with what is there. Every file is read. Paths count from
    site-packages."""
    return sorted(name for _, name in _altered(site, versions))


def _altered(
    site: Path, versions: Mapping[str, str], largest: int | None = None
) -> list[tuple[str, str]]:
    """The same with the package of each; files of more than ``largest`` bytes are not read."""
    wrong: list[tuple[str, str]] = []
    todo: list[tuple[str, str, str]] = []
    installed = {}
    for folder in site.glob("*.dist-info"):
        name, _, version = folder.name.removesuffix(".dist-info").rpartition("-")
        installed[re.sub(r"[-_.]+", "-", name).lower()] = (version, folder / "RECORD")
    for package, expected in versions.items():
        version, record = installed.get(package, ("", site))
        if version != expected or not record.is_file():
            there = f"it is {version}" if version != expected and version else "it is missing"
            wrong.append((package, f"{package} {expected} ({there})"))
            continue
        with record.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 3]
        todo += [
            (package, name, digest)
            for name, digest, size in rows
            if digest.startswith("sha256=") and (largest is None or int(size or 0) <= largest)
        ]

    def good(name: str, expected: str) -> bool:
        digest = hashlib.sha256()
        try:
            with (site / name).open("rb", buffering=0) as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
        except OSError:
            return False
        found = base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")
        return f"sha256={found}" == expected

    def check(items: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
        return [(package, name) for package, name, digest in items if not good(name, digest)]

    if largest is not None:  # many files of a few kilobytes: threads would only wait for another
        return wrong + check(todo)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for found in pool.map(check, ([item] for item in todo)):
            wrong += found
    return wrong


def differences(manifest: dict[str, Any], plan: Plan) -> list[str]:
    """Why the environment that is there cannot become what the plan would make without being made
    anew: another stack, lock or Python, or a Python that is gone. One line each."""
    found = []
    facts = plan.stack.facts
    if manifest["stack"] != facts.name:
        gpus = ", ".join(dict.fromkeys(manifest["gpus"]))
        found.append(
            f"it holds the {manifest['stack']} stack (for {gpus}), not the {facts.name} stack"
        )
    if manifest["lock"]["name"] != plan.lock.name:
        found.append(f"it was made from the lock {manifest['lock']['name']}, not {plan.lock.name}")
    elif manifest["lock"]["digest"] != plan.lock.digest:
        found.append(f"the lock {plan.lock.name} has changed since it was made")
    else:
        found += _patched_differently(manifest, plan)
        found += _compiled_differently(manifest, plan)
    if manifest["python"] != plan.python:
        found.append(f"it has Python {manifest['python']}, not {plan.python}")
    python = plan.target / "bin" / "python"
    if not python.exists():
        where = f"{python} leads to {python.readlink()}" if python.is_symlink() else str(python)
        found.append(f"its Python is gone: {where}, which is not there")
    return found


def _patched_differently(manifest: dict[str, Any], plan: Plan) -> list[str]:
    """How the patches in an environment differ from those the plan would apply."""
    was = {item["package"]: item for item in manifest["patched"]}
    wanted = {item.facts.package: item for item in plan.patched}
    found = []
    for package in dict.fromkeys([*was, *wanted]):
        if package not in wanted:
            found.append(f"its {package} {was[package]['version']} is patched, and is not now")
        elif package not in was:
            found.append(f"its {package} is as published, and is patched now")
        elif was[package]["series"] != wanted[package].digest:
            found.append(f"the patches of its {package} {was[package]['version']} have changed")
    return found


def _compiled_differently(manifest: dict[str, Any], plan: Plan) -> list[str]:
    """How what is compiled in an environment differs from what the plan would put in."""
    was = {item["package"]: item for item in manifest["compiled"]}
    wanted = {item.recipe.package: item for item in plan.compiled}
    found = []
    for package in dict.fromkeys([*was, *wanted]):
        if package not in wanted:
            found.append(f"its {package} {was[package]['version']} does not belong to the stack")
        elif package not in was:
            found.append(f"it has no {package}")
        elif was[package]["version"] != wanted[package].version:
            now = wanted[package].version
            found.append(f"its {package} is {was[package]['version']}, not {now}")
        elif was[package]["inputs"] != wanted[package].inputs:
            version = was[package]["version"]
            found.append(f"what its {package} {version} is compiled from has changed")
    return found


def keep(manifest: dict[str, Any], plan: Plan) -> None:
    """Refuse to replace an environment that nobody asked to have replaced.

    Raises:
        UserError: the environment that is there is another than the plan would make.
    """
    found = differences(manifest, plan)
    if found:
        raise UserError(
            f"the environment at {plan.target} does not fit: it would have to be made anew",
            "\n".join(found),
            "choose another place with --path, or make it anew with --recreate "
            "(packages you added to it are lost then)",
        )


def stale(manifest: dict[str, Any], plan: Plan) -> str:
    """Why the environment has to be looked at again, though its packages may stay; "" if not."""
    names = {gpu.name for gpu in plan.stack.gpus}
    if manifest["path"] != str(plan.target):
        return f"the environment was moved here from {manifest['path']}"
    if set(manifest["gpus"]) != names or manifest["engine"] != plan.stack.engine.name:
        before = f"{', '.join(dict.fromkeys(manifest['gpus']))} with {manifest['engine']}"
        return f"the environment was made for {before}, from the same lock"
    if manifest["tool"] != __version__:
        return f"the environment was examined by legacy-cuda {manifest['tool']}"
    if fingerprint(plan.target) != manifest["fingerprint"]:
        return "the environment has changed since it was made"
    return ""


@contextlib.contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold the lock on a place.

    Raises:
        UserError: the place is none that can be written to.
        SurroundingsError: another process holds the lock.
    """
    lock = _sibling(target, "lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"{target} cannot be made",
            str(error),
            "choose a folder you may write to with --path",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
            raise SurroundingsError(
                f"{target} is being made by another legacy-cuda",
                f"process {holder} holds {lock}",
                "wait for it, or end it",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def clear_leftovers(target: Path) -> None:
    """Remove what a killed run left beside a place. Call it with the lock held."""
    old = _sibling(target, "old")
    if old.exists() and not target.exists():
        old.rename(target)  # killed between the two renames of a replacement
    for leftover in (_sibling(target, "new"), old):
        if leftover.exists():
            shutil.rmtree(leftover, ignore_errors=True)


def _sibling(target: Path, kind: str) -> Path:
    return target.parent / f".{target.name}.legacy-cuda-{kind}"


def make(
    plan: Plan,
    offline: bool = False,
    progress: Progress | None = None,
    verify: bool = False,
    compiled: Sequence[Provided] = (),
) -> dict[str, Any]:
    """Make the environment, check everything in it, and put it in its place.

    ``compiled`` are the wheels of what the plan has compiled.
    Returns the manifest, which is the report as well. Call it with the lock held. uv compares
    sha256 when it downloads, not when it takes from its cache, whose files are those of
    environments made before (hard links), so that an edit in place reaches all of them. Files of
    at most 1 MiB, nearly all that can be edited, are therefore compared with their wheels' RECORDs
    here; larger ones, the libraries, only with ``verify``, which reads gigabytes again. A RECORD
    lies in the cache as well: this finds accidents, not somebody who alters both.

    Raises:
        SurroundingsError: the network, the disk or the index failed, or a file does not have its
            sha256. Nothing is left behind then, and what was there before still is.
    """
    started = time.monotonic()
    tell = progress or (lambda what, done, total: None)
    building = _sibling(plan.target, "new")
    try:
        clear_leftovers(plan.target)
        check_space(plan)
        _uv(
            ["venv", "--relocatable", "--python", plan.interpreter, str(building)],
            plan,
            offline,
            lambda done: None,
        )
        wheels = [
            patched_wheels.cached(
                series, series.facts.wheel(plan.python), offline, verify=verify, progress=tell
            )
            for series in plan.patched
        ]
        requirements = building / "requirements.txt"
        own: dict[str, Built | Provided] = {item.series.facts.package: item for item in wheels}
        own |= {item.need.recipe.package: item for item in compiled}
        instead = {name: _requirement(name, wheel) for name, wheel in own.items()}
        requirements.write_text(
            plan.lock.requirements(plan.python, instead=instead), encoding="utf-8"
        )
        _uv(
            [
                *("pip", "sync", "--require-hashes", "--only-binary", ":all:"),
                *("--python", str(building / "bin" / "python"), str(requirements)),
            ],
            plan,
            offline,
            lambda done: tell("installing", done, plan.unpacked),
        )
        wrong = _altered(_site_packages(building), plan.versions, None if verify else _SMALL)
        if wrong:
            raise _damaged_cache(wrong)
        manifest = _examine(plan, building, tell)
        manifest["patched"] = [wheel.document() for wheel in wheels]
        manifest["compiled"] = [item.document() for item in compiled]
        manifest["seconds"] = round(time.monotonic() - started, 2)
        _write_reports(building, manifest, plan.stack)
        _swap(building, plan.target)
    except OSError as error:
        raise SurroundingsError(
            f"{plan.target} could not be made", str(error), "free space or choose --path"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return manifest


def _requirement(package: str, wheel: Built | Provided) -> str:
    """The line that has uv install just this file."""
    return f"{package} @ {wheel.path.as_uri()} --hash=sha256:{wheel.sha256}"


def refresh(before: dict[str, Any], plan: Plan, progress: Progress | None = None) -> dict[str, Any]:
    """Examine an environment in its place again, after something in it has changed.

    ``before`` is its manifest, which says how its patched wheels were made.

    Raises:
        SurroundingsError: a file in it is corrupt or cannot be read.
    """
    started = time.monotonic()
    tell = progress or (lambda what, done, total: None)
    try:
        manifest = _examine(plan, plan.target, tell)
        manifest["patched"] = before["patched"]
        manifest["compiled"] = before["compiled"]
        manifest["altered"] = altered(_site_packages(plan.target), plan.versions)
        manifest["seconds"] = round(time.monotonic() - started, 2)
        _write_reports(plan.target, manifest, plan.stack)
    except OSError as error:
        raise SurroundingsError(f"{plan.target} cannot be read", str(error)) from error
    return manifest


def _swap(building: Path, target: Path) -> None:
    """Put what was built in its place; what was there is in ``building`` then, to be removed."""
    if not target.exists():
        building.rename(target)
    elif not _exchange(building, target):
        # A kill between the first two leaves "old" whole, and the next run puts it back.
        old = _sibling(target, "old")
        target.rename(old)
        building.rename(target)
        old.rename(building)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step (renameat2(2)); False where that cannot be."""
    try:
        names = os.fsencode(one), os.fsencode(other)
        done: int = _LIBC.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    except AttributeError:  # glibc has it from 2.28 on
        return False
    return done == 0


def check_space(plan: Plan) -> None:
    """Refuse early where the disk cannot hold it: uv's cache and the environment share the bytes
    when they are on one file system, else each needs all of them. What the cache holds already
    counts as if it were this stack's, so that no run is refused that could succeed. Patched wheels
    and what they are made from are kept in our own cache, which is filled first."""
    cache = _uv_cache()
    needed = int(plan.unpacked * _SPARE)
    own = plan.target.parent
    existing = _existing(cache)
    ours = _existing(paths.cache_directory())
    stored = sum(
        patched_wheels.to_store(series, series.facts.wheel(plan.python)) for series in plan.patched
    )

    def free(place: Path) -> int:
        same = place.stat().st_dev == ours.stat().st_dev
        return shutil.disk_usage(place).free - (stored if same else 0)

    if free(ours) < 0:
        raise SurroundingsError(
            f"not enough room for patched wheels on {ours}",
            f"needs {sizes.readable(stored)}, {sizes.readable(stored + free(ours))} are free",
            "free space, or set LEGACY_CUDA_CACHE to another folder",
        )
    shared = existing.stat().st_dev == own.stat().st_dev
    if min(free(place) for place in (own, existing)) >= needed:
        return
    held = _size(cache / "archive-v0", plan.unpacked // 2)
    fresh = held < plan.unpacked // 2
    places = []
    if not shared:
        places.append(("the environment", own, needed))
    if fresh:  # else the most of it is cached, and uv says so if the room is not enough
        what = "the environment" if shared else "uv's cache"
        places.append((what, own if shared else existing, needed - held))
    for what, place, size in places:
        if free(place) < size:
            raise SurroundingsError(
                f"not enough room for {what} on {place}",
                f"needs {sizes.readable(size)}, {sizes.readable(max(0, free(place)))} are free",
                "free space, choose another disk with --path, or set UV_CACHE_DIR",
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _uv_cache() -> Path:
    command = [uv_binary(), *NO_PROJECT, "cache", "dir"]
    done = subprocess.run(command, env=uv_variables(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SurroundingsError(
            "uv does not say where its cache is", done.stderr.strip(), "set UV_CACHE_DIR"
        )
    return Path.cwd() / done.stdout.strip()


def _size(folder: Path, enough: int) -> int:
    """Bytes of the files in a folder; counting stops when there are ``enough``."""
    total = 0
    for root, _, names in os.walk(folder):
        if total >= enough:
            break
        for name in names:
            with contextlib.suppress(OSError):  # another uv may remove it now
                total += Path(root, name).lstat().st_size
    return total


def _damaged_cache(wrong: list[tuple[str, str]]) -> SurroundingsError:
    packages = sorted({package for package, _ in wrong})
    clean = shlex.join([uv_binary(), "cache", "clean", *packages])
    return SurroundingsError(
        f"uv's cache is damaged: files of {_some(packages)} are not as they were published",
        f"{_some(sorted(name for _, name in wrong))}; a file that was edited in place in one "
        "environment is changed in the cache too, and in every environment linked to it",
        f"throw these packages out of the cache and run this again: {clean}",
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _die_with(parent: int) -> None:
    """Run in the child between fork and exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the signal was asked for
        os._exit(1)


def _uv(arguments: list[str], plan: Plan, offline: bool, progress: Callable[[int], None]) -> None:
    """Run uv; ``progress`` is told of the bytes it has written so far."""
    command = [uv_binary(), *NO_PROJECT, *arguments, "--no-progress"]
    if offline:
        command.append("--offline")
    process = subprocess.Popen(
        command,
        env=uv_variables(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(_die_with, os.getpid()),
    )
    assert process.stderr is not None
    try:
        while True:
            try:
                _, stderr = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                progress(_bytes_written(process.pid))
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        raise _explain(stderr.strip(), plan, offline)


def _bytes_written(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines():
            if line.startswith("wchar:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _explain(message: str, plan: Plan, offline: bool) -> SurroundingsError:
    """Turn uv's message into ours: what, why, what next."""
    lower = message.lower()
    if "hash mismatch" in lower:
        return SurroundingsError(
            "a wheel does not have the sha256 of the lock; nothing was installed",
            message,
            "a mirror or a proxy changes files: compare UV_DEFAULT_INDEX with PyPI",
        )
    if "no space left" in lower or "disk quota" in lower:
        return SurroundingsError(
            "the disk is full; nothing was left behind",
            message,
            f"free {sizes.readable(plan.unpacked)}, choose another disk with --path, or set "
            "UV_CACHE_DIR",
        )
    if "no interpreter found" in lower or "no python" in lower or "python download" in lower:
        return SurroundingsError(
            f"no Python {plan.python} on this machine, and uv could not download one",
            message,
            f"install Python {plan.python}, or choose one of "
            f"{', '.join(plan.lock.pythons)} with --python",
        )
    if offline:
        return SurroundingsError(
            "uv's cache does not hold everything",
            message,
            "run once without --offline",
        )
    if any(sign in lower for sign in ("dns", "connect", "timed out", "network", "error sending")):
        return SurroundingsError(
            "the package index cannot be reached",
            message,
            "check the network and run again: finished downloads are kept",
        )
    return SurroundingsError("uv could not install the stack", message, "run again")


def _site_packages(root: Path) -> Path:
    found = list(root.glob("lib/python3*/site-packages"))
    if len(found) != 1:
        raise SurroundingsError(
            f"{root} is not a whole environment",
            f"it has {len(found) or 'no'} folders lib/python3*/site-packages, not one",
            "make it anew with --recreate",
        )
    return found[0]


def _examine(plan: Plan, root: Path, tell: Progress) -> dict[str, Any]:
    """Audit every file and import the engine, side by side."""
    started = time.monotonic()
    site = _site_packages(root)
    files = list(walk(site))
    total = sum(size for _, size in files)
    done = 0

    def scanned(count: int) -> None:
        nonlocal done
        done += count
        tell("auditing", done, total)

    check = subprocess.Popen(
        [str(root / "bin" / "python"), "-I", str(_CHECKS[plan.stack.engine.name])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=partial(_die_with, os.getpid()),
    )
    try:
        try:
            libraries = audit.summarise(scan_tree(site, files, scanned))
        except DeviceCodeError as error:
            raise SurroundingsError(
                "a file of the environment is corrupt", str(error), "run again with --recreate"
            ) from error
        title = plan.stack.engine.title
        tell(f"importing {title}", total, total)
        result: dict[str, Any]
        try:
            output, _ = check.communicate(timeout=_CHECK_LIMIT)
        except subprocess.TimeoutExpired:
            result = {"error": f"not done after {_CHECK_LIMIT:.0f} s"}
        else:
            try:
                result = json.loads(output)
            except ValueError:
                result = {
                    "error": f"Python ended with code {check.returncode} while importing {title}"
                }
    finally:
        check.kill()
        check.wait()
    return _manifest(plan, root, site, libraries, result, time.monotonic() - started)


def _manifest(
    plan: Plan,
    root: Path,
    site: Path,
    libraries: tuple[audit.Library, ...],
    check: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    stack = plan.stack
    torch_cuda = read_torch_cuda(site)
    capabilities = sorted({gpu.capability for gpu in stack.gpus})
    verdicts = [audit.judge(libraries, capability, torch_cuda) for capability in capabilities]
    owner = dict(owners(site, "", {library.path for library in libraries}))
    return {
        "schema": SCHEMA,
        "tool": __version__,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "name": stack.name,
        "path": str(plan.target),
        "gpus": list(dict.fromkeys(gpu.name for gpu in stack.gpus)),
        "engine": stack.engine.name,
        "stack": stack.facts.name,
        "lock": {"name": plan.lock.name, "digest": plan.lock.digest},
        "python": plan.python,
        "driver": {
            "branch": stack.driver.branch.branch,
            "latest": stack.driver.branch.latest,
            "module": stack.driver.flavour,
        },
        "reasons": [
            {"subject": item.subject, "choice": item.choice, "because": item.because}
            for item in stack.reasons
        ],
        "notes": list(stack.notes),
        "altered": [],
        "packages": plan.versions,
        "patched": [],
        "compiled": [],
        "audit": [verdict_document(verdict, owner) for verdict in verdicts],
        "libraries": [
            {
                "path": library.path,
                "size": library.size,
                "distribution": owner.get(library.path, ""),
                "groups": [
                    {"count": group.count, "linkage": group.linkage, "code": list(group.code)}
                    for group in library.groups
                ],
            }
            for library in libraries
        ],
        "check": check,
        "arch_flags": compare_arch_flags(check, libraries),
        "gpu_run": gpu_run(check, {str(capability) for capability in capabilities}),
        "examine_seconds": round(seconds, 2),
    }


def verdict_document(verdict: audit.Verdict, owner: dict[str, str] | None = None) -> dict[str, Any]:
    """A verdict as JSON; ``owner`` maps library paths to distributions."""
    names = owner or {}
    return {
        "capability": str(verdict.capability),
        "outcome": verdict.outcome,
        "summary": audit.describe(verdict, names),
        "driver": verdict.driver,
        "lost": list(verdict.lost),
        "missing": list(verdict.missing),
        "libraries": [
            {
                "path": item.path,
                "distribution": names.get(item.path, ""),
                "role": item.role,
                "state": item.state,
                "containers": item.containers,
                "sass": item.sass,
                "jit": item.jit,
                "driver": item.driver,
            }
            for item in verdict.libraries
        ],
    }


def compare_arch_flags(
    check: dict[str, Any], libraries: tuple[audit.Library, ...]
) -> dict[str, Any]:
    """What the engine says it was built for, against what every container of its library holds.

    An engine that only says it where there is a driver has ``arch_flags`` null elsewhere; ``agree``
    is null then too.
    """
    cuda = next((library for library in libraries if library.path in _ENGINE_LIBRARIES), None)
    held = sorted(audit.everywhere(cuda), key=audit.label_order) if cuda is not None else []
    flags = check.get("arch_flags", [])
    if flags is None:
        return {"said": [], "held": held, "agree": None}
    said = sorted(flags, key=audit.label_order)
    return {"said": said, "held": held, "agree": bool(said) and set(said) == set(held)}


def gpu_run(check: dict[str, Any], capabilities: Collection[str]) -> str:
    """``not run`` without a GPU of these capabilities; else what was computed on which of them.

    GPUs of other capabilities, which the stack does not promise anything for, are only named. ""
    stands for one that the driver does not tell.
    """
    devices = check.get("devices") or []
    own = [device for device in devices if device["capability"] in {*capabilities, ""}]
    parts = [
        f"ran on {device['name']}"
        if device.get("ran")
        else f"failed on {device['name']}: {device.get('error', 'wrong result')}"
        for device in own
    ]
    others = [f"other: {device['name']}" for device in devices if device not in own]
    return "; ".join([*(parts or ["not run"]), *others])


def build_settings(stack: Stack) -> list[tuple[str, str, str]]:
    """Environment variables for builds and runs: name, value, reason."""
    capabilities = sorted({gpu.capability for gpu in stack.gpus})
    torch = (
        "TORCH_CUDA_ARCH_LIST",
        ";".join(str(capability) for capability in capabilities),
        "extensions built against PyTorch get code for exactly these GPUs",
    )
    return [
        *([torch] if stack.engine.name == "torch" else []),
        (
            "CUDAARCHS",
            ";".join(str(capability.number) for capability in capabilities),
            "the same for CMake projects that do not choose themselves",
        ),
        (
            "CUDA_DEVICE_ORDER",
            "PCI_BUS_ID",
            "number the GPUs as nvidia-smi does, not fastest first",
        ),
        (
            "CUDA_MODULE_LOADING",
            "LAZY",
            "load kernels when they are used: less memory on the card, quicker start",
        ),
        (
            "CUDA_CACHE_MAXSIZE",
            str(4 << 30),
            "keep code that the driver compiled from PTX (4 GiB instead of 1)",
        ),
    ]


def activate_script(manifest: dict[str, Any], settings: list[tuple[str, str, str]]) -> str:
    """The file to source: the environment's own activation and these variables.

    It finds its environment by its own path, so that the environment may be moved, in bash and
    zsh. Other shells do not say which file they read: they need the path that is recorded here.
    ``deactivate`` gives all variables their old values.
    """
    path = str(manifest["path"])
    moved = (
        f"this environment is no longer at {path}: "
        "source it with bash or zsh, or run legacy-cuda up on its new place"
    )
    restore, assign = [], []
    for name, value, reason in settings:
        old, had = f"_LEGACY_CUDA_OLD_{name}", f"_LEGACY_CUDA_HAD_{name}"
        restore += [
            f'    if [ -n "${{{had}:-}}" ]; then export {name}="${old}"; else unset {name}; fi',
            f"    unset {old} {had}",
        ]
        assign += [
            f"# {reason}",
            f'{had}="${{{name}+1}}" {old}="${{{name}-}}"',
            f"export {name}={shlex.quote(value)}",
        ]
    lines = [
        "# Source this file:  . activate    and undo it:  deactivate",
        f"# {manifest['stack']} stack for {', '.join(manifest['gpus'])}",
        'if [ -n "${BASH_VERSION:-}" ]; then _legacy_cuda="${BASH_SOURCE:-}"',
        'elif [ -n "${ZSH_VERSION:-}" ]; then eval \'_legacy_cuda="${(%):-%x}"\'',
        "else  # other shells do not say which file they read",
        f"    _legacy_cuda={shlex.quote(path + '/' + ACTIVATE)}",
        '    if [ ! -f "$_legacy_cuda" ]; then',
        f"        echo {shlex.quote(moved)} >&2",
        "        unset _legacy_cuda",
        "        return 1",
        "    fi",
        f"    SCRIPT_PATH={shlex.quote(path + '/bin/activate')}",
        "fi",
        '_legacy_cuda="$(CDPATH= cd -- "$(dirname -- "$_legacy_cuda")" >/dev/null && pwd)"',
        "# What an environment activated before this one has set goes first.",
        "if command -v _legacy_cuda_restore >/dev/null; then _legacy_cuda_restore; fi",
        '. "$_legacy_cuda/bin/activate"',
        '[ -n "${BASH_VERSION:-}${ZSH_VERSION:-}" ] || unset SCRIPT_PATH',
        "# The environment's own deactivate under another name: not every shell can rename one.",
        'eval "$(sed -n \'/^deactivate () {$/,/^}$/p\' "$_legacy_cuda/bin/activate" |',
        "    sed '1s/deactivate/_legacy_cuda_leave/')\"",
        "unset _legacy_cuda",
        "_legacy_cuda_restore () {",
        *restore,
        "    unset -f _legacy_cuda_restore",
        "}",
        "if command -v _legacy_cuda_leave >/dev/null; then",
        "    deactivate () {",
        "        if command -v _legacy_cuda_restore >/dev/null; then _legacy_cuda_restore; fi",
        '        _legacy_cuda_leave "$@"',
        "        unset -f _legacy_cuda_leave",
        "    }",
        "fi",
        *assign,
    ]
    return "\n".join(lines) + "\n"


def _write_reports(root: Path, manifest: dict[str, Any], stack: Stack) -> None:
    _write(root / ACTIVATE, activate_script(manifest, build_settings(stack)))
    _write(root / REPORT, report.html(manifest))
    manifest["fingerprint"] = fingerprint(root)
    _write(root / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)
