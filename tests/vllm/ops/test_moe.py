"""Choosing experts, sorting tokens by them, and products with experts' quantized weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from references import FLOAT, FLOATS, HALF, close, torch
from test_quantized import close_sum, sorted_tokens


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("experts", [8, 64, 60, 256, 320, 512])
@pytest.mark.parametrize("top", [1, 2, 6])
@pytest.mark.parametrize("normal", [False, True], ids=["", "renormalized"])
@pytest.mark.parametrize("index", [torch.int32, torch.int64, torch.uint32], ids=str)
def test_topk_softmax(dtype: Any, experts: int, top: int, normal: bool, index: Any) -> None:
    tokens = 111
    # no two alike, so that there is one order
    gate = torch.stack([torch.randperm(experts) for _ in range(tokens)]).to(dtype) / 16
    weights = torch.empty(tokens, top)
    chosen = torch.empty(tokens, top, dtype=index)
    rows = torch.empty(tokens, top, dtype=torch.int32)
    torch.ops._moe_C.topk_softmax(weights, chosen, rows, gate, normal)
    expected = gate.double().softmax(-1).topk(top)
    close(
        weights,
        expected.values / expected.values.sum(-1, keepdim=True) if normal else expected.values,
    )
    if dtype is FLOAT or experts <= 64:  # else some are alike after rounding
        assert torch.equal(chosen.long(), expected.indices)
    assert torch.equal(
        rows, (torch.arange(top)[None] * tokens + torch.arange(tokens)[:, None]).int()
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("experts", "groups", "kept", "top"), [(256, 8, 4, 8), (64, 4, 2, 6), (64, 1, 1, 8)]
)
@pytest.mark.parametrize("normal", [False, True], ids=["", "renormalized"])
@pytest.mark.parametrize("sigmoid", [False, True], ids=["scores", "logits"])
def test_grouped_topk(
    dtype: Any, experts: int, groups: int, kept: int, top: int, normal: bool, sigmoid: bool
) -> None:
    tokens = 57
    scores = torch.randn(tokens, experts).to(dtype)
    if not sigmoid:
        scores = scores.sigmoid()
    bias = (0.1 * torch.randn(experts)).to(dtype)
    weights, chosen = torch.ops._moe_C.grouped_topk(
        scores, groups, kept, top, normal, 2.5, bias, int(sigmoid)
    )
    plain = (scores.float().sigmoid().to(dtype) if sigmoid else scores).double()
    biased = (plain + bias.double()).to(dtype).double()
    by_group = biased.reshape(tokens, groups, -1)
    best = by_group.topk(2).values.sum(-1).to(dtype).double()
    for row in range(tokens):
        picked = chosen[row].long()
        assert len(set(picked.tolist())) == top
        # whichever of equal ones were taken: their groups and they themselves are among the best
        used = sorted(set((picked // (experts // groups)).tolist()))
        assert len(used) <= kept
        slack = 2 * float(torch.finfo(dtype).eps)
        worst = best[row].topk(kept).values[-1]
        assert all(float(best[row, group] - worst) >= -4 * slack for group in used)
        inside = torch.full((experts,), -1e9, dtype=torch.double)
        certain = [group for group in range(groups) if best[row, group] > worst + 4 * slack]
        for group in {*used, *certain}:
            part = slice(group * (experts // groups), (group + 1) * (experts // groups))
            inside[part] = biased[row, part]
        limit = inside.topk(top).values[-1]
        assert float((biased[row, picked] - limit).min()) >= -2 * slack
    wanted = plain.gather(1, chosen.long())
    if normal:
        wanted = wanted / wanted.sum(-1, keepdim=True)
    close(weights, 2.5 * wanted, dtype, factor=2)


@pytest.mark.parametrize(
    ("tokens", "experts"), [(1, 8), (40, 64), (700, 64), (64, 256), (3000, 160)]
)
@pytest.mark.parametrize("block", [4, 16, 64])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
def test_moe_align_block_size(tokens: int, experts: int, block: int, index: Any) -> None:
    chosen = torch.rand(tokens, experts).topk(2).indices.to(index)
    found, which, total = sorted_tokens(chosen, experts, block)
    check_sorted(chosen, found, which, int(total), experts, block)


def check_sorted(chosen: Any, found: Any, which: Any, total: int, experts: int, block: int) -> None:
    """Every token of an expert once, in blocks of that expert, the rest of a block padding."""
    flat = chosen.flatten().tolist()
    count = Counter(flat)
    assert total == sum(-(-number // block) * block for number in count.values())
    seen = []
    for at in range(total // block):
        expert = int(which[at])
        for token in found[at * block : (at + 1) * block].tolist():
            if token < len(flat):
                assert flat[token] == expert
                seen.append(token)
            else:
                assert token == len(flat)
    assert sorted(seen) == list(range(len(flat)))


def test_moe_align_block_size_with_a_map() -> None:
    """Experts of other ranks are left out."""
    tokens, experts, block = 90, 16, 16
    chosen = torch.rand(tokens, experts).topk(2).indices.int()
    known = torch.full((experts,), -1, dtype=torch.int32)
    known[4:8] = torch.arange(4, dtype=torch.int32)
    room = chosen.numel() + experts * (block - 1)
    found = torch.empty(room, dtype=torch.int32)
    which, total = torch.empty(-(-room // block), dtype=torch.int32), torch.empty(1).int()
    torch.ops._moe_C.moe_align_block_size(chosen, experts, block, found, which, total, known)
    flat = chosen.flatten().tolist()
    mine = [at for at, expert in enumerate(flat) if 4 <= expert < 8]
    seen = []
    for at in range(int(total) // block):
        for token in found[at * block : (at + 1) * block].tolist():
            if token < len(flat) and int(which[at]) >= 0:
                assert flat[token] == int(which[at]) + 4
                seen.append(token)
    assert sorted(seen) == mine


def test_batched_moe_align_block_size() -> None:
    batches, longest, block = 7, 40, 16
    counts = torch.randint(longest + 1, (batches,), dtype=torch.int32)
    counts[2] = 0
    room = -(-longest // block) * batches * block
    found, which = (torch.empty(size, dtype=torch.int32) for size in (room, room // block))
    total = torch.empty(1, dtype=torch.int32)
    torch.ops._moe_C.batched_moe_align_block_size(longest, block, counts, found, which, total)
    wanted_tokens, wanted_blocks = [], []
    for batch, count in enumerate(counts.tolist()):
        padded = -(-count // block) * block
        wanted_tokens += [batch * longest + at for at in range(count)]
        wanted_tokens += [batches * longest] * (padded - count)
        wanted_blocks += [batch] * (padded // block)
    assert int(total) == len(wanted_tokens)
    assert found[: len(wanted_tokens)].tolist() == wanted_tokens
    assert which[: len(wanted_blocks)].tolist() == wanted_blocks
    assert (which[len(wanted_blocks) :] == -1).all()


@pytest.mark.parametrize(("tokens", "experts"), [(60, 16), (700, 96)])
def test_moe_lora_align_block_size(tokens: int, experts: int) -> None:
    """Tokens of each adapter sorted by themselves; an adapter that is off gets none."""
    adapters, block, top = 3, 16, 2
    chosen = torch.rand(tokens, experts).topk(top).indices.int()
    owner = torch.randint(-1, adapters, (tokens,), dtype=torch.int32)
    room = -(-(tokens * top + experts * (block - 1)) // block) * block
    found = torch.full((adapters * room,), -7, dtype=torch.int32)
    which = torch.full((adapters * (room // block),), -7, dtype=torch.int32)
    total = torch.zeros(adapters, dtype=torch.int32)
    on = torch.tensor([1, 0, 1, 1], dtype=torch.int32)[: adapters + 1]
    names = torch.arange(adapters + 1, dtype=torch.int32)
    names[-1] = -1
    torch.ops._moe_C.moe_lora_align_block_size(
        *(chosen, owner, experts, block, adapters, room, room // block),
        *(found, which, total, on, names, None),
    )
    flat = chosen.flatten().tolist()
    for adapter in (0, 2):
        mine = [at for at in range(tokens * top) if int(owner[at // top]) == adapter]
        part = found[adapter * room : (adapter + 1) * room]
        blocks = which[adapter * (room // block) : (adapter + 1) * (room // block)]
        seen = []
        for at in range(int(total[adapter]) // block):
            for token in part[at * block : (at + 1) * block].tolist():
                if token < tokens * top:
                    assert flat[token] == int(blocks[at])
                    seen.append(token)
        assert sorted(seen) == mine


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("top", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("width", [128, 4097])
def test_moe_sum(dtype: Any, top: int, width: int) -> None:
    x = torch.randn(19, top, width).to(dtype)
    out = torch.empty(19, width, dtype=dtype)
    torch.ops._moe_C.moe_sum(x, out)
    close(out, x.double().sum(1), factor=4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("zeros", [False, True], ids=["", "zero points"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("tokens", [1, 37])
def test_moe_wna16_gemm(bits: int, group: int, zeros: bool, weighted: bool, tokens: int) -> None:
    experts, size_n, size_k, top, block = 8, 256, 512, 2, 16
    codes = torch.randint(1 << bits, (experts, size_n, size_k))
    scales = (0.002 + 0.01 * torch.rand(experts, size_n, size_k // group)).half()
    points = torch.full((experts, size_n, size_k // group), 1 << (bits - 1))
    if zeros:
        points = torch.randint(1 << bits, points.shape)
    weight = (codes - points.repeat_interleave(group, 2)).double()
    weight = weight * scales.double().repeat_interleave(group, 2)
    if bits == 4:
        raw = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        raw_points = (points[:, ::2] | points[:, 1::2] << 4).to(torch.uint8)
    else:
        raw, raw_points = codes.to(torch.uint8), points.to(torch.uint8)
    x = torch.randn(tokens, size_k).half()
    chosen = torch.rand(tokens, experts).topk(top).indices.int()
    by = torch.rand(tokens, top) if weighted else None
    out = torch.full((tokens, top, size_n), float("nan")).half()
    torch.ops._moe_C.moe_wna16_gemm(
        *(x, out, raw.contiguous(), scales, raw_points.contiguous() if zeros else None, by),
        *(*sorted_tokens(chosen, experts, block), top, block, 64, 128, bits),
    )
    expected = torch.einsum("tk,tjnk->tjn", x.double(), weight[chosen.long()])
    terms = torch.einsum("tk,tjnk->tjn", x.double().square(), weight[chosen.long()].square()).sqrt()
    if by is not None:
        expected, terms = expected * by.double()[..., None], terms * by.double()[..., None]
    close_sum(out, expected, terms, 24)  # multiplied and added in halves, as upstream does


def test_moe_permute_is_not_there() -> None:
    assert not torch.ops._moe_C.moe_permute_unpermute_supported()
    x, order = torch.randn(4, 64).half(), torch.arange(4, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"needs a GPU of capability 7\.5"):
        torch.ops._moe_C.shuffle_rows(x, order, torch.empty_like(x))
    assert HALF is x.dtype
