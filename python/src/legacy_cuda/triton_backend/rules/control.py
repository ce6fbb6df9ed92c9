"""Instructions about when and with how much something runs. Without them it runs all the same."""

from __future__ import annotations

from .base import Rule, removed

RULES = (
    Rule(
        name="sleep",
        section="Miscellaneous Instructions: nanosleep",
        guarantees="a sleep of no time: the ISA promises zero to twice the duration",
        costs="a loop that waits asks more often",
        opcodes=frozenset({"nanosleep"}),
        needs=lambda opcode: (7, 0),
        rewrite=removed,
    ),
    Rule(
        name="dependent grids",
        section="Parallel Synchronization and Communication Instructions: griddepcontrol",
        guarantees="grids of a stream run one after the other, so that there is nothing to wait "
        "for",
        costs="no overlap of a grid's end with the next one's beginning",
        opcodes=frozenset({"griddepcontrol"}),
        needs=lambda opcode: (9, 0),
        rewrite=removed,
    ),
    Rule(
        name="register count",
        section="Miscellaneous Instructions: setmaxnreg",
        guarantees="the same values: each thread keeps the registers it was started with",
        costs="nothing",
        opcodes=frozenset({"setmaxnreg"}),
        needs=lambda opcode: (9, 0),
        rewrite=removed,
    ),
)
