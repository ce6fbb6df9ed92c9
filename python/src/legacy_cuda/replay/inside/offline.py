"""A Triton driver for machines without a GPU: it answers a capability and launches nothing."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from .record import Record
from .settings import Settings, number


class OfflineDriver:
    """What Triton asks of its driver, as far as compiling and launching go."""

    def __init__(self, settings: Settings, record: Record) -> None:
        self.settings = settings
        self.record = record
        self.utils = _Utils(settings)
        self.launcher_cls = self._launcher

    def _launcher(self, source: Any, metadata: Any) -> Any:
        def launch(*arguments: Any) -> None:
            self.record.launches += 1

        return launch

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", number(self.settings.capability), 32)

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return self.settings.capability

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        return None

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        """Where such programs keep their tensors: there is no other device."""
        return importlib.import_module("torch").device("cpu")

    def get_device_interface(self) -> Any:
        return importlib.import_module("torch.cuda")

    def map_python_to_cpp_type(self, kind: str) -> str:
        from triton.backends.nvidia import driver

        found: str = driver.ty_to_cpp(kind)
        return found

    def assemble_tensormap_to_arg(self, information: Any, arguments: Any) -> Any:
        return arguments

    def get_benchmarker(self) -> Any:
        """A benchmark that runs once, so that every configuration is compiled, and says that all
        take the same time (milliseconds)."""

        def benchmark(call: Any, quantiles: Any = None, **options: Any) -> Any:
            call()
            return [1.0] * len(quantiles) if quantiles else 1.0

        return benchmark

    def get_empty_cache_for_benchmark(self) -> None:
        return None

    def clear_cache(self, cache: Any) -> None:
        return None


class _Utils:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def get_device_properties(self, device: int) -> dict[str, int]:
        """What kernels are checked against. Clock rates and the number of multiprocessors are
        facts of a card, not of a capability: 1 each."""
        return {
            "max_shared_mem": self.settings.shared_optin,
            "max_num_regs": 65536,
            "multiprocessor_count": 1,
            "warpSize": 32,
            "sm_clock_rate": 1,
            "mem_clock_rate": 1,
            "mem_bus_width": 1,
        }

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Handles that nothing is done with, no registers, no spills; from Triton 3.4 on also the
        threads a block can have (1024 on every capability, CUDA C++ Programming Guide)."""
        from triton.compiler.compiler import CompiledKernel

        if "n_max_threads" in inspect.getsource(CompiledKernel._init_handles):
            return 1, 1, 0, 0, 1024
        return 1, 1, 0, 0
