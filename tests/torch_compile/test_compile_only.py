"""torch.compile for old capabilities, down to cubins, without a GPU.

Needs an environment with the patched torch 2.7.1 and Triton 3.3.1: LEGACY_CUDA_TORCH_PYTHON names
its Python, or ``--large`` has ``legacy-cuda up p40`` make one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from legacy_cuda import paths

ROOT = Path(__file__).parents[2]
SHARED = 48 << 10  # bytes a block, below 7.0


@pytest.fixture(scope="session")
def torch_python(pytestconfig: pytest.Config) -> str:
    if python := os.environ.get("LEGACY_CUDA_TORCH_PYTHON"):
        return python
    if not pytestconfig.getoption("--large"):
        pytest.skip("downloads gigabytes of wheels: run with --large")
    target = paths.cache_directory() / "tests" / "p40"
    command = [sys.executable, "-m", "legacy_cuda", "up", "p40", "--path", str(target)]
    made = subprocess.run([*command, "--recreate"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-3000:]
    return str(target / "bin" / "python")


def _run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [python, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)


# the templates of max_autotune are compiled for one capability: each has some forty candidates
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("capability", "only"),
    [
        ("6.1", ()),
        ("6.0", ("transformer", "scatter", "flex")),
        ("5.2", ("scatter", "gelu", "cumsum", "flex")),
    ],
)
def test_every_kernel_becomes_a_cubin(
    torch_python: str, capability: str, only: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "seen.json"
    arguments = ["--capability", capability, "--compile-only", "--json", str(out)]
    for text in only:
        arguments.append(f"--only={text}")
    run = _run(torch_python, "-m", "tests.torch_compile", *arguments)
    assert out.exists(), run.stderr[-3000:]
    document: dict[str, Any] = json.loads(out.read_text())
    assert document["triton_legacy"], "this Triton is not patched"
    programs = [p for p in document["programs"] if p["status"] != "not run"]
    assert not {p["program"]: p["error"] for p in programs if p["status"] != "compiled"}
    assert len(programs) >= 5
    kernels = [kernel for program in programs for kernel in program["kernels"]]
    # a candidate of a template may need more than there is; nothing may fail for another reason
    assert [k for k in kernels if not k["ok"] and not k["out_of_resources"]] == []
    assert all(k["shared"] <= SHARED for k in kernels if k["ok"])
    assert run.returncode == 0


def _one(setup: str, capability: str, program: str) -> str:
    return f"""
import os
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
from tests.torch_compile import compile_only, programs
recorder = compile_only.start({tuple(map(int, capability.split(".")))})
{setup}
program = next(p for p in programs.PROGRAMS if p.name == "{program}")
outcome = compile_only.compile_program(program, recorder)
print(outcome.status, len(outcome.kernels), outcome.error, *outcome.warnings)
"""


_UNPATCHED = """
import torch.utils._triton, torch._inductor.compile_fx
torch.utils._triton.has_legacy_triton = lambda: False
torch._inductor.compile_fx.has_legacy_triton = lambda: False
"""


@pytest.mark.parametrize(
    ("setup", "capability", "advice"),
    [
        (_UNPATCHED, "6.1", "legacy-cuda build triton"),
        ("", "3.7", "no code for older devices"),
    ],
)
def test_refused_with_advice(torch_python: str, setup: str, capability: str, advice: str) -> None:
    run = _run(torch_python, "-c", _one(setup, capability, "gelu-fp16"))
    assert run.stdout.startswith("failed 0 GPUTooOldForTriton"), run.stderr[-3000:]
    assert advice in run.stdout


def test_bfloat16_is_compiled_with_a_warning(torch_python: str) -> None:
    run = _run(torch_python, "-c", _one("", "6.1", "gelu-bf16"))
    assert run.stdout.startswith("compiled 2"), run.stderr[-3000:]
    assert "no faster than float32" in run.stdout


def test_bfloat16_is_left_to_eager_with_an_unpatched_triton(torch_python: str) -> None:
    run = _run(torch_python, "-c", _one(_UNPATCHED, "7.0", "gelu-bf16"))
    assert run.stdout.startswith("eager 0"), run.stdout + run.stderr[-3000:]
