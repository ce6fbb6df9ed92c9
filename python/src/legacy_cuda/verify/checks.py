"""Whether the GPU computes, counts and remembers what it should, to the last bit.

Every expected number is computed here with Python's doubles and integers, which are exact where it
matters, as each comment says. A check gets the GPU and returns what it saw; :class:`WrongError`
says what was wrong.
"""

from __future__ import annotations

import ctypes
import math
import random
import struct
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from legacy_cuda.capability import Capability
from legacy_cuda.verify.driver import Context, Device, DriverError, Pointer, u32, u64

Facts = dict[str, Any]

# Of probe.cu: the patterns of memory, how many errors it lists, what a block's test takes.
ADDRESS, ADDRESS_INVERTED, WALKING_ONE, WALKING_ZERO, CONSTANT = range(5)
LISTED = 8
SHARED_BYTES = 48 << 10
ERRORS_BYTES = 8 * (2 + 2 * LISTED)

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_COUNT = 4096
_THREADS = 256
_PIECE = 1 << 30
_PIECE_LEAST = 64 << 20
_MIB = 1 << 20
_KEPT_FREE = 256 << 20
"""Bytes that the test of the memory leaves to whatever else runs on the GPU, a display for one."""

PATTERNS = (
    (ADDRESS, 0x5EED),
    (ADDRESS_INVERTED, 0x5EED),
    *((WALKING_ONE, seed) for seed in (0, 11, 21)),
    *((WALKING_ZERO, seed) for seed in (0, 11, 21)),
    (CONSTANT, 0x55555555),
    (CONSTANT, 0xAAAAAAAA),
)


class WrongError(Exception):
    """The GPU gave a wrong result; ``facts`` are what is known of it."""

    def __init__(self, text: str, **facts: Any) -> None:
        super().__init__(text)
        self.facts = facts


@dataclass(frozen=True)
class Gpu:
    """A GPU with the probe loaded. ``capability`` is that of the code, the older one in a replay.

    ``memory_limit`` is how much memory to test at most, in bytes; 0 tests all that is free.
    ``load`` is for how many seconds arithmetic is kept up.
    """

    device: Device
    context: Context
    capability: Capability
    memory_limit: int = 0
    load: float = 5.0

    @property
    def blocks(self) -> int:
        """Of 256 threads: as many as are at work at once, eight for each multiprocessor."""
        return 8 * self.device.multiprocessors


def errors_of(report: bytes) -> Facts:
    """What the kernels wrote down: how many words, which bits, and the first of them."""
    count, bits, *rows = struct.unpack(f"<{2 + 2 * LISTED}Q", report)
    listed = [
        {"word": rows[2 * k], "should": f"{rows[2 * k + 1] >> 32:08x}",
         "is": f"{rows[2 * k + 1] & 0xFFFFFFFF:08x}"}
        for k in range(min(count, LISTED))
    ]  # fmt: skip
    return {"errors": count, "bits": f"{bits & 0xFFFFFFFF:08x}", "first": listed}


def fp32(gpu: Gpu) -> Facts:
    """Addition, product, quotient, root and fused multiply-add in single precision."""
    pairs = [(2.0**-149, 1.0), (1.5 * 2.0**-126, 0.5), (-0.0, 1.0), (1.0, -1.0), (2.0**127, 1.5)]
    dice = random.Random(32)
    while len(pairs) < _COUNT:
        pairs.append((_single(_any(dice, 20)), _single(_any(dice, 20))))
    # Doubles have more than twice the bits of singles, and two more: rounding to double first
    # and then to single gives what rounding once gives. Products, and their errors, are exact.
    rows: list[list[float]] = [[], [], [], [], []]
    for a, b in pairs:
        product = _single(a * b)
        exact = (a + b, product, a / b, math.sqrt(abs(a)), a * b - product)
        for row, value in zip(rows, exact, strict=True):
            row.append(value)
    return _arithmetic(gpu, "arithmetic_fp32", "f", pairs, rows)


