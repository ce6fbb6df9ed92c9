"""The rules of `legalize`, in the order in which they are asked."""

from __future__ import annotations

from . import (
    atomics,
    control,
    conversions,
    copies,
    half,
    hints,
    integer,
    memory,
    unavailable,
    warp,
)
from .base import Context, Rule

__all__ = ["RULES", "Context", "Rule"]

# What cannot be had is said first. Hints go before orders and orders before types, so that each
# rule sees a statement that only it is about.
RULES: tuple[Rule, ...] = (
    *unavailable.RULES,
    *hints.RULES,
    *memory.RULES,
    *atomics.RULES,
    *conversions.RULES,
    *half.RULES,
    *integer.RULES,
    *warp.RULES,
    *copies.RULES,
    *control.RULES,
)
