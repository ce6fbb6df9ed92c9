"""Models of the catalog as tensors: what a GGUF file of them holds."""

from __future__ import annotations

from collections.abc import Iterator

from legacy_cuda.catalog.models import Mix, ModelShape
from legacy_cuda.planner.metadata import WINDOW_EVERY
from legacy_cuda.planner.mixes import format_of
from legacy_cuda.planner.model import Model, Shape, Tensor

_NORMED_HEADS = ("qwen3", "qwen3moe", "gemma3")  # queries and keys are normalised
_NORMED_AFTER = ("gemma2", "gemma3")  # what attention and feed-forward add is normalised
_BIASED = ("qwen2", "gpt-oss")  # queries, keys and values have biases


def shape_of(known: ModelShape) -> Shape:
    """The shape that a plan needs."""
    layers, every = known.layers, WINDOW_EVERY.get(known.architecture, 1)
    windowed = tuple(
        bool(known.sliding_window) and layer % every < every - 1 for layer in range(layers)
    )
    return Shape(
        architecture=known.architecture,
        layers=layers,
        embedding=known.embedding,
        heads=(known.heads,) * layers,
        heads_kv=(known.heads_kv,) * layers,
        key_size=known.head_size,
        value_size=known.head_size,
        feed_forward=(known.feed_forward,) * layers,
        vocabulary=known.vocabulary,
        context=known.context,
        windowed=windowed,
        attention=(True,) * layers,
        recurrent=(False,) * layers,
        sliding_window=known.sliding_window,
        key_size_window=known.head_size,
        value_size_window=known.head_size,
        experts=known.experts,
        experts_used=known.experts_used,
    )


def _layer(known: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and dimensions of one layer's tensors."""
    width, head = known.embedding, known.head_size
    queries, keys = known.heads * head, known.heads_kv * head
    kind = known.architecture
    yield "attn_norm.weight", (width,)
    if kind == "phi3":
        yield "attn_qkv.weight", (width, queries + 2 * keys)
    else:
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"attn_{name}.weight", (width, rows)
            if kind in _BIASED:
                yield f"attn_{name}.bias", (rows,)
    yield "attn_output.weight", (queries, width)
    if kind == "gpt-oss":
        yield "attn_output.bias", (width,)
        yield "attn_sinks.weight", (known.heads,)
    if kind in _NORMED_HEADS:
        yield "attn_q_norm.weight", (head,)
        yield "attn_k_norm.weight", (head,)
    if kind in _NORMED_AFTER:
        yield "post_attention_norm.weight", (width,)
        yield "post_ffw_norm.weight", (width,)
    yield "post_attention_norm.weight" if kind == "gpt-oss" else "ffn_norm.weight", (width,)
    yield from _feed_forward(known)


def _feed_forward(known: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, wide, experts = known.embedding, known.feed_forward, known.experts
    if experts:
        wide = known.expert_feed_forward
        biased = known.architecture == "gpt-oss"
        yield "ffn_gate_inp.weight", (width, experts)
        if biased:
            yield "ffn_gate_inp.bias", (experts,)
        for name, columns, rows in (
            ("gate", width, wide), ("up", width, wide), ("down", wide, width),
        ):  # fmt: skip
            yield f"ffn_{name}_exps.weight", (columns, rows, experts)
            if biased:
                yield f"ffn_{name}_exps.bias", (rows, experts)
    elif known.architecture == "phi3":
        yield "ffn_up.weight", (width, 2 * wide)
        yield "ffn_down.weight", (wide, width)
    else:
        yield "ffn_gate.weight", (width, wide)
        yield "ffn_up.weight", (width, wide)
        yield "ffn_down.weight", (wide, width)


def _tensors(known: ModelShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (known.embedding, known.vocabulary)
    yield "output_norm.weight", (known.embedding,)
    if not known.tied:
        yield "output.weight", (known.embedding, known.vocabulary)
    if known.rope_factors:
        yield "rope_freqs.weight", (known.head_size // 2,)
    if known.long_factors:
        yield "rope_factors_long.weight", (known.head_size // 2,)
        yield "rope_factors_short.weight", (known.head_size // 2,)
    for layer in range(known.layers):
        for name, dimensions in _layer(known):
            yield f"blk.{layer}.{name}", dimensions


def model_of(known: ModelShape, mix: Mix) -> Model:
    """The model as llama-quantize makes it in that mix, without a file."""
    shape = shape_of(known)
    tensors = tuple(
        Tensor(name, format_of(mix, name, dimensions, shape, known.tied), dimensions)
        for name, dimensions in _tensors(known)
    )
    notes = () if known.verified else ("its shape was not compared with the published file",)
    return Model(known.name, mix.name, shape, tensors, notes=notes)
