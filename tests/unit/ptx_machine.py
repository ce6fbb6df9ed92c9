"""Threads that run the part of PTX the legaliser writes, one statement at a time.

Registers hold bit patterns. Rounding is done on exact fractions, apart from the code under test.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

from legacy_cuda.triton_backend.ptx import STATEMENT, Instruction

BASE = 0x10000  # where the variables of `ptx_examples` are, each in its own memory
WIDTHS = {"pred": 1, "8": 8, "16": 16, "32": 32, "64": 64}


@dataclass(frozen=True)
class Format:
    """An IEEE-like format: bits in all, bits of the mantissa. The largest exponent is infinity's
    and NaN's, but for ``finite`` (E4M3), where only the pattern of all ones is NaN."""

    bits: int
    mantissa: int
    finite: bool = False

    @property
    def bias(self) -> int:
        return (1 << (self.bits - self.mantissa - 2)) - 1

    @property
    def infinity(self) -> int:
        return ((1 << (self.bits - 1)) - 1) >> self.mantissa << self.mantissa

    @property
    def largest(self) -> int:
        return (1 << (self.bits - 1)) - 2 if self.finite else self.infinity - 1

    def is_nan(self, bits: int) -> bool:
        magnitude = bits & ((1 << (self.bits - 1)) - 1)
        return magnitude > (self.largest if self.finite else self.infinity)

    def value(self, bits: int) -> Fraction | float:
        """The number: a fraction, or NaN, or an infinity."""
        sign = -1 if bits >> (self.bits - 1) else 1
        magnitude = bits & ((1 << (self.bits - 1)) - 1)
        if self.is_nan(bits):
            return math.nan
        if magnitude == self.infinity and not self.finite:
            return sign * math.inf
        exponent = magnitude >> self.mantissa
        digits = magnitude & ((1 << self.mantissa) - 1)
        if exponent:
            digits |= 1 << self.mantissa
        shift = max(exponent, 1) - self.bias - self.mantissa
        return sign * digits * (Fraction(2) ** shift)

    def bits_of(self, value: Fraction, mode: str = "rn", zero: int = 0) -> int:
        """A number rounded: to nearest even, to zero, down, up, or nearest away. ``zero`` is the
        sign of a zero that is exact."""
        sign = int(value < 0) if value else zero
        size = abs(value)
        least = 1 - self.bias - self.mantissa
        exponent = least
        if size:
            top = size.numerator.bit_length() - size.denominator.bit_length()
            top -= Fraction(2) ** top > size
            exponent = max(top - self.mantissa, least)
        whole, rest = divmod(size / Fraction(2) ** exponent, 1)
        half = Fraction(1, 2)
        up = {
            "rn": rest > half or (rest == half and whole & 1),
            "rna": rest >= half,
            "rz": False,
            "rm": bool(rest) and sign,
            "rp": bool(rest) and not sign,
        }[mode]
        whole += bool(up)
        magnitude = int(whole) + ((exponent - least) << self.mantissa)
        if magnitude > self.largest and not self.finite:
            away = {"rn": True, "rna": True, "rz": False, "rm": bool(sign), "rp": not sign}[mode]
            magnitude = self.infinity if away else self.largest
        return sign << (self.bits - 1) | magnitude


F16, BF16, F32, F64 = Format(16, 10), Format(16, 7), Format(32, 23), Format(64, 52)
E4M3, E5M2 = Format(8, 3, finite=True), Format(8, 2)
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
NANS = {16: 0x7FFF, 32: 0x7FFFFFFF, 64: 0x7FF8000000000000}


def computed(kind: str, mode: str, value: Fraction | float, zero: int = 0) -> int:
    """A result as bits of a format."""
    shape = FORMATS[kind]
    if isinstance(value, float):
        if math.isnan(value):
            return NANS[shape.bits]
        return shape.infinity | (value < 0) << (shape.bits - 1)
    return shape.bits_of(value, mode, zero)


def single(value: float) -> int:
    """A float as bits of fp32, to nearest even."""
    if math.isnan(value):
        return NANS[32]
    try:
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    except OverflowError:
        return F32.infinity | (value < 0) << 31


