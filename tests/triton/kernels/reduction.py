"""Softmax, norms, scans, sorting: what looks along an axis."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .spec import VERSION, Corpus

corpus = Corpus()
BLOCK = {"BLOCK": 1024}


@triton.jit
def softmax_rows(x_ptr, out_ptr, columns, stride, BLOCK: tl.constexpr):
    """A row a program, in the argument's own type."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + at, mask=at < columns, other=-float("inf"))
    x = x - tl.max(x, axis=0)
    power = tl.exp(x.to(tl.float32))
    out = power / tl.sum(power, axis=0)
    tl.store(out_ptr + row * stride + at, out, mask=at < columns)


for _kind in ("fp32", "fp16", "bf16"):
    corpus.add(f"softmax_{_kind}", softmax_rows, f"*{_kind} *{_kind} i32 i32", BLOCK, "softmax")


@triton.jit
def softmax_in_half(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    """Subtraction, sum and division all written in fp16, as careless code does."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * columns + at, mask=at < columns, other=-float("inf"))
    power = tl.exp((x - tl.max(x, axis=0)).to(tl.float32)).to(x.dtype)
    out = power * (1.0 / tl.sum(power, axis=0).to(tl.float32)).to(x.dtype)
    tl.store(out_ptr + row * columns + at, out, mask=at < columns)


corpus.add(
    "softmax_all_fp16",
    softmax_in_half,
    "*fp16 *fp16 i32",
    BLOCK,
    "softmax",
    multiples="columns",
)


@triton.jit
def softmax_online(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    """Maximum and sum in one pass over a row of any length."""
    row = tl.program_id(0).to(tl.int64) * columns
    at = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        inside = start + at < columns
        x = tl.load(x_ptr + row + start + at, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        total = tl.where(inside, total * tl.exp(top - higher) + tl.exp(x - higher), total)
        top = higher
    peak = tl.max(top, axis=0)
    total = tl.sum(total * tl.exp(top - peak), axis=0)
    for start in range(0, columns, BLOCK):
        inside = start + at < columns
        x = tl.load(x_ptr + row + start + at, mask=inside, other=0).to(tl.float32)
        tl.store(out_ptr + row + start + at, tl.exp(x - peak) / total, mask=inside)


corpus.add("softmax_online", softmax_online, "*fp16 *fp16 i32", BLOCK, "softmax")


@triton.jit
def softmax_backward(out_ptr, grad_ptr, dx_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0) * columns
    at = tl.arange(0, BLOCK)
    inside = at < columns
    out = tl.load(out_ptr + row + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row + at, mask=inside, other=0.0).to(tl.float32)
    dot = tl.sum(out * grad, axis=0)
    tl.store(dx_ptr + row + at, out * (grad - dot), mask=inside)


corpus.add("softmax_backward", softmax_backward, "*fp16 *fp16 *fp16 i32", BLOCK, "softmax")


@triton.jit
def layernorm(
    x_ptr, weight_ptr, bias_ptr, out_ptr, mean_ptr, rstd_ptr, columns, eps, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(x_ptr + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / columns
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / columns + eps)
    weight = tl.load(weight_ptr + at, mask=inside)
    bias = tl.load(bias_ptr + at, mask=inside)
    tl.store(out_ptr + row * columns + at, centred * rstd * weight + bias, mask=inside)
    tl.store(mean_ptr + row, mean)
    tl.store(rstd_ptr + row, rstd)


for _kind in ("fp32", "fp16", "bf16"):
    corpus.add(
        f"layernorm_{_kind}",
        layernorm,
        f"*{_kind} *{_kind} *{_kind} *{_kind} *fp32 *fp32 i32 fp32",
        BLOCK,
        "layernorm",
    )


@triton.jit
def layernorm_backward(
    x_ptr,
    grad_ptr,
    weight_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    lock_ptr,
    columns,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx of a row; dweight and dbias summed under a spin lock, one lock a group of rows."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(x_ptr + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.load(rstd_ptr + row)
    normal = tl.where(inside, (x - tl.load(mean_ptr + row)) * rstd, 0.0)
    scaled = weight * grad
    first = tl.sum(normal * scaled, axis=0) / columns
    second = tl.sum(scaled, axis=0) / columns
    tl.store(dx_ptr + row * columns + at, (scaled - normal * first - second) * rstd, mask=inside)
    group = row % GROUPS
    lock = lock_ptr + group
    used = lock_ptr + GROUPS + group
    dweight = grad * normal
    dbias = grad
    to = group * columns + at
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    if tl.load(used) == 0:
        tl.atomic_xchg(used, 1)
    else:
        dweight += tl.load(dweight_ptr + to, mask=inside, other=0.0)
        dbias += tl.load(dbias_ptr + to, mask=inside, other=0.0)
    tl.store(dweight_ptr + to, dweight, mask=inside)
    tl.store(dbias_ptr + to, dbias, mask=inside)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0)


corpus.add(
    "layernorm_backward",
    layernorm_backward,
    "*fp16 *fp16 *fp16 *fp32 *fp32 *fp16 *fp32 *fp32 *i32 i32",
    {"GROUPS": 64, "BLOCK": 512},
    "layernorm atomics lock",
)


@triton.jit
def rmsnorm_residual(
    x_ptr, residual_ptr, weight_ptr, out_ptr, rstd_ptr, columns, eps, BLOCK: tl.constexpr
):
    """Add the residual, keep the sum, normalise it: the step between transformer blocks."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(x_ptr + row * columns + at, mask=inside, other=0.0)
    x += tl.load(residual_ptr + row * columns + at, mask=inside, other=0.0)
    tl.store(residual_ptr + row * columns + at, x, mask=inside)
    wide = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(wide * wide, axis=0) / columns + eps)
    tl.store(rstd_ptr + row, rstd)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
    tl.store(out_ptr + row * columns + at, (wide * rstd).to(x.dtype) * weight, mask=inside)


