"""What a library's machine code is made of, counted by kind of kernel.

    python -m tests.llama.sass CUOBJDUMP LIBRARY

Prints, for every template or function that kernels come from, how many kernels there are, how many
of them are empty (for other GPUs: they return or trap), and how many of their instructions multiply
bytes four at a time (``dp4a``) and how many compute in half precision. Conversions, loads and
stores of halves do not count: they are no arithmetic.

CUOBJDUMP is that of a toolchain (``legacy-cuda toolchain 12.4``), which knows the capability.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

# cuobjdump writes IDP.4A for 6.1 and newer; HFMA2 and the like are two halves at once (CUDA Binary
# Utilities, "Instruction Set Reference", Maxwell and Pascal, Volta).
_DP4A = re.compile(r"\bIDP4?\.4A|\bDP4A|\bIDP\b")
_HALF = re.compile(r"\bH(FMA2|ADD2|MUL2|SET2|SETP2|MNMX2|MMA)")
_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_CODE = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+\{?\s*(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)"  # {: two at once
)
_EMPTY = 64  # instructions, at most, of a kernel that only returns or traps
_NAME = re.compile(r"^_Z(?:N)?(\d+)(.*)")


@dataclass
class Family:
    """Kernels of one template."""

    kernels: int = 0
    empty: int = 0
    instructions: int = 0
    dp4a: int = 0
    half: int = 0
    with_dp4a: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def end(self, before: tuple[int, int]) -> None:
        """A kernel ends that began with so many instructions and dp4a."""
        self.with_dp4a += self.dp4a > before[1]
        self.empty += self.instructions - before[0] <= _EMPTY


def family(symbol: str) -> str:
    """The name of the function or template in a mangled name (Itanium C++ ABI, 5.1)."""
    match = _NAME.match(symbol)
    rest = symbol
    while match:
        length, rest = int(match[1]), match[2]
        name, rest = rest[:length], rest[length:]
        if not name.startswith(("_GLOBAL__N", "_INTERNAL")):
            return name
        match = re.match(r"^(\d+)(.*)", rest)
    return symbol


def count(lines: Iterable[str]) -> dict[str, Family]:
    """Instructions by family of kernels."""
    found: dict[str, Family] = {}
    current: Family | None = None
    before = (0, 0)
    for line in lines:
        if start := _FUNCTION.match(line):
            if current is not None:
                current.end(before)
            current = found.setdefault(family(start[1]), Family())
            current.kernels += 1
            before = (current.instructions, current.dp4a)
        elif current is not None and (code := _CODE.match(line)):
            current.instructions += 1
            if _DP4A.match(code[1]):
                current.dp4a += 1
            elif _HALF.match(code[1]):
                current.half += 1
                current.kinds[code[1].partition(".")[0]] += 1
    if current is not None:
        current.end(before)
    return found


def main() -> int:
    """Print the table."""
    program, library = sys.argv[1:]
    with subprocess.Popen([program, "-sass", library], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        found = count(run.stdout)
    print(
        f"{'kernels of':44} {'kernels':>8} {'empty':>7} {'with dp4a':>10} {'dp4a':>9} {'half':>8}"
    )
    for name, item in sorted(found.items(), key=lambda pair: -pair[1].instructions):
        numbers = f"{item.kernels:8} {item.empty:7} {item.with_dp4a:10} {item.dp4a:9} {item.half:8}"
        kinds = " ".join(f"{kind} {number}" for kind, number in item.kinds.most_common())
        print(f"{name[:44]:44} {numbers}  {kinds}".rstrip())
    total = sum(item.instructions for item in found.values())
    kernels = sum(item.kernels for item in found.values())
    half = sum(item.half for item in found.values())
    print(f"{kernels} kernels, {total} instructions, {half} of half precision")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