def fp64(gpu: Gpu) -> Facts:
    """The same in double precision."""
    dice = random.Random(64)
    pairs = [(5e-324, 1.0), (1.5 * 2.0**-1022, 0.5), (-0.0, 1.0), (1.0, -1.0)]
    while len(pairs) < _COUNT:
        pairs.append((_any(dice, 200), _any(dice, 200)))
    rows: list[list[float]] = [[], [], [], [], []]
    for a, b in pairs:
        error = float(Fraction(a) * Fraction(b) - Fraction(a * b))  # representable, so exact
        for row, value in zip(rows, (a + b, a * b, a / b, math.sqrt(abs(a)), error), strict=True):
            row.append(value)
    return _arithmetic(gpu, "arithmetic_fp64", "d", pairs, rows)


def _arithmetic(
    gpu: Gpu, kernel: str, kind: str, pairs: list[tuple[float, float]], rows: list[list[float]]
) -> Facts:
    operations = ("addition", "product", "quotient", "square root", "fused multiply-add")
    count = len(pairs)
    a, b = (array(kind, side).tobytes() for side in zip(*pairs, strict=True))
    out = _apply(gpu, kernel, [a, b], 5 * len(a), count)
    size = array(kind).itemsize
    for number, (name, row) in enumerate(zip(operations, rows, strict=True)):
        should = array(kind, row).tobytes()
        found = out[number * len(should) : (number + 1) * len(should)]
        _same(found, should, size, name)
    return {"results": 5 * count}


def fp16_storage(gpu: Gpu) -> Facts:
    """Every half widened to fp32, and numbers rounded to halves."""
    halves = array("H", range(1 << 16))
    dice = random.Random(16)
    numbers = [65504.0, 65519.0, 65520.0, -70000.0, 2.0**-24, 2.0**-25, 2.0**-14, 1e-9]
    while len(numbers) < _COUNT:
        half = dice.randrange(0x7BFF)
        low, high = _half(half), _half(half + 1)
        numbers.append(dice.choice((1, -1)) * dice.choice(((low + high) / 2, _any(dice, 15))))
    numbers = [_single(number) for number in numbers]
    floats = array("f", numbers)
    sizes = (2 * len(halves), 4 * len(halves), 4 * len(floats), 2 * len(floats))
    context = gpu.context
    with context.memory(*sizes) as (narrow, wide, source, rounded):
        context.put(narrow, halves.tobytes())
        context.put(source, floats.tobytes())
        for pointer, size in ((wide, sizes[1]), (rounded, sizes[3])):
            _poison(context, pointer, size)
        arguments = [u64(narrow), u64(wide), u32(len(halves)), u64(source), u64(rounded)]
        context.launch("storage_fp16", gpu.blocks, [*arguments, u32(len(floats))])
        context.wait()
        widened, narrowed = context.get(wide, sizes[1]), context.get(rounded, sizes[3])
    found = array("f", widened)
    for bits, value in enumerate(found):
        should = _half(bits)
        if not (value == should or (math.isnan(value) and math.isnan(should))):
            raise WrongError(f"half {bits:04x} becomes {value!r}, not {should!r}")
    _same(narrowed, array("H", map(_to_half, numbers)).tobytes(), 2, "rounding to a half")
    return {"results": len(halves) + len(floats)}


def fp16(gpu: Gpu) -> Facts:
    """Fused multiply-add of halves, in pairs; in fp32 where there is no arithmetic of halves."""
    dice = random.Random(1616)

    # Six bits and five exponents: a * b + c is exact in fp32 and double, and rounded once.
    def some() -> float:
        return dice.choice((1, -1)) * dice.randrange(32, 64) / 32 * 2.0 ** dice.randrange(-2, 3)

    operands = [[some() for _ in range(2 * _COUNT)] for _ in range(3)]
    should = array("H", (_to_half(a * b + c) for a, b, c in zip(*operands, strict=True)))
    inputs = [array("H", map(_to_half, side)).tobytes() for side in operands]
    out = _apply(gpu, "arithmetic_fp16", inputs, 4 * _COUNT, _COUNT)
    _same(out, should.tobytes(), 2, "fused multiply-add of halves")
    return {"results": 2 * _COUNT}