def as_float(bits: int) -> float:
    """Bits of fp32 as a float, exact."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


def width_of(kind: str) -> int:
    return WIDTHS[kind if kind == "pred" else kind.lstrip("bsuf")]


@dataclass
class Memory:
    """Bytes by address, global and shared apart; ``trace`` is what was done, in order."""

    spaces: dict[str, dict[int, int]] = field(default_factory=lambda: {"global": {}, "shared": {}})
    trace: list[str] = field(default_factory=list)

    def read(self, space: str, at: int, width: int) -> int:
        assert at % (width // 8) == 0, f"{at:#x} is not aligned to {width} bits"
        cells = self.spaces[space]
        missing = [at + index for index in range(width // 8) if at + index not in cells]
        assert not missing, f"{space} memory ends before {missing}"
        return sum(cells[at + index] << 8 * index for index in range(width // 8))

    def write(self, space: str, at: int, width: int, value: int) -> None:
        assert at % (width // 8) == 0, f"{at:#x} is not aligned to {width} bits"
        for index in range(width // 8):
            assert at + index in self.spaces[space], f"{space} memory ends before {at:#x}"
            self.spaces[space][at + index] = value >> 8 * index & 0xFF

    def fill(self, space: str, at: int, data: bytes) -> None:
        self.spaces[space].update((at + index, byte) for index, byte in enumerate(data))

    def bytes(self, space: str, at: int, count: int) -> bytes:
        return bytes(self.spaces[space][at + index] for index in range(count))


Step = Callable[["Thread"], "str | None"]


class Program:
    """Statements made ready to run."""

    def __init__(self, text: str) -> None:
        self.steps: list[tuple[str, bool, Step]] = []
        self.labels: dict[str, int] = {}
        for match in STATEMENT.finditer(text):
            if match.lastgroup == "label":
                self.labels[match["label"]] = len(self.steps)
            elif match.lastgroup == "opcode":
                begin = match.start("guard") if match["guard"] else match.start("opcode")
                instruction = Instruction.read(text[begin : match.end()])
                guard = instruction.guard.lstrip("@!")
                self.steps.append((guard, "!" in instruction.guard, _step(instruction)))
            else:
                assert match.lastgroup in ("open", "close", "directive", "end"), match[0]

    def run(self, memory: Memory | None = None, **registers: int) -> dict[str, int]:
        """Run one thread alone to the end; its registers. Names are given without ``%``."""
        thread = Thread(self, memory or Memory(), {f"%{k}": v for k, v in registers.items()})
        while not thread.done:
            thread.step()
        return thread.registers


@dataclass(frozen=True)
class Shuffle:
    """What a thread that waits in ``shfl.sync`` asks for and shows."""

    mask: int
    lane: int
    shown: int
    target: str


class Thread:
    """A thread between two statements."""

    def __init__(self, program: Program, memory: Memory, registers: dict[str, int]) -> None:
        self.program, self.memory, self.registers = program, memory, registers
        self.at = 0
        self.lane = registers.get("%laneid", 0)
        self.waiting: Shuffle | None = None

    @property
    def done(self) -> bool:
        return self.at >= len(self.program.steps)

    def step(self) -> None:
        guard, negated, action = self.program.steps[self.at]
        self.at += 1
        if not guard or bool(self.registers[guard]) != negated:
            target = action(self)
            if target is not None:
                self.at = self.program.labels[target]


def run_together(threads: list[Thread], seed: int = 0) -> None:
    """Run threads in any order, a statement at a time; shuffles wait for their mask."""
    order = random.Random(seed)
    for _ in range(1_000_000):
        ready = [thread for thread in threads if not thread.done and thread.waiting is None]
        if ready:
            order.choice(ready).step()
            continue
        waiting = {thread.lane: thread for thread in threads if thread.waiting is not None}
        if not waiting:
            return
        for thread in waiting.values():
            mask = thread.waiting.mask
            group = [waiting.get(lane) for lane in range(32) if mask >> lane & 1]
            if all(other is not None and other.waiting.mask == mask for other in group):
                break
        else:
            raise AssertionError("threads wait for each other")
        shown = {other.lane: other.waiting.shown for other in group}
        assert thread.lane in shown, "a thread outside the mask shuffles"
        for other in group:
            assert other.waiting.lane in shown, "a thread outside the mask is asked"
            other.registers[other.waiting.target] = shown[other.waiting.lane]
        for other in group:
            other.waiting = None
    raise AssertionError("no end")


def _reader(operand: str, kind: str) -> Callable[[dict[str, int]], int]:
    """An operand as bits of a type's width."""
    width = width_of(kind)
    mask = (1 << width) - 1
    if operand.startswith("{"):
        parts = [part.strip() for part in operand[1:-1].split(",")]
        size = width // len(parts)
        readers = [_reader(part, f"b{size}") for part in parts]

        def joined(registers: dict[str, int]) -> int:
            return sum(read(registers) << size * index for index, read in enumerate(readers))

        return joined
    if operand in ("words", "variable"):
        return lambda registers: BASE
    if operand.startswith("!"):
        return lambda registers: registers[operand[1:]] ^ 1
    if operand[0] == "%":
        return lambda registers: registers[operand] & mask
    if operand[:2] in ("0f", "0F", "0d", "0D") and len(operand) in (10, 18):
        bits = int(operand[2:], 16)
        assert (len(operand) - 2) * 4 == width
    elif "." in operand:
        bits = FORMATS[kind].bits_of(Fraction(operand))
    else:
        bits = int(operand, 0)
        assert -(1 << width) < bits <= mask, f"{operand} has more than {width} bits"
    bits &= mask
    return lambda registers: bits


