"""Run inside vLLM's environment: whether it takes what `legacy-cuda serve --json` says.

    python arguments.py "Tesla P40" 6.1 24576 CARDS FILE ...

Cards as in ``configurations.py``, stood in for. Each file is a document of ``serve``; its command
goes through vLLM's own parser, and what comes out is made a configuration. One JSON document says
for each what it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from configurations import stand_in, warnings


def taken(document: dict[str, Any]) -> dict[str, Any]:
    """What vLLM makes of one document."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    words = document["command"][1:]
    assert words.pop(0) == "serve"
    os.environ.update(document["environment"])
    with warnings() as texts:
        try:
            parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
            parsed.model = parsed.model_tag
            validate_parsed_serve_args(parsed)
            parsed.skip_tokenizer_init = True  # the folders have none
            made = AsyncEngineArgs.from_cli_args(parsed).create_engine_config()
        except Exception as error:  # a refusal is what is asked for
            text = str(error).rpartition("Value error, ")[2].partition(" [type=")[0]
            return {"taken": False, "message": text, "warnings": texts}
    return {
        "taken": True,
        "dtype": str(made.model_config.dtype).removeprefix("torch."),
        "context": made.model_config.max_model_len,
        "parallel": made.scheduler_config.max_num_seqs,
        "gpus": made.parallel_config.world_size,
        "share": made.cache_config.gpu_memory_utilization,
        "url": f"http://{parsed.host}:{parsed.port}",
        "name": parsed.served_model_name,
        "warnings": texts,
    }


def main(name: str, capability: str, mebibytes: str, cards: str, *files: str) -> dict[str, Any]:
    stand_in(name, capability, int(mebibytes), int(cards))
    return {file: taken(json.loads(Path(file).read_text())) for file in files}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # vLLM's log
        document = main(*sys.argv[1:])
    json.dump(document, sys.stdout, indent=1)
