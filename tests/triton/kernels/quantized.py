"""Products with 8-bit and 4-bit numbers, and the kernels that make such numbers."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .spec import Corpus

corpus = Corpus()


@triton.jit
def int8_scaled(
    a_ptr,
    b_ptr,
    c_ptr,
    a_scale_ptr,
    b_scale_ptr,
    bias_ptr,
    rows,
    columns,
    depth,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """int8 by int8 with a scale a token and a channel, and a bias."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    total = tl.zeros((M, N), dtype=tl.int32)
    for start in range(0, depth, K):
        inner = start + k < depth
        a = tl.load(
            a_ptr + m[:, None] * depth + (start + k)[None, :],
            mask=(m < rows)[:, None] & inner[None, :],
            other=0,
        )
        b = tl.load(
            b_ptr + (start + k)[:, None] * columns + n[None, :],
            mask=inner[:, None] & (n < columns)[None, :],
            other=0,
        )
        total = tl.dot(a, b, total, out_dtype=tl.int32)
    a_scale = tl.load(a_scale_ptr + m, mask=m < rows, other=0.0)
    b_scale = tl.load(b_scale_ptr + n, mask=n < columns, other=0.0)
    bias = tl.load(bias_ptr + n, mask=n < columns, other=0.0)
    out = total.to(tl.float32) * a_scale[:, None] * b_scale[None, :] + bias[None, :]
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    to = c_ptr + m[:, None] * columns + n[None, :]
    tl.store(to, out.to(c_ptr.dtype.element_ty), mask=inside)


for _kind in ("fp16", "bf16"):
    corpus.add(
        f"int8_scaled_{_kind}",
        int8_scaled,
        f"*i8 *i8 *{_kind} *fp32 *fp32 *{_kind} i32 i32 i32",
        {"M": 32, "N": 64, "K": 64},
        "dot int8-dot quantized",
        multiples="columns depth",
    )


