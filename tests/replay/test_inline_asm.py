"""Instructions that kernels write as inline assembly, for newer GPUs than the old one."""

from __future__ import annotations

from typing import Any

import numerics
import pytest
from numerics import same, torch, triton

tl = pytest.importorskip("triton.language")

BLOCK = 128
pytestmark = pytest.mark.usefixtures("compiled")


@triton.jit
def unary(x, out, ASM: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    result = tl.inline_asm_elementwise(
        ASM, FORM, [tl.load(x + lanes)], dtype=out.dtype.element_ty, is_pure=False, pack=1
    )
    tl.store(out + lanes, result)


@triton.jit
def binary(x, y, out, ASM: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    result = tl.inline_asm_elementwise(
        ASM,
        FORM,
        [tl.load(x + lanes), tl.load(y + lanes)],
        dtype=out.dtype.element_ty,
        is_pure=False,
        pack=1,
    )
    tl.store(out + lanes, result)


def one(asm: str, form: str, x: Any, kind: Any, device: str) -> Any:
    out = torch.zeros(len(x), dtype=kind, device=device)
    unary[(len(x) // BLOCK,)](x.to(device), out, ASM=asm, FORM=form, BLOCK=BLOCK)
    return out.cpu()


def two(asm: str, form: str, x: Any, y: Any, kind: Any, device: str) -> Any:
    out = torch.zeros(len(x), dtype=kind, device=device)
    binary[(len(x) // BLOCK,)](x.to(device), y.to(device), out, ASM=asm, FORM=form, BLOCK=BLOCK)
    return out.cpu()


@pytest.mark.parametrize(
    "instruction",
    ["nanosleep.u32 100;"]
    + [f"fence.{kind}.{scope};" for kind in ("sc", "acq_rel") for scope in ("cta", "gpu", "sys")]
    + ["membar.cta;", "membar.gl;", "membar.sys;"],
)
def test_instructions_without_a_result(instruction: str, device: str) -> None:
    x = torch.randint(-(1 << 30), 1 << 30, (4 * BLOCK,), dtype=torch.int32)
    same(one(f"{instruction} mov.b32 $0, $1;", "=r,r", x, torch.int32, device), x)


def test_nanosleep_of_a_register(device: str) -> None:
    x = torch.randint(0, 1000, (4 * BLOCK,), dtype=torch.int32)
    same(one("nanosleep.u32 $1; mov.b32 $0, $1;", "=r,r", x, torch.int32, device), x)


def for_ampere() -> None:
    """Instructions of 8.0 are rewritten below 7.0; on 7.x nobody does it."""
    if (7, 0) <= numerics.capability() < (8, 0):
        pytest.skip("skipped: an instruction of 8.0, which is rewritten below 7.0 only")


def unsigned(x: Any) -> Any:
    return x.long() & 0xFFFFFFFF


REDUX = {
    "add.s32": lambda x: x.long().sum(1),
    "add.u32": lambda x: unsigned(x).sum(1),
    "min.s32": lambda x: x.long().amin(1),
    "max.s32": lambda x: x.long().amax(1),
    "min.u32": lambda x: unsigned(x).amin(1),
    "max.u32": lambda x: unsigned(x).amax(1),
    "and.b32": lambda x: fold(x, "__and__"),
    "or.b32": lambda x: fold(x, "__or__"),
    "xor.b32": lambda x: fold(x, "__xor__"),
}


def fold(x: Any, how: str) -> Any:
    total = unsigned(x[:, 0])
    for part in x.unbind(1)[1:]:
        total = getattr(total, how)(unsigned(part))
    return total


@pytest.mark.parametrize("kind", REDUX)
def test_redux(kind: str, device: str) -> None:
    """One result for the 32 lanes of a warp."""
    for_ampere()
    x = torch.randint(-(1 << 31), 1 << 31, (8 * BLOCK,)).to(torch.int32)
    found = one(f"redux.sync.{kind} $0, $1, 0xffffffff;", "=r,r", x, torch.int32, device)
    expected = REDUX[kind](x.reshape(-1, 32)) & 0xFFFFFFFF
    expected = torch.where(expected >= 1 << 31, expected - (1 << 32), expected).to(torch.int32)
    same(found, expected.repeat_interleave(32))


def awkward(count: int) -> Any:
    """fp32 of all exponents, and numbers halfway between neighbours in bf16."""
    bits = torch.randint(-(1 << 31), 1 << 31, (count,)).to(torch.int32)
    bits[: count // 4] = (bits[: count // 4] & ~0xFFFF) | 0x8000
    x = bits.view(torch.float32)
    x[-5:] = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan")])
    return x


def test_to_bf16(device: str) -> None:
    for_ampere()
    x = awkward(64 * BLOCK)
    found = one("cvt.rn.bf16.f32 $0, $1;", "=h,r", x, torch.bfloat16, device)
    same(found, x.to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["bf16x2", "f16x2"])
def test_to_pairs(kind: str, device: str) -> None:
    """The first operand goes to the upper half."""
    for_ampere()
    x, y = awkward(64 * BLOCK), awkward(64 * BLOCK).flip(0)
    found = two(f"cvt.rn.{kind}.f32 $0, $1, $2;", "=r,r,r", x, y, torch.int32, device)
    narrow = torch.bfloat16 if kind == "bf16x2" else torch.float16
    halves = found.view(torch.int16).reshape(-1, 2)
    same(halves[:, 1].contiguous().view(narrow), x.to(narrow))
    same(halves[:, 0].contiguous().view(narrow), y.to(narrow))


@triton.jit
def through_memory(x, out, LOAD: tl.constexpr, STORE: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = (x + lanes).to(tl.int64, bitcast=True)
    target = (out + lanes).to(tl.int64, bitcast=True)
    value = tl.inline_asm_elementwise(LOAD, "=r,l", [source], dtype=tl.int32, is_pure=False, pack=1)
    tl.inline_asm_elementwise(
        STORE, "=r,l,r", [target, value], dtype=tl.int32, is_pure=False, pack=1
    )


@pytest.mark.parametrize("scope", ["cta", "gpu", "sys"])
@pytest.mark.parametrize("order", ["relaxed/relaxed", "acquire/release", "volatile/volatile"])
def test_loads_and_stores_with_an_order(order: str, scope: str, device: str) -> None:
    load, store = order.split("/")
    suffix = "" if load == "volatile" else f".{scope}"
    x = torch.randint(-(1 << 31), 1 << 31, (16 * BLOCK,)).to(torch.int32)
    out = torch.zeros(len(x), dtype=torch.int32, device=device)
    through_memory[(16,)](
        x.to(device),
        out,
        LOAD=f"ld.{load}{suffix}.global.b32 $0, [$1];",
        STORE=f"st.{store}{suffix}.global.b32 [$1], $2; mov.b32 $0, 0;",
        BLOCK=BLOCK,
    )
    same(out.cpu(), x)


def test_approximations(device: str) -> None:
    """Older instructions stay as they are."""
    x = torch.rand(8 * BLOCK) * 8 - 4
    found = one("ex2.approx.f32 $0, $1;", "=r,r", x, torch.float32, device)
    numerics.close(found, torch.exp2(x.double()), torch.exp2(x.double()) * 2.0**-21)
