"""Arithmetic of formats that the hardware does not have, as statements of a block.

fp32 holds every fp16, bf16 and fp8 value. Where a result is rounded twice, the first rounding is to
odd: towards zero, and the last bit is set if anything was lost. The second then rounds as if it had
seen the exact value (Boldo and Melquiond, "When double rounding is odd": two more bits are enough;
fp32 has 13 more than fp16 and 16 more than bf16). A single addition, subtraction or multiplication
needs no such care: 24 bits are at least twice 11 and two more (Figueroa, "When is double rounding
innocuous?").
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ptx import Block

NAN32, NAN16 = "0x7FFFFFFF", "0x7FFF"  # what the hardware makes of every NaN


@dataclass(frozen=True)
class Small:
    """An 8-bit format. ``bias`` of its exponent, bits of its ``mantissa``, its ``largest`` finite
    pattern. Source: OCP 8-bit Floating Point Specification (OFP8) 1.0."""

    bias: int
    mantissa: int
    largest: int


SMALL = {"e4m3x2": Small(7, 3, 0x7E), "e5m2x2": Small(15, 2, 0x7B)}


def widened(block: Block, kind: str, half: str) -> str:
    """fp16 or bf16 (``f16``, ``bf16``) as fp32, exact."""
    if kind == "bf16":
        return block.b32("mov.b32", f"{{0, {half}}}")
    return block.b32("cvt.f32.f16", half)


def narrowed(
    block: Block,
    kind: str,
    number: str,
    rounding: str = "rn",
    relu: bool = False,
    satfinite: bool = False,
) -> str:
    """fp32 as fp16 or bf16, rounded to nearest even (``rn``) or to zero (``rz``). NaN stays NaN.

    ``relu`` makes 0 of what is negative, ``satfinite`` the largest number of what is larger.
    """
    if relu:
        number = rectified(block, number)
    if kind == "bf16":
        half = _bf16(block, number, rounding)
        infinite, largest = "0x7F80", "0x7F7F"
    else:
        half = block.b16(f"cvt.{rounding}.f16.f32", number)
        infinite, largest = "0x7C00", "0x7BFF"
    if not satfinite:
        return half
    magnitude = block.b16("and.b16", half, "0x7FFF")
    over = block.pred("setp.eq.s16", magnitude, infinite)
    sign = block.b16("and.b16", half, "0x8000")
    limit = block.b16("or.b16", sign, largest)
    return block.b16("selp.b16", limit, half, over)


def _bf16(block: Block, number: str, rounding: str) -> str:
    nan = block.pred("setp.nan.f32", number, number)
    bits = number
    if rounding == "rn":
        odd = block.b32("bfe.u32", number, 16, 1)
        bits = block.b32("add.u32", number, "0x7FFF")
        bits = block.b32("add.u32", bits, odd)
    bits = block.b32("shr.u32", bits, 16)
    bits = block.b32("selp.b32", NAN16, bits, nan)
    return block.b16("cvt.u16.u32", bits)


def rectified(block: Block, number: str) -> str:
    """fp32, 0 in place of what is negative; NaN stays."""
    negative = block.pred("setp.le.f32", number, "0f00000000")
    return block.b32("selp.b32", 0, number, negative)


def odd_from_f64(block: Block, number: str) -> str:
    """fp64 rounded to fp32, to odd."""
    rounded = block.b32("cvt.rz.f32.f64", number)
    back = block.b64("cvt.f64.f32", rounded)
    return _odd(block, rounded, block.pred("setp.neu.f64", number, back))


def odd_from_integer(block: Block, kind: str, number: str) -> str:
    """A 32-bit or 64-bit integer of type ``kind`` (``s64``) rounded to fp32, to odd."""
    rounded = block.b32(f"cvt.rz.f32.{kind}", number)
    size = f"b{kind[1:]}"
    back = block.new(size)
    block.do(f"cvt.rzi.{kind}.f32", back, rounded)
    return _odd(block, rounded, block.pred(f"setp.ne.{size}", number, back))


def odd_fma(block: Block, a: str, b: str, c: str) -> str:
    """``a * b + c`` of fp32 operands rounded to fp32, to odd."""
    low = block.b32("fma.rm.f32", a, b, c)
    high = block.b32("fma.rp.f32", a, b, c)
    rounded = block.b32("fma.rz.f32", a, b, c)
    exact = block.b32("fma.rn.f32", a, b, c)  # its zero has the right sign
    lost = block.pred("setp.neu.f32", low, high)
    odd = block.b32("or.b32", rounded, 1)
    return block.b32("selp.b32", odd, exact, lost)


def _odd(block: Block, rounded: str, lost: str) -> str:
    odd = block.b32("or.b32", rounded, 1)
    return block.b32("selp.b32", odd, rounded, lost)


def tanh(block: Block, number: str) -> str:
    """The hyperbolic tangent of an fp32 number, relative error below 2**-12.

    ``1 - 2 / (exp(2|x|) + 1)``; below 1/4, where that cancels, three terms of the series: the
    fourth is smaller than 17/315 x**6 < 2**-16 relatively.
    """
    size = block.b32("and.b32", number, "0x7FFFFFFF")
    power = block.b32("mul.rn.f32", size, "0f4038AA3B")  # 2 log2(e)
    power = block.b32("ex2.approx.f32", power)
    power = block.b32("add.rn.f32", power, "0f3F800000")
    inverse = block.b32("rcp.approx.f32", power)
    large = block.b32("fma.rn.f32", inverse, "0fC0000000", "0f3F800000")
    square = block.b32("mul.rn.f32", size, size)
    series = block.b32("fma.rn.f32", square, "0f3E088889", "0fBEAAAAAB")  # 2/15, -1/3
    series = block.b32("mul.rn.f32", series, square)
    series = block.b32("fma.rn.f32", series, size, size)
    small = block.pred("setp.lt.f32", size, "0f3E800000")
    value = block.b32("selp.b32", series, large, small)
    sign = block.b32("and.b32", number, "0x80000000")
    return block.b32("or.b32", value, sign)


def to_small(block: Block, kind: str, number: str, relu: bool) -> str:
    """fp32 as an 8-bit format in the low byte of 32 bits: to the nearest, ties to even, what is
    too large (infinity too) as the largest number with its sign, NaN as 0x7F."""
    small = SMALL[kind]
    magnitude = block.b32("and.b32", number, "0x7FFFFFFF")
    # Below the smallest normal number: adding this power of two leaves the multiple of the
    # format's quantum, rounded by the adder, in the low bits.
    power = _float_bits(23 + 1 - small.bias - small.mantissa)
    tiny = block.b32("add.rn.f32", magnitude, f"0f{power:08X}")
    tiny = block.b32("sub.u32", tiny, power)
    # A normal one: round in the integer; a carry goes up into the exponent by itself.
    cut = 23 - small.mantissa
    odd = block.b32("bfe.u32", magnitude, cut, 1)
    bits = block.b32("add.u32", magnitude, (1 << (cut - 1)) - 1)
    bits = block.b32("add.u32", bits, odd)
    bits = block.b32("shr.u32", bits, cut)
    bits = block.b32("sub.u32", bits, (127 - small.bias) << small.mantissa)
    below = block.pred("setp.lt.u32", magnitude, _float_bits(1 - small.bias))
    byte = block.b32("selp.b32", tiny, bits, below)
    byte = block.b32("min.u32", byte, small.largest)
    sign = block.b32("shr.u32", number, 24)
    sign = block.b32("and.b32", sign, "0x80")
    byte = block.b32("or.b32", byte, sign)
    if relu:
        negative = block.pred("setp.lt.s32", number, 0)
        byte = block.b32("selp.b32", 0, byte, negative)
    nan = block.pred("setp.gt.u32", magnitude, "0x7F800000")
    return block.b32("selp.b32", "0x7F", byte, nan)


def from_small(block: Block, kind: str, byte: str, relu: bool) -> str:
    """An 8-bit format in the low byte of 32 bits as fp16, exact; NaN as 0x7FFF."""
    small = SMALL[kind]
    magnitude = block.b32("and.b32", byte, "0x7F")
    bits = block.b32("shl.b32", magnitude, 23 - small.mantissa)
    number = block.b32("mul.rn.f32", bits, f"0f{_float_bits(127 - small.bias):08X}")
    half = block.b16("cvt.rn.f16.f32", number)
    wide = block.b32("cvt.u32.u16", half)
    sign = block.b32("and.b32", byte, "0x80")
    sign = block.b32("shl.b32", sign, 8)
    wide = block.b32("or.b32", wide, sign)
    if relu:
        negative = block.pred("setp.ne.u32", sign, 0)
        wide = block.b32("selp.b32", 0, wide, negative)
    first = {"e4m3x2": "0x7F", "e5m2x2": "0x7D"}[kind]
    nan = block.pred("setp.ge.u32", magnitude, first)
    wide = block.b32("selp.b32", NAN16, wide, nan)
    return block.b16("cvt.u16.u32", wide)


def _float_bits(exponent: int) -> int:
    """The bits of the fp32 number ``2**exponent``."""
    return (127 + exponent) << 23