@triton.jit
def int8_block_scaled(
    a_ptr,
    b_ptr,
    c_ptr,
    a_scale_ptr,
    b_scale_ptr,
    columns,
    depth,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """int8 with a scale for every K elements: each step's sums are scaled on their own."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    total = tl.zeros((M, N), dtype=tl.float32)
    steps = depth // K
    for step in range(0, steps):
        a = tl.load(a_ptr + m[:, None] * depth + (step * K + k)[None, :])
        b = tl.load(b_ptr + n[None, :] * depth + (step * K + k)[:, None])
        a_scale = tl.load(a_scale_ptr + m * steps + step)
        b_scale = tl.load(b_scale_ptr + (n // K) * steps + step)
        total += tl.dot(a, b).to(tl.float32) * a_scale[:, None] * b_scale[None, :]
    tl.store(c_ptr + m[:, None] * columns + n[None, :], total.to(tl.float16))


corpus.add(
    "int8_block_scaled",
    int8_block_scaled,
    "*i8 *i8 *fp16 *fp32 *fp32 i32 i32",
    {"M": 32, "N": 32, "K": 128},
    "dot int8-dot quantized",
    multiples="columns depth",
)


@triton.jit
def awq_dequantize(
    packed_ptr, scale_ptr, zero_ptr, out_ptr, rows, words, group, Y: tl.constexpr, X: tl.constexpr
):
    """Eight 4-bit weights a word, in AWQ's interleaved order, to fp16."""
    y = tl.program_id(0) * Y + tl.arange(0, Y)
    x = tl.program_id(1) * X + tl.arange(0, X)
    inside = (y < rows)[:, None] & (x < words)[None, :]
    packed = tl.load(packed_ptr + y[:, None] * words + x[None, :], mask=inside, other=0)
    packed = tl.interleave(packed, packed)
    packed = tl.interleave(packed, packed)
    packed = tl.interleave(packed, packed)
    place = tl.arange(0, 2)[None, :] * 4 + tl.arange(0, 4)[:, None]
    shift = tl.broadcast_to(tl.reshape(place, (8,))[None, :] * 4, (Y * X, 8))
    shift = tl.reshape(shift, (Y, X * 8))
    weight = (packed >> shift) & 15
    zeros_at = (y // group)[:, None] * words + x[None, :]
    zero = tl.load(zero_ptr + zeros_at, mask=inside, other=0)
    zero = tl.interleave(zero, zero)
    zero = tl.interleave(zero, zero)
    zero = (tl.interleave(zero, zero) >> shift) & 15
    column = tl.program_id(1) * X * 8 + tl.arange(0, X * 8)
    wide = (y < rows)[:, None] & (column < words * 8)[None, :]
    scale = tl.load(
        scale_ptr + (y // group)[:, None] * words * 8 + column[None, :], mask=wide, other=0.0
    )
    out = (weight - zero).to(tl.float16) * scale
    tl.store(out_ptr + y[:, None] * words * 8 + column[None, :], out, mask=wide)


corpus.add(
    "awq_dequantize",
    awq_dequantize,
    "*i32 *fp16 *i32 *fp16 i32 i32 i32",
    {"Y": 16, "X": 8},
    "quantized",
    multiples="words",
)


@triton.jit
def awq_matmul(
    a_ptr,
    packed_ptr,
    scale_ptr,
    zero_ptr,
    c_ptr,
    rows,
    words,
    depth,
    group,
    M: tl.constexpr,
    X: tl.constexpr,
    K: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """fp16 by AWQ's 4-bit weights, dequantised on the way, the depth split over programs."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    x = tl.program_id(1) * X + tl.arange(0, X)
    N: tl.constexpr = X * 8
    n = tl.program_id(1) * N + tl.arange(0, N)
    place = tl.arange(0, 2)[None, :] * 4 + tl.arange(0, 4)[:, None]
    shift = tl.broadcast_to(tl.reshape(place, (8,))[None, :] * 4, (K * X, 8))
    shift = tl.reshape(shift, (K, N))
    total = tl.zeros((M, N), dtype=tl.float32)
    for step in range(tl.program_id(2) * K, depth, SPLIT * K):
        k = step + tl.arange(0, K)
        a = tl.load(
            a_ptr + m[:, None] * depth + k[None, :],
            mask=(m < rows)[:, None] & (k < depth)[None, :],
            other=0.0,
        )
        inside = (k < depth)[:, None] & (x < words)[None, :]
        weight = tl.load(packed_ptr + k[:, None] * words + x[None, :], mask=inside, other=0)
        weight = tl.interleave(weight, weight)
        weight = tl.interleave(weight, weight)
        weight = tl.interleave(weight, weight)
        zero = tl.load(zero_ptr + (k // group)[:, None] * words + x[None, :], mask=inside, other=0)
        zero = tl.interleave(zero, zero)
        zero = tl.interleave(zero, zero)
        zero = tl.interleave(zero, zero)
        scale = tl.load(
            scale_ptr + (k // group)[:, None] * words * 8 + n[None, :],
            mask=(k < depth)[:, None] & (n < words * 8)[None, :],
            other=0.0,
        )
        b = (((weight >> shift) & 15) - ((zero >> shift) & 15)).to(tl.float16) * scale
        total = tl.dot(a, b, total)
    inside = (m < rows)[:, None] & (n < words * 8)[None, :]
    to = c_ptr + (tl.program_id(2) * rows + m)[:, None] * words * 8 + n[None, :]
    tl.store(to, total.to(tl.float16), mask=inside)


corpus.add(
    "awq_matmul",
    awq_matmul,
    "*fp16 *i32 *fp16 *i32 *fp16 i32 i32 i32 i32",
    {"M": 16, "X": 4, "K": 32, "SPLIT": 4},
    "dot quantized",
    multiples="words depth group",
)


@triton.jit
def gptq_matmul(
    a_ptr,
    packed_ptr,
    scale_ptr,
    zero_ptr,
    order_ptr,
    c_ptr,
    rows,
    columns,
    depth,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
):
    """fp16 by GPTQ's weights: 32/BITS along the depth in a word, a group for every row."""
    PER: tl.constexpr = 32 // BITS
    TOP: tl.constexpr = (1 << BITS) - 1
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    total = tl.zeros((M, N), dtype=tl.float32)
    for start in range(0, depth, K):
        k = start + tl.arange(0, K)
        a = tl.load(a_ptr + m[:, None] * depth + k[None, :], mask=(m < rows)[:, None], other=0.0)
        word = tl.load(packed_ptr + (k // PER)[:, None] * columns + n[None, :])
        weight = (word >> ((k % PER) * BITS)[:, None]) & TOP
        group = tl.load(order_ptr + k)
        scale = tl.load(scale_ptr + group[:, None] * columns + n[None, :])
        zero = tl.load(zero_ptr + group[:, None] * (columns // PER) + (n // PER)[None, :])
        zero = ((zero >> ((n % PER) * BITS)[None, :]) & TOP) + 1
        b = (weight - zero).to(scale.dtype) * scale
        total += tl.dot(a, b.to(a.dtype))
    to = c_ptr + m[:, None] * columns + n[None, :]
    tl.store(to, total.to(tl.float16), mask=(m < rows)[:, None])


for _bits in (4, 8):
    corpus.add(
        f"gptq_matmul_{_bits}_bits",
        gptq_matmul,
        "*fp16 *i32 *fp16 *i32 *i32 *fp16 i32 i32 i32",
        {"M": 16, "N": 64, "K": 32, "BITS": _bits},
        "dot quantized",
        multiples="columns depth",
    )


@triton.jit
def quantize_rows(x_ptr, out_ptr, scale_ptr, columns, BLOCK: tl.constexpr):
    """int8 with a scale a token, rounded half away from zero."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(x_ptr + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    top = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-10)
    scale = top / 127
    tl.store(out_ptr + row * columns + at, libdevice.round(x / scale).to(tl.int8), mask=inside)
    tl.store(scale_ptr + row, scale)


for _kind in ("fp16", "bf16"):
    corpus.add(
        f"quantize_int8_{_kind}",
        quantize_rows,
        f"*{_kind} *i8 *fp32 i32",
        {"BLOCK": 1024},
        "quantized",
        multiples="columns",
    )


@triton.jit
def quantize_groups_fp8(
    x_ptr, out_ptr, scale_ptr, columns, eps, LIMIT: tl.constexpr, GROUP: tl.constexpr
):
    """An 8-bit float with a scale for every GROUP elements."""
    group = tl.program_id(0).to(tl.int64)
    at = group * GROUP + tl.arange(0, GROUP)
    x = tl.load(x_ptr + at).to(tl.float32)
    top = tl.maximum(tl.max(tl.abs(x), axis=0), eps)
    scale = top / LIMIT
    clipped = tl.clamp(x / scale, -LIMIT, LIMIT)
    tl.store(out_ptr + at, clipped.to(out_ptr.dtype.element_ty))
    tl.store(scale_ptr + group, scale)


corpus.add(
    "quantize_fp8e5",
    quantize_groups_fp8,
    "*fp16 *fp8e5 *fp32 i32 fp32",
    {"LIMIT": 57344.0, "GROUP": 128},
    "quantized fp8",
    num_warps=1,
)
corpus.add(
    "quantize_fp8e4nv",
    quantize_groups_fp8,
    "*fp16 *fp8e4nv *fp32 i32 fp32",
    {"LIMIT": 448.0, "GROUP": 128},
    "quantized fp8 fp8e4nv",
    proof=(8, 9),
    num_warps=1,
)


@triton.jit
def dequantize_nf4(packed_ptr, table_ptr, top_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Two 4-bit indices a byte into a table of 16, with the greatest value of each 64."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    packed = tl.load(packed_ptr + at, mask=inside, other=0).to(tl.int32)
    top = tl.load(top_ptr + (at * 2) // 64, mask=inside, other=0.0)
    high = tl.load(table_ptr + ((packed >> 4) & 15)) * top
    low = tl.load(table_ptr + (packed & 15)) * top
    to = tl.program_id(0) * 2 * BLOCK + tl.arange(0, 2 * BLOCK)
    tl.store(out_ptr + to, tl.interleave(high, low).to(tl.float16), mask=to < 2 * n)


corpus.add(
    "dequantize_nf4",
    dequantize_nf4,
    "*u8 *fp32 *fp32 *fp16 i32",
    {"BLOCK": 512},
    "quantized",
    multiples="n",
)