for _kind in ("fp16", "bf16"):
    corpus.add(
        f"rmsnorm_{_kind}",
        rmsnorm_residual,
        f"*{_kind} *{_kind} *{_kind} *{_kind} *fp32 i32 fp32",
        BLOCK,
        "layernorm",
        multiples="columns",
        num_warps=8,
    )


@triton.jit
def rmsnorm_backward(
    x_ptr,
    grad_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    dweight_ptr,
    rows,
    columns,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A few rows a program; partial dweight for a second kernel to sum."""
    program = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    partial = tl.zeros([BLOCK], dtype=tl.float32)
    for row in range(program * ROWS, min((program + 1) * ROWS, rows)):
        x = tl.load(x_ptr + row * columns + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * columns + at, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        scaled = grad * weight
        dot = tl.sum(scaled * x, axis=0) / columns
        tl.store(dx_ptr + row * columns + at, rstd * (scaled - x * rstd * rstd * dot), mask=inside)
        partial += grad * x * rstd
    tl.store(dweight_ptr + program * columns + at, partial, mask=inside)


corpus.add(
    "rmsnorm_backward",
    rmsnorm_backward,
    "*fp16 *fp16 *fp16 *fp32 *fp16 *fp32 i32 i32",
    {"ROWS": 8, "BLOCK": 512},
    "layernorm",
)


@triton.jit
def groupnorm_silu(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    pixels,
    groups,
    eps,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Group norm of an NCHW tensor, a group a program; CHANNELS a group."""
    group = tl.program_id(0)
    base = group.to(tl.int64) * CHANNELS * pixels
    count = CHANNELS * pixels
    at = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        x = tl.load(x_ptr + base + start + at, mask=start + at < count, other=0.0).to(tl.float32)
        total += x
        squares += x * x
    mean = tl.sum(total, axis=0) / count
    variance = tl.sum(squares, axis=0) / count - mean * mean
    rstd = 1.0 / tl.sqrt(variance + eps)
    for channel in tl.static_range(CHANNELS):
        weight = tl.load(weight_ptr + (group % groups) * CHANNELS + channel).to(tl.float32)
        bias = tl.load(bias_ptr + (group % groups) * CHANNELS + channel).to(tl.float32)
        for start in range(0, pixels, BLOCK):
            inside = start + at < pixels
            to = base + channel * pixels + start + at
            x = tl.load(x_ptr + to, mask=inside, other=0.0).to(tl.float32)
            y = (x - mean) * rstd * weight + bias
            tl.store(out_ptr + to, y * tl.sigmoid(y), mask=inside)


corpus.add(
    "groupnorm_silu",
    groupnorm_silu,
    "*fp16 *fp16 *fp16 *fp16 i32 i32 fp32",
    {"CHANNELS": 4, "BLOCK": 512},
    "layernorm",
)


@triton.jit
def _merge_welford(mean_a, m2_a, count_a, mean_b, m2_b, count_b):
    count = count_a + count_b
    delta = mean_b - mean_a
    share = tl.where(count == 0.0, 0.0, count_b / count)
    return mean_a + delta * share, m2_a + m2_b + delta * delta * count_a * share, count


@triton.jit
def welford(x_ptr, mean_ptr, variance_ptr, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Mean and variance by merging triples: a reduction over a tuple."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    mean = tl.zeros([ROWS, BLOCK], tl.float32)
    m2 = tl.zeros([ROWS, BLOCK], tl.float32)
    count = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        inside = (start + at < columns) & (row >= 0)
        x = tl.load(x_ptr + row * columns + start + at, mask=inside, other=0.0).to(tl.float32)
        new = count + 1.0
        delta = x - mean
        moved = mean + delta / new
        m2 = tl.where(inside, m2 + delta * (x - moved), m2)
        mean = tl.where(inside, moved, mean)
        count = tl.where(inside, new, count)
    mean, m2, count = tl.reduce((mean, m2, count), 1, _merge_welford)
    to = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    tl.store(mean_ptr + to, mean)
    tl.store(variance_ptr + to, m2 / count)


corpus.add("welford_fp32", welford, "*fp32 *fp32 *fp32 i32", {"ROWS": 2, "BLOCK": 256}, "layernorm")
corpus.add("welford_fp16", welford, "*fp16 *fp32 *fp32 i32", {"ROWS": 8, "BLOCK": 64}, "layernorm")


@triton.jit
def reductions(
    x_ptr, row_ptr, column_ptr, all_ptr, M: tl.constexpr, N: tl.constexpr, KEEP: tl.constexpr
):
    """Sum, maximum and minimum over rows, columns and everything, in the argument's type."""
    m = tl.arange(0, M)
    n = tl.arange(0, N)
    x = tl.load(x_ptr + m[:, None] * N + n[None, :])
    tl.store(row_ptr + m, tl.sum(x, axis=1))
    tl.store(row_ptr + M + m, tl.max(x, axis=1))
    tl.store(row_ptr + 2 * M + m, tl.min(x, axis=1))
    tl.store(column_ptr + n, tl.sum(x, axis=0))
    tl.store(column_ptr + N + n, tl.max(x, axis=0))
    tl.store(column_ptr + 2 * N + n, tl.min(x, axis=0))
    tl.store(all_ptr, tl.sum(x))
    tl.store(all_ptr + 1, tl.max(x))
    if KEEP:
        kept = x - tl.max(x, axis=1, keep_dims=True)
        tl.store(x_ptr + m[:, None] * N + n[None, :], kept)


for _kind in ("fp32", "fp16", "bf16", "fp64", "i32", "i64", "i8"):
    corpus.add(
        f"reductions_{_kind}",
        reductions,
        f"*{_kind} *{_kind} *{_kind} *{_kind}",
        {"M": 32, "N": 64, "KEEP": _kind in ("fp32", "fp16")},
        "reduction",
    )


@triton.jit
def _multiply(a, b):
    return a * b


@triton.jit
def reduce_bits(x_ptr, out_ptr, product_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(x_ptr + at)
    tl.store(out_ptr, tl.xor_sum(x, axis=0))
    half = tl.load(product_ptr + 1 + at)
    tl.store(product_ptr, tl.reduce(half, 0, _multiply))


corpus.add("reduce_bits_and_product", reduce_bits, "*i32 *i32 *fp16", {"N": 512}, "reduction")


@triton.jit
def arg_extremes(x_ptr, value_ptr, at_ptr, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    inside = (at < columns)[None, :]
    x = tl.load(x_ptr + row[:, None] * columns + at[None, :], mask=inside, other=0)
    value, place = tl.max(x, axis=1, return_indices=True)
    tl.store(value_ptr + row, value)
    tl.store(at_ptr + row, place)
    tl.store(at_ptr + row + 1000, tl.argmin(x, axis=1))
    tl.store(at_ptr + row + 2000, tl.argmax(x, axis=1, tie_break_left=False))
    tl.store(at_ptr + 3000 + at, tl.argmax(x, axis=0), mask=at < columns)


for _kind in ("fp32", "fp16", "i32"):
    corpus.add(
        f"argmax_{_kind}",
        arg_extremes,
        f"*{_kind} *{_kind} *i32 i32",
        {"ROWS": 4, "BLOCK": 128},
        "reduction",
    )


@triton.jit
def cumulative(x_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr):
    m = tl.arange(0, M)[:, None]
    n = tl.arange(0, N)[None, :]
    at = m * N + n
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, tl.cumsum(x, axis=1))
    tl.store(out_ptr + M * N + at, tl.cumsum(x, axis=0))
    tl.store(out_ptr + 2 * M * N + at, tl.cumprod(x, axis=1, reverse=True))


for _kind in ("fp32", "fp16", "bf16", "i32", "i64"):
    corpus.add(f"cumulative_{_kind}", cumulative, f"*{_kind} *{_kind}", {"M": 16, "N": 128}, "scan")


@triton.jit
def _linear_step(factor_a, value_a, factor_b, value_b):
    return factor_a * factor_b, value_a * factor_b + value_b


@triton.jit
def linear_recurrence(factor_ptr, value_ptr, out_ptr, length, BLOCK: tl.constexpr):
    """y[t] = f[t] y[t-1] + v[t]: an associative scan over a pair, carried from block to block."""
    row = tl.program_id(0) * length
    at = tl.arange(0, BLOCK)
    carry = 0.0
    for start in range(0, length, BLOCK):
        inside = start + at < length
        factor = tl.load(factor_ptr + row + start + at, mask=inside, other=1.0).to(tl.float32)
        value = tl.load(value_ptr + row + start + at, mask=inside, other=0.0).to(tl.float32)
        product, y = tl.associative_scan((factor, value), 0, _linear_step)
        y += product * carry
        tl.store(out_ptr + row + start + at, y, mask=inside)
        carry = tl.sum(tl.where(at == BLOCK - 1, y, 0.0), axis=0)


corpus.add("linear_recurrence", linear_recurrence, "*fp16 *fp16 *fp16 i32", {"BLOCK": 256}, "scan")


@triton.jit
def _later(value_a, at_a, value_b, at_b):
    take = (value_b > value_a) | ((value_b == value_a) & (at_b > at_a))
    return tl.where(take, value_b, value_a), tl.where(take, at_b, at_a)


@triton.jit
def running_maximum(x_ptr, value_ptr, at_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    row = tl.program_id(0) * N
    value, place = tl.associative_scan((tl.load(x_ptr + row + at), at), 0, _later, reverse=True)
    tl.store(value_ptr + row + at, value)
    tl.store(at_ptr + row + at, place)


corpus.add("running_maximum", running_maximum, "*fp32 *fp32 *i32", {"N": 512}, "scan")


@triton.jit
def sort_rows(x_ptr, out_ptr, ROWS: tl.constexpr, N: tl.constexpr, DESCENDING: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    at = tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + row * N + at)
    tl.store(out_ptr + row * N + at, tl.sort(x, descending=DESCENDING))


for _kind in ("fp32", "fp16", "bf16", "i32", "i8"):
    corpus.add(
        f"sort_{_kind}",
        sort_rows,
        f"*{_kind} *{_kind}",
        {"ROWS": 4, "N": 64, "DESCENDING": _kind == "fp16"},
        "sort",
    )


@triton.jit
def topk_by_sort(x_ptr, value_ptr, at_ptr, columns, N: tl.constexpr, K: tl.constexpr):
    """The k largest with their places: keys of value and place in 64 bits, sorted."""
    row = tl.program_id(0)
    at = tl.arange(0, N)
    x = tl.load(x_ptr + row * columns + at, mask=at < columns, other=-float("inf"))
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    key = (key << 32) | (N - 1 - at).to(tl.int64)
    best = tl.sort(key, descending=True)
    ordered = (best >> 32).to(tl.int32)
    value = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
    place = N - 1 - (best & 0xFFFFFFFF).to(tl.int32)
    tl.store(value_ptr + row * K + at, value, mask=at < K)
    tl.store(at_ptr + row * K + at, place, mask=at < K)


corpus.add("topk_by_sort", topk_by_sort, "*fp16 *fp32 *i32 i32", {"N": 128, "K": 8}, "sort")


@triton.jit
def topk_by_maximum(x_ptr, value_ptr, at_ptr, columns, N: tl.constexpr, K: tl.constexpr):
    """Routing of experts: softmax, then the largest k times over, renormalised."""
    row = tl.program_id(0)
    at = tl.arange(0, N)
    x = tl.load(x_ptr + row * columns + at, mask=at < columns, other=-float("inf")).to(tl.float32)
    power = tl.exp(x - tl.max(x, axis=0))
    share = power / tl.sum(power, axis=0)
    total = 0.0
    for k in tl.static_range(K):
        value, place = tl.max(share, axis=0, return_indices=True)
        total += value
        tl.store(value_ptr + row * K + k, value)
        tl.store(at_ptr + row * K + k, place)
        share = tl.where(at == place, -1.0, share)
    tl.debug_barrier()
    for k in tl.static_range(K):
        tl.store(value_ptr + row * K + k, tl.load(value_ptr + row * K + k) / total)


corpus.add(
    "topk_softmax",
    topk_by_maximum,
    "*fp16 *fp32 *i32 i32",
    {"N": 64, "K": 4},
    "sort softmax",
    num_warps=2,
)

if VERSION >= (3, 5):

    @triton.jit
    def topk(x_ptr, out_ptr, ROWS: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
        row = tl.arange(0, ROWS)[:, None]
        x = tl.load(x_ptr + row * N + tl.arange(0, N)[None, :])
        tl.store(out_ptr + row * K + tl.arange(0, K)[None, :], tl.topk(x, K))

    for _kind in ("fp32", "fp16"):
        corpus.add(
            f"topk_{_kind}",
            topk,
            f"*{_kind} *{_kind}",
            {"ROWS": 4, "N": 64, "K": 8},
            "sort",
            oldest=(3, 5),
        )


@triton.jit
def histogram(x_ptr, out_ptr, n, BLOCK: tl.constexpr, BINS: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0)
    counts = tl.histogram(x, BINS)
    tl.atomic_add(out_ptr + tl.arange(0, BINS), counts, sem="relaxed")


corpus.add("histogram", histogram, "*i32 *i32 i32", {"BLOCK": 512, "BINS": 64}, "atomics reduction")


@triton.jit
def cross_entropy(
    x_ptr, label_ptr, loss_ptr, grad_ptr, classes, ignore, smoothing, BLOCK: tl.constexpr
):
    """Loss and gradient of a row of logits that does not fit one block."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * classes
    grad_ptr += row * classes
    at = tl.arange(0, BLOCK)
    label = tl.load(label_ptr + row)
    top = -float("inf")
    total = 0.0
    mean = 0.0
    for start in range(0, classes, BLOCK):
        inside = start + at < classes
        x = tl.load(x_ptr + start + at, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, axis=0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), axis=0)
        mean += tl.sum(tl.where(inside, x, 0.0), axis=0) / classes
        top = higher
    log_total = top + tl.log(total)
    if label == ignore:
        tl.store(loss_ptr + row, 0.0)
    else:
        chosen = tl.load(x_ptr + label).to(tl.float32)
        loss = log_total - (1 - smoothing) * chosen - smoothing * mean
        tl.store(loss_ptr + row, loss)
    for start in range(0, classes, BLOCK):
        inside = start + at < classes
        x = tl.load(x_ptr + start + at, mask=inside, other=-float("inf")).to(tl.float32)
        grad = tl.exp(x - log_total) - smoothing / classes
        grad -= tl.where(start + at == label, 1 - smoothing, 0.0)
        tl.store(grad_ptr + start + at, tl.where(label == ignore, 0.0, grad), mask=inside)


for _kind in ("fp32", "bf16"):
    corpus.add(
        f"cross_entropy_{_kind}",
        cross_entropy,
        f"*{_kind} *i64 *fp32 *{_kind} i32 i32 fp32",
        BLOCK,
        "softmax",
    )


@triton.jit
def log_softmax_kl(x_ptr, target_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0) * columns
    at = tl.arange(0, BLOCK)
    inside = at < columns
    x = tl.load(x_ptr + row + at, mask=inside, other=-float("inf"), eviction_policy="evict_last")
    target = tl.load(target_ptr + row + at, mask=inside, other=0.0, eviction_policy="evict_first")
    shifted = x - tl.max(x, axis=0)
    log_share = shifted - libdevice.log(tl.sum(libdevice.exp(shifted), axis=0))
    term = target * (tl.log(target + 1e-9) - log_share)
    tl.store(out_ptr + tl.program_id(0), tl.sum(tl.where(inside, term, 0.0), axis=0))


corpus.add("log_softmax_kl", log_softmax_kl, "*fp32 *fp32 *fp32 i32", BLOCK, "softmax hints")
