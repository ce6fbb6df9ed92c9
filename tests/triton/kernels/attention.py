"""Attention: forward, backward, paged decode, prefill with a prefix, and what goes around it."""

import triton
import triton.language as tl

from .spec import Corpus

corpus = Corpus()
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def attention(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    length,
    scale,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """Forward over contiguous [heads, length, D]; the log of the sums is kept for the backward."""
    m = tl.program_id(0) * M + tl.arange(0, M)
    head = tl.program_id(1).to(tl.int64) * length * D
    d = tl.arange(0, D)
    n = tl.arange(0, N)
    row = (m < length)[:, None]
    q = tl.load(q_ptr + head + m[:, None] * D + d[None, :], mask=row, other=0.0)
    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, D], tl.float32)
    factor = scale * LOG2_E
    end = length
    if CAUSAL:
        end = min(length, (tl.program_id(0) + 1) * M)
    for start in range(0, end, N):
        at = start + n
        k = tl.load(
            k_ptr + head + at[None, :] * D + d[:, None], mask=(at < length)[None, :], other=0.0
        )
        score = tl.dot(q, k) * factor
        seen = (at < length)[None, :]
        if CAUSAL:
            seen = seen & (at[None, :] <= m[:, None])
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        power = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(power, 1)
        v = tl.load(
            v_ptr + head + at[:, None] * D + d[None, :], mask=(at < length)[:, None], other=0.0
        )
        out = tl.dot(power.to(v.dtype), v, out * shrink[:, None])
        top = higher
    out = out / total[:, None]
    tl.store(
        out_ptr + head + m[:, None] * D + d[None, :], out.to(out_ptr.dtype.element_ty), mask=row
    )
    tl.store(lse_ptr + tl.program_id(1) * length + m, top + tl.log2(total), mask=m < length)


for _kind in ("fp16", "bf16", "fp32"):
    corpus.add(
        f"attention_{_kind}",
        attention,
        f"*{_kind} *{_kind} *{_kind} *{_kind} *fp32 i32 fp32",
        {"D": 64, "M": 32 if _kind == "fp32" else 64, "N": 32, "CAUSAL": False},
        "attention dot softmax",
    )
corpus.add(
    "attention_causal_fp16",
    attention,
    "*fp16 *fp16 *fp16 *fp16 *fp32 i32 fp32",
    {"D": 64, "M": 64, "N": 32, "CAUSAL": True},
    "attention dot softmax",
)
corpus.add(
    "attention_causal_d128",
    attention,
    "*fp16 *fp16 *fp16 *fp16 *fp32 i32 fp32",
    {"D": 128, "M": 32, "N": 32, "CAUSAL": True},
    "attention dot softmax",
)


@triton.jit
def attention_delta(out_ptr, grad_ptr, delta_ptr, D: tl.constexpr, M: tl.constexpr):
    m = tl.program_id(0) * M + tl.arange(0, M)
    d = tl.arange(0, D)
    out = tl.load(out_ptr + m[:, None] * D + d[None, :]).to(tl.float32)
    grad = tl.load(grad_ptr + m[:, None] * D + d[None, :]).to(tl.float32)
    tl.store(delta_ptr + m, tl.sum(out * grad, axis=1))


corpus.add("attention_delta", attention_delta, "*fp16 *fp16 *fp32", {"D": 64, "M": 64}, "attention")


