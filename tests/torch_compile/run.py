"""Run the programs on a real device: compiled against eager, the same inputs for both."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from .programs import Program


@dataclass
class Run:
    """What a program gave. ``status``: ``ran`` (compiled equals eager within the program's
    tolerance), ``differs``, ``eager`` (nothing of it was compiled), ``failed``.

    ``errors`` has one number for each result: the greatest difference from eager, as a fraction of
    the largest absolute value of eager's.
    """

    program: str
    status: str
    seconds: float
    kernels: int = 0
    errors: list[float] = field(default_factory=list)
    error: str | None = None


def _results(
    program: Program, function: Any, given: tuple[torch.Tensor, ...]
) -> list[torch.Tensor]:
    leaves = [
        t.detach().clone().requires_grad_(program.train and t.is_floating_point()) for t in given
    ]
    out = function(*leaves)
    outputs = list(out) if isinstance(out, tuple) else [out]
    if program.train:
        wanted = [t for t in leaves if t.requires_grad]
        # a weight for each element: the sum of a normalised tensor has no gradient
        weights = torch.linspace(-1, 1, outputs[0].numel(), device=out.device)
        total = (outputs[0].float() * weights.view(outputs[0].shape)).sum()
        outputs += torch.autograd.grad(total, wanted)
    return [t.detach() for t in outputs]


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The greatest difference as a fraction of the largest expected value; infinite if the shapes
    or types differ, or if one has a NaN or infinity that the other has not."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.numel():
        return 0.0
    a, b = found.double(), expected.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite):
        return float("inf")
    difference = (a[finite] - b[finite]).abs().max().item() if finite.any() else 0.0
    scale = b[finite].abs().max().item() if finite.any() else 0.0
    return difference / scale if scale else difference


def run_program(program: Program, device: str) -> Run:
    """Compile and run one program, and compare with eager."""
    from torch._inductor import metrics

    torch._dynamo.reset()
    metrics.reset()
    # cuDNN's default; eager would be the less exact one where the GPU has it
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    start = time.monotonic()
    run = Run(program.name, "ran", 0.0)
    try:
        inputs = program.inputs(device)
        expected = _results(program, program.function, inputs)
        compiled = torch.compile(program.function, options=program.options or None)
        found = _results(program, compiled, inputs)
        run.errors = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
        run.kernels = metrics.generated_kernel_count
    except Exception as error:
        run.status, run.error = "failed", f"{type(error).__name__}: {error}"[:1000]
    else:
        if not all(error <= program.tolerance for error in run.errors):
            run.status = "differs"
        elif not run.kernels:
            run.status = "eager"
    run.seconds = round(time.monotonic() - start, 2)
    return run
