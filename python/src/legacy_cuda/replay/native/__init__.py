"""Replay of programs in CUDA C++: their host code is answered as by an old card.

``shim.c`` is preloaded into every program below the command and answers for the CUDA runtime and
the driver; ``answers`` says what, ``compiler`` makes a library of it on this machine. ``program``
and ``dynamic`` look at a program before it starts, ``cublas`` stands in for a cuBLAS that is not
there, ``verdict`` looks at the device code of what has run.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from legacy_cuda import catalog
from legacy_cuda.capability import Capability
from legacy_cuda.errors import SurroundingsError
from legacy_cuda.replay.inside.settings import Settings, dotted
from legacy_cuda.replay.native import answers, compiler, cublas, program

TF32 = "NVIDIA_TF32_OVERRIDE"
"""Of NVIDIA's libraries: 0 keeps them from multiplying fp32 with tensor cores."""


def environment(settings: Settings, before: Mapping[str, str]) -> dict[str, str]:
    """The variables to change so that programs in C++ are replayed, ``before`` being those there
    are.

    Without a C compiler it says so, and Python programs are replayed all the same.
    """
    if settings.compile_only:
        return {}
    facts = catalog.capabilities()[Capability(*settings.capability)]
    changed = answers.variables(facts, settings.multiprocessors)
    if not facts.bf16 and TF32 not in before:  # both came with the same generation
        changed[TF32] = "0"
    try:
        shim = str(compiler.shim())
    except SurroundingsError as error:
        _warn(f"programs in C++ are not replayed: {error.what} ({error.why}). {error.next_step}")
        return changed
    loaded = [item for item in before.get("LD_PRELOAD", "").split(":") if item]
    changed["LD_PRELOAD"] = ":".join(loaded if shim in loaded else [*loaded, shim])
    return changed


def for_program(
    command: str,
    settings: Settings,
    variables: Mapping[str, str],
    folders: Iterable[Path] = (),
) -> dict[str, str]:
    """The variables to change for one program, after :func:`environment`; ``folders`` hold
    libraries that it loads.

    Warns of what cannot be answered in it, and makes a stand-in for a cuBLAS that is not there.

    Raises:
        SurroundingsError: it asks a shared CUDA runtime, and the shim could not be made.
    """
    path = shutil.which(command, path=variables.get("PATH"))
    if settings.compile_only or path is None:
        return {}
    found = program.binaries(Path(path), variables, folders)
    if any(binary.needs_runtime for binary in found):
        preloaded = variables.get("LD_PRELOAD", "").rpartition(":")[2]
        if Path(preloaded).name != "liblegacy_cuda_replay.so":
            compiler.shim()  # says why it is not there
    for binary in found:
        if binary.own_runtime:
            _warn(
                f"{binary.path.name} has a CUDA runtime of its own, linked statically: its "
                f"questions about the GPU are not answered as of {dotted(settings.capability)}. "
                "Link it with the shared one (nvcc -cudart shared, CMake's CUDA_RUNTIME_LIBRARY "
                "Shared)."
            )
    wanted = program.missing_cublas(found, variables)
    if not wanted:
        return {}
    target = cublas.own(variables)
    if target is None:
        _warn(
            f"there is no {', '.join(sorted(wanted))} here, nor another cuBLAS to forward to: "
            f"{cublas.TARGET} can name one"
        )
        return {}
    stubs = [str(cublas.stub(soname, wanted[soname]).parent) for soname in sorted(wanted)]
    before = [item for item in variables.get("LD_LIBRARY_PATH", "").split(":") if item]
    print(
        f"legacy-cuda: {', '.join(sorted(wanted))} is not here: calls go to {target.name}",
        file=sys.stderr,
        flush=True,
    )
    return {"LD_LIBRARY_PATH": ":".join([*before, *stubs]), cublas.TARGET: str(target)}


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
