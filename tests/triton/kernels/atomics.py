"""Atomic operations in every type, memory order and scope, and the locks made of them."""

import triton
import triton.language as tl

from .spec import Corpus

corpus = Corpus()


@triton.jit
def add(x_ptr, out_ptr, n, BLOCK: tl.constexpr, SEM: tl.constexpr, SCOPE: tl.constexpr):
    """A block onto itself and onto one element, with and without the old value."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0)
    tl.atomic_add(out_ptr + at, x, mask=inside, sem=SEM, scope=SCOPE)
    old = tl.atomic_add(out_ptr + n + at % 7, x, mask=inside & (x > 0), sem=SEM, scope=SCOPE)
    tl.store(x_ptr + at, old, mask=inside)
    tl.atomic_add(out_ptr + n + 7, 1, sem=SEM, scope=SCOPE)


for _kind in ("fp32", "fp16", "fp64", "i32", "u32", "i64", "u64"):
    corpus.add(
        f"atomic_add_{_kind}",
        add,
        f"*{_kind} *{_kind} i32",
        {"BLOCK": 256, "SEM": None, "SCOPE": None},
        "atomics",
        multiples="n",
    )
corpus.add(
    "atomic_add_fp16_relaxed",
    add,
    "*fp16 *fp16 i32",
    {"BLOCK": 256, "SEM": "relaxed", "SCOPE": "gpu"},
    "atomics",
    unaligned="out_ptr",
)
corpus.add(
    "atomic_add_bf16",
    add,
    "*bf16 *bf16 i32",
    {"BLOCK": 256, "SEM": None, "SCOPE": None},
    "atomics",
    multiples="n",
    oldest=(3, 5),
)


@triton.jit
def add_2d(x_ptr, out_ptr, rows, columns, M: tl.constexpr, N: tl.constexpr):
    """Neighbours in a row, where newer cards have vectors of atomics."""
    m = tl.program_id(0) * M + tl.arange(0, M)[:, None]
    n = tl.arange(0, N)[None, :]
    inside = (m < rows) & (n < columns)
    x = tl.load(x_ptr + m * columns + n, mask=inside, other=0.0)
    tl.atomic_add(out_ptr + (m % 4) * columns + n, x, mask=inside, sem="relaxed")


for _kind in ("fp32", "fp16"):
    corpus.add(
        f"atomic_add_2d_{_kind}",
        add_2d,
        f"*{_kind} *{_kind} i32 i32",
        {"M": 16, "N": 64},
        "atomics",
        multiples="columns",
    )


@triton.jit
def extremes(x_ptr, low_ptr, high_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0)
    tl.atomic_min(low_ptr + at % 5, x, mask=inside)
    tl.store(x_ptr + at, tl.atomic_max(high_ptr + at % 5, x, mask=inside), mask=inside)
    tl.atomic_max(high_ptr + 5, tl.max(x, axis=0), sem="relaxed", scope="cta")


for _kind in ("i32", "u32", "i64", "u64", "fp32", "fp64"):
    corpus.add(
        f"atomic_min_max_{_kind}",
        extremes,
        f"*{_kind} *{_kind} *{_kind} i32",
        {"BLOCK": 256},
        "atomics",
    )


@triton.jit
def bits(x_ptr, and_ptr, or_ptr, xor_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0)
    first = tl.atomic_and(and_ptr + at % 9, x, mask=inside)
    second = tl.atomic_or(or_ptr + at % 9, x, mask=inside, sem="release")
    third = tl.atomic_xor(xor_ptr + at % 9, x, mask=inside, sem="relaxed", scope="sys")
    tl.store(x_ptr + at, first ^ second ^ third, mask=inside)


for _kind in ("i32", "i64"):
    corpus.add(
        f"atomic_bits_{_kind}",
        bits,
        f"*{_kind} *{_kind} *{_kind} *{_kind} i32",
        {"BLOCK": 256},
        "atomics",
    )


@triton.jit
def exchange(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0)
    old = tl.atomic_xchg(out_ptr + at % 3, x, mask=inside)
    tl.store(x_ptr + at, old, mask=inside)
    tl.atomic_xchg(out_ptr + 3, 1, sem="release", scope="sys")


for _kind in ("i32", "i64", "fp32", "fp64"):
    corpus.add(
        f"atomic_xchg_{_kind}", exchange, f"*{_kind} *{_kind} i32", {"BLOCK": 256}, "atomics"
    )


@triton.jit
def swap_if(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Compare-and-swap of a block."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0)
    old = tl.atomic_cas(out_ptr + at, tl.zeros([BLOCK], x.dtype), x)
    tl.store(x_ptr + at, old, mask=at < n)


@triton.jit
def swap_one_if(x_ptr, out_ptr):
    """Compare-and-swap of one element by the whole program."""
    old = tl.load(out_ptr)
    x = tl.load(x_ptr + tl.program_id(0))
    seen = tl.atomic_cas(out_ptr, old, x, sem="acquire")
    tl.store(x_ptr + tl.program_id(0), seen)


for _kind in ("i32", "u32", "i64", "i16", "fp16", "bf16", "fp32"):
    corpus.add(f"atomic_cas_{_kind}", swap_if, f"*{_kind} *{_kind} i32", {"BLOCK": 128}, "atomics")
    # before 3.6 one 64-bit element is stored as 32 bits between threads: `Arguments mismatch for
    # instruction 'st'` from ptxas at every capability
    corpus.add(
        f"atomic_cas_one_{_kind}",
        swap_one_if,
        f"*{_kind} *{_kind}",
        {},
        "atomics",
        oldest=(3, 6) if _kind == "i64" else (3, 3),
    )


@triton.jit
def _each_scope(ptr, at, x, inside, SEM: tl.constexpr):
    total = tl.atomic_add(ptr + at, x, mask=inside, sem=SEM, scope="cta")
    total += tl.atomic_add(ptr + at + 1, x, mask=inside, sem=SEM, scope="gpu")
    total += tl.atomic_add(ptr + at + 2, x, mask=inside, sem=SEM, scope="sys")
    tl.atomic_max(ptr + at, x, mask=inside, sem=SEM, scope="cta")
    tl.atomic_max(ptr + at + 1, x, mask=inside, sem=SEM, scope="gpu")
    tl.atomic_max(ptr + at + 2, x, mask=inside, sem=SEM, scope="sys")
    return total


@triton.jit
def _each_scope_cas(ptr, SEM: tl.constexpr):
    zero = tl.full([], 0, ptr.dtype.element_ty)
    one = tl.full([], 1, ptr.dtype.element_ty)
    seen = tl.atomic_cas(ptr, zero, one, sem=SEM, scope="cta")
    seen += tl.atomic_cas(ptr + 1, zero, one, sem=SEM, scope="gpu")
    seen += tl.atomic_cas(ptr + 2, zero, one, sem=SEM, scope="sys")
    seen += tl.atomic_xchg(ptr + 3, 1, sem=SEM, scope="cta")
    seen += tl.atomic_xchg(ptr + 4, 1, sem=SEM, scope="gpu")
    return seen + tl.atomic_xchg(ptr + 5, 1, sem=SEM, scope="sys")


@triton.jit
def orders(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Four memory orders by three scopes, of blocks."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0)
    total = _each_scope(out_ptr, at, x, inside, "relaxed")
    total += _each_scope(out_ptr, at, x, inside, "acquire")
    total += _each_scope(out_ptr, at, x, inside, "release")
    total += _each_scope(out_ptr, at, x, inside, "acq_rel")
    tl.store(x_ptr + at, total, mask=inside)


@triton.jit
def orders_scalar(out_ptr):
    """Four memory orders by three scopes, of compare-and-swap and exchange of one element."""
    seen = _each_scope_cas(out_ptr, "relaxed")
    seen += _each_scope_cas(out_ptr, "acquire")
    seen += _each_scope_cas(out_ptr, "release")
    seen += _each_scope_cas(out_ptr, "acq_rel")
    tl.store(out_ptr + 6, seen)


for _kind in ("i32", "i64", "fp32"):
    corpus.add(
        f"atomic_orders_{_kind}",
        orders,
        f"*{_kind} *{_kind} i32",
        {"BLOCK": 128},
        "atomics orders",
    )
corpus.add("atomic_orders_scalar_i32", orders_scalar, "*i32", {}, "atomics orders")
corpus.add("atomic_orders_scalar_i64", orders_scalar, "*i64", {}, "atomics orders", oldest=(3, 6))


@triton.jit
def orders_half(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """The orders and scopes of a 16-bit addition."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    total = tl.atomic_add(out_ptr + at, x, mask=inside, sem="relaxed", scope="cta")
    total += tl.atomic_add(out_ptr + at, x, mask=inside, sem="acquire", scope="gpu")
    total += tl.atomic_add(out_ptr + at, x, mask=inside, sem="release", scope="sys")
    total += tl.atomic_add(out_ptr + at, x, mask=inside, sem="acq_rel", scope="gpu")
    tl.store(x_ptr + at, total, mask=inside)


