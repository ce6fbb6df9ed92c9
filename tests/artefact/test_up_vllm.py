"""``legacy-cuda up --engine vllm`` for real: installed, audited, and asked what it can do.

Takes the wheel from the cache or from LEGACY_CUDA_INDEX, else compiles it: an hour with one
processor. No GPU is needed; what vLLM makes of cards it asks NVML for, which is stood in for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from legacy_cuda.catalog.locks import load_lock
from legacy_cuda.fetch import uv_binary

pytestmark = pytest.mark.large

ASK = Path(__file__).parents[1] / "vllm" / "configurations.py"
ENGINE = ASK.with_name("engine")
# a file of safetensors with one tensor of eight values
_HEAD = b'{"w":{"dtype":"BF16","shape":[8],"data_offsets":[0,16]}}'
WEIGHTS = len(_HEAD).to_bytes(8, "little") + _HEAD + bytes(16)
CARDS = {
    "p40": ("Tesla P40", "6.1", "24576"),
    "p4": ("Tesla P4", "6.1", "7680"),
    "p100": ("Tesla P100-PCIE-16GB", "6.0", "16384"),
    "2xp40": ("Tesla P40", "6.1", "24576", "2"),
}


@dataclass
class Made:
    """An environment that ``up`` made, and what it said about it."""

    folder: Path
    document: dict[str, Any]

    def run(self, *words: str | Path) -> str:
        done = subprocess.run(
            [self.folder / "bin" / words[0], *words[1:]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    home = tmp_path_factory.mktemp("up")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "legacy_cuda", "up", "p40", "--engine", "vllm", "--json"],
            env={**os.environ, "LEGACY_CUDA_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield Made(home / "p40-vllm", json.loads(done.stdout))
    finally:
        shutil.rmtree(home)


def test_it_is_proven(made: Made) -> None:
    document = made.document
    assert document["good"]
    (verdict,) = document["audit"]
    own = {item["path"]: item for item in verdict["libraries"] if item["path"][:5] == "vllm/"}
    assert set(own) == {"vllm/_C.abi3.so", "vllm/_moe_C.abi3.so"}
    for item in own.values():
        assert item["sass"] == item["containers"] > 0
    assert document["check"]["command"] == document["packages"]["vllm"]
    # torch says +cu126 of itself, its patched wheel +legacy.1
    assert (
        Version(document["check"]["torch"]).public == Version(document["packages"]["torch"]).public
    )


def test_the_command_says_its_version(made: Made) -> None:
    assert made.run("vllm", "--version").split()[-1] == made.document["packages"]["vllm"]


def test_everything_that_is_required_is_there(made: Made) -> None:
    """As uv sees it; and the lock is made from what vLLM requires, and of the rest only pip."""
    check = [uv_binary(), "pip", "check", "--python", made.folder / "bin" / "python"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (metadata,) = made.folder.glob("lib/python3*/site-packages/vllm-*.dist-info/METADATA")
    lines = HeaderParser().parsestr(metadata.read_text(encoding="utf-8")).get_all("Requires-Dist")
    lock = load_lock("vllm-0.14.0")
    wanted = {
        (canonicalize_name(item.name), frozenset(item.extras))
        for item in map(Requirement, lines or ())
        if any(
            item.marker is None or item.marker.evaluate({"extra": "", "python_version": python})
            for python in lock.pythons
        )
    }
    roots = {
        (canonicalize_name(item.name), frozenset(item.extras))
        for item in map(Requirement, lock.roots)
    }
    assert roots == {*wanted, ("pip", frozenset())}


def test_there_is_one_cuda(made: Made) -> None:
    names = set(made.document["packages"])
    assert {name for name in names if "cuda-runtime" in name} == {"nvidia-cuda-runtime-cu12"}
    assert not [name for name in names if name.endswith(("-cu11", "-cu13")) or "cupy" in name]
    site = next(made.folder.glob("lib/python3*/site-packages"))
    assert len(list(site.rglob("libcudart.so*"))) == 1


def test_it_serves(made: Made, tmp_path: Path) -> None:
    """``vllm serve`` without a GPU: OpenAI's API, streams, chat, a mixed load. The worker gives the
    tokens that are expected, and makes the others up: of values this shows nothing."""
    made.run("python", ENGINE / "models.py", tmp_path, "llama")
    output, log = tmp_path / "served.json", tmp_path / "server.log"
    command = [ENGINE / "served.py", tmp_path / "llama", "--without-gpu", "--seconds", "20"]
    made.run("python", *command, "--output", output, "--log", log)
    document = json.loads(output.read_text())
    assert document["good"]
    assert all(document["load"]["requests"].values())


def test_finished_requests_are_freed_at_once(made: Made) -> None:
    """None waits for Python's collector of cycles, which under load is memory that grows."""
    lines = made.run("python", ENGINE / "garbage.py", "12000").splitlines()
    told = [line for line in lines if " requests: " in line]
    assert len(told) == 3 and told[0].startswith("10000 requests: ")
    assert all(line.endswith(", 0 unreachable") for line in told)


