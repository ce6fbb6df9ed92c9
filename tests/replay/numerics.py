"""What the numerical tests share: masks, comparisons, where they run."""

from __future__ import annotations

from typing import Any

import pytest
from where import COMPILE_ONLY, INTERPRETED

torch = pytest.importorskip("torch", reason="skipped: no PyTorch here")
triton = pytest.importorskip("triton", reason="skipped: no Triton here")

VERSION = tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:2])

MASKS = ("all", "none", "one", "alternating", "random", "warps")


def mask_of(kind: str, size: int) -> Any:
    """int8 ones and zeros: which of ``size`` lanes take part."""
    lanes = torch.arange(size)
    if kind == "all":
        found = lanes >= 0
    elif kind == "none":
        found = lanes < 0
    elif kind == "one":
        found = lanes == int(torch.randint(size, ()))
    elif kind == "alternating":
        found = lanes % 2 == 1
    elif kind == "random":
        found = torch.rand(size) < 0.5
    elif kind == "warps":
        found = lanes // 32 % 2 == 0
    else:
        raise ValueError(kind)
    return found.to(torch.int8)


def patched() -> bool:
    """Whether this Triton is one of our patched wheels."""
    from pathlib import Path

    return (Path(triton.__file__).parent / "backends" / "nvidia" / "legacy").is_dir()


def capability() -> tuple[int, int]:
    """What kernels are compiled for; (0, 0) when they are interpreted."""
    if INTERPRETED:
        return (0, 0)
    arch = int(triton.runtime.driver.active.get_current_target().arch)
    return divmod(arch, 10)


def needs(dtype: Any) -> None:
    """Skip what this Triton or this capability does not offer."""
    if dtype is getattr(torch, "float8_e4m3fn", None) and not INTERPRETED:
        old = capability() < (8, 9)
        if old and not (patched() and capability() < (7, 5)):
            pytest.skip("skipped: e4m3 wants capability 8.9 or a patched Triton")


def interpreter_lacks(condition: bool, what: str) -> None:
    """Skip in Triton's interpreter what it cannot do or does wrong."""
    if INTERPRETED and condition:
        pytest.skip(f"skipped: the interpreter has no {what}")


def same(found: Any, expected: Any) -> None:
    """Equal in every bit, but that any NaN is as good as another."""
    if COMPILE_ONLY:
        return
    found, expected = found.cpu(), expected.cpu()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if found.dtype.is_floating_point:
        wide, wanted = found.double(), expected.double()
        wrong = ~((wide == wanted) & (wide.signbit() == wanted.signbit()))
        wrong &= ~(wide.isnan() & wanted.isnan())
    else:
        wrong = found != expected
    if wrong.any():
        where = wrong.reshape(-1).nonzero().reshape(-1)
        shown = [
            (int(index), found.reshape(-1)[index].item(), expected.reshape(-1)[index].item())
            for index in where[:8]
        ]
        raise AssertionError(
            f"{len(where)} of {wrong.numel()} differ, (index, found, wanted): {shown}"
        )


def close(found: Any, expected: Any, bound: Any) -> None:
    """Within ``bound`` (absolute, a number or a tensor) of a reference in higher precision."""
    if COMPILE_ONLY:
        return
    error = (found.double().cpu() - expected.double().cpu()).abs()
    limit = bound.double().cpu() if hasattr(bound, "cpu") else torch.full_like(error, bound)
    assert found.isfinite().all() or not expected.isfinite().all()
    worst = (error / limit.clamp_min(1e-300)).max().item() if error.numel() else 0.0
    assert worst <= 1, f"error is {worst:.3g} times the bound"


def relative(found: Any, expected: Any, bound: float) -> None:
    """The norm of the error relative to the norm of the reference."""
    if COMPILE_ONLY:
        return
    wanted = expected.double().cpu()
    error = (found.double().cpu() - wanted).norm() / wanted.norm()
    assert error <= bound, f"relative error {error:.3g}, allowed {bound:.3g}"


def epsilon(dtype: Any) -> float:
    """The distance from 1 to the next number of a type."""
    return float(torch.finfo(dtype).eps)
