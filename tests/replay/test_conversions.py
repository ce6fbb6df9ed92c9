"""Conversions between number formats: every bit pattern of the narrow ones, against PyTorch."""

from __future__ import annotations

from typing import Any

import numerics
import pytest
from numerics import same, torch, triton

tl = pytest.importorskip("triton.language")

BLOCK = 1024
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@triton.jit
def convert(target, source, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + offsets, tl.load(source + offsets).to(target.dtype.element_ty))


def converted(source: Any, dtype: Any, device: str) -> Any:
    count = -(-len(source) // BLOCK) * BLOCK
    padded = torch.cat(
        [
            source.view(torch.uint8),
            torch.zeros((count - len(source)) * source.element_size(), dtype=torch.uint8),
        ]
    ).view(source.dtype)
    target = torch.zeros(count, dtype=dtype, device=device)
    convert[(count // BLOCK,)](target, padded.to(device), BLOCK=BLOCK)
    return target.cpu()[: len(source)]


def patterns(dtype: Any) -> Any:
    """Every bit pattern of a type of 8 or 16 bits."""
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)


def floats(dtype: Any) -> Any:
    """Random numbers over all exponents, numbers around powers of two, and special ones."""
    whole = torch.int32 if dtype is SINGLE else torch.int64
    bounds = torch.iinfo(whole)
    bits = torch.randint(bounds.min, bounds.max, (1 << 20,), dtype=whole).view(dtype)
    powers = 2.0 ** torch.arange(-30, 20).to(dtype)
    # halfway between neighbours of each narrow format, and a little beside
    halfway = [powers * (1 + (2 * step + 1) * 2.0**-digits) for digits in (3, 4, 8, 11)
               for step in range(8)]  # fmt: skip
    beside = [value * (1 + side * 2.0**-22) for value in halfway for side in (-1, 1)]
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan")], dtype=dtype)
    found = torch.cat([bits, powers, *halfway, *beside, special])
    return torch.cat([found, -found])


WIDER = [
    (source, target)
    for source, targets in {
        E5M2: (HALF, BRAIN, SINGLE),
        E4M3: (HALF, BRAIN, SINGLE),
        HALF: (SINGLE, DOUBLE),
        BRAIN: (SINGLE, DOUBLE),
    }.items()
    for target in targets
]


@pytest.mark.parametrize(("source", "target"), WIDER, ids=str)
def test_every_pattern_to_a_wider_type(source: Any, target: Any, device: str) -> None:
    numerics.interpreter_lacks(True, "conversions of its own: it uses NumPy's")
    numerics.needs(source)
    every = patterns(source)
    same(converted(every, target, device), every.to(target))


NARROWER = [
    (source, target)
    for source, targets in {
        SINGLE: (HALF, BRAIN),
        DOUBLE: (SINGLE,),
        HALF: (BRAIN,),
        BRAIN: (HALF,),
    }.items()
    for target in targets
]


@pytest.mark.parametrize(("source", "target"), NARROWER, ids=str)
def test_rounding_to_a_narrower_type(source: Any, target: Any, device: str) -> None:
    """To the nearest, ties to even, overflow to infinity."""
    numerics.interpreter_lacks(True, "conversions of its own: it uses NumPy's")
    values = floats(source) if source.itemsize >= 4 else patterns(source)
    wide = values.to(SINGLE) if source.itemsize == 2 else values
    same(converted(values, target, device), wide.to(target))


@pytest.mark.parametrize("target", [E5M2, E4M3], ids=str)
@pytest.mark.parametrize("source", [SINGLE, HALF, BRAIN], ids=str)
def test_rounding_to_8_bits(source: Any, target: Any, device: str) -> None:
    """To the nearest, ties to even; beyond the largest number the formats' users differ between
    infinity, NaN and the largest number, and Triton does by capability: any of them."""
    numerics.interpreter_lacks(True, "conversions of its own: it uses NumPy's")
    numerics.needs(target)
    values = floats(source) if source is SINGLE else patterns(source)
    largest = torch.finfo(target).max
    inside = values.to(SINGLE).abs() <= largest
    found = converted(values, target, device).to(SINGLE)
    same(found[inside], values[inside].to(SINGLE).to(target).to(SINGLE))
    if numerics.COMPILE_ONLY:
        return
    rest, outside = found[~inside], values[~inside].to(SINGLE)
    assert rest[outside.isnan()].isnan().all()
    beyond = rest[~outside.isnan()]
    assert (beyond.isnan() | (beyond.abs() >= largest)).all()


INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("real", [HALF, BRAIN, SINGLE, DOUBLE], ids=str)
@pytest.mark.parametrize("whole", INTEGERS, ids=str)
def test_integers(whole: Any, real: Any, device: str) -> None:
    numerics.interpreter_lacks(real is BRAIN, "bf16 conversions of its own")
    bounds = torch.iinfo(whole)
    numbers = torch.randint(bounds.min, bounds.max, (1 << 14,), dtype=whole)
    numbers[:4] = torch.tensor([0, -1, bounds.min, bounds.max], dtype=whole)
    expected = numbers.to(real)
    if real is not DOUBLE and whole.itemsize >= 4:
        # PyTorch goes through fp32 to get to 16 bits: rounded twice, as this may be
        found = converted(numbers, real, device)
        exact = numbers.double()
        bound = exact.abs() * numerics.epsilon(real)
        finite = exact.abs() < torch.finfo(real).max / 2
        numerics.close(found[finite], exact[finite], bound[finite])
    else:
        same(converted(numbers, real, device), expected)
    limit = min(bounds.max, 2**11 if real is HALF else 2**8 if real is BRAIN else 2**24)
    reals = ((torch.rand(1 << 14) * 2 - 1) * (limit - 1)).to(real)
    same(converted(reals, whole, device), reals.to(whole))