def _writer(operand: str, kind: str) -> Callable[[dict[str, int], int], None]:
    width = width_of(kind)
    mask = (1 << width) - 1
    if operand.startswith("{"):
        parts = [part.strip() for part in operand[1:-1].split(",")]
        size = width // len(parts)

        def spread(registers: dict[str, int], value: int) -> None:
            for index, part in enumerate(parts):
                registers[part] = value >> size * index & ((1 << size) - 1)

        return spread
    assert operand[0] == "%", f"{operand} is no register"

    def write(registers: dict[str, int], value: int) -> None:
        registers[operand] = value & mask

    return write


def _flush(bits: int) -> int:
    return bits if bits & 0x7F800000 else bits & 0x80000000


_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def compare(name: str, kind: str, a: int, b: int) -> bool:
    if kind[0] == "f":
        left, right = FORMATS[kind].value(a), FORMATS[kind].value(b)
        unordered = left != left or right != right
        if name in ("nan", "num"):
            return unordered == (name == "nan")
        if name in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
            return unordered or _COMPARISONS[name[:-1]](left, right)
        return not unordered and _COMPARISONS[name](left, right)
    if kind[0] == "s":
        a, b = signed(a, width_of(kind)), signed(b, width_of(kind))
    return _COMPARISONS[name](a, b)


def _approximate(function: Callable[[float], float]) -> Callable[[int], int]:
    def run(bits: int) -> int:
        number = as_float(bits)
        try:
            return single(function(number))
        except OverflowError:
            return F32.infinity
        except ZeroDivisionError:
            return F32.infinity | (bits & 0x80000000)

    return run


_APPROXIMATE = {
    "ex2": _approximate(lambda x: x if x != x else 0.0 if x == -math.inf else 2.0**x),
    "rcp": _approximate(lambda x: 1.0 / x),
}


def _convert(modifiers: tuple[str, ...], bits: int) -> int:
    *options, target, source = modifiers
    mode = next((m[:2] for m in options if m[0] == "r"), "rn")
    to_integer = target[0] in "su"
    if source[0] in "su":
        value: Fraction | float = Fraction(
            signed(bits, width_of(source)) if source[0] == "s" else bits
        )
        if to_integer:
            return int(value)
    else:
        value = FORMATS[source].value(bits)
        if source == "f32" and "ftz" in options:
            value = FORMATS[source].value(_flush(bits))
        if options and options[0] in ("rni", "rzi") and not isinstance(value, float):
            value = Fraction(round(value) if options[0] == "rni" else math.trunc(value))
    if to_integer:
        width = width_of(target)
        low, high = (
            (-(1 << width - 1), (1 << width - 1) - 1) if target[0] == "s" else (0, (1 << width) - 1)
        )
        if value != value:
            return 0
        return high if value > high else low if value < low else int(value)
    if "sat" in options:
        value = Fraction(0) if value != value or value < 0 else min(Fraction(1), value)
        return computed(target, mode, Fraction(value))
    return computed(target, mode, value, bits >> (width_of(source) - 1) if source[0] == "f" else 0)


def _fused(mode: str, a: int, b: int, c: int) -> int:
    x, y, z = (F32.value(bits) for bits in (a, b, c))
    if any(isinstance(value, float) for value in (x, y, z)):
        with_infinity = (
            float(x) * float(y) + float(z) if all(v == v for v in (x, y, z)) else math.nan
        )
        return computed("f32", mode, with_infinity)
    product_sign = (a ^ b) >> 31
    both = product_sign if product_sign == c >> 31 else int(mode == "rm")
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    return F32.bits_of(exact, mode, both)


