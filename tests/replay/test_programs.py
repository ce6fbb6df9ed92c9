"""What models are made of: softmax, layer norm, attention, reductions, scans, sorts, histograms."""

from __future__ import annotations

from typing import Any

import numerics
import pytest
from numerics import close, relative, same, torch, triton

tl = pytest.importorskip("triton.language")

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


@triton.jit
def softmax(x, out, COLUMNS, BLOCK: tl.constexpr):
    row, lanes = tl.program_id(0), tl.arange(0, BLOCK)
    inside = lanes < COLUMNS
    value = tl.load(x + row * COLUMNS + lanes, mask=inside, other=float("-inf")).to(tl.float32)
    power = tl.exp(value - tl.max(value, axis=0))
    result = power / tl.sum(power, axis=0)
    tl.store(out + row * COLUMNS + lanes, result.to(out.dtype.element_ty), mask=inside)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("columns", [1, 31, 512, 1000])
def test_softmax(columns: int, dtype: Any, device: str) -> None:
    x = (torch.randn(37, columns) * 4).to(dtype)
    out = torch.zeros_like(x, device=device)
    softmax[(37,)](x.to(device), out, columns, BLOCK=1024)
    expected = torch.softmax(x.double(), 1)
    close(out.cpu(), expected, expected * 4 * numerics.epsilon(dtype) + 1e-6)


@triton.jit
def layer_norm(x, weight, bias, out, COLUMNS, BLOCK: tl.constexpr):
    row, lanes = tl.program_id(0), tl.arange(0, BLOCK)
    inside = lanes < COLUMNS
    value = tl.load(x + row * COLUMNS + lanes, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / COLUMNS
    centred = tl.where(inside, value - mean, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / COLUMNS + 1e-5)
    result = centred * scale * tl.load(weight + lanes, mask=inside, other=0.0).to(tl.float32)
    result += tl.load(bias + lanes, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * COLUMNS + lanes, result.to(out.dtype.element_ty), mask=inside)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_layer_norm(dtype: Any, device: str) -> None:
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((29, 777), (777,), (777,)))
    out = torch.zeros_like(x, device=device)
    layer_norm[(29,)](*(item.to(device) for item in (x, weight, bias)), out, 777, BLOCK=1024)
    expected = torch.nn.functional.layer_norm(
        x.double(), (777,), weight.double(), bias.double(), 1e-5
    )
    close(out.cpu(), expected, expected.abs() * numerics.epsilon(dtype) + 2e-5)


