"""The one fake of these tests: a CUDA device that is not there.

It answers the questions that Dynamo, Inductor and Triton ask of a device (its capability, its
limits, the current stream) and runs nothing. What they make of the answers is real: the graphs, the
Triton source, the PTX, and the cubin from ptxas.

Tensors are FakeTensors, which have a device and a shape and no storage. Nothing can be launched, so
kernels are not timed either: ``candidates_that_compile`` stands in for autotuning.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch


def properties(capability: tuple[int, int]) -> SimpleNamespace:
    """What ``torch.cuda.get_device_properties`` says of the pretended device.

    The number of multiprocessors is a P40's. Limits are those of Maxwell and Pascal, and
    what differs at 7.0 (CUDA C++ Programming Guide, table of technical specifications); sizes in
    bytes.
    """
    major, minor = capability
    return SimpleNamespace(
        name=f"a pretended GPU of capability {major}.{minor}",
        major=major,
        minor=minor,
        multi_processor_count=30,
        total_memory=24 << 30,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=(96 if major == 7 else 48) << 10,
        shared_memory_per_multiprocessor=96 << 10,
        L2_cache_size=3 << 20,
        is_integrated=False,
        is_multi_gpu_board=False,
        gcnArchName="",
        uuid="GPU-00000000-0000-0000-0000-000000000000",
    )


class FakeDriver:
    """Triton's driver for the pretended device."""

    def __init__(self, capability: tuple[int, int]) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
        limits = {"max_shared_mem": properties(capability).shared_memory_per_block_optin}
        self.utils = SimpleNamespace(get_device_properties=lambda device: limits)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


def candidates_that_compile(self: Any, choices: Any, *rest: Any) -> Any:
    """In place of timing a template's candidates: those that have been compiled share a first
    place, those that have not are out, as when their launch had failed."""

    def timings(choices: Any) -> dict[Any, float]:
        from torch._inductor.select_algorithm import ExternKernelCaller

        times = {}
        for choice in choices:
            times[choice] = 2.0
            if not isinstance(choice, ExternKernelCaller):
                try:
                    choice.precompile()
                    times[choice] = 1.0
                except RuntimeError:  # NoTritonConfigsError
                    times[choice] = float("inf")
        return times

    return timings


def _compiles(self: Any, module: Any, *rest: Any, **more: Any) -> tuple[float, str]:
    """In place of timing a fused kernel: the same time for every one that compiles."""
    try:
        module.triton_.precompile()
    except RuntimeError:
        return float("inf"), module.__file__
    return 1.0, module.__file__


def _copy(self: torch.Tensor, other: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return torch.ops.aten.copy_.default(self, other, non_blocking)


def _getitem(self: torch.Tensor, index: Any) -> torch.Tensor:
    """``tensor[index]`` by the operators it stands for. ``index`` may have integers, slices and
    tensors, one for each leading dimension."""
    result, dim = self, 0
    tensors: list[torch.Tensor | None] = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, int):
            result = result.select(dim, part)
            continue
        if isinstance(part, slice):
            result = torch.ops.aten.slice.Tensor(result, dim, part.start, part.stop, part.step or 1)
        elif not isinstance(part, torch.Tensor):
            raise NotImplementedError(f"index {part!r} of a tensor on the pretended device")
        tensors.append(part if isinstance(part, torch.Tensor) else None)
        dim += 1
    if any(part is not None for part in tensors):
        result = torch.ops.aten.index.Tensor(result, tensors)
    return result


def _setitem(self: torch.Tensor, index: tuple[torch.Tensor, ...], value: torch.Tensor) -> None:
    """``tensor[i, j] = value`` with tensors for indices."""
    torch.ops.aten.index_put_.default(self, list(index), value)


def install(capability: tuple[int, int]) -> None:
    """Make torch and Triton see one CUDA device of this capability, for the rest of the process.

    To be called before Dynamo or Inductor is imported: they keep functions of ``torch.cuda``.
    """
    device = properties(capability)
    random_state = torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "get_device_properties": lambda of=None: device,
        "get_device_name": lambda of=None: device.name,
        "get_arch_list": lambda: [f"sm_{capability[0]}{capability[1]}"],
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: SimpleNamespace(cuda_stream=0),
        "memory_allocated": lambda device=None: 0,
        "get_rng_state": lambda device="cuda": random_state,
        "set_rng_state": lambda state, device="cuda": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch._C._cuda_getCurrentRawStream = lambda device: 0  # type: ignore[attr-defined]

    # the C++ of these methods sets the CUDA device first
    torch.Tensor.__getitem__ = _getitem  # type: ignore[method-assign]
    torch.Tensor.__setitem__ = _setitem  # type: ignore[assignment, method-assign]
    torch.Tensor.copy_ = _copy  # type: ignore[method-assign]

    # FakeTensor would put one real element on the device to wake it up
    torch._subclasses.fake_tensor.init_gpu_context = lambda *_: None

    import triton
    from torch._inductor.codegen.triton import TritonScheduling
    from torch._inductor.fx_passes import joint_graph
    from torch._inductor.runtime import triton_helpers
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from torch._inductor.select_algorithm import AlgorithmSelectorCache

    triton.runtime.driver.set_active(FakeDriver(capability))
    triton_helpers.set_driver_to_gpu = lambda: None
    CachingAutotuner._make_launchers = lambda self: None  # would load the cubin
    AlgorithmSelectorCache.make_benchmark_fn = candidates_that_compile

    TritonScheduling.benchmark_codegened_module = _compiles

    # Inductor's patterns are the same for every device; where CUDA is, it makes them with real
    # tensors there, so it is told of the device only after that
    joint_graph.lazy_init()
    torch.cuda.is_available = lambda: True
