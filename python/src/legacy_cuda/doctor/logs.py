"""Known texts in a log: any size, any encoding, a few MiB of memory.

A block of text is asked for each rule's text as a whole, which Python does at memory speed; only
where one is found are lines looked at.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from legacy_cuda.catalog.doctor import Rule
from legacy_cuda.errors import UserError

BLOCK = 1 << 20  # bytes read at once
LINE = 1 << 16  # a longer line is taken in pieces
KEPT = 5  # lines kept of each rule
COUNTED = 1000  # lines counted of each rule; more is as good as this
_AROUND = 2000  # characters before and after a text that count as its line, at most
_OVERLAP = 400  # of pieces of a long line, so that a text on their border is found
_WORD = re.compile(r"\s*\S+\s+")
_NAMES_SECRET = re.compile(
    r"key|token|secret|pass|credential|auth|cookie|session|bearer|basic|serial|asset|board|machine",
    re.IGNORECASE,
)
_CLEAR = 3  # words that go behind a cut: half an option, a word such as Bearer, and the secret

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # colours and cursor moves (ECMA-48)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins like UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMPRESSED = ((b"\x1f\x8b", "zcat"), (b"\xfd7zXZ\0", "xzcat"), (b"\x28\xb5\x2f\xfd", "zstdcat"))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log that shows a rule. ``number`` counts from 1."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule whose text is in a log: the first lines, and how many (1000: or more)."""

    rule: Rule
    lines: tuple[Line, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a log says."""

    hits: tuple[Hit, ...]
    lines: int


def blocks(stream: BinaryIO) -> Iterator[str]:
    """The text of a stream in blocks that end with a line, lines of more than 64 Ki characters
    excepted.

    Raises:
        UserError: it is compressed.
    """
    data = stream.read(BLOCK)
    for mark, program in _COMPRESSED:
        if data.startswith(mark):
            raise UserError(
                "the log is compressed",
                next_step=f"{program} FILE | legacy-cuda doctor --log -",
            )
    decoder = codecs.getincrementaldecoder(_encoding(data))("replace")
    rest = ""
    while data:
        text = rest + decoder.decode(data)
        end = text.rfind("\n") + 1
        if end == 0 and len(text) > LINE:
            blank = text.rfind(" ", len(text) - _OVERLAP // 2)
            yield text if blank < 0 else text[:blank]
            begin = len(text) - _OVERLAP
            rest = text[_behind_names(text, begin, begin + _OVERLAP // 2) or begin :]
        else:
            rest = text[end:]
            if end:
                yield text[:end]
        data = stream.read(BLOCK)
    if last := rest + decoder.decode(b"", True):
        yield last


def _encoding(data: bytes) -> str:
    """By its mark; without one UTF-16 shows by its NULs, and all else is read as UTF-8."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    sample = data[:4096]
    if len(sample) >= 4:
        half = len(sample) // 4
        if sample[1::2].count(0) > half > sample[0::2].count(0):
            return "utf-16-le"
        if sample[0::2].count(0) > half > sample[1::2].count(0):
            return "utf-16-be"
    return "utf-8"


def clean(text: str) -> str:
    """A line as it may be shown: no control characters, no blanks at its ends."""
    return "".join(sign if sign.isprintable() else " " for sign in text).strip()


def shortened(line: str, size: int) -> str:
    """The beginning of a line, to a blank: half a word could hide from :mod:`.redact`."""
    return line if len(line) <= size else line[: size + 1].rpartition(" ")[0]


def scan(texts: Iterable[str], rules: Sequence[Rule]) -> Scan:
    """Which of the rules the blocks of a log show, in the order in which they first do."""
    found: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    by_id = {rule.id: rule for rule in rules}
    line = 1
    unfinished = False
    for raw in texts:
        text = _ESCAPE.sub("", raw) if "\x1b" in raw else raw
        for number, rule_id, shown in sorted(_in_block(text, line, rules, counts)):
            kept = found.setdefault(rule_id, {})
            if number not in kept:
                counts[rule_id] = min(COUNTED, counts.get(rule_id, 0) + 1)
            if len(kept) < KEPT:
                kept.setdefault(number, shown)
        line += text.count("\n")
        unfinished = bool(text) and not text.endswith("\n")
    hits = [
        Hit(
            by_id[rule_id],
            tuple(Line(number, shown) for number, shown in kept.items()),
            counts[rule_id],
        )
        for rule_id, kept in found.items()
    ]
    hits.sort(key=lambda hit: hit.lines[0].number)
    return Scan(tuple(hits), line - 1 + unfinished)


def _in_block(
    text: str, first: int, rules: Sequence[Rule], counts: dict[str, int]
) -> Iterator[tuple[int, str, str]]:
    """Line number, rule and line of everything in a block that shows a rule; one a line."""
    for rule in rules:
        room = COUNTED - counts.get(rule.id, 0)
        seen: set[int] = set()
        for pattern in rule.patterns:
            start, number, counted = 0, first, 0
            while room > len(seen) and (at := text.find(pattern.text, start)) >= 0:
                left, right = max(0, at - _AROUND), min(len(text), at + _AROUND)
                begins = [text.rfind(sign, left, at) + 1 for sign in "\r\n"]
                ends = [end for sign in "\r\n" if (end := text.find(sign, at, right)) >= 0]
                begin, end = max(left, *begins), min(ends, default=right)
                start = end
                if not pattern.matches(text[begin:end]):
                    continue
                number += text.count("\n", counted, at)
                counted = at
                if number not in seen:
                    seen.add(number)
                    behind = at + len(pattern.text)
                    line = text[_first(text, begin, at) : behind] + _last(text, behind, end)
                    yield number, rule.id, clean(line)


def _first(text: str, begin: int, at: int) -> int:
    """Where the line begins or, if it was cut there, the first word that no half word names."""
    if begin == 0 or text[begin - 1] in "\r\n":
        return begin
    return _behind_names(text, begin, at) or at


def _behind_names(text: str, begin: int, end: int) -> int | None:
    """Where behind a cut nothing is the value of a name that went with it: behind three words that
    name no secret. None if that is not before ``end``."""
    clear = 0
    for word in _WORD.finditer(text, begin, end):
        clear = 0 if _NAMES_SECRET.search(word[0]) else clear + 1
        if clear == _CLEAR:
            return word.end()
    return None


def _last(text: str, behind: int, end: int) -> str:
    """The end of the line, up to its last whole word if it was cut there."""
    cut = end < len(text) and text[end] not in "\r\n"
    return text[behind:end].rpartition(" ")[0] if cut else text[behind:end]
