"""The cache of keys and values: what is written, moved, gathered and converted."""

from __future__ import annotations

from typing import Any

import pytest
from references import (
    BFLOAT16,
    E4M3,
    E5M2,
    FLOAT,
    FLOATS,
    HALF,
    TOLERANCE,
    close,
    close_fp8,
    pages,
    rotated,
    steps,
    torch,
)

KINDS = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")


def stored(x: Any, scale: Any, kind: str) -> Any:
    """What lies in a cache of that kind: x itself, or codes as bytes."""
    if kind == "auto":
        return x
    fp8 = E5M2 if kind == "fp8_e5m2" else E4M3
    return (x.float() / scale).to(fp8).view(torch.uint8)


def equal(found: Any, wanted: Any, kind: str) -> None:
    """Equal to the bit, or fp8 codes at most a step apart, as division and product may differ."""
    if kind == "auto":
        assert torch.equal(found, wanted)
        return
    fp8 = E5M2 if kind == "fp8_e5m2" else E4M3
    apart = (steps(found.view(fp8)) - steps(wanted.view(fp8))).abs()
    assert int(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 0.02


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "size", "block"), [(8, 64, 16), (3, 120, 8), (12, 256, 32)])
def test_reshape_and_cache(dtype: Any, kind: str, heads: int, size: int, block: int) -> None:
    tokens, blocks = 77, 20
    qkv = torch.randn(tokens, 3, heads, size).to(dtype)  # strided, as it comes from a layer
    key, value = qkv[:, 1], qkv[:, 2]
    scales = torch.tensor(0.25), torch.tensor(0.5)
    slots = torch.randperm(blocks * block)[:tokens]
    slots[5] = -1  # padding
    inner = dtype if kind == "auto" else torch.uint8
    wide = 16 // torch.empty(0, dtype=inner).element_size()
    if size % wide:
        pytest.skip(f"skipped: heads of {size} are not made of {wide}")
    keys = torch.zeros(blocks, heads, size // wide, block, wide, dtype=inner)
    values = torch.zeros(blocks, heads, size, block, dtype=inner)
    torch.ops._C_cache_ops.reshape_and_cache(key, value, keys, values, slots, kind, *scales)
    plain_keys = keys.permute(0, 3, 1, 2, 4).reshape(blocks * block, heads, size)
    plain_values = values.permute(0, 3, 1, 2).reshape(blocks * block, heads, size)
    used = slots >= 0
    equal(plain_keys[slots[used]], stored(key[used], scales[0], kind), kind)
    equal(plain_values[slots[used]], stored(value[used], scales[1], kind), kind)
    rest = torch.ones(blocks * block, dtype=torch.bool)
    rest[slots[used]] = False
    assert not plain_keys[rest].any()
    assert not plain_values[rest].any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize(("heads", "size", "block"), [(8, 64, 16), (3, 120, 8), (2, 256, 32)])
def test_reshape_and_cache_flash(
    dtype: Any, kind: str, layout: str, heads: int, size: int, block: int
) -> None:
    tokens, blocks = 77, 20
    qkv = torch.randn(tokens + 3, 3, heads, size).to(dtype)  # three more, as graphs pad
    key, value = qkv[:, 1], qkv[:, 2]
    scales = torch.tensor(0.25), torch.tensor(0.5)
    slots = torch.randperm(blocks * block)[:tokens]
    slots[5] = -1
    inner = dtype if kind == "auto" else torch.uint8
    shape = (2, blocks, heads, block, size) if layout == "HND" else (2, blocks, block, heads, size)
    caches = torch.zeros(shape, dtype=inner)
    keys, values = (part.transpose(1, 2) if layout == "HND" else part for part in caches)
    torch.ops._C_cache_ops.reshape_and_cache_flash(key, value, keys, values, slots, kind, *scales)
    used = slots >= 0
    for cache, x, scale in ((keys, key, scales[0]), (values, value, scales[1])):
        plain = cache.reshape(blocks * block, heads, size)
        equal(plain[slots[used]], stored(x[:tokens][used], scale, kind), kind)
        rest = torch.ones(blocks * block, dtype=torch.bool)
        rest[slots[used]] = False
        assert not plain[rest].any()


@pytest.mark.parametrize("where", ["cuda cuda", "cuda cpu", "cpu cuda"])
def test_swap_blocks(where: str) -> None:
    source, target = where.split()
    one = torch.randn(9, 4, 5, device=source).half()
    other = torch.zeros(9, 4, 5, device=target).half()
    pairs = torch.tensor([[0, 3], [7, 1], [2, 8]], device="cpu")
    torch.ops._C_cache_ops.swap_blocks(one, other, pairs)
    torch.cuda.synchronize()
    wanted = torch.zeros(9, 4, 5, device=target).half()
    wanted[pairs[:, 1].to(target)] = one[pairs[:, 0].to(source)].to(target)
    assert torch.equal(other, wanted)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_convert_fp8(dtype: Any) -> None:
    x = 3 * torch.randn(6, 100).to(dtype)
    codes = torch.zeros(6, 100, dtype=torch.uint8)
    torch.ops._C_cache_ops.convert_fp8(codes, x, 0.5, "fp8")
    close_fp8(codes.view(E4M3), x.double() / 0.5)
    every = torch.arange(256, dtype=torch.uint8)[None].contiguous()
    back = torch.empty(1, 256, dtype=dtype)
    torch.ops._C_cache_ops.convert_fp8(back, every, 0.5, "fp8")
    wanted = every.view(E4M3).float() * 0.5
    finite = wanted.isfinite()
    assert torch.equal(back[finite].float(), wanted[finite].to(dtype).float())
    assert not back[~finite].isfinite().any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["auto", "fp8"])
