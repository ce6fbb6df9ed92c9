"""PTX text as statements: found quickly, parsed when somebody asks.

Source: PTX ISA, "Syntax" and "Instruction Statements". A module is read as a row of statements:
labels, directives, braces and instructions (guard, opcode, operands, semicolon). Comments and
strings are never taken for code. Text that is none of this is passed over, not refused: ptxas says
what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property


class LegalizeError(ValueError):
    """A statement that a rule concerns is malformed, or the capability has nothing like it."""


COMMENT = r"(?://[^\n]*(?:\n|\Z)|/\*[^*]*\*+(?:[^/*][^*]*\*+)*/)"
_SKIP = rf"\s*(?:{COMMENT}\s*)*"
_QUOTED = r'"[^"\n]*"'
_NAME = r"[\w$%]+"
# To the semicolon that ends an instruction, or the end of a text that lacks it.
_REST = rf'[^;"/]*(?:(?:{COMMENT}|/(?![/*])|/\*[\s\S]*|{_QUOTED}|")[^;"/]*)*'
# Directives that end with their line. All others end with a semicolon or before a brace.
_LINE = r"\.(?:version|target|address_size|file|loc|section|b8|b16|b32|b64)\b"

# Every alternative is decided by its first characters, the last ones take what is left, and a
# comment can only be matched whole: the expression never goes back into what it has passed.
STATEMENT = re.compile(
    rf"""{_SKIP}(?:
    (?P<guard>@\s*!?\s*{_NAME}(?![\w$%]){_SKIP})?
      (?P<opcode>[a-z]\w*(?:\s*\.\w+(?:::\w+)*)*)(?![\w$:.]|\s*:)(?:{_REST}(?:;|\Z))
    |(?P<label>[A-Za-z_$%][\w$]*)\s*:(?!:)
    |(?P<line>{_LINE}[^\n;{{}}"/]*(?:(?:{_QUOTED}|/(?![/*])|/\*[^*]*\*+(?:[^/*][^*]*\*+)*/)
      [^\n;{{}}"/]*)*)
    |(?P<directive>\.\w+[^;{{}}="/]*(?:(?:{COMMENT}|/(?![/*])|{_QUOTED}|")[^;{{}}="/]*)*
      (?:={_REST})?;?)
    |(?P<open>\{{)
    |(?P<close>\}})
    |(?P<other>{_QUOTED}|/\*[\s\S]*|{_NAME}|\S)
    |(?P<end>\Z)
    )""",
    re.VERBOSE,
)
_COMMENTS = re.compile(COMMENT)
_OPERAND_TOKEN = re.compile(rf"{COMMENT}|{_QUOTED}|[,()\[\]{{}}]")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_ADDRESS = re.compile(r"\[\s*([\w$%.]+)\s*(?:\+\s*(-?\s*\w+)\s*)?\]")
_INTEGER = re.compile(r"(-?)\s*(0[xX][0-9a-fA-F]+|0[bB][01]+|[0-9]+)U?")
_DECLARATION = re.compile(r"\.reg\s*\.(\w+)\s+([^;]*)")
_REGISTERS = re.compile(r"([\w$%]+)\s*(<\s*\d+\s*>)?")


@dataclass(frozen=True)
class Opcode:
    """``ld.global.L1::evict_last.b32`` as ``ld`` and the modifiers behind it, dots removed."""

    name: str
    modifiers: tuple[str, ...]

    @classmethod
    def read(cls, written: str) -> Opcode:
        """The opcode as it stands in a statement, blanks allowed before its dots."""
        name, *modifiers = (part.strip() for part in written.split("."))
        return cls(name, tuple(modifiers))

    def has(self, *modifiers: str) -> bool:
        """Whether one of these modifiers is there."""
        return any(modifier in self.modifiers for modifier in modifiers)

    def without(self, *modifiers: str) -> Opcode:
        """The opcode less these modifiers."""
        return Opcode(self.name, tuple(m for m in self.modifiers if m not in modifiers))

    def one_of(self, modifiers: Sequence[str]) -> str:
        """The first modifier that is among these; an empty string where there is none."""
        return next((m for m in self.modifiers if m in modifiers), "")

    @property
    def type(self) -> str:
        """The last modifier, in most instructions the type."""
        return self.modifiers[-1] if self.modifiers else ""

    def __str__(self) -> str:
        return ".".join((self.name, *self.modifiers))


@dataclass(frozen=True)
class Address:
    """``[base+offset]``: a register's or variable's name, and bytes."""

    base: str
    offset: int


@dataclass(frozen=True)
class Instruction:
    """One instruction. ``source`` is its text from the guard to the semicolon."""

    source: str
    guard: str  # "@%p1", "@!%p1" or nothing
    opcode: Opcode
    spans: tuple[tuple[int, int], ...]  # in `source`: of the opcode, then of each operand

    @classmethod
    def read(cls, source: str) -> Instruction:
        """Parse one instruction.

        Raises:
            LegalizeError: it is not a whole instruction.
        """
        match = STATEMENT.match(source)
        if match is None or match.lastgroup != "opcode" or match.end() != len(source):
            raise LegalizeError(f"not an instruction: {shown(source)}")
        if not source.endswith(";"):
            raise LegalizeError(f"no semicolon ends this statement: {shown(source)}")
        guard = "".join(_COMMENTS.sub(" ", match["guard"] or "").split())
        spans = [match.span("opcode"), *_operands(source, match.end("opcode"))]
        return cls(source, guard, Opcode.read(match["opcode"]), tuple(spans))

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """The operands without comments and blanks around them."""
        return tuple(
            _COMMENTS.sub(" ", self.source[begin:end]).strip() for begin, end in self.spans[1:]
        )

    def expect(self, *counts: int) -> tuple[str, ...]:
        """The operands, whose number has to be one of these.

        Raises:
            LegalizeError: it is not.
        """
        if len(self.operands) not in counts or "" in self.operands:
            wanted = " or ".join(map(str, counts))
            raise self.error(f"{wanted} operands expected, {len(self.operands)} found")
        return self.operands

    def address(self, operand: str) -> Address:
        """An operand in brackets.

        Raises:
            LegalizeError: it is not an address of one name and one offset.
        """
        match = _ADDRESS.fullmatch(operand)
        if not match:
            raise self.error(f"{operand} is not an address")
        return Address(match[1], self.integer(match[2]) if match[2] else 0)

    def integer(self, operand: str) -> int:
        """An operand that has to be an integer constant.

        Raises:
            LegalizeError: it is not.
        """
        match = _INTEGER.fullmatch(operand)
        if not match:
            raise self.error(f"{operand} is not an integer constant")
        digits = match[2].lower()
        octal = len(digits) > 1 and digits.isdigit() and digits[0] == "0"
        try:
            value = int(digits, 8 if octal else 0)
        except ValueError as error:
            raise self.error(f"{operand} is not an integer constant") from error
        return -value if match[1] else value

    def vector(self, operand: str) -> list[str]:
        """The elements of ``{a, b}``; the operand itself where it is no vector."""
        if operand.startswith("{") and operand.endswith("}"):
            return [element.strip() for element in operand[1:-1].split(",")]
        return [operand]

    def edited(self, opcode: Opcode, drop: int | None = None) -> str:
        """The statement with another opcode and, if told so, without the operand of that index;
        every other byte stays."""
        (begin, end), *operands = self.spans
        source = self.source
        if drop is not None:
            source = source[: operands[drop - 1][1]] + source[operands[drop][1] :]
        return source[:begin] + str(opcode) + source[end:]

    def error(self, reason: str) -> LegalizeError:
        """What is wrong with this statement."""
        return LegalizeError(f"{reason}: {shown(self.source)}")


def _operands(source: str, begin: int) -> Iterator[tuple[int, int]]:
    """Where the operands are, separated by the commas outside brackets.

    Raises:
        LegalizeError: brackets do not match.
    """
    open_brackets: list[str] = []
    start, end = begin, len(source) - 1
    for token in _OPERAND_TOKEN.finditer(source, begin, end):
        bracket = token[0]
        if bracket in "([{":
            open_brackets.append(bracket)
        elif bracket in _PAIRS:
            if not open_brackets or open_brackets.pop() != _PAIRS[bracket]:
                raise LegalizeError(f"brackets do not match: {shown(source)}")
        elif bracket == "," and not open_brackets:
            yield start, token.start()
            start = token.end()
    if open_brackets:
        raise LegalizeError(f"brackets do not match: {shown(source)}")
    if start > begin or _COMMENTS.sub("", source[begin:end]).strip():
        yield start, end


def shown(source: str) -> str:
    """A statement on one line, for a message."""
    line = " ".join(source.split())
    return line if len(line) <= 200 else line[:197] + "..."


class Scopes:
    """The registers declared so far, block by block."""

    def __init__(self) -> None:
        self._blocks: list[list[str]] = [[]]

    def open(self) -> None:
        """A ``{``."""
        self._blocks.append([])

    def close(self) -> None:
        """A ``}``; one too many is passed over."""
        if len(self._blocks) > 1:
            self._blocks.pop()

    def declare(self, directive: str) -> None:
        """A directive; only ``.reg`` says anything here."""
        if directive.startswith(".reg"):
            self._blocks[-1].append(directive)

    def type_of(self, name: str) -> str:
        """The type a register was declared with, ``b32``; empty where it was not."""
        for block in reversed(self._blocks):
            for directive in reversed(block):
                match = _DECLARATION.match(_COMMENTS.sub(" ", directive))
                if match and _declares(match[2], name):
                    return match[1]
        return ""

    def is_register(self, name: str) -> bool:
        """Whether a name in an address is a register's, not a variable's."""
        return name.startswith("%") or bool(self.type_of(name))


def _declares(names: str, wanted: str) -> bool:
    for match in _REGISTERS.finditer(names):
        if match[1] == wanted and not match[2]:
            return True
        if match[2] and wanted.startswith(match[1]):
            number = wanted[len(match[1]) :]
            if number.isdecimal() and int(number) < int(match[2].strip("<> ")):
                return True
    return False


class Names:
    """Numbers for temporaries and labels that nothing in a module has yet."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._next = -1

    def number(self) -> int:
        """A number that no other replacement has."""
        if self._next < 0:
            taken = re.findall(r"[%$]legacy(\d{1,9})_", self._text)
            self._next = 1 + max(map(int, taken), default=-1)
        self._next += 1
        return self._next - 1


class Block:
    """Statements in place of one, in a ``{}`` of their own, with their temporaries.

    Temporaries have untyped sizes, which every instruction of that size takes.
    """

    def __init__(self, number: int) -> None:
        self._prefix = f"legacy{number}_"
        self._registers: dict[str, list[str]] = {}
        self._count = 0
        self._lines: list[str] = []

    def new(self, size: str) -> str:
        """A temporary of ``pred``, ``b16``, ``b32`` or ``b64``."""
        name = f"%{self._prefix}{self._count}"
        self._count += 1
        self._registers.setdefault(size, []).append(name)
        return name

    def do(self, opcode: str, *operands: str | int, guard: str = "") -> None:
        """Add one instruction."""
        words = ", ".join(map(str, operands))
        self._lines.append(f"{guard} {opcode} {words};".strip().replace(" ;", ";"))

    def _made(self, size: str, opcode: str, operands: tuple[str | int, ...]) -> str:
        result = self.new(size)
        self.do(opcode, result, *operands)
        return result

    def pred(self, opcode: str, *operands: str | int) -> str:
        """Add an instruction with a new predicate as its result, which is returned."""
        return self._made("pred", opcode, operands)

    def b16(self, opcode: str, *operands: str | int) -> str:
        """The same with 16 bits."""
        return self._made("b16", opcode, operands)

    def b32(self, opcode: str, *operands: str | int) -> str:
        """The same with 32 bits."""
        return self._made("b32", opcode, operands)

    def b64(self, opcode: str, *operands: str | int) -> str:
        """The same with 64 bits."""
        return self._made("b64", opcode, operands)

    def label(self) -> str:
        """A name for a label."""
        self._count += 1
        return f"${self._prefix}{self._count - 1}"

    def place(self, label: str) -> None:
        """Put a label here, if it is one."""
        if label:
            self._lines.append(f"{label}:")

    def unless(self, guard: str) -> str:
        """Jump to the returned label, still to be placed, where the guard does not hold; an empty
        one where there is no guard."""
        if not guard:
            return ""
        end = self.label()
        self.do("bra", end, guard=f"@{guard[2:]}" if guard[1] == "!" else f"@!{guard[1:]}")
        return end

    def __str__(self) -> str:
        declared = [f".reg .{size} {', '.join(names)};" for size, names in self._registers.items()]
        return "{\n\t" + "\n\t".join([*declared, *self._lines]) + "\n\t}"
