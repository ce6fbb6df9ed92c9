"""Integer instructions that came after Kepler or Pascal."""

from __future__ import annotations

from ..ptx import Block, Instruction, Opcode
from .base import Capability, Context, Rule, result

# Functions of two bits a and b by their table, whose bit 2a+b is the result: "a ~b" is "a and not
# b", and " ~" at the end the complement of what stands before it.
_TWO = {
    0x0: "0", 0x1: "or ~", 0x2: "~a b", 0x3: "~a", 0x4: "a ~b", 0x5: "~b", 0x6: "xor",
    0x7: "and ~", 0x8: "and", 0x9: "xor ~", 0xA: "b", 0xB: "a ~b ~", 0xC: "a", 0xD: "~a b ~",
    0xE: "or", 0xF: "1",
}  # fmt: skip
_LEAVES = ("0", "1", "a", "b")


def _cost(table: int) -> int:
    """How many instructions a function of two operands takes."""
    text = _TWO[table]
    return 0 if text in _LEAVES else 1 if text in ("~a", "~b") else 1 + text.count("~")


def _two(block: Block, table: int, a: str, b: str) -> str:
    """A function of two operands; its name, or ``0`` or ``-1``."""
    text = _TWO[table]
    if text in _LEAVES:
        return {"0": "0", "1": "-1", "a": a, "b": b}[text]
    complement = text.endswith(" ~")
    text = text.removesuffix(" ~")
    if text in ("~a", "~b"):
        return block.b32("not.b32", a if text == "~a" else b)
    if text == "a ~b":
        value = block.b32("and.b32", a, block.b32("not.b32", b))
    elif text == "~a b":
        value = block.b32("and.b32", block.b32("not.b32", a), b)
    else:
        value = block.b32(f"{text}.b32", a, b)
    return block.b32("not.b32", value) if complement else value


def _split(table: int, by: int) -> tuple[int, int]:
    """The tables of the other two operands where operand ``by`` (0 is a) is 0, and where it is
    1."""
    found = [0, 0]
    for index in range(8):
        bits = [index >> 2 & 1, index >> 1 & 1, index & 1]
        chosen = bits.pop(by)
        found[chosen] |= (table >> index & 1) << (2 * bits[0] + bits[1])
    return found[0], found[1]


def three(block: Block, table: int, operands: list[str]) -> str:
    """A function of three operands by lop3's table: ``f0 ^ (x & (f0 ^ f1))`` with the operand
    ``x`` that makes it shortest, f0 and f1 being what is left where its bit is 0 and 1."""

    def cost(by: int) -> int:
        zero, one = _split(table, by)
        change = zero ^ one
        mix = 0 if change == 0 else (change != 0xF) + (zero != 0)
        return _cost(zero) + _cost(change) + mix

    by = min(range(3), key=cost)
    zero, one = _split(table, by)
    rest = [operand for index, operand in enumerate(operands) if index != by]
    base = _two(block, zero, *rest)
    change = _two(block, zero ^ one, *rest)
    if change == "0":
        return base
    mask = operands[by] if change == "-1" else block.b32("and.b32", operands[by], change)
    return mask if base == "0" else block.b32("xor.b32", mask, base)


_COMBINE = ("or", "and")


def _needs_lop3(opcode: Opcode) -> Capability | None:
    return (7, 0) if opcode.has(*_COMBINE) else (5, 0)


def _lop3(instruction: Instruction, context: Context) -> str:
    opcode, guard = instruction.opcode, instruction.guard
    combine = opcode.one_of(_COMBINE)
    target, a, b, c, table, *other = instruction.expect(6 if combine else 5)
    number = instruction.integer(table)
    if not 0 <= number <= 0xFF:
        raise instruction.error("the table has eight bits")
    block = context.block()
    if context.capability < (5, 0):
        operands = [block.b32("mov.b32", operand) for operand in (a, b, c)]
        value = three(block, number, operands)
    else:
        value = block.b32("lop3.b32", a, b, c, table)
    if not combine:
        if result(target):
            block.do("mov.b32", target, value, guard=guard)
        return str(block)
    place, bar, truth = (part.strip() for part in target.partition("|"))
    if not bar:
        raise instruction.error("a predicate expected as second result")
    holds = block.pred(f"setp.ne.{combine}.b32", value, 0, other[0])
    if place != "_":
        block.do("mov.b32", place, value, guard=guard)
    block.do("mov.pred", truth, holds, guard=guard)
    return str(block)