corpus.add("atomic_orders_fp16", orders_half, "*fp16 *fp16 i32", {"BLOCK": 128}, "atomics orders")


@triton.jit
def spin_lock(lock_ptr, total_ptr, count_ptr, rounds, BLOCK: tl.constexpr):
    """Programs take turns at a sum in memory that nothing but the lock protects."""
    at = tl.arange(0, BLOCK)
    for _ in range(rounds):
        while tl.atomic_cas(lock_ptr, 0, 1, sem="acquire", scope="gpu") == 1:
            pass
        tl.debug_barrier()
        total = tl.load(total_ptr + at, volatile=True)
        tl.store(total_ptr + at, total + at)
        tl.store(count_ptr, tl.load(count_ptr, volatile=True) + 1)
        tl.debug_barrier()
        tl.atomic_xchg(lock_ptr, 0, sem="release", scope="gpu")


corpus.add("spin_lock", spin_lock, "*i32 *i32 *i32 i32", {"BLOCK": 128}, "atomics lock")


@triton.jit
def last_block_sums(
    x_ptr, part_ptr, count_ptr, out_ptr, n, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr
):
    """Partial sums in memory; the program that counts last adds them up."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0.0).to(tl.float32)
    tl.store(part_ptr + tl.program_id(0), tl.sum(x, axis=0))
    arrived = tl.atomic_add(count_ptr, 1, sem="acq_rel", scope="gpu")
    if arrived == PROGRAMS - 1:
        part = tl.load(part_ptr + tl.arange(0, PROGRAMS), cache_modifier=".cg")
        tl.store(out_ptr, tl.sum(part, axis=0))
        tl.atomic_xchg(count_ptr, 0)


corpus.add(
    "last_block_sums",
    last_block_sums,
    "*fp16 *fp32 *i32 *fp32 i32",
    {"BLOCK": 512, "PROGRAMS": 16},
    "atomics lock reduction",
)


@triton.jit
def message_passing(data_ptr, flag_ptr, out_ptr, rounds, SEM_STORE: tl.constexpr):
    """Program 0 writes and raises a flag, program 1 waits for the flag and reads."""
    for turn in range(1, rounds + 1):
        if tl.program_id(0) == 0:
            tl.store(data_ptr + turn, turn * 3)
            tl.atomic_xchg(flag_ptr + turn, turn, sem=SEM_STORE, scope="gpu")
        else:
            while tl.atomic_add(flag_ptr + turn, 0, sem="acquire", scope="gpu") == 0:
                pass
            tl.store(out_ptr + turn, tl.load(data_ptr + turn))


corpus.add(
    "message_passing",
    message_passing,
    "*i32 *i32 *i32 i32",
    {"SEM_STORE": "release"},
    "atomics lock orders",
    num_warps=1,
)


@triton.jit
def decoupled_scan(x_ptr, out_ptr, state_ptr, n, BLOCK: tl.constexpr):
    """A running sum over all programs in one pass: value and state packed into 64 bits."""
    program = tl.program_id(0)
    at = program * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0.0)
    total = tl.sum(x, axis=0)
    packed = total.to(tl.uint32, bitcast=True).to(tl.uint64)
    if program > 0:
        tl.atomic_xchg(state_ptr + program, packed | (1 << 32), sem="relaxed")
    before = 0.0
    back = program - 1
    while back >= 0:
        word = tl.full([], 0, tl.uint64)
        while word >> 32 == 0:
            word = tl.atomic_add(state_ptr + back, 0, sem="relaxed")
        before += (word & 0xFFFFFFFF).to(tl.uint32).to(tl.float32, bitcast=True)
        if word >> 32 == 2:
            back = -1
        else:
            back -= 1
    full = (before + total).to(tl.uint32, bitcast=True).to(tl.uint64)
    tl.atomic_xchg(state_ptr + program, full | (2 << 32), sem="relaxed")
    tl.store(out_ptr + at, before + tl.cumsum(x, axis=0), mask=at < n)


corpus.add(
    "decoupled_scan", decoupled_scan, "*fp32 *fp32 *u64 i32", {"BLOCK": 256}, "atomics scan lock"
)


@triton.jit
def embedding_backward(word_ptr, grad_ptr, table_ptr, columns, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    word = tl.load(word_ptr + token)
    at = tl.arange(0, BLOCK)
    grad = tl.load(grad_ptr + token * columns + at, mask=at < columns, other=0.0)
    tl.atomic_add(table_ptr + word * columns + at, grad, mask=at < columns, sem="relaxed")


for _kind in ("fp32", "fp16"):
    corpus.add(
        f"embedding_backward_{_kind}",
        embedding_backward,
        f"*i64 *{_kind} *{_kind} i32",
        {"BLOCK": 256},
        "atomics",
        multiples="columns",
    )
