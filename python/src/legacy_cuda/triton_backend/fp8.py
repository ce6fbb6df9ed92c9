"""fp8 E4M3 (``float8e4nv``) on GPUs without instructions for it: a format to keep values in.

Conversions are integer arithmetic and one fp32 operation each, built as IR. From fp32 they round to
the nearest, ties to even, and saturate to 448 as the hardware of 8.9 does; NaN stays NaN. Source of
the format: OCP 8-bit Floating Point Specification (OFP8) 1.0, E4M3: bias 7, no infinities,
S.1111.111 is NaN.
"""

from __future__ import annotations

import struct
from typing import Any

from .ir import splat

_EXPONENTS = 127 - 7  # fp32's bias less E4M3's
_NAN, _LARGEST = 0x7F, 0x7E


def make(capability: tuple[int, int]) -> Any:
    """The function for ``codegen_fns["legacy_fp8e4nv"]``; None where Triton's own rules stay."""
    if capability >= (7, 5):
        return None

    def convert(builder: Any, value: Any, source: Any, target: Any) -> Any:
        """A tensor or scalar of Triton type ``source`` as ``target``, both floating point and one
        of them ``float8e4nv``; handles in and out."""
        shape = [int(size) for size in source.shape] if source.is_block() else []
        build = _Build(builder, shape)
        if source.scalar.is_fp8e4nv():
            number = build.widened(value)
        elif source.scalar.is_fp32():
            number = value
        elif source.scalar.is_fp64():
            number = builder.create_fp_trunc(value, build.type(builder.get_float_ty()))
        elif source.scalar.is_fp8():
            number = builder.create_fp_to_fp(value, build.type(builder.get_float_ty()), None)
        else:
            number = builder.create_fp_ext(value, build.type(builder.get_float_ty()))
        return build.converted(number, target)

    return convert


class _Build:
    """Operations on int32 and fp32 values of one shape, by operator names that say what they do."""

    def __init__(self, builder: Any, shape: list[int]) -> None:
        self.builder, self.shape = builder, shape
        self.integer = self.type(builder.get_int32_ty())
        self.number = self.type(builder.get_float_ty())

    def type(self, element: Any) -> Any:
        return self.builder.get_block_ty(element, self.shape) if self.shape else element

    def constant(self, value: int) -> Any:
        if value >= 1 << 31:
            value -= 1 << 32
        scalar = self.builder.get_int32(value)
        return splat(self.builder, scalar, self.integer, self.shape) if self.shape else scalar

    def bits(self, number: Any) -> Any:
        return self.builder.create_bitcast(number, self.integer)

    def float(self, bits: Any) -> Any:
        return self.builder.create_bitcast(bits, self.number)

    def widened(self, value: Any) -> Any:
        """E4M3 to fp32, exact: the bits at fp32's places, times the two biases' difference."""
        make, constant = self.builder, self.constant
        byte = make.create_bitcast(value, self.type(make.get_int8_ty()))
        byte = make.create_int_cast(byte, self.integer, False)
        magnitude = make.create_and(byte, constant(0x7F))
        sign = make.create_shl(make.create_and(byte, constant(0x80)), constant(24))
        scale = self.float(constant(_float_bits(2.0**_EXPONENTS)))
        number = make.create_fmul(self.float(make.create_shl(magnitude, constant(20))), scale)
        nan = make.create_icmpEQ(magnitude, constant(_NAN))
        bits = make.create_select(nan, constant(0x7FC00000), self.bits(number))
        return self.float(make.create_or(bits, sign))

    def narrowed(self, number: Any) -> Any:
        """fp32 to E4M3. Normal values are rounded as integers; subnormal ones, multiples of 2^-9,
        by adding 2^14, whose last place in fp32 is 2^-9."""
        make, constant = self.builder, self.constant
        bits = self.bits(number)
        sign = make.create_and(make.create_lshr(bits, constant(24)), constant(0x80))
        magnitude = make.create_and(bits, constant(0x7FFFFFFF))
        odd = make.create_and(make.create_lshr(magnitude, constant(20)), constant(1))
        rounded = make.create_add(make.create_add(magnitude, constant(0x7FFFF)), odd)
        normal = make.create_sub(make.create_lshr(rounded, constant(20)), constant(_EXPONENTS << 3))
        magic = constant(_float_bits(2.0**14))
        sum_ = make.create_fadd(self.float(magnitude), self.float(magic))
        small = make.create_sub(self.bits(sum_), magic)
        is_small = make.create_icmpSLT(magnitude, constant(_float_bits(2.0**-6)))
        result = make.create_select(is_small, small, normal)
        too_large = make.create_icmpSGT(result, constant(_LARGEST))
        result = make.create_select(too_large, constant(_LARGEST), result)
        nan = make.create_icmpSGT(magnitude, constant(0x7F800000))
        result = make.create_select(nan, constant(_NAN), result)
        result = make.create_or(result, sign)
        return make.create_int_cast(result, self.type(make.get_int8_ty()), False)

    def converted(self, number: Any, target: Any) -> Any:
        make, kind = self.builder, target.scalar
        final = target.to_ir(make)
        if kind.is_fp8e4nv():
            return make.create_bitcast(self.narrowed(number), final)
        if kind.is_fp32():
            return number
        if kind.is_fp64():
            return make.create_fp_ext(number, final)
        if kind.is_fp8():
            from triton._C.libtriton import ir

            return make.create_fp_to_fp(number, final, ir.ROUNDING_MODE.RTNE)
        return make.create_fp_trunc(number, final)


def _float_bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