@triton.jit
def attention_dkdv(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    length,
    scale,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Causal gradients of a block of keys and values; length divides by the blocks."""
    n = tl.program_id(0) * N + tl.arange(0, N)
    head = tl.program_id(1).to(tl.int64) * length
    d = tl.arange(0, D)
    k = tl.load(k_ptr + (head + n)[:, None] * D + d[None, :])
    v = tl.load(v_ptr + (head + n)[:, None] * D + d[None, :])
    dk = tl.zeros([N, D], tl.float32)
    dv = tl.zeros([N, D], tl.float32)
    for start in range((tl.program_id(0) * N) // M * M, length, M):
        m = start + tl.arange(0, M)
        q = tl.load(q_ptr + (head + m)[:, None] * D + d[None, :])
        grad = tl.load(grad_ptr + (head + m)[:, None] * D + d[None, :])
        lse = tl.load(lse_ptr + head + m)
        delta = tl.load(delta_ptr + head + m)
        score = tl.dot(k, tl.trans(q)) * (scale * LOG2_E)
        power = tl.exp2(score - lse[None, :])
        power = tl.where(m[None, :] >= n[:, None], power, 0.0)
        dv += tl.dot(power.to(grad.dtype), grad)
        dpower = tl.dot(v, tl.trans(grad))
        dscore = power * (dpower - delta[None, :])
        dk += tl.dot(dscore.to(q.dtype), q)
    tl.store(dk_ptr + (head + n)[:, None] * D + d[None, :], (dk * scale).to(k.dtype))
    tl.store(dv_ptr + (head + n)[:, None] * D + d[None, :], dv.to(v.dtype))


@triton.jit
def attention_dq(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    length,
    scale,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    m = tl.program_id(0) * M + tl.arange(0, M)
    head = tl.program_id(1).to(tl.int64) * length
    d = tl.arange(0, D)
    q = tl.load(q_ptr + (head + m)[:, None] * D + d[None, :])
    grad = tl.load(grad_ptr + (head + m)[:, None] * D + d[None, :])
    lse = tl.load(lse_ptr + head + m)[:, None]
    delta = tl.load(delta_ptr + head + m)[:, None]
    dq = tl.zeros([M, D], tl.float32)
    for start in range(0, (tl.program_id(0) + 1) * M, N):
        n = start + tl.arange(0, N)
        k = tl.load(k_ptr + (head + n)[:, None] * D + d[None, :])
        v = tl.load(v_ptr + (head + n)[:, None] * D + d[None, :])
        power = tl.exp2(tl.dot(q, tl.trans(k)) * (scale * LOG2_E) - lse)
        power = tl.where(m[:, None] >= n[None, :], power, 0.0)
        dscore = power * (tl.dot(grad, tl.trans(v)) - delta)
        dq += tl.dot(dscore.to(k.dtype), k)
    tl.store(dq_ptr + (head + m)[:, None] * D + d[None, :], (dq * scale).to(q.dtype))


_backward = {"D": 64, "M": 32, "N": 32}
corpus.add(
    "attention_backward_dkdv",
    attention_dkdv,
    "*fp16 *fp16 *fp16 *fp16 *fp32 *fp32 *fp16 *fp16 i32 fp32",
    _backward,
    "attention dot softmax",
)
corpus.add(
    "attention_backward_dq",
    attention_dq,
    "*fp16 *fp16 *fp16 *fp16 *fp32 *fp32 *fp16 i32 fp32",
    _backward,
    "attention dot softmax",
)


@triton.jit
def paged_decode(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    table_ptr,
    length_ptr,
    out_ptr,
    scale,
    cap,
    table_stride,
    heads,
    kv_heads,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    USE_CAP: tl.constexpr,
):
    """One new token a sequence against pages of 16 keys found by a block table; grouped heads.

    The caches are [pages, PAGE, kv_heads, D]. Sums of products, no dot: GROUP may be small.
    """
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    g = tl.arange(0, GROUP)
    d = tl.arange(0, D)
    slot = tl.arange(0, PAGE)
    length = tl.load(length_ptr + sequence)
    q_at = (sequence * heads + kv_head * GROUP + g)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + q_at).to(tl.float32) * scale
    top = tl.full([GROUP], -float("inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    out = tl.zeros([GROUP, D], tl.float32)
    for block in range(0, tl.cdiv(length, PAGE)):
        page = tl.load(table_ptr + sequence * table_stride + block).to(tl.int64)
        at = ((page * PAGE + slot) * kv_heads + kv_head)[:, None] * D + d[None, :]
        inside = block * PAGE + slot < length
        k = tl.load(k_cache_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
        score = tl.sum(q[:, None, :] * k[None, :, :], axis=2)
        if USE_CAP:
            ratio = score / cap
            power = tl.exp(-2 * tl.abs(ratio))
            score = cap * tl.where(ratio < 0, -1.0, 1.0) * (1 - power) / (1 + power)
        score = tl.where(inside[None, :], score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        share = tl.exp(score - higher[:, None])
        shrink = tl.exp(top - higher)
        v = tl.load(v_cache_ptr + at, mask=inside[:, None], other=0.0).to(tl.float32)
        out = out * shrink[:, None] + tl.sum(share[:, :, None] * v[None, :, :], axis=1)
        total = total * shrink + tl.sum(share, axis=1)
        top = higher
    tl.store(out_ptr + q_at, (out / total[:, None]).to(out_ptr.dtype.element_ty))


for _kind, _cap in (("fp16", False), ("bf16", True)):
    corpus.add(
        f"paged_decode_{_kind}",
        paged_decode,
        f"*{_kind} *{_kind} *{_kind} *i32 *i32 *{_kind} fp32 fp32 i32 i32 i32",
        {"GROUP": 4, "D": 64, "PAGE": 16, "USE_CAP": _cap},
        "attention softmax",
    )


@triton.jit
def paged_decode_split(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    table_ptr,
    length_ptr,
    part_ptr,
    lse_ptr,
    scale,
    table_stride,
    heads,
    kv_heads,
    GROUP: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Flash decoding, first stage: the keys over SPLITS programs, heads padded to M for dots."""
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    g = tl.arange(0, M)
    d = tl.arange(0, D)
    n = tl.arange(0, N)
    length = tl.load(length_ptr + sequence)
    share = tl.cdiv(tl.cdiv(length, SPLITS), N) * N
    begin = share * split
    end = tl.minimum(begin + share, length)
    head = kv_head * GROUP + g
    real = g < GROUP
    q = tl.load(
        q_ptr + (sequence * heads + head)[:, None] * D + d[None, :], mask=real[:, None], other=0.0
    )
    top = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    out = tl.zeros([M, D], tl.float32)
    if end > begin:
        for start in range(begin, end, N):
            at = start + n
            inside = at < end
            page = tl.load(table_ptr + sequence * table_stride + at // PAGE, mask=inside, other=0)
            row = ((page.to(tl.int64) * PAGE + at % PAGE) * kv_heads + kv_head) * D
            k = tl.load(k_cache_ptr + row[None, :] + d[:, None], mask=inside[None, :], other=0.0)
            score = tl.dot(q, k.to(q.dtype)) * scale
            score = tl.where(real[:, None] & inside[None, :], score, -float("inf"))
            higher = tl.maximum(top, tl.max(score, 1))
            higher = tl.where(real, higher, 0.0)
            power = tl.exp(score - higher[:, None])
            shrink = tl.exp(top - higher)
            v = tl.load(v_cache_ptr + row[:, None] + d[None, :], mask=inside[:, None], other=0.0)
            out = out * shrink[:, None] + tl.dot(power.to(v.dtype), v)
            total = total * shrink + tl.sum(power, 1)
            top = higher
        to = (sequence * heads + head) * SPLITS + split
        tl.store(part_ptr + to[:, None] * D + d[None, :], out / total[:, None], mask=real[:, None])
        tl.store(lse_ptr + to, top + tl.log(total), mask=real)


corpus.add(
    "paged_decode_split_fp16",
    paged_decode_split,
    "*fp16 *fp16 *fp16 *i32 *i32 *fp32 *fp32 fp32 i32 i32 i32",
    {"GROUP": 4, "M": 16, "N": 32, "D": 64, "PAGE": 16, "SPLITS": 8},
    "attention softmax dot",
)


@triton.jit
def decode_reduce(
    part_ptr, lse_ptr, length_ptr, out_ptr, heads, SPLITS: tl.constexpr, D: tl.constexpr
):
    """Flash decoding, second stage."""
    row = tl.program_id(0) * heads + tl.program_id(1)
    d = tl.arange(0, D)
    length = tl.load(length_ptr + tl.program_id(0))
    share = tl.cdiv(tl.cdiv(length, SPLITS), 32) * 32
    top = -float("inf")
    total = 0.0
    out = tl.zeros([D], tl.float32)
    for split in range(0, SPLITS):
        if split * share < length:
            part = tl.load(part_ptr + (row * SPLITS + split) * D + d)
            lse = tl.load(lse_ptr + row * SPLITS + split)
            higher = tl.maximum(top, lse)
            shrink = tl.exp(top - higher)
            weight = tl.exp(lse - higher)
            out = out * shrink + part * weight
            total = total * shrink + weight
            top = higher
    tl.store(out_ptr + row * D + d, out / total)


corpus.add(
    "paged_decode_reduce",
    decode_reduce,
    "*fp32 *fp32 *i32 *fp16 i32",
    {"SPLITS": 8, "D": 64},
    "attention softmax",
)


@triton.jit
def _find_sequence(starts_ptr, block, sequences, M: tl.constexpr):
    low = 0
    high = sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // M + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def unified_attention(
    q_ptr,
    k_cache_ptr,
    v_cache_ptr,
    table_ptr,
    starts_ptr,
    length_ptr,
    slopes_ptr,
    sinks_ptr,
    out_ptr,
    scale,
    table_stride,
    sequences,
    heads,
    kv_heads,
    window,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    ALIBI: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Prefill and decode together: new tokens of many sequences, all keys in pages.

    A program takes TOKENS new tokens of one sequence times GROUP heads (M of them) of one key
    head. ``starts_ptr`` are the first tokens of the sequences, ``length_ptr`` their whole lengths.
    """
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = _find_sequence(starts_ptr, block, sequences, TOKENS)
    begin = tl.load(starts_ptr + sequence)
    new = tl.load(starts_ptr + sequence + 1) - begin
    first = (block - (begin // TOKENS + sequence)) * TOKENS
    if first >= new:
        return
    length = tl.load(length_ptr + sequence)
    context = length - new
    m = tl.arange(0, M)
    d = tl.arange(0, D)
    n = tl.arange(0, N)
    token = first + m // GROUP
    head = kv_head * GROUP + m % GROUP
    real = token < new
    q_at = ((begin + token) * heads + head)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + q_at, mask=real[:, None], other=0.0)
    if SINKS:
        top = tl.load(sinks_ptr + head).to(tl.float32)
        total = tl.full([M], 1.0, tl.float32)
    else:
        top = tl.full([M], -float("inf"), tl.float32)
        total = tl.full([M], 0.0, tl.float32)
    if ALIBI:
        slope = tl.load(slopes_ptr + head)
    out = tl.zeros([M, D], tl.float32)
    end = tl.minimum(context + first + TOKENS, length)
    for start in range(0, end, N):
        at = start + n
        inside = at < end
        page = tl.load(table_ptr + sequence * table_stride + at // PAGE, mask=inside, other=0)
        row = ((page.to(tl.int64) * PAGE + at % PAGE) * kv_heads + kv_head) * D
        k = tl.load(k_cache_ptr + row[None, :] + d[:, None], mask=inside[None, :], other=0.0)
        score = scale * tl.dot(q, k.to(q.dtype))
        distance = (context + token)[:, None] - at[None, :]
        seen = (distance >= 0) & (distance < window) & real[:, None]
        if ALIBI:
            score -= slope[:, None] * distance
        score = tl.where(seen, score, -float("inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        higher = tl.where(higher > -float("inf"), higher, 0.0)
        power = tl.exp(score - higher[:, None])
        shrink = tl.exp(top - higher)
        v = tl.load(v_cache_ptr + row[:, None] + d[None, :], mask=inside[:, None], other=0.0)
        out = out * shrink[:, None] + tl.dot(power.to(q.dtype), v.to(q.dtype))
        total = total * shrink + tl.sum(power, 1)
        top = higher
    tl.store(out_ptr + q_at, out / total[:, None], mask=real[:, None])


for _name, _kind, _cache, _alibi, _sinks in (
    ("fp16", "fp16", "fp16", False, False),
    ("bf16_alibi_sinks", "bf16", "bf16", True, True),
    ("fp8e5_cache", "fp16", "fp8e5", False, False),
):
    corpus.add(
        f"unified_attention_{_name}",
        unified_attention,
        f"*{_kind} *{_cache} *{_cache} *i32 *i32 *i32 *fp32 *{_kind} *{_kind}"
        " fp32 i32 i32 i32 i32 i32",
        {
            "GROUP": 4,
            "TOKENS": 8,
            "M": 32,
            "N": 32,
            "D": 64,
            "PAGE": 16,
            "ALIBI": _alibi,
            "SINKS": _sinks,
        },
        "attention softmax dot" + (" fp8" if _cache == "fp8e5" else ""),
    )


@triton.jit
def merge_states(
    out_ptr,
    lse_out_ptr,
    prefix_ptr,
    prefix_lse_ptr,
    suffix_ptr,
    suffix_lse_ptr,
    tokens,
    heads,
    D: tl.constexpr,
):
    """Two attentions over disjoint keys into one."""
    token = tl.program_id(0)
    head = tl.program_id(1)
    d = tl.arange(0, D)
    a = tl.load(prefix_lse_ptr + head * tokens + token)
    b = tl.load(suffix_lse_ptr + head * tokens + token)
    a = tl.where(a == float("inf"), -float("inf"), a)
    b = tl.where(b == float("inf"), -float("inf"), b)
    top = tl.maximum(a, b)
    weight_a = tl.exp(a - top)
    weight_b = tl.exp(b - top)
    total = weight_a + weight_b
    tl.store(lse_out_ptr + head * tokens + token, top + tl.log(total))
    at = (token * heads + head) * D + d
    mixed = tl.load(prefix_ptr + at) * (weight_a / total)
    mixed += tl.load(suffix_ptr + at) * (weight_b / total)
    tl.store(out_ptr + at, mixed)


corpus.add(
    "merge_attention_states",
    merge_states,
    "*fp16 *fp32 *fp16 *fp32 *fp16 *fp32 i32 i32",
    {"D": 128},
    "attention",
)


@triton.jit
def reshape_and_cache(
    key_ptr,
    value_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slot_ptr,
    k_scale_ptr,
    v_scale_ptr,
    width,
    page_stride,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    QUANTISED: tl.constexpr,
):
    """New keys and values into their pages; a negative slot is padding."""
    token = tl.program_id(0)
    slot = tl.load(slot_ptr + token).to(tl.int64)
    if slot < 0:
        return
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    key = tl.load(key_ptr + token.to(tl.int64) * width + at, mask=inside, other=0.0)
    value = tl.load(value_ptr + token.to(tl.int64) * width + at, mask=inside, other=0.0)
    if QUANTISED:
        key = key.to(tl.float32) / tl.load(k_scale_ptr)
        value = value.to(tl.float32) / tl.load(v_scale_ptr)
    to = (slot // PAGE) * page_stride + (slot % PAGE) * width + at
    tl.store(k_cache_ptr + to, key.to(k_cache_ptr.dtype.element_ty), mask=inside)
    tl.store(v_cache_ptr + to, value.to(v_cache_ptr.dtype.element_ty), mask=inside)


for _cache, _extra in (("fp16", ""), ("fp8e5", "fp8"), ("fp8e4nv", "fp8 fp8e4nv")):
    corpus.add(
        f"reshape_and_cache_{_cache}",
        reshape_and_cache,
        f"*fp16 *fp16 *{_cache} *{_cache} *i64 *fp32 *fp32 i32 i64",
        {"PAGE": 16, "BLOCK": 512, "QUANTISED": _cache != "fp16"},
        f"attention {_extra}",
        multiples="width page_stride",
        proof=(8, 9) if _cache == "fp8e4nv" else (8, 0),
    )


@triton.jit
def rotary(
    x_ptr,
    cosine_ptr,
    sine_ptr,
    position_ptr,
    heads,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    NEOX: tl.constexpr,
):
    """Rotary embedding in place: halves (NeoX) or neighbours (GPT-J)."""
    token = tl.program_id(0)
    position = tl.load(position_ptr + token)
    h = tl.arange(0, HEADS)[:, None]
    half = tl.arange(0, HALF)
    cosine = tl.load(cosine_ptr + position * HALF + half)[None, :]
    sine = tl.load(sine_ptr + position * HALF + half)[None, :]
    base = x_ptr + (token.to(tl.int64) * heads + h) * 2 * HALF
    real = h < heads
    if NEOX:
        left = tl.load(base + half[None, :], mask=real, other=0.0)
        right = tl.load(base + HALF + half[None, :], mask=real, other=0.0)
        tl.store(base + half[None, :], left * cosine - right * sine, mask=real)
        tl.store(base + HALF + half[None, :], right * cosine + left * sine, mask=real)
    else:
        both = tl.arange(0, 2 * HALF)[None, :]
        x = tl.load(base + both, mask=real, other=0.0)
        left, right = tl.split(tl.reshape(x, (HEADS, HALF, 2)))
        turned = tl.join(left * cosine - right * sine, right * cosine + left * sine)
        tl.store(base + both, tl.reshape(turned, (HEADS, 2 * HALF)), mask=real)


for _kind, _neox in (("fp16", True), ("bf16", True), ("fp16", False)):
    corpus.add(
        f"rotary_{'neox' if _neox else 'gptj'}_{_kind}",
        rotary,
        f"*{_kind} *{_kind} *{_kind} *i64 i32",
        {"HALF": 32, "HEADS": 8, "NEOX": _neox},
        "attention",
    )
