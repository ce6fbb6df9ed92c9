"""What the index of vLLM's prefix cache takes of the host's memory, and that it ends. No GPU.

    python blocks.py BLOCKS [--rounds 5]

Requests of 3 to 25 new blocks each go through vLLM's own pool, as the scheduler has them: blocks
are taken, entered into the index when they are full, and given back. A block keeps its entry until
it is taken again, so the index grows until each was used once.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def anonymous() -> int:
    """KiB of this process."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Anonymous:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("blocks", type=int)
    parser.add_argument("--rounds", type=int, default=5, help="times that each block is used")
    options = parser.parse_args()
    from vllm.v1.core.block_pool import BlockPool

    tokens = 16
    pool, draw = BlockPool(options.blocks, True, tokens), random.Random(1)
    begin, used = anonymous(), 0
    for quarter in range(1, 4 * options.rounds + 1):
        while used < quarter * options.blocks / 4:
            count = draw.randint(3, 25)
            blocks = pool.get_new_blocks(count)
            request: Any = SimpleNamespace(block_hashes=[os.urandom(32) for _ in blocks])
            pool.cache_full_blocks(request, blocks, 0, count, tokens, 0)
            pool.free_blocks(reversed(blocks))
            used += count
        entries = len(pool.cached_block_hash_to_block)
        print(f"{quarter / 4:.2f} rounds: {entries} entries, {anonymous() - begin} KiB more")


if __name__ == "__main__":
    main()