@triton.jit
def attend(
    q, k, v, out, logs, SCALE, T: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """Causal attention of one head, softmax as the blocks go by."""
    head = tl.program_id(1) * T * D
    rows, width = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    query = tl.load(q + head + rows[:, None] * D + width[None, :])
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    result = tl.zeros([BM, D], tl.float32)
    for start in range(0, T, BN):
        columns = start + tl.arange(0, BN)
        keys = tl.load(k + head + columns[None, :] * D + width[:, None])
        score = tl.dot(query, keys, input_precision="ieee") * SCALE
        score = tl.where(rows[:, None] >= columns[None, :], score, -1.0e30)
        higher = tl.maximum(top, tl.max(score, axis=1))
        power = tl.exp(score - higher[:, None])
        fade = tl.exp(top - higher)
        total = total * fade + tl.sum(power, axis=1)
        values = tl.load(v + head + columns[:, None] * D + width[None, :])
        result = result * fade[:, None]
        result += tl.dot(power.to(values.dtype), values, input_precision="ieee")
        top = higher
    result = result / total[:, None]
    tl.store(out + head + rows[:, None] * D + width[None, :], result.to(out.dtype.element_ty))
    tl.store(logs + tl.program_id(1) * T + rows, top + tl.log(total))


@triton.jit
def attend_backward(
    q, k, v, out, grad, logs, dq, dk, dv, SCALE,
    T: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values; those of the queries by atomic addition."""
    head = tl.program_id(1) * T * D
    columns, width = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, D)
    there = head + columns[:, None] * D + width[None, :]
    keys, values = tl.load(k + there), tl.load(v + there)
    key_sum = tl.zeros([BN, D], tl.float32)
    value_sum = tl.zeros([BN, D], tl.float32)
    for start in range(0, T, BM):
        rows = start + tl.arange(0, BM)
        here = head + rows[:, None] * D + width[None, :]
        query, outside = tl.load(q + here), tl.load(grad + here)
        score = tl.dot(query, tl.trans(keys), input_precision="ieee") * SCALE
        log = tl.load(logs + tl.program_id(1) * T + rows)
        share = tl.where(rows[:, None] >= columns[None, :], tl.exp(score - log[:, None]), 0.0)
        value_sum += tl.dot(tl.trans(share.to(outside.dtype)), outside, input_precision="ieee")
        mean = tl.sum(tl.load(out + here).to(tl.float32) * outside.to(tl.float32), axis=1)
        slope = tl.dot(outside, tl.trans(values), input_precision="ieee") - mean[:, None]
        slope = (share * slope * SCALE).to(query.dtype)
        key_sum += tl.dot(tl.trans(slope), query, input_precision="ieee")
        tl.atomic_add(dq + here, tl.dot(slope, keys, input_precision="ieee"), sem="relaxed")
    tl.store(dk + there, key_sum)
    tl.store(dv + there, value_sum)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [32, 64])
def test_attention(width: int, dtype: Any, device: str) -> None:
    numerics.interpreter_lacks(dtype is torch.bfloat16, "bf16 dots")
    heads, length, block = 3, 128, 32
    shape = (heads, length, width)
    q, k, v, grad = (torch.randn(*shape).to(dtype) for _ in range(4))
    scale = width**-0.5
    there = [item.to(device) for item in (q, k, v)]
    out = torch.zeros(shape, dtype=dtype, device=device)
    logs = torch.zeros(heads, length, device=device)
    sizes = {"T": length, "D": width, "BM": block, "BN": block}
    attend[(length // block, heads)](*there, out, logs, scale, **sizes)
    wide = [item.double().requires_grad_() for item in (q, k, v)]
    score = wide[0] @ wide[1].transpose(1, 2) * scale
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    expected = score.masked_fill(hidden, float("-inf")).softmax(-1) @ wide[2]
    bound = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    relative(out, expected.detach(), bound)
    expected.backward(grad.double())
    made = [torch.zeros(shape, device=device) for _ in range(3)]
    attend_backward[(length // block, heads)](
        *there, out, grad.to(device), logs, *made, scale, **sizes
    )
    for found, operand in zip(made, wide, strict=True):
        relative(found, operand.grad, 3 * bound)


@triton.jit
def reduce(x, out, OP: tl.constexpr, AXIS: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    m, n = tl.arange(0, M), tl.arange(0, N)
    value = tl.load(x + m[:, None] * N + n[None, :])
    lanes = n if AXIS == 0 else m
    if OP == "sum":
        tl.store(out + lanes, tl.sum(value, axis=AXIS))
    elif OP == "max":
        tl.store(out + lanes, tl.max(value, axis=AXIS))
    elif OP == "min":
        tl.store(out + lanes, tl.min(value, axis=AXIS))
    elif OP == "argmax":
        tl.store(out + lanes, tl.argmax(value, axis=AXIS))
    elif OP == "argmin":
        tl.store(out + lanes, tl.argmin(value, axis=AXIS))
    else:
        tl.store(out + lanes, tl.xor_sum(value, axis=AXIS))


REDUCTIONS = [
    (op, dtype)
    for op in ("sum", "max", "min", "argmax", "argmin")
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32,
                  torch.int64)
] + [("xor_sum", torch.int32)]  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("op", "dtype"), REDUCTIONS, ids=str)
def test_reductions(op: str, dtype: Any, axis: int, device: str) -> None:
    numerics.interpreter_lacks(dtype is torch.bfloat16, "bf16 arithmetic")
    m, n = 64, 128
    if dtype.is_floating_point:
        # a permutation: no two are equal, so that there is one greatest
        x = (torch.randperm(m * n).reshape(m, n).double() / 16 - 200).to(dtype)
    else:
        x = torch.randint(-(1 << 20), 1 << 20, (m, n)).to(dtype)
    kept = n if axis == 0 else m
    kind = torch.int32 if op.startswith("arg") else dtype
    out = torch.zeros(kept, dtype=kind, device=device)
    reduce[(1,)](x.to(device), out, OP=op, AXIS=axis, M=m, N=n)
    if op == "sum" and dtype.is_floating_point:
        size = x.double().abs().sum(axis)
        close(out.cpu(), x.double().sum(axis), size * numerics.epsilon(dtype) * x.shape[axis])
    elif op == "sum":
        same(out.cpu(), x.sum(axis).to(dtype))
    elif op == "xor_sum":
        expected = torch.zeros(kept, dtype=dtype)
        for part in x.unbind(axis):
            expected ^= part
        same(out.cpu(), expected)
    elif op.startswith("arg"):
        found = out.cpu().long()
        picked = x.gather(axis, found.unsqueeze(axis)).squeeze(axis)
        same(picked, x.amax(axis) if op == "argmax" else x.amin(axis))
        first = (x == picked.unsqueeze(axis)).to(torch.int8).argmax(axis)
        same(found, first)
    else:
        same(out.cpu(), x.amax(axis) if op == "max" else x.amin(axis))


@triton.jit
def scan(x, out, OP: tl.constexpr, REVERSE: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    where = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    value = tl.load(x + where)
    if OP == "sum":
        result = tl.cumsum(value, axis=1, reverse=REVERSE)
    else:
        result = tl.cumprod(value, axis=1, reverse=REVERSE)
    tl.store(out + where, result)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("op", "dtype"),
    [("sum", torch.int32), ("sum", torch.float32), ("sum", torch.float16), ("product", torch.int64),
     ("product", torch.float32)], ids=str,
)  # fmt: skip
def test_scans(op: str, dtype: Any, reverse: bool, device: str) -> None:
    m, n = 8, 512
    if dtype.is_floating_point and op == "product":
        x = (2.0 ** torch.randint(-1, 2, (m, n))).to(dtype)
    else:
        x = torch.randint(-2, 3, (m, n)).to(dtype)
    out = torch.zeros_like(x, device=device)
    scan[(1,)](x.to(device), out, OP=op, REVERSE=reverse, M=m, N=n)
    turned = x.flip(1) if reverse else x
    wide = turned.double() if dtype.is_floating_point else turned
    expected = wide.cumsum(1) if op == "sum" else wide.cumprod(1)
    same(out.cpu(), (expected.flip(1) if reverse else expected).to(dtype))


@triton.jit
def ordered(x, out, DESCENDING: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    where = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + where, tl.sort(tl.load(x + where), descending=DESCENDING))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32], ids=str)
def test_sort(dtype: Any, descending: bool, device: str) -> None:
    x = (torch.randn(16, 256) * 50).to(dtype)
    out = torch.zeros_like(x, device=device)
    ordered[(1,)](x.to(device), out, DESCENDING=descending, M=16, N=256)
    same(out.cpu(), x.sort(1, descending=descending).values)


@triton.jit
def tally(x, out, BINS: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out + tl.arange(0, BINS), tl.histogram(tl.load(x + lanes), BINS))


@pytest.mark.parametrize("bins", [2, 32, 256])
def test_histogram(bins: int, device: str) -> None:
    x = (torch.rand(8 * 2048) ** 2 * bins).to(torch.int32)
    out = torch.zeros(bins, dtype=torch.int32, device=device)
    tally[(8,)](x.to(device), out, BINS=bins, BLOCK=2048)
    same(out.cpu(), torch.bincount(x.long(), minlength=bins).to(torch.int32))


@triton.jit
def arithmetic(x, y, out, BLOCK: tl.constexpr):
    """A chain of operations in the operands' own type."""
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b = tl.load(x + lanes), tl.load(y + lanes)
    result = tl.maximum(a * b + a, b - a)
    result = tl.where(a < b, result, -result) + tl.minimum(a, b)
    tl.store(out + lanes, result)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_arithmetic(dtype: Any, device: str) -> None:
    numerics.interpreter_lacks(dtype is torch.bfloat16, "bf16 arithmetic")
    x, y = (torch.randn(1 << 14).to(dtype) for _ in range(2))
    out = torch.zeros_like(x, device=device)
    arithmetic[(16,)](x.to(device), y.to(device), out, BLOCK=1024)
    a, b = x.double(), y.double()
    result = torch.maximum(a * b + a, b - a)
    result = torch.where(a < b, result, -result) + torch.minimum(a, b)
    size = (a * b).abs() + a.abs() + b.abs()
    close(out.cpu(), result, size * 4 * numerics.epsilon(dtype))


@triton.jit
def choose(x, index, out, M: tl.constexpr, N: tl.constexpr):
    where = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out + where, tl.gather(tl.load(x + where), tl.load(index + where), axis=1))


def test_gather(device: str) -> None:
    x, index = torch.randn(16, 128), torch.randint(128, (16, 128))
    out = torch.zeros_like(x, device=device)
    choose[(1,)](x.to(device), index.to(torch.int32).to(device), out, M=16, N=128)
    same(out.cpu(), x.gather(1, index))


@triton.jit
def draw(out, SEED, BLOCK: tl.constexpr):
    lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + lanes, tl.randint(SEED, lanes))


