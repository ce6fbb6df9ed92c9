"""What a compilation left behind, in numbers: ptxas's report and nvdisasm's listing. No Triton."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass

_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_SHARED = re.compile(r"Used .*?(\d+)(?:\+\d+)? bytes smem")
_ERROR = re.compile(r"(?:error|fatal|ERROR)\s*:\s*(.+)")
# An instruction of a listing: its address in a comment, perhaps the brace of a dual issue, perhaps
# a predicate, then the opcode with its modifiers.
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P[0-9T]\s+)?([A-Z][A-Z0-9_.]*)")

#: Opcodes of fp16 arithmetic (two halves a register) in Maxwell's and Pascal's SASS, from
#: NVIDIA's CUDA Binary Utilities, "Maxwell and Pascal Instruction Set".
HALF_ARITHMETIC = ("HADD2", "HFMA2", "HMUL2", "HSET2", "HSETP2")
#: Opcodes whose modifiers are kept: they say which sums of products, orders and scopes were made.
DETAILED = ("IDP", "MEMBAR", "ATOM", "ATOMS", "RED", "CCTL", "F2F", "HFMA2", "HADD2", "HMUL2")


@dataclass(frozen=True)
class Resources:
    """What ptxas says one kernel needs: registers a thread, and bytes."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int


def read_ptxas(log: str) -> dict[str, int] | None:
    """The `Resources` of a ``ptxas -v`` report as a dictionary, or None if it reports nothing.

    Functions that were not inlined are counted with the kernel: their spills add up, of the
    registers the greatest number counts.
    """
    registers = [int(found) for found in _REGISTERS.findall(log)]
    if not registers:
        return None
    frames = [[int(number) for number in found] for found in _SPILLS.findall(log)]
    stack, stores, loads = (
        (sum(column) for column in zip(*frames, strict=True)) if frames else (0, 0, 0)
    )
    shared = [int(found) for found in _SHARED.findall(log)]
    return asdict(Resources(max(registers), stack, stores, loads, max(shared, default=0)))


def count_opcodes(listing: str) -> tuple[dict[str, int], dict[str, int]]:
    """Opcodes of an nvdisasm listing, without modifiers, and with them for the `DETAILED` ones."""
    plain: Counter[str] = Counter()
    detailed: Counter[str] = Counter()
    for whole in _INSTRUCTION.findall(listing):
        opcode = whole.partition(".")[0]
        plain[opcode] += 1
        if opcode in DETAILED:
            detailed[whole] += 1
    return dict(sorted(plain.items())), dict(sorted(detailed.items()))


def half_arithmetic(opcodes: dict[str, int]) -> int:
    """How many of the counted opcodes compute in fp16."""
    return sum(opcodes.get(opcode, 0) for opcode in HALF_ARITHMETIC)


def dp4a(detailed: dict[str, int]) -> int:
    """How many of the counted opcodes are sums of four 8-bit products."""
    return sum(count for opcode, count in detailed.items() if opcode.startswith("IDP.4A"))


def first_error(text: str) -> str | None:
    """The first message of a log in which a compiler says ``error: ...``."""
    found = _ERROR.search(text)
    return found[1].strip()[:300] if found else None
