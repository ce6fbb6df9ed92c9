"""What vLLM reserves for Qwen2.5-7B on a card: its own profile, with weights that are made up.

    python memory.py fp16|gptq|gguf MIB --output FILE [--folder FOLDER]

On a GPU with more memory than the card, replayed: vLLM is told to take nine tenths of the card's
MIB, loads a model of that shape, runs its profile and divides the rest into blocks. What CUDA takes
by itself on the GPU at hand is counted as vLLM counts it, so that nothing else may begin or end on
it meanwhile. One JSON document says what it came to,
or why there is no room. A file of the shape of Q4_K_M is written below FOLDER, 4.4 GiB of zeros.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
GPTQ = {
    **{"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "checkpoint_format": "gptq",
    # without it vLLM reads from the checkpoint which layers are quantized, and here is none
    "modules_in_block_to_quantize": ["self_attn", "mlp"],
}
TOLD = (
    r"Model loading took ([\d.]+) GiB",
    r"Available KV cache memory: (-?[\d.]+) GiB",
    r"GPU KV cache size: ([\d,]+) tokens",
    r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x",
)


def more_bits(layer: int, layers: int) -> bool:
    """Which layers Q4_K_M gives six bits (llama.cpp, use_more_bits)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def write_gguf(path: Path) -> None:
    """Zeros in the types that llama.cpp's Q4_K_M has for this model."""
    import gguf
    import numpy as np

    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "qwen2")
    layers, hidden, inner = 28, CONFIG["hidden_size"], CONFIG["intermediate_size"]
    writer.add_block_count(layers)

    def add(name: str, rows: int, columns: int, six: bool = False) -> None:
        kind = kinds.Q6_K if six else kinds.Q4_K
        per, size = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor(
            f"{name}.weight", np.zeros((rows, columns // per * size), np.uint8), raw_dtype=kind
        )

    def plain(name: str, size: int) -> None:
        writer.add_tensor(name, np.zeros(size, np.float32))

    add("token_embd", CONFIG["vocab_size"], hidden)
    add("output", CONFIG["vocab_size"], hidden, six=True)
    plain("output_norm.weight", hidden)
    for layer in range(layers):
        six, at = more_bits(layer, layers), f"blk.{layer}"
        for name, rows in (("attn_q", hidden), ("attn_k", 512), ("attn_v", 512)):
            add(f"{at}.{name}", rows, hidden, six=six and name == "attn_v")
            plain(f"{at}.{name}.bias", rows)
        add(f"{at}.attn_output", hidden, hidden)
        add(f"{at}.ffn_gate", inner, hidden)
        add(f"{at}.ffn_up", inner, hidden)
        add(f"{at}.ffn_down", hidden, inner, six=six)
        plain(f"{at}.attn_norm.weight", hidden)
        plain(f"{at}.ffn_norm.weight", hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Heard(logging.Handler):
    """Keeps what vLLM logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("fp16", "gptq", "gguf"))
    parser.add_argument("mib", type=int)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path("/tmp"))
    options = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import torch

    from vllm import LLM

    folder = options.folder / f"qwen2.5-7b-{options.kind}"
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = dict(CONFIG)
    settings: dict[str, Any] = {"model": str(folder), "load_format": "dummy"}
    if options.kind == "gptq":
        config["quantization_config"] = GPTQ
    if options.kind == "gguf":
        path = folder / "model.gguf"
        if not path.exists():
            write_gguf(path)
        settings = {
            "model": str(path),
            "hf_config_path": str(folder),
            "tokenizer": str(folder),
        }
    (folder / "config.json").write_text(json.dumps(config))
    heard = Heard()
    logging.getLogger("vllm").addHandler(heard)
    total = torch.cuda.get_device_properties(0).total_memory
    document: dict[str, Any] = {"kind": options.kind, "MiB": options.mib}
    try:
        llm = LLM(
            **settings,
            skip_tokenizer_init=True,
            dtype="float16",
            max_model_len=4096,
            enforce_eager=True,
            # what `vllm serve` takes on a GPU with less than 70 GiB (get_batch_defaults)
            max_num_batched_tokens=2048,
            max_num_seqs=256,
            gpu_memory_utilization=0.9 * (options.mib << 20) / total,
        )
        cache = llm.llm_engine.vllm_config.cache_config
        document |= {"blocks": cache.num_gpu_blocks, "tokens in a block": cache.block_size}
    except Exception as error:  # what vLLM says is the result
        document["refused"] = f"{type(error).__name__}: {error}"
    text = "\n".join(heard.lines)
    for pattern in TOLD:
        if found := re.search(pattern, text):
            document[pattern.partition(":")[0].partition(" (")[0]] = found.groups()
    document["peak MiB"] = torch.cuda.max_memory_allocated() >> 20
    options.output.write_text(json.dumps(document, indent=1))
    print(json.dumps(document))


if __name__ == "__main__":
    main()
