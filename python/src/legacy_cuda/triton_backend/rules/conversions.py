"""Conversions to and from bf16, tf32 and fp8, and the packed and saturating ones of fp16."""

from __future__ import annotations

from ..ptx import Block, Instruction, Opcode
from .base import Capability, Context, Rule
from .half import deliver, elements
from .numbers import (
    NAN32,
    SMALL,
    from_small,
    narrowed,
    odd_from_f64,
    odd_from_integer,
    rectified,
    to_small,
    widened,
)

_ROUNDINGS = ("rn", "rz")


def _types(opcode: Opcode) -> tuple[str, str]:
    return (opcode.modifiers[-2], opcode.modifiers[-1]) if len(opcode.modifiers) > 1 else ("", "")


def _needs(opcode: Opcode) -> Capability | None:
    target, source = _types(opcode)
    if target in ("bf16x2", "f16x2") and source == "f32":
        return None if opcode.has("rs") else (8, 0)
    if target == "f16" and source == "f32":
        return (8, 0) if opcode.has("relu") else (7, 0) if opcode.has("satfinite") else None
    if "bf16" in (target, source):
        return (8, 0) if "f32" in (target, source) else (9, 0)
    return None


def _float(block: Block, instruction: Instruction, source: str, operand: str) -> str:
    """An operand of type ``source`` as fp32: exact, or rounded to odd."""
    if source == "f32":
        return block.b32("mov.f32", operand)
    if source in ("f16", "bf16"):
        return widened(block, source, block.b16("mov.b16", operand))
    if source == "f64":
        return odd_from_f64(block, block.b64("mov.f64", operand))
    if source in ("s32", "u32", "s64", "u64"):
        size = f"b{source[1:]}"
        number = block.new(size)
        block.do(f"mov.{size}", number, operand)
        return odd_from_integer(block, source, number)
    if source in ("s8", "u8", "s16", "u16"):
        return block.b32(f"cvt.rn.f32.{source}", operand)
    raise instruction.error(f"a conversion of {source} has no like here")


def _half(instruction: Instruction, context: Context) -> str:
    opcode = instruction.opcode
    target, source = _types(opcode)
    if source == "bf16":
        return _from_bf16(instruction, context, target)
    rounding = opcode.one_of(_ROUNDINGS)
    if not rounding or set(opcode.modifiers) - {rounding, "relu", "satfinite", target, source}:
        raise instruction.error("this form of cvt has no like here")
    place, *operands = instruction.expect(3 if target.endswith("x2") else 2)
    block = context.block()
    halves = [
        narrowed(
            block,
            target.removesuffix("x2"),
            _float(block, instruction, source, operand),
            rounding,
            relu=opcode.has("relu"),
            satfinite=opcode.has("satfinite"),
        )
        for operand in reversed(operands)  # the first one goes to the upper half
    ]
    deliver(block, instruction.guard, place, halves)
    return str(block)


def _from_bf16(instruction: Instruction, context: Context, target: str) -> str:
    """From bf16: by way of fp32, which holds it, and the same conversion from there."""
    opcode, guard = instruction.opcode, instruction.guard
    place, operand = instruction.expect(2)
    block = context.block()
    number = _float(block, instruction, "bf16", operand)
    if target == "f32" and len(opcode.modifiers) == 2:
        block.do("mov.b32", place, number, guard=guard)
        return str(block)
    kind = "f32" if target == "bf16" else target
    convert = str(Opcode("cvt", (*opcode.modifiers[:-2], kind, "f32")))
    if target == "bf16":
        # Rounding to an integer: what bf16 holds below 2**8 stays in it.
        number = block.b32(convert, number)
        deliver(block, guard, place, [narrowed(block, "bf16", number)])
    else:
        block.do(convert, place, number, guard=guard)
    return str(block)


def _needs_tf32(opcode: Opcode) -> Capability | None:
    target, source = _types(opcode)
    if (target, source) != ("tf32", "f32"):
        return None
    return (8, 0) if opcode.has("rna") else (9, 0)


def _tf32(instruction: Instruction, context: Context) -> str:
    place, operand = instruction.expect(2)
    opcode = instruction.opcode
    block = context.block()
    number = block.b32("mov.f32", operand)
    if opcode.has("relu"):
        number = rectified(block, number)
    nan = block.pred("setp.nan.f32", number, number)
    bits = number
    if opcode.has("rna"):
        bits = block.b32("add.u32", bits, "0x1000")
    elif opcode.has("rn"):
        odd = block.b32("bfe.u32", bits, 13, 1)
        bits = block.b32("add.u32", bits, "0xFFF")
        bits = block.b32("add.u32", bits, odd)
    bits = block.b32("and.b32", bits, "0xFFFFE000")
    if opcode.has("satfinite"):
        magnitude = block.b32("and.b32", bits, "0x7FFFFFFF")
        over = block.pred("setp.ge.u32", magnitude, "0x7F800000")
        sign = block.b32("and.b32", bits, "0x80000000")
        limit = block.b32("or.b32", sign, "0x7F7FE000")
        bits = block.b32("selp.b32", limit, bits, over)
    bits = block.b32("selp.b32", NAN32, bits, nan)
    block.do("mov.b32", place, bits, guard=instruction.guard)
    return str(block)


