"""Own Triton kernels in the manner of what PyTorch, vLLM and people write.

Import this only where Triton can be imported. Each kernel is data (`Kernel`) around a function that
can also be launched with tensors: every pointer is to a contiguous tensor, sizes are in elements.
"""

from . import (
    atomics,
    attention,
    elementwise,
    inductor,
    layout,
    matmul,
    quantized,
    reduction,
    serving,
)
from .spec import VERSION, Kernel

_FILES = (elementwise, reduction, layout, matmul, attention, quantized, serving, atomics, inductor)

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel for file in _FILES for kernel in file.corpus.kernels if kernel.supported
}
if len(KERNELS) != sum(kernel.supported for file in _FILES for kernel in file.corpus.kernels):
    raise ValueError("two kernels of the corpus have the same name")

__all__ = ["KERNELS", "VERSION", "Kernel"]
