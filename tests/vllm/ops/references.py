"""What the tests of operators share: comparisons, and attention and conversions in double."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="skipped: no PyTorch here")

HALF, BFLOAT16, FLOAT = torch.float16, torch.bfloat16, torch.float32
FLOATS = (FLOAT, HALF, BFLOAT16)
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}

# Relative to the value and absolute: a few units in the last place of a result that is rounded once
# or twice.
TOLERANCE = {FLOAT: (2e-5, 2e-5), HALF: (2e-3, 2e-3), BFLOAT16: (1.6e-2, 1.6e-2)}


def close(found: Any, expected: Any, dtype: Any = None, factor: float = 1.0) -> None:
    """Assert that ``found`` is ``expected``, which is in double, but for rounding to ``dtype``
    (that of ``found``), or ``factor`` times as much."""
    relative, absolute = TOLERANCE[dtype or found.dtype]
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=factor * relative, atol=factor * absolute
    )


def steps(fp8: Any) -> Any:
    """fp8 values as whole numbers that go up by one from a value to the next."""
    bits = fp8.view(torch.int8).int()
    return torch.where(bits < 0, -(bits & 0x7F), bits)


def close_fp8(found: Any, expected: Any, share: float = 0.02) -> None:
    """Assert that fp8 values are ``expected`` (double) rounded; a neighbour will do for a small
    share of them, where the value lies between two."""
    largest = LARGEST[found.dtype]
    wanted = expected.float().clamp(-largest, largest).to(found.dtype)
    apart = (steps(found) - steps(wanted)).abs()
    assert int(apart.max()) <= 1, f"{int(apart.max())} steps apart"
    assert float((apart > 0).float().mean()) <= share


def close_int8(found: Any, expected: Any, share: float = 0.02) -> None:
    """The same for int8."""
    wanted = expected.round().clamp(-128, 127)
    apart = (found.double() - wanted).abs()
    assert float(apart.max()) <= 1
    assert float((apart > 0).float().mean()) <= share


def pages(blocks: int, sequences: int, each: int) -> Any:
    """A table of blocks, int32 of (sequences, each), in which none is used twice."""
    assert sequences * each <= blocks
    return torch.randperm(blocks)[: sequences * each].reshape(sequences, each).int()


def attend(q: Any, k: Any, v: Any, scale: float, bias: Any = None) -> Any:
    """Attention in double: q of (heads, size) over k and v of (tokens, kv heads, size)."""
    groups = q.shape[0] // k.shape[1]
    k = k.double().repeat_interleave(groups, 1)
    v = v.double().repeat_interleave(groups, 1)
    score = scale * torch.einsum("hd,thd->ht", q.double(), k)
    if bias is not None:
        score = score + bias.double()
    return torch.einsum("ht,thd->hd", score.softmax(-1), v)


def rotated(x: Any, cosine: Any, sine: Any, neox: bool) -> Any:
    """Rotary embedding in double of x (tokens, heads, size), over the first 2 * cosine.shape[1];
    cosine and sine of (tokens, half)."""
    half = cosine.shape[1]
    out = x.double().clone()
    cosine, sine = cosine.double()[:, None], sine.double()[:, None]
    if neox:
        first, second = out[..., :half].clone(), out[..., half : 2 * half].clone()
        out[..., :half] = first * cosine - second * sine
        out[..., half : 2 * half] = second * cosine + first * sine
    else:
        first, second = out[..., 0 : 2 * half : 2].clone(), out[..., 1 : 2 * half : 2].clone()
        out[..., 0 : 2 * half : 2] = first * cosine - second * sine
        out[..., 1 : 2 * half : 2] = second * cosine + first * sine
    return out


def normed(x: Any, weight: Any, epsilon: float) -> Any:
    """RMS norm in double over the last dimension."""
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight.double()
