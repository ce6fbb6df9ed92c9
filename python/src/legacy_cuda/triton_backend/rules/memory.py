"""Memory orders and scopes, which came with the memory consistency model of 7.0.

Below it a fence is ``membar``: everything a thread did before it is seen, by the threads of the
level that it names, before anything the thread does after it. ptxas makes ``membar.gl`` and
``membar.sys`` invalidate the L1 cache too (``MEMBAR.GL.IVALLD`` in the SASS of 5.0 to 6.1), so a
plain load after one does not find old data there; Kepler's global loads pass L1 by unless ptxas is
told otherwise (Kepler Tuning Guide, "L1 Cache"). A release is a fence before the access, an
acquire one behind it. Loads and stores with an order become volatile ones, which ptxas neither
caches in a register or L1 nor moves over one another.
"""

from __future__ import annotations

from ..ptx import Instruction, Opcode
from .base import SCOPES, Capability, Context, Rule, removed

_ORDERS = ("relaxed", "acquire", "release", "acq_rel")
_FENCES = {"": "membar.gl", "cta": "membar.cta", "cluster": "membar.gl", "gpu": "membar.gl"}
_FENCES["sys"] = "membar.sys"


def _fenced(instruction: Instruction, statement: str) -> str:
    """The statement between the fences its order asks for, under its guard."""
    opcode = instruction.opcode
    order, scope = opcode.one_of(_ORDERS), opcode.one_of(SCOPES)
    fence = f"{instruction.guard} {_FENCES[scope]};".strip()
    before = [fence] if order in ("release", "acq_rel") else []
    behind = [fence] if order in ("acquire", "acq_rel") else []
    return "\n\t".join([*before, statement, *behind])


def _needs_order(opcode: Opcode) -> Capability | None:
    if not opcode.has(*_ORDERS) or opcode.has("async", "bulk"):
        return None
    return (9, 0) if opcode.has("cluster") else (7, 0)


def _access(instruction: Instruction, context: Context) -> str:
    plain = instruction.opcode.without(*_ORDERS, *SCOPES, "mmio", "volatile")
    volatile = Opcode(plain.name, ("volatile", *plain.modifiers))
    return _fenced(instruction, instruction.edited(volatile))


def _needs_weak(opcode: Opcode) -> Capability | None:
    return (7, 0) if opcode.has("weak") and not opcode.has("async", "bulk") else None


def _weak(instruction: Instruction, context: Context) -> str:
    return instruction.edited(instruction.opcode.without("weak"))


def _atomic(instruction: Instruction, context: Context) -> str:
    return _fenced(instruction, instruction.edited(_gpu_for_cluster(instruction.opcode, *_ORDERS)))


def _gpu_for_cluster(opcode: Opcode, *drop: str) -> Opcode:
    modifiers = ("gpu" if m == "cluster" else m for m in opcode.without(*drop).modifiers)
    return Opcode(opcode.name, tuple(modifiers))


def _needs_scope(opcode: Opcode) -> Capability | None:
    if not opcode.has(*SCOPES) or opcode.has("async"):
        return None
    return (9, 0) if opcode.has("cluster") else (6, 0)


def _scope(instruction: Instruction, context: Context) -> str:
    if instruction.opcode.has("cluster"):
        return instruction.edited(_gpu_for_cluster(instruction.opcode))
    return instruction.edited(instruction.opcode.without(*SCOPES))


def _needs_fence(opcode: Opcode) -> Capability | None:
    if opcode.has("cluster", "mbarrier_init"):
        return (9, 0)
    return (9, 0) if any(m.startswith(("async", "tensormap")) for m in opcode.modifiers) else (7, 0)


def _fence(instruction: Instruction, context: Context) -> str:
    instruction.expect(0, 1, 2)  # fence.proxy.tensormap takes an address and a size
    opcode = instruction.opcode
    if opcode.has("alias"):
        return f"{instruction.guard} membar.proxy.alias;".strip()
    if opcode.has("proxy") and not opcode.has("acquire", "release"):
        return removed(instruction, context)
    scope = opcode.one_of(SCOPES)
    if not scope:
        raise instruction.error("a fence needs a scope")
    return f"{instruction.guard} {_FENCES[scope]};".strip()


def _needs_alias(opcode: Opcode) -> Capability | None:
    return (6, 0) if opcode.has("proxy") else None


def _alias(instruction: Instruction, context: Context) -> str:
    return f"{instruction.guard} membar.sys;".strip()


RULES = (
    Rule(
        name="weak access",
        section="Memory Consistency Model: Strong Operations",
        guarantees="the same: without an order an access is weak",
        costs="nothing",
        opcodes=frozenset({"ld", "st"}),
        needs=_needs_weak,
        rewrite=_weak,
    ),
    Rule(
        name="access order",
        section="Memory Consistency Model: Release and Acquire Patterns; ld, st; membar",
        guarantees="relaxed, acquire and release among the threads of the scope; cluster scope is "
        "the GPU's. Of .mmio, that the access is made once and as it stands",
        costs="a membar for each acquire or release: it waits for all earlier accesses",
        opcodes=frozenset({"ld", "st"}),
        needs=_needs_order,
        rewrite=_access,
    ),
    Rule(
        name="atomic order",
        section="Memory Consistency Model: Release and Acquire Patterns; atom, red; membar",
        guarantees="the order asked for, among the threads of the scope; relaxed needs no fence",
        costs="a membar on each side of an acq_rel atomic",
        opcodes=frozenset({"atom", "red"}),
        needs=_needs_order,
        rewrite=_atomic,
    ),
    Rule(
        name="atomic scope",
        section="atom, red (.scope); CUDA C++ Programming Guide: Atomic Functions",
        guarantees="atomic among the threads of the GPU, and ordered as asked. Not atomic against "
        "the CPU or another GPU, even where .sys asks for it: hardware before 6.0 cannot",
        costs="cta scope costs what the GPU's costs",
        opcodes=frozenset({"atom", "red"}),
        needs=_needs_scope,
        rewrite=_scope,
    ),
    Rule(
        name="fence",
        section="Parallel Synchronization and Communication Instructions: membar, fence",
        guarantees="fence.sc and anything weaker as membar, which is the strongest there is. "
        "Proxy fences go where there is no other proxy: no async one, no tensor maps",
        costs="a membar is as dear as fence.sc",
        opcodes=frozenset({"fence"}),
        needs=_needs_fence,
        rewrite=_fence,
    ),
    Rule(
        name="alias fence",
        section="Parallel Synchronization and Communication Instructions: membar.proxy.alias",
        guarantees="order among accesses through one virtual address; two addresses of one place "
        "are not kept in step by hardware before 6.0",
        costs="a membar.sys",
        opcodes=frozenset({"membar"}),
        needs=_needs_alias,
        rewrite=_alias,
    ),
)
