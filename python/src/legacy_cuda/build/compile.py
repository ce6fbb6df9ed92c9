"""Compile a package for old GPUs: sources, toolchain and back end in, a checked wheel out.

A build has a folder of its own in the cache (``builds/``), named after all that goes in. A killed
build leaves it, and the next one goes on there; it goes when the wheel is finished.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import resource
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from legacy_cuda import audit, fetch, paths, sizes
from legacy_cuda.build import backend, finish, provenance, source
from legacy_cuda.build.make import file_sha256
from legacy_cuda.build.patches import PatchError
from legacy_cuda.build.provenance import Inputs
from legacy_cuda.build.source import Changes
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.locks import load_lock
from legacy_cuda.catalog.recipes import Recipe, Way
from legacy_cuda.catalog.toolchains import find_toolchain
from legacy_cuda.devicecode import scan_wheel
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.toolchain import environ, folder

FORMAT = 2
"""Raised whenever the same inputs make other bytes than before."""

# What CMake starts compilers with. ccache leaves ".." out of the folders it makes relative, and a
# header's folder is in what __FILE__ stands for: without ccache it has to be left out as well.
_LAUNCHER = """\
#!/bin/sh
for word do
    shift
    case $word in
        -I/*/..*) word="-I$(realpath -sm -- "${{word#-I}}")" ;;
        /*/..*) word="$(realpath -sm -- "$word")" ;;
    esac
    set -- "$@" "$word"
done
exec {program}"$@"
"""

_SETTING_SLOTS = ("architectures", "build")

Tell = Callable[[str, int, int], None]
"""Called with what is being done, and how much of how much is; 0 where that is unknown."""


@dataclass(frozen=True)
class Order:
    """What is to be built: a recipe, for which capabilities, with which toolchain's folder.

    ``code`` is which device code: ``sass``, ``sass+ptx`` (PTX of the newest capability as well) or
    ``ptx`` alone, for a replay on a newer GPU. ``pinned`` is False for a toolchain of this machine.
    """

    recipe: Recipe
    way: Way
    capabilities: tuple[Capability, ...]
    toolchain: Path
    code: str
    jobs: int
    ccache: str | None
    pinned: bool = True

    @property
    def version(self) -> str:
        """The version of the wheel."""
        version = self.recipe.installed(self.way, set(self.capabilities))
        version += {"sass": "", "sass+ptx": ".ptx", "ptx": ".replay"}[self.code]
        return version + ("" if self.pinned else ".found")


@dataclass(frozen=True)
class Compiled:
    """A finished wheel. Seconds of the wall clock and of all processors; peak of one process in
    bytes; ``resumed`` if an earlier, broken build was gone on with."""

    order: Order
    path: Path
    sha256: str
    size: int
    requires: tuple[str, ...]
    verdicts: tuple[audit.Verdict, ...]
    seconds: float
    processor_seconds: float
    peak: int
    resumed: bool
    provenance: Path


def architectures(order: Order) -> str:
    """CMake's CMAKE_CUDA_ARCHITECTURES: ``61-real``, ``61-virtual``, or both."""
    numbers = [item.number for item in order.capabilities]
    if order.code == "ptx":
        return ";".join(f"{number}-virtual" for number in numbers)
    words = [f"{number}-real" for number in numbers]
    if order.code == "sass+ptx":
        words.append(f"{numbers[-1]}-virtual")
    return ";".join(words)


def settings(order: Order, tree: str) -> dict[str, str]:
    """What the back end is told; ``tree`` is the folder it builds in."""
    return _filled({**order.recipe.settings, **order.way.settings}, order, tree)


def environment(order: Order, tree: str) -> dict[str, str]:
    """The recipe's own variables."""
    return _filled(order.recipe.environment, order, tree)


def _filled(values: Mapping[str, str], order: Order, tree: str) -> dict[str, str]:
    slots = dict(zip(_SETTING_SLOTS, (architectures(order), tree), strict=True))
    return {key: value.format(**slots) for key, value in values.items()}


def order(
    recipe: Recipe,
    way: Way,
    capabilities: Iterable[Capability],
    toolchain: Path,
    code: str = "sass",
    count: int | None = None,
    ccache: bool = True,
    pinned: bool = True,
) -> Order:
    """What is to be built, with as many compilers (or ``count``) as this machine has room for, and
    through ccache if it is there."""
    return Order(
        recipe,
        way,
        tuple(sorted(set(capabilities))),
        toolchain,
        code,
        count or jobs(way, processors(), available_memory()),
        shutil.which("ccache") if ccache else None,
        pinned,
    )


