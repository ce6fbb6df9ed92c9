"""Hints for caches. They say nothing about values, so they go."""

from __future__ import annotations

from ..ptx import Instruction, Opcode
from .base import Capability, Context, Rule, removed

_ACCESS = frozenset({"ld", "st", "atom", "red"})


def _needs_eviction(opcode: Opcode) -> Capability | None:
    if any(m.startswith("L2::evict_") for m in opcode.modifiers):
        return (10, 0)
    return (7, 0) if any(m.startswith("L1::") for m in opcode.modifiers) else None


def _without_eviction(instruction: Instruction, context: Context) -> str:
    hints = [m for m in instruction.opcode.modifiers if m.startswith(("L1::", "L2::evict_"))]
    return instruction.edited(instruction.opcode.without(*hints))


_PREFETCHED: dict[str, Capability] = {
    "L2::64B": (7, 5),
    "L2::128B": (7, 5),
    "L2::256B": (8, 0),
}


def _needs_prefetch_size(opcode: Opcode) -> Capability | None:
    return next((_PREFETCHED[m] for m in opcode.modifiers if m in _PREFETCHED), None)


def _without_prefetch_size(instruction: Instruction, context: Context) -> str:
    return instruction.edited(instruction.opcode.without(*_PREFETCHED))


def _needs_policy(opcode: Opcode) -> Capability | None:
    return (8, 0) if opcode.has("L2::cache_hint") else None


def _without_policy(instruction: Instruction, context: Context) -> str:
    count = 4 if instruction.opcode.name == "atom" else 3
    instruction.expect(count)
    return instruction.edited(instruction.opcode.without("L2::cache_hint"), drop=count - 1)


def _no_policy(instruction: Instruction, context: Context) -> str:
    operands = instruction.operands
    if not operands or not operands[0]:
        raise instruction.error("a destination expected")
    return f"{instruction.guard} mov.b64 {operands[0]}, 0;".strip()


def _needs_prefetch(opcode: Opcode) -> Capability | None:
    return (8, 0) if opcode.has("L2::evict_last", "L2::evict_normal") else None


def _prefetch(instruction: Instruction, context: Context) -> str:
    modifiers = ("L2" if m.startswith("L2::") else m for m in instruction.opcode.modifiers)
    return instruction.edited(Opcode("prefetch", tuple(modifiers)))


RULES = (
    Rule(
        name="cache eviction",
        section="Cache Eviction Priority Hints",
        guarantees="same values: a hint is not part of what an access means",
        costs="the cache decides by itself what stays",
        opcodes=_ACCESS,
        needs=_needs_eviction,
        rewrite=_without_eviction,
    ),
    Rule(
        name="prefetch size",
        section="Data Movement and Conversion Instructions: ld (.level::prefetch_size)",
        guarantees="same values: prefetching is a hint",
        costs="no more than the sectors asked for are fetched",
        opcodes=_ACCESS,
        needs=_needs_prefetch_size,
        rewrite=_without_prefetch_size,
    ),
    Rule(
        name="cache policy",
        section="Data Movement and Conversion Instructions: ld, st, atom, red (.cache_hint)",
        guarantees="same values: a policy is a hint; its operand goes with it",
        costs="as for eviction hints",
        opcodes=_ACCESS,
        needs=_needs_policy,
        rewrite=_without_policy,
    ),
    Rule(
        name="createpolicy",
        section="Data Movement and Conversion Instructions: createpolicy",
        guarantees="the result is 0 and nothing uses it: policies are taken off accesses",
        costs="nothing",
        opcodes=frozenset({"createpolicy"}),
        needs=lambda opcode: (8, 0),
        rewrite=_no_policy,
    ),
    Rule(
        name="prefetch with priority",
        section="Data Movement and Conversion Instructions: prefetch",
        guarantees="prefetches all the same, to L2",
        costs="nothing",
        opcodes=frozenset({"prefetch"}),
        needs=_needs_prefetch,
        rewrite=_prefetch,
    ),
    Rule(
        name="cache control",
        section="Data Movement and Conversion Instructions: applypriority, discard",
        guarantees="same values: a priority is a hint, and discarded memory may keep its content",
        costs="discarded lines are written back",
        opcodes=frozenset({"applypriority", "discard"}),
        needs=lambda opcode: (8, 0),
        rewrite=removed,
    ),
)
