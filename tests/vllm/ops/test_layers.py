"""Norms, activations, rotary embedding, and what is fused with them."""

from __future__ import annotations

from typing import Any

import pytest
from references import (
    BFLOAT16,
    E4M3,
    FLOAT,
    FLOATS,
    HALF,
    close,
    close_fp8,
    close_int8,
    normed,
    rotated,
    torch,
)

F = torch.nn.functional
EPSILON = 1e-6
SHAPES = [(1, 64), (7, 768), (83, 769), (3, 5120), (5, 8199)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("strided", [False, True], ids=["", "strided"])
def test_rms_norm(dtype: Any, shape: tuple[int, int], strided: bool) -> None:
    x = torch.randn(shape[0], shape[1] + (64 if strided else 0)).to(dtype)[:, : shape[1]]
    weight = torch.randn(shape[1]).to(dtype)
    out = torch.empty(shape, dtype=dtype)
    torch.ops._C.rms_norm(out, x, weight, EPSILON)
    close(out, normed(x, weight, EPSILON), factor=2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_rms_norm_of_heads(dtype: Any) -> None:
    """Three dimensions, as Qwen3 norms its queries."""
    x, weight = torch.randn(33, 6, 128).to(dtype), torch.randn(128).to(dtype)
    out = torch.empty_like(x)
    torch.ops._C.rms_norm(out, x, weight, EPSILON)
    close(out, normed(x, weight, EPSILON), factor=2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("strided", [False, True], ids=["", "strided"])
def test_fused_add_rms_norm(dtype: Any, shape: tuple[int, int], strided: bool) -> None:
    x = torch.randn(shape[0], shape[1] + (64 if strided else 0)).to(dtype)[:, : shape[1]]
    residual, weight = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
    total = (x.double() + residual.double()).to(dtype)
    wanted = normed(x.double() + residual.double(), weight, EPSILON)
    torch.ops._C.fused_add_rms_norm(x, residual, weight, EPSILON)
    assert torch.equal(residual, total)
    close(x, wanted, factor=3)


ACTIVATIONS = {
    "silu_and_mul": lambda a, b: F.silu(a) * b,
    "mul_and_silu": lambda a, b: a * F.silu(b),
    "gelu_and_mul": lambda a, b: F.gelu(a) * b,
    "gelu_tanh_and_mul": lambda a, b: F.gelu(a, approximate="tanh") * b,
}
SINGLE = {
    "gelu_new": lambda a: F.gelu(a, approximate="tanh"),
    "gelu_fast": lambda a: F.gelu(a, approximate="tanh"),
    "gelu_quick": lambda a: a * (1.702 * a).sigmoid(),
}
WIDTHS = (8, 512, 513, 13824)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("width", WIDTHS)
def test_activation_and_mul(dtype: Any, name: str, width: int) -> None:
    x = 2 * torch.randn(9, 2 * width).to(dtype)
    out = torch.empty(9, width, dtype=dtype)
    getattr(torch.ops._C, name)(out, x)
    close(out, ACTIVATIONS[name](*x.double().chunk(2, 1)), factor=2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("width", WIDTHS)
def test_activation(dtype: Any, name: str, width: int) -> None:
    """gelu_new and gelu_fast round on their way to the dtype."""
    x = 2 * torch.randn(9, width).to(dtype)
    out = torch.empty_like(x)
    getattr(torch.ops._C, name)(out, x)
    close(out, SINGLE[name](x.double()), factor=4)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fatrelu_and_mul(dtype: Any) -> None:
    x = torch.randn(9, 512).to(dtype)
    out = torch.empty(9, 256, dtype=dtype)
    torch.ops._C.fatrelu_and_mul(out, x, 0.3)
    a, b = x.double().chunk(2, 1)
    close(out, torch.where(a > 0.3, a, 0.0) * b, factor=2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_swigluoai_and_mul(dtype: Any, width: int) -> None:
    x = 4 * torch.randn(9, 2 * width).to(dtype)
    out = torch.empty(9, width, dtype=dtype)
    torch.ops._C.swigluoai_and_mul(out, x, 1.702, 7.0)
    gate, up = x.double()[:, ::2].clamp(max=7), x.double()[:, 1::2].clamp(-7, 7)
    close(out, (up + 1) * gate * (1.702 * gate).sigmoid(), factor=2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("neox", [False, True], ids=["gptj", "neox"])
@pytest.mark.parametrize(("size", "turned"), [(64, 64), (128, 128), (256, 256), (80, 32)])
@pytest.mark.parametrize("form", ["flat", "heads", "without keys"])
def test_rotary_embedding(dtype: Any, neox: bool, size: int, turned: int, form: str) -> None:
    tokens, heads, groups = 41, 6, 2
    angles = 7 * torch.rand(200, turned // 2)
    table = torch.cat([angles.cos(), angles.sin()], 1).to(dtype)
    positions = torch.randint(200, (tokens,))
    q, k = torch.randn(tokens, heads, size).to(dtype), torch.randn(tokens, groups, size).to(dtype)
    cosine, sine = table[positions].chunk(2, 1)
    wanted = [rotated(x, cosine, sine, neox) for x in (q, k)]
    if form == "flat":
        q, k = q.reshape(tokens, -1), k.reshape(tokens, -1)
    torch.ops._C.rotary_embedding(
        positions, q, None if form == "without keys" else k, size, table, neox
    )
    close(q.reshape(wanted[0].shape), wanted[0], factor=2)
    if form != "without keys":
        close(k.reshape(wanted[1].shape), wanted[1], factor=2)


@pytest.mark.parametrize("neox", [False, True], ids=["gptj", "neox"])
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("cache", [HALF, FLOAT], ids=str)
def test_fused_qk_norm_rope(neox: bool, size: int, cache: Any) -> None:
    tokens, heads, groups = 37, 8, 2
    qkv = torch.randn(tokens, (heads + 2 * groups) * size).half()
    weights = torch.randn(2, size).half()
    angles = 7 * torch.rand(200, size // 2)
    table = torch.cat([angles.cos(), angles.sin()], 1).to(cache)
    positions = torch.randint(200, (tokens,))
    cosine, sine = table[positions].chunk(2, 1)
    q, k, v = qkv.split([heads * size, groups * size, groups * size], 1)
    wanted = [
        rotated(normed(x.reshape(tokens, -1, size), weight, EPSILON), cosine, sine, neox)
        for x, weight in zip((q.clone(), k.clone()), weights, strict=True)
    ]
    same = v.clone()
    torch.ops._C.fused_qk_norm_rope(
        *(qkv, heads, groups, groups, size, EPSILON, *weights, table, neox, positions)
    )
    close(q.reshape(wanted[0].shape), wanted[0], factor=2)
    close(k.reshape(wanted[1].shape), wanted[1], factor=2)
    assert torch.equal(v, same)


def rounded_norm(x: Any, weight: Any) -> Any:
    """As the fused kernels round it: to the dtype after the norm and after the weight."""
    inverse = (x.double().square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return ((x.double() * inverse).to(weight.dtype).double() * weight.double()).to(weight.dtype)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [768, 5120])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_rms_norm_static_fp8_quant(dtype: Any, width: int, residual: bool) -> None:
    x, weight = torch.randn(17, width).to(dtype), torch.rand(width).to(dtype)
    scale, out = torch.tensor([0.03]), torch.empty(17, width, dtype=E4M3)
    if residual:
        other = torch.randn(17, width).to(dtype)
        total = (x.double() + other.double()).to(dtype)
        torch.ops._C.fused_add_rms_norm_static_fp8_quant(out, x, other, weight, scale, EPSILON)
        assert torch.equal(other, total)
        x = total
    else:
        torch.ops._C.rms_norm_static_fp8_quant(out, x, weight, scale, EPSILON)
    close_fp8(out, rounded_norm(x, weight).double() / scale.double(), share=0.1)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", [E4M3, torch.int8], ids=str)
@pytest.mark.parametrize("width", [768, 5121])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_rms_norm_dynamic_per_token_quant(
    dtype: Any, kind: Any, width: int, residual: bool
) -> None:
    x, weight = torch.randn(17, width).to(dtype), torch.rand(width).to(dtype)
    out, scales = torch.empty(17, width, dtype=kind), torch.empty(17, 1)
    other = torch.randn(17, width).to(dtype) if residual else None
    total = x.double() if other is None else x.double() + other.double()
    torch.ops._C.rms_norm_dynamic_per_token_quant(out, x, weight, scales, EPSILON, None, other)
    if other is not None:
        assert torch.equal(other, total.to(dtype))
    y = rounded_norm(total, weight).double()
    close(scales, y.abs().amax(-1, keepdim=True) / (448 if kind is E4M3 else 127), dtype)
    (close_fp8 if kind is E4M3 else close_int8)(out, y / scales.double(), share=0.2)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
@pytest.mark.parametrize("kind", [E4M3, torch.int8], ids=str)
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_rms_norm_per_block_quant(dtype: Any, kind: Any, group: int, transposed: bool) -> None:
    tokens, width = 17, 1024
    x, weight = torch.randn(tokens, width).to(dtype), torch.rand(width).to(dtype)
    out = torch.empty(tokens, width, dtype=kind)
    scales = (
        torch.empty(width // group, tokens).T if transposed else torch.empty(17, width // group)
    )
    torch.ops._C.rms_norm_per_block_quant(
        out, x, weight, scales, EPSILON, None, None, group, transposed
    )
    y = rounded_norm(x, weight).double().reshape(tokens, -1, group)
    close(scales, y.abs().amax(-1) / (448 if kind is E4M3 else 127), dtype)
    wanted = (y / scales.double()[..., None]).reshape(tokens, width)
    (close_fp8 if kind is E4M3 else close_int8)(out, wanted, share=0.2)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
@pytest.mark.parametrize("width", [512, 13824])
def test_silu_and_mul_quant(dtype: Any, width: int) -> None:
    x, scale = torch.randn(9, 2 * width).to(dtype), torch.tensor([0.02])
    out = torch.empty(9, width, dtype=E4M3)
    torch.ops._C.silu_and_mul_quant(out, x, scale)
    a, b = x.double().chunk(2, 1)
    close_fp8(out, F.silu(a) * b / 0.02, share=0.2)
