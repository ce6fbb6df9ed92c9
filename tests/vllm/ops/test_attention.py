"""Attention over a paged cache, and what is put together from parts of it."""

from __future__ import annotations

from typing import Any

import pytest
from references import BFLOAT16, E4M3, E5M2, FLOAT, FLOATS, HALF, attend, close, pages, torch

SIZES = (32, 64, 80, 96, 112, 120, 128, 192, 256)
PARTITION = 512


class Cache:
    """Keys and values of a few sequences, plain and in blocks."""

    def __init__(
        self, dtype: Any, heads: int, size: int, block: int, lengths: list[int], kind: str
    ) -> None:
        self.lengths = torch.tensor(lengths, dtype=torch.int32)
        self.longest = max(lengths)
        each = -(-self.longest // block)
        blocks = 2 * each * len(lengths)
        self.table = pages(blocks, len(lengths), each)
        plain = torch.randn(2, len(lengths), each * block, heads, size, dtype=FLOAT)
        self.scales = torch.tensor(0.37), torch.tensor(1.7)
        stored = dtype
        if kind != "auto":
            fp8 = E5M2 if kind == "fp8_e5m2" else E4M3
            stored = torch.uint8
            codes = [(part / scale).to(fp8) for part, scale in zip(plain, self.scales, strict=True)]
            plain = torch.stack(
                [code.float() * scale for code, scale in zip(codes, self.scales, strict=True)]
            )
            if dtype is FLOAT:  # for float too, halves come out of fp8
                plain = plain.half().float()
            keys, values = (code.view(torch.uint8) for code in codes)
        else:
            keys, values = plain.to(dtype)
            plain = plain.to(dtype).float()
        self.keys, self.values = plain
        wide = 16 // torch.empty(0, dtype=stored).element_size()
        self.key_cache = torch.zeros(blocks, heads, size // wide, block, wide, dtype=stored)
        self.value_cache = torch.zeros(blocks, heads, size, block, dtype=stored)
        rows = self.table.long().flatten()
        by_block = keys.reshape(-1, block, heads, size // wide, wide)
        self.key_cache[rows] = by_block.permute(0, 2, 3, 1, 4)
        self.value_cache[rows] = values.reshape(-1, block, heads, size).permute(0, 2, 3, 1)


def run(version: str, query: Any, cache: Cache, block: int, slopes: Any, kind: str) -> Any:
    out = torch.full_like(query, float("nan"))
    heads = cache.value_cache.shape[1]
    rest = (
        *(query, cache.key_cache, cache.value_cache, heads, query.shape[-1] ** -0.5),
        *(cache.table, cache.lengths, block, cache.longest, slopes, kind, *cache.scales),
        *(0, 0, 0, 64, 0),
    )
    if version == "v1":
        torch.ops._C.paged_attention_v1(out, *rest)
    else:
        parts = -(-cache.longest // PARTITION)
        sums = torch.empty(*query.shape[:2], parts, dtype=FLOAT)
        partial = torch.empty(*query.shape[:2], parts, query.shape[2], dtype=query.dtype)
        torch.ops._C.paged_attention_v2(out, sums, sums.clone(), partial, *rest)
    return out


def compare(
    version: str,
    dtype: Any,
    size: int,
    block: int,
    heads: tuple[int, int],
    kind: str = "auto",
    alibi: bool = False,
    lengths: list[int] | None = None,
) -> None:
    cache = Cache(dtype, heads[1], size, block, lengths or [1, 17, 600, 1025], kind)
    query = torch.randn(len(cache.lengths), heads[0], size).to(dtype)
    slopes = torch.rand(heads[0]) * 0.1 if alibi else None
    found = run(version, query, cache, block, slopes, kind)
    for row, length in enumerate(cache.lengths.tolist()):
        bias = None
        if slopes is not None:
            bias = slopes[:, None].double() * (torch.arange(length) - length + 1)
        expected = attend(
            *(query[row], cache.keys[row, :length], cache.values[row, :length]),
            *(size**-0.5, bias),
        )
        close(found[row], expected, factor=2)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_head_sizes(version: str, dtype: Any, size: int) -> None:
    compare(version, dtype, size, 16, (8, 2))


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("block", [8, 16, 32])
@pytest.mark.parametrize("heads", [(4, 4), (12, 2), (7, 1)], ids=str)
@pytest.mark.parametrize("alibi", [False, True], ids=["", "alibi"])
def test_blocks_and_groups(
    version: str, dtype: Any, block: int, heads: tuple[int, int], alibi: bool
) -> None:
    compare(version, dtype, 128, block, heads, alibi=alibi)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["fp8", "fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_cache_in_fp8(version: str, dtype: Any, kind: str, size: int) -> None:
    compare(version, dtype, size, 16, (8, 2), kind)


def test_long(dtype: Any = HALF) -> None:
    """Twenty partitions."""
    compare("v2", dtype, 128, 16, (8, 2), lengths=[10_000, 4097, 3])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [64, 80, 128, 256])
@pytest.mark.parametrize("with_lse", [False, True])
def test_merge_attn_states(dtype: Any, size: int, with_lse: bool) -> None:
    tokens, heads = 77, 5
    parts = torch.randn(2, tokens, heads, size).to(dtype)
    logs = 4 * torch.randn(2, heads, tokens)
    logs[0, :, 3] = float("inf")  # as FlashAttention says that there was nothing
    logs[1, :, 5] = -float("inf")
    out = torch.empty_like(parts[0])
    lse = torch.empty_like(logs[0]) if with_lse else None
    torch.ops._C.merge_attn_states(out, lse, parts[0], logs[0], parts[1], logs[1])
    known = logs.double()
    known[known == float("inf")] = -float("inf")
    weights = known.softmax(0).transpose(1, 2)[..., None]
    close(out, (weights * parts.double()).sum(0), factor=2)
    if lse is not None:
        close(lse, known.logsumexp(0))


@pytest.mark.parametrize("counted", [False, True], ids=["", "mergehead"])
def test_vertical_slash_indexes(counted: bool) -> None:
    """Every key that a vertical line or a slash names for a row of queries is covered, and once."""
    length, block, heads = 300, 64, 3
    vertical = torch.stack([torch.randperm(length)[:20].sort().values for _ in range(heads)])
    taken = [(20, 10), (7, 10), (20, 4)] if counted else [(20, 10)] * heads
    slash = torch.zeros(heads, 10, dtype=torch.long)
    for head, (_, many) in enumerate(taken):  # the last of them is the diagonal
        others = torch.randperm(length - 1)[: many - 1] + 1
        slash[head, : many - 1] = others.sort(descending=True).values
    lengths = torch.tensor([length], dtype=torch.int32)
    rows = -(-length // block)
    count, column_count = (torch.zeros(1, heads, rows, dtype=torch.int32) for _ in range(2))
    offset = torch.zeros(1, heads, rows, slash.shape[1], dtype=torch.int32)
    index = torch.zeros(1, heads, rows, vertical.shape[1], dtype=torch.int32)
    known = (
        *(count, offset, column_count, index, lengths, lengths),
        *(vertical[None].int().contiguous(), slash[None].int().contiguous()),
    )
    rest = length, block, block, True
    if counted:
        numbers = torch.tensor(taken, dtype=torch.int32).T.contiguous()
        torch.ops._C.convert_vertical_slash_indexes_mergehead(*known, *numbers, *rest)
    else:
        torch.ops._C.convert_vertical_slash_indexes(*known, *rest)
    for head in range(heads):
        columns = vertical[head, : taken[head][0]].tolist()
        diagonals = slash[head, : taken[head][1]].tolist()
        for row in range(rows):
            queries = range(row * block, min((row + 1) * block, length))
            starts = offset[0, head, row, : count[0, head, row]].tolist()
            single = index[0, head, row, : column_count[0, head, row]].tolist()
            covered = [key for start in starts for key in range(start, start + block)]
            assert len(covered) == len(set(covered))
            assert not set(single) & set(covered)
            wanted = {
                query - diagonal for query in queries for diagonal in diagonals if query >= diagonal
            }
            wanted |= {column for column in columns if column <= queries[-1]}
            assert not wanted - set(covered) - set(single), (head, row)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
def test_selective_scan(dtype: Any) -> None:
    """Mamba's recurrence, step by step in double; two sequences behind each other."""
    lengths, width, state = (37, 90), 64, 16
    total = sum(lengths)
    u, delta = (torch.randn(width, total).to(dtype) for _ in range(2))
    a = -torch.rand(width, state) - 0.1
    b, c = (torch.randn(1, state, total).to(dtype) for _ in range(2))
    d, bias = torch.randn(width), torch.randn(width)
    z = torch.randn(width, total).to(dtype)
    states = torch.zeros(len(lengths), width, state)
    start = torch.tensor([0, *torch.tensor(lengths, device="cpu").cumsum(0)], dtype=torch.int32)
    expected, ends = [], []
    for first, length in zip((0, lengths[0]), lengths, strict=True):
        part = slice(first, first + length)
        step = torch.nn.functional.softplus(delta[:, part].double() + bias[:, None].double())
        inner = torch.zeros(width, state, dtype=torch.double)
        outputs = []
        for at in range(length):
            inner = inner * (step[:, at, None] * a.double()).exp() + (
                step[:, at, None] * b[0, :, first + at].double() * u[:, first + at, None].double()
            )
            y = inner @ c[0, :, first + at].double() + d.double() * u[:, first + at].double()
            gate = z[:, first + at].double()
            outputs.append(y * gate * gate.sigmoid())
        expected.append(torch.stack(outputs, 1))
        ends.append(inner)
    torch.ops._C.selective_scan_fwd(
        *(u, delta, a, b, c, d, z, bias, True, start),
        *(torch.arange(2, dtype=torch.int32), torch.zeros(2, dtype=torch.bool), states),
        *(-1, 2048, None, None, None),
    )
    close(z, torch.cat(expected, 1), factor=8)  # the output lies where z was
    close(states, torch.stack(ends), dtype, factor=8)
