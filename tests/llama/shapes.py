"""GGUF files of any shape of the catalog, or of tiny ones, that hold no weights: files with holes.

    python -m tests.llama.shapes FOLDER NAME ...     NAME: hermes-3-8b:Q5_K_M, tiny-gemma3:F16

llama.cpp loads them as it does others and computes nothing of sense. They take no room on the disk,
so the largest model can be placed. The header is written by the gguf library, from the published
shape: names of tensors, dimensions and formats that llama.cpp does not expect end the loading.

Needs: gguf, numpy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy

from legacy_cuda.catalog.models import Mix, ModelShape, find_mix, find_model
from legacy_cuda.planner.shapes import model_of
from tests.llama.tiny import TINY


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
    writer.add_file_type(mix.file_type)
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