def _needs_small(opcode: Opcode) -> Capability | None:
    target, source = _types(opcode)
    if target in SMALL and source in ("f32", "f16x2"):
        return (8, 9)
    return (8, 9) if source in SMALL and target == "f16x2" else None


def _small(instruction: Instruction, context: Context) -> str:
    opcode, guard = instruction.opcode, instruction.guard
    target, source = _types(opcode)
    relu = opcode.has("relu")
    if set(opcode.modifiers) - {"rn", "satfinite", "relu", target, source}:
        raise instruction.error("this form of cvt has no like here")
    block = context.block()
    place, *operands = instruction.expect(3 if source == "f32" else 2)
    if source in SMALL:
        packed = block.b16("mov.b16", operands[0])
        wide = block.b32("cvt.u32.u16", packed)
        upper = block.b32("shr.u32", wide, 8)
        halves = [from_small(block, source, byte, relu) for byte in (wide, upper)]
        deliver(block, guard, place, halves)
        return str(block)
    if source == "f32":
        numbers = [block.b32("mov.f32", operand) for operand in reversed(operands)]
    else:
        numbers = [widened(block, "f16", half) for half in elements(block, source, operands[0])]
    low, high = (to_small(block, target, number, relu) for number in numbers)
    high = block.b32("shl.b32", high, 8)
    both = block.b32("or.b32", low, high)
    deliver(block, guard, place, [block.b16("cvt.u16.u32", both)])
    return str(block)


def _needs_pack(opcode: Opcode) -> Capability | None:
    return (7, 2) if opcode.modifiers[:1] == ("pack",) else None


def _pack(instruction: Instruction, context: Context) -> str:
    modifiers = [m for m in instruction.opcode.modifiers if m not in ("pack", "sat", "b32")]
    ranges = {"s8": (-128, 127), "u8": (0, 255), "s16": (-32768, 32767), "u16": (0, 65535)}
    if len(modifiers) != 2 or modifiers[0] not in ranges or modifiers[1] != "s32":
        raise instruction.error("this form of cvt.pack has no like here")
    smallest, largest = ranges[modifiers[0]]
    bits = int(modifiers[0][1:])
    place, *operands = instruction.expect(4 if instruction.opcode.has("b32") else 3)
    block = context.block()
    packed = block.b32("mov.b32", operands[2]) if len(operands) == 3 else ""
    for operand in operands[:2]:
        value = block.b32("max.s32", operand, smallest)
        value = block.b32("min.s32", value, largest)
        value = block.b32("and.b32", value, (1 << bits) - 1)
        if packed:
            packed = block.b32("shl.b32", packed, bits)
            packed = block.b32("or.b32", packed, value)
        else:
            packed = value
    block.do("mov.b32", place, packed, guard=instruction.guard)
    return str(block)


_CVT = frozenset({"cvt"})
_SECTION = "Data Movement and Conversion Instructions: cvt"

RULES = (
    Rule(
        name="half conversion",
        section=_SECTION,
        guarantees="the same bits for every number, rounded once; NaN becomes 0x7FFF",
        costs="about eight integer instructions for a bf16",
        opcodes=_CVT,
        needs=_needs,
        rewrite=_half,
    ),
    Rule(
        name="tf32 conversion",
        section=_SECTION,
        guarantees="the same number, the bits below its mantissa zero; NaN becomes 0x7FFFFFFF",
        costs="about four integer instructions",
        opcodes=_CVT,
        needs=_needs_tf32,
        rewrite=_tf32,
    ),
    Rule(
        name="fp8 conversion",
        section=f"{_SECTION}; OCP 8-bit Floating Point Specification (OFP8) 1.0",
        guarantees="the same number for every input: to nearest even, saturated, subnormals; "
        "NaN is 0x7F",
        costs="about eighteen instructions for each element",
        opcodes=_CVT,
        needs=_needs_small,
        rewrite=_small,
    ),
    Rule(
        name="packing conversion",
        section="Data Movement and Conversion Instructions: cvt.pack",
        guarantees="the same bits",
        costs="eight instructions",
        opcodes=_CVT,
        needs=_needs_pack,
        rewrite=_pack,
    ),
)
