"""``tl.dot``: every operand type, exact where integers are multiplied, against fp64 elsewhere."""

from __future__ import annotations

from typing import Any

import numerics
import pytest
from numerics import close, epsilon, same, torch, triton

tl = pytest.importorskip("triton.language")

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@triton.jit
def one_dot(
    a, b, c, out,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    WITH_C: tl.constexpr, TRANSPOSED: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """``out = a @ b (+ c)``, one block; ``b`` lies transposed in memory if so asked."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + m[:, None] * K + k[None, :])
    if TRANSPOSED:
        right = tl.trans(tl.load(b + n[:, None] * K + k[None, :]))
    else:
        right = tl.load(b + k[:, None] * N + n[None, :])
    where = m[:, None] * N + n[None, :]
    if WITH_C:
        total = tl.dot(left, right, tl.load(c + where), out_dtype=OUT, input_precision="ieee")
    else:
        total = tl.dot(left, right, out_dtype=OUT, input_precision="ieee")
    tl.store(out + where, total)


def product(a: Any, b: Any, c: Any, out: Any, warps: int = 4, transposed: bool = False) -> Any:
    (m, k), n = a.shape, b.shape[1]
    device = out.device
    wanted = {torch.float32: tl.float32, torch.float16: tl.float16, torch.int32: tl.int32,
              torch.float64: tl.float64}[out.dtype]  # fmt: skip
    one_dot[(1,)](
        a.to(device), (b.t().contiguous() if transposed else b).to(device),
        None if c is None else c.to(device), out,
        M=m, N=n, K=k, WITH_C=c is not None, TRANSPOSED=transposed, OUT=wanted, num_warps=warps,
    )  # fmt: skip
    return out.cpu()


SIZES = [(16, 16, 16), (32, 64, 32), (64, 64, 64)]
FLOATS = [
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float32),
    (E5M2, torch.float32),
    (E4M3, torch.float32),
    (torch.float64, torch.float64),
]


@pytest.mark.parametrize("form", ["plain", "accumulated", "transposed"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("operand", "result"), FLOATS, ids=str)
def test_floats(operand: Any, result: Any, size: tuple[int, ...], form: str, device: str) -> None:
    numerics.needs(operand)
    numerics.interpreter_lacks(operand.itemsize == 1, "8-bit floats")
    numerics.interpreter_lacks(operand is torch.bfloat16, "bf16 dots")
    if operand is torch.float64 and numerics.VERSION < (3, 5):
        pytest.skip("skipped: fp64 dots came with Triton 3.5")
    m, n, k = size
    if operand.itemsize == 1:
        k = max(k, 32)  # the least that Triton takes
    elif operand is torch.float64:
        k = min(k, 32)  # two operands of 64 by 64 are more than 48 KiB
    a, b = torch.randn(m, k).to(operand), torch.randn(k, n).to(operand)
    c = torch.randn(m, n).to(result) if form == "accumulated" else None
    out = torch.zeros(m, n, dtype=result, device=device)
    found = product(a, b, c, out, transposed=form == "transposed")
    start = torch.zeros(m, n).double() if c is None else c.double()
    expected = a.double() @ b.double() + start
    size_of_terms = a.double().abs() @ b.double().abs() + start.abs()
    # sums kept in the result's type, in any order; fp32 sums of an fp16 dot lie well within
    close(found, expected, size_of_terms * epsilon(result) * (k + 1))


WHOLE = [(16, 16, 32), (32, 32, 64), (16, 16, 256), (64, 64, 128), (16, 16, 1024), (16, 32, 512)]


@pytest.mark.parametrize("form", ["plain", "accumulated", "transposed"])
@pytest.mark.parametrize("values", ["random", "extreme", "ramp"])
@pytest.mark.parametrize("size", WHOLE, ids=str)
def test_int8_is_exact(size: tuple[int, ...], values: str, form: str, device: str) -> None:
    m, n, k = size
    if (0, 0) < numerics.capability() < (6, 1) and (m + n) * k * 2 >= 48 << 10:
        pytest.skip("skipped: without dp4a int8 takes 2 bytes an element: all of 48 KiB or more")
    if values == "random":
        a = torch.randint(-128, 128, (m, k)).to(torch.int8)
        b = torch.randint(-128, 128, (k, n)).to(torch.int8)
    elif values == "extreme":  # the largest products there are, all of one sign a column
        a = torch.full((m, k), -128, dtype=torch.int8)
        b = torch.where(torch.arange(n) % 2 == 0, -128, 127).to(torch.int8).repeat(k, 1)
    else:  # each position along K tells itself apart
        a = ((torch.arange(m * k).reshape(m, k) * 7) % 251 - 125).to(torch.int8)
        b = ((torch.arange(k * n).reshape(k, n) * 11) % 241 - 120).to(torch.int8)
    c = torch.randint(-(1 << 30), 1 << 30, (m, n), dtype=torch.int32)
    start = c if form == "accumulated" else None
    out = torch.zeros(m, n, dtype=torch.int32, device=device)
    found = product(a, b, start, out, transposed=form == "transposed")
    expected = a.long() @ b.long() + (0 if start is None else start.long())
    same(found, expected.to(torch.int32))


@triton.jit
def blocked(
    a, b, out, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A matrix product in blocks with ragged edges, sums over a loop."""
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    total = tl.zeros([BM, BN], dtype=ACC)
    for start in range(0, K, BK):
        rk = start + tl.arange(0, BK)
        left = tl.load(
            a + rm[:, None] * K + rk[None, :], mask=(rm[:, None] < M) & (rk[None, :] < K), other=0
        )
        right = tl.load(
            b + rk[:, None] * N + rn[None, :], mask=(rk[:, None] < K) & (rn[None, :] < N), other=0
        )
        total = tl.dot(left, right, total, out_dtype=ACC, input_precision="ieee")
    where = out + rm[:, None] * N + rn[None, :]
    tl.store(where, total, mask=(rm[:, None] < M) & (rn[None, :] < N))


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize(
    "operand", [torch.float16, torch.bfloat16, torch.float32, torch.int8], ids=str
)
def test_blocked(operand: Any, stages: int, device: str) -> None:
    numerics.interpreter_lacks(True, "loops over an argument, with the newest NumPy")
    m, n, k = 150, 131, 203
    if operand is torch.int8:
        a = torch.randint(-128, 128, (m, k)).to(operand)
        b = torch.randint(-128, 128, (k, n)).to(operand)
        out = torch.zeros(m, n, dtype=torch.int32, device=device)
    else:
        a, b = torch.randn(m, k).to(operand), torch.randn(k, n).to(operand)
        out = torch.zeros(m, n, device=device)
    grid = (triton.cdiv(m, 32), triton.cdiv(n, 64))
    acc = tl.int32 if operand is torch.int8 else tl.float32
    blocked[grid](
        a.to(device), b.to(device), out, m, n, k, BM=32, BN=64, BK=32, ACC=acc, num_stages=stages
    )
    if operand is torch.int8:
        same(out.cpu(), (a.long() @ b.long()).to(torch.int32))
        return
    terms = a.double().abs() @ b.double().abs()
    close(out.cpu(), a.double() @ b.double(), terms * epsilon(torch.float32) * k)


@triton.jit
def both(a, b, c, d, whole, real, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """An int8 dot and an fp16 dot in one kernel, the second scaled by the first."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    ints = tl.dot(
        tl.load(a + m[:, None] * K + k[None, :]),
        tl.load(b + k[:, None] * N + n[None, :]),
        out_dtype=tl.int32,
    )
    reals = tl.dot(
        tl.load(c + m[:, None] * K + k[None, :]), tl.load(d + k[:, None] * N + n[None, :])
    )
    where = m[:, None] * N + n[None, :]
    tl.store(whole + where, ints)
    tl.store(real + where, reals + ints.to(tl.float32))


def test_int8_and_fp16_in_one_kernel(device: str) -> None:
    m, n, k = 32, 32, 64
    a = torch.randint(-128, 128, (m, k)).to(torch.int8)
    b = torch.randint(-128, 128, (k, n)).to(torch.int8)
    c, d = torch.randn(m, k).half(), torch.randn(k, n).half()
    whole = torch.zeros(m, n, dtype=torch.int32, device=device)
    real = torch.zeros(m, n, device=device)
    both[(1,)](*(x.to(device) for x in (a, b, c, d)), whole, real, M=m, N=n, K=k)
    ints = a.long() @ b.long()
    same(whole.cpu(), ints.to(torch.int32))
    expected = c.double() @ d.double() + ints
    terms = c.double().abs() @ d.double().abs() + ints.abs()
    close(real.cpu(), expected, terms * epsilon(torch.float32) * k)


@triton.jit
def batched(
    a, b, out, B: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    OUT: tl.constexpr,
):  # fmt: skip
    r, m, n, k = tl.arange(0, B), tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    left = tl.load(a + r[:, None, None] * M * K + m[None, :, None] * K + k[None, None, :])
    right = tl.load(b + r[:, None, None] * K * N + k[None, :, None] * N + n[None, None, :])
    total = tl.dot(left, right, out_dtype=OUT, input_precision="ieee")
    tl.store(out + r[:, None, None] * M * N + m[None, :, None] * N + n[None, None, :], total)


@pytest.mark.parametrize("operand", [torch.float16, torch.float32, torch.int8], ids=str)
def test_three_dimensions(operand: Any, device: str) -> None:
    r, m, n, k = 2, 16, 32, 32
    if operand is torch.int8:
        a = torch.randint(-128, 128, (r, m, k)).to(operand)
        b = torch.randint(-128, 128, (r, k, n)).to(operand)
        out = torch.zeros(r, m, n, dtype=torch.int32, device=device)
    else:
        a, b = torch.randn(r, m, k).to(operand), torch.randn(r, k, n).to(operand)
        out = torch.zeros(r, m, n, device=device)
    kind = tl.int32 if operand is torch.int8 else tl.float32
    batched[(1,)](a.to(device), b.to(device), out, B=r, M=m, N=n, K=k, OUT=kind)
    if operand is torch.int8:
        same(out.cpu(), (a.long() @ b.long()).to(torch.int32))
        return
    terms = a.double().abs() @ b.double().abs()
    close(out.cpu(), a.double() @ b.double(), terms * epsilon(torch.float32) * k)
