"""Loads and stores with cache and eviction hints, masks and fill values."""

from __future__ import annotations

from typing import Any

import pytest
from numerics import MASKS, mask_of, same, torch, triton

tl = pytest.importorskip("triton.language")

BLOCK, PROGRAMS = 1024, 8
DTYPES = [torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.float32, torch.int64]


@triton.jit
def copy(
    target,
    source,
    mask,
    fill,
    CACHE: tl.constexpr,
    EVICT: tl.constexpr,
    STORE: tl.constexpr,
    VOLATILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Masked lanes get the fill value; only chosen lanes are stored in the second half."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    chosen = tl.load(mask + offsets) != 0
    other = tl.load(fill)
    value = tl.load(
        source + offsets,
        mask=chosen,
        other=other,
        cache_modifier=CACHE,
        eviction_policy=EVICT,
        volatile=VOLATILE,
    )
    total = tl.num_programs(0) * BLOCK
    tl.store(target + offsets, value, cache_modifier=STORE, eviction_policy=EVICT)
    tl.store(
        target + total + offsets, value, mask=chosen, cache_modifier=STORE, eviction_policy=EVICT
    )


HINTS = [
    (cache, evict, store)
    for cache in ("", ".ca", ".cg", ".cv")
    for evict in ("", "evict_first", "evict_last")
    for store in ("", ".wb", ".cg", ".cs", ".wt")
    # ptxas takes no hint of eviction beside another, on any capability
    if not (evict and (store or cache))
]


@pytest.mark.parametrize("hints", HINTS, ids=lambda hints: "/".join(hints) or "none")
@pytest.mark.parametrize("dtype", DTYPES[::2], ids=str)
def test_hints(dtype: Any, hints: tuple[str, str, str], device: str) -> None:
    check(dtype, hints, False, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("evict", ["", "evict_first", "evict_last"])
def test_eviction(dtype: Any, evict: str, device: str) -> None:
    """The hints that Inductor writes by itself, on every width."""
    check(dtype, ("", evict, ""), False, device)


def test_volatile(device: str) -> None:
    check(torch.float32, ("", "", ""), True, device)


def check(dtype: Any, hints: tuple[str, str, str], volatile: bool, device: str) -> None:
    total = BLOCK * PROGRAMS
    for kind in MASKS:
        mask = torch.cat([mask_of(kind, BLOCK) for _ in range(PROGRAMS)])
        source = torch.randint(-100, 100, (total,)).to(dtype)
        fill = torch.randint(-100, 100, (1,)).to(dtype)
        target = torch.full((2 * total,), 3).to(dtype).to(device)
        copy[(PROGRAMS,)](
            target, source.to(device), mask.to(device), fill.to(device),
            CACHE=hints[0], EVICT=hints[1], STORE=hints[2], VOLATILE=volatile, BLOCK=BLOCK,
        )  # fmt: skip
        loaded = torch.where(mask != 0, source, fill)
        kept = torch.where(mask != 0, source, torch.full_like(source, 3))
        same(target.cpu(), torch.cat([loaded, kept]))
