"""llama.cpp's programs, started in place of Python; their libraries are llama-cpp-python's."""

import os
import sys
from pathlib import Path
from typing import NoReturn


def _start(name: str) -> NoReturn:
    program = str(Path(__file__).resolve().parent / "bin" / name)
    os.execv(program, [program, *sys.argv[1:]])


def llama_bench() -> NoReturn:
    """Measure speed."""
    _start("llama-bench")


def llama_cli() -> NoReturn:
    """Talk to a model in a terminal."""
    _start("llama-cli")


def llama_perplexity() -> NoReturn:
    """Measure how well a model predicts a text."""
    _start("llama-perplexity")


def llama_quantize() -> NoReturn:
    """Quantise a model."""
    _start("llama-quantize")


def llama_server() -> NoReturn:
    """Serve a model over HTTP."""
    _start("llama-server")
