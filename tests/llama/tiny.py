"""Tiny models with the shapes of real ones, for what llama.cpp says of memory."""

from __future__ import annotations

from typing import Any

from legacy_cuda.catalog.models import ModelShape


def _tiny(name: str, architecture: str, **more: Any) -> ModelShape:
    usual: dict[str, Any] = {
        "layers": 6, "embedding": 512, "feed_forward": 1024, "heads": 8, "heads_kv": 2,
        "head_size": 64, "vocabulary": 2048, "context": 8192, "tied": False,
    }  # fmt: skip
    return ModelShape(
        name=name, title=name, aliases=(), architecture=architecture, parameters=0,
        source="made up", verified=False, **{**usual, **more},
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
