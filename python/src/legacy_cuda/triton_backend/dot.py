"""``tl.dot`` on GPUs without tensor cores: which arithmetic it is made of.

Hooked into Triton's ``semantic.dot`` where the operands have been checked and the accumulator
made, so that it is the same for every Triton: it gets IR handles and returns one.

* fp16 and bf16 operands with an fp32 result stay as they are: the back end widens each operand
  after it has been read from shared memory, so that shared memory holds 16 bits an element.
* fp16 results are accumulated in fp32 and rounded once where fp16 arithmetic is slow or missing.
* fp8 operands become fp16 first (exact).
* int8 operands are packed four to a register along K and multiplied by ``dp4a`` where the hardware
  has it. The packed words travel as fp32 values: their dot has the layouts, the shared memory and
  the register tiling of any fp32 dot, and ``mlir.py`` turns its multiply-adds into ``dp4a`` before
  anything looks at them as numbers.
* int8 elsewhere is multiplied in fp32: products of int8 are at most 2^14, so that a sum of 1024
  of them is an integer that fp32 holds exactly (2^24). Longer blocks are multiplied in int32.
"""

from __future__ import annotations

from typing import Any

from . import fp8
from .ir import splat
from .limits import has_dp4a, has_fast_half

DP4A = "legacy_dp4a"
"""The attribute on the dots whose multiply-adds are to become ``dp4a``."""

_EXACT_IN_FP32 = 1024  # products of two int8 values, each at most 2^14, in the 24 bits of fp32


def make(capability: tuple[int, int]) -> Any:
    """The function for ``codegen_fns["legacy_dot"]``; None where the hardware has tensor cores that
    Triton uses (7.5 and newer)."""
    if capability >= (7, 5):
        return None

    def legacy_dot(builder: Any, lhs: Any, rhs: Any, accumulator: Any, result: Any) -> Any:
        """Build the dot of two tensors ``[B,] M, K`` and ``[B,] K, N``; ``accumulator`` is a
        handle and ``result`` its type. Returns a handle.

        The precision asked for (``tf32``, ``bf16x3``) makes no difference: tensor cores have such
        modes, fp32 multiply-adds are exact to fp32 and as fast as anything here.
        """
        from triton._C.libtriton import ir

        precision = ir.INPUT_PRECISION.IEEE
        shape = [int(size) for size in result.shape]
        kind = lhs.type.scalar.name
        a, b = lhs.handle, rhs.handle
        left = [int(size) for size in lhs.type.shape]
        right = [int(size) for size in rhs.type.shape]
        if kind == "int8":
            return _int8(builder, capability, a, left, b, right, accumulator, shape, precision)
        if lhs.type.scalar.is_fp8():
            a = _half(builder, capability, lhs, left)
            b = _half(builder, capability, rhs, right)
            kind = "fp16"
        if result.scalar.name == "fp16" and kind == "fp16" and not has_fast_half(capability):
            wide = builder.get_block_ty(builder.get_float_ty(), shape)
            narrow = builder.get_block_ty(builder.get_half_ty(), shape)
            sums = builder.create_fp_ext(accumulator, wide)
            sums = builder.create_dot(a, b, sums, precision, 0)
            return builder.create_fp_trunc(sums, narrow)
        return builder.create_dot(a, b, accumulator, precision, 0)

    return legacy_dot


def _half(builder: Any, capability: tuple[int, int], operand: Any, shape: list[int]) -> Any:
    """An fp8 operand as fp16, which holds each of its values."""
    if operand.type.scalar.is_fp8e4nv():
        import triton.language as tl

        half = tl.block_type(tl.float16, shape)
        return fp8.make(capability)(builder, operand.handle, operand.type, half)
    return builder.create_fp_to_fp(
        operand.handle, builder.get_block_ty(builder.get_half_ty(), shape), None
    )


def _int8(
    builder: Any,
    capability: tuple[int, int],
    a: Any,
    left: list[int],
    b: Any,
    right: list[int],
    accumulator: Any,
    shape: list[int],
    precision: Any,
) -> Any:
    number = builder.get_block_ty(builder.get_float_ty(), shape)
    integer = builder.get_block_ty(builder.get_int32_ty(), shape)
    depth = left[-1]
    if has_dp4a(capability) and depth % 4 == 0:
        a = _packed(builder, a, left)
        b = _packed(builder, _transposed(builder, b, right), [*right[:-2], right[-1], right[-2]])
        b = _transposed(builder, b, [*right[:-2], right[-1], depth // 4])
        sums = builder.create_bitcast(accumulator, number)
        sums = builder.create_dot(a, b, sums, precision, 0)
        sums.set_attr(DP4A, builder.get_unit_attr())
        return builder.create_bitcast(sums, integer)
    if depth > _EXACT_IN_FP32:
        a = builder.create_int_cast(a, builder.get_block_ty(builder.get_int32_ty(), left), True)
        b = builder.create_int_cast(b, builder.get_block_ty(builder.get_int32_ty(), right), True)
        return builder.create_dot(a, b, accumulator, precision, 0)
    # As bf16, which holds every int8: two bytes in shared memory, and widened by a shift.
    a = builder.create_si_to_fp(a, builder.get_block_ty(builder.get_bf16_ty(), left))
    b = builder.create_si_to_fp(b, builder.get_block_ty(builder.get_bf16_ty(), right))
    zeros = splat(builder, builder.get_fp32(0.0), number, shape)
    sums = builder.create_dot(a, b, zeros, precision, 0)
    return builder.create_add(accumulator, builder.create_fp_to_si(sums, integer))


def _packed(builder: Any, values: Any, shape: list[int]) -> Any:
    """int8 ``[..., K]`` to fp32 ``[..., K / 4]``: four neighbours along K in one word, the first in
    its lowest byte."""
    words = [*shape[:-1], shape[-1] // 4]
    full = builder.get_block_ty(builder.get_int32_ty(), shape)
    block = builder.get_block_ty(builder.get_int32_ty(), words)
    values = builder.create_int_cast(values, full, False)
    pairs = builder.create_reshape(values, [*words, 2, 2], False)
    even, odd = builder.create_split(pairs)
    first, third = builder.create_split(even)
    second, fourth = builder.create_split(odd)
    word = first
    for position, byte in enumerate((second, third, fourth), start=1):
        shift = splat(builder, builder.get_int32(8 * position), block, words)
        word = builder.create_or(word, builder.create_shl(byte, shift))
    return builder.create_bitcast(word, builder.get_block_ty(builder.get_float_ty(), words))


def _transposed(builder: Any, values: Any, shape: list[int]) -> Any:
    rank = len(shape)
    return builder.create_trans(values, [*range(rank - 2), rank - 1, rank - 2])
