"""Run inside vLLM's environment: what it makes of configurations on cards that are not there.

    python configurations.py "Tesla P40" 6.1 24576 [CARDS]

Name, compute capability, MiB of memory and how many of them. NVML is stood in for, and Triton is
told that there is a driver; the rest is the environment's own. Nothing is loaded or computed: one
JSON document says for every row of ``MODELS`` whether the configuration is taken, and as what.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 256,
    "intermediate_size": 512,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
    "vocab_size": 512,
}
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64}
GEMMA3 = {
    **LLAMA,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 1024,
}
MIXTRAL = {
    **LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
}
DEEPSEEK = {
    **LLAMA,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": None,
}


def _compressed(**weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
NF4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": "float16",
}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
MXFP4 = {"quant_method": "mxfp4"}

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama in bfloat16": (LLAMA, {}),
    "llama, --dtype half": (LLAMA, {"dtype": "half"}),
    "llama, --dtype float32": (LLAMA, {"dtype": "float32"}),
    "llama, --enforce-eager": (LLAMA, {"enforce_eager": True}),
    "llama, --kv-cache-dtype fp8": (LLAMA, {"kv_cache_dtype": "fp8"}),
    "qwen3 in bfloat16": (QWEN3, {}),
    "gemma3 in bfloat16": (GEMMA3, {}),
    "gemma3, --dtype half": (GEMMA3, {"dtype": "half"}),
    "mixtral in bfloat16": (MIXTRAL, {}),
    "deepseek_v2 in bfloat16": (DEEPSEEK, {}),
    "gptq, 4 bits": ({**LLAMA, "quantization_config": GPTQ}, {"dtype": "half"}),
    "awq, 4 bits": ({**LLAMA, "quantization_config": AWQ}, {"dtype": "half"}),
    "bitsandbytes, NF4": ({**LLAMA, "quantization_config": NF4}, {}),
    "mixtral in gptq, moe_wna16": (
        {**MIXTRAL, "quantization_config": GPTQ},
        {"quantization": "moe_wna16", "dtype": "half"},
    ),
    "compressed-tensors, w4a16": (
        {**LLAMA, "quantization_config": _compressed(num_bits=4, strategy="group", group_size=128)},
        {},
    ),
    "fp8": ({**LLAMA, "quantization_config": FP8}, {}),
    "mxfp4": ({**LLAMA, "quantization_config": MXFP4}, {}),
    "two cards, tensor parallel": (LLAMA, {"tensor_parallel_size": 2}),
    "two cards, pipeline": (LLAMA, {"pipeline_parallel_size": 2}),
}


def stand_in(name: str, capability: str, mebibytes: int, cards: int) -> None:
    """Have NVML tell of these cards, as far as vLLM asks."""
    major, minor = map(int, capability.split("."))
    nvml: Any = importlib.import_module("vllm.third_party.pynvml")
    memory = mebibytes << 20
    nvml.nvmlInit = lambda: None
    nvml.nvmlShutdown = lambda: None
    nvml.nvmlDeviceGetCount = lambda: cards
    nvml.nvmlDeviceGetHandleByIndex = lambda index: index
    nvml.nvmlDeviceGetCudaComputeCapability = lambda handle: (major, minor)
    nvml.nvmlDeviceGetName = lambda handle: name
    nvml.nvmlDeviceGetUUID = lambda handle: f"GPU-{handle}"
    nvml.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(total=memory, free=memory, used=0)
    importlib.import_module("torch.cuda")._device_count_nvml = lambda: cards
    backends: Any = importlib.import_module("triton.backends")
    for backend in backends.backends.values():
        if backend.driver.__name__ == "CudaDriver":
            backend.driver.is_active = staticmethod(lambda: True)


class Warnings(logging.Handler):
    """Keeps what vLLM warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
    handler = Warnings()
    logger = logging.getLogger("vllm")
    logger.addHandler(handler)
    try:
        yield handler.texts
    finally:
        logger.removeHandler(handler)


def resolve(config: dict[str, Any], options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What vLLM says to one configuration."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.attention.selector import get_attn_backend

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with warnings() as texts:
        try:
            made = EngineArgs(
                model=str(folder), skip_tokenizer_init=True, **options
            ).create_engine_config()
            model, cache = made.model_config, made.cache_config
            with set_current_vllm_config(made):
                attention = get_attn_backend(
                    model.get_head_size(),
                    model.dtype,
                    cache.cache_dtype,
                    cache.block_size or 16,
                    use_mla=model.use_mla,
                ).get_name()
        except Exception as error:  # a refusal is what is asked for
            # pydantic puts its own words around the message
            text = str(error).rpartition("Value error, ")[2].partition(" [type=")[0]
            return {"taken": False, "message": text, "warnings": texts}
    return {
        "taken": True,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": model.quantization,
        "attention": attention,
        "executor": made.parallel_config.distributed_executor_backend,
        "compilation": made.compilation_config.mode.name,
        "warnings": texts,
    }


def main(name: str, capability: str, mebibytes: str, cards: str = "1") -> dict[str, Any]:
    stand_in(name, capability, int(mebibytes), int(cards))
    from vllm.platforms import current_platform

    with tempfile.TemporaryDirectory() as folder:
        rows = {
            label: resolve(config, options, Path(folder, str(number)))
            for number, (label, (config, options)) in enumerate(MODELS.items())
        }
    return {
        "platform": type(current_platform).__name__,
        "name": current_platform.get_device_name(),
        "capability": current_platform.get_device_capability().as_version_str(),
        "cards": current_platform.device_count(),
        "configurations": rows,
    }


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # vLLM's log
        document = main(*sys.argv[1:])
    json.dump(document, sys.stdout, indent=1)
