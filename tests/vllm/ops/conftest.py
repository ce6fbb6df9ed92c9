"""Operators of vLLM's extension beside references in higher precision, on a GPU.

    legacy-cuda replay --capability 6.1 --libraries DIR -- python -m pytest tests/vllm/ops

The extension is that of the vLLM which is installed, or ``_C.abi3.so`` and ``_moe_C.abi3.so`` in
the folder LEGACY_CUDA_VLLM_EXTENSION (``tests/vllm/extension.py`` makes them). Inputs are new in
every run; LEGACY_CUDA_TEST_SEED repeats them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest


def _seed() -> int:
    chosen = os.environ.get("LEGACY_CUDA_TEST_SEED")
    return int(chosen) if chosen else int.from_bytes(os.urandom(4), "little")


def pytest_configure(config: pytest.Config) -> None:
    """One seed for all workers of pytest-xdist, which inherit it."""
    os.environ.setdefault("LEGACY_CUDA_TEST_SEED", str(_seed()))
    config.addinivalue_line("markers", "without_gpu: runs where there is no GPU")


def pytest_report_header() -> str:
    seed = os.environ["LEGACY_CUDA_TEST_SEED"]
    return f"random inputs: LEGACY_CUDA_TEST_SEED={seed} gives these again"


@pytest.fixture(scope="session", autouse=True)
def extension() -> None:
    """The operators, registered."""
    torch = pytest.importorskip("torch", reason="skipped: no PyTorch here")
    folder = os.environ.get("LEGACY_CUDA_VLLM_EXTENSION")
    if folder:
        for name in ("_C", "_moe_C"):
            torch.ops.load_library(str(Path(folder) / f"{name}.abi3.so"))
        return
    try:
        import vllm._C
        import vllm._moe_C  # noqa: F401
    except ImportError as error:
        pytest.skip(f"skipped: vLLM's extension is not here: {error}")


@pytest.fixture(autouse=True)
def on_a_gpu(request: pytest.FixtureRequest, extension: None) -> Iterator[None]:
    """Tensors are made on the GPU, with random numbers of the test's own."""
    if request.node.get_closest_marker("without_gpu"):
        yield
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("skipped: no GPU here")
    seed = int(os.environ["LEGACY_CUDA_TEST_SEED"]) + zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(seed % (1 << 31))
    with torch.device("cuda"):
        yield
    torch.cuda.synchronize()
