"""From a capability to the environment variables of a replay, and a command run in it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.catalog.patched import patched
from legacy_cuda.errors import SurroundingsError, UserError
from legacy_cuda.paths import cache_directory
from legacy_cuda.replay import gpu, native
from legacy_cuda.replay.inside.settings import Settings

SITE = Path(__file__).parent / "site"


def prepare(
    capability_text: str, compile_only: bool, stock: bool, record: Path, multiprocessors: int = 0
) -> Settings:
    """What is to be replayed on the GPU at hand.

    Raises:
        UserError: the capability is unknown, or newer than the GPU's; GPUs of several
            capabilities are visible.
        SurroundingsError: there is no GPU and it is not to be compiled only.
    """
    capability = _capability(capability_text)
    facts = catalog.capabilities()[capability]
    names = [item.name for item in catalog.gpus() if item.capability == capability]
    chosen = None if compile_only else _gpu(capability)
    return Settings(
        capability=(capability.major, capability.minor),
        gpu=chosen.capability if chosen else None,
        gpu_name=chosen.name if chosen else "",
        shared=facts.shared_memory_per_block_kib << 10,
        shared_optin=facts.shared_memory_optin_kib << 10,
        record=str(record),
        stock=stock,
        card=names[0] if names else str(capability),
        tritons=tuple(row.version for row in patched() if row.package == "triton"),
        multiprocessors=multiprocessors,
    )


def _capability(text: str) -> Capability:
    known = catalog.capabilities()
    try:
        capability = Capability.parse(text)
        if capability in known:
            return capability
    except ValueError:
        pass
    legacy = ", ".join(str(item) for item, facts in known.items() if facts.legacy)
    raise UserError(
        f"{text!r} is no capability that can be replayed",
        next_step=f"name one, for example {legacy}",
    )


def _gpu(capability: Capability) -> gpu.VisibleGpu:
    try:
        found = gpu.visible()
    except gpu.NoGpuError as error:
        raise SurroundingsError(
            "there is no GPU to replay on",
            str(error),
            "--compile-only compiles for the old capability and launches nothing",
        ) from error
    if len({item.capability for item in found}) > 1:
        raise UserError(
            "GPUs of several capabilities are visible",
            ", ".join(
                f"{index}: {item.name} ({Capability(*item.capability)})"
                for index, item in enumerate(found)
            ),
            "choose one with CUDA_VISIBLE_DEVICES",
        )
    if capability > found[0].capability:
        raise UserError(
            f"{capability} cannot be replayed on {found[0].name}",
            f"it has capability {Capability(*found[0].capability)}; only older ones can be "
            "replayed on it",
            "--compile-only needs no GPU",
        )
    return found[0]


def environment(settings: Settings, before: Mapping[str, str]) -> dict[str, str]:
    """The variables to change, ``before`` being those there are.

    Compiled kernels go where no other replay and no ordinary program looks, and Inductor launches
    them through Triton, which checks shared memory. Programs in C++ load the shim, which is
    compiled if it is not there.
    """
    path = os.pathsep.join(part for part in (str(SITE), before.get("PYTHONPATH", "")) if part)
    changed = {**settings.environment(), "PYTHONPATH": path}
    folder = cache_directory() / "replay" / settings.key
    for name, part in (("TRITON_CACHE_DIR", "triton"), ("TORCHINDUCTOR_CACHE_DIR", "inductor")):
        if not before.get(name):
            changed[name] = str(folder / part)
    changed["TORCHINDUCTOR_USE_STATIC_CUDA_LAUNCHER"] = "0"
    return changed | native.environment(settings, before)


def temporary_record() -> Path:
    """A new, empty record; the caller deletes it."""
    handle, name = tempfile.mkstemp(prefix="legacy-cuda-replay-", suffix=".jsonl")
    os.close(handle)
    return Path(name)


def run(command: list[str], settings: Settings, libraries: Iterable[Path] = ()) -> int:
    """Run a command in the replay; returns its exit code, 128 + N if signal N ended it.

    ``libraries`` are folders with libraries in CUDA C++ that it loads.

    Raises:
        UserError: it cannot be started.
        SurroundingsError: it is a program in C++, and there is no compiler for the shim.
    """
    variables = {**os.environ, **environment(settings, os.environ)}
    variables |= native.for_program(command[0], settings, variables, libraries)
    try:
        process = subprocess.Popen(command, env=variables)
    except OSError as error:
        raise UserError(
            f"{command[0]!r} cannot be run",
            str(error),
            "put a program and its arguments behind --: legacy-cuda replay --capability "
            f"{Capability(*settings.capability)} -- python program.py",
        ) from error
    try:
        while True:
            try:
                code = process.wait()
                return code if code >= 0 else 128 - code
            except KeyboardInterrupt:
                # it went to the command as well, which ends in its own way
                continue
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