def test_concat_and_cache_mla(dtype: Any, kind: str) -> None:
    tokens, blocks, block, rank, rope = 42, 8, 16, 512, 64
    content, position = torch.randn(tokens, rank).to(dtype), torch.randn(tokens, rope).to(dtype)
    scale = torch.tensor(0.25)
    slots = torch.randperm(blocks * block)[:tokens]
    cache = torch.zeros(blocks, block, rank + rope, dtype=dtype if kind == "auto" else torch.uint8)
    torch.ops._C_cache_ops.concat_and_cache_mla(content, position, cache, slots, kind, scale)
    both = torch.cat([content, position], 1)
    equal(cache.reshape(-1, rank + rope)[slots], stored(both, scale, kind), kind)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
def test_concat_and_cache_ds_mla(dtype: Any) -> None:
    """512 in fp8 with four scales, 64 as they are: 656 bytes; and read back in bfloat16."""
    tokens, blocks, block = 42, 8, 16
    content, position = torch.randn(tokens, 512).to(dtype), torch.randn(tokens, 64).to(dtype)
    slots = torch.randperm(blocks * block)[:tokens]
    cache = torch.zeros(blocks, block, 656, dtype=torch.uint8)
    torch.ops._C_cache_ops.concat_and_cache_mla(
        content, position, cache, slots, "fp8_ds_mla", torch.tensor(1.0)
    )
    rows = cache.reshape(-1, 656)[slots]
    scales = rows[:, 512:528].contiguous().view(FLOAT)
    groups = content.double().reshape(tokens, 4, 128)
    close(scales, groups.abs().amax(-1) / 448)
    codes = rows[:, :512].contiguous().view(E4M3).reshape(tokens, 4, 128)
    close_fp8(codes, groups / scales.double()[..., None])
    assert torch.equal(rows[:, 528:].contiguous().view(dtype), position)
    if dtype is not BFLOAT16:
        return
    lengths, each = torch.tensor([30, 50], dtype=torch.int32), 4
    table = pages(blocks, 2, each)
    filled = torch.randn(blocks * block, 512).to(dtype), torch.randn(blocks * block, 64).to(dtype)
    torch.ops._C_cache_ops.concat_and_cache_mla(
        *filled, cache, torch.arange(blocks * block), "fp8_ds_mla", torch.tensor(1.0)
    )
    out = torch.zeros(80, 576, dtype=BFLOAT16)
    starts = torch.tensor([0, 30], dtype=torch.int32)
    torch.ops._C_cache_ops.cp_gather_and_upconvert_fp8_kv_cache(
        cache, out, table, lengths, starts, 2
    )
    at = torch.cat(
        [
            (table[row].long()[:, None] * block + torch.arange(block)).flatten()[:length]
            for row, length in enumerate(lengths.tolist())
        ]
    )
    rows = cache.reshape(-1, 656)[at]
    scales = rows[:, 512:528].contiguous().view(FLOAT).repeat_interleave(128, 1)
    wanted = rows[:, :512].contiguous().view(E4M3).float() * scales
    assert torch.equal(out[:, :512], wanted.to(BFLOAT16))
    assert torch.equal(out[:, 512:], rows[:, 528:].contiguous().view(BFLOAT16))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("neox", [False, True], ids=["gptj", "neox"])
