"""``torch.compile``: what Inductor generates for the old capability equals eager PyTorch."""

from __future__ import annotations

from typing import Any

import numerics
import pytest
from numerics import relative, torch

nn = pytest.importorskip("torch.nn")
metrics = pytest.importorskip("torch._inductor.metrics")
pytestmark = pytest.mark.usefixtures("compiled", "on_a_gpu")


@pytest.fixture
def on_a_gpu(device: str) -> None:
    if device != "cuda":
        pytest.skip("skipped: no GPU here")


@pytest.fixture(autouse=True)
def fresh() -> Any:
    """One test's compiled code is nothing to the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Block(nn.Module):
    """A transformer block: attention and a feed-forward part, each behind a layer norm."""

    def __init__(self, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        batch, length, width = x.shape
        parts = self.qkv(self.first(x)).reshape(batch, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        score = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((score @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))


def compare(function: Any, inputs: tuple[Any, ...], bound: float, backward: bool = False) -> None:
    def gradients(result: Any) -> Any:
        weights = [item for item in function.parameters() if item.requires_grad]
        return torch.autograd.grad(result, weights, grad)

    metrics.reset()
    compiled = torch.compile(function, fullgraph=True)
    expected = function(*inputs)
    grad = torch.randn_like(expected)
    # Before the other forward pass, which changes a batch norm's running statistics.
    wanted = gradients(expected) if backward else ()
    found = compiled(*inputs)
    relative(found.detach(), expected.detach(), bound)
    assert metrics.generated_kernel_count > 0, "Inductor made no kernel: eager beside eager"
    for one, other in zip(gradients(found) if backward else (), wanted, strict=True):
        relative(one, other, 4 * bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_transformer_block(dtype: Any, device: str) -> None:
    block = Block().to(device, dtype)
    x = torch.randn(2, 64, 128, device=device, dtype=dtype)
    compare(block, (x,), 1e-5 if dtype is torch.float32 else 4e-3, backward=True)


@pytest.mark.parametrize("training", [False, True])
def test_convolution_block(training: bool, device: str) -> None:
    block = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    block = block.to(device).train(training)
    compare(block, (torch.randn(2, 8, 24, 24, device=device),), 1e-4, backward=training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_reduction(dtype: Any, device: str) -> None:
    x = torch.randn(300, 4096, device=device, dtype=dtype)

    def reduced(x: Any) -> Any:
        return (x.float() * 2 + 1).square().mean(-1) + x.amax(-1).float() - x.float().sum(-1)

    compare(reduced, (x,), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_scatter_add(dtype: Any, device: str) -> None:
    """Whole numbers: sums in any order are exact."""
    index = torch.randint(64, (20000,), device=device)
    value = torch.randint(-1, 2, (20000,), device=device).to(dtype)

    def scattered(index: Any, value: Any) -> Any:
        return torch.zeros(64, device=index.device, dtype=value.dtype).scatter_add(0, index, value)

    compare(scattered, (index, value), 0.0)


def test_gelu_in_bf16(device: str) -> None:
    if not hasattr(torch.utils._triton, "has_legacy_triton"):
        pytest.skip("skipped: a PyTorch that is not patched leaves bf16 to eager below 8.0")
    x = torch.randn(4096, 33, device=device, dtype=torch.bfloat16)
    compare(lambda x: nn.functional.gelu(x) * x.sigmoid(), (x,), 8e-3)


def test_matrix_product_by_triton(device: str) -> None:
    """Inductor's own product kernels instead of cuBLAS's."""
    a, b = (torch.randn(256, 256, device=device, dtype=torch.float16) for _ in range(2))
    with torch._inductor.config.patch(max_autotune_gemm=True, max_autotune_gemm_backends="TRITON"):
        compare(lambda a, b: (a @ b).relu(), (a, b), 2e-3)
    assert numerics.VERSION >= (3, 0)
