"""Compile the programs for a capability without a GPU, down to cubins."""

from __future__ import annotations

import copy
import re
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import fake_device
from .programs import Program


@dataclass
class Kernel:
    """What became of one Triton kernel. Sizes in bytes, registers a thread."""

    name: str
    ok: bool
    error: str | None = None
    out_of_resources: bool = False
    shared: int | None = None
    registers: int | None = None
    stack: int | None = None


@dataclass
class Outcome:
    """What became of a program.

    ``status``: ``compiled`` (every kernel it uses has a cubin), ``eager`` (Inductor left the whole
    program to eager), ``failed``, ``not run`` (it needs a GPU). Kernels are all that were tried,
    candidates of templates among them: one that does not fit, or does not compile, need not be one
    that is used.
    """

    program: str
    status: str
    seconds: float
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)


def _first_lines(error: BaseException, lines: int = 6) -> str:
    text = [line.strip() for line in f"{type(error).__name__}: {error}".splitlines()]
    told = [line for line in text if line.startswith(("ptxas ", "error:")) or "fatal" in line]
    return " | ".join((told or [line for line in text if line])[:lines])[:1000]


def _resources(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers a thread and bytes of stack of the one kernel in a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (None, None)


class Recorder:
    """Stands before ``triton.compile`` and writes down what it did."""

    def __init__(self) -> None:
        import triton

        self.kernels: list[Kernel] = []
        self._compile = triton.compile
        triton.compile = self

    def __call__(self, src: Any, *args: Any, **kwargs: Any) -> Any:
        from triton.runtime.errors import OutOfResources

        name = getattr(src, "name", None) or src.fn.__name__
        try:
            made = self._compile(src, *args, **kwargs)
        except Exception as error:
            self.kernels.append(
                Kernel(name, False, _first_lines(error), isinstance(error, OutOfResources))
            )
            raise
        registers, stack = _resources(made.asm["cubin"])
        kernel = Kernel(name, True, shared=made.metadata.shared)
        kernel.registers, kernel.stack = registers, stack
        self.kernels.append(kernel)
        return made


def _lower(graph: Any, inputs: Any, options: dict[str, Any]) -> None:
    """Have Inductor compile a graph; what it makes is not run."""
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses.fake_tensor import FakeTensor

    settings = {
        "force_disable_caches": True,
        "compile_threads": 1,
        "joint_graph_constant_folding": False,  # it would run operators on the device
        **options,
    }
    # Dynamo's own context has a FakeTensorMode that is not the one of the inputs
    context = TracingContext(next(t.fake_mode for t in inputs if isinstance(t, FakeTensor)))
    with tracing(context):
        compile_fx(copy.deepcopy(graph), inputs, config_patches=settings)


def _backend(options: dict[str, Any]) -> Callable[..., Any]:
    """A backend for torch.compile that compiles with Inductor, and returns the graph as it was:
    that can be run with FakeTensors."""

    def backend(graph: Any, inputs: Any) -> Any:
        placeholders = graph.graph.find_nodes(op="placeholder")
        _lower(graph, [node.meta["example_value"] for node in placeholders], options)
        return graph.forward

    return backend


def _training_graph(program: Program) -> Any:
    """Forward and backward pass of a program in one graph, for the device "cuda".

    Autograd asks the CUDA driver for a stream as soon as a tensor of that device needs a gradient,
    and ends the process if there is none. So the graph is traced on the CPU and moved.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    inputs = program.inputs("cpu")

    def step(*given: torch.Tensor) -> Any:
        leaves = [
            t.detach().requires_grad_() if t.is_floating_point() else t.detach() for t in given
        ]
        out = program.function(*leaves)
        wanted = [t for t in leaves if t.requires_grad]
        weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
        total = (out.float() * weights).sum()
        return out.detach(), *torch.autograd.grad(total, wanted)

    graph = make_fx(step)(*inputs)
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    graph.recompile()
    return graph


def compile_program(program: Program, recorder: Recorder) -> Outcome:
    """Compile one program, forward only or as a training step, and say what became of it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    if program.needs_gpu:
        return Outcome(program.name, "not run", 0.0, program.needs_gpu)
    recorder.kernels = []
    torch._dynamo.reset()
    start = time.monotonic()
    outcome = Outcome(program.name, "compiled", 0.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                inputs = program.inputs("cuda")
                if program.train:
                    with torch.enable_grad():
                        graph = _training_graph(program)
                    _lower(graph, list(inputs), program.options)
                else:
                    compiled = torch.compile(
                        program.function, backend=_backend(program.options), fullgraph=False
                    )
                    compiled(*inputs)
        except Exception as error:
            outcome.status, outcome.error = "failed", _first_lines(error)
    outcome.seconds = round(time.monotonic() - start, 2)
    outcome.kernels = recorder.kernels
    outcome.warnings = sorted({str(w.message).strip() for w in caught})
    if outcome.status == "compiled" and not outcome.kernels:
        outcome.status = "eager"
    return outcome


def start(capability: tuple[int, int]) -> Recorder:
    """Pretend a device of this capability and begin to record."""
    fake_device.install(capability)
    return Recorder()
