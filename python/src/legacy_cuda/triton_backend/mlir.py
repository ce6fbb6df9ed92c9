"""Edits of the IR between Triton's passes, made on its text, which MLIR then reads again.

MLIR prints each operation edited here on a line of its own and always in the same form; a line that
looks otherwise is an error, never skipped. Kernels without these operations are not touched.
"""

from __future__ import annotations

import tempfile
from typing import Any

from .dot import DP4A

_SIGNATURE = ") : (f32, f32, f32) -> f32 loc("
_MARK = f'loc("{DP4A}"('


class IRError(RuntimeError):
    """The IR is not in the form these edits know: an unknown release of Triton, for one."""


def after_ttgir(module: Any) -> Any:
    """What has to be done to a TritonGPU module when its passes are through; the module itself
    where that is nothing.

    * Operands widened for a dot by ``tt.fp_to_fp`` from fp16 or bf16 to fp32, which the lowering of
      Triton 3.3 refuses, are widened by ``arith.extf``, which means the same.
    * Dots marked for ``dp4a`` get a location of that name: all that survives the next lowering.

    Raises:
        IRError: a marked dot is written in an unknown form.
    """
    text = str(module)
    if " tt.dot " not in text:
        return module
    lines = text.split("\n")
    places: list[str] = []  # locations are named at the end of the text, where MLIR knows all
    edited = [_widened(line) or _located(line, places) or line for line in lines]
    return module if edited == lines else _read("\n".join(edited + places), module.context)


def _widened(line: str) -> str | None:
    head, operation, rest = line.partition(" = tt.fp_to_fp ")
    source, arrow, target = rest.partition(" -> tensor<")
    if not operation or not arrow:
        return None
    narrow = _element(source.partition(" : tensor<")[2])
    if narrow not in ("f16", "bf16") or _element(target) != "f32" or "rounding" in source:
        return None
    return f"{head} = arith.extf {source} to tensor<{target}"


def _element(shaped: str) -> str:
    """The element type in ``64x32xf16, #layout>...``."""
    return shaped.split(",", 1)[0].rpartition("x")[2]


def _located(line: str, places: list[str]) -> str | None:
    if " = tt.dot " not in line or DP4A not in line:
        return None
    head, loc, tail = line.rpartition(" loc(")
    if not loc or not tail.endswith(")"):
        raise IRError(f"a dot without a location: {line.strip()}")
    name = f"#{DP4A}{len(places)}"
    places.append(f"{name} = {_MARK}{tail[:-1]}))")
    return f"{head} loc({name})"


def has_dp4a(module: Any) -> bool:
    """Whether a module holds dots marked for ``dp4a``."""
    return _MARK in str(module)


def lower_dp4a(module: Any) -> Any:
    """The multiply-adds of marked dots, in the LLVM dialect, as ``dp4a``.

    Their operands are words of four int8 values and int32 sums that travel as fp32; nothing has
    computed with them. PTX ISA, "Integer Arithmetic Instructions: dp4a".

    Raises:
        IRError: there are none, or one is written in an unknown form.
    """
    lines = str(module).split("\n")
    places = set()
    for line in lines:
        name, mark, _ = line.partition(f" = {_MARK}")
        if mark:
            places.add(name)
    edited: list[str] = []
    count = 0
    for line in lines:
        head, operation, rest = line.partition(" = llvm.intr.fmuladd(")
        place = rest.rpartition(" loc(")[2].removesuffix(")")
        if not operation or place not in places:
            edited.append(line)
            continue
        operands, signature, _ = rest.partition(_SIGNATURE)
        names = operands.split(", ")
        if not signature or len(names) != 3:
            raise IRError(f"an unknown form of multiply-add: {line.strip()}")
        word, count = f"%{DP4A}_word{count}", count + 1
        edited += [
            f"    {word}_{index} = llvm.bitcast {name} : f32 to i32 loc({place})"
            for index, name in enumerate(names)
        ]
        edited += [
            f'    {word} = llvm.inline_asm asm_dialect = att "dp4a.s32.s32 $0, $1, $2, $3;", '
            f'"=r,r,r,r" {word}_0, {word}_1, {word}_2 : (i32, i32, i32) -> i32 loc({place})',
            f"{head} = llvm.bitcast {word} : i32 to f32 loc({place})",
        ]
    if not count:
        raise IRError("dots were marked for dp4a, but no multiply-add came of them")
    return _read("\n".join(edited), module.context)


def _read(text: str, context: Any) -> Any:
    from triton._C.libtriton import ir

    with tempfile.NamedTemporaryFile("w", suffix=".mlir") as file:
        file.write(text)
        file.flush()
        module = ir.parse_mlir_module(file.name, context)
    module.context = context
    return module
