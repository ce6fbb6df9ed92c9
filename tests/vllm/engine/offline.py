"""A tiny model in vLLM, without a server: the tokens that transformers chose in float32?

    python offline.py FOLDER --dtype float32 --output FILE [--compile]

FOLDER is one that ``models.py`` made. Prefix caching and chunked prompts are on. A few prompts are
asked one by one, all sixteen at once, and again, when they are in the cache. One JSON document says
for each whether the tokens are the same, or where they part and by how much the reference's token
led there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any


def parted(row: dict[str, Any], tokens: list[int]) -> tuple[int, float] | None:
    """Where tokens differ from the reference's first, and the reference's lead there."""
    for at, (one, other) in enumerate(zip(row["tokens"], tokens, strict=True)):
        if one != other:
            return at, row["leads"][at]
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile and CUDA graphs")
    parser.add_argument(
        "--dequantize", action="store_true", help="GGUF's weights are dequantized, then multiplied"
    )
    parser.add_argument("--lead", type=float, default=0.0, help="what leads may be overlooked")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--setting", action="append", default=[], metavar="NAME=JSON")
    options = parser.parse_args()

    if options.dequantize:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

    import torch
    from vllm.inputs import TokensPrompt
    from vllm.model_executor.layers.quantization import gguf

    from vllm import LLM, SamplingParams

    if options.dequantize:  # so that activations are not rounded to eight bits
        gguf.MMVQ_QUANT_TYPES.clear()
        gguf.MMQ_QUANT_TYPES.clear()

    rows = json.loads((options.folder / "expected.json").read_text())["rows"]
    started = time.time()
    settings = {
        "dtype": options.dtype,
        "enforce_eager": not options.compile,
        "gpu_memory_utilization": 0.05,
        "kv_cache_memory_bytes": 1 << 30,
        "max_model_len": 1024,
        "max_num_batched_tokens": 128,
        "max_num_seqs": 16,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
    }
    for item in options.setting:
        name, _, value = item.partition("=")
        settings[name] = json.loads(value)
    model, folder = options.folder, str(options.folder)
    if (model / "model.gguf").exists():
        model = model / "model.gguf"
        settings |= {"tokenizer": folder, "hf_config_path": folder}
    llm = LLM(model=str(model), **settings)
    loaded = time.time() - started
    length = len(rows[0]["tokens"])
    sampling = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)

    def generate(which: list[int]) -> list[list[int]]:
        asked = [TokensPrompt(prompt_token_ids=rows[at]["prompt"]) for at in which]
        return [list(item.outputs[0].token_ids) for item in llm.generate(asked, sampling)]

    every = list(range(len(rows)))
    runs = [("alone", [at]) for at in (0, 5, len(rows) - 1)] + [
        ("together", every),
        ("together, again", every),
    ]
    document: dict[str, Any] = {
        "model": options.folder.name,
        "settings": settings,
        "dequantized": options.dequantize,
        "leads overlooked": options.lead,
        "device": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "seconds to load": round(loaded, 1),
        "runs": [],
    }
    good = True
    for name, which in runs:
        started = time.time()
        found = generate(which)
        partings = [
            {"prompt": at, "step": step[0], "lead": step[1]}
            for at, tokens in zip(which, found, strict=True)
            if (step := parted(rows[at], tokens)) is not None
        ]
        good &= all(item["lead"] <= options.lead for item in partings)
        document["runs"].append(
            {
                "name": name,
                "prompts": len(which),
                "equal": len(which) - len(partings),
                "parted": partings,
                "seconds": round(time.time() - started, 1),
            }
        )
        print(document["runs"][-1], flush=True)
        options.output.write_text(json.dumps(document, indent=1))
    document["good"] = good
    options.output.write_text(json.dumps(document, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
