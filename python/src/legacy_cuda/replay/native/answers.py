"""What an old card would say to a program that asks about its GPU, as the shim reads it."""

from __future__ import annotations

from enum import IntEnum

from legacy_cuda.catalog import CapabilityFacts
from legacy_cuda.replay.inside.settings import PREFIX


class Attribute(IntEnum):
    """Device attributes: ``CU_DEVICE_ATTRIBUTE_...`` of cuda.h, of CUDA 11.8, 12.4 and 13.0.
    ``cudaDeviceAttr`` of the runtime has the same numbers."""

    MAX_SHARED_MEMORY_PER_BLOCK = 8
    MAX_REGISTERS_PER_BLOCK = 12
    MULTIPROCESSOR_COUNT = 16
    L2_CACHE_SIZE = 38
    MAX_THREADS_PER_MULTIPROCESSOR = 39
    COMPUTE_CAPABILITY_MAJOR = 75
    COMPUTE_CAPABILITY_MINOR = 76
    MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81
    MAX_REGISTERS_PER_MULTIPROCESSOR = 82
    SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO = 87
    PAGEABLE_MEMORY_ACCESS = 88
    CONCURRENT_MANAGED_ACCESS = 89
    COMPUTE_PREEMPTION_SUPPORTED = 90
    COOPERATIVE_LAUNCH = 95
    COOPERATIVE_MULTI_DEVICE_LAUNCH = 96
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97
    PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES = 100
    DIRECT_MANAGED_MEM_ACCESS_FROM_HOST = 101
    MAX_BLOCKS_PER_MULTIPROCESSOR = 106
    GENERIC_COMPRESSION_SUPPORTED = 107
    MAX_PERSISTING_L2_CACHE_SIZE = 108
    MAX_ACCESS_POLICY_WINDOW_SIZE = 109
    RESERVED_SHARED_MEMORY_PER_BLOCK = 111
    CLUSTER_LAUNCH = 120
    DMA_BUF_SUPPORTED = 124
    MEM_SYNC_DOMAIN_COUNT = 126
    TENSOR_MAP_ACCESS_SUPPORTED = 127
    HANDLE_TYPE_FABRIC_SUPPORTED = 128
    MULTICAST_SUPPORTED = 132


LEFT_ALONE = (
    *("libtorch", "libc10", "libcaffe2_nvrtc"),
    *("libcuda.so", "libcudart.so", "libcublas", "libcudnn", "libcufft", "libcufile", "libcupti"),
    *("libcurand", "libcusolver", "libcusparse", "libcutensor", "libnccl", "libnpp", "libnvinfer"),
    *("libnvJitLink", "libnvjpeg", "libnvrtc", "libnvshmem"),
)
"""Beginnings of the names of libraries that see the GPU as it is: they hold code for it, and would
choose kernels that it has not."""


def answers(facts: CapabilityFacts, multiprocessors: int = 0) -> dict[Attribute, int]:
    """What a card of that capability answers; what is not in it is answered by the GPU at hand.

    Left to it, because it is the same or cannot be known of a capability: the amount of memory,
    clocks, limits of textures, grids and blocks, unified addressing, managed memory as such,
    virtual memory management and memory pools (the driver's, on old cards too), peer access. The
    number of multiprocessors is only answered if ``multiprocessors`` says one.
    """
    known: dict[Attribute, int | None] = {
        Attribute.COMPUTE_CAPABILITY_MAJOR: facts.capability.major,
        Attribute.COMPUTE_CAPABILITY_MINOR: facts.capability.minor,
        Attribute.MULTIPROCESSOR_COUNT: multiprocessors or None,
        Attribute.MAX_SHARED_MEMORY_PER_BLOCK: facts.shared_memory_per_block_kib << 10,
        Attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: facts.shared_memory_optin_kib << 10,
        Attribute.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: _bytes(
            facts.shared_memory_per_multiprocessor_kib
        ),
        Attribute.RESERVED_SHARED_MEMORY_PER_BLOCK: facts.shared_memory_reserved_kib << 10,
        Attribute.MAX_REGISTERS_PER_BLOCK: facts.registers_per_block,
        Attribute.MAX_REGISTERS_PER_MULTIPROCESSOR: facts.registers_per_multiprocessor,
        Attribute.MAX_THREADS_PER_MULTIPROCESSOR: facts.threads_per_multiprocessor,
        Attribute.MAX_BLOCKS_PER_MULTIPROCESSOR: facts.blocks_per_multiprocessor,
        Attribute.L2_CACHE_SIZE: _bytes(facts.l2_cache_kib),
        Attribute.SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO: _denominator(facts.fp64_fp32_ratio),
        Attribute.CONCURRENT_MANAGED_ACCESS: None if facts.page_migration else 0,
        Attribute.COMPUTE_PREEMPTION_SUPPORTED: None if facts.page_migration else 0,
        Attribute.COOPERATIVE_LAUNCH: None if facts.cooperative_launch else 0,
        Attribute.COOPERATIVE_MULTI_DEVICE_LAUNCH: None if facts.cooperative_launch else 0,
    }
    if not facts.l2_persistence:
        known[Attribute.MAX_PERSISTING_L2_CACHE_SIZE] = 0
        known[Attribute.MAX_ACCESS_POLICY_WINDOW_SIZE] = 0
        known[Attribute.GENERIC_COMPRESSION_SUPPORTED] = 0  # of the same generation
    if not facts.open_kernel_module:  # what only that module does, on a PC
        known[Attribute.PAGEABLE_MEMORY_ACCESS] = 0
        known[Attribute.PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES] = 0
        known[Attribute.DIRECT_MANAGED_MEM_ACCESS_FROM_HOST] = 0
        known[Attribute.DMA_BUF_SUPPORTED] = 0
    if not facts.clusters:  # and what came with them
        known[Attribute.CLUSTER_LAUNCH] = 0
        known[Attribute.MEM_SYNC_DOMAIN_COUNT] = 1
        known[Attribute.TENSOR_MAP_ACCESS_SUPPORTED] = 0
        known[Attribute.HANDLE_TYPE_FABRIC_SUPPORTED] = 0
        known[Attribute.MULTICAST_SUPPORTED] = 0
    return {question: value for question, value in known.items() if value is not None}


def refusals(facts: CapabilityFacts) -> tuple[str, ...]:
    """What a card of that capability refuses, in the shim's words."""
    words = {
        "cooperative": not facts.cooperative_launch,
        "clusters": not facts.clusters,
        "gemm_ex": not facts.cublas_gemm_ex,
        "half_gemm": facts.fp16_fp32_ratio == "none",
    }
    return tuple(word for word, refused in words.items() if refused)


def variables(facts: CapabilityFacts, multiprocessors: int = 0) -> dict[str, str]:
    """The environment variables that the shim reads."""
    told = answers(facts, multiprocessors)
    return {
        f"{PREFIX}_HOST": ",".join(f"{int(name)}={told[name]}" for name in sorted(told)),
        f"{PREFIX}_REFUSE": " ".join(refusals(facts)),
        f"{PREFIX}_LEAVE": " ".join(LEFT_ALONE),
    }


def question(number: int) -> str:
    """The name of an attribute, for a report."""
    try:
        return Attribute(number).name.lower()
    except ValueError:
        return str(number)


def _bytes(kib: int | None) -> int | None:
    return None if kib is None else kib << 10


def _denominator(ratio: str | None) -> int | None:
    """``"1:32"`` as 32: how much faster single precision is."""
    return int(ratio.partition(":")[2]) if ratio and ratio.startswith("1:") else None
