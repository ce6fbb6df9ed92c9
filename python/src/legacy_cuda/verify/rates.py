"""How fast the GPU is: memory, arithmetic, the link to the machine and to other GPUs.

Rates are of results that were looked at: a copy that is not equal, or a sum that is wrong, is an
error (:class:`~legacy_cuda.verify.checks.WrongError`). Bandwidth is in 10^9 bytes/s, arithmetic in
10^12 operations/s, where a fused multiply-add counts as two and a dot product of four bytes as
eight. Times are the GPU's own, by events.
"""

from __future__ import annotations

import random
import statistics
import struct
import time
from collections.abc import Callable
from ctypes import memmove
from functools import partial
from typing import Any

from legacy_cuda.verify import checks
from legacy_cuda.verify.checks import Facts, Gpu, WrongError
from legacy_cuda.verify.driver import Context, f32, f64, u32, u64

_LEAST = 0.02  # seconds of one timed piece of work: far above the resolution of events
_MOST_SECONDS = 0.2  # of one kernel: a display's watchdog ends kernels after some seconds
_REPEATED = 5
_BUFFER = 256 << 20
_LINK_BUFFER = 64 << 20
_PER_THREAD = 8 * 16  # CHAINS * UNROLLED of probe.cu: steps of a thread in a round
_ONE = 0x3F800000  # 1.0 as fp32
STEPS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Fused multiply-adds for each number that is read: what the roofline is measured at."""


def bandwidth(gpu: Gpu) -> Facts:
    """Copies, and sums of two arrays (``a = b + s c``), within the GPU's memory."""
    context = gpu.context
    size = _size(gpu, 3)
    quads = size // 16
    with context.memory(size, size, size) as (a, b, c):
        checks.write(gpu, b, size, 0, checks.ADDRESS, 1)
        copied = _best(
            context,
            lambda: context.launch("copy", gpu.blocks, [u64(b), u64(a), u64(quads)]),
        )
        checks.check(gpu, [(a, size)], checks.ADDRESS, 1)
        for pointer, value in ((b, 1.0), (c, 2.0)):
            checks.write(gpu, pointer, size, 0, checks.CONSTANT, _bits(value))
        arguments = [u64(b), u64(c), u64(a), u64(quads), f32(3.0)]
        added = _best(context, lambda: context.launch("triad", gpu.blocks, arguments))
        checks.check(gpu, [(a, size)], checks.CONSTANT, _bits(7.0))
    return {"copy_gb_s": 2e-9 * size / copied, "triad_gb_s": 3e-9 * size / added, "bytes": size}


def fp32(gpu: Gpu) -> Facts:
    """Multiply-adds in single precision, kept up for the time that was asked for."""
    return _arithmetic(gpu, "rate_fp32", f32(-1.0), f32(100.0), 2, gpu.load)


def fp64(gpu: Gpu) -> Facts:
    """The same in double precision."""
    return _arithmetic(gpu, "rate_fp64", f64(-1.0), f64(100.0), 2, min(0.3, gpu.load))


def fp16(gpu: Gpu) -> Facts:
    """The same with pairs of halves."""
    return _arithmetic(gpu, "rate_fp16", u32(_pair(-1.0)), u32(_pair(100.0)), 4, min(0.3, gpu.load))


def dp4a(gpu: Gpu) -> Facts:
    """Dot products of four bytes."""
    return _arithmetic(gpu, "rate_dp4a", u32(0x01FE7F80), u32(0x80FF0403), 8, min(0.3, gpu.load))


