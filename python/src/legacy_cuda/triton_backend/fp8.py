"""fp8 on GPUs without instructions for it: formats to keep values in.

Triton refuses E4M3 (``float8e4nv``) below 8.9 and converts E5M2 (``float8e5``) in ways that lose
infinities and ties there. Here conversions are integer arithmetic and one fp32 operation each,
built as IR. From fp32 they round to the nearest, ties to even, and saturate to the largest number
as the hardware of 8.9 does; NaN stays NaN.

Source of the formats: OCP 8-bit Floating Point Specification (OFP8) 1.0. E4M3 has no infinities,
S.1111.111 is NaN; in E5M2 S.11111.00 is infinity and what is above NaN.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from .ir import splat

_NAN = 0x7F  # of both formats
_INFINITY = 0x7F800000  # of fp32


@dataclass(frozen=True)
class Format:
    """``largest`` is the code of the largest number, ``special`` the fp32 bits of the code behind
    it, from which the others count on."""

    mantissa: int
    bias: int
    largest: int
    special: int

    @property
    def shift(self) -> int:
        """How far its mantissa is from fp32's place."""
        return 23 - self.mantissa

    @property
    def exponents(self) -> int:
        """fp32's bias less its own."""
        return 127 - self.bias


E4M3 = Format(3, 7, 0x7E, 0x7FC00000)
E5M2 = Format(2, 15, 0x7B, _INFINITY)


def make(capability: tuple[int, int]) -> Any:
    """The function for ``codegen_fns["legacy_fp8"]``; None where Triton's own rules stay."""
    if capability >= (7, 5):
        return None

    def convert(
        builder: Any, value: Any, source: Any, target: Any, other_rounding: bool = False
    ) -> Any:
        """A tensor or scalar of Triton type ``source`` as ``target``, handles in and out; None for
        what Triton converts rightly by itself.

        Raises:
            ValueError: E4M3 in another rounding than to the nearest.
        """
        before, after = format_of(source.scalar), format_of(target.scalar)
        if not (source.scalar.is_floating() and target.scalar.is_floating()):
            return None
        if (before is None and after is None) or (before is E5M2 and target.scalar.is_fp16()):
            return None
        if other_rounding:
            if after is E4M3:
                raise ValueError("float8e4nv is rounded to the nearest on this GPU")
            return None
        shape = [int(size) for size in source.shape] if source.is_block() else []
        build = _Build(builder, shape)
        if before is not None:
            number = build.widened(value, before)
        elif source.scalar.is_fp32():
            number = value
        elif source.scalar.is_fp64():
            number = builder.create_fp_trunc(value, build.number)
        else:
            number = builder.create_fp_ext(value, build.number)
        if after is not None:
            return builder.create_bitcast(build.narrowed(number, after), target.to_ir(builder))
        if target.scalar.is_fp32():
            return number
        if target.scalar.is_fp64():
            return builder.create_fp_ext(number, target.to_ir(builder))
        return builder.create_fp_trunc(number, target.to_ir(builder))

    return convert


def format_of(scalar: Any) -> Format | None:
    """The format of a Triton type, if it is one of these."""
    if scalar.is_fp8e4nv():
        return E4M3
    return E5M2 if scalar.is_fp8e5() else None


class _Build:
    """Operations on int32 and fp32 values of one shape; ``[]`` for scalars."""

    def __init__(self, builder: Any, shape: list[int]) -> None:
        self.builder, self.shape = builder, shape
        self.byte = self._type(builder.get_int8_ty())
        self.integer = self._type(builder.get_int32_ty())
        self.number = self._type(builder.get_float_ty())

    def _type(self, element: Any) -> Any:
        return self.builder.get_block_ty(element, self.shape) if self.shape else element

    def constant(self, value: int) -> Any:
        scalar = self.builder.get_int32(value - (1 << 32) if value >> 31 else value)
        return splat(self.builder, scalar, self.integer, self.shape) if self.shape else scalar

    def bits(self, number: Any) -> Any:
        return self.builder.create_bitcast(number, self.integer)

    def float(self, bits: Any) -> Any:
        return self.builder.create_bitcast(bits, self.number)

    def widened(self, value: Any, kind: Format) -> Any:
        """fp8 to fp32, exact: the bits at fp32's places, times the two biases' difference."""
        make, constant = self.builder, self.constant
        code = make.create_int_cast(make.create_bitcast(value, self.byte), self.integer, False)
        magnitude = make.create_and(code, constant(0x7F))
        sign = make.create_shl(make.create_and(code, constant(0x80)), constant(24))
        moved = make.create_shl(magnitude, constant(kind.shift))
        scale = self.float(constant(_float_bits(2.0**kind.exponents)))
        finite = self.bits(make.create_fmul(self.float(moved), scale))
        first = constant(kind.largest + 1 << kind.shift)
        above = make.create_add(make.create_sub(moved, first), constant(kind.special))
        special = make.create_icmpSGT(magnitude, constant(kind.largest))
        return self.float(make.create_or(make.create_select(special, above, finite), sign))

    def narrowed(self, number: Any, kind: Format) -> Any:
        """fp32 to fp8's bits. Normal values are rounded as integers; subnormal ones by adding a
        power of two whose last place in fp32 is that of the format's subnormal numbers."""
        make, constant = self.builder, self.constant
        bits = self.bits(number)
        sign = make.create_and(make.create_lshr(bits, constant(24)), constant(0x80))
        magnitude = make.create_and(bits, constant(0x7FFFFFFF))
        odd = make.create_and(make.create_lshr(magnitude, constant(kind.shift)), constant(1))
        half = constant((1 << kind.shift - 1) - 1)
        rounded = make.create_add(make.create_add(magnitude, half), odd)
        normal = make.create_sub(
            make.create_lshr(rounded, constant(kind.shift)),
            constant(kind.exponents << kind.mantissa),
        )
        magic = constant(_float_bits(2.0 ** (24 - kind.bias - kind.mantissa)))
        small = make.create_fadd(self.float(magnitude), self.float(magic))
        is_small = make.create_icmpSLT(magnitude, constant(_float_bits(2.0 ** (1 - kind.bias))))
        code = make.create_select(is_small, make.create_sub(self.bits(small), magic), normal)
        largest = constant(kind.largest)
        code = make.create_select(make.create_icmpSGT(code, largest), largest, code)
        nan = make.create_icmpSGT(magnitude, constant(_INFINITY))
        code = make.create_or(make.create_select(nan, constant(_NAN), code), sign)
        return make.create_int_cast(code, self.byte, False)


def _float_bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
