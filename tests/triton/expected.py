"""What cannot be had, as data: cells that must not compile, and why. Everything else must."""

from __future__ import annotations

from dataclasses import dataclass

Pair = tuple[int, int]


@dataclass(frozen=True)
class Refusal:
    """A kernel is refused from one capability up to (not with) another, with a certain message."""

    kernel: str
    below: Pair
    message: str
    reason: str
    since: Pair = (0, 0)


REFUSALS = (
    Refusal(
        "add_in_clusters",
        below=(9, 0),
        message="num_ctas > 1",
        reason="clusters of blocks are hardware of 9.0 and newer (CUDA C++ Programming Guide,"
        " Thread Block Clusters)",
    ),
    Refusal(
        "transpose_128_kib",
        below=(8, 0),
        message="transpose needs 13",
        reason="a block has 48 KiB of shared memory on 3.x to 6.x and 96 KiB on 7.0 (CUDA C++"
        " Programming Guide, technical specifications)",
    ),
    Refusal(
        "matmul_microscaled_e4m3",
        below=(8, 9),
        message="e4m3",
        reason="Triton lowers e4m3 in dot_scaled by instructions of 8.9 and newer (PTX ISA, cvt"
        " with .e4m3x2); float8e4nv outside dot_scaled works",
    ),
    Refusal(
        "inline_tanh",
        since=(7, 0),
        below=(7, 5),
        message="'tanh' requires .target sm_75",
        reason="tanh.approx is hardware of 7.5 and newer (PTX ISA, tanh); it stands in the kernel's"
        " own assembly, which is rewritten below 7.0 only",
    ),
)

#: Kernels that may compute in fp16 at 5.2 and 6.1, and why.
HALF_KEPT = {
    "through_fp8e4b15": "Triton's own inline assembly for float8e4b15 compares halves",
}


def refusal(kernel: str, capability: Pair) -> Refusal | None:
    """Why this cell must not compile, or None if it must."""
    for rule in REFUSALS:
        if rule.kernel == kernel and rule.since <= capability < rule.below:
            return rule
    return None
