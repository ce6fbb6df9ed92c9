"""Instructions that nothing below 7.0 can stand in for: said by name, before ptxas does."""

from __future__ import annotations

from typing import NoReturn

from ..ptx import Instruction, Opcode
from .base import Capability, Context, Rule

_INSTRUCTIONS: dict[str, tuple[Capability, str]] = {
    "mma": ((7, 0), "tensor cores"),
    "wmma": ((7, 0), "tensor cores"),
    "ldmatrix": ((7, 5), "loading matrices for tensor cores"),
    "movmatrix": ((7, 5), "moving matrices for tensor cores"),
    "stmatrix": ((9, 0), "storing matrices of tensor cores"),
    "wgmma": ((9, 0), "tensor cores of warp groups"),
    "tcgen05": ((10, 0), "tensor memory"),
    "mbarrier": ((8, 0), "barriers in memory"),
    "tensormap": ((9, 0), "tensor maps"),
    "multimem": ((9, 0), "multicast memory"),
    "mapa": ((9, 0), "clusters"),
    "getctarank": ((9, 0), "clusters"),
    "clusterlaunchcontrol": ((10, 0), "clusters"),
}
_NARROW = (
    "e2m1x2",
    "e2m3x2",
    "e3m2x2",
    "ue8m0x2",
    "e2m1x4",
    "e2m3x4",
    "e3m2x4",
    "e4m3x4",
    "e5m2x4",
)
_PACKED = ("u16x2", "s16x2")
_LONG = ("b64", "u64", "s64", "f64")
_ARITHMETIC = frozenset({"add", "sub", "mul", "fma", "min", "max", "neg"})


def _what(opcode: Opcode) -> tuple[Capability, str] | None:
    name, first = opcode.name, opcode.modifiers[:1]
    if name in _INSTRUCTIONS:
        if name == "mbarrier" and opcode.has("try_wait"):
            return (9, 0), "waiting at barriers in memory"
        return _INSTRUCTIONS[name]
    if name == "cp":
        if first != ("async",) or opcode.has("bulk", "reduce"):
            return (9, 0), "bulk copies"
        return ((8, 0), "barriers in memory") if opcode.has("mbarrier") else None
    if opcode.has("shared::cluster") or (name == "barrier" and opcode.has("cluster")):
        return (9, 0), "clusters"
    if opcode.has("b128"):
        return ((9, 0) if name == "atom" else (7, 0)), "128-bit registers"
    if name in ("st", "red") and first == ("async",):
        return (9, 0), "asynchronous stores"
    if name == "st" and first == ("bulk",):
        return (10, 0), "bulk stores"
    if name == "prefetch" and opcode.has("tensormap"):
        return (9, 0), "tensor maps"
    if name == "cvt" and opcode.has(*_NARROW):
        return (10, 0), "formats of less than 8 bits, or four of them at once"
    if name == "cvt" and opcode.has("rs"):
        return (10, 0), "stochastic rounding"
    if name in _ARITHMETIC and opcode.has("f32x2"):
        return (10, 0), "pairs of fp32"
    if name in _ARITHMETIC and opcode.has(*_PACKED):
        return (9, 0), "pairs of 16-bit integers"
    if name in _ARITHMETIC and opcode.has("f32") and opcode.type in ("f16", "bf16"):
        return (10, 0), "arithmetic of mixed types"
    if name in ("min", "max") and opcode.has("relu") and opcode.type in ("s32", "u32"):
        return (9, 0), "integers clamped to 0"
    if name in ("ld", "st") and (opcode.has("v8") or (opcode.has("v4") and opcode.type in _LONG)):
        return (10, 0), "accesses of 32 bytes"
    if name == "fma" and opcode.has("oob"):
        return (9, 0), "fma with values out of bounds"
    if name in ("cvta", "isspacep") and opcode.has("param", "param::entry"):
        return (7, 0), "generic addresses of parameters"
    return None


def _needs(opcode: Opcode) -> Capability | None:
    found = _what(opcode)
    return found[0] if found else None


def _refused(instruction: Instruction, context: Context) -> NoReturn:
    found = _what(instruction.opcode)
    (major, minor), what = found if found else ((7, 0), "this instruction")
    has = ".".join(map(str, context.capability))
    raise instruction.error(
        f"{instruction.opcode} needs capability {major}.{minor} ({what}); the GPU has {has}"
    )


RULES = (
    Rule(
        name="unavailable",
        section="the instruction's own, Target ISA Notes",
        guarantees="an error that names the instruction and what it needs",
        costs="the kernel is not compiled",
        opcodes=frozenset(
            {*_INSTRUCTIONS, *_ARITHMETIC, "cp", "barrier", "ld", "st", "mov", "atom", "red"}
            | {"prefetch", "cvt", "cvta", "isspacep"}
        ),
        needs=_needs,
        rewrite=_refused,
    ),
)