def _arithmetic(name: str, kind: str, a: int, b: int) -> int:
    """``add``, ``sub``, ``mul`` to nearest of fp32 or fp64, ``min`` and ``max``."""
    if name in ("min", "max"):
        x, y = FORMATS[kind].value(a), FORMATS[kind].value(b)
        if x != x or y != y:
            return NANS[32] if x != x and y != y else b if x != x else a
        if x == y:  # only zeros differ
            return a | b if name == "min" else a & b
        return a if (x < y) == (name == "min") else b
    if kind == "f32":
        left, right = as_float(a), as_float(b)
    else:
        left, right = (struct.unpack("<d", struct.pack("<Q", bits))[0] for bits in (a, b))
    right = -right if name == "sub" else right
    value = left * right if name == "mul" else left + right
    if kind == "f32":  # 53 bits are enough for the second rounding to be right
        return single(value)
    return NANS[64] if value != value else int(struct.unpack("<Q", struct.pack("<d", value))[0])


def _bfe(kind: str, value: int, start: int, length: int) -> int:
    width = width_of(kind)
    start, length = start & 0xFF, length & 0xFF
    number = signed(value, width) if kind[0] == "s" else value
    taken = number >> start & ((1 << length) - 1)
    if kind[0] == "s" and length and start + length <= width and taken >> (length - 1):
        taken -= 1 << length
    return taken


def _bfi(a: int, b: int, start: int, length: int) -> int:
    mask = ((1 << length) - 1) << start
    return (b & ~mask | a << start & mask) & 0xFFFFFFFF


def _integer(name: str, kind: str) -> Callable[[int, int], int]:
    width = width_of(kind)

    def order(value: int) -> int:
        return signed(value, width) if kind[0] == "s" else value

    return {
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "shl": lambda a, b: a << b if b < width else 0,
        "shr": lambda a, b: order(a) >> min(b, width),
        "min": lambda a, b: min(a, b, key=order),
        "max": lambda a, b: max(a, b, key=order),
    }[name]


def _step(instruction: Instruction) -> Step:
    """A statement as a function of the thread, which returns the label to jump to, if any."""
    opcode, operands = instruction.opcode, instruction.operands
    name, modifiers, kind = opcode.name, opcode.modifiers, opcode.type
    if name == "bra":
        return lambda thread: operands[0]
    if name in ("ld", "st", "atom", "red"):
        return _access(instruction)
    if name == "membar" or str(opcode) == "bar.warp.sync":
        return lambda thread: thread.memory.trace.append(str(opcode))
    if name == "shfl":
        return _shuffle(instruction)
    if name == "mov" and operands[1] == "%laneid":
        return lambda thread: thread.registers.__setitem__(operands[0], thread.lane)
    if name == "cvt":
        put, read = _writer(operands[0], modifiers[-2]), _reader(operands[1], kind)
        if kind[0] == "u" and modifiers[-2][0] == "u":
            return lambda thread: put(thread.registers, read(thread.registers))
        return lambda thread: put(thread.registers, _convert(modifiers, read(thread.registers)))
    if name == "setp":
        return _setp(instruction)
    if name == "set":
        return _set(instruction)
    write = _writer(operands[0], kind)
    if name == "selp":
        first, second = (_reader(operand, kind) for operand in operands[1:3])
        which = _reader(operands[3], "pred")
        return lambda thread: write(
            thread.registers, (first if which(thread.registers) else second)(thread.registers)
        )
    function = _function(name, kind, modifiers)
    # Counts and positions are 32 bits wide whatever the type.
    kinds = [kind, "u32", "u32", "u32"] if name in ("bfe", "shl", "shr") else [kind] * 4
    readers = [_reader(operand, k) for operand, k in zip(operands[1:], kinds, strict=False)]
    if len(readers) == 1:
        (one,) = readers
        return lambda thread: write(thread.registers, function(one(thread.registers)))
    if len(readers) == 2:
        left, right = readers
        return lambda thread: write(
            thread.registers, function(left(thread.registers), right(thread.registers))
        )
    return lambda thread: write(
        thread.registers, function(*[read(thread.registers) for read in readers])
    )


def _function(name: str, kind: str, modifiers: tuple[str, ...]) -> Callable[..., int]:
    """What an instruction computes of the bits of its operands."""
    plain: dict[str, Callable[..., int]] = {
        "mov": lambda a: a,
        "not": lambda a: ~a,
        "clz": lambda a: width_of(kind) - a.bit_length(),
        "brev": lambda a: int(f"{a:032b}"[::-1], 2),
        "fma": lambda a, b, c: _fused(modifiers[0], a, b, c),
        "bfe": lambda a, b, c: _bfe(kind, a, b, c),
        "bfi": _bfi,
        "mad": lambda a, b, c: a * b + c,
        **_APPROXIMATE,
    }
    if name in plain:
        return plain[name]
    if kind[0] == "f":
        return lambda a, b: _arithmetic(name, kind, a, b)
    return _integer(name, kind)