def _arithmetic(gpu: Gpu, kernel: str, a: Any, c: Any, operations: int, seconds: float) -> Facts:
    """Launch after launch for so many seconds: the best rate, that at the end, and the clock."""
    context = gpu.context
    with context.memory(24) as (report,):
        events = context.events()

        def run(rounds: int) -> tuple[float, float]:
            """Seconds that it took, and the clock in MHz."""
            context.put(report, bytes(24))
            context.mark(events[0])
            context.launch(kernel, gpu.blocks, [u32(rounds), a, c, u64(report)])
            context.mark(events[1])
            took = context.seconds(events)
            wrong, cycles, nanoseconds = struct.unpack("<3Q", context.get(report, 24))
            if wrong:
                raise WrongError(f"{kernel}: {wrong} results are wrong under load", errors=wrong)
            return took, 1000 * cycles / nanoseconds if nanoseconds else 0.0

        rounds, (took, _) = 16, run(16)
        while took < _LEAST and rounds < 1 << 24:
            rounds *= 2 if took > _LEAST / 8 else 8
            took, _ = run(rounds)
        if took > _MOST_SECONDS:
            rounds = max(1, int(rounds * _MOST_SECONDS / took))
        done = gpu.blocks * 256 * _PER_THREAD * operations * rounds
        rows: list[tuple[float, float]] = []
        started = time.monotonic()
        while len(rows) < _REPEATED or time.monotonic() - started < seconds:
            took, clock = run(rounds)
            rows.append((1e-12 * done / took, clock))
    last = rows[-max(3, len(rows) // 4) :]
    return {
        "tera_per_s": max(rate for rate, _ in rows),
        "sustained_tera_per_s": statistics.median(rate for rate, _ in last),
        "clock_mhz": max(clock for _, clock in rows),
        "sustained_clock_mhz": statistics.median(clock for _, clock in last),
        "seconds": time.monotonic() - started,
    }


def roofline(gpu: Gpu) -> Facts:
    """Operations a second at so many operations for each byte that is read."""
    context = gpu.context
    size = _size(gpu, 2)
    points = []
    with context.memory(size, 8) as (numbers, report):
        checks.write(gpu, numbers, size, 0, checks.CONSTANT, _ONE)
        context.put(report, bytes(8))
        for steps in STEPS:
            arguments = [u64(numbers), u64(size // 16), u32(steps), f32(-1.0), f32(3.0)]
            launch = partial(context.launch, "intensity", gpu.blocks, [*arguments, u64(report)])
            took = _best(context, launch)
            operations = 2 * steps * (size // 4)
            points.append({"per_byte": operations / size, "tera_per_s": 1e-12 * operations / took})
        (wrong,) = struct.unpack("<Q", context.get(report, 8))
    if wrong:
        raise WrongError(f"intensity: {wrong} results are wrong", errors=wrong)
    return {"points": points}


def link(gpu: Gpu) -> Facts:
    """From pinned memory of the machine to the GPU, and back."""
    context = gpu.context
    size = min(_LINK_BUFFER, max(1 << 20, gpu.context.free_memory() // 8 & ~0xFFFFF))
    data = random.Random(size).randbytes(size)
    with context.memory(size) as (pointer,), context.pinned(size) as host:
        memmove(host, data, size)
        to_gpu = _best(context, lambda: context.copy_in(pointer, host))
        memmove(host, bytes(size), size)
        from_gpu = _best(context, lambda: context.copy_out(host, pointer))
        context.wait()
        if host.raw != data:
            raise WrongError("what came back from the GPU over the bus is not what was sent")
    return {"to_gpu_gb_s": 1e-9 * size / to_gpu, "from_gpu_gb_s": 1e-9 * size / from_gpu}


def peer(source: Gpu, target: Gpu, direct: bool) -> Facts:
    """From one GPU's memory to the other's; ``direct``: over the bus, without the machine's memory.

    With an IOMMU between GPUs, direct copies can arrive wrong: they are compared.
    """
    size = min(_size(source, 2), _size(target, 2), _LINK_BUFFER)
    source.context.use()
    if direct:
        source.context.enable_peer(target.context)
    with source.context.memory(size) as (begin,):
        checks.write(source, begin, size, 0, checks.ADDRESS, 7)
        source.context.wait()
        target.context.use()
        with target.context.memory(size) as (end,):
            target.context.put(end, bytes(size))
            source.context.use()
            took = _best(
                source.context,
                lambda: target.context.copy_peer(end, source.context, begin, size),
            )
            source.context.wait()
            target.context.use()
            checks.check(target, [(end, size)], checks.ADDRESS, 7)
        source.context.use()
    return {"gb_s": 1e-9 * size / took, "direct": direct}


def _size(gpu: Gpu, buffers: int) -> int:
    """Of one of so many buffers: well above the L2 cache, and a part of what is free."""
    room = gpu.context.free_memory() // (2 * buffers)
    return max(1 << 20, min(max(_BUFFER, 4 * gpu.device.l2), room)) & ~0xFFFFF


def _best(context: Context, launch: Callable[[], None]) -> float:
    """Seconds of one launch: the best of some rounds of as many launches as take a while."""
    events = context.events()

    def run(count: int) -> float:
        context.mark(events[0])
        for _ in range(count):
            launch()
        context.mark(events[1])
        return context.seconds(events)

    count, took = 1, run(1)
    while took < _LEAST and count < 1 << 12:
        count *= 2
        took = run(count)
    return min(run(count) for _ in range(_REPEATED)) / count


def _bits(value: float) -> int:
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


def _pair(value: float) -> int:
    bits: int = struct.unpack("<H", struct.pack("<e", value))[0]
    return bits * 0x10001
