"""Reading a folder of safetensors, as models are published: config.json and the files' headers.

llama.cpp does not load these; what is planned is the GGUF file that they are converted to. Files
are hostile until read, as in :mod:`.gguf`; weights are never read.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from legacy_cuda.catalog.models import Mix, ModelShape
from legacy_cuda.planner import shapes
from legacy_cuda.planner.model import Model, ModelError

CONFIG_MOST = 1 << 20
HEADER_MOST = 100_000_000  # what the format itself allows
FILES_MOST = 1 << 10

_WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2,
    "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
# model_type of config.json: what llama.cpp calls the architecture
_ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "gemma2": "gemma2", "gemma3_text": "gemma3", "gpt_oss": "gpt-oss",
    "phi3": "phi3",
}  # fmt: skip


def _json(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is no JSON") from error
    if not isinstance(found, dict):
        raise ModelError(f"{what} is no JSON object")
    return found


def header_values(data: bytes, size: int) -> int:
    """How many values the tensors of one file hold, from its first bytes.

    Args:
        data: the file's beginning: its header as a whole.
        size: of the file in bytes.

    Raises:
        ModelError: the header is damaged, or the file is cut off.
    """
    if len(data) < 8:
        raise ModelError("a file without a header")
    length = int.from_bytes(data[:8], "little")
    if length > HEADER_MOST or 8 + length > size:
        raise ModelError("the header is larger than the file")
    total = 0
    for name, item in _json(data[8 : 8 + length], "the header").items():
        if name == "__metadata__":
            continue
        try:
            width, dimensions = _WIDTHS[item["dtype"]], item["shape"]
            start, end = item["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"tensor {name[:60]!r} is not described as tensors are") from error
        if not isinstance(dimensions, list) or not all(
            isinstance(value, int) and 0 <= value < 1 << 40 for value in (*dimensions, start, end)
        ):
            raise ModelError(f"tensor {name[:60]!r} has dimensions that are no sizes")
        values = math.prod(dimensions)
        if end - start != values * width:
            raise ModelError(f"tensor {name[:60]!r} is not as long as its dimensions say")
        if 8 + length + end > size:
            raise ModelError("the file is shorter than its tensors: its download was not finished")
        total += values
    return total


def _number(config: dict[str, Any], key: str, default: int | None = None) -> int:
    found = config.get(key, default)
    if found is None and default is not None:
        found = default
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= 1 << 24:
        raise ModelError(f"{key} of config.json is {str(found)[:40]}")
    return found


def shape_of_config(config: dict[str, Any], name: str) -> ModelShape:
    """The shape that a config.json states.

    Raises:
        ModelError: a number is missing, or the kind of model is not known here.
    """
    nested = config.get("text_config")
    if isinstance(nested, dict):  # a model for pictures too: its text part
        config = nested
    kind = config.get("model_type")
    architecture = _ARCHITECTURES.get(kind) if isinstance(kind, str) else None
    if architecture is None:
        raise ModelError(
            f"models of type {str(kind)[:40]!r} are not planned from config.json; known are "
            f"{', '.join(_ARCHITECTURES)}; a GGUF file of any kind can be planned"
        )
    heads, embedding = _number(config, "num_attention_heads"), _number(config, "hidden_size")
    layers = _number(config, "num_hidden_layers")
    heads_kv = _number(config, "num_key_value_heads", heads)
    if not heads or not heads_kv or not embedding or not 0 < layers <= 1024:
        raise ModelError("config.json describes a model without layers, heads or an embedding")
    experts = _number(config, "num_local_experts", _number(config, "num_experts", 0))
    scaling = config.get("rope_scaling")
    scaled = str(scaling.get("rope_type", scaling.get("type"))) if isinstance(scaling, dict) else ""
    feed_forward = _number(config, "intermediate_size")
    return ModelShape(
        name=name,
        title=name,
        aliases=(),
        architecture=architecture,
        layers=layers,
        embedding=embedding,
        feed_forward=feed_forward,
        heads=heads,
        heads_kv=heads_kv,
        head_size=_number(config, "head_dim", embedding // heads),
        vocabulary=_number(config, "vocab_size"),
        context=_number(config, "max_position_embeddings", 0),
        parameters=0,
        source="config.json",
        verified=True,
        tied=bool(config.get("tie_word_embeddings", architecture.startswith("gemma"))),
        rope_factors=scaled == "llama3",
        long_factors=scaled == "longrope",
        experts=experts,
        experts_used=_number(config, "num_experts_per_tok", 0) if experts else 0,
        expert_feed_forward=_number(config, "moe_intermediate_size", feed_forward)
        if experts
        else 0,
        sliding_window=_number(config, "sliding_window", 0)
        if architecture in ("gemma2", "gemma3", "gpt-oss")
        else 0,
    )


@dataclass(frozen=True)
class Folder:
    """A model's folder: its config.json, the shape that it states, and its files: how many values
    their tensors hold, and their bytes."""

    config: dict[str, Any]
    shape: ModelShape
    values: int
    size: int


def contents(folder: Path) -> Folder:
    """What is in a folder.

    Raises:
        ModelError: a file is missing, damaged or of a kind that is not known.
        OSError: a file cannot be read.
    """
    place = folder / "config.json"
    with place.open("rb") as file:
        data = file.read(CONFIG_MOST + 1)
    if len(data) > CONFIG_MOST:
        raise ModelError("config.json is larger than any")
    config = _json(data, "config.json")
    known = shape_of_config(config, folder.resolve().name)
    files = sorted(folder.glob("*.safetensors"))
    if not files or len(files) > FILES_MOST:
        raise ModelError(f"{len(files)} files of safetensors in the folder")
    values = size = 0
    for path in files:
        with path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(0)
            start = file.read(8)
            wanted = int.from_bytes(start, "little")
            if len(start) < 8 or wanted > min(HEADER_MOST, length):
                raise ModelError(f"{path.name}: the header is larger than the file")
            try:
                values += header_values(start + file.read(wanted), length)
            except ModelError as error:
                raise ModelError(f"{path.name}: {error}") from error
        size += length
    return Folder(config, known, values, size)


def read(folder: Path, mix: Mix) -> Model:
    """The model in a folder, in the mix that it is to be converted to.

    Raises:
        ModelError: a file is missing, damaged or of a kind that is not known.
        OSError: a file cannot be read.
    """
    found = contents(folder)
    model = shapes.model_of(found.shape, mix)
    notes = [f"llama.cpp loads it once it is converted to GGUF as {mix.name}: that is planned"]
    if found.values != model.parameters:
        notes.append(
            f"its files hold {found.values} values and its config.json describes "
            f"{model.parameters}: other parts than the text model, or quantised weights, are not "
            "counted"
        )
    return Model(found.shape.name, mix.name, model.shape, model.tensors, found.size, tuple(notes))