def _dot(instruction: Instruction, context: Context) -> str:
    opcode = instruction.opcode
    target, a, b, c = instruction.expect(4)
    kinds = [m for m in opcode.modifiers if m in ("s32", "u32")]
    if len(kinds) != 2 or (opcode.name == "dp2a" and not opcode.has("lo", "hi")):
        raise instruction.error("two types expected")
    block = context.block()
    left, right = block.b32("mov.b32", a), block.b32("mov.b32", b)
    total = block.b32("mov.b32", c)
    count, bits = (4, 8) if opcode.name == "dp4a" else (2, 16)
    first = 16 if opcode.has("hi") else 0
    for index in range(count):
        one = block.b32(f"bfe.{kinds[0]}", left, index * bits, bits)
        other = block.b32(f"bfe.{kinds[1]}", right, first + index * 8, 8)
        total = block.b32("mad.lo.s32", one, other, total)
    block.do("mov.b32", target, total, guard=instruction.guard)
    return str(block)


def _mask(instruction: Instruction, context: Context) -> str:
    target, *operands = instruction.expect(3)
    block = context.block()
    start, width = (block.b32("mov.b32", operand) for operand in operands)
    if instruction.opcode.has("wrap"):
        start = block.b32("and.b32", start, 31)
        width = block.b32("and.b32", width, 31)
    elif not instruction.opcode.has("clamp"):
        raise instruction.error(".clamp or .wrap expected")
    bits = block.b32("shl.b32", 1, width)
    bits = block.b32("sub.u32", bits, 1)
    bits = block.b32("shl.b32", bits, start)
    block.do("mov.b32", target, bits, guard=instruction.guard)
    return str(block)


def _extend(instruction: Instruction, context: Context) -> str:
    opcode = instruction.opcode
    target, value, width = instruction.expect(3)
    if opcode.type not in ("s32", "u32") or not opcode.has("clamp", "wrap"):
        raise instruction.error(".clamp or .wrap and a type expected")
    block = context.block()
    bits = block.b32("and.b32" if opcode.has("wrap") else "min.u32", width, 31)
    if opcode.has("clamp"):
        # 32 and more keep the whole value, which no extraction of 31 bits does.
        whole = block.pred("setp.gt.u32", width, 31)
    number = block.b32("mov.b32", value)
    taken = block.b32(f"bfe.{opcode.type}", number, 0, bits)
    if opcode.has("clamp"):
        taken = block.b32("selp.b32", number, taken, whole)
    block.do("mov.b32", target, taken, guard=instruction.guard)
    return str(block)


RULES = (
    Rule(
        name="lop3",
        section="Logic and Shift Instructions: lop3",
        guarantees="the same bits for each of the 256 tables, and the same predicate",
        costs="up to eight logic instructions below 5.0; a comparison more for the predicate",
        opcodes=frozenset({"lop3"}),
        needs=_needs_lop3,
        rewrite=_lop3,
    ),
    Rule(
        name="dot product",
        section="Integer Arithmetic Instructions: dp4a, dp2a",
        guarantees="the same bits, wrapped to 32",
        costs="twelve instructions (dp4a), six (dp2a)",
        opcodes=frozenset({"dp4a", "dp2a"}),
        needs=lambda opcode: (6, 1),
        rewrite=_dot,
    ),
    Rule(
        name="bit mask",
        section="Integer Arithmetic Instructions: bmsk",
        guarantees="the same bits",
        costs="three to five instructions",
        opcodes=frozenset({"bmsk"}),
        needs=lambda opcode: (7, 0),
        rewrite=_mask,
    ),
    Rule(
        name="extension",
        section="Integer Arithmetic Instructions: szext",
        guarantees="the same bits",
        costs="two to four instructions",
        opcodes=frozenset({"szext"}),
        needs=lambda opcode: (7, 0),
        rewrite=_extend,
    ),
)
