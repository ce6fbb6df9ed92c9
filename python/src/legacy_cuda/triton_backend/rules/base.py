"""What a rule is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ptx import Address, Block, Instruction, Names, Opcode, Scopes

Capability = tuple[int, int]
SPACES = ("global", "shared", "shared::cta")
SCOPES = ("cta", "cluster", "gpu", "sys")


@dataclass(frozen=True)
class Context:
    """The target, and what is known of the module at the statement."""

    capability: Capability
    names: Names
    scopes: Scopes

    def block(self) -> Block:
        """A new block for a replacement."""
        return Block(self.names.number())


@dataclass(frozen=True)
class Rule:
    """How one class of instructions is written for a capability that does not have it.

    ``needs`` is given an opcode of ``opcodes`` and returns the first capability that has the
    instruction, None where the rule has nothing to do with it. ``rewrite`` returns PTX that the
    other rules may go on with; it raises `LegalizeError` for a statement that is malformed or
    cannot be had.
    """

    name: str
    section: str  # of the PTX ISA, or of another document of NVIDIA's that is named
    guarantees: str
    costs: str
    opcodes: frozenset[str]
    needs: Callable[[Opcode], Capability | None]
    rewrite: Callable[[Instruction, Context], str]


def removed(instruction: Instruction, context: Context) -> str:
    """An empty block in place of a statement: what stands before and behind it stays apart."""
    return "{}"


def pointer(
    block: Block, instruction: Instruction, operand: str, space: str, context: Context
) -> tuple[str, str]:
    """An address operand in a temporary, offset added: its name and size, ``b64``, or ``b32`` in
    shared memory.

    Raises:
        LegalizeError: the operand is no address, or one that the space does not have.
    """
    address: Address = instruction.address(operand)
    shared = space.startswith("shared")
    size = "b32" if shared else "b64"
    made = block.new(size)
    if context.scopes.is_register(address.base):
        # A register of 64 bits may hold a shared address too: cvt takes the low half of it.
        block.do("cvt.u32.u32" if shared else "mov.b64", made, address.base)
    elif address.base[0].isdigit():
        raise instruction.error("a constant is no address of an atomic or copy")
    elif not space:
        raise instruction.error("a variable needs its state space in the instruction")
    else:
        block.do("mov.u32" if shared else "mov.u64", made, address.base)
    if address.offset:
        block.do("add.s32" if shared else "add.s64", made, made, address.offset)
    return made, size


def result(operand: str) -> str:
    """A destination operand; an empty string where the result is thrown away."""
    return "" if operand == "_" else operand