def _set(instruction: Instruction) -> Step:
    comparison, *combine, target, kind = instruction.opcode.modifiers
    assert combine in ([], ["and"])
    first, second = (_reader(operand, kind) for operand in instruction.operands[1:3])
    extra = _reader(instruction.operands[3], "pred") if combine else None
    yes = 0x3F800000 if target == "f32" else 0xFFFFFFFF

    def run(thread: Thread) -> None:
        registers = thread.registers
        holds = compare(comparison, kind, first(registers), second(registers))
        if extra:
            holds = holds and bool(extra(registers))
        registers[instruction.operands[0]] = yes if holds else 0

    return run


def _setp(instruction: Instruction) -> Step:
    opcode, operands = instruction.opcode, instruction.operands
    kind = opcode.type
    first, second = (_reader(operand, kind) for operand in operands[1:3])
    targets = [target.strip() for target in operands[0].split("|")]
    extra = _reader(operands[3], "pred") if len(operands) == 4 else None
    combine = opcode.one_of(("and", "or"))
    name = opcode.modifiers[0]

    def run(thread: Thread) -> None:
        registers = thread.registers
        holds = compare(name, kind, first(registers), second(registers))
        for target, value in zip(targets, (holds, not holds), strict=False):
            if extra:
                other = bool(extra(registers))
                value = (value and other) if combine == "and" else (value or other)
            registers[target] = int(value)

    return run


def _shuffle(instruction: Instruction) -> Step:
    target, value, lane, clamp, mask = instruction.operands
    assert clamp == "31" and instruction.opcode.has("sync")
    read, which, members = (_reader(operand, "b32") for operand in (value, lane, mask))
    butterfly = instruction.opcode.has("bfly")

    def run(thread: Thread) -> None:
        registers = thread.registers
        asked = which(registers)
        asked = thread.lane ^ asked if butterfly else asked
        thread.waiting = Shuffle(members(registers), asked, read(registers), target)

    return run


def _access(instruction: Instruction) -> Step:
    opcode, operands = instruction.opcode, list(instruction.operands)
    kind = opcode.type
    space = "shared" if opcode.has("shared", "shared::cta") else "global"
    brackets = next(operand for operand in operands if operand.startswith("["))
    address = instruction.address(brackets)
    base = _reader(address.base, "b64")
    count = int(opcode.one_of(("v2", "v4"))[1:] or 1)
    width = width_of(kind)

    def place(thread: Thread) -> int:
        return base(thread.registers) + address.offset

    def note(thread: Thread) -> None:
        thread.memory.trace.append(str(opcode))

    if opcode.name == "ld":
        write = _writer(operands[0], f"b{width}") if count == 1 else None
        parts = instruction.vector(operands[0])

        def load(thread: Thread) -> None:
            note(thread)
            at = place(thread)
            assert at % (width // 8 * count) == 0
            for index, part in enumerate(parts):
                value = thread.memory.read(space, at + index * width // 8, width)
                if write:
                    write(thread.registers, value)
                else:
                    thread.registers[part] = value

        return load
    if opcode.name == "st":
        sources = [_reader(part, f"b{width}") for part in instruction.vector(operands[1])]

        def store(thread: Thread) -> None:
            note(thread)
            at = place(thread)
            assert at % (width // 8 * count) == 0
            for index, read in enumerate(sources):
                thread.memory.write(space, at + index * width // 8, width, read(thread.registers))

        return store
    values = [_reader(operand, kind) for operand in operands[operands.index(brackets) + 1 :]]
    operation = opcode.one_of(("cas", "add", "exch"))

    def atomic(thread: Thread) -> None:
        note(thread)
        at = place(thread)
        old = thread.memory.read(space, at, width)
        given = [read(thread.registers) for read in values]
        if operation == "cas":
            new = given[1] if old == given[0] else old
        elif operation == "exch":
            new = given[0]
        elif kind[0] == "f":
            new = _arithmetic("add", kind, old, given[0])
        else:
            new = old + given[0]
        thread.memory.write(space, at, width, new & ((1 << width) - 1))
        if opcode.name == "atom" and operands[0] != "_":
            thread.registers[operands[0]] = old

    return atomic