@pytest.mark.parametrize("card", CARDS)
def test_what_it_makes_of_configurations(made: Made, card: str) -> None:
    name, capability, *_ = CARDS[card]
    document = json.loads(made.run("python", ASK, *CARDS[card]))
    two = card == "2xp40"
    assert (document["platform"], document["name"]) == ("NvmlCudaPlatform", name)
    assert (document["capability"], document["cards"]) == (capability, 2 if two else 1)
    rows = document["configurations"]
    taken = {label: row for label, row in rows.items() if row["taken"]}
    assert {row["attention"] for row in taken.values()} == {"TRITON_ATTN"}
    for label, dtype in (
        ("llama in bfloat16", "float16"),
        ("llama, --dtype half", "float16"),
        ("llama, --dtype float32", "float32"),
        ("qwen3 in bfloat16", "float16"),
        ("gemma3 in bfloat16", "float32"),
        ("mixtral in bfloat16", "float16"),
    ):
        assert taken[label]["dtype"] == dtype
    assert any("65504" in text for text in taken["llama in bfloat16"]["warnings"])
    for label, quantization in (
        ("gptq, 4 bits", "gptq"),
        ("awq, 4 bits", "awq"),
        ("bitsandbytes, NF4", "bitsandbytes"),
        ("mixtral in gptq, moe_wna16", "moe_wna16"),
        ("compressed-tensors, w4a16", "compressed-tensors"),
    ):
        assert taken[label]["quantization"] == quantization
    refused = {label: row["message"] for label, row in rows.items() if not row["taken"]}
    for label in ("fp8", "mxfp4"):
        assert "is not supported for the current GPU" in refused.pop(label)
    assert "float16" in refused.pop("gemma3, --dtype half")
    assert "compute capability not supported" in refused.pop("deepseek_v2 in bfloat16")
    assert set(refused) == (set() if two else {label for label in rows if "two cards" in label})
    if two:
        assert taken["two cards, tensor parallel"]["executor"] == "mp"


def test_what_serve_says_is_what_vllm_takes(made: Made, tmp_path: Path) -> None:
    """The arguments go through vLLM's own parser, and what serve refuses vLLM refuses too."""
    sys.path.insert(0, str(ASK.parent))
    try:
        from configurations import MODELS
    finally:
        sys.path.remove(str(ASK.parent))
    expected = {}
    for number, (config, options) in enumerate(MODELS.values()):
        if options or config["model_type"] == "deepseek_v2":  # serve does not know its shape
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(WEIGHTS)
        program = made.folder / "bin" / "vllm"
        command = [*(sys.executable, "-m", "legacy_cuda", "serve", str(folder), "--gpu", "p40")]
        command += ["--context", "1024", "--parallel", "3", "--program", str(program), "--json"]
        first = subprocess.run(command, capture_output=True, text=True, check=False)
        done = subprocess.run([*command, "--anyway"], capture_output=True, text=True, check=True)
        path = tmp_path / f"{number}.json"
        path.write_text(done.stdout)
        expected[str(path)] = first.returncode == 0
    asked = made.run("python", ASK.with_name("arguments.py"), *CARDS["p40"], "1", *expected)
    said = json.loads(asked)
    assert {path: row["taken"] for path, row in said.items()} == expected
    assert sum(expected.values()) > 3 and not all(expected.values())
    for row in said.values():
        if row["taken"]:
            assert (row["context"], row["parallel"], row["gpus"]) == (1024, 3, 1)
            assert row["url"] == "http://127.0.0.1:8000"
