"""What inference servers add: experts, adapters, sampling, state spaces."""

import triton
import triton.language as tl

from .spec import Corpus

corpus = Corpus()


@triton.jit
def experts_matmul(
    a_ptr,
    b_ptr,
    c_ptr,
    a_scale_ptr,
    b_scale_ptr,
    weight_ptr,
    sorted_ptr,
    expert_ptr,
    padded_ptr,
    columns,
    depth,
    slots,
    TOP: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    WEIGHTED: tl.constexpr,
    INT8: tl.constexpr,
):
    """Tokens sorted by expert and padded to blocks of M, each block by its expert's matrix."""
    program = tl.program_id(0)
    padded = tl.load(padded_ptr)
    down = tl.cdiv(padded, M)
    across = tl.cdiv(columns, N)
    first = program // (GROUP * across) * GROUP
    height = min(down - first, GROUP)
    i = first + (program % (GROUP * across)) % height
    j = (program % (GROUP * across)) // height
    if i * M >= padded:
        return
    slot = tl.load(sorted_ptr + i * M + tl.arange(0, M)).to(tl.int64)
    real = slot < slots
    expert = tl.load(expert_ptr + i).to(tl.int64)
    n = j * N + tl.arange(0, N)
    to = c_ptr + slot[:, None] * columns + n[None, :]
    inside = real[:, None] & (n < columns)[None, :]
    if expert == -1:
        tl.store(to, tl.zeros((M, N), c_ptr.dtype.element_ty), mask=inside)
        return
    k = tl.arange(0, K)
    a_at = a_ptr + (slot // TOP)[:, None] * depth + k[None, :]
    b_at = b_ptr + expert * columns * depth + (n % columns)[None, :].to(tl.int64) * depth
    b_at += k[:, None]
    total = tl.zeros((M, N), dtype=tl.int32 if INT8 else tl.float32)
    for step in range(0, tl.cdiv(depth, K)):
        inner = k < depth - step * K
        a = tl.load(a_at, mask=real[:, None] & inner[None, :], other=0.0)
        b = tl.load(b_at, mask=inner[:, None], other=0.0)
        total = tl.dot(a, b, total, out_dtype=total.dtype)
        a_at += K
        b_at += K
    out = total.to(tl.float32)
    if INT8:
        out *= tl.load(a_scale_ptr + slot // TOP, mask=real, other=0.0)[:, None]
        out *= tl.load(b_scale_ptr + expert * columns + n % columns)[None, :]
    if WEIGHTED:
        out *= tl.load(weight_ptr + slot, mask=real, other=0.0)[:, None]
    tl.store(to, out.to(c_ptr.dtype.element_ty), mask=inside)


for _kind in ("fp16", "bf16", "i8"):
    _out = "fp16" if _kind == "i8" else _kind
    corpus.add(
        f"experts_matmul_{_kind}",
        experts_matmul,
        f"*{_kind} *{_kind} *{_out} *fp32 *fp32 *fp32 *i32 *i32 *i32 i32 i32 i32",
        {
            "TOP": 2,
            "M": 16,
            "N": 64,
            "K": 32,
            "GROUP": 8,
            "WEIGHTED": True,
            "INT8": _kind == "i8",
        },
        "dot moe" + (" int8-dot" if _kind == "i8" else ""),
        multiples="columns depth",
    )


@triton.jit
def experts_count(expert_ptr, count_ptr, n, experts, SHARE: tl.constexpr):
    """How many slots of a program's share each expert has; one row of counts a program."""
    program = tl.program_id(0)
    for i in range(SHARE):
        at = program * SHARE + i
        if at < n:
            expert = tl.load(expert_ptr + at)
            place = count_ptr + (program + 1) * experts + expert
            tl.store(place, tl.load(place) + 1)


@triton.jit
def experts_align(
    count_ptr, padded_ptr, total_ptr, block_ptr, experts, M: tl.constexpr, BLOCK: tl.constexpr
):
    """Counts rounded up to blocks of M, their running sum, and the expert of each block."""
    at = tl.arange(0, BLOCK)
    count = tl.load(count_ptr + at, mask=at < experts, other=0)
    padded = tl.cdiv(count, M) * M
    ends = tl.cumsum(padded, axis=0)
    tl.store(padded_ptr + at, ends - padded, mask=at < experts)
    tl.store(total_ptr, tl.sum(padded, axis=0))
    for expert in range(experts):
        end = tl.sum(tl.where(at == expert, ends, 0), axis=0)
        begin = tl.sum(tl.where(at == expert, ends - padded, 0), axis=0)
        for block in range(begin // M, end // M):
            tl.store(block_ptr + block, expert)


@triton.jit
def experts_scatter(expert_ptr, offset_ptr, sorted_ptr, n, BLOCK: tl.constexpr):
    """Each slot takes the next place of its expert."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    expert = tl.load(expert_ptr + at, mask=inside, other=0)
    place = tl.atomic_add(offset_ptr + expert, 1, mask=inside)
    tl.store(sorted_ptr + place, at, mask=inside)


corpus.add("experts_count", experts_count, "*i32 *i32 i32 i32", {"SHARE": 16}, "moe", num_warps=1)
corpus.add("experts_align", experts_align, "*i32 *i32 *i32 *i32 i32", {"M": 16, "BLOCK": 64}, "moe")
corpus.add("experts_scatter", experts_scatter, "*i32 *i32 *i32 i32", {"BLOCK": 256}, "moe atomics")


@triton.jit
def experts_sum(x_ptr, out_ptr, columns, TOP: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for expert in tl.static_range(TOP):
        total += tl.load(x_ptr + (token * TOP + expert) * columns + at, mask=at < columns, other=0)
    tl.store(out_ptr + token * columns + at, total, mask=at < columns)


corpus.add("experts_sum", experts_sum, "*fp16 *fp16 i32", {"TOP": 2, "BLOCK": 512}, "moe")


@triton.jit
def lora_shrink(
    x_ptr,
    a_ptr,
    out_ptr,
    token_ptr,
    start_ptr,
    count_ptr,
    adapter_ptr,
    depth,
    rank,
    scale,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Tokens by the A of their adapter, the depth split over programs and added up in fp32."""
    group = tl.program_id(2)
    adapter = tl.load(adapter_ptr + group)
    if adapter == -1:
        return
    count = tl.load(count_ptr + group)
    split = tl.program_id(0) % SPLIT
    m = (tl.program_id(0) // SPLIT) * M + tl.arange(0, M)
    n = tl.arange(0, N)
    k = split * K + tl.arange(0, K)
    token = tl.load(token_ptr + tl.load(start_ptr + group) + m, mask=m < count, other=0)
    total = tl.zeros((M, N), dtype=tl.float32)
    for start in range(0, depth, K * SPLIT):
        inner = start + k < depth
        x = tl.load(
            x_ptr + token[:, None] * depth + (start + k)[None, :], mask=inner[None, :], other=0.0
        )
        a = tl.load(
            a_ptr + (adapter * rank + n % rank)[None, :] * depth + (start + k)[:, None],
            mask=inner[:, None],
            other=0.0,
        )
        total += tl.dot(x, a)
    inside = (m < count)[:, None] & (n < rank)[None, :]
    tl.atomic_add(out_ptr + token[:, None] * rank + n[None, :], total * scale, mask=inside)


@triton.jit
def lora_expand(
    x_ptr,
    b_ptr,
    out_ptr,
    token_ptr,
    start_ptr,
    count_ptr,
    adapter_ptr,
    columns,
    rank,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """The shrunk tokens by B, added to the layer's output."""
    group = tl.program_id(2)
    adapter = tl.load(adapter_ptr + group)
    if adapter == -1:
        return
    count = tl.load(count_ptr + group)
    if tl.program_id(0) * M >= count:
        return
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    k = tl.arange(0, K)
    token = tl.load(token_ptr + tl.load(start_ptr + group) + m, mask=m < count, other=0)
    x = tl.load(x_ptr + token[:, None] * rank + k[None, :], mask=(k < rank)[None, :], other=0.0)
    b = tl.load(
        b_ptr + (adapter * columns + n % columns)[None, :] * rank + k[:, None],
        mask=(k < rank)[:, None],
        other=0.0,
    )
    total = tl.dot(x.to(b.dtype), b)
    inside = (m < count)[:, None] & (n < columns)[None, :]
    to = out_ptr + token[:, None] * columns + n[None, :]
    tl.store(to, total.to(b.dtype) + tl.load(to, mask=inside, other=0.0), mask=inside)


corpus.add(
    "lora_shrink",
    lora_shrink,
    "*fp16 *fp16 *fp32 *i32 *i32 *i32 *i32 i32 i32 fp32",
    {"M": 16, "N": 16, "K": 64, "SPLIT": 4},
    "dot lora atomics",
    multiples="depth rank",
)
corpus.add(
    "lora_expand",
    lora_expand,
    "*fp32 *fp16 *fp16 *i32 *i32 *i32 *i32 i32 i32",
    {"M": 16, "N": 64, "K": 16},
    "dot lora",
    multiples="columns rank",
)


@triton.jit
def gumbel_sample(logits_ptr, seed_ptr, temperature_ptr, out_ptr, words, BLOCK: tl.constexpr):
    """A sample of the softmax by the greatest of the logits with Gumbel noise."""
    row = tl.program_id(0)
    seed = tl.load(seed_ptr + row)
    temperature = tl.load(temperature_ptr + row)
    at = tl.arange(0, BLOCK)
    best = -float("inf")
    chosen = 0
    for start in range(0, words, BLOCK):
        inside = start + at < words
        logit = tl.load(logits_ptr + row * words + start + at, mask=inside, other=-float("inf"))
        logit = logit.to(tl.float32)
        if temperature != 0.0:
            uniform = tl.maximum(tl.rand(seed, start + at), 1e-7)
            logit = logit / temperature - tl.log(-tl.log(uniform))
        logit = tl.where(inside, logit, -float("inf"))
        value, place = tl.max(logit, axis=0, return_indices=True)
        if value > best:
            best = value
            chosen = start + place
    tl.store(out_ptr + row, chosen.to(tl.int64))


corpus.add(
    "gumbel_sample",
    gumbel_sample,
    "*fp16 *i64 *fp32 *i64 i32",
    {"BLOCK": 512},
    "sampling random",
)


@triton.jit
def min_p(logits_ptr, min_p_ptr, words, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    threshold = tl.load(min_p_ptr + row)
    if threshold == 0.0:
        return
    at = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, words, BLOCK):
        inside = start + at < words
        logit = tl.load(logits_ptr + row * words + start + at, mask=inside, other=-float("inf"))
        top = tl.maximum(top, logit)
    least = tl.max(top, axis=0) + tl.log(threshold)
    for start in range(0, words, BLOCK):
        inside = start + at < words
        logit = tl.load(logits_ptr + row * words + start + at, mask=inside, other=0.0)
        kept = tl.where(logit < least, -float("inf"), logit)
        tl.store(logits_ptr + row * words + start + at, kept, mask=inside)


corpus.add("min_p", min_p, "*fp32 *fp32 i32", {"BLOCK": 512}, "sampling")


@triton.jit
def penalties(
    logits_ptr,
    repetition_ptr,
    frequency_ptr,
    presence_ptr,
    prompt_bits_ptr,
    count_ptr,
    words,
    packed,
    BLOCK: tl.constexpr,
):
    """Repetition, frequency and presence; the prompt's words are bits, 32 in a number."""
    row = tl.program_id(0)
    repetition = tl.load(repetition_ptr + row)
    frequency = tl.load(frequency_ptr + row)
    presence = tl.load(presence_ptr + row)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < words
    logit = tl.load(logits_ptr + row * words + at, mask=inside).to(tl.float32)
    count = tl.load(count_ptr + row * words + at, mask=inside, other=0)
    word = tl.program_id(1) * BLOCK // 32 + tl.arange(0, BLOCK // 32)
    bits = tl.load(prompt_bits_ptr + row * packed + word, mask=word < packed, other=0)
    in_prompt = ((bits[:, None] >> tl.arange(0, 32)[None, :]) & 1).to(tl.int1).reshape(BLOCK)
    seen = in_prompt | (count > 0)
    factor = tl.where(seen, repetition, 1.0)
    logit *= tl.where(logit > 0, 1.0 / factor, factor)
    logit -= frequency * count
    logit -= presence * (count > 0)
    tl.store(logits_ptr + row * words + at, logit, mask=inside)


corpus.add(
    "penalties",
    penalties,
    "*fp16 *fp32 *fp32 *fp32 *i32 *i32 i32 i32",
    {"BLOCK": 512},
    "sampling",
)


@triton.jit
def top_p(probs_ptr, limit_ptr, out_ptr, words, BLOCK: tl.constexpr, ROUNDS: tl.constexpr):
    """The least probability that is kept, found by bisection, and the rest set to zero."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < words
    probability = tl.load(probs_ptr + row * words + at, mask=inside, other=0.0).to(tl.float32)
    limit = tl.load(limit_ptr + row)
    low = 0.0
    high = tl.max(probability, axis=0)
    for _ in range(ROUNDS):
        middle = 0.5 * (low + high)
        kept = tl.sum(tl.where(probability >= middle, probability, 0.0), axis=0)
        enough = kept >= limit
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    kept = tl.where(probability >= low, probability, 0.0)
    tl.store(out_ptr + row * words + at, kept / tl.sum(kept, axis=0), mask=inside)


corpus.add(
    "top_p", top_p, "*fp16 *fp32 *fp16 i32", {"BLOCK": 1024, "ROUNDS": 20}, "sampling softmax"
)


@triton.jit
def rejection_sample(
    start_ptr, draft_ptr, draft_prob_ptr, target_prob_ptr, uniform_ptr, out_ptr, words, longest
):
    """Speculative decoding: draft tokens are taken until one is refused."""
    request = tl.program_id(0)
    begin = tl.load(start_ptr + request)
    count = tl.load(start_ptr + request + 1) - begin
    refused = False
    for position in range(count):
        if not refused:
            token = tl.load(draft_ptr + begin + position)
            draft = tl.load(draft_prob_ptr + (begin + position) * words + token)
            target = tl.load(target_prob_ptr + (begin + position) * words + token)
            uniform = tl.load(uniform_ptr + begin + position)
            if (draft > 0) & (target / draft >= uniform):
                tl.store(out_ptr + request * longest + position, token)
            else:
                refused = True
                tl.store(out_ptr + request * longest + position, -1)


corpus.add(
    "rejection_sample",
    rejection_sample,
    "*i32 *i32 *fp32 *fp32 *fp64 *i32 i32 i32",
    {},
    "sampling",
    num_warps=1,
)


@triton.jit
def selective_state_update(
    state_ptr,
    x_ptr,
    dt_ptr,
    bias_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    z_ptr,
    out_ptr,
    index_ptr,
    width,
    M: tl.constexpr,
    STATES: tl.constexpr,
):
    """One step of Mamba's recurrence, the state in its slot, gated by silu(z)."""
    token = tl.program_id(1)
    slot = tl.load(index_ptr + token).to(tl.int64)
    m = tl.program_id(0) * M + tl.arange(0, M)
    s = tl.arange(0, STATES)
    inside = m < width
    at = token * width + m
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dt = tl.load(dt_ptr + at, mask=inside, other=0.0).to(tl.float32)
    dt += tl.load(bias_ptr + m, mask=inside, other=0.0).to(tl.float32)
    dt = tl.where(dt <= 20.0, tl.log(tl.exp(dt) + 1), dt)
    a = tl.load(a_ptr + m[:, None] * STATES + s[None, :], mask=inside[:, None], other=0.0)
    b = tl.load(b_ptr + token * STATES + s).to(tl.float32)
    c = tl.load(c_ptr + token * STATES + s).to(tl.float32)
    state_at = state_ptr + (slot * width + m)[:, None] * STATES + s[None, :]
    state = tl.load(state_at, mask=inside[:, None], other=0.0).to(tl.float32)
    state = state * tl.exp(a * dt[:, None]) + b[None, :] * dt[:, None] * x[:, None]
    tl.store(state_at, state, mask=inside[:, None])
    out = tl.sum(state * c[None, :], axis=1)
    out += x * tl.load(d_ptr + m, mask=inside, other=0.0)
    z = tl.load(z_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, out * z * tl.sigmoid(z), mask=inside)


corpus.add(
    "selective_state_update",
    selective_state_update,
    "*fp16 *fp16 *fp16 *fp16 *fp32 *fp16 *fp16 *fp16 *fp16 *fp16 *i32 i32",
    {"M": 16, "STATES": 16},
    "state-space",
    num_warps=2,
)


@triton.jit
def chunk_scan(
    cb_ptr,
    x_ptr,
    decay_ptr,
    dt_ptr,
    c_ptr,
    state_ptr,
    out_ptr,
    length,
    width,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STATES: tl.constexpr,
):
    """Mamba 2 within a chunk: the carried state, and the causal product inside the chunk."""
    chunk = tl.program_id(2)
    m = tl.program_id(0) * M + tl.arange(0, M)
    n = tl.program_id(1) * N + tl.arange(0, N)
    s = tl.arange(0, STATES)
    row = chunk * length + m
    decay = tl.load(decay_ptr + row, mask=m < length, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + row[:, None] * STATES + s[None, :], mask=(m < length)[:, None], other=0.0)
    state_at = (chunk * width + n)[None, :] * STATES + s[:, None]
    state = tl.load(state_ptr + state_at, mask=(n < width)[None, :], other=0.0)
    total = tl.dot(c, state.to(c.dtype)) * tl.exp(decay)[:, None]
    for start in range(0, min((tl.program_id(0) + 1) * M, length), K):
        k = start + tl.arange(0, K)
        inner = k < length
        cb = tl.load(
            cb_ptr + row[:, None] * length + k[None, :], mask=inner[None, :], other=0.0
        ).to(tl.float32)
        decay_k = tl.load(decay_ptr + chunk * length + k, mask=inner, other=0.0).to(tl.float32)
        dt = tl.load(dt_ptr + chunk * length + k, mask=inner, other=0.0).to(tl.float32)
        cb *= tl.exp(tl.minimum(decay[:, None] - decay_k[None, :], 0.0)) * dt[None, :]
        cb = tl.where(m[:, None] >= k[None, :], cb, 0.0)
        x = tl.load(
            x_ptr + (chunk * length + k)[:, None] * width + n[None, :],
            mask=inner[:, None] & (n < width)[None, :],
            other=0.0,
        )
        total += tl.dot(cb.to(x.dtype), x)
    inside = (m < length)[:, None] & (n < width)[None, :]
    tl.store(out_ptr + row[:, None] * width + n[None, :], total, mask=inside)


corpus.add(
    "chunk_scan",
    chunk_scan,
    "*fp16 *fp16 *fp32 *fp32 *fp16 *fp16 *fp16 i32 i32",
    {"M": 32, "N": 32, "K": 32, "STATES": 32},
    "dot state-space",
    multiples="length width",
)


@triton.jit
def causal_convolution(
    x_ptr, state_ptr, weight_ptr, bias_ptr, out_ptr, width, TAPS: tl.constexpr, BLOCK: tl.constexpr
):
    """One step of a causal depthwise convolution with the last inputs kept as state."""
    token = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    x = tl.load(x_ptr + token * width + at, mask=inside, other=0.0)
    total = tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    for tap in tl.static_range(TAPS - 1):
        old = tl.load(state_ptr + (token * (TAPS - 1) + tap) * width + at, mask=inside, other=0.0)
        total += old * tl.load(weight_ptr + tap * width + at, mask=inside, other=0.0)
        if tap > 0:
            tl.store(state_ptr + (token * (TAPS - 1) + tap - 1) * width + at, old, mask=inside)
    total += x * tl.load(weight_ptr + (TAPS - 1) * width + at, mask=inside, other=0.0)
    tl.store(state_ptr + (token * (TAPS - 1) + TAPS - 2) * width + at, x, mask=inside)
    tl.store(out_ptr + token * width + at, total * tl.sigmoid(total), mask=inside)


corpus.add(
    "causal_convolution",
    causal_convolution,
    "*fp16 *fp16 *fp16 *fp16 *fp16 i32",
    {"TAPS": 4, "BLOCK": 256},
    "state-space",
    multiples="width",
)


@triton.jit
def embedding(word_ptr, table_ptr, out_ptr, first, words, columns, BLOCK: tl.constexpr):
    """A vocabulary split over GPUs: words of another part give zeros."""
    token = tl.program_id(0)
    word = tl.load(word_ptr + token) - first
    mine = (word >= 0) & (word < words)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(table_ptr + word * columns + at, mask=mine & (at < columns), other=0.0)
    tl.store(out_ptr + token.to(tl.int64) * columns + at, row, mask=at < columns)


corpus.add("embedding", embedding, "*i64 *fp16 *fp16 i64 i64 i32", {"BLOCK": 512}, "serving")
