"""PTX for a capability below 7.0 out of PTX that was written for newer ones.

LLVM and Triton write PTX for 7.0 and newer, whatever the target. Each statement that ptxas refuses
for the target is replaced by what means the same there, by the rules of `rules.RULES`; every other
byte stays. Nothing is done from 7.0 on.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .ptx import STATEMENT, Instruction, LegalizeError, Names, Opcode, Scopes, shown
from .rules import RULES, Context, Rule
from .rules.directives import cluster_directives, register_directive

__all__ = ["LegalizeError", "legalize"]

NEWEST = (7, 0)  # the first capability that Triton's PTX is right for
_DEPTH = 8  # rules that one statement passes through; no statement passes more than five
_VERSION = re.compile(r"(\.version\s+)(\d+)\.(\d+)")
_TARGET = re.compile(r"(\.target\s+)(sm_\w+)")

Finder = Callable[[str], "Rule | None"]


def legalize(
    text: str, capability: tuple[int, int], ptx_version: tuple[int, int] | None = None
) -> str:
    """PTX that means the same and that ptxas assembles for the capability.

    Args:
        text: a PTX module.
        capability: the GPU's, ``(6, 1)``. From 7.0 on only the version is changed.
        ptx_version: the newest PTX ISA that ptxas knows, ``(7, 8)`` for that of CUDA 11.8; a
            module of a newer one is declared to be of this one.

    Raises:
        LegalizeError: the module has an instruction for which the capability has no like, or one
            that a rule concerns is malformed. The statement is in the message.
    """
    if capability >= NEWEST and ptx_version is None:
        return text
    find = _finder(capability)
    context = Context(capability, Names(text), Scopes())
    return _rewritten(text, context, find, ptx_version, 0)


def rule_for(opcode: Opcode, capability: tuple[int, int]) -> Rule | None:
    """The first rule that has something to do for an instruction."""
    if capability >= NEWEST:
        return None
    for rule in RULES:
        if opcode.name in rule.opcodes:
            needs = rule.needs(opcode)
            if needs is not None and capability < needs:
                return rule
    return None


def _finder(capability: tuple[int, int]) -> Finder:
    """`rule_for` by opcodes as they are written; a module has few different ones."""
    known: dict[str, Rule | None] = {}

    def find(written: str) -> Rule | None:
        if written not in known:
            known[written] = rule_for(Opcode.read(written), capability)
        return known[written]

    return find


def _rewritten(
    text: str, context: Context, find: Finder, version: tuple[int, int] | None, depth: int
) -> str:
    scopes, legacy = context.scopes, context.capability < NEWEST
    parts: list[str] = []
    done = 0
    for match in STATEMENT.finditer(text):
        kind = match.lastgroup
        if kind == "opcode":
            rule = find(match["opcode"])
            if rule is None:
                continue
            begin, end = match.start("guard"), match.end()
            if begin < 0:
                begin = match.start("opcode")
            source = text[begin:end]
            if depth == _DEPTH:
                raise LegalizeError(f"no end of rules for this statement: {shown(source)}")
            new = rule.rewrite(Instruction.read(source), context)
            # What a rule writes may be for the next one: an order is taken off an atomic, then
            # the atomic becomes a loop.
            new = _rewritten(new, context, find, None, depth + 1)
        elif kind == "line":
            begin, end = match.span("line")
            new = _header(text[begin:end], context.capability if legacy else None, version)
        elif kind == "directive":
            begin, end = match.span("directive")
            source = text[begin:end]
            scopes.declare(source)
            if not legacy:
                continue
            new = register_directive(cluster_directives(source), context.capability)
        elif kind == "open":
            scopes.open()
            continue
        elif kind == "close":
            scopes.close()
            continue
        else:
            continue
        if new != text[begin:end]:
            parts += [text[done:begin], new]
            done = end
    return "".join([*parts, text[done:]]) if parts else text


def _header(line: str, capability: tuple[int, int] | None, version: tuple[int, int] | None) -> str:
    """``.version`` and ``.target`` as they have to be; any other line as it is."""
    if version is not None and (match := _VERSION.match(line)):
        if (int(match[2]), int(match[3])) > version:
            return f"{match[1]}{version[0]}.{version[1]}{line[match.end() :]}"
    elif capability is not None and (match := _TARGET.match(line)):
        return f"{match[1]}sm_{capability[0]}{capability[1]}{line[match.end() :]}"
    return line
