"""In front of PYTHONPATH where vLLM is replayed: it asks NVML for a card's capability, which tells
that of the GPU at hand. A replay stands before CUDA and PyTorch alone.

LEGACY_CUDA_REPLAY_NVML is the capability to tell, for example 6.1.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType
from typing import Any

NAME = "vllm.third_party.pynvml"


class Told(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads vLLM's pynvml and changes one function of it."""

    inner: Any = None

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != NAME:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            self.inner, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        major, minor = os.environ["LEGACY_CUDA_REPLAY_NVML"].split(".")
        told = int(major), int(minor)
        pynvml: Any = module
        pynvml.nvmlDeviceGetCudaComputeCapability = lambda handle: told


if "LEGACY_CUDA_REPLAY_NVML" in os.environ:
    sys.meta_path.insert(0, Told())
