"""Atomic operations, under contention, with every shape of mask, order and scope.

Values are chosen so that the result does not depend on the order: one lost or doubled update shows.
"""

from __future__ import annotations

from typing import Any

import numerics
import pytest
from numerics import MASKS, mask_of, same, torch, triton

tl = pytest.importorskip("triton.language")

BLOCK = 512
PROGRAMS = 64
SLOTS = 96
ORDERS = [
    (sem, scope)
    for sem in ("relaxed", "acquire", "release", "acq_rel")
    for scope in ("cta", "gpu", "sys")
]
SOME_ORDERS = [("acq_rel", "gpu"), ("relaxed", "sys"), ("release", "gpu")]


@triton.jit
def update(
    target,
    index,
    value,
    mask,
    before,
    OP: tl.constexpr,
    SEM: tl.constexpr,
    SCOPE: tl.constexpr,
    WITH_RESULT: tl.constexpr,
    CONTIGUOUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``target[index] OP= value``; what was there before goes to ``before``."""
    lanes = tl.arange(0, BLOCK)
    offsets = tl.program_id(0) * BLOCK + lanes
    chosen = tl.load(mask + offsets) != 0
    new = tl.load(value + offsets)
    where = target + (lanes if CONTIGUOUS else tl.load(index + offsets))
    if OP == "add":
        old = tl.atomic_add(where, new, mask=chosen, sem=SEM, scope=SCOPE)
    elif OP == "max":
        old = tl.atomic_max(where, new, mask=chosen, sem=SEM, scope=SCOPE)
    elif OP == "min":
        old = tl.atomic_min(where, new, mask=chosen, sem=SEM, scope=SCOPE)
    elif OP == "and":
        old = tl.atomic_and(where, new, mask=chosen, sem=SEM, scope=SCOPE)
    elif OP == "or":
        old = tl.atomic_or(where, new, mask=chosen, sem=SEM, scope=SCOPE)
    elif OP == "xor":
        old = tl.atomic_xor(where, new, mask=chosen, sem=SEM, scope=SCOPE)
    else:
        old = tl.atomic_xchg(where, new, mask=chosen, sem=SEM, scope=SCOPE)
    if WITH_RESULT:
        tl.store(before + offsets, old, mask=chosen)


def wants_bf16_atomics(dtype: Any) -> None:
    """Skip where Triton has none."""
    numerics.interpreter_lacks(dtype is torch.bfloat16, "bf16 atomics")
    if dtype is torch.bfloat16 and numerics.VERSION < (3, 5):
        pytest.skip(f"skipped: Triton {triton.__version__} has no bf16 atomics")


class Case:
    """Inputs of one launch: ``PROGRAMS * BLOCK`` lanes on few slots."""

    def __init__(self, dtype: Any, mask: str, contiguous: bool, device: str) -> None:
        total = PROGRAMS * BLOCK
        self.dtype, self.device, self.contiguous = dtype, device, contiguous
        self.slots = BLOCK if contiguous else SLOTS
        if contiguous:
            self.index = torch.arange(BLOCK).repeat(PROGRAMS)
        else:
            self.index = torch.randint(SLOTS, (total,))
        # one shape a program, so that masks meet in all ways
        kinds = MASKS if mask == "mixed" else (mask,)
        parts = [mask_of(kinds[program % len(kinds)], BLOCK) for program in range(PROGRAMS)]
        self.mask = torch.cat(parts)

    def run(self, start: Any, value: Any, op: str, order: tuple[str, str], result: bool) -> Any:
        """Returns the target afterwards and what each lane saw."""
        target = start.clone().to(self.device)
        before = torch.zeros(len(value), dtype=start.dtype, device=self.device)
        update[(PROGRAMS,)](
            target,
            self.index.to(torch.int32).to(self.device),
            value.to(self.device),
            self.mask.to(self.device),
            before,
            OP=op,
            SEM=order[0],
            SCOPE=order[1],
            WITH_RESULT=result,
            CONTIGUOUS=self.contiguous,
            BLOCK=BLOCK,
        )
        return target.cpu(), before.cpu()


def signs(count: int, dtype: Any) -> Any:
    """-1, 0 and 1 at random: sums of a few hundred are exact in every type, in every order."""
    return torch.randint(-1, 2, (count,)).to(dtype)


def expected_sum(case: Case, start: Any, value: Any) -> Any:
    total = start.double()
    total.index_add_(0, case.index, (value.double() * case.mask))
    return total.to(start.dtype)


ADDABLE = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int32,
    torch.int64,
]


@pytest.mark.parametrize("contiguous", [False, True], ids=["scattered", "contiguous"])
@pytest.mark.parametrize("result", [False, True], ids=["red", "atom"])
@pytest.mark.parametrize("dtype", ADDABLE, ids=str)
def test_add(dtype: Any, result: bool, contiguous: bool, device: str) -> None:
    """Every mask shape. Scattered: hundreds of lanes on one slot; contiguous: pairs of 16-bit
    values in one word, as the compiler packs them."""
    wants_bf16_atomics(dtype)
    for mask in (*MASKS, "mixed"):
        case = Case(dtype, mask, contiguous, device)
        start = torch.randint(-8, 9, (case.slots,)).to(dtype)
        # bf16 is exact to 256: fewer non-zero values
        value = signs(len(case.mask), dtype)
        if dtype is torch.bfloat16:
            value *= (torch.rand(len(value)) < 0.25).to(dtype)
        found, _ = case.run(start, value, "add", ("acq_rel", "gpu"), result)
        same(found, expected_sum(case, start, value))


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.float64], ids=str)
def test_add_in_every_order(dtype: Any, order: tuple[str, str], device: str) -> None:
    """Each lane adds 1 and is told a number that no other lane of its slot is told."""
    case = Case(dtype, "mixed", False, device)
    if order[1] == "cta":  # it promises nothing across programs: each has slots of its own
        case.index = case.index % 4 + torch.arange(PROGRAMS).repeat_interleave(BLOCK) * 4
        case.slots = PROGRAMS * 4
    start = torch.zeros(case.slots, dtype=dtype)
    value = torch.ones(len(case.mask), dtype=dtype)
    found, before = case.run(start, value, "add", order, True)
    same(found, expected_sum(case, start, value))
    if numerics.COMPILE_ONLY:
        return
    for slot in range(case.slots):
        seen = before[(case.index == slot) & (case.mask != 0)]
        same(seen.sort().values, torch.arange(len(seen)).to(dtype))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
def test_add_of_random_numbers(dtype: Any, device: str) -> None:
    """Against a sum in fp64, within the error that any order of rounding can make."""
    wants_bf16_atomics(dtype)
    case = Case(dtype, "random", False, device)
    start = torch.randn(case.slots).to(dtype)
    value = (torch.randn(len(case.mask)) / 16).to(dtype)
    found, _ = case.run(start, value, "add", ("relaxed", "gpu"), False)
    total = start.double()
    total.index_add_(0, case.index, value.double() * case.mask)
    size = start.double().abs()
    size.index_add_(0, case.index, value.double().abs() * case.mask)
    count = torch.zeros(case.slots).double()
    count.index_add_(0, case.index, case.mask.double())
    numerics.close(found, total, count * numerics.epsilon(dtype) * size)


BITS = [(op, dtype) for op in ("and", "or", "xor") for dtype in (torch.int32, torch.int64)]
EXTREMES = [
    (op, dtype)
    for op in ("max", "min")
    for dtype in (torch.int32, torch.int64, torch.float32, torch.float64)
]


@pytest.mark.parametrize("order", SOME_ORDERS, ids="-".join)
@pytest.mark.parametrize(("op", "dtype"), BITS + EXTREMES, ids=str)
def test_bits_and_extremes(op: str, dtype: Any, order: tuple[str, str], device: str) -> None:
    for mask in (*MASKS, "mixed"):
        case = Case(dtype, mask, False, device)
        count = len(case.mask)
        if dtype.is_floating_point:
            start, value = torch.randn(case.slots).to(dtype), torch.randn(count).to(dtype)
        else:
            bounds = torch.iinfo(dtype)
            start = torch.randint(bounds.min, bounds.max, (case.slots,), dtype=dtype)
            value = torch.randint(bounds.min, bounds.max, (count,), dtype=dtype)
        found, _ = case.run(start, value, op, order, True)
        chosen = case.mask != 0
        expected = start.clone()
        if op in ("max", "min"):
            expected.scatter_reduce_(
                0, case.index[chosen], value[chosen], "amax" if op == "max" else "amin"
            )
        else:
            combine = {"and": "__and__", "or": "__or__", "xor": "__xor__"}[op]
            numbers = expected.tolist()
            for slot, item in zip(case.index[chosen].tolist(), value[chosen].tolist(), strict=True):
                numbers[slot] = getattr(numbers[slot], combine)(item)
            expected = torch.tensor(numbers, dtype=dtype)
        same(found, expected)


@pytest.mark.parametrize("order", [order for order in ORDERS if order[1] != "cta"], ids="-".join)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32], ids=str)
def test_exchange(dtype: Any, order: tuple[str, str], device: str) -> None:
    """Each slot hands every value on to exactly one lane; the last one stays."""
    numerics.interpreter_lacks(dtype.is_floating_point, "exchange of floating-point numbers")
    case = Case(dtype, "mixed", False, device)
    start = torch.zeros(case.slots, dtype=dtype)
    value = torch.arange(1, len(case.mask) + 1).to(dtype)
    found, before = case.run(start, value, "xchg", order, True)
    if numerics.COMPILE_ONLY:
        return
    for slot in range(case.slots):
        chosen = (case.index == slot) & (case.mask != 0)
        handed = torch.cat([before[chosen], found[slot : slot + 1]]).sort().values
        put = torch.cat([start[slot : slot + 1], value[chosen]]).sort().values
        same(handed, put)


@triton.jit
def claim(
    target, index, number, before, SEM: tl.constexpr, SCOPE: tl.constexpr, BLOCK: tl.constexpr
):
    """Each lane tries to put its number where -1 is."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    where = target + tl.load(index + offsets)
    mine = tl.load(number + offsets)
    free = tl.full([BLOCK], -1, target.dtype.element_ty)
    old = tl.atomic_cas(where, free, mine, sem=SEM, scope=SCOPE)
    tl.store(before + offsets, old)


@pytest.mark.parametrize("order", [order for order in ORDERS if order[1] != "cta"], ids="-".join)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
def test_compare_and_swap(dtype: Any, order: tuple[str, str], device: str) -> None:
    """One lane wins each slot, all others are told who did; slots nobody wants stay."""
    total, slots = PROGRAMS * BLOCK, 257
    index = torch.randint(slots // 2, (total,)) * 2 + 1  # odd slots: even ones are neighbours
    number = torch.arange(total).to(dtype).abs() if dtype is torch.int16 else torch.arange(total)
    number = (number % 32000).to(dtype)
    start = torch.full((slots,), -1, dtype=dtype)
    start[::2] = torch.randint(-32000, 32000, (len(start[::2]),)).to(dtype)
    target = start.clone().to(device)
    before = torch.zeros(total, dtype=dtype, device=device)
    claim[(PROGRAMS,)](
        target, index.to(torch.int32).to(device), number.to(device), before,
        SEM=order[0], SCOPE=order[1], BLOCK=BLOCK,
    )  # fmt: skip
    if numerics.COMPILE_ONLY:
        return
    found, before = target.cpu(), before.cpu()
    same(found[::2], start[::2])
    for slot in range(1, slots, 2):
        mine = index == slot
        if not mine.any():
            assert found[slot] == -1
            continue
        won = before[mine] == -1
        assert won.sum() == 1
        assert found[slot] == number[mine][won][0]
        assert (before[mine][~won] == found[slot]).all()


@triton.jit
def beside(target, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    """Even programs add 1 to even elements, odd programs write to the odd elements between."""
    program = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    if program % 2 == 0:
        for _ in range(ROUNDS):
            one = tl.full([BLOCK], 1.0, target.dtype.element_ty)
            tl.atomic_add(target + 2 * lanes, one, sem="relaxed")
    else:
        # one writer an element: the last of its values has to be there in the end
        mine = lanes % (tl.num_programs(0) // 2) == program // 2
        for turn in range(ROUNDS):
            value = tl.full([BLOCK], 0.0, tl.float32) + turn + 1 + lanes % 16
            tl.store(target + 2 * lanes + 1, value.to(target.dtype.element_ty), mask=mine)


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_neighbours_of_16_bit_atomics(dtype: Any, offset: int, device: str) -> None:
    """Where a 16-bit atomic is made of a 32-bit one, its neighbour in the word keeps what others
    write there meanwhile."""
    wants_bf16_atomics(dtype)
    rounds, programs = 16, 16
    whole = torch.full((2 * BLOCK + 4,), -7.0, dtype=dtype, device=device)
    target = whole[offset + 1 : offset + 1 + 2 * BLOCK]
    target.zero_()
    beside[(programs,)](target, ROUNDS=rounds, BLOCK=BLOCK)
    lanes = torch.arange(BLOCK)
    same(target[::2].cpu(), torch.full((BLOCK,), rounds * programs / 2).to(dtype))
    same(target[1::2].cpu(), (rounds + lanes % 16).to(dtype))
    edges = torch.cat([whole[: offset + 1], whole[offset + 1 + 2 * BLOCK :]]).cpu()
    same(edges, torch.full_like(edges, -7.0))


@triton.jit
def count(counter, seen, SEM: tl.constexpr, SCOPE: tl.constexpr):
    """One update a program, its result in all threads."""
    old = tl.atomic_add(counter, 1, sem=SEM, scope=SCOPE)
    tl.store(seen + tl.program_id(0), old)


@pytest.mark.parametrize("order", [order for order in ORDERS if order[1] != "cta"], ids="-".join)
def test_scalar_add(order: tuple[str, str], device: str) -> None:
    programs = 2048
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    seen = torch.full((programs,), -1, dtype=torch.int32, device=device)
    count[(programs,)](counter, seen, SEM=order[0], SCOPE=order[1])
    same(counter.cpu(), torch.tensor([programs], dtype=torch.int32))
    same(seen.cpu().sort().values, torch.arange(programs, dtype=torch.int32))


@triton.jit
def locked(lock, total, values, BLOCK: tl.constexpr):
    """A spin lock around plain loads and stores."""
    lanes = tl.arange(0, BLOCK)
    mine = tl.load(values + tl.program_id(0) * BLOCK + lanes)
    while tl.atomic_cas(lock, 0, 1, sem="acquire") == 1:
        pass
    tl.store(total + lanes, tl.load(total + lanes) + mine)
    tl.debug_barrier()
    tl.atomic_xchg(lock, 0, sem="release")


def test_spin_lock(device: str, parallel: None) -> None:
    """What is done under a lock is seen by the next who takes it."""
    programs, block = 512, 256
    lock = torch.zeros(1, dtype=torch.int32, device=device)
    total = torch.zeros(block, dtype=torch.int64, device=device)
    values = torch.randint(-(1 << 40), 1 << 40, (programs, block))
    locked[(programs,)](lock, total, values.to(device), BLOCK=block)
    same(total.cpu(), values.sum(0))
