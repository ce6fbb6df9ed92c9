"""Arithmetic of fp16 and bf16, and the newer forms of fp32's minimum, maximum and tanh."""

from __future__ import annotations

from ..ptx import Block, Instruction, Opcode
from .base import Capability, Context, Rule
from .numbers import NAN32, narrowed, odd_fma, rectified, tanh, widened

_TYPES = ("f16", "f16x2", "bf16", "bf16x2")
_NEWER_BF16 = ("fma", "neg", "abs", "min", "max")  # 8.0, one step before the rest
_OPERANDS = {"fma": 3, "neg": 1, "abs": 1, "ex2": 1, "tanh": 1}  # sources; two elsewhere
_MODIFIERS = frozenset(
    {"rn", "ftz", "sat", "relu", "NaN", "xorsign", "abs", "approx", *_TYPES, "f32"}
)


def _needs(opcode: Opcode) -> Capability | None:
    kind = opcode.type
    if opcode.has("oob") or kind not in (*_TYPES, "f32"):
        return None
    if opcode.has("xorsign"):
        return (8, 6)
    if opcode.name == "tanh" and not kind.startswith("bf16"):
        return (7, 5)
    if kind != "f32" and opcode.has("f32"):  # mixed: `unavailable` names it
        return None
    if kind == "f32":
        return (8, 0) if opcode.name in ("min", "max") and opcode.has("NaN") else None
    if kind.startswith("bf16"):
        return (8, 0) if opcode.name in _NEWER_BF16 else (9, 0)
    if opcode.name in ("min", "max") or opcode.has("relu"):
        return (8, 0)
    return (7, 5) if opcode.name == "ex2" else (5, 3)


def _needs_comparison(opcode: Opcode) -> Capability | None:
    if opcode.type not in _TYPES:
        return None
    return (9, 0) if opcode.type.startswith("bf16") else (5, 3)


def elements(block: Block, kind: str, operand: str) -> list[str]:
    """The halves of an operand of type ``f16``, ``bf16x2`` and so on, low one first, in
    temporaries."""
    if not kind.endswith("x2"):
        return [block.b16("mov.b16", operand)]
    packed = block.b32("mov.b32", operand)
    low, high = block.new("b16"), block.new("b16")
    block.do("mov.b32", f"{{{low}, {high}}}", packed)
    return [low, high]


def deliver(block: Block, guard: str, target: str, halves: list[str]) -> None:
    """Move one half or two into a destination, under a guard."""
    if len(halves) == 1:
        block.do("mov.b16", target, halves[0], guard=guard)
    else:
        block.do("mov.b32", target, f"{{{halves[0]}, {halves[1]}}}", guard=guard)


def extreme(block: Block, opcode: Opcode, a: str, b: str, sign: str = "") -> str:
    """``min`` or ``max`` of two fp32 numbers with the modifiers NaN and xorsign.abs; ``sign`` is
    the xor of the operands, where it cannot be taken from these."""
    left, right = a, b
    if opcode.has("xorsign"):
        left = block.b32("and.b32", a, "0x7FFFFFFF")
        right = block.b32("and.b32", b, "0x7FFFFFFF")
    ftz = ".ftz" if opcode.has("ftz") else ""
    value = block.b32(f"{opcode.name}{ftz}.f32", left, right)
    if opcode.has("xorsign"):
        sign = block.b32("and.b32", sign or block.b32("xor.b32", a, b), "0x80000000")
        empty = block.pred("setp.nan.f32", value, value)
        signed = block.b32("or.b32", value, sign)
        value = block.b32("selp.b32", NAN32, signed, empty)
    if opcode.has("NaN"):
        nan = block.pred("setp.nan.f32", a, b)
        value = block.b32("selp.b32", NAN32, value, nan)
    return value


def _flushed(block: Block, half: str) -> str:
    """fp16, with a zero of the same sign in place of a subnormal."""
    exponent = block.b16("and.b16", half, "0x7C00")
    zero = block.b16("and.b16", half, "0x8000")
    tiny = block.pred("setp.eq.s16", exponent, 0)
    return block.b16("selp.b16", zero, half, tiny)


def _computed(block: Block, opcode: Opcode, numbers: list[str]) -> str:
    if opcode.name == "fma":
        return odd_fma(block, *numbers)
    if opcode.name in ("min", "max"):
        return extreme(block, opcode, *numbers)
    if opcode.name == "tanh":
        return tanh(block, numbers[0])
    if opcode.name == "ex2":
        ftz = ".ftz" if opcode.has("ftz") else ""
        return block.b32(f"ex2.approx{ftz}.f32", numbers[0])
    return block.b32(f"{opcode.name}.rn.f32", *numbers)


