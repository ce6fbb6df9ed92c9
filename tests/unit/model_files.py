"""GGUF and safetensors files made byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KINDS = {int: 4, float: 6, bool: 7, str: 8}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any) -> bytes:
    """A value with its kind; lists are arrays of their first element's kind."""
    if isinstance(item, list):
        kind = KINDS[type(item[0])] if item else 4
        body = b"".join(plain(element) for element in item)
        return struct.pack("<IIQ", 9, kind, len(item)) + body
    return struct.pack("<I", KINDS[type(item)]) + plain(item)


def plain(item: Any) -> bytes:
    if isinstance(item, bool):
        return struct.pack("<?", item)
    if isinstance(item, int):
        return struct.pack("<I", item)
    if isinstance(item, float):
        return struct.pack("<f", item)
    return text(item)


def gguf(
    values: dict[str, Any],
    tensors: Sequence[tuple[str, int, Sequence[int], int]],
    version: int = 3,
    alignment: int = 32,
    data: int | None = None,
) -> bytes:
    """A file: tensors are name, number of the format, dimensions and bytes."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    head += b"".join(text(key) + value(item) for key, item in values.items())
    offset = 0
    for name, kind, dimensions, size in tensors:
        head += text(name) + struct.pack("<I", len(dimensions))
        head += struct.pack(f"<{len(dimensions)}Q", *dimensions)
        head += struct.pack("<IQ", kind, offset)
        offset += size + -size % alignment
    head += bytes(-len(head) % alignment)
    return head + bytes(offset if data is None else data)


LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.file_type": 1,
    "llama.block_count": 2,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": [2, 2],
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.ggml.scores": [0.5, 0.25, 0.125],
    "llama.something": True,
}


def llama_tensors(layers: int = 2, unit: int = 64) -> list[tuple[str, int, tuple[int, ...], int]]:
    """Tensors of a tiny llama in F16, norms in F32; ``unit`` values wide."""
    found: list[tuple[str, int, tuple[int, ...], int]] = [
        ("token_embd.weight", 1, (unit, 4 * unit), 8 * unit * unit),
        ("output_norm.weight", 0, (unit,), 4 * unit),
        ("output.weight", 1, (unit, 4 * unit), 8 * unit * unit),
    ]
    for layer in range(layers):
        parts = {
            "attn_norm": (unit,), "attn_q": (unit, unit), "attn_k": (unit, unit // 2),
            "attn_v": (unit, unit // 2), "attn_output": (unit, unit), "ffn_norm": (unit,),
            "ffn_gate": (unit, 2 * unit), "ffn_up": (unit, 2 * unit), "ffn_down": (2 * unit, unit),
        }  # fmt: skip
        for name, dimensions in parts.items():
            flat = len(dimensions) == 1
            count = dimensions[0] if flat else dimensions[0] * dimensions[1]
            kind, size = (0, count * 4) if flat else (1, count * 2)
            found.append((f"blk.{layer}.{name}.weight", kind, dimensions, size))
    return found


def llama(**changes: Any) -> bytes:
    """A whole tiny model; ``changes`` replace values, keys with ``__`` for a dot."""
    given = {key.replace("__", "."): item for key, item in changes.items()}
    values = {key: item for key, item in {**LLAMA, **given}.items() if item is not None}
    return gguf(values, llama_tensors())


def smallest() -> bytes:
    """A whole model of about 5 KiB."""
    values = {**LLAMA, "llama.embedding_length": 8, "llama.feed_forward_length": 16}
    return gguf(values, llama_tensors(unit=8))


def safetensors(tensors: dict[str, tuple[str, Sequence[int]]], cut: int = 0) -> bytes:
    """A file of safetensors whose weights are zeros."""
    widths = {"F16": 2, "BF16": 2, "F32": 4, "U8": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (kind, dimensions) in tensors.items():
        size = widths[kind]
        for count in dimensions:
            size *= count
        header[name] = {
            "dtype": kind,
            "shape": list(dimensions),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    body = json.dumps(header).encode()
    return struct.pack("<Q", len(body)) + body + bytes(max(0, offset - cut))


def folder(place: Path, **changes: Any) -> None:
    """A folder of a tiny Llama in safetensors; ``changes`` are of its config.json."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 128, "max_position_embeddings": 8192000, "num_attention_heads": 4,
        "num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 32,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps({**config, **changes}))
    (place / "model.safetensors").write_bytes(safetensors({"a": ("BF16", (32, 64))}))
