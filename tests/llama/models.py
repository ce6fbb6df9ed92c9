"""Tiny models with the shapes of real ones, made from a seed, as GGUF files.

    python -m tests.llama.models FOLDER

Weights are random, but each token is followed by one that is much likelier than the others: a
model whose logits are all alike would give other tokens for the smallest difference. The layers
between still move the logits by more than rounding does, which the loss and the logits show. The
tokenizer is byte-level, so that any text can be fed to them. Dimensions are multiples of 256, the
block of the K quantisations.

Needs: gguf, numpy.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
# What a model that calls a function says, in two tokens: random weights would not say it in more.
CALL = ('<tool_call>\n{"name": "answer", "arguments": {"number": ', "42}}\n</tool_call>")
MERGES = ["t h", "i n", "e r", "a n", "o n"]
VOCABULARY = 512
CONTEXT = 2048

# Tools as in the templates of Qwen and Hermes: a list in <tools>, calls as JSON in <tool_call>.
CHAT = """\
{%- if tools %}<|user|>Call a function in <tool_call></tool_call> tags. <tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools> For each call:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|end|>{% endif %}
{%- for message in messages %}
{%- if message.role == "assistant" %}<|assistant|>{{ message.content or "" }}
{%- for tool_call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ tool_call.function.name }}", "arguments": {{ tool_call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|end|>
{%- elif message.role == "tool" %}<|user|><tool_response>
{{ message.content }}
</tool_response><|end|>
{%- else %}<|user|>{{ message.content }}<|end|>{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""


@dataclass(frozen=True)
class Shape:
    """A model's shape: ``head`` is the size of an attention head; ``experts`` 0 for a dense one."""

    name: str
    architecture: str
    head: int
    heads: int
    heads_kv: int
    experts: int = 0
    embedding: int = 256
    forward: int = 512
    blocks: int = 2

    @property
    def norms(self) -> bool:
        """Whether queries and keys are normalised, head by head."""
        return self.architecture.startswith("qwen3")


SHAPES = (
    Shape("llama-64", "llama", 64, 4, 2),
    Shape("llama-128", "llama", 128, 4, 1),
    Shape("qwen3-64", "qwen3", 64, 8, 2),
    Shape("qwen3-128", "qwen3", 128, 4, 2),
    Shape("moe-64", "qwen3moe", 64, 8, 4, experts=8),
    Shape("moe-128", "llama", 128, 4, 2, experts=4),
)


def _bytes_to_text() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level BPE (as in GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain}
    return {**table, **{byte: chr(256 + at) for at, byte in enumerate(others)}}


def _vocabulary() -> list[tuple[str, gguf.TokenType]]:
    """Every token, as byte-level BPE writes it."""
    table = _bytes_to_text()
    tokens = [(table[byte], gguf.TokenType.NORMAL) for byte in range(256)]
    tokens += [(merge.replace(" ", ""), gguf.TokenType.NORMAL) for merge in MERGES]
    tokens += [(text, gguf.TokenType.CONTROL) for text in SPECIAL]
    tokens += [(text, gguf.TokenType.USER_DEFINED) for text in CALL]
    unused = VOCABULARY - len(tokens)
    return tokens + [(f"<unused{at}>", gguf.TokenType.UNUSED) for at in range(unused)]


def _tokenizer(writer: Any) -> None:
    tokens = [text for text, _ in _vocabulary()]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([kind for _, kind in _vocabulary()])
    writer.add_token_merges(MERGES)
    end = tokens.index(SPECIAL[0])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def _followers(random: Any, calls: bool) -> Any:
    """For every token the one that it likely follows: a permutation, with a call if asked for."""
    before = random.permutation(VOCABULARY)
    if calls:
        names = [text for text, _ in _vocabulary()]
        chain = [names.index(text) for text in (SPECIAL[2], *CALL, SPECIAL[0])]
        for first, second in itertools.pairwise(chain):
            other = int(numpy.flatnonzero(before == first)[0])
            before[[second, other]] = before[[other, second]]
    return before


def _tensors(shape: Shape, random: Any, calls: bool) -> Iterator[tuple[str, Any]]:
    """Names as llama.cpp has them, and values of shape (rows, columns)."""

    def matrix(*size: int, scale: float = 1.0) -> Any:
        spread = scale / numpy.sqrt(size[-1])
        return (random.standard_normal(size) * spread).astype(numpy.float32)

    def norm(size: int) -> Any:
        return (1.0 + 0.1 * random.standard_normal(size)).astype(numpy.float32)

    width, forward = shape.embedding, shape.forward
    tokens = matrix(VOCABULARY, width, scale=16.0)
    yield "token_embd.weight", tokens
    yield "output_norm.weight", norm(width)
    # the one that follows: its logit is about 256 * 0.05 more than the others'
    yield "output.weight", 0.05 * tokens[_followers(random, calls)]
    for block in range(shape.blocks):
        at = f"blk.{block}"
        yield f"{at}.attn_norm.weight", norm(width)
        yield f"{at}.attn_q.weight", matrix(shape.heads * shape.head, width, scale=2.0)
        yield f"{at}.attn_k.weight", matrix(shape.heads_kv * shape.head, width, scale=2.0)
        yield f"{at}.attn_v.weight", matrix(shape.heads_kv * shape.head, width, scale=2.0)
        yield f"{at}.attn_output.weight", matrix(width, shape.heads * shape.head, scale=0.5)
        if shape.norms:
            yield f"{at}.attn_q_norm.weight", norm(shape.head)
            yield f"{at}.attn_k_norm.weight", norm(shape.head)
        yield f"{at}.ffn_norm.weight", norm(width)
        if shape.experts:
            yield f"{at}.ffn_gate_inp.weight", matrix(shape.experts, width, scale=2.0)
            for name, rows, columns in (("gate", forward, width), ("up", forward, width)):
                yield f"{at}.ffn_{name}_exps.weight", matrix(shape.experts, rows, columns, scale=2)
            yield f"{at}.ffn_down_exps.weight", matrix(shape.experts, width, forward, scale=0.5)
        else:
            yield f"{at}.ffn_gate.weight", matrix(forward, width, scale=2.0)
            yield f"{at}.ffn_up.weight", matrix(forward, width, scale=2.0)
            yield f"{at}.ffn_down.weight", matrix(width, forward, scale=0.5)


def write(shape: Shape, path: Path, seed: int = 1, calls: bool = False) -> None:
    """Write a model as F16: the same bytes every time. One that ``calls`` answers every message
    with a call of the function ``answer``."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(shape.name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads_kv)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
        if shape.architecture == "qwen3moe":
            writer.add_expert_feed_forward_length(shape.forward)
    _tokenizer(writer)
    for name, values in _tensors(shape, numpy.random.default_rng(seed), calls):
        small = values.ndim == 1 or "ffn_gate_inp" in name
        writer.add_tensor(name, values if small else values.astype(numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Write every shape into the folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for shape in SHAPES:
        write(shape, folder / f"{shape.name}-F16.gguf")
    write(SHAPES[0], folder / "calls-F16.gguf", calls=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
