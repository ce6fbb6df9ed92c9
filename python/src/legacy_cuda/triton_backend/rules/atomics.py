"""Atomics of types that the hardware has none for: a loop around its compare-and-swap.

A loop ends for one thread at least in each round, so that no thread waits for another: threads of
one warp that want the same word take turns.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ptx import Block, Instruction, Opcode
from .base import SCOPES, SPACES, Capability, Context, Rule, pointer, result
from .half import deliver, elements, extreme
from .numbers import narrowed, widened

_ATOMICS = frozenset({"atom", "red"})
_VECTORS = ("v2", "v4", "v8")
_OPERATIONS = ("add", "min", "max", "cas")
_BYTES = {"f16": 2, "bf16": 2, "f16x2": 4, "bf16x2": 4, "f32": 4, "b32": 4}


def _type(opcode: Opcode) -> str:
    return next((m for m in opcode.modifiers if m in _BYTES or m in ("f64", "b16")), "")


def _needs_vector(opcode: Opcode) -> Capability | None:
    return (9, 0) if opcode.has(*_VECTORS) and not opcode.has("async") else None


def _vector(instruction: Instruction, context: Context) -> str:
    opcode = instruction.opcode
    atom = opcode.name == "atom"
    operands = list(instruction.expect(3 if atom else 2))
    kind = _type(opcode)
    if kind not in _BYTES:
        raise instruction.error("a vector of this type has no like here")
    count = int(opcode.one_of(_VECTORS)[1:])
    size = "b16" if _BYTES[kind] == 2 else "b32"
    targets = instruction.vector(operands.pop(0)) if atom else ["_"]
    sources = instruction.vector(operands[1])
    if len(sources) != count or len(targets) not in (count, 1) or "" in targets + sources:
        raise instruction.error(f"{count} elements expected")
    space = opcode.one_of(SPACES)
    block = context.block()
    end = block.unless(instruction.guard)
    place, _ = pointer(block, instruction, operands[0], space, context)
    move = "mov.f32" if kind == "f32" else f"mov.{size}"
    values = []
    for source in sources:
        values.append(block.new(size))
        block.do(move, values[-1], source)
    # The type goes last, where the forms without a vector have it.
    modifiers = (*opcode.without(*_VECTORS, kind).modifiers, kind)
    thrown = targets == ["_"]
    single = str(Opcode("red" if thrown else "atom", modifiers))
    olds = []
    for index, value in enumerate(values):
        at = f"[{place}+{index * _BYTES[kind]}]"
        if thrown:
            block.do(single, at, value)
        else:
            olds.append(block.new(size))
            block.do(single, olds[-1], at, value)
    for target, old in zip(targets, olds, strict=False):
        if result(target):
            block.do(f"mov.{size}", target, old)
    block.place(end)
    return str(block)


def _needs_half(opcode: Opcode) -> Capability | None:
    kind = _type(opcode)
    if opcode.has("async") or not opcode.has(*_OPERATIONS):
        return None
    if kind == "b16":
        return (7, 0) if opcode.has("cas") else None
    if kind in ("bf16", "bf16x2"):
        return (9, 0)
    if kind in ("f16", "f16x2"):
        if opcode.has("min", "max"):
            return (9, 0)
        return (6, 0) if kind == "f16x2" else (7, 0)
    return None


def _needs_double(opcode: Opcode) -> Capability | None:
    return (6, 0) if opcode.has("f64") and opcode.has("add") else None


def _operands(instruction: Instruction, sources: int) -> tuple[str, str, list[str]]:
    """Destination (empty where there is none), address and sources."""
    if instruction.opcode.name == "red":
        at, *values = instruction.expect(1 + sources)
        return "", at, values
    target, at, *values = instruction.expect(2 + sources)
    return result(target), at, values


def _loop(
    block: Block,
    opcode: Opcode,
    at: str,
    size: str,
    change: Callable[[str], str],
) -> str:
    """A compare-and-swap loop on the word at ``at``; ``change`` writes what a new word is made
    of. Returns the old word."""
    place = [m for m in opcode.modifiers if m in (*SPACES, *SCOPES)]
    again = block.label()
    word = block.new(size)
    load = Opcode("ld", ("volatile", *(m for m in place if m in SPACES), size))
    block.do(str(load), word, f"[{at}]")
    block.place(again)
    new = change(word)
    found = block.new(size)
    old = block.new(size)
    block.do(f"mov.{size}", old, word)
    block.do(str(Opcode("atom", (*place, "cas", size))), found, f"[{at}]", word, new)
    block.do(f"mov.{size}", word, found)
    changed = block.pred(f"setp.ne.{size}", found, old)
    block.do("bra", again, guard=f"@{changed}")
    return word


def _half_operation(block: Block, opcode: Opcode, element: str, old: str, number: str) -> str:
    """The new half: the old one added to, or compared with, an fp32 number."""
    wide = widened(block, element, old)
    if opcode.has("add"):
        value = block.b32("add.rn.f32", wide, number)
    else:
        name = opcode.one_of(("min", "max"))
        value = extreme(block, Opcode(name, ("f32",)), wide, number)
    return narrowed(block, element, value)


def _half(instruction: Instruction, context: Context) -> str:
    opcode = instruction.opcode
    kind = _type(opcode)
    target, operand, sources = _operands(instruction, 2 if opcode.has("cas") else 1)
    block = context.block()
    end = block.unless(instruction.guard)
    at, size = pointer(block, instruction, operand, opcode.one_of(SPACES), context)
    if kind.endswith("x2"):
        element = kind.removesuffix("x2")
        numbers = [widened(block, element, half) for half in elements(block, kind, sources[0])]

        def both(word: str) -> str:
            halves = [
                _half_operation(block, opcode, element, half, number)
                for half, number in zip(elements(block, kind, word), numbers, strict=True)
            ]
            return block.b32("mov.b32", f"{{{halves[0]}, {halves[1]}}}")

        word = _loop(block, opcode, at, "b32", both)
        if target:
            block.do("mov.b32", target, word)
        block.place(end)
        return str(block)

    # The aligned word that the half is in, and how many bits up it is there.
    low = block.b32("cvt.u32.u64", at) if size == "b64" else at
    shift = block.b32("and.b32", low, 2)
    shift = block.b32("shl.b32", shift, 3)
    whole = block.new(size)
    block.do(f"and.{size}", whole, at, -4)
    values = [block.b16("mov.b16", source) for source in sources]
    done = block.label()
    old = block.new("b16")
    number = "" if opcode.has("cas") else widened(block, kind, values[0])

    def one(word: str) -> str:
        shifted = block.b32("shr.u32", word, shift)
        block.do("cvt.u16.u32", old, shifted)
        if number:
            half = _half_operation(block, opcode, kind, old, number)
        else:
            half = values[1]
            differs = block.pred("setp.ne.s16", old, values[0])
            block.do("bra", done, guard=f"@{differs}")
        wide = block.b32("cvt.u32.u16", half)
        return block.b32("bfi.b32", wide, word, shift, 16)

    _loop(block, opcode, whole, "b32", one)
    if not number:
        block.place(done)
    if target:
        deliver(block, "", target, [old])
    block.place(end)
    return str(block)


def _double(instruction: Instruction, context: Context) -> str:
    opcode = instruction.opcode
    target, operand, (source,) = _operands(instruction, 1)
    block = context.block()
    end = block.unless(instruction.guard)
    at, _ = pointer(block, instruction, operand, opcode.one_of(SPACES), context)
    value = block.b64("mov.f64", source)
    word = _loop(block, opcode, at, "b64", lambda word: block.b64("add.rn.f64", word, value))
    if target:
        block.do("mov.b64", target, word)
    block.place(end)
    return str(block)


RULES = (
    Rule(
        name="vector atomic",
        section="Parallel Synchronization and Communication Instructions: atom, red (.vec)",
        guarantees="each element is atomic by itself, which is all the instruction promises",
        costs="one atomic for each element",
        opcodes=_ATOMICS,
        needs=_needs_vector,
        rewrite=_vector,
    ),
    Rule(
        name="half atomic",
        section="Parallel Synchronization and Communication Instructions: atom, red; atom.cas",
        guarantees="atomic; correctly rounded, to nearest even; subnormals kept; the other half "
        "of an aligned word is written back as it was read, in the same compare-and-swap",
        costs="a loop around a 32-bit compare-and-swap, once more for each thread that came first",
        opcodes=_ATOMICS,
        needs=_needs_half,
        rewrite=_half,
    ),
    Rule(
        name="double atomic",
        section="Parallel Synchronization and Communication Instructions: atom, red (.f64)",
        guarantees="atomic; correctly rounded",
        costs="a loop around a 64-bit compare-and-swap",
        opcodes=_ATOMICS,
        needs=_needs_double,
        rewrite=_double,
    ),
)