def minutes(order: Order) -> float:
    """How long the build takes here, about."""
    seconds = order.recipe.seconds(order.way, len(order.capabilities))
    return seconds / min(order.jobs, processors()) / 60


def jobs(way: Way, processors: int, memory: int) -> int:
    """How many compilers at once: one a processor, as far as the memory (bytes) reaches."""
    return max(1, min(processors, memory // way.memory))


def available_memory() -> int:
    """Bytes of memory that programs can have now: proc(5), MemAvailable, or what a container's
    control group admits (cgroup v2, memory.max)."""
    free = 0
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    limit = _control_group("memory.max")
    return min(free, int(limit[0])) if limit and limit[0].isdigit() else free


def processors() -> int:
    """How many processors this may use: those it is bound to, or fewer by a container's control
    group (cgroup v2, cpu.max: microseconds of how many)."""
    bound = len(os.sched_getaffinity(0))
    limit = _control_group("cpu.max")
    if len(limit) == 2 and limit[0].isdigit():
        return max(1, min(bound, -(-int(limit[0]) // int(limit[1]))))
    return bound


def _control_group(name: str) -> list[str]:
    """The words of a file of the control group that a container is in; none elsewhere."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text(encoding="ascii").split()
    except OSError:
        return []


def digest(order: Order, changes: Changes) -> str:
    """sha256 (hex) over all that decides the bytes of the wheel."""
    pinned = find_toolchain(order.way.toolchain) if order.pinned else None
    content = [
        FORMAT,
        order.recipe.sdist.sha256,
        changes.rows(),
        settings(order, "/build/tree"),
        order.recipe.requires,
        load_lock(order.recipe.lock).digest,
        [pinned.layout, pinned.digest] if pinned else order.toolchain.name,
        order.version,
    ]
    if told := environment(order, "/build/tree"):
        content.append(told)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def place(order: Order, inputs: Inputs, copy: int = 0) -> Path:
    """The folder of the build: other inputs, another folder, whose name has another length too."""
    content = [
        digest(order, inputs.changes),
        [wheel.sha256 for wheel in inputs.wheels],
        order.toolchain.name,
        bool(order.ccache),
    ]
    short = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    name = f"{order.recipe.package}-{order.version}-{short}" + f"-copy-{copy}" * bool(copy)
    return paths.cache_directory() / "builds" / name


def compile_wheel(
    order: Order,
    archive: Path,
    interpreter: tuple[str, str],
    output: Path,
    tell: Tell,
    copy: int = 0,
) -> Compiled:
    """Build, check and write the wheel into ``output``.

    ``archive`` is the pinned source distribution, ``interpreter`` a Python's version and what uv
    finds it by. Another ``copy`` is built in another folder.

    Raises:
        SurroundingsError: network or disk failed, it does not compile, or the wheel that came out
            is not fit for release. What was compiled so far is kept.
    """
    started, clock, before = datetime.now(timezone.utc), time.monotonic(), _used()
    recipe = order.recipe
    try:
        changes = source.changes(recipe)
    except (OSError, PatchError) as error:
        raise _broken(recipe, error) from error
    toolchain = find_toolchain(order.way.toolchain)
    manifest = folder.read_manifest(order.toolchain)
    found = {} if manifest["source"] == "pinned" else _found(manifest)
    lock = load_lock(recipe.lock)
    inputs = Inputs(
        recipe,
        order.version,
        order.capabilities,
        toolchain,
        found,
        settings(order, "/build/tree"),
        environment(order, "/build/tree"),
        changes,
        lock.select(interpreter[0]),
    )
    root = place(order, inputs, copy)
    try:
        output.mkdir(parents=True, exist_ok=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        with _ours(root, tell) as descriptor:
            resumed = (root / "tree").is_dir()
            _check_room(recipe, root)
            variables = _prepare(order, inputs, root, archive, interpreter, tell)
            built = _build(order, root, variables, descriptor, tell)
            tell("checking", 0, 0)
            again = root / "finished"
            shutil.rmtree(again, ignore_errors=True)
            finished = finish.finish(
                built,
                again,
                order.version,
                toolchain,
                order.toolchain / "bin" / "strip",
                variables,
                recipe,
            )
            materials = provenance.bill_of_materials(inputs, finished.requires)
            part = root / finished.name
            bom = f"{finished.info}/sboms/{recipe.package}.cdx.json"
            finish.write(finished, {bom: _json(materials)}, part)
            verdicts = _judge(order, part)
            target = output / finished.name
            sha256, size = file_sha256(part), part.stat().st_size
            ended = datetime.now(timezone.utc)
            document = provenance.statement(
                inputs,
                finished.name,
                sha256,
                started.isoformat(timespec="seconds"),
                ended.isoformat(timespec="seconds"),
                sys.argv,
            )
            note = target.with_name(f"{target.name}.provenance.json")
            own = root / "provenance.json"
            own.write_bytes(_json(document))
            _publish(own, note)
            _publish(part, target)
            shutil.rmtree(root)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"what was compiled is kept in {root}, and the same command goes on there"
        ) from None
    except (source.SourceError, PatchError) as error:
        raise _broken(recipe, error) from error
    except finish.FinishError as error:
        raise SurroundingsError(
            f"the {recipe.package} that was built is not fit for release",
            str(error),
            f"please report it; what was built is in {root}",
        ) from error
    except backend.BackendError as error:
        raise SurroundingsError(
            f"{recipe.package} {recipe.version} does not compile here",
            str(error),
            f"everything that was printed is in {root / 'log.txt'}; the next run goes on there",
        ) from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise SurroundingsError(
            f"{recipe.package} could not be built",
            str(error),
            f"free {sizes.readable(recipe.disk)} and run again: it goes on where it stopped"
            if full
            else "choose a folder you may write to (--output, LEGACY_CUDA_CACHE)",
        ) from error
    after = _used()
    return Compiled(
        order,
        target,
        sha256,
        size,
        finished.requires,
        verdicts,
        time.monotonic() - clock,
        after[0] - before[0],
        after[1],
        resumed,
        note,
    )


def publish(built: Compiled, output: Path) -> Compiled:
    """Put a finished wheel and its provenance into another folder.

    Raises:
        OSError: the disk failed.
    """
    output.mkdir(parents=True, exist_ok=True)
    note, target = output / built.provenance.name, output / built.path.name
    _publish(built.provenance, note)
    _publish(built.path, target)
    return replace(built, path=target, provenance=note)


def archive(recipe: Recipe, given: Path | None, tell: Tell) -> Path:
    """The source distribution, its sha256 checked: ``given``, or downloaded.

    Raises:
        UserError: ``given`` is not the one that is pinned.
        SurroundingsError: the network or the disk failed, or the cached file was damaged.
    """
    sdist = recipe.sdist
    if given is not None:
        try:
            found = file_sha256(given)
        except OSError as error:
            raise UserError(f"{given} cannot be read", str(error), "name a file") from error
        if found != sdist.sha256:
            raise UserError(
                f"{given.name} is not the {sdist.name} that is pinned",
                f"its sha256 is {found}\nexpected      {sdist.sha256}",
                "leave --sdist out: it is downloaded",
            )
        return given
    remote = fetch.Remote(sdist.package, sdist.version, sdist.name, sdist.sha256, sdist.size)
    path = fetch.download(
        remote, progress=lambda done, total: tell(f"fetching {recipe.package}", done, total)
    )
    if file_sha256(path) != sdist.sha256:
        path.unlink()
        raise SurroundingsError(
            f"{sdist.name} in the cache was damaged and has been thrown away",
            f"expected sha256 {sdist.sha256}",
            "run again: it is downloaded anew",
        )
    return path


def _broken(recipe: Recipe, error: Exception) -> SurroundingsError:
    return SurroundingsError(
        f"the sources of {recipe.package} {recipe.version} cannot be prepared",
        str(error),
        "reinstall legacy-cuda; if it stays so, please report it",
    )


def _found(manifest: dict[str, Any]) -> dict[str, str]:
    """What is known of a toolchain that is installed on the machine."""
    keys = ("source", "nvcc", "gcc", "glibc", "toolkit", "compiler")
    return {key: str(manifest[key]) for key in keys if key in manifest}


@contextlib.contextmanager
def _ours(root: Path, tell: Tell) -> Iterator[int]:
    """Hold the lock of a build's folder: the descriptor, which the build's processes inherit.

    So compilers that outlive a killed build hold it too, and the next one waits for them.
    """
    path = root.with_name(f".{root.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another build of the same", 0, 0)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _check_room(recipe: Recipe, root: Path) -> None:
    held = sum(path.lstat().st_size for path in root.rglob("*")) if root.is_dir() else 0
    free = shutil.disk_usage(root.parent).free
    if free + held < recipe.disk:
        raise SurroundingsError(
            f"not enough room to build {recipe.package} in {root.parent}",
            f"needs {sizes.readable(recipe.disk)}, {sizes.readable(free)} are free",
            "free space, or set LEGACY_CUDA_CACHE to another folder",
        )


def _prepare(
    order: Order,
    inputs: Inputs,
    root: Path,
    archive: Path,
    interpreter: tuple[str, str],
    tell: Tell,
) -> dict[str, str]:
    """Sources and environment in the folder, unless they are there; the build's variables."""
    root.mkdir(exist_ok=True)
    sources, tools, scratch = root / "source", root / "tools", root / "tmp"
    if not sources.is_dir():
        tell("unpacking", 0, 0)
        part = root / "source.part"
        shutil.rmtree(part, ignore_errors=True)
        source.prepare(archive, inputs.changes, part)
        part.rename(sources)
    if not (root / "tools.done").is_file() or not (tools / "bin" / "python").exists():
        tell("installing what the build needs", 0, 0)
        backend.make_environment(load_lock(order.recipe.lock), *interpreter, tools)
        (root / "tools.done").touch()
    requires = backend.build_system(sources)[2]
    unmet = backend.missing(requires, load_lock(order.recipe.lock), interpreter[0])
    if unmet:
        raise backend.BackendError(f"the lock {order.recipe.lock} has no {', '.join(unmet)}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    variables = environ.variables(order.toolchain, scratch, root)
    variables["PATH"] = f"{tools / 'bin'}:{variables['PATH']}"
    variables.update(environment(order, str(root / "tree")))
    variables["CMAKE_BUILD_PARALLEL_LEVEL"] = variables["MAX_JOBS"] = str(order.jobs)
    launcher = root / "launch"
    launcher.write_text(
        _LAUNCHER.format(program=f"{shlex.quote(order.ccache)} " if order.ccache else "")
    )
    launcher.chmod(0o755)
    for language in ("C", "CXX", "CUDA"):
        variables[f"CMAKE_{language}_COMPILER_LAUNCHER"] = str(launcher)
    if order.ccache:
        variables.update(_ccache(order, root))
    return variables


def _ccache(order: Order, root: Path) -> dict[str, str]:
    """The settings of ccache, and no others count (ccache(1)).

    A compiler is known by the toolchain's name, which has a digest of what it is made of in it.
    Paths below the build's folder become relative, so that another folder finds what was compiled
    in this one.
    """
    home = os.environ.get("CCACHE_DIR") or str(paths.cache_directory() / "ccache")
    return {
        "CCACHE_DIR": home,
        "CCACHE_CONFIGPATH": os.devnull,
        "CCACHE_BASEDIR": str(root),
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_COMPILERCHECK": f"string:{order.toolchain.name}",
        environ.RELATIVE: "../",  # the back end compiles in a folder just below
    }


def _build(
    order: Order, root: Path, variables: dict[str, str], descriptor: int, tell: Tell
) -> Path:
    """Let the back end work; the wheel it makes."""
    out = root / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()

    def compiled(file: str, done: int, total: int) -> None:
        tell(f"compiling {file}" if file else "compiling", done, total)

    tell("configuring", 0, 0)
    return backend.build_wheel(
        root / "source",
        root / "tools" / "bin" / "python",
        out,
        settings(order, str(root / "tree")),
        variables,
        root / "log.txt",
        descriptor,
        compiled,
    )


def _judge(order: Order, wheel: Path) -> tuple[audit.Verdict, ...]:
    """The verdict for every capability that it was built for.

    Raises:
        FinishError: a container of it does not run there.
    """
    libraries = audit.summarise(scan_wheel(wheel))
    verdicts = tuple(audit.judge(libraries, capability) for capability in order.capabilities)
    if order.recipe.local:
        if libraries:
            raise finish.FinishError("it has device code, and should have none")
        return verdicts
    if order.code == "ptx" and libraries:
        # A newer GPU's driver compiles it. That the card's own would is not asked for: 470 compiles
        # no PTX of CUDA 11.8.
        for capability in order.capabilities:
            _check_ptx(libraries, f"compute_{capability.number}")
        return verdicts
    for verdict in verdicts:
        for library in verdict.libraries:
            if library.sass != library.containers:
                raise finish.FinishError(
                    f"{library.path} runs {library.sass} of {library.containers} containers on "
                    f"{verdict.capability}"
                )
        if not libraries or not verdict.good:
            raise finish.FinishError(audit.describe(verdict))
    if order.code == "sass+ptx":
        _check_ptx(libraries, f"compute_{order.capabilities[-1].number}")
    return verdicts


def _check_ptx(libraries: Iterable[audit.Library], wanted: str) -> None:
    for library in libraries:
        for group in library.groups:
            if not any(label.partition("@")[0] == wanted for label in group.code):
                raise finish.FinishError(
                    f"{library.path} has {group.count} containers without PTX for {wanted}"
                )


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _publish(source: Path, target: Path) -> None:
    """Give a file its place, on another disk as well, or leave nothing there."""
    temporary = target.with_name(f".{target.name}.part")
    try:
        shutil.copyfile(source, temporary)
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def _used() -> tuple[float, int]:
    """Processor seconds of the programs that have been run, and the largest one's memory."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
