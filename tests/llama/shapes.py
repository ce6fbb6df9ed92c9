"""GGUF files of any shape of the catalog, or of tiny ones, that hold no weights: files with holes.

    python -m tests.llama.shapes FOLDER NAME ...     NAME: hermes-3-8b:Q5_K_M, tiny-gemma3:F16

llama.cpp loads them as it does others and computes nothing of sense. They take no room on the disk,
so the largest model can be placed. The header is written by the gguf library, from the published
shape: names of tensors, dimensions and formats that llama.cpp does not expect end the loading.

Needs: gguf, numpy.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy

from legacy_cuda.catalog.models import Mix, ModelShape, find_mix, find_model
from legacy_cuda.planner.shapes import model_of


def _tiny(name: str, architecture: str, **more: object) -> ModelShape:
    usual: dict[str, object] = {
        "layers": 6, "embedding": 512, "feed_forward": 1024, "heads": 8, "heads_kv": 2,
        "head_size": 64, "vocabulary": 2048, "context": 8192, "tied": False,
    }  # fmt: skip
    return ModelShape(
        name=name, title=name, aliases=(), architecture=architecture, parameters=0,
        source="made up", verified=False, **{**usual, **more},  # type: ignore[arg-type]
    )  # fmt: skip


_EXPERTS = {"experts": 8, "experts_used": 2, "expert_feed_forward": 512}
TINY = {
    shape.name: shape
    for shape in (
        _tiny("tiny-llama", "llama", rope_factors=True),
        _tiny("tiny-llama-tied", "llama", tied=True, heads_kv=8, head_size=64),
        _tiny("tiny-llama-wide", "llama", layers=5, head_size=128, heads=4, vocabulary=32000),
        _tiny("tiny-mixtral", "llama", **{**_EXPERTS, "expert_feed_forward": 1024}),
        _tiny("tiny-qwen2", "qwen2", heads=8, heads_kv=4),
        _tiny("tiny-qwen3", "qwen3", head_size=128, tied=True),
        _tiny("tiny-qwen3moe", "qwen3moe", experts=16, experts_used=4, expert_feed_forward=256),
        _tiny("tiny-gemma2", "gemma2", head_size=128, tied=True, sliding_window=1024),
        _tiny("tiny-gemma3", "gemma3", layers=13, head_size=256, heads=4, tied=True,
              sliding_window=512),
        _tiny("tiny-gpt-oss", "gpt-oss", **_EXPERTS, sliding_window=128),
        _tiny("tiny-phi3", "phi3", heads_kv=8, long_factors=True),
        _tiny("tiny-phi4", "phi3", heads_kv=4, head_size=64),
    )
}  # fmt: skip


def find(name: str) -> tuple[ModelShape, Mix]:
    """The shape and the mix of ``NAME:MIX``."""
    model, _, mix = name.partition(":")
    return TINY.get(model) or find_model(model), find_mix(mix or "F16")


def write(known: ModelShape, mix: Mix, path: Path) -> None:
    """Write the file: its header, and a hole where the weights would be."""
    model = model_of(known, mix)
    writer = gguf.GGUFWriter(path, known.architecture)
    writer.add_name(known.name)
    writer.add_context_length(known.context)
    writer.add_embedding_length(known.embedding)
    writer.add_block_count(known.layers)
    writer.add_feed_forward_length(known.feed_forward)
    writer.add_head_count(known.heads)
    writer.add_head_count_kv(known.heads_kv)
    writer.add_key_length(known.head_size)
    writer.add_value_length(known.head_size)
    writer.add_rope_dimension_count(known.head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(known.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    if known.experts:
        writer.add_expert_count(known.experts)
        writer.add_expert_used_count(known.experts_used)
        writer.add_expert_feed_forward_length(known.expert_feed_forward)
    if known.sliding_window:
        writer.add_sliding_window(known.sliding_window)
    if known.architecture == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    size = 0
    for tensor in model.tensors:
        kind = gguf.GGMLQuantizationType(tensor.format.number)
        # the type of numpy says nothing where the format is named, but must not be that of bytes
        writer.add_tensor_info(
            tensor.name, tensor.dimensions[::-1], numpy.dtype("float32"), tensor.bytes, kind
        )
        size += tensor.bytes + -tensor.bytes % 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        end = file.seek(0, 2)
        file.truncate(end + -end % 32 + size)


def tiny(name: str, **changes: object) -> ModelShape:
    """One of the tiny shapes with other numbers."""
    return replace(TINY[name], **changes)  # type: ignore[arg-type]


def main() -> int:
    """Write every model named into the folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:]:
        known, mix = find(name)
        write(known, mix, folder / f"{known.name}-{mix.name}.gguf")
    return 0


if __name__ == "__main__":
    sys.exit(main())
