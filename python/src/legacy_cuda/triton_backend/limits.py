"""What a capability cannot do, told when a kernel is compiled.

The figures are those of the catalog (a test compares them); this package travels in Triton's wheel,
where there is no catalog. Sources: CUDA C++ Programming Guide 10.2, tables of arithmetic throughput
and of technical specifications; PTX ISA, ``dp4a``; ``ptxas --help`` of the toolkits.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

# fp16 arithmetic at twice the fp32 rate. 6.1 has it at a sixty-fourth, older ones not at all.
_FAST_HALF = ((5, 3), (6, 0), (6, 2))
_SHARED = {6: 48 << 10, 7: 96 << 10}  # bytes a block, by major capability; 3.x to 5.x as 6.x
# The newest toolkit whose ptxas still assembles for a capability, by the release before which
# support ended.
_LAST_PTXAS = (((5, 0), (12, 0)), ((7, 5), (13, 0)))


def pair(number: int) -> tuple[int, int]:
    """Triton's capability number as a pair: 61 is (6, 1), 120 is (12, 0)."""
    return divmod(number, 10)


def has_fast_half(capability: tuple[int, int]) -> bool:
    """Whether fp16 arithmetic is faster than fp32 there."""
    return capability in _FAST_HALF or capability >= (7, 0)


def has_dp4a(capability: tuple[int, int]) -> bool:
    """Whether the capability multiplies four int8 pairs in one instruction."""
    return capability >= (6, 1)


def llvm_processor(capability: tuple[int, int]) -> str:
    """The processor LLVM is to generate code for.

    For capabilities with slow fp16 arithmetic it is sm_52, the newest one without any: LLVM then
    does fp16 arithmetic in fp32. The only other thing it does not use on 6.1 for that is the fp64
    atomic, which Triton writes itself.
    """
    if capability < (7, 0) and not has_fast_half(capability):
        capability = min(capability, (5, 2))
    major, minor = capability
    return f"sm_{major}{minor}"


def shared_memory(capability: tuple[int, int]) -> int:
    """The most shared memory a block can have, in bytes, below capability 7.5."""
    return _SHARED[max(capability[0], 6)]


def check_shared_memory(module: Any, capability: tuple[int, int]) -> None:
    """Refuse a kernel that does not fit, while it is compiled: ``module`` is in the LLVM dialect,
    its shared memory allocated.

    Raises:
        OutOfResources: Triton's own error, which its autotuner takes as "not this configuration".
    """
    needed, limit = module.get_int_attr("ttg.shared"), shared_memory(capability)
    if needed > limit:
        names: list[str] = []

        def note(operation: Any) -> None:
            if operation.get_name() == "llvm.func" and operation.get_num_regions():
                names.append(operation.get_str_attr("sym_name"))

        # Not by printing the module: Triton 3.3 crashes on one that has debug information.
        module.walk(note)
        raise _out_of_shared_memory()(names[-1] if names else "a kernel", needed, limit, capability)


@functools.lru_cache
def _out_of_shared_memory() -> Any:
    from triton.runtime.errors import OutOfResources

    class OutOfSharedMemory(OutOfResources):  # type: ignore[misc]  # triton has no types
        """A kernel needs more shared memory than a block of the GPU can have."""

        def __init__(
            self, kernel: str, required: int, limit: int, capability: tuple[int, int]
        ) -> None:
            super().__init__(required, limit, "shared memory")
            self.kernel, self.capability = kernel, capability

        def __str__(self) -> str:
            major, minor = self.capability
            return (
                f"{self.kernel} needs {self.required} bytes of shared memory; a block on "
                f"capability {major}.{minor} has {self.limit}. Take smaller blocks or a smaller "
                "num_stages."
            )

        def __reduce__(self) -> Any:
            return _rebuild, (self.kernel, self.required, self.limit, self.capability)

    return OutOfSharedMemory


def _rebuild(kernel: str, required: int, limit: int, capability: tuple[int, int]) -> Any:
    return _out_of_shared_memory()(kernel, required, limit, capability)


class UnsuitablePtxasError(RuntimeError):
    """The ptxas at hand does not know the capability."""


def find_ptxas(capability: tuple[int, int], bundled: Callable[[], str]) -> str:
    """The ptxas for a capability: Triton's own choice, or below 5.0 one of CUDA 11.

    The latter is looked for in TRITON_PTXAS_PATH, in the wheel ``nvidia-cuda-nvcc-cu11`` beside
    Triton, in CUDA_HOME and in /usr/local/cuda-11.*.

    Raises:
        UnsuitablePtxasError: none assembles for the capability.
    """
    if capability >= (5, 0):
        path = bundled()
        check_ptxas(path, capability)
        return path
    places = [Path(os.environ.get("TRITON_PTXAS_PATH", ""))]
    places.append(Path(__file__).parents[4] / "nvidia" / "cuda_nvcc" / "bin" / "ptxas")
    places.append(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "ptxas")
    places += sorted(Path("/usr/local").glob("cuda-11*/bin/ptxas"), reverse=True)
    refused = []
    for place in places:
        if not place.is_file():
            continue
        try:
            check_ptxas(str(place), capability)
        except UnsuitablePtxasError:
            refused.append(str(place))
        else:
            return str(place)
    major, minor = capability
    tried = f" (not suitable: {', '.join(refused)})" if refused else ""
    raise UnsuitablePtxasError(
        f"there is no ptxas here that assembles for sm_{major}{minor}{tried}. The last that does "
        "is in CUDA 11: pip install 'nvidia-cuda-nvcc-cu11<12', or name one in TRITON_PTXAS_PATH."
    )


def check_ptxas(path: str, capability: tuple[int, int]) -> None:
    """See that a ptxas is not too new for a capability.

    Raises:
        UnsuitablePtxasError: it is too new, or is none.
    """
    release = ptxas_release(path)
    major, minor = capability
    for end, dropped in _LAST_PTXAS:
        if capability < end and release >= dropped:
            raise UnsuitablePtxasError(
                f"{path} is of CUDA {release[0]}.{release[1]}, which has no sm_{major}{minor}: "
                f"CUDA {dropped[0]} dropped it. If TRITON_PTXAS_PATH names it, unset that to use "
                "the one in Triton's wheel, or name one of an older CUDA."
            )


@functools.lru_cache
def ptxas_release(path: str) -> tuple[int, int]:
    """Major and minor CUDA release of a ptxas.

    Raises:
        UnsuitablePtxasError: it does not run or does not say.
    """
    try:
        text = subprocess.run(
            [path, "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnsuitablePtxasError(f"{path} does not run as ptxas: {error}") from error
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None:
        raise UnsuitablePtxasError(f"{path} does not say which release of ptxas it is")
    return int(found[1]), int(found[2])