def int8(gpu: Gpu) -> Facts:
    """Dot products of four bytes: ``dp4a`` where there is one, else the same step by step."""
    dice = random.Random(8)
    words = [[dice.getrandbits(32) for _ in range(_COUNT)] for _ in range(3)]
    words[0][0] = words[1][0] = 0x80808080
    should = array("I")
    for signed in (True, False):
        for a, b, c in zip(*words, strict=True):
            should.append((c + _dot(a, b, signed)) & 0xFFFFFFFF)
    inputs = [array("I", side).tobytes() for side in words]
    out = _apply(gpu, "dot_int8", inputs, 8 * _COUNT, _COUNT)
    _same(out, should.tobytes(), 4, "dot product of bytes")
    return {"results": 2 * _COUNT}


def atomics(gpu: Gpu) -> Facts:
    """Sums, extremes, exchanges that all threads make in the same words."""
    blocks = 2 * gpu.device.multiprocessors
    count = blocks * _THREADS
    context = gpu.context
    with context.memory(12 * 8, 4 * count) as (cells, tickets):
        context.put(cells, struct.pack("<12Q", *(0xFFFFFFFF if k == 5 else 0 for k in range(12))))
        context.put(tickets, bytes(4 * count))
        context.launch("atomics", blocks, [u64(cells), u64(tickets)])
        context.wait()
        found, drawn = context.get(cells, 96), array("I", context.get(tickets, 4 * count))
    xor = 0
    for index in range(count):
        xor ^= index
    warps = range(0, count, 32)
    every, sums = float(count), count * (count - 1) // 2 << 20
    names = (
        *("add u32", "add u64", "add fp32", "add fp64", "max", "min", "xor", "compare and swap"),
        *("add u32 (shared)", "add u64 (shared)", "add fp32 (shared)", "add fp64 (shared)"),
    )
    should = struct.pack(
        "<QQfIdIIIIIIIIIIQfId",
        *(count, sums, every, 0, float(sum(warps)), count - 1, 0, 0, 0, xor, 0, 3 * len(warps), 0),
        *(count, 0, sums, every, 0, float(count * (count - 1) // 2)),
    )
    for number, name in enumerate(names):
        is_, was = (part[8 * number : 8 * number + 8] for part in (found, should))
        if is_ != was:
            raise WrongError(f"{name}: {is_[::-1].hex()}, not {was[::-1].hex()}")
    twice = [number for number, times in enumerate(drawn) if times != 1]
    if twice:
        raise WrongError(f"{len(twice)} of {count} threads did not get a number of their own")
    return {"threads": count}


def shared(gpu: Gpu) -> Facts:
    """48 KiB of shared memory on every multiprocessor, in steps that meet one bank or all."""
    blocks = 4 * gpu.device.multiprocessors
    _no_errors(
        gpu,
        lambda errors: gpu.context.launch(
            "shared_memory", blocks, [u64(errors), u32(0x5EED)], shared=SHARED_BYTES
        ),
        "shared memory",
    )
    return {"blocks": blocks, "bytes": SHARED_BYTES}


def l2(gpu: Gpu) -> Facts:
    """Half of the L2 cache, written and read 32 times."""
    size = max(gpu.device.l2 // 2, 1 << 16) & ~15
    with gpu.context.memory(size) as (pointer,):
        for turn in range(32):
            write(gpu, pointer, size, 0, ADDRESS_INVERTED if turn % 2 else ADDRESS, turn // 2)
            check(gpu, [(pointer, size)], ADDRESS_INVERTED if turn % 2 else ADDRESS, turn // 2)
    return {"bytes": size}


def memory(gpu: Gpu) -> Facts:
    """All free memory: every word is written, then every word read, once for each pattern.

    The facts: bytes tested, the most that was asked for (``limit``, 0 for all), patterns.

    Raises:
        WrongError: words were not what they should be; which bits, and where the first were.
    """
    context = gpu.context
    free = context.free_memory()
    wanted = free - min(_KEPT_FREE, free // 8)
    wanted = min(wanted, gpu.memory_limit) if gpu.memory_limit else wanted
    pieces: list[tuple[Pointer, int]] = []
    try:
        most = _PIECE
        while wanted >= _MIB:
            size = min(most, wanted & -_MIB)
            try:
                pieces.append((context.allocate(size), size))
            except DriverError as error:
                if error.code != _OUT_OF_MEMORY:
                    raise
                if size > _PIECE_LEAST:  # what is free need not be in one piece
                    most = max(size // 2 & -_MIB, _PIECE_LEAST)
                    continue
                if not pieces:
                    raise
                break
            wanted -= size
        tested = sum(size for _, size in pieces)
        if not pieces:
            return {"bytes": 0, "limit": gpu.memory_limit, "patterns": 0}
        for pattern, seed in PATTERNS:
            place = 0
            for pointer, size in pieces:
                write(gpu, pointer, size, place, pattern, seed)
                place += size // 4
            check(gpu, pieces, pattern, seed, bytes=tested)
        return {"bytes": tested, "limit": gpu.memory_limit, "patterns": len(PATTERNS)}
    finally:
        with suppress(DriverError):  # the context may have ended
            for pointer, _ in pieces:
                context.release(pointer)


def write(gpu: Gpu, pointer: Pointer, size: int, place: int, pattern: int, seed: int) -> None:
    """Fill memory with a pattern, its first word being number ``place`` of the test."""
    arguments = [u64(pointer), u64(size // 16), u64(place), u32(pattern), u32(seed)]
    gpu.context.launch("memory_write", gpu.blocks, arguments)


def check(
    gpu: Gpu, pieces: Sequence[tuple[Pointer, int]], pattern: int, seed: int, **facts: Any
) -> None:
    """Whether memory still has the pattern, the pieces one after the other.

    Raises:
        WrongError: it has not.
    """

    def run(errors: Pointer) -> None:
        place = 0
        for pointer, size in pieces:
            arguments = [u64(pointer), u64(size // 16), u64(place), u32(pattern), u32(seed)]
            gpu.context.launch("memory_check", gpu.blocks, [*arguments, u64(errors)])
            place += size // 4

    _no_errors(gpu, run, "memory", pattern=pattern, **facts)


def _no_errors(gpu: Gpu, launch: Any, what: str, **facts: Any) -> None:
    context = gpu.context
    with context.memory(ERRORS_BYTES) as (errors,):
        context.put(errors, bytes(ERRORS_BYTES))
        launch(errors)
        context.wait()
        found = errors_of(context.get(errors, ERRORS_BYTES))
    if found["errors"]:
        raise WrongError(
            f"{what}: {found['errors']} words are wrong, in bits {found['bits']}", **found, **facts
        )


def _apply(gpu: Gpu, kernel: str, inputs: list[bytes], size: int, count: int) -> bytes:
    """One kernel over arrays: inputs, output, number of elements."""
    context = gpu.context
    with context.memory(*map(len, inputs), size) as (*sources, out):
        for pointer, data in zip(sources, inputs, strict=True):
            context.put(pointer, data)
        _poison(context, out, size)
        context.launch(kernel, gpu.blocks, [*map(u64, sources), u64(out), u32(count)])
        context.wait()
        return context.get(out, size)


def _poison(context: Context, pointer: Pointer, size: int) -> None:
    """So that a kernel that does nothing is not taken for one that is right."""
    context.put(pointer, b"\xa5" * size)


def _same(found: bytes, should: bytes, size: int, what: str) -> None:
    if found == should:
        return
    count = len(should) // size
    wrong = [k for k in range(count) if found[k * size :][:size] != should[k * size :][:size]]
    first = wrong[0] * size
    raise WrongError(
        f"{what}: {len(wrong)} of {count} results are wrong, the first "
        f"{found[first : first + size][::-1].hex()}, not {should[first : first + size][::-1].hex()}"
    )


def _any(dice: random.Random, exponent: int) -> float:
    return dice.choice((1, -1)) * dice.uniform(1, 2) * 2.0 ** dice.randrange(-exponent, exponent)


def _single(value: float) -> float:
    return ctypes.c_float(value).value


def _half(bits: int) -> float:
    value: float = struct.unpack("<e", struct.pack("<H", bits))[0]
    return value


def _to_half(value: float) -> int:
    try:
        bits: int = struct.unpack("<H", struct.pack("<e", value))[0]
    except OverflowError:
        return 0xFC00 if value < 0 else 0x7C00
    return bits


def _dot(a: int, b: int, signed: bool) -> int:
    def parts(word: int) -> list[int]:
        return list(struct.unpack("4b" if signed else "4B", struct.pack("<I", word)))

    return sum(x * y for x, y in zip(parts(a), parts(b), strict=True))
