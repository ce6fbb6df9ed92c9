"""What the threads of a warp do together.

Each reads the values of the threads in the mask one after another, by ``shfl.sync.idx``: right for
every mask, and no thread outside the mask is asked. Below 7.0 the threads of a mask have to be
converged, for these as for the instructions used here (PTX ISA, shfl.sync).
"""

from __future__ import annotations

from ..ptx import Block, Instruction, Opcode
from .base import Capability, Context, Rule

_ALL = ("0xffffffff", "-1", "4294967295")
# Operations and types of redux.sync, and what changes nothing in each.
_REDUCTIONS = {
    ("add", "u32"): "0", ("add", "s32"): "0",
    ("min", "u32"): "0xFFFFFFFF", ("max", "u32"): "0",
    ("min", "s32"): "0x7FFFFFFF", ("max", "s32"): "0x80000000",
    ("and", "b32"): "0xFFFFFFFF", ("or", "b32"): "0", ("xor", "b32"): "0",
}  # fmt: skip


class _Lanes:
    """A loop over the lanes of a mask."""

    def __init__(self, block: Block, mask: str) -> None:
        self._block = block
        self._mask = block.b32("mov.b32", mask)
        self._rest = block.b32("mov.b32", self._mask)
        self._again = block.label()
        block.place(self._again)
        self.lane = _lowest(block, self._rest)

    def read(self, value: str) -> str:
        """The value that the lane has."""
        return self._block.b32("shfl.sync.idx.b32", value, self.lane, 31, self._mask)

    def end(self) -> None:
        """Go on with the next lane."""
        block = self._block
        less = block.b32("sub.u32", self._rest, 1)
        block.do("and.b32", self._rest, self._rest, less)
        more = block.pred("setp.ne.u32", self._rest, 0)
        block.do("bra", self._again, guard=f"@{more}")


def _lowest(block: Block, mask: str) -> str:
    """The number of the lowest bit that is set."""
    return block.b32("clz.b32", block.b32("brev.b32", mask))


def _redux(instruction: Instruction, context: Context) -> str:
    opcode = instruction.opcode
    target, source, mask = instruction.expect(3)
    name, kind = opcode.one_of(("add", "min", "max", "and", "or", "xor")), opcode.type
    if (name, kind) not in _REDUCTIONS:
        raise instruction.error("this reduction has no like here")
    block = context.block()
    end = block.unless(instruction.guard)
    value = block.b32("mov.b32", source)
    step = f"{name}.{kind}"
    if mask.lower() in _ALL:
        for distance in (16, 8, 4, 2, 1):
            other = block.b32("shfl.sync.bfly.b32", value, distance, 31, mask)
            value = block.b32(step, value, other)
        block.do("mov.b32", target, value)
    else:
        total = block.b32("mov.b32", _REDUCTIONS[name, kind])
        lanes = _Lanes(block, mask)
        block.do(step, total, total, lanes.read(value))
        lanes.end()
        block.do("mov.b32", target, total)
    block.place(end)
    return str(block)


def _match(instruction: Instruction, context: Context) -> str:
    opcode = instruction.opcode
    target, source, mask = instruction.expect(3)
    if opcode.type not in ("b32", "b64") or not opcode.has("any", "all"):
        raise instruction.error(".any or .all and a type expected")
    place, bar, truth = (part.strip() for part in target.partition("|"))
    if bar and opcode.has("any"):
        raise instruction.error("only match.all has a predicate")
    block = context.block()
    end = block.unless(instruction.guard)
    if opcode.type == "b64":
        parts = [block.new("b32"), block.new("b32")]
        whole = block.b64("mov.b64", source)
        block.do("mov.b64", f"{{{parts[0]}, {parts[1]}}}", whole)
    else:
        parts = [block.b32("mov.b32", source)]
    found = block.b32("mov.b32", 0)
    everyone = block.b32("mov.b32", mask)
    lanes = _Lanes(block, everyone)
    bit = block.b32("shl.b32", 1, lanes.lane)
    for part in parts:
        differs = block.pred("setp.ne.u32", lanes.read(part), part)
        block.do("mov.b32", bit, 0, guard=f"@{differs}")
    block.do("or.b32", found, found, bit)
    lanes.end()
    if opcode.has("all"):
        same = block.pred("setp.eq.u32", found, everyone)
        found = block.b32("selp.b32", everyone, 0, same)
        if bar and truth != "_":
            block.do("mov.pred", truth, same)
    if place != "_":
        block.do("mov.b32", place, found)
    block.place(end)
    return str(block)


def _elect(instruction: Instruction, context: Context) -> str:
    target, mask = instruction.expect(2)
    place, bar, truth = (part.strip() for part in target.partition("|"))
    if not bar:
        raise instruction.error("a predicate expected as second result")
    block = context.block()
    end = block.unless(instruction.guard)
    everyone = block.b32("mov.b32", mask)
    block.do("bar.warp.sync", everyone)
    leader = _lowest(block, everyone)
    lane = block.b32("mov.u32", "%laneid")
    block.do("setp.eq.u32", truth, lane, leader)
    if place != "_":
        block.do("mov.b32", place, leader)
    block.place(end)
    return str(block)


def _needs_redux(opcode: Opcode) -> Capability | None:
    return (10, 0) if opcode.type == "f32" else (8, 0)


_SECTION = "Parallel Synchronization and Communication Instructions"

RULES = (
    Rule(
        name="warp reduction",
        section=f"{_SECTION}: redux.sync",
        guarantees="the same value in every thread of any mask; integers only",
        costs="five shuffles for a constant full mask, else one for each thread of the mask",
        opcodes=frozenset({"redux"}),
        needs=_needs_redux,
        rewrite=_redux,
    ),
    Rule(
        name="match",
        section=f"{_SECTION}: match.sync",
        guarantees="the same mask and predicate",
        costs="a shuffle, or two for 64 bits, for each thread of the mask",
        opcodes=frozenset({"match"}),
        needs=lambda opcode: (7, 0),
        rewrite=_match,
    ),
    Rule(
        name="elect",
        section=f"{_SECTION}: elect.sync",
        guarantees="one thread of the mask, the same each time: the lowest",
        costs="nothing",
        opcodes=frozenset({"elect"}),
        needs=lambda opcode: (9, 0),
        rewrite=_elect,
    ),
)
