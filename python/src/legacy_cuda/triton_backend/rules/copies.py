"""Asynchronous copies to shared memory, made at once."""

from __future__ import annotations

from ..ptx import Block, Instruction, Opcode
from .base import SPACES, Capability, Context, Rule, pointer, removed

_WORDS = {4: "b32", 8: "v2.b32", 16: "v4.b32"}


def _asynchronous(opcode: Opcode) -> bool:
    return opcode.modifiers[:1] == ("async",)


def _needs_copy(opcode: Opcode) -> Capability | None:
    return (8, 0) if _asynchronous(opcode) and opcode.has("ca", "cg") else None


def _copy(instruction: Instruction, context: Context) -> str:
    opcode = instruction.opcode
    target, source, *sizes = instruction.expect(*((4, 5) if _has_policy(opcode) else (3, 4)))
    if _has_policy(opcode):
        sizes.pop()
    count = instruction.integer(sizes[0])
    if count not in _WORDS or not opcode.has(*SPACES[1:]):
        raise instruction.error("4, 8 or 16 bytes to shared memory expected")
    block = context.block()
    end = block.unless(instruction.guard)
    place, _ = pointer(block, instruction, target, "shared", context)
    origin, _ = pointer(block, instruction, source, "global", context)
    words = [block.new("b32") for _ in range(count // 4)]
    listed = words[0] if count == 4 else f"{{{', '.join(words)}}}"
    load = f"ld.global{'.cg' if opcode.has('cg') else ''}.{_WORDS[count]}"
    if len(sizes) == 1:
        block.do(load, listed, f"[{origin}]")
    else:
        for word in words:
            block.do("mov.b32", word, 0)
        predicate = sizes[1].removeprefix("!").strip()
        if context.scopes.type_of(predicate) == "pred":
            # With a predicate the source is ignored where it holds.
            holds = predicate == sizes[1]
            block.do(load, listed, f"[{origin}]", guard=f"@{'!' if holds else ''}{predicate}")
        else:
            _partly(block, words, load, listed, origin, sizes[1])
    block.do(f"st.shared.{_WORDS[count]}", f"[{place}]", listed)
    block.place(end)
    return str(block)


def _has_policy(opcode: Opcode) -> bool:
    return opcode.has("L2::cache_hint")


def _partly(block: Block, words: list[str], load: str, listed: str, origin: str, size: str) -> None:
    """The first ``size`` bytes of the source, then zeros. A word of which no byte is wanted is
    not read; the source is aligned to the whole copy, so that a wanted one never is half out of
    bounds."""
    wanted = block.b32("mov.u32", size)
    full = block.pred("setp.ge.u32", wanted, 4 * len(words))
    block.do(load, listed, f"[{origin}]", guard=f"@{full}")
    end = block.unless(f"@!{full}")
    for index, word in enumerate(words):
        some = block.pred("setp.gt.u32", wanted, 4 * index)
        block.do("ld.global.b32", word, f"[{origin}+{4 * index}]", guard=f"@{some}")
        left = block.b32("sub.s32", wanted, 4 * index)
        left = block.b32("max.s32", left, 0)
        left = block.b32("shl.b32", left, 3)
        block.do("bfe.u32", word, word, 0, left)
    block.place(end)


def _needs_group(opcode: Opcode) -> Capability | None:
    waits = ("commit_group", "wait_group", "wait_all")
    return (
        (8, 0)
        if _asynchronous(opcode) and opcode.modifiers[1:2] and opcode.modifiers[1] in waits
        else None
    )


_CP = frozenset({"cp"})
_SECTION = "Data Movement and Conversion Instructions: cp.async"

RULES = (
    Rule(
        name="asynchronous copy",
        section=_SECTION,
        guarantees="the same bytes, zeros behind the source's size, there when the statement ends",
        costs="the copy takes registers, and the thread waits for it: nothing is overlapped",
        opcodes=_CP,
        needs=_needs_copy,
        rewrite=_copy,
    ),
    Rule(
        name="asynchronous group",
        section=f"{_SECTION}.commit_group, cp.async.wait_group",
        guarantees="nothing is left to wait for: copies are made at once",
        costs="nothing",
        opcodes=_CP,
        needs=_needs_group,
        rewrite=removed,
    ),
)
