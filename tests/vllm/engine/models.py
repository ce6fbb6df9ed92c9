"""Tiny random models, and what transformers generates with them in float32.

    python models.py FOLDER [NAME ...]

Needs torch and transformers, no GPU. Each folder below FOLDER is a checkpoint with a tokenizer, and
``expected.json`` in it has prompts, the tokens that transformers chooses greedily for them in
float32, and by how much the chosen token's logit leads the next one's. Weights are such as float16
holds, so that a model in float16 has the same ones. Of a few seeds that one is taken whose smallest
lead is largest: where two tokens are alike, no arithmetic tells them apart.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

VOCABULARY, STEPS, SEEDS = 1024, 256, 2
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def configuration(name: str) -> Any:
    """The configuration of ``llama``, ``qwen3`` or ``gemma3``: one of each kind of attention."""
    if name == "llama":
        return transformers.LlamaConfig(**BASE)
    if name == "qwen3":
        return transformers.Qwen3Config(**BASE, head_dim=64)
    if name == "gemma3":
        settings = {"head_dim": 256, "sliding_window": 64, "num_hidden_layers": 6}
        return transformers.Gemma3TextConfig(
            **{**BASE, **settings, "num_attention_heads": 4, "query_pre_attn_scalar": 256}
        )
    raise ValueError(name)


def prompts() -> list[list[int]]:
    """Sixteen, of 3 to 400 tokens; every other one begins with the same 100."""
    draw = torch.Generator().manual_seed(7)
    shared = torch.randint(3, VOCABULARY, (100,), generator=draw).tolist()
    lengths = [3, 5, 16, 17, 31, 48, 64, 65, 90, 127, 128, 150, 200, 256, 300, 400]
    return [
        [
            *(1, *(shared if at % 2 else [])),
            *torch.randint(3, VOCABULARY, (length,), generator=draw).tolist(),
        ]
        for at, length in enumerate(lengths)
    ]


@torch.inference_mode()
def greedy(model: Any, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Tokens and leads; the end token is one as any other."""
    cache, ids = None, torch.tensor([prompt])
    tokens, leads = [], []
    for _ in range(STEPS):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = out.logits[0, -1].float().topk(2)
        tokens.append(int(best.indices[0]))
        leads.append(float(best.values[0] - best.values[1]))
        ids = best.indices[:1][None]
    return tokens, leads


def tokenizer(folder: Path) -> None:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{at}": at for at in range(3, VOCABULARY)}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = WhitespaceSplit()
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    whole.chat_template = (
        "{{ bos_token }} {% for message in messages %}{{ message['content'] }} {% endfor %}"
    )
    whole.save_pretrained(folder)


def make(name: str, seed: int) -> Any:
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(configuration(name))
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return model.eval()


def main() -> None:
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or ("llama", "qwen3", "gemma3"):
        best: tuple[float, int, Any] | None = None
        for seed in range(SEEDS):
            model = make(name, seed)
            made = [greedy(model, prompt) for prompt in prompts()]
            smallest = min(min(leads) for _, leads in made)
            print(name, seed, f"{smallest:.1e}", len({t for tokens, _ in made for t in tokens}))
            if best is None or smallest > best[0]:
                best = smallest, seed, made
        assert best is not None
        target = folder / name
        make(name, best[1]).half().save_pretrained(target)
        tokenizer(target)
        rows = [
            {"prompt": prompt, "tokens": tokens, "leads": [float(f"{lead:.3g}") for lead in leads]}
            for prompt, (tokens, leads) in zip(prompts(), best[2], strict=True)
        ]
        document = {"transformers": transformers.__version__, "seed": best[1], "rows": rows}
        (target / "expected.json").write_text(json.dumps(document))


if __name__ == "__main__":
    main()
