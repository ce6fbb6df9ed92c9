"""What llama.cpp says that a model takes, backend by backend, as JSON.

    python memory.py MODEL --cells N --sequences N [--keys TYPE] [--values TYPE] [--batch N]
        [--outputs N] [--flash -1|0|1] [--unified] [--layers N] [--split A,B]

Loads the model and makes a context, computes nothing, and reads the sizes from llama.cpp's own log,
in MiB with the two digits it prints; the lines themselves go to standard error.
``LLAMA_CPP_LIB_PATH`` names its libraries: with those of ``placements.py`` the GPUs are stand-ins,
of which ``STANDIN_DEVICES`` tells.

Needs: llama-cpp-python; nothing else, so that it runs where pytest does not.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import sys
from typing import Any

KINDS = ("model", "KV", "RS", "compute")


def sizes(log: str) -> dict[str, dict[str, float]]:
    """MiB by kind and backend."""
    found: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        for backend, size in re.findall(rf"(\S+)\s+{kind} buffer size =\s+([\d.]+) MiB", log):
            found[kind][backend] = round(found[kind].get(backend, 0.0) + float(size), 2)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Load, make a context, and say what it took."""
    import llama_cpp

    lines: list[str] = []

    # llama_cpp has no types; where it is not installed there is nothing to ignore
    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def log(_level: int, text: bytes, _data: object) -> None:
        lines.append(text.decode(errors="replace"))

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model_settings = llama_cpp.llama_model_default_params()
    model_settings.n_gpu_layers = options.layers
    if options.split:
        shares = [float(share) for share in options.split.split(",")]
        model_settings.tensor_split = (ctypes.c_float * 128)(*shares)
    model = llama_cpp.llama_model_load_from_file(options.model.encode(), model_settings)
    if not model:
        sys.exit("".join(lines[-5:]))
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max = options.cells, options.sequences
    settings.n_batch, settings.n_ubatch = 2048, options.batch
    settings.type_k, settings.type_v = options.keys, options.values
    settings.flash_attn_type, settings.kv_unified = options.flash, options.unified
    settings.n_outputs_max = options.outputs or options.sequences
    settings.swa_full = False  # as the programs have it; the library alone would keep all
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        sys.exit("".join(lines[-5:]))
    log_text = "".join(lines)
    for line in log_text.splitlines():
        if "buffer size" in line or "Flash Attention" in line:
            print(line, file=sys.stderr)
    found = sizes(log_text)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


def main() -> int:
    """Measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--cells", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--keys", type=int, default=1, help="ggml's number of the type")
    parser.add_argument("--values", type=int, default=1)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--outputs", type=int, default=0, help="0: one for each sequence")
    parser.add_argument("--flash", type=int, default=-1)
    parser.add_argument("--unified", action="store_true")
    parser.add_argument("--layers", type=int, default=-1)
    parser.add_argument("--split")
    json.dump(measure(parser.parse_args()), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
