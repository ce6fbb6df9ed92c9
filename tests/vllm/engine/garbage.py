"""What vLLM's scheduler leaves of finished requests for Python's garbage collector. No GPU.

    python garbage.py REQUESTS [--blocks 43690] [--without-caching]

Eight requests at a time go through vLLM's own manager of the KV cache: prompts that others had
before, answers of up to 200 tokens, half of which others had too. Objects that exist before the
first request are frozen, as vLLM does when it has started. Each row says how much anonymous memory
was added, how often every generation was collected since, and how many requests are unreachable;
at the end all is collected.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
from typing import Any

from served import resident

TOKENS = 16  # of a block


def manager(blocks: int, caching: bool) -> Any:
    """Of the KV cache of one layer."""
    import torch
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=TOKENS, num_kv_heads=2, head_size=32, dtype=torch.float32)
    config = KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    return KVCacheManager(
        config, max_model_len=1024, hash_block_size=TOKENS, enable_caching=caching, log_stats=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("requests", type=int)
    parser.add_argument("--blocks", type=int, default=43690)
    parser.add_argument("--without-caching", action="store_true")
    options = parser.parse_args()
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    caching = not options.without_caching
    hasher = get_request_block_hasher(TOKENS, sha256) if caching else None
    cache, draw = manager(options.blocks, caching), random.Random(5)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(3, 1000) for _ in range(count)]

    known = [(tokens(draw.randint(3, 400)), tokens(200)) for _ in range(16)]
    running: list[tuple[Any, list[int]]] = []
    begun = 0
    gc.collect()
    gc.freeze()

    def anonymous() -> int:
        return sum(resident(os.getpid()).values())

    begin, collected = anonymous(), gc.get_stats()[2]["collections"]

    def tell() -> None:
        waiting = sum(isinstance(item, Request) for item in gc.get_objects()) - len(running)
        full = gc.get_stats()[2]["collections"] - collected
        more = f"{anonymous() - begin} KiB more, {full} full collections"
        print(f"{begun} requests: {more}, {waiting} unreachable", flush=True)

    while begun < options.requests or running:
        while len(running) < 8 and begun < options.requests:
            prompt, answer = draw.choice(known)
            length = draw.randint(1, 200)
            answer = answer[:length] if begun % 2 else tokens(length)
            sampling = SamplingParams(max_tokens=length)
            named = {"eos_token_id": 2, "pooling_params": None, "block_hasher": hasher}
            request = Request(str(begun), list(prompt), sampling, **named)
            blocks, hit = cache.get_computed_blocks(request)
            cache.allocate_slots(request, len(prompt) - hit, hit, blocks)
            request.num_computed_tokens = len(prompt)
            running.append((request, answer[::-1]))
            begun += 1
            if begun % 10000 == 0:
                tell()
        for item in list(running):
            request, answer = item
            request.append_output_token_ids(answer.pop())
            if answer:
                cache.allocate_slots(request, 1)
                request.num_computed_tokens += 1
            else:
                cache.free(request)
                running.remove(item)
        request = item = None  # else the last one that finished is still reachable
    tell()
    gc.collect()
    print("all collected; ", end="")
    tell()


if __name__ == "__main__":
    main()
