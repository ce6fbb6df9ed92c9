"""What a model says of a fixed text, computed by the llama.cpp that is installed, as JSON.

    python tokens.py MODEL ... [--layers N] [--flash-attention] [--kv TYPE] > FILE
    python tokens.py --compare ONE OTHER [--tolerance NATS]

For each model: the mean negative log-likelihood of the text (its exponential is the perplexity),
the logits at the last position, and the tokens that greedy decoding goes on with. ``--compare``
says by how much two such files differ and exits 1 where it is more than the tolerance, or where
greedy tokens differ at a place where the best two were further apart than what rounding explains.

Needs: llama-cpp-python, numpy; nothing else, so that it runs where pytest does not.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

TEXT = (
    "The quick brown fox jumps over the lazy dog, and then the dog runs after the fox. "
    "Numbers: 3.14159, 2.71828, 1729. Umlauts and more: \u00e4\u00f6\u00fc, \u65e5\u672c\u8a9e. "
) * 3
CONTEXT = 1024
STEPS = 64


def speak(path: Path, layers: int, flash: bool, kv: int | None) -> dict[str, Any]:
    """What the model in this file says."""
    import llama_cpp
    import numpy

    kinds = {} if kv is None else {"type_k": kv, "type_v": kv}
    model = llama_cpp.Llama(
        str(path), n_gpu_layers=layers, n_ctx=CONTEXT, n_batch=256, n_ubatch=256, seed=1,
        logits_all=True, flash_attn=flash, verbose=False,
        n_threads=len(os.sched_getaffinity(0)), **kinds,
    )  # fmt: skip
    tokens = model.tokenize(TEXT.encode(), add_bos=False)
    model.eval(tokens)
    logits = numpy.array(model.scores[: len(tokens)], dtype=numpy.float64)
    greatest = logits.max(axis=1, keepdims=True)
    total = greatest[:, 0] + numpy.log(numpy.exp(logits - greatest).sum(axis=1))
    likely = [float(total[at] - logits[at, token]) for at, token in enumerate(tokens[1:])]
    last = logits[-1]
    greedy: list[int] = []
    gaps: list[float] = []
    scores = last
    for _ in range(STEPS):
        order = numpy.argsort(scores)
        greedy.append(int(order[-1]))
        gaps.append(float(scores[order[-1]] - scores[order[-2]]))
        model.eval([greedy[-1]])
        scores = numpy.array(model.scores[model.n_tokens - 1], dtype=numpy.float64)
    return {
        "tokens": len(tokens),
        "loss": sum(likely) / len(likely),
        "logits": [round(float(value), 6) for value in last],
        "greedy": greedy,
        "gaps": gaps,
    }


def backends() -> list[str]:
    """Names of the devices that llama.cpp sees."""
    from llama_cpp import _ggml

    library = _ggml.libggml
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    base = ctypes.CDLL(str(Path(library._name).with_name("libggml-base.so")))
    base.ggml_backend_dev_description.restype = ctypes.c_char_p
    base.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    return [
        base.ggml_backend_dev_description(library.ggml_backend_dev_get(at)).decode()
        for at in range(library.ggml_backend_dev_count())
    ]


def compare(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> int:
    """Print by how much they differ; 1 where it is too much."""
    bad = 0
    print(f"{'model':<24} {'perplexity':>12} {'other':>12} {'loss':>10} {'logits':>10}  greedy")
    if set(one["models"]) != set(other["models"]):
        print("not the same models")
        return 1
    for name, mine in one["models"].items():
        theirs = other["models"][name]
        loss = abs(mine["loss"] - theirs["loss"])
        logits = max(abs(a - b) for a, b in zip(mine["logits"], theirs["logits"], strict=True))
        places = [at for at in range(STEPS) if mine["greedy"][at] != theirs["greedy"][at]]
        said = f"{STEPS} equal"
        wrong = loss > tolerance
        if places:
            gap = min(mine["gaps"][places[0]], theirs["gaps"][places[0]])
            said = f"equal to {places[0]}, where the best two are {gap:.3f} apart"
            wrong = wrong or gap > 2 * logits
        bad += wrong
        print(
            f"{name:<24} {math.exp(mine['loss']):>12.3f} {math.exp(theirs['loss']):>12.3f} "
            f"{loss:>10.2e} {logits:>10.2e}  {said}{'  TOO MUCH' if wrong else ''}"
        )
    return 1 if bad else 0


def main() -> int:
    """Speak, or compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--layers", type=int, default=99)
    parser.add_argument("--flash-attention", action="store_true")
    parser.add_argument("--kv", type=int, help="ggml's number of the type of keys and values")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--tolerance", type=float, default=0.02, help="of the loss, in nats")
    options = parser.parse_args()
    if options.compare:
        one, other = (json.loads(path.read_text()) for path in options.files)
        return compare(one, other, options.tolerance)
    said = {
        path.stem: speak(path, options.layers, options.flash_attention, options.kv)
        for path in options.files
    }
    json.dump({"backends": backends(), "models": said}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
