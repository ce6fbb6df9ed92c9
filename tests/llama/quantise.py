"""Whether llama-quantize gives each tensor the format that the planner says it gets.

    python -m tests.llama.quantise --llama-quantize PROGRAM --work FOLDER

Needs: gguf, numpy, llama-cpp-tools as built here, and a minute.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from legacy_cuda.catalog.models import find_mix, mixes
from legacy_cuda.planner import gguf, shapes
from tests.llama.shapes import write
from tests.llama.tiny import TINY


def main() -> int:
    """Quantise every tiny model in every mix; 1 where a format differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-quantize", required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    tensors = wrong = 0
    for known in TINY.values():
        source = options.work / f"{known.name}-F16.gguf"
        write(known, find_mix("F16"), source)
        for mix in mixes().values():
            if mix.format.values == 1:
                continue
            result = options.work / "quantised.gguf"
            name = {"MXFP4": "MXFP4_MOE"}.get(mix.name, mix.name)
            done = subprocess.run(
                [options.llama_quantize, str(source), str(result), name, "2"],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                print(f"{known.name} {mix.name}: {done.stderr[-500:]}")
                wrong += 1
                continue
            found = {tensor.name: tensor for tensor in gguf.read(result).tensors}
            for tensor in shapes.model_of(known, mix).tensors:
                tensors += 1
                made = found[tensor.name].format.name
                if made != tensor.format.name:
                    wrong += 1
                    print(f"{known.name} {mix.name} {tensor.name}: {made}, {tensor.format.name}")
            result.unlink()
        source.unlink()
    print(f"{tensors} tensors compared, {wrong} of another format")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
