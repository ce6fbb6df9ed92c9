"""Memory orders, by litmus tests: millions of races, of which none may go the forbidden way.

Message passing: one side writes data, then a flag (release); the other reads the flag (acquire),
then the data. A new flag with old data is forbidden. Store buffering: both sides write their own
cell, a ``fence.sc``, and read the other's; that both read the old value is forbidden. The same
races without any order are run for contrast: their weak outcomes are counted and printed, they may
be none. PTX ISA, "Memory Consistency Model".

Every lane is a race of its own; the two sides wait for each other before each turn, so that they
meet. What is shown is shown of the GPU at hand: orders of the old GPU's hardware are PTX's promise.
"""

from __future__ import annotations

import numerics
import pytest
from numerics import torch, triton

tl = pytest.importorskip("triton.language")

LANES, PAIRS, TURNS = 128, 48, 400
pytestmark = pytest.mark.usefixtures("parallel")


@triton.jit
def wait(counter, number):
    """Until a counter has come to a number; not for ever, or a wrong order would hang the GPU."""
    seen = tl.atomic_add(counter, 0, sem="acquire")
    tries = 0
    while (seen < number) & (tries < 1000000):
        seen = tl.atomic_add(counter, 0, sem="acquire")
        tries += 1


@triton.jit
def pass_messages(
    data,
    flag,
    turns,
    news,
    stale,
    WRITE: tl.constexpr,
    READ: tl.constexpr,
    SCOPE: tl.constexpr,
    TURNS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Programs in pairs, a writer and a reader. ``turns`` counts what the reader has seen."""
    pair = tl.program_id(0) // 2
    lanes = tl.arange(0, LANES)
    mine = pair * LANES + lanes
    if tl.program_id(0) % 2 == 0:
        for turn in range(1, TURNS + 1):
            wait(turns + pair, turn - 1)
            value = tl.full([LANES], 0, tl.int32) + turn
            # the data is written far from the flag, in another order of lanes
            tl.store(data + pair * LANES + (LANES - 1 - lanes), value)
            if WRITE == "asm":
                tl.inline_asm_elementwise(
                    "st.release.gpu.global.b32 [$1], $2; mov.b32 $0, 0;",
                    "=r,l,r",
                    [(flag + mine).to(tl.int64, bitcast=True), value],
                    dtype=tl.int32,
                    is_pure=False,
                    pack=1,
                )
            else:
                tl.atomic_xchg(flag + mine, value, sem=WRITE, scope=SCOPE)
    else:
        fresh = tl.zeros([LANES], tl.int32)
        wrong = tl.zeros([LANES], tl.int32)
        for turn in range(1, TURNS + 1):
            left = LANES
            tries = 0
            while (left > 0) & (tries < 1000000):
                tries += 1
                if READ == "asm":
                    seen = tl.inline_asm_elementwise(
                        "ld.acquire.gpu.global.b32 $0, [$1];",
                        "=r,l",
                        [(flag + mine).to(tl.int64, bitcast=True)],
                        dtype=tl.int32,
                        is_pure=False,
                        pack=1,
                    )
                else:
                    seen = tl.atomic_add(flag + mine, 0, sem=READ, scope=SCOPE)
                # where the flag is of this turn the data has to be
                there = tl.load(data + pair * LANES + (LANES - 1 - lanes))
                now = seen == turn
                fresh += now.to(tl.int32)
                wrong += (now & (there != turn)).to(tl.int32)
                left = LANES - tl.sum(now.to(tl.int32), axis=0)
            tl.atomic_xchg(turns + pair, turn, sem="release")
        tl.store(news + mine, fresh)
        tl.store(stale + mine, wrong)


def message_passing(write: str, read: str, scope: str, device: str) -> tuple[int, int]:
    """Returns how many races were run, and how many ended the forbidden way."""

    def zeros(count: int) -> object:
        return torch.zeros(count, dtype=torch.int32, device=device)

    data, flag, news, stale = (zeros(PAIRS * LANES) for _ in range(4))
    pass_messages[(2 * PAIRS,)](
        data, flag, zeros(PAIRS), news, stale,
        WRITE=write, READ=read, SCOPE=scope, TURNS=TURNS, LANES=LANES,
    )  # fmt: skip
    return int(news.sum()), int(stale.sum())


@pytest.mark.parametrize("scope", ["gpu", "sys"])
@pytest.mark.parametrize(
    "orders", [("release", "acquire"), ("acq_rel", "acq_rel"), ("asm", "asm")], ids="-".join
)
def test_message_passing(orders: tuple[str, str], scope: str, device: str) -> None:
    races = weak = 0
    for _ in range(2):
        run, wrong = message_passing(*orders, scope, device)
        races, weak = races + run, weak + wrong
    print(f"message passing, {'/'.join(orders)} at {scope}: {weak} of {races} forbidden")
    if numerics.COMPILE_ONLY:
        return
    assert races >= 2 * PAIRS * LANES * TURNS
    assert weak == 0


def test_message_passing_without_order(device: str) -> None:
    """For contrast; weak outcomes are allowed and only counted."""
    races, weak = message_passing("relaxed", "relaxed", "gpu", device)
    print(f"message passing, relaxed: {weak} of {races} weak")


@triton.jit
def pass_within_a_block(
    data,
    flag,
    news,
    stale,
    WRITE: tl.constexpr,
    READ: tl.constexpr,
    TURNS: tl.constexpr,
    LANES: tl.constexpr,
):
    """The lower warps of a block write, the upper ones read what those wrote."""
    lanes = tl.arange(0, 2 * LANES)
    writer = lanes < LANES
    cell = tl.program_id(0) * LANES + lanes % LANES
    other = tl.program_id(0) * LANES + (LANES - 1 - lanes % LANES)
    fresh = tl.zeros([2 * LANES], tl.int32)
    wrong = tl.zeros([2 * LANES], tl.int32)
    for turn in range(1, TURNS + 1):
        value = tl.full([2 * LANES], 0, tl.int32) + turn
        tl.store(data + other, value, mask=writer)
        tl.atomic_xchg(flag + cell, value, mask=writer, sem=WRITE, scope="cta")
        seen = tl.atomic_add(flag + cell, 0, mask=lanes >= LANES, sem=READ, scope="cta")
        there = tl.load(data + other, mask=lanes >= LANES, other=0)
        reader = (lanes >= LANES) & (seen > 0)
        fresh += reader.to(tl.int32)
        wrong += (reader & (there < seen)).to(tl.int32)
    where = tl.program_id(0) * 2 * LANES + lanes
    tl.store(news + where, fresh)
    tl.store(stale + where, wrong)


def within_a_block(write: str, read: str, device: str) -> tuple[int, int]:
    blocks = 256
    data, flag = (torch.zeros(blocks * LANES, dtype=torch.int32, device=device) for _ in range(2))
    news, stale = (
        torch.zeros(2 * blocks * LANES, dtype=torch.int32, device=device) for _ in range(2)
    )
    pass_within_a_block[(blocks,)](
        data, flag, news, stale, WRITE=write, READ=read, TURNS=TURNS, LANES=LANES, num_warps=8
    )
    return int(news.sum()), int(stale.sum())


@pytest.mark.parametrize("orders", [("release", "acquire"), ("acq_rel", "acq_rel")], ids="-".join)
def test_message_passing_within_a_block(orders: tuple[str, str], device: str) -> None:
    races, weak = within_a_block(*orders, device)
    print(f"message passing, {'/'.join(orders)} at cta: {weak} of {races} forbidden")
    if not numerics.COMPILE_ONLY:
        assert races > 1_000_000
        assert weak == 0


def test_message_passing_within_a_block_without_order(device: str) -> None:
    """For contrast; weak outcomes are allowed and only counted."""
    races, weak = within_a_block("relaxed", "relaxed", device)
    print(f"message passing within a block, relaxed: {weak} of {races} weak")


@triton.jit
def buffer_stores(
    cells,
    meeting,
    seen,
    FENCE: tl.constexpr,
    PAIRS: tl.constexpr,
    TURNS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Two programs meet before each turn, write their own cells and read the other's."""
    pair, side = tl.program_id(0) // 2, tl.program_id(0) % 2
    lanes = tl.arange(0, LANES)
    own = cells + (side * PAIRS + pair) * LANES + lanes
    others = cells + ((1 - side) * PAIRS + pair) * LANES + (LANES - 1 - lanes)
    for turn in range(1, TURNS + 1):
        tl.atomic_add(meeting + pair, 1, sem="acq_rel")
        wait(meeting + pair, 2 * turn)
        value = tl.full([LANES], 0, tl.int32) + turn
        tl.store(own, value)
        if FENCE != "none":
            tl.inline_asm_elementwise(
                FENCE + " mov.b32 $0, $1;", "=r,r", [value], dtype=tl.int32, is_pure=False, pack=1
            )
        read = tl.load(others, volatile=True)
        # kept by the reader's cell, so that the two sides of one race can be put together
        late = (read < turn).to(tl.int8)
        tl.store(seen + ((side * PAIRS + pair) * TURNS + turn - 1) * LANES + lanes, late)


def store_buffering(fence: str, device: str) -> tuple[int, int]:
    """Returns races and forbidden outcomes: both sides read what was there before."""
    cells = torch.zeros(2 * PAIRS * LANES, dtype=torch.int32, device=device)
    meeting = torch.zeros(PAIRS, dtype=torch.int32, device=device)
    seen = torch.zeros(2, PAIRS, TURNS, LANES, dtype=torch.int8, device=device)
    buffer_stores[(2 * PAIRS,)](
        cells, meeting, seen, FENCE=fence, PAIRS=PAIRS, TURNS=TURNS, LANES=LANES
    )
    # side 0's lane races against the mirrored lane of side 1
    both = seen[0] & seen[1].flip(-1)
    return both.numel(), int(both.sum())


@pytest.mark.parametrize("scope", ["gpu", "sys"])
def test_store_buffering(scope: str, device: str) -> None:
    races, weak = store_buffering(f"fence.sc.{scope};", device)
    print(f"store buffering, fence.sc.{scope}: {weak} of {races} forbidden")
    if not numerics.COMPILE_ONLY:
        assert races > 1_000_000
        assert weak == 0


def test_store_buffering_without_fence(device: str) -> None:
    """For contrast; weak outcomes are allowed and only counted."""
    races, weak = store_buffering("none", device)
    print(f"store buffering, no fence: {weak} of {races} weak")