def _arithmetic(instruction: Instruction, context: Context) -> str:
    opcode, guard = instruction.opcode, instruction.guard
    if unknown := set(opcode.modifiers) - _MODIFIERS:
        raise instruction.error(f"nothing is known of .{sorted(unknown)[0]} here")
    count = _OPERANDS.get(opcode.name, 2)
    target, *sources = instruction.expect(1 + count)
    block, kind = context.block(), opcode.type
    if kind == "f32":
        numbers = [block.b32("mov.f32", source) for source in sources]
        block.do("mov.b32", target, _computed(block, opcode, numbers), guard=guard)
        return str(block)
    element = kind.removesuffix("x2")
    flush = opcode.has("ftz") and element == "f16"
    if flush:  # fp16's subnormals are normal numbers of fp32
        opcode = opcode.without("ftz")
    results = []
    for halves in zip(*(elements(block, kind, source) for source in sources), strict=True):
        inputs = [_flushed(block, half) for half in halves] if flush else list(halves)
        if opcode.name in ("neg", "abs"):
            operation, mask = ("xor", "0x8000") if opcode.name == "neg" else ("and", "0x7FFF")
            results.append(block.b16(f"{operation}.b16", inputs[0], mask))
            continue
        numbers = [widened(block, element, half) for half in inputs]
        if opcode.has("xorsign"):  # a widened NaN has lost its sign
            sign = block.b16("xor.b16", *inputs)
            sign = block.b32("cvt.u32.u16", sign)
            sign = block.b32("shl.b32", sign, 16)
            number = extreme(block, opcode, numbers[0], numbers[1], sign)
        else:
            number = _computed(block, opcode, numbers)
        if opcode.has("sat"):
            number = block.b32("cvt.sat.f32.f32", number)
        if opcode.has("relu"):
            number = rectified(block, number)
        half = narrowed(block, element, number)
        results.append(_flushed(block, half) if flush else half)
    deliver(block, guard, target, results)
    return str(block)


def _pairs(block: Block, instruction: Instruction, a: str, b: str) -> list[tuple[str, str]]:
    """The halves of both operands side by side, as fp32."""
    kind = instruction.opcode.type
    element = kind.removesuffix("x2")
    sides = []
    for operand in (a, b):
        halves = elements(block, kind, operand)
        if instruction.opcode.has("ftz") and element == "f16":
            halves = [_flushed(block, half) for half in halves]
        sides.append([widened(block, element, half) for half in halves])
    return list(zip(*sides, strict=True))


def _setp(instruction: Instruction, context: Context) -> str:
    opcode, guard = instruction.opcode.without("ftz"), instruction.guard
    target, a, b, *combined = instruction.expect(3, 4)
    block = context.block()
    compare = str(Opcode("setp", (*opcode.modifiers[:-1], "f32")))
    pairs = _pairs(block, instruction, a, b)
    if len(pairs) == 1:
        block.do(compare, target, *pairs[0], *combined, guard=guard)
        return str(block)
    targets = [part.strip() for part in target.split("|")]
    if len(targets) != 2:
        raise instruction.error("two predicates expected, p|q")
    values = [block.pred(compare, left, right, *combined) for left, right in pairs]
    end = block.unless(guard)  # the guard may be one of the results
    for place, value in zip(targets, values, strict=True):
        if place != "_":
            block.do("mov.pred", place, value)
    block.place(end)
    return str(block)


def _set(instruction: Instruction, context: Context) -> str:
    opcode, guard = instruction.opcode.without("ftz"), instruction.guard
    target, a, b, *combined = instruction.expect(3, 4)
    if len(opcode.modifiers) < 3:
        raise instruction.error("a comparison and two types expected")
    *comparison, kind, source = opcode.modifiers
    floating = kind.removesuffix("x2") in ("f16", "bf16")
    if source.endswith("x2") != kind.endswith("x2") or (kind.endswith("x2") and not floating):
        raise instruction.error("two results in a word that is no packed fp16 or bf16")
    made = "f32" if floating else "s32" if kind.startswith("s") else "u32"
    compare = str(Opcode("set", (*comparison, made, "f32")))
    block = context.block()
    values = [
        block.b32(compare, left, right, *combined)
        for left, right in _pairs(block, instruction, a, b)
    ]
    if floating:
        element = kind.removesuffix("x2")
        deliver(block, guard, target, [narrowed(block, element, value) for value in values])
    elif kind in ("u16", "s16"):
        deliver(block, guard, target, [block.b16("cvt.u16.u32", values[0])])
    else:
        block.do("mov.b32", target, values[0], guard=guard)
    return str(block)


RULES = (
    Rule(
        name="half arithmetic",
        section="Half Precision Floating Point Instructions; Floating Point Instructions: min, "
        "max, tanh",
        guarantees="correctly rounded once, like the instruction (fma too), for add, sub, mul and "
        "fma; a NaN that is computed is 0x7FFF, or 0x7FFFFFFF in fp32. With ftz, what rounds up "
        "to the smallest normal number is kept. ex2 and tanh within the error that the ISA allows",
        costs="fp32 arithmetic, and about two conversions for each operand and result; fma takes "
        "four fp32 fmas",
        opcodes=frozenset({"add", "sub", "mul", "fma", "neg", "abs", "min", "max", "ex2", "tanh"}),
        needs=_needs,
        rewrite=_arithmetic,
    ),
    Rule(
        name="half comparison",
        section="Half Precision Comparison Instructions: setp",
        guarantees="the same predicates: widening is exact",
        costs="a conversion for each operand",
        opcodes=frozenset({"setp"}),
        needs=_needs_comparison,
        rewrite=_setp,
    ),
    Rule(
        name="half set",
        section="Half Precision Comparison Instructions: set",
        guarantees="the same values",
        costs="a conversion for each operand and result",
        opcodes=frozenset({"set"}),
        needs=_needs_comparison,
        rewrite=_set,
    ),
)
