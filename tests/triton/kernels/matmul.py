"""`tl.dot` in every type and the ways people build a product around it."""

import triton
import triton.language as tl

from .spec import VERSION, Corpus

corpus = Corpus()
TILE = {"M": 64, "N": 64, "K": 32}
SMALL = {"M": 32, "N": 32, "K": 32}


@triton.jit
def matmul(
    a_ptr,
    b_ptr,
    c_ptr,
    rows,
    columns,
    depth,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    TOTAL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """C = A B, row-major, any sizes; TOTAL is the accumulator's type."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    total = tl.zeros((M, N), dtype=TOTAL)
    for start in range(0, depth, K):
        inner = start + k < depth
        a = tl.load(
            a_ptr + m[:, None] * depth + (start + k)[None, :],
            mask=(m < rows)[:, None] & inner[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + (start + k)[:, None] * columns + n[None, :],
            mask=inner[:, None] & (n < columns)[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=TOTAL)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    tl.store(c_ptr + m[:, None] * columns + n[None, :], total, mask=inside)


for _name, _in, _out, _total, _precision, _tile, _tags in (
    ("fp32_ieee", "fp32", "fp32", tl.float32, "ieee", TILE, "dot"),
    ("fp32_tf32", "fp32", "fp32", tl.float32, "tf32", TILE, "dot"),
    ("fp32_tf32x3", "fp32", "fp32", tl.float32, "tf32x3", SMALL, "dot"),
    ("fp16", "fp16", "fp16", tl.float32, None, TILE, "dot"),
    ("fp16_to_fp32", "fp16", "fp32", tl.float32, None, TILE, "dot"),
    ("fp16_in_fp16", "fp16", "fp16", tl.float16, None, TILE, "dot"),
    ("bf16", "bf16", "bf16", tl.float32, None, TILE, "dot"),
    ("int8", "i8", "i32", tl.int32, None, TILE, "dot int8-dot"),
    ("fp8e5", "fp8e5", "fp16", tl.float32, None, TILE, "dot fp8"),
):
    corpus.add(
        f"matmul_{_name}",
        matmul,
        f"*{_in} *{_in} *{_out} i32 i32 i32",
        {**_tile, "TOTAL": _total, "PRECISION": _precision},
        _tags,
        multiples="columns depth",
    )
corpus.add(
    "matmul_fp16_ragged",
    matmul,
    "*fp16 *fp16 *fp16 i32 i32 i32",
    {"M": 16, "N": 32, "K": 16, "TOTAL": tl.float32, "PRECISION": None},
    "dot",
    unaligned="a_ptr b_ptr c_ptr",
    num_warps=2,
)
corpus.add(
    "matmul_fp16_8_warps",
    matmul,
    "*fp16 *fp16 *fp16 i32 i32 i32",
    {"M": 128, "N": 64, "K": 32, "TOTAL": tl.float32, "PRECISION": None},
    "dot",
    multiples="columns depth",
    num_warps=8,
    num_stages=2,
)
corpus.add(
    "matmul_fp64",
    matmul,
    "*fp64 *fp64 *fp64 i32 i32 i32",
    {"M": 16, "N": 16, "K": 16, "TOTAL": tl.float64, "PRECISION": "ieee"},
    "dot",
    oldest=(3, 5),
)
corpus.add(
    "matmul_fp8e4nv",
    matmul,
    "*fp8e4nv *fp8e4nv *fp16 i32 i32 i32",
    {**TILE, "TOTAL": tl.float32, "PRECISION": None},
    "dot fp8",
    multiples="columns depth",
    proof=(8, 9),
)
corpus.add(
    "matmul_int8_k128",
    matmul,
    "*i8 *i8 *i32 i32 i32 i32",
    {"M": 32, "N": 32, "K": 128, "TOTAL": tl.int32, "PRECISION": None},
    "dot int8-dot",
    multiples="columns depth",
)


@triton.jit
def matmul_transposed(
    a_ptr,
    b_ptr,
    c_ptr,
    rows,
    columns,
    depth,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    TOTAL: tl.constexpr,
):
    """C = A B^T with B as a linear layer keeps it, turned in registers; depth divides by K."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    total = tl.zeros((M, N), dtype=TOTAL)
    for start in range(0, depth, K):
        a = tl.load(a_ptr + (m % rows)[:, None] * depth + (start + k)[None, :])
        b = tl.load(b_ptr + (n % columns)[:, None] * depth + (start + k)[None, :])
        total += tl.dot(a, tl.trans(b), out_dtype=TOTAL)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    tl.store(c_ptr + m[:, None] * columns + n[None, :], total, mask=inside)


corpus.add(
    "matmul_nt_fp16",
    matmul_transposed,
    "*fp16 *fp16 *fp16 i32 i32 i32",
    {**TILE, "TOTAL": tl.float32},
    "dot",
    multiples="depth",
)
corpus.add(
    "matmul_nt_int8",
    matmul_transposed,
    "*i8 *i8 *i32 i32 i32 i32",
    {"M": 32, "N": 64, "K": 64, "TOTAL": tl.int32},
    "dot int8-dot",
    multiples="depth",
)


@triton.jit
def matmul_mixed(a_ptr, b_ptr, c_ptr, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """fp16 by 8-bit weights that are converted just before the dot, with bias-like scaling."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    total = tl.zeros((M, N), dtype=tl.float32)
    for start in range(0, depth, K):
        a = tl.load(a_ptr + m[:, None] * depth + (start + k)[None, :])
        b = tl.load(b_ptr + (start + k)[:, None] * N + n[None, :])
        total = tl.dot(a, b.to(a.dtype), total)
    tl.store(c_ptr + m[:, None] * N + n[None, :], total.to(tl.float16))


for _kind in ("i8", "fp8e5", "bf16"):
    corpus.add(f"matmul_fp16_by_{_kind}", matmul_mixed, f"*fp16 *{_kind} *fp16 i32", SMALL, "dot")


@triton.jit
def matmul_constant(c_ptr, a_ptr, M: tl.constexpr, K: tl.constexpr):
    """A product with operands made in registers: with ones, and with a triangle of them."""
    m = tl.arange(0, M)
    k = tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    triangle = (k[:, None] <= k[None, :]).to(a.dtype)
    sums = tl.dot(a, triangle)
    again = tl.dot(sums.to(a.dtype), tl.full((K, K), 1.0, a.dtype), sums)
    tl.store(c_ptr + m[:, None] * K + k[None, :], again)


corpus.add("matmul_constant", matmul_constant, "*fp32 *fp16", {"M": 32, "K": 32}, "dot")


@triton.jit
def matmul_grouped(
    a_ptr,
    b_ptr,
    c_ptr,
    bias_ptr,
    rows,
    columns,
    depth,
    a_stride,
    b_stride,
    c_stride,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Programs in groups of rows for the L2 cache, bias and activation in the epilogue."""
    program = tl.program_id(0)
    down = tl.cdiv(rows, M)
    across = tl.cdiv(columns, N)
    group = program // (GROUP * across)
    first = group * GROUP
    height = min(down - first, GROUP)
    i = first + (program % (GROUP * across)) % height
    j = (program % (GROUP * across)) // height
    tl.assume(i >= 0)
    m = (i * M + tl.arange(0, M)) % rows
    n = (j * N + tl.arange(0, N)) % columns
    k = tl.arange(0, K)
    a_at = a_ptr + m[:, None] * a_stride + k[None, :]
    b_at = b_ptr + k[:, None] * b_stride + n[None, :]
    total = tl.zeros((M, N), dtype=tl.float32)
    for step in range(0, tl.cdiv(depth, K)):
        a = tl.load(a_at, mask=k[None, :] < depth - step * K, other=0.0)
        b = tl.load(b_at, mask=k[:, None] < depth - step * K, other=0.0)
        total = tl.dot(a, b, total)
        a_at += K
        b_at += K * b_stride
    total += tl.load(bias_ptr + n)[None, :]
    if ACTIVATION == "leaky":
        total = tl.where(total >= 0, total, 0.01 * total)
    elif ACTIVATION == "silu":
        total = total * tl.sigmoid(total)
    m = i * M + tl.arange(0, M)
    n = j * N + tl.arange(0, N)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    to = c_ptr + m[:, None] * c_stride + n[None, :]
    tl.store(to, total.to(c_ptr.dtype.element_ty), mask=inside)


for _kind, _activation in (("fp16", "leaky"), ("bf16", "silu"), ("fp32", "")):
    corpus.add(
        f"matmul_grouped_{_kind}",
        matmul_grouped,
        f"*{_kind} *{_kind} *{_kind} *{_kind} i32 i32 i32 i32 i32 i32",
        {**TILE, "GROUP": 8, "ACTIVATION": _activation},
        "dot",
        multiples="columns depth a_stride b_stride c_stride",
    )


@triton.jit
def matmul_persistent(
    a_ptr,
    b_ptr,
    c_ptr,
    rows,
    columns,
    depth,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """A fixed number of programs walk over all tiles."""
    across = tl.cdiv(columns, N)
    tiles = tl.cdiv(rows, M) * across
    k = tl.arange(0, K)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        m = (tile // across) * M + tl.arange(0, M)
        n = (tile % across) * N + tl.arange(0, N)
        total = tl.zeros((M, N), dtype=tl.float32)
        for step in tl.range(0, tl.cdiv(depth, K), num_stages=2):
            inner = step * K + k < depth
            a = tl.load(
                a_ptr + (m % rows)[:, None] * depth + (step * K + k)[None, :],
                mask=inner[None, :],
                other=0.0,
            )
            b = tl.load(
                b_ptr + (step * K + k)[:, None] * columns + (n % columns)[None, :],
                mask=inner[:, None],
                other=0.0,
            )
            total = tl.dot(a, b, total)
        inside = (m < rows)[:, None] & (n < columns)[None, :]
        to = c_ptr + m[:, None] * columns + n[None, :]
        tl.store(to, total.to(tl.float16), mask=inside)


corpus.add(
    "matmul_persistent",
    matmul_persistent,
    "*fp16 *fp16 *fp16 i32 i32 i32",
    {**TILE, "PROGRAMS": 30},
    "dot",
    multiples="columns depth",
)


@triton.jit
def matmul_split_k(
    a_ptr,
    b_ptr,
    c_ptr,
    rows,
    columns,
    depth,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """The depth over several programs, which add their parts up in memory."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    k = tl.program_id(2) * K + tl.arange(0, K)
    total = tl.zeros((M, N), dtype=tl.float32)
    for start in range(0, depth, K * SPLIT):
        inner = start + k < depth
        a = tl.load(
            a_ptr + (m % rows)[:, None] * depth + (start + k)[None, :],
            mask=inner[None, :],
            other=0.0,
        )
        b = tl.load(
            b_ptr + (start + k)[:, None] * columns + (n % columns)[None, :],
            mask=inner[:, None],
            other=0.0,
        )
        total = tl.dot(a, b, total)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    to = c_ptr + m[:, None] * columns + n[None, :]
    tl.atomic_add(to, total.to(c_ptr.dtype.element_ty), mask=inside, sem="relaxed")


corpus.add(
    "matmul_split_k_fp32",
    matmul_split_k,
    "*fp16 *fp16 *fp32 i32 i32 i32",
    {**SMALL, "SPLIT": 4},
    "dot atomics",
    multiples="columns depth",
)
corpus.add(
    "matmul_split_k_fp16",
    matmul_split_k,
    "*fp16 *fp16 *fp16 i32 i32 i32",
    {**SMALL, "SPLIT": 4},
    "dot atomics",
    multiples="columns depth",
)


@triton.jit
def matmul_stream_k(
    a_ptr,
    b_ptr,
    c_ptr,
    lock_ptr,
    columns,
    depth,
    tiles,
    share,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Every program takes the same share of inner steps; shared tiles are handed on by locks."""
    k = tl.arange(0, K)
    steps = tl.cdiv(depth, K)
    across = columns // N
    begin = tl.program_id(0) * share
    last = min(begin + share, tiles * steps)
    while begin < last:
        tile = begin // steps
        end = min((tile + 1) * steps, last)
        m = (tile // across) * M + tl.arange(0, M)
        n = (tile % across) * N + tl.arange(0, N)
        total = tl.zeros((M, N), dtype=tl.float32)
        for step in range(begin - tile * steps, end - tile * steps):
            inner = step * K + k < depth
            a = tl.load(
                a_ptr + m[:, None] * depth + (step * K + k)[None, :],
                mask=inner[None, :],
                other=0.0,
            )
            b = tl.load(
                b_ptr + (step * K + k)[:, None] * columns + n[None, :],
                mask=inner[:, None],
                other=0.0,
            )
            total = tl.dot(a, b, total)
        to = c_ptr + m[:, None] * columns + n[None, :]
        if end == (tile + 1) * steps:
            if begin != tile * steps:
                # another program began this tile: its parts are there when the lock says so
                waited = begin - tile * steps
                while tl.atomic_cas(lock_ptr + tile, waited, waited, sem="acquire") != waited:
                    pass
                total += tl.load(to, cache_modifier=".cg")
            tl.store(to, total)
        else:
            if begin != tile * steps:
                waited = begin - tile * steps
                while tl.atomic_cas(lock_ptr + tile, waited, waited, sem="acquire") != waited:
                    pass
                total += tl.load(to, cache_modifier=".cg")
            tl.store(to, total)
            tl.debug_barrier()
            tl.atomic_xchg(lock_ptr + tile, end - tile * steps, sem="release")
        begin = end


corpus.add(
    "matmul_stream_k",
    matmul_stream_k,
    "*fp16 *fp16 *fp32 *i32 i32 i32 i32 i32",
    SMALL,
    "dot atomics lock",
    multiples="columns depth",
)


@triton.jit
def matmul_block_pointers(
    a_ptr,
    b_ptr,
    c_ptr,
    rows,
    columns,
    depth,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    m = tl.program_id(0) * M
    n = tl.program_id(1) * N
    a_block = tl.make_block_ptr(a_ptr, (rows, depth), (depth, 1), (m, 0), (M, K), (1, 0))
    b_block = tl.make_block_ptr(b_ptr, (depth, columns), (columns, 1), (0, n), (K, N), (1, 0))
    total = tl.zeros((M, N), dtype=tl.float32)
    for _ in range(0, depth, K):
        a = tl.load(a_block, boundary_check=(0, 1), padding_option="zero")
        b = tl.load(b_block, boundary_check=(0, 1), padding_option="zero")
        total = tl.dot(a, b, total)
        a_block = tl.advance(a_block, (0, K))
        b_block = tl.advance(b_block, (K, 0))
    c_block = tl.make_block_ptr(c_ptr, (rows, columns), (columns, 1), (m, n), (M, N), (1, 0))
    tl.store(c_block, total.to(c_ptr.dtype.element_ty), boundary_check=(0, 1))


corpus.add(
    "matmul_block_pointers",
    matmul_block_pointers,
    "*fp16 *fp16 *fp16 i32 i32 i32",
    TILE,
    "dot",
    multiples="columns depth",
)


@triton.jit
def matmul_batched(
    a_ptr, b_ptr, c_ptr, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    """A dot with three dimensions."""
    b = tl.arange(0, B)[:, None, None]
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    left = tl.load(a_ptr + b * M * K + m[None, :, None] * K + k[None, None, :])
    right = tl.load(b_ptr + b * K * N + k[None, :, None] * N + n[None, None, :])
    total = tl.dot(left, right, out_dtype=c_ptr.dtype.element_ty)
    tl.store(c_ptr + b * M * N + m[None, :, None] * N + n[None, None, :], total)


_batch = {"B": 2, "M": 32, "N": 32, "K": 32}
corpus.add("matmul_3d_fp32", matmul_batched, "*fp32 *fp32 *fp32", _batch, "dot")
corpus.add("matmul_3d_fp16", matmul_batched, "*fp16 *fp16 *fp32", _batch, "dot")
corpus.add("matmul_3d_int8", matmul_batched, "*i8 *i8 *i32", _batch, "dot int8-dot")


@triton.jit
def matmul_many(
    a_ptrs,
    b_ptrs,
    c_ptrs,
    sizes_ptr,
    problems,
    PROGRAMS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Grouped GEMM: addresses and sizes of all problems are in memory."""
    tile = tl.program_id(0)
    before = 0
    for problem in range(problems):
        rows = tl.load(sizes_ptr + problem * 3)
        columns = tl.load(sizes_ptr + problem * 3 + 1)
        depth = tl.load(sizes_ptr + problem * 3 + 2)
        across = tl.cdiv(columns, N)
        tiles = tl.cdiv(rows, M) * across
        while tile >= before and tile < before + tiles:
            a_ptr = tl.load(a_ptrs + problem).to(tl.pointer_type(tl.float16))
            b_ptr = tl.load(b_ptrs + problem).to(tl.pointer_type(tl.float16))
            c_ptr = tl.load(c_ptrs + problem).to(tl.pointer_type(tl.float16))
            m = ((tile - before) // across) * M + tl.arange(0, M)
            n = ((tile - before) % across) * N + tl.arange(0, N)
            k = tl.arange(0, K)
            total = tl.zeros((M, N), dtype=tl.float32)
            for start in range(0, depth, K):
                tl.multiple_of(depth, 16)
                a = tl.load(a_ptr + (m % rows)[:, None] * depth + (start + k)[None, :])
                b = tl.load(b_ptr + (start + k)[:, None] * columns + (n % columns)[None, :])
                total += tl.dot(a, b)
            inside = (m < rows)[:, None] & (n < columns)[None, :]
            to = c_ptr + m[:, None] * columns + n[None, :]
            tl.store(to, total.to(tl.float16), mask=inside)
            tile += PROGRAMS
        before += tiles


corpus.add(
    "matmul_many",
    matmul_many,
    "*i64 *i64 *i64 *i32 i32",
    {**SMALL, "PROGRAMS": 30},
    "dot",
)


@triton.jit
def convolution(
    x_ptr,
    weight_ptr,
    out_ptr,
    channels,
    height,
    width,
    filters,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
):
    """2D convolution of NHWC by RSCK as an implicit product, one image a third program axis."""
    out_height = (height + 2 * PAD - R) // STRIDE + 1
    out_width = (width + 2 * PAD - S) // STRIDE + 1
    pixel = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    image = x_ptr + tl.program_id(2).to(tl.int64) * height * width * channels
    y = (pixel // out_width) * STRIDE - PAD
    x = (pixel % out_width) * STRIDE - PAD
    total = tl.zeros((M, N), dtype=tl.float32)
    blocks = tl.cdiv(channels, K)
    for step in range(0, R * S * blocks):
        k = (step % blocks) * K + tl.arange(0, K)
        tap = step // blocks
        row = y + tap // S
        column = x + tap % S
        seen = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        a = tl.load(
            image + ((row * width + column) * channels)[:, None] + k[None, :],
            mask=seen[:, None] & (k < channels)[None, :],
            other=0.0,
        )
        b = tl.load(
            weight_ptr + (tap * channels + k)[:, None] * filters + n[None, :],
            mask=(k < channels)[:, None] & (n < filters)[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total)
    to = out_ptr + tl.program_id(2).to(tl.int64) * out_height * out_width * filters
    inside = (pixel < out_height * out_width)[:, None] & (n < filters)[None, :]
    tl.store(to + pixel[:, None] * filters + n[None, :], total, mask=inside)


for _kind in ("fp16", "fp32"):
    corpus.add(
        f"convolution_{_kind}",
        convolution,
        f"*{_kind} *{_kind} *{_kind} i32 i32 i32 i32",
        {"M": 64, "N": 32, "K": 32, "R": 3, "S": 3, "STRIDE": 2, "PAD": 1},
        "dot",
        multiples="channels filters",
    )


@triton.jit
def matmul_microscaled(
    a_ptr,
    scale_ptr,
    b_ptr,
    c_ptr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """A in a microscaling format with a scale for each 32 elements, by bf16."""
    PACK: tl.constexpr = 2 if FORMAT == "e2m1" else 1
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    k = tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * (K // PACK) + tl.arange(0, K // PACK)[None, :])
    scale = tl.load(scale_ptr + m[:, None] * (K // 32) + tl.arange(0, K // 32)[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    total = tl.dot_scaled(a, scale, FORMAT, b, None, "bf16")
    tl.store(c_ptr + m[:, None] * N + n[None, :], total)


for _format in ("e5m2", "e2m1", "e4m3"):
    corpus.add(
        f"matmul_microscaled_{_format}",
        matmul_microscaled,
        "*u8 *u8 *bf16 *fp32",
        {"M": 32, "N": 32, "K": 64, "FORMAT": _format},
        "dot fp8",
        proof=(8, 9) if _format == "e4m3" else (8, 0),
    )

if VERSION >= (3, 5):

    @triton.jit
    def matmul_descriptors(
        a_ptr,
        b_ptr,
        c_ptr,
        rows,
        columns,
        depth,
        M: tl.constexpr,
        N: tl.constexpr,
        K: tl.constexpr,
    ):
        """B is N x K, so that one of the loads is transposed."""
        a_tiles = tl.make_tensor_descriptor(a_ptr, [rows, depth], [depth, 1], [M, K])
        b_tiles = tl.make_tensor_descriptor(b_ptr, [columns, depth], [depth, 1], [N, K])
        c_tiles = tl.make_tensor_descriptor(c_ptr, [rows, columns], [columns, 1], [M, N])
        m = tl.program_id(0) * M
        n = tl.program_id(1) * N
        total = tl.zeros((M, N), dtype=tl.float32)
        for k in range(0, depth, K):
            total = tl.dot(a_tiles.load([m, k]), b_tiles.load([n, k]).T, total)
        c_tiles.store([m, n], total.to(tl.float16))

    @triton.jit
    def vector_by_matrix(a_ptr, b_ptr, c_ptr, depth, N: tl.constexpr, K: tl.constexpr):
        """A dot with a single row, allowed since 3.4."""
        n = tl.arange(0, N)
        k = tl.arange(0, K)
        total = tl.zeros((1, N), dtype=tl.float32)
        for start in range(0, depth, K):
            a = tl.load(a_ptr + start + k)[None, :]
            b = tl.load(b_ptr + (start + k)[:, None] * N + n[None, :])
            total = tl.dot(a, b, total)
        tl.store(c_ptr + n[None, :], total)

    corpus.add(
        "matmul_descriptors",
        matmul_descriptors,
        "*fp16 *fp16 *fp16 i32 i32 i32",
        TILE,
        "dot descriptor",
        multiples="columns depth",
        oldest=(3, 5),
    )
    corpus.add(
        "matmul_one_row",
        vector_by_matrix,
        "*fp16 *fp16 *fp32 i32",
        {"N": 64, "K": 32},
        "dot",
        oldest=(3, 5),
    )