@pytest.mark.parametrize("kind", ["auto", "fp8"])
def test_concat_and_cache_mla_rope_fused(dtype: Any, neox: bool, kind: str) -> None:
    tokens, heads, blocks, block, rank, rope = 33, 4, 8, 16, 512, 64
    q, k = torch.randn(tokens, heads, rope).to(dtype), torch.randn(tokens, rope).to(dtype)
    content = torch.randn(tokens, rank).to(dtype)
    angles = 7 * torch.rand(100, rope // 2)
    table = torch.cat([angles.cos(), angles.sin()], 1).to(dtype)
    positions = torch.randint(100, (tokens,))
    slots = torch.randperm(blocks * block)[:tokens]
    scale = torch.tensor(0.25)
    cache = torch.zeros(blocks, block, rank + rope, dtype=dtype if kind == "auto" else torch.uint8)
    cosine, sine = table[positions].chunk(2, 1)
    wanted_q = rotated(q, cosine, sine, neox)
    wanted_k = rotated(k[:, None], cosine, sine, neox)[:, 0]
    torch.ops._C_cache_ops.concat_and_cache_mla_rope_fused(
        positions, q, k, content, table, neox, slots, cache, kind, scale
    )
    close(q, wanted_q, factor=2)
    rows = cache.reshape(-1, rank + rope)[slots]
    equal(rows[:, :rank], stored(content, scale, kind), kind)
    if kind == "auto":
        close(rows[:, rank:], wanted_k, factor=2)
    else:  # half a step of fp8, beside what rounding does before where two products cancel
        relative, absolute = TOLERANCE[dtype]
        torch.testing.assert_close(
            rows[:, rank:].contiguous().view(E4M3).double() * 0.25,
            wanted_k,
            rtol=2 * relative + 2**-4,
            atol=2 * absolute + 2**-12,
        )


def gathered(cache: Any, table: Any, lengths: list[int], starts: list[int]) -> Any:
    """Rows of a cache (blocks, block, entry) in the order of the sequences."""
    block = cache.shape[1]
    flat = cache.reshape(-1, cache.shape[2])
    rows = []
    for row, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        at = torch.arange(start, start + length)
        rows.append(table[row].long()[at // block] * block + at % block)
    return flat[torch.cat(rows)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["auto", "fp8"])
@pytest.mark.parametrize("later", [False, True], ids=["", "starts"])
def test_gather_and_maybe_dequant_cache(dtype: Any, kind: str, later: bool) -> None:
    lengths, blocks, block = [30, 1, 50], 20, 16
    starts = [16, 0, 5] if later else [0, 0, 0]
    table = pages(blocks, 3, 5)
    cache = torch.randn(blocks, block, 576).to(dtype)
    if kind != "auto":
        cache = stored(cache, torch.tensor(0.25), kind)
    ends = torch.tensor([0, 30, 31, 81], dtype=torch.int32)
    which = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).int()
    out = torch.zeros(81, 576, dtype=dtype)
    torch.ops._C_cache_ops.gather_and_maybe_dequant_cache(
        *(cache, out, table, ends, which, 81, kind, torch.tensor(0.25)),
        torch.tensor(starts, dtype=torch.int32) if later else None,
    )
    wanted = gathered(cache, table, lengths, starts)
    if kind != "auto":
        wanted = (wanted.view(E4M3).float() * 0.25).to(dtype)
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("dtype", [torch.uint8, HALF, FLOAT], ids=str)
@pytest.mark.parametrize("later", [False, True], ids=["", "starts"])
def test_cp_gather_cache(dtype: Any, later: bool) -> None:
    lengths, blocks, block = [30, 1, 50], 20, 16
    starts = [17, 0, 5] if later else [0, 0, 0]
    table = pages(blocks, 3, 5)
    cache = torch.randint(100, (blocks, block, 96)).to(dtype)
    ends = torch.tensor([0, 30, 31, 81], dtype=torch.int32)
    out = torch.zeros(81, 96, dtype=dtype)
    torch.ops._C_cache_ops.cp_gather_cache(
        *(cache, out, table, ends, 3),
        torch.tensor(starts, dtype=torch.int32) if later else None,
    )
    assert torch.equal(out, gathered(cache, table, lengths, starts))


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
@pytest.mark.parametrize("form", ["", "ue8m0"])
def test_indexer_cache(dtype: Any, form: str) -> None:
    """Keys in fp8 with a scale for 128 of them behind a block's keys; and gathered again."""
    tokens, blocks, block, size = 40, 12, 16, 128
    k = torch.randn(tokens, size).to(dtype)
    slots = torch.randperm(blocks * block)[:tokens]
    cache = torch.zeros(blocks, block, size + 4, dtype=torch.uint8)
    torch.ops._C_cache_ops.indexer_k_quant_and_cache(k, cache, slots, 128, form)
    codes = cache.reshape(blocks, -1)[:, : block * size].reshape(-1, size).view(E4M3)
    scales = cache.reshape(blocks, -1)[:, block * size :].contiguous().view(FLOAT).reshape(-1)
    wanted = k.double().abs().amax(-1) / 448
    if form:
        wanted = wanted.log2().ceil().exp2()
    close(scales[slots], wanted)
    close_fp8(codes[slots], k.double() / scales[slots].double()[:, None])
    lengths, table = [20, 30], pages(blocks, 2, 2)
    out = torch.zeros(50, size, dtype=torch.uint8)
    out_scales = torch.zeros(50, 4, dtype=torch.uint8)
    torch.ops._C_cache_ops.cp_gather_indexer_k_quant_cache(
        cache, out, out_scales, table, torch.tensor([0, 20, 50], dtype=torch.int32)
    )
    at = torch.cat(
        [
            table[row].long()[torch.arange(length) // block] * block + torch.arange(length) % block
            for row, length in enumerate(lengths)
        ]
    )
    assert torch.equal(out, codes.view(torch.uint8)[at])
    assert torch.equal(out_scales.view(FLOAT)[:, 0], scales[at])
