"""PyTorch sees an old GPU: capability, shared memory, name; and its gates for old GPUs open."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .imports import Hook
from .record import Record, program
from .settings import Settings, dotted, number

PATCH_MARK = "def has_legacy_triton("
"""In ``torch/utils/_triton.py``, of the first patch for torch."""


def hooks(settings: Settings, record: Record) -> dict[str, Hook]:
    """The hooks on PyTorch's modules."""
    found: dict[str, Hook] = {
        "torch": functools.partial(_package, record),
        "torch.cuda": functools.partial(_cuda, settings),
    }
    if not settings.compile_only and settings.capability < (7, 0):
        found["torch.utils._triton"] = _has_triton
        found["torch._dynamo.device_interface"] = _device_interface
    return found


class OldProperties:
    """The properties of a GPU, those of the old capability in their place."""

    def __init__(self, properties: Any, settings: Settings) -> None:
        self._properties = properties
        self.major, self.minor = settings.capability
        self.name = f"{properties.name} (replayed as {dotted(settings.capability)})"
        self.shared_memory_per_block = settings.shared
        self.shared_memory_per_block_optin = settings.shared_optin

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._properties, name)

    def __repr__(self) -> str:
        return f"OldProperties(name={self.name!r}, major={self.major}, minor={self.minor})"


def _package(record: Record, torch: Any) -> None:
    record.add_once(
        "process",
        "torch",
        program=program(),
        package="torch",
        version=torch.__version__,
        patched=is_patched(torch),
    )


def is_patched(torch: Any) -> bool:
    """Whether this PyTorch is one of our patched wheels: by what a patch adds to it, as
    ``torch.__version__`` stays what it was built with."""
    file = Path(torch.__file__).with_name("utils") / "_triton.py"
    return file.is_file() and PATCH_MARK in file.read_text(encoding="utf-8")


def _cuda(settings: Settings, cuda: Any) -> None:
    ask, ask_list = cuda.get_device_properties, cuda.get_arch_list

    @functools.wraps(ask)
    def get_device_properties(device: Any = None) -> Any:
        if settings.compile_only:
            # how many multiprocessors there are and the like are facts of a card: AttributeError
            return OldProperties(SimpleNamespace(name="no GPU"), settings)
        return OldProperties(ask(device), settings)

    @functools.wraps(cuda.get_device_capability)
    def get_device_capability(device: Any = None) -> tuple[int, int]:
        properties = get_device_properties(device)
        return properties.major, properties.minor

    @functools.wraps(cuda.get_device_name)
    def get_device_name(device: Any = None) -> str:
        return str(get_device_properties(device).name)

    @functools.wraps(ask_list)
    def get_arch_list() -> list[str]:
        # PyTorch's own kernels run on the GPU at hand: the old one is among those it serves
        found: list[str] = ask_list()
        target = f"sm_{number(settings.capability)}"
        return found if target in found or not found else [target, *found]

    cuda.get_device_properties = get_device_properties
    cuda.get_device_capability = get_device_capability
    cuda.get_device_name = get_device_name
    cuda.get_arch_list = get_arch_list


# PyTorch refuses Triton below 7.0 in the two places below. Our patched wheel does not, and nothing
# here may hide it if one did.


def _unpatched() -> bool:
    return not is_patched(sys.modules["torch"])


def _has_triton(module: Any) -> None:
    has_triton = module.has_triton

    @functools.cache
    def replayed() -> bool:
        if has_triton():
            return True
        available: bool = sys.modules["torch"].cuda.is_available()
        return _unpatched() and module.has_triton_package() and available

    module.has_triton = replayed


def _device_interface(module: Any) -> None:
    interface = module.CudaInterface
    capable = getattr(interface, "is_triton_capable", None)
    if capable is None:  # before PyTorch 2.8
        return

    def is_triton_capable(device: Any = None) -> bool:
        return _unpatched() or bool(capable(device))

    interface.is_triton_capable = staticmethod(is_triton_capable)
