"""Small programs for torch.compile, each for the sake of some kind of generated kernel.

Every program is a function of tensors; ``inputs`` makes them on a device. Nothing here depends on
the version of torch, the capability, or whether there is a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Program:
    """A function to compile, and how near to eager its results have to be.

    ``tolerance`` is the greatest error allowed, as a fraction of the largest absolute value of the
    eager result. ``train``: the gradients of the floating inputs count too. ``options`` go to
    torch.compile. ``needs_gpu``: why it cannot be compiled without a GPU, if so.
    """

    name: str
    function: Callable[..., Any]
    inputs: Callable[[str], Inputs]
    tolerance: float
    train: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    needs_gpu: str = ""


def _normal(device: str, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Inputs:
    return tuple(torch.randn(shape, device=device).to(dtype) for shape in shapes)


def _integers(device: str, high: int, *shape: int, low: int = 0) -> Tensor:
    return torch.randint(low, high, shape, device=device)


def transformer(x: Tensor, qkv: Tensor, out: Tensor, up: Tensor, down: Tensor, norm: Tensor) -> Any:
    """A block with soft-capped attention, which no fused kernel of ATen's stands in for."""
    batch, length, width = x.shape
    heads = 4
    h = F.rms_norm(x, (width,), norm)
    q, k, v = (
        (h @ qkv).view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind()
    )
    scores = 20 * torch.tanh(q @ k.transpose(-1, -2) / (20 * math.sqrt(width // heads)))
    mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    attention = torch.where(mask, scores, -1e4).softmax(-1) @ v
    x = x + attention.transpose(1, 2).reshape(batch, length, width) @ out
    return x + F.silu(F.layer_norm(x, (width,)) @ up) @ down


def _transformer_inputs(dtype: torch.dtype) -> Callable[[str], Inputs]:
    def inputs(device: str) -> Inputs:
        x, qkv, out, up, down, norm = _normal(
            device, (2, 128, 256), (256, 768), (256, 256), (256, 512), (512, 256), (256,)
        )
        weights = (w / 16 for w in (qkv, out, up, down))
        return tuple(t.to(dtype) for t in (x, *weights, norm))

    return inputs


def conv_block(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    mean, var = torch.zeros_like(scale), torch.ones_like(scale)
    y = F.conv2d(x, weight, padding=1)
    y = F.relu(F.batch_norm(y, mean, var, scale, shift, training=True))
    return F.max_pool2d(y, 2)


def reductions(x: Tensor) -> tuple[Tensor, ...]:
    return x.sum(), x.var(1), x.amax(0), x.argmax(1), x.double().mean(0), x.logsumexp(1)


def softmax_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x.softmax(-1) * 100 + x, x.shape[-1:], weight, bias)


def scatter_add(into: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """Indices repeat, so that the additions have to be atomic."""
    return into.index_add(0, index, source * 2) + 1


def accumulate(into: Tensor, index: Tensor, source: Tensor) -> Tensor:
    return torch.index_put(into, (index,), source.sin(), accumulate=True)


def gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias) * torch.sigmoid(x)


def embedding_loss(table: Tensor, head: Tensor, tokens: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.embedding(tokens, table) @ head, labels)


def weight_only_int8(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    return F.relu(x @ weight.to(x.dtype)) * scale


def int8_matmul(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return torch._int_mm(a, b) * scale


def random_moments(x: Tensor) -> tuple[Tensor, ...]:
    """Moments of random numbers: eager and compiled ones differ, their moments do not."""
    dropped = F.dropout(x, 0.25, training=True)
    uniform = torch.rand_like(x)
    normal = torch.randn_like(x)
    return dropped.mean(), uniform.mean(), (uniform**2).mean(), normal.var(), (normal**4).mean() / 3


def running_sums(long: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """Of one long row, which many blocks share, and of many short ones."""
    return long.cumsum(0), rows.cumsum(1), rows.logcumsumexp(1)


def sorting(x: Tensor) -> tuple[Tensor, ...]:
    return x.sort(dim=1, stable=True).values, torch.bucketize(x, x[0].sort().values)


def matmul_epilogue(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    return F.relu(a @ b + bias)


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.relu(F.conv2d(x, weight, padding=1))


def pooling(x: Tensor) -> tuple[Tensor, ...]:
    up = F.interpolate(x, scale_factor=2.0, mode="bilinear")
    return up, F.avg_pool2d(x, 2), F.group_norm(x, 4)


def adam_step(*tensors: Tensor) -> tuple[Tensor, ...]:
    """A fused step for several parameters at once."""
    count = len(tensors) // 4
    parameters, gradients, first, second = (
        list(tensors[i : i + count]) for i in range(0, 4 * count, count)
    )
    first = torch._foreach_lerp(first, gradients, 0.1)
    second = torch._foreach_add(
        torch._foreach_mul(second, 0.99), torch._foreach_mul(gradients, gradients), alpha=0.01
    )
    roots = torch._foreach_add(torch._foreach_sqrt(torch._foreach_abs(second)), 1e-4)
    return *torch._foreach_addcdiv(parameters, first, roots, -0.1), *first, *second


def flex(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> Any:
    """Causal attention with a bias by distance (ALiBi)."""
    from torch.nn.attention.flex_attention import flex_attention

    ahead = k.shape[2] - q.shape[2]

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(i + ahead >= j, s - slopes[h] * (i + ahead - j), -float("inf"))

    return flex_attention(q, k, v, score_mod=score)


def _flex_inputs(
    queries: int, keys: int, width: int, dtype: torch.dtype
) -> Callable[[str], Inputs]:
    def inputs(device: str) -> Inputs:
        shapes = ((1, 4, queries, width), (1, 4, keys, width), (1, 4, keys, width))
        q, k, v = _normal(device, *shapes, dtype=dtype)
        return q, k, v, torch.rand(4, device=device)

    return inputs


def _matmul_inputs(dtype: torch.dtype) -> Callable[[str], Inputs]:
    return lambda device: tuple(
        t / 4 for t in _normal(device, (256, 256), (256, 512), (512,), dtype=dtype)
    )


_MAX_AUTOTUNE = {"max_autotune": True, "max_autotune_gemm_backends": "ATEN,TRITON"}
_HALF, _BF16 = torch.float16, torch.bfloat16

PROGRAMS: tuple[Program, ...] = (
    Program("transformer-fp32", transformer, _transformer_inputs(torch.float32), 1e-5, train=True),
    Program("transformer-fp16", transformer, _transformer_inputs(_HALF), 1e-2, train=True),
    Program("transformer-bf16", transformer, _transformer_inputs(_BF16), 5e-2),
    Program(
        "conv-bn-relu",
        conv_block,
        lambda d: _normal(d, (4, 16, 32, 32), (32, 16, 3, 3), (32,), (32,)),
        1e-4,
        train=True,
    ),
    Program("reductions", reductions, lambda d: _normal(d, (1000, 3000)), 1e-5),
    Program(
        "softmax-layernorm",
        softmax_layer_norm,
        lambda d: _normal(d, (512, 1500), (1500,), (1500,)),
        1e-4,
        train=True,
    ),
    Program(
        "scatter-add-fp32",
        scatter_add,
        lambda d: (*_normal(d, (64, 128)), _integers(d, 64, 4096), *_normal(d, (4096, 128))),
        1e-5,
    ),
    Program(
        "scatter-add-fp16",
        scatter_add,
        lambda d: (
            *_normal(d, (64, 128), dtype=_HALF),
            _integers(d, 64, 1024),
            *_normal(d, (1024, 128), dtype=_HALF),
        ),
        2e-2,
    ),
    Program(
        "accumulate-fp64",
        accumulate,
        lambda d: (
            *_normal(d, (64, 128), dtype=torch.float64),
            _integers(d, 64, 4096),
            *_normal(d, (4096, 128), dtype=torch.float64),
        ),
        1e-12,
    ),
    Program(
        "accumulate-int32",
        scatter_add,
        lambda d: (
            _integers(d, 9, 64, 128).int(),
            _integers(d, 64, 4096),
            _integers(d, 9, 4096, 128).int(),
        ),
        0.0,
    ),
    Program("gelu-bf16", gelu, lambda d: _normal(d, (512, 1024), (1024,), dtype=_BF16), 2e-2),
    Program("gelu-fp16", gelu, lambda d: _normal(d, (512, 1024), (1024,), dtype=_HALF), 4e-3),
    Program(
        "embedding-cross-entropy",
        embedding_loss,
        lambda d: (
            *_normal(d, (1000, 64), (64, 1000)),
            _integers(d, 1000, 256),
            _integers(d, 1000, 256),
        ),
        1e-4,
        train=True,
    ),
    Program(
        "weight-only-int8",
        weight_only_int8,
        lambda d: (
            *_normal(d, (256, 256), dtype=_HALF),
            _integers(d, 8, 256, 512, low=-8).to(torch.int8),
            *_normal(d, (512,), dtype=_HALF),
        ),
        1e-2,
        options=_MAX_AUTOTUNE,
    ),
    Program(
        "int8-matmul",
        int8_matmul,
        lambda d: (
            _integers(d, 128, 256, 256, low=-128).to(torch.int8),
            _integers(d, 128, 256, 512, low=-128).to(torch.int8),
            torch.rand(512, device=d),
        ),
        1e-6,
        options=_MAX_AUTOTUNE,
    ),
    Program("random", random_moments, lambda d: (torch.ones(1 << 20, device=d),), 2e-2),
    Program("cumsum", running_sums, lambda d: _normal(d, (1 << 20,), (64, 700)), 1e-4),
    Program("sort-bucketize", sorting, lambda d: _normal(d, (128, 256)), 0.0),
    Program("pooling-groupnorm", pooling, lambda d: _normal(d, (2, 16, 31, 33)), 1e-4),
    Program(
        "adam",
        adam_step,
        lambda d: _normal(d, *((37, 64), (1000,), (3, 5, 7)) * 4),
        1e-4,
    ),
    Program(
        "matmul-fp32",
        matmul_epilogue,
        _matmul_inputs(torch.float32),
        1e-5,
        options=_MAX_AUTOTUNE,
    ),
    Program(
        "matmul-fp16",
        matmul_epilogue,
        _matmul_inputs(_HALF),
        1e-2,
        options=_MAX_AUTOTUNE,
    ),
    Program(
        "matmul-bf16",
        matmul_epilogue,
        _matmul_inputs(_BF16),
        2e-2,
        options=_MAX_AUTOTUNE,
    ),
    Program(
        "conv-fp32",
        convolution,
        lambda d: _normal(d, (4, 16, 32, 32), (32, 16, 3, 3)),
        1e-4,
        options=_MAX_AUTOTUNE,
    ),
    Program("flex-attention-fp32", flex, _flex_inputs(256, 256, 64, torch.float32), 1e-4),
    Program("flex-attention-fp16", flex, _flex_inputs(256, 256, 64, _HALF), 1e-2),
    Program("flex-attention-128-fp16", flex, _flex_inputs(256, 256, 128, _HALF), 1e-2),
    Program(
        "flex-attention-training",
        flex,
        _flex_inputs(256, 256, 64, torch.float32),
        1e-4,
        train=True,
        needs_gpu="autograd asks the driver for a stream",
    ),
    Program("flex-decoding-fp16", flex, _flex_inputs(1, 512, 64, _HALF), 1e-2),
)
