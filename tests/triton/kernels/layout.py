"""Shapes and the order of elements: transposes, joins, gathers, block pointers, descriptors."""

import triton
import triton.language as tl

from .spec import VERSION, Corpus

corpus = Corpus()


@triton.jit
def transpose(x_ptr, out_ptr, rows, columns, M: tl.constexpr, N: tl.constexpr):
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    x = tl.load(x_ptr + m[:, None] * columns + n[None, :], mask=inside)
    to = out_ptr + n[:, None] * rows + m[None, :]
    tl.store(to, tl.trans(x), mask=tl.trans(inside))


for _kind in ("fp32", "fp16", "i8", "fp64"):
    corpus.add(
        f"transpose_{_kind}",
        transpose,
        f"*{_kind} *{_kind} i32 i32",
        {"M": 32, "N": 64},
        "layout",
        multiples="rows columns",
    )

# more shared memory than any of these cards has for a block
corpus.add(
    "transpose_128_kib",
    transpose,
    "*fp32 *fp32 i32 i32",
    {"M": 256, "N": 128},
    "layout",
    multiples="rows columns",
    num_warps=8,
)


@triton.jit
def permute_3d(x_ptr, out_ptr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    a = tl.arange(0, A)[:, None, None]
    b = tl.arange(0, B)[None, :, None]
    c = tl.arange(0, C)[None, None, :]
    x = tl.load(x_ptr + (a * B + b) * C + c)
    turned = tl.permute(x, (2, 0, 1))
    flat = tl.reshape(turned, (C * A, B))
    at = tl.arange(0, C * A)[:, None] * B + tl.arange(0, B)[None, :]
    tl.store(out_ptr + at, flat)
    tl.store(out_ptr + A * B * C + tl.arange(0, A * C), tl.sum(x, axis=1).reshape(A * C))


corpus.add("permute_3d", permute_3d, "*fp16 *fp16", {"A": 8, "B": 16, "C": 32}, "layout")


@triton.jit
def join_and_split(x_ptr, y_ptr, out_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    y = tl.load(y_ptr + at)
    both = tl.interleave(x, y)
    tl.store(out_ptr + tl.arange(0, 2 * N), both)
    pairs = tl.join(x, y)
    left, right = tl.split(pairs * 2)
    tl.store(out_ptr + 2 * N + at, left - right)
    tl.store(out_ptr + 3 * N + tl.arange(0, 2 * N), tl.cat(x, y, can_reorder=True))


for _kind in ("fp32", "fp16", "i8"):
    corpus.add(
        f"join_split_{_kind}", join_and_split, f"*{_kind} *{_kind} *{_kind}", {"N": 256}, "layout"
    )


@triton.jit
def broadcasts(x_ptr, y_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr):
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    x = tl.load(x_ptr + m)
    y = tl.load(y_ptr + n)
    wide = tl.broadcast_to(tl.expand_dims(x, 1), (M, N))
    left, right = tl.broadcast(wide, y[None, :])
    total = left * right + tl.flip(right, 1) + tl.zeros_like(left)
    total += tl.flip(wide * right, 1) + tl.full((M, N), 3, total.dtype)
    tl.store(out_ptr + m[:, None] * N + n[None, :], total)
    tl.store(out_ptr + M * N + tl.arange(0, M * N), tl.ravel(total))


corpus.add("broadcast_flip_fp32", broadcasts, "*fp32 *fp32 *fp32", {"M": 32, "N": 64}, "layout")
corpus.add("broadcast_flip_i16", broadcasts, "*i16 *i16 *i16", {"M": 32, "N": 64}, "layout")


@triton.jit
def gather_rows(x_ptr, place_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m = tl.arange(0, M)[:, None]
    n = tl.arange(0, N)[None, :]
    k = tl.arange(0, K)[:, None]
    x = tl.load(x_ptr + m * N + n)
    place = tl.load(place_ptr + k * N + n)
    tl.store(out_ptr + k * N + n, tl.gather(x, place, axis=0))


corpus.add("gather", gather_rows, "*fp32 *i32 *fp32", {"M": 32, "N": 32, "K": 16}, "layout")
corpus.add("gather_fp16", gather_rows, "*fp16 *i32 *fp16", {"M": 64, "N": 16, "K": 64}, "layout")


@triton.jit
def gather_along_row(x_ptr, place_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr):
    m = tl.arange(0, M)[:, None]
    n = tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + m * N + n)
    place = tl.load(place_ptr + m * N + n)
    tl.store(out_ptr + m * N + n, tl.gather(x, place, axis=1))


corpus.add("gather_axis1", gather_along_row, "*i32 *i32 *i32", {"M": 4, "N": 32}, "layout")


@triton.jit
def block_pointer_copy(x_ptr, out_ptr, rows, columns, M: tl.constexpr, N: tl.constexpr):
    """Block pointers with a boundary in both directions, walked along a row."""
    source = tl.make_block_ptr(
        x_ptr, (rows, columns), (columns, 1), (tl.program_id(0) * M, 0), (M, N), (1, 0)
    )
    target = tl.make_block_ptr(
        out_ptr, (rows, columns), (columns, 1), (tl.program_id(0) * M, 0), (M, N), (1, 0)
    )
    for _ in range(0, tl.cdiv(columns, N)):
        x = tl.load(source, boundary_check=(0, 1), padding_option="zero")
        tl.store(target, x * 2, boundary_check=(0, 1))
        source = tl.advance(source, (0, N))
        target = tl.advance(target, (0, N))


for _kind in ("fp32", "fp16"):
    corpus.add(
        f"block_pointer_{_kind}",
        block_pointer_copy,
        f"*{_kind} *{_kind} i32 i32",
        {"M": 16, "N": 64},
        "layout",
    )


@triton.jit
def swizzled_copy(x_ptr, out_ptr, rows, columns, M: tl.constexpr, N: tl.constexpr):
    down = tl.cdiv(rows, M)
    across = tl.cdiv(columns, N)
    i, j = tl.swizzle2d(tl.program_id(0), tl.program_id(1), down, across, 4)
    m = tl.max_contiguous(tl.multiple_of((i * M + tl.arange(0, M)) % rows, M), M)
    n = tl.max_contiguous(tl.multiple_of((j * N + tl.arange(0, N)) % columns, N), N)
    at = m[:, None] * columns + n[None, :]
    tl.store(out_ptr + at, tl.load(x_ptr + at))


corpus.add("swizzled_copy", swizzled_copy, "*fp16 *fp16 i32 i32", {"M": 32, "N": 64}, "layout")


@triton.jit
def _unpair(pair, index: tl.constexpr):
    return pair[index]


@triton.jit
def tuples(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pointers = (x_ptr, y_ptr)
    total = tl.zeros([BLOCK], tl.float32)
    for index in tl.static_range(2):
        total += tl.load(_unpair(pointers, index) + at, mask=at < n, other=0.0)
    tl.store(out_ptr + at, total, mask=at < n)


corpus.add("tuples", tuples, "*fp16 *fp32 *fp32 i32", {"BLOCK": 512}, "control")

if VERSION >= (3, 5):

    @triton.jit
    def flip_rows(x_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr):
        at = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
        tl.store(out_ptr + at, tl.flip(tl.load(x_ptr + at), 0))

    corpus.add("flip_rows", flip_rows, "*fp16 *fp16", {"M": 32, "N": 64}, "layout", oldest=(3, 5))

    @triton.jit
    def descriptor_copy(x_ptr, out_ptr, rows, columns, M: tl.constexpr, N: tl.constexpr):
        """Tensor descriptors made on the device."""
        source = tl.make_tensor_descriptor(x_ptr, [rows, columns], [columns, 1], [M, N])
        target = tl.make_tensor_descriptor(out_ptr, [rows, columns], [columns, 1], [M, N])
        m = tl.program_id(0) * M
        for n in range(0, columns, N):
            target.store([m, n], source.load([m, n]) * 2)

    @triton.jit
    def descriptor_argument(source, target, M: tl.constexpr, N: tl.constexpr):
        """Tensor descriptors made by the host."""
        m = tl.program_id(0) * M
        n = tl.program_id(1) * N
        target.store([n, m], tl.trans(source.load([m, n])))

    @triton.jit
    def descriptor_reduce(x_ptr, out_ptr, rows, columns, M: tl.constexpr, N: tl.constexpr):
        source = tl.make_tensor_descriptor(x_ptr, [rows, columns], [columns, 1], [M, N])
        target = tl.make_tensor_descriptor(out_ptr, [M, columns], [columns, 1], [M, N])
        n = tl.program_id(1) * N
        target.atomic_add([0, n], source.load([tl.program_id(0) * M, n]))

    for _kind in ("fp32", "fp16"):
        corpus.add(
            f"descriptor_{_kind}",
            descriptor_copy,
            f"*{_kind} *{_kind} i32 i32",
            {"M": 16, "N": 64},
            "layout descriptor",
            oldest=(3, 5),
        )
    corpus.add(
        "descriptor_host",
        descriptor_argument,
        "tensordesc<fp32[32,32]> tensordesc<fp32[32,32]>",
        {"M": 32, "N": 32},
        "layout descriptor",
        oldest=(3, 5),
    )
    corpus.add(
        "descriptor_atomic_add",
        descriptor_reduce,
        "*fp32 *fp32 i32 i32",
        {"M": 16, "N": 64},
        "layout descriptor atomics",
        oldest=(3, 5),
    )
