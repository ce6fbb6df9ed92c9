"""Tiny random models, and what transformers generates with them in float32.

    python models.py FOLDER [NAME ...]

Needs torch and transformers, no GPU. Each folder below FOLDER is a checkpoint with a tokenizer,
and ``expected.json`` in it has prompts, the tokens that transformers chooses greedily for them in
float32, and by how much the chosen token's logit leads the next one's. Weights are such as
float16 holds, so that a model in float16 has the same ones. Of a few seeds that one is taken
whose smallest lead is largest: where two tokens are alike, no arithmetic tells them apart. Of
quantized models (``llama-gptq``, ``qwen3-gguf``) the tokens are those of the weights that come
out again. The tokens of ``llama-fp8``, ``qwen3-fp8`` and ``gemma3-fp8`` are those of a cache in
fp8 (e4m3), without scales; the heads of ``qwen3-fp8`` are of 256.
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
NAMES = (
    *("llama", "qwen3", "gemma3", "llama-gptq", "qwen3-gguf"),
    *("llama-fp8", "qwen3-fp8", "gemma3-fp8"),
)
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
    """Of a model's name: ``llama``, ``qwen3`` or ``gemma3`` before the dash, one of each kind of
    attention."""
    kind = name.partition("-")[0]
    if kind == "llama":
        return transformers.LlamaConfig(**BASE)
    if kind == "qwen3":
        return transformers.Qwen3Config(**BASE, head_dim=256 if name == "qwen3-fp8" else 64)
    if kind == "gemma3":
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


class InFp8(transformers.DynamicCache):
    """Keys and values as they come out of a cache that keeps them as e4m3."""

    def update(self, key: Any, value: Any, *others: Any, **named: Any) -> Any:
        key, value = (one.to(torch.float8_e4m3fn).to(one.dtype) for one in (key, value))
        return super().update(key, value, *others, **named)


def cache(name: str, model: Any) -> Any:
    kind = InFp8 if name.endswith("-fp8") else transformers.DynamicCache
    return kind(config=model.config)


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], cache: Any) -> tuple[list[int], list[float]]:
    """Tokens and leads; the end token is one as any other."""
    ids = torch.tensor([prompt])
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


def save_gptq(model: Any, folder: Path, group: int = 64) -> None:
    """With 4 bits in groups, symmetric; leaves in ``model`` what the file says."""
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in model.state_dict().items():
        part, linear = name.removesuffix(".weight"), "_proj." in name
        if not linear:
            tensors[name] = parameter.half()
            continue
        weight = parameter.T.reshape(-1, group, parameter.shape[0])  # (groups, group, out)
        scales = (weight.abs().amax(1) / 7).half()
        codes = (weight / scales.float()[:, None]).round().clamp(-8, 7) + 8
        parameter.copy_(((codes - 8) * scales.float()[:, None]).flatten(0, 1).T)
        words = codes.flatten(0, 1).long().reshape(-1, 8, parameter.shape[0])
        shifts = 4 * torch.arange(8)
        tensors[f"{part}.qweight"] = (words << shifts[:, None]).sum(1).int()
        zeros = torch.full((len(scales), parameter.shape[0] // 8, 8), 7)
        tensors[f"{part}.qzeros"] = (zeros << shifts).sum(-1).int()
        tensors[f"{part}.scales"] = scales
        tensors[f"{part}.g_idx"] = (torch.arange(parameter.shape[1]) // group).int()
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    model.config.dtype = torch.float16
    model.config.architectures = [type(model).__name__]
    model.config.quantization_config = {
        **{"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False},
        **{"sym": True, "checkpoint_format": "gptq", "lm_head": False},
    }
    model.config.save_pretrained(folder)
    del model.config.quantization_config


def save_gguf(model: Any, folder: Path) -> None:
    """``model.gguf`` with Q8_0 and, in the feed-forward parts, Q4_0, and the configuration beside
    it; leaves in ``model`` what the file says."""
    import gguf

    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    writer = gguf.GGUFWriter(folder / "model.gguf", config.model_type)
    writer.add_block_count(config.num_hidden_layers)
    names = gguf.get_tensor_name_map(
        next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == config.model_type),
        config.num_hidden_layers,
    )
    for name, parameter in model.state_dict().items():
        target = names.get_name(name.removesuffix(".weight")) + ".weight"
        if parameter.dim() == 1:
            writer.add_tensor(target, parameter.numpy())
            continue
        kind = gguf.GGMLQuantizationType.Q4_0 if ".mlp." in name else gguf.GGMLQuantizationType.Q8_0
        raw = gguf.quants.quantize(parameter.numpy(), kind)
        writer.add_tensor(target, raw, raw_dtype=kind)
        parameter.copy_(torch.from_numpy(gguf.quants.dequantize(raw, kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config.dtype = torch.float16
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)


def save(name: str, model: Any, folder: Path) -> None:
    if name.endswith("-gptq"):
        save_gptq(model, folder)
    elif name.endswith("-gguf"):
        save_gguf(model, folder)
    else:
        model.half().save_pretrained(folder)


def main() -> None:
    torch.set_num_threads(1)  # of models so small: more would wait for each other
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or NAMES:
        best: tuple[float, Any] | None = None
        target, quantized = folder / name, name.endswith(("-gptq", "-gguf"))
        for seed in range(1 if quantized else SEEDS):
            model = make(name, seed)
            if quantized:
                save(name, model, target)
            made = [greedy(model, prompt, cache(name, model)) for prompt in prompts()]
            smallest = min(min(leads) for _, leads in made)
            print(name, seed, f"{smallest:.1e}", len({t for tokens, _ in made for t in tokens}))
            if best is None or smallest > best[0]:
                best = smallest, made
                if not quantized:
                    save(name, make(name, seed), target)
        assert best is not None
        tokenizer(target)
        rows = [
            {"prompt": prompt, "tokens": tokens, "leads": [float(f"{lead:.3g}") for lead in leads]}
            for prompt, (tokens, leads) in zip(prompts(), best[1], strict=True)
        ]
        document = {"transformers": transformers.__version__, "rows": rows}
        (target / "expected.json").write_text(json.dumps(document))


if __name__ == "__main__":
    main()