def test_random_numbers_are_philox(device: str) -> None:
    """The ten rounds of Philox 4x32 (Salmon and others, 2011), counted out in Python."""
    seed = int(torch.randint(1 << 31, ()))
    out = torch.zeros(2048, dtype=torch.int32, device=device)
    draw[(2,)](out, seed, BLOCK=1024)
    lanes = [0, 1, 2, 1023, 1024, 2047]
    expected = [philox(seed, lane) for lane in lanes]
    found = out.cpu()[lanes].long() & 0xFFFFFFFF
    same(found, torch.tensor(expected))


def philox(seed: int, counter: int) -> int:
    word = 0xFFFFFFFF
    key = [seed & word, seed >> 32]
    c = [counter, 0, 0, 0]
    for _ in range(10):
        high = [0xD2511F53 * c[0] >> 32, 0xCD9E8D57 * c[2] >> 32]
        low = [0xD2511F53 * c[0] & word, 0xCD9E8D57 * c[2] & word]
        c = [high[1] ^ c[1] ^ key[0], low[1], high[0] ^ c[3] ^ key[1], low[0]]
        key = [(key[0] + 0x9E3779B9) & word, (key[1] + 0xBB67AE85) & word]
    return c[0]


@triton.jit
def too_much(x, out, M: tl.constexpr, K: tl.constexpr):
    m, k = tl.arange(0, M), tl.arange(0, K)
    a = tl.load(x + m[:, None] * K + k[None, :])
    tl.store(out + m[:, None] * M + m[None, :], tl.dot(a, tl.trans(a), input_precision="ieee"))


def test_what_the_card_has_not_is_refused(compiled: None, device: str) -> None:
    """More shared memory than a block of the old card has: an error, not a launch."""
    if not (0, 0) < numerics.capability() < (7, 0):
        pytest.skip("skipped: 48 KiB a block is the limit of 3.5 to 6.x")
    from triton.runtime.errors import OutOfResources

    x = torch.randn(256, 256, device=device)
    out = torch.zeros(256, 256, device=device)
    with pytest.raises(OutOfResources, match=r"(?i)shared memory"):
        too_much[(1,)](x, out, M=256, K=256, num_warps=8)
