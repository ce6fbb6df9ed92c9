"""Sampling, small helpers, and operators that this build refuses."""

from __future__ import annotations

from typing import Any

import pytest
from references import BFLOAT16, E4M3, FLOAT, FLOATS, HALF, close, torch


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 513), (17, 151_936), (300, 4096)])
def test_apply_repetition_penalties(dtype: Any, rows: int, width: int) -> None:
    logits = torch.randn(rows, width).to(dtype)
    prompt, output = (torch.rand(rows, width) < share for share in (0.1, 0.05))
    penalty = (0.5 + torch.rand(rows)).to(dtype)
    x, by = logits.double(), penalty.double()[:, None]
    wanted = torch.where(prompt | output, torch.where(x > 0, x / by, x * by), x)
    torch.ops._C.apply_repetition_penalties_(logits, prompt, output, penalty)
    close(logits, wanted)


def same_top(logits: Any, found: Any, lengths: list[int], top: int) -> None:
    for row, length in enumerate(lengths):
        number = min(top, length)
        at = found[row, :number].long()
        assert len(set(at.tolist())) == number
        assert int(at.min()) >= 0
        assert int(at.max()) < length
        wanted = logits[row, :length].topk(number).values
        assert torch.equal(logits[row][at].sort().values, wanted.sort().values)
        assert (found[row, number:] == -1).all()


@pytest.mark.parametrize("top", [1, 64, 2048])
@pytest.mark.parametrize("width", [3000, 20_000])
def test_top_k_per_row_prefill(top: int, width: int) -> None:
    rows = 40
    logits = torch.randn(rows, width)
    starts = torch.zeros(rows, dtype=torch.int32)
    ends = torch.randint(1, width + 1, (rows,), dtype=torch.int32)
    found = torch.full((rows, top), -7, dtype=torch.int32)
    torch.ops._C.top_k_per_row_prefill(
        logits, starts, ends, found, rows, logits.stride(0), logits.stride(1), top
    )
    same_top(logits, found, ends.tolist(), top)


@pytest.mark.parametrize("top", [64, 2048])
@pytest.mark.parametrize("width", [3000, 20_000, 250_000])
@pytest.mark.parametrize("each", [1, 2])
def test_top_k_per_row_decode(top: int, width: int, each: int) -> None:
    batch = 6
    logits = torch.randn(batch * each, width)
    lengths = torch.randint(width // 2, width + 1, (batch,), dtype=torch.int32)
    found = torch.full((batch * each, top), -7, dtype=torch.int32)
    torch.ops._C.top_k_per_row_decode(
        logits, each, lengths, found, batch * each, logits.stride(0), logits.stride(1), top
    )
    ends = [int(lengths[row // each]) - each + row % each + 1 for row in range(batch * each)]
    same_top(logits, found, ends, top)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (77, 4096), (300, 520)], ids=str)
def test_permute_cols(dtype: Any, shape: tuple[int, int]) -> None:
    x, order = torch.randn(shape).to(dtype), torch.randperm(shape[1])
    assert torch.equal(torch.ops._C.permute_cols(x, order.int()), x[:, order])


def test_weak_ref_tensor() -> None:
    x = torch.randn(4, 6)[:, ::2]
    other = torch.ops._C.weak_ref_tensor(x)
    assert (other.data_ptr(), other.shape, other.stride()) == (x.data_ptr(), x.shape, x.stride())
    x.fill_(3)
    assert (other == 3).all()


def test_view_of_pinned_memory() -> None:
    here = torch.arange(64, dtype=FLOAT, device="cpu").pin_memory()
    there = torch.ops._C.get_cuda_view_from_cpu_tensor(here)
    assert there.is_cuda
    there += 1
    torch.cuda.synchronize()
    assert torch.equal(here, torch.arange(1, 65, dtype=FLOAT, device="cpu"))


def test_device_attributes() -> None:
    """The GPU's answer, which under replay is the old card's. It is kept after the first question,
    whatever the next is, so that one process asks once."""
    shared = torch.ops._C_cuda_utils.get_max_shared_memory_per_block_device_attribute(0)
    properties = torch.cuda.get_device_properties(0)
    assert shared == properties.shared_memory_per_block_optin
    if properties.major < 7:
        assert shared == 48 << 10


def test_what_newer_gpus_have_is_said_to_be_absent() -> None:
    ops = torch.ops._C
    for name in (
        *("cutlass_scaled_mm_supports_fp8", "cutlass_scaled_mm_supports_block_fp8"),
        *("cutlass_scaled_mm_supports_fp4", "cutlass_group_gemm_supported"),
        "cutlass_sparse_scaled_mm_supported",
    ):
        assert getattr(ops, name)(61) is False


def test_refusals_name_the_capability() -> None:
    """Operators whose kernels are empty here say so instead of returning garbage."""
    x = torch.randn(2, 256).bfloat16()
    with pytest.raises(RuntimeError, match=r"needs a GPU of capability 8\.0; .* 6\.[01]"):
        torch.ops._C.persistent_masked_m_silu_mul_quant(
            torch.randn(1, 2, 256).bfloat16(),
            torch.ones(1, dtype=torch.int32),
            torch.empty(1, 2, 128, dtype=E4M3),
            torch.empty(1, 2, 1),
            False,
        )
    with pytest.raises(RuntimeError, match=r"bfloat16 needs a GPU of capability 8\.0"):
        torch.ops._C.fused_qk_norm_rope(
            *(x[:, :192].contiguous(), 1, 1, 1, 64, 1e-6, x[0, :64], x[0, :64]),
            *(torch.ones(4, 64).bfloat16(), True, torch.zeros(2, dtype=torch.long)),
        )
    with pytest.raises(RuntimeError, match=r"awq_gemm needs a GPU of capability 7\.5"):
        torch.ops._C.awq_gemm(
            *(torch.randn(2, 128).half(), torch.zeros(128, 16, dtype=torch.int32)),
            *(torch.ones(1, 128).half(), torch.zeros(1, 16, dtype=torch.int32), 8),
        )


def test_what_is_declared_alone_is_not_called() -> None:
    """Kernels for newer GPUs are declared and not compiled."""
    with pytest.raises(NotImplementedError, match="hadacore_transform"):
        torch.ops._C.hadacore_transform(torch.randn(2, 128).half(), False)
