"""Cells that must not compile, each with the reason. Everything else must."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Pair = tuple[int, int]


@dataclass(frozen=True)
class Refusal:
    """Kernels with a tag, or by name, are refused below a capability with a certain message."""

    below: Pair
    message: str
    reason: str
    tag: str = ""
    kernels: frozenset[str] = frozenset()

    def covers(self, kernel: str, tags: Iterable[str], capability: Pair) -> bool:
        mine = kernel in self.kernels or (self.tag != "" and self.tag in tags)
        return mine and capability < self.below


REFUSALS = (
    Refusal(
        below=(8, 9),
        tag="fp8e4nv",
        message="fp8e4nv not supported",
        reason="fp8e4nv (e4m3) is an 8.9 type: PTX ISA, cvt with .e4m3x2, has it from sm_89 on, and"
        " Triton refuses the type below, in memory too. Use fp8e5.",
    ),
)


def refusal(kernel: str, tags: Iterable[str], capability: Pair) -> Refusal | None:
    """Why this cell must not compile, or None if it must."""
    tags = list(tags)
    return next((rule for rule in REFUSALS if rule.covers(kernel, tags, capability)), None)
