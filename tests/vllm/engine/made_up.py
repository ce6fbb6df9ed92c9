"""A worker of vLLM's that computes nothing: what ``without_gpu.py`` puts behind the server."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    AsyncModelRunnerOutput,
    LogprobsLists,
    ModelRunnerOutput,
)
from vllm.v1.worker.worker_base import WorkerBase

STEP = 0.004  # seconds; with what the CPU does, about what a tiny model took on a GPU


@dataclass
class Running:
    """A request that was scheduled: its prompt, what it wants, and the answer where it is known."""

    prompt: list[int]
    sampling: Any
    answer: list[int] | None

    def token(self, at: int, vocabulary: int) -> int:
        if self.answer is not None:
            return self.answer[at]
        if self.sampling.temperature:
            return random.randrange(3, vocabulary)
        return 3 + (sum(self.prompt) + 31 * at) % (vocabulary - 3)


def made_up_logprobs(tokens: list[list[int]], others: int, vocabulary: int) -> LogprobsLists:
    """Of each token and so many others; what they are means nothing."""
    first = numpy.array([[row[0] if row else 0] for row in tokens], numpy.int32)
    return LogprobsLists(
        (first + numpy.arange(1 + others, dtype=numpy.int32)) % vocabulary,
        numpy.full((len(tokens), 1 + others), -1.0, numpy.float32),
        numpy.ones(len(tokens), numpy.int32),
    )


class Later(AsyncModelRunnerOutput):
    """A step's output, after as long as a GPU would take."""

    def __init__(self, output: ModelRunnerOutput) -> None:
        self.output = output

    def get_output(self) -> ModelRunnerOutput:
        time.sleep(STEP)
        return self.output


class Worker(WorkerBase):
    """Takes what the scheduler says, computes nothing."""

    def init_device(self) -> None:
        self.device = torch.device("cpu")

    def load_model(self) -> None:
        text = (Path(self.model_config.model) / "expected.json").read_text(encoding="utf-8")
        self.answers = {tuple(row["prompt"]): row["tokens"] for row in json.loads(text)["rows"]}
        self.running: dict[str, Running] = {}
        self.output: ModelRunnerOutput | None = None

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        model = self.model_config
        spec = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=model.get_num_kv_heads(self.parallel_config),
            head_size=model.get_head_size(),
            dtype=model.dtype,
        )
        return {f"layers.{at}": spec for at in range(model.hf_config.num_hidden_layers)}

    def determine_available_memory(self) -> int:
        return int(self.cache_config.kv_cache_memory_bytes)

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        pass

    def initialize_cache(self, num_gpu_blocks: int, num_cpu_blocks: int) -> None:
        pass

    def compile_or_warm_up_model(self) -> None:
        pass

    def execute_model(self, scheduled: Any) -> ModelRunnerOutput | None:
        """Keeps what is to come of it for ``sample_tokens``, as the worker of a GPU does."""
        for name in scheduled.finished_req_ids:
            self.running.pop(name, None)
        if not scheduled.num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        computed = {}
        for new in scheduled.scheduled_new_reqs:
            sampling, prompt = new.sampling_params, new.prompt_token_ids
            answer = None if sampling.temperature else self.answers.get(tuple(prompt))
            self.running[new.req_id] = Running(prompt, sampling, answer)
            computed[new.req_id] = new.num_computed_tokens
        old = scheduled.scheduled_cached_reqs
        computed.update(zip(old.req_ids, old.num_computed_tokens, strict=True))
        names = list(scheduled.num_scheduled_tokens)
        others = max(self.running[name].sampling.logprobs or 0 for name in names)
        tokens: list[list[int]] = []
        vocabulary = self.model_config.get_vocab_size()
        for name in names:
            request = self.running[name]
            at = computed[name] + scheduled.num_scheduled_tokens[name] - len(request.prompt)
            tokens.append([request.token(at, vocabulary)] if at >= 0 else [])
        self.output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=tokens,
            logprobs=made_up_logprobs(tokens, others, vocabulary) if others else None,
        )
        return None

    def sample_tokens(self, grammar: Any) -> AsyncModelRunnerOutput:
        assert self.output is not None
        output, self.output = Later(self.output), None
        return output
