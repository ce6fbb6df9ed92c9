"""Where the tests of this folder run, and their random numbers.

* on a GPU, replayed or not;
* with TRITON_INTERPRET=1 on the CPU, which shows that the tests themselves are right;
* in ``legacy-cuda replay --compile-only``: everything compiles, no numbers are compared.
"""

from __future__ import annotations

import os
import zlib
from typing import Any

import pytest
from shards import pytest_addoption, pytest_collection_modifyitems, pytest_configure
from where import COMPILE_ONLY, INTERPRETED

__all__ = ["pytest_addoption", "pytest_collection_modifyitems", "pytest_configure"]


def _seed() -> int:
    chosen = os.environ.get("LEGACY_CUDA_TEST_SEED")
    return int(chosen) if chosen else int.from_bytes(os.urandom(4), "little")


SEED = _seed()


def pytest_report_header() -> str:
    return f"random inputs: LEGACY_CUDA_TEST_SEED={SEED} gives these again"


@pytest.fixture(scope="session")
def device() -> str:
    """Where tensors go."""
    torch = pytest.importorskip("torch", reason="skipped: no PyTorch here")
    if INTERPRETED or COMPILE_ONLY:
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("skipped: no GPU here")
    return "cuda"


@pytest.fixture
def parallel(device: str) -> None:
    """For tests that mean nothing where programs run one after the other."""
    if INTERPRETED:
        pytest.skip("skipped: the interpreter runs one program after the other")


@pytest.fixture
def compiled(device: str) -> None:
    """For tests of what only a compiler makes: inline assembly, say."""
    if INTERPRETED:
        pytest.skip("skipped: the interpreter compiles nothing")


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> Any:
    """Fresh random numbers each run, other ones for each test; the header says how to repeat."""
    try:
        import torch
    except ImportError:
        return None
    seed = (SEED + zlib.crc32(request.node.nodeid.encode())) % (1 << 31)
    torch.manual_seed(seed)
    return seed
